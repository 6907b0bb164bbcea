"""Differentiation: which gradients, how often, in which surroundings, and of which order."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import fused_rnn
from cases import (
    CELLS,
    KINDS,
    SMALL_CASES,
    Case,
    assert_close,
    flatten,
    module_call,
)
from test_cells import draw, hx_of
from test_cells import make as make_cell

F64 = torch.float64


def pair(case: Case, **more: Any) -> tuple[Any, Any]:
    """The fused layer and torch.nn's with the same weights."""
    ours, theirs = case.module(fused_rnn, F64, **more), case.module(torch.nn, F64, **more)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def functional_layer(case: Case) -> tuple[Callable[..., Any], list[Tensor]]:
    """The case's operator as a function of all tensors, and those tensors."""
    layer = case.module(fused_rnn, F64)
    x, states = case.tensors(F64)
    packed = case.pack(x)
    data, batch_sizes = (x, None) if case.lengths is None else (packed.data, packed.batch_sizes)
    inputs = [data, *states, *layer.parameters()]
    leaves = [t.detach().clone().requires_grad_() for t in inputs]

    def call(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        count = len(states)
        return tuple(
            torch.ops.fused_rnn.sequence(
                x,
                rest[:count],
                rest[count:],
                batch_sizes,
                case.cell,
                case.L,
                case.bidirectional,
            )
        )

    return call, leaves


# relu has no derivative at 0; numerical ones are taken where no unit is near.
@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_gradcheck(case: Case) -> None:
    call, leaves = functional_layer(case)
    assert gradcheck(call, leaves, nondet_tol=0.0)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_gradgradcheck(case: Case) -> None:
    call, leaves = functional_layer(case)
    # Of the whole Jacobian of a larger case a random projection is compared.
    assert gradgradcheck(call, leaves, fast_mode=case.L > 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_cell_gradcheck(kind: str, bias: bool) -> None:
    cell = make_cell(kind, fused_rnn, 3, 4, bias=bias, dtype=F64)
    x, states = draw(kind, 2, 3, 4, F64)
    leaves = [t.detach().requires_grad_() for t in (x, *states, *cell.parameters())]
    count = len(states)

    def call(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.ops.fused_rnn.cell(x, rest[:count], rest[count:], CELLS[kind]))

    assert gradcheck(call, leaves)
    assert gradgradcheck(call, leaves)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_any_subset_of_requires_grad(case: Case) -> None:
    """One tensor alone, all but one, and the combinations of input, states and first weights."""
    call, leaves = functional_layer(case)
    outputs = call(*leaves)
    torch.manual_seed(3)
    weights = [torch.randn_like(o) for o in outputs]
    full = torch.autograd.grad(outputs, leaves, weights)
    count = len(leaves)
    subsets = [{i} for i in range(count)] + [set(range(count)) - {i} for i in range(count)]
    head = range(min(4, count))
    subsets += [set(c) for n in range(2, 5) for c in itertools.combinations(head, n)]
    for subset in subsets:
        some = [t.detach().requires_grad_(i in subset) for i, t in enumerate(leaves)]
        outputs = call(*some)
        wanted = sorted(subset)
        grads = torch.autograd.grad(outputs, [some[i] for i in wanted], weights)
        for index, grad in zip(wanted, grads, strict=True):
            assert_close(f"grad {index} of {wanted}", grad, full[index], 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_requires_grad(kind: str) -> None:
    case = Case(kind, 4, 3, 5, 7)
    layer = case.module(fused_rnn, F64).requires_grad_(False)
    x, states = case.tensors(F64)
    assert not any(r.requires_grad for r in flatten(layer(x, case.hx_of(states))))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS)
def test_no_graph_without_grad_mode(kind: str, mode: Any) -> None:
    case = Case(kind, 4, 3, 5, 7, lengths=(4, 2, 1))
    layer = case.module(fused_rnn, F64)
    cell = make_cell(kind, fused_rnn, 5, 7, dtype=F64)
    x, states = case.tensors(F64)
    with mode():
        assert fused_rnn.explain(layer, case.pack(x), case.hx_of(states)).way == "fused"
        results = flatten(layer(case.pack(x), case.hx_of(states))) + flatten(cell(x[0]))
    for result in results:
        assert result.grad_fn is None
        assert not result.requires_grad
        assert result.is_inference() == (mode is torch.inference_mode)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
@pytest.mark.parametrize("used", [[0], [1], [-1], [0, -1]], ids=["output", "hn", "last", "ends"])
def test_only_some_results_used(case: Case, used: list[int]) -> None:
    ours, theirs = pair(case)
    x, states = case.tensors(F64)
    found = []
    for layer in (ours, theirs):
        leaves = [x.clone().requires_grad_(), *(s.clone().requires_grad_() for s in states)]
        results = flatten(module_call(case, layer)(leaves[0], leaves[1:]))
        total = sum(results[i].square().sum() for i in used)
        found.append(torch.autograd.grad(total, [*leaves, *layer.parameters()]))
    for one, other in zip(*found, strict=True):
        assert_close("grad", one, other, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_retain_graph_gives_the_same_again(kind: str) -> None:
    case = Case(kind, 9, 5, 3, 17, L=2, bidirectional=True)
    layer = case.module(fused_rnn, torch.float32)
    x, states = case.tensors(torch.float32)
    total = sum(r.square().sum() for r in flatten(layer(x, case.hx_of(states))))
    first = torch.autograd.grad(total, list(layer.parameters()), retain_graph=True)
    second = torch.autograd.grad(total, list(layer.parameters()))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(total, list(layer.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_results_may_be_changed(kind: str) -> None:
    """Adding to the results in place leaves the gradients of their sum as they were, as with all of
    torch.nn's layers but the float32 LSTM, which needs its output for the backward pass."""
    case = Case(kind, 4, 3, 5, 7, L=2)
    layer = case.module(fused_rnn, F64)
    x, states = case.tensors(F64)

    def gradients(change: float | None) -> tuple[Tensor, ...]:
        results = flatten(layer(x, case.hx_of(states)))
        if change is not None:
            for result in results:
                result.add_(change)
        return torch.autograd.grad(sum(result.sum() for result in results), layer.parameters())

    for expected, got in zip(gradients(None), gradients(1.0), strict=True):
        assert torch.equal(expected, got)


@pytest.mark.parametrize("kind", KINDS)
def test_changed_weight_is_noticed(kind: str) -> None:
    case = Case(kind, 4, 3, 5, 7)
    layer = case.module(fused_rnn, F64)
    x, states = case.tensors(F64)
    output = flatten(layer(x, case.hx_of(states)))[0]
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_may_be_changed_without_grad(kind: str) -> None:
    case = Case(kind, 4, 3, 5, 7)
    layer = case.module(fused_rnn, F64)
    x, states = case.tensors(F64)
    kept = [t.clone() for t in (x, *states)]
    with torch.no_grad():
        results = flatten(layer(x, case.hx_of(states)))
        before = [r.clone() for r in results]
        results[0].zero_()
    for one, other in zip(results[1:], before[1:], strict=True):
        assert torch.equal(one, other)
    for one, other in zip((x, *states), kept, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_tensor_hooks_and_accumulation(kind: str) -> None:
    case = Case(kind, 4, 3, 5, 7)
    ours, theirs = pair(case)
    x, states = case.tensors(F64)
    for layer in (ours, theirs):
        layer.weight_ih_l0.register_hook(lambda grad: grad * 2)
        for _ in range(2):
            output = flatten(layer(x, case.hx_of(states)))[0]
            output.register_hook(lambda grad: grad * 3)
            output.square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close("grad", one.grad, other.grad, 1e-10)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint(kind: str, reentrant: bool) -> None:
    case = Case(kind, 4, 3, 5, 7, L=2)
    layer = case.module(fused_rnn, F64, dropout=0.5)
    x, _ = case.tensors(F64)
    grads = []
    for wrapped in (False, True):
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        if wrapped:
            output = checkpoint(lambda x: layer(x)[0], leaf, use_reentrant=reentrant)
        else:
            output = layer(leaf)[0]
        layer.zero_grad()
        output.square().sum().backward()
        grads.append([leaf.grad, *(p.grad for p in layer.parameters())])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_tensors_hooks_and_anomaly_mode(kind: str) -> None:
    case = Case(kind, 4, 3, 5, 7)
    layer = case.module(fused_rnn, F64)
    x, states = case.tensors(F64)
    expected = torch.autograd.grad(
        flatten(layer(x, case.hx_of(states)))[0].sum(), list(layer.parameters())
    )
    packed = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = flatten(layer(x, case.hx_of(states)))[0]
    with torch.autograd.set_detect_anomaly(True):
        grads = torch.autograd.grad(output.sum(), list(layer.parameters()))
    assert packed
    for one, other in zip(grads, expected, strict=True):
        assert torch.equal(one, other)


def second_derivatives(call: Callable[..., Any], leaves: Sequence[Tensor]) -> list[Tensor]:
    results = flatten(call(leaves[0], leaves[1:]))
    first = torch.autograd.grad(
        sum(r.pow(3).sum() for r in results), list(leaves), create_graph=True
    )
    return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves))]


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_double_backward_is_torchs(case: Case) -> None:
    ours, theirs = pair(case)
    x, states = case.tensors(F64)
    found = []
    for layer in (ours, theirs):
        leaves = [x.clone().requires_grad_(), *(s.clone().requires_grad_() for s in states)]
        found.append(second_derivatives(module_call(case, layer), leaves))
    for one, other in zip(*found, strict=True):
        assert_close("derivative", one, other, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_penalty_reaches_the_weights(kind: str) -> None:
    case = Case(kind, 4, 3, 5, 7)
    ours, theirs = pair(case)
    x, states = case.tensors(F64)
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        output = flatten(layer(leaf, case.hx_of(states)))[0]
        (grad,) = torch.autograd.grad(output.pow(3).sum(), leaf, create_graph=True)
        grad.square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close("grad", one.grad, other.grad, 1e-9)


DENSE = [case for case in SMALL_CASES if case.lengths is None]


def module_and_data(case: Case) -> tuple[Callable[..., Any], Tensor, tuple[Tensor, ...]]:
    """The fused layer as a function of its data and states, packed where the case is."""
    layer = case.module(fused_rnn, F64)
    x, states = case.tensors(F64)
    if case.lengths is None:
        return lambda x, s: layer(x, case.hx_of(s)), x, states
    packed = case.pack(x)
    return lambda x, s: layer(packed._replace(data=x), case.hx_of(s)), packed.data, states


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_func_grad(case: Case) -> None:
    call, x, states = module_and_data(case)
    arguments = (x, *states)

    def total(x: Tensor, *states: Tensor) -> Tensor:
        return torch.cat([r.flatten() for r in flatten(call(x, states))]).square().sum()

    ours = torch.func.grad(total, tuple(range(len(arguments))))(*arguments)
    leaves = [t.clone().requires_grad_() for t in arguments]
    plain = torch.autograd.grad(total(*leaves), leaves)
    for one, other in zip(ours, plain, strict=True):
        assert_close("grad", one, other, 1e-10)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_func_jvp_and_jacobians(case: Case) -> None:
    call, x, states = module_and_data(case)
    tangent = torch.randn_like(x)

    def function(x: Tensor) -> Tensor:
        return torch.cat([r.flatten() for r in flatten(call(x, states))])

    _, forward = torch.func.jvp(function, (x,), (tangent,))
    jacobian = torch.func.jacrev(function)(x)
    assert_close("jvp", forward, (jacobian * tangent).flatten(1).sum(1), 1e-10)
    assert_close("jacfwd", torch.func.jacfwd(function)(x), jacobian, 1e-10)
    plain = torch.autograd.functional.jacobian(function, x)
    assert_close("jacrev", jacobian, plain, 1e-10)
    vectorized = torch.autograd.functional.jacobian(function, x, vectorize=True)
    assert_close("vectorized", vectorized, plain, 1e-10)


@pytest.mark.parametrize("case", DENSE, ids=str)
def test_func_vmap(case: Case) -> None:
    call, x, states = module_and_data(case)
    xs = torch.stack([x, 2 * x, -x])
    batched = flatten(torch.func.vmap(lambda x: call(x, states))(xs))
    for index, one in enumerate(xs):
        for result, other in zip(batched, flatten(call(one, states)), strict=True):
            assert_close("vmap", result[index], other, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_per_sample_gradients(kind: str) -> None:
    """The usual composition: vmap over grad over functional_call."""
    case = Case(kind, 4, 3, 5, 7)
    layer = case.module(fused_rnn, F64)
    params = {name: p.detach() for name, p in layer.named_parameters()}
    x, _ = case.tensors(F64)

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, params, (x,))[0].square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(params, x)
    layer(x)[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert_close(name, per_sample[name].sum(0), parameter.grad, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_cells_under_transforms(kind: str) -> None:
    cell = make_cell(kind, fused_rnn, 5, 7, dtype=F64)
    x, states = draw(kind, 3, 5, 7, F64)
    hx = hx_of(kind, states)
    jacobian = torch.func.jacrev(lambda x: torch.cat(flatten(cell(x, hx))))(x)
    plain = torch.autograd.functional.jacobian(lambda x: torch.cat(flatten(cell(x, hx))), x)
    assert_close("jacrev", jacobian, plain, 1e-10)
    single = [s[0] for s in states]
    batched = torch.func.vmap(lambda x: cell(x, hx_of(kind, single)))(x)
    for index, one in enumerate(x):
        for many, other in zip(
            flatten(batched), flatten(cell(one, hx_of(kind, single))), strict=True
        ):
            assert_close("vmap", many[index], other, 1e-12)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_forward_mode(case: Case) -> None:
    call, x, states = module_and_data(case)
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        results = flatten(call(forward_ad.make_dual(x, tangent), states))
        tangents = [forward_ad.unpack_dual(r).tangent for r in results]
    for index, one in enumerate(tangents):
        _, other = torch.autograd.functional.jvp(
            lambda x, index=index: flatten(call(x, states))[index], x, tangent
        )
        assert_close("tangent", one, other, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_batched_gradients(kind: str) -> None:
    """Both vmaps of torch over the backward pass, of a layer and of a cell."""
    case = Case(kind, 4, 3, 5, 7, L=2, bidirectional=True)
    layer = case.module(fused_rnn, F64)
    cell = make_cell(kind, fused_rnn, 5, 7, dtype=F64)
    x, states = case.tensors(F64)
    for call, leaf in ((lambda x: layer(x, case.hx_of(states)), x), (cell, x[0])):
        leaf = leaf.clone().requires_grad_()
        output = flatten(call(leaf))[0]
        vs = torch.randn(3, *output.shape, dtype=F64)
        inputs = [leaf, *(layer if leaf.dim() == 3 else cell).parameters()]
        legacy = torch.autograd.grad(output, inputs, vs, retain_graph=True, is_grads_batched=True)

        def vjp(v: Tensor, output: Tensor = output, inputs: Any = inputs) -> Any:
            return torch.autograd.grad(output, inputs, v, retain_graph=True)

        mapped = torch.func.vmap(vjp)(vs)
        one_by_one = [torch.stack(grads) for grads in zip(*map(vjp, vs), strict=True)]
        for a, b, c in zip(legacy, mapped, one_by_one, strict=True):
            assert_close("legacy vmap", a, c, 1e-12)
            assert_close("vmap", b, c, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_lazy_gradients(kind: str) -> None:
    """Gradients that are a negative view or a tensor of zeros without memory."""
    ours, theirs = pair(Case(kind, 3, 2, 4, 5))
    x = torch.randn(3, 2, 4, dtype=F64, requires_grad=True)
    ones = torch.ones(3, 2, 5, dtype=F64)
    zeros = torch._efficientzerotensor(3, 2, 5, dtype=F64)
    for gradient in (torch._neg_view(ones), zeros):
        expected, got = (
            torch.autograd.grad(layer(x)[0], [x, *layer.parameters()], gradient)
            for layer in (theirs, ours)
        )
        for index, (a, b) in enumerate(zip(expected, got, strict=True)):
            assert_close(f"gradient {index}", b, a, 1e-10)
