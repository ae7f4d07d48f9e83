"""Exact circuits and honest linearity for TransformerLens 4.

``import lens_linear as ll`` is light: nothing heavy is imported until a name is used (SPEC 1).

>>> import lens_linear as ll
>>> ll.__version__
'0.1.0'
"""

from lens_linear._lazy import attach

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach(__name__, __file__)
