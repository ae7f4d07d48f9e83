"""The one import of TransformerLens' model-free helpers, so that a release of it breaks one file.

Importing this file imports ``transformer_lens`` (about seven seconds); nothing on floor 0 or 1 that
``import lens_linear`` touches may import it.
"""

from transformer_lens import FactoredMatrix
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

__all__ = ["FactoredMatrix", "HookPoint", "HookedRootModule"]
