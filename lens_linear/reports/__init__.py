"""The written page: one offline HTML file about a model, and the tour of the bundled ones."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
