r"""A made-up language whose statistics are known exactly, so that every circuit tool has a truth.

Four things are planted, each of which a transformer can learn with a known mechanism:

* **bigrams**: ordinary words follow an exact table P (a 0-layer model's job);
* **skip-trigrams** ``source ... destination -> out``: once the source has occurred anywhere earlier
  in the sequence, the word after the destination is ``out`` with probability
  ``strength + (1 - strength) P[destination, out]`` (a 1-layer model's job);
* **novel names**: every sequence draws its own names, each a run of 2 or 3 syllables, and mentions
  them again and again: after its first mention a name can be copied (an induction head's job);
* **mood**: every sequence is positive or negative and drops mood words of its class only: a
  labelled concept that is carried by context, not by one word.

How a sequence runs: position 0 is an ordinary word drawn from the stationary distribution of P.
After an ordinary word comes, with probability ``name_rate``, the mention of one of the sequence's
names, chosen evenly; with probability ``mood_rate`` a mood word of the sequence's class; otherwise
an ordinary word. After a name or a mood word the next word is ordinary and drawn from the
stationary distribution. Everything else is a consequence, and :meth:`SyntheticLanguage.floors`
computes the resulting entropies exactly, without sampling.

>>> language = SyntheticLanguage(seed=1)
>>> tokens = language.tokens(4, 32, seed=0)
>>> tuple(tokens.shape), int(tokens.max()) < language.n_vocab
((4, 32), True)
>>> floors = language.floors(32)
>>> floors.full < floors.bigram < floors.unigram
True

Limits: the words have no syntax beyond the table, names never contain ordinary words, and a
sequence knows one mood. Nothing here is evidence about natural language.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import counted, require_float, require_instance, require_int
from lens_linear.errors import InvalidArgumentError
from lens_linear.text._floors import EntropyFloors, exact_floors
from lens_linear.text._mood import MoodHalf, MoodSentences, mood_indices
from lens_linear.text._process import MOOD, Process, Sampler, random_schedule, random_table
from lens_linear.text._seeds import labelled_generator
from lens_linear.text._vocabulary import (
    MAX_NAME_POOL,
    MAX_WORDS,
    NEGATIVE_WORDS,
    POSITIVE_WORDS,
    made_up_words,
    name_syllables,
)
from lens_linear.token_rows import require_tokens

MAX_SKIP_TRIGRAMS = 12


@dataclass(frozen=True, eq=False)
class SyntheticLanguage:
    """A seeded text generator with exact bigrams, skip-trigrams, name copying and mood.

    ``SyntheticLanguage(n_skip_trigrams=0, n_names=0, n_mood_words=0)`` is pure bigram text: its
    entropy rate is ``-sum_ab pi[a] P[a, b] ln P[a, b]`` for every length.

    Token ids: ordinary words ``0 .. n_words - 1``, then name syllables, then positive and negative
    mood words. A feature that is off adds no tokens.

    Args:
        n_words: ordinary words, 2 to 2000.
        length: tokens a sequence when a method is not told otherwise; the entropies depend on it
            as soon as a feature beside the bigrams is on.
        n_skip_trigrams: planted skip-trigrams, 0 (off) to 12; all their words are different.
        strength: probability added to ``out`` after an armed destination.
        n_names: names a sequence draws, 0 is off.
        name_length: syllables (tokens) of a name, 2 or 3.
        name_pool: name syllables in the vocabulary, at least ``n_names * name_length``.
        name_rate: probability that a mention of a name follows an ordinary word.
        n_mood_words: mood words of each class, 0 (off) or 2 to 16.
        mood_rate: probability that a mood word follows an ordinary word.
        sharpness: standard deviation of the logits behind P; 0 makes every word equally likely.
        seed: fixes the words, P and the skip-trigrams (not the text).

    Raises:
        InvalidArgumentError: a knob is out of range, or two of them do not fit together.

    Example:
        >>> language = SyntheticLanguage(n_skip_trigrams=0, n_names=0, n_mood_words=0)
        >>> language.is_pure_bigram, language.n_vocab
        (True, 64)
        >>> bool(torch.allclose(language.bigram_table.sum(1), torch.ones(64).double()))
        True
    """

    n_words: int = 64
    _: KW_ONLY
    length: int = 64
    n_skip_trigrams: int = 6
    strength: float = 0.8
    n_names: int = 2
    name_length: int = 3
    name_pool: int = 24
    name_rate: float = 0.05
    n_mood_words: int = 8
    mood_rate: float = 0.05
    sharpness: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_int("n_words", self.n_words, minimum=2, maximum=MAX_WORDS)
        require_int("length", self.length, minimum=2)
        require_int("n_skip_trigrams", self.n_skip_trigrams, minimum=0, maximum=MAX_SKIP_TRIGRAMS)
        require_float("strength", self.strength, minimum=0.0, maximum=1.0)
        require_int("n_names", self.n_names, minimum=0)
        require_int("name_length", self.name_length, minimum=2, maximum=3)
        require_int("name_pool", self.name_pool, minimum=0, maximum=MAX_NAME_POOL)
        require_float("name_rate", self.name_rate, minimum=0.0, maximum=0.5)
        require_int("n_mood_words", self.n_mood_words, minimum=0, maximum=len(POSITIVE_WORDS))
        require_float("mood_rate", self.mood_rate, minimum=0.0, maximum=0.5)
        require_float("sharpness", self.sharpness, minimum=0.0, maximum=20.0)
        require_int("seed", self.seed)
        if 3 * self.n_skip_trigrams > self.n_words:
            raise InvalidArgumentError(
                f"n_skip_trigrams must be at most n_words / 3 because their words are all "
                f"different, got {self.n_skip_trigrams} for {self.n_words} words; "
                "lower it or raise n_words"
            )
        if self.n_names and self.n_names * self.name_length > self.name_pool:
            raise InvalidArgumentError(
                f"name_pool must be at least n_names * name_length = "
                f"{self.n_names * self.name_length}, got {self.name_pool}; raise name_pool"
            )
        if self.n_mood_words == 1:
            raise InvalidArgumentError(
                "n_mood_words must be 0 or at least 2, got 1: training and evaluation words would "
                "overlap; pass 2 or more"
            )

    def __repr__(self) -> str:
        parts = [f"{counted(self.n_words, 'word')} with exact bigrams"]
        if self.n_skip_trigrams:
            parts.append(f"{self.n_skip_trigrams} skip-trigrams of strength {self.strength:g}")
        if self.n_names:
            parts.append(
                f"{counted(self.n_names, 'name')} of {self.name_length} syllables a sequence"
            )
        if self.n_mood_words:
            parts.append(f"{self.n_mood_words} mood words a class")
        return f"SyntheticLanguage: {', '.join(parts)}; {counted(self.n_vocab, 'token')}, seed {self.seed}"

    @property
    def n_vocab(self) -> int:
        """Number of token ids."""
        return self._process.n_vocab

    @property
    def is_pure_bigram(self) -> bool:
        """Whether the text is a Markov chain with nothing else planted."""
        return not (self.n_skip_trigrams or self.n_names or self.n_mood_words)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The string of every token id; all different."""
        names = name_syllables(self.name_pool, seed=self.seed) if self.n_names else ()
        moods = POSITIVE_WORDS[: self.n_mood_words] + NEGATIVE_WORDS[: self.n_mood_words]
        return made_up_words(self.n_words, seed=self.seed) + names + moods

    @property
    def bigram_table(self) -> Float[Tensor, "vocab vocab"]:
        """The bigram part alone: ``P[a, b] = p(next = b | current = a)``, float64, rows sum to 1.

        Rows of name syllables and mood words hold the stationary distribution, which is what
        follows them once they are over. With other features on, what a 0-layer model should learn
        is :meth:`marginal_bigrams`.
        """
        table = self.stationary.expand(self.n_vocab, -1).clone()
        table[: self.n_words, : self.n_words] = self._process.table
        return table

    @property
    def stationary(self) -> Float[Tensor, " vocab"]:
        """Stationary distribution of the bigram part (names and mood words have 0), float64."""
        padded = torch.zeros(self.n_vocab, dtype=torch.float64)
        padded[: self.n_words] = self._process.stationary
        return padded

    @property
    def entropy_rate(self) -> float:
        """``H(next | current)`` in nats a token: the lowest loss a 0-layer model can reach.

        Exact. Pure bigram text: ``-sum pi[a] P[a, b] ln P[a, b]``. With other features on it is the
        floor of the marginal pair distribution for sequences of ``length`` tokens, the same as
        ``floors().bigram``. A model that also sees positions can gain a little more, because
        names and armed destinations are rarer at the start.
        """
        return self.floors().bigram

    @property
    def skip_trigrams(self) -> pd.DataFrame:
        """The planted ones: source, destination, out, probability, base_probability.

        ``probability`` is that of ``out`` right after the destination when the source occurred
        anywhere earlier in the sequence; ``base_probability`` when it did not. Both are exact.
        """
        process, labels = self._process, self.labels
        at = (list(process.destinations), list(process.outs))
        rows = torch.arange(self.n_skip_trigrams)
        return pd.DataFrame(
            {
                "source": [labels[i] for i in process.sources],
                "destination": [labels[i] for i in process.destinations],
                "out": [labels[i] for i in process.outs],
                "probability": (process.ordinary_rate * process.armed_rows[rows, at[1]]).tolist(),
                "base_probability": (process.ordinary_rate * process.table[at]).tolist(),
            }
        )

    @property
    def skip_trigram_ids(self) -> Int[Tensor, "skip_trigram 3"]:
        """Token ids (source, destination, out) of the planted skip-trigrams."""
        process = self._process
        columns = (process.sources, process.destinations, process.outs)
        return torch.tensor(columns, dtype=torch.int64).T.contiguous()

    def tokens(
        self, n_sequences: int, length: int | None = None, *, seed: int = 0
    ) -> Int[Tensor, "sequence position"]:
        """Independent sequences of the language.

        Args:
            n_sequences: rows.
            length: tokens a row; default ``self.length``.
            seed: fixes the text; the same call gives the same text.

        Returns:
            Token ids, int64. About 1M tokens a second on one core in rows of 64.

        Example:
            >>> SyntheticLanguage().tokens(2, 16, seed=3).shape
            torch.Size([2, 16])
        """
        n_sequences = require_int("n_sequences", n_sequences, minimum=1)
        length = self._length(length)
        generator = labelled_generator(seed, "text")
        kinds = random_schedule(self._process, n_sequences, length, generator)
        sampler = Sampler(self._process, generator)
        tokens = sampler.fill(kinds)
        if not self.n_mood_words:
            return tokens
        positive = torch.randint(2, (n_sequences,), generator=generator)
        everything = torch.arange(self.n_mood_words)
        return sampler.put_mood_words(tokens, kinds, positive, everything)

    def mood_sentences(
        self,
        n: int,
        *,
        length: int = 12,
        n_mood: int = 2,
        words: MoodHalf = "all",
        seed: int = 0,
    ) -> MoodSentences:
        """Sentences of known mood, half of them positive: a labelled concept with a truth.

        Mood words stand at random odd positions, never first, last or next to each other, so the
        last token is ordinary and a model must carry the mood to it. ``words="train"`` and
        ``"evaluation"`` draw from disjoint halves of the mood words: a direction found on one and
        tested on the other is about the mood, not about one word.

        Args:
            n: sentences; label 1 (positive) for ``n // 2`` of them, in random order.
            length: tokens a sentence, at least 3.
            n_mood: mood words a sentence, at most ``(length - 1) // 2``.
            words: which mood words may occur.
            seed: fixes the sentences.

        Raises:
            InvalidArgumentError: the language has no mood words, or a sentence has no room.

        Example:
            >>> sentences = SyntheticLanguage().mood_sentences(6, seed=0)
            >>> sentences.tokens.shape, int(sentences.labels.sum())
            (torch.Size([6, 12]), 3)
        """
        if not self.n_mood_words:
            raise InvalidArgumentError(
                "mood_sentences needs mood words but n_mood_words is 0; "
                "build SyntheticLanguage(n_mood_words=8)"
            )
        n = require_int("n", n, minimum=1)
        slots = torch.arange(1, require_int("length", length, minimum=3) - 1, 2)
        n_mood = require_int("n_mood", n_mood, minimum=1, maximum=len(slots))
        allowed = mood_indices(self.n_mood_words, words)
        generator = labelled_generator(seed, f"mood sentences {words}")
        order = torch.rand(n, len(slots), generator=generator, dtype=torch.float32).argsort(dim=1)
        kinds = torch.zeros(n, length, dtype=torch.int64)
        kinds.scatter_(1, slots[order[:, :n_mood]], MOOD)
        labels = (torch.randperm(n, generator=generator) < n // 2).long()
        sampler = Sampler(self._process, generator)
        return MoodSentences(
            tokens=sampler.put_mood_words(sampler.fill(kinds), kinds, labels, allowed),
            labels=labels,
            positive_words=tuple(POSITIVE_WORDS[i] for i in allowed.tolist()),
            negative_words=tuple(NEGATIVE_WORDS[i] for i in allowed.tolist()),
        )

    def floors(self, length: int | None = None) -> EntropyFloors:
        """Exact unigram, bigram and full entropy floors for sequences of ``length`` tokens.

        Computed by following the state distribution position by position; nothing is sampled.
        ``length=None`` is the language's own length.

        Example:
            >>> SyntheticLanguage().floors(16)  # doctest: +ELLIPSIS
            EntropyFloors for sequences of 16 tokens, exact: unigram ...
        """
        length = self._length(length)
        if length not in self._floors:
            self._floors[length] = exact_floors(self._process, length)
        return self._floors[length]

    def marginal_bigrams(self, length: int | None = None) -> Float[Tensor, "vocab vocab"]:
        """Exact ``p(next | current)`` in the text as it is, all features counted; rows sum to 1.

        This is the table that the best 0-layer model holds. A token that is never followed by
        another (possible in very short sequences) has the unigram distribution.
        """
        joint = self.floors(length).joint
        mass = joint.sum(dim=1, keepdim=True)
        return torch.where(mass > 0, joint / mass.clamp(min=1e-300), joint.sum(dim=0))

    def decode(self, tokens: Int[Tensor, "*sequence position"]) -> list[str]:
        """Each row as a string of labels with spaces between them."""
        rows = require_tokens("tokens", tokens, n_vocab=self.n_vocab)
        return [" ".join(self.labels[i] for i in row) for row in rows.tolist()]

    def encode(self, text: str) -> Int[Tensor, " position"]:
        """Token ids of a string of labels with spaces between them.

        Raises:
            InvalidArgumentError: the text holds a word that is not in the language.
        """
        require_instance("text", text, str, advice="pass words with spaces between them")
        ids = {label: index for index, label in enumerate(self.labels)}
        words = text.split()
        unknown = sorted({word for word in words if word not in ids})
        if unknown or not words:
            raise InvalidArgumentError(
                f"text must consist of this language's words, got "
                f"{unknown[:5] if unknown else 'no word at all'}; see language.labels"
            )
        return torch.tensor([ids[word] for word in words])

    @cached_property
    def _process(self) -> Process:
        order = torch.randperm(self.n_words, generator=labelled_generator(self.seed, "skip"))
        triples = order[: 3 * self.n_skip_trigrams].reshape(3, -1).tolist()
        sources, destinations, outs = (tuple(column) for column in triples)
        return Process(
            table=random_table(self.n_words, self.sharpness, seed=self.seed),
            sources=sources,
            destinations=destinations,
            outs=outs,
            strength=self.strength,
            n_names=self.n_names,
            name_length=self.name_length,
            name_pool=self.name_pool if self.n_names else 0,
            name_rate=self.name_rate if self.n_names else 0.0,
            n_mood_words=self.n_mood_words,
            mood_rate=self.mood_rate if self.n_mood_words else 0.0,
        )

    @cached_property
    def _floors(self) -> dict[int, EntropyFloors]:
        return {}

    def _length(self, length: int | None) -> int:
        return self.length if length is None else require_int("length", length, minimum=2)
