"""What a page and its explorer both show of one model, measured once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.circuits.heads.composition import CompositionScores
from lens_linear.circuits.induction.scores import InductionScores, induction_scores
from lens_linear.explorer.heads import shown_composition
from lens_linear.linearity.measure.profile import linearity_profile
from lens_linear.linearity.measure.profile_result import LinearityProfile
from lens_linear.text.task import Task


@dataclass(frozen=True, eq=False)
class Measured:
    """Results of one model, each measured when it is first asked for."""

    model: TransformerBridge
    tokens: Tensor | Task
    seed: int = 0

    @cached_property
    def induction(self) -> InductionScores:
        """Scores of all heads on repeated random tokens."""
        return induction_scores(self.model, seed=self.seed)

    @cached_property
    def composition(self) -> CompositionScores:
        """Scores of all pairs of heads, by what they apply: norms folded in, where they can be read."""
        return shown_composition(self.model, seed=self.seed)

    @cached_property
    def linearity(self) -> LinearityProfile:
        """With and without the first position, from one pass."""
        return linearity_profile(self.model, self.tokens, seed=self.seed)

    def found(self) -> dict[str, Any]:
        """What has been measured so far, by name."""
        return {name: value for name, value in vars(self).items() if name in _RESULTS}


_RESULTS = ("induction", "composition", "linearity")
