"""Times torch.nn, fused_rnn and others in turn, in one process.

Every row of shapes.py is run by each contestant that can run it, turn and turn about, and the
median of its turns counts. Before that all contestants must agree on the output and, in training,
on every gradient. ONNX Runtime and OpenVINO take part in inference where they are installed, JAX in
training as well. The first two pack their weights when a model is loaded, fused_rnn at every call
or, where the module is frozen (`fused_rnn.freeze`), once: inference is timed both ways, the second
as a class of its own. Beside the times stands the least that the row could take on this machine
(limits.py).

    python benchmarks/compare.py --quick
    python benchmarks/compare.py --threads 1,2 --json speeds.json --plot speeds.png
    python benchmarks/compare.py --classes inference,streaming
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import fused_rnn
from limits import limit_seconds
from peers import PEERS, installed
from report import announce, write_figures
from shapes import CATEGORIES, GATES, Row, rows
from workloads import LIBRARIES, Workload, build, peak, rates

# A turn repeats the call until it has lasted long enough for the clock, and a row has as many
# turns as fit into its time, within these bounds.
TURN_SECONDS = 0.006
ROW_SECONDS = 1.8
QUICK_ROW_SECONDS = 0.4
TURNS = (3, 15)
# Thread pools spin for a while after a call. Each turn starts with a pause, so that it does not
# share the processor with the contestant before it. With two threads on two cores and 3 ms, ONNX
# Runtime's pool doubled what the others took, and they what it took (LSTM I1 H32 T10 B51: 22 to 38
# us and 48 to 115); with 30 ms it did not.
PAUSE_SECONDS = 0.03
# After a pause the kernel may wake a pool's threads on one core and part them only at its next
# ticks: one call of LSTM H256 T50 B4 on two threads then took 7.7 ms, and all that followed 0.54.
# Calls of the first so many seconds are not counted.
WARM_UP_SECONDS = 0.012

# Outputs and gradients of all contestants, relative to the largest value.
TOLERANCE = {"float32": 1e-4, "float64": 1e-9, "float16": 2e-2, "bfloat16": 0.1}


@dataclass
class Result:
    """Median seconds of one row by contestant, and what follows from them."""

    category: str
    cell: str
    shape: str
    origin: str
    threads: int
    seconds: dict[str, float]
    gflops: float
    share_of_peak: float
    limit: float

    @property
    def share_of_limit(self) -> float:
        return self.limit / self.seconds["fused"]

    @property
    def limit_against_best(self) -> float:
        """What `against_best` would be at the limit."""
        return self.against_best / self.share_of_limit

    @property
    def best_peer(self) -> str:
        others = {name: value for name, value in self.seconds.items() if name != "fused"}
        return min(others, key=others.__getitem__)

    @property
    def against_best(self) -> float:
        return self.seconds[self.best_peer] / self.seconds["fused"]

    @property
    def against_torch(self) -> float:
        return self.seconds["torch"] / self.seconds["fused"]


def check_agreement(row: Row, contestants: dict[str, Workload]) -> None:
    """Raises if a contestant computes something other than torch.nn does."""
    expected = contestants["torch"]()
    for name, run in contestants.items():
        for index, (theirs, ours) in enumerate(zip(expected, run(), strict=True)):
            error = (_as_tensor(ours) - theirs).abs().max().item() / max(
                1e-30, theirs.abs().max().item()
            )
            if not error <= TOLERANCE[row.shape.dtype]:
                what = f"gradient {index}" if index else "the output"
                raise SystemExit(
                    f"{row.category.name} {row}: {what} of {name} differs from torch by {error:.1e}"
                )


def _as_tensor(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else torch.from_dlpack(result)


def time_in_turn(contestants: dict[str, Workload], budget: float) -> dict[str, float]:
    """Median seconds of a call for each contestant, measured turn and turn about."""
    repeats: dict[str, int] = {}
    for name, run in contestants.items():
        run()
        repeats[name] = max(1, round(TURN_SECONDS / _seconds(run, 1)))
    turns: dict[str, list[float]] = defaultdict(list)
    begin = time.perf_counter()
    for turn in range(TURNS[1]):
        if turn >= TURNS[0] and time.perf_counter() - begin > budget:
            break
        for name, run in contestants.items():
            time.sleep(PAUSE_SECONDS)
            _warm_up(run)
            turns[name].append(_seconds(run, repeats[name]))
    return {name: statistics.median(seconds) for name, seconds in turns.items()}


def _warm_up(run: Workload) -> None:
    begin = time.perf_counter()
    while time.perf_counter() - begin < WARM_UP_SECONDS:
        run()


def _seconds(run: Workload, repeats: int) -> float:
    """Mean seconds of one call out of `repeats` in a row."""
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - begin) / repeats


def measure(row: Row, threads: int, peer_names: Iterable[str], budget: float) -> list[Result]:
    """The results of a row: of fused_rnn as it is and, where that differs, frozen."""
    contestants = {name: build(row, library) for name, library in LIBRARIES.items()}
    if row.category.freezable:
        contestants["frozen"] = build(row, fused_rnn, frozen=True)
    for name in peer_names:
        if PEERS[name].covers(row):
            contestants[name] = PEERS[name].build(row, threads)
    check_agreement(row, contestants)
    gc.collect()
    gc.disable()
    seconds = time_in_turn(contestants, budget)
    gc.enable()
    limit = limit_seconds(row, threads)

    def result(category: str, fused: float) -> Result:
        return Result(
            category=category,
            cell=row.cell,
            shape=str(row.shape),
            origin=row.shape.origin,
            threads=threads,
            seconds=seconds | {"fused": fused},
            **rates(row, fused, threads),
            limit=limit,
        )

    frozen = seconds.pop("frozen", None)
    results = [result(row.category.name, seconds["fused"])]
    if frozen is not None:
        results.append(result(f"frozen-{row.category.name}", frozen))
    return results


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def summarize(results: list[Result]) -> list[dict[str, Any]]:
    """Geometric mean and slowest row of each class, cell and number of threads."""
    groups: dict[tuple[str, str, int], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.category, result.cell, result.threads].append(result)
    return [
        {
            "category": category,
            "cell": cell,
            "threads": threads,
            "rows": len(group),
            "against_best": geometric_mean(result.against_best for result in group),
            "against_torch": geometric_mean(result.against_torch for result in group),
            "peers": [name for name in PEERS if any(name in r.seconds for r in group)],
            "slowest_against_torch": min(result.against_torch for result in group),
            "slowest_against_best": min(result.against_best for result in group),
            "limit_against_best": geometric_mean(result.limit_against_best for result in group),
            "share_of_limit": geometric_mean(result.share_of_limit for result in group),
        }
        for (category, cell, threads), group in groups.items()
    ]


def print_table(results: list[Result], names: list[str]) -> None:
    header = f"{'class':<28}{'cell':<5}{'shape':<30}{'thr':>3}"
    header += "".join(f"{name + ' ms':>16}" for name in names)
    header += f"{'limit ms':>11}{'of limit':>9}"
    print(header + f"{'GF/s':>9}{'peak':>7}{'vs torch':>10}{'vs best':>9}  best peer")
    for result in results:
        cells = "".join(
            f"{1e3 * result.seconds[name]:>16.4f}" if name in result.seconds else f"{'-':>16}"
            for name in names
        )
        print(
            f"{result.category:<28}{result.cell:<5}{result.shape:<30}{result.threads:>3}{cells}"
            f"{1e3 * result.limit:>11.4f}{result.share_of_limit:>9.0%}"
            f"{result.gflops:>9.1f}{result.share_of_peak:>7.1%}{result.against_torch:>9.2f}x"
            f"{result.against_best:>8.2f}x  {result.best_peer}"
        )


def print_summary(summary: list[dict[str, Any]]) -> None:
    print("Geometric means of fused_rnn's speed-up")
    print(
        f"{'class':<28}{'cell':<5}{'thr':>3}{'rows':>6}{'vs torch':>10}{'vs best':>9}{'slowest':>9}"
        f"{'at limit':>10}{'of limit':>10}"
    )
    for line in summary:
        print(
            f"{line['category']:<28}{line['cell']:<5}{line['threads']:>3}{line['rows']:>6}"
            f"{line['against_torch']:>9.2f}x{line['against_best']:>8.2f}x"
            f"{line['slowest_against_best']:>8.2f}x{line['limit_against_best']:>9.2f}x"
            f"{line['share_of_limit']:>10.0%}"
        )


def write_readme(path: Path, summary: list[dict[str, Any]], about: dict[str, str]) -> None:
    """Puts the summary as two tables between the two comments that a Markdown file has for it."""
    thread_counts = sorted({line["threads"] for line in summary})
    columns = [(cell, threads) for threads in thread_counts for cell in GATES]
    found = {(line["category"], line["cell"], line["threads"]): line for line in summary}
    lines = [
        "Times as fast: geometric mean over the shapes of a class, the slowest in brackets. Beside "
        "torch.nn only JAX trains; classes that no other runs are in the first table alone."
    ]
    tables = [("torch.nn", "against_torch", "slowest_against_torch", summary)]
    if contested := [line for line in summary if line["peers"]]:
        ran = dict.fromkeys(name for line in contested for name in line["peers"])
        best = ", ".join(["the best of torch.nn", *ran])
        tables.append((best, "against_best", "slowest_against_best", contested))
    for than, mean, slowest, shown in tables:
        header = [f"as {than}"]
        header += [f"{cell.upper()}, {n} thread{'s' if n > 1 else ''}" for cell, n in columns]
        lines += ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        for category in dict.fromkeys(line["category"] for line in shown):
            cells = [category.replace("-", " ")]
            for column in columns:
                line = found.get((category, *column))
                cells.append(f"{line[mean]:.1f} ({line[slowest]:.2f})" if line else "")
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Measured with " + ", ".join(f"{k} {v}" for k, v in about.items()) + "."]

    begin, end = "<!-- speeds: begin -->\n", "<!-- speeds: end -->"
    before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise SystemExit(f"{path} lacks the comments {begin.strip()} and {end}")
    table = "\n".join(lines) + "\n"
    path.write_text(before + begin + table + end + after, encoding="utf-8")


def plot(path: Path, results: list[Result], summary: list[dict[str, Any]], title: str) -> None:
    """Bars for the geometric means, a dot for every row, one panel for each number of threads."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    colors = {"lstm": "#1f5a99", "gru": "#d9822b", "rnn": "#4d9a57"}
    labels = list(dict.fromkeys((line["category"], line["cell"]) for line in summary))
    thread_counts = sorted({line["threads"] for line in summary})
    # A gap between classes: each bar is one unit, each class ends with another half.
    places: dict[tuple[str, str], float] = {}
    place = 0.0
    for index, label in enumerate(labels):
        place += 1.5 if index and label[0] != labels[index - 1][0] else 1.0
        places[label] = place

    figure, panels = pyplot.subplots(
        1,
        len(thread_counts),
        figsize=(2.2 + 4.4 * len(thread_counts), 1.3 + 0.22 * place),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    ratios = [result.against_best for result in results]
    low, high = min(0.9, *ratios), max(2.0, *ratios)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low / 1.2 <= t <= high * 1.5]
    for panel, threads in zip(panels[0], thread_counts, strict=True):
        for line in summary:
            if line["threads"] != threads:
                continue
            y, mean = places[line["category"], line["cell"]], line["against_best"]
            # On a logarithmic axis a bar starts at 1: to the right is faster, to the left slower.
            panel.barh(y, mean - 1, left=1, height=0.8, color=colors[line["cell"]], alpha=0.75)
            panel.annotate(
                f"{mean:.1f}x",
                (high * 1.25, y),
                va="center",
                ha="left",
                fontsize=8,
                annotation_clip=False,
            )
        for result in results:
            if result.threads == threads:
                y = places[result.category, result.cell]
                panel.plot(result.against_best, y, ".", color="0.15", markersize=4, alpha=0.7)
        panel.axvline(1, color="0.2", lw=1)
        panel.set_xscale("log")
        panel.set_xlim(low / 1.1, high * 1.9)
        panel.xaxis.set_major_locator(FixedLocator(ticks))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}x"))
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
        panel.set_title(f"{threads} thread{'s' if threads > 1 else ''}", fontsize=10)
        panel.set_xlabel("times as fast as the best other implementation")
        panel.set_ylim(place + 0.8, 0.2)
        panel.set_yticks(list(places.values()), [f"{name} {cell}" for name, cell in labels])
        panel.tick_params(axis="y", labelsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", default="1,2", help="comma-separated (default 1,2)")
    parser.add_argument(
        "--classes", default=",".join(CATEGORIES), help="comma-separated (default: all of them)"
    )
    parser.add_argument("--quick", action="store_true", help="few shapes, some minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the speed-ups")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="put the summary into a Markdown file"
    )
    arguments = parser.parse_args()
    try:
        arguments.threads = [int(count) for count in arguments.threads.split(",")]
    except ValueError:
        parser.error("--threads takes numbers, such as 1,2")
    if min(arguments.threads) < 1:
        parser.error("--threads must be at least 1")
    arguments.classes = arguments.classes.split(",")
    if unknown := set(arguments.classes) - CATEGORIES.keys():
        parser.error(f"no such class: {', '.join(unknown)}; there are {', '.join(CATEGORIES)}")
    if arguments.plot:
        try:
            import matplotlib  # noqa: F401
        except ModuleNotFoundError:
            parser.error("--plot needs matplotlib: pip install matplotlib")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
    peer_versions = installed()
    names = [*LIBRARIES, *peer_versions]
    about = announce(**peer_versions)
    peaks = {dtype: peak(dtype) for dtype in ("float32", "float64")}
    rounded = ", ".join(f"{dtype} {value:.0f} GF/s" for dtype, value in peaks.items())
    print(f"FMA peak of one thread: {rounded}")

    jobs = list(itertools.product(arguments.threads, rows(arguments.classes, arguments.quick)))
    budget = QUICK_ROW_SECONDS if arguments.quick else ROW_SECONDS
    results: list[Result] = []
    with tqdm(jobs, unit="row", leave=False, disable=None) as bar:
        for threads, row in bar:
            bar.set_postfix_str(f"{row.category.name} {row}")
            torch.set_num_threads(threads)
            results += measure(row, threads, peer_versions, budget)
    results.sort(key=lambda result: (result.threads, result.category.startswith("frozen")))
    summary = summarize(results)
    print_table(results, names)
    print()
    print_summary(summary)

    if arguments.json:
        document = {
            "machine": about,
            "peak_gflops": peaks,
            "summary": summary,
            "rows": [
                asdict(result)
                | {
                    "best_peer": result.best_peer,
                    "against_best": result.against_best,
                    "against_torch": result.against_torch,
                }
                for result in results
            ],
        }
        write_figures(arguments.json, document)
    if arguments.readme:
        write_readme(arguments.readme, summary, about)
        print(f"Summary: {arguments.readme}")
    if arguments.plot:
        contenders = " ".join(f"{name} {version}," for name, version in peer_versions.items())
        title = (
            f"fused_rnn {about['fused_rnn']} against the best of torch {about['torch']}, "
            f"{contenders}\nfloat32 unless said; bar: geometric mean, dot: one shape; "
            f"{about['processor']}, {about['isa']}"
        )
        plot(arguments.plot, results, summary, title)
        print(f"Plot: {arguments.plot}")


if __name__ == "__main__":
    main()
