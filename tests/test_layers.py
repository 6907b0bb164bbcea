"""Outputs, states and every gradient of the layers, against torch.nn and against the reference."""

from dataclasses import replace

import pytest
import torch

import fused_rnn
from cases import (
    DTYPES,
    KINDS,
    LAYER_CASES,
    TOLERANCE,
    Case,
    assert_close,
    check_layer,
    flatten,
    reference_layer,
    threads,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_layer_against_torch(case: Case, dtype: torch.dtype) -> None:
    check_layer(case, dtype, "torch")


@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_layer_against_reference(case: Case) -> None:
    check_layer(case, torch.float64, "reference")


@pytest.mark.parametrize("case", LAYER_CASES[::5], ids=str)
def test_reference_is_torch_to_rounding(case: Case) -> None:
    layer = case.module(torch.nn, torch.float64)
    x, states = case.tensors(torch.float64)
    actual = reference_layer(case, list(layer.parameters()))(x, states)
    expected = flatten(layer(case.pack(x), case.hx_of(states)))
    for one, other in zip(actual, expected, strict=True):
        assert_close("result", one, other, 1e-12)


def check_frozen(case: Case) -> None:
    layer = case.module(fused_rnn, torch.float32)
    x, states = case.tensors(torch.float32)
    with torch.no_grad():
        expected = flatten(layer(case.pack(x), case.hx_of(states)))
        frozen = flatten(fused_rnn.freeze(layer)(case.pack(x), case.hx_of(states)))
    for one, other in zip(frozen, expected, strict=True):
        assert_close("frozen", one, other, TOLERANCE[torch.float32])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("kind", "hidden"), [("LSTM", 1201), ("GRU", 1371)])
def test_weights_beyond_the_caches(kind: str, hidden: int, count: int) -> None:
    """More than 20 MB of them; tiles of 5, 4 and 3 rows, a block of units that is not full."""
    dense = Case(kind, 3, 14, 3, hidden)
    packed = replace(dense, lengths=(1, *[3] * 6, *[2] * 7))
    with threads(count):
        for case in (dense, packed):
            check_layer(case, torch.float32, "torch")
            check_frozen(case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("above", [False, True])
def test_input_products_of_all_steps_at_once_and_in_chunks(kind: str, above: bool) -> None:
    """Sums of the input products just below and above 2 MB."""
    gates = {"LSTM": 4, "GRU": 3}.get(kind, 1)
    steps = (2 << 20) // (4 * gates * 128) + above
    check_layer(Case(kind, steps, 1, 3, 128), torch.float32, "torch")


@pytest.mark.parametrize("steps", [3, 4, 5, 18, 23])
@pytest.mark.parametrize(
    ("kind", "count", "hidden"),
    [("LSTM", 1, 137), ("GRU", 1, 150), ("LSTM", 2, 230), ("GRU", 2, 259)],
)
def test_one_row_whose_steps_make_the_input_products_of_later_ones(
    kind: str, count: int, hidden: int, steps: int
) -> None:
    """Weights that L2 holds and L1 does not; steps in fours and not, units not in sixteens."""
    one = Case(kind, steps, 1, hidden - 37, hidden)
    both = replace(one, bidirectional=True, L=2)
    zeros = replace(one, hx=False, bias=False)
    with threads(count):
        for case in (one, both, zeros, replace(both, lengths=(steps,))):
            check_layer(case, torch.float32, "torch")
            check_frozen(case)
        check_layer(replace(one, I=60, H=100), torch.float64, "reference")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [128, 157, 288])
def test_input_products_of_few_steps_at_once(kind: str, inputs: int) -> None:
    """Of one sequence and of two, dense and packed, by threads; rows of weights that are whole
    cache lines and not."""
    for steps, batch in [(2, 1), (7, 1), (16, 1), (3, 2), (4, 2)]:
        case = Case(kind, steps, batch, inputs, 70)
        both = replace(case, bidirectional=True, L=2, hx=False)
        packed = replace(case, lengths=(steps, 1)[:batch])
        for count in (1, 2):
            with threads(count):
                for one in (case, both, packed):
                    check_layer(one, torch.float32, "torch")
                    check_frozen(one)
        check_layer(case, torch.float64, "reference")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("inputs", "hidden"), [(96, 64), (256, 160), (150, 83), (512, 256), (330, 300)]
)
def test_one_step_of_many_rows(kind: str, inputs: int, hidden: int) -> None:
    """As many as may read their weights in place, and one more."""
    for batch in (9, 14, 15, 18, 23, 29, 30, 31, 32, 33, 47, 63, 64, 65):
        case = Case(kind, 1, batch, inputs, hidden)
        zeros = replace(case, hx=False)
        for count in (1, 2):
            with threads(count):
                check_layer(case, torch.float32, "torch")
                check_layer(zeros, torch.float32, "torch")
        check_frozen(case)
    if kind == "LSTM":
        check_layer(Case(kind, 1, 34, 128, 128, P=64), torch.float32, "torch")


def test_such_a_row_with_weights_packed_in_passing() -> None:
    """More than 4 MB of them, of which each of seven threads has little enough."""
    with threads(7):
        check_layer(Case("LSTM", 42, 1, 400, 397), torch.float32, "torch")


@pytest.mark.parametrize("kind", KINDS)
def test_inference_gives_the_training_results(kind: str) -> None:
    case = Case(kind, 7, 5, 3, 33, L=2, bidirectional=True)
    layer = case.module(fused_rnn, torch.float64)
    x, states = case.tensors(torch.float64)
    training = flatten(layer(x, case.hx_of(states)))
    with torch.no_grad():
        inference = flatten(layer(x, case.hx_of(states)))
    for one, other in zip(inference, training, strict=True):
        assert one.grad_fn is None
        assert_close("result", one, other.detach(), 1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["strided", "expanded", "transposed", "offset"])
def test_inputs_that_are_views(kind: str, how: str) -> None:
    case = Case(kind, 6, 4, 5, 17)
    layer = case.module(fused_rnn, torch.float64)
    theirs = case.module(torch.nn, torch.float64)
    theirs.load_state_dict(layer.state_dict())
    x, h = {
        "strided": (torch.randn(12, 4, 10)[::2, :, ::2], torch.randn(1, 8, 17)[:, ::2]),
        "expanded": (torch.randn(1, 1, 5).expand(6, 4, 5), torch.randn(1, 1, 17).expand(1, 4, 17)),
        "transposed": (torch.randn(5, 4, 6).permute(2, 1, 0), torch.randn(1, 17, 4).mT),
        "offset": (torch.randn(7, 4, 5)[1:], torch.randn(3, 4, 17)[2:]),
    }[how]
    x, h = x.double(), h.double()
    hx = case.hx_of((h, h) if kind == "LSTM" else (h,))
    with torch.no_grad():
        for parameter in layer.parameters():
            # The same values in another layout.
            wide = torch.empty(*parameter.shape[:-1], 2 * parameter.shape[-1], dtype=x.dtype)
            wide[..., ::2] = parameter
            parameter.data = wide[..., ::2]
    assert fused_rnn.explain(layer, x, hx).way == "fused"
    for one, other in zip(flatten(layer(x, hx)), flatten(theirs(x, hx)), strict=True):
        assert_close("result", one, other, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["packed", "dense", "batch_first", "one step", "one element"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_that_repeat_one_row(kind: str, how: str, dtype: torch.dtype) -> None:
    """Those of a sum, of a mean, and of weighted sums over all steps and sequences."""
    T, B, H = {"one step": (1, 3, 7), "one element": (1, 1, 1)}.get(how, (5, 3, 7))
    lengths = (5, 2, 4) if how == "packed" else None
    case = Case(
        kind, T, B, 4, H, L=2, bidirectional=True, batch_first=how == "batch_first", lengths=lengths
    )
    layer = case.module(fused_rnn, dtype)
    x, states = case.tensors(dtype)
    leaves = [x.requires_grad_(), *(h.requires_grad_() for h in states), *layer.parameters()]
    output = flatten(layer(case.pack(x), case.hx_of(states)))[0]
    row = torch.randn(output.size(-1), dtype=dtype)
    for one in (
        torch.ones((), dtype=dtype).expand_as(output),
        torch.full((1,), 0.25, dtype=dtype).expand_as(output),
        row.expand_as(output),
        torch.randn(2 * row.numel(), dtype=dtype)[::2].expand_as(output),
        torch._neg_view(row).expand_as(output),
    ):
        ours = torch.autograd.grad(output, leaves, one, retain_graph=True)
        dense = torch.autograd.grad(output, leaves, one.contiguous(), retain_graph=True)
        for repeated, expected in zip(ours, dense, strict=True):
            assert torch.equal(repeated, expected)


# Input products of all steps at once (2 to 16 MB of them), and in chunks.
@pytest.mark.parametrize("steps", [160, 1200])
@pytest.mark.parametrize(
    ("kind", "I", "H"), [("LSTM", 2100, 257), ("GRU", 2800, 300), ("RNN_TANH", 2200, 1000)]
)
def test_many_steps_of_weights_from_memory(kind: str, I: int, H: int, steps: int) -> None:  # noqa: E741
    case = Case(kind, steps, 4, I, H)
    layer = case.module(fused_rnn, torch.float32)
    theirs = case.module(torch.nn, torch.float32)
    theirs.load_state_dict(layer.state_dict())
    x, states = case.tensors(torch.float32)
    results = []
    for module in (layer, theirs):
        leaves = [x.requires_grad_(), *module.parameters()]
        output = flatten(module(x, case.hx_of(states)))
        gradients = torch.autograd.grad(sum(r.square().sum() for r in output), leaves)
        results.append([*output, *gradients])
    for one, other in zip(*results, strict=True):
        assert_close("result or gradient", one, other, 2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_layout_of_results_is_torchs(kind: str, batch_first: bool) -> None:
    case = Case(kind, 5, 3, 4, 7, batch_first=batch_first, L=2, bidirectional=True)
    x, states = case.tensors(torch.float32)
    ours = flatten(case.module(fused_rnn, torch.float32)(x, case.hx_of(states)))
    theirs = flatten(case.module(torch.nn, torch.float32)(x, case.hx_of(states)))
    for one, other in zip(ours, theirs, strict=True):
        assert one.stride() == other.stride()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_draws_as_torch_does(kind: str, p: float, batch_first: bool, packed: bool) -> None:
    lengths = (5, 2, 4) if packed else None
    case = Case(kind, 5, 3, 4, 9, L=3, bidirectional=True, batch_first=batch_first, lengths=lengths)
    ours = case.module(fused_rnn, torch.float64, dropout=p)
    theirs = case.module(torch.nn, torch.float64, dropout=p)
    theirs.load_state_dict(ours.state_dict())
    x, states = case.tensors(torch.float64)
    results = []
    for layer in (ours, theirs):
        torch.manual_seed(11)
        output = flatten(layer(case.pack(x), case.hx_of(states)))
        sum(r.square().sum() for r in output).backward()
        results.append([*output, *(p.grad for p in layer.parameters()), torch.rand(1)])
    for one, other in zip(*results, strict=True):
        assert_close("dropout", one, other, 1e-10)
    for layer in (ours, theirs):
        layer.eval()
    for one, other in zip(
        flatten(ours(case.pack(x), case.hx_of(states))),
        flatten(theirs(case.pack(x), case.hx_of(states))),
        strict=True,
    ):
        assert_close("no dropout", one, other, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_extreme_values_go_where_torchs_go(kind: str, value: float) -> None:
    case = Case(kind, 5, 3, 4, 9)
    ours = case.module(fused_rnn, torch.float32)
    theirs = case.module(torch.nn, torch.float32)
    theirs.load_state_dict(ours.state_dict())
    x, states = case.tensors(torch.float32)
    x[2, 1, 0] = value
    for one, other in zip(
        flatten(ours(x, case.hx_of(states))), flatten(theirs(x, case.hx_of(states))), strict=True
    ):
        torch.testing.assert_close(one, other, equal_nan=True, rtol=2e-5, atol=2e-5)
        assert torch.equal(one.isnan(), other.isnan())
