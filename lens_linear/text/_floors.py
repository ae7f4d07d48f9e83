"""Exact entropies of the synthetic language: its state distribution, position by position.

What has happened matters for the future only through (which sources have occurred, the current
word, how many names are known, whether the mood is known). The first pair evolves on
``2^k x n_words`` states, the second on a handful; the two are independent given the schedule, and
the three ways a sequence can go on (name, mood word, ordinary word) have disjoint tokens, so the
entropies add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import counted
from lens_linear.tables import Result
from lens_linear.text._process import Process


@dataclass(frozen=True, eq=False)
class EntropyFloors(Result):
    """Lowest reachable loss, in nats a token, of three kinds of model on this text.

    Averaged over the predicted positions 1 .. length - 1 of sequences of ``length`` tokens.

    Attributes:
        unigram: a model that knows only how often each token occurs.
        bigram: a 0-layer model: the best prediction from the current token alone,
            ``H(next | current)`` with the pair's position averaged out.
        full: any model: the best prediction from everything that came before.
        joint: probability of each (current, next) pair, sums to 1, float64.
        length: tokens a sequence.
    """

    unigram: float
    bigram: float
    full: float
    joint: Float[Tensor, "vocab vocab"]
    length: int

    def __repr__(self) -> str:
        return (
            f"EntropyFloors for sequences of {counted(self.length, 'token')}, exact: unigram "
            f"{self.unigram:.4f}, bigram {self.bigram:.4f}, full {self.full:.4f} nats a token"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns model, floor (nats a token), length."""
        return pd.DataFrame(
            {
                "model": ["unigram", "bigram", "full"],
                "floor": [self.unigram, self.bigram, self.full],
                "length": self.length,
            }
        )


def entropy(probabilities: Tensor) -> float:
    """``-sum p ln p`` in nats over all entries; zeros count nothing."""
    return float(-torch.special.xlogy(probabilities, probabilities).sum())


def conditional_entropy(joint: Float[Tensor, "a b"]) -> float:
    """``H(b | a)`` in nats of a joint distribution."""
    return entropy(joint) - entropy(joint.sum(dim=1))


def exact_floors(process: Process, length: int) -> EntropyFloors:
    """Unigram, bigram and full entropy floors for sequences of ``length`` tokens."""
    words = _WordChain(process)
    events = _event_entropies(process, length)
    pairs = torch.zeros(process.n_words, process.n_words, dtype=torch.float64)
    last = torch.zeros(process.n_words, dtype=torch.float64)  # ordinary words that are followed
    arrivals = [words.start()] + [torch.zeros_like(words.start()) for _ in range(length)]
    full = 0.0
    for position in range(length - 1):
        state = arrivals[position]
        last += state.sum(dim=0)
        full += process.ordinary_rate * words.row_entropy(state)
        after = words.step(state)
        pairs += process.ordinary_rate * words.pair_mass(state)
        arrivals[position + 1] += process.ordinary_rate * words.mark(after)
        for rate, delay in ((process.name_rate, process.name_length + 1), (process.mood_rate, 2)):
            if rate and position + delay < length:
                back = rate * state.sum(dim=1, keepdim=True) * process.stationary
                arrivals[position + delay] += words.mark(back)
    joint = _joint(process, pairs, last, length) / (length - 1)
    return EntropyFloors(
        unigram=entropy(joint.sum(dim=0)),
        bigram=conditional_entropy(joint),
        full=(full + events) / (length - 1),
        joint=joint,
        length=length,
    )


class _WordChain:
    """Distribution over (set of sources that have occurred, current ordinary word)."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.n_sets = 1 << len(process.sources)
        sets = torch.arange(self.n_sets)
        self.has = [((sets >> i) & 1).bool() for i in range(len(process.sources))]
        plain = [entropy(row) for row in process.table]
        self.plain = torch.tensor(plain, dtype=torch.float64)
        self.armed = [entropy(row) for row in process.armed_rows]

    def start(self) -> Tensor:
        """Position 0: the stationary distribution, nothing seen before it."""
        state = torch.zeros(self.n_sets, self.process.n_words, dtype=torch.float64)
        state[0] = self.process.stationary
        return self.mark(state)

    def mark(self, state: Tensor) -> Tensor:
        """Move the mass that stands on a source to the sets that contain the source."""
        state = state.clone()
        for index, source in enumerate(self.process.sources):
            without = ~self.has[index]
            state[self.has[index], source] += state[without, source]
            state[without, source] = 0.0
        return state

    def step(self, state: Tensor) -> Tensor:
        """Mass of the next word for every set (before :meth:`mark`)."""
        after = state @ self.process.table
        for index, destination in enumerate(self.process.destinations):
            shift = self.process.armed_rows[index] - self.process.table[destination]
            after[self.has[index]] += state[self.has[index], destination, None] * shift
        return after

    def pair_mass(self, state: Tensor) -> Tensor:
        """Joint mass of (current word, next word), summed over sets."""
        mass = state.sum(dim=0)[:, None] * self.process.table
        for index, destination in enumerate(self.process.destinations):
            shift = self.process.armed_rows[index] - self.process.table[destination]
            mass[destination] += state[self.has[index], destination].sum() * shift
        return mass

    def row_entropy(self, state: Tensor) -> float:
        """Expected entropy of the next ordinary word, given set and current word."""
        total = float(state.sum(dim=0) @ self.plain)
        for index, destination in enumerate(self.process.destinations):
            mass = float(state[self.has[index], destination].sum())
            total += mass * (self.armed[index] - float(self.plain[destination]))
        return total


def _joint(process: Process, pairs: Tensor, last: Tensor, length: int) -> Tensor:
    """Expected number of each (current, next) pair in one sequence."""
    n_words, pool, moods = process.n_words, process.name_pool, 2 * process.n_mood_words
    joint = torch.zeros(process.n_vocab, process.n_vocab, dtype=torch.float64)
    joint[:n_words, :n_words] = pairs
    ordinary = _ordinary_mass(process, length)
    if process.name_rate:
        names = slice(n_words, n_words + pool)
        joint[:n_words, names] = process.name_rate * last[:, None] / pool
        # Syllable j stands at position t + j; it is followed if t + j <= length - 2.
        followed = [sum(ordinary[: max(length - 1 - j, 0)]) for j in range(process.name_length + 1)]
        inside = sum(followed[1:-1])
        apart = (1.0 - torch.eye(pool, dtype=torch.float64)) / (pool * (pool - 1))
        joint[names, names] = process.name_rate * inside * apart
        ends = process.name_rate * followed[-1]
        joint[names, :n_words] = ends * process.stationary / pool
    if process.mood_rate:
        mood = slice(n_words + pool, process.n_vocab)
        joint[:n_words, mood] = process.mood_rate * last[:, None] / moods
        ends = process.mood_rate * sum(ordinary[: max(length - 2, 0)])
        joint[mood, :n_words] = ends * process.stationary / moods
    return joint


def _ordinary_mass(process: Process, length: int) -> list[float]:
    """Probability that each position holds an ordinary word."""
    mass = [1.0] + [0.0] * (length + process.name_length)
    for position in range(length):
        mass[position + 1] += process.ordinary_rate * mass[position]
        mass[position + 2] += process.mood_rate * mass[position]
        if process.name_rate:
            mass[position + 1 + process.name_length] += process.name_rate * mass[position]
    return mass[:length]


def _event_entropies(process: Process, length: int) -> float:
    """Entropy in nats of everything but the choice among ordinary words after one, a sequence.

    That is: whether a name, a mood word or an ordinary word follows; which name and which new
    syllables; which mood word; and the stationary word after a name or a mood word.
    """
    q, r, ell = process.name_rate, process.mood_rate, process.name_length
    rates = torch.tensor([q, r, process.ordinary_rate], dtype=torch.float64)
    branch, fresh_word = entropy(rates), entropy(process.stationary)
    n_names = process.n_names
    # mass[t][c][b]: position t is ordinary, c names are known, mood known (1) or not (0)
    mass = torch.zeros(length + ell + 2, n_names + 1, 2, dtype=torch.float64)
    mass[0, 0, 0] = 1.0
    total = 0.0
    for t in range(length - 1):
        now = mass[t]
        total += float(now.sum()) * branch
        mass[t + 1] += process.ordinary_rate * now
        if r:
            choices = torch.tensor([2.0, 1.0]).double().mul(process.n_mood_words).log()
            total += r * float((now.sum(dim=0) * choices).sum())
            mass[t + 2, :, 1] += r * now.sum(dim=1)
            total += r * float(now.sum()) * fresh_word * (t + 2 < length)
        for known in range(n_names + 1 if q else 0):
            here = q * now[known]
            old = known / n_names
            syllables_left = process.name_pool - known * ell
            total += float(here.sum()) * _first_syllable_entropy(known, n_names, syllables_left)
            for j in range(1, ell):  # predicting syllable j + 1 at position t + j + 1
                if t + j + 1 < length and old < 1:
                    total += float(here.sum()) * (1 - old) * math.log(syllables_left - j)
            total += float(here.sum()) * fresh_word * (t + ell + 1 < length)
            mass[t + 1 + ell, known] += old * here
            if old < 1:
                mass[t + 1 + ell, known + 1] += (1 - old) * here
    return total


def _first_syllable_entropy(known: int, n_names: int, syllables_left: int) -> float:
    """Entropy of a mention's first syllable: a known name each 1/n, else any unused syllable."""
    new = 1.0 - known / n_names
    result = known / n_names * math.log(n_names)
    if new > 0:
        result += new * math.log(syllables_left / new)
    return result
