"""Numbers of threads: the same results, the same bits again, and no quarrel between callers."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import fused_rnn
from cases import KINDS, Case, assert_close, module_call, run_with_grads

LONG_TAIL = (30,) + (9,) * 12 + (2,) * 12 + (1,) * 15

# Small enough to be one task, wide enough to be split over units, and enough rows to be split.
CASES = [
    case
    for kind in KINDS
    for case in (
        Case(kind, 5, 1, 3, 17),
        Case(kind, 9, 1, 65, 257, L=2),
        Case(kind, 7, 33, 17, 65, bidirectional=True),
        Case(kind, 12, 24, 33, 129, L=2, bidirectional=True),
        Case(kind, 12, 9, 33, 97, lengths=(12, 11, 11, 7, 5, 4, 4, 1, 1), bidirectional=True),
        # One step of many rows: the units are divided all the same.
        Case(kind, 1, 40, 33, 129),
        Case(kind, 1, 40, 33, 5),
        # Rows are divided, and the batch falls below the second thread's first row.
        Case(kind, 30, 40, 33, 65, lengths=LONG_TAIL, bidirectional=True),
        # Layers at the same time: one row, several layers to a thread, a falling batch.
        Case(kind, 300, 1, 1, 32, L=2),
        Case(kind, 40, 3, 7, 33, L=5),
        Case(kind, 40, 40, 7, 17, L=3, lengths=LONG_TAIL[:1] + (40,) * 5 + LONG_TAIL[:-6]),
    )
]


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def compute(case: Case, layer: torch.nn.Module, seed: int = 0) -> list[Tensor]:
    x, states = case.tensors(torch.float32, seed)
    return run_with_grads(module_call(case, layer), x, states, list(layer.parameters()))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_and_more_threads_agree(case: Case) -> None:
    layer = case.module(fused_rnn, torch.float32)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(compute(case, layer))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_close("result", two, one, 2e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_and_more_threads_agree_without_gradients(case: Case) -> None:
    layer = case.module(fused_rnn, torch.float32)
    x, states = case.tensors(torch.float32)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with torch.no_grad():
            output, hx = layer(case.pack(x), case.hx_of(states))
        data = output if case.lengths is None else output.data
        results.append([data, *(hx if isinstance(hx, tuple) else [hx])])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_close("result", two, one, 2e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_bits_again(case: Case, threads: int) -> None:
    torch.set_num_threads(threads)
    layer = case.module(fused_rnn, torch.float32)
    first = compute(case, layer)
    for _ in range(3):
        for one, other in zip(compute(case, layer), first, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_two_callers_of_one_module(kind: str) -> None:
    case = Case(kind, 9, 8, 17, 65, L=2)
    layer = case.module(fused_rnn, torch.float32)
    expected = [compute(case, layer, seed) for seed in range(2)]
    start = threading.Barrier(2)

    def work(seed: int) -> list[list[Tensor]]:
        start.wait()
        return [compute(case, layer, seed) for _ in range(10)]

    with ThreadPoolExecutor(2) as pool:
        for seed, rounds in enumerate(pool.map(work, range(2))):
            for results in rounds:
                for one, other in zip(results, expected[seed], strict=True):
                    assert_close("result", one, other, 2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_in_another_thread(kind: str) -> None:
    case = Case(kind, 9, 8, 17, 65)
    layer = case.module(fused_rnn, torch.float32)
    expected = compute(case, layer)
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(compute, case, layer).result()
    for one, other in zip(results, expected, strict=True):
        assert_close("result", one, other, 2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_their_neighbours(kind: str) -> None:
    case = Case(kind, 7, 33, 17, 65)
    layer = case.module(fused_rnn, torch.float64)
    x, states = case.tensors(torch.float64)
    together = layer(x, case.hx_of(states))[0]
    for b in (0, 16, 32):
        alone = layer(x[:, b : b + 1], case.hx_of([s[:, b : b + 1] for s in states]))[0]
        assert_close("row", together[:, b : b + 1], alone, 1e-12)
