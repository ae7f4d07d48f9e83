"""Minimum energy on the model as it is, not on its linearisation.

Far from zero the gains change, and a schedule made from gains at zero leans on layers that soon saturate. The
least schedule that really reaches the target satisfies ``u ∝ ∇y(u)``: the gradient *at* the steered
state. It is sought by the iteration of structural reliability theory (there u is the most likely way
for a structure to fail)::

    u ← [g·u − (y(u) − Δy)] g / ‖g‖²,      g = ∇y(u),

damped until ``‖u‖²`` and the miss together go down. One step costs one forward and one backward pass
over single tokens, for all prompts together.

Source: Hasofer & Lind 1974; Rackwitz & Fiessler 1978 (the iteration); Liu & Der Kiureghian 1991 (the merit).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import require_int
from lens_linear.dynamics.gains.gain_profile import require_directions
from lens_linear.dynamics.gains.jacobian_products import frozen_batches
from lens_linear.dynamics.gains.prompts import Prompts, PromptsLike, as_prompts
from lens_linear.dynamics.steering.min_energy import (
    Gains,
    Schedule,
    gains_of,
    min_energy,
    require_target,
)
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import own_modes, to_compute
from lens_linear.models.checked import ModelLike, checked
from lens_linear.models.frozen.frozen_context import FrozenContext

_SETTLED = 1e-2  # relative; at a minimum the energy then moves by 1e-4


@own_modes()
def refined_min_energy(
    model: ModelLike,
    prompts: PromptsLike | Prompts,
    directions: Float[Tensor, "boundary d_model"],
    gains: Gains,
    target: float,
    *,
    steps: int = 20,
    readout: Float[Tensor, " d_model"] | None = None,
    attention_mask: Tensor | None = None,
    truncate: bool = False,
    batch_size: int | None = None,
) -> Schedule:
    """Each prompt's smallest schedule on the nonlinear model, started from ``min_energy(gains, target)``.

    ``minimise ‖u‖² subject to C·x_L(u) − C·x_L(0) = Δy``: a local minimum, not a proof of the global one.

    Args:
        model: a causal bridge.
        prompts: texts, rows of ids, or a padded tensor.
        directions: v_0 ... v_L, unit rows.
        gains: where to start: [layer], [prompt, layer], a GainProfile or a Surrogate.
        target: Δy in units of the readout.
        steps: of the iteration at most; it ends where no schedule moves by more than 1 %.
        readout: C; v_L by default.
        attention_mask: for a padded tensor.
        truncate: keep the last tokens of prompts longer than the context.
        batch_size: prompts a forward pass, as many as memory allows (at most 64) by default.

    Returns:
        Schedule [prompt, layer] whose ``gains`` are those at the schedule itself.

    Raises:
        InvalidArgumentError: a target of 0, gains that are all 0 or do not fit, or ``steps`` below 1.

    Source: Hasofer & Lind 1974; Rackwitz & Fiessler 1978 (the iteration); Liu & Der Kiureghian 1991 (the
        merit).

    Example:
        >>> from lens_linear.dynamics.gains.directions import random_directions
        >>> from lens_linear.dynamics.gains.gain_profile import gain_profile
        >>> from lens_linear.models.open.toy import toy_model
        >>> model, prompts = toy_model(n_layers=3), [torch.arange(6)]
        >>> directions = random_directions(model)
        >>> gains = gain_profile(model, prompts, directions)
        >>> found = refined_min_energy(model, prompts, directions, gains, 2.0)
        >>> cosine = torch.cosine_similarity(found.plain(), found.gains)  # at the least, u ∝ ∇y(u)
        >>> cosine.round(decimals=3).tolist()
        [1.0]
    """
    model = checked(model)
    steps = require_int("steps", steps, minimum=1)
    target = require_target(target)
    directions, readout = require_directions(model, directions, readout)
    prompts = as_prompts(model, prompts, attention_mask=attention_mask, truncate=truncate)
    start = min_energy(gains_of(gains).to(directions.device), target).plain()
    shape = (len(prompts), len(directions) - 1)
    if start.shape[-1] != shape[1] or (start.ndim == 2 and len(start) not in (1, shape[0])):
        raise InvalidArgumentError(
            f"gains must have shape [layer] or [prompt, layer] for {shape[0]} prompts and {shape[1]} "
            f"layers, got {tuple(start.shape)}; take them from gain_profile with the same prompts"
        )
    start = start.expand(shape)
    schedule, slopes = torch.zeros_like(start), torch.zeros_like(start)
    for rows, context in frozen_batches(model, prompts, batch_size=batch_size):
        found = refine(context, directions, readout, start[rows], target, steps=steps)
        schedule[rows], slopes[rows] = found
    return Schedule(schedule, target=torch.tensor(target, dtype=torch.float64), gains=slopes)


def refine(
    context: FrozenContext,
    directions: Float[Tensor, "boundary d_model"],
    readout: Float[Tensor, " d_model"],
    start: Float[Tensor, "prompt layer"],
    target: float,
    *,
    steps: int,
) -> tuple[Float[Tensor, "prompt layer"], Float[Tensor, "prompt layer"]]:
    """Return the refined amplitudes and the gains at them, for one batch of prompts."""
    u = start
    y, slope = _readout_and_slope(context, directions, readout, u)
    damping, price = torch.ones_like(y), torch.zeros_like(y)
    for _ in range(steps):
        size = slope.norm(dim=-1).clamp_min(1e-30)
        reach = (slope * u).sum(-1) - (y - target)
        ahead = (reach / size.pow(2))[:, None] * slope
        trial = u + damping[:, None] * (ahead - u)
        y_trial, slope_trial = _readout_and_slope(context, directions, readout, trial)
        # A miss must cost more than it saves: the exchange rate at the step's end is |reach| / ‖g‖².
        price = torch.maximum(price, 2 * reach.abs() / size.pow(2))
        before = u.pow(2).sum(-1) / 2 + price * (y - target).abs()
        after = trial.pow(2).sum(-1) / 2 + price * (y_trial - target).abs()
        better = after < before
        size_u = u.norm(dim=-1).clamp_min(1e-30)
        still = ((trial - u).norm(dim=-1) < _SETTLED * size_u) | (~better & (damping < _SETTLED))
        u = torch.where(better[:, None], trial, u)
        slope = torch.where(better[:, None], slope_trial, slope)
        y = torch.where(better, y_trial, y)
        damping = torch.where(better, (2 * damping).clamp(max=1.0), damping / 3)
        if bool(still.all()):
            break
    return u, slope


def _readout_and_slope(
    context: FrozenContext, directions: Tensor, readout: Tensor, u: Float[Tensor, "prompt layer"]
) -> tuple[Float[Tensor, " prompt"], Float[Tensor, "prompt layer"]]:
    """Return the readout's shift and its gradient with respect to the amplitudes, at u."""
    amplitudes = u.detach().clone().requires_grad_()
    with torch.enable_grad():  # the caller may have switched gradients off
        out = context.outputs(amplitudes[None], directions)[0]
        value = out @ readout.to(out)
        (slope,) = torch.autograd.grad(value.sum(), amplitudes)
    value = value.detach()
    before = to_compute(context.states[-1]) @ readout
    return to_compute(value) - before, to_compute(slope)
