"""Layerwise sensitivity: how far the output moves when a direction is added at one layer.

The state x_l is the residual stream of a prompt's last token at the input of block l; ``C·x_L`` is what is
read off at the end. The *gain* of layer k is the change of the readout for each unit of ``v_k`` added to
``x_k``, everything before the last token staying as it is (in a causal model it cannot do otherwise).

>>> from lens_linear.dynamics.gains.directions import random_directions
>>> from lens_linear.models.open.toy import toy_model
>>> model = toy_model(n_layers=3)
>>> gain_profile(model, [torch.arange(5), torch.arange(9)], random_directions(model))
GainProfile: 3 layers, 2 prompts of 5 to 9 tokens, adjoint (exact derivatives), in units of readout per
unit added

Source: Nettasinghe & Joseph 2026 (arXiv 2603.12541) for the empirical profile. The adjoint profile is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import (
    counted,
    require_choice,
    require_float,
    require_float_tensor,
    require_instance,
)
from lens_linear.dynamics.gains.agreement import Agreement, compare_gains
from lens_linear.dynamics.gains.jacobian_products import (
    BlockJacobians,
    block_jacobians,
    frozen_batches,
    require_finite_gains,
)
from lens_linear.dynamics.gains.prompts import Prompts, PromptsLike, as_prompts
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import checked_to_compute, compute_device, own_modes, to_compute
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.tables import Result

Method = Literal["adjoint", "empirical"]
_HOW = {
    "adjoint": "adjoint (exact derivatives)",
    "empirical": "central differences of ±{eps:g}",
    "surrogate": "predicted by a surrogate",
}


@dataclass(frozen=True, eq=False)
class GainProfile(Result):
    """Gains of every layer at every prompt.

    Attributes:
        gains: change of the readout for each unit of v_k added at layer k; float64.
        method: "adjoint", "empirical" or "surrogate".
        eps: step of the central difference, None for derivatives.
        readout: C.
        lengths: tokens of each prompt.
        key: checksum of the prompts, see :class:`~lens_linear.dynamics.gains.prompts.Prompts`.
    """

    _figure = "gain_profiles"

    gains: Float[Tensor, "prompt layer"]
    method: str
    eps: float | None
    readout: Float[Tensor, " d_model"]
    lengths: Int[Tensor, " prompt"]
    key: str

    def __repr__(self) -> str:
        low, high = int(self.lengths.min()), int(self.lengths.max())
        return (
            f"GainProfile: {counted(self.gains.shape[1], 'layer')}, "
            f"{counted(len(self.gains), 'prompt')} of {low} to {high} "
            f"tokens, {_HOW[self.method].format(eps=self.eps)}, in units of readout per unit added"
        )

    @property
    def mean(self) -> Float[Tensor, " layer"]:
        """Mean gain over prompts."""
        return self.gains.mean(0)

    @property
    def sd(self) -> Float[Tensor, " layer"]:
        """Standard deviation over prompts (0 for one prompt)."""
        return self.gains.std(0, correction=0)

    def agreement(self, exact: GainProfile) -> Agreement:
        """Score this profile as a prediction of another one.

        Prompt by prompt where both were taken on the same prompts, else this one's mean profile against
        every prompt of the other.
        """
        require_instance("exact", exact, GainProfile, advice="take it from gain_profile(...)")
        rows = self.gains if self.key == exact.key else self.mean[None]
        return compare_gains(rows, exact.gains)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer: mean, sd, q05, median, q95 over prompts, n_prompts, method, eps."""
        levels = torch.tensor([0.05, 0.5, 0.95], dtype=self.gains.dtype, device=self.gains.device)
        low, middle, high = self.gains.quantile(levels, dim=0).cpu().numpy()
        frame = pd.DataFrame(
            {
                "mean": self.mean.cpu().numpy(),
                "sd": self.sd.cpu().numpy(),
                "q05": low,
                "median": middle,
                "q95": high,
                "n_prompts": len(self.gains),
                "method": self.method,
                "eps": float("nan") if self.eps is None else self.eps,
            }
        )
        return frame.rename_axis("layer")


@own_modes()
def gain_profile(
    model: ModelLike,
    prompts: PromptsLike | Prompts,
    directions: Float[Tensor, "boundary d_model"],
    method: Method = "adjoint",
    *,
    eps: float = 0.1,
    readout: Float[Tensor, " d_model"] | None = None,
    attention_mask: Tensor | None = None,
    truncate: bool = False,
    batch_size: int | None = None,
) -> GainProfile:
    """Gain of every layer at every prompt: ``g_k = ∂(C·x_L)/∂x_k · v_k``.

    ``"adjoint"`` takes all layers' exact derivatives from one forward and one backward pass.
    ``"empirical"`` is the central difference ``(C·x_L(+eps v_k) − C·x_L(−eps v_k)) / (2 eps)`` on the full
    model, whole prompts run again for every layer and sign: 2 × layers forward passes. The two agree as
    eps → 0; at finite eps the difference shows how nonlinear the model is over that step.

    Units: readout per unit of v_k. A layer that passes v_k on unchanged to ``C = v_k`` has gain 1; a random
    unit direction has about 0 ± 1/√d_model.

    Args:
        model: a causal bridge.
        prompts: texts, rows of ids of any lengths, ids [prompt, position] with ``attention_mask``, a
            Concept, a Task, or a ConceptSplit (its evaluation part).
        directions: v_0 ... v_L as rows, e.g. from :func:`~lens_linear.concept_directions`; used as they
            are, so unit rows make gains comparable.
        method: see above.
        eps: step of the central difference; "adjoint" ignores it.
        readout: C; the last row of ``directions`` by default.
        attention_mask: 1 for real tokens; padding on either side gives the same answer.
        truncate: keep the last tokens of prompts longer than the context.
        batch_size: prompts a forward pass, as many as memory allows (at most 64) by default; one batch is
            in memory at a time.

    Returns:
        GainProfile with ``.gains`` [prompt, layer].

    Raises:
        InvalidArgumentError: directions do not fit the model, or a prompt does not fit its context.
        NonFiniteError: NaN or infinity in the residual stream or in a gain; the message names the layer.

    Source: Nettasinghe & Joseph 2026, arXiv 2603.12541 (empirical profile, eps = 0.1).

    Example:
        >>> import torch
        >>> from lens_linear.dynamics.gains.directions import random_directions
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2, d_model=16, attn_only=False)
        >>> prompts = torch.randint(64, (6, 12), generator=torch.Generator().manual_seed(0))
        >>> directions = random_directions(model)
        >>> exact = gain_profile(model, prompts, directions)
        >>> measured = gain_profile(model, prompts, directions, method="empirical", eps=1e-3)
        >>> bool((exact.gains - measured.gains).abs().max() < 1e-2)
        True
    """
    model = checked(model)
    require_choice("method", method, ("adjoint", "empirical"))
    eps = require_float("eps", eps, minimum=1e-12)
    directions, readout = require_directions(model, directions, readout)
    prompts = as_prompts(model, prompts, attention_mask=attention_mask, truncate=truncate)
    batch_size = prompts.a_pass(model, batch_size)
    if method == "adjoint":
        return adjoint_profile(
            block_jacobians(model, prompts, batch_size=batch_size), directions, readout
        )
    gains = _central_differences(model, prompts, directions, readout, eps, batch_size)
    return GainProfile(gains, "empirical", eps, readout, prompts.lengths, prompts.key)


def adjoint_profile(
    maps: BlockJacobians,
    directions: Float[Tensor, "boundary d_model"],
    readout: Float[Tensor, " d_model"],
) -> GainProfile:
    """Return the exact profile from Jacobians that are already there."""
    prompts = maps.prompts
    gains = maps.gains(directions, readout)
    return GainProfile(gains, "adjoint", None, readout, prompts.lengths, prompts.key)


def _central_differences(
    model: CheckedModel,
    prompts: Prompts,
    directions: Float[Tensor, "boundary d_model"],
    readout: Float[Tensor, " d_model"],
    eps: float,
    batch_size: int,
) -> Float[Tensor, "prompt layer"]:
    n_layers = len(directions) - 1
    model.require_blocks()
    steps = torch.cat([eps * torch.eye(n_layers), -eps * torch.eye(n_layers)]).double()
    found = directions.new_zeros(len(prompts), n_layers)
    # Copies (one a layer and sign) and prompts share the rows of a pass.
    per_pass = max(1, batch_size // (2 * n_layers))
    for rows, context in frozen_batches(model, prompts, batch_size=per_pass, whole=True):
        values = []
        for piece in steps.split(max(1, batch_size // len(rows))):
            amplitudes = piece[:, None].expand(-1, len(rows), -1)
            values.append(to_compute(context.outputs(amplitudes, directions)) @ readout)
        up, down = torch.cat(values).chunk(2)
        found[rows.to(found.device)] = ((up - down) / (2 * eps)).T
    return require_finite_gains(found)


def _shape(row: object) -> tuple[int, ...]:
    if not isinstance(row, Tensor):
        raise InvalidArgumentError(
            f"directions must hold tensors [d_model], got {type(row).__name__}; take them from "
            "concept_directions(model, concept)"
        )
    return tuple(row.shape)


def _usable(x: Tensor) -> Tensor:
    """Return a tensor that a graph may hold: one made under ``torch.inference_mode`` is copied."""
    return x.clone() if x.is_inference() else x


def require_directions(
    model: CheckedModel,
    directions: Tensor | Sequence[Tensor],
    readout: Tensor | None = None,
) -> tuple[Float[Tensor, "boundary d_model"], Float[Tensor, " d_model"]]:
    """Accept one direction for each layer boundary, and a readout; both float64, beside the model."""
    if isinstance(directions, (list, tuple)) and len({_shape(d) for d in directions}) == 1:
        directions = torch.stack(list(directions))
    home = compute_device(model.device)
    rows = _usable(
        checked_to_compute(require_float_tensor("directions", directions, ndim=2), device=home)
    )
    if tuple(rows.shape) != (model.n_layers + 1, model.d_model):
        raise InvalidArgumentError(
            f"directions must have shape [layers + 1, d_model] = {(model.n_layers + 1, model.d_model)} for "
            f"this model, got {tuple(rows.shape)}; take them from concept_directions(model, concept)"
        )
    if readout is None:
        return rows, rows[-1]
    vector = _usable(checked_to_compute(require_float_tensor("readout", readout, ndim=1)))
    if len(vector) != model.d_model:
        raise InvalidArgumentError(
            f"readout must have d_model = {model.d_model} entries, got {len(vector)}; "
            "pass a direction of the residual stream"
        )
    return rows, vector.to(rows.device)
