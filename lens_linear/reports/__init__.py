"""The written page: one offline HTML file about a model, and the tour of the bundled ones."""

from lens_linear._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
