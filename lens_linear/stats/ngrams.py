r"""What a corpus says about pairs and triples of tokens: the truth that circuits are held against.

Counts are kept sparse (only what occurs), so a vocabulary of 50,000 never becomes a dense table of
2.5 billion cells; dense rows are made for the tokens that are asked for.

>>> import torch
>>> tokens = torch.tensor([[0, 1, 0, 1, 0], [0, 1, 1, 1, 0]])
>>> counts = bigram_counts(tokens, 2)
>>> counts.dense()
tensor([[0, 3],
        [3, 2]])
>>> round(bigram_entropy(counts), 4)
0.4206

Definitions. ``n(a, b)`` is how often b follows a directly, inside a row (never across rows).
``p(b | a) = n(a, b) / n(a, .)``. Entropies and divergences are in nats a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import (
    counted,
    require_choice,
    require_float_tensor,
    require_instance,
    require_int,
    shown,
)
from lens_linear.errors import FigureTooLargeError, InvalidArgumentError, NotEnoughDataError
from lens_linear.stats._skip_trigram_counts import skip_trigram_counts
from lens_linear.stats._token_blocks import CHUNK_TOKENS, Rows, SparseCounts, token_blocks
from lens_linear.tables import Result
from lens_linear.token_rows import TokenRows, require_tokens

_MAX_CELLS = 25_000_000

__all__ = [
    "BigramCounts",
    "BigramDivergence",
    "bigram_counts",
    "bigram_entropy",
    "bigram_kl",
    "skip_trigram_counts",
]

EntropyCorrection = Literal["none", "miller-madow"]
LogProbs = Float[Tensor, "vocab vocab"] | Callable[[Int[Tensor, " n"]], Float[Tensor, "n vocab"]]


@dataclass(frozen=True, eq=False)
class BigramCounts(Result):
    """How often each pair of neighbouring tokens occurs; only pairs that occur are stored.

    Attributes:
        current: first token of each pair, sorted, int64.
        following: second token, sorted within equal ``current``.
        count: how often the pair occurs, at least 1.
        n_vocab: number of token ids.
        n_tokens: tokens that were read, the last of each row included.
    """

    current: Int[Tensor, " pair"]
    following: Int[Tensor, " pair"]
    count: Int[Tensor, " pair"]
    n_vocab: int
    n_tokens: int

    def __repr__(self) -> str:
        return (
            f"BigramCounts: {len(self.count)} different pairs among {self.n_pairs}, from "
            f"{counted(self.n_tokens, 'token')}, vocabulary {self.n_vocab}"
        )

    @property
    def n_pairs(self) -> int:
        """Number of neighbouring pairs, repeats counted."""
        return int(self.count.sum())

    @property
    def n_current(self) -> Int[Tensor, " vocab"]:
        """How often each token is followed by another."""
        totals = torch.zeros(self.n_vocab, dtype=torch.int64)
        return totals.index_add_(0, self.current, self.count)

    def rows(self, tokens: Int[Tensor, " n"]) -> Int[Tensor, "n vocab"]:
        """Counts of what follows each of ``tokens``, dense."""
        tokens = _require_ids(tokens, self.n_vocab)
        result = torch.zeros(len(tokens), self.n_vocab, dtype=torch.int64)
        starts = torch.searchsorted(self.current, tokens)
        stops = torch.searchsorted(self.current, tokens, right=True)
        for row, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist())):
            result[row, self.following[start:stop]] = self.count[start:stop]
        return result

    def dense(self, *, max_cells: int = _MAX_CELLS) -> Int[Tensor, "vocab vocab"]:
        """The whole table.

        Raises:
            FigureTooLargeError: it would have more than ``max_cells`` cells; use :meth:`rows`.
        """
        if self.n_vocab**2 > max_cells:
            raise FigureTooLargeError(
                f"max_cells must be at least {self.n_vocab**2} for a dense table of {self.n_vocab} x "
                f"{self.n_vocab}, got {max_cells}; ask for single rows with .rows(tokens)"
            )
        table = torch.zeros(self.n_vocab, self.n_vocab, dtype=torch.int64)
        table[self.current, self.following] = self.count
        return table

    def to_dataframe(self) -> pd.DataFrame:
        """Columns current, following, count, probability (of following given current)."""
        probability = self.count.double() / self.n_current[self.current]
        return pd.DataFrame(
            {
                "current": self.current.numpy(),
                "following": self.following.numpy(),
                "count": self.count.numpy(),
                "probability": probability.numpy(),
            }
        )


@dataclass(frozen=True, eq=False)
class BigramDivergence(Result):
    """``KL(corpus bigram || model bigram)`` for each current token, and its average over tokens.

    Attributes:
        mean: nats a token, each current token weighted by how often it occurs; 0 if equal.
        per_token: nats for each current token; NaN for one that is never followed.
        n_current: the weights.
    """

    mean: float
    per_token: Float[Tensor, " vocab"]
    n_current: Int[Tensor, " vocab"]

    def __repr__(self) -> str:
        seen = int((self.n_current > 0).sum())
        return (
            f"BigramDivergence: KL(corpus || model) = {self.mean:.4f} nats a token, over "
            f"{counted(int(self.n_current.sum()), 'token')} of {seen} kinds"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns token, kl (nats), count; only tokens that occur, largest share first."""
        seen = self.n_current.nonzero().flatten()
        frame = pd.DataFrame(
            {
                "token": seen.numpy(),
                "kl": self.per_token[seen].numpy(),
                "count": self.n_current[seen].numpy(),
            }
        )
        share = frame["kl"] * frame["count"]
        order = share.sort_values(ascending=False, kind="stable").index
        return frame.loc[order].reset_index(drop=True)


def bigram_counts(tokens: Rows | TokenRows, n_vocab: int) -> BigramCounts:
    """Count neighbouring pairs within rows.

    Args:
        tokens: token ids ``[sequence, position]`` (one row is enough; a token stream on disk works
            and is read in chunks).
        n_vocab: number of token ids.

    Raises:
        NotEnoughDataError: rows of fewer than 2 tokens.
        InvalidArgumentError: an id is not in the vocabulary.
    """
    n_vocab = require_int("n_vocab", n_vocab, minimum=1)
    pairs, n_tokens = SparseCounts(n_vocab**2), 0
    for block in token_blocks(tokens, n_vocab, min_length=2):
        n_tokens += block.numel()
        pairs.add((block[:, :-1] * n_vocab + block[:, 1:]).flatten())
    keys, counts = pairs.result()
    return BigramCounts(
        current=keys // n_vocab,
        following=keys % n_vocab,
        count=counts,
        n_vocab=n_vocab,
        n_tokens=n_tokens,
    )


def bigram_entropy(
    tokens: Int[Tensor, "sequence position"] | BigramCounts | TokenRows,
    n_vocab: int | None = None,
    *,
    correction: EntropyCorrection = "none",
) -> float:
    """``H(next | current)`` of the corpus, in nats a token: the loss of the best bigram table.

    ``-sum_ab n(a, b) / N ln p(b | a)``, between 0 and ``ln n_vocab``. On the text it was counted
    from this is a lower bound for any 0-layer model. As an estimate for the source of the text it
    is too low, by about ``(pairs - tokens) / 2N`` with as many different pairs and current tokens
    as were seen; ``correction="miller-madow"`` adds that.

    Args:
        tokens: token ids, or counts made before.
        n_vocab: number of token ids (not needed with counts).
        correction: "none" for the corpus itself, "miller-madow" to estimate the source.

    Source:
        Miller 1955, "Note on the bias of information estimates".
    """
    require_choice("correction", correction, ("none", "miller-madow"))
    counts = _as_counts(tokens, n_vocab)
    n = counts.count.double()
    totals = counts.n_current
    total = n.sum()
    value = -(n * (n / totals[counts.current]).log()).sum() / total
    if correction == "miller-madow":
        value = value + (len(n) - int((totals > 0).sum())) / (2 * total)
    return float(value.clamp(min=0.0))


def bigram_kl(log_probs: LogProbs, counts: BigramCounts) -> BigramDivergence:
    """``KL(corpus bigram || model bigram)``, averaged over the corpus: what a model's bigrams miss.

    ``sum_a n(a, .) / N sum_b p(b | a) (ln p(b | a) - ln q(b | a))``, 0 for the corpus' own table,
    no upper bound (infinite if the model rules out a pair that occurs). The corpus table is the
    plain one: with N tokens even the true q scores above 0, by about ``(pairs - tokens) / 2N`` (see
    :func:`bigram_entropy`).

    Args:
        log_probs: the model's ``ln q(next | current)``, a table ``[vocab, vocab]`` or, for large
            vocabularies, a function from token ids ``[n]`` to rows ``[n, vocab]``.
        counts: from :func:`bigram_counts`.

    Raises:
        InvalidArgumentError: rows are not log-probabilities (apply ``log_softmax`` to logits).
    """
    require_instance("counts", counts, BigramCounts, advice="make them with bigram_counts(tokens)")
    n_vocab = counts.n_vocab
    chunk = max(1, CHUNK_TOKENS // n_vocab)
    per_token = torch.full((n_vocab,), float("nan"), dtype=torch.float64)
    seen = counts.n_current.nonzero().flatten()
    for ids in seen.split(chunk):
        start = int(torch.searchsorted(counts.current, ids[0]))
        stop = int(torch.searchsorted(counts.current, ids[-1], right=True))
        current, count = counts.current[start:stop], counts.count[start:stop].double()
        log_q = _log_rows(log_probs, ids, n_vocab)
        row = torch.searchsorted(ids, current)
        p = count / counts.n_current[current]
        terms = p * (p.log() - log_q[row, counts.following[start:stop]])
        per_token[ids] = torch.zeros(len(ids), dtype=torch.float64).index_add(0, row, terms)
    weights = counts.n_current[seen].double()
    mean = float((per_token[seen] * weights).sum() / weights.sum())
    return BigramDivergence(mean, per_token, counts.n_current)


def _log_rows(
    log_probs: LogProbs, ids: Int[Tensor, " n"], n_vocab: int
) -> Float[Tensor, "n vocab"]:
    if callable(log_probs):
        try:
            rows = log_probs(ids)
        except Exception as reason:
            raise InvalidArgumentError(
                f"log_probs must give rows for ids [n], but {shown(log_probs)} failed "
                f"({type(reason).__name__}: {reason}); mend it"
            ) from reason
    elif not isinstance(log_probs, Tensor):
        raise InvalidArgumentError(
            "log_probs must be a table [vocab, vocab] or a function from ids to rows, got "
            f"{type(log_probs).__name__}; use logits.log_softmax(-1)"
        )
    elif log_probs.shape == (n_vocab, n_vocab):
        rows = log_probs[ids]
    else:
        raise InvalidArgumentError(
            f"log_probs must have shape [{n_vocab}, {n_vocab}] like the counts, got "
            f"{tuple(log_probs.shape)}; were they counted with another vocabulary?"
        )
    rows = require_float_tensor("log_probs", rows, ndim=2, finite=False).detach().cpu().double()
    off = float((rows.logsumexp(dim=1)).abs().max()) if rows.shape == (len(ids), n_vocab) else None
    if off is None or not off < 1e-2:
        raise InvalidArgumentError(
            f"log_probs must hold log-probabilities [{len(ids)}, {n_vocab}] whose exponentials sum "
            f"to 1, got shape {tuple(rows.shape)}"
            + (f" and log-sums up to {off:.3g} from 0" if off is not None else "")
            + "; apply log_softmax(-1) to logits"
        )
    return rows


def _as_counts(
    tokens: Int[Tensor, "sequence position"] | BigramCounts | TokenRows, n_vocab: int | None
) -> BigramCounts:
    if isinstance(tokens, BigramCounts):
        return tokens
    if n_vocab is None:
        raise InvalidArgumentError(
            "n_vocab must be given with tokens, got None; pass the vocabulary size"
        )
    return bigram_counts(tokens, n_vocab)


def _require_ids(tokens: Int[Tensor, " n"], n_vocab: int) -> Int[Tensor, " n"]:
    require_instance("tokens", tokens, Tensor, advice="pass e.g. torch.tensor([3])")
    if tokens.ndim != 1 or tokens.numel() == 0:
        raise NotEnoughDataError(
            f"tokens must be a list of at least one id, got shape {tuple(tokens.shape)}; "
            "pass e.g. torch.tensor([3])"
        )
    return require_tokens("tokens", tokens, n_vocab=n_vocab)[0].cpu()
