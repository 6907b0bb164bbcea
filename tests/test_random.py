"""Shapes and structures drawn by hypothesis, against torch.nn."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cases import KINDS, Case, check_layer

SIZES = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 32, 33, 63, 64, 65, 97]))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(KINDS))
    T, B = draw(st.integers(1, 12)), draw(st.one_of(st.integers(0, 9), st.sampled_from([16, 33])))
    H = draw(SIZES)
    P = draw(st.integers(0, H - 1)) if kind == "LSTM" else 0
    lengths = None
    if B and draw(st.booleans()):
        drawn = draw(st.lists(st.integers(1, T), min_size=B, max_size=B))
        drawn[draw(st.integers(0, B - 1))] = T
        lengths = tuple(sorted(drawn, reverse=True) if draw(st.booleans()) else drawn)
    return Case(
        kind,
        T,
        B,
        draw(SIZES),
        H,
        L=draw(st.integers(1, 3)),
        P=P,
        bidirectional=draw(st.booleans()),
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        hx=draw(st.booleans()),
        lengths=lengths,
    )


@settings(
    deadline=None,
    derandomize=True,
    max_examples=250,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(case=cases(), seed=st.integers(0, 2**31))
def test_float64(case: Case, seed: int) -> None:
    check_layer(case, torch.float64, "torch", seed)


@settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(case=cases(), seed=st.integers(0, 2**31))
def test_float32(case: Case, seed: int) -> None:
    check_layer(case, torch.float32, "torch", seed)
