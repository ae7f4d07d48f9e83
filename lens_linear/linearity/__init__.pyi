from .lens.fit import fit_lens as fit_lens
from .lens.lens import Lens as Lens
from .lens.lens import LensReading as LensReading
from .lens.lens import LensScore as LensScore
from .measure.adam import AdamBaseline as AdamBaseline
from .measure.adam import adam_baseline as adam_baseline
from .measure.adam import adam_on_rows as adam_on_rows
from .measure.bilinear import BilinearProbe as BilinearProbe
from .measure.bilinear import bilinear_on_rows as bilinear_on_rows
from .measure.bilinear import bilinear_probe as bilinear_probe
from .measure.compare import ProfileComparison as ProfileComparison
from .measure.compare import ProfileDifference as ProfileDifference
from .measure.compare import compare_profiles as compare_profiles
from .measure.geometry import LayerGeometry as LayerGeometry
from .measure.geometry import layer_geometry as layer_geometry
from .measure.layer_map import LayerMap as LayerMap
from .measure.layer_map import layer_map as layer_map
from .measure.profile import linearity_profile as linearity_profile
from .measure.profile_result import LinearityProfile as LinearityProfile
from .replace.affine_map import AffineMap as AffineMap
from .replace.affine_map import Linearization as Linearization
from .replace.compression import CompressionTable as CompressionTable
from .replace.compression import ffn_compression as ffn_compression
from .replace.curve import ReplacementCurve as ReplacementCurve
from .replace.curve import replacement_curve as replacement_curve
from .replace.replacement import fit_linearization as fit_linearization
from .replace.replacement import linearize as linearize
from .replace.runs import RunTable as RunTable
from .replace.runs import run_table as run_table
from .replace.saved import LinearizedModel as LinearizedModel
from .replace.saved import load_linearized as load_linearized
from .replace.saved import save_linearized as save_linearized

__all__ = [
    "AdamBaseline",
    "AffineMap",
    "BilinearProbe",
    "CompressionTable",
    "LayerGeometry",
    "LayerMap",
    "Lens",
    "LensReading",
    "LensScore",
    "LinearityProfile",
    "Linearization",
    "LinearizedModel",
    "ProfileComparison",
    "ProfileDifference",
    "ReplacementCurve",
    "RunTable",
    "adam_baseline",
    "adam_on_rows",
    "bilinear_on_rows",
    "bilinear_probe",
    "compare_profiles",
    "ffn_compression",
    "fit_lens",
    "fit_linearization",
    "layer_geometry",
    "layer_map",
    "linearity_profile",
    "linearize",
    "load_linearized",
    "replacement_curve",
    "run_table",
    "save_linearized",
]
