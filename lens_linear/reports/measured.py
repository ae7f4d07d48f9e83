"""What a page and its explorer both show of one model, measured once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lens_linear.circuits.heads.composition import CompositionScores
from lens_linear.circuits.induction.scores import InductionScores, induction_scores
from lens_linear.explorer.heads import shown_composition
from lens_linear.linearity.measure.profile import linearity_profile
from lens_linear.linearity.measure.profile_result import LinearityProfile
from lens_linear.linearity.replace.compression import CompressionTable, ffn_compression
from lens_linear.models.checked import CheckedModel
from lens_linear.text.task import Task
from lens_linear.token_labels import text_label

_LAYERS = 6  # FFNs replaced at most: each costs a forward pass over the text


def rows_enough(model: CheckedModel, length: int) -> int:
    """Rows of tokens that give a map eight rows an input, and as many to score it."""
    return max(4, -(-16 * model.d_model // length))


@dataclass(frozen=True, eq=False)
class Measured:
    """Results of one model, each measured when it is first asked for."""

    model: CheckedModel
    asked: Task
    seed: int = 0

    @property
    def name(self) -> str:
        """Of the model, for titles and sentences."""
        return text_label(Path(self.model.name).name)

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
        return linearity_profile(self.model, self.asked, seed=self.seed)

    @cached_property
    def compression(self) -> CompressionTable:
        """Some FFNs as one affine map each, and the loss of the whole model on the rows that test them."""
        n = self.model.n_layers
        layers = sorted({round(i * (n - 1) / (_LAYERS - 1)) for i in range(_LAYERS)})
        rows = self.asked.take(slice(0, rows_enough(self.model, self.asked.tokens.shape[1])))
        return ffn_compression(self.model, rows, layers=layers, seed=self.seed)

    def found(self) -> dict[str, Any]:
        """What has been measured so far, by name."""
        return {name: value for name, value in vars(self).items() if name in _RESULTS}


_RESULTS = ("induction", "composition", "linearity")
