"""What autograd offers around a backward pass: transforms, hooks, saved tensors, threads."""

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fused_rnn
from cases import KINDS, SMALL_CASES, Case, assert_close, flatten
from test_autograd import module_and_data, pair
from test_cells import make as make_cell

F64 = torch.float64
PACKED = [case for case in SMALL_CASES if case.lengths is not None]


def make(kind: str, package: Any, cell: bool) -> Any:
    if cell:
        return make_cell(kind, package, 4, 5, dtype=F64)
    return Case(kind, 3, 2, 4, 5, L=2).module(package, F64)


def input_for(cell: bool) -> Tensor:
    return torch.randn(*((2,) if cell else (3, 2)), 4, dtype=F64)


def both(kind: str, cell: bool) -> tuple[Any, Any]:
    ours, theirs = make(kind, fused_rnn, cell), make(kind, nn, cell)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def total_of(results: Any) -> Tensor:
    total = sum(r.square().sum() for r in flatten(results))
    assert isinstance(total, Tensor)
    return total


layers_and_cells = pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
kinds = pytest.mark.parametrize("kind", KINDS)


@layers_and_cells
@kinds
def test_ensemble(kind: str, cell: bool) -> None:
    """Several models in one call: their parameters stacked, the structure on the meta device."""
    models = [make(kind, fused_rnn, cell) for _ in range(3)]
    params, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    x = input_for(cell)

    def call(params: Any, buffers: Any, x: Tensor) -> Any:
        return torch.func.functional_call(base, (params, buffers), (x,))

    batched = torch.func.vmap(call, in_dims=(0, 0, None))(params, buffers, x)
    total_of(batched).backward()
    for index, model in enumerate(models):
        for many, one in zip(flatten(batched), flatten(model(x)), strict=True):
            assert_close("result", many[index], one, 1e-10)
        total_of(model(x)).backward()
        for name, parameter in model.named_parameters():
            assert_close(name, params[name].grad[index], parameter.grad, 1e-10)

    each = torch.stack([x, 2 * x, -x])
    batched = torch.func.vmap(call)(params, buffers, each)
    for index, model in enumerate(models):
        for many, one in zip(flatten(batched), flatten(model(each[index])), strict=True):
            assert_close("own input", many[index], one, 1e-10)


@pytest.mark.parametrize("case", PACKED, ids=str)
def test_vmap_of_packed_data(case: Case) -> None:
    call, x, states = module_and_data(case)
    xs = torch.stack([x, 2 * x, -x])

    def results(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(flatten(call(x, states)))

    for many, *ones in zip(torch.func.vmap(results)(xs), *map(results, xs), strict=True):
        assert_close("vmap", many, torch.stack(ones), 1e-12)


@kinds
def test_vmap_with_dropout(kind: str) -> None:
    """What is random is as vmap is told: the same for all, or different."""
    layer = Case(kind, 3, 2, 4, 5, L=2).module(fused_rnn, F64, dropout=0.5)
    x = torch.randn(3, 2, 4, dtype=F64)
    xs = torch.stack([x, x])
    same = torch.func.vmap(layer, randomness="same")(xs)[0]
    assert torch.equal(same[0], same[1])
    different = torch.func.vmap(layer, randomness="different")(xs)[0]
    assert not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="random"):
        torch.func.vmap(layer)(xs)


@layers_and_cells
@kinds
def test_derivatives_to_the_weights(kind: str, cell: bool) -> None:
    """jvp, jacrev and jacfwd with respect to parameters agree with one another and with autograd's
    of torch.nn."""
    ours, theirs = both(kind, cell)
    x = input_for(cell)
    params = {name: p.detach() for name, p in ours.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in params.items()}

    def function(params: dict[str, Tensor], module: Any = ours) -> Tensor:
        results = flatten(torch.func.functional_call(module, params, (x,)))
        return torch.cat([r.flatten() for r in results])

    value, tangent = torch.func.jvp(function, (params,), (tangents,))
    backward, forward = torch.func.jacrev(function)(params), torch.func.jacfwd(function)(params)
    names = list(params)
    expected = torch.autograd.functional.jacobian(
        lambda *leaves: function(dict(zip(names, leaves, strict=True)), theirs),
        tuple(params.values()),
    )
    for name, other in zip(names, expected, strict=True):
        assert_close(f"jacrev {name}", backward[name], other, 1e-10)
        assert_close(f"jacfwd {name}", forward[name], other, 1e-10)
    product = sum((backward[n] * tangents[n]).flatten(1).sum(1) for n in names)
    assert isinstance(product, Tensor)
    assert_close("jvp", tangent, product, 1e-10)
    assert_close("value", value, function(params, theirs), 1e-10)
    vjp = torch.func.vjp(function, params)[1](torch.ones_like(value))[0]
    for name in names:
        assert_close(f"vjp {name}", vjp[name], backward[name].sum(0), 1e-10)


@layers_and_cells
@kinds
def test_hessian(kind: str, cell: bool) -> None:
    """Forward over reverse, reverse over reverse, and autograd's own of torch.nn."""
    ours, theirs = both(kind, cell)
    x = input_for(cell)

    def loss(x: Tensor, module: Any = ours) -> Tensor:
        results = torch.cat([r.flatten() for r in flatten(module(x))])
        return results.pow(3).sum()

    expected = torch.autograd.functional.hessian(lambda x: loss(x, theirs), x)
    assert_close("torch.func", torch.func.hessian(loss)(x), expected, 1e-9)
    twice = torch.func.jacrev(torch.func.jacrev(loss))(x)
    assert_close("jacrev of jacrev", twice, expected, 1e-9)
    plain = torch.autograd.functional.hessian(loss, x)
    assert_close("autograd.functional", plain, expected, 1e-9)
    vector = torch.randn_like(x)
    product = (expected * vector).flatten(x.dim()).sum(-1)
    _, hvp = torch.autograd.functional.hvp(loss, x, vector)
    assert_close("hvp", hvp, product, 1e-9)
    _, forward = torch.func.jvp(torch.func.grad(loss), (x,), (vector,))
    assert_close("forward over reverse", forward, product, 1e-9)


def record(module: Any, log: list[Any]) -> None:
    """Registers every kind of hook that a module has; some change what passes."""
    module.register_forward_pre_hook(
        lambda module, args, kwargs: log.append(("pre", len(args))), with_kwargs=True
    )
    module.register_forward_hook(
        lambda module, args, result: log.append(("forward", [r.shape for r in flatten(result)]))
    )
    module.register_full_backward_pre_hook(
        lambda module, grads: log.append(("backward pre", len(grads)))
    )
    module.register_full_backward_hook(
        lambda module, to_input, grads: log.append(("backward", to_input[0].detach().clone()))
    )
    module.register_forward_pre_hook(lambda module, args: (args[0] * 0.5, *args[1:]))

    def doubled(value: Any) -> Any:
        return value * 2 if isinstance(value, Tensor) else tuple(map(doubled, value))

    module.register_forward_hook(lambda module, args, result: doubled(result))
    module.register_full_backward_hook(lambda module, to_input, grads: (to_input[0] * 3,))


@layers_and_cells
@kinds
def test_module_hooks(kind: str, cell: bool) -> None:
    x = input_for(cell)
    found = []
    for module in both(kind, cell):
        log: list[Any] = []
        record(module, log)
        leaf = x.clone().requires_grad_()
        total_of(module(leaf)).backward()
        found.append((log, [leaf.grad, *(p.grad for p in module.parameters())]))
    (ours, ours_grads), (theirs, theirs_grads) = found
    assert [name for name, _ in ours] == ["pre", "forward", "backward pre", "backward"]
    for (name, one), (_, other) in zip(ours, theirs, strict=True):
        if isinstance(one, Tensor):
            assert_close(name, one, other, 1e-10)
        else:
            assert one == other
    for one, other in zip(ours_grads, theirs_grads, strict=True):
        assert_close("grad", one, other, 1e-10)


@layers_and_cells
@kinds
def test_hooks_of_tensors_and_nodes(kind: str, cell: bool) -> None:
    """Hooks of leaves, of results, of graph nodes, after accumulation and of several gradients."""
    x = input_for(cell)
    found = []
    for module in both(kind, cell):
        log: dict[str, Tensor] = {}
        leaf = x.clone().requires_grad_()
        leaf.register_hook(lambda grad: grad * 2)
        results = flatten(module(leaf))
        # A hook of an LSTMCell's c' sees what comes from outside; on its way from h' to c' a
        # gradient stays inside the step, as it does in torch's cell on CUDA, not in the one for
        # the CPU.
        seen = results[:1] if cell else results
        for result in seen:
            result.retain_grad()
            result.register_hook(lambda grad: grad * 3)
        accumulated: list[str] = []
        for name, parameter in module.named_parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name, accumulated=accumulated: accumulated.append(name)
            )
        node = results[0].grad_fn
        assert node is not None
        passed: list[str] = []
        node.register_prehook(lambda grads, passed=passed: passed.append("before"))
        node.register_hook(lambda to_inputs, grads, passed=passed: passed.append("after"))
        torch.autograd.graph.register_multi_grad_hook(
            list(module.parameters()),
            lambda grads, log=log: log.update(all=torch.stack([g.sum() for g in grads])),
        )
        total_of(results).backward()
        assert sorted(accumulated) == sorted(n for n, _ in module.named_parameters())
        assert passed == ["before", "after"]
        grads = [leaf.grad, log["all"], *(r.grad for r in seen)]
        found.append(grads + [p.grad for p in module.parameters()])
    for index, (one, other) in enumerate(zip(*found, strict=True)):
        assert_close(str(index), one, other, 1e-10)


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@kinds
def test_checkpoint_of_cells_and_packed_input(kind: str, reentrant: bool) -> None:
    layer, cell = make(kind, fused_rnn, False), make(kind, fused_rnn, True)
    packed = pack_sequence([torch.randn(n, 4, dtype=F64) for n in (3, 2)])

    def steps(x: Tensor) -> Tensor:
        hx = None
        for _ in range(3):
            hx = cell(x, hx)
        return flatten(hx)[0]

    def packed_layer(data: Tensor) -> Tensor:
        output: Tensor = layer(packed._replace(data=data))[0].data
        return output

    for call, x, module in ((steps, input_for(True), cell), (packed_layer, packed.data, layer)):
        found = []
        for wrapped in (False, True):
            leaf = x.clone().requires_grad_()
            output = checkpoint(call, leaf, use_reentrant=reentrant) if wrapped else call(leaf)
            module.zero_grad()
            output.square().sum().backward()
            found.append([output, leaf.grad, *(p.grad for p in module.parameters())])
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)


@kinds
def test_checkpoint_sequential(kind: str) -> None:
    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Case(kind, 3, 2, 4, 4).module(fused_rnn, F64)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.layer(x)[0]
            return output

    model = nn.Sequential(*(Outputs() for _ in range(4)))
    x = input_for(False).requires_grad_()
    expected = torch.autograd.grad(total_of(model(x)), [x, *model.parameters()])
    output = checkpoint_sequential(model, 2, x, use_reentrant=False)
    grads = torch.autograd.grad(total_of(output), [x, *model.parameters()])
    for one, other in zip(grads, expected, strict=True):
        assert torch.equal(one, other)


def on_cpu() -> Any:
    return torch.autograd.graph.save_on_cpu()


def half_precision() -> Any:
    """Loses precision on purpose, so that it shows whether what was unpacked is what is used."""
    return torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.half() if t.is_floating_point() else t,
        lambda t: t.double() if t.is_floating_point() else t,
    )


@pytest.mark.parametrize("surroundings", [on_cpu, half_precision])
@layers_and_cells
@kinds
def test_saved_tensors_hooks(kind: str, cell: bool, surroundings: Callable[[], Any]) -> None:
    module = make(kind, fused_rnn, cell)
    x = input_for(cell).requires_grad_()
    inputs = [x, *module.parameters()]
    expected = torch.autograd.grad(total_of(module(x)), inputs)
    with surroundings():
        total = total_of(module(x))
    grads = torch.autograd.grad(total, inputs)
    exact = surroundings is on_cpu
    for one, other in zip(grads, expected, strict=True):
        assert_close("grad", one, other, 1e-15 if exact else 1e-2)
    assert exact == all(map(torch.equal, grads, expected))


@layers_and_cells
@kinds
def test_saved_tensors_may_be_refused_or_kept(kind: str, cell: bool) -> None:
    module = make(kind, fused_rnn, cell)
    x = input_for(cell)
    with (
        torch.autograd.graph.disable_saved_tensors_hooks("not here"),
        pytest.raises(RuntimeError, match="not here"),
        on_cpu(),
    ):
        module(x)
    expected = torch.autograd.grad(total_of(module(x)), list(module.parameters()))
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        changed = x.clone()
        total = total_of(module(changed))
        changed.zero_()
        grads = torch.autograd.grad(total, list(module.parameters()))
    for one, other in zip(grads, expected, strict=True):
        assert torch.equal(one, other)


@layers_and_cells
@kinds
def test_anomaly_mode_finds_the_nan(kind: str, cell: bool) -> None:
    """An error for a NaN among the gradients, and none without one."""
    module = make(kind, fused_rnn, cell)
    x = input_for(cell).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        total_of(module(x)).backward()
        with pytest.raises(RuntimeError, match="returned nan values"):
            (total_of(module(x)) * float("nan")).backward()
        # What enters here is infinite; the NaN, zero times infinity, arises within the module.
        result = flatten(module(torch.zeros_like(x).requires_grad_()))[0]
        node = "FusedCellBackward" if cell else "FusedSequenceBackward"
        with pytest.raises(RuntimeError, match=f"{node}.*returned nan values"):
            result.backward(torch.full_like(result, float("inf")))


@kinds
def test_a_long_chain_of_steps(kind: str) -> None:
    """The graph of 50 000 steps is released without a call nested for each, run backward or not."""
    module = make(kind, fused_rnn, True)
    x, hx = input_for(True), None
    for _ in range(50000):
        hx = module(x, hx)
    result = flatten(hx)[0].sum()
    result.backward()
    assert all(p.grad is not None for p in module.parameters())
    for _ in range(50000):
        hx = module(x, hx)
    del hx, result


def test_one_node_a_call() -> None:
    """Its name, and the edges of a call: input, states and parameters, none for what needs none."""
    cell, layer = fused_rnn.GRUCell(4, 7), fused_rnn.GRU(4, 7)
    cell.bias_hh.requires_grad_(False)
    x = torch.randn(3, 4, requires_grad=True)
    for result, name, edges in (
        (cell(x, torch.zeros(3, 7)), "FusedCellBackward", [1, 0, 1, 1, 1, 0]),
        (layer(x[None])[1], "FusedSequenceBackward", [1, 1, 1, 1, 1]),
    ):
        node = result.grad_fn
        assert node is not None
        assert node.name() == name
        assert [int(f is not None) for f, _ in node.next_functions] == edges


def run_in_two_threads(work: Callable[[int], Any]) -> list[Any]:
    start = threading.Barrier(2)

    def begin(index: int) -> Any:
        start.wait()
        return work(index)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(begin, range(2)))


@layers_and_cells
@kinds
def test_two_threads_run_backward(kind: str, cell: bool) -> None:
    """Each through a graph of its own on shared weights; and both through one graph."""
    module = make(kind, fused_rnn, cell)
    xs = [input_for(cell).requires_grad_() for _ in range(2)]
    params = list(module.parameters())

    def gradients(index: int) -> Sequence[Tensor]:
        return torch.autograd.grad(total_of(module(xs[index])), [xs[index], *params])

    expected = [gradients(index) for index in range(2)]
    found = run_in_two_threads(lambda index: [gradients(index) for _ in range(20)])
    for index, rounds in enumerate(found):
        for grads in rounds:
            for one, other in zip(grads, expected[index], strict=True):
                assert_close("grad", one, other, 1e-12)

    total = total_of(module(xs[0]))
    shared = run_in_two_threads(
        lambda _: [
            torch.autograd.grad(total, [xs[0], *params], retain_graph=True) for _ in range(5)
        ]
    )
    for rounds in shared:
        for grads in rounds:
            for one, other in zip(grads, expected[0], strict=True):
                assert_close("grad of a shared graph", one, other, 1e-12)


@layers_and_cells
@kinds
def test_two_threads_accumulate(kind: str, cell: bool) -> None:
    """backward() of both into the same .grad, which autograd guards."""
    module = make(kind, fused_rnn, cell)
    xs = [input_for(cell) for _ in range(2)]
    for x in xs:
        for _ in range(10):
            total_of(module(x)).backward()
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    run_in_two_threads(lambda index: [total_of(module(xs[index])).backward() for _ in range(10)])
    for parameter, other in zip(module.parameters(), expected, strict=True):
        assert_close("grad", parameter.grad, other, 1e-10)


@kinds
def test_gradients_through_time_by_pieces(kind: str) -> None:
    """Truncated backpropagation: a detached state cuts the graph, an attached one does not."""
    case = Case(kind, 6, 2, 4, 5)
    x = torch.randn(6, 2, 4, dtype=F64)
    found = []
    for layer in pair(case):
        grads = []
        for cut in (False, True):
            _, hx = layer(x[:3])
            if cut:
                hx = tuple(h.detach() for h in hx) if isinstance(hx, tuple) else hx.detach()
            output, _ = layer(x[3:], hx)
            grads += torch.autograd.grad(output.square().sum(), list(layer.parameters()))
        found.append(grads)
    for one, other in zip(*found, strict=True):
        assert_close("grad", one, other, 1e-10)


@kinds
def test_packed_results_carry_the_graph(kind: str) -> None:
    packed = pack_sequence([torch.randn(n, 4, dtype=F64) for n in (2, 3)], enforce_sorted=False)
    layer = make(kind, fused_rnn, False)
    output, _ = layer(packed)
    assert isinstance(output, PackedSequence)
    padded, lengths = nn.utils.rnn.pad_packed_sequence(output)
    assert lengths.tolist() == [2, 3]
    padded.square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
