"""Open a model, read it, run it, edit it: the only room that knows a bridge, a config or a hook name.

``open/`` loads, ``describe/`` reads shape and weights, ``frozen/`` runs with a part held fixed; ``hooks``,
``capture``, ``native`` and ``tokenizer`` serve all three.
"""

from lens_linear._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
