"""Circuits of attention: bigrams, heads, skip-trigrams, composition, exact paths, induction.

After Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*. Attention-only models open up
whole (:class:`AttentionOnly`); heads of any model can be read (:func:`head_circuit`,
:func:`composition_scores`, :func:`induction_scores`, :func:`qk_attribution`). Names are loaded when they are
used.
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> the module of this room that defines it.
_WHERE = {
    "AttentionOnly": "attention_only",
    "ablate_heads": "ablation",
    "ablation_scores": "ablation",
    "all_skip_trigrams": "trigrams",
    "attention_pattern": "patterns",
    "circuit_map": "maps",
    "composed_qk": "virtual",
    "composition_scores": "composition",
    "copying_score": "factored",
    "diagonal_accuracy": "factored",
    "head_circuit": "heads",
    "in_context_loss": "in_context",
    "induction_scores": "induction",
    "map_of": "maps",
    "qk_attribution": "attribution",
    "skip_trigram_bugs": "bugs",
    "skip_trigrams": "trigrams",
    "sum_of": "factored",
    "summed_ov": "heads",
    "summed_qk": "heads",
    "svd_readout": "svd",
    "top_pairs": "factored",
    "verify_induction": "mechanism",
    "virtual_head": "virtual",
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
