"""Times whole models of the literature before and after `fused_rnn.accelerate`, in turn.

Inference, inference with frozen weights (`fused_rnn.freeze`) and a whole training step (forward,
loss, backward, optimizer) of every model in models/, on data made up at random, of a size as in the
literature or a little below. Three copies of the model start from the same weights; one of them is
accelerated and one is frozen. Before they are timed they must agree on what they infer and, but for
the frozen one, on the losses of their first steps of training. The column `recurrent`
is the share of the inference time of the copy on torch.nn that goes into recurrent layers and
cells: more than that cannot be won.

    python benchmarks/whole_models.py
    python benchmarks/whole_models.py --quick --model tagger forecaster --threads 1
"""

from __future__ import annotations

import argparse
import gc
import itertools
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import fused_rnn
from compare import TOLERANCE, geometric_mean, time_in_turn
from models import MODELS, build
from models.subject import Subject
from report import announce, write_figures
from workloads import Workload

# As many turns as fit into a model's time, at least as many as compare.py's fewest.
SECONDS = 5.0
QUICK_SECONDS = 0.5
# Steps of training whose losses must agree before the time is taken.
STEPS = 4

# Which copy is timed against the one on torch.nn, and doing what.
MODES: dict[str, tuple[str, Callable[[Subject], Workload]]] = {
    "inference": ("fused", lambda subject: subject.infer),
    "frozen": ("frozen", lambda subject: subject.infer),
    "training": ("fused", lambda subject: subject.train),
}


@dataclass(frozen=True)
class Result:
    """Median seconds of a run of one model on torch.nn's layers and on fused_rnn's."""

    model: str
    about: str
    mode: str
    threads: int
    torch: float
    fused: float
    recurrent: float | None
    largest_difference: float

    @property
    def ratio(self) -> float:
        return self.torch / self.fused


def build_all(name: str, tiny: bool = False) -> dict[str, Subject]:
    """Equal subjects: as it is, accelerated, and frozen."""
    subjects = {library: build(name, tiny) for library in ("torch", "fused", "frozen")}
    fused_rnn.accelerate(subjects["fused"].net)
    fused_rnn.freeze(subjects["frozen"].net)
    return subjects


def largest_difference(theirs: tuple[Tensor, ...], ours: tuple[Tensor, ...]) -> float:
    """Between results in the same places, relative to the largest value; infinite where sizes
    differ."""
    worst = 0.0
    for expected, actual in zip(theirs, ours, strict=True):
        if expected.shape != actual.shape:
            return float("inf")
        scale = max(1e-30, expected.abs().max().item())
        worst = max(worst, (actual - expected).abs().max().item() / scale)
    return worst


def differences(subjects: dict[str, Subject]) -> dict[str, float]:
    """How far the subjects are from the one on torch.nn in what they infer and, over a few steps,
    in their losses."""
    inferred = {library: subject.infer() for library, subject in subjects.items()}
    losses = [
        tuple(loss for _ in range(STEPS) for loss in subjects[library].train())
        for library in ("torch", "fused")
    ]
    return {
        "inference": largest_difference(inferred["torch"], inferred["fused"]),
        "frozen": largest_difference(inferred["torch"], inferred["frozen"]),
        # Each loss against itself: they fall.
        "training": max(
            largest_difference((theirs,), (ours,)) for theirs, ours in zip(*losses, strict=True)
        ),
    }


def recurrent_share(subject: Subject) -> float:
    """Share of the time of inference that is spent in recurrent layers and cells."""
    spent = 0.0
    begin = 0.0

    def before(*_: Any) -> None:
        nonlocal begin
        begin = time.perf_counter()

    def after(*_: Any) -> None:
        nonlocal spent
        spent += time.perf_counter() - begin

    subject.infer()
    hooks = [
        hook
        for module in subject.net.modules()
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase))
        for hook in (
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after),
        )
    ]
    start = time.perf_counter()
    subject.infer()
    whole = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return spent / whole


def measure(name: str, threads: int, budget: float) -> list[Result]:
    torch.set_num_threads(threads)
    subjects = build_all(name)
    apart = differences(subjects)
    for mode, difference in apart.items():
        if not difference <= TOLERANCE["float32"]:
            raise SystemExit(f"{name}: {mode} differs from torch by {difference:.1e}")
    share = recurrent_share(subjects["torch"])
    results: list[Result] = []
    for mode, (ours, choose) in MODES.items():
        contestants = {library: choose(subjects[library]) for library in ("torch", ours)}
        gc.collect()
        gc.disable()
        seconds = time_in_turn(contestants, budget)
        gc.enable()
        results.append(
            Result(
                model=name,
                about=subjects["torch"].about,
                mode=mode,
                threads=threads,
                torch=seconds["torch"],
                fused=seconds[ours],
                recurrent=share if mode != "training" else None,
                largest_difference=apart[mode],
            )
        )
    return results


def print_table(results: list[Result]) -> None:
    print(
        f"{'model':<14}{'mode':<11}{'thr':>3}{'torch ms':>11}{'fused ms':>11}{'ratio':>8}"
        f"{'recurrent':>11}{'apart':>9}  sizes"
    )
    for result in results:
        share = "-" if result.recurrent is None else f"{result.recurrent:.0%}"
        print(
            f"{result.model:<14}{result.mode:<11}{result.threads:>3}{1e3 * result.torch:>11.2f}"
            f"{1e3 * result.fused:>11.2f}{result.ratio:>7.2f}x{share:>11}"
            f"{result.largest_difference:>9.0e}  {result.about}"
        )
    for mode, threads in dict.fromkeys((result.mode, result.threads) for result in results):
        ratios = [r.ratio for r in results if (r.mode, r.threads) == (mode, threads)]
        print(
            f"{mode}, {threads} thread{'s' if threads > 1 else ''}: geometric mean "
            f"{geometric_mean(ratios):.2f}x, slowest {min(ratios):.2f}x"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--quick", action="store_true", help="as few turns as possible")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    arguments = parser.parse_args()
    if min(arguments.threads) < 1:
        parser.error("--threads must be at least 1")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
    about = announce()
    jobs = list(itertools.product(arguments.threads, arguments.model))
    budget = QUICK_SECONDS if arguments.quick else SECONDS
    results: list[Result] = []
    with tqdm(jobs, unit="model", leave=False, disable=None) as bar:
        for threads, name in bar:
            bar.set_postfix_str(name)
            results += measure(name, threads, budget)
    print_table(results)
    if arguments.json:
        figures = [asdict(result) | {"ratio": result.ratio} for result in results]
        write_figures(arguments.json, {"machine": about, "rows": figures})


if __name__ == "__main__":
    main()
