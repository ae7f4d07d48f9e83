"""Schedules compared on the model itself: the energy each needs to move the readout by the same amount.

For every schedule and prompt the sign and the amplitude are searched on the full model: a scan upwards to the
first crossing of the target, and regula falsi inside it. The last token alone is rerun, which is exact; one
schedule a prompt is run again with the whole prompt, and how far the two differ stands in the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_linear.checks import counted, require_float, require_instance, require_int, require_seed
from lens_linear.dynamics.gains.gain_profile import require_directions
from lens_linear.dynamics.gains.jacobian_products import block_jacobians
from lens_linear.dynamics.gains.prompts import Prompts, PromptsLike, as_prompts
from lens_linear.dynamics.steering.min_energy import (
    Gains,
    gains_of,
    heuristic_schedules,
    require_target,
    unit_shape,
)
from lens_linear.dynamics.steering.refinement import refine
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import own_modes, to_compute
from lens_linear.models.checked import ModelLike, checked
from lens_linear.models.frozen.frozen_context import FrozenContext
from lens_linear.tables import Result

BASELINE, EXACT, REFINED = "minimum energy", "exact minimum energy", "refined minimum energy"
_REFINED = 2  # its row: schedules stand in the order of ``_shapes``


@dataclass(frozen=True, eq=False)
class ScheduleComparison(Result):
    """Energy of every schedule at every prompt, usable as its data frame.

    Attributes:
        names: the schedules; the first is "minimum energy".
        shapes: unit vectors over layers, one a schedule and prompt.
        amplitudes: signed amplitude on the shape that reaches the target; NaN where none was found.
        achieved: shift of the readout at that amplitude.
        baseline: readout of every prompt without injection.
        target: Δy.
        energy: sum of squares of what is added (amplitude², times the directions' lengths if not 1).
        tolerance: relative miss of the target accepted by the search.
        whole_gap: largest difference between the shift of a last token run alone and that of its whole
            prompt, relative to the target, over one schedule a prompt.
    """

    _figure = "schedule_energies"
    _columns = (
        "schedule",
        "energy_median",
        "ratio_median",
        "ratio_q25",
        "ratio_q75",
        "min_energy_wins",
        "reached",
        "n_prompts",
    )

    names: tuple[str, ...]
    shapes: Float[Tensor, "schedule prompt layer"]
    amplitudes: Float[Tensor, "schedule prompt"]
    achieved: Float[Tensor, "schedule prompt"]
    baseline: Float[Tensor, " prompt"]
    target: float
    energy: Float[Tensor, "schedule prompt"]
    tolerance: float
    whole_gap: float

    @property
    def reached(self) -> Bool[Tensor, "schedule prompt"]:
        """Where an amplitude was found."""
        return ~self.amplitudes.isnan()

    @property
    def ratios(self) -> Float[Tensor, "schedule prompt"]:
        """Energy over that of the minimum-energy schedule at the same prompt; inf where only it arrives."""
        energy = self.energy.nan_to_num(nan=float("inf"))
        return torch.where(energy[:1].isinf(), float("nan"), energy / energy[:1])

    def __repr__(self) -> str:
        return (
            f"ScheduleComparison: {len(self.names)} schedules × {len(self.baseline)} prompts, shift of "
            f"{self.target:.4g} in the readout, reached by minimum energy at "
            f"{counted(int(self.reached[0].sum()), 'prompt')}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a schedule: median energy, ratio to minimum energy (median, q25, q75), share of
        prompts at which minimum energy needs less, share reached, worst relative miss of the target.
        """
        rows = []
        for index, name in enumerate(self.names):
            ratio = self.ratios[index][~self.ratios[index].isnan()]
            reached = self.reached[index]
            miss = (self.achieved[index] - self.target).abs()[reached] / abs(self.target)
            low, middle, high = _quartiles(ratio)
            rows.append(
                {
                    "schedule": name,
                    "energy_median": _quartiles(self.energy[index][reached])[1],
                    "ratio_median": middle,
                    "ratio_q25": low,
                    "ratio_q75": high,
                    "min_energy_wins": float((ratio > 1).double().mean()) if len(ratio) else None,
                    "reached": float(reached.double().mean()),
                    "worst_miss": float(miss.max()) if len(miss) else float("nan"),
                    "n_prompts": len(reached),
                    "target": self.target,
                }
            )
        frame = pd.DataFrame(rows)
        frame.loc[0, "min_energy_wins"] = float("nan")
        return frame


def _quartiles(values: Tensor) -> list[float]:
    """Quartiles, interpolated; between a finite and an infinite entry lies an infinite one, not NaN."""
    if not len(values):
        return [float("nan")] * 3
    ordered, found = values.sort().values, []
    for q in (0.25, 0.5, 0.75):
        place = q * (len(ordered) - 1)
        low, high = float(ordered[math.floor(place)]), float(ordered[math.ceil(place)])
        part = place - math.floor(place)
        found.append(low if part == 0 or low == high else low + part * (high - low))
    return found


@own_modes()
def evaluate_schedules(
    model: ModelLike,
    prompts: PromptsLike | Prompts,
    directions: Float[Tensor, "boundary d_model"],
    gains: Gains | None = None,
    *,
    target: float | None = None,
    schedules: Mapping[str, Tensor] | None = None,
    readout: Float[Tensor, " d_model"] | None = None,
    attention_mask: Tensor | None = None,
    truncate: bool = False,
    max_factor: float = 100.0,
    tolerance: float = 1e-3,
    refine_steps: int = 20,
    seed: int = 0,
    batch_size: int | None = None,
) -> ScheduleComparison:
    """Energy that each schedule needs to move the readout of each prompt by ``target`` on the full model.

    Compared: ``minimum energy`` (u ∝ gains, one shape for all prompts), ``exact minimum energy`` (u ∝ the
    prompt's own adjoint gains), ``refined minimum energy`` (the prompt's cheapest schedule of all,
    improved on the nonlinear model, :func:`~lens_linear.dynamics.steering.refinement.refined_min_energy`),
    ``best layer`` (the layer of largest gain alone), ``last layer``, ``uniform``, ``middle``,
    ``early``, ``random layer`` (one drawn for each prompt), and those of ``schedules``. Every schedule
    may take either sign; the smallest amplitude that reaches the target counts.

    Energy is in squared units of the injected vectors; ratios are to minimum energy, above 1 where it wins.

    Args:
        model: a causal bridge.
        prompts: texts, rows of ids, or a padded tensor.
        directions: v_0 ... v_L, unit rows; layer l gets ``u_l v_l``.
        gains: h for the minimum-energy shape: a Surrogate or GainProfile of the operating prompts (its
            mean), or a tensor [layer] or [prompt, layer]. None takes the mean adjoint profile of
            ``prompts`` themselves.
        target: Δy; by default the standard deviation of the readout over the prompts.
        schedules: more shapes by name, [layer] or [prompt, layer]; their scale does not matter.
        readout: C; v_L by default.
        attention_mask: for a padded tensor.
        truncate: keep the last tokens of prompts longer than the context.
        max_factor: amplitudes are tried up to this multiple of what a linear model would need at best.
        tolerance: relative miss of the target at which the search stops.
        refine_steps: iterations of ``refined minimum energy``.
        seed: of the random layers.
        batch_size: prompts a forward pass, as many as memory allows (at most 64) by default.

    Returns:
        ScheduleComparison.

    Raises:
        InvalidArgumentError: a schedule or the target is all zeros, or shapes do not fit.

    Source: Nettasinghe & Joseph 2026, arXiv 2603.12541 (energy against heuristic schedules).

    Example:
        >>> import torch
        >>> from lens_linear.dynamics.gains.directions import random_directions
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2, d_model=16, attn_only=False)
        >>> prompts = torch.randint(64, (6, 12), generator=torch.Generator().manual_seed(0))
        >>> directions = random_directions(model)
        >>> table = evaluate_schedules(model, prompts, directions, target=0.05).to_dataframe()
        >>> "minimum energy" in set(table["schedule"])
        True
    """
    model = checked(model)
    seed = require_seed(seed)
    require_int("refine_steps", refine_steps, minimum=1)
    schedules = {} if schedules is None else schedules
    require_instance("schedules", schedules, Mapping, advice="pass {name: shape over layers}")
    max_factor = require_float("max_factor", max_factor, minimum=1.0)
    tolerance = require_float("tolerance", tolerance, minimum=1e-9, maximum=0.5)
    directions, readout = require_directions(model, directions, readout)
    prompts = as_prompts(model, prompts, attention_mask=attention_mask, truncate=truncate)
    batch_size = prompts.a_pass(model, batch_size)
    maps = block_jacobians(model, prompts, batch_size=batch_size)
    exact, baseline = maps.gains(directions, readout), maps.baseline(readout)
    goal = _target(target, baseline)
    names, shapes = _shapes(exact, gains, schedules, seed)
    amplitudes = baseline.new_full(shapes.shape[:2], float("nan"))
    achieved = torch.full_like(amplitudes, float("nan"))
    knobs = (max_factor, tolerance, refine_steps)
    gaps = []
    for batch in maps.batches():
        rows = batch.rows
        search = _Search(batch.context, directions, readout, shapes[:, rows], goal, batch_size)
        amplitudes[:, rows], achieved[:, rows] = search.run_with_refined(exact[rows], *knobs)
        shapes[:, rows] = search.shapes
        gaps.append(search.whole_gap(amplitudes[:, rows]))
    lengths = directions[: exact.shape[1]].pow(2).sum(-1)
    energy = amplitudes.pow(2) * (shapes.pow(2) * lengths).sum(-1)
    return ScheduleComparison(
        names, shapes, amplitudes, achieved, baseline, goal, energy, tolerance, max(gaps)
    )


def _target(target: float | None, baseline: Tensor) -> float:
    if target is not None:
        return require_target(target)
    spread = float(baseline.std(correction=0))
    if not spread > 0:
        raise InvalidArgumentError(
            "target must be given here: the readout does not vary over the prompts, so its standard "
            "deviation cannot be the default"
        )
    return spread


def _shapes(
    exact: Float[Tensor, "prompt layer"],
    gains: Gains | None,
    extra: Mapping[str, Tensor],
    seed: int,
) -> tuple[tuple[str, ...], Float[Tensor, "schedule prompt layer"]]:
    n_prompts, n_layers = exact.shape
    given = exact.mean(0) if gains is None else gains_of(gains).to(exact.device)
    unit_shape("gains", given, n_layers)
    shapes: dict[str, Tensor] = {
        BASELINE: given,
        EXACT: exact,
        REFINED: exact,  # where its search starts from
    }
    best = given.reshape(-1, given.shape[-1]).mean(0).abs().argmax()
    shapes["best layer"] = torch.eye(n_layers, dtype=exact.dtype, device=exact.device)[best]
    shapes |= heuristic_schedules(n_layers)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_layers, (n_prompts,), generator=generator)
    shapes["random layer"] = torch.eye(n_layers, dtype=exact.dtype)[drawn]
    shapes |= dict(extra)
    rows = []
    for name, shape in shapes.items():
        unit = unit_shape(f"schedule {name!r}", shape, n_layers).to(exact.device)
        if unit.ndim == 2 and len(unit) != n_prompts:
            raise InvalidArgumentError(
                f"schedule {name!r} has {len(unit)} rows for {n_prompts} prompts; pass one row a prompt, "
                "or one for all"
            )
        rows.append(unit.expand(n_prompts, n_layers))
    return tuple(shapes), torch.stack(rows)


@dataclass(eq=False)
class _Search:
    """Find amplitudes for all schedules and prompts of one batch together."""

    context: FrozenContext
    directions: Tensor
    readout: Tensor
    shapes: Float[Tensor, "schedule prompt layer"]
    target: float
    batch_size: int

    def shift(
        self,
        amplitudes: Float[Tensor, "schedule prompt"],
        wanted: Bool[Tensor, "schedule prompt"] | None = None,
    ) -> Float[Tensor, "schedule prompt"]:
        """Return the readout's shift for one amplitude a schedule and prompt; 0 where none is wanted."""
        if wanted is None:
            wanted = torch.ones_like(amplitudes, dtype=torch.bool)
        # Each prompt's wanted schedules first: the passes are as many as the busiest prompt has.
        order = torch.argsort(~wanted, dim=0, stable=True)[: int(wanted.sum(0).max())]
        steps = amplitudes.gather(0, order)[..., None] * self.shapes.gather(
            0, order[..., None].expand(-1, -1, self.shapes.shape[2])
        )
        # A one-token row costs a small part of a whole prompt, so more of them share a pass.
        rows = self.batch_size * (1 if self.context.path == "full" else 16)
        values = [
            to_compute(self.context.outputs(piece, self.directions)) @ self.readout
            for piece in steps.split(max(1, rows // steps.shape[1]))
        ]
        before = to_compute(self.context.states[-1]) @ self.readout
        found = torch.zeros_like(amplitudes).scatter(0, order, torch.cat(values) - before)
        return found.where(wanted, 0.0)

    def whole_gap(self, amplitudes: Float[Tensor, "schedule prompt"]) -> float:
        """Run whole prompts, each with one of its schedules, and compare with the last token alone."""
        count = len(amplitudes)
        wanted = torch.zeros_like(amplitudes, dtype=torch.bool)
        columns = torch.arange(amplitudes.shape[1], device=wanted.device)
        wanted[columns % count, columns] = True
        wanted &= ~amplitudes.isnan()
        if self.context.path == "full" or not bool(wanted.any()):
            return 0.0
        steps = amplitudes.nan_to_num(nan=0.0)
        whole = replace(self.context, keys=(), values=(), rotaries=(), path="full")
        gap = replace(self, context=whole).shift(steps, wanted) - self.shift(steps, wanted)
        return float(gap.abs().max()) / abs(self.target)

    def run_with_refined(
        self, gains: Float[Tensor, "prompt layer"], max_factor: float, tolerance: float, steps: int
    ) -> tuple[Float[Tensor, "schedule prompt"], Float[Tensor, "schedule prompt"]]:
        """Find all amplitudes and the shifts at them; then refine each prompt's cheapest schedule, and
        keep what is cheaper.
        """
        found, reached = self.run(gains, max_factor, tolerance)
        sizes = found.abs().nan_to_num(nan=float("inf"))
        best, columns = sizes.argmin(0), torch.arange(found.shape[1], device=found.device)
        amplitude, shape = found[best, columns], self.shapes[best, columns]
        rough = self.target * gains / gains.pow(2).sum(-1, keepdim=True).clamp_min(1e-30)
        start = torch.where(amplitude.isnan()[:, None], rough, amplitude[:, None] * shape)
        refined, _ = refine(
            self.context, self.directions, self.readout, start, self.target, steps=steps
        )
        size = refined.norm(dim=-1, keepdim=True)
        unit = torch.where(size > 0, refined / size.clamp_min(1e-30), shape)
        search = replace(self, shapes=unit[None])
        # It was refined to reach the target at this size: no scan from below, and one sign.
        again, got = search._inside(torch.ones_like(size.T), 0.9 * size.T, 1.1 * size.T, tolerance)
        again, got = again[0], got[0]
        cheaper = again.abs().nan_to_num(nan=float("inf")) < sizes[best, columns]
        found[_REFINED], reached[_REFINED] = (
            torch.where(cheaper, new, old[best, columns])
            for new, old in ((again, found), (got, reached))
        )
        self.shapes = self.shapes.clone()
        self.shapes[_REFINED] = torch.where(cheaper[:, None], unit, shape)
        return found, reached

    def run(
        self, gains: Float[Tensor, "prompt layer"], max_factor: float, tolerance: float
    ) -> tuple[Float[Tensor, "schedule prompt"], Float[Tensor, "schedule prompt"]]:
        """Return the signed amplitude of least size that reaches the target, and the shift there; NaN
        where there is none.

        By Cauchy's inequality a linear model needs an amplitude of |Δy| / ‖h‖ at least; the scan starts
        below that and goes up to ``max_factor`` times it. The sign that the gains suggest goes first;
        the other one only has to be tried up to the amplitude already found.
        """
        least = abs(self.target) / gains.norm(dim=-1).clamp_min(1e-12)
        least = least.expand(self.shapes.shape[:2])
        slope = torch.einsum("spl,pl->sp", self.shapes, gains) * self.target
        sign = torch.where(slope >= 0, 1.0, -1.0).to(least.dtype)
        both = replace(self, shapes=torch.cat([self.shapes, self.shapes]))
        # Where a straight line would cross, halved: with the other sign it never would.
        limit = max_factor * least
        straight = abs(self.target) / (slope.abs() / abs(self.target)).clamp_min(1e-30)
        start = torch.cat([torch.minimum(torch.maximum(straight, least), limit), least]) / 2
        size, shift = both._smallest(torch.cat([sign, -sign]), start, limit.repeat(2, 1), tolerance)
        (first, second), (reached, other) = size.chunk(2), shift.chunk(2)
        better = ~second.isnan() & (first.isnan() | (second < first))
        return torch.where(better, -sign * second, sign * first), torch.where(
            better, other, reached
        )

    def _smallest(
        self, sign: Tensor, start: Tensor, limit: Tensor, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """Scan upwards to the first crossing, then narrow it down; NaN without a crossing.

        The first half of the rows and the second are two signs of the same schedules: where one has
        crossed, the other goes no further. Far below the target a step doubles the amplitude; near it, it
        goes little further than a straight line would reach.
        """
        half = len(start) // 2
        high, low = start, torch.zeros_like(start)
        below = torch.full_like(start, -1.0)  # progress at low, minus 1
        above = torch.full_like(start, float("nan"))
        done = torch.zeros_like(start, dtype=torch.bool)
        while True:
            other = torch.where(done, high, limit).roll(half, 0)
            active = ~done & (low < torch.minimum(limit, other))
            if not bool(active.any()):
                break
            value = self._progress(sign * high, active) - 1
            crossed = active & (value >= 0)
            above = torch.where(crossed, value, above)
            done |= crossed
            grow = (1.1 / (value + 1).clamp_min(1e-6)).clamp(1.2, 2.0)
            grow = torch.where(value > -1, grow, 2.0)
            short = active & ~crossed
            below, low = torch.where(short, value, below), torch.where(short, high, low)
            high = torch.where(short, torch.minimum(high * grow, limit), high)
        return self._narrowed(sign, low, high, below, above, done, tolerance)

    def _inside(
        self, sign: Tensor, low: Tensor, high: Tensor, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """The crossing between two amplitudes; NaN where the target does not lie between them."""
        everywhere = torch.ones_like(low, dtype=torch.bool)
        below = self._progress(sign * low, everywhere) - 1
        above = self._progress(sign * high, everywhere) - 1
        between = (below < 0) & (above >= 0)
        return self._narrowed(sign, low, high, below, above, between, tolerance)

    def _narrowed(
        self,
        sign: Tensor,
        low: Tensor,
        high: Tensor,
        below: Tensor,
        above: Tensor,
        wanted: Tensor,
        tolerance: float,
    ) -> tuple[Tensor, Tensor]:
        """Regula falsi (Illinois) from a bracket: below < 0 <= above; a bisection every fourth step."""
        found, miss = high.clone(), above.clone()
        open_ = wanted & (above > tolerance / 4)
        weight_low, weight_high = below, above
        for step in range(60):
            if not bool(open_.any()):
                break
            middle = (low * weight_high - high * weight_low) / (weight_high - weight_low)
            middle = torch.where((middle > low) & (middle < high), middle, (low + high) / 2)
            middle = (low + high) / 2 if step % 4 == 3 else middle
            value = self._progress(sign * middle, open_) - 1
            up = open_ & (value >= 0)
            down = open_ & (value < 0)
            # The end that stays counts half, so that both ends move.
            weight_low = torch.where(down, value, torch.where(up, weight_low / 2, weight_low))
            weight_high = torch.where(up, value, torch.where(down, weight_high / 2, weight_high))
            high, low = torch.where(up, middle, high), torch.where(down, middle, low)
            close = open_ & (value.abs() <= tolerance / 4)
            keep = up | close
            found, miss = torch.where(keep, middle, found), torch.where(keep, value, miss)
            open_ &= ~close & (high - low > 1e-9 * high)
        nothing = torch.full_like(found, float("nan"))
        shift = (1 + miss) * self.target
        return torch.where(wanted, found, nothing), torch.where(wanted, shift, nothing)

    def _progress(self, amplitudes: Tensor, wanted: Tensor) -> Tensor:
        """Return the shift as a share of the target, for the schedules and prompts wanted."""
        return self.shift(amplitudes, wanted) / self.target
