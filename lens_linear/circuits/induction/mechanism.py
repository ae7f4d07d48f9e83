"""The induction mechanism, checked step by step by intervention.

The story: a *previous-token head* writes, at every position, which token stood before. An *induction head*
of a later layer matches its query (this token) with keys that say "my previous token was that" through
K-composition, so it looks at the token after the previous occurrence (prefix matching), and its OV circuit
copies what it finds there. Each step names an intervention that must take away the in-context gain if the
step is real, beside the same intervention on other heads or other paths, which must not.

=================== =========================================================== =========
step                intervention                                                expected
=================== =========================================================== =========
induction heads     their outputs replaced by their means                       lost
previous-token      the same for the previous-token heads                       lost
K-composition       previous-token heads taken out of the induction heads' keys lost
                    only, through the frozen norm scale
Q-path              the same for their queries                                  kept
V-path              the same for their values                                   kept
prefix matching     value at the key after the previous occurrence replaced by  lost
                    the mean value
other keys          values at all other keys replaced by the mean value         kept
copying             their direct path to the logits taken away                  lost
=================== =========================================================== =========

Sources: Elhage et al. 2021, "How induction heads work"; Olsson et al. 2022, ablations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd
import torch

from lens_linear.checks import counted, head_name, require_heads, require_int
from lens_linear.circuits.induction.ablation import Head
from lens_linear.circuits.induction.interventions import Lab, Outcome
from lens_linear.circuits.induction.repeated_rows import draw_repeated
from lens_linear.circuits.induction.scores import induction_scores
from lens_linear.circuits.patching.path_patch import Via
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError
from lens_linear.models.checked import ModelLike, checked
from lens_linear.tables import Result

MIN_GAIN = 0.1  # nats a token; random models measure up to 0.03
Expected = Literal["lost", "kept"]
Intervention = Callable[[Sequence[Head]], Outcome]


@dataclass(frozen=True)
class MechanismStep:
    """One intervention and its control.

    Attributes:
        step, intervention: which, in words.
        heads: the heads it is about.
        expected: whether the in-context gain should be lost or kept if the step is real.
        after: outcome of the intervention.
        controls: outcomes of the same intervention on other heads; empty where there is no such control.
        control_size: heads in a control set.
    """

    step: str
    intervention: str
    heads: tuple[Head, ...]
    expected: Expected
    after: Outcome
    controls: tuple[Outcome, ...] = ()
    control_size: int = 0


@dataclass(frozen=True, eq=False)
class InductionMechanism(Result):
    """The table of interventions.

    Attributes:
        before: the whole model's in-context gain and prefix matching.
        steps: the interventions.
        induction, previous: the heads the story names.
        n_rows: random rows behind every number.
        seed: of the rows and of the control sets.
        guess: loss of the second copy without help from the first (nats): that of an even guess, or of the
            first copy where that is lower.
    """

    _figure = "mechanism_table"
    _columns = (
        "step",
        "heads",
        "expected",
        "gain_before",
        "gain_after",
        "removed",
        "control_removed",
        "control_worst",
    )

    before: Outcome
    steps: tuple[MechanismStep, ...] = field(repr=False)
    induction: tuple[Head, ...]
    previous: tuple[Head, ...]
    n_rows: int
    seed: int
    guess: float

    def removed(self, outcome: Outcome) -> float:
        """Share of the gain that an intervention takes away; 0 none, 1 all."""
        return 1.0 - outcome.gain / self.before.gain

    def forgotten(self, outcome: Outcome) -> float:
        """How far the loss of the second copy rises towards :attr:`guess`; 0 not at all, 1 all the way.

        Unlike :meth:`removed` it does not depend on how wrong the model is in the first copy: one that is
        sure of tokens it has seen loses far more than a guess there, and keeps that part of its gain.
        """
        return (outcome.second - self.before.second) / (self.guess - self.before.second)

    @property
    def confirmed(self) -> bool:
        """Whether every step did what the story says, by :meth:`forgotten`: "lost" is at least half of it.

        Where a step has controls, their mean must stay below half.
        """
        for step in self.steps:
            if (self.forgotten(step.after) >= 0.5) != (step.expected == "lost"):
                return False
            lost = [self.forgotten(outcome) for outcome in step.controls]
            if lost and sum(lost) / len(lost) >= 0.5:
                return False
        return bool(self.steps)

    def __repr__(self) -> str:
        def names(heads: Sequence[Head]) -> str:
            return ", ".join(head_name(*at) for at in heads) or "none"

        state = "every step confirmed" if self.confirmed else "not every step confirmed"
        return (
            f"InductionMechanism: induction {names(self.induction)}, previous-token "
            f"{names(self.previous)}, gain {self.before.gain:.2f} nats over "
            f"{counted(self.n_rows, 'row')}; {state}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a step: step, intervention, heads, expected, gain and prefix before, after, in control.

        ``forgotten`` is how far the second copy's loss rises towards a guess: what ``confirmed`` looks at.

        ``removed`` is the share of the gain that is lost, ``control_removed`` the mean share over control
        sets, ``control_worst`` the largest; NaN where a step has no control of other heads.
        """
        rows = []
        for step in self.steps:
            lost = [self.removed(outcome) for outcome in step.controls]
            gains = [outcome.gain for outcome in step.controls]
            rows.append(
                {
                    "step": step.step,
                    "intervention": step.intervention,
                    "heads": ", ".join(head_name(*at) for at in step.heads),
                    "expected": step.expected,
                    "gain_before": self.before.gain,
                    "gain_after": step.after.gain,
                    "removed": self.removed(step.after),
                    "control_gain": sum(gains) / len(gains) if gains else float("nan"),
                    "control_removed": sum(lost) / len(lost) if lost else float("nan"),
                    "control_worst": max(lost, default=float("nan")),
                    "n_controls": len(gains),
                    "control_size": step.control_size,
                    "prefix_before": self.before.prefix,
                    "prefix_after": step.after.prefix,
                    "second_before": self.before.second,
                    "second_after": step.after.second,
                    "forgotten": self.forgotten(step.after),
                }
            )
        return pd.DataFrame(rows)


def verify_induction(
    model: ModelLike,
    *,
    induction: Sequence[Head] | None = None,
    previous: Sequence[Head] | None = None,
    periods: Sequence[int] | None = None,
    rows_per_period: int = 4,
    bos: int | Literal["auto"] | None = "auto",
    n_controls: int = 6,
    batch_size: int | None = None,
    seed: int = 0,
) -> InductionMechanism:
    """Check the induction mechanism of a model, one intervention a step, each with a control.

    Args:
        model: a bridge, with or without MLPs.
        induction: the induction heads, as ``"L1H3"`` or (layer, head); those of ``induction_scores`` by
            default.
        previous: of the previous-token heads; those of ``induction_scores`` below by default.
        periods: of the random repeats, as in ``induction_scores``.
        rows_per_period: random rows for each period.
        bos: token put in front of every row; "auto" takes the tokenizer's.
        n_controls: sets of other heads a step is compared with. A set has as many heads as are named, or
            all others where there are fewer.
        batch_size: rows a forward pass; None takes what memory allows.
        seed: of the rows and of the control sets.

    Returns:
        InductionMechanism: one step a row with its controls, nats a token; ``.confirmed``,
        ``.to_dataframe()``.

    Raises:
        UnsupportedModelError: no induction head, or an in-context gain below 0.1 nats: nothing to explain.

    Source: Elhage et al. 2021, "How induction heads work"; Olsson et al. 2022, ablations.

    Example:
        >>> from lens_linear.models.open.load import load
        >>> verify_induction(load("attn-2l"), rows_per_period=2, n_controls=2).confirmed
        True
    """
    model = checked(model)
    sizes = {"n_layers": model.n_layers, "n_heads": model.n_heads}
    scores = None
    if induction is None or previous is None:
        scores = induction_scores(model, periods=periods, bos=bos, seed=seed)
    asked = scores.heads("induction") if scores and induction is None else induction
    named = require_heads("induction", asked, **sizes)
    if scores and previous is None:
        top = max((layer for layer, _ in named), default=0)
        previous = [at for at in scores.heads("previous-token") if at[0] < top]
    writers = require_heads("previous", previous, **sizes)
    if induction is not None and not named:
        raise InvalidArgumentError(
            "induction must name at least one head, got none; leave it out to take those that "
            "induction_scores finds"
        )
    rows = draw_repeated(
        model, periods=periods, rows_per_period=rows_per_period, bos=bos, seed=seed
    ).repeating()
    lab = Lab(model, rows, named or [(0, 0)], batch_size)  # the gain is the same whatever is named
    before = lab.outcome()
    if before.gain < MIN_GAIN:
        raise UnsupportedModelError(
            f"model {model.name!r} gains {before.gain:.3f} nats a token from its context on random repeats, "
            f"less than {MIN_GAIN}, so there is nothing to explain; use a model that does, such as "
            "load('attn-2l')"
        )
    if not named:
        raise UnsupportedModelError(
            f"model {model.name!r} has no induction head, so there is no mechanism to verify; pass "
            "induction=[(layer, head)] to test heads of your own choice"
        )
    bench = _Bench(lab, named, writers, require_int("n_controls", n_controls, minimum=0), seed)
    steps = tuple(bench.steps())
    guess = min(before.gain + before.second, math.log(lab.weights.W_U.shape[1]))
    return InductionMechanism(
        before, steps, tuple(named), tuple(writers), len(rows.tokens), seed, guess
    )


class _Bench:
    """Runs the steps, and each on control sets of other heads."""

    def __init__(
        self, lab: Lab, induction: list[Head], previous: list[Head], n_controls: int, seed: int
    ) -> None:
        self.lab, self.induction, self.previous = lab, induction, previous
        self.n_controls, self.generator = n_controls, torch.Generator().manual_seed(seed)
        layers, heads = range(lab.model.n_layers), range(lab.model.n_heads)
        taken = {*induction, *previous}
        self.others = [(i, j) for i in layers for j in heads if (i, j) not in taken]

    def steps(self) -> list[MechanismStep]:
        lab, induction, previous = self.lab, self.induction, self.previous
        top = max(layer for layer, _ in induction)
        below = [at for at in self.others if at[0] < top]
        means = "outputs replaced by their means"

        def without(heads: Sequence[Head]) -> Outcome:
            return lab.outcome(lab.without(heads))

        def cut(side: Via) -> Intervention:
            return lambda heads: lab.outcome(lab.path_cut(heads, side))

        def values(where: Literal["at", "elsewhere"]) -> Intervention:
            return lambda _: lab.outcome(lab.values_replaced(where))

        done = [self._step("induction heads", means, induction, without, self.others)]
        if previous:
            words = "taken out of the induction heads' {} only"
            done += [
                self._step("previous-token heads", means, previous, without, below),
                self._step("K-composition", words.format("keys"), previous, cut("k"), below),
                self._step("Q-path", words.format("queries"), previous, cut("q"), expected="kept"),
                self._step("V-path", words.format("values"), previous, cut("v"), expected="kept"),
            ]
        words = "values at {} replaced by the mean value"
        key, others = (
            words.format(x) for x in ("the key after the previous occurrence", "all other keys")
        )
        done += [
            self._step("prefix matching", key, induction, values("at")),
            self._step("other keys", others, induction, values("elsewhere"), expected="kept"),
        ]
        if lab.model.logit_softcap is None:
            done.append(
                self._step(
                    "copying",
                    "direct path to the logits taken away",
                    induction,
                    lambda heads: lab.outcome(change=lab.direct_path_cut(heads)),
                    self.others,
                )
            )
        return done

    def _step(
        self,
        name: str,
        words: str,
        heads: list[Head],
        intervene: Intervention,
        pool: Sequence[Head] = (),
        expected: Expected = "lost",
    ) -> MechanismStep:
        """Intervene on the heads, and on sets of as many from the pool."""
        size = min(len(heads), len(pool))
        controls = tuple(intervene(chosen) for chosen in self._sets(pool, size))
        return MechanismStep(name, words, tuple(heads), expected, intervene(heads), controls, size)

    def _sets(self, pool: Sequence[Head], size: int) -> list[list[Head]]:
        if not size or not self.n_controls:
            return []
        every = list(itertools.islice(itertools.combinations(pool, size), self.n_controls + 1))
        if len(every) <= self.n_controls:
            return [list(chosen) for chosen in every]
        picks = [
            torch.randperm(len(pool), generator=self.generator)[:size].tolist()
            for _ in range(self.n_controls)
        ]
        return [[pool[i] for i in sorted(pick)] for pick in picks]
