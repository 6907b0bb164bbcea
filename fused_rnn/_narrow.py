"""float16 and bfloat16: as the type of a module, and under torch.autocast on the CPU.

The kernels convert both to float32, compute, keep the states in float32 and round the results once.

Under autocast torch casts the weights and inputs of its products to the narrow type and lets type
promotion decide the rest, so that the types of its results depend on the cell and on hx. There the
whole call is computed in float32 from what was given, and the results get torch's types.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

NARROW = frozenset({torch.float16, torch.bfloat16})


def _multiplies_bfloat16() -> bool:
    """Whether the machine has instructions for products of bfloat16, which torch's oneDNN uses."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)


_MULTIPLIES_BFLOAT16 = _multiplies_bfloat16()


def torch_is_ahead(dtype: torch.dtype, weights: int, rows: int, batch: int, onednn: bool) -> bool:
    """Whether torch's implementation is faster than converting to float32 and back.

    That is so where the weights are large and used for a few rows only, and with instructions for
    bfloat16 where the products of a step are large. The limits were measured with modules of the
    narrow type (not under autocast, where the weights need no conversion), on one core with AVX-512
    and bfloat16 dot products, as times torch's speed: LSTMCell H = 128, 1.3 to 1.9,
    H = 512, 0.1 to 0.5; in bfloat16 LSTM H = 64, B = 16 is at 1.0 to 1.1, H = 128, B = 32 at 0.7,
    GRU H = 128, B = 32 at 1.9 to 2.4, H = 256, B = 64 at 0.9 to 1.0.

    Args:
        dtype: float16 or bfloat16.
        weights: number of weights of a layer in one direction.
        rows: of all steps.
        batch: rows of a step.
        onednn: for what torch computes with oneDNN, LSTMs on dense input.
    """
    products = dtype == torch.bfloat16 and _MULTIPLIES_BFLOAT16
    if weights > 1 << 18 and rows < (16 if products else 4):
        return True
    return products and weights * batch > (2 << 20 if onednn else 20 << 20)


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
    if onednn and fast == torch.bfloat16 and not projected:
        return [fast, fast]
    return [fast, kind] if projected else [kind, kind]


def are_castable(weights: Sequence[Any]) -> bool:
    """Whether autocast casts weights of these types, as far as this package follows it."""
    types = (torch.float32, torch.get_autocast_dtype("cpu"))
    return all(isinstance(weight, Tensor) and weight.dtype in types for weight in weights)


def in_float32(
    run: Callable[[Tensor, list[Tensor], list[Tensor]], Any],
    types: Sequence[torch.dtype],
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> Any:
    """run(input, states, weights) in float32 without autocast, its results with the given types;
    None where that gives None or the weights are of another type."""
    if not are_castable(weights):
        return None
    with torch.autocast("cpu", enabled=False):
        results = run(
            input.float(),
            [state.float() for state in states],
            [weight.float() for weight in weights],
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
