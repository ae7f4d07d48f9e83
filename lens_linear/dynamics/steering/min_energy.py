"""Minimum-energy steering: how to spread an injection over layers so that the readout moves most for
its size.

A *schedule* adds ``u_l v_l`` to the last token's state at every layer l. To first order the readout moves by
``h · u``, h the gains; the smallest u that moves it by Δy is ``u* = Δy h / ‖h‖²``, of energy ``Δy² / ‖h‖²``.
The model is not linear, so the amplitude that really reaches the target is found on the model itself.

>>> u = min_energy(torch.tensor([3.0, 4.0]), 10.0)
>>> u
Schedule: 2 layers, predicted shift 10, energy 4 (sum of squared amplitudes)
>>> u.tolist()
[1.2, 1.6]

Source: Nettasinghe & Joseph 2026, arXiv 2603.12541, minimum-energy schedule and heuristics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import counted, require_float, require_float_tensor
from lens_linear.dynamics.gains.annotated_tensor import MadeTensor
from lens_linear.dynamics.gains.gain_profile import GainProfile
from lens_linear.dynamics.surrogates.surrogate import Surrogate
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import to_compute

Gains = GainProfile | Surrogate | Tensor


class Schedule(MadeTensor):
    """Amplitudes u_l over layers (or [prompt, layer]); usable as a tensor. Notes: ``target``, ``gains``."""

    _figure = "schedule_shapes"

    target: Tensor
    gains: Tensor

    @property
    def energy(self) -> Float[Tensor, "*prompt"]:
        """``Σ_l u_l²``; of directions of length 1 the squared length of all that is added."""
        return self.plain().pow(2).sum(-1)

    @property
    def predicted(self) -> Float[Tensor, "*prompt"]:
        """Shift of the readout to first order, ``h · u``."""
        return (self.plain() * self.gains).sum(-1)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        if self.ndim == 1:
            return (
                f"Schedule: {counted(self.shape[0], 'layer')}, predicted shift {float(self.predicted):.4g}, "
                f"energy {float(self.energy):.4g} (sum of squared amplitudes)"
            )
        return (
            f"Schedule: {self.shape[0]} prompts × {self.shape[1]} layers, median energy "
            f"{float(self.energy.median()):.4g} (sum of squared amplitudes)"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer: amplitude, gain, share of the energy (means over prompts)."""
        values, gains = self.plain(), self.gains.expand_as(self.plain())
        share = values.pow(2) / values.pow(2).sum(-1, keepdim=True)
        rows = [x.reshape(-1, x.shape[-1]).mean(0).cpu().numpy() for x in (values, gains, share)]
        frame = pd.DataFrame(dict(zip(("amplitude", "gain", "energy_share"), rows, strict=True)))
        return frame.rename_axis("layer")


def min_energy(gains: Gains, target: float | Tensor) -> Schedule:
    """Smallest schedule that moves a linear readout by ``target``: ``u* = Δy h / ‖h‖²``.

    Its energy ``‖u*‖² = Δy² / ‖h‖²`` is the least of all schedules with ``h · u = Δy``.

    Args:
        gains: h [layer]; or [prompt, layer] for one schedule a prompt; or a GainProfile or Surrogate,
            whose mean over prompts is taken.
        target: Δy in units of the readout; one number, or one for each prompt.

    Returns:
        Schedule of the shape of ``gains``.

    Raises:
        InvalidArgumentError: all gains of a row are 0, so nothing moves the readout.

    Source: Nettasinghe & Joseph 2026, arXiv 2603.12541 (minimum-energy schedule).

    Example:
        >>> float(min_energy(torch.tensor([3.0, 4.0]), 5.0).energy)
        1.0
    """
    h = gains_of(gains)
    goal = _numbers("target", target).to(h.device)
    if goal.ndim > 1 or (goal.ndim == 1 and (h.ndim != 2 or len(goal) != len(h))):
        raise InvalidArgumentError(
            f"target must be one number, or one for each row of gains {tuple(h.shape)}, got shape "
            f"{tuple(goal.shape)}; for several readouts at once use joint_min_energy"
        )
    power = h.pow(2).sum(-1, keepdim=True)
    if not bool((power > 0).all()):
        raise InvalidArgumentError(
            "gains must not all be 0: no schedule over these layers moves the readout; check directions"
        )
    return Schedule(goal[..., None] * h / power, target=goal, gains=h)


def joint_min_energy(
    gains: Float[Tensor, "readout input"],
    targets: Sequence[float] | Float[Tensor, " readout"],
    *,
    gram: Float[Tensor, "input input"] | None = None,
) -> Float[Tensor, " input"]:
    """Smallest inputs that move several readouts to their targets at once.

    ``minimise uᵀ M u subject to G u = Δy``: ``u* = M⁻¹ Gᵀ (G M⁻¹ Gᵀ)⁺ Δy``. A target of 0 holds a
    readout still.

    Args:
        gains: G, one row a readout, one column an input (layer, or concept and layer).
        targets: Δy, one for each readout.
        gram: M, inner products of the injected vectors; the identity by default.

    Returns:
        u [input], float64.

    Raises:
        InvalidArgumentError: the targets contradict each other (G has dependent rows).

    Source: Nettasinghe & Joseph 2026, arXiv 2603.12541 for one readout
        (minimum-energy schedule).

    Example:
        >>> joint_min_energy(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), [2.0, 0.0]).tolist()
        [1.0, 1.0]
    """
    g = to_compute(require_float_tensor("gains", gains, ndim=2))
    goal = _numbers("targets", targets).to(g.device)
    if goal.shape != g.shape[:1]:
        raise InvalidArgumentError(
            f"targets must have one entry for each of {len(g)} readouts, got shape {tuple(goal.shape)}"
        )
    weighted = g.T
    if gram is not None:
        inner = to_compute(require_float_tensor("gram", gram, ndim=2)).to(g.device)
        if inner.shape != (g.shape[1], g.shape[1]) or torch.linalg.cholesky_ex(inner).info:
            raise InvalidArgumentError(
                f"gram must be a positive definite matrix [{g.shape[1]}, {g.shape[1]}], got shape "
                f"{tuple(inner.shape)}; pass V @ V.T of independent injected vectors V"
            )
        weighted = torch.linalg.solve(inner, g.T)
    u: Tensor = weighted @ (torch.linalg.pinv(g @ weighted, hermitian=True) @ goal)
    miss = float((g @ u - goal).norm())
    if miss > 1e-6 * float(goal.norm()):
        raise InvalidArgumentError(
            f"targets cannot all be met (best miss {miss:.3g}): two readouts depend on the inputs in the "
            "same way; drop one, or give them targets that agree"
        )
    return u


def _numbers(name: str, value: Any) -> Tensor:
    try:
        found = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise InvalidArgumentError(
            f"{name} must be a number or a tensor of numbers, got {type(value).__name__} ({error}); pass "
            "e.g. 0.5"
        ) from error
    return to_compute(require_float_tensor(name, found))


def gains_of(gains: Gains) -> Tensor:
    """Return gains as a float64 tensor [layer] or [prompt, layer]; profiles and surrogates by their mean."""
    if isinstance(gains, (GainProfile, Surrogate)):
        return gains.mean
    values = to_compute(require_float_tensor("gains", gains))
    if values.ndim not in (1, 2) or not values.numel():
        raise InvalidArgumentError(
            f"gains must have shape [layer] or [prompt, layer], got {tuple(values.shape)}; reshape"
        )
    return values


def heuristic_schedules(n_layers: int) -> dict[str, Float[Tensor, " layer"]]:
    """Schedules that ask for no gains, as unit vectors over layers.

    ``last layer`` (the input of the last block), ``uniform``, ``middle`` and ``early`` (the middle and
    the first third of the layers, equally).

    Example:
        >>> list(heuristic_schedules(6)["middle"].nonzero()[:, 0].tolist())
        [2, 3]
    """
    third = max(1, round(n_layers / 3))
    start = (n_layers - third) // 2
    spans = {
        "last layer": slice(n_layers - 1, n_layers),
        "uniform": slice(0, n_layers),
        "middle": slice(start, start + third),
        "early": slice(0, third),
    }
    found = {}
    for name, span in spans.items():
        shape = torch.zeros(n_layers, dtype=torch.float64)
        shape[span] = 1.0
        found[name] = shape / shape.norm()
    return found


def unit_shape(name: str, shape: Tensor, n_layers: int) -> Tensor:
    """Accept a schedule's shape [layer] or [prompt, layer]; scaled to energy 1 a row."""
    shape = to_compute(require_float_tensor(name, shape))
    if shape.ndim not in (1, 2) or shape.shape[-1] != n_layers:
        raise InvalidArgumentError(
            f"{name} must have one amplitude for each of {n_layers} layers, got {tuple(shape.shape)}"
        )
    size = shape.norm(dim=-1, keepdim=True)
    if not bool((size > 0).all()):
        raise InvalidArgumentError(f"{name} must not be all zeros; leave it out")
    unit: Tensor = shape / size
    return unit


def require_target(target: float) -> float:
    """Accept a shift that is not 0."""
    target = require_float("target", target)
    if target == 0:
        raise InvalidArgumentError("target must not be 0: nothing has to be added for that")
    return target
