"""The arithmetic of benchmarks/limits.py, with made-up rates."""

import math

import pytest

import limits
from fused_rnn import _C
from shapes import Category, Row, Shape


def row(kind: str = "layer", training: bool = False, cell: str = "lstm", **sizes: object) -> Row:
    shape = Shape(**{"hidden": 8, "steps": 5, "batch": 3, "origin": "test", **sizes})
    return Row(Category("test", kind, training, (cell,), ()), cell, shape)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Everything takes no time at all until a test says otherwise."""
    monkeypatch.setattr(limits, "peak", lambda dtype: math.inf)
    monkeypatch.setattr(limits, "_activation_rate", lambda dtype: math.inf)
    monkeypatch.setattr(limits, "_rate_of_block", lambda size: math.inf)
    monkeypatch.setattr(limits, "_chain_seconds", lambda *of: 0.0)
    monkeypatch.setattr(limits, "_overhead_seconds", lambda *of: 0.0)
    return monkeypatch


@pytest.mark.parametrize("threads", [1, 2])
def test_products_and_activations(rates: pytest.MonkeyPatch, threads: int) -> None:
    rates.setattr(limits, "peak", lambda dtype: 2.0)
    for training in (False, True):
        a = row("cell", training=training)
        assert limits.limit_seconds(a, threads) == pytest.approx(a.flops / 2e9 / threads)
        # The first of five steps multiplies zeros by half of the weights.
        b = row(training=training)
        needed = 0.9 * b.flops / 2e9
        assert limits.limit_seconds(b, threads) == pytest.approx(needed / threads)
    rates.setattr(limits, "peak", lambda dtype: math.inf)
    rates.setattr(limits, "_activation_rate", lambda dtype: 10.0)
    for cell, inference, training in (("lstm", 5, 6), ("gru", 3, 3), ("rnn", 1, 1)):
        for count, trains in ((inference, False), (training, True)):
            seconds = limits.limit_seconds(row(cell=cell, training=trains), threads)
            assert seconds == pytest.approx(8 * 5 * 3 * count / 10 / threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_reading(rates: pytest.MonkeyPatch, threads: int) -> None:
    sizes = []

    def rate(size: int) -> float:
        sizes.append(size)
        return 100.0

    rates.setattr(limits, "_rate_of_block", rate)
    # Of a sequence w_hh at every step but the first, in each layer and direction; of calls of one
    # step all.
    hh, ih = 4 * 4 * 8 * 8, 4 * 4 * 8 * 7
    for of, expected in (
        (row(input=7), 4 * hh),
        (row(input=7, training=True), 2 * 4 * hh),
        (row(input=7, dtype="float64"), 4 * 2 * hh),
        (row(input=7, layers=2, bidirectional=True), 2 * 2 * 4 * hh),
        (row("cell", input=7), 5 * (hh + ih)),
        (row(input=7, steps=1), hh + ih),
    ):
        assert limits.limit_seconds(of, threads) == pytest.approx(expected / 100 / threads)
    limits.limit_seconds(row(hidden=300), threads)
    assert sizes[-1] <= 4 * 4 * 300 * 300 // threads < 2 * sizes[-1]


def test_chain_and_overhead(rates: pytest.MonkeyPatch) -> None:
    rates.setattr(limits, "_chain_seconds", lambda *of: 1.0)
    rates.setattr(limits, "_overhead_seconds", lambda *of: 100.0)
    assert limits.limit_seconds(row(), 1) == 105
    assert limits.limit_seconds(row(layers=3), 1) == 107
    assert limits.limit_seconds(row(layers=3, bidirectional=True), 1) == 115
    assert limits.limit_seconds(row("stream"), 1) == 500


def test_rates_are_measured() -> None:
    assert _C.activation_rate("float32", 0.01) > 0
    assert _C.activation_rate("float64", 0.01) > 0
    assert _C.read_rate(5000, 0.01) > 0
    with pytest.raises(ValueError, match="Expected dtype"):
        _C.activation_rate("bfloat16", 0.01)
    with pytest.raises(ValueError, match="at least 1024 bytes, got 1000"):
        _C.read_rate(1000, 0.01)
    assert 0 < limits.limit_seconds(row("cell"), 1) < 1
