"""The explorer: a model's heads, texts, paths and layers to poke at, in one offline page or a notebook."""

from lens_linear._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
