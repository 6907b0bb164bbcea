"""Swaps the recurrent layers of an existing model for this package's, and back."""

from typing import Any, TypeVar

import torch
from torch.nn.utils import parametrize

from .cells import GRUCell, LSTMCell, RNNCell
from .layers import GRU, LSTM, RNN

_Model = TypeVar("_Model", bound=torch.nn.Module)

_FUSED: dict[type, type] = {
    torch.nn.LSTM: LSTM,
    torch.nn.GRU: GRU,
    torch.nn.RNN: RNN,
    torch.nn.LSTMCell: LSTMCell,
    torch.nn.GRUCell: GRUCell,
    torch.nn.RNNCell: RNNCell,
}
_TORCH = {fused: plain for plain, fused in _FUSED.items()}

# A module changes by its __class__ alone. A new module would have to be filled with everything
# that hangs on the old one (parameters, hooks, mode, attributes of the user's) and put wherever the
# old one is referred to, of which the model's tree is only one place: closures of hooks, containers
# that are no modules and other models hold it as well. The object itself is in all of them. The
# classes differ in methods only, so nothing about the object has to change.


def accelerate(model: _Model) -> _Model:
    """Makes every torch.nn recurrent layer and cell of a model, the model itself included, one of
    this package.

    Modules whose class is exactly torch.nn's are changed in place, so parameters, buffers, hooks,
    names, training mode and shared modules stay as they are, and so does everything that refers to
    them. Parametrized ones (torch.nn.utils.parametrize) are changed too. Left alone: subclasses
    written by users, scripted and quantized modules, and classes made by wrappers such as
    fully_shard, so call this before those.

    Args:
        model: any module.

    Returns:
        The same model.
    """
    _change(model, _FUSED)
    return model


def restore(model: _Model) -> _Model:
    """The inverse of `accelerate`: every module whose class is exactly one of this package's
    becomes torch.nn's, in place, whether or not it was one before.

    Returns:
        The same model.
    """
    _change(model, _TORCH)
    return model


def _change(model: torch.nn.Module, classes: dict[type, type]) -> None:
    for module in model.modules():
        kind = type(module)
        if kind in classes:
            module.__class__ = classes[kind]
        elif (
            kind.__module__ == parametrize.__name__
            and len(kind.__bases__) == 1
            and kind.__bases__[0] in classes
        ):
            _change_parametrized(module, classes[kind.__bases__[0]])


def _change_parametrized(module: torch.nn.Module, base: type) -> None:
    """Gives a parametrized module the other base class.

    parametrize derives a class from the module's own to put properties on, with that class as its
    only base. A copy of the class is derived rather than its base replaced: deep copies of the
    module share it.
    """
    names: dict[str, Any] = {
        name: value
        for name, value in vars(type(module)).items()
        if name not in ("__dict__", "__weakref__", "__doc__")
    }
    module.__class__ = type(f"Parametrized{base.__name__}", (base,), names)
