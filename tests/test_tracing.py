"""Tracers: what torch.fx and torch.jit record, and fake tensors."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fused_rnn
from cases import flatten
from tracing import CELLS, LAYERS, Model, X, assert_same


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


def saved_and_loaded(scripted: Any) -> Any:
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.mark.parametrize("name", LAYERS)
def test_jit_script(name: str) -> None:
    model = Model(name)
    expected = model(X)
    parameters = list(model.parameters())
    scripted = torch.jit.script(model)
    assert_same(scripted(X), expected)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert_same(saved_and_loaded(scripted)(X), expected)


class OfPacked(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.layer = getattr(fused_rnn, name)(4, 7)

    def forward(self, packed: PackedSequence) -> Tensor:
        return self.layer(packed)[0].data


@pytest.mark.parametrize("name", LAYERS)
def test_jit_script_packed(name: str) -> None:
    model = OfPacked(name)
    packed = pack_padded_sequence(X, torch.tensor([2, 5, 3]), enforce_sorted=False)
    expected = model(packed)
    scripted = torch.jit.script(model)
    assert_same(scripted(packed), expected)
    assert_same(saved_and_loaded(scripted)(packed), expected)


@pytest.mark.parametrize("name", CELLS)
def test_jit_script_cells(name: str) -> None:
    cell = getattr(fused_rnn, name)(4, 7)
    scripted = torch.jit.script(cell)
    assert_same(scripted(X[0]), cell(X[0]))
    assert_same(saved_and_loaded(scripted)(X[0]), cell(X[0]))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn")
@pytest.mark.parametrize("name", LAYERS)
def test_jit_trace(name: str) -> None:
    model = Model(name)
    traced = saved_and_loaded(torch.jit.trace(model, (X,)))
    assert "fused_rnn::" not in str(traced.inlined_graph)
    x = torch.randn(7, 2, 4)
    assert_same(traced(x), model(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn")
@pytest.mark.parametrize("name", LAYERS)
def test_jit_trace_packed(name: str) -> None:
    layer = getattr(fused_rnn, name)(4, 7)

    class Packing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            return pad_packed_sequence(self.layer(packed)[0])[0]

    model = Packing()
    traced = saved_and_loaded(torch.jit.trace(model, (X, torch.tensor([2, 5, 3]))))
    x, lengths = torch.randn(7, 2, 4), torch.tensor([3, 7])
    assert_same(traced(x, lengths), model(x, lengths))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn")
@pytest.mark.parametrize("name", CELLS)
def test_jit_trace_cells(name: str) -> None:
    cell = getattr(fused_rnn, name)(4, 7)
    traced = saved_and_loaded(torch.jit.trace(cell, (X[0],)))
    x = torch.randn(5, 4)
    assert_same(traced(x), cell(x))


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
