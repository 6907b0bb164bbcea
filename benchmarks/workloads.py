"""What the benchmarks run: the same call for any library that has torch.nn's recurrent classes."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn import _C
from shapes import Row

LIBRARIES: dict[str, Any] = {"torch": nn, "fused": fused_rnn}
SHORT = os.environ.get("FUSED_RNN_BENCH") == "short"

# Runs the workload once; returns its output, followed by every gradient in training.
Workload = Callable[[], tuple[Tensor, ...]]


def build_module(row: Row, library: Any) -> nn.Module:
    """The layer or cell of one row, with the same weights from every library."""
    shape = row.shape
    options: dict[str, Any] = {"dtype": getattr(torch, shape.dtype)}
    name = row.cell.upper()
    if row.category.kind == "cell":
        name += "Cell"
    else:
        options.update(num_layers=shape.layers, bidirectional=shape.bidirectional)
        if shape.proj:
            options["proj_size"] = shape.proj
    torch.manual_seed(0)
    module: nn.Module = getattr(library, name)(shape.inputs, shape.hidden, **options)
    return module.train(row.category.training)


def make_input(row: Row) -> Tensor:
    """Random input [T, B, I] of one row: the same at every call."""
    shape = row.shape
    generator = torch.Generator().manual_seed(1)
    size = (shape.steps, shape.batch, shape.inputs)
    return torch.randn(size, generator=generator, dtype=getattr(torch, shape.dtype))


def make_upstream(row: Row, size: Sequence[int]) -> Tensor:
    """Random gradient of an output of that size: the same at every call."""
    upstream = torch.randn(size, generator=torch.Generator().manual_seed(2))
    return upstream.to(getattr(torch, row.shape.dtype))


def build(row: Row, library: Any, *, frozen: bool = False) -> Workload:
    """The call to be timed, with everything around it prepared, freezing the module included."""
    module = build_module(row, library)
    if frozen:
        fused_rnn.freeze(module)
    forward, leaves = prepare(row, module)

    if not row.category.training:

        def infer() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (forward(),)

        return infer

    wanted = [*leaves, *module.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    with torch.no_grad():
        upstream = make_upstream(row, forward().shape)

    def train() -> tuple[Tensor, ...]:
        output = forward()
        return output.detach(), *torch.autograd.grad(output, wanted, upstream)

    return train


def prepare(row: Row, module: nn.Module) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """The forward call of one row, and the inputs that its gradients reach."""
    return _layer(row, module) if row.category.kind == "layer" else _loop(row, module)


def _layer(row: Row, module: nn.Module) -> tuple[Callable[[], Tensor], list[Tensor]]:
    data = make_input(row)
    if not row.shape.packed:
        return (lambda: module(data)[0]), [data]
    packed = pack_padded_sequence(data, torch.tensor(row.shape.lengths))
    rows = packed.data.detach()
    sequence = PackedSequence(rows, packed.batch_sizes)
    return (lambda: module(sequence)[0].data), [rows]


def _loop(row: Row, module: nn.Module) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A Python loop over T steps that feeds each state to the next; returns the last output."""
    shape = row.shape
    stream = row.category.kind == "stream"
    data = make_input(row)
    steps = [step.clone() for step in (data.split(1) if stream else data)]
    size = (1, shape.batch, shape.hidden) if stream else (shape.batch, shape.hidden)
    zeros = data.new_zeros(size)
    start = (zeros, zeros) if row.cell == "lstm" else zeros

    def run() -> Tensor:
        state: Any = start
        for step in steps:
            state = module(step, state)[1] if stream else module(step, state)
        return state[0] if row.cell == "lstm" else state

    return run, steps


@functools.cache
def peak(dtype: str) -> float:
    """GF/s that one thread reaches in nothing but fused multiply-adds, measured once.

    Of types that the kernels compute as float32, the peak of that.
    """
    if dtype == "float16" or (dtype == "bfloat16" and not _C.multiplies_bfloat16()):
        return peak("float32")
    return _C.fma_rate(dtype, 0.3)


def rates(row: Row, seconds: float, threads: int) -> dict[str, float]:
    """Arithmetic rate of one run in GF/s, and its share of the measured peak of those threads."""
    gflops = row.flops / seconds / 1e9
    return {"gflops": gflops, "share_of_peak": gflops / (peak(row.shape.dtype) * threads)}


def machine() -> dict[str, str]:
    """What a timing depends on, besides the number of threads."""
    return {
        "processor": _processor(),
        "isa": _C.config()["isa_active"],
        "fused_rnn": fused_rnn.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except FileNotFoundError:
        pass
    return platform.processor() or platform.machine()
