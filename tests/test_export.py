"""torch.export and AOTInductor: programs on torch's operators or on the fused ones."""

import io
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
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
    # torch.nn's layers put the weights of the program into their list of weights while recorded.
    pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights:UserWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
    # torch.export.load of some releases.
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),
]

T, B = Dim("T", min=2), Dim("B", min=2)


def export(
    model: nn.Module, args: Any, fused: bool, strict: bool = False, sizes: Any = None
) -> Any:
    with fused_rnn.fused_export() if fused else nullcontext():
        program = torch.export.export(model.eval(), args, strict=strict, dynamic_shapes=sizes)
    assert any("fused_rnn" in name for name in operators_of([program])) == fused
    return program


def saved_and_loaded(program: Any) -> Any:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_export_needs_torch_alone(name: str, strict: bool) -> None:
    """And fixes the length, as with torch's own layers, whose loops are unrolled."""
    model = Model(name)
    program = saved_and_loaded(export(model, (X,), False, strict, ({1: B},)))
    for batch in (3, 6):
        x = torch.randn(5, batch, 4)
        assert_same(program.module()(x), model(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_fused_export(name: str, strict: bool) -> None:
    model = Model(name)
    program = saved_and_loaded(export(model, (X,), True, strict, ({0: T, 1: B},)))
    for time, batch in ((5, 3), (9, 6)):
        x = torch.randn(time, batch, 4)
        assert_same(program.module()(x), model(x))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_cells(name: str, fused: bool) -> None:
    cell, x = getattr(fused_rnn, name)(4, 7), X[0]
    program = saved_and_loaded(export(cell, (x,), fused, sizes=({0: B},)))
    x = torch.randn(5, 4)
    assert_same(program.module()(x), cell(x))


class OfPacked(nn.Module):
    """PackedSequence is no type that torch.export takes; its parts are."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layer = getattr(fused_rnn, name)(4, 7)

    def forward(self, *packed: Tensor) -> Any:
        output, finals = self.layer(PackedSequence(*packed))
        return output.data, finals


@pytest.mark.parametrize("name", LAYERS)
def test_packed_export(name: str) -> None:
    model = OfPacked(name)

    def pack(*lengths: int) -> tuple[Any, ...]:
        x = torch.randn(max(lengths), len(lengths), 4)
        return tuple(pack_padded_sequence(x, lengths, enforce_sorted=False))

    sizes = (({0: Dim("N", min=2)}, {0: T}, {0: B}, {0: B}),)
    program = saved_and_loaded(export(model, pack(3, 5, 2), True, sizes=sizes))
    for packed in (pack(3, 5, 2), pack(1, 7, 4, 4, 2)):
        assert_same(program.module()(*packed), model(*packed))


def test_the_option_ends() -> None:
    layer = fused_rnn.GRU(4, 7)
    with pytest.raises(ZeroDivisionError), fused_rnn.fused_export(), fused_rnn.fused_export():
        raise ZeroDivisionError
    export(layer, (X,), False)


def test_unfused_calls_are_exported_on_torch() -> None:
    layer, empty = fused_rnn.GRU(4, 7), torch.empty(5, 0, 4)
    with fused_rnn.fused_export():
        program = torch.export.export(layer, (empty,))
    assert not any("fused_rnn" in name for name in operators_of([program]))
    assert_same(program.module()(empty), layer(empty))


class Several(nn.Module):
    """A projection, input without a batch, given states, a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = fused_rnn.LSTM(4, 7, proj_size=3)
        self.cell = fused_rnn.LSTMCell(4, 7)

    def forward(self, x: Tensor) -> Any:
        output, hx = self.layer(x)
        return output, self.layer(x, hx), self.cell(x)


@pytest.mark.parametrize(
    ("model", "x", "sizes", "other", "fused"),
    [
        (fused_rnn.LSTM(4, 7), X, {1: B}, (5, 6, 4), False),
        (fused_rnn.GRU(4, 7), X, {0: T, 1: B}, (9, 6, 4), True),
        (Several(), torch.randn(5, 4), {0: T}, (9, 4), True),
    ],
    ids=["torch", "fused", "fused-several"],
)
def test_aot_inductor(
    model: nn.Module, x: Tensor, sizes: Any, other: tuple[int, ...], fused: bool, tmp_path: Path
) -> None:
    need_compiler()
    program = export(model, (x,), fused, sizes=(sizes,))
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "model.pt2")
    )
    compiled = torch._inductor.aoti_load_package(path)
    for input in (x, torch.randn(other)):
        assert_same(compiled(input), model(input))
