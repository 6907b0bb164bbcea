"""What distinguishes the cells in the shapes of their tensors; csrc/cpu/kernels.h has the same."""

from typing import NamedTuple


class Traits(NamedTuple):
    """Numbers of blocks of H values."""

    gates: int
    """Rows of w_ih and w_hh, in blocks: i f g o, or r z n."""
    saved: int
    """What a row keeps for the backward pass beside its output: the gates and the cell state of an
    LSTM; r, z, n and the hidden part of n of a GRU; nothing for an RNN, whose derivative is a
    function of its output."""
    states: int
    """h, and c for an LSTM."""


TRAITS = {
    "lstm": Traits(gates=4, saved=5, states=2),
    "gru": Traits(gates=3, saved=4, states=1),
    "rnn_tanh": Traits(gates=1, saved=0, states=1),
    "rnn_relu": Traits(gates=1, saved=0, states=1),
}
