"""Compilers, exporters and tracers: the program that they record gives the module's results."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from cases import assert_close, flatten

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")

torch_deprecates_itself = pytest.mark.filterwarnings(
    "ignore:`torch.jit.[a-z_]*` is deprecated:DeprecationWarning"
)


class Model(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.layer = getattr(fused_rnn, name)(4, 7, num_layers=2, bidirectional=True)
        self.head = nn.Linear(14, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


X = torch.randn(5, 3, 4)


def assert_same(actual: Any, expected: Any) -> None:
    for one, other in zip(flatten(actual), flatten(expected), strict=True):
        assert_close("result", one, other, 2e-5)


@pytest.fixture
def rnn_allowed() -> Any:
    """Dynamo does not look into recurrent layers unless told to: it leaves the graph for them."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", LAYERS)
def test_compile_breaks_the_graph_by_default(name: str) -> None:
    torch._dynamo.reset()
    model = Model(name)
    assert_same(torch.compile(model, backend="aot_eager")(X), model(X))


def operators_of(graphs: list[Any]) -> list[str]:
    return [str(node.target) for graph in graphs for node in graph.graph.nodes]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_compile_in_one_graph(name: str, dynamic: bool, rnn_allowed: None) -> None:
    model, graphs, first = Model(name), [], 0

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)
    for x in (X, torch.randn(8, 2, 4)):
        results = []
        for function in (compiled, model):
            leaf = x.clone().requires_grad_()
            model.zero_grad()
            output = function(leaf)
            output.square().sum().backward()
            results.append([output, leaf.grad, *(p.grad for p in model.parameters())])
        assert_same(*results)
        first = first or len(graphs)
    assert any("fused_rnn.sequence" in name for name in operators_of(graphs))
    if dynamic:
        assert len(graphs) == first
    with torch.no_grad():
        assert_same(compiled(X), model(X))


@pytest.mark.parametrize("name", LAYERS)
def test_compile_with_states_and_errors(name: str, rnn_allowed: None) -> None:
    layer = getattr(fused_rnn, name)(4, 7, batch_first=True)
    compiled = torch.compile(layer, backend="aot_eager")
    h = torch.randn(1, 5, 7)
    hx = (h, h) if name == "LSTM" else h
    assert_same(compiled(X, hx), layer(X, hx))
    assert_same(compiled(X[0]), layer(X[0]))
    with pytest.raises(RuntimeError, match="Expected hidden"):
        compiled(X[:2], hx)


@pytest.mark.parametrize("name", LAYERS)
def test_compile_packed(name: str) -> None:
    torch._dynamo.reset()
    layer = getattr(fused_rnn, name)(4, 7)

    def function(x: Tensor) -> Tensor:
        return layer(pack_padded_sequence(x, [5, 3, 2]))[0].data * 2

    assert_same(torch.compile(function, backend="aot_eager")(X), function(X))


@pytest.mark.parametrize("name", CELLS)
def test_compile_cells(name: str) -> None:
    torch._dynamo.reset()
    cell = getattr(fused_rnn, name)(4, 7)

    def function(x: Tensor) -> Tensor:
        hx = None
        for step in x:
            hx = cell(step, hx)
        return flatten(hx)[0]

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    assert_same(compiled(X), function(X))
    assert_same(torch.compile(cell, backend="aot_eager", fullgraph=True)(X[0, 0]), cell(X[0, 0]))


@pytest.mark.parametrize("name", LAYERS)
def test_compile_a_transform(name: str, rnn_allowed: None) -> None:
    model = Model(name)

    def function(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: model(x).square().sum())(x)

    assert_same(torch.compile(function, backend="aot_eager", fullgraph=True)(X), function(X))


# torch.nn's layers put the weights of the program into their list of weights while recorded.
@pytest.mark.filterwarnings("ignore:The tensor attributes self.layer._flat_weights:UserWarning")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_export_needs_torch_alone(name: str, strict: bool) -> None:
    model = Model(name)
    program = torch.export.export(model, (X,), strict=strict)
    assert not any("fused_rnn" in str(node.target) for node in program.graph.nodes)
    assert_same(program.module()(X), model(X))


@pytest.mark.parametrize("name", CELLS)
def test_export_cells(name: str) -> None:
    cell = getattr(fused_rnn, name)(4, 7)
    program = torch.export.export(cell, (X[0],))
    assert not any("fused_rnn" in str(node.target) for node in program.graph.nodes)
    assert_same(program.module()(X[0]), cell(X[0]))


@pytest.mark.parametrize("name", LAYERS)
def test_symbolic_trace_keeps_the_layer_whole(name: str) -> None:
    model = Model(name)
    graph = torch.fx.symbolic_trace(model)
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["layer", "head"]
    assert_same(graph(X), model(X))


@pytest.mark.parametrize("name", LAYERS)
def test_symbolic_trace_with_state(name: str) -> None:
    class WithState(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = getattr(fused_rnn, name)(4, 7)
            self.cell = getattr(fused_rnn, f"{name}Cell")(4, 7)

        def forward(self, x: Tensor, hx: Any) -> Any:
            return self.layer(x, hx), self.cell(x[0])

    model = WithState()
    h = torch.randn(1, 3, 7)
    hx = (h, h) if name == "LSTM" else h
    graph = torch.fx.symbolic_trace(model)
    assert [n.op for n in graph.graph.nodes].count("call_module") == 2
    assert_same(graph(X, hx), model(X, hx))


@pytest.mark.parametrize("name", LAYERS)
def test_symbolic_trace_of_the_layer_itself(name: str) -> None:
    """Fails as it does for torch.nn's layer: there is no module to hold the node."""
    for package in (nn, fused_rnn):
        with pytest.raises(torch.fx.proxy.TraceError):
            torch.fx.symbolic_trace(getattr(package, name)(4, 7))


@torch_deprecates_itself
@pytest.mark.parametrize("name", LAYERS)
def test_jit_script(name: str) -> None:
    model = Model(name)
    expected = model(X)
    parameters = list(model.parameters())
    scripted = torch.jit.script(model)
    assert_same(scripted(X), expected)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    assert_same(torch.jit.load(buffer)(X), expected)


@torch_deprecates_itself
@pytest.mark.parametrize("name", CELLS)
def test_jit_script_cells(name: str) -> None:
    cell = getattr(fused_rnn, name)(4, 7)
    assert_same(torch.jit.script(cell)(X[0]), cell(X[0]))


@torch_deprecates_itself
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn")
@pytest.mark.parametrize("name", LAYERS)
def test_jit_trace(name: str) -> None:
    model = Model(name)
    traced = torch.jit.trace(model, (X,))
    assert "fused_rnn::" not in str(traced.inlined_graph)
    x = torch.randn(7, 2, 4)
    assert_same(traced(x), model(x))


@torch_deprecates_itself
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn")
def test_jit_trace_is_explained() -> None:
    found = []

    class Explaining(Model):
        def forward(self, x: Tensor) -> Tensor:
            found.append(fused_rnn.explain(self.layer, x))
            return super().forward(x)

    torch.jit.trace(Explaining("GRU"), (X,), check_trace=False)
    assert found[0].way == "torch"
    assert "torch.jit.trace" in found[0]


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_fake_tensors(name: str) -> None:
    module = getattr(fused_rnn, name)(4, 7)
    x = X[0] if name in CELLS else X
    expected = flatten(module(x))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        results = flatten(module(mode.from_tensor(x)))
    for one, other in zip(results, expected, strict=True):
        assert one.shape == other.shape
        assert one.stride() == other.stride()
        assert one.dtype == other.dtype
