"""What a head is called, and why: evidence against thresholds, both with their standard errors.

A relation holds where its number lies above the threshold by two standard errors, fails where it lies below
by two, and is undecided between. So another draw of random rows may move a head from a name to "undecided",
but not from one name to another.

>>> compare(torch.tensor([0.30, 0.21, 0.10]), torch.tensor(0.02), 0.2).tolist()
[1, 0, -1]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Verdict = Literal[
    "induction", "duplicate-token", "previous-token", "positional", "undecided", "none"
]
VERDICTS: tuple[Verdict, ...] = (
    "induction",
    "duplicate-token",
    "previous-token",
    "positional",
    "undecided",
    "none",
)
UNDECIDED, NONE = 4, 5

# Effects on the right logit that count, whatever the strongest head does: 0.1 makes the odds 1.1 times as
# large; 0.01 is lost in what a model of many layers does anyway.
LARGE_EFFECT, LEAST_EFFECT = 0.1, 0.01


@dataclass(frozen=True)
class Thresholds:
    """Smallest evidence that names a head.

    Attributes:
        induction, duplicate, previous, positional: excess of attention over its control.
        effect: of an induction head's ``target_logit``, as a share of the strongest head's that matches
            prefixes; the smallest effect that counts stays between 0.01 and 0.1 logits.
    """

    induction: float = 0.2
    duplicate: float = 0.2
    previous: float = 0.2
    positional: float = 0.2
    effect: float = 0.1


@dataclass(frozen=True, eq=False)
class Evidence:
    """What verdicts rest on; standard errors over rows, NaN (taken as 0) where there is one row.

    Attributes:
        excess: attention minus control of induction, duplicate, previous token, fixed offset.
        excess_se: its standard errors.
        typical: median over the periods of the excess of induction.
        peak: attention to the previous token minus the larger one to its neighbours.
        target: mean effect on the logit of the token to copy; NaN where weights cannot be read.
        target_se: its standard error.
    """

    excess: Float[Tensor, "relation layer head"]
    excess_se: Float[Tensor, "relation layer head"]
    typical: Float[Tensor, "layer head"]
    peak: Float[Tensor, "layer head"]
    target: Float[Tensor, "layer head"]
    target_se: Float[Tensor, "layer head"]


def compare(value: Tensor, error: Tensor, limit: float | Tensor) -> Int[Tensor, "..."]:
    """1 where a value is at least the limit by two standard errors, -1 where below by two, 0 between."""
    slack = 2 * error.nan_to_num(nan=0.0)
    below = torch.where(value + slack < limit, -1, 0)
    return torch.where(value - slack >= limit, 1, below)


def smallest_effect(evidence: Evidence, limits: Thresholds) -> float:
    """Smallest ``target_logit`` that counts: a share of the strongest head's, between 0.01 and 0.1 logits."""
    matching = _attention(evidence, limits)[0] >= 0
    known = evidence.target[matching].nan_to_num(nan=0.0)
    strongest = float(known.max()) if len(known) else 0.0
    return min(max(limits.effect * strongest, LEAST_EFFECT), LARGE_EFFECT)


def decide(evidence: Evidence, limits: Thresholds) -> Int[Tensor, "layer head"]:
    """One index into :data:`VERDICTS` a head.

    The relation with the largest excess among those that hold; undecided where that one only may hold, or
    where another lies within two standard errors of it.
    """
    state = _states(evidence, limits)
    score = torch.where(state >= 0, evidence.excess, float("-inf"))
    top, best = score.max(0)
    error = evidence.excess_se.nan_to_num(nan=0.0)
    apart = 2 * (error.square() + error.gather(0, best[None]).square()).sqrt()
    rivals = ((state >= 0) & (top - score <= apart)).sum(0) > 1
    clear = (state.gather(0, best[None])[0] == 1) & ~rivals
    found = torch.where(clear, best, UNDECIDED)
    return torch.where(top > float("-inf"), found, NONE)


def reason(evidence: Evidence, limits: Thresholds, verdict: int, layer: int, head: int) -> str:
    """Say in words why a head has its verdict."""
    excess = evidence.excess[:, layer, head]
    error = evidence.excess_se[:, layer, head].nan_to_num(nan=0.0)
    least = _least(limits)
    state = _states(evidence, limits)[:, layer, head].tolist()

    def mass(which: int) -> str:
        return f"{float(excess[which]):.2f} ± {2 * float(error[which]):.2f} above its control"

    target = float(evidence.target[layer, head])
    wide = 2 * float(evidence.target_se[layer, head].nan_to_num(nan=0.0))
    smallest = smallest_effect(evidence, limits)
    effect = "what it writes cannot be read from the weights"
    if not math.isnan(target):
        effect = f"target logit {target:+.3f} ± {wide:.3f}"
    if verdict == 0:
        return f"prefix matching {mass(0)}; {effect}"
    if verdict < UNDECIDED:
        return f"attention {mass(verdict)}, at least {least[verdict]:g}"
    open_ones = [i for i in range(4) if state[i] >= 0]
    if verdict == UNDECIDED and len(open_ones) > 1:
        both = " or ".join(f"{VERDICTS[i]} ({mass(i)})" for i in open_ones)
        return f"{both}: the rows do not tell which; more rows_per_period would"
    if verdict == UNDECIDED and open_ones[0] != 0:
        return f"attention {mass(open_ones[0])}, about the {least[open_ones[0]]:g} that is needed"
    attention = [int(part[layer, head]) for part in _attention(evidence, limits)]
    if attention[1] >= 0:
        if min(attention) < 0 or (verdict == UNDECIDED and min(attention) == 0):
            at = "about half of that" if attention[2] == 0 else "not half of that"
            told = f"prefix matching {mass(0)}; {limits.induction:g} is needed"
            return told if attention[2] > 0 else f"{told}, and {at} at most periods"
        if state[0] <= 0:
            least_effect = f"the smallest effect that counts here, {smallest:.3f}"
            near = "about" if verdict == UNDECIDED else "below"
            return f"matches prefixes ({mass(0)}), but its {effect} is {near} {least_effect}"
    best = int(excess.argmax())
    return f"largest excess {float(excess[best]):.2f} ({VERDICTS[best]}), below {least[best]:g}"


def _least(limits: Thresholds) -> list[float]:
    return [limits.induction, limits.duplicate, limits.previous, limits.positional]


def _attention(evidence: Evidence, limits: Thresholds) -> Int[Tensor, "part layer head"]:
    """State of prefix matching: both parts together, on average, at most periods (the median)."""
    error = evidence.excess_se[0]
    mean = compare(evidence.excess[0], error, limits.induction)
    # A median of normal numbers has 1.25 times the standard error of their mean.
    typical = compare(evidence.typical, 1.25 * error, limits.induction / 2)
    return torch.stack([torch.minimum(mean, typical), mean, typical])


def _states(evidence: Evidence, limits: Thresholds) -> Int[Tensor, "relation layer head"]:
    """1 where a relation holds, -1 where it does not, 0 where the rows leave it open."""
    least = torch.tensor(_least(limits), dtype=evidence.excess.dtype)[:, None, None]
    state = compare(evidence.excess, evidence.excess_se, least)
    effect = compare(evidence.target, evidence.target_se, smallest_effect(evidence, limits))
    # Unknown (NaN) where the weights cannot be read: then the pattern alone decides.
    effect = torch.where(evidence.target.isnan(), 1, effect)
    state[0] = torch.minimum(_attention(evidence, limits)[0], effect)
    state[2] = torch.minimum(state[2], compare(evidence.peak, evidence.excess_se[2], 0.0))
    return state
