"""Plain PyTorch definitions of every cell and of the loops around them.

This is what the tests mean by right, and what runs where a fused formula does not exist:
forward-mode derivatives and torch.func transforms. Nothing here is in place and nothing depends on
the values of tensors (batch_sizes apart), so every transform and every order of derivative applies.

The formulas and the order of the gates are those of torch.nn: i, f, g, o for LSTM and r, z, n for
GRU, with the hidden bias of n inside the product with r. `lstm`, `gru` and `rnn` take the arguments
of their namesakes in `fused_rnn.functional`.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._traits import TRAITS

States = tuple[Tensor, ...]
"""(h,) of a GRU or an RNN, (h, c) of an LSTM."""

Step = Callable[..., States]
"""step(x, states, *params) -> states: one time step of a cell."""


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM (torch.nn.LSTMCell; the projection as in arXiv:1402.1128).

    Args:
        input: [..., I].
        hx: h [..., H], or [..., P] with a projection, and c [..., H].
        w_ih, w_hh, b_ih, b_hh: [4H, I], [4H, H or P], [4H], [4H].
        w_hr: [P, H] or None.

    Returns:
        h' and c', shaped as h and c.
    """
    h, c = hx
    i, f, g, o = (F.linear(input, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    # c' = sigmoid(f) * c + sigmoid(i) * tanh(g);  h' = sigmoid(o) * tanh(c')
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w_hr is None else F.linear(h, w_hr)), c


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One step of a GRU (torch.nn.GRUCell).

    Args:
        input, hx: [..., I] and [..., H].
        w_ih, w_hh, b_ih, b_hh: [3H, I], [3H, H], [3H], [3H].

    Returns:
        h', [..., H].
    """
    r_x, z_x, n_x = F.linear(input, w_ih, b_ih).chunk(3, -1)
    r_h, z_h, n_h = F.linear(hx, w_hh, b_hh).chunk(3, -1)
    # n = tanh(n_x + r * n_h);  h' = (1 - z) * n + z * h
    r = torch.sigmoid(r_x + r_h)
    z = torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return n + z * (hx - n)


def rnn_tanh_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), one step of torch.nn.RNNCell.

    Args:
        input, hx: [..., I] and [..., H].
        w_ih, w_hh, b_ih, b_hh: [H, I], [H, H], [H], [H].

    Returns:
        h', [..., H].
    """
    return torch.tanh(F.linear(input, w_ih, b_ih) + F.linear(hx, w_hh, b_hh))


def rnn_relu_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """h' = max(0, W_ih x + b_ih + W_hh h + b_hh); arguments and result of rnn_tanh_cell."""
    return torch.relu(F.linear(input, w_ih, b_ih) + F.linear(hx, w_hh, b_hh))


def _lstm_step(x: Tensor, states: States, *params: Tensor) -> States:
    w_ih, w_hh, *rest = params
    # Three parameters are those of a projection without biases.
    biases, projection = (rest[:2], rest[2:]) if len(rest) > 1 else ([None, None], rest)
    h, c = states
    return lstm_cell(x, (h, c), w_ih, w_hh, *biases, *projection)


def _single_state_step(cell: Callable[..., Tensor]) -> Step:
    def step(x: Tensor, states: States, *params: Tensor) -> States:
        return (cell(x, *states, *params),)

    return step


STEPS: dict[str, Step] = {
    "lstm": _lstm_step,
    "gru": _single_state_step(gru_cell),
    "rnn_tanh": _single_state_step(rnn_tanh_cell),
    "rnn_relu": _single_state_step(rnn_relu_cell),
}


def scan(
    step: Step, inputs: Sequence[Tensor], states: States, params: Sequence[Tensor], reverse: bool
) -> tuple[list[Tensor], States]:
    """Runs a cell over time.

    The batch of step t are the first rows of the batch of step t - 1, as in packed sequences; a
    sequence whose rows end keeps its last state, and one that is read in reverse begins with its
    initial state at its own end.

    Args:
        step: the cell.
        inputs: T tensors [B_t, I], B_t never growing.
        states: initial states, [B_0, H] (or P) each.
        params: of this layer and direction.
        reverse: from the last step to the first.

    Returns:
        The h of each step, in the order of time, [B_t, H] each, and the final states.
    """
    outputs = []
    if reverse:
        current = tuple(state[: inputs[-1].shape[0]] for state in states)
        for x in reversed(inputs):
            known, rows = current[0].shape[0], x.shape[0]
            if known < rows:
                current = tuple(
                    torch.cat([now, initial[known:rows]])
                    for now, initial in zip(current, states, strict=True)
                )
            current = step(x, current, *params)
            outputs.append(current[0])
        return outputs[::-1], current

    current = states
    ended: list[States] = []
    for x in inputs:
        rows = x.shape[0]
        if rows < current[0].shape[0]:
            ended.append(tuple(state[rows:] for state in current))
            current = tuple(state[:rows] for state in current)
        current = step(x, current, *params)
        outputs.append(current[0])
    if ended:
        # The longest sequences, which are the first rows, end last.
        current = tuple(torch.cat(parts) for parts in zip(current, *reversed(ended), strict=True))
    return outputs, current


def layers(
    input: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    cell: str,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
) -> list[Tensor]:
    """A stack of layers: arguments and results of the operator fused_rnn::sequence, and dropout
    between the layers, drawn in torch's order."""
    step = STEPS[cell]
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    hidden, width = params[0].shape[0] // TRAITS[cell].gates, params[1].shape[1]
    lengths = None if batch_sizes is None else batch_sizes.tolist()
    if not states:
        batch = input.shape[1] if lengths is None else lengths[0]
        sizes = [width, hidden][: TRAITS[cell].states]
        states = [input.new_zeros((num_layers * directions, batch, size)) for size in sizes]

    finals: list[States] = []
    for layer in range(num_layers):
        inputs = input.unbind(0) if lengths is None else torch.split_with_sizes(input, lengths)
        sides = []
        for direction in range(directions):
            index = layer * directions + direction
            outputs, final = scan(
                step,
                inputs,
                tuple(state[index] for state in states),
                params[index * each : (index + 1) * each],
                reverse=direction == 1,
            )
            finals.append(final)
            sides.append(torch.stack(outputs) if lengths is None else torch.cat(outputs))
        input = sides[0] if directions == 1 else torch.cat(sides, -1)
        if dropout > 0 and layer + 1 < num_layers:
            input = F.dropout(input, dropout)
    return [input, *(torch.stack(parts) for parts in zip(*finals, strict=True))]


def cell(
    input: Tensor, states: Sequence[Tensor], params: Sequence[Tensor], cell: str
) -> list[Tensor]:
    """One step: arguments and results of the operator fused_rnn::cell."""
    if not states:
        zeros = input.new_zeros((*input.shape[:-1], params[1].shape[1]))
        states = [zeros] * TRAITS[cell].states
    return list(STEPS[cell](input, tuple(states), *params))


def lstm(
    input: Tensor,
    params: Sequence[Tensor],
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    batch_sizes: Tensor | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Layers of LSTM; see fused_rnn.functional.lstm."""
    output, hn, cn = layers(
        input,
        () if hx is None else hx,
        params,
        batch_sizes,
        "lstm",
        num_layers,
        bidirectional,
        dropout if training else 0.0,
    )
    return output, (hn, cn)


def gru(
    input: Tensor,
    params: Sequence[Tensor],
    hx: Tensor | None = None,
    *,
    batch_sizes: Tensor | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor, Tensor]:
    """Layers of GRU; see fused_rnn.functional.gru."""
    output, hn = layers(
        input,
        () if hx is None else (hx,),
        params,
        batch_sizes,
        "gru",
        num_layers,
        bidirectional,
        dropout if training else 0.0,
    )
    return output, hn


def rnn(
    input: Tensor,
    params: Sequence[Tensor],
    hx: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    batch_sizes: Tensor | None = None,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor, Tensor]:
    """Layers of RNN; see fused_rnn.functional.rnn."""
    output, hn = layers(
        input,
        () if hx is None else (hx,),
        params,
        batch_sizes,
        f"rnn_{nonlinearity}",
        num_layers,
        bidirectional,
        dropout if training else 0.0,
    )
    return output, hn
