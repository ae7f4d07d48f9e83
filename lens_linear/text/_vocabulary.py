"""Readable labels for a made-up language: words, name syllables, mood words."""

from __future__ import annotations

import torch

from lens_linear.checks import require_int
from lens_linear.text._seeds import labelled_generator

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("l", "m", "n", "r", "s", "x")

POSITIVE_WORDS = (
    "glad", "bright", "kind", "warm", "merry", "sweet", "lovely", "happy",
    "gentle", "sunny", "proud", "calm", "brave", "fresh", "golden", "jolly",
)  # fmt: skip
NEGATIVE_WORDS = (
    "sad", "grim", "cruel", "cold", "gloomy", "bitter", "ugly", "angry",
    "harsh", "stormy", "ashamed", "afraid", "broken", "rotten", "bleak", "sorry",
)  # fmt: skip

MAX_WORDS = 2000
MAX_NAME_POOL = 400


def made_up_words(n: int, *, seed: int) -> tuple[str, ...]:
    """``n`` different two-syllable words such as ``"mirose"``, none of them a mood word."""
    n = require_int("n_words", n, minimum=1, maximum=MAX_WORDS)
    syllables = [onset + vowel for onset in _ONSETS for vowel in _VOWELS]
    order = torch.randperm(len(syllables) ** 2, generator=labelled_generator(seed, "words"))
    taken = {*POSITIVE_WORDS, *NEGATIVE_WORDS}
    words: list[str] = []
    for index in order.tolist():
        word = syllables[index // len(syllables)] + syllables[index % len(syllables)]
        if word not in taken:
            words.append(word)
        if len(words) == n:
            break
    return tuple(words)


def name_syllables(n: int, *, seed: int) -> tuple[str, ...]:
    """``n`` different capitalised syllables such as ``"Kel"``; a name is two or three of them."""
    n = require_int("name_pool", n, minimum=0, maximum=MAX_NAME_POOL)
    syllables = [o.upper() + v + c for o in _ONSETS for v in _VOWELS for c in _CODAS]
    order = torch.randperm(len(syllables), generator=labelled_generator(seed, "names"))
    return tuple(syllables[index] for index in order[:n].tolist())
