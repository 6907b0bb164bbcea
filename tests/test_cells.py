"""Single steps: results and every gradient, against torch.nn and against the reference."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_rnn
from cases import CELLS, DTYPES, KINDS, TOLERANCE, assert_close, flatten, run_with_grads
from fused_rnn import reference

# B, I, H; B = 0 is a call without a batch dimension.
SHAPES = ((1, 1, 1), (3, 17, 31), (17, 33, 3), (33, 1, 65), (2, 65, 32), (65, 3, 17), (0, 5, 9))


def make(kind: str, package: Any, I: int, H: int, **more: Any) -> Any:  # noqa: E741
    name = kind[:4].rstrip("_") + "Cell"
    if kind.startswith("RNN"):
        more["nonlinearity"] = kind[4:].lower()
    return getattr(package, name)(I, H, **more)


def draw(kind: str, B: int, I: int, H: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:  # noqa: E741
    batch = [B] if B else []
    count = 2 if kind == "LSTM" else 1
    return (
        torch.randn(*batch, I, dtype=dtype),
        [torch.randn(*batch, H, dtype=dtype) for _ in range(count)],
    )


def hx_of(kind: str, states: Sequence[Tensor]) -> Any:
    if not states:
        return None
    return tuple(states) if kind == "LSTM" else states[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", [True, False], ids=["hx", "nohx"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_cell(
    kind: str, shape: tuple[int, int, int], bias: bool, given: bool, dtype: torch.dtype
) -> None:
    B, I, H = shape  # noqa: E741
    ours = make(kind, fused_rnn, I, H, bias=bias, dtype=dtype)
    theirs = make(kind, torch.nn, I, H, bias=bias, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    x, states = draw(kind, B, I, H, dtype)
    states = states if given else []
    assert fused_rnn.explain(ours, x, hx_of(kind, states)).way == "fused"

    actual = run_with_grads(
        lambda x, states: ours(x, hx_of(kind, states)), x, states, list(ours.parameters())
    )
    expected = run_with_grads(
        lambda x, states: theirs(x, hx_of(kind, states)), x, states, list(theirs.parameters())
    )
    by_reference = run_with_grads(
        lambda x, states: reference.cell(x, states, list(ours.parameters()), CELLS[kind]),
        x,
        states,
        list(ours.parameters()),
    )
    for index, (one, other, third) in enumerate(zip(actual, expected, by_reference, strict=True)):
        assert_close(f"{index} against torch", one, other, TOLERANCE[dtype])
        assert_close(f"{index} against reference", one, third, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_cell_results_have_torchs_types(kind: str) -> None:
    x, states = draw(kind, 3, 4, 5, torch.float32)
    ours = make(kind, fused_rnn, 4, 5)(x, hx_of(kind, states))
    theirs = make(kind, torch.nn, 4, 5)(x, hx_of(kind, states))
    assert type(ours) is type(theirs)
    assert [t.stride() for t in flatten(ours)] == [t.stride() for t in flatten(theirs)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_of_cells_is_a_layer(kind: str) -> None:
    cell = make(kind, fused_rnn, 3, 17, dtype=torch.float64)
    layer = make(kind, fused_rnn, 3, 17, dtype=torch.float64)
    layer_class = getattr(fused_rnn, kind[:4].rstrip("_"))
    more = {"nonlinearity": kind[4:].lower()} if kind.startswith("RNN") else {}
    layer = layer_class(3, 17, dtype=torch.float64, **more)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    x = torch.randn(9, 5, 3, dtype=torch.float64)
    hx, outputs = None, []
    for step in x:
        hx = cell(step, hx)
        outputs.append(flatten(hx)[0])
    output = flatten(layer(x))[0]
    assert_close("output", output, torch.stack(outputs), 1e-12)
    sum(o.square().sum() for o in outputs).backward()
    output.square().sum().backward()
    for one, other in zip(layer.parameters(), cell.parameters(), strict=True):
        assert_close("grad", one.grad, other.grad, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["strided", "expanded", "transposed"])
def test_cell_inputs_that_are_views(kind: str, how: str) -> None:
    ours, theirs = make(kind, fused_rnn, 6, 9), make(kind, torch.nn, 6, 9)
    theirs.load_state_dict(ours.state_dict())
    x, h = {
        "strided": (torch.randn(8, 12)[::2, ::2], torch.randn(8, 9)[::2]),
        "expanded": (torch.randn(1, 6).expand(4, 6), torch.randn(1, 9).expand(4, 9)),
        "transposed": (torch.randn(6, 4).mT, torch.randn(9, 4).mT),
    }[how]
    hx = (h, h) if kind == "LSTM" else h
    assert fused_rnn.explain(ours, x, hx).way == "fused"
    for one, other in zip(flatten(ours(x, hx)), flatten(theirs(x, hx)), strict=True):
        assert_close("result", one, other, 2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_bias_alone_is_torchs_business(kind: str) -> None:
    ours, theirs = make(kind, fused_rnn, 6, 9), make(kind, torch.nn, 6, 9)
    theirs.load_state_dict(ours.state_dict())
    ours.bias_hh = theirs.bias_hh = None
    x = torch.randn(2, 6)
    assert fused_rnn.explain(ours, x).way == "torch"
    for one, other in zip(flatten(ours(x)), flatten(theirs(x)), strict=True):
        assert torch.equal(one, other)
