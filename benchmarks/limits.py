"""How fast a row could be at most: arithmetic over rates measured on this machine.

A call takes at least

    overhead + max(products + activations, reading, chain)

    products     the row's multiply-adds at the peak of all threads, without those of zeros
    activations  its sigmoids and tanhs at the rate of SIMD ones in L1
    reading      every step but one from zeros needs all of w_hh, since it needs the whole h before
                 it; a call of one step needs w_ih as well. Each thread reads its part from where a
                 part of that size stays: L1, L2, L3 or memory
    chain        steps follow each other, in a stack of layers as well: each takes what a layer of
                 one unit takes
    overhead     a call, forward and backward, of a layer or cell of one unit and one row: Python,
                 torch's tensors and, in training, its engine

Rates are those of one thread, times the threads. Nothing else is counted: not packing, not
traffic of activations, not the barriers between threads.
"""

from __future__ import annotations

import functools
import time

import torch

import fused_rnn
from fused_rnn import _C
from shapes import GATES, Category, Row, Shape
from workloads import build, peak

# Sigmoids and tanhs of a unit in a step: LSTM i f g o and tanh(c), GRU r z n.
ACTIVATIONS = {"lstm": 5, "gru": 3, "rnn": 1}
# What the backward pass computes once more: tanh(c).
ACTIVATIONS_BACKWARD = {"lstm": 1, "gru": 0, "rnn": 0}
# Of a weight as the kernels read it: of 16 bits only where they multiply bfloat16.
BYTES = {"float32": 4, "float64": 8, "float16": 4, "bfloat16": 4}
CHAIN_STEPS = 1000


def limit_seconds(row: Row, threads: int) -> float:
    """A lower bound of the seconds of one run of a row."""
    shape, training = row.shape, row.category.training
    calls = 1 if row.category.kind == "layer" else shape.steps
    one_step = calls == shape.steps
    passes = 2 if training else 1
    directions = 2 if shape.bidirectional else 1
    compute_dtype = "float64" if shape.dtype == "float64" else "float32"

    products = (row.flops - row.flops_of_zeros) / (peak(shape.dtype) * 1e9)
    per_unit = ACTIVATIONS[row.cell] + (ACTIVATIONS_BACKWARD[row.cell] if training else 0)
    units = sum(shape.lengths) * shape.hidden * shape.layers * directions
    activations = units * per_unit / _activation_rate(compute_dtype)

    size = 2 if shape.dtype == "bfloat16" and _C.multiplies_bfloat16() else BYTES[shape.dtype]
    reading = 0.0
    for layer in range(shape.layers):
        recurrent = shape.proj or shape.hidden
        width = recurrent
        if one_step:
            width += shape.inputs if layer == 0 else directions * recurrent
        step = size * shape.hidden * (GATES[row.cell] * width + shape.proj)
        once = step * directions / threads / _read_rate(step // threads)
        reading += passes * (shape.steps if one_step else shape.steps - 1) * once

    chain = 0.0
    if not one_step:  # Of one step, the chain is in the overhead.
        # In one direction the layers can follow each other a step apart.
        links = shape.steps * shape.layers if directions > 1 else shape.steps + shape.layers - 1
        chain = links * _chain_seconds(row.cell, training, compute_dtype)
    overhead = calls * _overhead_seconds(row.category, row.cell, shape.dtype)
    return overhead + max((products + activations) / threads, reading, chain)


@functools.cache
def _activation_rate(dtype: str) -> float:
    """Sigmoids and tanhs in a second."""
    return _C.activation_rate(dtype, 0.2) * 1e9


def _read_rate(size: int) -> float:
    """Bytes in a second that one thread reads again and again from a block of this size, or down to
    half of it."""
    return _rate_of_block(1 << max(12, size.bit_length() - 1))


@functools.cache
def _rate_of_block(size: int) -> float:
    return _C.read_rate(size, 0.2) * 1e9


@functools.cache
def _chain_seconds(cell: str, training: bool, dtype: str) -> float:
    """Seconds of a step of one unit: of a long sequence, less those of half of it."""
    category = Category("chain", "layer", training, (cell,), ())
    long, short = (
        _seconds(Row(category, cell, Shape(1, steps, 1, "chain", dtype=dtype)))
        for steps in (2 * CHAIN_STEPS, CHAIN_STEPS)
    )
    return (long - short) / CHAIN_STEPS


@functools.cache
def _overhead_seconds(category: Category, cell: str, dtype: str) -> float:
    """Seconds of a call that computes next to nothing."""
    steps = 1 if category.kind == "layer" else 20
    shape = Shape(1, steps, 1, "overhead", dtype=dtype)
    return _seconds(Row(category, cell, shape)) / steps


def _seconds(row: Row) -> float:
    """The fastest of many runs, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = build(row, fused_rnn)
        best = float("inf")
        for _ in range(100):
            begin = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - begin)
        return best
    finally:
        torch.set_num_threads(threads)
