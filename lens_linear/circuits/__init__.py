"""Circuits of attention: bigrams, heads, skip-trigrams, composition, exact paths, induction.

After Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*. Attention-only models open up
whole (:class:`AttentionOnly`); heads of any model can be read (:func:`head_circuit`,
:func:`composition_scores`, :func:`induction_scores`, :func:`qk_attribution`). Names are loaded when they are
used.
"""

from lens_linear._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
