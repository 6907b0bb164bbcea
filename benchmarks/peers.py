"""Inference engines that compare.py times beside torch.nn and fused_rnn, where they are installed.

Each takes a torch.nn layer by way of an ONNX file and gives back a call that runs it.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shapes import Row
from workloads import Workload, build_module, make_input


def installed() -> dict[str, str]:
    """Names and versions of the peers that can be used."""
    found: dict[str, str] = {}
    for name in PEERS if importlib.util.find_spec("onnx") else ():
        if importlib.util.find_spec(name):
            found[name] = importlib.import_module(name).__version__.partition("-")[0]
    return found


def covers(row: Row) -> bool:
    """Whether the peers can run a row: inference on whole dense sequences, without projection."""
    shape = row.shape
    plain = not (shape.packed or shape.proj) and shape.dtype == "float32"
    return plain and row.category.kind == "layer" and not row.category.training


def build(name: str, row: Row, threads: int) -> Workload:
    """The forward pass of one row on one peer, with the weights that torch.nn's layer has."""
    data = make_input(row)
    module = build_module(row, nn)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        # The exporter warns that a fixed batch size is fixed, and that it is the older one of two;
        # only the older one writes LSTM, GRU and RNN nodes for these modules.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (data,), path, input_names=["input"], dynamo=False, opset_version=17
        )
        model = path.read_bytes()
    return PEERS[name](model, data, threads)


def _onnxruntime(model: bytes, data: Tensor, threads: int) -> Workload:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = {"input": data.numpy()}
    return lambda: (torch.from_numpy(session.run(None, inputs)[0]),)


def _openvino(model: bytes, data: Tensor, threads: int) -> Workload:
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        # The default is bfloat16 where the processor has instructions for it.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    request = compiled.create_infer_request()
    inputs = [data.numpy()]

    def run() -> tuple[Tensor, ...]:
        outputs = request.infer(inputs, share_inputs=True, share_outputs=True)
        return (torch.from_numpy(outputs[0]),)

    return run


PEERS: dict[str, Callable[[bytes, Tensor, int], Workload]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
