"""Layers and cells as functions of their weights.

Input is time first, [T, B, I], or packed data [N, I] with its batch_sizes. `params` are those of
torch.nn's layers, in the order of their registration: for every layer, for every direction w_ih
[G*H, in], w_hh [G*H, P or H], then with biases b_ih [G*H] and b_hh [G*H], then with a projection
w_hr [P, H], where G is 4 for LSTM, 3 for GRU and 1 for RNN.

A call takes a module's ways: the fused operators, plain PyTorch operators under torch.func
transforms and forward-mode derivatives, and torch's own functions for all the rest. Two things are
simpler: under autocast torch's functions take every call, and float16 and bfloat16 are fused at
every size.
Tensors that do not fit together raise RuntimeError.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import _VF, Tensor
from torch.compiler import is_compiling

from . import _ops, reference
from ._traits import TRAITS
from .dispatch import DIFFERENTIABLE, as_states, is_traced, obstacle, traced_obstacle

Layers = Callable[..., list[Tensor]]
"""The operator fused_rnn::sequence, or a function of its arguments and results."""


def layers_with_dropout(
    layers: Layers,
    input: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    cell: str,
    num_layers: int,
    bidirectional: bool,
    dropout: float,
) -> list[Tensor]:
    """One call of `layers` for each layer, with dropout between them.

    The random numbers are drawn as torch.nn draws them, so one seed gives one result in both.
    """
    directions = 2 if bidirectional else 1
    each = len(params) // num_layers
    finals: list[list[Tensor]] = []
    for layer in range(num_layers):
        if layer:
            input = F.dropout(input, dropout)
        input, *final = layers(
            input,
            [state[layer * directions : (layer + 1) * directions] for state in states],
            params[layer * each : (layer + 1) * each],
            batch_sizes,
            cell,
            1,
            bidirectional,
        )
        finals.append(final)
    return [input, *(torch.cat(parts) for parts in zip(*finals, strict=True))]


def _torch_layers(
    input: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    cell: str,
    num_layers: int,
    bidirectional: bool,
    dropout: float = 0.0,
) -> list[Tensor]:
    """torch's own implementation behind the arguments of the operator fused_rnn::sequence."""
    directions = 2 if bidirectional else 1
    if not states:
        batch = input.shape[1] if batch_sizes is None else int(batch_sizes[0])
        sizes = [params[1].shape[1], params[0].shape[0] // TRAITS[cell].gates]
        states = [
            input.new_zeros((num_layers * directions, batch, size))
            for size in sizes[: TRAITS[cell].states]
        ]
    bias = len(params) // (num_layers * directions) >= 4
    run = getattr(_VF, cell)
    hx: Any = tuple(states) if cell == "lstm" else states[0]
    settings = (list(params), bias, num_layers, dropout, dropout > 0, bidirectional)
    if batch_sizes is None:
        return list(run(input, hx, *settings, False))
    return list(run(input, batch_sizes, hx, *settings))


def _run(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    num_layers: int,
    bidirectional: bool,
    dropout: float,
) -> list[Tensor]:
    rank = 3 if batch_sizes is None else 2
    if is_compiling() and is_traced():
        reason, fused = traced_obstacle(input, (rank,)), _ops.sequence_op
    else:
        # The width of the input is the operator's to check: there is no module to ask.
        reason, fused = obstacle(input, (rank,), input.shape[-1], states, params), _ops.sequence
    if reason is None or reason in DIFFERENTIABLE:
        layers: Layers = fused if reason is None else reference.layers
        if dropout > 0 and num_layers > 1:
            return layers_with_dropout(
                layers, input, states, params, batch_sizes, cell, num_layers, bidirectional, dropout
            )
        return layers(input, states, params, batch_sizes, cell, num_layers, bidirectional)
    return _torch_layers(
        input, states, params, batch_sizes, cell, num_layers, bidirectional, dropout
    )


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
    """Layers of LSTM, with projection where params have w_hr (formulas: reference.lstm_cell).

    Args:
        input: [T, B, I], or packed data [N, I].
        params: see above; 2 to 5 tensors for each layer and direction.
        hx: h0 [L*D, B, P or H] and c0 [L*D, B, H]; None for zeros.
        batch_sizes: int64 [T] on the CPU of packed data, positive, descending, of sum N.
        num_layers, bidirectional: L, and whether D is 2.
        dropout: probability between layers, where training.

    Returns:
        output [T, B, D*(P or H)] or [N, D*(P or H)], and (hn, cn), shaped as hx.
    """
    output, hn, cn = _run(
        "lstm",
        input,
        as_states(hx, "lstm"),
        params,
        batch_sizes,
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
    """Layers of GRU (formulas: reference.gru_cell).

    Args:
        input, params, batch_sizes, num_layers, bidirectional, dropout, training: as for lstm.
        hx: [L*D, B, H]; None for zeros.

    Returns:
        output [T, B, D*H] or [N, D*H], and hn, shaped as hx.
    """
    output, hn = _run(
        "gru",
        input,
        () if hx is None else (hx,),
        params,
        batch_sizes,
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
    """Layers of RNN (formulas: reference.rnn_tanh_cell and rnn_relu_cell).

    Args:
        input, params, batch_sizes, num_layers, bidirectional, dropout, training: as for lstm.
        hx: [L*D, B, H]; None for zeros.
        nonlinearity: "tanh" or "relu".

    Returns:
        output [T, B, D*H] or [N, D*H], and hn, shaped as hx.

    Raises:
        ValueError: for another nonlinearity.
    """
    output, hn = _run(
        _rnn(nonlinearity),
        input,
        () if hx is None else (hx,),
        params,
        batch_sizes,
        num_layers,
        bidirectional,
        dropout if training else 0.0,
    )
    return output, hn


def _rnn(nonlinearity: str) -> str:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return f"rnn_{nonlinearity}"


def _run_cell(
    cell: str, input: Tensor, states: Sequence[Tensor], params: Sequence[Tensor | None]
) -> list[Tensor]:
    # Biases come in a pair; a lone one is for the operator to refuse.
    given: list[Tensor] = [param for param in params if param is not None]
    if is_compiling() and is_traced():
        reason, fused = traced_obstacle(input, (2,)), _ops.cell_op
    else:
        reason, fused = obstacle(input, (2,), input.shape[-1], states, given), _ops.cell
    if reason is None:
        return fused(input, states, given, cell)
    if reason in DIFFERENTIABLE:
        return reference.cell(input, states, given, cell)
    if not states:
        hidden = given[1].shape[1]
        states = [input.new_zeros((input.shape[0], hidden))] * TRAITS[cell].states
    run: Any = getattr(_VF, f"{cell}_cell")
    if cell == "lstm":
        return list(run(input, states, *params))
    return [run(input, states[0], *params)]


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM (formula: reference.lstm_cell).

    Args:
        input: [B, I].
        hx: h and c, [B, H] each; None for zeros.
        w_ih, w_hh, b_ih, b_hh: [4H, I], [4H, H], and both [4H] or both None.

    Returns:
        h' and c', [B, H].
    """
    h, c = _run_cell("lstm", input, as_states(hx, "lstm"), (w_ih, w_hh, b_ih, b_hh))
    return h, c


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One step of a GRU (formula: reference.gru_cell).

    Args:
        input: [B, I].
        hx: [B, H]; None for zeros.
        w_ih, w_hh, b_ih, b_hh: [3H, I], [3H, H], and both [3H] or both None.

    Returns:
        h', [B, H].
    """
    states = () if hx is None else (hx,)
    return _run_cell("gru", input, states, (w_ih, w_hh, b_ih, b_hh))[0]


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
) -> Tensor:
    """One step of an RNN (formulas: reference.rnn_tanh_cell and rnn_relu_cell).

    Args:
        input: [B, I].
        hx: [B, H]; None for zeros.
        w_ih, w_hh, b_ih, b_hh: [H, I], [H, H], and both [H] or both None.
        nonlinearity: "tanh" or "relu".

    Returns:
        h', [B, H].

    Raises:
        ValueError: for another nonlinearity.
    """
    states = () if hx is None else (hx,)
    return _run_cell(_rnn(nonlinearity), input, states, (w_ih, w_hh, b_ih, b_hh))[0]
