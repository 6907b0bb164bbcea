"""Which operators an exported program holds, and what they are in ONNX."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ._ops import namespace
from ._traits import TRAITS

fused = False


@contextmanager
def fused_export() -> Iterator[None]:
    """Within it, programs that torch.export records hold this package's operators.

        with fused_rnn.fused_export():
            program = torch.export.export(model, args, dynamic_shapes=...)

    They are as fast as the modules, and their time and batch may be dynamic, through AOTInductor as
    well; but they load and run only where fused_rnn is imported. Otherwise torch.export records
    torch's own operators, which need torch alone. Calls that would not be fused are recorded with
    torch's operators in any case.
    """
    global fused
    before = fused
    fused = True
    try:
        yield
    finally:
        fused = before


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """This package's operators as ONNX's LSTM, GRU and RNN, for torch.onnx.export.

        with fused_rnn.fused_export():
            program = torch.onnx.export(
                model, args, dynamo=True, dynamic_shapes=...,
                custom_translation_table=fused_rnn.onnx_translations(),
            )

    Needs onnxscript, as that exporter does. NotImplementedError, while exporting, for a projection,
    which ONNX's LSTM has not, and for packed input.
    """
    return {namespace.sequence.default: _onnx_sequence, namespace.cell.default: _onnx_cell}


# Where ONNX's blocks of a weight are in torch's: i o f g for i f g o, z r n for r z n.
_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}


def _onnx_sequence(
    input: Any,
    states: Any,
    params: Any,
    batch_sizes: Any,
    cell: str,
    num_layers: int,
    bidirectional: bool,
) -> Any:
    from onnxscript import opset18 as op

    if batch_sizes is not None:
        raise NotImplementedError("packed input cannot be exported to ONNX by this exporter")
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    if each % 2:
        raise NotImplementedError("ONNX's LSTM has no projection")
    finals: list[list[Any]] = []
    for layer in range(num_layers):
        first = layer * directions
        chosen = [params[(first + d) * each : (first + d + 1) * each] for d in range(directions)]
        initial = [op.Slice(state, [first], [first + directions], [0]) for state in states]
        results = _onnx_layer(input, initial, chosen, cell)
        # [T, D, B, H] to [T, B, D * H]
        input = op.Reshape(op.Transpose(results[0], perm=[0, 2, 1, 3]), [0, 0, -1])
        finals.append(results[1:])
    if num_layers == 1:
        return [input, *finals[0]]
    return [input, *(op.Concat(*parts, axis=0) for parts in zip(*finals, strict=True))]


def _onnx_cell(input: Any, states: Any, params: Any, cell: str) -> Any:
    from onnxscript import opset18 as op

    initial = [op.Unsqueeze(state, [0]) for state in states]
    results = _onnx_layer(op.Unsqueeze(input, [0]), initial, [params], cell)
    return [op.Squeeze(final, [0]) for final in results[1:]]


def _onnx_layer(
    input: Any, states: Sequence[Any], params: Sequence[Sequence[Any]], cell: str
) -> list[Any]:
    """One node of ONNX.

    Args:
        input: [T, B, I].
        states: h0 and, of an LSTM, c0, [D, B, H].
        params: for each direction w_ih, w_hh(, b_ih, b_hh).

    Returns:
        output [T, D, B, H] and the last states.
    """
    from onnxscript import opset18 as op

    size = params[0][0].shape[0] // TRAITS[cell].gates

    def reordered(weight: Any) -> Any:
        if len(_ORDER[cell]) == 1:
            return weight
        blocks = [op.Slice(weight, [k * size], [(k + 1) * size], [0]) for k in _ORDER[cell]]
        return op.Concat(*blocks, axis=0)

    def of_both(weights: Sequence[Any]) -> Any:
        parts = [op.Unsqueeze(weight, [0]) for weight in weights]
        return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)

    biases = None
    if len(params[0]) == 4:
        biases = of_both([op.Concat(*map(reordered, p[2:]), axis=0) for p in params])
    arguments = (
        input,
        of_both([reordered(p[0]) for p in params]),
        of_both([reordered(p[1]) for p in params]),
        biases,
        None,
        *states,
    )
    settings: dict[str, Any] = {
        "hidden_size": size,
        "direction": "bidirectional" if len(params) == 2 else "forward",
    }
    if cell == "lstm":
        return list(op.LSTM(*arguments, **settings))
    if cell == "gru":
        return list(op.GRU(*arguments, **settings, linear_before_reset=1))
    activation = {"rnn_tanh": "Tanh", "rnn_relu": "Relu"}[cell]
    return list(op.RNN(*arguments, **settings, activations=[activation] * len(params)))
