"""Sentences whose mood is known, made by the same process as the rest of the language."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from lens_linear.checks import counted, require_choice, require_int
from lens_linear.errors import InvalidArgumentError
from lens_linear.text._process import MOOD, Process, Sampler
from lens_linear.text._seeds import labelled_generator
from lens_linear.text._vocabulary import NEGATIVE_WORDS, POSITIVE_WORDS

MoodHalf = Literal["all", "train", "evaluation"]


@dataclass(frozen=True, eq=False)
class MoodSentences:
    """Sentences of known mood: token ids, their class, and the mood words they could draw."""

    tokens: Int[Tensor, "sentence position"]
    labels: Int[Tensor, " sentence"]
    positive_words: tuple[str, ...]
    negative_words: tuple[str, ...]

    def __repr__(self) -> str:
        n, length = self.tokens.shape
        return (
            f"MoodSentences: {counted(n, 'sentence')} of {counted(length, 'token')}, "
            f"{int(self.labels.sum())} positive, "
            f"mood words {', '.join(self.positive_words)} against {', '.join(self.negative_words)}"
        )


def random_mood_sentences(
    process: Process, n: int, *, length: int, n_mood: int, words: MoodHalf, seed: int
) -> MoodSentences:
    """See :meth:`lens_linear.text.SyntheticLanguage.mood_sentences`."""
    if not process.n_mood_words:
        raise InvalidArgumentError(
            "mood_sentences needs mood words but n_mood_words is 0; "
            "build SyntheticLanguage(n_mood_words=8)"
        )
    n = require_int("n", n, minimum=1)
    slots = torch.arange(1, require_int("length", length, minimum=3) - 1, 2)
    n_mood = require_int("n_mood", n_mood, minimum=1, maximum=len(slots))
    allowed = _mood_indices(process.n_mood_words, words)
    generator = labelled_generator(seed, f"mood sentences {words}")
    order = torch.rand(n, len(slots), generator=generator, dtype=torch.float32).argsort(dim=1)
    kinds = torch.zeros(n, length, dtype=torch.int64)
    kinds.scatter_(1, slots[order[:, :n_mood]], MOOD)
    labels = (torch.randperm(n, generator=generator) < n // 2).long()
    sampler = Sampler(process, generator)
    tokens = sampler.put_mood_words(sampler.fill(kinds), kinds, labels, allowed)
    return MoodSentences(
        tokens=tokens,
        labels=labels,
        positive_words=tuple(POSITIVE_WORDS[i] for i in allowed.tolist()),
        negative_words=tuple(NEGATIVE_WORDS[i] for i in allowed.tolist()),
    )


def _mood_indices(n_mood_words: int, words: str) -> Int[Tensor, " mood_word"]:
    """Indices within a class; the halves share no word."""
    words = require_choice("words", words, get_args(MoodHalf))
    half = (n_mood_words + 1) // 2
    start = half if words == "evaluation" else 0
    stop = half if words == "train" else n_mood_words
    return torch.arange(start, stop)
