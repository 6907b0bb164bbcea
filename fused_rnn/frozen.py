"""Layers and cells for inference, whose weights are packed once and not at every call.

A frozen module has no parameters: its weights are a copy of those it had. Nothing outside can
change them, so what is packed cannot go stale; what changes them through the module,
`load_state_dict` and `to`, packs them again. Where weights were tied, so are their copies, and a
shallow copy of a module shares them: that another module has changed one the compiled extension
sees by the tensor's version.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from . import _compile
from ._ops import cell, extension, sequence
from .cells import GRUCell, LSTMCell, RNNCell
from .dispatch import CELLS, DTYPES, PLAIN
from .layers import GRU, LSTM, RNN

# Attributes of a frozen module. Its weights by name, in the operators' order, without gradients;
# None for biases that a cell lacks:
_WEIGHTS = "_fused_rnn_weights"
# the packed weights, where direct.cpp looks for them; absent where they cannot be packed;
_PACKED = "_fused_rnn_packed"
# and what its parameters were.
_BEFORE = "_fused_rnn_before"


class _Before:
    """The parameters that a module had when it was frozen: in which order, which of them were
    trained, an object for each that those tied to it share, and themselves, as long as somebody
    holds them, such as an optimizer."""

    def __init__(self, parameters: dict[str, Parameter | None], tokens: dict[int, object]) -> None:
        named = {name: one for name, one in parameters.items() if one is not None}
        self.order = list(parameters)
        self.trained = {name: one.requires_grad for name, one in named.items()}
        self.tied = {name: tokens.setdefault(id(one), object()) for name, one in named.items()}
        self.alive = {name: weakref.ref(one) for name, one in named.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "alive": {}}  # Those of a copy are others.


class Frozen(torch.nn.Module):
    """What comes before a class of this package among the bases of its frozen form.

    Plain calls are computed from the packed weights; all others as by that class.
    """

    def _converts_weights(self, input: Tensor) -> bool:
        return torch.is_grad_enabled() and input.requires_grad

    def _weights(self) -> list[Tensor]:
        """In the operators' order."""
        return [weight for weight in self.__dict__[_WEIGHTS].values() if weight is not None]

    _traced_weights = _weights

    def _pack(self) -> None:
        """To be called whenever the weights have changed."""
        weights = self._weights()
        self.__dict__.pop(_PACKED, None)
        if PLAIN.issuperset(map(type, weights)):
            self.__dict__[_PACKED] = extension.Frozen(weights)

    def _compute(
        self,
        name: str,
        operator: Callable[..., list[Tensor]],
        input: Tensor,
        states: list[Tensor],
        params: list[Tensor],
        *rest: Any,
    ) -> list[Tensor]:
        """operator(input, states, params, *rest), from the packed weights where those are of all of
        params and the call allows it. `name` is the operator's name."""
        packed, weights = self.__dict__.get(_PACKED), self._weights()
        if packed is not None and len(params) == len(weights) and all(map(is_, params, weights)):
            results: list[Tensor] | None = getattr(packed, name)(input, states, *rest)
            if results is not None:
                return results
        return operator(input, states, params, *rest)

    @contextmanager
    def _with_parameters(self) -> Iterator[None]:
        """With the weights as registered parameters; they are what those are in the end."""
        state = self.__dict__
        state.pop(_PACKED, None)  # Tensors that are held elsewhere cannot be swapped.
        before = state[_WEIGHTS]
        ours = {name: _parameter(weight) for name, weight in before.items()}
        _register(self, ours)
        try:
            yield
        finally:
            after = {name: self._parameters.pop(name) for name in ours}
            state[_WEIGHTS] = {
                name: _constant(weight, before[name]) if weight is ours[name] else _copy(weight)
                for name, weight in after.items()
            }
            self._pack()

    def __getattr__(self, name: str) -> Any:
        state = self.__dict__
        if name in state.get(_WEIGHTS, ()) and name not in state["_parameters"]:
            weight = state[_WEIGHTS][name]
            return None if weight is None else weight.detach().clone()
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get(_WEIGHTS, ()) and name not in self._parameters:
            raise AttributeError(
                f"{name} of a {type(self).__name__} cannot be set; fused_rnn.thaw(module) makes it "
                "a parameter again"
            )
        super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        raise RuntimeError(
            f"a {type(self).__name__} has no parameters to reset; fused_rnn.thaw(module) gives "
            "them back"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        with self._with_parameters():
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *arguments: Any, **more: Any) -> None:
        with self._with_parameters():
            super()._load_from_state_dict(*arguments, **more)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        others: dict[str, Any] = {}
        super()._save_to_state_dict(others, prefix, keep_vars)
        weights = self.__dict__[_WEIGHTS]
        for name in self.__dict__[_BEFORE].order:
            if weights.get(name) is not None:
                destination[prefix + name] = weights[name].detach().clone()
            elif prefix + name in others:
                destination[prefix + name] = others.pop(prefix + name)
        destination.update(others)

    def __prepare_scriptable__(self) -> Any:
        twin = object.__new__(_THAWED[type(self)])
        twin.__dict__.update(self.__dict__, _parameters=dict(self._parameters))
        weights = twin.__dict__.pop(_WEIGHTS)
        _give_back(twin, {name: _parameter(_copy(weight)) for name, weight in weights.items()})
        return twin.__prepare_scriptable__()


class _FrozenLayer(Frozen):
    @property
    def _flat_weights(self) -> list[Tensor]:
        """torch's list of the weights follows from them."""
        return self._weights()

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor]) -> None:
        pass

    def _registered(self) -> list[Tensor]:
        return self._weights()

    def _weights_have_changed(self) -> bool:
        return False

    def _operator(self) -> Callable[..., list[Tensor]]:
        return partial(self._compute, "sequence", sequence)


class _FrozenCell(Frozen):
    def _params(self) -> list[Tensor]:
        return self._weights()

    def _operator(self) -> Callable[..., list[Tensor]]:
        return partial(self._compute, "cell", cell)


_compile.never_first(Frozen._compute)


class FrozenLSTM(_FrozenLayer, LSTM):  # type: ignore[misc]  # of _flat_weights
    """What `freeze` makes of an LSTM."""


class FrozenGRU(_FrozenLayer, GRU):  # type: ignore[misc]  # of _flat_weights
    """What `freeze` makes of a GRU."""


class FrozenRNN(_FrozenLayer, RNN):  # type: ignore[misc]  # of _flat_weights
    """What `freeze` makes of an RNN."""


class FrozenLSTMCell(_FrozenCell, LSTMCell):
    """What `freeze` makes of an LSTMCell."""


class FrozenGRUCell(_FrozenCell, GRUCell):
    """What `freeze` makes of a GRUCell."""


class FrozenRNNCell(_FrozenCell, RNNCell):
    """What `freeze` makes of an RNNCell."""


_FROZEN: dict[type, Any] = {
    LSTM: FrozenLSTM,
    GRU: FrozenGRU,
    RNN: FrozenRNN,
    LSTMCell: FrozenLSTMCell,
    GRUCell: FrozenGRUCell,
    RNNCell: FrozenRNNCell,
}
_THAWED: dict[type, Any] = {frozen: thawed for thawed, frozen in _FROZEN.items()}


def freeze_module(module: Any, copied: dict[int, Tensor | None], tokens: dict[int, object]) -> None:
    """Gives a module its frozen form, in place, if its class is one of this package's and its
    weights are its registered parameters, not computed at every call.

    Args:
        module: any module.
        copied, tokens: the copies of parameters, and an object for each, by their id, of modules
            that were frozen before it.
    """
    if type(module) not in _FROZEN:
        return
    state = module.__dict__
    parameters = module._parameters
    names = (
        module._flat_weights_names
        if isinstance(module, torch.nn.RNNBase)
        else ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    if not all(name in parameters for name in names):
        return
    for name in names:
        weight = parameters[name]
        if id(weight) not in copied:
            copied[id(weight)] = _copy(weight)
    state[_BEFORE] = _Before(parameters, tokens)
    state[_WEIGHTS] = {name: copied[id(parameters.pop(name))] for name in names}
    state.pop("_flat_weights", None)
    module.__class__ = _FROZEN[type(module)]
    module._pack()
    _pack_now(module)


def thaw_module(module: Any, given: dict[int, Any]) -> None:
    """The inverse.

    Args:
        module: any module.
        given: the parameters, by the id of the weights they have and of what tied ones share, of
            modules thawed before it.
    """
    if type(module) not in _THAWED:
        return
    state = module.__dict__
    weights = state.pop(_WEIGHTS)
    before = state[_BEFORE]
    for name, weight in weights.items():
        if weight is None or id(weight) in given:
            continue
        # A weight that `to` has separated from those it was tied to is tied again, unless they
        # differ by now.
        token = before.tied.get(name, weight)
        tied = given.get(id(token))
        if tied is not None and _equal(tied, weight):
            parameter = tied
        else:
            held = before.alive[name]() if tied is None and name in before.alive else None
            parameter = _thawed(weight, held).requires_grad_(before.trained.get(name, True))
        given[id(weight)] = parameter
        given.setdefault(id(token), parameter)
    parameters = {name: given.get(id(weight)) for name, weight in weights.items()}
    module.__class__ = _THAWED[type(module)]
    _give_back(module, parameters)


def _thawed(weight: Tensor, before: Parameter | None) -> Any:
    """A weight as a parameter: the one it was before, if that is still alive and as large."""
    if before is None or before.is_inference() or before.is_meta or before.shape != weight.shape:
        return _parameter(weight)
    if before.dtype == weight.dtype and before.device == weight.device:
        with torch.no_grad():
            before.copy_(weight)
    else:
        before.data = weight
    return before


def _equal(one: Tensor, other: Tensor) -> bool:
    alike = one.device == other.device and one.dtype == other.dtype and one.shape == other.shape
    return alike and torch.equal(one, other)


def _parameter(weight: Any) -> Any:
    """Over the same memory; None of None."""
    return None if weight is None else Parameter(weight, requires_grad=False)


def _constant(weight: Tensor | None, before: Tensor | None) -> Tensor | None:
    """A parameter as a tensor: the one before, where both are the same memory seen in the same way,
    so that what is tied stays so."""

    def seen(tensor: Tensor) -> tuple[Any, ...]:
        return tensor.device, tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr()

    if weight is None or (before is not None and seen(weight) == seen(before)):
        return before
    # Tensors made in inference mode have no version.
    return _copy(weight) if weight.is_inference() else weight.detach()


def _copy(weight: Tensor | None) -> Tensor | None:
    """A weight of a frozen module's own; those of types of the user's as they are."""
    if weight is None or type(weight) not in PLAIN:
        return None if weight is None else weight.detach()
    # The mode that is on now is not to be that of later calls.
    with torch.inference_mode(False), torch.no_grad():
        return weight.detach().clone(memory_format=torch.contiguous_format)


def _pack_now(module: Any) -> None:
    """A first call, so that processes forked later share the packed weights."""
    packed, weights = module.__dict__.get(_PACKED), module._weights()
    if packed is None or not weights or not weights[0].is_cpu or weights[0].dtype not in DTYPES:
        return
    x = weights[0].new_zeros(1, module.input_size)
    with torch.no_grad():
        if isinstance(module, torch.nn.RNNBase):
            layers = CELLS[module.mode], module.num_layers, module.bidirectional
            packed.sequence(x.unsqueeze(0), [], None, *layers)
        else:
            packed.cell(x, [], module._cell())


def _give_back(module: Any, parameters: dict[str, Any]) -> None:
    """Makes these the weights of a module that has its former class again."""
    state = module.__dict__
    state.pop(_PACKED, None)
    _register(module, parameters)
    del state[_BEFORE]
    if isinstance(module, torch.nn.RNNBase):
        module._init_flat_weights()


def _register(module: Any, weights: dict[str, Any]) -> None:
    """Puts weights among a module's parameters, in the order that they had."""
    parameters = module._parameters
    every = parameters | weights
    parameters.clear()
    order = module.__dict__[_BEFORE].order
    parameters.update((name, every[name]) for name in order if name in every)
    parameters.update(every)
