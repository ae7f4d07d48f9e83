"""How linear a model is, what replacing its layers by affine maps costs, and what such maps miss.

* :func:`linearity_profile`, :func:`layer_map`, :func:`layer_geometry`, :func:`compare_profiles`: measure.
* :func:`linearize`, :func:`fit_linearization`, :func:`save_linearized`, :func:`load_linearized`,
  :func:`replacement_curve`, :func:`run_table`, :func:`ffn_compression`: replace.
* :func:`bilinear_probe`, :func:`adam_baseline`: look at what an affine fit misses, and at how it is missed.
* :func:`fit_lens`: read off every layer what the model will say.
* :func:`load_study`, :func:`run_study`, :func:`save_tables`, :func:`load_tables`,
  :func:`downstream_scores`: pretraining.
* :func:`published_beside_measured`: published numbers beside ours.
"""

from lens_linear._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
