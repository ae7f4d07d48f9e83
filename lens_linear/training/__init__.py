"""Recipes, data mixtures and the loop that trained the bundled models."""

from lens_linear._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
