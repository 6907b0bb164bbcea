"""ONNX export by both of torch's exporters, run in ONNX Runtime."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn
from tracing import CELLS, LAYERS, Model, X, assert_same

onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install '.[export]')")
runtime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is not installed (pip install '.[export]')"
)

# torch's exporters warn of themselves, of each other, and of what they do with torch's own layers.
pytestmark = pytest.mark.filterwarnings("default")


def run(model: Any, *inputs: Tensor) -> list[Tensor]:
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return [torch.from_numpy(result) for result in session.run(None, feed)]


def nodes_of(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


def script_export(model: nn.Module, inputs: Any, axes: Any) -> Any:
    buffer = io.BytesIO()
    names = [f"input{index}" for index in range(len(inputs))]
    torch.onnx.export(
        model.eval(),
        inputs,
        buffer,
        dynamo=False,
        opset_version=17,
        input_names=names,
        dynamic_axes=dict(zip(names, axes, strict=True)),
    )
    return onnx.load_from_string(buffer.getvalue())


@pytest.mark.parametrize("name", LAYERS)
def test_script_exporter(name: str) -> None:
    model = Model(name)
    exported = script_export(model, (X,), [{0: "T", 1: "B"}])
    assert nodes_of(exported).count(name) == 2
    onnx.checker.check_model(exported, full_check=True)
    for x in (X, torch.randn(9, 6, 4)):
        assert_same(run(exported, x), [model(x)])


@pytest.mark.parametrize("name", LAYERS)
def test_script_exporter_packed(name: str) -> None:
    class Packing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = getattr(fused_rnn, name)(4, 7, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            packed = pack_padded_sequence(x, lengths, batch_first=True)
            output, finals = self.layer(packed)
            return pad_packed_sequence(output, batch_first=True)[0], finals

    model = Packing()
    x, lengths = torch.randn(3, 5, 4), torch.tensor([5, 4, 2])
    exported = script_export(model, (x, lengths), [{0: "B", 1: "T"}, {0: "B"}])
    assert nodes_of(exported).count(name) == 1
    x, lengths = torch.randn(4, 6, 4), torch.tensor([6, 6, 3, 1])
    assert_same(run(exported, x, lengths), model(x, lengths))


@pytest.mark.parametrize("name", CELLS)
def test_script_exporter_cells(name: str) -> None:
    cell = getattr(fused_rnn, name)(4, 7)
    exported = script_export(cell, (X[0],), [{0: "B"}])
    x = torch.randn(5, 4)
    assert_same(run(exported, x), cell(x))


@pytest.mark.parametrize("name", LAYERS)
def test_program_exporter(name: str) -> None:
    """Which writes LSTM and GRU nodes, unrolls RNNs, and fixes the length, as for torch.nn's."""
    pytest.importorskip(
        "onnxscript", reason="onnxscript is not installed (pip install '.[export]')"
    )
    model = Model(name).eval()
    # Of the first GRU that a process exports, torch's exporter fixes the batch as well.
    sizes = None if name == "GRU" else ({1: Dim("B", min=2)},)
    program = torch.onnx.export(model, (X,), dynamo=True, dynamic_shapes=sizes, verbose=False)
    exported = program.model_proto
    assert nodes_of(exported).count(name) == (0 if name == "RNN" else 2)
    for x in (X, torch.randn(5, 3 if sizes is None else 6, 4)):
        assert_same(run(exported, x), [model(x)])
