"""Operations of a call, for torch.utils.flop_counter.FlopCounterMode.

As its own formulas do, these count two for each product of a matrix and nothing else.
"""

from collections.abc import Sequence
from typing import Any

from torch.utils.flop_counter import register_flop_formula

from ._ops import namespace

Shape = Sequence[int]


def _products(shapes: Sequence[Shape], chosen: Sequence[bool] | None = None) -> int:
    """Values in the matrices among the parameters, in those that are chosen."""
    if chosen is None:
        chosen = [True] * len(shapes)
    return sum(s[0] * s[1] for s, c in zip(shapes, chosen, strict=True) if c and len(s) == 2)


def _rows(input: Shape) -> int:
    rows = 1
    for size in input[:-1]:
        rows *= size
    return rows


def _forward(input: Shape, states: Any, params: Sequence[Shape], *settings: Any, **_: Any) -> int:
    return 2 * _rows(input) * _products(params)


def _backward(
    input: Shape, states: Any, params: Sequence[Shape], groups: int, directions: int, wanted: Any
) -> int:
    """Gradients of the wanted weights, of every h, and of every layer's input except the first's
    where it is not wanted."""
    gradients = _products(params, wanted[1 + len(states) :]) + _products(params)
    if not wanted[0]:
        first = params[:: len(params) // groups]
        gradients -= _products(first[:directions])
    return 2 * _rows(input) * gradients


def _sequence_backward(
    grads: Any,
    input: Shape,
    states: Any,
    params: Sequence[Shape],
    batch_sizes: Any,
    reserve: Any,
    cell: str,
    num_layers: int,
    bidirectional: bool,
    wanted: Any,
    **_: Any,
) -> int:
    directions = 2 if bidirectional else 1
    return _backward(input, states, params, num_layers * directions, directions, wanted)


def _cell_backward(
    grads: Any,
    input: Shape,
    states: Any,
    params: Sequence[Shape],
    reserve: Any,
    cell: str,
    wanted: Any,
    **_: Any,
) -> int:
    return _backward(input, states, params, 1, 1, wanted)


for _names, _formula in (
    (("sequence", "sequence_train", "cell", "cell_train"), _forward),
    (("sequence_backward",), _sequence_backward),
    (("cell_backward",), _cell_backward),
):
    _register: Any = register_flop_formula([getattr(namespace, name) for name in _names])
    _register(_formula)
