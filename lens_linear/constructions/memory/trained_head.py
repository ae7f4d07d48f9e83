"""A trained head's queries and keys, put on the picture of linear to exponential memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import require_head
from lens_linear.constructions.memory.head_memory import HeadMemory, attention_head_memory
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.batch_memory import sequences_a_pass
from lens_linear.models.capture import require_model_tokens, run
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.describe.rotary import read_rotary
from lens_linear.models.describe.weights import score_scale
from lens_linear.models.frozen.attention_scores import attention_scores
from lens_linear.models.spots import Spot
from lens_linear.token_rows import TokenRows


def trained_head_memory(
    model: ModelLike,
    tokens: Int[Tensor, "batch position"] | TokenRows,
    *,
    layer: int | str | tuple[int, int],
    head: int | None = None,
    energies: str | Sequence[str] = ("exponential", "quadratic", "polynomial-3"),
    n_patterns: Sequence[int] | None = None,
    draws: int = 2,
    seed: int = 0,
) -> HeadMemory:
    """Measure one head of a model on text: its own queries over the keys they can see.

    Keys and queries are rotated where the model rotates; β is the model's own factor of ``q · k``.
    Every sequence is one memory, and the sequences give the error bars.

    Args:
        model: a bridge.
        tokens: ``[batch, position]`` ids.
        layer: the head as ``"L1H3"`` or (1, 3), or the index of its layer.
        head: index of the query head in that layer; left out with a name.
        energies: see :func:`~lens_linear.constructions.memory.head_memory.attention_head_memory`.
        n_patterns: numbers of stored keys; None takes powers of two up to the number of positions.
        draws: random subsets a query and number of keys.
        seed: of the local generator.

    Returns:
        HeadMemory: retrieval from the head's keys and from random keys of the same size.

    Raises:
        UnsupportedModelError: the model bounds its scores (softcap), so no single β exists; or its scores
            are not q·k over all earlier keys (position biases, norms on queries, sliding windows).

    Source: Ramsauer et al. 2020 (heads as Hopfield memories); the measurement is that of
        :func:`~lens_linear.constructions.memory.head_memory.attention_head_memory`.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> tokens = torch.randint(0, 32, (2, 16), generator=torch.Generator().manual_seed(0))
        >>> trained_head_memory(toy_model(seed=0), tokens, layer=0, head=0).n_keys
        16
    """
    model = checked(model)
    tokens = require_model_tokens(model, tokens)
    named = layer if head is None else (layer, head)
    at, which = require_head("head", named, n_layers=model.n_layers, n_heads=model.n_heads)
    reads = head_reads(model, tokens, [at], sequences_a_pass(model, tokens.shape[1]))[at]
    q, k, _ = reads.of(which)
    return attention_head_memory(
        k,
        q,
        beta=reads.scale,
        energies=energies,
        n_patterns=n_patterns,
        causal=True,
        draws=draws,
        seed=seed,
    )


@dataclass(frozen=True, eq=False)
class HeadReads:
    """Queries, keys and values of a layer's heads, rotated where the model rotates, in the model's dtype."""

    q: Float[Tensor, "batch head position d_head"]
    k: Float[Tensor, "batch kv_head position d_head"]
    v: Float[Tensor, "batch kv_head position d_head"]
    scale: float  # factor of q · k inside the softmax

    def of(self, head: int) -> tuple[Tensor, Tensor, Tensor]:
        """One query head's queries, with the keys and values of its group; float64."""
        group = head // (self.q.shape[1] // self.k.shape[1])
        return self.q[:, head].double(), self.k[:, group].double(), self.v[:, group].double()


def head_reads(
    model: CheckedModel,
    tokens: Int[Tensor, "batch position"],
    layers: Sequence[int],
    batch_size: int,
) -> dict[int, HeadReads]:
    """Capture what the heads of some layers attend with, all in one walk over the tokens.

    Scores that are not q·k over all earlier keys are refused, as two rows of the tokens show.

    Raises:
        UnsupportedModelError: see :func:`trained_head_memory`.
    """
    if model.score_softcap is not None:
        raise UnsupportedModelError(
            f"model {model.name!r} bounds its attention scores, so its softmax has no "
            "single inverse temperature; capture queries and keys and call attention_head_memory"
        )
    for layer in layers:
        attention_scores(model, tokens[:2], layer, windows=False)
    spots: list[Spot] = [(layer, what) for layer in layers for what in ("q", "k", "v")]
    parts: dict[Spot, list[Tensor]] = {spot: [] for spot in spots}
    for rows in tokens.split(batch_size):
        out = run(model, rows, record=spots, logits=False)
        for spot in spots:
            parts[spot].append(out[spot].cpu())
    reads = {}
    for layer in layers:
        q, k, v = (torch.cat(parts[layer, what]).transpose(1, 2) for what in ("q", "k", "v"))
        rotary = read_rotary(model, layer, tokens.shape[1], dtype=torch.float64)
        if rotary is not None:
            q, k = (rotary.rotate(x.double()).to(x) for x in (q, k))
        reads[layer] = HeadReads(q, k, v, float(score_scale(model, layer)))
    return reads
