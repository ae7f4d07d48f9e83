"""Random tokens, and random tokens repeated with mixed periods: the induction workload.

A model trained or tested on one fixed period can score as an induction head by attending a fixed
offset back. Mixed periods take that away: only a head that looks for the previous occurrence of
the current token follows the period when it changes from row to row.

>>> tokens, periods = repeated_tokens(6, [4, 6], 12, 100, seed=0)
>>> tokens.shape, sorted(periods.tolist())
(torch.Size([6, 12]), [4, 4, 4, 6, 6, 6])
>>> all(bool((row[p:] == row[:-p]).all()) for row, p in zip(tokens, periods.tolist()))
True
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from lens_linear.checks import require_bool, require_int, require_ints
from lens_linear.errors import InvalidArgumentError
from lens_linear.text._seeds import labelled_generator

Vocabulary = int | Sequence[int] | Int[Tensor, " allowed"]


class RepeatedTokens(NamedTuple):
    """Token ids and, for each row, the number of tokens after which it repeats."""

    tokens: Int[Tensor, "sequence position"]
    periods: Int[Tensor, " sequence"]


def repeated_tokens(
    n_sequences: int,
    periods: int | Sequence[int],
    length: int,
    vocab: Vocabulary,
    seed: int = 0,
    *,
    bos: int | None = None,
    distinct: bool = False,
) -> RepeatedTokens:
    """Rows of random tokens that repeat with their own period: ``row[t] = row[t - period]``.

    The rows are dealt evenly over the periods (counts differ by at most one) in random order.

    Args:
        n_sequences: rows.
        periods: the periods to mix (an int is one period).
        length: tokens a row, the leading ``bos`` included.
        vocab: number of ids, or the allowed ids themselves (leave out special tokens).
        seed: fixes the result.
        bos: id put in front of every row; the repetition starts after it.
        distinct: let no token occur twice within a period, so that the previous occurrence of a
            token is always exactly one period back. Needs at least ``max(periods)`` allowed ids.

    Returns:
        ``tokens [n_sequences, length]`` int64 and ``periods [n_sequences]``, also as a tuple.

    Raises:
        InvalidArgumentError: a period leaves no room for a repeat, or there are too few ids.

    Source: Elhage et al. 2021, "Induction heads" (repeated random tokens); mixing periods is ours.

    Example:
        >>> rows = repeated_tokens(2, (3, 4), 9, 10, seed=0)
        >>> sorted(rows.periods.tolist())
        [3, 4]
        >>> all(torch.equal(row[p:], row[:-p]) for row, p in zip(rows.tokens, rows.periods.tolist()))
        True
    """
    n_sequences = require_int("n_sequences", n_sequences, minimum=1)
    choices = _periods(periods)
    body = require_int("length", length, minimum=2) - (bos is not None)
    if max(choices) >= body:
        raise InvalidArgumentError(
            f"periods must be shorter than the {body} tokens they repeat in, got {max(choices)}; "
            f"pass length > {max(choices) + (bos is not None)} or shorter periods"
        )
    allowed = _allowed(vocab)
    if require_bool("distinct", distinct) and len(allowed) < max(choices):
        raise InvalidArgumentError(
            f"vocab must have at least {max(choices)} ids for distinct tokens in a period, got "
            f"{len(allowed)}; pass distinct=False or shorter periods"
        )
    generator = labelled_generator(seed, "repeated tokens")
    dealt = torch.tensor(choices).repeat(-(-n_sequences // len(choices)))[:n_sequences]
    row_periods = dealt[torch.randperm(n_sequences, generator=generator)]
    shape = (n_sequences, max(choices))
    if distinct:
        keys = torch.rand(n_sequences, len(allowed), generator=generator, dtype=torch.float32)
        picks = keys.argsort(dim=1)[:, : shape[1]]
    else:
        picks = torch.randint(len(allowed), shape, generator=generator)
    where = torch.arange(body)[None] % row_periods[:, None]
    return RepeatedTokens(_with_bos(allowed[picks.gather(1, where)], bos), row_periods)


def random_tokens(
    n_sequences: int,
    length: int,
    vocab: Vocabulary,
    seed: int = 0,
    *,
    bos: int | None = None,
) -> Int[Tensor, "sequence position"]:
    """Independent tokens, all allowed ids equally likely; the loss floor is ``ln(allowed ids)``.

    Args:
        n_sequences: rows.
        length: tokens a row, the leading ``bos`` included.
        vocab: number of ids, or the allowed ids themselves.
        seed: fixes the result.
        bos: id put in front of every row.

    Returns:
        Token ids [n_sequences, length], int64.

    Raises:
        InvalidArgumentError: a size below 1, or no allowed id.

    Example:
        >>> random_tokens(2, 5, 10, seed=0, bos=9).shape
        torch.Size([2, 5])
    """
    n_sequences = require_int("n_sequences", n_sequences, minimum=1)
    body = require_int("length", length, minimum=1) - (bos is not None)
    allowed = _allowed(vocab)
    generator = labelled_generator(seed, "random tokens")
    picks = torch.randint(len(allowed), (n_sequences, body), generator=generator)
    return _with_bos(allowed[picks], bos)


def _periods(periods: int | Sequence[int]) -> list[int]:
    values = require_ints("periods", [periods] if isinstance(periods, int) else periods, minimum=1)
    if not values:
        raise InvalidArgumentError("periods must name at least one period, got none; pass [8, 12]")
    return values


def _allowed(vocab: Vocabulary) -> Int[Tensor, " allowed"]:
    if isinstance(vocab, int):
        return torch.arange(require_int("vocab", vocab, minimum=1))
    ids = torch.tensor(require_ints("vocab", vocab))
    if len(ids) == 0 or int(ids.min()) < 0 or len(ids.unique()) != len(ids):
        raise InvalidArgumentError(
            f"vocab must hold different ids >= 0, got {len(ids)} ids of which "
            f"{len(ids.unique())} differ; pass the vocabulary size or a list of allowed ids"
        )
    return ids


def _with_bos(tokens: Int[Tensor, "sequence position"], bos: int | None) -> Tensor:
    if bos is None:
        return tokens
    first = torch.full((len(tokens), 1), require_int("bos", bos, minimum=0))
    return torch.cat([first, tokens], dim=1)
