"""The first position, whose outlier can carry most of the variance: its share, and when it must be said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from jaxtyping import Bool, Float
from torch import Tensor

from lens_linear.checks import require_int
from lens_linear.linalg import Moments, to_compute
from lens_linear.models.capture import Site
from lens_linear.models.checked import ModelLike, checked
from lens_linear.stats.collect import SiteRows, gather_rows, require_rows_for_fit
from lens_linear.stats.split import as_rows, halves

Probe = TypeVar("Probe")

# Where a reading has no interval: the difference from which both readings are said.
DIFFERENT = 0.01


def first_share(y: Float[Tensor, "row d"], first: Bool[Tensor, " row"]) -> float:
    """``Σ_first ‖y − ȳ‖² / Σ ‖y − ȳ‖²``: 1 / length when the first position is like the others.

    Example:
        >>> import torch
        >>> round(first_share(torch.tensor([[3.0], [0.0], [0.0]]), torch.arange(3) == 0), 6)
        0.666667
    """
    about = (to_compute(y) - to_compute(y).mean(0)).square().sum(1)
    return float(about[first.to(about.device)].sum() / about.sum()) if len(y) else float("nan")


def share_of(first: Moments, rest: Moments) -> Float[Tensor, ""]:
    """The same from statistics of the first position and of the others."""
    n = first.n + rest.n
    mean = (first.n * first.mean_y + rest.n * rest.mean_y) / n
    part, whole = (
        m.scatter_y.sum() + m.n * (m.mean_y - mean).square().sum() for m in (first, rest)
    )
    return part / (part + whole)


def both_readings(share: float, what: str, here: float, there: float, *, differ: bool) -> str:
    """A clause with both readings, or nothing where they agree.

    Example:
        >>> both_readings(0.99, "affine R²", 0.955, 0.327, differ=True)
        '; the first position holds 99% of the variance: affine R² 0.955 with it, 0.327 without'
    """
    if not differ:
        return ""
    held = f"{share:.0%}" if share >= 0.01 else "less than 1%"
    return (
        f"; the first position holds {held} of the variance: {what} {here:.3f} with it, "
        f"{there:.3f} without"
    )


def probe_site(
    probe: Callable[[SiteRows, SiteRows, str], Probe],
    model: ModelLike,
    tokens: Any,
    layer: int,
    site: Site,
    *,
    skip: int,
    max_rows: int,
    seed: int,
    batch_size: int | None,
) -> Probe:
    """A probe of one site, fitted on half of the sequences: of all rows, carrying the same probe without
    first positions where rows enough are left.
    """
    model = checked(model)
    rows = as_rows(model, tokens, skip=skip)
    require_int("layer", layer, minimum=0, maximum=model.n_layers - 1)
    require_rows_for_fit(rows, model.d_model, skip=skip, halved=True)
    train, test = (
        gather_rows(
            model,
            half,
            layer=layer,
            site=site,
            skip=skip,
            max_rows=max_rows,
            seed=seed,
            batch_size=batch_size,
        )
        for half in halves(rows, seed=seed)
    )
    where = f"the {site} of layer {layer} of {model.name}"
    found: Any = probe(train, test, where)
    rest = train.without_first()
    if not bool(test.first.any()) or len(rest.x) <= rest.x.shape[1] + 1:
        return found  # type: ignore[no-any-return]
    share = first_share(test.y, test.first)
    return replace(found, first_share=share, without_first=probe(rest, test.without_first(), where))  # type: ignore[no-any-return]
