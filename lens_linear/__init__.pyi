from . import circuits as circuits
from . import constructions as constructions
from . import dynamics as dynamics
from . import errors as errors
from . import explorer as explorer
from . import extensions as extensions
from . import linalg as linalg
from . import linearity as linearity
from . import models as models
from . import plots as plots
from . import reports as reports
from . import stats as stats
from . import studies as studies
from . import teaching as teaching
from . import text as text
from . import training as training
from .circuits.attention.attribution import qk_attribution as qk_attribution
from .circuits.heads.composition import composition_scores as composition_scores
from .circuits.heads.head_circuit import head as head
from .circuits.induction.scores import induction_scores as induction_scores
from .circuits.patching.direct import direct_logit_attribution as direct_logit_attribution
from .circuits.patching.patch import patch as patch
from .circuits.patching.path_patch import cut_path as cut_path
from .circuits.patching.path_patch import path_patch as path_patch
from .circuits.paths.attention_only import AttentionOnly as AttentionOnly
from .constructions.least_squares.ols import OLSAttention as OLSAttention
from .constructions.least_squares.ols_training import train_ols_attention as train_ols_attention
from .constructions.memory.capacity import memory_capacity as memory_capacity
from .dynamics.gains.directions import concept_directions as concept_directions
from .dynamics.gains.gain_profile import gain_profile as gain_profile
from .dynamics.steering.min_energy import min_energy as min_energy
from .dynamics.steering.schedules import evaluate_schedules as evaluate_schedules
from .dynamics.surrogates.surrogate import fit_surrogate as fit_surrogate
from .explorer.explorer import explore as explore
from .linalg.moments import Moments as Moments
from .linalg.procrustes import procrustes_similarity as procrustes_similarity
from .linearity.lens.fit import fit_lens as fit_lens
from .linearity.measure.bilinear import bilinear_probe as bilinear_probe
from .linearity.measure.compare import compare as compare
from .linearity.measure.layer_map import layer_map as layer_map
from .linearity.measure.profile import linearity_profile as linearity_profile
from .linearity.replace.curve import replacement_curve as replacement_curve
from .linearity.replace.replacement import linearize as linearize
from .models.open.bundled import available_models as available_models
from .models.open.load import load as load
from .models.open.save import save_model as save_model
from .models.open.toy import toy_model as toy_model
from .models.tokenizer import tokenize as tokenize
from .models.tokenizer import tokenize_prompts as tokenize_prompts
from .reports.build import report as report
from .stats.evaluation import evaluation_tokens as evaluation_tokens
from .teaching.checker import check as check
from .text.concepts import Concept as Concept
from .text.concepts import load_concept as load_concept
from .text.synthetic import SyntheticLanguage as SyntheticLanguage
from .text.task import Task as Task
from .training.loop import train as train
from .training.regularizer import CosineRegularizer as CosineRegularizer

__version__: str

__all__ = [
    "AttentionOnly",
    "Concept",
    "CosineRegularizer",
    "Moments",
    "OLSAttention",
    "SyntheticLanguage",
    "Task",
    "available_models",
    "bilinear_probe",
    "check",
    "circuits",
    "compare",
    "composition_scores",
    "concept_directions",
    "constructions",
    "cut_path",
    "direct_logit_attribution",
    "dynamics",
    "errors",
    "evaluate_schedules",
    "evaluation_tokens",
    "explore",
    "explorer",
    "extensions",
    "fit_lens",
    "fit_surrogate",
    "gain_profile",
    "head",
    "induction_scores",
    "layer_map",
    "linalg",
    "linearity",
    "linearity_profile",
    "linearize",
    "load",
    "load_concept",
    "memory_capacity",
    "min_energy",
    "models",
    "patch",
    "path_patch",
    "plots",
    "procrustes_similarity",
    "qk_attribution",
    "replacement_curve",
    "report",
    "reports",
    "save_model",
    "stats",
    "studies",
    "teaching",
    "text",
    "tokenize",
    "tokenize_prompts",
    "toy_model",
    "train",
    "train_ols_attention",
    "training",
]
