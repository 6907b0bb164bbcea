"""Layers and cells for inference, whose weights are packed once and not at every call.

A frozen module has its parameters aside, where `parameters()`, optimizers and functional calls do
not find them. At each call the compiled extension asks torch whether they have changed: operators
that change a tensor in place count its version up, and a new `data` lies elsewhere in memory. What
no one counts is writing to the memory of the old `data`, which is how many optimizers and training
loops change the parameters they find; that is why they should find none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ._ops import direct_cell, direct_layer, extension
from .cells import GRUCell, LSTMCell, RNNCell
from .dispatch import PLAIN, WIDE
from .layers import GRU, LSTM, RNN

# Attributes of a frozen module. Its parameters by name, None for biases that a cell lacks:
_WEIGHTS = "_fused_rnn_weights"
# the names of all its parameters when it was frozen, in order;
_ORDER = "_fused_rnn_order"
# made of the weights: the same tensors without gradients (tracers would record a detach()),
_CONSTANTS = "_fused_rnn_constants"
# and the packed ones, where direct.cpp looks for them; absent where they cannot be packed.
_PACKED = "_fused_rnn_packed"

_is_alias = torch._C._is_alias_of  # type: ignore[attr-defined]


class Frozen(torch.nn.Module):
    """What comes before a class of this package among the bases of its frozen form.

    Plain calls are computed from the packed weights; all others as by that class, from weights
    that need no gradient.
    """

    def _constants(self) -> dict[str, Tensor | None]:
        """The weights by name."""
        state = self.__dict__
        if not is_compiling():
            pairs = zip(state[_CONSTANTS].values(), state[_WEIGHTS].values(), strict=True)
            if not all(one is None or _is_alias(one, other) for one, other in pairs):
                self._pack()  # A parameter's `data` is another.
        constants: dict[str, Tensor | None] = state[_CONSTANTS]
        return constants

    def _weights(self) -> list[Tensor]:
        """In the operators' order."""
        return [weight for weight in self._constants().values() if weight is not None]

    _traced_weights = _weights

    def _pack(self) -> None:
        """To be called when the parameters are other tensors."""
        state = self.__dict__
        parameters = state[_WEIGHTS]
        # The mode that is on now is not to be that of later calls.
        with torch.inference_mode(False):
            state[_CONSTANTS] = {
                name: None if weight is None else weight.detach()
                for name, weight in parameters.items()
            }
        state.pop(_PACKED, None)
        weights = [weight for weight in parameters.values() if weight is not None]
        if PLAIN.issuperset(map(type, weights)):
            state[_PACKED] = extension.Frozen(weights)

    @contextmanager
    def _with_parameters(self) -> Iterator[None]:
        """With the weights among the registered parameters, where they were; what they are in the
        end counts."""
        state = self.__dict__
        before = state[_WEIGHTS]
        _register(self._parameters, before, state[_ORDER])
        try:
            yield
        finally:
            state[_WEIGHTS] = {name: self._parameters.pop(name) for name in before}
            if not all(map(is_, state[_WEIGHTS].values(), before.values())):
                self._pack()

    def __getattr__(self, name: str) -> Any:
        state = self.__dict__
        if name in state.get(_WEIGHTS, ()) and name not in state["_parameters"]:
            return self._constants()[name]
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

    def _save_to_state_dict(self, *arguments: Any) -> None:
        with self._with_parameters():
            super()._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        with self._with_parameters():
            super()._load_from_state_dict(*arguments)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {name: value for name, value in state.items() if name not in (_CONSTANTS, _PACKED)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pack()
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def __prepare_scriptable__(self) -> Any:
        twin = object.__new__(_THAWED[type(self)])
        twin.__dict__.update(self.__dict__, _parameters=dict(self._parameters))
        _give_back(twin)
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


class _FrozenCell(Frozen):
    def _params(self) -> list[Tensor]:
        return self._weights()


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


def freeze_module(module: Any) -> None:
    """Gives a module its frozen form, in place, if its class is one of this package's and its
    weights are its registered parameters, not computed at every call."""
    if type(module) not in _FROZEN:
        return
    parameters = module._parameters
    names = (
        module._flat_weights_names
        if isinstance(module, torch.nn.RNNBase)
        else ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    if not all(name in parameters for name in names):
        return
    state = module.__dict__
    state[_ORDER] = list(parameters)
    state[_WEIGHTS] = {name: parameters.pop(name) for name in names}
    state.pop("_flat_weights", None)
    module.__class__ = _FROZEN[type(module)]
    try:
        module._pack()
        _pack_now(module)
    except BaseException:
        thaw_module(module)
        raise


def thaw_module(module: Any) -> None:
    """The inverse, with the same parameters."""
    module.__class__ = _THAWED[type(module)]
    _give_back(module)


def _pack_now(module: Any) -> None:
    """A first call, so that processes forked later share the packed weights."""
    weights = module._weights()
    if not weights or not weights[0].is_cpu or weights[0].dtype not in WIDE:
        return
    x = weights[0].new_zeros(1, module.input_size)
    with torch.no_grad():
        if isinstance(module, torch.nn.RNNBase):
            direct_layer(module, x, None)
        else:
            direct_cell(module, x, None, module._cell())


def _give_back(module: Any) -> None:
    """Makes the weights parameters again, of a module that has its former class."""
    state = module.__dict__
    state.pop(_CONSTANTS, None)
    state.pop(_PACKED, None)
    _register(state["_parameters"], state.pop(_WEIGHTS), state.pop(_ORDER))
    if isinstance(module, torch.nn.RNNBase):
        module._init_flat_weights()


def _register(parameters: dict[str, Any], weights: dict[str, Any], order: list[str]) -> None:
    """Puts the weights among a module's parameters, those of these names first."""
    every = parameters | weights
    parameters.clear()
    parameters.update((name, every[name]) for name in order if name in every)
    parameters.update(every)
