"""One epoch of training_loop.py: the signal as one sequence, as windows, and as packed cuts."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from timed import PACE, implementations
from training_loop import Run, label_task, make_cuts, sign_task
from workloads import LIBRARIES, machine

pytestmark = PACE

TASKS = {
    "sequence": lambda: sign_task(windows=False),
    "windows": lambda: sign_task(windows=True),
    "label": lambda: label_task(make_cuts(seed=0)[0]),
}


@implementations
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("task", list(TASKS))
def bench_epoch(benchmark: BenchmarkFixture, task: str, cell: str, impl: str) -> None:
    threads = torch.get_num_threads()
    benchmark.group = f"training loop, one epoch: {cell.upper()} {task} ({threads} threads)"
    benchmark(Run(cell, LIBRARIES[impl], TASKS[task](), seed=0).epoch)
    benchmark.extra_info.update(machine(), threads=threads)
