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

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "HatMatrix": "ols",
    "HeadMemory": "head_memory",
    "InductionConstruction": "induction",
    "MemoryCapacity": "memory",
    "MemorySwap": "slow_fast",
    "NewtonSchulzAttention": "newton_schulz",
    "OLSAttention": "ols",
    "RetrievalCurve": "retrieval",
    "ShiftCurve": "slow_fast",
    "SpectralRoot": "spectral",
    "TrainingRun": "ols_training",
    "attention_head_memory": "head_memory",
    "build_induction": "induction",
    "covariance_shift": "slow_fast",
    "gradient_step_attention": "newton_schulz",
    "hopfield_energy": "energies",
    "hopfield_update": "energies",
    "memory_capacity": "memory",
    "regression_data": "ols_training",
    "retrieval_curve": "retrieval",
    "spectral_root": "spectral",
    "swap_memories": "slow_fast",
    "train_ols_attention": "ols_training",
    "trained_head_memory": "trained_head",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; see dir({__name__})")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
