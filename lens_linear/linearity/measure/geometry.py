"""Intrinsic dimension, anisotropy and spread of the residual stream at every layer boundary.

The quantities the reference implementation of "Your Transformer is Secretly Linear" reports beside its
linearity score, on rows drawn with a seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import require_int, require_seed
from lens_linear.errors import LensLinearError
from lens_linear.linalg import anisotropy, intrinsic_dimension, spectrum
from lens_linear.linalg.spectra import Coinciding
from lens_linear.linearity.measure.first_position import DIFFERENT, both_readings, first_share
from lens_linear.models.capture import batched, residual_stream
from lens_linear.models.checked import ModelLike, checked
from lens_linear.stats.split import as_rows
from lens_linear.tables import Result
from lens_linear.text.task import Task
from lens_linear.token_rows import TokenRows

_COINCIDING: tuple[Coinciding, ...] = ("once", "reference")


@dataclass(frozen=True, eq=False)
class LayerGeometry(Result):
    """Shape of the cloud of residual-stream states, by layer boundary; acts as its table.

    Attributes:
        intrinsic_dimension: [boundary], TwoNN estimate, points that coincide counted once; NaN where too
            few points are distinct.
        reference_dimension: [boundary], the same as the paper's reference implementation takes it, with
            coinciding points (the first token of every sequence, say), which make it larger.
        anisotropy: [boundary], share of variance on the first principal direction, 1/d to 1.
        effective_rank: [boundary], entropy rank of the singular values, 1 to d.
        norm: [boundary], mean length of a state.
        model_name: as the model calls itself.
        n_rows: states used per boundary.
        skip: leading positions left out.
        seed: of the draw.
        first_share: [boundary], share of the variance in the first position; NaN where it is left out.
        without_first: the same without the states of first positions; None where they are left out.
    """

    _figure = "layer_geometry"
    _columns = (
        "intrinsic_dimension",
        "anisotropy",
        "effective_rank",
        "norm",
        "reference_dimension",
        "first_share",
        "n_rows",
    )

    intrinsic_dimension: Float[Tensor, " boundary"]
    reference_dimension: Float[Tensor, " boundary"]
    anisotropy: Float[Tensor, " boundary"]
    effective_rank: Float[Tensor, " boundary"]
    norm: Float[Tensor, " boundary"]
    model_name: str
    n_rows: int
    skip: int
    seed: int
    first_share: Float[Tensor, " boundary"]
    without_first: LayerGeometry | None = None

    @property
    def first_position(self) -> str:
        """A clause with both readings of the boundary where anisotropy differs most, if it does."""
        other = (self.without_first or self).anisotropy
        at = int((other - self.anisotropy).abs().argmax())
        here, there = float(self.anisotropy[at]), float(other[at])
        what, share = f"anisotropy at boundary {at}", float(self.first_share[at])
        return both_readings(share, what, here, there, differ=abs(here - there) > DIFFERENT)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per layer boundary (0 = embedding); then every column without the first position
        (``…_without_first``) and first_share.
        """
        names = (
            "intrinsic_dimension",
            "anisotropy",
            "effective_rank",
            "norm",
            "reference_dimension",
        )
        columns = {name: getattr(self, name).numpy() for name in names}
        other = self.without_first or self
        later = {f"{name}_without_first": getattr(other, name).numpy() for name in names}
        extra = {"n_rows": self.n_rows, **later, "first_share": self.first_share.numpy()}
        return pd.DataFrame({**columns, **extra}).rename_axis("boundary")

    def __repr__(self) -> str:
        low, high = float(self.anisotropy.min()), float(self.anisotropy.max())
        return (
            f"LayerGeometry of {self.model_name}: {len(self.norm)} layer boundaries, anisotropy {low:.3f} "
            f"to {high:.3f}, intrinsic dimension {float(self.intrinsic_dimension.nan_to_num().min()):.1f} "
            f"to {float(self.intrinsic_dimension.nan_to_num().max()):.1f}; n = {self.n_rows:,} states each"
            f"{self.first_position}"
        )


def layer_geometry(
    model: ModelLike,
    tokens: Int[Tensor, "sequence position"] | TokenRows | Task,
    *,
    skip: int = 0,
    max_rows: int = 4096,
    seed: int = 0,
    batch_size: int | None = None,
) -> LayerGeometry:
    """Intrinsic dimension, anisotropy, effective rank and mean norm of the residual stream by layer.

    Definitions, ranges and nulls: ``linalg.intrinsic_dimension`` (TwoNN), ``linalg.anisotropy``,
    ``linalg.spectrum``.

    Args:
        model: a bridge.
        tokens: ids [sequence, position].
        skip: leading positions left out; the first position's outlier raises anisotropy.
        max_rows: states kept per boundary, drawn with the seed.
        seed: of the draw.
        batch_size: sequences a forward pass; as many as memory allows by default.

    Returns:
        LayerGeometry; its ``to_dataframe()`` is indexed by boundary.

    Raises:
        NotEnoughDataError: fewer than 20 states.

    Source: Razzhigaev et al. 2024, arXiv 2311.05928, section 3; Facco et al. 2017 (TwoNN).

    Example:
        >>> from lens_linear.models.capture import residual_stream
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2)
        >>> tokens = torch.randint(64, (8, 16), generator=torch.Generator().manual_seed(0))
        >>> found = layer_geometry(model, tokens)
        >>> lengths = residual_stream(model, tokens).norm(dim=-1).mean(dim=(1, 2))
        >>> torch.allclose(found.norm, lengths.double(), rtol=1e-5), found.n_rows
        (True, 128)
    """
    model = checked(model)
    rows = as_rows(model, tokens, skip=skip)
    require_int("max_rows", max_rows, minimum=20)
    seed = require_seed(seed)
    total = rows.n_tokens(skip)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    kept = torch.zeros(total, dtype=torch.bool)
    kept[order[:max_rows]] = True
    parts, places, seen = [], [], 0
    for _, batch in batched(rows, batch_size, model=model):
        states = residual_stream(model, batch.long())[:, :, skip:]
        first = torch.zeros(states.shape[1:3], dtype=torch.bool)
        first[:, : int(skip == 0)] = True
        states = states.flatten(1, 2)
        mask = kept[seen : seen + states.shape[1]].to(states.device)
        parts.append(states[:, mask])
        places.append(first.flatten()[mask.cpu()])
        seen += states.shape[1]
    clouds, first = torch.cat(parts, dim=1), torch.cat(places)
    unknown = torch.full((len(clouds),), torch.nan, dtype=torch.float64)

    def of(rows: Float[Tensor, "boundary row d_model"]) -> LayerGeometry:
        columns = [_describe(cloud, seed) for cloud in rows]
        once, reference, spread, rank, norm = torch.tensor(columns, dtype=torch.float64).T
        return LayerGeometry(
            once,
            reference,
            spread,
            rank,
            norm,
            model_name=model.name,
            n_rows=rows.shape[1],
            skip=skip,
            seed=seed,
            first_share=unknown,
        )

    whole = of(clouds)
    if not bool(first.any()) or int((~first).sum()) < 20:
        return whole
    shares = torch.tensor([first_share(c, first) for c in clouds], dtype=torch.float64)
    return replace(
        whole, first_share=shares, without_first=of(clouds[:, (~first).to(clouds.device)])
    )


def _describe(cloud: Tensor, seed: int) -> tuple[float, float, float, float, float]:
    once, reference = (_dimension(cloud, how, seed) for how in _COINCIDING)
    norm = float(cloud.double().norm(dim=1).mean())
    return once, reference, anisotropy(cloud), spectrum(cloud).effective_rank, norm


def _dimension(cloud: Tensor, coinciding: Coinciding, seed: int) -> float:
    try:
        return intrinsic_dimension(cloud, coinciding=coinciding, seed=seed).dimension
    except LensLinearError:
        if len(cloud) < 20:
            raise
        return float("nan")  # an embedding has only as many distinct states as tokens
