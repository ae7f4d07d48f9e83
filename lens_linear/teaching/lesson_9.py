"""Checks of lesson 9: findings of toy models, asked of a real language model. They need no model."""

from __future__ import annotations

from typing import Any

import torch

from lens_linear.teaching.answers import (
    Exercise,
    Wrong,
    call,
    generator,
    matches,
    number,
    random_tensor,
    require_close,
    tensor,
)


def _remove_heads(answer: Any) -> str:
    z = random_tensor(2, 3, 4, 5, seed=1)
    spoilt = "Your hook changes z itself. Work on a copy: `z.clone()`."
    result = call(answer, z, None, [1, 3], case="without heads 1 and 3", untouched=spoilt)
    if result is None:
        raise Wrong("Your hook returns nothing, so nothing changes. Return the changed tensor.")
    got = tensor(result, shape=(2, 3, 4, 5), what="What the hook returns")
    if matches(got, z):
        raise Wrong("Nothing has changed: heads 1 and 3 should be zero.")
    if matches(got[:, 1], torch.zeros(2, 4, 5)):
        raise Wrong(
            "You zero a position. The axes are row, position, head, d_head: heads are the third."
        )
    require_close(got[:, :, [0, 2]], z[:, :, [0, 2]], "Heads 0 and 2 should stay as they were.")
    require_close(
        got[:, :, [1, 3]], torch.zeros(2, 3, 2, 5), "Heads 1 and 3 should be zero everywhere."
    )
    again = tensor(call(answer, z, None, [0], case="without head 0"), shape=(2, 3, 4, 5))
    want = z.clone()
    want[:, :, 0] = 0
    require_close(again, want, "A second hook, for head 0 alone, should leave the other heads.")
    return "Correct. With this you can take heads out of any model that TransformerLens opens."


def _rank_p(answer: Any) -> str:
    draws = torch.tensor([1.0, 2.0, 2.0, 3.0])
    cases = [
        (2.5, 2 / 5, "one draw above"),
        (2.0, 4 / 5, "ties"),
        (9.0, 1 / 5, "none above"),
        (0.0, 1.0, "all"),
    ]
    for effect, want, what in cases:
        got = number(call(answer, effect, draws, case=f"with {what}"), what="p")
        above, equal = float((draws > effect).sum()), float((draws == effect).sum())
        if matches(got, (above + equal) / 4) and not matches(got, want):
            raise Wrong(
                "Count the effect itself: add one above and below. With no draw above, p is not zero."
            )
        if equal and matches(got, (1 + above) / 5):
            raise Wrong("A draw *equal* to the effect is as extreme: count it too.")
        if matches(got, (1 + 4 - above - equal) / 5) and not matches(got, want):
            raise Wrong(
                "You count the draws below. Larger is more extreme: count those at least as large."
            )
        if matches(got, (1 + above + equal) / 4):
            raise Wrong("Divide by one more than the number of draws: the effect is one of them.")
        require_close(got, want, f"p is not right with {what}.")
    draws = random_tensor(19, seed=5).mul(2).round() / 2  # some are equal
    effect = float(draws[0])
    want = (1 + sum(one >= effect for one in draws.tolist())) / 20
    got = number(call(answer, effect, draws, case="with 19 other draws"), what="p")
    require_close(got, want, "Right with four draws, wrong with 19 others.")
    return "Correct. With n draws no p below 1 / (n + 1) can be had, and none is claimed."


def _copyable(answer: Any) -> str:
    #                        0  1  2  3  4  5  6  7
    tokens = torch.tensor([[5, 6, 7, 5, 6, 8, 6, 7], [4, 4, 4, 1, 2, 3, 4, 1]])
    want = torch.tensor(
        [
            [False, False, False, True, False, False, True],  # 5 6 again; 6 7 again
            [False, True, False, False, False, False, True],  # 4 4 again; 4 1 again
        ]
    )
    got = tensor(call(answer, tokens, case="on two rows of 8 tokens"), what="The table")
    if tuple(got.shape) == (2, 8):
        raise Wrong("One column a *prediction*: 8 tokens have 7. The last token has no next one.")
    if tuple(got.shape) != (2, 7):
        raise Wrong(
            f"The table has shape {tuple(got.shape)}, but it should be [row, prediction], here (2, 7)."
        )
    rows = [[tokens[r, t] in tokens[r, :t] for t in range(7)] for r in range(2)]
    if matches(got, torch.tensor(rows).double()):
        raise Wrong(
            "You look at the current token only. What came after it then must be what comes now."
        )
    seen = [[tokens[r, t + 1] in tokens[r, : t + 1] for t in range(7)] for r in range(2)]
    if matches(got, torch.tensor(seen).double()):
        raise Wrong(
            "You look at the next token only. It must have followed the *current* token before."
        )
    if bool(got.all()):
        raise Wrong("Each prediction equals itself: count earlier positions only, s < t.")
    require_close(got, want.double(), "The table is not right on two rows of 8 tokens.")
    tokens = torch.randint(4, (3, 20), generator=generator(2))
    got = tensor(call(answer, tokens, case="on random rows"), shape=(3, 19), what="The table")
    slow = torch.zeros(3, 19, dtype=torch.float64)
    for r in range(3):
        row = tokens[r].tolist()
        for t in range(19):
            pairs = {(row[s], row[s + 1]) for s in range(t)}
            slow[r, t] = (row[t], row[t + 1]) in pairs
    require_close(got, slow, "Right on short rows, wrong on random ones.")
    return "Correct. These are the predictions where an induction head has something to say."


def _first_position_share(answer: Any) -> str:
    x = random_tensor(4, 6, 5, seed=3) + torch.linspace(-2, 3, 5)
    x[:, 0] += torch.tensor([6.0, 0.0, -2.0, 0.0, 0.0])
    got = number(call(answer, x, case="on random rows"), what="The share")
    mean = x.double().reshape(-1, 5).mean(0)
    squares = [float((x[r, p].double() - mean).square().sum()) for r in range(4) for p in range(6)]
    want = sum(squares[::6]) / sum(squares)
    raw = x.double().square().sum(-1)
    if matches(got, float(raw[:, 0].sum() / raw.sum())):
        raise Wrong("Take the mean away first: variance is about the mean, not about zero.")
    own = (x - x.mean(0)).double().square().sum(-1)
    if matches(got, float(own[:, 0].sum() / own.sum())):
        raise Wrong(
            "Use one mean for all positions. A mean for each position hides what you look for."
        )
    norms = (x.double() - mean).norm(dim=-1)
    if matches(got, float(norms[:, 0].sum() / norms.sum())):
        raise Wrong("Those are lengths. Variance sums the *squares* of the distances.")
    if matches(got, want * 6):
        raise Wrong("That is how many times its fair share. Divide by the sum over all positions.")
    require_close(got, want, "The share is not right on random rows.")
    x = torch.zeros(2, 3, 2)
    x[:, 0, 0] = 3.0  # mean 1 along the first axis: squares 4 in position 0, 1 in each other
    got = number(call(answer, x, case="on a case of three positions"), what="The share")
    require_close(got, 4 / 6, "Right on random rows, wrong on a case of three positions.")
    return "Correct. Near 1 a score over all positions is a score of one position."


EXERCISES: dict[str, Exercise] = {
    "9.1": Exercise(
        _remove_heads,
        (
            "The heads are the third axis; a list of heads can be an index: `z[:, :, heads]`.",
            "`changed = z.clone()`, then `changed[:, :, heads] = 0.0`, then return it.",
        ),
    ),
    "9.2": Exercise(
        _rank_p,
        (
            "`(draws >= effect).sum()` counts the draws at least as large.",
            "Add one to that count and one to the number of draws, then divide.",
        ),
    ),
    "9.3": Exercise(
        _copyable,
        (
            "With `now = tokens[:, :-1]`, `now[:, :, None] == now[:, None]` compares all pairs: [row, t, s].",
            "Both comparisons (current and next token) must hold, and `s < t`: "
            "`torch.ones(n, n).tril(-1).bool()`. Then `.any(dim=2)`.",
        ),
        whole=True,
    ),
    "9.4": Exercise(
        _first_position_share,
        (
            "One mean over rows and positions: `x.mean(dim=(0, 1))`.",
            "Squared distances have shape [row, position]; divide the sum of position 0 by the sum of all.",
        ),
    ),
}
