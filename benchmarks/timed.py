"""The pytest-benchmark form of a table of shapes, for the bench_*.py files."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from shapes import Row, rows
from workloads import LIBRARIES, SHORT, build, machine, rates

# Goes into each file as `pytestmark`. A short run is for seeing that everything runs.
PACE = pytest.mark.benchmark(
    min_rounds=2 if SHORT else 5,
    max_time=0.05 if SHORT else 0.5,
    warmup=True,
    warmup_iterations=1 if SHORT else 3,
    disable_gc=True,
)


def implementations(function: Callable[..., None]) -> Callable[..., None]:
    """Parametrizes a benchmark by the library whose classes it is given."""
    return pytest.mark.parametrize("impl", list(LIBRARIES))(function)


def time_rows(*categories: str) -> Callable[..., None]:
    """A benchmark of every row of the named categories; its groups compare implementations."""

    @implementations
    @pytest.mark.parametrize("row", list(rows(list(categories), SHORT)), ids=_identity)
    def bench(benchmark: BenchmarkFixture, row: Row, impl: str) -> None:
        threads = torch.get_num_threads()
        benchmark.group = f"{row.category.name}: {row} ({threads} threads)"
        benchmark(build(row, LIBRARIES[impl]))
        benchmark.extra_info.update(
            machine(),
            threads=threads,
            origin=row.shape.origin,
            **rates(row, benchmark.stats.stats.median, threads),
        )

    return bench


def _identity(row: Row) -> str:
    return f"{row.category.name}-{row}".replace(" ", "-")
