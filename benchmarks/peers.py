"""Other implementations that compare.py times beside torch.nn and fused_rnn, where installed.

ONNX Runtime and OpenVINO take a torch.nn layer by way of an ONNX file, for inference. JAX takes its
weights, for inference and training (jax_layers.py).
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
import timeit
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shapes import Row
from workloads import Workload, build_module, make_input, make_upstream


@dataclass(frozen=True)
class Peer:
    """`build` gives the call to be timed, for a row and a number of threads."""

    build: Callable[[Row, int], Workload]
    trains: bool
    needs: tuple[str, ...]

    def covers(self, row: Row) -> bool:
        """Whether it takes part in a row: whole dense sequences in float32, without projection."""
        shape = row.shape
        plain = not (shape.packed or shape.proj) and shape.dtype == "float32"
        return plain and row.category.kind == "layer" and row.category.training <= self.trains


def installed() -> dict[str, str]:
    """Names and versions of the peers that can be used."""
    return {
        name: importlib.import_module(name).__version__.partition("-")[0]
        for name, peer in PEERS.items()
        if all(importlib.util.find_spec(module) for module in peer.needs)
    }


def _as_onnx(row: Row) -> bytes:
    """The torch.nn layer of a row as an ONNX file."""
    module = build_module(row, nn)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        # The exporter warns that a fixed batch size is fixed, and that it is the older one of two;
        # only the older one writes LSTM, GRU and RNN nodes for these modules.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (make_input(row),), path, input_names=["input"], dynamo=False, opset_version=17
        )
        return path.read_bytes()


def _onnxruntime(row: Row, threads: int) -> Workload:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        _as_onnx(row), options, providers=["CPUExecutionProvider"]
    )
    inputs = {"input": make_input(row).numpy()}
    return lambda: (torch.from_numpy(session.run(None, inputs)[0]),)


def _openvino(row: Row, threads: int) -> Workload:
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        # The default is bfloat16 where the processor has instructions for it.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(_as_onnx(row)), "CPU", settings)
    request = compiled.create_infer_request()
    inputs = [make_input(row).numpy()]

    def run() -> tuple[Tensor, ...]:
        outputs = request.infer(inputs, share_inputs=True, share_outputs=True)
        return (torch.from_numpy(outputs[0]),)

    return run


def _jax(row: Row, threads: int) -> Workload:
    """Its results stay JAX's arrays: those who go on with them need no tensors."""
    import jax_layers

    jax_layers.use_threads(threads)
    shape = row.shape
    stack = shape.layers > 1 or shape.bidirectional
    unrollings = jax_layers.unrollings(shape.steps, shape.hidden, row.category.training and stack)
    calls = [_jax_call(row, unroll) for unroll in unrollings]
    return min(calls, key=lambda call: min(timeit.repeat(call, number=1, repeat=20)))


def _jax_call(row: Row, unroll: int) -> Workload:
    import jax

    import jax_layers

    arrays = [jax.numpy.asarray(p.detach().numpy()) for p in build_module(row, nn).parameters()]
    weights = [jax_layers.Weights(*arrays[first : first + 4]) for first in range(0, len(arrays), 4)]
    data = jax.numpy.asarray(make_input(row).numpy())
    directions = 2 if row.shape.bidirectional else 1
    forward = functools.partial(jax_layers.layers, row.cell, directions, unroll)

    if not row.category.training:
        infer = jax.jit(forward)
        return lambda: (infer(data, weights).block_until_ready(),)

    size = (*data.shape[:2], directions * row.shape.hidden)
    upstream = jax.numpy.asarray(make_upstream(row, size).numpy())

    @jax.jit
    def step(data: Any, weights: Any, upstream: Any) -> Any:
        output, backward = jax.vjp(forward, data, weights)
        return output, *backward(upstream)

    return lambda: tuple(jax.tree.leaves(jax.block_until_ready(step(data, weights, upstream))))


PEERS = {
    "onnxruntime": Peer(_onnxruntime, trains=False, needs=("onnx", "onnxruntime")),
    "openvino": Peer(_openvino, trains=False, needs=("onnx", "openvino")),
    "jax": Peer(_jax, trains=True, needs=("jax",)),
}
