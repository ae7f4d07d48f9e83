"""The recipes of the bundled models: shape, phases, data mixture. Data, not code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lens_linear.checks import (
    require_choice,
    require_float,
    require_instance,
    require_int,
    require_ints,
    require_list,
    require_name,
)
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.native import ModelSpec as ModelSpec

VOCABULARY = 1024


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one data mixture and one learning-rate schedule.

    Args:
        steps: optimiser steps.
        rows: sequences a batch.
        length: tokens a sequence, the beginning-of-sequence token included.
        learning_rate: peak; linear warm-up over ``warmup`` steps, then cosine decay to
            ``final`` times the peak.
        repeats: share of the rows that are random tokens repeated with mixed periods.
        periods: shortest and longest period of those rows.
    """

    steps: int
    rows: int = 32
    length: int = 128
    learning_rate: float = 3e-3
    warmup: int = 50
    final: float = 0.1
    repeats: float = 0.0
    periods: tuple[int, int] = (8, 60)

    def __post_init__(self) -> None:
        for name in ("steps", "rows"):
            require_int(f"phase {name}", getattr(self, name), minimum=1)
        require_int("phase length", self.length, minimum=2)
        require_float("phase learning_rate", self.learning_rate, minimum=0.0)
        require_float("phase repeats", self.repeats, minimum=0.0, maximum=1.0)
        require_int("phase warmup", self.warmup, minimum=0)
        require_float("phase final", self.final, minimum=0.0)
        periods = tuple(require_ints("phase periods", self.periods, minimum=1))
        if len(periods) != 2 or periods[0] > periods[1]:
            raise InvalidArgumentError(
                f"phase periods must be (shortest, longest), got {self.periods!r}; e.g. (8, 60)"
            )
        object.__setattr__(self, "periods", periods)

    @property
    def tokens(self) -> int:
        """Tokens seen in this phase."""
        return self.steps * self.rows * self.length


@dataclass(frozen=True)
class Recipe:
    """Everything needed to train one model again from a text file.

    Args:
        name: of the model.
        spec: its shape.
        phases: one after the other; the optimiser's state is kept across them.
        seed: of the weights and of every batch.
        weight_decay: of AdamW, on matrices only.
        cosine: weight of the cosine regulariser (0 leaves it out).
        checkpoints: steps after which the weights are kept for good.
        precision: of the matrix products; ``"bfloat16"`` is autocast (weights, norms and loss stay
            float32), 2 to 3 times faster where the processor has it.
        note: what was mixed in, for the card.
    """

    name: str
    spec: ModelSpec
    phases: tuple[Phase, ...]
    seed: int = 0
    weight_decay: float = 0.1
    cosine: float = 0.0
    checkpoints: tuple[int, ...] = field(default=())
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    note: str = ""

    def __post_init__(self) -> None:
        require_name("name", self.name)
        require_instance("spec", self.spec, ModelSpec, advice="pass a ModelSpec")
        object.__setattr__(self, "phases", tuple(require_list("phases", self.phases, of="Phase")))
        for phase in self.phases:
            require_instance("phases", phase, Phase, advice="build each with Phase(steps=...)")
        kept = require_ints("checkpoints", self.checkpoints, minimum=0)
        object.__setattr__(self, "checkpoints", tuple(kept))
        require_int("seed", self.seed, minimum=0)
        if not self.phases:
            raise InvalidArgumentError("a recipe needs at least one phase, got none; add a Phase")
        longest = max(phase.length for phase in self.phases)
        if longest > self.spec.n_ctx:
            raise InvalidArgumentError(
                f"a phase has rows of {longest} tokens but n_ctx is {self.spec.n_ctx}; shorten it"
            )
        require_float("weight_decay", self.weight_decay, minimum=0.0)
        if require_float("cosine", self.cosine) and not self.spec.n_layers:
            raise InvalidArgumentError(
                f"cosine must be 0 for a model without layers, got {self.cosine}: there is no block to "
                "regularise; leave it out"
            )
        require_choice("precision", self.precision, ("float32", "bfloat16"))

    @property
    def steps(self) -> int:
        """Optimiser steps over all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def tokens(self) -> int:
        """Tokens seen over all phases."""
        return sum(phase.tokens for phase in self.phases)

    def phase_at(self, step: int) -> tuple[Phase, int]:
        """Return the phase that holds ``step`` (counted from 0) and the step inside it."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise InvalidArgumentError(
            f"step must be below {self.steps}, the steps of the recipe {self.name!r}; pass a smaller one"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that ``from_dict`` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Build a recipe from plain values, as a recipe file (JSON) holds them."""
        try:
            require_instance("the recipe", values, dict, advice="pass name, spec, phases")
            values = dict(values)
            spec = ModelSpec.from_dict(values.pop("spec"))
            phases = tuple(Phase(**phase) for phase in values.pop("phases"))
            checkpoints = tuple(values.pop("checkpoints", ()))
            return cls(spec=spec, phases=phases, checkpoints=checkpoints, **values)
        except (KeyError, TypeError) as error:
            raise InvalidArgumentError(
                f"the recipe is not complete or has an unknown entry ({error}); "
                "needed: name, spec, phases; see `lens-linear train --help`"
            ) from error

    def scaled(self, factor: float) -> Recipe:
        """Return the same recipe with every phase and its warm-up shortened (or lengthened) by ``factor``."""
        return Recipe.from_dict(
            scaled(self.to_dict(), require_float("factor", factor, minimum=1e-9))
        )


def scaled(values: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Values of a recipe with every phase and its warm-up shortened (or lengthened) by ``factor``."""
    out = dict(values)
    if "phases" in out:
        out["phases"] = [
            {
                **phase,
                "steps": max(1, round(phase["steps"] * factor)),
                "warmup": round(Phase(**phase).warmup * factor),
            }
            for phase in out["phases"]
        ]
    if "checkpoints" in out:
        out["checkpoints"] = sorted(
            {max(1, round(step * factor)) if step else 0 for step in out["checkpoints"]}
        )
    return out


def _attention_only(n_layers: int, **changes: Any) -> ModelSpec:
    values: dict[str, Any] = {
        "d_model": 128,
        "n_heads": 4,
        "d_vocab": VOCABULARY,
        "attn_only": True,
        "norm": "none",
    }
    return ModelSpec(n_layers=n_layers, **{**values, **changes})


def _gpt(n_layers: int, d_model: int, n_heads: int) -> ModelSpec:
    return ModelSpec(n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_vocab=VOCABULARY)


_INDUCTION = Phase(
    steps=700, rows=64, length=64, learning_rate=3e-3, final=1.0, repeats=1.0, periods=(5, 30)
)
_MICRO = (Phase(steps=4000, rows=32, learning_rate=3e-3, warmup=100),)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "attn-0l",
            _attention_only(0, d_model=256, positions="none"),
            (Phase(steps=1500, rows=64, learning_rate=5e-3),),
            weight_decay=0.0,
            note="natural text only; the position table is zero, so the logits are a bigram table",
        ),
        Recipe(
            "attn-1l",
            _attention_only(1),
            (Phase(steps=5000, rows=32, learning_rate=2e-3, warmup=200),),
            note="natural text only, no norms",
        ),
        Recipe(
            "attn-2l",
            _attention_only(2, norm="LNPre"),
            (
                _INDUCTION,
                Phase(steps=6000, rows=32, learning_rate=3e-3, repeats=0.125, final=0.05),
            ),
            note="first repeats of random tokens with mixed periods, then natural text with one row "
            "in eight kept as repeats; parameter-free layer norm",
        ),
        Recipe(
            "gpt-nano",
            _gpt(4, 96, 4),
            (Phase(steps=4000, rows=32, learning_rate=4e-3, warmup=100),),
            note="natural text only",
        ),
        Recipe(
            "gpt-micro",
            _gpt(6, 128, 4),
            _MICRO,
            checkpoints=(0, 100, 300, 1000),
            note="natural text only; checkpoints kept",
        ),
        Recipe(
            "gpt-micro-cosine",
            _gpt(6, 128, 4),
            _MICRO,
            cosine=0.3,
            note="the twin of gpt-micro, trained with the cosine regulariser",
        ),
        Recipe(
            "gpt-mini",
            _gpt(8, 192, 6),
            (Phase(steps=4200, rows=32, learning_rate=2e-3, warmup=150),),
            note="natural text only",
        ),
    )
}
