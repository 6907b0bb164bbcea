"""Shapes of the operators' results, for tracing: of sizes that may be symbols.

The operators' own checks are not repeated: a call that they refuse is refused when the traced
program runs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import SymInt, Tensor

from . import _ops
from ._traits import TRAITS


def _same_kind(input: Tensor, *others: Sequence[Tensor | None]) -> None:
    """All tensors must be where input is: on a mix of meta and CPU tensors the dispatcher comes
    here too, and an uninitialised result must not leave as if it were an answer."""
    for group in others:
        for tensor in group:
            if tensor is not None and (tensor.device, tensor.dtype) != (input.device, input.dtype):
                raise RuntimeError(
                    "all tensors must have one device and dtype, got "
                    f"{input.device} {input.dtype} and {tensor.device} {tensor.dtype}"
                )


def _reserve(input: Tensor, outputs: Any, saved: Any) -> Tensor:
    """What a forward pass keeps for the backward pass: so many outputs, of the type that the
    kernels read, and so many values of the type that they compute with."""
    if input.dtype == torch.bfloat16 and _ops.extension.multiplies_bfloat16():
        # Each value takes the place of two outputs.
        return input.new_empty(((outputs + 1) // 2 * 2 + 2 * saved,))
    narrow = input.dtype in (torch.float16, torch.bfloat16)
    kind = torch.float32 if narrow else input.dtype
    return input.new_empty((outputs + saved,), dtype=kind)


def _hidden_size(params: Sequence[Tensor], cell: str) -> int | SymInt:
    return params[0].shape[0] // TRAITS[cell].gates


def _sequence_shapes(
    input: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    cell: str,
    num_layers: int,
    bidirectional: bool,
) -> list[Tensor]:
    _same_kind(input, states, params)
    if batch_sizes is not None and batch_sizes.device.type != "cpu":
        raise RuntimeError(f"batch_sizes must be on the CPU, got {batch_sizes.device}")
    directions = 2 if bidirectional else 1
    width = params[1].shape[1]
    rows: tuple[Any, ...] = tuple(input.shape[:-1])
    batch: Any
    if batch_sizes is None:
        batch = input.shape[1]
    elif states:
        batch = states[0].shape[1]
    else:
        # batch_sizes[0], which tracing does not know.
        batch = torch.library.get_ctx().new_dynamic_size(min=1)
    results = [
        input.new_empty((*rows, directions * width)),
        input.new_empty((num_layers * directions, batch, width)),
    ]
    if TRAITS[cell].states == 2:
        hidden = _hidden_size(params, cell)
        results.append(input.new_empty((num_layers * directions, batch, hidden)))
    return results


def _sequence_train_shapes(
    input: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    cell: str,
    num_layers: int,
    bidirectional: bool,
) -> list[Tensor]:
    results = _sequence_shapes(input, states, params, batch_sizes, cell, num_layers, bidirectional)
    directions = 2 if bidirectional else 1
    rows: Any = 1
    for size in input.shape[:-1]:
        rows = rows * size
    saved = num_layers * directions * rows * TRAITS[cell].saved * _hidden_size(params, cell)
    outputs = num_layers * rows * directions * params[1].shape[1]
    results.append(_reserve(input, outputs, saved))
    return results


def _wanted_like(candidates: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    return [
        tensor.new_empty(tensor.shape)
        for tensor, want in zip(candidates, wanted, strict=True)
        if want
    ]


def _sequence_backward_shapes(
    grads: Sequence[Tensor | None],
    input: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    reserve: Tensor,
    cell: str,
    num_layers: int,
    bidirectional: bool,
    wanted: Sequence[bool],
) -> list[Tensor]:
    _same_kind(input, grads, states, params)
    return _wanted_like([input, *states, *params], wanted)


def _cell_shapes(
    input: Tensor, states: Sequence[Tensor], params: Sequence[Tensor], cell: str
) -> list[Tensor]:
    _same_kind(input, states, params)
    shape = (input.shape[0], params[1].shape[1])
    return [input.new_empty(shape) for _ in range(TRAITS[cell].states)]


def _cell_train_shapes(
    input: Tensor, states: Sequence[Tensor], params: Sequence[Tensor], cell: str
) -> list[Tensor]:
    results = _cell_shapes(input, states, params, cell)
    outputs = input.shape[0] * params[1].shape[1]
    results.append(_reserve(input, outputs, outputs * TRAITS[cell].saved))
    return results


def _cell_backward_shapes(
    grads: Sequence[Tensor | None],
    input: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    reserve: Tensor,
    cell: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    _same_kind(input, grads, states, params)
    return _wanted_like([input, *states, *params], wanted)


torch.library.register_fake("fused_rnn::sequence", _sequence_shapes)
torch.library.register_fake("fused_rnn::sequence_train", _sequence_train_shapes)
torch.library.register_fake("fused_rnn::sequence_backward", _sequence_backward_shapes)
torch.library.register_fake("fused_rnn::cell", _cell_shapes)
torch.library.register_fake("fused_rnn::cell_train", _cell_train_shapes)
torch.library.register_fake("fused_rnn::cell_backward", _cell_backward_shapes)
