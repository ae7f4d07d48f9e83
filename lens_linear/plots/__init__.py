"""Figures: a result in, a ``plotly.graph_objects.Figure`` out; nothing is computed and nothing shown.

One file a room; every figure has the look of :mod:`lens_linear.plots.style`. Names are loaded when
they are used, so that ``import lens_linear.plots`` is light.
"""

from lens_linear._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
