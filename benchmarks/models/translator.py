"""A translator: a bidirectional GRU over packed sentences, and a GRU cell with attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.subject import Subject, spread

START = 0


@dataclass(frozen=True)
class Sizes:
    batch: int
    words: int
    vocabulary: int
    embedding: int
    hidden: int


FULL = Sizes(batch=16, words=30, vocabulary=2000, embedding=128, hidden=256)
TINY = Sizes(batch=3, words=5, vocabulary=11, embedding=4, hidden=6)


class Translator(nn.Module):
    """Bahdanau, Cho and Bengio, "Neural Machine Translation by Jointly Learning to Align and
    Translate", 2014."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        hidden = sizes.hidden
        self.source = nn.Embedding(sizes.vocabulary, sizes.embedding)
        self.encoder = nn.GRU(sizes.embedding, hidden, bidirectional=True)
        self.target = nn.Embedding(sizes.vocabulary, sizes.embedding)
        self.decoder = nn.GRUCell(sizes.embedding + 2 * hidden, hidden)
        self.start = nn.Linear(hidden, hidden)
        self.keys = nn.Linear(2 * hidden, hidden)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.energy = nn.Linear(hidden, 1, bias=False)
        self.readout = nn.Linear(3 * hidden + sizes.embedding, sizes.embedding)
        self.out = nn.Linear(sizes.embedding, sizes.vocabulary)

    def forward(
        self, sentences: Tensor, lengths: Tensor, steps: int, words: Tensor | None = None
    ) -> Tensor:
        """Scores [steps, B, vocabulary] of a translation of sentences [S, B]: of `words` [steps, B]
        if given, otherwise of those that score highest at each step."""
        packed = pack_padded_sequence(self.source(sentences), lengths)
        states, _ = pad_packed_sequence(self.encoder(packed)[0])
        keys = self.keys(states)
        outside = torch.arange(len(sentences)).unsqueeze(1) >= lengths
        hidden = self.start(states[0, :, keys.shape[-1] :]).tanh()
        word = torch.full_like(sentences[0], START)
        scores: list[Tensor] = []
        for step in range(steps):
            energies = self.energy((keys + self.query(hidden)).tanh()).squeeze(-1)
            weights = energies.masked_fill(outside, float("-inf")).softmax(0)
            context = (weights.unsqueeze(-1) * states).sum(0)
            embedded = self.target(word)
            hidden = self.decoder(torch.cat([embedded, context], -1), hidden)
            readout = self.readout(torch.cat([hidden, context, embedded], -1)).tanh()
            scores.append(self.out(readout))
            word = scores[-1].argmax(-1) if words is None else words[step]
        return torch.stack(scores)


class Translation(Subject):
    """Training is given the right words; inference goes on with its own."""

    net: Translator

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            Translator(sizes),
            f"bidirectional GRU and GRUCell H{sizes.hidden}, {sizes.words} words, B{sizes.batch}, "
            "packed",
        )
        self.lengths = spread(sizes.words, sizes.batch)
        self.sentences = torch.randint(1, sizes.vocabulary, (sizes.words, sizes.batch))
        self.words = torch.randint(1, sizes.vocabulary, (sizes.words, sizes.batch))

    def predict(self) -> tuple[Tensor, ...]:
        return (self.net(self.sentences, self.lengths, len(self.words)),)

    def loss(self) -> Tensor:
        scores = self.net(self.sentences, self.lengths, len(self.words), self.words)
        return cross_entropy(scores.flatten(0, 1), self.words.flatten())
