"""Figures: a result in, a ``plotly.graph_objects.Figure`` out; nothing is computed and nothing shown.

One file a room; every figure has the look of :mod:`lens_linear.plots.style`. Names are loaded when
they are used, so that ``import lens_linear.plots`` is light.
"""

from __future__ import annotations

import importlib
from typing import Any

# Figure function -> the module of this room that defines it.
_WHERE = {
    "ablation_map": "circuits_gain",
    "adam_convergence": "linearity_probe",
    "agreement_by_order": "dynamics_agreement",
    "agreement_by_size": "dynamics_agreement",
    "attention_heads": "attention",
    "attention_pattern": "attention",
    "bigram_comparison": "circuits_maps",
    "bigram_table": "circuits_tables",
    "bilinear_gain": "linearity_probe",
    "bit_error": "constructions_memory",
    "circuit_graph": "circuits_graph",
    "circuit_overview": "circuits_maps",
    "circuit_window": "circuits_maps",
    "composition_map": "circuits",
    "concept_separation": "dynamics",
    "covariance_shift": "constructions",
    "diagonal_accuracy": "circuits",
    "ffn_compression": "linearity_replace",
    "gain_profiles": "dynamics",
    "hat_matrix": "constructions",
    "head_memory": "constructions_memory",
    "head_scores": "circuits",
    "in_context_loss": "circuits_gain",
    "layer_geometry": "linearity",
    "layer_map": "linearity",
    "linearity_profile": "linearity",
    "mechanism_table": "circuits_gain",
    "memory_capacity": "constructions_memory",
    "memory_swap": "constructions",
    "ols_convergence": "constructions",
    "path_ablations": "circuits_paths",
    "path_importance": "circuits",
    "path_logits": "circuits_paths",
    "positional_qk": "attention",
    "profile_comparison": "linearity",
    "qk_attribution": "circuits_paths",
    "replacement_curves": "linearity_replace",
    "retrieval": "constructions_memory",
    "run_table": "linearity_replace",
    "schedule_energies": "dynamics_steering",
    "schedule_shapes": "dynamics_steering",
    "shift_cost": "constructions",
    "skip_trigram_bugs": "circuits_tables",
    "skip_trigram_table": "circuits_tables",
    "steered_text": "dynamics_steering",
    "steering_cost": "dynamics_steering",
    "step_size": "dynamics",
    "study_measures": "linearity_study",
    "study_profiles": "linearity_study",
    "svd_directions": "circuits_tables",
    "top_pairs": "circuits_tables",
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
