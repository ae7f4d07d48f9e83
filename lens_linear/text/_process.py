"""The stochastic process behind :class:`lens_linear.text.SyntheticLanguage`, and how to sample it.

A sequence is made in two steps that do not depend on each other. The *schedule* says for every
position whether it holds an ordinary word, the j-th syllable of a name, or a mood word. Then the
words are filled in: names and mood words at once, ordinary words position by position for all
sequences together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.text._seeds import labelled_generator

ORDINARY = 0
MOOD = -1  # name syllable j of a mention is j = 1 .. name_length
_TABLE_RANK = 8  # logits of low rank, as in real text: narrow models can represent the table


@dataclass(frozen=True, eq=False)
class Process:
    """Every parameter of the generator; a feature that is off has rate 0 and no tokens."""

    table: Float[Tensor, "word word"]  # P, rows sum to 1, float64
    sources: tuple[int, ...]
    destinations: tuple[int, ...]
    outs: tuple[int, ...]
    strength: float
    n_names: int
    name_length: int
    name_pool: int
    name_rate: float
    n_mood_words: int
    mood_rate: float

    @property
    def n_words(self) -> int:
        """Ordinary words, ids 0 .. n_words - 1."""
        return len(self.table)

    @property
    def n_vocab(self) -> int:
        """All token ids: words, name syllables, positive and negative mood words."""
        return self.n_words + self.name_pool + 2 * self.n_mood_words

    @property
    def ordinary_rate(self) -> float:
        """Probability that an ordinary word follows an ordinary word."""
        return 1.0 - self.name_rate - self.mood_rate

    @cached_property
    def stationary(self) -> Float[Tensor, " word"]:
        """The row vector with ``stationary @ table = stationary`` and sum 1."""
        system = self.table.T - torch.eye(self.n_words, dtype=torch.float64)
        system[-1] = 1.0  # one balance equation is redundant; the sum replaces it
        right = torch.zeros(self.n_words, dtype=torch.float64)
        right[-1] = 1.0
        shares: Tensor = torch.linalg.solve(system, right)
        return shares

    @cached_property
    def armed_rows(self) -> Float[Tensor, "skip_trigram word"]:
        """Next-word distribution at each destination once its source has occurred."""
        rows: Tensor = (1.0 - self.strength) * self.table[list(self.destinations)]
        rows[torch.arange(len(self.outs)), list(self.outs)] += self.strength
        return rows


def random_table(n_words: int, sharpness: float, *, seed: int) -> Float[Tensor, "word word"]:
    """Softmax of random low-rank logits with standard deviation ``sharpness``; all entries > 0."""
    generator = labelled_generator(seed, "table")
    shape = (n_words, _TABLE_RANK)
    left = torch.randn(shape, generator=generator, dtype=torch.float64)
    right = torch.randn(shape, generator=generator, dtype=torch.float64)
    logits: Tensor = sharpness * left @ right.T / _TABLE_RANK**0.5
    return logits.softmax(dim=1)


def random_schedule(
    process: Process, n_sequences: int, length: int, generator: torch.Generator
) -> Int[Tensor, "sequence position"]:
    """Kind of every position: ORDINARY, MOOD or the syllable number 1 .. name_length."""
    kinds = torch.zeros(n_sequences, length, dtype=torch.int64)
    draws = torch.rand(n_sequences, length, generator=generator, dtype=torch.float64)
    is_name = draws < process.name_rate
    is_mood = ~is_name & (draws < process.name_rate + process.mood_rate)
    started = is_name.long() + is_mood.long() * MOOD
    for position in range(1, length):
        before = kinds[:, position - 1]
        inside = (before >= 1) & (before < process.name_length)
        kinds[:, position] = torch.where(
            inside, before + 1, torch.where(before == ORDINARY, started[:, position], ORDINARY)
        )
    return kinds


@dataclass(frozen=True, eq=False)
class Sampler:
    """Fills a schedule with tokens, vectorised over sequences."""

    process: Process
    generator: torch.Generator

    def fill(self, kinds: Int[Tensor, "sequence position"]) -> Int[Tensor, "sequence position"]:
        """Tokens for a schedule; mood words are left to :meth:`put_mood_words`."""
        tokens = self._ordinary_words(kinds)
        return self._put_names(tokens, kinds) if self.process.n_names else tokens

    def put_mood_words(
        self,
        tokens: Int[Tensor, "sequence position"],
        kinds: Int[Tensor, "sequence position"],
        positive: Int[Tensor, " sequence"],
        allowed: Int[Tensor, " mood_word"],
    ) -> Int[Tensor, "sequence position"]:
        """Tokens with a mood word of the sequence's class at every MOOD position.

        ``allowed`` are indices within a class; class 1 (positive) comes first in the vocabulary.
        """
        process = self.process
        choice = torch.randint(len(allowed), tokens.shape, generator=self.generator)
        first = process.n_words + process.name_pool
        start = first + (1 - positive)[:, None] * process.n_mood_words
        return torch.where(kinds == MOOD, start + allowed[choice], tokens)

    @cached_property
    def _cumulative(self) -> Float[Tensor, " row_word"]:
        """Cumulative rows (P, stationary, armed rows), row r shifted by r: one sorted vector."""
        process = self.process
        rows = torch.cat([process.table, process.stationary[None], process.armed_rows])
        cumulative = rows.cumsum(dim=1)
        cumulative[:, -1] = 1.0
        return (cumulative + torch.arange(len(rows))[:, None]).flatten()

    def _draw(self, rows: Int[Tensor, " n"], u: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        n_words = self.process.n_words
        found = torch.searchsorted(self._cumulative, rows + u, right=True) - rows * n_words
        return found.clamp_(0, n_words - 1)

    def _ordinary_words(self, kinds: Int[Tensor, "sequence position"]) -> Tensor:
        process, n_words = self.process, self.process.n_words
        bit_of = torch.zeros(n_words, dtype=torch.int64)  # bit set by a source
        armed_by = torch.full((n_words,), -1)  # skip-trigram of a destination
        for index, (source, destination) in enumerate(zip(process.sources, process.destinations)):
            bit_of[source] = 1 << index
            armed_by[destination] = index
        n_sequences, length = kinds.shape
        draws = torch.rand(n_sequences, length, generator=self.generator, dtype=torch.float64)
        tokens = torch.zeros(n_sequences, length, dtype=torch.int64)
        seen = torch.zeros(n_sequences, dtype=torch.int64)
        rows = torch.full((n_sequences,), n_words)  # n_words is the stationary row
        for position in range(length):
            word = self._draw(rows, draws[:, position])
            here = kinds[:, position] == ORDINARY
            tokens[:, position] = word
            which = armed_by[word]
            armed = (which >= 0) & ((seen >> which.clamp(min=0)) & 1).bool()
            seen = seen | torch.where(here, bit_of[word], 0)
            rows = torch.where(here, torch.where(armed, n_words + 1 + which, word), n_words)
        return tokens

    def _put_names(self, tokens: Tensor, kinds: Tensor) -> Tensor:
        process = self.process
        n_sequences, length = kinds.shape
        keys = torch.rand(
            n_sequences, process.name_pool, generator=self.generator, dtype=torch.float32
        )
        syllables = keys.argsort(dim=1)[:, : process.n_names * process.name_length]
        which = torch.randint(process.n_names, kinds.shape, generator=self.generator)
        stage = kinds.clamp(min=1) - 1  # syllable number from 0
        start = (torch.arange(length) - stage).clamp(min=0)  # where this mention began
        slot = which.gather(1, start) * process.name_length + stage
        return torch.where(kinds > 0, process.n_words + syllables.gather(1, slot), tokens)
