"""Peak memory of a training step: torch.nn and fused_rnn, each in processes of its own.

Every row of the training classes of shapes.py: by how much the resident memory of a process that
holds nothing but the module and its input grows over one step (forward, sum, gradients of weights
and input). A step of a tiny layer of the same kind goes before, so that most of what is loaded and
made once is there (with several threads, not theirs); pages of files, which are code, do not count.
Of a few processes the least counts: what malloc keeps for its own use differs from one to the next
by some 0.1 MB, which rows of torch's below 1 MB are left out of the means for.

    python benchmarks/peak_memory.py
    python benchmarks/peak_memory.py --classes packed-training,float64-training --threads 2
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import platform
import re
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from compare import geometric_mean
from report import announce, write_figures
from shapes import CATEGORIES, Row, Shape, rows
from workloads import LIBRARIES, build_module, prepare

PROCESSES = 2
# Less than this of torch's says little.
SMALL = 1_000_000
TRAINING = [name for name, category in CATEGORIES.items() if category.training]
STATUS = Path("/proc/self/status")
TINY = {"hidden": 8, "steps": 3, "batch": 2, "origin": "what goes before"}


@dataclass(frozen=True)
class Result:
    """Peak memory of a training step in bytes; `weights` is what the parameters take."""

    category: str
    cell: str
    shape: str
    threads: int
    weights: int
    torch: int
    fused: int

    @property
    def ratio(self) -> float:
        return self.fused / max(1, self.torch)


def resident(kind: str) -> int:
    """Bytes of this process: kind VmRSS now, VmHWM at most, RssFile of files."""
    found = re.search(rf"^{kind}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def growth(step: Callable[[], object]) -> int:
    """Bytes by which the process grew at most while `step` ran, without its pages of files."""
    gc.collect()
    # What lies free in malloc's heap would be used first, and would not count.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
    before, files = resident("VmRSS"), resident("RssFile")
    step()
    return resident("VmHWM") - before - (resident("RssFile") - files)


def training_step(row: Row, module: nn.Module) -> Callable[[], object]:
    forward, leaves = prepare(row, module)
    for leaf in leaves:
        leaf.requires_grad_()
    wanted = [*leaves, *module.parameters()]
    return lambda: torch.autograd.grad(forward().sum(), wanted)


def measure_once(row: Row, library: str, threads: int) -> tuple[int, int]:
    """Peak of a step in bytes, and bytes of the weights; in a process that does nothing else."""
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
    torch.set_num_threads(threads)
    shape = row.shape
    tiny = Shape(
        **TINY,
        layers=shape.layers,
        bidirectional=shape.bidirectional,
        proj=4 if shape.proj else 0,
        packed=shape.packed,
        dtype=shape.dtype,
    )
    first = Row(row.category, row.cell, tiny)
    training_step(first, build_module(first, LIBRARIES[library]))()
    module = build_module(row, LIBRARIES[library])
    step = training_step(row, module)
    return growth(step), sum(parameter.nbytes for parameter in module.parameters())


def measure(row: Row, threads: int) -> Result:
    # A process for every measurement.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = {
            library: min(
                pool.apply(measure_once, (row, library, threads)) for _ in range(PROCESSES)
            )
            for library in LIBRARIES
        }
    return Result(
        category=row.category.name,
        cell=row.cell,
        shape=str(row.shape),
        threads=threads,
        weights=found["torch"][1],
        torch=found["torch"][0],
        fused=found["fused"][0],
    )


def print_table(results: list[Result]) -> None:
    print(
        f"{'class':<20}{'cell':<6}{'shape':<28}{'thr':>3}{'weights MB':>12}{'torch MB':>10}"
        f"{'fused MB':>10}{'ratio':>7}"
    )
    for result in results:
        megabytes = [value / 1e6 for value in (result.weights, result.torch, result.fused)]
        print(
            f"{result.category:<20}{result.cell:<6}{result.shape:<28}{result.threads:>3}"
            f"{megabytes[0]:>12.2f}{megabytes[1]:>10.2f}{megabytes[2]:>10.2f}{result.ratio:>7.2f}"
        )
    print()
    for category, cell in dict.fromkeys((result.category, result.cell) for result in results):
        ratios = [
            max(1e-3, r.ratio)
            for r in results
            if (r.category, r.cell) == (category, cell) and r.torch >= SMALL
        ]
        if not ratios:
            continue
        print(
            f"{category} {cell}: geometric mean {geometric_mean(ratios):.2f} of torch's, "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument(
        "--classes", default="training", help=f"comma-separated, of {', '.join(TRAINING)}"
    )
    parser.add_argument("--quick", action="store_true", help="few shapes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    arguments = parser.parse_args()
    if arguments.threads < 1:
        parser.error("--threads must be at least 1")
    arguments.classes = arguments.classes.split(",")
    if unknown := set(arguments.classes) - set(TRAINING):
        parser.error(f"no such class: {', '.join(unknown)}; there are {', '.join(TRAINING)}")
    if platform.system() != "Linux":
        parser.error("memory is read from /proc, which Linux alone has")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    about = announce()
    jobs = list(rows(arguments.classes, arguments.quick))
    results: list[Result] = []
    with tqdm(jobs, unit="row", leave=False, disable=None) as bar:
        for row in bar:
            bar.set_postfix_str(f"{row.category.name} {row}")
            results.append(measure(row, arguments.threads))
    print_table(results)
    if arguments.json:
        figures = [asdict(result) | {"ratio": result.ratio} for result in results]
        write_figures(arguments.json, {"machine": about, "rows": figures})


if __name__ == "__main__":
    main()
