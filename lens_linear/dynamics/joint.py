"""Several concepts steered at once: each readout to its own target, with the least that is added in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear._checks import require_floats, require_int, require_list
from lens_linear._tl import TransformerBridge
from lens_linear.dynamics.gains import require_directions
from lens_linear.dynamics.linearization import frozen_batches, linearize
from lens_linear.dynamics.prompts import Prompts, PromptsLike, as_prompts
from lens_linear.dynamics.steering import joint_min_energy
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import to_compute
from lens_linear.models.hooks import require_bridge

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class JointSteering:
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
            f"JointSteering: {len(self.targets)} concepts, targets {goals}, mean shifts {got} over "
            f"{self.n_prompts} prompts, energy {self.energy:.4g}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a concept: target, linear, achieved, share of the amplitudes' energy."""
        import pandas as pd

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


def steer_concepts(
    model: TransformerBridge,
    prompts: PromptsLike | Prompts,
    directions: Sequence[Float[Tensor, "boundary d_model"]],
    targets: Sequence[float],
    *,
    corrections: int = 8,
    attention_mask: Tensor | None = None,
    truncate: bool = False,
    batch_size: int = 64,
) -> JointSteering:
    """Least-norm schedule that moves several concepts' readouts to their targets; 0 holds one still.

    ``minimise Σ_l ‖Σ_c u_{c,l} v_{c,l}‖² subject to G u = Δy``, G the mean gains of every readout (the
    last row of each concept's directions) for every injected direction. Concepts that point alike
    share what they add. Then Newton steps on the model itself, with the same G, take the mean shifts
    to the targets.

    Args:
        model: a causal bridge.
        prompts: texts, rows of ids, or a padded tensor.
        directions: one set v_0 ... v_L for each concept.
        targets: Δy, one a concept, in units of its readout.
        corrections: Newton steps at most.
        attention_mask: for a padded tensor.
        truncate: keep the last tokens of prompts longer than the context.
        batch_size: prompts a forward pass.

    Returns:
        JointSteering.

    Raises:
        InvalidArgumentError: numbers of concepts and targets differ, or the targets contradict each other.
    """
    model = require_bridge(model)
    corrections = require_int("corrections", corrections, minimum=0)
    directions = list(directions) if isinstance(directions, Tensor) else directions
    directions = require_list("directions", directions, of="directions, one set a concept")
    targets = require_floats("targets", targets)
    if len(directions) != len(targets) or not targets:
        raise InvalidArgumentError(
            f"targets must have one entry for each of {len(directions)} concepts, got {len(targets)}"
        )
    goal = torch.tensor(targets, dtype=torch.float64)
    rows = torch.stack([require_directions(model, given)[0] for given in directions])
    prompts = as_prompts(model, prompts, attention_mask=attention_mask, truncate=truncate)
    n_layers, n_concepts = model.cfg.n_layers, len(rows)
    maps = linearize(model, prompts, batch_size=batch_size)
    costates = torch.stack([maps.costates(row[-1]).mean(1) for row in rows])
    gains = torch.einsum("yld,cld->ycl", costates, rows[:, :n_layers])
    overlap = torch.einsum("cld,kld->clk", rows[:, :n_layers], rows[:, :n_layers])
    gram = torch.einsum(
        "clk,lm->clkm", overlap, torch.eye(n_layers, dtype=overlap.dtype, device=overlap.device)
    )
    size = n_concepts * n_layers
    matrix, inner = gains.reshape(n_concepts, size), gram.reshape(size, size)
    # Directions that coincide at some layer make the Gram matrix singular; this much is rounding.
    inner = inner + 1e-9 * torch.eye(size, dtype=inner.dtype, device=inner.device)
    goal = goal.to(matrix.device)
    u = joint_min_energy(matrix, goal, gram=inner)
    shift = linear = _mean_shift(model, prompts, rows, u.view(n_concepts, n_layers), batch_size)
    taken = 0
    while taken < corrections and float((goal - shift).norm()) > 1e-4 * float(goal.norm()):
        trial = u + joint_min_energy(matrix, goal - shift, gram=inner)
        moved = _mean_shift(model, prompts, rows, trial.view(n_concepts, n_layers), batch_size)
        if float((goal - moved).norm()) >= float((goal - shift).norm()):
            break
        u, shift, taken = trial, moved, taken + 1
    amplitudes = u.view(n_concepts, n_layers)
    vectors = torch.einsum("cl,cld->ld", amplitudes, rows[:, :n_layers])
    return JointSteering(amplitudes, vectors, gains, goal, linear, shift, taken, len(prompts))


def _mean_shift(
    model: TransformerBridge,
    prompts: Prompts,
    rows: Float[Tensor, "concept boundary d_model"],
    amplitudes: Float[Tensor, "concept layer"],
    batch_size: int,
) -> Float[Tensor, " concept"]:
    """Return each readout's mean shift when the amplitudes' vectors are added."""
    vectors = torch.einsum("cl,cld->ld", amplitudes, rows[:, : amplitudes.shape[1]])
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for _, context in frozen_batches(model, prompts, batch_size=batch_size):
        ones = torch.ones(1, len(context.lengths), amplitudes.shape[1])
        moved = context.outputs(ones, vectors)[0] - context.states[-1]
        total += (to_compute(moved) @ rows[:, -1].T).sum(0)
    return total / len(prompts)
