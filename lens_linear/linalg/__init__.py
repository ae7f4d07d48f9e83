"""Tensors in, frozen results out: least squares, streaming moments, spectra, Krylov bases."""

from lens_linear._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
