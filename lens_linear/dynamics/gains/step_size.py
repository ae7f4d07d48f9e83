"""How the empirical profile depends on its step: too small drowns in rounding, too large leaves the
linear range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import counted, require_floats
from lens_linear.dynamics.gains.agreement import Agreement
from lens_linear.dynamics.gains.gain_profile import GainProfile, gain_profile
from lens_linear.dynamics.gains.prompts import Prompts, PromptsLike, as_prompts
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import own_modes
from lens_linear.models.checked import ModelLike, checked
from lens_linear.tables import Result


@dataclass(frozen=True, eq=False)
class StepSizeTable(Result):
    """Agreement of central differences of several steps with the adjoint profile; acts as its table.

    Attributes:
        steps: eps of each row.
        agreements: of the empirical with the adjoint profile.
        profiles: the empirical profiles.
        adjoint: the exact profile.
    """

    _figure = "step_size"

    steps: tuple[float, ...]
    agreements: tuple[Agreement, ...]
    profiles: tuple[GainProfile, ...]
    adjoint: GainProfile

    def __repr__(self) -> str:
        errors = [agreement.relative_error for agreement in self.agreements]
        best = errors.index(min(errors))
        return (
            f"StepSizeTable: {counted(len(self.steps), 'step')}, "
            f"{counted(len(self.adjoint.gains), 'prompt')}, "
            f"least relative "
            f"error {errors[best]:.2g} at eps = {self.steps[best]:g}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a step: eps, spearman, pearson, relative_error, mean_spearman, n_prompts."""
        names = ["spearman", "pearson", "relative_error", "mean_spearman", "n_prompts"]
        frame = pd.DataFrame([asdict(found) for found in self.agreements])[names]
        frame.insert(0, "eps", self.steps)
        return frame


@own_modes()
def step_size_table(
    model: ModelLike,
    prompts: PromptsLike | Prompts,
    directions: Float[Tensor, "boundary d_model"],
    *,
    steps: Sequence[float] = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003),
    readout: Float[Tensor, " d_model"] | None = None,
    attention_mask: Tensor | None = None,
    truncate: bool = False,
    batch_size: int | None = None,
) -> StepSizeTable:
    """Compare central differences of several steps with the exact derivatives.

    The error falls with eps² until rounding, which grows with 1/eps, takes over.

    Args:
        model: a causal bridge.
        prompts: texts, rows of ids, or a padded tensor.
        directions: v_0 ... v_L.
        steps: eps, each above 0.
        readout: C; v_L by default.
        attention_mask: for a padded tensor.
        truncate: keep the last tokens of prompts longer than the context.
        batch_size: prompts a forward pass, as many as memory allows (at most 64) by default.

    Returns:
        StepSizeTable: agreement with the exact gains, one row a step; acts as a table.

    Raises:
        InvalidArgumentError: no step, or one not above 0; directions or prompts that do not fit.

    Source: Nettasinghe & Joseph 2026, arXiv 2603.12541 (central differences, eps = 0.1).

    Example:
        >>> import torch
        >>> from lens_linear.dynamics.gains.directions import random_directions
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=3)
        >>> table = step_size_table(model, [torch.arange(6)], random_directions(model), steps=(4.0, 2.0))
        >>> errors = table["relative_error"]
        >>> round(errors[0] / errors[1])  # twice the step, four times the error
        4
    """
    model = checked(model)
    values = tuple(require_floats("steps", steps, minimum=1e-12))
    if not values:
        raise InvalidArgumentError("steps must name at least one eps; pass e.g. (0.1, 0.01)")
    prompts = as_prompts(model, prompts, attention_mask=attention_mask, truncate=truncate)
    profile = partial(
        gain_profile, model, prompts, directions, readout=readout, batch_size=batch_size
    )
    adjoint = profile()
    profiles = tuple(profile(method="empirical", eps=eps) for eps in values)
    agreements = tuple(profile.agreement(adjoint) for profile in profiles)
    return StepSizeTable(values, agreements, profiles, adjoint)
