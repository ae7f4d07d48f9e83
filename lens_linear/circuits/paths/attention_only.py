"""An attention-only transformer, opened up: bigrams, heads, skip-trigrams and exact paths.

>>> import torch
>>> from lens_linear.models.open.toy import toy_model
>>> view = AttentionOnly(toy_model(n_layers=2, n_heads=2))
>>> view
AttentionOnly 'toy': 2 layers × 2 heads, vocabulary 64, norms none
>>> view.paths(torch.arange(10)).max_error < 1e-5
True

Weights are read once, norms folded into a copy, in float64; the model is not changed. A model with MLPs is
refused: its logits are no sum of attention paths. For such models use the head-level tools
(:func:`~lens_linear.circuits.heads.head_circuit.head_circuit` and its neighbours), which take any model.

Source: Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lens_linear.checks import require_choice
from lens_linear.circuits.heads.head_circuit import HeadCircuit, head_circuit
from lens_linear.circuits.labels import require_labels
from lens_linear.circuits.paths.bigrams import BigramTable
from lens_linear.circuits.paths.chains import expand
from lens_linear.circuits.paths.expansion import PathExpansion
from lens_linear.circuits.paths.importance import (
    PathImportance,
    importance_by_order,
    require_answers,
)
from lens_linear.circuits.paths.skip_trigrams import (
    Ranking,
    SkipTrigrams,
    all_skip_trigrams,
    skip_trigrams,
)
from lens_linear.models.checked import ModelLike, checked
from lens_linear.models.describe.weights import ModelWeights, read_weights
from lens_linear.models.frozen.frozen_attention import (
    FrozenRun,
    freeze_attention,
    in_double,
    require_attention_only,
)
from lens_linear.stats.task_scores import require_task, warn_if_not_next_token

MAX_TERMS = 4096
MAX_BYTES = 2 * 2**30


class AttentionOnly:
    """A view of an attention-only model; the model stays as it is.

    Args:
        model: a bridge without MLPs.
        fold: fold norm weights, biases and centring into the copy of the weights (exact either way for
            paths, which always fold).
        labels: text of the vocabulary; the tokenizer's by default, if there is one.

    Raises:
        UnsupportedModelError: the model has MLPs (the message says how many), norms behind its
            attention, or bounded logits.
    """

    def __init__(
        self,
        model: ModelLike,
        *,
        fold: bool = True,
        labels: Sequence[str] | None = None,
    ) -> None:
        self._model = checked(model)
        require_attention_only(self._model)
        self.model = self._model.bridge
        self.fold = fold
        self._verified: set[int] = set()
        self._read: ModelWeights | None = None
        self.labels = require_labels(labels, self._model)

    def __repr__(self) -> str:
        s = self._model
        return (
            f"AttentionOnly {s.name!r}: {s.n_layers} layers × {s.n_heads} heads, vocabulary "
            f"{s.d_vocab}, norms {self.weights.norm}{self.weights.padding_note}"
        )

    @property
    def weights(self) -> ModelWeights:
        """The weights in float64, norms folded unless ``fold=False``.

        Read again when the model's were changed, in whatever way: their checksum is taken at every use.
        Tables taken before keep the weights that they were made with; heads do too, and say so.
        """
        if self._read is None or not self._read.mark.fits(self._model):
            self._verified = set()
            self._read = read_weights(self._model, fold=self.fold)
        return self._read

    def bigrams(self) -> BigramTable:
        """Return the direct path ``W_E W_U`` as a table of bigrams."""
        return BigramTable.from_weights(self.weights, self.labels)

    def head(self, layer: int | str | tuple[int, int], head: int | None = None) -> HeadCircuit:
        """Return the QK and OV circuits of one head, named ``1, 3`` or ``"L1H3"``."""
        weights = self.weights  # read first: it forgets what was verified of older ones
        return head_circuit(
            self._model,
            layer,
            head,
            weights=weights,
            labels=self.labels,
            verified=self._verified,
        )

    def heads(self) -> list[HeadCircuit]:
        """Return all heads, layer by layer."""
        layers, heads = range(self._model.n_layers), range(self._model.n_heads)
        return [self.head(layer, head) for layer in layers for head in heads]

    def skip_trigrams(
        self,
        layer: int | str | tuple[int, int],
        head: int | None = None,
        k: int = 50,
        *,
        by: Ranking = "probability",
        sources: Sequence[int] | None = None,
        per_pair: int | None = None,
        context: int = 32,
    ) -> SkipTrigrams:
        """Return the k strongest skip-trigrams "source … destination → out" of a head.

        See :func:`lens_linear.circuits.paths.skip_trigrams.skip_trigrams`.
        """
        head_view = self.head(layer, head)
        return skip_trigrams(
            head_view, k, by=by, sources=sources, per_pair=per_pair, context=context
        )

    def all_skip_trigrams(
        self, k: int = 50, *, layer: int = 0, by: Ranking = "probability", context: int = 32
    ) -> SkipTrigrams:
        """Return the k strongest skip-trigrams of all heads of a layer together."""
        heads = [self.head(layer, head) for head in range(self._model.n_heads)]
        return all_skip_trigrams(heads, k, by=by, context=context)

    def paths(
        self,
        tokens: Any,
        *,
        dtype: torch.dtype | None = None,
        max_terms: int = MAX_TERMS,
        max_bytes: int = MAX_BYTES,
    ) -> PathExpansion:
        """Return the logits as an exact sum over end-to-end paths, patterns and norm scales frozen.

        Args:
            tokens: ids [batch, position], or a Task, whose answers and metric the losses then use.
            dtype: None runs the model as it is and adds up in float64, so that the error is the model's
                own rounding. ``torch.float64`` runs a float64 copy of the model (error about 1e-13);
                ``torch.float32`` adds up in float32.
            max_terms: refuse more paths than this. L layers of H heads have about 2 (1 + H)^L.
            max_bytes: refuse to take more memory than this.

        Raises:
            InvalidArgumentError: too many paths, or too many tokens for them.
        """
        task = require_task(self._model, tokens)
        frozen = self.frozen(task, dtype=dtype)
        names, streams, direct = expand(frozen, max_terms=max_terms, max_bytes=max_bytes)
        return PathExpansion(
            self._model.name,
            self._model.is_causal,
            task,
            tuple(names),
            streams,
            tuple(direct),
            frozen.weights.W_U,
            frozen.scales[-1],
            frozen.logits,
            self.labels,
        )

    def importance(self, tokens: Any, *, dtype: torch.dtype | None = None) -> PathImportance:
        """Return the paper's term importance without listing the paths: any depth, any number of heads."""
        task = require_task(self._model, tokens, scored=True)
        require_answers(task)
        found = importance_by_order(self.frozen(task, dtype=dtype), task)
        if found.metric == "loss":
            warn_if_not_next_token(task, found.losses[-1], self._model)
        return found

    def frozen(self, tokens: Any, *, dtype: torch.dtype | None = None) -> FrozenRun:
        """Run the model once and keep what the path expansion holds still."""
        if dtype is not None:
            require_choice("dtype", str(dtype), ("torch.float32", "torch.float64"))
        model = checked(in_double(self._model)) if dtype == torch.float64 else self._model
        return freeze_attention(model, tokens, dtype=dtype or torch.float64)
