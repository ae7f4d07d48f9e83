"""Circuits of attention: bigrams, heads, skip-trigrams, composition, exact paths, induction.

After Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*. Attention-only models open up
whole (:class:`AttentionOnly`); heads of any model can be read (:func:`head_circuit`,
:func:`composition_scores`, :func:`induction_scores`, :func:`qk_attribution`). Names are loaded when they are
used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
