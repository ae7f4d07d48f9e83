"""Sentences whose mood is known, made by the same process as the rest of the language."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from lens_linear.checks import counted, require_choice

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


def mood_indices(n_mood_words: int, words: str) -> Int[Tensor, " mood_word"]:
    """Indices within a class; the halves share no word."""
    words = require_choice("words", words, get_args(MoodHalf))
    half = (n_mood_words + 1) // 2
    start = half if words == "evaluation" else 0
    stop = half if words == "train" else n_mood_words
    return torch.arange(start, stop)
