"""Tensors in, frozen results out: least squares, streaming moments, spectra, Krylov bases."""

from lens_linear.linalg.balanced import BalancedReduction, balanced_truncation
from lens_linear.linalg.krylov import KrylovBasis, complete_basis, krylov_basis
from lens_linear.linalg.least_squares import LinearFit, fit_linear, r_squared, reduced_rank
from lens_linear.linalg.moments import Moments
from lens_linear.linalg.precision import default_rtol, gram, scatter_rtol, to_compute
from lens_linear.linalg.procrustes import (
    OrthogonalProcrustes,
    orthogonal_procrustes,
    procrustes_similarity,
)
from lens_linear.linalg.spectra import (
    IntrinsicDimension,
    Spectrum,
    anisotropy,
    intrinsic_dimension,
    spectrum,
)

__all__ = [
    "BalancedReduction",
    "IntrinsicDimension",
    "KrylovBasis",
    "LinearFit",
    "Moments",
    "OrthogonalProcrustes",
    "Spectrum",
    "anisotropy",
    "balanced_truncation",
    "complete_basis",
    "default_rtol",
    "fit_linear",
    "gram",
    "intrinsic_dimension",
    "krylov_basis",
    "orthogonal_procrustes",
    "procrustes_similarity",
    "r_squared",
    "reduced_rank",
    "scatter_rtol",
    "spectrum",
    "to_compute",
]
