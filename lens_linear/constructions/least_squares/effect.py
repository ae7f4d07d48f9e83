"""What a least-squares layer amounts to, measured in units of its own context, and compared.

Every column of the context is divided by the power of two just above its largest entry, and the weights are
multiplied by the same: nothing is rounded, and slopes of 1e-300 or 1e500 are numbers like any other. The
rows are reduced to ``R`` of ``X = U R``, which keeps all products ``XᵀX``.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_linear.constructions.least_squares.spectral import centred, column_lost, power_of_two
from lens_linear.errors import NonFiniteError


@runtime_checkable
class Layer(Protocol):
    """What is read of a least-squares layer: its context, weights and form."""

    context_x: Tensor
    context_y: Tensor
    W_Q: nn.Parameter
    W_K: nn.Parameter
    W_V: nn.Parameter
    W_O: nn.Parameter
    b_O: nn.Parameter
    intercept: bool

    @property
    def form(self) -> str:
        """One of ``FORMS``."""
        ...

    @property
    def share(self) -> float:
        """A factor of the scores."""
        ...


class Units(NamedTuple):
    """Powers of two, one for each input and output."""

    inputs: Float[Tensor, " p"]
    outputs: Float[Tensor, " m"]


class Effect(NamedTuple):
    """Slopes, constant and scores of a layer, in units of its context."""

    slopes: Float[Tensor, "p m"]
    constant: Float[Tensor, " m"]
    scores: Float[Tensor, "p k"]  # of one unit of each input with the reduced rows


class Allowance(NamedTuple):
    """What rounding may do to least squares of a context, beside its distance from zero."""

    relative: float
    slopes: Float[Tensor, " m"]  # absolute, in units of the context
    fitted: Float[Tensor, " m"]
    constant: Float[Tensor, " m"]
    spread: Float[Tensor, " m"]  # standard deviation of the labels


def units_of(layer: Layer) -> Units:
    """Units of the layer's present context."""
    return Units(*(power_of_two(_wide(part), dim=0) for part in (layer.context_x, layer.context_y)))


def keys_of(layer: Layer, units: Units) -> Float[Tensor, "n p"]:
    """Rows of the context in their units, minus their mean where there is an intercept."""
    x = _wide(layer.context_x) / units.inputs
    return centred(x)[0] if layer.intercept else x


def reduced(keys: Float[Tensor, "n p"]) -> Float[Tensor, "k p"]:
    """At most p rows with the same products ``XᵀX``."""
    return keys if len(keys) <= keys.shape[1] else torch.linalg.qr(keys, mode="r").R


def slopes_of(layer: Layer, units: Units, keys: Float[Tensor, "n p"]) -> Float[Tensor, "p m"]:
    """``W_Q ((X W_K)ᵀ V) W_O`` in units, in float64: long sums in float32 add an error of their own."""
    w_q, w_k, w_v, w_o = (_wide(w) for w in (layer.W_Q, layer.W_K, layer.W_V, layer.W_O))
    if layer.form == "paper":
        values, out = keys @ (units.inputs[:, None] * w_v), w_o / units.outputs
    else:
        values = _wide(layer.context_y) / units.outputs
        out = units.outputs[:, None] * (w_v @ w_o) / units.outputs
    read = keys @ (units.inputs[:, None] * w_k)
    slopes: Tensor = units.inputs[:, None] * w_q @ (read.T @ values) @ out * layer.share
    return slopes


def effect(layer: Layer, units: Units, rows: Float[Tensor, "k p"]) -> Effect:
    """What the layer does to its present context, whose keys are reduced to ``rows``."""
    keys = keys_of(layer, units)
    w_q, w_k = (units.inputs[:, None] * _wide(w) for w in (layer.W_Q, layer.W_K))
    return Effect(
        slopes_of(layer, units, keys),
        _wide(layer.b_O) / units.outputs,
        w_q @ (rows @ w_k).T * layer.share,
    )


def distance(got: Effect, want: Effect, rows: Tensor, allowed: Allowance) -> float:
    """The largest relative distance of slopes, fitted values and constant, over the outputs."""
    parts = [
        (got.slopes - want.slopes, want.slopes, allowed.slopes),
        (rows @ (got.slopes - want.slopes), rows @ want.slopes, allowed.fitted),
    ]
    gaps = [
        _ratio(off.norm(dim=0), torch.maximum(size.norm(dim=0), floor / allowed.relative))
        for off, size, floor in parts
    ]
    floor = torch.maximum(allowed.spread, allowed.constant / allowed.relative)
    gaps.append(_ratio((got.constant - want.constant).abs(), floor))
    return float(torch.stack(gaps).amax())


def same_scores(got: Effect, want: Effect, rows: Tensor, tolerance: float) -> bool:
    """Whether two layers weigh the rows of the context alike, for every query and every label."""
    pairs = ((got.scores, want.scores), (rows @ got.scores, rows @ want.scores))
    return all(float(_ratio((a - b).norm(), b.norm())) <= tolerance for a, b in pairs)


def without_units(slopes: Float[Tensor, "p m"], units: Units, like: Tensor) -> Tensor:
    """Slopes in units of y over x, in the dtype of ``like``; refused where they leave its range."""
    _, top = torch.frexp(units.outputs)
    _, bottom = torch.frexp(units.inputs)
    power = top - bottom[:, None]
    half = power // 2  # 2^power alone may have no number
    one = torch.ones_like(slopes)
    value = slopes * torch.ldexp(one, half) * torch.ldexp(one, power - half)
    cast = value.to(like)
    if bool(column_lost(slopes, cast).any()) or not bool(torch.isfinite(cast).all()):
        raise NonFiniteError(
            f"the slopes leave the range of {cast.dtype}: labels of {float(units.outputs.max()):.0e} over "
            f"inputs of {float(units.inputs.min()):.0e} to {float(units.inputs.max()):.0e}, or weights or "
            "context hold NaN or infinity; bring x and y to one scale (predict() needs no slopes)"
        )
    return cast


def _wide(part: Tensor) -> Tensor:
    return part.detach().cpu().double()


def _ratio(off: Tensor, size: Tensor) -> Tensor:
    """``off / size``; 0 where both are zero, infinite where nothing can be said."""
    out = torch.where((off == 0) & (size == 0), torch.zeros_like(off), off / size)
    return out.nan_to_num(nan=math.inf, posinf=math.inf)
