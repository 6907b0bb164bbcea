"""A streaming speech recogniser: LSTM layers with projection in an encoder and a prediction
network, and a joint network over both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.subject import Subject

BLANK = 0
# No more symbols than this are taken from one encoded step.
MOST_SYMBOLS = 3


@dataclass(frozen=True)
class Sizes:
    """Frames are 30 ms, three of 10 ms stacked; the encoder's upper steps are two frames."""

    batch: int
    frames: int
    features: int
    hidden: int
    projected: int
    below: int
    above: int
    joint: int
    symbols: int
    transcript: int
    blank_bias: float


FULL = Sizes(
    batch=8,
    frames=128,
    features=240,
    hidden=640,
    projected=256,
    below=2,
    above=4,
    joint=256,
    symbols=128,
    transcript=16,
    blank_bias=0.2,
)
TINY = Sizes(
    batch=2,
    frames=6,
    features=5,
    hidden=7,
    projected=3,
    below=2,
    above=1,
    joint=5,
    symbols=6,
    transcript=3,
    blank_bias=0.3,
)


class Encoder(nn.Module):
    """LSTM layers, and after the lower ones two steps become one."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.below = nn.LSTM(
            sizes.features, sizes.hidden, num_layers=sizes.below, proj_size=sizes.projected
        )
        self.above = nn.LSTM(
            2 * sizes.projected, sizes.hidden, num_layers=sizes.above, proj_size=sizes.projected
        )

    def forward(self, frames: Tensor, state: Any = (None, None)) -> tuple[Tensor, Any]:
        """[T / 2, B, projected] and the state after it, of frames [T, B, features] with T even."""
        x, below = self.below(frames, state[0])
        steps, batch, width = x.shape
        x = x.view(steps // 2, 2, batch, width).transpose(1, 2).flatten(2)
        x, above = self.above(x, state[1])
        return x, (below, above)


class Transducer(nn.Module):
    """Graves, "Sequence Transduction with Recurrent Neural Networks", 2012, in the form of He et
    al., "Streaming End-to-end Speech Recognition for Mobile Devices", 2018."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.encoder = Encoder(sizes)
        self.embedding = nn.Embedding(sizes.symbols, sizes.projected)
        self.prediction = nn.LSTM(sizes.projected, sizes.hidden, proj_size=sizes.projected)
        self.from_encoder = nn.Linear(sizes.projected, sizes.joint)
        self.from_prediction = nn.Linear(sizes.projected, sizes.joint)
        self.out = nn.Linear(sizes.joint, sizes.symbols)

    def joint(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        hidden = self.from_encoder(encoded) + self.from_prediction(predicted)
        return self.out(hidden.tanh())

    def forward(self, frames: Tensor, symbols: Tensor) -> Tensor:
        """The whole lattice [T / 2, U, B, symbols] of frames [T, B, features] and the symbols
        before each of its columns [U, B]."""
        encoded, _ = self.encoder(frames)
        predicted, _ = self.prediction(self.embedding(symbols))
        return self.joint(encoded.unsqueeze(1), predicted.unsqueeze(0))

    def stream(self, frames: Tensor) -> Tensor:
        """Greedy decoding while frames [T, 1, features] arrive, two at a time.

        Returns the scores [n, symbols] by which each symbol, blanks included, was chosen."""
        symbol = torch.full((1, 1), BLANK)
        predicted, memory = self.prediction(self.embedding(symbol))
        state: Any = (None, None)
        trace: list[Tensor] = []
        for pair in frames.split(2):
            encoded, state = self.encoder(pair, state)
            for _ in range(MOST_SYMBOLS):
                scores = self.joint(encoded, predicted)
                trace.append(scores.view(-1))
                symbol = scores.argmax(-1)
                if symbol.item() == BLANK:
                    break
                predicted, memory = self.prediction(self.embedding(symbol), memory)
        return torch.stack(trace)


class Streaming(Subject):
    """Inference is one utterance in a stream. In training, cross-entropy on the joint network's
    lattice stands for the transducer's loss, which torch does not have: the symbols of a transcript
    are due at even distances, and what is right at a node is the next symbol once that is due, and
    blank before. (Hu et al., "Exploring Pre-training with Alignments for RNN Transducer Based
    End-to-End Speech Recognition", 2020, train so before they take the transducer's loss.)"""

    net: Transducer

    def __init__(self, sizes: Sizes) -> None:
        net = Transducer(sizes)
        with torch.no_grad():
            # Untrained, the scores would hardly change from step to step: either every one would
            # give symbols or none. In speech some do.
            net.from_encoder.weight.normal_(std=4)
            net.from_prediction.weight.normal_()
            net.out.bias[BLANK] += sizes.blank_bias
        super().__init__(
            net,
            f"{sizes.below + sizes.above}+1 LSTM H{sizes.hidden} P{sizes.projected}, "
            f"{sizes.frames} frames, B1 in a stream, B{sizes.batch} in training",
        )
        self.frames = torch.randn(sizes.frames, sizes.batch, sizes.features)
        transcript = torch.randint(1, sizes.symbols, (sizes.transcript, sizes.batch))
        edge = torch.full((1, sizes.batch), BLANK)
        self.before = torch.cat([edge, transcript])
        steps = sizes.frames // 2
        due = torch.arange(1, sizes.transcript + 2) * steps // (sizes.transcript + 1)
        is_due = torch.arange(steps).view(-1, 1, 1) >= due.view(-1, 1)
        self.targets = torch.where(is_due, torch.cat([transcript, edge]), BLANK)

    def predict(self) -> tuple[Tensor, ...]:
        return (self.net.stream(self.frames[:, :1]),)

    def loss(self) -> Tensor:
        scores = self.net(self.frames, self.before)
        return cross_entropy(scores.flatten(0, 2), self.targets.flatten())
