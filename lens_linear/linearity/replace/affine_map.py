"""Affine maps that stand in for blocks, runs of blocks or FFNs, applied through hooks.

:class:`AffineMap` is one map with where it goes; :class:`Linearization` is a set of them. Applying one
never changes a weight: the original layer still runs, and what it wrote is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import counted
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg import LinearFit, Moments
from lens_linear.linalg.least_squares import Ridge
from lens_linear.models.checked import ModelLike, checked
from lens_linear.models.hooks import edited
from lens_linear.models.spots import Edit
from lens_linear.tables import Result

MapSite = Literal["block", "ffn"]


@dataclass(frozen=True, eq=False)
class AffineMap:
    """``y ≈ x @ weight + bias`` in place of blocks ``first`` to ``last`` (or of one FFN).

    Attributes:
        site: "block" (residual stream before ``first`` to residual stream after ``last``) or "ffn"
            (what the FFN reads to what it writes; then ``first == last``).
        first: first layer replaced.
        last: last layer replaced.
        weight: [d_model, d_model], float64; the identity with zero bias is a removed block.
        bias: [d_model].
        rank: largest rank ``weight`` can have; for a block of low rank, that of ``weight − 1``.
        r_squared: in-sample fraction of variance explained; NaN when it was not fitted.
        n: rows it was fitted on, 0 when it was not fitted.
    """

    site: MapSite
    first: int
    last: int
    weight: Float[Tensor, "d_model d_model"]
    bias: Float[Tensor, " d_model"]
    rank: int
    r_squared: float
    n: int

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers it replaces."""
        return tuple(range(self.first, self.last + 1))

    @property
    def n_parameters(self) -> int:
        """Numbers it takes to store: two thin factors when the rank is low, and the bias."""
        d_in, d_out = self.weight.shape
        return min(d_in * d_out, self.rank * (d_in + d_out)) + d_out

    @property
    def null_r2(self) -> float:
        """In-sample R² that a map of this size reaches, at most, on an output unrelated to its input."""
        return min(1.0, len(self.weight) / (self.n - 1)) if self.n > 1 else float("nan")

    def __call__(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Apply the map in at least float32; the result has the precision of x."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        out = wide @ self.weight.to(wide) + self.bias.to(wide)
        return out.to(x.dtype)

    def edits(self) -> list[Edit]:
        """The two hooks that put the map in place."""
        enter: Literal["resid_pre", "ffn_in"] = "resid_pre" if self.site == "block" else "ffn_in"
        leave: Literal["resid_post", "ffn_out"] = (
            "resid_post" if self.site == "block" else "ffn_out"
        )
        waiting: list[Tensor] = []

        def keep(x: Tensor) -> None:
            waiting[:] = [x]

        def replace(_y: Tensor) -> Tensor:
            return self(waiting.pop())

        return [((self.first, enter), keep), ((self.last, leave), replace)]

    def __repr__(self) -> str:
        where = (
            f"layer {self.first}" if self.first == self.last else f"layers {self.first}-{self.last}"
        )
        if self.n == 0:
            return f"AffineMap for the {self.site} of {where}: not fitted"
        return (
            f"AffineMap for the {self.site} of {where}: rank {self.rank}, in-sample R² = "
            f"{self.r_squared:.4f} (null {self.null_r2:.2g}), n = {counted(self.n, 'row', ',')}, "
            f"{counted(self.n_parameters, 'parameter', ',')}"
        )


@dataclass(frozen=True, eq=False)
class Linearization(Result):
    """Maps for some layers of one model.

    Attributes:
        maps: by rising layer, none overlapping.
        model_name: the model they were fitted on.
        method: how they were fitted, in words.
        parameters_before: parameters of the whole model.
        parameters_replaced: parameters of the layers or FFNs that the maps replace.
    """

    maps: tuple[AffineMap, ...]
    model_name: str
    method: str
    parameters_before: int
    parameters_replaced: int

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers replaced."""
        return tuple(layer for m in self.maps for layer in m.layers)

    @property
    def n_parameters(self) -> int:
        """Parameters of the model with the maps in place of what they replace."""
        own = sum(m.n_parameters for m in self.maps)
        return self.parameters_before - self.parameters_replaced + own

    def edits(self) -> list[Edit]:
        """The hooks of all maps."""
        return [edit for m in self.maps for edit in m.edits()]

    @contextmanager
    def applied(self, model: ModelLike) -> Iterator[Linearization]:
        """Run ``model`` with the maps in place while the block lasts; hooks go also after an error."""
        model = checked(model)
        with edited(model, self.edits()):
            yield self

    def to_dataframe(self) -> pd.DataFrame:
        """One row per map: site, first, last, rank, r_squared (in-sample), null_r2, n, n_parameters."""
        names = ("site", "first", "last", "rank", "r_squared", "null_r2", "n", "n_parameters")
        rows = [{name: getattr(m, name) for name in names} for m in self.maps]
        return pd.DataFrame(rows, columns=list(names))

    def __repr__(self) -> str:
        sites = "/".join(sorted({m.site for m in self.maps})) or "no"
        return (
            f"Linearization of {self.model_name}: {counted(len(self.maps), 'affine map')} in place of "
            f"{sites} layers "
            f"{list(self.layers)}, {self.n_parameters:,} of "
            f"{counted(self.parameters_before, 'parameter', ',')}; "
            f"{self.method}"
        )


def identity_map(first: int, last: int, width: int) -> AffineMap:
    """The map that removes blocks: what goes in comes out."""
    eye = torch.eye(width, dtype=torch.float64)
    zero = torch.zeros(width, dtype=torch.float64)
    return AffineMap("block", first, last, eye, zero, width, float("nan"), 0)


def from_fit(site: MapSite, first: int, last: int, fit: LinearFit) -> AffineMap:
    """Put a fit in the place of layers ``first`` to ``last``."""
    return AffineMap(site, first, last, fit.weight, fit.bias, fit.map_rank, fit.r_squared, fit.n)


def fitted_map(
    moments: Moments,
    site: MapSite,
    layer: int,
    *,
    rank: int | None = None,
    ridge: Ridge = 0.0,
) -> AffineMap:
    """Fit one layer's map from its statistics; an output that never varies becomes its constant.

    With ``rank`` a block keeps the identity and only what it adds is of low rank.
    """
    if not moments.varies:
        weight = torch.zeros_like(moments.sxy)
        return AffineMap(site, layer, layer, weight, moments.mean_y, 0, float("nan"), moments.n)
    if rank is None or rank >= min(moments.sxy.shape):
        return from_fit(site, layer, layer, moments.fit(ridge=ridge))
    if site == "ffn":
        return from_fit(site, layer, layer, moments.fit(ridge=ridge).truncate(rank))
    update = moments.without_input()
    eye = torch.eye(len(moments.mean_x), dtype=torch.float64, device=moments.mean_x.device)
    if not update.varies:
        return AffineMap(site, layer, layer, eye, update.mean_y, 0, 1.0, moments.n)
    fit = update.fit(ridge=ridge).truncate(rank)
    missed = (1 - fit.r_squared) * float(update.scatter_y.sum() / moments.scatter_y.sum())
    return AffineMap(
        site, layer, layer, fit.weight + eye, fit.bias, fit.map_rank, 1 - missed, fit.n
    )


def require_disjoint(maps: Sequence[AffineMap]) -> tuple[AffineMap, ...]:
    """Accept maps that replace no layer's site twice; sorted by layer."""
    taken: set[tuple[str, int]] = set()
    blocks = {layer for m in maps if m.site == "block" for layer in m.layers}
    for m in maps:
        for layer in m.layers:
            if (m.site, layer) in taken or (m.site == "ffn" and layer in blocks):
                raise InvalidArgumentError(
                    f"layer {layer} would be replaced twice; name each layer once"
                )
            taken.add((m.site, layer))
    return tuple(sorted(maps, key=lambda m: m.first))
