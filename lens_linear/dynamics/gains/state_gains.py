"""Gains read off a prompt's own state: how sensitivity depends on where the prompt stands.

One gain profile for all prompts cannot follow gains that differ from prompt to prompt. But the gains are
functions of the state, and a linear one can be learnt from the operating prompts::

    g(x) = ḡ + (x_b − x̄_b) W,

ridge regression of the operating prompts' gains on their last token's state at one layer boundary b.
Boundary and ridge are those of least leave-one-out error on the operating prompts, or W = 0 where none
beats the mean. A new prompt costs a forward pass and no derivative.

>>> generator = torch.Generator().manual_seed(0)
>>> states = torch.randn(2, 40, 3, generator=generator, dtype=torch.float64)
>>> gains = states[1] @ torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]], dtype=torch.float64)
>>> fit_state_gains(states, gains)
StateGains: 2 layers from the state at boundary 1, ridge 0.001, leave-one-out relative error 0.000 (mean
profile 0.999) on 40 prompts

Source: ours. Leave-one-out errors of a linear smoother in closed form: Golub, Heath & Wahba 1979.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import counted
from lens_linear.tables import Result

# Ridges tried, in units of the mean squared length of the centred states.
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True, eq=False)
class StateGains(Result):
    """A linear map from the last token's state to the gains of all layers.

    Attributes:
        mean: ḡ, mean gains of the operating prompts.
        centre: x̄_b.
        weights: W; zeros where the state predicts nothing.
        boundary: b, the layer boundary whose state is read.
        ridge: in units of the mean squared length of the centred states; infinite for W = 0.
        error: relative leave-one-out error, ``‖G − Ĝ‖ / ‖G‖``.
        mean_error: the same of the mean profile.
        n_prompts: operating prompts.
    """

    mean: Float[Tensor, " layer"]
    centre: Float[Tensor, " d_model"]
    weights: Float[Tensor, "d_model layer"]
    boundary: int
    ridge: float
    error: float
    mean_error: float
    n_prompts: int

    def __repr__(self) -> str:
        return (
            f"StateGains: {counted(len(self.mean), 'layer')} from the state at boundary "
            f"{self.boundary}, ridge "
            f"{self.ridge:g}, leave-one-out relative error {self.error:.3f} (mean profile "
            f"{self.mean_error:.3f}) on {counted(self.n_prompts, 'prompt')}"
        )

    def predict(
        self, states: Float[Tensor, "boundary prompt d_model"]
    ) -> Float[Tensor, "prompt layer"]:
        """Return the gains of prompts from their last tokens' states x_0 ... x_L."""
        return self.mean + (states[self.boundary] - self.centre) @ self.weights

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer: gain_mean, weight_norm (gain per unit of state), boundary, ridge."""
        return pd.DataFrame(
            {
                "gain_mean": self.mean.cpu().numpy(),
                "weight_norm": self.weights.norm(dim=0).cpu().numpy(),
                "boundary": self.boundary,
                "ridge": self.ridge,
            }
        ).rename_axis("layer")


def fit_state_gains(
    states: Float[Tensor, "boundary prompt d_model"], gains: Float[Tensor, "prompt layer"]
) -> StateGains:
    """Learn gains from states at the boundary and with the ridge of least leave-one-out error.

    Args:
        states: x_0 ... x_L of the operating prompts' last tokens.
        gains: their gains.

    Returns:
        StateGains; with fewer than 3 prompts the mean profile.
    """
    n_prompts, mean = len(gains), gains.mean(0)
    rest, size = gains - mean, float(gains.norm()) or 1.0
    alone = float(rest.norm()) * n_prompts / max(1, n_prompts - 1)
    best, boundary, ridge = alone, 0, float("inf")
    weights = gains.new_zeros(states.shape[-1], gains.shape[1])
    for index, x in enumerate(states if n_prompts > 2 else ()):
        centred = x - x.mean(0)
        scale = centred.pow(2).sum(-1).mean()
        if not float(scale) > 0:
            continue
        values, vectors = torch.linalg.eigh(centred @ centred.T / scale)
        values, seen = values.clamp_min(0), vectors.T @ rest
        for candidate in _RIDGES:
            kept = values / (values + candidate)
            own = (vectors.pow(2) * kept).sum(-1) + 1 / n_prompts
            missed = (rest - vectors @ (kept[:, None] * seen)) / (1 - own)[:, None]
            if float(missed.norm()) < best:
                best, boundary, ridge = float(missed.norm()), index, candidate
                dual = vectors @ (seen / (values + candidate)[:, None])
                weights = centred.T @ dual / scale
    centre = states[boundary].mean(0)
    return StateGains(mean, centre, weights, boundary, ridge, best / size, alone / size, n_prompts)
