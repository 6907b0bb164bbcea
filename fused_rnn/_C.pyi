"""The compiled extension, csrc/torch/library.cpp."""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from torch import Tensor

class Config(TypedDict):
    torch_built: str
    compiler: str
    isa_built: list[str]
    isa_available: list[str]
    isa_active: str
    isa_reason: str
    bfloat16_products: bool
    openmp: bool
    cuda: bool

def config() -> Config: ...
def set_isa(name: str | None) -> None: ...
def multiplies_bfloat16() -> bool: ...
def fma_rate(dtype: Literal["float32", "float64", "bfloat16"], seconds: float) -> float: ...
def activation_rate(dtype: Literal["float32", "float64"], seconds: float) -> float: ...
def read_rate(bytes: int, seconds: float) -> float: ...

class Frozen:
    def __init__(self, params: Sequence[Tensor]) -> None: ...
    def sequence(
        self,
        input: Tensor,
        states: Sequence[Tensor],
        batch_sizes: Tensor | None,
        cell: str,
        num_layers: int,
        bidirectional: bool,
    ) -> list[Tensor] | None: ...
    def cell(self, input: Tensor, states: Sequence[Tensor], cell: str) -> list[Tensor] | None: ...

def layer(module: object, input: object, hx: object, /) -> Any | None: ...
def cell(module: object, input: object, hx: object, cell: str, /) -> Any | None: ...
