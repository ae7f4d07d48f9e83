"""The explorer: a model's heads, texts, paths and layers to poke at, in one offline page or a notebook."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
