"""Tensors in, frozen results out: least squares, streaming moments, spectra, Krylov bases."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
