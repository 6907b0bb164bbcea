"""LSTM, GRU and RNN: torch.nn's modules with a forward pass on the fused operators."""

from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.utils.rnn import PackedSequence

from . import _compile, reference
from ._narrow import in_one_type
from ._ops import direct_layer as direct
from ._ops import sequence, sequence_op
from .dispatch import (
    CELLS,
    DIFFERENTIABLE,
    OVERCOME,
    PLAIN,
    TRACE,
    Fused,
    as_states,
    check_packed,
    check_weights,
    is_exporting,
    is_traced,
    layer_misfit,
    layer_types,
    obstacle,
    state_sizes,
    symbolic_call,
    traced_obstacle,
)
from .functional import layers_with_dropout

_DENSE = (2, 3)
_PACKED = (2,)


class _Layer(torch.nn.RNNBase, Fused):
    """What the three layers share. Their parameters, and all that is not the forward pass, are
    torch.nn's: a subclass has torch's layer after this class among its bases.

    No packed or converted copy of the weights is kept, so however they are changed, the next call
    sees it. (Those of a frozen layer are: frozen.py.)
    """

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As torch.nn's layer of the same name: arguments, results and errors.

        A RuntimeError is raised as well for what torch lets pass: a PackedSequence whose
        batch_sizes are not positive, sorted and complete, its hx of a wrong size or dtype, and an
        LSTM's weights of a wrong size.
        """
        if is_compiling() and is_traced():
            return self._traced(input, hx)
        results = direct(self, input, hx)
        if results is not None:
            return results
        if type(input) is not Tensor:
            if isinstance(input, PackedSequence):
                return self._packed(input, hx)
            if isinstance(input, torch.fx.Proxy):
                return symbolic_call(self, super().forward, input, hx)
            if not isinstance(input, Tensor):
                return super().forward(input, hx)
        states = [] if hx is None else as_states(hx, CELLS[self.mode])
        reason = obstacle(input, _DENSE, self.input_size, states)
        types = layer_types(self, input, None, states, reason)
        if types is not None:
            results = self._try(reason, types, input, states, self._weights())
            if results is not None:
                return results
        if reason in OVERCOME:
            check_weights(self, self._registered())
        return super().forward(input, hx)

    def _try(
        self,
        reason: str | None,
        types: list[torch.dtype],
        input: Tensor,
        states: list[Tensor],
        weights: list[Tensor],
    ) -> Any:
        """The results of a dense call with this obstacle, of these types under autocast; None where
        torch is to take it."""
        if types:

            def run(input: Tensor, states: list[Tensor], weights: list[Tensor]) -> Any:
                reason = obstacle(input, _DENSE, self.input_size, states)
                return self._try(reason, [], input, states, weights)

            return in_one_type(run, types, input, states, weights)
        if reason in DIFFERENTIABLE:
            if layer_misfit(self, input, None, states, weights):
                return None
            return self._dense(reference.layers, input, states, weights)
        if reason is not None or not PLAIN.issuperset(map(type, weights)):
            return None
        try:
            return self._dense(self._operator(), input, states, weights)
        except (RuntimeError, IndexError):
            if layer_misfit(self, input, None, states, weights) is None:
                raise
        check_weights(self, weights)
        return None

    def _operator(self) -> Callable[..., list[Tensor]]:
        """What computes a call that is fused."""
        return sequence

    def _registered(self) -> list[Any]:
        """The parameters as registered, None in the place of computed ones."""
        return [self._parameters.get(name) for name in self._flat_weights_names]

    def _weights(self) -> list[Tensor]:
        """The parameters in the operators' order, as they are at this moment."""
        weights: Any = self._flat_weights
        parameters = self._parameters
        # As long as torch's list holds the registered parameters, and nothing else is registered,
        # it is up to date. In functional calls, with pruning and with parametrizations it is not;
        # torch then stores the computed weights in it, which keeps their graph alive and makes the
        # module impossible to copy, so here they are only read: exactly as often as torch reads
        # them, because reading one may draw random numbers or advance a power iteration.
        current = len(parameters) == len(weights) and all(map(is_, parameters.values(), weights))
        if not current and self._weights_have_changed():  # type: ignore[no-untyped-call]
            weights = [
                getattr(self, name) if hasattr(self, name) else None
                for name in self._flat_weights_names
            ]
        return weights  # type: ignore[no-any-return]

    def _dense(
        self,
        layers: Callable[..., list[Tensor]],
        input: Tensor,
        states: list[Tensor],
        weights: list[Tensor],
    ) -> Any:
        """Runs `layers`, the operator or what takes its arguments, on an input [T, B, I], [B, T, I]
        with batch_first, or [T, I]."""
        batched = input.dim() == 3
        if not batched:
            input = input.unsqueeze(1)
            states = [state.unsqueeze(1) for state in states]
        elif self.batch_first:
            input = input.transpose(0, 1)
        results = self._run(layers, input, states, weights, None)
        if not batched:
            results = [result.squeeze(1) for result in results]
        elif self.batch_first:
            results[0] = results[0].transpose(0, 1)
        if len(results) == 3:
            return results[0], (results[1], results[2])
        return results[0], results[1]

    def _run(
        self,
        layers: Callable[..., list[Tensor]],
        input: Tensor,
        states: list[Tensor],
        weights: list[Tensor],
        batch_sizes: Tensor | None,
    ) -> list[Tensor]:
        cell = CELLS[self.mode]
        if self.dropout and self.training and self.num_layers > 1:
            return layers_with_dropout(
                layers,
                input,
                states,
                weights,
                batch_sizes,
                cell,
                self.num_layers,
                self.bidirectional,
                self.dropout,
            )
        return layers(
            input, states, weights, batch_sizes, cell, self.num_layers, self.bidirectional
        )

    def _packed(self, input: PackedSequence, hx: Any) -> Any:
        states = as_states(hx, CELLS[self.mode])
        reason = obstacle(input.data, _PACKED, self.input_size, states)
        if reason != TRACE:
            types = layer_types(self, input.data, input.batch_sizes, states, reason)
            # What neither torch nor the reference checks; the operator does.
            if types is None or reason in DIFFERENTIABLE:
                check_packed(self, input.data, input.batch_sizes, states)
            if types is not None:
                results = self._try_packed(reason, types, input, states, self._weights())
                if results is not None:
                    return results
                check_packed(self, input.data, input.batch_sizes, states)
            if reason in OVERCOME:
                check_weights(self, self._registered())
        return super().forward(input, hx)

    def _try_packed(
        self,
        reason: str | None,
        types: list[torch.dtype],
        input: PackedSequence,
        states: list[Tensor],
        weights: list[Tensor],
    ) -> Any:
        """The same as _try() for a packed call."""
        data, batch_sizes = input[:2]
        if types:

            def run(data: Tensor, states: list[Tensor], weights: list[Tensor]) -> Any:
                reason = obstacle(data, _PACKED, self.input_size, states)
                return self._try_packed(reason, [], input._replace(data=data), states, weights)

            return in_one_type(run, types, data, states, weights)
        layers = self._operator()
        if reason in DIFFERENTIABLE:
            if layer_misfit(self, data, batch_sizes, states, weights):
                return None
            layers = reference.layers
        elif reason is not None or not PLAIN.issuperset(map(type, weights)):
            return None
        try:
            return self._run_packed(layers, input, states, weights)
        except (RuntimeError, IndexError):
            check_packed(self, data, batch_sizes, states)
            if layer_misfit(self, data, batch_sizes, states, weights) is None:
                raise
        check_weights(self, weights)
        return None

    def _run_packed(
        self,
        layers: Callable[..., list[Tensor]],
        input: PackedSequence,
        states: list[Tensor],
        weights: list[Tensor],
    ) -> Any:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if states and sorted_indices is not None:
            # Selecting rows would hide that hx has too many.
            rows = sorted_indices.shape[0]
            for state in states:
                if state.shape[1] != rows:
                    raise RuntimeError(
                        f"hx must have the {rows} sequences of sorted_indices, got {state.shape[1]}"
                    )
            states = [state.index_select(1, sorted_indices) for state in states]
        results = self._run(layers, data, states, weights, batch_sizes)
        # The constructor would only repeat checks that the input has passed.
        output = PackedSequence._make((results[0], batch_sizes, sorted_indices, unsorted_indices))
        finals = results[1:]
        if unsorted_indices is not None:
            finals = [final.index_select(1, unsorted_indices) for final in finals]
        return output, (tuple(finals) if len(finals) == 2 else finals[0])

    def _traced(self, input: Any, hx: Any) -> Any:
        """forward under torch.compile and torch.export."""
        batch_sizes = None
        data = input
        if isinstance(input, PackedSequence):
            data, batch_sizes = input.data, input.batch_sizes
        reason: str | None = None
        if isinstance(data, Tensor) and (hx is None or isinstance(hx, (Tensor, tuple, list))):
            weights = self._traced_weights()
            states = as_states(hx, CELLS[self.mode])
            reason = traced_obstacle(data, _DENSE if batch_sizes is None else _PACKED)
            if reason is None or reason in DIFFERENTIABLE:
                layers = sequence_op if reason is None else reference.layers
                # Sizes are looked at while tracing, so a graph holds a call that fits, or torch's.
                if batch_sizes is None:
                    if layer_misfit(self, data, None, states, weights) is None:
                        if not states and is_exporting():
                            # AOTInductor's run time cannot pass an empty list.
                            batch = (data.shape[0 if self.batch_first else 1],)
                            states = self._zeros(data, *batch[: data.dim() - 2])
                        return self._dense(layers, data, states, weights)
                # Values are not: those of batch_sizes, which hx depends on, the operator checks.
                elif reason is None and layer_misfit(self, data, batch_sizes, [], weights) is None:
                    if not states and input.sorted_indices is not None:
                        # Sizes of results that are read from batch_sizes may end the graph.
                        states = self._zeros(data, input.sorted_indices.shape[0])
                    return self._run_packed(layers, input, states, weights)
            check_weights(self, weights)
        if is_exporting() or torch._dynamo.config.allow_rnn:
            return super().forward(input, hx)
        return _compile.outside(_Layer.forward, self, input, hx)

    def _traced_weights(self) -> list[Tensor]:
        """The parameters in the operators' order."""
        return [getattr(self, name) for name in self._flat_weights_names]

    def _zeros(self, like: Tensor, *batch: int) -> list[Tensor]:
        """What no hx stands for."""
        sizes = state_sizes(self, 1)
        return [like.new_zeros((blocks, *batch, width)) for blocks, _, width in sizes]


_compile.never_first(
    _Layer._try,
    _Layer._packed,
    _Layer._try_packed,
    _Layer._dense,
    _Layer._run,
    _Layer._run_packed,
)


class LSTM(_Layer, torch.nn.LSTM):
    """torch.nn.LSTM on fused kernels: the same constructor, parameters, arguments and results.

    Input [T, B, I], [B, T, I] with batch_first, [T, I] without a batch, or a PackedSequence; hx a
    pair of h0 [L*D, B, P or H] and c0 [L*D, B, H], zeros where not given. Results: output,
    (hn, cn). Floating point of 16 to 64 bits is fused on the CPU; `fused_rnn.explain` says what
    happens to a call.
    """


class GRU(_Layer, torch.nn.GRU):
    """torch.nn.GRU on fused kernels: the same constructor, parameters, arguments and results.

    Input [T, B, I], [B, T, I] with batch_first, [T, I] without a batch, or a PackedSequence; hx
    [L*D, B, H], zeros where not given. Results: output, hn. Floating point of 16 to 64 bits is
    fused on the CPU; `fused_rnn.explain` says what happens to a call.
    """


class RNN(_Layer, torch.nn.RNN):
    """torch.nn.RNN, tanh or relu, on fused kernels: the same constructor, parameters, arguments and
    results.

    Input [T, B, I], [B, T, I] with batch_first, [T, I] without a batch, or a PackedSequence; hx
    [L*D, B, H], zeros where not given. Results: output, hn. Floating point of 16 to 64 bits is
    fused on the CPU; `fused_rnn.explain` says what happens to a call.
    """
