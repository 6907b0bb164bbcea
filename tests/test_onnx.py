"""ONNX export by both of torch's exporters, run in ONNX Runtime."""

import io
from contextlib import nullcontext
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
pytestmark = pytest.mark.filterwarnings("ignore")


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


@pytest.fixture
def onnxscript() -> Any:
    return pytest.importorskip(
        "onnxscript", reason="onnxscript is not installed (pip install '.[export]')"
    )


def program_export(model: nn.Module, x: Tensor, sizes: Any, fused: bool) -> Any:
    table = fused_rnn.onnx_translations() if fused else None
    with fused_rnn.fused_export() if fused else nullcontext():
        program = torch.onnx.export(
            model.eval(),
            (x,),
            dynamo=True,
            dynamic_shapes=None if sizes is None else (sizes,),
            custom_translation_table=table,
            verbose=False,
        )
    onnx.checker.check_model(program.model_proto)
    return program.model_proto


T, B = Dim("T", min=2), Dim("B", min=2)


@pytest.mark.parametrize("name", LAYERS)
def test_program_exporter(name: str, onnxscript: Any) -> None:
    """Without the translations torch's exporter writes LSTM and GRU nodes, unrolls RNNs and fixes
    the length, as for torch.nn's layers; of a process's first GRU it fixes the batch as well."""
    model = Model(name)
    batch = 3 if name == "GRU" else 6
    exported = program_export(model, X, None if name == "GRU" else {1: B}, fused=False)
    assert nodes_of(exported).count(name) == (0 if name == "RNN" else 2)
    for x in (X, torch.randn(5, batch, 4)):
        assert_same(run(exported, x), [model(x)])


@pytest.mark.parametrize("name", LAYERS)
def test_program_exporter_with_translations(name: str, onnxscript: Any) -> None:
    model = Model(name)
    exported = program_export(model, X, {0: T, 1: B}, fused=True)
    assert nodes_of(exported).count(name) == 2
    for x in (X, torch.randn(9, 6, 4)):
        assert_same(run(exported, x), [model(x)])


class Several(nn.Module):
    """Layers of one direction, cells, no biases, given states, the other nonlinearity."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fused_rnn.LSTM(4, 7, bias=False, batch_first=True)
        self.gru = fused_rnn.GRU(7, 5, num_layers=2)
        self.rnn = fused_rnn.RNN(5, 3, nonlinearity="relu")
        self.cells = nn.ModuleList(getattr(fused_rnn, name)(4, 7) for name in CELLS)

    def forward(self, x: Tensor) -> Any:
        output, hx = self.lstm(x)
        again, _ = self.lstm(x, hx)
        unbatched, hn = self.gru(again[0])
        steps = [cell(x[0]) for cell in self.cells]
        return output, hx, again, self.rnn(unbatched, self.rnn(unbatched)[1]), hn, steps


def test_translations_of_the_rest(onnxscript: Any) -> None:
    model = Several()
    exported = program_export(model, X, {0: B, 1: T}, fused=True)
    for x in (X, torch.randn(6, 9, 4)):
        assert_same(run(exported, x), model(x))


def test_what_onnx_has_not(onnxscript: Any) -> None:
    with pytest.raises(Exception, match="projection"):
        program_export(fused_rnn.LSTM(4, 7, proj_size=3), X, None, fused=True)
