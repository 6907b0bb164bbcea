"""What is particular to PackedSequence; the numbers are in test_layers.py."""

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

import fused_rnn
from cases import KINDS, Case, assert_close, flatten


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(5, 3, 3, 1), (3, 1, 5, 3)], ids=["sorted", "unsorted"])
def test_result_keeps_the_indices(kind: str, lengths: tuple[int, ...]) -> None:
    case = Case(kind, 5, 4, 3, 7, lengths=lengths)
    x, states = case.tensors(torch.float32)
    packed = case.pack(x)
    output, _ = case.module(fused_rnn, torch.float32)(packed, case.hx_of(states))
    assert type(output) is PackedSequence
    assert output.batch_sizes is packed.batch_sizes
    assert output.sorted_indices is packed.sorted_indices
    assert output.unsorted_indices is packed.unsorted_indices
    padded, found = pad_packed_sequence(output)
    assert padded.shape == (5, 4, 7)
    assert found.tolist() == list(lengths)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_each_sequence_is_as_if_alone(kind: str, bidirectional: bool) -> None:
    lengths = (3, 1, 6, 3)
    case = Case(kind, 6, 4, 3, 9, L=2, bidirectional=bidirectional, lengths=lengths)
    layer = case.module(fused_rnn, torch.float64)
    x, states = case.tensors(torch.float64)
    output, finals = layer(case.pack(x), case.hx_of(states))
    padded, _ = pad_packed_sequence(output)
    for b, length in enumerate(lengths):
        alone, final = layer(x[:length, b : b + 1], case.hx_of([s[:, b : b + 1] for s in states]))
        assert_close("output", padded[:length, b : b + 1], alone, 1e-12)
        assert not padded[length:, b].any()
        for one, other in zip(flatten(finals), flatten(final), strict=True):
            assert_close("state", one[:, b : b + 1], other, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_full_lengths_are_the_dense_batch(kind: str) -> None:
    case = Case(kind, 6, 4, 3, 9, bidirectional=True)
    layer = case.module(fused_rnn, torch.float64)
    x, states = case.tensors(torch.float64)
    packed = pack_padded_sequence(x, [6] * 4)
    results = flatten(layer(packed, case.hx_of(states)))
    dense = flatten(layer(x, case.hx_of(states)))
    assert_close("output", results[0].view(6, 4, 18), dense[0], 1e-14)
    for one, other in zip(results[1:], dense[1:], strict=True):
        assert_close("state", one, other, 1e-14)


def lstm_hx(*shape: int, dtype: torch.dtype = torch.float32) -> Any:
    return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)


SEQUENCES = [torch.randn(length, 3) for length in (2, 4, 1)]


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 7), r"size \(1, 3, 7\), got \[1, 4, 7\]"),
        ((1, 2, 7), r"size \(1, 3, 7\), got \[1, 2, 7\]"),
        ((1, 3, 6), r"size \(1, 3, 7\), got \[1, 3, 6\]"),
        ((2, 3, 7), r"size \(1, 3, 7\), got \[2, 3, 7\]"),
        ((3, 7), r"size \(1, 3, 7\), got \[3, 7\]"),
        ((7,), r"size \(1, 3, 7\), got \[7\]"),
        ((), r"size \(1, 3, 7\), got \[\]"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_hx_of_a_wrong_size(
    kind: str,
    shape: tuple[int, ...],
    message: str,
    enforce_sorted: bool,
    dtype: torch.dtype,
) -> None:
    """Also where torch's implementation takes the call, since it does not look."""
    sequences = sorted(SEQUENCES, key=len, reverse=True) if enforce_sorted else SEQUENCES
    packed = pack_sequence(sequences, enforce_sorted).to(dtype)
    hx = lstm_hx(*shape, dtype=dtype)
    layer = getattr(fused_rnn, kind)(3, 7, dtype=dtype)
    name = r"hidden\[0\]" if kind == "LSTM" else "hidden"
    given = hx if kind == "LSTM" else hx[0]
    assert fused_rnn.explain(layer, packed, given).way == "error"
    with pytest.raises(RuntimeError, match=f"^Expected {name} {message}$"):
        layer(packed, given)


def test_wrong_cell_state() -> None:
    packed = pack_sequence(SEQUENCES, enforce_sorted=False)
    layer = fused_rnn.LSTM(3, 7, proj_size=2)
    with pytest.raises(RuntimeError, match=r"hidden\[1\] size \(1, 3, 7\), got \[1, 3, 2\]"):
        layer(packed, lstm_hx(1, 3, 2))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_hx_of_another_dtype(kind: str, dtype: torch.dtype) -> None:
    packed = pack_sequence(SEQUENCES, enforce_sorted=False)
    hx = lstm_hx(1, 3, 7, dtype=dtype)
    with pytest.raises(RuntimeError, match=r"not the same dtype, found .*float32 .*" + str(dtype)):
        getattr(fused_rnn, kind)(3, 7)(packed, hx if kind == "LSTM" else hx[0])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([3, 2, 1], "must add up to the number of rows, 7, got 6"),
        ([3, 2, 2, 1], "must add up to the number of rows, 7, got 8"),
        ([1, 2, 4], "sorted in descending order, got 1 at step 0 and 2 at step 1"),
        ([4, 0, 3], "must be positive, got 0 at step 1"),
        ([7, 2, -2], "must be positive, got -2 at step 2"),
        ([2**62, 2**62, 2**62, 2**62], "must add up"),
    ],
)
@pytest.mark.parametrize("given", [False, True], ids=["nohx", "hx"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_bad_batch_sizes(
    kind: str, sizes: list[int], message: str, given: bool, dtype: torch.dtype
) -> None:
    packed = PackedSequence(torch.randn(7, 3, dtype=dtype), torch.tensor(sizes))
    hx = lstm_hx(1, 3, 7, dtype=dtype)
    layer = getattr(fused_rnn, kind)(3, 7, dtype=dtype)
    with pytest.raises(RuntimeError, match=message):
        layer(packed, None if not given else hx if kind == "LSTM" else hx[0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_batch_sizes_of_a_wrong_type(kind: str) -> None:
    layer = getattr(fused_rnn, kind)(3, 7)
    for sizes in (torch.tensor([4, 3], dtype=torch.int32), torch.tensor([[4, 3]])):
        with pytest.raises(RuntimeError, match=r"batch_sizes must be a one-dimensional tensor of"):
            layer(PackedSequence(torch.randn(7, 3), sizes))


def test_sorted_indices_that_do_not_belong() -> None:
    packed = PackedSequence(torch.randn(7, 3), torch.tensor([4, 3]), torch.tensor([1, 0]))
    with pytest.raises(RuntimeError, match="hx must have the 2 sequences of sorted_indices, got 4"):
        fused_rnn.GRU(3, 7)(packed, torch.zeros(1, 4, 7))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_infinite_weight_spares_ended_sequences(name: str) -> None:
    """A sequence of one step has no later step for an infinite w_hh to spoil its gradient."""
    ours, theirs = getattr(fused_rnn, name)(4, 5), getattr(torch.nn, name)(4, 5)
    with torch.no_grad():
        ours.weight_hh_l0[3, 2] = float("inf")
    theirs.load_state_dict(ours.state_dict())
    sequences = [torch.randn(3, 4).requires_grad_(), torch.randn(1, 4).requires_grad_()]
    h0 = torch.rand(1, 2, 5) + 0.1
    hx = (h0, h0 + 1) if name == "LSTM" else h0
    gradients = [
        torch.autograd.grad(layer(pack_sequence(sequences), hx)[0].data.sum(), sequences)
        for layer in (ours, theirs)
    ]
    assert gradients[0][1].isfinite().all()
    assert_close("gradient", gradients[0][1], gradients[1][1], 2e-5)
    assert torch.equal(gradients[0][0].isfinite(), gradients[1][0].isfinite())
