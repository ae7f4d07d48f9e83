"""Local random generators: one seed gives independent streams, one for each label."""

from __future__ import annotations

import hashlib

import torch

from lens_linear.checks import require_int


def labelled_generator(seed: int, label: str) -> torch.Generator:
    """A CPU generator for ``(seed, label)``; the global generator is neither read nor moved.

    The label keeps two uses of the same seed apart: without it, the random table of a language
    and the text drawn from it would start with the same numbers.
    """
    seed = require_int("seed", seed)
    digest = hashlib.sha256(f"{label}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
