"""Tensors in, frozen results out: least squares, streaming moments, spectra, Krylov bases."""

from lens_linear.linalg.least_squares import LinearFit, fit_linear, r_squared, reduced_rank
from lens_linear.linalg.moments import Moments
from lens_linear.linalg.precision import default_rtol, gram, to_compute

__all__ = [
    "LinearFit",
    "Moments",
    "default_rtol",
    "fit_linear",
    "gram",
    "r_squared",
    "reduced_rank",
    "to_compute",
]
