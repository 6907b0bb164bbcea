"""Changes the recurrent layers of an existing model: to this package's, to their frozen form, and
back."""

from typing import Any, TypeVar

import torch
from torch.nn.utils import parametrize

from .cells import GRUCell, LSTMCell, RNNCell
from .frozen import freeze_module, thaw_module
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
    """The inverse of `accelerate`, and of `freeze`: every module whose class is exactly one of this
    package's becomes torch.nn's, in place, whether or not it was one before.

    Returns:
        The same model.
    """
    thaw(model)
    _change(model, _TORCH)
    return model


def freeze(model: _Model) -> _Model:
    """Makes every recurrent layer and cell of a model, the model itself included, one for
    inference: its weights are packed for the kernels once, not at every call.

    torch.nn's are first made this package's, as `accelerate` does. Modules are changed in place; a
    frozen one takes the same calls with the same results, gradients of its inputs included. It has
    a copy of the weights and no parameters: `parameters()`, functional calls and what goes through
    parameters, such as `requires_grad_` and initializers, pass it by, and what happens to the
    parameters it had does not change it. Reading a weight gives a copy, and so does `state_dict`;
    setting one is an AttributeError. `load_state_dict`, `to`, copies and pickles work as before;
    processes that share a frozen module do not see each other's changes.

    What is computed from the packed weights are eager calls on the CPU that nothing is to be
    differentiated by, or dropped out between layers; all others go the way they go unfrozen.

    Left alone: what `accelerate` leaves alone, and modules that compute their weights at every
    call (parametrized, pruned, with weight_norm).

    Memory: the weights twice, as they were and packed; the latter in float32 where float16 or
    bfloat16 is computed in it.

    Args:
        model: any module.

    Returns:
        The same model.
    """
    accelerate(model)
    copied: dict[int, torch.Tensor | None] = {}
    tokens: dict[int, object] = {}
    for module in model.modules():
        freeze_module(module, copied, tokens)
    return model


def thaw(model: _Model) -> _Model:
    """The inverse of `freeze`: every frozen module has parameters again, with its weights and with
    requires_grad as it was. They are the objects that it had before, if somebody, such as an
    optimizer, still holds them. Modules that were torch.nn's stay this package's.

    Returns:
        The same model.
    """
    given: dict[int, Any] = {}
    for module in model.modules():
        thaw_module(module, given)
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
