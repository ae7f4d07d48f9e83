from .balanced import BalancedReduction as BalancedReduction
from .balanced import balanced_truncation as balanced_truncation
from .distributed import all_reduce_sum as all_reduce_sum
from .distributed import process as process
from .krylov import KrylovBasis as KrylovBasis
from .krylov import complete_basis as complete_basis
from .krylov import krylov_basis as krylov_basis
from .least_squares import LinearFit as LinearFit
from .least_squares import fit_linear as fit_linear
from .least_squares import r_squared as r_squared
from .moments import Moments as Moments
from .moments import reduced_rank as reduced_rank
from .precision import compute_device as compute_device
from .precision import gram as gram
from .precision import row_error as row_error
from .precision import to_compute as to_compute
from .procrustes import OrthogonalProcrustes as OrthogonalProcrustes
from .procrustes import orthogonal_procrustes as orthogonal_procrustes
from .procrustes import procrustes_similarity as procrustes_similarity
from .spectra import Coinciding as Coinciding
from .spectra import IntrinsicDimension as IntrinsicDimension
from .spectra import Spectrum as Spectrum
from .spectra import anisotropy as anisotropy
from .spectra import intrinsic_dimension as intrinsic_dimension
from .spectra import spectrum as spectrum

__all__ = [
    "BalancedReduction",
    "Coinciding",
    "IntrinsicDimension",
    "KrylovBasis",
    "LinearFit",
    "Moments",
    "OrthogonalProcrustes",
    "Spectrum",
    "all_reduce_sum",
    "anisotropy",
    "balanced_truncation",
    "complete_basis",
    "compute_device",
    "fit_linear",
    "gram",
    "intrinsic_dimension",
    "krylov_basis",
    "orthogonal_procrustes",
    "process",
    "procrustes_similarity",
    "r_squared",
    "reduced_rank",
    "row_error",
    "spectrum",
    "to_compute",
]
