"""How linear a model is, what replacing its layers by affine maps costs, and what such maps miss.

* :func:`linearity_profile`, :func:`layer_map`, :func:`layer_geometry`, :func:`compare_profiles`: measure.
* :func:`linearize`, :func:`fit_linearization`, :func:`save_linearized`, :func:`load_linearized`,
  :func:`replacement_curve`, :func:`run_table`, :func:`ffn_compression`: replace.
* :func:`bilinear_probe`, :func:`adam_baseline`: look at what an affine fit misses, and at how it is missed.
* :func:`load_study`, :func:`run_study`, :func:`save_tables`, :func:`load_tables`,
  :func:`downstream_scores`: pretraining.
* :func:`published_beside_measured`: published numbers beside ours.
"""

from lens_linear.linearity.adam import AdamBaseline, adam_baseline
from lens_linear.linearity.bilinear import BilinearProbe, bilinear_probe
from lens_linear.linearity.compare import ProfileComparison, compare_profiles
from lens_linear.linearity.compression import CompressionTable, ffn_compression
from lens_linear.linearity.curve import ReplacementCurve, replacement_curve
from lens_linear.linearity.downstream import DownstreamScores, downstream_scores
from lens_linear.linearity.geometry import LayerGeometry, layer_geometry
from lens_linear.linearity.layer_map import LayerMap, layer_map
from lens_linear.linearity.maps import AffineMap, Linearization
from lens_linear.linearity.profile import LinearityProfile, linearity_profile
from lens_linear.linearity.published import PublishedTable, published_beside_measured
from lens_linear.linearity.replace import fit_linearization, linearize
from lens_linear.linearity.runs import RunTable, run_table
from lens_linear.linearity.saved import LinearizedModel, load_linearized, save_linearized
from lens_linear.linearity.study import Study, StudyResult, load_study, run_study
from lens_linear.linearity.study_tables import load_tables, save_tables

__all__ = [
    "AdamBaseline",
    "AffineMap",
    "BilinearProbe",
    "CompressionTable",
    "DownstreamScores",
    "LayerGeometry",
    "LayerMap",
    "LinearityProfile",
    "Linearization",
    "LinearizedModel",
    "ProfileComparison",
    "PublishedTable",
    "ReplacementCurve",
    "RunTable",
    "Study",
    "StudyResult",
    "adam_baseline",
    "bilinear_probe",
    "compare_profiles",
    "downstream_scores",
    "ffn_compression",
    "fit_linearization",
    "layer_geometry",
    "layer_map",
    "linearity_profile",
    "linearize",
    "load_linearized",
    "load_study",
    "load_tables",
    "published_beside_measured",
    "replacement_curve",
    "run_study",
    "run_table",
    "save_linearized",
    "save_tables",
]
