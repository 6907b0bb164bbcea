"""The six operators: torch's own checks of their registration, and their checks of arguments."""

from typing import Any

import pytest
import torch
from torch import Tensor

import fused_rnn  # noqa: F401  (registers the operators)
from cases import CELLS, KINDS, SMALL_CASES, Case
from test_cells import draw
from test_cells import make as make_cell

ops = torch.ops.fused_rnn


def sequence_arguments(case: Case, dtype: torch.dtype, grad: bool = False) -> tuple[Any, ...]:
    layer = case.module(torch.nn, dtype)
    x, states = case.tensors(dtype)
    packed = case.pack(x)
    data, batch_sizes = (x, None) if case.lengths is None else (packed.data, packed.batch_sizes)

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_(grad)

    return (
        leaf(data),
        [leaf(s) for s in states],
        [leaf(p) for p in layer.parameters()],
        batch_sizes,
        case.cell,
        case.L,
        case.bidirectional,
    )


def cell_arguments(
    kind: str, bias: bool, given: bool, grad: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Any, ...]:
    cell = make_cell(kind, torch.nn, 5, 7, bias=bias, dtype=dtype)
    x, states = draw(kind, 3, 5, 7, dtype)
    return (
        x.requires_grad_(grad),
        [s.requires_grad_(grad) for s in states] if given else [],
        [p.detach().requires_grad_(grad) for p in cell.parameters()],
        CELLS[kind],
    )


# opcheck looks whether tensors have a gradient.
opcheck_may_warn = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)


def check(op: Any, arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(op, arguments)


@opcheck_may_warn
@pytest.mark.parametrize("grad", [False, True], ids=["plain", "grad"])
@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_sequence(case: Case, grad: bool) -> None:
    check(ops.sequence.default, sequence_arguments(case, torch.float32, grad))


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_sequence_train(case: Case) -> None:
    check(ops.sequence_train.default, sequence_arguments(case, torch.float32))


def backward_arguments(arguments: tuple[Any, ...], train: Any, wanted: str) -> tuple[Any, ...]:
    x, states, params, *rest = arguments
    *results, reserve = train(*arguments)
    grads: list[Tensor | None] = [torch.randn_like(r) for r in results]
    if wanted == "few":
        grads[0] = None
    flags = [wanted == "all" or index % 2 == 0 for index in range(1 + len(states) + len(params))]
    if len(rest) == 1:
        return grads, x, states, params, reserve, *rest, flags
    return grads, x, states, params, rest[0], reserve, *rest[1:], flags


@pytest.mark.parametrize("op", [ops.sequence.default, ops.sequence_train.default], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_without_states(op: Any, kind: str) -> None:
    """The batch is batch_sizes[0] here, so a traced program has a new symbol for it."""
    case = Case(kind, 3, 2, 2, 3, hx=False, lengths=(3, 1))
    check(op, sequence_arguments(case, torch.float32))


@pytest.mark.parametrize("wanted", ["all", "few"])
@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_sequence_backward(case: Case, wanted: str) -> None:
    arguments = sequence_arguments(case, torch.float32)
    check(ops.sequence_backward.default, backward_arguments(arguments, ops.sequence_train, wanted))


@opcheck_may_warn
@pytest.mark.parametrize("grad", [False, True], ids=["plain", "grad"])
@pytest.mark.parametrize("given", [True, False], ids=["hx", "nohx"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("kind", KINDS)
def test_cell(kind: str, bias: bool, given: bool, grad: bool) -> None:
    check(ops.cell.default, cell_arguments(kind, bias, given, grad))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [True, False], ids=["hx", "nohx"])
def test_cell_train_and_backward(kind: str, given: bool) -> None:
    arguments = cell_arguments(kind, True, given)
    check(ops.cell_train.default, arguments)
    for wanted in ("all", "few"):
        if wanted == "few" and kind != "LSTM":
            continue  # A single result has no other to be absent beside.
        check(ops.cell_backward.default, backward_arguments(arguments, ops.cell_train, wanted))


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_results_own_their_memory(case: Case) -> None:
    arguments = sequence_arguments(case, torch.float32)
    tensors = [*ops.sequence_train(*arguments), arguments[0], *arguments[1], *arguments[2]]
    addresses = [t.untyped_storage().data_ptr() for t in tensors if t.numel()]
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_arguments_are_not_written(case: Case) -> None:
    arguments = sequence_arguments(case, torch.float32)
    backward = backward_arguments(arguments, ops.sequence_train, "all")
    tensors = [t for a in backward for t in (a if isinstance(a, list) else [a])]
    tensors = [t for t in tensors if isinstance(t, Tensor)]
    before = [t.clone() for t in tensors]
    ops.sequence_backward(*backward)
    for one, other in zip(tensors, before, strict=True):
        assert torch.equal(one, other)


def test_only_the_outer_operators_are_differentiable() -> None:
    case = Case("LSTM", 3, 2, 2, 3)
    arguments = sequence_arguments(case, torch.float64, grad=True)
    assert all(r.requires_grad for r in ops.sequence(*arguments))
    results = ops.sequence_train(*sequence_arguments(case, torch.float64))
    assert not any(r.requires_grad for r in results)


GOOD = Case("LSTM", 3, 2, 4, 5)


def replaced(position: int, value: Any, case: Case = GOOD) -> tuple[Any, ...]:
    arguments = list(sequence_arguments(case, torch.float32))
    old = arguments[position]
    arguments[position] = value(old) if callable(value) else value
    return tuple(arguments)


def with_item(index: int, change: Any) -> Any:
    return lambda items: [change(t) if i == index else t for i, t in enumerate(items)]


PACKED = Case("GRU", 3, 2, 4, 5, lengths=(3, 2))

BAD_SEQUENCES = {
    "input of no dimensions": replaced(0, torch.randn(())),
    "input of one dimension": replaced(0, torch.randn(4)),
    "input of four dimensions": replaced(0, torch.randn(3, 2, 4, 1)),
    "input too wide": replaced(0, torch.randn(3, 2, 5)),
    "input of no steps": replaced(0, torch.randn(0, 2, 4)),
    "input in bfloat16": replaced(0, lambda x: x.bfloat16()),
    "input in float64": replaced(0, lambda x: x.double()),
    "input of integers": replaced(0, lambda x: x.long()),
    "input of complex numbers": replaced(0, lambda x: x.to(torch.complex64)),
    "all of complex numbers": (
        *(
            [t.cfloat() for t in a] if isinstance(a, list) else a.cfloat()
            for a in sequence_arguments(GOOD, torch.float32)[:3]
        ),
        None,
        "lstm",
        1,
        False,
    ),
    "input on meta": replaced(0, lambda x: x.to("meta")),
    "weight on meta": replaced(2, with_item(0, lambda p: p.to("meta"))),
    "sparse input": replaced(0, lambda x: x.to_sparse()),
    "sparse weight": replaced(2, with_item(1, lambda p: p.to_sparse())),
    "one state": replaced(1, lambda s: s[:1]),
    "three states": replaced(1, lambda s: [*s, s[0]]),
    "state in float64": replaced(1, with_item(1, lambda s: s.double())),
    "h0 for another batch": replaced(1, with_item(0, lambda s: s[:, :1])),
    "h0 for another layer": replaced(1, with_item(0, lambda s: torch.cat([s, s]))),
    "h0 too wide": replaced(1, with_item(0, lambda s: torch.cat([s, s], -1))),
    "c0 too wide": replaced(1, with_item(1, lambda s: torch.cat([s, s], -1))),
    "h0 of two dimensions": replaced(1, with_item(0, lambda s: s[0])),
    "no parameters": replaced(2, []),
    "one parameter": replaced(2, lambda p: p[:1]),
    "a parameter more": replaced(2, lambda p: [*p, p[0], p[1]]),
    "bias of one gate": replaced(2, with_item(2, lambda p: p[:5])),
    "bias of two dimensions": replaced(2, with_item(3, lambda p: p[None])),
    "w_ih for another input": replaced(2, with_item(0, lambda p: p[:, :3])),
    "w_ih of rows that are no gates": replaced(2, with_item(0, lambda p: p[:19])),
    "w_ih of no rows": replaced(2, with_item(0, lambda p: p[:0])),
    "w_ih of one dimension": replaced(2, with_item(0, lambda p: p[:, 0])),
    "w_hh too narrow": replaced(2, with_item(1, lambda p: p[:, :4])),
    "w_hh of one dimension": replaced(2, with_item(1, lambda p: p[:, 0])),
    "weight in float64": replaced(2, with_item(1, lambda p: p.double())),
    "unknown cell": replaced(4, "peephole"),
    "another cell": replaced(4, "gru"),
    "no layers": replaced(5, 0),
    "negative layers": replaced(5, -1),
    "too many layers": replaced(5, 2),
    "layers that overflow": replaced(5, 2**62),
    "two directions": replaced(6, True),
    "batch_sizes for dense input": replaced(3, torch.tensor([3, 2])),
    "no batch_sizes for packed input": replaced(3, None, PACKED),
    "batch_sizes of too few rows": replaced(3, torch.tensor([2, 2]), PACKED),
    "batch_sizes of too many rows": replaced(3, torch.tensor([2, 2, 2]), PACKED),
    "batch_sizes that grow": replaced(3, torch.tensor([1, 2, 2]), PACKED),
    "batch_sizes with a zero": replaced(3, torch.tensor([3, 2, 0]), PACKED),
    "batch_sizes below zero": replaced(3, torch.tensor([4, 2, -1]), PACKED),
    "batch_sizes for another batch": replaced(3, torch.tensor([3, 2]), PACKED),
    "batch_sizes that overflow": replaced(3, torch.tensor([2**62] * 4), PACKED),
    "empty batch_sizes": replaced(3, torch.tensor([], dtype=torch.int64), PACKED),
    "batch_sizes in int32": replaced(3, torch.tensor([2, 2, 1], dtype=torch.int32), PACKED),
    "batch_sizes of two dimensions": replaced(3, torch.tensor([[2, 2, 1]]), PACKED),
    "batch_sizes on meta": replaced(3, torch.tensor([2, 2, 1], device="meta"), PACKED),
}


@pytest.mark.parametrize("op", [ops.sequence, ops.sequence_train], ids=["inference", "training"])
@pytest.mark.parametrize("name", BAD_SEQUENCES)
def test_bad_sequence_arguments(op: Any, name: str) -> None:
    arguments = BAD_SEQUENCES[name]
    with pytest.raises(RuntimeError):
        op(*arguments)
    x, states, params, *rest = arguments
    params = [p.clone().requires_grad_() for p in params]
    with pytest.raises(RuntimeError):
        op(x, states, params, *rest)


def test_absurd_sizes_do_not_wrap_around() -> None:
    """Expanded tensors have any size without memory: L*D*N*5*H and T*B*D*H exceed 64 bits here."""
    x = torch.zeros(1).expand(2**31, 2**31, 1)
    params = [torch.zeros(1).expand(*s) for s in ((4 * 2**20, 1), (4 * 2**20, 2**20))]
    for op in (ops.sequence, ops.sequence_train):
        with pytest.raises(RuntimeError):
            op(x, [], params, None, "lstm", 1, False)
    # More bytes than there are addresses: even a system that promises any memory refuses a copy.
    x = torch.zeros(1).expand(2**46, 1)
    for op in (ops.cell, ops.cell_train):
        with pytest.raises(RuntimeError):
            op(x, [], params, "lstm")


CELL = cell_arguments("LSTM", True, True)


def replaced_in_cell(position: int, value: Any) -> tuple[Any, ...]:
    arguments = list(CELL)
    old = arguments[position]
    arguments[position] = value(old) if callable(value) else value
    return tuple(arguments)


BAD_CELLS = {
    "input of one dimension": replaced_in_cell(0, torch.randn(5)),
    "input of three dimensions": replaced_in_cell(0, torch.randn(1, 3, 5)),
    "input too wide": replaced_in_cell(0, torch.randn(3, 6)),
    "input in float64": replaced_in_cell(0, lambda x: x.double()),
    "input of integers": replaced_in_cell(0, lambda x: x.long()),
    "one state": replaced_in_cell(1, lambda s: s[:1]),
    "state for another batch": replaced_in_cell(1, with_item(0, lambda s: s[:1])),
    "state too wide": replaced_in_cell(1, with_item(1, lambda s: torch.cat([s, s], -1))),
    "state of one dimension": replaced_in_cell(1, with_item(0, lambda s: s[0])),
    "state in float64": replaced_in_cell(1, with_item(1, lambda s: s.double())),
    "no parameters": replaced_in_cell(2, []),
    "three parameters": replaced_in_cell(2, lambda p: p[:3]),
    "five parameters": replaced_in_cell(2, lambda p: [*p, p[0]]),
    "bias too short": replaced_in_cell(2, with_item(2, lambda p: p[:1])),
    "w_hh not square": replaced_in_cell(2, with_item(1, lambda p: p[:, :3])),
    "weight in float64": replaced_in_cell(2, with_item(0, lambda p: p.double())),
    "weight on meta": replaced_in_cell(2, with_item(0, lambda p: p.to("meta"))),
    "unknown cell": replaced_in_cell(3, "LSTM"),
    "another cell": replaced_in_cell(3, "gru"),
}


@pytest.mark.parametrize("op", [ops.cell, ops.cell_train], ids=["inference", "training"])
@pytest.mark.parametrize("name", BAD_CELLS)
def test_bad_cell_arguments(op: Any, name: str) -> None:
    with pytest.raises(RuntimeError):
        op(*BAD_CELLS[name])


def test_bad_backward_arguments() -> None:
    case = Case("LSTM", 3, 2, 4, 5, L=2)
    arguments = sequence_arguments(case, torch.float32)
    good = backward_arguments(arguments, ops.sequence_train, "all")
    ops.sequence_backward(*good)
    grads, reserve, wanted = good[0], good[5], good[9]
    for position, value in (
        (0, grads[:2]),
        (0, [grads[0][:2], *grads[1:]]),
        (0, [grads[0].double(), *grads[1:]]),
        (0, [grads[0], grads[1][:1], grads[2]]),
        (5, reserve[:-1]),
        (5, torch.cat([reserve, reserve])),
        (5, reserve.double()),
        (9, wanted[:-1]),
        (9, [*wanted, True]),
    ):
        bad = list(good)
        bad[position] = value
        with pytest.raises(RuntimeError):
            ops.sequence_backward(*bad)


def test_bad_cell_backward_arguments() -> None:
    good = backward_arguments(CELL, ops.cell_train, "all")
    ops.cell_backward(*good)
    grads, reserve, wanted = good[0], good[4], good[6]
    for position, value in (
        (0, grads[:1]),
        (0, [grads[0][:2], grads[1]]),
        (0, [grads[0], grads[1].double()]),
        (4, reserve[:-1]),
        (4, torch.cat([reserve, reserve])),
        (6, wanted[:-1]),
        (6, [*wanted, True]),
    ):
        bad = list(good)
        bad[position] = value
        with pytest.raises(RuntimeError):
            ops.cell_backward(*bad)
