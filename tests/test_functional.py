"""fused_rnn.functional: layers and cells as functions, along all of their ways."""

from typing import Any

import pytest
import torch
from torch import Tensor

import fused_rnn
from cases import KINDS, LAYER_CASES, Case, assert_close, flatten
from fused_rnn import functional, reference
from test_cells import draw, hx_of
from test_cells import make as make_cell

# Two roundings to bfloat16, relative to the largest magnitude.
NARROW_TOLERANCE = 2 * torch.finfo(torch.bfloat16).eps


def call(package: Any, case: Case, params: list[Tensor], x: Any, hx: Any, **more: Any) -> Any:
    if case.lengths is not None:
        x, more["batch_sizes"] = x.data, x.batch_sizes
    if case.kind.startswith("RNN"):
        more["nonlinearity"] = case.kind[4:].lower()
    function = getattr(package, case.kind[:4].rstrip("_").lower())
    return function(x, params, hx, num_layers=case.L, bidirectional=case.bidirectional, **more)


TIME_FIRST = [
    case
    for case in LAYER_CASES[::3]
    if case.B and not case.batch_first and (case.lengths is None or not case.hx)
]


@pytest.mark.parametrize("case", TIME_FIRST, ids=str)
@pytest.mark.parametrize("package", [functional, reference], ids=["functional", "reference"])
def test_layers(case: Case, package: Any) -> None:
    layer = case.module(fused_rnn, torch.float64)
    x, states = case.tensors(torch.float64)
    packed, hx = case.pack(x), case.hx_of(states)
    if case.lengths is not None:
        packed = packed._replace(sorted_indices=None, unsorted_indices=None)
    params = list(layer.parameters())
    for one, other in zip(
        flatten(call(package, case, params, packed, hx)), flatten(layer(packed, hx)), strict=True
    ):
        assert_close("result", one, other, 1e-11)


@pytest.mark.parametrize("package", [functional, reference], ids=["functional", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_the_modules(kind: str, package: Any) -> None:
    case = Case(kind, 5, 3, 4, 7, L=3, bidirectional=True)
    layer = case.module(torch.nn, torch.float64, dropout=0.5)
    x, states = case.tensors(torch.float64)
    hx, params = case.hx_of(states), list(layer.parameters())
    torch.manual_seed(3)
    expected = flatten(layer(x, hx))
    torch.manual_seed(3)
    actual = flatten(call(package, case, params, x, hx, dropout=0.5, training=True))
    for one, other in zip(actual, expected, strict=True):
        assert_close("result", one, other, 1e-11)
    layer.eval()
    actual = flatten(call(package, case, params, x, hx, dropout=0.5))
    for one, other in zip(actual, flatten(layer(x, hx)), strict=True):
        assert_close("result", one, other, 1e-11)


@pytest.mark.parametrize("hx", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_narrow_types(kind: str, packed: bool, hx: bool) -> None:
    lengths = (5, 2, 1) if packed else None
    case = Case(kind, 5, 3, 4, 7, L=2, bidirectional=True, hx=hx, lengths=lengths)
    layer = case.module(torch.nn, torch.bfloat16)
    x, states = case.tensors(torch.bfloat16)
    params = list(layer.parameters())
    expected = flatten(layer(case.pack(x), case.hx_of(states)))
    actual = flatten(call(functional, case, params, case.pack(x), case.hx_of(states)))
    for one, other in zip(actual, expected, strict=True):
        assert_close("result", one, other, NARROW_TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_transforms(kind: str) -> None:
    case = Case(kind, 5, 3, 4, 7)
    params = list(case.module(torch.nn, torch.float64).parameters())
    x, states = case.tensors(torch.float64)

    def total(x: Tensor) -> Tensor:
        return flatten(call(functional, case, params, x, case.hx_of(states)))[0].square().sum()

    leaf = x.clone().requires_grad_()
    total(leaf).backward()
    assert leaf.grad is not None
    assert_close("grad", torch.func.grad(total)(x), leaf.grad, 1e-11)
    many = torch.func.vmap(total)(torch.stack([x, -x]))
    assert_close("vmap", many, torch.stack([total(x), total(-x)]), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_cells(kind: str, bias: bool, given: bool, dtype: torch.dtype) -> None:
    cell = make_cell(kind, torch.nn, 4, 7, bias=bias, dtype=dtype)
    x, states = draw(kind, 3, 4, 7, dtype)
    hx = hx_of(kind, states) if given else None
    more = {"nonlinearity": kind[4:].lower()} if kind.startswith("RNN") else {}
    function = getattr(functional, kind[:4].rstrip("_").lower() + "_cell")
    actual = flatten(function(x, hx, *cell.parameters(), **more))
    for one, other in zip(actual, flatten(cell(x, hx)), strict=True):
        tolerance = 1e-11 if dtype == torch.float64 else NARROW_TOLERANCE
        assert_close("result", one, other, tolerance)


def test_cell_under_a_transform() -> None:
    cell = torch.nn.GRUCell(4, 7)
    x = torch.randn(3, 4)
    many = torch.func.vmap(lambda x: functional.gru_cell(x[None], None, *cell.parameters()))(x)
    assert_close("vmap", many[:, 0], cell(x), 2e-5)


def test_unknown_nonlinearity() -> None:
    weights = torch.randn(7, 4), torch.randn(7, 7)
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sigmoid'"):
        functional.rnn(torch.randn(5, 3, 4), weights, nonlinearity="sigmoid")
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sigmoid'"):
        functional.rnn_cell(torch.randn(3, 4), None, *weights, nonlinearity="sigmoid")


def test_tensors_that_do_not_fit() -> None:
    weights = [torch.randn(28, 4), torch.randn(28, 7)]
    for x, hx in (
        (torch.randn(5, 3, 6), None),
        (torch.randn(5, 3, 4), (torch.zeros(1, 2, 7),) * 2),
        (torch.randn(5, 3, 4).double(), None),
    ):
        with pytest.raises(RuntimeError):
            functional.lstm(x, weights, hx)
