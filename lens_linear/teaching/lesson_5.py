"""Checks of lesson 5 (how linear is an FFN)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lens_linear.teaching.answers import (
    Exercise,
    Wrong,
    call,
    exact,
    matches,
    number,
    random_integers,
    random_tensor,
    require_close,
    row_largest,
    tensor,
)


def _activation_score(answer: Any) -> str:
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    # relu: 0, 0, 1, 2. Slope 3.5/5; variance of y 2.75, explained 0.7 * 3.5 = 2.45.
    want = 2.45 / 2.75
    got = number(call(answer, torch.relu, x, case="for relu at -1, 0, 1, 2"), what="The score")
    if matches(got, want**0.5):
        raise Wrong("That is the correlation. R² is its square.")
    if matches(got, 1 - (x.relu() - x * 5 / 6).square().sum() / x.relu().square().sum()):
        raise Wrong("Centre first: an affine map may have an intercept.")
    require_close(got, want, "The score of relu at four points is not right.")
    x = random_tensor(4000, seed=1).double()
    for mean, case in ((3.0, "far to the right"), (0.0, "around the kink")):
        y = torch.relu(x + mean)
        got = number(call(answer, torch.relu, x + mean, case=f"for relu {case}"))
        want = float(torch.corrcoef(torch.stack([x, y]))[0, 1] ** 2)
        require_close(got, want, f"The score of relu {case} is not right.")
    got = number(call(answer, torch.square, x, case="for the square"), what="The score")
    if got > 0.05:
        raise Wrong("The square of a symmetric input has no linear part; its score is about 0.")
    return "Correct. Nonlinear is not a property of the function alone: it needs an input."


def _fit_affine(answer: Any) -> str:
    x = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
    weight, bias = _pair(answer, x, y, case="on three points")
    require_close(weight, [[2.5]], "The slope of the three points is not right.")
    require_close(bias, [0.5], "The slope is right, the intercept is not.")
    x = random_tensor(50, 4, seed=2).double() * torch.tensor([1.0, 1e3, 1.0, 1e-2]).double() + 5
    y = random_tensor(50, 3, seed=3).double() + x[:, :3]
    weight, bias = _pair(answer, x, y, case="on ill-scaled inputs")
    missed = y - x @ weight - bias
    require_close(
        missed.mean(0), torch.zeros(3), "What is missed should have mean zero.", atol=1e-5
    )
    touch = (x - x.mean(0)).T @ missed / ((x - x.mean(0)).norm(dim=0)[:, None] * missed.norm(dim=0))
    if float(touch.abs().max()) > 1e-5:
        raise Wrong(
            "What is missed should be uncorrelated with every input column; yours is not (largest "
            f"correlation {float(touch.abs().max()):.2g}). A better map exists."
        )
    _equal_columns(answer)
    return "Correct. No learning rate, no steps, no seed."


def _equal_columns(answer: Any) -> None:
    # Columns of one size: how a solver judges the rank should not be a matter of rounding here.
    x, y = random_tensor(50, 2, seed=14).double() + 1, random_tensor(50, 3, seed=15).double()
    twin = torch.cat([x[:, :1], x], dim=1)
    best = torch.linalg.pinv(x - x.mean(0)) @ (y - y.mean(0))
    want = y.mean(0) + (x - x.mean(0)) @ best
    # Several times: the default driver of torch.linalg.lstsq answers now right, now wrong.
    for _ in range(8):
        weight, bias = _pair(answer, twin, y, case="when two columns are equal")
        require_close(
            twin @ weight + bias,
            want,
            "With two equal columns the prediction is not the best one. Take a solver that finds the "
            "rank: torch.linalg.pinv, or torch.linalg.lstsq with driver='gelsd'. Inverting XᵀX needs full "
            "rank, and so does lstsq with its default driver.",
            atol=1e-3,
            show=False,
        )


def _pair(answer: Any, x: Tensor, y: Tensor, *, case: str) -> tuple[Tensor, Tensor]:
    value = call(answer, x, y, case=case)
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise Wrong("Return two tensors: the weight and the bias.")
    weight = tensor(value[0], shape=(x.shape[1], y.shape[1]), what="The weight")
    bias = tensor(value[1], shape=(y.shape[1],), what="The bias")
    both = exact(torch.cat([weight, bias[None]]), _nearest_map, x, y, size=_size_of_map)
    return both[:-1], both[-1]


def _nearest_map(both: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The nearest of the affine maps that fit best, of which there are many where columns are equal."""
    mean_x, mean_y, weight = x.mean(0), y.mean(0), both[:-1]
    weight = weight + torch.linalg.pinv(x - mean_x) @ (y - mean_y - (x - mean_x) @ weight)
    return torch.cat([weight, (mean_y - mean_x @ weight)[None]])


def _size_of_map(both: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The largest weight of each input; of the bias, the largest of the terms that cancel in it."""
    terms = torch.cat([y.mean(0)[None], x.mean(0)[:, None] * both[:-1]])
    return torch.cat([row_largest(both[:-1]), row_largest(terms).amax(0, keepdim=True)])


def _times_fewer(answer: Any) -> str:
    got = number(call(answer, 10, 40, None, case="for a full map"), what="The ratio")
    # FFN: 2 · 400 weights, 40 + 10 biases. Map: 100 weights, 10 biases.
    if matches(got, 8.0):
        raise Wrong("Count the biases too: one for each hidden unit, and one for each output.")
    if matches(got, 110 / 850):
        raise Wrong("Upside down: how many times fewer does the map need?")
    require_close(got, 850 / 110, "The ratio for d_model 10, d_mlp 40 is not right.")
    got = number(call(answer, 10, 40, 2, case="for a map of rank 2"), what="The ratio")
    if matches(got, 850 / 30):
        raise Wrong(
            "A map of rank r is two thin matrices, [d, r] and [r, d]; you count only one of them."
        )
    require_close(got, 850 / 50, "The ratio for a map of rank 2 is not right.")
    got = number(call(answer, 2, 3, None, case="for a tiny FFN"), what="The ratio")
    require_close(
        got, 17 / 6, "The ratio for d_model 2, d_mlp 3 is not right: 12 + 3 + 2 over 4 + 2."
    )
    rank, d, wide = sorted(random_integers(1, 90, 3, seed=16))
    ffn = 2 * d * wide + wide + d
    for thin, size in ((None, d * d + d), (rank, 2 * rank * d + d)):
        case = f"for d_model {d}, d_mlp {wide} and rank {thin}"
        got = number(call(answer, d, wide, thin, case=case), what="The ratio")
        require_close(got, ffn / size, f"The ratio is not right {case}.")
    return "Correct. A full map saves a factor of about eight; a thin one far more."


def _low_rank_map(answer: Any) -> str:
    for seed, scale in ((4, (1.0, 1.0, 1.0, 1.0)), (5, (100.0, 1.0, 1.0, 0.01))):
        x = (random_tensor(200, 4, seed=seed).double() + 2) * torch.tensor(scale).double()
        weight = random_tensor(4, 5, seed=seed + 10).double()
        weight = weight / torch.tensor(scale).double()[:, None] ** 0.5
        centred = x - x.mean(0)
        for rank in (1, 2, 4):
            case = f"with rank {rank}"
            got = tensor(call(answer, x, weight, rank, case=case), shape=(4, 5), what="The map")
            got = exact(got, partial(_best_map, rank), x, weight, size=row_largest)
            values = torch.linalg.svdvals(got)
            if int((values > 1e-6 * values[0]).sum()) > rank:
                raise Wrong(f"Your map has a rank above {rank}.")
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            cut = (u[:, :rank] * s[:rank]) @ vh[:rank]
            sizes = torch.linalg.svdvals(centred @ weight)
            least = float(sizes[rank:].square().sum())
            lost = float((centred @ (weight - got)).square().sum())
            cut_lost = float((centred @ (weight - cut)).square().sum())
            if cut_lost > 1.001 * least + 1e-9 and matches(got, cut, atol=1e-4):
                raise Wrong(
                    "You cut the singular values of the weight. Directions in which x hardly varies do "
                    "not matter: cut those of the centred output, (x - mean) @ weight."
                )
            total = float(sizes.square().sum())
            rows = torch.linalg.svd(x @ weight, full_matrices=False)[2][:rank]
            if lost > least + 1e-6 * total and matches(got, weight @ rows.T @ rows):
                raise Wrong(
                    "You forgot to centre: take the mean of x away first. The bias takes care of it."
                )
            if lost > least + 1e-4 * total:
                raise Wrong(
                    f"With rank {rank} your map loses {lost / total:.3f} of the output's variance; the "
                    f"best one loses {least / total:.3f}."
                )
    return "Correct. The best map of low rank looks at the outputs, not at the weights."


def _best_map(rank: int, _: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    rows: Tensor = torch.linalg.svd((x - x.mean(0)) @ weight, full_matrices=False)[2][:rank]
    return weight @ rows.T @ rows


def _bilinear(answer: Any) -> str:
    x = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    a, b = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    c = torch.tensor([[1.0, 0.0, 0.0], [0.0, 10.0, 0.0]])
    # Row 0: 1·2 = 2 and 3·2 = 6. Row 1: 0·3 = 0 and 3·3 = 9.
    want = torch.tensor([[2.0, 60.0, 0.0], [0.0, 90.0, 0.0]])
    got = tensor(call(answer, x, a, b, c, case="with two products"), shape=(2, 3))
    if matches(got, (x @ a.T + x @ b.T) @ c):
        raise Wrong("Multiply the two readings; you add them, which is linear again.")
    if matches(got, (x @ a.T) @ c) or matches(got, (x @ b.T) @ c):
        raise Wrong("Only one of the two readings is used.")
    require_close(got, want, "The sum of products is not right.")
    x, a, b = random_tensor(6, 4, seed=1), random_tensor(3, 4, seed=2), random_tensor(3, 4, seed=3)
    c = random_tensor(3, 5, seed=4)
    want = torch.einsum("nd,kd,ne,ke,km->nm", x, a, x, b, c)
    got = tensor(call(answer, x, a, b, c, case="on random tensors"), shape=(6, 5))
    require_close(got, want, "Right on the small case, wrong on random tensors.", show=False)
    return "Correct. Double x and the result is four times as large: it is quadratic."


def _error_left(answer: Any) -> str:
    values = torch.tensor([1.0, 0.5, 0.01])
    got = tensor(call(answer, values, 2, case="after 2 steps"), shape=(3,), what="The error")
    want = torch.tensor([0.0, 0.25, 0.99**2])
    if matches(got, 1 - want):
        raise Wrong("That is the share that has been learnt. Asked for is the share that is left.")
    if matches(got, (1 - values).clamp(min=0)):
        raise Wrong("That is the share left after one step; each step multiplies again.")
    require_close(got, want, "For eigenvalues 1, 0.5, 0.01 the shares after 2 steps are not right.")
    values = torch.tensor([400.0, 100.0, 4.0, 0.04])
    got = tensor(call(answer, values, 7, case="when the largest is 400"), shape=(4,))
    want = (1 - values.double() / 400) ** 7
    if matches(got, (1 - values.double()) ** 7, rtol=1e-3):
        raise Wrong("The step is one over the largest eigenvalue; you take a step of 1.")
    require_close(got, want, "For a largest eigenvalue of 400 the shares are not right.")
    got = tensor(call(answer, values, 0, case="after 0 steps"), shape=(4,))
    require_close(got, torch.ones(4), "Before the first step everything is left.")
    values, steps = random_tensor(6, seed=17).abs() + 0.1, random_integers(2, 9, 1, seed=18)[0]
    got = tensor(call(answer, values, steps, case=f"after {steps} steps"), shape=(6,))
    want = (1 - values.double() / values.double().max()) ** steps
    require_close(got, want, f"For other eigenvalues the shares after {steps} steps are not right.")
    return (
        "Correct. The smallest direction hardly moves: its speed is one over the condition number."
    )


EXERCISES: dict[str, Exercise] = {
    "5.1": Exercise(
        _activation_score,
        (
            "For one input and one output R² is the squared correlation.",
            "Centre x and y; then (Σ x y)² / (Σ x² Σ y²).",
        ),
    ),
    "5.2": Exercise(
        _fit_affine,
        (
            "Centre both, solve for the weight, and find the bias from the means.",
            "weight = `torch.linalg.pinv(x - mean_x) @ (y - mean_y)`.",
            "bias = `mean_y - mean_x @ weight`.",
        ),
    ),
    "5.3": Exercise(
        _times_fewer,
        (
            "FFN: two matrices of d_model × d_mlp, and d_mlp + d_model biases.",
            "Full map: d_model² weights and d_model biases. Rank r: 2 · d_model · r weights.",
        ),
    ),
    "5.4": Exercise(
        _low_rank_map,
        (
            "Which outputs does the map make? Find the directions in which these vary most.",
            "`V = torch.linalg.svd((x - x.mean(0)) @ weight, full_matrices=False).Vh[:rank].T`",
            "Project the outputs on these directions: `weight @ V @ V.T`.",
        ),
    ),
    "5.5": Exercise(
        _bilinear,
        (
            "All readings at once: `x @ a.T` has shape [n, k], and so has `x @ b.T`.",
            "Multiply the two entry by entry, then `@ c`.",
        ),
    ),
    "5.6": Exercise(
        _error_left,
        (
            "One step takes the error e along an eigenvector of eigenvalue λ to (1 - η λ) e.",
            "η is one over the largest eigenvalue; after t steps the factor stands to the power t.",
        ),
    ),
}
