"""LSTMCell, GRUCell and RNNCell: torch.nn's modules with a forward pass on the fused operators."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _compile, reference
from ._narrow import in_one_type
from ._ops import cell, cell_op
from ._ops import direct_cell as direct
from ._traits import TRAITS
from .dispatch import (
    DIFFERENTIABLE,
    PLAIN,
    Fused,
    as_states,
    cell_misfit,
    cell_types,
    check_devices,
    is_exporting,
    is_traced,
    obstacle,
    symbolic_call,
    traced_obstacle,
)

_RANKS = (1, 2)
_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _Cell(torch.nn.RNNCellBase, Fused):
    """What the three cells share; see layers._Layer."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As torch.nn's cell of the same name: arguments, results and errors."""
        if is_compiling() and is_traced():
            return self._traced(input, hx)
        kind = self._cell()
        results = direct(self, input, hx, kind)
        if results is not None:
            return results
        if not isinstance(input, Tensor):
            if isinstance(input, torch.fx.Proxy):
                return symbolic_call(self, super().forward, input, hx)
            return super().forward(input, hx)
        states = [] if hx is None else as_states(hx, kind)
        reason = obstacle(input, _RANKS, self.input_size, states)
        types = cell_types(self, input, states, kind, reason)
        if types is not None:
            results = self._try(reason, types, input, states, self._params(), kind)
            if results is not None:
                return results
        return super().forward(input, hx)

    def _try(
        self,
        reason: str | None,
        types: list[torch.dtype],
        input: Tensor,
        states: list[Tensor],
        params: list[Tensor],
        kind: str,
    ) -> Any:
        """The results of a call with this obstacle, of these types under autocast; None where torch
        is to take it."""
        if types:

            def run(input: Tensor, states: list[Tensor], params: list[Tensor]) -> Any:
                reason = obstacle(input, _RANKS, self.input_size, states)
                return self._try(reason, [], input, states, params, kind)

            return in_one_type(run, types, input, states, params)
        if reason in DIFFERENTIABLE:
            if cell_misfit(self, input, states, params, kind):
                return None
            return self._step(reference.cell, input, states, params, kind)
        if reason is not None or not PLAIN.issuperset(map(type, params)):
            return None
        try:
            return self._step(self._operator(), input, states, params, kind)
        except RuntimeError:
            if cell_misfit(self, input, states, params, kind) is None:
                raise
        check_devices(input, [*states, *params])
        return None

    def _operator(self) -> Callable[..., list[Tensor]]:
        """What computes a call that is fused."""
        return cell

    def _cell(self) -> str:
        """The operators' name of the cell."""
        raise NotImplementedError

    def _params(self) -> list[Tensor]:
        """The parameters in the operators' order, as they are at this moment."""
        parameters = self._parameters
        try:
            params = [
                parameters["weight_ih"],
                parameters["weight_hh"],
                parameters["bias_ih"],
                parameters["bias_hh"],
            ]
        except KeyError:
            # Pruning and parametrizations put a computed tensor in a parameter's place.
            params = [getattr(self, name) for name in _NAMES]
        if params[2] is None and params[3] is None:
            del params[2:]
        return params  # type: ignore[return-value]

    def _traced_weights(self) -> list[Tensor]:
        """The parameters in the operators' order."""
        return [tensor for name in _NAMES if (tensor := getattr(self, name)) is not None]

    def _step(
        self,
        step: Callable[..., list[Tensor]],
        input: Tensor,
        states: list[Tensor],
        params: list[Tensor],
        kind: str,
    ) -> Any:
        """Runs `step`, the operator or what takes its arguments, on an input [B, I] or [I]."""
        if input.dim() == 2:
            results = step(input, states, params, kind)
        else:
            results = step(
                input.unsqueeze(0), [state.unsqueeze(0) for state in states], params, kind
            )
            results = [result.squeeze(0) for result in results]
        return results[0] if len(results) == 1 else (results[0], results[1])

    def _traced(self, input: Any, hx: Any) -> Any:
        """forward under torch.compile and torch.export."""
        if isinstance(input, Tensor) and (hx is None or isinstance(hx, (Tensor, tuple, list))):
            kind = self._cell()
            params = self._traced_weights()
            states = as_states(hx, kind)
            reason = traced_obstacle(input, _RANKS)
            # Sizes are looked at while tracing, so a graph holds a call that fits, or torch's.
            if cell_misfit(self, input, states, params, kind) is None:
                if reason is None:
                    if not states and is_exporting():
                        # AOTInductor's run time cannot pass an empty list.
                        size = (*input.shape[:-1], self.hidden_size)
                        states = [input.new_zeros(size) for _ in range(TRAITS[kind].states)]
                    return self._step(cell_op, input, states, params, kind)
                if reason in DIFFERENTIABLE:
                    return self._step(reference.cell, input, states, params, kind)
        return super().forward(input, hx)


_compile.never_first(_Cell._try, _Cell._step)


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """torch.nn.LSTMCell on a fused kernel: the same constructor, parameters, arguments and results.

    Input [B, I] or [I]; hx a pair of h and c, [B, H] or [H] each, zeros where not given. Result:
    h', c'.
    """

    def _cell(self) -> str:
        return "lstm"


class GRUCell(_Cell, torch.nn.GRUCell):
    """torch.nn.GRUCell on a fused kernel: the same constructor, parameters, arguments and results.

    Input [B, I] or [I]; hx [B, H] or [H], zeros where not given. Result: h'.
    """

    def _cell(self) -> str:
        return "gru"


class RNNCell(_Cell, torch.nn.RNNCell):
    """torch.nn.RNNCell, tanh or relu, on a fused kernel: the same constructor, parameters,
    arguments and results.

    Input [B, I] or [I]; hx [B, H] or [H], zeros where not given. Result: h'.
    """

    def _cell(self) -> str:
        # An unknown nonlinearity is torch's to refuse, after the operator has.
        return "rnn_" + self.nonlinearity
