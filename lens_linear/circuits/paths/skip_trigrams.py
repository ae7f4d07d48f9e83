"""Skip-trigrams "source … destination → out": what one layer of attention can say beyond bigrams.

A head that looks from the destination back to the source (QK) and writes towards ``out`` when it reads the
source (OV) makes ``out`` likelier after the destination. Both circuits together rank the triples:

* ``attention`` = share of attention that the destination gives to one source among ``context - 1`` other
  tokens drawn evenly from the vocabulary: ``sigmoid(QK[d, s] - ln mean exp QK[d, ·] - ln(context - 1))``;
* ``effect`` = ``attention · (OV[s, out] - mean OV[·, out])``: by how much the logit of ``out`` rises above
  the average token's.

* ``probability_gain`` = by how much the probability of ``out`` after the destination rises when
  ``attention · OV[s, ·]`` is added to the logits of the direct path. A logit can rise far without mattering
  when ``out`` stays improbable, so this column ranks unless ``by="effect"`` is asked for.

``qk_score`` and ``ov_score`` are the entries of the two circuits themselves. For models with norms the
typical scale of the embedding is put back where attention and effect are estimated; at layers above the
first the circuits see embeddings only, and the estimate is rougher. Positions are left out. A row whose
source is its destination is the head reading the current token, and one whose source begins every
sequence reads what is always there: both belong to the bigrams, and say nothing about the context.

Source: Elhage et al. 2021, "One-layer attention-only transformers as skip-trigrams".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._tl import FactoredMatrix
from lens_linear.checks import counted, require_choice, require_instance, require_int, require_ints
from lens_linear.circuits.heads.embedding_scales import token_scales
from lens_linear.circuits.heads.factored import (
    LARGE,
    MAX_BYTES,
    first_largest,
    row_blocks,
    top_of_blocks,
)
from lens_linear.circuits.heads.head_circuit import HeadCircuit, require_circuits
from lens_linear.circuits.paths.bigrams import BigramTable
from lens_linear.errors import InvalidArgumentError
from lens_linear.tables import Result

POOL, LEAST = 20, 2000  # candidates, where the ranking is not the one that finds them
MAX_OUTS = 2000  # outputs looked at for one pair
Ranking = Literal["effect", "probability"]


@dataclass(frozen=True, eq=False)
class SkipTrigrams(Result):
    """Skip-trigrams of one or several heads, strongest first.

    Attributes:
        heads: the heads behind the table, e.g. ("L0H2",).
        triples: token ids (source, destination, out).
        qk_score: ``QK[destination, source]`` of the head that contributes most.
        ov_score: ``OV[source, out]`` of that head.
        attention: its estimated attention from destination to source.
        effect: estimated rise of the logit of ``out`` above the average output's, summed over heads.
        probability_gain: estimated rise of the probability of ``out`` after the destination.
        strongest: index into ``heads`` of the head that contributes most.
        context: keys a query is assumed to choose among.
    """

    _figure = "skip_trigram_table"
    _columns = (
        "source_label",
        "destination_label",
        "out_label",
        "qk_score",
        "ov_score",
        "attention",
        "effect",
        "probability_gain",
    )

    heads: tuple[str, ...]
    triples: Int[Tensor, "k 3"]
    qk_score: Float[Tensor, " k"]
    ov_score: Float[Tensor, " k"]
    attention: Float[Tensor, " k"]
    effect: Float[Tensor, " k"]
    probability_gain: Float[Tensor, " k"]
    strongest: Int[Tensor, " k"]
    context: int
    labels: Sequence[str] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return (
            f"SkipTrigrams: the {len(self.triples)} strongest of {', '.join(self.heads)}, each source "
            f"among {counted(self.context, 'key')}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns source, destination, out, qk_score, ov_score, attention, effect, probability_gain, head."""
        columns: dict[str, Any] = {
            name: self.triples[:, i].numpy()
            for i, name in enumerate(("source", "destination", "out"))
        }
        for name in ("qk_score", "ov_score", "attention", "effect", "probability_gain"):
            columns[name] = getattr(self, name).double().numpy()
        columns["head"] = [self.heads[i] for i in self.strongest.tolist()]
        if self.labels is not None:
            for i, name in enumerate(("source", "destination", "out")):
                columns[f"{name}_label"] = [self.labels[t] for t in self.triples[:, i].tolist()]
        return pd.DataFrame(columns)


class HeadEffects:
    """The estimated attention and logit effect of one head, block by block or triple by triple."""

    def __init__(self, head: HeadCircuit, context: int, offset: int = 0) -> None:
        advice = "take it from lens_linear.head(model, 'L1H3')"
        require_instance("head", head, HeadCircuit, advice=advice)
        self.context = require_int("context", context, minimum=2)
        scales = token_scales(head.weights)[: head.weights.n_tokens, None]
        self.qk, self.ov = head.qk_at(offset), head.ov
        self._scaled_qk = FactoredMatrix(self.qk.A / scales, self.qk.B / scales.T)
        values = self.ov.A / scales
        self._mean_value = values.mean(dim=0)
        self._scaled_ov = FactoredMatrix(values - self._mean_value, self.ov.B)

    @property
    def average(self) -> Float[Tensor, " vocab_out"]:
        """Logits that reading an average token adds, before the final norm's scale."""
        return self._mean_value @ self.ov.B

    def added(self, destination: Tensor, source: Tensor) -> Float[Tensor, "n vocab_out"]:
        """Logits that reading the source adds beyond an average token, less their mean."""
        rows = self._scaled_ov.A[source] @ self._scaled_ov.B
        return self.attention(destination, source)[:, None] * rows

    def attention_blocks(
        self, sources: Tensor
    ) -> Iterator[tuple[int, Float[Tensor, "destination source"]]]:
        """Yield attention from blocks of destinations to the given sources.

        In float32 for vocabularies of more than 8192 tokens: it finds candidates, whose values are then
        computed in float64.
        """
        matrix = self._scaled_qk
        everything = len(sources) == matrix.rdim
        if matrix.ldim * matrix.rdim > LARGE:
            matrix = FactoredMatrix(matrix.A.float(), matrix.B.float())
        for start, scores in row_blocks(matrix):
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

    def largest_raise(self, sources: Tensor) -> Float[Tensor, " source"]:
        """Return how much each source raises the output it raises most."""
        matrix = FactoredMatrix(self._scaled_ov.A[sources], self._scaled_ov.B)
        if matrix.ldim * matrix.rdim > LARGE:
            matrix = FactoredMatrix(matrix.A.float(), matrix.B.float())
        return torch.cat([block.amax(dim=1) for _, block in row_blocks(matrix)])

    def best_outs(self, sources: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k outputs each source raises most, and by how much."""
        k = min(k, self._scaled_ov.rdim)
        size = max(1, MAX_BYTES // (self._scaled_ov.rdim * 8))
        values, indices = [], []
        for part in sources.split(size):
            best = (self._scaled_ov.A[part] @ self._scaled_ov.B).topk(k, dim=1)
            values.append(best.values)
            indices.append(best.indices)
        return torch.cat(values), torch.cat(indices)

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
    by: Ranking = "probability",
    sources: Sequence[int] | None = None,
    per_pair: int | None = None,
    context: int = 32,
    offset: int = 0,
) -> SkipTrigrams:
    """Return the k strongest skip-trigrams of a head, without a dense matrix.

    Exact for ``by="effect"``: every triple of the vocabulary is considered. ``by="probability"`` ranks anew
    the 20 k (at least 2,000) triples of largest effect.

    ``effect = attention · (OV[s, out] - mean OV[s, ·])`` in logits, ``probability_gain`` between -1 and 1;
    both 0 for a head that writes nothing.

    Args:
        head: from ``AttentionOnly.head`` or :func:`~lens_linear.circuits.heads.head_circuit.head_circuit`.
        k: rows.
        by: the column that ranks.
        sources: only these source tokens; all by default.
        per_pair: at most this many outputs for each (source, destination).
        context: keys a query is assumed to choose among; more keys, less attention to each.
        offset: positions from source to destination, for rotary heads.

    Returns:
        SkipTrigrams, strongest first; acts as a table.

    Raises:
        InvalidArgumentError: no head, ``k`` below 1, ``context`` below 2, or an unknown ``by``.

    Source: Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, "One-layer attention-only
        transformers" (skip-trigrams); the estimate of attention is ours.

    Example:
        >>> from lens_linear.circuits.heads.head_circuit import head_circuit
        >>> from lens_linear.models.open.toy import toy_model
        >>> table = skip_trigrams(head_circuit(toy_model(n_layers=1), 0, 0), 5)
        >>> list(table.to_dataframe())[:5], len(table)
        (['source', 'destination', 'out', 'qk_score', 'ov_score'], 5)
    """
    k = require_int("k", k, minimum=1)
    require_choice("by", by, ("effect", "probability"))
    effects = HeadEffects(head, context, offset)
    pool = k if by == "effect" else max(POOL * k, LEAST)
    triples = _candidates(head, effects, pool, sources, per_pair)
    return _table([head], [effects], triples, k, by)


def all_skip_trigrams(
    heads: Sequence[HeadCircuit],
    k: int = 50,
    *,
    by: Ranking = "probability",
    context: int = 32,
    offset: int = 0,
) -> SkipTrigrams:
    """Return the k strongest skip-trigrams of several heads together, effects summed over heads.

    Candidates are the 20 k (at least 2,000) of largest effect in every single head; a triple that is weak
    in each head alone is not found. Scores are those of the head that contributes most to the triple.
    Arguments as in :func:`skip_trigrams`.

    Units and formulas as in :func:`skip_trigrams`; all effects are 0 for heads that write nothing.

    Args:
        heads: of one model, from :func:`~lens_linear.circuits.heads.head_circuit.head_circuit`.
        k: rows.
        by: the column that ranks.
        context: keys a query is assumed to choose among; more keys, less attention to each.
        offset: positions from source to destination, for rotary heads.

    Returns:
        SkipTrigrams, strongest first; acts as a table, whose column ``head`` names the strongest head.

    Raises:
        InvalidArgumentError: no head, ``k`` below 1, ``context`` below 2, or an unknown ``by``.

    Source: Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, "One-layer attention-only
        transformers" (skip-trigrams).

    Example:
        >>> from lens_linear.circuits.heads.head_circuit import head_circuit
        >>> from lens_linear.models.open.toy import toy_model
        >>> head = head_circuit(toy_model(n_layers=1), 0, 0)
        >>> twice = all_skip_trigrams([head, head], 3, by="effect")
        >>> (twice["effect"] / skip_trigrams(head, 3, by="effect")["effect"]).round(6).tolist()
        [2.0, 2.0, 2.0]
    """
    heads = require_circuits(heads)
    k = require_int("k", k, minimum=1)
    require_choice("by", by, ("effect", "probability"))
    estimates = [HeadEffects(head, context, offset) for head in heads]
    found = [
        _candidates(head, effects, max(POOL * k, LEAST), None, None)
        for head, effects in zip(heads, estimates, strict=True)
    ]
    return _table(heads, estimates, torch.unique(torch.cat(found), dim=0), k, by)


def _candidates(
    head: HeadCircuit,
    effects: HeadEffects,
    k: int,
    sources: Sequence[int] | None,
    per_pair: int | None,
) -> Int[Tensor, "n 3"]:
    """Return triples among which the k of largest effect are."""
    n_vocab = head.weights.n_tokens
    outs = k if per_pair is None else min(k, require_int("per_pair", per_pair, minimum=1))
    outs = min(outs, MAX_OUTS) if k > MAX_OUTS else outs
    chosen = torch.arange(n_vocab) if sources is None else _require_ids(sources, n_vocab)
    raised = effects.largest_raise(chosen)
    # The best output of a pair is the best its triples can do, so the k best triples lie in the k best
    # pairs.
    blocks = (
        (start, attention * raised.to(attention))
        for start, attention in effects.attention_blocks(chosen)
    )
    destination, column = top_of_blocks(blocks, k)
    used, which = column.unique(return_inverse=True)
    values, out_ids = effects.best_outs(chosen[used], outs)
    attention = effects.attention(destination, chosen[column])
    strength = (attention[:, None] * values[which]).flatten()
    keep = first_largest(strength, min(k, len(strength)))
    pair, rank = keep // values.shape[1], keep % values.shape[1]
    source = chosen[column[pair]]
    return torch.stack([source, destination[pair], out_ids[which[pair], rank]], dim=1)


def _table(
    heads: Sequence[HeadCircuit],
    estimates: Sequence[HeadEffects],
    triples: Int[Tensor, "n 3"],
    k: int,
    by: Ranking,
) -> SkipTrigrams:
    each = [effects.effect(triples) for effects in estimates]
    effect, attention, qk, ov = (torch.stack([found[i] for found in each]) for i in range(4))
    gain = _probability_gain(heads[0], estimates, triples)
    ranked = effect.sum(0) if by == "effect" else gain
    keep = ranked.argsort(descending=True, stable=True)[:k]
    strongest = effect[:, keep].argmax(0)
    here = torch.arange(len(keep))
    first = heads[0]
    return SkipTrigrams(
        tuple(head.name for head in heads),
        triples[keep],
        qk[:, keep][strongest, here],
        ov[:, keep][strongest, here],
        attention[:, keep][strongest, here],
        effect.sum(0)[keep],
        gain[keep],
        strongest,
        estimates[0].context,
        first.labels if first.model.d_vocab_out == first.model.d_vocab else None,
    )


def _probability_gain(
    head: HeadCircuit, estimates: Sequence[HeadEffects], triples: Int[Tensor, "n 3"]
) -> Float[Tensor, " n"]:
    """Rise of p(out | destination) when every head reads the source instead of an average token."""
    table = BigramTable.from_weights(head.weights)
    pairs, which = triples[:, :2].unique(dim=0, return_inverse=True)
    size = max(1, MAX_BYTES // (table.matrix.rdim * 8))
    gain = torch.empty(len(triples), dtype=table.matrix.A.dtype)
    for first in range(0, len(pairs), size):
        source, destination = pairs[first : first + size].unbind(1)
        scale = table.scales[destination][:, None]
        average = torch.stack([effects.average for effects in estimates]).sum(0)
        logits = table.log_probs(destination)[:, : len(average)] + average / scale
        before = logits.softmax(-1)
        added = sum(effects.added(destination, source) for effects in estimates)
        after = (logits + added / scale).softmax(-1)
        mine = ((which >= first) & (which < first + size)).nonzero().flatten()
        row, out = which[mine] - first, triples[mine, 2]
        gain[mine] = after[row, out] - before[row, out]
    return gain


def _require_ids(ids: Sequence[int], n_vocab: int) -> Int[Tensor, " n"]:
    values = require_ints("sources", ids, minimum=0, maximum=n_vocab - 1)
    if not values:
        raise InvalidArgumentError("sources must name at least one token, got none; leave it out")
    return torch.tensor(values)
