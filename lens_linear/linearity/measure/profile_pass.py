"""The passes of a profile, for some of the layers: statistics, maps, residuals, and what is left of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.linalg import LinearFit, Moments, all_reduce_sum
from lens_linear.linalg.least_squares import Ridge
from lens_linear.linalg.memory import give_back
from lens_linear.linalg.more_rows import solve_both
from lens_linear.linalg.precision import checked_to_compute
from lens_linear.linearity.measure.intervals import left_out
from lens_linear.linearity.measure.pooled_scores import (
    Scores,
    first_shares,
    held_out_scores,
    in_sample_scores,
    joined,
)
from lens_linear.linearity.measure.profile_result import LayerStatistic
from lens_linear.models.capture import Site
from lens_linear.models.checked import CheckedModel
from lens_linear.stats.collect import SequenceSums, collect_moments, first_key, score_fits
from lens_linear.stats.residuals import Reading
from lens_linear.stats.resume import Checkpoint, Key
from lens_linear.stats.split import RowView

Statistic = Callable[[Moments], float]
_GROUPS = 10  # of sequences, for intervals of one's own statistics


def _readings(
    moments: dict[Key, Moments],
    first: dict[Key, Moments],
    skip: int,
    ridge: Ridge,
    *,
    spend: bool,
) -> tuple[list[Reading], list[dict[Key, Moments]]]:
    """Maps where the output varies and rows suffice, and the statistics they are of, by reading.

    Maps of all rows are a step from those of the rest. ``spend`` takes each statistic out of ``moments``
    and keeps none, and of a map that is a step away only the step: a third of the memory.
    """
    readings = [Reading(skip + i, {}, {}, {}, {}) for i in range(1 + bool(first))]
    held: list[dict[Key, Moments]] = [{} for _ in readings]
    for key in list(moments):
        rest = moments.pop(key) if spend else moments[key]
        parts = [rest + first[key], rest] if first else [rest]
        for reading, part, kept in zip(readings, parts, held, strict=True):
            if not spend:
                kept[key] = part
            if part.n > (part.d_in or 0) + 1 and part.varies:
                reading.mean_x[key] = part.mean_x
                reading.spread[key] = part.scatter.spread
        _fit(readings, key, parts, first.get(key), ridge, spend)
    return readings, held


def _fit(
    readings: list[Reading],
    key: Key,
    parts: list[Moments],
    first: Moments | None,
    ridge: Ridge,
    spend: bool,
) -> None:
    whole, rest = readings[0], readings[-1]
    if ridge == 0 and first is not None and key in whole.mean_x and key in rest.mean_x:
        found = solve_both(parts[-1].scatter, first.scatter, parts[0].scatter)
        rest.fits[key], whole.fits[key], step = found
        if step is not None:
            whole.steps[key] = step
            if spend:
                whole.fits[key] = _without(whole.fits[key], "weight")
    else:
        for reading, part in zip(readings, parts, strict=True):
            if key in reading.mean_x:
                reading.fits[key] = part.fit(ridge=ridge)
    for reading in readings:
        if key in reading.fits:  # core is as large as the map, and nothing here reads it
            reading.fits[key] = _without(reading.fits[key], "core")


def _without(fit: LinearFit, *names: str) -> LinearFit:
    return replace(fit, **{name: getattr(fit, name)[:0].clone() for name in names})


def layer_bytes(width: int, n_sites: int, n_rows: int, *, kept: object, own: object) -> float:
    """Bytes of one layer: statistics without and with the first position, a map each; rows of the first.

    Statistics that nobody keeps make room for maps, so that not more than half of these are there at once.
    """
    squares, firsts = (6 if kept or own else 3) * width**2, 2 * width * min(n_rows, 3 * width)
    extra = 3 * (_GROUPS + 2) * width**2 if own else 0
    return 8.0 * (n_sites * (squares + firsts) + extra)


@dataclass(frozen=True, eq=False)
class ProfilePart:
    """What a group of layers leaves behind when its statistics are gone; NaN at all other layers.

    ``sums`` (held out) or ``scores`` (in sample) hold one entry a reading; ``own`` is [layer, 2 + group] by
    name: on the rows scored, on those fitted, and without each group.
    """

    keeper: Checkpoint
    fits: dict[Key, LinearFit]
    sums: list[dict[Key, SequenceSums]]
    scores: list[Scores]
    first_share: dict[str, Tensor]
    update_ratio: Tensor
    own: dict[str, Tensor]


def filled(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Each tensor :func:`joined` from all parts."""
    return {name: joined([part[name] for part in parts]) for name in parts[0]}


def own_by_layer(
    parts: list[ProfilePart], site: Site, confidence: float
) -> dict[str, LayerStatistic]:
    """One's own statistics of all layers, by name."""
    whole = filled([part.own for part in parts])
    return {
        name: LayerStatistic(t[:, 0], t[:, 2:], t[:, 1], site, confidence)
        for name, t in whole.items()
    }


def found_scores(
    n_layers: int, parts: list[ProfilePart], confidence: float, seed: int
) -> list[Scores]:
    """Scores of all layers by reading; intervals are drawn once for all of them."""
    held_out = [
        held_out_scores(
            n_layers, {k: s for sums in both for k, s in sums.items()}, confidence, seed
        )
        for both in zip(*(part.sums for part in parts), strict=True)
    ]
    in_sample = [
        Scores(filled([s.values for s in both]), filled([s.intervals for s in both]), {})
        for both in zip(*(part.scores for part in parts), strict=True)
    ]
    return held_out or in_sample


class ProfilePass:
    """The two phases of a profile for some layers, with the state that a checkpoint keeps."""

    def __init__(
        self,
        model: CheckedModel,
        sites: tuple[Site, ...],
        layers: range,
        skip: int,
        batch_size: int | None,
        progress: bool,
        keeper: Checkpoint,
        own: dict[str, Statistic],
    ) -> None:
        self.model, self.sites, self.layers = model, sites, layers
        self.skip, self.keeper = skip, keeper
        self.options: dict[str, Any] = {
            "batch_size": batch_size,
            "progress": progress,
            "checkpoint": keeper,
        }
        self.own = own
        self.state = keeper.load()
        shape = (model.n_layers, 2)
        self.state.sums.setdefault("update_ratio", torch.zeros(shape, dtype=torch.float64))

    def _count(self, layer: int, site: Site, x: Tensor, y: Tensor, places: slice) -> None:
        """What is taken from the rows scored beside the residuals: update ratio, groups of sequences."""
        if site == "block":
            before, added = (
                checked_to_compute(x.norm(dim=-1)),
                checked_to_compute((y - x).norm(dim=-1)),
            )
            real = before > 0
            ratio = self.state.sums["update_ratio"]
            ratio[layer] += torch.stack([(added / before)[real].sum(), real.sum().double()]).cpu()
        if self.own and site == self.sites[0]:
            group = torch.arange(places.start, places.stop, places.step) % _GROUPS
            for g in group.unique().tolist():
                held = self.state.moments.setdefault(_group(layer, g), Moments(keep_yy=True))
                held.update(x[group == g], y[group == g])

    def moments(
        self, rows: RowView, *, scored: bool
    ) -> tuple[dict[Key, Moments], dict[Key, Moments]]:
        """Phase one: statistics of the rows the maps are fitted on; those of the first position apart."""
        apart = self.skip == 0
        found = collect_moments(
            self.model,
            rows,
            sites=self.sites,
            layers=self.layers,
            skip=self.skip,
            state=self.state,
            first_apart=apart,
            keep_yy=bool(self.own),
            also=self._count if scored else None,
            **self.options,
        )
        keys: list[Key] = [(layer, site) for layer in self.layers for site in self.sites]
        first = {key: found[first_key(key)] for key in keys} if apart else {}
        return {key: found[key] for key in keys}, first

    def part(self, train: RowView, test: RowView, *, ridge: Ridge, held_out: bool) -> ProfilePart:
        """Both phases; the statistics are let go as soon as nothing asks for them."""
        n_layers = self.model.n_layers
        moments, first = self.moments(train, scored=not held_out)
        if self.keeper.path is None and not self.own:
            self.state.moments.clear()
        give_back()
        shares = first_shares(n_layers, first, moments)
        spend = held_out and not self.own
        readings, held = _readings(moments, first, self.skip, ridge, spend=spend)
        scores = [] if held_out else list(map(partial(in_sample_scores, n_layers), held, readings))
        kept = held[0] if self.own else {}
        del moments, held, first
        give_back()
        sums = self.sums(test, readings) if held_out else []
        return ProfilePart(
            keeper=self.keeper,
            fits={key: _without(fit, "weight") for key, fit in readings[0].fits.items()},
            sums=sums,
            scores=scores,
            first_share=shares,
            update_ratio=self.update_ratio(),
            own=self.own_statistics(kept, min(_GROUPS, len(test))),
        )

    def sums(self, rows: RowView, readings: list[Reading]) -> list[dict[Key, SequenceSums]]:
        """Phase two: residuals on the other rows."""
        return score_fits(
            self.model, rows, readings, state=self.state, also=self._count, **self.options
        )

    def update_ratio(self) -> Float[Tensor, " layer"]:
        """Mean of ‖y − x‖ / ‖x‖ over tokens; NaN without the block site."""
        sums = self.state.sums["update_ratio"]
        total, count = all_reduce_sum(sums).unbind(1)
        return torch.where(count > 0, total / count.clamp(min=1), torch.nan)

    def own_statistics(self, fitted: dict[Key, Moments], n_groups: int) -> dict[str, Tensor]:
        """The user's functions on the rows scored, on those fitted, and without each group."""
        shape = (self.model.n_layers, 2 + n_groups)
        found = {name: torch.full(shape, torch.nan).double() for name in self.own}
        for layer in self.layers if self.own else ():
            tenths = [
                self.state.moments.get(_group(layer, g), Moments(keep_yy=True)).copy().all_reduce_()
                for g in range(n_groups)
            ]
            if not all(part.n for part in tenths):
                continue
            for name, function in self.own.items():
                found[name][layer, 0] = float(function(sum(tenths[1:], tenths[0])))
                found[name][layer, 1] = float(function(fitted[layer, self.sites[0]]))
                found[name][layer, 2:] = left_out(tenths, function)
        return found


def _group(layer: int, g: int) -> Key:
    return layer, f"group-{g}"
