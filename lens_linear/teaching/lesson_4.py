"""Checks of lesson 4 (is your transformer secretly linear)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lens_linear.models.capture import run
from lens_linear.models.open.toy import toy_model
from lens_linear.teaching.answers import (
    Exercise,
    Wrong,
    call,
    exact,
    generator,
    matches,
    name_slip,
    number,
    random_integers,
    random_tensor,
    require_close,
    tensor,
)


def _planted(r_squared: float, *, n: int = 80, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float64 rows whose best affine map explains exactly this share of the variance."""
    x = random_tensor(n, 4, seed=seed).double()
    signal = (x - x.mean(0)) @ random_tensor(4, 3, seed=seed + 1).double()
    basis, _ = torch.linalg.qr(torch.cat([torch.ones(n, 1).double(), x], dim=1))
    noise = random_tensor(n, 3, seed=seed + 2).double() * torch.tensor([1.0, 5.0, 0.2]).double()
    noise = noise - basis @ (basis.T @ noise)
    return x, signal + noise * (signal.norm() / noise.norm()) * (1 / r_squared - 1) ** 0.5


def _right_score(_: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _uncentred_score(x - x.mean(0), y - y.mean(0))


def _uncentred_score(x: Tensor, y: Tensor) -> Tensor:
    A: Tensor = torch.linalg.lstsq(x, y).solution
    return 1 - (y - x @ A).square().sum() / y.square().sum()


def _linearity_score(answer: Any) -> str:
    x = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    y = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    # Slope 5/2; residuals 1/2, -1, 1/2, squared 1.5; squares about the mean 4 + 1 + 9 = 14.
    want = 1 - 1.5 / 14
    flat = "With one column, taking a row's mean away leaves only zeros: take away the mean of each column."
    got = number(call(answer, x, y, case="on three points"), what="The score", infinite=flat)
    if any(matches(got, 1 - left / total) for left, total in ((1.8, 26), (1.8, 14), (1.5, 26))):
        raise Wrong("Centre both x and y by column first: take the column means away from each.")
    if matches(got, want**0.5):
        raise Wrong("That is a correlation. The score is its square: a share of the variance.")
    if matches(got, 1 - want):
        raise Wrong("That is the share that is missed. The score is one minus that.")
    require_close(got, want, "The score of three points on a line with a kink is not right.")
    for share, shift in ((0.6, 0.0), (0.25, 100.0)):
        x, y = _planted(share)
        case = f"on 80 rows whose score is {share:g}" + (f", shifted by {shift:g}" if shift else "")
        moved = x + shift * torch.linspace(-1, 2, 4), y + shift * torch.linspace(1, -1, 3)
        got = number(call(answer, *moved, case=case), what="The score")
        got = float(exact(torch.tensor(got, dtype=torch.float64), _right_score, *moved))
        missed = (y - y.mean(0)) - (x - x.mean(0)) @ torch.linalg.lstsq(x - x.mean(0), y).solution
        by_column = 1 - missed.square().sum(0) / (y - y.mean(0)).square().sum(0)
        if matches(got, by_column.mean()):
            raise Wrong(
                "You average the scores of the columns. Pool them: one sum of squares over all "
                "columns above, one below the fraction bar."
            )
        slips = {
            "The score is for predicting y from x; yours predicts x from y.": _right_score(y, y, x),
            "Each column has a mean of its own: take `x.mean(0)` away, not one mean of all entries.": (
                _uncentred_score(moved[0] - moved[0].mean(), moved[1] - moved[1].mean())
            ),
        }
        name_slip(got, share, slips)
        require_close(got, share, f"The score is not right {case}.", atol=1e-4)
    x, _ = _planted(0.5)
    got = number(call(answer, x, 3 * x[:, :2] - 7, case="when y is an affine function of x"))
    require_close(got, 1.0, "When y is exactly an affine function of x the score is 1.")
    return "Correct. Scale, shift or rotate x as you like: the score stays the same."


def _update_score(answer: Any) -> str:
    x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    y = x + torch.tensor([[1.0], [-2.0], [1.0]], dtype=torch.float64)  # adds nothing linear
    got = number(call(answer, x, y, case="when the update has no linear part"), what="The score")
    if matches(got, 0.25):
        raise Wrong("That is the score with the residual. Here only what the block adds counts.")
    require_close(got, 0.0, "This update is 1, -2, 1 at -1, 0, 1: no line explains any of it.")
    for seed in (5, 6):
        x = random_tensor(60, 3, seed=seed).double()
        y = x + 0.1 * torch.relu(x @ random_tensor(3, 3, seed=seed + 1).double())
        got = number(call(answer, x, y, case="on a small ReLU block"), what="The score")
        if matches(got, _right_score(y, x, y)):
            raise Wrong(
                "That is the score with the residual. Here only what the block adds counts."
            )
        want = _right_score(y, x, y - x)
        require_close(got, want, "The score of the update is not right.", atol=1e-4)
    return (
        "Correct. What the best map misses is the same with and without the residual; only the "
        "variance it is compared with is smaller."
    )


def _noise_score(answer: Any) -> str:
    columns, more = random_integers(2, 60, 2, seed=7)
    for n, d in ((11, 3), (151, 50), (2001, 40), (columns + 1 + more, columns)):
        got = number(call(answer, n, d, case=f"with n = {n} and d = {d}"), what="The score")
        right = matches(got, d / (n - 1), atol=1e-9)
        if matches(got, d / n, atol=1e-9) and not right:
            raise Wrong("Very near. Centring uses up one row: how many free directions are left?")
        if matches(got, 1 - d / (n - 1), atol=1e-9):
            raise Wrong("That is the share which stays unexplained.")
        require_close(got, d / (n - 1), f"Not right for n = {n} and d = {d}.", atol=1e-9)
    got = number(call(answer, 10, 20, case="with fewer rows than columns"), what="The score")
    require_close(got, 1.0, "With at least n - 1 columns any y is fitted exactly: the score is 1.")
    return "Correct. At n = 2d this is about one half, and there is nothing to explain at all."


def _held_out_score(answer: Any) -> str:
    x = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    y = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    new_x = torch.tensor([[3.0], [1.0]], dtype=torch.float64)
    new_y = torch.tensor([[7.0], [3.0]], dtype=torch.float64)
    # The line is 2 + 5/2 (x - 1): 7 and 2. Missed: 0 and 1. About the training mean 2: 25 + 1.
    got = number(call(answer, x, y, new_x, new_y, case="on two new points"), what="The score")
    name_slip(got, 1 - 1 / 26, _held_out_slips(x, y, new_x, new_y))
    require_close(got, 1 - 1 / 26, "The score on two new points is not right.")
    x, y = _planted(0.7, n=400, seed=3)
    x, y = x + torch.linspace(-3, 5, 4), y + torch.linspace(8, -8, 3)
    got = number(call(answer, x[:200], y[:200], x[200:], y[200:], case="on 400 planted rows"))
    centred = x[:200] - x[:200].mean(0)
    weight = torch.linalg.lstsq(centred, y[:200] - y[:200].mean(0)).solution
    missed = y[200:] - y[:200].mean(0) - (x[200:] - x[:200].mean(0)) @ weight
    want = 1 - missed.square().sum() / (y[200:] - y[:200].mean(0)).square().sum()
    by_column = missed.square().sum(0) / (y[200:] - y[:200].mean(0)).square().sum(0)
    name_slip(
        got,
        want,
        {
            "You average the scores of the columns. Pool them: one sum of squares over all columns above, "
            "one below the fraction bar.": (1 - by_column).mean()
        },
    )
    require_close(got, want, "The score on 200 new rows is not right.", atol=1e-4)
    scores = []
    for seed in range(20):
        data = random_tensor(4, 60, 20, seed=seed).double()
        scores.append(number(call(answer, *data, case="on independent noise")))
    if sum(scores) / 20 > -0.2 and min(scores) == 0:
        raise Wrong("A held-out score may be below zero: return it as it is, not 0 in its place.")
    if sum(scores) / 20 > -0.2:
        raise Wrong(
            "On independent noise (60 rows, 20 columns) a held-out score is below zero on average; "
            f"yours is {sum(scores) / 20:.2f}. Is the map fitted on the first two arguments alone?"
        )
    return "Correct. A map that learnt only accidents does worse than no map: below zero."


def _held_out_slips(x: Tensor, y: Tensor, new_x: Tensor, new_y: Tensor) -> dict[str, Any]:
    """What common slips give on the two new points, under what to say about each."""
    own = new_y - y.mean(0) - 2.5 * (new_x - new_x.mean(0))  # the rows about their own mean
    both = new_y - new_y.mean(0) - 2.5 * (new_x - new_x.mean(0))
    bare = new_y - new_x @ torch.linalg.lstsq(x, y).solution
    all_x, all_y = torch.cat([x, new_x]), torch.cat([y, new_y])
    slope = torch.linalg.lstsq(all_x - all_x.mean(0), all_y - all_y.mean(0)).solution
    joint = new_y - all_y.mean(0) - (new_x - all_x.mean(0)) @ slope
    return {
        "You subtract the mean of the test rows. That is knowledge of the test: take the mean of the rows "
        "that were fitted on.": 1 - 1 / 8,
        "That is the score on the rows that were fitted on. Score the other rows.": 1 - 1.5 / 14,
        "You fit the test rows as well. The map comes from the first two arguments.": 1.0,
        "The prediction starts at the mean of the fitted y: add it.": 1
        - (new_y - 2.5 * (new_x - 1)).square().sum() / 26,
        "The map needs an intercept: centre the fitted rows by their column means.": 1
        - bare.square().sum() / 26,
        "You take the mean of the test rows of x away. Take that of the rows that were fitted on.": 1
        - own.square().sum() / 26,
        "You take the means of the test rows away. Take those of the rows that were fitted on.": 1
        - both.square().sum() / 8,
        "You fit on all rows. The map comes from the first two arguments.": 1
        - joint.square().sum() / 26,
        "That is the share that is missed. The score is one minus that.": 1 / 26,
        "Below the fraction bar stand squares of distances from the fitted mean, not squares of y.": 1
        - 1 / 58,
        "Below the fraction bar stand the test rows, not those that were fitted on.": 1 - 1 / 14,
        "The score has squares above and below the fraction bar, without a root.": 1 - 26**-0.5,
    }


def _position_share(answer: Any) -> str:
    x = torch.tensor([[9.0, 0.0, 0.0], [9.0, 0.0, 0.0]])[..., None]
    # The mean is 3: squares 36, 9, 9 in each row.
    got = tensor(
        call(answer, x, case="on 2 rows of 3 positions"),
        shape=(3,),
        infinite="Is the mean that you take away one vector for all rows and positions together? A mean for "
        "each position leaves nothing here.",
    )
    if matches(got, torch.tensor([1.0, 0.0, 0.0])):
        raise Wrong("Take the mean over all tokens away first: a share of the variance, not of x².")
    first: dict[str, Any] = {
        "The variance is made of squares of the distances from the mean; yours are not squared.": [
            0.5,
            0.25,
            0.25,
        ],
        "Divide by the sum over all tokens, so that the shares sum to one.": [72.0, 18.0, 18.0],
        "Sum over rows and divide by the sum of all; yours are means.": [2.0, 0.5, 0.5],
    }
    name_slip(got, [2 / 3, 1 / 6, 1 / 6], first)
    require_close(got, [2 / 3, 1 / 6, 1 / 6], "The shares are not right.")
    x = random_tensor(7, 5, 4, seed=8) + torch.tensor([-3.0, 1.0, 4.0, 8.0])
    x[:, 0] *= 5
    x += 4 * random_tensor(7, 1, 4, seed=18)  # rows differ, so that their own means tell
    got = tensor(call(answer, x, case="with a large first position"), shape=(5,))
    wide = x.double()
    away = wide - wide.mean((0, 1))
    want = away.square().sum((0, 2)) / away.square().sum()
    rows = away.square().sum(2)
    slips = {
        said: (wide - mean).square().sum((0, 2)) / (wide - mean).square().sum()
        for said, mean in {
            "The mean is a vector: one number for each column, not one for all entries.": wide.mean(),
            "Take one mean over rows and positions; yours is a mean for each position.": wide.mean(
                0
            ),
            "Take one mean over rows and positions; yours is a mean for each row.": wide.mean(
                1, True
            ),
            "Take the mean over rows and positions away, not that of each token's own entries.": wide.mean(
                2, True
            ),
        }.items()
    }
    said = "Divide once, by the sum of all rows; yours is the mean of a share for each row."
    name_slip(got, want, slips | {said: (rows / rows.sum(1, keepdim=True)).mean(0)})
    require_close(got.sum(), 1.0, "The shares should sum to one.")
    require_close(got, want, "The shares of random rows are not right.")
    return "Correct. With a large first position nearly all of the variance stands there."


def _cross_entropy(logits: Tensor, tokens: Tensor) -> float:
    pairs = logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])
    return -float(pairs.double().mean())


def _loss_with_map(answer: Any) -> str:
    model = toy_model(n_layers=3, d_model=16, d_vocab=20, n_ctx=12, attn_only=False, seed=4)
    tokens = torch.randint(20, (5, 12), generator=generator(0))
    with torch.no_grad():
        before = model(tokens)
        for layer, seed in ((2, 1), (0, 2), (1, 0)):
            weight, bias = random_tensor(16, 16, seed=seed), 4 * random_tensor(16, seed=seed + 9)
            if layer == 1:
                weight, bias = torch.eye(16), torch.zeros(16)
            case = f"with a map in place of block {layer} of 3"
            value = call(answer, model, tokens, layer, weight, bias, case=case)
            got = number(value, what="The loss")
            want, slips = _map_losses(model, tokens, layer, weight, bias)
            name_slip(got, want, slips)
            require_close(got, want, f"The loss is not right {case}.")
            if not torch.equal(model(tokens), before):
                raise Wrong(
                    "After your function the model gives other logits than before: a hook stays in "
                    "place. Use run_with_hooks, which removes them."
                )
    return "Correct. The weights are untouched; the model only thinks that its block said so."


def _map_losses(
    model: Any, tokens: Tensor, layer: int, weight: Tensor, bias: Tensor
) -> tuple[float, dict[str, float]]:
    """The loss with the map in place, and what common slips give, under what to say about each."""
    states = run(model, tokens, record=[(layer, "resid_pre"), (layer, "resid_post")])
    inside, outside = states[layer, "resid_pre"], states[layer, "resid_post"]
    mapped = inside @ weight + bias
    written = {
        "Your map reads the output of the block. It should read the block's input, and stand where the "
        "output stood.": outside @ weight + bias,
        "The bias is missing: the block gives x @ weight + bias.": inside @ weight,
        "Your weight is transposed: the block gives x @ weight + bias.": inside @ weight.T + bias,
        "You add the map to the stream that comes in. It stands for the whole block, stream included: the "
        "block gives x @ weight + bias alone.": inside + mapped,
        "You add the map to what the block gave. Put it in its place.": outside + mapped,
        "This is the loss of the whole model: your hook changes nothing.": outside,
    }
    put = {said: _put(model, tokens, layer, value) for said, value in written.items()}
    put[
        "You change what enters the block, and the block still runs. Put the map where its output stood, "
        "at hook_resid_post."
    ] = _put(model, tokens, layer, mapped, site="resid_pre")
    logits = _put(model, tokens, layer, mapped)
    want, own = _cross_entropy(logits, tokens), logits.log_softmax(-1).gather(2, tokens[..., None])
    return want, {said: _cross_entropy(slip, tokens) for said, slip in put.items()} | {
        "You score each position on its own token. Its logits predict the next one: `logits[:, :-1]` against "
        "`tokens[:, 1:]`.": -float(own.double().mean()),
        "You return the sum over all predictions. Return their mean.": want * tokens[:, 1:].numel(),
    }


def _put(
    model: Any,
    tokens: Tensor,
    layer: int,
    value: Tensor,
    site: Literal["resid_pre", "resid_post"] = "resid_post",
) -> Tensor:
    found = run(model, tokens, edits=[((layer, site), lambda _: value)]).logits
    if found is None:
        raise Wrong("The model gave no logits.")
    return found


def _penalty_slips(wide: Tensor) -> dict[str, Tensor]:
    """What common slips give on these states, under what to say about each."""
    cosine = torch.nn.functional.cosine_similarity
    cos = cosine(wide[:-1], wide[1:], dim=-1)  # block, row, position
    dots = (wide[:-1] * wide[1:]).sum(-1)
    return {
        "Sum over blocks; only tokens are averaged.": (1 - cos).mean(),
        "Average over tokens; you add them up.": (1 - cos).sum(),
        "Average over rows and positions, and sum over blocks; you sum over positions as well.": (
            1 - cos
        )
        .mean(1)
        .sum(),
        "Average over rows and positions, and sum over blocks; yours is the other way round.": (
            1 - cos
        )
        .sum((1, 2))
        .mean(),
        "Each block counts 1 - cos, so that a block which does not turn counts nothing; yours adds up cos.": (
            cos.mean((1, 2)).sum()
        ),
        "Each block counts 1 - cos; yours counts -cos.": -cos.mean((1, 2)).sum(),
        "Each block counts 1 - cos of its own; yours takes the sum away from 1 once.": 1
        - cos.mean((1, 2)).sum(),
        "The sign is wrong: each block counts 1 - cos.": -(1 - cos).mean((1, 2)).sum(),
        "A cosine is the dot product over both lengths: divide by them.": (1 - dots)
        .mean((1, 2))
        .sum(),
        "Compare each boundary with the next; yours compares all with the first.": (
            (1 - cosine(wide[:1].expand_as(wide[1:]), wide[1:], dim=-1)).mean((1, 2)).sum()
        ),
        "Compare each boundary with the next; yours compares the first with the last.": (
            1 - cosine(wide[0], wide[-1], dim=-1)
        ).mean(),
        "Compare a token with itself one block later, along the first axis; yours compares neighbours in the "
        "text.": (1 - cosine(wide[:, :, :-1], wide[:, :, 1:], dim=-1)).mean((1, 2)).sum(),
        "The cosine runs over the width of the stream, the last axis: dim=-1.": (
            (1 - cosine(wide[:-1], wide[1:], dim=1)).mean((1, 2)).sum()
        ),
        "The cosine keeps its sign: a block that turns the stream round counts 2.": (
            (1 - cos.abs()).mean((1, 2)).sum()
        ),
        "Each block counts 1 - cos, not 1 - cos².": (1 - cos.square()).mean((1, 2)).sum(),
        "Each block counts 1 - cos, not the angle.": cos.arccos().mean((1, 2)).sum(),
        "You leave out the last block: there is one block less than boundaries.": (
            (1 - cos[:-1]).mean((1, 2)).sum()
        ),
    }


def _cosine_penalty(answer: Any) -> str:
    states = random_tensor(4, 2, 5, 6, seed=11)
    got = number(call(answer, states, case="on random states"), what="The penalty")
    unit = states.double() / states.double().norm(dim=-1, keepdim=True)
    want = sum((1 - (unit[k] * unit[k + 1]).sum(-1)).mean() for k in range(3))
    name_slip(got, want, _penalty_slips(states.double()))
    require_close(got, want, "The penalty of random states is not right.")
    hand = torch.tensor([[[[1.0, 0.0], [2.0, 0.0]]], [[[0.0, 3.0], [1.0, 0.0]]]])
    hand = torch.cat([hand, torch.tensor([[[[0.0, -1.0], [4.0, 0.0]]]])])
    # Token 0 turns by 90° and then by 180°: 1 + 2. Token 1 never turns: 0. Mean 1.5.
    got = number(call(answer, hand, case="on 3 boundaries and 2 tokens"), what="The penalty")
    require_close(got, 1.5, "The penalty of turns by 90° and 180° is not right.")
    scaled = states * torch.tensor([1.0, 10.0, 0.1, 5.0]).view(4, 1, 1, 1)
    got = number(call(answer, scaled, case="on rescaled states"), what="The penalty")
    require_close(got, want, "Only the angle counts: rescaling a layer should change nothing.")
    return "Correct. It asks every block to turn the stream as little as it can."


EXERCISES: dict[str, Exercise] = {
    "4.1": Exercise(
        _linearity_score,
        (
            "Take the column means away from x and y. Then no intercept is needed.",
            "`A = torch.linalg.lstsq(x, y).solution` is the best map of the centred rows.",
            "One minus (sum of squares of `y - x @ A`) over (sum of squares of centred `y`).",
        ),
    ),
    "4.2": Exercise(
        _update_score,
        (
            "A block computes y = x + (what it adds). Score what it adds.",
            "You have a function that scores any pair of activations: call it.",
        ),
    ),
    "4.3": Exercise(
        _noise_score,
        (
            "A random vector has the same length, on average, along each of its free directions.",
            "Centred columns of n rows have n - 1 free directions; x spans d of them.",
        ),
    ),
    "4.4": Exercise(
        _held_out_score,
        (
            "Means and map come from the first two arguments. Nothing is computed from the test but "
            "the score.",
            "Prediction: `y_fit.mean(0) + (x_test - x_fit.mean(0)) @ A`.",
            "Below the fraction bar stands the distance of y_test from the mean of y_fit.",
        ),
    ),
    "4.5": Exercise(
        _position_share,
        (
            "The mean is one vector: over sequences and positions together.",
            "Square the distances from it, sum over sequences and width, divide by the sum of all.",
        ),
    ),
    "4.6": Exercise(
        _loss_with_map,
        (
            "Two hooks: one at `hook_resid_pre` that remembers its value, one at `hook_resid_post` "
            "that returns a new one.",
            "A dictionary outside both hooks carries the input from the first to the second.",
            "`torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), "
            "tokens[:, 1:].flatten())`",
        ),
    ),
    "4.7": Exercise(
        _cosine_penalty,
        (
            "`states[:-1]` and `states[1:]` are the streams before and after each block.",
            "`torch.nn.functional.cosine_similarity(..., dim=-1)`, then sum over blocks and average "
            "over tokens.",
        ),
    ),
}
