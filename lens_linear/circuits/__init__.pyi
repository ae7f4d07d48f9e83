from .attention.attribution import QKAttribution as QKAttribution
from .attention.attribution import qk_attribution as qk_attribution
from .attention.patterns import AttentionPattern as AttentionPattern
from .attention.patterns import attention_pattern as attention_pattern
from .heads.circuit_window import CircuitMap as CircuitMap
from .heads.circuit_window import circuit_map as circuit_map
from .heads.circuit_window import map_of as map_of
from .heads.composition import KINDS as KINDS
from .heads.composition import CompositionScores as CompositionScores
from .heads.composition import Kind as Kind
from .heads.composition import composition_scores as composition_scores
from .heads.factored import DiagonalAccuracy as DiagonalAccuracy
from .heads.factored import TopPairs as TopPairs
from .heads.factored import copying_score as copying_score
from .heads.factored import diagonal_accuracy as diagonal_accuracy
from .heads.factored import sum_of as sum_of
from .heads.factored import top_pairs as top_pairs
from .heads.head_circuit import head as head
from .heads.head_circuit import head_circuit as head_circuit
from .heads.head_circuit import summed_ov as summed_ov
from .heads.head_circuit import summed_qk as summed_qk
from .heads.positional import PositionalQK as PositionalQK
from .heads.svd import CircuitSVD as CircuitSVD
from .heads.svd import svd_readout as svd_readout
from .heads.virtual import composed_qk as composed_qk
from .heads.virtual import virtual_head as virtual_head
from .induction.ablation import AblationScores as AblationScores
from .induction.ablation import ablate_heads as ablate_heads
from .induction.ablation import ablation_scores as ablation_scores
from .induction.in_context import InContextLoss as InContextLoss
from .induction.in_context import in_context_loss as in_context_loss
from .induction.mechanism import InductionMechanism as InductionMechanism
from .induction.mechanism import verify_induction as verify_induction
from .induction.scores import InductionScores as InductionScores
from .induction.scores import induction_scores as induction_scores
from .induction.verdicts import VERDICTS as VERDICTS
from .patching.direct import DirectLogitAttribution as DirectLogitAttribution
from .patching.direct import direct_logit_attribution as direct_logit_attribution
from .patching.patch import PatchEffects as PatchEffects
from .patching.patch import patch as patch
from .patching.path_patch import PathPatchEffects as PathPatchEffects
from .patching.path_patch import cut_path as cut_path
from .patching.path_patch import path_patch as path_patch
from .paths.attention_only import AttentionOnly as AttentionOnly
from .paths.bigrams import BigramComparison as BigramComparison
from .paths.bigrams import BigramTable as BigramTable
from .paths.bigrams import NextTokens as NextTokens
from .paths.expansion import PathAblation as PathAblation
from .paths.expansion import PathTable as PathTable
from .paths.importance import PathImportance as PathImportance
from .paths.skip_trigrams import SkipTrigrams as SkipTrigrams
from .paths.skip_trigrams import all_skip_trigrams as all_skip_trigrams
from .paths.skip_trigrams import skip_trigrams as skip_trigrams
from .paths.trigram_bugs import SkipTrigramBugs as SkipTrigramBugs
from .paths.trigram_bugs import skip_trigram_bugs as skip_trigram_bugs

__all__ = [
    "KINDS",
    "VERDICTS",
    "AblationScores",
    "AttentionOnly",
    "AttentionPattern",
    "BigramComparison",
    "BigramTable",
    "CircuitMap",
    "CircuitSVD",
    "CompositionScores",
    "DiagonalAccuracy",
    "DirectLogitAttribution",
    "InContextLoss",
    "InductionMechanism",
    "InductionScores",
    "Kind",
    "NextTokens",
    "PatchEffects",
    "PathAblation",
    "PathImportance",
    "PathPatchEffects",
    "PathTable",
    "PositionalQK",
    "QKAttribution",
    "SkipTrigramBugs",
    "SkipTrigrams",
    "TopPairs",
    "ablate_heads",
    "ablation_scores",
    "all_skip_trigrams",
    "attention_pattern",
    "circuit_map",
    "composed_qk",
    "composition_scores",
    "copying_score",
    "cut_path",
    "diagonal_accuracy",
    "direct_logit_attribution",
    "head",
    "head_circuit",
    "in_context_loss",
    "induction_scores",
    "map_of",
    "patch",
    "path_patch",
    "qk_attribution",
    "skip_trigram_bugs",
    "skip_trigrams",
    "sum_of",
    "summed_ov",
    "summed_qk",
    "svd_readout",
    "top_pairs",
    "verify_induction",
    "virtual_head",
]
