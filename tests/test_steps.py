"""Loops of single steps, which share a node of the graph for their weights' gradients: the same
gradients as torch.nn's, however the graph is run."""

import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import fused_rnn
from cases import KINDS, TOLERANCE, assert_close
from fused_rnn import _C
from test_numbers import resident

F64 = torch.float64
NODE = "FusedWeightsBackward"


@dataclass(frozen=True)
class Loop:
    """A cell, or a layer that is called a step at a time, and the batch sizes of its steps."""

    kind: str
    batches: tuple[int, ...]
    I: int  # noqa: E741
    H: int
    layers: int = 0  # 0: a cell
    bidirectional: bool = False
    bias: bool = True

    def modules(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """Of fused_rnn and of torch.nn, with the same weights."""
        name = self.kind[:4].rstrip("_")
        options: dict[str, Any] = {"bias": self.bias, "dtype": dtype}
        if name == "RNN":
            options["nonlinearity"] = self.kind[4:].lower()
        if self.layers == 0:
            name += "Cell"
        else:
            options |= {"num_layers": self.layers, "bidirectional": self.bidirectional}
        torch.manual_seed(0)
        ours, theirs = (
            getattr(package, name)(self.I, self.H, **options) for package in (fused_rnn, torch.nn)
        )
        theirs.load_state_dict(ours.state_dict())
        return ours, theirs

    def inputs(self, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(1)
        steps = [torch.randn(B, self.I, dtype=dtype) for B in self.batches]
        return [x.unsqueeze(0) if self.layers else x for x in steps]

    def run(
        self,
        call: Callable[..., Any],
        inputs: list[Tensor],
        between: Callable[[Tensor], Tensor] = lambda state: state,
    ) -> Tensor:
        """A loss that every step has part in; rows that a step lacks end before it."""
        state: Any = None
        total = inputs[0].new_zeros(())
        for t, x in enumerate(inputs):
            if state is not None and t > 0 and self.batches[t] < self.batches[t - 1]:
                state = self.each(state, lambda s, B=self.batches[t]: s[..., :B, :])
            state = call(x, state)
            if self.layers:
                total = total + (state[0].cos() * (t + 1)).sum()
                state = state[1]
            h = state[0] if isinstance(state, tuple) else state
            total = total + (h.sin() * (t + 1)).sum()
            state = self.each(state, between)
        return total

    @staticmethod
    def each(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
        return tuple(map(change, state)) if isinstance(state, tuple) else change(state)


def gradients(loss: Tensor, wanted: list[Tensor], **options: Any) -> list[Tensor]:
    return list(torch.autograd.grad(loss, wanted, **options))


def check(
    loop: Loop, dtype: torch.dtype, between: Callable[[Tensor], Tensor] | None = None
) -> None:
    """The gradients of the inputs and of the weights, against torch.nn."""
    ours, theirs = loop.modules(dtype)
    results = []
    for module in (ours, theirs):
        inputs = [x.requires_grad_() for x in loop.inputs(dtype)]
        loss = loop.run(module, inputs, between or (lambda state: state))
        results.append(gradients(loss, [*inputs, *module.parameters()]))
    for i, (mine, expected) in enumerate(zip(*results, strict=True)):
        assert_close(f"{loop} {i}", mine, expected, TOLERANCE[dtype])


def nodes(loss: Tensor) -> dict[str, int]:
    """How often nodes of each name are in the graph of a loss."""
    seen, names, left = set(), {}, [loss.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names[node.name()] = names.get(node.name(), 0) + 1
        left += [next_node for next_node, _ in node.next_functions]
    return names


LOOPS = [
    loop
    for kind in KINDS
    for loop in (
        Loop(kind, (3,) * 7, 5, 17),
        Loop(kind, (1,) * 4, 1, 1, bias=False),
        Loop(kind, (7, 5, 5, 2, 1), 33, 31),
        Loop(kind, (2,) * 5, 40, 200),  # of weights so large that the first step shares as well
        Loop(kind, (100,) * 6, 9, 16),  # more rows than are kept
        Loop(kind, (300, 280, 3, 2), 2, 9),
        Loop(kind, (3,) * 5, 5, 17, layers=1),
        Loop(kind, (2,) * 6, 7, 65, layers=2),
        Loop(kind, (4, 3, 3, 1), 6, 12, layers=2, bidirectional=True, bias=False),
    )
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_loops(loop: Loop, dtype: torch.dtype) -> None:
    check(loop, dtype)


@settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    kind=st.sampled_from(KINDS),
    batches=st.lists(st.integers(1, 70), min_size=1, max_size=9),
    size=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    layers=st.integers(0, 3),
    bidirectional=st.booleans(),
    bias=st.booleans(),
)
def test_random_loops(
    kind: str,
    batches: list[int],
    size: tuple[int, int],
    layers: int,
    bidirectional: bool,
    bias: bool,
) -> None:
    batches.sort(reverse=True)
    check(Loop(kind, tuple(batches), *size, layers, bidirectional and layers > 0, bias), F64)


@pytest.mark.parametrize(
    "between",
    [
        lambda state: state * 0.5,
        lambda state: torch.where(state > 0, state, state.new_zeros(())).tanh() * 0.9,
        lambda state: state.clone(),
        lambda state: torch.nn.functional.layer_norm(state, state.shape[-1:]),
    ],
    ids=["scaled", "masked", "cloned", "normed"],
)
@pytest.mark.parametrize("layers", [0, 2])
def test_operators_between_the_steps(layers: int, between: Any) -> None:
    loop = Loop("LSTM", (3,) * 6, 5, 9, layers)
    check(loop, F64, between)
    ours, _ = loop.modules(F64)
    assert nodes(loop.run(ours, loop.inputs(F64), between))[NODE] == 1


def test_which_steps_share() -> None:
    """All but the first of small weights, all of large ones; not calls of several steps, nor those
    with a projection, nor different weights."""

    def shared(module: Any, inputs: list[Tensor], state: Any = None) -> list[str]:
        names = []
        for x in inputs:
            results = module(x, state)
            state = results[1] if x.dim() == 3 else results
            h = state[0] if isinstance(state, tuple) else state
            node, _ = h.grad_fn.next_functions[-1]
            names.append(node.name().removeprefix("torch::autograd::"))
        return names

    small = [torch.randn(2, 8) for _ in range(3)]
    assert shared(fused_rnn.GRUCell(8, 8), small) == ["AccumulateGrad", NODE, NODE]
    assert shared(fused_rnn.LSTMCell(8, 128), small) == [NODE] * 3
    sequences = [x.unsqueeze(0) for x in small]
    assert shared(fused_rnn.LSTM(8, 8), sequences) == ["AccumulateGrad", NODE, NODE]
    assert NODE not in shared(fused_rnn.LSTM(8, 8, proj_size=3), sequences)
    assert NODE not in shared(fused_rnn.GRU(8, 8), [torch.randn(2, 2, 8) for _ in range(3)])
    # A decoder that begins with the state of an encoder.
    encoder, decoder = fused_rnn.GRUCell(8, 8), fused_rnn.GRUCell(8, 8)
    h = encoder(small[1], encoder(small[0]))
    assert shared(decoder, small, h) == ["AccumulateGrad", NODE, NODE]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("used", ["output", "state"])
@pytest.mark.parametrize("layers", [0, 2])
def test_steps_leave_their_rows_behind(layers: int, used: str, dtype: torch.dtype) -> None:
    """They give no gradients of weights themselves, whichever results are used."""
    loop = Loop("LSTM", (2,) * 4, 5, 8, layers)
    ours, _ = loop.modules(dtype)
    state, total = None, torch.zeros((), dtype=dtype)
    for x in loop.inputs(dtype):
        results = ours(x, state)
        state = results[1] if layers else results
        total = total + (results[0] if used == "output" else state[1]).sum()
    shared, _ = state[0].grad_fn.next_functions[-1]
    given: list[Any] = []
    shared.register_prehook(lambda grads: given.extend(grads))
    gradients(total, list(ours.parameters()))
    assert given == [None] * len(list(ours.parameters()))


def test_hooks_of_a_step_see_its_gradients() -> None:
    loop, ours, inputs, expected = make()
    params = list(ours.parameters())
    seen: list[Any] = []

    def call(x: Tensor, state: Any) -> Tensor:
        state = ours(x, state)
        state.grad_fn.register_hook(lambda grads, _: seen.append(grads[-len(params) :]))
        return state

    assert_same(gradients(loop.run(call, inputs), params), expected)
    assert_same([sum(grads) for grads in zip(*seen, strict=True)], expected)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_mode_names_the_step() -> None:
    loop, ours, inputs, _ = make()
    inputs[2][0, 0] = torch.inf
    with (
        torch.autograd.detect_anomaly(check_nan=True),
        pytest.warns(UserWarning, match="Error detected in FusedCellBackward"),
        pytest.raises(RuntimeError, match=r"FusedCellBackward.* returned nan"),
    ):
        loop.run(ours, inputs).backward()


def test_a_step_that_is_called_during_a_pass() -> None:
    """By a hook, as a function of its own: its gradients are the caller's, not the pass's."""
    loop, ours, inputs, expected = make()
    params = list(ours.parameters())
    states: list[Tensor] = []

    def call(x: Tensor, state: Any) -> Tensor:
        states.append(ours(x, state))
        return states[-1]

    loss = loop.run(call, inputs)
    seed = torch.ones_like(states[0])
    alone = states[3].grad_fn(seed)[-len(params) :]
    found: list[Any] = []
    for hooked in (states[3], states[4]):
        hooked.register_hook(lambda _: found.append(states[3].grad_fn(seed)[-len(params) :]))
    ours.weight_ih.register_post_accumulate_grad_hook(
        lambda _: found.append(states[3].grad_fn(seed)[-len(params) :])
    )
    loss.backward(retain_graph=True)
    assert_same([p.grad for p in params], expected)
    assert len(found) == 3
    for grads in found:
        assert_same(grads, list(alone))


@pytest.mark.parametrize("change", ["in place", "data", "replaced"])
def test_saved_copies_of_weights_that_change(change: str) -> None:
    """With hooks that copy what is saved, each step has the weights of its own time."""
    results = []
    loop = Loop("GRU", (3,) * 7, 4, 7)
    for cell in loop.modules(F64):

        def call(x: Tensor, state: Any, cell: Any = cell) -> Tensor:
            state = cell(x, state)
            with torch.no_grad():
                if change == "in place":
                    cell.weight_hh.mul_(0.8)
                elif change == "data":
                    cell.weight_hh.data.mul_(0.8)
                else:
                    cell.weight_hh.data = cell.weight_hh.data * 0.8
            return state

        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
            loss = loop.run(call, loop.inputs(F64))
        results.append(gradients(loss, list(cell.parameters())))
    assert_same(*results)


def make(kind: str = "GRU") -> tuple[Loop, Any, list[Tensor], list[Tensor]]:
    """A loop, our cell, its inputs and the gradients of its weights by torch.nn."""
    loop = Loop(kind, (3,) * 5, 4, 7)
    ours, theirs = loop.modules(F64)
    inputs = loop.inputs(F64)
    expected = gradients(loop.run(theirs, inputs), list(theirs.parameters()))
    return loop, ours, inputs, expected


def assert_same(actual: list[Any], expected: list[Tensor]) -> None:
    for i, (mine, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert_close(str(i), mine, theirs, TOLERANCE[F64])


@pytest.mark.parametrize("kind", KINDS)
def test_any_weights_may_be_wanted(kind: str) -> None:
    loop, ours, inputs, expected = make(kind)
    params = list(ours.parameters())
    for chosen in ([0], [1], [2], [3], [0, 3], [1, 2], [0, 1, 2, 3]):
        # Asked for, of all that need gradients.
        loss = loop.run(ours, inputs)
        assert_same(gradients(loss, [params[i] for i in chosen]), [expected[i] for i in chosen])
        # The only ones that need any.
        for i, param in enumerate(params):
            param.requires_grad_(i in chosen)
            param.grad = None
        loop.run(ours, inputs).backward()
        for i, param in enumerate(params):
            assert (param.grad is not None) == (i in chosen)
        assert_same([params[i].grad for i in chosen], [expected[i] for i in chosen])
        for param in params:
            param.requires_grad_()


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_some_inputs_need_gradients(kind: str, first: bool, layers: int) -> None:
    """Those of the first steps, which come last, or of the last ones."""
    loop = Loop(kind, (3,) * 8, 5, 9, layers)
    results = []
    for module in loop.modules(F64):
        inputs = loop.inputs(F64)
        some = inputs[:4] if first else inputs[4:]
        for x in some:
            x.requires_grad_()
        results.append(gradients(loop.run(module, inputs), [*some, *module.parameters()]))
    assert_same(*results)


def test_layers_below_that_are_fixed() -> None:
    loop = Loop("LSTM", (3,) * 5, 4, 7, layers=3)
    results = []
    for module in loop.modules(F64):
        for name, param in module.named_parameters():
            param.requires_grad_("_l1" in name or name == "bias_hh_l2")
        wanted = [p for p in module.parameters() if p.requires_grad]
        results.append(gradients(loop.run(module, loop.inputs(F64)), wanted))
    assert_same(*results)


def test_the_graph_may_be_run_again_and_in_part() -> None:
    loop, ours, inputs, expected = make()
    params = list(ours.parameters())
    h = ours(inputs[0])
    halfway = ours(inputs[1], ours(inputs[1], h))
    loss = halfway.sum() + ours(inputs[2], halfway).sum()
    whole = gradients(loss, params, retain_graph=True)
    part = gradients(halfway.sum(), params, retain_graph=True)
    rest = gradients(loss - halfway.sum(), params, retain_graph=True)
    assert_same([a + b for a, b in zip(part, rest, strict=True)], whole)
    assert_same(gradients(loss, params, retain_graph=True), whole)
    # Of the states alone, which leaves nothing behind.
    gradients(loss, [h], retain_graph=True)
    assert_same(gradients(loss, params), whole)
    loss = loop.run(ours, inputs)
    for times in (1, 2):
        loss.backward(retain_graph=True)
        assert_same([p.grad for p in params], [times * g for g in expected])


def test_branches_of_a_loop() -> None:
    results = []
    loop, ours, inputs, _ = make()
    for cell in (ours, loop.modules(F64)[1]):
        begun = cell(inputs[1], cell(inputs[0]))
        one, other = begun, begun * 0.5
        for x in inputs[2:]:
            one, other = cell(x, one), cell(-x, other)
        results.append(gradients((one * other).sum(), list(cell.parameters())))
    assert_same(*results)


def test_weights_that_are_results() -> None:
    """Weights scaled and tied: those of one node for all steps, and new ones for each."""
    loop, ours, inputs, _ = make("LSTM")
    theirs = loop.modules(F64)[1]
    results = []
    for cell in (ours, theirs):
        for each_step in (False, True):
            scale = torch.tensor(0.7, dtype=F64, requires_grad=True)

            def scaled(cell: Any = cell, scale: Tensor = scale) -> dict[str, Tensor]:
                weights = {n: p * scale for n, p in cell.named_parameters()}
                weights["bias_hh"] = weights["bias_ih"]
                return weights

            once = scaled()

            def call(x: Tensor, state: Any, each_step: bool = each_step) -> Any:
                weights = scaled() if each_step else once  # noqa: B023
                return functional_call(cell, weights, (x, state))  # noqa: B023

            wanted = [scale, *(p for n, p in cell.named_parameters() if n != "bias_hh")]
            results.append(gradients(loop.run(call, inputs), wanted))
    for result in results[:3]:
        assert_same(result, results[3])


def test_gradients_of_states_that_hooks_change() -> None:
    results = []
    loop = Loop("LSTM", (3,) * 6, 4, 7)
    for cell in loop.modules(F64):

        def call(x: Tensor, state: Any, cell: Any = cell) -> Any:
            h, c = cell(x, state)
            h.register_hook(lambda grad: grad.clamp(-0.5, 0.5))
            return h, c

        results.append(gradients(loop.run(call, loop.inputs(F64)), list(cell.parameters())))
    assert_same(*results)


def test_hooks_see_each_gradient_once() -> None:
    loop, ours, inputs, expected = make()
    seen: list[Tensor] = []
    ours.weight_hh.register_hook(lambda grad: seen.append(grad) or grad * 2)
    loop.run(ours, inputs).backward()
    assert_same(seen, [expected[1]])
    assert_same([ours.weight_hh.grad, ours.weight_ih.grad], [2 * expected[1], expected[0]])


def test_a_failed_pass_leaves_nothing_to_the_next() -> None:
    loop, ours, inputs, expected = make()
    fail = True

    def hook(grad: Tensor) -> Tensor:
        if fail:
            raise RuntimeError("in the middle")
        return grad

    state = ours(inputs[1], ours(inputs[0]))
    state.register_hook(hook)
    loss = loop.run(ours, inputs) + 0 * ours(inputs[3], ours(inputs[2], state)).sum()
    for _ in range(9):
        with pytest.raises(RuntimeError, match="in the middle"):
            loss.backward(retain_graph=True)
    ours.zero_grad()
    fail = False
    loss.backward()
    assert_same([p.grad for p in ours.parameters()], expected)


@pytest.mark.skipif(platform.system() != "Linux", reason="memory is read from /proc")
def test_failed_passes_do_not_pile_up() -> None:
    """On a graph that is kept, each could leave its rows and packed weights: some 3 MB."""
    cell = fused_rnn.GRUCell(256, 256)
    first = state = cell(torch.randn(50, 256))
    for _ in range(5):
        state = cell(torch.randn(50, 256), state)
    loss = state.sum()

    def fail(_: Tensor) -> None:
        raise RuntimeError("in the end")

    first.register_hook(fail)

    def passes(count: int) -> None:
        for _ in range(count):
            with pytest.raises(RuntimeError, match="in the end"):
                loss.backward(retain_graph=True)

    passes(20)
    before = resident()
    passes(60)
    assert resident() - before < 30 << 20


def test_a_pass_inside_another() -> None:
    """A hook that runs another part of the same graph."""
    _, ours, inputs, _ = make()
    params = list(ours.parameters())
    inner: list[list[Tensor]] = []
    first = ours(inputs[1], ours(inputs[0]))
    second = ours(inputs[3], ours(inputs[2], first))
    alone = gradients(first.sum(), params, retain_graph=True)
    whole = gradients(second.sum(), params, retain_graph=True)

    def hook(grad: Tensor) -> None:
        if not inner:
            inner.append([])
            with torch.enable_grad():
                inner[0] += gradients(first.sum(), params, retain_graph=True)

    first.register_hook(hook)
    assert_same(gradients(second.sum(), params), whole)
    assert_same(inner[0], alone)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_steps(reentrant: bool) -> None:
    loop, ours, inputs, expected = make()
    state = torch.zeros(3, 7, dtype=F64, requires_grad=True)
    calls = iter(range(100))

    def call(x: Tensor, h: Any) -> Tensor:
        h = state if h is None else h
        if next(calls) % 2:
            return ours(x, h)
        return checkpoint(lambda h: ours(x, h), h, use_reentrant=reentrant)

    loop.run(call, inputs).backward()
    assert_same([p.grad for p in ours.parameters()], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_derivatives(kind: str) -> None:
    loop = Loop(kind, (2,) * 4, 2, 3)
    cell = loop.modules(F64)[0]
    names = [name for name, _ in cell.named_parameters()]
    inputs = loop.inputs(F64)

    def run(*weights: Tensor) -> Tensor:
        given = dict(zip(names, weights, strict=True))
        return loop.run(lambda x, state: functional_call(cell, given, (x, state)), inputs)

    leaves = [p.detach().clone().requires_grad_() for p in cell.parameters()]
    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves)


def test_batched_gradients() -> None:
    loop, ours, inputs, _ = make("LSTM")
    theirs = loop.modules(F64)[1]
    results = []
    for cell in (ours, theirs):
        h = cell(inputs[2], cell(inputs[1], cell(inputs[0])))[0]
        seeds = torch.eye(h.numel(), dtype=F64).reshape(-1, *h.shape)
        results.append(
            gradients(h, list(cell.parameters()), grad_outputs=seeds, is_grads_batched=True)
        )
    assert_same(*results)


def test_passes_in_several_threads() -> None:
    """Each over the whole of one graph at the same time as the others."""
    loop, ours, inputs, expected = make("LSTM")
    loss = loop.run(ours, inputs)
    results: list[list[Tensor]] = []

    def work() -> None:
        for _ in range(20):
            results.append(gradients(loss, list(ours.parameters()), retain_graph=True))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    for result in results:
        assert_same(result, expected)


def test_changed_weights_are_noticed() -> None:
    loop, ours, inputs, _ = make()
    loss = loop.run(ours, inputs)
    with torch.no_grad():
        ours.weight_hh.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_weights_change_between_passes() -> None:
    """As in training; the next pass reads them anew."""
    results = []
    loop = Loop("LSTM", (2,) * 6, 5, 150)
    for module in loop.modules(F64):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            loop.run(module, loop.inputs(F64)).backward()
            optimizer.step()
        results.append(list(module.parameters()))
    assert_same(*results)


@pytest.mark.parametrize("other", _C.config()["isa_available"])
def test_instruction_sets_change(other: str) -> None:
    """Between the forward and the backward pass, and between its steps."""
    loop, ours, inputs, expected = make("LSTM")
    state = ours(inputs[1], ours(inputs[0]))
    loss = (
        loop.run(ours, inputs)
        + 0 * ours(inputs[4], ours(inputs[3], ours(inputs[2], state)))[0].sum()
    )
    state[0].register_hook(lambda grad: _C.set_isa(None))
    try:
        _C.set_isa(other)
        assert_same(gradients(loss, list(ours.parameters())), expected)
    finally:
        _C.set_isa(None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_narrow_types(kind: str, dtype: torch.dtype) -> None:
    """Gradients that are added up in float32 and rounded once: nearer than torch's to those of the
    same weights in float64."""
    loop = Loop(kind, (3,) * 12, 16, 32)
    ours, theirs = loop.modules(dtype)
    exact = loop.modules(F64)[1]
    exact.load_state_dict(ours.state_dict())
    inputs = loop.inputs(dtype)
    expected = gradients(loop.run(exact, [x.double() for x in inputs]), list(exact.parameters()))

    def error(module: Any) -> float:
        found = gradients(loop.run(module, inputs), list(module.parameters()))
        assert all(g.dtype == dtype for g in found)
        return max(
            ((g.double() - e).abs().max() / e.abs().max()).item()
            for g, e in zip(found, expected, strict=True)
        )

    assert error(ours) <= error(theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    loop = Loop("LSTM", (3,) * 6, 16, 32)
    results = []
    for module in loop.modules(torch.float32):
        with torch.autocast("cpu", dtype=dtype):
            loss = loop.run(module, loop.inputs(torch.float32))
        results.append(gradients(loss, list(module.parameters())))
    for i, (mine, theirs) in enumerate(zip(*results, strict=True)):
        assert_close(str(i), mine, theirs, 3e-2)
