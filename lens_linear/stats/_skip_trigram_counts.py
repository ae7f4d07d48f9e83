"""Counting ``source ... destination -> out`` in a corpus, sparsely. Public in ``stats.ngrams``."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from lens_linear.checks import require_int
from lens_linear.stats._token_blocks import Rows, SparseCounts, token_blocks

_MAX_VOCAB = 2_000_000  # source * vocab² + destination * vocab + out must fit in 63 bits


def skip_trigram_counts(
    tokens: Rows,
    n_vocab: int,
    *,
    window: int = 64,
    k: int = 50,
    min_count: int = 5,
) -> pd.DataFrame:
    """The skip-trigrams ``source ... destination -> out`` that say most beyond bigrams.

    One event for each position that has a next token in its row: destination is the token there,
    out the next one, and every *different* token among the ``window`` before it is a source, once.

    ``lift = p(out | destination, source) / p(out | destination)``, 1 when the source tells nothing.
    ``gain = count ln lift`` is what knowing the source adds to the log-likelihood of these events,
    in nats over the corpus; rows are sorted by it. Rare triples have noisy lifts.

    Args:
        tokens: token ids, or a token stream on disk.
        n_vocab: number of token ids.
        window: how far back a source may be, in tokens; the time grows in proportion.
        k: rows of the table.
        min_count: leave out triples that occur less often. Exact: nothing that reaches it is lost.

    Returns:
        DataFrame with columns source, destination, out, count, expected (count if the source told
        nothing), lift, gain; at most ``k`` rows, only with ``lift > 1``.

    Example:
        >>> import torch
        >>> tokens = torch.tensor([[0, 1, 2, 3], [4, 1, 2, 5]] * 5)
        >>> table = skip_trigram_counts(tokens, 6, k=2)
        >>> table[["source", "destination", "out", "lift"]].values.tolist()
        [[0.0, 2.0, 3.0, 2.0], [4.0, 2.0, 5.0, 2.0]]
    """
    n_vocab = require_int("n_vocab", n_vocab, minimum=1, maximum=_MAX_VOCAB)
    window = require_int("window", window, minimum=1)
    k = require_int("k", k, minimum=1)
    min_count = require_int("min_count", min_count, minimum=1)
    pairs, armed, triples = _count(tokens, n_vocab, window, min_count)
    keys, count = triples.result()
    keys, count = keys[count >= min_count], count[count >= min_count]
    source, rest = keys // n_vocab**2, keys % n_vocab**2
    destination, out = rest // n_vocab, rest % n_vocab
    followed = torch.zeros(n_vocab, dtype=torch.int64)
    pair_keys, pair_counts = pairs.result()
    followed.index_add_(0, pair_keys // n_vocab, pair_counts)
    base = pairs.look_up(rest).double() / followed[destination]
    expected = armed.look_up(source * n_vocab + destination) * base
    return _table(source, destination, out, count, expected, k)


def _count(
    tokens: Rows, n_vocab: int, window: int, min_count: int
) -> tuple[SparseCounts, SparseCounts, SparseCounts]:
    """Pairs (destination, out), armed pairs (source, destination), and frequent enough triples."""
    pairs, armed, triples = (SparseCounts(n_vocab**power) for power in (2, 2, 3))
    for block in token_blocks(tokens, n_vocab, min_length=2):
        pairs.add((block[:, :-1] * n_vocab + block[:, 1:]).flatten())
        for source, destination, _ in _events(block, window):
            armed.add(source * n_vocab + destination)
    for block in token_blocks(tokens, n_vocab, min_length=2):
        # A triple is no more frequent than the two pairs it is made of: none is lost.
        for source, destination, out in _events(block, window):
            before, after = source * n_vocab + destination, destination * n_vocab + out
            often = (pairs.look_up(after) >= min_count) & (armed.look_up(before) >= min_count)
            triples.add((before * n_vocab + out)[often])
    return pairs, armed, triples


def _table(
    source: Tensor, destination: Tensor, out: Tensor, count: Tensor, expected: Tensor, k: int
) -> pd.DataFrame:
    gain = count * (count / expected).log()
    frame = pd.DataFrame(
        {
            "source": source.numpy(),
            "destination": destination.numpy(),
            "out": out.numpy(),
            "count": count.numpy(),
            "expected": expected.numpy(),
            "lift": (count / expected).numpy(),
            "gain": gain.numpy(),
        }
    )
    frame = frame[frame["lift"] > 1.0].sort_values("gain", ascending=False, kind="stable")
    return frame.head(k).reset_index(drop=True)


def _events(
    block: Int[Tensor, "sequence position"], window: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(source, destination, out) of all events, one offset between the first two a time.

    A source that occurs twice in the window counts at its last occurrence only.
    """
    length = block.shape[1]
    again = _next_occurrence(block)
    for offset in range(1, min(window, length - 2) + 1):
        here = torch.arange(offset, length - 1)  # position of the destination
        last = again[:, : length - 1 - offset] >= here
        source = block[:, : length - 1 - offset][last]
        destination = block[:, offset : length - 1][last]
        yield source, destination, block[:, offset + 1 :][last]


def _next_occurrence(block: Int[Tensor, "sequence position"]) -> Int[Tensor, "sequence position"]:
    """Position of the next equal token in the row; the row's length if there is none."""
    length = block.shape[1]
    order = block.argsort(dim=1, stable=True)
    ordered = block.gather(1, order)
    after = torch.full_like(block, length)
    same = ordered[:, :-1] == ordered[:, 1:]
    after[:, :-1] = torch.where(same, order[:, 1:], length)
    return torch.empty_like(block).scatter_(1, order, after)
