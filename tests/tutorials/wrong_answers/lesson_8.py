"""Wrong answers that students of lesson 8 give, and a word that the check must say about each."""

import torch

import lens_linear as ll


def causal_softmax(scores):
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(-1)


def without_scale(q, k):
    return causal_softmax(torch.einsum("rqhd,rkhd->rhqk", q, k))


def masked_after(q, k):
    scores = torch.einsum("rqhd,rkhd->rhqk", q, k) / q.shape[-1] ** 0.5
    return scores.softmax(-1).tril()


def without_mask(q, k):
    return (torch.einsum("rqhd,rkhd->rhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)


def forgets_batches(held, x, y, classes):
    for kind in classes.unique().tolist():
        held[kind] = ll.Moments().update(x[classes == kind], y[classes == kind])
    return held


def all_rows(held, x, y, classes):
    for kind in classes.unique().tolist():
        held.setdefault(kind, ll.Moments()).update(x, y)
    return held


def no_offset(moments, fit):
    W = fit.weight
    return moments.scatter_y.sum() - 2 * (W * moments.sxy).sum() + (W * (moments.sxx @ W)).sum()


def score_only(moments, fit):
    return 1 - moments.score(fit)


def not_escaped(gains, names):
    import plotly.graph_objects as go

    from lens_linear.plots import colour, styled

    figure = go.Figure()
    for index, name in enumerate(names):
        figure.add_scatter(y=gains[:, index].tolist(), name=name, line_color=colour(index))
    return styled(figure, title="gains", x="layer", y="gain")


def _lines(gains, names, places):
    import plotly.graph_objects as go

    from lens_linear.plots import colour, escape, styled

    figure = go.Figure()
    for index, name in enumerate(names):
        figure.add_scatter(
            x=places, y=gains[:, index].tolist(), name=escape(name), line_color=colour(index)
        )
    return styled(figure, title="gains", x="layer", y="gain")


def one_place_short(gains, names):
    return _lines(gains, names, list(range(len(gains) - 1)))


def last_layer_first(gains, names):
    return _lines(gains, names, list(range(len(gains)))[::-1])


def a_line_a_layer(gains, names):
    import plotly.graph_objects as go

    return go.Figure([go.Scatter(y=row.tolist()) for row in gains[:3]])


def spread_of_entries(A, B, permutations):
    M = A @ B
    return float((M.diagonal().mean() - M.mean()) / M.std())


def only_the_mean(A, B, permutations):
    return float((A * B.T).sum(1).mean())


def rows_start_once(stream, length, start):
    stream = torch.cat([torch.tensor([start]), stream])
    return stream[: len(stream) // length * length].reshape(-1, length)


def rows_too_long(stream, length, start):
    rows = stream[: len(stream) // length * length].reshape(-1, length)
    return torch.cat([torch.full((len(rows), 1), start), rows], dim=1)


def hook_in_place(z, hook):
    z[:, :, -1] = z[:, :, -1].mean(dim=(0, 1))
    return z


def hook_zero(z, hook):
    changed = z.clone()
    changed[:, :, -1] = 0
    return changed


def hook_by_position(z, hook):
    changed = z.clone()
    changed[:, :, -1] = z[:, :, -1].mean(dim=0)
    return changed


def y_before_x(held, x, y, classes):
    import lens_linear as ll

    for kind in classes.unique().tolist():
        held.setdefault(kind, ll.Moments()).update(y[classes == kind], x[classes == kind])
    return held


def float_ids(stream, length, start):
    n = len(stream) // (length - 1)
    rows = stream[: n * (length - 1)].reshape(n, length - 1)
    return torch.cat([torch.ones(n, 1) * start, rows], dim=1)


WRONG = [
    ("8.2", y_before_x, "rows of x, then rows of y"),
    ("8.6", float_ids, "whole numbers"),
    ("8.1", without_scale, "square root of d_head"),
    ("8.1", masked_after, "sum to one"),
    ("8.1", without_mask, "after it"),
    ("8.2", forgets_batches, "held already"),
    ("8.2", all_rows, "only the rows of that class"),
    ("8.3", no_offset, "last term"),
    ("8.3", score_only, "not right"),
    ("8.4", not_escaped, "markup"),
    ("8.4", a_line_a_layer, "line a class"),
    ("8.4", one_place_short, "3 places"),
    ("8.4", last_layer_first, "first to the last"),
    ("8.5", spread_of_entries, "permutations"),
    ("8.5", only_the_mean, "mean diagonal"),
    ("8.6", rows_start_once, "Every row begins"),
    ("8.6", rows_too_long, "start token too"),
    ("8.7", hook_in_place, "copy"),
    ("8.7", hook_zero, "zero ablation"),
    ("8.7", hook_by_position, "each position"),
]
