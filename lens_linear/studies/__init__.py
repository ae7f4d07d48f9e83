"""What reproduces the papers' tables: pretraining studies, downstream scores, published beside measured."""

from lens_linear._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
