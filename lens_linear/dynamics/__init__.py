"""Depth dynamics: depth as time, the last token's residual stream as the state.

After Nettasinghe & Joseph 2026, arXiv 2603.12541. Where a concept points at each layer
(:func:`concept_directions`), how far the output moves when it is pushed there (:func:`gain_profile`),
how small a linear system predicts that (:func:`fit_surrogate`, :func:`agreement_table`), and the
cheapest way to steer (:func:`min_energy`, :func:`refined_min_energy`, :func:`evaluate_schedules`,
:func:`steer_concepts`) with what it does to text (:func:`steer_text`, :func:`steering_cost`). Names
are loaded when they are used.

    directions = concept_directions(model, split.concept)
    surrogate = fit_surrogate(model, split.operating.texts, directions, basis="balanced", order=8)
    exact = gain_profile(model, split.evaluation.texts, directions)
    surrogate.predict(model, split.evaluation.texts).agreement(exact)
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> the module of this room that defines it.
_WHERE = {
    "Agreement": "agreement",
    "AgreementTable": "scaling",
    "ConceptDirections": "directions",
    "GainProfile": "gains",
    "JointSteering": "joint",
    "Linearization": "linearization",
    "Schedule": "steering",
    "ScheduleComparison": "schedules",
    "SteeredText": "generation",
    "StepSizeTable": "step_size",
    "Surrogate": "surrogates",
    "agreement_table": "scaling",
    "as_prompts": "prompts",
    "compare_gains": "agreement",
    "concept_directions": "directions",
    "evaluate_schedules": "schedules",
    "fit_surrogate": "surrogates",
    "gain_profile": "gains",
    "joint_min_energy": "steering",
    "last_states": "directions",
    "linearize": "linearization",
    "min_energy": "steering",
    "random_directions": "directions",
    "refined_min_energy": "refinement",
    "steer_concepts": "joint",
    "steer_text": "generation",
    "steering_cost": "generation",
    "step_size_table": "step_size",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; see dir({__name__})")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
