"""torch's tools around a model: quantization, counting, profiling, packaging."""

import io
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn
from cases import TOLERANCE, assert_close, flatten
from tracing import LAYERS, X


class Both(nn.Module):
    """A layer and a cell, and something else that is quantized."""

    def __init__(self, name: str, package: Any = fused_rnn) -> None:
        super().__init__()
        self.layer = getattr(package, name)(4, 7)
        self.cell = getattr(package, f"{name}Cell")(4, 7)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.layer(x)[0]), self.cell(x[0])


deprecated = (
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:torch.quantize_per_tensor:UserWarning",
    "ignore:To copy construct from a tensor:UserWarning",
)


@pytest.mark.filterwarnings(*deprecated)
@pytest.mark.parametrize("name", LAYERS)
def test_quantize_dynamic(name: str) -> None:
    """It knows torch.nn's exact classes, so `restore` comes first."""
    quantize = torch.ao.quantization.quantize_dynamic
    model = Both(name).eval()
    plain = Both(name, nn).eval()
    plain.load_state_dict(model.state_dict())
    quantized = quantize(fused_rnn.restore(deepcopy(model)))
    expected = quantize(plain)
    assert [type(m) for m in quantized.modules()] == [type(m) for m in expected.modules()]
    for one, other in zip(flatten(quantized(X)), flatten(expected(X)), strict=True):
        assert torch.equal(one, other)
    # Without, the recurrent modules stay as they are.
    left = quantize(deepcopy(model))
    assert type(left.layer) is type(model.layer)
    assert type(left.cell) is type(model.cell)
    assert type(left.head) is type(expected.head)
    assert torch.equal(flatten(left(X))[1], flatten(model(X))[1])


@pytest.mark.filterwarnings(*deprecated)
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_quantize_fx(name: str) -> None:
    from torch.ao.quantization import QConfigMapping, default_dynamic_qconfig, quantize_fx

    model = Both(name).eval()
    mapping = QConfigMapping().set_global(default_dynamic_qconfig)
    prepared = quantize_fx.prepare_fx(fused_rnn.restore(deepcopy(model)), mapping, (X,))
    quantized = quantize_fx.convert_fx(prepared)
    assert type(quantized.layer).__module__.startswith("torch.ao.nn.quantized")
    for one, other in zip(flatten(quantized(X)), flatten(model(X)), strict=True):
        assert_close("quantized", one, other, 0.05)


def count(function: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_flops(name: str, bidirectional: bool, wanted: bool) -> None:
    """Where torch's layer is made of operations that are counted, ours counts the same."""
    found = []
    for package in (nn, fused_rnn):
        layer = getattr(package, name)(
            4, 7, num_layers=2, bidirectional=bidirectional, dtype=torch.float64
        )
        x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=wanted)
        h = torch.randn(4 if bidirectional else 2, 3, 7, dtype=torch.float64, requires_grad=True)
        hx = (h, h) if name == "LSTM" else h
        results: list[Tensor] = []
        forward = count(lambda: results.extend(flatten(layer(x, hx))))  # noqa: B023
        with torch.no_grad():
            assert count(lambda: layer(x, hx)) == forward  # noqa: B023
        found.append((forward, count(lambda: results[0].sum().backward())))  # noqa: B023
    assert found[0] == found[1]
    assert found[0][0] > 0


def test_flops_of_projections_and_packed_input() -> None:
    layer = fused_rnn.LSTM(4, 7, proj_size=3)
    packed = nn.utils.rnn.pack_padded_sequence(X, [5, 3, 2])
    products = 4 * 7 * (4 + 3) + 3 * 7
    assert count(lambda: layer(X)) == 2 * 15 * products
    assert count(lambda: layer(packed)) == 2 * 10 * products


@pytest.mark.parametrize("name", LAYERS)
def test_flops_of_cells(name: str) -> None:
    found = []
    for package in (nn, fused_rnn):
        cell = getattr(package, f"{name}Cell")(4, 7)
        x, h = torch.randn(3, 4, requires_grad=True), torch.randn(3, 7, requires_grad=True)
        results: list[Tensor] = []
        hx = (h, h) if name == "LSTM" else h
        forward = count(lambda: results.extend(flatten(cell(x, hx))))  # noqa: B023
        found.append((forward, count(lambda: results[0].sum().backward())))  # noqa: B023
    assert found[0] == found[1]


def test_profiler() -> None:
    model = Both("LSTM")
    with torch.profiler.profile() as profile:
        sum(r.sum() for r in flatten(model(X))).backward()
    found = {event.key for event in profile.key_averages()}
    for name in ("sequence", "sequence_backward", "cell", "cell_backward"):
        assert f"fused_rnn::{name}" in found


def test_benchmark_timer() -> None:
    from torch.utils.benchmark import Timer

    timer = Timer("model(x)", globals={"model": Both("GRU"), "x": X})
    assert timer.timeit(2).mean > 0


def test_package() -> None:
    from torch.package import PackageExporter, PackageImporter

    layer, buffer = fused_rnn.GRU(4, 7), io.BytesIO()
    with PackageExporter(buffer) as exporter:
        exporter.extern("fused_rnn.**")
        exporter.save_pickle("model", "model.pkl", layer)
    buffer.seek(0)
    loaded = PackageImporter(buffer).load_pickle("model", "model.pkl")
    assert_close("output", loaded(X)[0], layer(X)[0], TOLERANCE[torch.float32])
