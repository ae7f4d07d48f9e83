"""Networks whose weights are written down: least squares, associative memory, induction.

* :class:`OLSAttention`, :class:`HatMatrix`: one linear-attention layer that is least squares.
* :func:`train_ols_attention`, :func:`regression_data`: gradient descent reaches it.
* :func:`swap_memories`, :func:`covariance_shift`: slow memory in weights, fast memory in context.
* :class:`NewtonSchulzAttention`, :func:`gradient_step_attention`: the inverse in context, and the
  one-step baseline.
* :func:`hopfield_energy`, :func:`hopfield_update`: energies, and the attention each one amounts to.
* :func:`memory_capacity`, :func:`retrieval_curve`: how many patterns they hold.
* :func:`attention_head_memory`, :func:`trained_head_memory`: where a head of a model sits.
* :func:`build_induction`, :class:`InductionConstruction`: an induction model written by hand.

Names are loaded when they are used.
"""

from lens_linear._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
