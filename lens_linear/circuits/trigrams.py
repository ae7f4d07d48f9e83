"""Skip-trigrams "source … destination → out": what one layer of attention can say beyond bigrams.

A head that looks from the destination back to the source (QK) and writes towards ``out`` when it reads the
source (OV) makes ``out`` likelier after the destination. Both circuits together rank the triples:

* ``attention`` = share of attention that the destination gives to one source among ``context - 1`` other
  tokens drawn evenly from the vocabulary: ``sigmoid(QK[d, s] - ln mean exp QK[d, ·] - ln(context - 1))``;
* ``effect`` = ``attention · (OV[s, out] - mean OV[s, ·])``: by how much the logit of ``out`` rises above
  the average token's.

``qk_score`` and ``ov_score`` are the entries of the two circuits themselves. For models with norms the
typical scale of the embedding is put back where attention and effect are estimated; at layers above the
first the circuits see embeddings only, and the estimate is rougher. Positions are left out.

Source: Elhage et al. 2021, "One-layer attention-only transformers as skip-trigrams".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._checks import require_int
from lens_linear._frames import Table
from lens_linear._tl import FactoredMatrix
from lens_linear.circuits._scales import token_scales
from lens_linear.circuits.factored import MAX_BYTES, row_blocks, top_of_blocks
from lens_linear.errors import InvalidArgumentError

if TYPE_CHECKING:
    import pandas as pd

    from lens_linear.circuits.heads import HeadCircuit


@dataclass(frozen=True, eq=False)
class SkipTrigrams(Table):
    """Skip-trigrams of one or several heads, strongest first.

    Attributes:
        heads: the heads behind the table, e.g. ("L0H2",).
        triples: token ids (source, destination, out).
        qk_score: ``QK[destination, source]`` of the head that contributes most.
        ov_score: ``OV[source, out]`` of that head.
        attention: its estimated attention from destination to source.
        effect: estimated rise of the logit of ``out`` above the average token's, summed over heads.
        strongest: index into ``heads`` of the head that contributes most.
        context: keys a query is assumed to choose among.
    """

    heads: tuple[str, ...]
    triples: Int[Tensor, "k 3"]
    qk_score: Float[Tensor, " k"]
    ov_score: Float[Tensor, " k"]
    attention: Float[Tensor, " k"]
    effect: Float[Tensor, " k"]
    strongest: Int[Tensor, " k"]
    context: int
    labels: Sequence[str] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return (
            f"SkipTrigrams: the {len(self.triples)} strongest of {', '.join(self.heads)}, each source "
            f"among {self.context} keys"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns source, destination, out, qk_score, ov_score, attention, effect, head (and labels)."""
        import pandas as pd

        columns: dict[str, Any] = {
            name: self.triples[:, i].numpy()
            for i, name in enumerate(("source", "destination", "out"))
        }
        for name in ("qk_score", "ov_score", "attention", "effect"):
            columns[name] = getattr(self, name).double().numpy()
        columns["head"] = [self.heads[i] for i in self.strongest.tolist()]
        if self.labels is not None:
            for i, name in enumerate(("source", "destination", "out")):
                columns[f"{name}_label"] = [self.labels[t] for t in self.triples[:, i].tolist()]
        return pd.DataFrame(columns)


class HeadEffects:
    """The estimated attention and logit effect of one head, block by block or triple by triple."""

    def __init__(self, head: HeadCircuit, context: int, offset: int = 0) -> None:
        self.context = require_int("context", context, minimum=2)
        scales = token_scales(head.weights)[:, None]
        self.qk, self.ov = head.qk_at(offset), head.ov
        self._scaled_qk = FactoredMatrix(self.qk.A / scales, self.qk.B / scales.T)
        out_mean = self.ov.B.mean(dim=1, keepdim=True)
        self._scaled_ov = FactoredMatrix(self.ov.A / scales, self.ov.B - out_mean)

    def attention_blocks(
        self, sources: Tensor, max_bytes: int = MAX_BYTES
    ) -> Iterator[tuple[int, Float[Tensor, "destination source"]]]:
        """Yield attention from blocks of destinations to the given sources."""
        everything = len(sources) == self._scaled_qk.rdim
        for start, scores in row_blocks(self._scaled_qk, max_bytes=max_bytes):
            rivals = self._log_rivals(scores)[:, None]
            yield start, torch.sigmoid((scores if everything else scores[:, sources]) - rivals)

    def attention(self, destination: Tensor, source: Tensor) -> Float[Tensor, " n"]:
        """Estimated attention from each destination to its source."""
        found = torch.empty(len(destination), dtype=self._scaled_qk.A.dtype)
        size = max(1, MAX_BYTES // (self._scaled_qk.rdim * 8))
        for part in torch.arange(len(destination)).split(size):
            scores = self._scaled_qk.A[destination[part]] @ self._scaled_qk.B
            own = scores.gather(1, source[part][:, None])[:, 0]
            found[part] = torch.sigmoid(own - self._log_rivals(scores))
        return found

    def best_outs(self, sources: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k outputs each source raises most, and by how much above the average output."""
        k = min(k, self._scaled_ov.rdim)
        size = max(1, MAX_BYTES // (self._scaled_ov.rdim * 8))
        parts = [
            (self._scaled_ov.A[part] @ self._scaled_ov.B).topk(k, dim=1)
            for part in sources.split(size)
        ]
        return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])

    def effect(self, triples: Int[Tensor, "n 3"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return effect, attention, QK entry and OV entry of each (source, destination, out)."""
        source, destination, out = triples.unbind(1)
        attention = self.attention(destination, source)
        raised = (self._scaled_ov.A[source] * self._scaled_ov.B.T[out]).sum(1)
        qk = (self.qk.A[destination] * self.qk.B.T[source]).sum(1)
        ov = (self.ov.A[source] * self.ov.B.T[out]).sum(1)
        return attention * raised, attention, qk, ov

    def _log_rivals(self, scores: Tensor) -> Tensor:
        average = scores.logsumexp(dim=1) - math.log(scores.shape[1])
        return average + math.log(self.context - 1)


def skip_trigrams(
    head: HeadCircuit,
    k: int = 50,
    *,
    sources: Sequence[int] | None = None,
    per_pair: int | None = None,
    context: int = 32,
    offset: int = 0,
) -> SkipTrigrams:
    """Return the k skip-trigrams of a head with the largest effect, without a dense matrix.

    Exact for the ranking above: every triple of the vocabulary is considered.

    Args:
        head: from ``AttentionOnly.head`` or :func:`~lens_linear.circuits.heads.head_circuit`.
        k: rows.
        sources: only these source tokens; all by default.
        per_pair: at most this many outputs for each (source, destination).
        context: keys a query is assumed to choose among; more keys, less attention to each.
        offset: positions from source to destination, for rotary heads.

    Example:
        >>> from lens_linear.circuits.heads import head_circuit
        >>> from lens_linear.models.toy import toy_model
        >>> table = skip_trigrams(head_circuit(toy_model(n_layers=1), 0, 0), 5)
        >>> list(table)[:5], len(table)
        (['source', 'destination', 'out', 'qk_score', 'ov_score'], 5)
    """
    k = require_int("k", k, minimum=1)
    outs = k if per_pair is None else min(k, require_int("per_pair", per_pair, minimum=1))
    n_vocab = head.shape.d_vocab
    chosen = torch.arange(n_vocab) if sources is None else _require_ids(sources, n_vocab)
    effects = HeadEffects(head, context, offset)
    raised, out_ids = effects.best_outs(chosen, outs)
    # The best output of a pair is the best its triples can do, so the k best triples lie in the k best
    # pairs.
    blocks = (
        (start, attention * raised[:, 0]) for start, attention in effects.attention_blocks(chosen)
    )
    destination, column = top_of_blocks(blocks, k)
    width = raised.shape[1]
    triples = torch.stack(
        [
            chosen[column].repeat_interleave(width),
            destination.repeat_interleave(width),
            out_ids[column].flatten(),
        ],
        dim=1,
    )
    effect, attention, qk, ov = effects.effect(triples)
    keep = effect.argsort(descending=True, stable=True)[:k]
    return SkipTrigrams(
        (head.name,),
        triples[keep],
        qk[keep],
        ov[keep],
        attention[keep],
        effect[keep],
        torch.zeros(len(keep), dtype=torch.int64),
        effects.context,
        head.labels if head.shape.d_vocab_out == n_vocab else None,
    )


def all_skip_trigrams(
    heads: Sequence[HeadCircuit], k: int = 50, *, context: int = 32, offset: int = 0
) -> SkipTrigrams:
    """Return the k strongest skip-trigrams of several heads together, effects summed over heads.

    Candidates are the 4 k strongest of every single head; a triple that is weak in each head alone is
    not found. Scores are those of the head that contributes most to the triple.
    """
    if not heads:
        raise InvalidArgumentError("heads must hold at least one head, got none")
    k = require_int("k", k, minimum=1)
    tables = [skip_trigrams(head, 4 * k, context=context, offset=offset) for head in heads]
    triples = torch.unique(torch.cat([table.triples for table in tables]), dim=0)
    each = [HeadEffects(head, context, offset).effect(triples) for head in heads]
    effect, attention, qk, ov = (torch.stack([found[i] for found in each]) for i in range(4))
    total = effect.sum(0)
    keep = total.argsort(descending=True, stable=True)[:k]
    strongest = effect[:, keep].argmax(0)
    here = torch.arange(len(keep))
    return SkipTrigrams(
        tuple(head.name for head in heads),
        triples[keep],
        qk[:, keep][strongest, here],
        ov[:, keep][strongest, here],
        attention[:, keep][strongest, here],
        total[keep],
        strongest,
        context,
        tables[0].labels,
    )


def _require_ids(ids: Sequence[int], n_vocab: int) -> Int[Tensor, " n"]:
    values = [require_int("sources", int(i), minimum=0, maximum=n_vocab - 1) for i in ids]
    if not values:
        raise InvalidArgumentError("sources must name at least one token, got none; leave it out")
    return torch.tensor(values)
