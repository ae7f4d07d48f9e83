"""Batches for training, a pure function of (seed, step): resuming needs no generator state."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator that draws the batch of one step."""
    generator = torch.Generator()
    generator.manual_seed((seed * 1_000_003 + step) % (2**63 - 1))
    return generator


def text_rows(
    stream: Int[Tensor, " token"], n: int, length: int, *, bos: int, generator: torch.Generator
) -> Int[Tensor, "row position"]:
    """Cut ``n`` random windows of ``length - 1`` tokens and put ``bos`` before each."""
    starts = torch.randint(0, len(stream) - length + 2, (n, 1), generator=generator)
    rows = stream[starts + torch.arange(length - 1)].long()
    return torch.cat([torch.full((n, 1), bos), rows], dim=1)


def repeated_rows(
    n: int,
    length: int,
    *,
    periods: tuple[int, int],
    n_vocab: int,
    bos: int,
    generator: torch.Generator,
) -> Int[Tensor, "row position"]:
    """Draw rows of random tokens that repeat with a period drawn anew for every row.

    Mixed periods matter: with one fixed period a single layer learns the offset instead of the match.
    """
    low, high = periods
    period = torch.randint(low, high + 1, (n, 1), generator=generator)
    block = torch.randint(1, n_vocab, (n, high), generator=generator)
    rows = block.gather(1, torch.arange(length - 1)[None] % period)
    return torch.cat([torch.full((n, 1), bos), rows], dim=1)
