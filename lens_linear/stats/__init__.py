"""Model and text in, numbers out, once: moments of every site, n-gram counts, splits, evaluation tokens."""

from lens_linear._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
