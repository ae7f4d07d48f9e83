"""Typical norm scales of embeddings: what a norm divides by when nothing but the embedding is there.

QK and OV circuits leave the norm's scale out, because it depends on the whole stream. Where attention is
*estimated* from a circuit (skip-trigrams, positional patterns, bigrams) the scale of the embedding is put
back: at layer 0 it is right up to averaging, further up it is an approximation.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.models.checked import NormKind
from lens_linear.models.describe.weights import ModelWeights


def token_scales(weights: ModelWeights, kind: NormKind | None = None) -> Float[Tensor, " vocab"]:
    """Root of the mean over positions of the squared norm scale of ``token row + position row``.

    ``kind`` is the norm's; that of the blocks unless said.
    """
    kind = weights.norm if kind is None else kind
    tokens = _centred(kind, weights.W_E)
    if weights.W_pos is None:
        return _scale(weights, kind, tokens.square().sum(1))
    rows = _centred(kind, weights.W_pos)
    cross = 2 * tokens @ rows.mean(0) + rows.square().sum(1).mean()
    return _scale(weights, kind, tokens.square().sum(1) + cross)


def position_scales(weights: ModelWeights, n_positions: int) -> Float[Tensor, " position"]:
    """Root of the mean over tokens of the squared norm scale of ``token row + position row``."""
    tokens = _centred(weights.norm, weights.token_rows)
    power = tokens.square().sum(1).mean()
    if weights.W_pos is None:
        return _scale(weights, weights.norm, power.expand(n_positions))
    rows = _centred(weights.norm, weights.W_pos[:n_positions])
    return _scale(weights, weights.norm, rows.square().sum(1) + 2 * rows @ tokens.mean(0) + power)


def _centred(kind: NormKind, rows: Tensor) -> Tensor:
    return rows - rows.mean(1, keepdim=True) if kind == "layer" else rows


def _scale(weights: ModelWeights, kind: NormKind, power: Tensor) -> Tensor:
    if kind == "none":
        return torch.ones_like(power)
    # Clamped: the cross term can round below zero for rows that are almost zero.
    return (power.clamp_min(0) / weights.W_E.shape[1] + weights.eps).sqrt()
