"""Loads the compiled extension and gives its operators typed names.

The operators are registered in the namespace torch.ops.fused_rnn when the extension is loaded. What
each takes and returns is in the docstrings below. Shapes for tracing are in
_fake.py, rules for batched derivatives in _vmap.py.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

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

namespace = torch.ops.fused_rnn

# The overloads, for code that is traced, and the bare functions beneath them, which save a Python
# frame a call: eager code calls those.
SequenceOp = Callable[
    [Tensor, Sequence[Tensor], Sequence[Tensor], Tensor | None, str, int, bool], list[Tensor]
]
CellOp = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor], str], list[Tensor]]

sequence_op: SequenceOp = namespace.sequence.default
cell_op: CellOp = namespace.cell.default

sequence: SequenceOp = namespace.sequence.default._op
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

All tensors have one type, float16, bfloat16, float32 or float64, and are on the CPU. RuntimeError
for anything else. float16 is computed with as float32, and so is bfloat16 where the machine does
not multiply it, or does so slowly.
"""

cell: CellOp = namespace.cell.default._op
"""cell(input, states, params, cell)

One step of one cell: input [B, I], states nothing or [h] or [h, c], each [B, H], params
[w_ih, w_hh] or [w_ih, w_hh, b_ih, b_hh]. Returns [h'] or for "lstm" [h', c'].
"""

direct_layer: Callable[[torch.nn.Module, object, object], Any] = extension.layer
"""direct_layer(module, input, hx): the forward pass of a layer on plain dense input, without the
dispatcher; None where anything but the CPU and autograd takes an interest in the call (modes,
transforms, autocast, subclasses, profilers, tracers), for packed input, for dropout, and where the
operator refuses."""

direct_cell: Callable[[torch.nn.Module, object, object, str], Any] = extension.cell
"""direct_cell(module, input, hx, cell): the same for a cell; `cell` is its name as above."""
