"""A speech recogniser: convolutions, bidirectional GRU layers over packed sequences, CTC."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import ctc_loss, log_softmax
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from models.subject import Subject, spread


@dataclass(frozen=True)
class Sizes:
    """Frames are 10 ms; the net's time steps are two frames."""

    batch: int
    frames: int
    bins: int
    channels: int
    hidden: int
    layers: int
    labels: int
    transcript: int


FULL = Sizes(
    batch=8, frames=400, bins=81, channels=32, hidden=320, layers=5, labels=29, transcript=40
)
TINY = Sizes(batch=3, frames=24, bins=9, channels=2, hidden=7, layers=2, labels=5, transcript=3)


class DeepSpeech2(nn.Module):
    """Amodei et al., "Deep Speech 2: End-to-End Speech Recognition in English and Mandarin", 2015.

    Two convolutions over frequency and time, bidirectional recurrent layers whose directions are
    added, and batch normalisation over the steps of all sequences between them.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(1, sizes.channels, (41, 11), stride=2, padding=(20, 5)),
            nn.BatchNorm2d(sizes.channels),
            nn.Hardtanh(0, 20),
            nn.Conv2d(sizes.channels, sizes.channels, (21, 11), stride=(2, 1), padding=(10, 5)),
            nn.BatchNorm2d(sizes.channels),
            nn.Hardtanh(0, 20),
        )
        # A stride of two halves and rounds up, and there are two of them.
        widths = [sizes.channels * ((sizes.bins + 3) // 4)] + [sizes.hidden] * (sizes.layers - 1)
        self.layers = nn.ModuleList(
            nn.GRU(width, sizes.hidden, bidirectional=True) for width in widths
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(sizes.hidden) for _ in widths)
        self.head = nn.Linear(sizes.hidden, sizes.labels)

    def forward(self, spectrogram: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities [T, B, labels] and the steps of each, of a spectrogram [B, 1, bins,
        frames] and the frames of each, longest first."""
        features = self.front(spectrogram).flatten(1, 2).permute(2, 0, 1)
        steps = (frames + 1) // 2
        packed = pack_padded_sequence(features, steps)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            output, _ = layer(packed)
            ahead, back = output.data.chunk(2, -1)
            packed = PackedSequence(norm(ahead + back), output.batch_sizes)
        hidden, _ = pad_packed_sequence(packed)
        return log_softmax(self.head(hidden), -1), steps


class Speech(Subject):
    """Utterances of unequal length; the loss is CTC's."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            DeepSpeech2(sizes),
            f"{sizes.layers} bidirectional GRU H{sizes.hidden}, {sizes.frames} frames, "
            f"B{sizes.batch}, packed",
        )
        self.spectrogram = torch.randn(sizes.batch, 1, sizes.bins, sizes.frames)
        self.frames = spread(sizes.frames, sizes.batch)
        self.transcripts = torch.randint(1, sizes.labels, (sizes.batch, sizes.transcript))
        self.letters = spread(sizes.transcript, sizes.batch)

    def predict(self) -> tuple[Tensor, ...]:
        scores, _ = self.net(self.spectrogram, self.frames)
        return (scores,)

    def loss(self) -> Tensor:
        scores, steps = self.net(self.spectrogram, self.frames)
        return ctc_loss(scores, self.transcripts, steps, self.letters)
