"""Layers and cells for inference, whose weights are packed once and not at every call.

A frozen module has no parameters. Its weights are a copy that nobody outside can change unseen: so
the packed form of them cannot go stale. What changes them through the module (`load_state_dict`,
`to`) packs them again.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ._ops import direct_cell, direct_layer, extension
from .cells import GRUCell, LSTMCell, RNNCell
from .dispatch import PLAIN, symbolic_call
from .layers import GRU, LSTM, RNN

_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Frozen(torch.nn.Module):
    """What comes before a class of this package among the bases of its frozen form.

    `_thawed` is a module of that class with the weights, and takes all calls but the plain ones;
    no child of the frozen module, so that its parameters are not the model's. `_frozen` is what
    the compiled extension makes of the same weights. Both are in the module's __dict__ alone.
    """

    def _unpacked(self: Any, input: Any, hx: Any) -> Any:
        """The results of a call that is not a plain one."""
        if isinstance(input, torch.fx.Proxy):
            return symbolic_call(self, self._thawed.forward, input, hx)
        if self._thawed.training != self.training:
            self._thawed.training = self.training
        return self._thawed.forward(input, hx)

    def _pack(self: Any) -> None:
        """To be called whenever the weights are others."""
        weights = [weight.detach() for weight in _weights(self._thawed).values()]
        self.__dict__["_frozen"] = extension.Frozen(weights)

    # The weights are still to be seen, copied and replaced as a whole.

    def __getattr__(self: Any, name: str) -> Any:
        thawed = self.__dict__.get("_thawed")
        if thawed is not None and name in thawed._parameters:
            weight = thawed._parameters[name]
            return None if weight is None else weight.detach().clone()
        return super().__getattr__(name)

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if name in self._thawed._parameters:
            raise AttributeError(
                f"{name} of a frozen {type(self._thawed).__name__} cannot be set; "
                "fused_rnn.thaw(module) makes it a parameter again"
            )
        super().__setattr__(name, value)

    def reset_parameters(self: Any) -> None:
        raise RuntimeError(
            f"a frozen {type(self._thawed).__name__} has no parameters to reset; "
            "fused_rnn.thaw(module) gives them back"
        )

    def _apply(self: Any, fn: Any, recurse: bool = True) -> Any:
        torch.nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]
        self._thawed._apply(fn, recurse)
        self._pack()
        return self

    def _save_to_state_dict(self: Any, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, weight in _weights(self._thawed).items():
            destination[prefix + name] = weight.detach().clone()

    def _load_from_state_dict(
        self: Any,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        unexpected = []
        for load in (super()._load_from_state_dict, self._thawed._load_from_state_dict):
            keys: list[str] = []
            load(state_dict, prefix, local_metadata, strict, missing_keys, keys, error_msgs)
            unexpected.append(keys)
        unexpected_keys.extend(key for key in unexpected[0] if key in unexpected[1])
        self._pack()

    def __getstate__(self: Any) -> dict[str, Any]:
        state: dict[str, Any] = self.__dict__.copy()
        del state["_frozen"]  # It is made of the rest.
        return state

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        self.__dict__["_thawed"] = state["_thawed"]
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._pack()

    def __prepare_scriptable__(self: Any) -> Any:
        return self._thawed.train(self.training).__prepare_scriptable__()


class _FrozenLayer(Frozen):
    def forward(self, input: Any, hx: Any = None) -> Any:
        """As before freezing: arguments, results and errors."""
        if not is_compiling():
            results = direct_layer(self, input, hx)
            if results is not None:
                return results
        return self._unpacked(input, hx)


class _FrozenCell(Frozen):
    def forward(self: Any, input: Any, hx: Any = None) -> Any:
        """As before freezing: arguments, results and errors."""
        if not is_compiling():
            results = direct_cell(self, input, hx, self._cell())
            if results is not None:
                return results
        return self._unpacked(input, hx)


class FrozenLSTM(_FrozenLayer, LSTM):
    """What `freeze` makes of an LSTM."""


class FrozenGRU(_FrozenLayer, GRU):
    """What `freeze` makes of a GRU."""


class FrozenRNN(_FrozenLayer, RNN):
    """What `freeze` makes of an RNN."""


class FrozenLSTMCell(_FrozenCell, LSTMCell):
    """What `freeze` makes of an LSTMCell."""


class FrozenGRUCell(_FrozenCell, GRUCell):
    """What `freeze` makes of a GRUCell."""


class FrozenRNNCell(_FrozenCell, RNNCell):
    """What `freeze` makes of an RNNCell."""


FROZEN: dict[type, type] = {
    LSTM: FrozenLSTM,
    GRU: FrozenGRU,
    RNN: FrozenRNN,
    LSTMCell: FrozenLSTMCell,
    GRUCell: FrozenGRUCell,
    RNNCell: FrozenRNNCell,
}
"""A class of this package: its frozen form."""


def freeze_module(module: Any) -> None:
    """Gives a module of this package its frozen form, in place; nothing where its weights are not
    its registered parameters, but computed at every call."""
    names = _weight_names(module)
    parameters = module._parameters
    if not all(name in parameters for name in names):
        return
    if not PLAIN.issuperset(type(weight) for weight in _weights(module).values()):
        return
    state = module.__dict__
    thawed: Any = object.__new__(type(module))
    torch.nn.Module.__init__(thawed)
    thawed.training = module.training
    for name, value in state.items():  # Sizes and options.
        thawed.__dict__.setdefault(name, value)
    state["_trainable"] = {name: w.requires_grad for name, w in _weights(module).items()}
    # The mode that is on now is not to be that of the copies.
    with torch.inference_mode(False), torch.no_grad():
        for name in names:
            weight = parameters.pop(name)
            if weight is not None:
                weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
            thawed._parameters[name] = weight
    _set_flat_weights(thawed, list(_weights(thawed).values()))
    _set_flat_weights(module, [])
    module.__class__ = FROZEN[type(module)]
    state["_thawed"] = thawed
    module._pack()


def thaw_module(module: Any) -> None:
    """The inverse, with new parameters."""
    state = module.__dict__
    module.__class__ = type(state["_thawed"])
    del state["_frozen"]
    thawed, trainable = state.pop("_thawed"), state.pop("_trainable")
    for name in _weight_names(module):
        weight = thawed._parameters[name]
        if weight is not None:
            weight.requires_grad_(trainable[name])
        module._parameters[name] = weight
    _set_flat_weights(module, list(_weights(module).values()))


def _weight_names(module: Any) -> list[str]:
    """In the operators' order; those of biases that a cell does without as well."""
    if isinstance(module, torch.nn.RNNBase):
        return list(module._flat_weights_names)
    return list(_CELL_WEIGHTS)


def _weights(module: Any) -> dict[str, Tensor]:
    """In the operators' order."""
    weights = {name: module._parameters[name] for name in _weight_names(module)}
    return {name: weight for name, weight in weights.items() if weight is not None}


def _set_flat_weights(module: Any, weights: list[Tensor]) -> None:
    """torch's own list of a layer's weights; cells have none."""
    if isinstance(module, torch.nn.RNNBase):
        module.__dict__["_flat_weights"] = weights
        module.__dict__["_flat_weight_refs"] = [weakref.ref(weight) for weight in weights]
