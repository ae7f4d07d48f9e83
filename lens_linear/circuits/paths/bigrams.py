"""The direct path of a transformer: a table of bigrams, and how it compares with the truth.

With no head involved the logits are ``W_E W_U``: each token's row says which next tokens the model favours
after it, whatever stood before. ``W_U`` is class-centred: rows sum to 0, as the softmax sees no more. A model
without layers can learn nothing else; with layers the direct path keeps what the heads do not do.

Source: Elhage et al. 2021, "Zero-layer transformers".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._tl import FactoredMatrix
from lens_linear.checks import require_float_tensor, require_int
from lens_linear.circuits.heads.embedding_scales import token_scales
from lens_linear.circuits.heads.factored import MAX_BYTES, dense
from lens_linear.circuits.labels import require_token_text
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.describe.weights import ModelWeights
from lens_linear.stats.ngrams import BigramCounts, bigram_kl
from lens_linear.tables import Result
from lens_linear.token_rows import require_tokens


@dataclass(frozen=True, eq=False)
class NextTokens(Result):
    """The tokens a bigram table favours after one token.

    Attributes:
        token: the current token.
        ids: next tokens, best first.
        logits: of the direct path.
        probabilities: softmax of the direct path with its bias, over the whole vocabulary.
    """

    token: int
    ids: Int[Tensor, " k"]
    logits: Float[Tensor, " k"]
    probabilities: Float[Tensor, " k"]
    labels: Sequence[str] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"NextTokens: the {len(self.ids)} best next tokens after token {self.token}"

    def to_dataframe(self) -> pd.DataFrame:
        """Columns next, logit, probability, and next_label where there are labels."""
        frame = pd.DataFrame(
            {
                "next": self.ids.numpy(),
                "logit": self.logits.numpy(),
                "probability": self.probabilities.numpy(),
            }
        )
        if self.labels is not None:
            frame["next_label"] = [self.labels[i] for i in self.ids.tolist()]
        return frame


@dataclass(frozen=True, eq=False)
class BigramComparison(Result):
    """``KL(reference || direct path)`` after each token, and its weighted mean.

    Attributes:
        reference: what the table was held against.
        mean: nats a token, current tokens weighted by how often they occur; 0 if equal.
        per_token: nats after each current token; NaN for one that is never followed.
        weights: share of each current token, sums to 1.
    """

    _figure = "bigram_comparison"

    reference: str
    mean: float
    per_token: Float[Tensor, " vocab"]
    weights: Float[Tensor, " vocab"]
    labels: Sequence[str] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        seen = int((self.weights > 0).sum())
        return (
            f"BigramComparison: KL({self.reference} || direct path) = {self.mean:.4f} nats a token, "
            f"over {seen} current tokens"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns token, kl (nats), weight; tokens that occur, largest share of the mean first."""
        seen = (self.weights > 0).nonzero().flatten()
        share = (self.per_token[seen] * self.weights[seen]).argsort(descending=True, stable=True)
        seen = seen[share]
        frame = pd.DataFrame(
            {
                "token": seen.numpy(),
                "kl": self.per_token[seen].numpy(),
                "weight": self.weights[seen].numpy(),
            }
        )
        if self.labels is not None:
            frame["label"] = [self.labels[i] for i in seen.tolist()]
        return frame


@dataclass(frozen=True, eq=False)
class BigramTable(Result):
    """The direct path as a table [current token, next token].

    Attributes:
        matrix: ``W_E W_U`` in two factors, norms folded.
        scales: what the final norm divides each token's row by when only the embedding is there; ones
            without a norm.
        bias: ``b_U`` less its mean, added to every row before the softmax.
        position_bias: the mean position row through ``W_U``; the final norm's scale divides it too.
        labels: text of the vocabulary, or None.
        n_tokens: rows that stand for tokens; the rows behind them, of a padded vocabulary, are in the softmax
            (the model's own has them) and in no list.
    """

    _figure = "bigram_table"

    matrix: FactoredMatrix
    scales: Float[Tensor, " vocab"]
    bias: Float[Tensor, " vocab_out"]
    position_bias: Float[Tensor, " vocab_out"]
    labels: Sequence[str] | None = field(repr=False)
    n_tokens: int

    @classmethod
    def from_weights(
        cls, weights: ModelWeights, labels: Sequence[str] | None = None
    ) -> BigramTable:
        """Build the table from weights."""
        scales = token_scales(weights, weights.final_norm)
        positions = weights.b_U.new_zeros(len(weights.b_U))
        if weights.W_pos is not None:
            positions = weights.W_pos.mean(0) @ weights.class_centred
        matrix = FactoredMatrix(weights.W_E, weights.class_centred)
        return cls(
            matrix, scales, weights.b_U - weights.b_U.mean(), positions, labels, weights.n_tokens
        )

    def __repr__(self) -> str:
        n = self.matrix.ldim - self.n_tokens
        note = f", {n} row{'s' * (n > 1)} that no token has left out of its lists" if n else ""
        return f"BigramTable: direct path W_E W_U, {self.matrix.ldim} × {self.matrix.rdim} tokens{note}"

    @property
    def _n_outputs(self) -> int:
        same = self.matrix.ldim == self.matrix.rdim
        return self.n_tokens if same else self.matrix.rdim

    @cached_property
    def logits(self) -> Float[Tensor, "vocab vocab_out"]:
        """The table multiplied out, without bias and norm scale.

        Raises:
            FigureTooLargeError: more than 16.8 million entries; use :meth:`top` or ``.matrix``.
        """
        return dense(self.matrix, what="the bigram table")

    def log_probs(self, tokens: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n vocab_out"]:
        """Log-probabilities of the next token that the direct path alone gives, in nats.

        ``log_softmax(W_E W_U / scale + bias)``. For a model without layers and positions these are the
        model's own predictions.

        Args:
            tokens: current tokens; all by default.
        """
        if tokens is None:
            dense(self.matrix, what="the bigram table")
            tokens = torch.arange(self.matrix.ldim)
        tokens = require_tokens("tokens", tokens, n_vocab=self.matrix.ldim).flatten()
        tokens = tokens.to(self.matrix.A.device)
        scale = self.scales[tokens][:, None]
        rows = self.matrix.A[tokens] @ self.matrix.B + self.position_bias
        return (rows / scale + self.bias).log_softmax(-1)

    def top(self, token: int | str, k: int = 10) -> NextTokens:
        """Return the k next tokens that the direct path favours most after ``token``, an id or its text."""
        if isinstance(token, str):
            token = require_token_text("token", token, self.labels)
        token = require_int("token", token, minimum=0, maximum=self.matrix.ldim - 1)
        k = min(require_int("k", k, minimum=1), self._n_outputs)
        logits = self.matrix.A[token] @ self.matrix.B
        probabilities = self.log_probs(torch.tensor([token]))[0].exp()
        # By probability: the bias counts for what the model would say next.
        ids = probabilities[: self._n_outputs].topk(k).indices
        return NextTokens(token, ids, logits[ids], probabilities[ids], self._out_labels)

    def to_dataframe(self, k: int = 5) -> pd.DataFrame:
        """One row for each of the k best next tokens of every token: token, next, logit, probability."""
        k = min(require_int("k", k, minimum=1), self._n_outputs)
        parts = []
        for tokens in self._blocks(self.n_tokens):
            best = self.log_probs(tokens)[:, : self._n_outputs].topk(k, dim=1)
            logits = (self.matrix.A[tokens] @ self.matrix.B).gather(1, best.indices)
            parts.append((tokens.repeat_interleave(k), best.indices, logits, best.values.exp()))
        token, following, logit, probability = (
            torch.cat([part[i].flatten() for part in parts]) for i in range(4)
        )
        frame = pd.DataFrame(
            {
                "token": token.numpy(),
                "next": following.numpy(),
                "logit": logit.numpy(),
                "probability": probability.numpy(),
            }
        )
        if self.labels is not None:
            frame["token_label"] = [self.labels[i] for i in token.tolist()]
        if self._out_labels is not None:
            frame["next_label"] = [self._out_labels[i] for i in following.tolist()]
        return frame

    def compare(
        self,
        reference: BigramCounts | Float[Tensor, "vocab vocab"],
        *,
        weights: Float[Tensor, " vocab"] | None = None,
    ) -> BigramComparison:
        """Return ``KL(reference || direct path)`` per token, in nats: what the table misses.

        0 when the direct path predicts exactly the reference; no upper bound. A model with heads is not
        expected to reach 0: its heads move the prediction away from the direct path.

        Args:
            reference: counts of a corpus (``stats.ngrams.bigram_counts``), or true probabilities
                ``p(next | current)`` with rows that sum to 1, as a synthetic language has.
            weights: share of each current token; that of the corpus, or equal shares for a table.

        Raises:
            InvalidArgumentError: another vocabulary, or rows that are not probabilities.
        """
        n = self.matrix.ldim
        if self.matrix.rdim != n:
            raise InvalidArgumentError(
                f"the model reads {n} tokens and predicts {self.matrix.rdim}; bigrams of one vocabulary "
                "cannot be compared with it"
            )
        if isinstance(reference, BigramCounts):
            found = bigram_kl(self.log_probs, reference)
            shares = found.n_current.double() / found.n_current.sum()
            return BigramComparison("corpus", found.mean, found.per_token, shares, self.labels)
        table = _require_probabilities(reference, n).to(self.matrix.A.device)
        per_token = torch.cat(
            [
                (torch.special.xlogy(table[t], table[t]) - table[t] * self.log_probs(t)).sum(1)
                for t in self._blocks(n)
            ]
        )
        shares = torch.full((n,), 1.0, dtype=torch.float32) if weights is None else weights
        shares = require_float_tensor("weights", shares, ndim=1).double().to(per_token.device)
        if len(shares) != n or bool((shares < 0).any()) or float(shares.sum()) <= 0:
            raise InvalidArgumentError(
                f"weights must hold {n} shares of at least 0 that do not sum to 0, got {len(shares)}"
            )
        shares = shares / shares.sum()
        mean = float((shares * per_token).sum())
        return BigramComparison("true table", mean, per_token, shares, self.labels)

    @property
    def _out_labels(self) -> Sequence[str] | None:
        return self.labels if self.matrix.ldim == self.matrix.rdim else None

    def _blocks(self, n_rows: int) -> Iterator[Int[Tensor, " n"]]:
        size = max(1, MAX_BYTES // (8 * self.matrix.rdim))
        return iter(torch.arange(n_rows).split(size))


def _require_probabilities(value: Tensor, n: int) -> Float[Tensor, "vocab vocab"]:
    table = require_float_tensor("reference", value, ndim=2).double()
    off = float((table.sum(1) - 1).abs().max()) if table.shape == (n, n) else float("nan")
    if not off < 1e-6 or bool((table < 0).any()):
        raise InvalidArgumentError(
            f"reference must be bigram counts or a table [{n}, {n}] of probabilities whose rows sum to "
            f"1, got shape {tuple(table.shape)}; divide counts by their row sums"
        )
    return table
