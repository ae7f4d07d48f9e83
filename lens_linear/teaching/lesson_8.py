"""Checks of lesson 8: your own model and your own analysis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lens_linear.linalg.moments import Moments
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
from lens_linear.teaching.lesson_2 import softmax_rows


def _softmax_by_hand(q: Tensor, k: Tensor, scale: float) -> Tensor:
    rows, _, heads, _ = q.shape
    scores = [[q[row, :, head] @ k[row, :, head].T for head in range(heads)] for row in range(rows)]
    return softmax_rows(scale * torch.stack([torch.stack(row) for row in scores]))


def _pattern_from_qk(answer: Any) -> str:
    q, k = random_tensor(3, 5, 2, 9, seed=1), random_tensor(3, 5, 2, 9, seed=2)
    got = tensor(call(answer, q, k, case="with 3 rows of 5 tokens and 2 heads"), what="The pattern")
    if tuple(got.shape) != (3, 2, 5, 5):
        raise Wrong(
            f"The pattern has shape {tuple(got.shape)}, but it should be [row, head, query, key], here "
            "(3, 2, 5, 5). The heads are the third axis of q and k, and the second of the pattern."
        )
    want = _softmax_by_hand(q, k, 1 / 3)
    if bool((got.triu(1).abs() > 1e-6).any()):
        raise Wrong(
            "A query gives attention to keys that come after it. Put -inf there before the softmax."
        )
    sums = got.sum(-1)
    require_close(
        sums,
        torch.ones_like(sums),
        "Each query's row must sum to one. Mask before the softmax, not after it, and take it over keys.",
        show=False,
    )
    if matches(got, _softmax_by_hand(q, k, 1.0)):
        raise Wrong("The scale is missing: divide the scores by the square root of d_head.")
    if matches(got, _softmax_by_hand(k, q, 1 / 3)):
        raise Wrong("Queries and keys are swapped: the first of the last two axes is the query.")
    require_close(got, want, "The rows sum to one, but the attention is not right.")
    return (
        "Correct. If this agrees with a model's own pattern, you read its queries and keys right."
    )


def _update_classes(answer: Any) -> str:
    x, y = random_tensor(30, 2, seed=3), random_tensor(30, 3, seed=4)
    classes = torch.arange(30) % 3
    classes[classes == 2] = 5
    held: dict[int, Moments] = {}
    for part in (slice(0, 12), slice(12, 30)):
        got = call(answer, held, x[part], y[part], classes[part], case="with three classes")
        if got is None:
            raise Wrong("The result is None. Return `held` at the end.")
        if not isinstance(got, dict):
            raise Wrong(f"Return the dict `held`; yours is of type {type(got).__name__}.")
        if got is not held:
            raise Wrong("Change `held` itself and return it; yours is a new dict.")
    if any(isinstance(key, Tensor) for key in held):
        raise Wrong("The keys of `held` are tensors. Use plain ints: `classes.unique().tolist()`.")
    if set(held) != {0, 1, 5}:
        raise Wrong(f"The classes here are 0, 1 and 5, but your dict has the keys {sorted(held)}.")
    for kind, moments in held.items():
        if not isinstance(moments, Moments):
            raise Wrong(f"held[{kind}] should be an ll.Moments, not a {type(moments).__name__}.")
        own = classes == kind
        if moments.n != int(own.sum()):
            raise Wrong(
                f"Class {kind} has {int(own.sum())} rows in two batches, but its Moments has seen "
                f"{moments.n}. Add to what is held already, and only the rows of that class."
            )
        if moments.mean_x.shape != x.shape[1:] or moments.mean_y.shape != y.shape[1:]:
            raise Wrong(
                f"x has {x.shape[1]} columns and y {y.shape[1]}, but the Moments of class {kind} have seen "
                f"{len(moments.mean_x)} and {len(moments.mean_y)}. `.update` takes rows of x, then rows of y."
            )
        require_close(moments.mean_x, x[own].mean(0), f"Class {kind} has seen the wrong rows of x.")
        require_close(moments.mean_y, y[own].mean(0), f"Class {kind} has seen the wrong rows of y.")
    return "Correct. Memory does not grow with the number of rows."


def _residual(answer: Any) -> str:
    x, y = random_tensor(40, 3, seed=5), random_tensor(40, 2, seed=6)
    y = y + x[:, :2] + 2
    fit = Moments().update(x, y).fit()
    for rows, case in (
        ((x, y), "on the rows of the fit"),
        ((random_tensor(25, 3, seed=7) + 1, random_tensor(25, 2, seed=8)), "on other rows"),
    ):
        moments = Moments().update(*rows)
        errors = rows[1].double() - rows[0].double() @ fit.weight - fit.bias
        want = float(errors.square().sum())
        got = number(call(answer, moments, fit, case=case), what="The residual")
        offset = moments.mean_y - moments.mean_x @ fit.weight - fit.bias
        last = float(moments.n * offset.square().sum())
        if case == "on other rows" and matches(got, want - last):
            raise Wrong(
                "The last term is missing: n times the squared distance between the mean of y and what the "
                "map makes of the mean of x. It is zero only on the rows of the fit."
            )
        if case == "on other rows" and matches(got, want - last + last / moments.n):
            raise Wrong("Multiply the last term by the number of rows, `moments.n`.")
        if matches(got, want / moments.n):
            raise Wrong("That is the mean over rows. Return the sum.")
        require_close(got, want, f"The sum of squared residuals is not right {case}.")
    return "Correct. The rows are gone, and their residuals are still known exactly."


def _class_figure(answer: Any) -> str:
    import plotly.graph_objects as go

    gains = random_tensor(4, 3, seed=9)
    names = ["first", "second", "<b>bold</b>"]
    got = call(answer, gains, names, case="with 4 layers and 3 classes")
    if got is None:
        raise Wrong("The result is None. Return the figure; do not call `.show()`.")
    if not isinstance(got, go.Figure):
        raise Wrong(f"Return a plotly figure; yours is of type {type(got).__name__}.")
    lines: list[Any] = [trace for trace in got.data if isinstance(trace, go.Scatter)]
    if len(lines) != 3:
        raise Wrong(f"Draw one line for each of the 3 classes; yours has {len(lines)} lines.")
    for index, line in enumerate(lines):
        values = tensor(list(line.y), what=f"Line {index}")
        if values.numel() == 3:
            raise Wrong("You draw one line a layer. Draw one line a class: take a column of gains.")
        require_close(
            values, gains[:, index].double(), f"Line {index} should be gains[:, {index}]."
        )
        if line.x is not None and len(line.x) != 4:
            raise Wrong(f"You give {len(line.x)} places on the x axis for 4 layers.")
        if line.x is not None and list(line.x) != sorted(line.x, key=str):
            raise Wrong("Draw the layers from the first to the last: the x axis goes up.")
    if lines[2].name == names[2]:
        raise Wrong("Plotly would read <b> in a class name as markup. Put names through `escape`.")
    if [line.name for line in lines[:2]] != names[:2]:
        raise Wrong(
            f"Name the lines after their classes; yours are {[line.name for line in lines]}."
        )
    inks = {(line.line.color or (line.marker.color if line.marker else None)) for line in lines}
    if None in inks or len(inks) != 3:
        raise Wrong("Give each line a colour of its own: `line_color=colour(index)`.")
    layout: Any = got.layout
    titles = {
        "title": layout.title.text,
        "x axis": layout.xaxis.title.text,
        "y axis": layout.yaxis.title.text,
    }
    missing = [name for name, text in titles.items() if not text]
    if missing:
        raise Wrong(f"These have no title: {', '.join(missing)}. `styled` sets all three.")
    return "Correct. A result in, a figure out, nothing computed on the way."


def _diagonal_z(answer: Any) -> str:
    draws = generator(10)
    orders = torch.stack([torch.randperm(12, generator=draws) for _ in range(6)])
    A, B = random_tensor(12, 3, seed=11), random_tensor(3, 12, seed=12)
    for planted in (False, True):
        factor = A.T.contiguous() if planted else B
        case = "with a planted diagonal" if planted else "with random factors"
        M = (A @ factor).double()
        chance = torch.stack(
            [torch.stack([M[a, order[a]] for a in range(12)]).mean() for order in orders]
        )
        own = M.diagonal().mean()
        want = float((own - chance.mean()) / chance.std())
        got = number(call(answer, A, factor, orders, case=case), what="z")
        if matches(got, float((own - chance.mean()) / chance.std(correction=0))):
            raise Wrong("Use the standard deviation with n - 1, as `torch.std` does.")
        if matches(got, float((own - M.mean()) / M.std())):
            raise Wrong(
                "That compares with all entries of the table. Asked for is the spread of the *mean* diagonal "
                "over the permutations, which is much smaller."
            )
        if matches(got, -want):
            raise Wrong("The sign is wrong: a diagonal above chance has positive z.")
        if matches(got, float(own)):
            raise Wrong("That is the mean diagonal. Compare it with its values over permutations.")
        require_close(got, want, f"z is not right {case}.", atol=1e-3, rtol=1e-3)
    return "Correct. A number with its chance level beside it."


def _text_rows(answer: Any) -> str:
    stream = torch.arange(10, 21)  # 11 tokens: three rows of 1 + 3, two left over
    rows = call(answer, stream, 4, 7, case="with 11 tokens and length 4")
    got = tensor(rows, what="The rows")
    if isinstance(rows, Tensor) and rows.is_floating_point():
        raise Wrong(
            f"Your rows are {rows.dtype}; token ids are whole numbers, and a model takes no others. Make the "
            "column of `start` with `torch.full((n, 1), start)`, not with `torch.zeros` or `torch.ones`."
        )
    if got.ndim == 2 and got.shape[1] != 4:
        raise Wrong(
            f"Your rows have {got.shape[1]} tokens; `length` counts the start token too, so 4."
        )
    if got.ndim != 2:
        raise Wrong(f"Return a table of rows; yours has shape {tuple(got.shape)}.")
    if not bool((got[:, 0] == 7).all()):
        raise Wrong("Every row begins with `start`, not the first one only.")
    if len(got) == 4:
        raise Wrong("The last row is not full. Leave it out, and fill it with nothing.")
    want = torch.tensor([[7, 10, 11, 12], [7, 13, 14, 15], [7, 16, 17, 18]])
    if len(got) != 3:
        raise Wrong(f"11 tokens make 3 rows of a start and 3 tokens; yours has {len(got)} rows.")
    require_close(
        got, want.double(), "The tokens are not those of the stream, in order, each once."
    )
    stream = torch.randint(100, (50,), generator=generator(13))
    got = tensor(call(answer, stream, 6, 0, case="with 50 tokens and length 6"), shape=(10, 6))
    require_close(
        got[:, 1:].flatten(), stream.double(), "With 50 tokens and length 6 none is left over."
    )
    return "Correct. Rows like those that a model was trained on."


def _average_last_head(answer: Any) -> str:
    z = random_tensor(2, 3, 4, 5, seed=14)
    spoilt = "Your hook changes z itself. Work on a copy: `z.clone()`."
    result = call(answer, z, None, case="with 4 heads", untouched=spoilt)
    if result is None:
        raise Wrong("A hook that returns nothing changes nothing. Return the new tensor.")
    got = tensor(result, shape=(2, 3, 4, 5), what="What the hook returns")
    if matches(got, z):
        raise Wrong("Nothing has changed: the last head should be at its mean.")
    require_close(got[:, :, :3], z[:, :, :3], "The other heads should stay as they were.")
    last = z[:, :, 3].double()
    if matches(got[:, :, 3], torch.zeros(2, 3, 5)):
        raise Wrong("That is zero ablation. Put the head's mean in its place.")
    if matches(got[:, :, 3], last.mean(0, keepdim=True).expand(2, 3, 5)):
        raise Wrong("That is a mean for each position. Average over rows *and* positions.")
    if matches(got[:, :, 3], last.mean(1, keepdim=True).expand(2, 3, 5)):
        raise Wrong("That is a mean for each row. Average over rows *and* positions.")
    if matches(got[:, :, 3], last.mean().expand(2, 3, 5)):
        raise Wrong("Keep the mean a vector: one number for each of the d_head values.")
    want = torch.stack([last[r, p] for r in range(2) for p in range(3)]).mean(0)
    require_close(
        got[:, :, 3], want.expand(2, 3, 5), "The last head should be at its mean everywhere."
    )
    return "Correct. The same function runs on any model with hooks of this shape."


EXERCISES: dict[str, Exercise] = {
    "8.1": Exercise(
        _pattern_from_qk,
        (
            'All dot products at once: `torch.einsum("rqhd,rkhd->rhqk", q, k)`.',
            "`torch.ones(n, n, dtype=torch.bool).triu(1)` is true where a key comes after its query; "
            '`masked_fill(..., float("-inf"))`, then softmax over the last axis.',
        ),
    ),
    "8.2": Exercise(
        _update_classes,
        (
            "For each class that occurs, choose its rows with a mask: `x[classes == kind]`.",
            "`held.setdefault(kind, ll.Moments())` gives what is there or starts a new one; `.update` adds.",
        ),
    ),
    "8.3": Exercise(
        _residual,
        (
            "Copy the formula term by term. A trace of a product is a sum of products: "
            "`tr(Wᵀ S) = (W * S).sum()`.",
            "The three first terms: `scatter_y.sum()`, `(W * sxy).sum()`, `(W * (sxx @ W)).sum()`. The last: "
            "`n` times the squared length of `mean_y - mean_x @ W - b`.",
        ),
    ),
    "8.4": Exercise(
        _class_figure,
        (
            "Start with `go.Figure()`, then `figure.add_scatter(y=..., name=...)` for each class.",
            "`y=gains[:, index].tolist()`, `name=escape(name)`, `line_color=colour(index)`; end with "
            '`return styled(figure, title="...", x="layer", y="...")`.',
        ),
    ),
    "8.5": Exercise(
        _diagonal_z,
        (
            "The diagonal of `A @ B` is `(A * B.T).sum(dim=1)`; no table is needed.",
            "For one permutation, use `B[:, order]` instead of B. Collect the means; take their mean and "
            "standard deviation.",
        ),
    ),
    "8.6": Exercise(
        _text_rows,
        (
            "Each row takes `length - 1` tokens of the stream. How many whole rows are there?",
            "`stream[: n * body].reshape(-1, body)`, then `torch.cat` with a column of `start` in front.",
        ),
        whole=True,
    ),
    "8.7": Exercise(
        _average_last_head,
        (
            "`changed = z.clone()`; the last head is `changed[:, :, -1]`.",
            "Its mean over rows and positions is `z[:, :, -1].mean(dim=(0, 1))`, one vector.",
        ),
    ),
}
