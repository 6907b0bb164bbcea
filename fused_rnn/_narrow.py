"""float16 and bfloat16: as the type of a module, and under torch.autocast on the CPU.

Where the machine multiplies bfloat16 fast, the products of the kernels read it; sums, gates, the
state c and, where a cell reads it beside the products, the state h are float32. Elsewhere, and for
float16, the kernels convert to float32, compute, and round the results once.

Under autocast torch casts the weights and inputs of its products to the narrow type and lets type
promotion decide the rest, so that the types of its results depend on the cell and on hx. There the
whole call is computed in one type from what was given, and the results get torch's types.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ._ops import extension

NARROW = frozenset({torch.float16, torch.bfloat16})


# Whether the machine has a matrix unit, which torch uses for bfloat16 and the kernels do not.
_HAS_TILES = bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
# Whether it has any instructions for products of bfloat16, which torch's oneDNN uses.
_MULTIPLIES_BFLOAT16 = _HAS_TILES or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())

# Whether torch's oneDNN runs LSTMs in bfloat16 on this machine, as it never does in float16.
_ONEDNN_HAS_BFLOAT16 = torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The type that the kernels' products read for tensors of a narrow type."""
    if dtype == torch.bfloat16 and extension.multiplies_bfloat16():
        return torch.bfloat16
    return torch.float32


def cast_to(types: Sequence[torch.dtype], weights: int, rows: int) -> torch.dtype:
    """What a call under autocast is computed in.

    float32, unless the result is rounded to bfloat16 anyway and its products are worth casting the
    weights (on one core, training an LSTM H = 128, B = 4: T = 10, 0.21 ms in bfloat16 and 0.24 in
    float32; H = 32, B = 1, T = 60, without a gradient: 24 us and 19).

    Args:
        types: of the results.
        weights: number of weights of a layer in one direction.
        rows: of all steps.
    """
    kind = computed_in(types[0]) if types[0] in NARROW else torch.float32
    return kind if weights >= 1 << 14 and rows >= 32 else torch.float32


def torch_is_ahead(
    dtype: torch.dtype,
    computed: torch.dtype,
    weights: int,
    rows: int,
    batch: int,
    converts: bool,
    onednn: bool,
) -> bool:
    """Whether torch's implementation is faster than the kernels.

    Where those read bfloat16, torch was not found to be. Where they convert to float32, torch is
    faster if the weights are large and used for a few rows only, and with instructions for bfloat16
    if the products of a step are large.

    The limits were measured with modules of the narrow type (not under autocast, where the weights
    need no conversion), as times torch's speed. On one core with AVX-512 and bfloat16 dot products:
    LSTMCell H = 128, 1.3 to 1.9, H = 512, 0.1 to 0.5; in bfloat16 LSTM H = 64, B = 16 is at 1.0 to
    1.1, H = 128, B = 32 at 0.7, GRU H = 128, B = 32 at 1.9 to 2.4, H = 256, B = 64 at 0.9 to 1.0.

    With a matrix unit the limit for LSTMs is half of that where no gradients are recorded, and
    there is none for training few rows; and torch makes less of many threads than the kernels do,
    so that limits grow with those. On 16 cores of a Sapphire Rapids, in inference, float32 against
    torch's bfloat16, what conversion takes left out, on one thread and 16: LSTM H = 64, B = 16 is
    at 1.0 on one, H = 256, B = 4 at 0.8, H = 512, B = 1 at 0.6, H = 128, B = 32 at 0.45 and 1.8, H
    = 256, B = 64 at 0.25 and 0.7; GRU H = 128, B = 32 at 2.0, H = 256, B = 64 at 0.8 and 4.2, H =
    512, B = 32 at 0.6 on one. Training was measured with dot products only, mostly slower than
    float32: on one thread LSTM H = 64, B = 16 is at 0.6, H = 128, B = 32 at 0.3, H = 256, B = 4 at
    1.0, H = 512, B = 1 at 2.6, B = 4 at 1.4; GRU H = 128, B = 32 at 1.3.

    Args:
        dtype: float16 or bfloat16.
        computed: what the kernels' products would read.
        weights: number of weights of a layer in one direction.
        rows: of all steps.
        batch: rows of a step.
        converts: whether the call converts the weights.
        onednn: for what torch computes with oneDNN, LSTMs on dense input.
    """
    if computed == torch.bfloat16:
        return False
    products = dtype == torch.bfloat16 and _MULTIPLIES_BFLOAT16
    if converts and weights > 1 << 18 and rows < (16 if products else 4):
        return True
    limit = 2 << 20 if onednn else 20 << 20
    if _HAS_TILES:
        limit *= torch.get_num_threads()
        if onednn and not torch.is_grad_enabled():
            limit //= 2
        elif onednn and batch <= 4:
            return False
    return products and weights * batch > limit


def result_types(
    input: Tensor,
    states: Sequence[Tensor],
    cell: str,
    *,
    projected: bool = False,
    onednn: bool = False,
) -> list[torch.dtype] | None:
    """Types of h and, for "lstm", c that torch's module gives under the autocast that is on.

    Args:
        input: of a layer, its packed data, or of a cell.
        states: none, [h] or [h, c].
        cell: the operators' name of the cell.
        projected: for an LSTM with proj_size.
        onednn: for what torch computes with oneDNN, LSTMs on dense input, when it can.

    Returns:
        None where something else than float32 and the fast type is at work.
    """
    fast = torch.get_autocast_dtype("cpu")
    common = (torch.float32, fast)
    if fast not in NARROW or input.dtype not in common:
        return None
    kinds = {state.dtype for state in states} or {input.dtype}
    if len(kinds) > 1:
        return None
    (kind,) = kinds
    if kind not in common:
        return None
    if cell.startswith("rnn"):
        return [fast]
    if cell == "gru":
        return [kind]
    if onednn and fast == torch.bfloat16 and _ONEDNN_HAS_BFLOAT16 and not projected:
        return [fast, fast]
    return [fast, kind] if projected else [kind, kind]


def are_castable(weights: Sequence[Any]) -> bool:
    """Whether autocast casts weights of these types, as far as this package follows it."""
    types = (torch.float32, torch.get_autocast_dtype("cpu"))
    return all(isinstance(weight, Tensor) and weight.dtype in types for weight in weights)


def in_one_type(
    run: Callable[[Tensor, list[Tensor], list[Tensor]], Any],
    types: Sequence[torch.dtype],
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> Any:
    """run(input, states, weights) without autocast, all of what `cast_to` says, its results with
    the given types; None where that gives None or the weights are of another type."""
    if not are_castable(weights):
        return None
    rows = input.numel() // max(input.shape[-1], 1) if input.dim() > 0 else 1
    kind = cast_to(types, sum(weight.numel() for weight in weights[:2]), rows)
    with torch.autocast("cpu", enabled=False):
        results = run(
            input.to(kind),
            [state.to(kind) for state in states],
            [weight.to(kind) for weight in weights],
        )
    return None if results is None else with_types(results, types)


def with_types(results: Any, types: Sequence[torch.dtype]) -> Any:
    """The results of a module with h and c of the given types.

    Args:
        results: of a layer, output and hn or (hn, cn); of a cell, h or (h, c).
        types: of h and, for an LSTM, of c.
    """
    if isinstance(results, Tensor):
        return results.to(types[0])
    if isinstance(results, PackedSequence):
        return results._replace(data=results.data.to(types[0]))
    first, second = results
    if isinstance(second, tuple):
        return with_types(first, types), with_types(second, types)
    # hn of a layer has the type of its output, c of a cell one of its own.
    return with_types(first, types), second.to(types[-1])
