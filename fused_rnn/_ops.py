"""Loads the compiled extension and gives its operators shapes for tracing and typed names.

The operators are registered in the namespace torch.ops.fused_rnn when the extension is loaded. What
each takes and returns is in the docstrings below.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import SymInt, Tensor

# Blocks of H values of a row that the forward pass saves for the backward pass, beside its output:
# the four gates and the cell state of an LSTM; r, z, n and the hidden part of n of a GRU; nothing
# for an RNN, whose derivative is a function of its output.
_SAVED_BLOCKS = {"lstm": 5, "gru": 4, "rnn_tanh": 0, "rnn_relu": 0}

_MISMATCH = (
    "fused_rnn was built against torch {built} and torch {running} is running; "
    "reinstall fused_rnn so that it is built for this torch."
)


def _release(version: str) -> list[str]:
    """The part of a version that decides whether compiled code fits: 2.13 of 2.13.0+cpu."""
    return version.partition("+")[0].split(".")[:2]


def _required_torch() -> str | None:
    """The version of torch that the installed package asks for, None where it is not installed."""
    try:
        requirements = importlib.metadata.requires("fused_rnn") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    pinned = [line.partition("==")[2] for line in requirements if line.startswith("torch==")]
    return pinned[0].strip() if pinned else None


def _load() -> ModuleType:
    """The extension module; an ImportError of one sentence where it cannot serve this torch."""
    running = torch.__version__
    try:
        from . import _C
    except ModuleNotFoundError as error:
        raise ImportError(
            "fused_rnn's compiled extension fused_rnn._C is missing; "
            "run `pip install .` in the project's directory."
        ) from error
    except ImportError as error:
        # Symbols of another torch are not found, so the module cannot say what it was built for.
        built = _required_torch()
        if built is None or _release(built) == _release(running):
            raise
        raise ImportError(_MISMATCH.format(built=built, running=running)) from error
    built = _C.config()["torch_built"]
    if _release(built) != _release(running):
        raise ImportError(_MISMATCH.format(built=built, running=running))
    module: ModuleType = _C
    return module


extension = _load()

_namespace = torch.ops.fused_rnn

# The overloads, for code that is traced, and the bare functions beneath them, which save a Python
# frame a call: eager code calls those.
SequenceOp = Callable[
    [Tensor, Sequence[Tensor], Sequence[Tensor], Tensor | None, str, int, bool], list[Tensor]
]
CellOp = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor], str], list[Tensor]]

sequence_op: SequenceOp = _namespace.sequence.default
cell_op: CellOp = _namespace.cell.default

sequence: SequenceOp = _namespace.sequence.default._op
"""sequence(input, states, params, batch_sizes, cell, num_layers, bidirectional)

All layers and directions of one call, differentiable (twice as well) by reverse mode.

Args:
    input: [T, B, I], or packed data [N, I] together with batch_sizes.
    states: nothing (zeros), [h0] or for "lstm" [h0, c0]; h0 [L*D, B, P or H], c0 [L*D, B, H].
    params: for every layer and direction w_ih [G*H, in], w_hh [G*H, P or H], then with biases
        b_ih [G*H], b_hh [G*H], then with a projection w_hr [P, H].
    batch_sizes: int64 [T] on the CPU, positive and never growing, of sum N; None for dense input.
    cell: "lstm", "gru", "rnn_tanh" or "rnn_relu".

Returns:
    output [T, B, D*(P or H)] or [N, D*(P or H)], hn, and for "lstm" cn.

All tensors are float32 or all float64, on the CPU. RuntimeError for anything else.
"""

cell: CellOp = _namespace.cell.default._op
"""cell(input, states, params, cell)

One step of one cell: input [B, I], states nothing or [h] or [h, c], each [B, H], params
[w_ih, w_hh] or [w_ih, w_hh, b_ih, b_hh]. Returns [h'] or for "lstm" [h', c'].
"""


# What follows computes shapes alone, of sizes that may be symbols. The operators' own checks are
# not repeated: a call that they refuse is refused when the traced program runs.


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


def _hidden_size(params: Sequence[Tensor], cell: str) -> int | SymInt:
    gates = {"lstm": 4, "gru": 3}.get(cell, 1)
    return params[0].shape[0] // gates


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
    if cell == "lstm":
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
    saved = num_layers * directions * rows * _SAVED_BLOCKS[cell] * _hidden_size(params, cell)
    outputs = num_layers * rows * directions * params[1].shape[1]
    results.append(input.new_empty((outputs + saved,)))
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
    _same_kind(input, grads, states, params, (reserve,))
    return _wanted_like([input, *states, *params], wanted)


def _cell_shapes(
    input: Tensor, states: Sequence[Tensor], params: Sequence[Tensor], cell: str
) -> list[Tensor]:
    _same_kind(input, states, params)
    shape = (input.shape[0], params[1].shape[1])
    return [input.new_empty(shape) for _ in range(2 if cell == "lstm" else 1)]


def _cell_train_shapes(
    input: Tensor, states: Sequence[Tensor], params: Sequence[Tensor], cell: str
) -> list[Tensor]:
    results = _cell_shapes(input, states, params, cell)
    blocks = 1 + _SAVED_BLOCKS[cell]
    results.append(input.new_empty((input.shape[0] * blocks * params[1].shape[1],)))
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
    _same_kind(input, grads, states, params, (reserve,))
    return _wanted_like([input, *states, *params], wanted)


torch.library.register_fake("fused_rnn::sequence", _sequence_shapes)
torch.library.register_fake("fused_rnn::sequence_train", _sequence_train_shapes)
torch.library.register_fake("fused_rnn::sequence_backward", _sequence_backward_shapes)
torch.library.register_fake("fused_rnn::cell", _cell_shapes)
torch.library.register_fake("fused_rnn::cell_train", _cell_train_shapes)
torch.library.register_fake("fused_rnn::cell_backward", _cell_backward_shapes)


# torch.autograd.grad(is_grads_batched=True), and with it the vectorised Jacobians of
# torch.autograd.functional, run the backward pass under a vmap of an older make than torch.func's,
# and torch.func.vmap runs it where the function that it maps calls torch.autograd.grad. The
# operators of that pass take and return lists, for which neither has a fallback of its own.

_library = torch.library.Library("fused_rnn", "IMPL")  # type: ignore[no-untyped-call]


def _call_for_each(
    op: Callable[..., list[Tensor]], batch_size: int, dims: Sequence[Any], args: Sequence[Any]
) -> list[Tensor]:
    """Calls op once for each index of a batch and stacks the results.

    Args:
        batch_size: number of indices.
        dims: for each argument where its batch dimension is, None where it has none; a list of
            those for a list of tensors.
        args: the arguments of op.
    """

    def select(value: Any, dim: Any, index: int) -> Any:
        if isinstance(dim, (list, tuple)):
            return [select(v, d, index) for v, d in zip(value, dim, strict=True)]
        return value if dim is None else value.select(dim, index)

    calls = [op(*select(args, dims, index)) for index in range(batch_size)]
    return [torch.stack(tensors) for tensors in zip(*calls, strict=True)]


def _register_batched(name: str) -> None:
    op: Callable[..., list[Tensor]] = getattr(_namespace, name).default
    is_batched = torch._C._functorch.is_legacy_batchedtensor

    def rule(info: Any, dims: Sequence[Any], *args: Any) -> tuple[list[Tensor], list[int]]:
        results = _call_for_each(op, info.batch_size, dims, args)
        return results, [0] * len(results)

    def legacy_rule(*args: Any) -> list[Tensor]:
        # The number of nested maps can be read only by going one deeper and back.
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        batch_size = 0

        def unwrap(value: Any) -> tuple[Any, Any]:
            nonlocal batch_size
            if isinstance(value, (list, tuple)):
                pairs = [unwrap(item) for item in value]
                return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            if not isinstance(value, Tensor) or not is_batched(value):
                return value, None
            # The size given here is that of a dimension to make where there is none.
            value = torch._remove_batch_dim(value, level, 1, 0)
            batch_size = value.shape[0]
            return value, 0

        plain, dims = unwrap(args)
        results = _call_for_each(op, batch_size, dims, plain)
        return [torch._add_batch_dim(result, 0, level) for result in results]

    torch.library.register_vmap(f"fused_rnn::{name}", rule)
    _library.impl(name, legacy_rule, "Batched")  # type: ignore[no-untyped-call]


_register_batched("sequence_backward")
_register_batched("cell_backward")
