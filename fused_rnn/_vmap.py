"""Rules for the backward operators under batched derivatives.

torch.autograd.grad(is_grads_batched=True), and with it the vectorised Jacobians of
torch.autograd.functional, run the backward pass under a vmap of an older make than torch.func's,
and torch.func.vmap runs it where the function that it maps calls torch.autograd.grad. The
operators of that pass take and return lists, for which neither has a fallback of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._ops import namespace

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
    op: Callable[..., list[Tensor]] = getattr(namespace, name).default
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
