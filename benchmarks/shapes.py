"""The shapes that are timed, as data: where each comes from, and how much arithmetic it is.

T steps, B batch rows, I inputs, H hidden units, P projected units, as everywhere in the project.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@dataclass(frozen=True)
class Shape:
    """One problem size. `input=0` stands for as many inputs as hidden units."""

    hidden: int
    steps: int
    batch: int
    origin: str
    input: int = 0
    layers: int = 1
    bidirectional: bool = False
    proj: int = 0
    packed: bool = False
    dtype: str = "float32"
    short: bool = False  # part of the short run

    @property
    def inputs(self) -> int:
        return self.input or self.hidden

    @property
    def lengths(self) -> list[int]:
        """Length of each sequence, longest first: from T down to T/4 where packed, else all T."""
        if not self.packed:
            return [self.steps] * self.batch
        shortest = max(1, self.steps // 4)
        spread = max(1, self.batch - 1)
        return [self.steps - (self.steps - shortest) * row // spread for row in range(self.batch)]

    def __str__(self) -> str:
        inputs = f"I{self.input} " if self.input else ""
        proj = f" P{self.proj}" if self.proj else ""
        layers = f" L{self.layers}" if self.layers > 1 else ""
        both = " D2" if self.bidirectional else ""
        dtype = f" {self.dtype}" if self.dtype != "float32" else ""
        return f"{inputs}H{self.hidden}{proj} T{self.steps} B{self.batch}{layers}{both}{dtype}"


@dataclass(frozen=True)
class Category:
    """A class of use: `kind` says what is called, `training` adds the backward pass.

    kind: "layer" one call for the whole sequence; "cell" a Python loop over a cell; "stream" a
    Python loop over a layer that is given one step (T=1) and its own last state at every call.
    """

    name: str
    kind: str
    training: bool
    cells: tuple[str, ...]
    shapes: tuple[Shape, ...]

    @property
    def freezable(self) -> bool:
        """Whether a frozen module runs these from its packed weights."""
        return not self.training


@dataclass(frozen=True)
class Row:
    """One line of a table of timings."""

    category: Category
    cell: str
    shape: Shape

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products of one run.

        Forward 2 N (in + R) G H for each layer and direction, plus 2 N H P for a projection, where
        N is the number of time steps of all sequences together and R is what recurs (P or H).
        Backward is counted as twice the forward: gradients of the inputs and of the weights.
        Products with states of zeros count like any other; `flops_of_zeros` are those.
        """
        shape = self.shape
        recurrent = shape.proj or shape.hidden
        directions = 2 if shape.bidirectional else 1
        total = 0
        for layer in range(shape.layers):
            inputs = directions * recurrent if layer else shape.inputs
            gates = 2 * (inputs + recurrent) * GATES[self.cell] * shape.hidden
            total += directions * (gates + 2 * shape.hidden * shape.proj)
        return total * sum(shape.lengths) * (3 if self.category.training else 1)

    @property
    def flops_of_zeros(self) -> int:
        """Those of the first step of a layer that is called without states: its recurrent product
        is zero, which adds nothing to the gradient of w_hh, and no state wants a gradient."""
        shape = self.shape
        if self.category.kind != "layer":
            return 0
        recurrent = 2 * (shape.proj or shape.hidden) * GATES[self.cell] * shape.hidden
        layers = shape.layers * (2 if shape.bidirectional else 1)
        return recurrent * layers * shape.batch * (3 if self.category.training else 1)

    def __str__(self) -> str:
        return f"{self.cell.upper()} {self.shape}"


LAYERS = (
    Shape(32, 60, 1, "the training loop as one sequence", input=1, short=True),
    Shape(32, 10, 51, "the training loop as windows", input=1),
    Shape(64, 50, 1, "small model, one user", short=True),
    Shape(64, 50, 16, "small model, small batch"),
    Shape(128, 100, 1, "medium model, one user"),
    Shape(128, 100, 32, "medium model, batch", short=True),
    Shape(256, 50, 4, "few rows: between memory and arithmetic"),
    Shape(256, 50, 64, "large batch: arithmetic", short=True),
    Shape(100, 35, 20, "sizes that no vector width divides", input=65),
    Shape(320, 80, 8, "speech features", input=80),
    Shape(512, 25, 1, "weights larger than L2, one user"),
    Shape(512, 25, 4, "weights larger than L2, few rows"),
    Shape(512, 25, 32, "weights larger than L2, batch"),
    Shape(1024, 25, 32, "weights as large as L3, batch"),
    Shape(1536, 50, 1, "weights larger than L3, one user"),
)

PACKED = (
    Shape(32, 40, 8, "short sequences of a small model", packed=True),
    Shape(64, 50, 16, "small model", packed=True, short=True),
    Shape(128, 60, 32, "text, embeddings of 100", input=100, packed=True),
    Shape(256, 50, 64, "large batch", packed=True),
)

STACKED = (
    Shape(32, 60, 1, "small tagger", layers=2, bidirectional=True),
    Shape(64, 50, 16, "small tagger, batch", layers=2, bidirectional=True, short=True),
    Shape(128, 50, 32, "text tagger", input=100, layers=2, bidirectional=True),
    Shape(256, 40, 8, "speech encoder", input=80, layers=2, bidirectional=True),
)

# Of a few rows, which layers that run at the same time share out.
ONE_WAY = (
    Shape(32, 60, 1, "the documents' loop", input=1, layers=2),
    Shape(64, 100, 1, "streamed windows", layers=2),
    Shape(40, 168, 1, "electricity forecaster", layers=6),
    Shape(32, 60, 8, "forecaster, batch", layers=2, short=True),
)

PROJECTED = (
    Shape(64, 50, 1, "small keyword spotter", proj=32),
    Shape(128, 50, 16, "medium model", proj=64, short=True),
    Shape(512, 25, 8, "speech encoder", input=80, proj=256),
)

CELLS = (
    Shape(32, 20, 1, "an agent's policy", short=True),
    Shape(64, 20, 8, "an agent's policy in eight environments"),
    Shape(128, 20, 32, "decoder with attention"),
    Shape(512, 10, 16, "wide decoder"),
)

STREAMS = (
    Shape(32, 20, 1, "small model, one user", short=True),
    Shape(128, 20, 1, "medium model, one user"),
    Shape(128, 20, 8, "medium model, few users"),
    Shape(512, 10, 1, "wide model, one user"),
)

DOUBLE = (
    Shape(64, 50, 16, "small model, small batch", dtype="float64", short=True),
    Shape(256, 50, 64, "large batch", dtype="float64"),
)

HALF = (
    Shape(32, 60, 1, "the training loop as one sequence", input=1, dtype="float16"),
    Shape(64, 50, 16, "small model, small batch", dtype="float16", short=True),
    Shape(256, 50, 16, "wider model, small batch", dtype="float16"),
)

BRAIN = (
    Shape(32, 60, 1, "the training loop as one sequence", input=1, dtype="bfloat16"),
    Shape(64, 50, 16, "small model, small batch", dtype="bfloat16", short=True),
    Shape(256, 50, 4, "few rows", dtype="bfloat16"),
    Shape(256, 50, 64, "large batch", dtype="bfloat16"),
)

ALL = ("lstm", "gru", "rnn")
GATED = ("lstm", "gru")

CATEGORIES = {
    category.name: category
    for category in (
        Category("inference", "layer", False, ALL, LAYERS),
        Category("training", "layer", True, ALL, LAYERS),
        Category("packed-inference", "layer", False, GATED, PACKED),
        Category("packed-training", "layer", True, GATED, PACKED),
        Category("stacked-inference", "layer", False, GATED, STACKED),
        Category("stacked-training", "layer", True, GATED, STACKED),
        Category("one-way-inference", "layer", False, GATED, ONE_WAY),
        Category("one-way-training", "layer", True, GATED, ONE_WAY),
        Category("projection-inference", "layer", False, ("lstm",), PROJECTED),
        Category("projection-training", "layer", True, ("lstm",), PROJECTED),
        Category("cells-inference", "cell", False, ALL, CELLS),
        Category("cells-training", "cell", True, ALL, CELLS),
        Category("streaming", "stream", False, ALL, STREAMS),
        Category("streaming-training", "stream", True, GATED, STREAMS),
        Category("float64-training", "layer", True, GATED, DOUBLE),
        Category("float16-training", "layer", True, GATED, HALF),
        Category("bfloat16-training", "layer", True, GATED, BRAIN),
    )
}


def rows(categories: list[str], short: bool = False) -> Iterator[Row]:
    """Every row of the named categories, or of each the few that make up the short run."""
    for name in categories:
        category = CATEGORIES[name]
        for cell in category.cells:
            for shape in category.shapes:
                if shape.short or not short:
                    yield Row(category, cell, shape)
