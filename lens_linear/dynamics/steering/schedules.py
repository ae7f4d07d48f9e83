"""Schedules compared on the model itself: the energy each needs to move the readout by the same amount.

For every schedule and prompt the sign and the amplitude are searched on the full model, by a geometric
scan for the first crossing of the target and bisection inside it; the last token alone is rerun, which
is exact, and what was reached is checked with whole prompts at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.checks import require_float, require_instance, require_int, require_seed
from lens_linear.dynamics.gains.gain_profile import adjoint_profile, require_directions
from lens_linear.dynamics.gains.jacobian_products import frozen_batches, linearize
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
from lens_linear.linalg.precision import to_compute
from lens_linear.models.frozen.frozen_context import FrozenContext
from lens_linear.models.hooks import require_bridge
from lens_linear.tables import Result

if TYPE_CHECKING:
    import pandas as pd

BASELINE, EXACT, REFINED = "minimum energy", "exact minimum energy", "refined minimum energy"


@dataclass(frozen=True, eq=False)
class ScheduleComparison(Result):
    """Energy of every schedule at every prompt, usable as its data frame.

    Attributes:
        names: the schedules; the first is "minimum energy".
        shapes: unit vectors over layers, one a schedule and prompt.
        amplitudes: signed amplitude on the shape that reaches the target; NaN where none was found.
        achieved: shift of the readout on whole prompts at that amplitude.
        baseline: readout of every prompt without injection.
        target: Δy.
        energy: sum of squares of what is added (amplitude², times the directions' lengths if not 1).
        tolerance: relative miss of the target accepted by the bisection.
    """

    _figure = "schedule_energies"

    names: tuple[str, ...]
    shapes: Float[Tensor, "schedule prompt layer"]
    amplitudes: Float[Tensor, "schedule prompt"]
    achieved: Float[Tensor, "schedule prompt"]
    baseline: Float[Tensor, " prompt"]
    target: float
    energy: Float[Tensor, "schedule prompt"]
    tolerance: float

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
            f"{int(self.reached[0].sum())} prompts"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a schedule: median energy, ratio to minimum energy (median, q25, q75), share of
        prompts at which minimum energy needs less, share reached, worst relative miss of the target on
        whole prompts.
        """
        import pandas as pd

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
    """Quartiles by rank, so that infinite entries stay infinite instead of turning into NaN."""
    if not len(values):
        return [float("nan")] * 3
    ordered = values.sort().values
    return [float(ordered[round(q * (len(ordered) - 1))]) for q in (0.25, 0.5, 0.75)]


@torch.inference_mode(False)  # derivatives need a graph, whatever the caller switched off
def evaluate_schedules(
    model: TransformerBridge,
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
    batch_size: int = 64,
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
        tolerance: relative miss of the target at which bisection stops.
        refine_steps: iterations of ``refined minimum energy``.
        seed: of the random layers.
        batch_size: rows a forward pass.

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
    model = require_bridge(model)
    seed = require_seed(seed)
    require_int("batch_size", batch_size, minimum=1)
    require_int("refine_steps", refine_steps, minimum=1)
    schedules = {} if schedules is None else schedules
    require_instance("schedules", schedules, Mapping, advice="pass {name: shape over layers}")
    max_factor = require_float("max_factor", max_factor, minimum=1.0)
    tolerance = require_float("tolerance", tolerance, minimum=1e-9, maximum=0.5)
    directions, readout = require_directions(model, directions, readout)
    prompts = as_prompts(model, prompts, attention_mask=attention_mask, truncate=truncate)
    maps = linearize(model, prompts, batch_size=batch_size)
    exact = adjoint_profile(maps, directions, readout).gains
    baseline = maps.states[-1] @ readout
    goal = _target(target, baseline)
    names, shapes = _shapes(exact, gains, schedules, seed)
    amplitudes = baseline.new_full(shapes.shape[:2], float("nan"))
    achieved = torch.full_like(amplitudes, float("nan"))
    knobs = (max_factor, tolerance, refine_steps)
    for rows, context in frozen_batches(model, prompts, batch_size=batch_size):
        search = _Search(context, directions, readout, shapes[:, rows], goal, batch_size)
        amplitudes[:, rows] = search.run_with_refined(exact[rows], *knobs)
        shapes[:, rows] = search.shapes
    for rows, context in frozen_batches(model, prompts, batch_size=batch_size, whole=True):
        search = _Search(context, directions, readout, shapes[:, rows], goal, batch_size)
        achieved[:, rows] = search.shift(amplitudes[:, rows].nan_to_num(nan=0.0))
    achieved = achieved.where(~amplitudes.isnan(), float("nan"))
    lengths = directions[: exact.shape[1]].pow(2).sum(-1)
    energy = amplitudes.pow(2) * (shapes.pow(2) * lengths).sum(-1)
    return ScheduleComparison(
        names, shapes, amplitudes, achieved, baseline, goal, energy, tolerance
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
        self, amplitudes: Float[Tensor, "schedule prompt"], chosen: Tensor | None = None
    ) -> Float[Tensor, "schedule prompt"]:
        """Return the readout's shift for one amplitude a schedule (all, or those chosen) and prompt."""
        shapes = self.shapes if chosen is None else self.shapes[chosen]
        # A one-token row costs a small part of a whole prompt, so more of them share a pass.
        rows = self.batch_size * (1 if self.context.path == "full" else 16)
        values = [
            to_compute(self.context.outputs(piece, self.directions)) @ self.readout
            for piece in (amplitudes[..., None] * shapes).split(max(1, rows // shapes.shape[1]))
        ]
        return torch.cat(values) - to_compute(self.context.states[-1]) @ self.readout

    def run_with_refined(
        self, gains: Float[Tensor, "prompt layer"], max_factor: float, tolerance: float, steps: int
    ) -> Float[Tensor, "schedule prompt"]:
        """Find all amplitudes; then refine each prompt's cheapest schedule, and keep what is cheaper."""
        found = self.run(gains, max_factor, tolerance)
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
        again = replace(self, shapes=unit[None]).run(gains, max_factor, tolerance)[0]
        cheaper = again.abs().nan_to_num(nan=float("inf")) < sizes[best, columns]
        found[2] = torch.where(cheaper, again, amplitude)
        self.shapes = self.shapes.clone()
        self.shapes[2] = torch.where(cheaper[:, None], unit, shape)
        return found

    def run(
        self, gains: Float[Tensor, "prompt layer"], max_factor: float, tolerance: float
    ) -> Float[Tensor, "schedule prompt"]:
        """Return the signed amplitude of least size that reaches the target; NaN where there is none.

        By Cauchy's inequality a linear model needs an amplitude of |Δy| / ‖h‖ at least; the scan starts
        well below that and goes up to ``max_factor`` times it. The sign that the gains suggest goes first;
        the other one only has to be tried up to the amplitude already found.
        """
        least = abs(self.target) / gains.norm(dim=-1).clamp_min(1e-12)
        least = least.expand(self.shapes.shape[:2])
        slope = torch.einsum("spl,pl->sp", self.shapes, gains) * self.target
        sign = torch.where(slope >= 0, 1.0, -1.0).to(least.dtype)
        first = sign * self._smallest(sign, least, max_factor * least, tolerance)
        limit = torch.where(first.isnan(), max_factor * least, first.abs())
        second = -sign * self._smallest(-sign, least, limit, tolerance)
        better = ~second.isnan() & (first.isnan() | (second.abs() < first.abs()))
        return torch.where(better, second, first)

    def _smallest(self, sign: Tensor, least: Tensor, limit: Tensor, tolerance: float) -> Tensor:
        """Scan up to ``limit`` for the first crossing, then bisect inside it; NaN without a crossing."""
        high, low = least / 8, torch.zeros_like(least)
        done = torch.zeros_like(least, dtype=torch.bool)
        while bool((active := ~done & (low < limit)).any()):
            rows = active.any(1)
            done[rows] |= active[rows] & (self._progress(sign * high, rows) >= 1)
            low, high = torch.where(done, low, high), torch.where(done, high, high * 1.5)
        open_ = done.clone()
        for _ in range(60):
            rows = open_.any(1)
            if not bool(rows.any()):
                break
            middle = (low + high) / 2
            value = torch.zeros_like(middle)
            value[rows] = self._progress(sign * middle, rows)
            high = torch.where(open_ & (value >= 1), middle, high)
            low = torch.where(open_ & (value < 1), middle, low)
            close = (value - 1).abs() <= tolerance / 4
            high = torch.where(open_ & close, middle, high)
            open_ &= ~close & (high - low > 1e-9 * high)
        return torch.where(done, high, float("nan"))

    def _progress(self, amplitudes: Tensor, rows: Tensor) -> Tensor:
        """Return the shift as a share of the target, for the schedules chosen."""
        return self.shift(amplitudes[rows], rows) / self.target
