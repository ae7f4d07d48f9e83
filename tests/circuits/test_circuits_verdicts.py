"""Verdicts from numbers alone: names, "undecided" and reasons, against the rule in plain Python."""

import math

import pytest
import torch

from lens_linear.circuits.induction.verdicts import (
    VERDICTS,
    Evidence,
    Thresholds,
    decide,
    reason,
    smallest_effect,
)

LIMITS = Thresholds(induction=0.25, duplicate=0.2, previous=0.3, positional=0.15, effect=0.2)


def evidence(n, seed):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(*shape, n, 1, generator=g, dtype=torch.float64)

    return Evidence(
        excess=draw(4, high=0.5),
        excess_se=draw(4, high=0.04),
        typical=draw(high=0.4),
        peak=draw(low=-0.1, high=0.3),
        target=draw(low=-0.05, high=0.3),
        target_se=draw(high=0.03),
    )


def side(value, error, limit):
    if value - 2 * error >= limit:
        return 1
    return -1 if value + 2 * error < limit else 0


def by_hand(found, head, smallest):
    """(verdict, relations that may hold) of one head."""
    x, se = found.excess[:, head, 0].tolist(), found.excess_se[:, head, 0].tolist()
    limits = [LIMITS.induction, LIMITS.duplicate, LIMITS.previous, LIMITS.positional]
    holds = [side(x[i], se[i], limits[i]) for i in range(4)]
    target, target_se = float(found.target[head, 0]), float(found.target_se[head, 0])
    holds[0] = min(
        holds[0],
        side(float(found.typical[head, 0]), 1.25 * se[0], LIMITS.induction / 2),
        1 if math.isnan(target) else side(target, target_se, smallest),
    )
    holds[2] = min(holds[2], side(float(found.peak[head, 0]), se[2], 0))
    may = [i for i in range(4) if holds[i] >= 0]
    if not may:
        return "none", may
    best = max(may, key=lambda i: x[i])
    near = [i for i in may if i != best and x[best] - x[i] <= 2 * math.hypot(se[i], se[best])]
    return ("undecided" if near or holds[best] == 0 else VERDICTS[best]), may


@pytest.mark.parametrize("seed", [0, 1])
def test_verdicts_are_those_of_the_rule_head_by_head(seed):
    found = evidence(800, seed)
    found.target[::7] = math.nan
    smallest = smallest_effect(found, LIMITS)
    words = [VERDICTS[i] for i in decide(found, LIMITS)[:, 0].tolist()]
    rivals = 0
    for head, word in enumerate(words):
        expected, may = by_hand(found, head, smallest)
        assert word == expected, head
        said = reason(found, LIMITS, VERDICTS.index(word), head, 0)
        if word == "undecided" and len(may) > 1:
            rivals += 1
            assert all(VERDICTS[i] in said for i in may) and "rows do not tell which" in said
        if word in VERDICTS[:4]:
            value = found.excess[VERDICTS.index(word), head, 0]
            assert f"{float(value):.2f} ±" in said
    assert rivals > 20 and min(words.count(word) for word in VERDICTS) > 5


def test_the_smallest_effect_is_a_share_of_the_strongest_head_that_matches_prefixes():
    found = evidence(3, 0)
    found.excess[0, :, 0] = torch.tensor([0.6, 0.6, 0.0])
    found.excess_se[0] = 0.01
    found.typical[:] = 0.5
    for strongest, smallest in ((0.3, 0.06), (9.0, 0.1), (0.02, 0.01), (math.nan, 0.01)):
        found.target[:, 0] = torch.tensor([strongest, 0.01, 50.0])  # the last one matches nothing
        assert smallest_effect(found, LIMITS) == pytest.approx(smallest)


def test_two_relations_apart_by_two_standard_errors_are_told_apart():
    found = evidence(2, 3)
    found.excess[:, :, 0] = torch.tensor([[0.0, 0.0], [0.40, 0.40], [0.0, 0.0], [0.51, 0.49]])
    found.excess_se[:] = 0.0
    found.excess_se[1], found.excess_se[3] = 0.03, 0.04  # together .05, so .10 tells them apart
    words = [VERDICTS[i] for i in decide(found, LIMITS)[:, 0].tolist()]
    assert words == ["positional", "undecided"]
