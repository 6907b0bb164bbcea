"""torch.compile: one graph with the fused operators in it, whatever the sizes."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.variables.builder import VariableBuilder
from torch.autograd import forward_ad
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fused_rnn
from cases import flatten
from tracing import (
    CELLS,
    LAYERS,
    Model,
    X,
    assert_same,
    need_compiler,
    operators_of,
)

pytestmark = [
    # Dynamo looks whether tensors have a gradient, and hides the warning that this brings.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Recorder:
    """A backend that keeps the graphs it is given."""

    def __init__(self, backend: str = "aot_eager") -> None:
        self.graphs: list[Any] = []
        self.backend = torch._dynamo.lookup_backend(backend)

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs.append(graph)
        return self.backend(graph, inputs)

    @property
    def fused(self) -> bool:
        return any("fused_rnn." in target for target in operators_of(self.graphs))


def train(function: Any, model: nn.Module, *inputs: Any) -> list[Tensor]:
    """Results, and gradients of their squares."""
    model.zero_grad()
    leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    results = flatten(function(*leaves))
    sum(r.square().sum() for r in results).backward()
    found = [leaf.grad for leaf in leaves if leaf.is_floating_point()]
    return [*results, *found, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", LAYERS)
def test_one_graph(name: str, backend: str) -> None:
    if backend == "inductor":
        need_compiler()
    model, recorder = Model(name), Recorder(backend)
    compiled = torch.compile(model, backend=recorder, fullgraph=True)
    assert_same(train(compiled, model, X), train(model, model, X))
    assert len(recorder.graphs) == 1
    assert recorder.fused
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_same(compiled(X), model(X))


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_modes(mode: str) -> None:
    need_compiler()
    model = Model("LSTM")
    compiled = torch.compile(model, mode=mode, fullgraph=True)
    assert_same(train(compiled, model, X), train(model, model, X))
    with torch.no_grad():
        assert_same(compiled(X), model(X))


@pytest.mark.parametrize("name", LAYERS)
def test_sizes_do_not_recompile(name: str) -> None:
    model = Model(name)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for time in (5, 6, 11, 2):
        x = torch.randn(time, 3, 4)
        assert_same(train(compiled, model, x), train(model, model, x))
    assert counter.frame_count == 2  # The first length, then any.
    for batch in (2, 4, 7):
        x = torch.randn(6, batch, 4)
        assert_same(compiled(x), model(x))
    assert counter.frame_count == 3


@pytest.mark.parametrize("how", ["marked", "dynamic"])
def test_sizes_known_to_vary_compile_once(how: str) -> None:
    model, first = Model("GRU"), 0
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    dynamic = True if how == "dynamic" else None
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=dynamic)
    for time, batch in ((5, 3), (6, 4), (11, 2)):
        x = torch.randn(time, batch, 4)
        if how == "marked":
            torch._dynamo.mark_dynamic(x, (0, 1))
        assert_same(compiled(x), model(x))
        # With dynamic=True Dynamo takes a second look at the module's numbers.
        first = first or counter.frame_count
    assert counter.frame_count == first


@pytest.mark.parametrize("name", LAYERS)
def test_states_and_errors(name: str) -> None:
    layer = getattr(fused_rnn, name)(4, 7, batch_first=True)
    compiled = torch.compile(layer, backend="aot_eager")
    h = torch.randn(1, 5, 7)
    hx = (h, h) if name == "LSTM" else h
    assert_same(compiled(X, hx), layer(X, hx))
    assert_same(compiled(X[0]), layer(X[0]))
    with pytest.raises(RuntimeError, match="Expected hidden"):
        compiled(X[:2], hx)
    layer.weight_hh_l0 = nn.Parameter(torch.randn(3, 2))
    with pytest.raises(RuntimeError, match=r"[Ee]xpected|shapes"):
        compiled(X)


def test_dropout() -> None:
    layer = fused_rnn.GRU(4, 7, num_layers=2, dropout=0.5)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for function in (compiled, layer):
        torch.manual_seed(3)
        results.append(function(X))
    assert_same(*results)
    layer.eval()
    assert_same(compiled(X), layer(X))


class Doubling(fused_rnn.GRU):
    calls = 0

    def forward(self, input: Any, hx: Any = None) -> Any:
        self.calls += 1
        output, hn = super().forward(input, hx)
        return 2 * output, hn


@pytest.mark.parametrize(
    "make",
    [
        Doubling,
        lambda *sizes: weight_norm(fused_rnn.GRU(*sizes), "weight_hh_l0"),
        lambda *sizes: fused_rnn.accelerate(nn.GRU(*sizes)),
    ],
    ids=["subclass", "parametrized", "accelerated"],
)
def test_classes_of_others(make: Any) -> None:
    layer, recorder = make(4, 7), Recorder()
    compiled = torch.compile(layer, backend=recorder, fullgraph=True)
    assert_same(train(compiled, layer, X), train(layer, layer, X))
    assert recorder.fused


def test_torch_layers_are_treated_as_ever() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fused = fused_rnn.GRU(4, 7)
            self.plain = nn.GRU(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(self.fused(x)[0])[0]

    assert torch._dynamo.config.allow_rnn is False
    with pytest.raises(Unsupported, match="wrap RNN, GRU, or LSTM"):
        torch.compile(nn.GRU(4, 7), backend="eager", fullgraph=True)(X)
    model, recorder = Both(), Recorder()
    assert_same(torch.compile(model, backend=recorder)(X), model(X))
    torch._dynamo.reset()
    with pytest.raises(Unsupported, match="wrap RNN, GRU, or LSTM"):
        torch.compile(model, backend="eager", fullgraph=True)(X)
    assert torch._dynamo.config.allow_rnn is False


@pytest.mark.parametrize("first", ["fused_rnn", "torch._dynamo"])
def test_order_of_imports(first: str) -> None:
    """And the package by itself does not import Dynamo, which takes seconds."""
    program = f"""
import sys
import torch, {first}
import fused_rnn
assert ("torch._dynamo" in sys.modules) == ({first!r} == "torch._dynamo")
layer = fused_rnn.RNN(3, 2)
torch.compile(layer, backend="eager", fullgraph=True)(torch.randn(2, 2, 3))
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_the_private_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the layers run outside of the graph, with the same results."""
    monkeypatch.setattr(VariableBuilder, "wrap_module", VariableBuilder.wrap_module.__wrapped__)
    model = Model("LSTM")
    assert_same(torch.compile(model, backend="aot_eager")(X), model(X))
    torch._dynamo.reset()  # It has learnt that there is nothing to compile.
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert_same(compiled(X), model(X))


@pytest.mark.parametrize("name", LAYERS)
def test_calls_for_torch_leave_the_graph(name: str) -> None:
    """As calls of torch's own layers do; with allow_rnn they stay in it."""
    layer, empty = getattr(fused_rnn, name)(4, 7), torch.empty(5, 0, 4)
    assert_same(torch.compile(layer, backend="aot_eager")(empty), layer(empty))
    with pytest.raises(Unsupported, match="a call that is not fused"):
        torch.compile(layer, backend="eager", fullgraph=True)(empty)
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        assert_same(compiled(empty), layer(empty))


def test_calls_for_torch_of_a_subclass() -> None:
    """Its own forward is run once."""
    layer, empty = Doubling(4, 7), torch.empty(5, 0, 4)
    h = torch.ones(1, 0, 7)
    assert_same(torch.compile(layer, backend="aot_eager")(empty, h), layer(empty, h))
    layer.calls = 0
    torch.compile(layer, backend="aot_eager")(empty)
    assert layer.calls == 1


@pytest.mark.parametrize("allow_rnn", [False, True])
def test_weights_of_a_wrong_size(allow_rnn: bool) -> None:
    """torch's LSTM would read past their ends."""
    layer = fused_rnn.LSTM(4, 7)
    layer.weight_hh_l0 = nn.Parameter(torch.randn(3, 2))
    with torch._dynamo.config.patch(allow_rnn=allow_rnn):
        compiled = torch.compile(layer, backend="eager")
        with pytest.raises(RuntimeError, match="Expected weight_hh_l0 size"):
            compiled(X)
    with pytest.raises(RuntimeError, match="Expected weight_hh_l0 size"):
        torch.export.export(layer, (X,))


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_beside_a_compilation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While some thread compiles, is_compiling() is true in code that nobody records."""
    module = getattr(fused_rnn, name)(4, 7)
    calls = [X[0], X[0, 0]] if name in CELLS else [X, torch.empty(5, 0, 4), pack([2, 1], True)]
    expected = [module(x) for x in calls]
    tangent = torch.func.jvp(module, (X[0],), (X[1],))[1]
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    assert torch.compiler.is_compiling()
    for x, result in zip(calls, expected, strict=True):
        assert_same(module(x), result)
    assert_same(torch.func.jvp(module, (X[0],), (X[1],))[1], tangent)
    with forward_ad.dual_level():
        results = flatten(module(forward_ad.make_dual(X[0], X[1])))
        assert_same([forward_ad.unpack_dual(r).tangent for r in results], tangent)
    if name in LAYERS:
        with pytest.raises(RuntimeError, match="batch_sizes"):
            module(PackedSequence(torch.randn(6, 4), torch.tensor([3, 2])))


@pytest.mark.parametrize("name", LAYERS)
def test_a_transform(name: str) -> None:
    layer = getattr(fused_rnn, name)(4, 7)

    def function(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: layer(x)[0].square().sum())(x)

    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert_same(compiled(X[:2]), function(X[:2]))


@pytest.mark.parametrize("name", CELLS)
def test_cells(name: str) -> None:
    cell = getattr(fused_rnn, name)(4, 7)

    def function(x: Tensor) -> Tensor:
        hx = None
        for step in x:
            hx = cell(step, hx)
        return flatten(hx)[0]

    recorder = Recorder()
    compiled = torch.compile(function, backend=recorder, fullgraph=True)
    assert_same(train(compiled, cell, X), train(function, cell, X))
    assert recorder.fused
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(cell, backend=counter, fullgraph=True)
    for batch in (3, 2, 5, 7):
        x = torch.randn(batch, 4)
        assert_same(compiled(x), cell(x))
    assert counter.frame_count == 2
    assert_same(compiled(X[0, 0]), cell(X[0, 0]))


def pack(lengths: list[int], enforce_sorted: bool) -> PackedSequence:
    x = torch.randn(max(lengths), len(lengths), 4)
    return pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)


@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_packed_input(name: str, hx: bool) -> None:
    """One graph for all lengths where the sequences are packed outside of it."""
    layer = getattr(fused_rnn, name)(4, 7, bidirectional=True)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for lengths in ([2, 4, 1], [3, 5], [7, 7, 2, 1, 5]):
        packed = pack(lengths, enforce_sorted=False)
        h = torch.randn(2, len(lengths), 7)
        states = ((h, h.clone()) if name == "LSTM" else h) if hx else None

        def run(function: Any) -> Any:
            def call(data: Tensor) -> Any:
                output, finals = function(packed._replace(data=data), states)  # noqa: B023
                assert type(output) is PackedSequence
                return pad_packed_sequence(output)[0], finals

            return call

        assert_same(train(run(compiled), layer, packed.data), train(run(layer), layer, packed.data))
    assert counter.frame_count == 2


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_packed_input_in_order(backend: str) -> None:
    """Without indices the number of sequences is known to batch_sizes alone."""
    if backend == "inductor":
        need_compiler()
    layer, packed = fused_rnn.LSTM(4, 7), pack([4, 2, 1], enforce_sorted=True)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    assert_same(compiled(packed), layer(packed))
    assert_same(torch.compile(layer, backend=backend)(packed), layer(packed))
    h = torch.randn(1, 3, 7)
    assert_same(compiled(packed, (h, h)), layer(packed, (h, h)))


@pytest.mark.skipif(
    torch.__version__ < "2.13",
    reason="Dynamo fails at torch's own pad_packed_sequence of what a graph holds",
)
def test_packing_inside() -> None:
    """torch.compile leaves the graph for torch's functions that pack and pad, not for the layer."""
    layer, recorder = fused_rnn.GRU(4, 7), Recorder()

    def function(x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(2 * x, lengths, enforce_sorted=False)
        return 2 * pad_packed_sequence(layer(packed)[0])[0]

    lengths = torch.tensor([3, 5, 2])
    compiled = torch.compile(function, backend=recorder)
    assert_same(train(compiled, layer, X, lengths), train(function, layer, X, lengths))
    assert recorder.fused


@pytest.mark.parametrize("sizes", [[3, 2], [2, 3, 1], [4, 2, 0], [7]])
def test_packed_input_that_is_wrong(sizes: list[int]) -> None:
    layer = fused_rnn.LSTM(4, 7)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    h = torch.randn(1, 3, 7)
    broken = PackedSequence(torch.randn(6, 4), torch.tensor(sizes))
    with pytest.raises(RuntimeError, match=r"batch_sizes|hidden"):
        compiled(broken, (h, h))


def test_packed_hx_of_a_wrong_size() -> None:
    layer, packed = fused_rnn.GRU(4, 7), pack([2, 4, 1], enforce_sorted=False)
    compiled = torch.compile(layer, backend="aot_eager")
    for h in (torch.randn(1, 4, 7), torch.randn(1, 3, 8)):
        with pytest.raises(RuntimeError, match="hidden"):
            compiled(packed, h)


def test_compiled_autograd() -> None:
    model = fused_rnn.GRU(4, 7)
    expected = train(model, model, X)
    with torch._dynamo.config.patch(compiled_autograd=True):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert_same(train(compiled, model, X), expected)

        # A backward pass of eager operators, in which ours are called outside of the graph.
        @torch.compile(backend="aot_eager")
        def step(loss: Tensor) -> None:
            loss.backward()

        model.zero_grad()
        step(sum(r.square().sum() for r in model(X)))
    assert_same([p.grad for p in model.parameters()], expected[3:])


def test_compiled_autograd_of_eager_operators() -> None:
    """Cells and packed layers, whose saved tensors and settings differ from a dense layer's."""
    layer, cell = fused_rnn.LSTM(4, 7, 2, bidirectional=True), fused_rnn.LSTMCell(4, 7)
    x = torch.randn(2, 4)
    packed = pack([2, 4, 1], enforce_sorted=False)
    for module, total in (
        (cell, lambda: sum(h.square().sum() for h in cell(x, cell(x, cell(x, cell(x)))))),
        (layer, lambda: layer(packed)[0].data.square().sum()),
    ):
        expected = torch.autograd.grad(total(), list(module.parameters()))

        @torch.compile(backend="aot_eager")
        def step(loss: Tensor) -> None:
            loss.backward()

        with torch._dynamo.config.patch(compiled_autograd=True):
            step(total())
        assert_same([p.grad for p in module.parameters()], expected)


def test_compiled_autograd_of_some_weights_of_a_loop() -> None:
    from torch._dynamo import compiled_autograd

    cell = fused_rnn.GRUCell(4, 7)
    h = None
    for x in torch.randn(5, 2, 4):
        h = cell(x, h)
    (expected,) = torch.autograd.grad(h.sum(), [cell.weight_hh], retain_graph=True)
    with compiled_autograd._enable(torch.compile(backend="eager")):
        h.sum().backward(inputs=[cell.weight_hh])
    assert_same([cell.weight_hh.grad], [expected])
    assert cell.weight_ih.grad is None


def test_results_of_compiling_are_cached() -> None:
    need_compiler()
    from torch._dynamo.utils import counters
    from torch._inductor.utils import fresh_cache

    model = Model("GRU")
    with fresh_cache():
        for found, expected in (("autograd_cache_saved", 1), ("autograd_cache_hit", 1)):
            torch._dynamo.reset()
            counters.clear()
            with torch.no_grad():
                torch.compile(model, fullgraph=True)(X)
            assert counters["aot_autograd"][found] == expected
            assert not counters["aot_autograd"]["autograd_cache_bypass"]
