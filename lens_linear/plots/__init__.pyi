from . import style as style
from .circuits import ablation_map as ablation_map
from .circuits import circuit_graph as circuit_graph
from .circuits import composition_map as composition_map
from .circuits import diagonal_accuracy as diagonal_accuracy
from .circuits import head_scores as head_scores
from .circuits import in_context_loss as in_context_loss
from .circuits import mechanism_table as mechanism_table
from .constructions import adam_convergence as adam_convergence
from .constructions import covariance_shift as covariance_shift
from .constructions import hat_matrix as hat_matrix
from .constructions import memory_swap as memory_swap
from .constructions import ols_convergence as ols_convergence
from .constructions import shift_cost as shift_cost
from .dials import attention_dial as attention_dial
from .dials import head_dial as head_dial
from .dials import trained_heads as trained_heads
from .dynamics import agreement_by_order as agreement_by_order
from .dynamics import agreement_by_size as agreement_by_size
from .dynamics import concept_separation as concept_separation
from .dynamics import gain_profiles as gain_profiles
from .dynamics import schedule_energies as schedule_energies
from .dynamics import schedule_shapes as schedule_shapes
from .dynamics import steered_text as steered_text
from .dynamics import steering_cost as steering_cost
from .dynamics import step_size as step_size
from .linearity import bilinear_gain as bilinear_gain
from .linearity import ffn_compression as ffn_compression
from .linearity import layer_geometry as layer_geometry
from .linearity import layer_map as layer_map
from .linearity import linearity_profile as linearity_profile
from .linearity import profile_comparison as profile_comparison
from .linearity import profile_difference as profile_difference
from .linearity import replacement_curves as replacement_curves
from .linearity import run_table as run_table
from .memories import bit_error as bit_error
from .memories import head_memory as head_memory
from .memories import memory_capacity as memory_capacity
from .memories import retrieval as retrieval
from .overview import overview as overview
from .paths import direct_logit_attribution as direct_logit_attribution
from .paths import lens_grid as lens_grid
from .paths import lens_profile as lens_profile
from .paths import patching as patching
from .paths import path_ablations as path_ablations
from .paths import path_importance as path_importance
from .paths import path_logits as path_logits
from .paths import qk_attribution as qk_attribution
from .pretraining import study_measures as study_measures
from .pretraining import study_profiles as study_profiles
from .style import GREY as GREY
from .style import OKABE_ITO as OKABE_ITO
from .style import colour as colour
from .style import escape as escape
from .style import matrix as matrix
from .style import styled as styled
from .tokens import attention_heads as attention_heads
from .tokens import attention_pattern as attention_pattern
from .tokens import bigram_comparison as bigram_comparison
from .tokens import bigram_table as bigram_table
from .tokens import circuit_overview as circuit_overview
from .tokens import circuit_window as circuit_window
from .tokens import positional_qk as positional_qk
from .tokens import skip_trigram_bugs as skip_trigram_bugs
from .tokens import skip_trigram_table as skip_trigram_table
from .tokens import svd_directions as svd_directions
from .tokens import top_pairs as top_pairs

__all__ = [
    "GREY",
    "OKABE_ITO",
    "ablation_map",
    "adam_convergence",
    "agreement_by_order",
    "agreement_by_size",
    "attention_dial",
    "attention_heads",
    "attention_pattern",
    "bigram_comparison",
    "bigram_table",
    "bilinear_gain",
    "bit_error",
    "circuit_graph",
    "circuit_overview",
    "circuit_window",
    "colour",
    "composition_map",
    "concept_separation",
    "covariance_shift",
    "diagonal_accuracy",
    "direct_logit_attribution",
    "escape",
    "ffn_compression",
    "gain_profiles",
    "hat_matrix",
    "head_dial",
    "head_memory",
    "head_scores",
    "in_context_loss",
    "layer_geometry",
    "layer_map",
    "lens_grid",
    "lens_profile",
    "linearity_profile",
    "matrix",
    "mechanism_table",
    "memory_capacity",
    "memory_swap",
    "ols_convergence",
    "overview",
    "patching",
    "path_ablations",
    "path_importance",
    "path_logits",
    "positional_qk",
    "profile_comparison",
    "profile_difference",
    "qk_attribution",
    "replacement_curves",
    "retrieval",
    "run_table",
    "schedule_energies",
    "schedule_shapes",
    "shift_cost",
    "skip_trigram_bugs",
    "skip_trigram_table",
    "steered_text",
    "steering_cost",
    "step_size",
    "study_measures",
    "study_profiles",
    "style",
    "styled",
    "svd_directions",
    "top_pairs",
    "trained_heads",
]
