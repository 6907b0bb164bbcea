"""A word tagger: one bidirectional LSTM spells words, another reads the sentence, both packed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from models.subject import Subject, spread


@dataclass(frozen=True)
class Sizes:
    batch: int
    words: int
    letters: int
    alphabet: int
    vocabulary: int
    letter_embedding: int
    letter_hidden: int
    word_embedding: int
    word_hidden: int
    tags: int


FULL = Sizes(
    batch=32,
    words=40,
    letters=14,
    alphabet=80,
    vocabulary=5000,
    letter_embedding=25,
    letter_hidden=25,
    word_embedding=100,
    word_hidden=100,
    tags=17,
)
TINY = Sizes(
    batch=3,
    words=5,
    letters=4,
    alphabet=7,
    vocabulary=13,
    letter_embedding=3,
    letter_hidden=2,
    word_embedding=4,
    word_hidden=5,
    tags=4,
)


class Tagger(nn.Module):
    """Lample et al., "Neural Architectures for Named Entity Recognition", 2016, with a softmax for
    each word in place of the conditional random field."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.letters = nn.Embedding(sizes.alphabet, sizes.letter_embedding)
        self.spelling = nn.LSTM(sizes.letter_embedding, sizes.letter_hidden, bidirectional=True)
        self.words = nn.Embedding(sizes.vocabulary, sizes.word_embedding)
        self.reading = nn.LSTM(
            sizes.word_embedding + 2 * sizes.letter_hidden, sizes.word_hidden, bidirectional=True
        )
        self.out = nn.Linear(2 * sizes.word_hidden, sizes.tags)

    def forward(self, words: PackedSequence, letters: Tensor, lengths: Tensor) -> Tensor:
        """Scores [N, tags] of the N words of packed sentences, whose letters are [letters, N], with
        `lengths` [N] of them in no order."""
        spelt = pack_padded_sequence(self.letters(letters), lengths, enforce_sorted=False)
        _, (last, _) = self.spelling(spelt)
        features = torch.cat([self.words(words.data), *last], -1)
        output, _ = self.reading(PackedSequence(features, words.batch_sizes))
        return self.out(output.data)


class Tagging(Subject):
    """A batch of sentences of unequal length, with words of unequal length."""

    net: Tagger

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            Tagger(sizes),
            f"bidirectional LSTM H{sizes.letter_hidden} over letters and H{sizes.word_hidden} over "
            f"words, B{sizes.batch}, packed",
        )
        sentences = torch.randint(sizes.vocabulary, (sizes.words, sizes.batch))
        self.words = pack_padded_sequence(sentences, spread(sizes.words, sizes.batch))
        count = len(self.words.data)
        self.letters = torch.randint(sizes.alphabet, (sizes.letters, count))
        self.lengths = torch.randint(1, sizes.letters + 1, (count,))
        self.tags = torch.randint(sizes.tags, (count,))

    def predict(self) -> tuple[Tensor, ...]:
        return (self.net(self.words, self.letters, self.lengths),)

    def loss(self) -> Tensor:
        return cross_entropy(self.net(self.words, self.letters, self.lengths), self.tags)
