"""Open a model, read it, run it, edit it: the only room that knows a bridge, a config or a hook name.

``open/`` loads, ``describe/`` reads shape and weights, ``frozen/`` runs with a part held fixed; ``hooks``,
``capture``, ``native`` and ``tokenizer`` serve all three.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
