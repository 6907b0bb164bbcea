"""A small recurrent net learns the sign of a signal, on torch.nn, on fused_rnn, or on both in turn.

The signal is sin(t) for t in 0..19, cos(t) for t in 0..19, ten ones and ten zeros; its label is 1
where the value is above 0. The net is a two-layer LSTM, GRU or RNN of 32 units and a linear layer
that gives one logit a step. `--task label` has the same net tell which of the four pieces a
sequence of variable length was cut from, with packed sequences and cross-entropy. (Sine and cosine
differ in phase alone, so that a short cut of one looks much like a cut of the other; ones and zeros
are easy.)

    python benchmarks/training_loop.py
    python benchmarks/training_loop.py --cell gru --windows --plot gru.png
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from tqdm import tqdm

from workloads import LIBRARIES

HIDDEN = 32
WINDOW = 10
REPORT_EVERY = 100
# With both implementations, each runs this many epochs before it is the other's turn: what else
# goes on in the machine then falls on both alike.
TURN = 10

PIECES = {
    "sine": torch.sin(torch.arange(20.0)),
    "cosine": torch.cos(torch.arange(20.0)),
    "ones": torch.ones(10),
    "zeros": torch.zeros(10),
}
SIGNAL = torch.cat(tuple(PIECES.values()))

# --task label: every piece gives as many sequences, each cut out once.
SHORTEST_CUT = 3
TRAINING_CUTS = 28
HELD_OUT_CUTS = 8


class Net(nn.Module):
    """Two recurrent layers of 32 units and a linear layer, on the layer class it is given.

    A dense input [T, B, 1] gives logits for every step, [T, B, outputs]. A PackedSequence of B
    sequences gives logits for every sequence, [B, outputs], from the top layer's last state.
    """

    def __init__(self, layer: Any, outputs: int) -> None:
        super().__init__()
        self.recurrent = layer(1, HIDDEN, num_layers=2)
        self.head = nn.Linear(HIDDEN, outputs)

    def forward(self, sequence: Tensor | PackedSequence) -> Tensor:
        output, state = self.recurrent(sequence)
        if isinstance(sequence, PackedSequence):
            hidden = state[0] if isinstance(state, tuple) else state
            output = hidden[-1]
        return self.head(output)


@dataclass(frozen=True)
class Task:
    """What the net is trained on."""

    name: str
    inputs: Tensor | PackedSequence
    targets: Tensor
    outputs: int
    loss: nn.Module
    learning_rate: float = 0.01


def sign_task(windows: bool) -> Task:
    """A label a step: the whole signal as one sequence, or cut into 51 windows of 10 steps."""
    if windows:
        values = SIGNAL.unfold(0, WINDOW, 1).T.contiguous().unsqueeze(-1)
    else:
        values = SIGNAL.reshape(-1, 1, 1)
    steps, batch = values.shape[:2]
    name = f"the sign of the signal (T={steps}, B={batch})"
    return Task(name, values, (values > 0).float(), 1, nn.BCEWithLogitsLoss())


@dataclass(frozen=True)
class Cut:
    """Steps `start` to `stop` of the signal, all out of one piece."""

    piece: int
    start: int
    stop: int


def make_cuts(seed: int) -> tuple[list[Cut], list[Cut]]:
    """Cuts to train on, and others that training never sees."""
    shuffle = random.Random(seed).shuffle
    training: list[Cut] = []
    held_out: list[Cut] = []
    begin = 0
    for piece, values in enumerate(PIECES.values()):
        end = begin + len(values)
        cuts = [
            Cut(piece, start, stop)
            for start in range(begin, end)
            for stop in range(start + SHORTEST_CUT, end + 1)
        ]
        shuffle(cuts)
        training += cuts[:TRAINING_CUTS]
        held_out += cuts[TRAINING_CUTS : TRAINING_CUTS + HELD_OUT_CUTS]
        begin = end
    return training, held_out


def pack_cuts(cuts: list[Cut]) -> tuple[PackedSequence, Tensor]:
    """The cuts as one packed batch, and the piece that each came from."""
    sequences = [SIGNAL[cut.start : cut.stop].unsqueeze(-1) for cut in cuts]
    pieces = torch.tensor([cut.piece for cut in cuts])
    return pack_sequence(sequences, enforce_sorted=False), pieces


def label_task(cuts: list[Cut]) -> Task:
    """A label a sequence: which piece it was cut from."""
    packed, pieces = pack_cuts(cuts)
    name = f"which piece a sequence was cut from (B={len(cuts)}, packed)"
    # At 0.01 Adam leaps here, and two runs that differ in their last bits part within 85 epochs.
    return Task(name, packed, pieces, len(PIECES), nn.CrossEntropyLoss(), learning_rate=0.003)


@dataclass
class Run:
    """One net in training: its losses so far and the time they took."""

    cell: str
    library: Any
    task: Task
    seed: int
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.net = Net(getattr(self.library, self.cell.upper()), self.task.outputs)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=self.task.learning_rate)

    def epoch(self) -> float:
        """One step of training; returns the loss before it."""
        self.optimizer.zero_grad()
        loss: Tensor = self.task.loss(self.net(self.task.inputs), self.task.targets)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def train(self, epochs: int) -> None:
        begin = time.perf_counter()
        self.losses += [self.epoch() for _ in range(epochs)]
        self.seconds += time.perf_counter() - begin

    def predict(self, inputs: Tensor | PackedSequence) -> Tensor:
        with torch.no_grad():
            return self.net(inputs)


def train_in_turn(runs: dict[str, Run], epochs: int) -> None:
    """Trains every net for `epochs` epochs, a few at a time, and prints a line every hundred."""
    for run in runs.values():
        # The first call pays for threads and code that later ones find ready.
        Run(run.cell, run.library, run.task, run.seed).epoch()

    print(" " * len("Epoch: 100 Loss: ") + "".join(f"{name:<12}" for name in runs))
    order = list(runs.values())
    with tqdm(total=epochs, unit="epoch", leave=False, disable=not sys.stdout.isatty()) as bar:
        done = 0
        while done < epochs:
            count = min(TURN, epochs - done)
            for run in order:
                run.train(count)
            order.reverse()
            done += count
            bar.update(count)
            if done % REPORT_EVERY == 0 or done == epochs:
                losses = "  ".join(f"{run.losses[-1]:.8f}" for run in runs.values())
                bar.write(f"Epoch: {done} Loss: {losses}")


def compare_runs(runs: dict[str, Run]) -> None:
    """Prints the times and, of two runs, the ratio and how far the losses are apart."""
    if len(runs) > 1:
        ours, theirs = runs["fused"].losses, runs["torch"].losses
        apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
        epoch = max(range(len(apart)), key=apart.__getitem__)
        print(f"Largest difference of the losses: {apart[epoch]:.1e} (epoch {epoch + 1})", end="")
        early = apart[:REPORT_EVERY]
        print(f"; of the first {len(early)} epochs: {max(early):.1e}")
        print(
            "The nets start equal; rounding differs between the implementations, and Adam carries "
            "and amplifies it from epoch to epoch."
        )
    times = ", ".join(
        f"{name} {run.seconds:.3f} s ({1e3 * run.seconds / len(run.losses):.3f} ms an epoch)"
        for name, run in runs.items()
    )
    print(f"Time: {times}")
    if len(runs) > 1:
        print(f"Ratio: {runs['torch'].seconds / runs['fused'].seconds:.2f} (torch / fused)")


def report_sign(run: Run) -> str:
    right = (run.predict(run.task.inputs) > 0) == (run.task.targets > 0)
    return f"{right.float().mean().item():.1%} of the steps right"


def report_label(run: Run, held_out: list[Cut]) -> str:
    packed, pieces = pack_cuts(held_out)
    probabilities = run.predict(packed).softmax(-1)
    right = (probabilities.argmax(-1) == pieces).float()
    certainty = probabilities.gather(1, pieces.unsqueeze(1)).mean().item()
    by_piece = ", ".join(
        f"{name} {right[pieces == piece].mean().item():.0%}" for piece, name in enumerate(PIECES)
    )
    return (
        f"held-out accuracy {right.mean().item():.1%} of {len(held_out)} sequences ({by_piece}), "
        f"mean probability of the right piece {certainty:.3f}"
    )


def predicted_signs(run: Run) -> Tensor:
    """Probability of a positive sign for each step of the signal; windows are averaged."""
    probabilities = run.predict(run.task.inputs).squeeze(-1).sigmoid()
    total = torch.zeros(len(SIGNAL))
    times = torch.zeros(len(SIGNAL))
    steps, batch = probabilities.shape
    for window in range(batch):
        total[window : window + steps] += probabilities[:, window]
        times[window : window + steps] += 1
    return total / times


def plot(path: Path, runs: dict[str, Run], held_out: list[Cut], title: str) -> None:
    """Draws the losses, and the predictions over the signal, into a file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    styles = dict(zip(runs, ("-", "--"), strict=False))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    for name, run in runs.items():
        left.semilogy(range(1, len(run.losses) + 1), run.losses, styles[name], label=name)
    left.set(title="Loss", xlabel="epoch")
    left.legend()

    right.plot(SIGNAL.tolist(), "o-", color="0.6", markersize=3, label="signal")
    if held_out:
        colors = [f"C{index}" for index in range(len(PIECES))]
        packed, _ = pack_cuts(held_out)
        ticks: dict[float, str] = {-1.0: "-1", 0.0: "0", 1.0: "1"}
        y = -1.0
        for name, run in runs.items():
            top = y = y - 0.4
            for cut, piece in zip(held_out, run.predict(packed).argmax(-1).tolist(), strict=True):
                right.plot([cut.start, cut.stop - 1], [y, y], color=colors[piece], lw=2)
                y -= 0.08
            ticks[(top + y) / 2] = name
        for color, piece_name in zip(colors, PIECES, strict=True):
            right.plot([], [], color=color, lw=2, label=f"taken for {piece_name}")
        right.set_yticks(list(ticks), ticks.values())
        right.set(title="Held-out sequences, where they were cut", xlabel="t")
    else:
        for name, run in runs.items():
            right.plot(predicted_signs(run).tolist(), styles[name], label=f"{name}: P(above 0)")
        right.set(title="Predictions over the signal", xlabel="t")
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    print(f"Plot: {path}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cell", choices=("lstm", "gru", "rnn"), default="lstm")
    parser.add_argument("--impl", choices=("fused", "torch", "both"), default="both")
    parser.add_argument(
        "--task",
        choices=("sign", "label"),
        default="sign",
        help="sign: a label a step (default); label: a label a sequence, packed",
    )
    parser.add_argument(
        "--windows", action="store_true", help="51 windows of 10 steps instead of one sequence"
    )
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--threads", type=int, help="default: as many as torch takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw losses and predictions")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error("--epochs must be at least 1")
    if arguments.threads is not None and arguments.threads < 1:
        parser.error("--threads must be at least 1")
    if arguments.windows and arguments.task == "label":
        parser.error("--windows belongs to --task sign")
    if arguments.plot:
        try:
            import matplotlib  # noqa: F401
        except ModuleNotFoundError:
            parser.error("--plot needs matplotlib: pip install matplotlib")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    held_out: list[Cut] = []
    if arguments.task == "label":
        cuts, held_out = make_cuts(arguments.seed)
        task = label_task(cuts)
    else:
        task = sign_task(arguments.windows)

    names = ("torch", "fused") if arguments.impl == "both" else (arguments.impl,)
    runs = {name: Run(arguments.cell, LIBRARIES[name], task, arguments.seed) for name in names}
    title = f"Two-layer {arguments.cell.upper()} of {HIDDEN} units learns {task.name}"
    print(f"{title}; threads {torch.get_num_threads()}, seed {arguments.seed}")
    train_in_turn(runs, arguments.epochs)
    compare_runs(runs)
    for name, run in runs.items():
        report = report_label(run, held_out) if held_out else report_sign(run)
        print(f"Result of {name}: {report}")
    if arguments.plot:
        plot(arguments.plot, runs, held_out, title)


if __name__ == "__main__":
    main()
