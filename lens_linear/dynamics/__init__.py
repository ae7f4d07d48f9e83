"""Depth dynamics: depth as time, the last token's residual stream as the state.

After Nettasinghe & Joseph 2026, arXiv 2603.12541. Where a concept points at each layer
(:func:`concept_directions`), how far the output moves when it is pushed there (:func:`gain_profile`),
how small a linear system predicts that (:func:`fit_surrogate`, :func:`agreement_table`), and the
cheapest way to steer (:func:`min_energy`, :func:`refined_min_energy`, :func:`evaluate_schedules`,
:func:`steer_concepts`) with what it does to text (:func:`steer_text`, :func:`steering_cost`).

    directions = concept_directions(model, split.concept)
    surrogate = fit_surrogate(model, split.operating.texts, directions, basis="balanced", order=8)
    exact = gain_profile(model, split.evaluation.texts, directions)
    surrogate.predict(model, split.evaluation.texts).agreement(exact)
"""

from lens_linear._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
