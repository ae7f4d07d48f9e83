"""What the tutorials need from the installed package: checks of exercises, and the notebooks.

* :data:`lens_linear.check` (:mod:`lens_linear.teaching.check`): ``ll.check("3.2", answer)``.
* :func:`lens_linear.teaching.tutorials.copy_tutorials`: the exercise notebooks, copied out.
* ``lesson_N``: the checks of one lesson; they test properties and hand-computed cases and never
  hold a solution.
"""

from lens_linear._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
