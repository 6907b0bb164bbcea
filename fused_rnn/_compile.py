"""What torch.compile must be told about the modules.

Dynamo, which records what torch.compile compiles, stops at every instance of torch.nn.LSTM, GRU or
RNN unless torch._dynamo.config.allow_rnn is set, because the loops behind torch's layers unroll.
This package's layers are subclasses of those and one operator each, so they are let in, and they
alone: the setting changes for the moment in which Dynamo wraps one of them. No public registry
takes such an exception, hence the private method here; should it be missing one day, Dynamo leaves
the graph at the layers, which then run outside of it with the same results.

Dynamo takes seconds to import and most programs do without, so this waits until it is imported.
"""

import functools
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from .dispatch import Fused


def _call(forward: Any, module: torch.nn.Module, input: Any, hx: Any) -> Any:
    return forward(module, input, hx)


outside: Callable[..., Any] = _call
"""outside(forward, module, input, hx) calls forward(module, input, hx), under torch.compile outside
of the graph. So go the layers' calls that a graph does not hold fused."""


_eager: list[Callable[..., Any]] = []


def never_first(*functions: Callable[..., Any]) -> None:
    """Functions that Dynamo may follow into but not begin with.

    Where recording a call ends in an error, Dynamo runs it as it stands and looks at each function
    that it calls as something new to record: here that would be the eager way.
    """
    _eager.extend(functions)
    if "torch._dynamo" in sys.modules:
        _mark(sys.modules["torch._dynamo"])


def _mark(dynamo: ModuleType) -> None:
    skip = getattr(dynamo.eval_frame, "skip_code", None)
    while _eager:
        function = _eager.pop()
        if skip is not None:
            skip(function.__code__)


def _register(dynamo: ModuleType) -> None:
    global outside
    _mark(dynamo)
    disable: Any = torch.compiler.disable
    outside = disable(_call, reason="a call that is not fused in a graph runs outside of it")
    builder: Any = dynamo.variables.builder.VariableBuilder
    wrap_module = getattr(builder, "wrap_module", None)
    if wrap_module is None:
        return

    @functools.wraps(wrap_module)
    def wrap(self: Any, value: torch.nn.Module) -> Any:
        if isinstance(value, Fused):
            with dynamo.config.patch(allow_rnn=True):  # Of this thread.
                return wrap_module(self, value)
        return wrap_module(self, value)

    builder.wrap_module = wrap


class _Importing(importlib.abc.MetaPathFinder):
    """Calls `_register` once torch._dynamo has been imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torch._dynamo":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "torch._dynamo" in sys.modules:
    _register(sys.modules["torch._dynamo"])
else:
    sys.meta_path.insert(0, _Importing())
