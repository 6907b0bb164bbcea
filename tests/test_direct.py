"""The short way around the dispatcher: when it is taken, when not, and that it changes nothing."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fused_rnn
from cases import assert_close, flatten
from fused_rnn._ops import direct_cell, direct_layer

LAYERS = [fused_rnn.LSTM, fused_rnn.GRU, fused_rnn.RNN]
CELLS = [fused_rnn.LSTMCell, fused_rnn.GRUCell, fused_rnn.RNNCell]
MODULES = [*LAYERS, *CELLS]


class _FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Subclass(torch.Tensor):
    pass


def direct(module: torch.nn.Module, input: Any, hx: Any = None) -> Any:
    if isinstance(module, torch.nn.RNNBase):
        return direct_layer(module, input, hx)
    return direct_cell(module, input, hx, module._cell())


def example(module_class: type) -> tuple[Any, torch.Tensor, Any]:
    module = module_class(5, 7)
    is_layer = issubclass(module_class, torch.nn.RNNBase)
    input = torch.randn(4, 3, 5) if is_layer else torch.randn(3, 5)
    states = [torch.randn(1, 3, 7) if is_layer else torch.randn(3, 7) for _ in range(2)]
    return module, input, tuple(states) if "LSTM" in module_class.__name__ else states[0]


@pytest.mark.parametrize("module_class", MODULES)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_both_ways_give_the_same_bits(
    module_class: type, grad: bool, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, input, hx = example(module_class)
    hx = hx if given else None
    with torch.set_grad_enabled(grad):
        assert direct(module, input, hx) is not None
        short = flatten(module(input, hx))
        for name in ("layers", "cells"):
            monkeypatch.setattr(f"fused_rnn.{name}.direct", lambda *_: None)
        long = flatten(module(input, hx))
    assert len(short) == len(long)
    for a, b in zip(short, long, strict=True):
        assert torch.equal(a, b)
        assert a.requires_grad == b.requires_grad == grad
    if grad:
        gradients = [
            torch.autograd.grad(sum(t.sin().sum() for t in results), list(module.parameters()))
            for results in (short, long)
        ]
        assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("module_class", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, True)])
def test_layouts(module_class: type, batch_first: bool, layers: int, bidirectional: bool) -> None:
    module = module_class(5, 7, layers, batch_first=batch_first, bidirectional=bidirectional)
    plain = getattr(torch.nn, module_class.__name__)(
        5, 7, layers, batch_first=batch_first, bidirectional=bidirectional
    )
    plain.load_state_dict(module.state_dict())
    for input in (torch.randn(4, 3, 5), torch.randn(4, 5), torch.randn(4, 5, 3).mT):
        results = direct(module, input)
        for ours, theirs in zip(flatten(results), flatten(plain(input)), strict=True):
            assert_close("result", ours, theirs, 2e-5)


@contextlib.contextmanager
def _dual_level() -> Iterator[None]:
    with forward_ad.dual_level():
        yield


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "function mode": _FunctionMode,
    "device mode": lambda: torch.device("cpu"),
    "dispatch mode": _DispatchMode,
    "forward-mode AD": _dual_level,
    "profiler": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("module_class", [fused_rnn.GRU, fused_rnn.LSTMCell])
def test_whoever_listens_is_not_passed_by(surroundings: str, module_class: type) -> None:
    module, input, hx = example(module_class)
    with SURROUNDINGS[surroundings]():
        assert direct(module, input, hx) is None
    assert direct(module, input, hx) is not None


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated")
def test_transforms_and_tracers_are_not_passed_by() -> None:
    module, input, hx = example(fused_rnn.GRU)
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(direct(module, x, hx))
        return x.sum()

    torch.func.grad(look)(input)
    torch.func.vmap(look)(input[None])
    torch.func.functionalize(look)(input)
    torch.jit.trace(look, input, check_trace=False)
    assert all(result is None for result in seen)
    assert len(seen) >= 4


def test_the_profiler_sees_the_operator() -> None:
    module, input, hx = example(fused_rnn.LSTM)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(input, hx)
    assert any(event.key == "fused_rnn::sequence" for event in profile.key_averages())


@pytest.mark.parametrize("module_class", MODULES)
def test_what_is_not_plain_is_left_to_the_long_way(module_class: type) -> None:
    module, input, hx = example(module_class)
    first = hx[0] if isinstance(hx, tuple) else hx

    def other(state: Any) -> Any:
        return (state, hx[1]) if isinstance(hx, tuple) else state

    refused = [
        (None, hx),
        ([input], hx),
        (input.as_subclass(_Subclass), hx),
        (input.bfloat16(), hx),
        (input.to("meta"), hx),
        (input[..., :3], hx),
        (input[:0], hx),
        (input, other(first.double())),
        (input, other(first[..., :3])),
        (input, other(None) if isinstance(hx, tuple) else "states"),
        (input, (first, first, first)),
        (torch._neg_view(input), hx),
        (torch._efficientzerotensor(input.shape), hx),
    ]
    for arguments in refused:
        assert direct(module, *arguments) is None
    with pytest.raises((TypeError, AttributeError)):
        module(None, hx)


def test_changed_modules_are_left_to_the_long_way() -> None:
    def pruned(module: Any) -> None:
        prune.random_unstructured(module, "weight_hh_l0", amount=0.5)

    def dropping(module: Any) -> None:
        module.dropout = 0.5

    def smaller(module: Any) -> None:
        module.weight_hh_l0.data = torch.randn(3, 3)

    def without_mode(module: Any) -> None:
        del module.mode

    def replaced(module: Any) -> None:
        module._flat_weights[0] = module._flat_weights[0].detach().clone()

    def subclassed(module: Any) -> None:
        module.weight_hh_l0.data = module.weight_hh_l0.data.as_subclass(_Subclass)
        module._flat_weights[1] = module.weight_hh_l0.as_subclass(_Subclass)
        module._parameters["weight_hh_l0"] = module._flat_weights[1]

    for change in (pruned, dropping, smaller, without_mode, replaced, subclassed):
        module = fused_rnn.LSTM(5, 7, 2)
        input = torch.randn(4, 3, 5)
        assert direct(module, input) is not None
        change(module)
        assert direct(module, input) is None


def test_dropout_in_evaluation_is_no_obstacle() -> None:
    module = fused_rnn.LSTM(5, 7, 2, dropout=0.5).eval()
    assert direct(module, torch.randn(4, 3, 5)) is not None


def test_wrong_calls_of_the_function_itself() -> None:
    assert fused_rnn._ops.extension.layer() is None
    assert fused_rnn._ops.extension.layer(1, torch.randn(2, 3, 4), None) is None
    assert fused_rnn._ops.extension.cell(object(), torch.randn(3, 4), None, "lstm") is None
    assert (
        fused_rnn._ops.extension.cell(fused_rnn.GRUCell(4, 5), torch.randn(3, 4), None, 7) is None
    )


def test_inference_mode() -> None:
    module, input, hx = example(fused_rnn.LSTM)
    with torch.inference_mode():
        results = flatten(direct(module, input, hx))
    assert all(result.is_inference() for result in results)
    assert not any(result.requires_grad for result in results)


def test_saved_tensor_hooks_and_their_errors_reach_the_caller() -> None:
    module, input, hx = example(fused_rnn.GRU)

    def refuse(_: torch.Tensor) -> Any:
        raise ValueError("not to be saved")

    with (
        torch.autograd.graph.saved_tensors_hooks(refuse, lambda t: t),
        pytest.raises(ValueError, match="not to be saved"),
    ):
        module(input, hx)
