"""Numbers at their limits: NaN and infinities, denormals, long sequences, wide layers, many calls,
and the same bits again."""

import gc
import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_rnn
from cases import (
    DTYPES,
    KINDS,
    TOLERANCE,
    Case,
    assert_close,
    flatten,
    module_call,
    run_with_grads,
    threads,
)
from test_cells import draw, hx_of
from test_cells import make as make_cell

F64 = torch.float64


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)
    torch.set_num_threads(before)


def same_kind_of_number(name: str, one: Tensor, other: Tensor, tolerance: float) -> None:
    """NaN where the other is NaN, the same infinities, and else close to it."""
    assert torch.equal(one.isnan(), other.isnan()), f"{name}: NaN elsewhere"
    infinite = one.isinf()
    assert torch.equal(infinite, other.isinf()), f"{name}: infinite elsewhere"
    assert torch.equal(one[infinite], other[infinite]), f"{name}: infinite of another sign"
    finite = one.isfinite()
    if finite.any():
        assert_close(name, one[finite], other[finite], tolerance)


POISONS = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30)

POISONED_CASES = [
    replace(Case(kind, 4, 3, 5, 9), **more)
    for kind in KINDS
    for more in (
        {},
        {"T": 1, "hx": False},
        {"L": 2, "bidirectional": True, "hx": False},
        {"lengths": (2, 4, 1), "bidirectional": True},
        {"B": 9, "H": 33},
        # Enough rows that packing looks for such values, to leave out the product with zeros.
        {"B": 21, "H": 33, "hx": False},
        {"T": 1, "B": 23, "H": 33, "hx": False},
        {"T": 1, "B": 8, "H": 33, "hx": False},  # of weights in place
        {"B": 21, "H": 33, "hx": False, "bidirectional": True, "lengths": (*[4] * 19, 2, 1)},
        *([{"P": 3}] * (kind == "LSTM")),
    )
]


def poisoned_tolerance(poison: float, dtype: torch.dtype) -> float:
    if abs(poison) == 1e30:
        # Sums with such terms cancel to their rounding errors.
        return 1e-3 if dtype == torch.float32 else 1e-8
    return TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", POISONED_CASES, ids=str)
def test_nan_and_inf(case: Case, dtype: torch.dtype) -> None:
    """One bad value in the input, a state or a parameter spreads as in torch.nn's, through results
    and gradients."""
    ours, theirs = case.module(fused_rnn, dtype), case.module(nn, dtype)
    x, states = case.tensors(dtype)
    weights = {key: value.clone() for key, value in ours.state_dict().items()}
    for place in range(1 + len(states) + len(weights)):
        for poison in POISONS:
            tensors = [t.clone() for t in (x, *states, *weights.values())]
            tensors[place].view(-1)[tensors[place].numel() // 2] = poison
            inputs, rest = tensors[: 1 + len(states)], tensors[1 + len(states) :]
            found = []
            for module in (ours, theirs):
                module.load_state_dict(dict(zip(weights, rest, strict=True)))
                params = list(module.parameters())
                call = module_call(case, module)
                found.append(run_with_grads(call, inputs[0], inputs[1:], params))
            for index, (one, other) in enumerate(zip(*found, strict=True)):
                same_kind_of_number(
                    f"{poison} in {place}: {index}", one, other, poisoned_tolerance(poison, dtype)
                )


@pytest.mark.parametrize(
    "case", [case for case in POISONED_CASES if case.kind != "RNN_RELU"], ids=str
)
def test_nan_and_inf_in_bfloat16(case: Case) -> None:
    """They spread to where they do in float32. Not so of a relu, whose h grows until the difference
    of two infinities depends on how they were rounded."""
    narrow, wide = (case.module(fused_rnn, d) for d in (torch.bfloat16, torch.float32))
    x, states = case.tensors(torch.bfloat16)
    weights = {key: value.clone() for key, value in narrow.state_dict().items()}
    for place in range(1 + len(states) + len(weights)):
        for poison in (float("nan"), float("inf"), -float("inf")):
            tensors = [t.clone() for t in (x, *states, *weights.values())]
            tensors[place].view(-1)[tensors[place].numel() // 2] = poison
            found = []
            for module, dtype in ((narrow, torch.bfloat16), (wide, torch.float32)):
                cast = [t.to(dtype) for t in tensors]
                inputs, rest = cast[: 1 + len(states)], cast[1 + len(states) :]
                module.load_state_dict(dict(zip(weights, rest, strict=True)))
                params = list(module.parameters())
                call = module_call(case, module)
                found.append(run_with_grads(call, inputs[0], inputs[1:], params))
            for index, (one, other) in enumerate(zip(*found, strict=True)):
                where = f"{poison} in {place}: {index}"
                assert torch.equal(one.isnan(), other.isnan()), where
                assert torch.equal(one.isinf(), other.isinf()), where


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_inf_of_a_cell(kind: str, dtype: torch.dtype) -> None:
    ours, theirs = (make_cell(kind, p, 5, 9, dtype=dtype) for p in (fused_rnn, nn))
    x, states = draw(kind, 3, 5, 9, dtype)
    weights = {key: value.clone() for key, value in ours.state_dict().items()}
    for place in range(1 + len(states) + len(weights)):
        for poison in POISONS:
            tensors = [t.clone() for t in (x, *states, *weights.values())]
            tensors[place].view(-1)[tensors[place].numel() // 2] = poison
            inputs, rest = tensors[: 1 + len(states)], tensors[1 + len(states) :]
            found = []
            for cell in (ours, theirs):
                cell.load_state_dict(dict(zip(weights, rest, strict=True)))
                found.append(
                    run_with_grads(
                        lambda x, s, cell=cell: cell(x, hx_of(kind, s)),
                        inputs[0],
                        inputs[1:],
                        list(cell.parameters()),
                    )
                )
            for index, (one, other) in enumerate(zip(*found, strict=True)):
                same_kind_of_number(
                    f"{poison} in {place}: {index}", one, other, poisoned_tolerance(poison, dtype)
                )


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize(
    ("T", "B", "I", "H", "dtype"),
    [
        (3, 7, 520, 401, torch.float32),  # in the first step
        (11, 3, 460, 401, torch.float32),  # with the input products of all steps
        (32, 4, 5, 600, torch.float64),  # and of some
        (3, 7, 900, 321, torch.float32),  # a last block of one unit
        (19, 1, 120, 137, torch.float32),  # while one row's steps make input products
        (1, 24, 256, 192, torch.float32),  # in place, looked at before
        (1, 31, 300, 401, torch.float32),  # and with rows as lanes
        (7, 1, 160, 96, torch.float32),  # with the input products of few steps in place
    ],
)
def test_nan_and_inf_in_large_weights(
    kind: str,
    T: int,
    B: int,
    I: int,  # noqa: E741
    H: int,
    dtype: torch.dtype,
) -> None:
    """In the first, some and the last block of units, which are packed, and looked at, one after
    the other; and a finite number, with which all results are."""
    case = Case(kind, T, B, I, H, hx=False)
    ours, theirs = (case.module(package, dtype) for package in (fused_rnn, nn))
    x, _ = case.tensors(dtype)
    weights = {key: value.clone() for key, value in ours.state_dict().items()}
    for row in (0, H + H // 2, -1):
        for poison in (0.5, float("nan"), float("inf"), -float("inf")):
            poisoned = {key: value.clone() for key, value in weights.items()}
            poisoned["weight_hh_l0"][row, 11] = poison
            found = []
            for module in (ours, theirs):
                module.load_state_dict(poisoned)
                found.append(flatten(module(x)))
            for index, (one, other) in enumerate(zip(*found, strict=True)):
                same_kind_of_number(f"{poison} in row {row}: {index}", one, other, TOLERANCE[dtype])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_inf_in_the_gradient_of_a_step(kind: str, dtype: torch.dtype, bias: bool) -> None:
    """Of each step in turn, one of which follows zeros."""
    case = Case(kind, 4, 3, 5, 9, bias=bias, bidirectional=True, hx=False)
    ours, theirs = case.module(fused_rnn, dtype), case.module(nn, dtype)
    theirs.load_state_dict(ours.state_dict())
    x, _ = case.tensors(dtype)
    for step in range(case.T):
        for poison in (float("nan"), float("inf"), -float("inf")):
            found = []
            for module in (ours, theirs):
                output, _ = module(x)
                weight = torch.ones_like(output)
                weight[step, 1, ::2] = poison
                found.append(torch.autograd.grad(output, module.parameters(), weight))
            for index, (one, other) in enumerate(zip(*found, strict=True)):
                where = f"{poison} in step {step}: {index}"
                same_kind_of_number(where, one, other, TOLERANCE[dtype])


def test_nan_gradients_stay_in_their_rows() -> None:
    """A row whose gradient is NaN spoils the weights' gradients, not its neighbours'."""
    layer = fused_rnn.LSTM(5, 9)
    x = torch.randn(4, 7, 5, requires_grad=True)
    output, _ = layer(x)
    weight = torch.ones_like(output)
    weight[2, 3] = float("nan")
    (grad,) = torch.autograd.grad((output * weight).sum(), x)
    spoilt = grad.isnan().any(-1)
    expected = torch.zeros(4, 7, dtype=torch.bool)
    expected[:3, 3] = True
    assert torch.equal(spoilt, expected)


def without_biases(kind: str, dtype: torch.dtype) -> tuple[Any, Any]:
    case = Case(kind, 3, 4, 5, 17, bias=False)
    ours, theirs = case.module(fused_rnn, dtype), case.module(nn, dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def results_of_denormals(kind: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Results and gradients of ours and torch's, where input, states and what enters the backward
    pass are denormal numbers."""
    tiny = torch.finfo(dtype).tiny / 32
    torch.manual_seed(1)
    case = Case(kind, 3, 4, 5, 17)
    x, states = case.tensors(dtype)
    found = []
    for module in without_biases(kind, dtype):
        leaves = [(t * tiny).requires_grad_() for t in (x, *states)]
        results = flatten(module(leaves[0], case.hx_of(leaves[1:])))
        weights = [torch.full_like(r, tiny) for r in results]
        grads = torch.autograd.grad(results, [*leaves, *module.parameters()], weights)
        found.append([*(r.detach() for r in results), *grads])
    return found[0], found[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_denormals(kind: str, dtype: torch.dtype) -> None:
    """Denormal numbers are computed with as such, to a few of their last places."""
    ours, theirs = results_of_denormals(kind, dtype)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert any(((r != 0) & (r.abs() < torch.finfo(dtype).tiny)).any() for r in theirs)
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        allowed = TOLERANCE[dtype] * other.abs().max() + 16 * smallest
        assert ((one - other).abs() <= allowed).all(), (index, (one - other).abs().max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_flush_denormal(kind: str, dtype: torch.dtype) -> None:
    """With torch.set_flush_denormal no denormal number comes out; torch says so of the thread that
    asks for it."""
    torch.set_num_threads(1)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormal numbers to zero")
    ours, theirs = results_of_denormals(kind, dtype)
    torch.set_flush_denormal(False)
    for one, other in zip(ours, theirs, strict=True):
        assert not ((one != 0) & (one.abs() < torch.finfo(dtype).tiny)).any()
        assert_close("flushed", one, other, TOLERANCE[dtype])


@pytest.fixture
def _deterministic() -> None:
    """Also fills every new tensor with NaN, so that what nobody writes shows."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)


DETERMINISTIC_CASES = [
    replace(Case(kind, 6, 7, 5, 33), **more)
    for kind in KINDS
    for more in (
        {},
        {"L": 2, "bidirectional": True},
        {"lengths": (6, 2, 5, 1, 1, 4, 3)},
        {"T": 1},
        *([{"P": 3, "L": 2}] * (kind == "LSTM")),
    )
]


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", DETERMINISTIC_CASES, ids=str)
def test_deterministic_algorithms(case: Case, dtype: torch.dtype) -> None:
    """Allowed there, the same bits each time, and those without it."""
    layer = case.module(fused_rnn, dtype)
    x, states = case.tensors(dtype)
    params = list(layer.parameters())

    def results() -> list[Tensor]:
        return run_with_grads(module_call(case, layer), x, states, params)

    first = results()
    assert all(map(torch.equal, first, results()))
    torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first, results()))


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("kind", KINDS)
def test_deterministic_cell(kind: str) -> None:
    cell = make_cell(kind, fused_rnn, 5, 33)
    x, states = draw(kind, 7, 5, 33, torch.float32)
    params = list(cell.parameters())

    def results() -> list[Tensor]:
        return run_with_grads(lambda x, s: cell(x, hx_of(kind, s)), x, states, params)

    first = results()
    assert all(r.isfinite().all() for r in first)
    assert all(map(torch.equal, first, results()))


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("B", [2, 5, 6, 7, 8, 13, 33])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_independent_of_its_neighbours(kind: str, B: int, T: int) -> None:
    """Results and the gradients to input and states, whatever the other rows hold."""
    case = Case(kind, T, B, 5, 17, L=2, bidirectional=True)
    layer = case.module(fused_rnn, F64)
    x, states = case.tensors(F64)

    def row(x: Tensor, states: Any, b: int) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x, *states)]
        results = [r[:, b] for r in flatten(layer(leaves[0], case.hx_of(leaves[1:])))]
        grads = torch.autograd.grad(sum(r.square().sum() for r in results), leaves)
        return [*results, *(g[:, b] for g in grads)]

    for b in (0, B // 2, B - 1):
        alone = row(x[:, b : b + 1], [s[:, b : b + 1] for s in states], 0)
        together = row(x, states, b)
        others = torch.arange(B) != b
        spoilt, spoilt_states = x.clone(), [s.clone() for s in states]
        for t in (spoilt, *spoilt_states):
            t[:, others] = float("nan")
        among_nan = row(spoilt, spoilt_states, b)
        for one, two, three in zip(alone, together, among_nan, strict=True):
            assert_close("together", two, one, 1e-12)
            assert torch.equal(two, three)


LONG = 100_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_very_long_sequence(kind: str) -> None:
    """Forward against torch.nn's over all steps at once. Backward against torch.nn's over the last
    steps, and over all of them against the same layer called piece by piece."""
    case = Case(kind, LONG, 1, 2, 3)
    ours, theirs = case.module(fused_rnn, F64), case.module(nn, F64)
    theirs.load_state_dict(ours.state_dict())
    x, _ = case.tensors(F64)
    with torch.no_grad(), threads(1):
        for one, other in zip(flatten(ours(x)), flatten(theirs(x)), strict=True):
            assert_close("result", one, other, 1e-10)

    def pieces(module: Any, x: Tensor, length: int) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        hx, total = None, torch.zeros((), dtype=F64)
        for piece in leaf.split(length):
            output, hx = module(piece, hx)
            total = total + output.square().sum()
        return [*flatten(hx), *torch.autograd.grad(total, [leaf, *module.parameters()])]

    whole, cut = pieces(ours, x, LONG), pieces(ours, x, 777)
    for one, other in zip(whole, cut, strict=True):
        assert_close("whole and in pieces", one, other, 1e-10)
    steps = x[: LONG // 20]
    with threads(1):
        expected = pieces(theirs, steps, len(steps))
    for one, other in zip(pieces(ours, steps, len(steps)), expected, strict=True):
        assert_close("gradient", one, other, 1e-10)


def test_a_very_long_sequence_backward() -> None:
    """All steps backward against torch.nn's, for the cell that torch is fastest with."""
    case = Case("RNN_TANH", LONG, 1, 2, 3)
    ours, theirs = case.module(fused_rnn, F64), case.module(nn, F64)
    theirs.load_state_dict(ours.state_dict())
    x, states = case.tensors(F64)
    with threads(1):
        found = [
            run_with_grads(module_call(case, m), x, states, list(m.parameters()))
            for m in (ours, theirs)
        ]
    for one, other in zip(*found, strict=True):
        assert_close("result", one, other, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_very_wide_layer(kind: str) -> None:
    case = Case(kind, 4, 2, 5, 3000)
    ours, theirs = case.module(fused_rnn, torch.float32), case.module(nn, torch.float32)
    theirs.load_state_dict(ours.state_dict())
    x, states = case.tensors(torch.float32)
    found = [
        run_with_grads(module_call(case, m), x, states, list(m.parameters()))
        for m in (ours, theirs)
    ]
    for index, (one, other) in enumerate(zip(*found, strict=True)):
        assert_close(str(index), one, other, 2e-5)


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.system() != "Linux", reason="memory is read from /proc")
def test_a_hundred_thousand_calls_leak_nothing() -> None:
    streaming, stacked = fused_rnn.LSTM(8, 16), fused_rnn.GRU(8, 16, num_layers=2)
    cell = fused_rnn.GRUCell(8, 16)
    step, row, sequence = torch.randn(1, 1, 8), torch.randn(2, 8), torch.randn(5, 2, 8)
    packed = nn.utils.rnn.pack_padded_sequence(sequence, [5, 3])
    parameters = [p for m in (streaming, stacked, cell) for p in m.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-6)

    def round_of_a_hundred() -> None:
        hx, h = None, None
        with torch.no_grad():
            for _ in range(70):
                _, hx = streaming(step, hx)
            for _ in range(20):
                h = cell(row, h)
            for _ in range(4):
                stacked(sequence)
                streaming(packed)
        total = streaming(sequence)[0].sum() + cell(row, cell(row, cell(row))).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    for _ in range(50):
        round_of_a_hundred()
    before = resident()
    for _ in range(1000):
        round_of_a_hundred()
    grown = resident() - before
    assert grown < 3 << 20, f"grown by {grown / 2**20:.1f} MB"
