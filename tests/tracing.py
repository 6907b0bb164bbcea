"""What the tests of compilers, exporters and tracers share."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_rnn
from cases import assert_close, flatten

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")


class Model(nn.Module):
    """A recurrent layer, of fused_rnn or of torch.nn, among other things."""

    def __init__(self, name: str, package: Any = fused_rnn) -> None:
        super().__init__()
        self.layer = getattr(package, name)(4, 7, num_layers=2, bidirectional=True)
        self.head = nn.Linear(14, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


X = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))


def assert_same(actual: Any, expected: Any) -> None:
    for one, other in zip(flatten(actual), flatten(expected), strict=True):
        assert_close("result", one, other, 2e-5)


def operators_of(graphs: list[Any]) -> list[str]:
    return [str(node.target) for graph in graphs for node in graph.graph.nodes]


def need_compiler() -> None:
    """Skips where torch's own code generator has no C++ compiler to call."""
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError) as error:
        pytest.skip(f"torch's inductor finds no C++ compiler: {error}")
