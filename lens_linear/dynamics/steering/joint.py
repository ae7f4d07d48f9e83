"""Several concepts steered at once: each readout to its own target, with the least that is added in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import counted, require_floats, require_int, require_list
from lens_linear.dynamics.gains.gain_profile import require_directions
from lens_linear.dynamics.gains.jacobian_products import block_jacobians, frozen_batches
from lens_linear.dynamics.gains.prompts import Prompts, PromptsLike, as_prompts
from lens_linear.dynamics.steering.min_energy import joint_min_energy
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import own_modes, to_compute
from lens_linear.models.checked import ModelLike, checked
from lens_linear.models.frozen.frozen_context import FrozenContext
from lens_linear.tables import Result


@dataclass(frozen=True, eq=False)
class JointSteering(Result):
    """One schedule for several concepts, and what it does to each readout.

    Attributes:
        amplitudes: u of every concept's direction at every layer.
        vectors: what is added at each layer, ``Σ_c u_{c,l} v_{c,l}``.
        gains: mean over prompts of ∂(readout)/∂(amplitude), [readout, concept, layer].
        targets: Δy, one a concept.
        linear: mean shift on the model when the first-order schedule is added.
        achieved: mean shift on the model after correction.
        corrections: Newton steps taken.
        n_prompts: prompts averaged over.
    """

    amplitudes: Float[Tensor, "concept layer"]
    vectors: Float[Tensor, "layer d_model"]
    gains: Float[Tensor, "readout concept layer"]
    targets: Float[Tensor, " concept"]
    linear: Float[Tensor, " concept"]
    achieved: Float[Tensor, " concept"]
    corrections: int
    n_prompts: int

    @property
    def energy(self) -> float:
        """Squared length of all that is added, summed over layers."""
        return float(self.vectors.pow(2).sum())

    def __repr__(self) -> str:
        goals = ", ".join(f"{float(x):.3g}" for x in self.targets)
        got = ", ".join(f"{float(x):.3g}" for x in self.achieved)
        return (
            f"JointSteering: {counted(len(self.targets), 'concept')}, targets {goals}, mean shifts "
            f"{got} over "
            f"{counted(self.n_prompts, 'prompt')}, energy {self.energy:.4g}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a concept: target, linear, achieved, share of the amplitudes' energy."""
        power = self.amplitudes.pow(2).sum(-1)
        frame = pd.DataFrame(
            {
                "target": self.targets.cpu().numpy(),
                "linear": self.linear.cpu().numpy(),
                "achieved": self.achieved.cpu().numpy(),
                "energy_share": (power / power.sum()).cpu().numpy(),
            }
        )
        return frame.rename_axis("concept")


@own_modes()
def steer_concepts(
    model: ModelLike,
    prompts: PromptsLike | Prompts,
    directions: Sequence[Float[Tensor, "boundary d_model"]],
    targets: Sequence[float],
    *,
    corrections: int = 20,
    attention_mask: Tensor | None = None,
    truncate: bool = False,
    batch_size: int | None = None,
) -> JointSteering:
    """Least-norm schedule that moves several concepts' readouts to their targets; 0 holds one still.

    ``minimise Σ_l ‖Σ_c u_{c,l} v_{c,l}‖² subject to G u = Δy``, G the mean gains of every readout (the
    last row of each concept's directions) for every injected direction. Concepts that point alike
    share what they add. Then damped Newton steps on the model itself, with the gains at the steered
    states, take the mean shifts to the targets.

    Args:
        model: a causal bridge.
        prompts: texts, rows of ids, or a padded tensor.
        directions: one set v_0 ... v_L for each concept.
        targets: Δy, one a concept, in units of its readout.
        corrections: Newton steps at most.
        attention_mask: for a padded tensor.
        truncate: keep the last tokens of prompts longer than the context.
        batch_size: prompts a forward pass, as many as memory allows (at most 64) by default.

    Returns:
        JointSteering: ``.vectors`` [layer, d_model] to add, ``.achieved`` beside ``.targets``, ``.energy``.

    Raises:
        InvalidArgumentError: numbers of concepts and targets differ, or the targets contradict each other.

    Source: Nettasinghe & Joseph 2026, arXiv 2603.12541 for one readout of the linear
        model; the Newton steps on the model itself are ours.

    Example:
        >>> from lens_linear.dynamics.gains.directions import random_directions
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=3)
        >>> both = [random_directions(model, seed=seed) for seed in (0, 1)]
        >>> found = steer_concepts(model, [torch.arange(6)], both, [0.5, -0.25])
        >>> found.achieved.round(decimals=3).tolist()
        [0.5, -0.25]
    """
    model = checked(model)
    corrections = require_int("corrections", corrections, minimum=0)
    if isinstance(directions, Tensor) and directions.ndim:
        directions = list(directions)
    directions = require_list("directions", directions, of="directions, one set a concept")
    targets = require_floats("targets", targets)
    if len(directions) != len(targets) or not targets:
        raise InvalidArgumentError(
            f"targets must have one entry for each of {len(directions)} concepts, got {len(targets)}"
        )
    goal = torch.tensor(targets, dtype=torch.float64)
    rows = torch.stack([require_directions(model, given)[0] for given in directions])
    prompts = as_prompts(model, prompts, attention_mask=attention_mask, truncate=truncate)
    n_layers = model.n_layers
    maps = block_jacobians(model, prompts, batch_size=batch_size)
    here, goal = rows[:, :n_layers], goal.to(rows.device)
    costates = torch.zeros(len(rows), *here.shape[1:], dtype=here.dtype, device=here.device)
    for index, row in enumerate(rows):
        for _, part in maps.costates(row[-1]):
            costates[index] += part.sum(1) / len(prompts)
    gains = torch.einsum("yld,cld->ycl", costates, here)
    contexts = list(frozen_batches(model, prompts, batch_size=batch_size))
    u = _least_norm(here, gains, goal)
    shift, slopes = _mean_shift(contexts, rows, u)
    linear, taken = shift, 0
    while taken < corrections and float((goal - shift).norm()) > 1e-4 * float(goal.norm()):
        # The least schedule that meets the targets if the model were linear around where it stands.
        ahead = _least_norm(here, slopes, goal - shift + torch.einsum("ycl,cl->y", slopes, u))
        step = 1.0
        while step > 1e-3:
            trial = u + step * (ahead - u)
            moved, steeper = _mean_shift(contexts, rows, trial)
            if float((goal - moved).norm()) < float((goal - shift).norm()):
                break
            step /= 2
        else:
            break
        u, shift, slopes, taken = trial, moved, steeper, taken + 1
    vectors = torch.einsum("cl,cld->ld", u, here)
    return JointSteering(u, vectors, gains, goal, linear, shift, taken, len(prompts))


def _least_norm(
    here: Float[Tensor, "concept layer d_model"],
    gains: Float[Tensor, "readout concept layer"],
    targets: Float[Tensor, " readout"],
) -> Float[Tensor, "concept layer"]:
    """Return the amplitudes whose vectors are shortest in all and meet the targets to first order."""
    n_concepts, n_layers = here.shape[:2]
    size = n_concepts * n_layers
    overlap = torch.einsum("cld,kld->clk", here, here)
    eye = torch.eye(n_layers, dtype=here.dtype, device=here.device)
    gram = torch.einsum("clk,lm->clkm", overlap, eye).reshape(size, size)
    # Directions that coincide at some layer make the Gram matrix singular; this much is rounding.
    gram = gram + 1e-9 * torch.eye(size, dtype=gram.dtype, device=gram.device)
    found = joint_min_energy(gains.reshape(len(gains), size), targets, gram=gram)
    return found.view(n_concepts, n_layers)


def _mean_shift(
    contexts: Sequence[tuple[Tensor, FrozenContext]],
    rows: Float[Tensor, "concept boundary d_model"],
    amplitudes: Float[Tensor, "concept layer"],
) -> tuple[Float[Tensor, " readout"], Float[Tensor, "readout concept layer"]]:
    """Return each readout's mean shift when the amplitudes' vectors are added, and its slopes there."""
    here = rows[:, : amplitudes.shape[1]]
    vectors = torch.einsum("cl,cld->ld", amplitudes, here).detach().requires_grad_()
    shift = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    slopes = torch.zeros(len(rows), *amplitudes.shape, dtype=torch.float64, device=rows.device)
    n_prompts = sum(len(index) for index, _ in contexts)
    for _, context in contexts:
        ones = torch.ones(1, len(context.lengths), amplitudes.shape[1], dtype=torch.float32)
        with torch.enable_grad():
            out = context.outputs(ones, vectors)[0]
            sums = (out - context.states[-1]).sum(0) @ rows[:, -1].to(out).T
            # Taking the sums apart belongs in here too: outside, a caller's no_grad would cut the graph.
            for index, value in enumerate(sums):
                (slope,) = torch.autograd.grad(value, vectors, retain_graph=True)
                slopes[index] += torch.einsum("ld,cld->cl", to_compute(slope), here) / n_prompts
        shift += to_compute(sums) / n_prompts
    return shift, slopes
