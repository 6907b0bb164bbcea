"""Runs another package's model on torch.nn's recurrent layers and on fused_rnn's, and compares."""

import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fused_rnn
from cases import TOLERANCE, assert_close

NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")

# What torch.nn's recurrent modules call.
TORCH_OPERATORS = frozenset(
    f"aten::{kind}{cell}"
    for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    for cell in ("", "_cell")
)
FUSED_OPERATORS = frozenset({"fused_rnn::sequence", "fused_rnn::cell"})

# Does to a model what is to be tried. A run calls it on the model that it has built.
Prepare = Callable[[Any], Any]
# Builds a model and uses it; returns outputs and losses in an order of its own.
Run = Callable[[Prepare], Sequence[Tensor]]


@dataclass(frozen=True)
class Timing:
    """Seconds of one run."""

    name: str
    torch: float
    fused: float


TIMINGS: list[Timing] = []


@contextmanager
def swapped_names() -> Iterator[None]:
    """What the import swap does for code that says torch.nn.LSTM: the names in torch.nn stand for
    fused_rnn's classes."""
    before = {name: getattr(torch.nn, name) for name in NAMES}
    for name in NAMES:
        setattr(torch.nn, name, getattr(fused_rnn, name))
    try:
        yield
    finally:
        for name, kind in before.items():
            setattr(torch.nn, name, kind)


def check(name: str, run: Run, names: bool = False) -> None:
    """Asserts that a run gives the same before and after the swap, and that it really is one.

    Args:
        name: for the table of times.
        run: what is run, from the same seed each time.
        names: swap the names in torch.nn while the run lasts, for packages that build their models
            where a test cannot get at them; otherwise `run` is given `fused_rnn.accelerate`.
    """
    as_it_is: tuple[Prepare, Any] = (_unchanged, nullcontext)
    swap = (_unchanged, swapped_names) if names else (fused_rnn.accelerate, nullcontext)
    expected, before = _operators(run, *as_it_is)
    actual, after = _operators(run, *swap)
    assert before & TORCH_OPERATORS, "the run has no recurrent layer"
    assert not before & FUSED_OPERATORS
    assert after & FUSED_OPERATORS, "nothing was swapped"
    assert not after & TORCH_OPERATORS, f"torch still computes {sorted(after & TORCH_OPERATORS)}"
    assert len(actual) == len(expected)
    for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert theirs.isfinite().all()
        assert_close(f"result {index}", ours, theirs, TOLERANCE[theirs.dtype])
    TIMINGS.append(Timing(name, _timed(run, *as_it_is)[1], _timed(run, *swap)[1]))


def _unchanged(model: Any) -> Any:
    return model


def _timed(run: Run, prepare: Prepare, context: Any) -> tuple[list[Tensor], float]:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (packages draw from it)
    random.seed(0)
    with context():
        begin = time.perf_counter()
        results = run(prepare)
        return [result.detach().clone() for result in results], time.perf_counter() - begin


def _operators(run: Run, prepare: Prepare, context: Any) -> tuple[list[Tensor], set[str]]:
    """What a run gives, and the operators that it called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU]) as record:
            results, _ = _timed(run, prepare, context)
    # key_averages() says the same, and takes minutes for a million events.
    events: Any = record.profiler.kineto_results.events()
    return results, {event.name() for event in events}


def train(
    model: torch.nn.Module, loss: Callable[[], Tensor], steps: int = 4, rate: float = 0.01
) -> list[Tensor]:
    """Losses of a few steps of gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses: list[Tensor] = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return losses
