"""LSTM, GRU and RNN layers as users of JAX write them, for peers.py to time.

`lax.scan` over the steps, with the input products of all steps ahead of it as one product, compiled
by `jax.jit`. Weights are arguments, in torch.nn's layout: nothing is known of them when a call is
compiled. Recurrent weights transposed ahead, or input products within the scan, were slower.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.backend
import jax.numpy as jnp
from jax import Array, lax
from jax.nn import sigmoid

# Runs on the CPU whatever JAX has, on the thread that makes a call, as the other contestants do.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_cpu_enable_async_dispatch", False)


def unrollings(steps: int, hidden: int, trains_stack: bool) -> tuple[int, ...]:
    """How many steps of a scan may be compiled as one: which is fastest depends on the shape.

    Eight are faster than one in some small layers, 2 and 4 hardly ever. All of them halve the time
    of others (GRU I1 H32 T60 B1 37 us and 18, H64 T50 B16 0.86 ms and 0.32). They are tried where
    compiling them takes seconds. Those of a stack in training take up to a minute, and are slower
    than a scan in every shape tried.
    """
    return (1, 8, steps) if steps <= 64 and hidden <= 64 and not trains_stack else (1, 8)


class Weights(NamedTuple):
    """Of one layer in one direction."""

    w_ih: Array  # [G H, I]
    w_hh: Array  # [G H, H]
    b_ih: Array  # [G H]
    b_hh: Array  # [G H]


def use_threads(count: int) -> None:
    """Gives JAX a pool of `count` threads. Where that is a new number, its arrays are lost."""
    if os.environ.get("PJRT_NPROC") != str(count):
        # What XLA asks when it makes a pool, by its newer and its older name.
        os.environ["PJRT_NPROC"] = os.environ["NPROC"] = str(count)
        jax.extend.backend.clear_backends()


def layers(cell: str, directions: int, unroll: int, x: Array, weights: list[Weights]) -> Array:
    """The output [T, B, D H] of a stack for x [T, B, I], from states of zeros.

    `weights` come in torch.nn's order: each layer's forward direction, then its backward one.
    """
    for first in range(0, len(weights), directions):
        outputs = []
        for direction in range(directions):
            w = weights[first + direction]
            from_x = jnp.einsum("tbi,gi->tbg", x, w.w_ih) + w.b_ih
            start, step = STEPS[cell](w, jnp.zeros((x.shape[1], w.w_hh.shape[1]), x.dtype))
            outputs.append(lax.scan(step, start, from_x, reverse=direction == 1, unroll=unroll)[1])
        x = jnp.concatenate(outputs, axis=-1)
    return x


# The state that a cell starts from, and what makes of a state and the step's input products the
# next state and the output.
Step = tuple[Any, Callable[[Any, Array], tuple[Any, Array]]]


def _from_h(h: Array, w: Weights) -> Array:
    return jnp.einsum("bh,gh->bg", h, w.w_hh) + w.b_hh


def _lstm(w: Weights, zeros: Array) -> Step:
    def step(state: tuple[Array, Array], from_x: Array) -> tuple[tuple[Array, Array], Array]:
        h, c = state
        i, f, g, o = jnp.split(from_x + _from_h(h, w), 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    return (zeros, zeros), step


def _gru(w: Weights, zeros: Array) -> Step:
    def step(h: Array, from_x: Array) -> tuple[Array, Array]:
        r_x, z_x, n_x = jnp.split(from_x, 3, axis=-1)
        r_h, z_h, n_h = jnp.split(_from_h(h, w), 3, axis=-1)
        r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
        n = jnp.tanh(n_x + r * n_h)
        h = (1 - z) * n + z * h
        return h, h

    return zeros, step


def _rnn(w: Weights, zeros: Array) -> Step:
    def step(h: Array, from_x: Array) -> tuple[Array, Array]:
        h = jnp.tanh(from_x + _from_h(h, w))
        return h, h

    return zeros, step


STEPS = {"lstm": _lstm, "gru": _gru, "rnn": _rnn}
