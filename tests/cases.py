"""The table of cases that the tests share, and the assertion that compares two implementations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn import reference

KINDS = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}
DTYPES = (torch.float32, torch.float64)

# Largest error allowed, relative to the largest magnitude in the tensor that is compared with.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}


@dataclass(frozen=True)
class Case:
    """A layer and a call of it. T, B, I, H, P, L as everywhere; packed input has lengths, which
    need not be sorted; B = 0 is input without a batch dimension."""

    kind: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    L: int = 1
    P: int = 0
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    hx: bool = True
    lengths: tuple[int, ...] | None = None

    @property
    def cell(self) -> str:
        return CELLS[self.kind]

    @property
    def D(self) -> int:
        return 2 if self.bidirectional else 1

    def __str__(self) -> str:
        parts = [self.kind, f"T{self.T}", f"B{self.B}", f"I{self.I}", f"H{self.H}"]
        parts += [f"L{self.L}"] if self.L > 1 else []
        parts += [f"P{self.P}"] if self.P else []
        parts += ["bi"] if self.bidirectional else []
        parts += [] if self.bias else ["nobias"]
        parts += ["bf"] if self.batch_first else []
        parts += [] if self.hx else ["nohx"]
        if self.lengths is not None:
            parts += ["sorted" if is_sorted(self.lengths) else "unsorted"]
        return "-".join(parts)

    def module(self, package: Any, dtype: torch.dtype, **more: Any) -> Any:
        """The layer of torch.nn or of fused_rnn."""
        settings: dict[str, Any] = {
            "num_layers": self.L,
            "bias": self.bias,
            "batch_first": self.batch_first,
            "bidirectional": self.bidirectional,
            "dtype": dtype,
        }
        if self.kind == "LSTM":
            settings["proj_size"] = self.P
        if self.kind.startswith("RNN"):
            settings["nonlinearity"] = self.kind[4:].lower()
        return getattr(package, self.kind[:4].rstrip("_"))(self.I, self.H, **settings, **more)

    def tensors(self, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The input, padded where packed, and the initial states."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        if self.B == 0:
            x = draw(self.T, self.I)
        elif self.batch_first:
            x = draw(self.B, self.T, self.I)
        else:
            x = draw(self.T, self.B, self.I)
        widths = [self.P or self.H, self.H][: 2 if self.kind == "LSTM" else 1]
        batch = [self.B] if self.B else []
        states = tuple(draw(self.L * self.D, *batch, width) for width in widths)
        return x, states if self.hx else ()

    def pack(self, x: Tensor) -> Any:
        """What the module is called with."""
        if self.lengths is None:
            return x
        return pack_padded_sequence(
            x, list(self.lengths), self.batch_first, enforce_sorted=is_sorted(self.lengths)
        )

    def hx_of(self, states: Sequence[Tensor]) -> Any:
        """The states as a module takes them."""
        if not states:
            return None
        return tuple(states) if self.kind == "LSTM" else states[0]


def is_sorted(lengths: Sequence[int]) -> bool:
    return sorted(lengths, reverse=True) == list(lengths)


def spread_lengths(T: int, B: int, ascending: bool) -> tuple[int, ...]:
    """B lengths between 1 and T, with equal ones among them and T too."""
    lengths = [max(1, T - (T * b) // max(B, 1)) for b in range(B)]
    return tuple(reversed(lengths)) if ascending else tuple(lengths)


# T, B, I, H
SHAPES = (
    (1, 1, 1, 1),
    (1, 3, 17, 31),
    (3, 17, 31, 33),
    (17, 3, 33, 17),
    (31, 1, 3, 65),
    (5, 33, 1, 3),
    (9, 2, 65, 32),
    (6, 65, 17, 1),
)


def structures(kind: str) -> Iterator[dict[str, Any]]:
    yield {}
    yield {"hx": False}
    yield {"bias": False}
    yield {"L": 2}
    yield {"bidirectional": True, "hx": False}
    yield {"L": 3, "bidirectional": True}
    yield {"L": 2, "bidirectional": True, "bias": False, "batch_first": True}
    if kind == "LSTM":
        yield {"P": 5}
        yield {"P": 16, "L": 2, "bidirectional": True}
        yield {"P": 3, "bias": False, "hx": False, "L": 2}


def layer_cases() -> Iterator[Case]:
    """Every shape, every structure at two shapes, and those packed, sorted and not."""
    for kind in KINDS:
        for T, B, I, H in SHAPES:  # noqa: E741
            yield Case(kind, T, B, I, H)
        for index, more in enumerate(structures(kind)):
            for T, B, I, H in ((7, 3, 5, 17), (4, 5, 33, 31)):  # noqa: E741
                base = replace(Case(kind, T, B, I, H), **more)
                yield base
                yield replace(base, lengths=spread_lengths(T, B, ascending=index % 2 == 0))
        yield Case(kind, 13, 41, 601, 130)  # large enough to copy the operands of gradients
        yield Case(kind, 5, 3, 4, 9, batch_first=True)
        yield Case(kind, 5, 3, 4, 9, batch_first=True, lengths=(2, 5, 3))
        yield Case(kind, 5, 0, 4, 9, L=2)
        yield Case(kind, 5, 0, 4, 9, bidirectional=True, hx=False, batch_first=True)
        yield Case(kind, 1, 1, 3, 5, lengths=(1,))
        yield Case(kind, 6, 4, 3, 5, lengths=(6, 6, 6, 6), bidirectional=True)
        yield Case(kind, 33, 5, 3, 17, lengths=(1, 33, 1, 31, 1), bidirectional=True)


LAYER_CASES = tuple(layer_cases())

# One of each structure, small enough for numerical derivatives.
SMALL_CASES = tuple(
    replace(Case(kind, 3, 2, 2, 3), **more)
    for kind in KINDS
    for more in (
        {},
        {"hx": False, "bias": False},
        {"bidirectional": True, "L": 2},
        {"lengths": (3, 1)},
        {"lengths": (2, 3), "bidirectional": True},
        *([{"P": 2}, {"P": 2, "bidirectional": True, "L": 2, "bias": False}] * (kind == "LSTM")),
    )
)


def assert_close(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """The one assertion on numbers: same shape and dtype, and the largest difference against the
    largest magnitude."""
    assert actual.shape == expected.shape, f"{name}: {actual.shape}, expected {expected.shape}"
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype}, expected {expected.dtype}"
    if expected.numel() == 0:
        return
    difference = (actual - expected).abs().max().item()
    scale = expected.abs().max().item()
    # Written so that a NaN fails.
    assert difference <= tolerance * scale, (
        f"{name}: differs by {difference:.3g}, largest magnitude {scale:.3g}, "
        f"relative {difference / scale if scale else float('inf'):.3g} > {tolerance:g}"
    )


def flatten(results: Any) -> list[Tensor]:
    """output, hn (, cn) of what a layer or a cell returns."""
    if isinstance(results, PackedSequence):
        return [results.data]
    if isinstance(results, Tensor):
        return [results]
    return [tensor for part in results for tensor in flatten(part)]


def names_of(count: int, params: Sequence[str], states: int) -> list[str]:
    results = ["output", "hn", "cn"][:count]
    return [*results, "grad input", *[f"grad hx[{i}]" for i in range(states)], *params]


def run_with_grads(
    call: Callable[[Tensor, Sequence[Tensor]], Any],
    x: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    seed: int = 1,
) -> list[Tensor]:
    """Results of a call, then gradients of one random linear function of all of them with respect
    to input, states and params."""
    leaves = [x.detach().clone().requires_grad_(), *(s.clone().requires_grad_() for s in states)]
    results = flatten(call(leaves[0], leaves[1:]))
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(r.shape, generator=generator, dtype=r.dtype) for r in results]
    total = sum((r * w).sum() for r, w in zip(results, weights, strict=True))
    assert isinstance(total, Tensor)
    grads = torch.autograd.grad(total, [*leaves, *params])
    return [*(r.detach() for r in results), *grads]


def reference_layer(case: Case, params: Sequence[Tensor]) -> Callable[..., Any]:
    """The case's layer by fused_rnn.reference, called like run_with_grads calls."""

    def call(x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        packed, unsorted_indices = None, None
        if case.lengths is not None:
            sequence = case.pack(x)
            x, packed = sequence.data, sequence.batch_sizes
            if sequence.sorted_indices is not None:
                states = [s.index_select(1, sequence.sorted_indices) for s in states]
                unsorted_indices = sequence.unsorted_indices
        elif case.B == 0:
            x, states = x.unsqueeze(1), [s.unsqueeze(1) for s in states]
        elif case.batch_first:
            x = x.transpose(0, 1)
        output, *finals = reference.layers(
            x, states, params, packed, case.cell, case.L, case.bidirectional
        )
        if unsorted_indices is not None:
            finals = [final.index_select(1, unsorted_indices) for final in finals]
        if case.lengths is None and case.B == 0:
            return [result.squeeze(1) for result in (output, *finals)]
        if case.lengths is None and case.batch_first:
            output = output.transpose(0, 1)
        return [output, *finals]

    return call


@contextmanager
def threads(count: int) -> Iterator[None]:
    """One for what is only compared with: on a busy machine torch's loops of small operators wait
    for their second thread at every step, a thousand times as long as they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def module_call(case: Case, module: Any) -> Callable[..., Any]:
    return lambda x, states: module(case.pack(x), case.hx_of(states))


def check_layer(case: Case, dtype: torch.dtype, against: str, seed: int = 0) -> None:
    """Compares results and every gradient of the fused layer with torch.nn's or the reference's."""
    torch.manual_seed(seed)
    ours = case.module(fused_rnn, dtype)
    x, states = case.tensors(dtype, seed)
    way = fused_rnn.explain(ours, case.pack(x), case.hx_of(states))
    assert way.way == "fused", way
    params = list(ours.parameters())
    actual = run_with_grads(module_call(case, ours), x, states, params)

    with threads(1):
        if against == "torch":
            layer = case.module(torch.nn, dtype)
            layer.load_state_dict(ours.state_dict())
            theirs, others = module_call(case, layer), list(layer.parameters())
        else:
            theirs, others = reference_layer(case, params), params
        expected = run_with_grads(theirs, x, states, others)

    count = len(actual) - len(params) - len(states) - 1
    names = names_of(count, [f"grad {n}" for n, _ in ours.named_parameters()], len(states))
    for name, one, other in zip(names, actual, expected, strict=True):
        assert_close(name, one, other, TOLERANCE[dtype])
