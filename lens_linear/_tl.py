"""The one import of TransformerLens outside ``models/``, so that a release of it breaks one folder.

Importing this file imports ``transformer_lens`` (about seven seconds); nothing that
``import lens_linear`` touches may import it.
"""

from transformer_lens import FactoredMatrix
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator

__all__ = [
    "FactoredMatrix",
    "HookPoint",
    "HookedRootModule",
    "TransformerBridge",
    "derive_generator",
]
