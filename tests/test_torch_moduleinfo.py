"""torch's own test data for its recurrent modules, given to those of this package.

torch ships the inputs that its test suite runs every module on. What torch tests there of a module
on the CPU is tested here of ours, with torch's module beside it.
"""

import copy
import io
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils import _pytree as pytree

import fused_rnn
from cases import TOLERANCE, assert_close, flatten, threads

common_modules = pytest.importorskip(
    "torch.testing._internal.common_modules",
    reason="torch's test data needs the package expecttest",
)
common_utils = pytest.importorskip("torch.testing._internal.common_utils")
# Importing those forbids to set torch.backends' flags from then on, for every other test too.
torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True

CLASSES = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
INFOS = {
    info.module_cls.__name__: info
    for info in common_modules.module_db
    if info.module_cls in CLASSES
}
MODES = [
    pytest.param(name, training, id=f"{name}-{'train' if training else 'eval'}")
    for name, info in INFOS.items()
    for training in ((True, False) if info.train_and_eval_differ else (True,))
]

# Roundings of 16 bits, relative to the largest magnitude.
_HALF = {torch.bfloat16: 4 * 2.0**-7, torch.float16: 4 * 2.0**-10}
TOLERANCES = {**TOLERANCE, **_HALF}
DTYPES = tuple(TOLERANCES)

# torch's samples alternate their settings in powers of two: one in three meets each setting.
PERIOD = 3


@dataclass(frozen=True)
class Sample:
    """A constructor's arguments and those of a call."""

    constructor: tuple[tuple[Any, ...], dict[str, Any]]
    call: tuple[Any, ...]
    reference: Any

    def module(self, package: Any, name: str, dtype: torch.dtype, training: bool = True) -> Any:
        args, kwargs = self.constructor
        torch.manual_seed(2)
        module = getattr(package, name)(*args, **kwargs, dtype=dtype, device="cpu")
        return module.train(training)


def samples_of(
    name: str, dtype: torch.dtype, requires_grad: bool = True, training: bool = True
) -> Iterator[Sample]:
    """torch's samples, packed ones included. torch has those for GRU and RNN; the LSTM gets one for
    each of its constructors."""
    info = INFOS[name]
    more = {"with_packed_sequence": True} if name in ("GRU", "RNN") else {}
    inputs = info.module_inputs_func(
        info,
        device="cpu",
        dtype=dtype,
        requires_grad=requires_grad,
        training=training,
        **more,
    )
    for index, given in enumerate(inputs):
        constructor = (given.constructor_input.args, given.constructor_input.kwargs)
        call = (*given.forward_input.args, *given.forward_input.kwargs.values())
        reference = None if isinstance(call[0], PackedSequence) else given.reference_fn
        yield Sample(constructor, call, reference)
        if name == "LSTM" and index % 2 == 0:
            x = torch.randn(5, 3, 2, dtype=dtype)
            packed = pack_padded_sequence(x, torch.tensor([2, 5, 3]), enforce_sorted=False)
            packed.data.requires_grad_(requires_grad)
            yield Sample(constructor, (packed,), None)


def leaves_of(call: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(call) if isinstance(t, Tensor) and t.is_floating_point()]


def with_leaves(call: tuple[Any, ...], leaves: Sequence[Tensor]) -> tuple[Any, ...]:
    """The arguments of a call with other floating tensors in place of its own."""
    parts, spec = pytree.tree_flatten(call)
    rest = iter(leaves)
    parts = [next(rest) if isinstance(t, Tensor) and t.is_floating_point() else t for t in parts]
    arguments: tuple[Any, ...] = pytree.tree_unflatten(parts, spec)
    return arguments


def fresh(call: tuple[Any, ...]) -> tuple[Any, ...]:
    return with_leaves(call, [t.detach().clone().requires_grad_() for t in leaves_of(call)])


def results_and_gradients(module: nn.Module, call: tuple[Any, ...]) -> list[Tensor]:
    """Of a fresh copy of the arguments: results, then gradients to arguments and parameters."""
    arguments = fresh(call)
    results = flatten(module(*arguments))
    total = sum((r.float() if r.dtype in _HALF else r).square().sum() for r in results)
    assert isinstance(total, Tensor)
    inputs = [*leaves_of(arguments), *module.parameters()]
    return [*(r.detach() for r in results), *torch.autograd.grad(total, inputs)]


def exact_results(sample: Sample, name: str, module: nn.Module) -> list[Tensor]:
    """What torch.nn's module gives in float64 for the same numbers."""
    wide = sample.module(nn, name, torch.float64)
    wide.load_state_dict(module.state_dict())
    call = with_leaves(sample.call, [leaf.detach().double() for leaf in leaves_of(sample.call)])
    return results_and_gradients(wide, call)


def assert_no_worse(
    module: nn.Module, actual: list[Tensor], expected: list[Tensor], exact: list[Tensor]
) -> None:
    """Each error is at most torch's and some roundings."""
    for index, (one, other, truth) in enumerate(zip(actual, expected, exact, strict=True)):
        assert one.dtype == other.dtype
        error, torchs = ((t.double() - truth).abs().max().item() for t in (one, other))
        rounding = _HALF[one.dtype] * truth.abs().max().item()
        assert error <= torchs + rounding, f"{module} {index}: {error} against torch's {torchs}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "training"), MODES)
def test_forward_and_gradients(name: str, training: bool, dtype: torch.dtype) -> None:
    count = 0
    for sample in samples_of(name, dtype, training=training):
        ours, theirs = (sample.module(p, name, dtype, training) for p in (fused_rnn, nn))
        assert repr(ours) == repr(theirs)
        actual = results_and_gradients(ours, sample.call)
        expected = results_and_gradients(theirs, sample.call)
        if dtype in _HALF:
            # torch rounds after every operation and the kernels once: they need not be close.
            assert_no_worse(ours, actual, expected, exact_results(sample, name, ours))
        else:
            for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
                assert_close(f"{ours} {index}", one, other, TOLERANCES[dtype])
        if sample.reference is not None:
            by_reference = flatten(sample.reference(ours, *sample.call))
            for one, other in zip(actual, by_reference, strict=False):
                assert_close(f"{ours} against its reference", one, other, TOLERANCES[dtype])
        count += 1
    assert count >= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", INFOS)
def test_errors(name: str, dtype: torch.dtype) -> None:
    info = INFOS[name]
    inputs = info.module_error_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=False, training=True
    )
    for bad in inputs:
        args = bad.module_error_input.constructor_input.args
        kwargs = {"dtype": dtype, **bad.module_error_input.constructor_input.kwargs}
        found = []
        for package in (fused_rnn, nn):
            cls = getattr(package, name)
            if bad.error_on == common_modules.ModuleErrorEnum.CONSTRUCTION_ERROR:
                with pytest.raises(bad.error_type, match=bad.error_regex) as error:
                    cls(*args, **kwargs)
            else:
                module, call = cls(*args, **kwargs), bad.module_error_input.forward_input
                with pytest.raises(bad.error_type, match=bad.error_regex) as error:
                    module(*call.args, **call.kwargs)
            found.append((type(error.value), str(error.value)))
        assert found[0] == found[1]


@pytest.mark.parametrize("name", INFOS)
def test_factory_arguments(name: str) -> None:
    for sample in samples_of(name, torch.float32):
        args, kwargs = sample.constructor
        for device in ("cpu", "meta"):
            for dtype in DTYPES:
                module = getattr(fused_rnn, name)(*args, **kwargs, device=device, dtype=dtype)
                for parameter in module.parameters():
                    assert (parameter.device.type, parameter.dtype) == (device, dtype)
        with torch.device("meta"):
            module = getattr(fused_rnn, name)(*args, **kwargs)
        assert all(p.is_meta for p in module.parameters())


@pytest.mark.parametrize("swap", [False, True], ids=["data", "swap"])
@pytest.mark.parametrize("name", INFOS)
def test_to_and_to_empty(name: str, swap: bool) -> None:
    """To another type and back, to the meta device, and from there to memory that is filled."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        for sample in samples_of(name, torch.float32, requires_grad=False):
            # What the graph of a call holds cannot be swapped.
            module = sample.module(fused_rnn, name, torch.float32).requires_grad_(False)
            expected = flatten(module(*sample.call))
            state = copy.deepcopy(module.state_dict())
            module.to(torch.float64)
            double = with_leaves(sample.call, [t.double() for t in leaves_of(sample.call)])
            for one, other in zip(flatten(module(*double)), expected, strict=True):
                assert one.dtype == torch.float64
                assert_close("in float64", one.float(), other, 2e-5)
            module.to(torch.float32)
            for one, other in zip(flatten(module(*sample.call)), expected, strict=True):
                assert torch.equal(one, other)
            module.to("meta")
            on_meta = with_leaves(sample.call, [t.to("meta") for t in leaves_of(sample.call)])
            if not isinstance(on_meta[0], PackedSequence):
                assert all(r.is_meta for r in flatten(module(*on_meta)))
            module.to_empty(device="cpu")
            # Not load_state_dict, which would swap, too: torch's layers hold references to their
            # weights that forbid it.
            for key, parameter in module.named_parameters():
                parameter.copy_(state[key])
            for one, other in zip(flatten(module(*sample.call)), expected, strict=True):
                assert torch.equal(one, other)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.parametrize("name", INFOS)
def test_save_load_and_pickle(name: str) -> None:
    for sample in samples_of(name, torch.float32, requires_grad=False):
        module = sample.module(fused_rnn, name, torch.float32)
        expected = flatten(module(*sample.call))
        buffer = io.BytesIO()
        torch.save(module.state_dict(), buffer)
        buffer.seek(0)
        loaded = sample.module(fused_rnn, name, torch.float32)
        loaded.reset_parameters()
        loaded.load_state_dict(torch.load(buffer, weights_only=True))
        for other in (loaded, pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
            assert type(other) is type(module)
            assert repr(other) == repr(module)
            for one, two in zip(flatten(other(*sample.call)), expected, strict=True):
                assert torch.equal(one, two)


@pytest.mark.parametrize("name", INFOS)
def test_repr(name: str) -> None:
    for sample in samples_of(name, torch.float32):
        ours, theirs = (sample.module(p, name, torch.float32) for p in (fused_rnn, nn))
        assert repr(ours) == str(ours) == repr(theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", INFOS)
def test_non_contiguous_tensors(name: str, dtype: torch.dtype) -> None:
    """Strided input, state and weights."""
    for sample in samples_of(name, dtype):
        module = sample.module(fused_rnn, name, dtype)
        expected = results_and_gradients(module, sample.call)
        scattered = [common_utils.noncontiguous_like(t.detach()) for t in leaves_of(sample.call)]
        for weights_too in (False, True):
            if weights_too:
                for parameter in module.parameters():
                    parameter.data = common_utils.noncontiguous_like(parameter.data)
            leaves = [t.requires_grad_() for t in scattered]
            assert not any(t.is_contiguous() for t in leaves if t.numel() > 1)
            call = with_leaves(sample.call, leaves)
            results = flatten(module(*call))
            total = sum(r.square().sum() for r in results)
            grads = torch.autograd.grad(total, [*leaves, *module.parameters()])
            for one, other in zip([*results, *grads], expected, strict=True):
                assert_close("strided", one.detach(), other, TOLERANCE[dtype])


@pytest.mark.parametrize("name", INFOS)
def test_inputs_are_not_changed(name: str) -> None:
    for sample in samples_of(name, torch.float32):
        module = sample.module(fused_rnn, name, torch.float32)
        call = fresh(sample.call)
        kept = [t.detach().clone() for t in leaves_of(call)]
        versions = [t._version for t in (*leaves_of(call), *module.parameters())]
        sum(r.sum() for r in flatten(module(*call))).backward()
        assert versions == [t._version for t in (*leaves_of(call), *module.parameters())]
        for one, other in zip(leaves_of(call), kept, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", INFOS)
def test_input_changed_before_backward_is_noticed(name: str) -> None:
    """As by torch.nn's: the gradients of the weights would be those of another input."""
    for sample in samples_of(name, torch.float64):
        for package in (nn, fused_rnn):
            module = sample.module(package, name, torch.float64)
            changed = [t.detach().clone() for t in leaves_of(sample.call)]
            results = flatten(module(*with_leaves(sample.call, changed)))
            changed[0].mul_(2)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                sum(r.sum() for r in results).backward()


@pytest.mark.parametrize("name", INFOS)
def test_train_and_eval(name: str) -> None:
    """Dropout, where there is any, is drawn in training alone, and there as torch draws it."""
    layers = not name.endswith("Cell")
    for sample in samples_of(name, torch.float64, requires_grad=False):
        args, kwargs = sample.constructor
        more = {"dropout": 0.5} if layers else {}
        dropping = Sample((args, {**kwargs, **more}), sample.call, None)
        ours, theirs = (dropping.module(p, name, torch.float64) for p in (fused_rnn, nn))
        for training in (True, False, True):
            found = []
            for module in (ours, theirs):
                assert module.train(training).training is training
                torch.manual_seed(7)
                found.append(flatten(module(*sample.call)))
            for one, other in zip(*found, strict=True):
                assert_close(f"{training}", one, other, 1e-10)


def check_derivatives(name: str, check: Any, every: int = 1, **settings: Any) -> None:
    """`check` of the function that a sample is, of its arguments and parameters, in float64; of all
    samples or of one in `every`."""
    for sample in list(samples_of(name, torch.float64))[::every]:
        module = sample.module(fused_rnn, name, torch.float64)
        names = [n for n, _ in module.named_parameters()]
        inputs = [t.detach().clone().requires_grad_() for t in leaves_of(sample.call)]
        params = [p.detach().clone().requires_grad_() for p in module.parameters()]
        count = len(inputs)

        def function(
            *leaves: Tensor,
            module: Any = module,
            names: list[str] = names,
            call: Any = sample.call,
            count: int = count,
        ) -> tuple[Tensor, ...]:
            weights = dict(zip(names, leaves[count:], strict=True))
            arguments = with_leaves(call, leaves[:count])
            return tuple(flatten(torch.func.functional_call(module, weights, arguments)))

        with threads(1):
            assert check(function, (*inputs, *params), nondet_tol=0.0, fast_mode=True, **settings)


@pytest.mark.parametrize("name", INFOS)
def test_gradcheck(name: str) -> None:
    """Backward, batched backward and forward mode."""
    every = 1 if name.endswith("Cell") else PERIOD
    check_derivatives(name, gradcheck, every, check_batched_grad=True, check_forward_ad=True)


@pytest.mark.parametrize("name", INFOS)
def test_gradgradcheck(name: str) -> None:
    every = 1 if name.endswith("Cell") else 2 * PERIOD + 1
    check_derivatives(name, gradgradcheck, every)
