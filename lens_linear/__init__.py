"""Exact circuits and honest linearity for TransformerLens 4.

``import lens_linear as ll`` is light: nothing heavy is imported until a name is used (PEP 562).

>>> import lens_linear as ll
>>> ll.__version__
'0.1.0'
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that defines it. Submodule rooms are reachable as attributes too.
_WHERE = {
    "AttentionOnly": "circuits.attention_only",
    "Concept": "text.concepts",
    "CosineRegularizer": "training.regularizer",
    "Moments": "linalg.moments",
    "OLSAttention": "constructions.ols",
    "SyntheticLanguage": "text.synthetic",
    "available_models": "models.bundled",
    "bilinear_probe": "linearity.bilinear",
    "check": "teaching.check",
    "composition_scores": "circuits.composition",
    "concept_directions": "dynamics.directions",
    "evaluate_schedules": "dynamics.schedules",
    "evaluation_tokens": "stats.evaluation",
    "fit_surrogate": "dynamics.surrogates",
    "gain_profile": "dynamics.gains",
    "induction_scores": "circuits.induction",
    "layer_map": "linearity.layer_map",
    "linearity_profile": "linearity.profile",
    "linearize": "linearity.replace",
    "load": "models.load",
    "load_concept": "text.concepts",
    "memory_capacity": "constructions.memory",
    "min_energy": "dynamics.steering",
    "procrustes_similarity": "linalg.procrustes",
    "qk_attribution": "circuits.attribution",
    "replacement_curve": "linearity.curve",
    "report": "reports.build",
    "tokenize": "models.tokenize",
    "tokenize_prompts": "models.tokenize",
    "toy_model": "models.toy",
    "train": "training.loop",
    "train_ols_attention": "constructions.ols_training",
}
_ROOMS = (
    "circuits",
    "constructions",
    "dynamics",
    "errors",
    "linalg",
    "linearity",
    "models",
    "plots",
    "stats",
    "teaching",
    "text",
    "training",
)

__all__ = sorted([*_WHERE, *_ROOMS, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; see dir({__name__})")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
