"""Figures of paths and scores: which paths wrote a logit, which components made a score."""

from __future__ import annotations

import plotly.graph_objects as go

from lens_linear.checks import require_int
from lens_linear.circuits.attention.attribution import QKAttribution
from lens_linear.circuits.paths.expansion import PathAblation, PathTable
from lens_linear.plots.style import GREY, colour, escape, matrix, styled, tick_label


def path_logits(table: PathTable, *, k: int = 20) -> go.Figure:
    """Bars: what each path adds to one logit (above the path's mean over tokens), largest first.

    The x axis is in logits, the y axis names the paths, colours count the heads on a path. 0 is a path that
    raises this token as much as the mean token, which the softmax cannot see. All bars together are the
    logit above the mean token's.

    Args:
        table: what ``PathExpansion.token_table`` returned.
        k: paths shown, at least 1; the others are one grey bar at the end.

    Returns:
        Figure with one horizontal bar a path.

    Raises:
        InvalidArgumentError: k is below 1.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> table = ll.AttentionOnly(ll.toy_model()).paths(torch.arange(8)).token_table(3, 1)
        >>> figure = ll.plots.path_logits(table, k=5)
        >>> bool(abs(sum(figure.data[0].x) - table["relative"].sum()) < 1e-4), len(figure.data[0].x)
        (True, 6)
    """
    frame = table.to_dataframe()
    shown = frame.head(require_int("k", k, minimum=1))
    rest = float(frame["relative"].iloc[len(shown) :].sum())
    names, values = list(shown["path"]), list(shown["relative"])
    orders = list(shown["order"])
    if len(frame) > len(shown):
        names.append(f"the other {len(frame) - len(shown)} paths")
        values.append(rest)
        orders.append(-1)
    figure = go.Figure(
        go.Bar(
            y=list(range(len(names))),
            x=values,
            orientation="h",
            marker_color=[GREY if order < 0 else colour(order) for order in orders],
            text=[f"{value:+.2f}" for value in values],
            textposition="outside",
            cliponaxis=False,
            customdata=[escape(name) for name in names],
            hovertemplate="%{customdata}<br>%{x:+.4f} logits<extra></extra>",
        )
    )
    _names_beside(figure, names)
    # Room for the numbers outside the bars.
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.12 * (high - low)
    figure.update_xaxes(range=[low - room * (low < 0), high + room * (high > 0)])
    token = tick_label(table.token_text) if table.token_text is not None else f"#{table.token}"
    return styled(
        figure,
        title=f"Which paths wrote the logit of {token}",
        subtitle=f"position {table.position}, logit {table.logit:.2f}; colours: heads on the path; bars add "
        "up to the logit above the mean token's",
        x="logit above the path's mean token",
        legend="none",
        height=170 + 24 * len(names),
    )


def path_ablations(ablation: PathAblation, *, k: int = 20) -> go.Figure:
    """Bars: how much the loss rises without each path's logits; the largest effects of either sign.

    The x axis is nats a token, the y axis names the paths, colours count the heads on a path. 0 is a path
    that the loss does not need; bars to the left are paths that harm. Attention patterns and norm scales
    stay those of the whole model, so this is the path's direct effect alone.

    Args:
        ablation: what ``PathExpansion.ablations`` returned.
        k: paths shown, at least 1.

    Returns:
        Figure with one horizontal bar a path, most helpful on top.

    Raises:
        InvalidArgumentError: k is below 1.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> found = ll.AttentionOnly(ll.toy_model()).paths(torch.arange(8)).ablations()
        >>> figure = ll.plots.path_ablations(found, k=5)
        >>> figure.layout.title.text, len(figure.data[0].x)
        ('What the loss becomes without one path', 5)
    """
    frame = ablation.to_dataframe()
    k = require_int("k", k, minimum=1)
    chosen = frame["effect"].abs().sort_values(ascending=False, kind="stable").index[:k]
    frame = frame.loc[chosen].sort_values("effect", ascending=False, kind="stable")
    figure = go.Figure(
        go.Bar(
            y=list(range(len(frame))),
            x=frame["effect"],
            orientation="h",
            marker_color=[colour(order) for order in frame["order"]],
            customdata=[escape(name) for name in frame["path"]],
            hovertemplate="%{customdata}<br>%{x:+.4f} nats<extra></extra>",
        )
    )
    _names_beside(figure, list(frame["path"]))
    return styled(
        figure,
        title="What the loss becomes without one path",
        subtitle=f"loss of all paths {ablation.loss:.3f} nats; right: the path helps; colours: heads on it",
        x="loss without the path minus loss with it (nats a token)",
        legend="none",
        height=170 + 24 * len(frame),
    )


def qk_attribution(
    attribution: QKAttribution,
    query: int | None = None,
    key: int | None = None,
    *,
    batch: int = 0,
    contrast: bool = False,
) -> go.Figure:
    """Which components of the query and of the key make an attention score.

    Rows are components of the query, columns of the key, cells their product in units of the score before
    the softmax, centred at 0; all cells together are the score. What all keys have in common moves no
    attention: with ``contrast`` only the difference to the other keys is left, near 0 for a key that is
    like the others.

    Args:
        attribution: what ``ll.qk_attribution`` returned.
        query: position of the query; with ``key`` one score, else the mean over all keys up to their
            query.
        key: position of the key. Negative positions count from the end.
        batch: which sequence.
        contrast: subtract the mean over the query's other keys, which the softmax cannot see; only with
            ``query`` and ``key``.

    Returns:
        Figure with one heatmap; the subtitle gives the sum.

    Raises:
        InvalidArgumentError: a position or a sequence that is not there.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> found = ll.qk_attribution(ll.toy_model(), torch.arange(6), 1, 0)
        >>> figure = ll.plots.qk_attribution(found, 5, 2)
        >>> figure.layout.title.text, bool(abs(figure.data[0].z.sum() - found.total[0, 5, 2]) < 1e-4)
        ('Where the scores of L1H0 come from', True)
    """
    names = list(attribution.components)
    if query is None or key is None:
        values, where = attribution.mean_map(), "mean over all queries and keys"
    else:
        take = attribution.contrast if contrast else attribution.map
        values = take(query, key, batch=batch)
        length = attribution.tokens.shape[1]
        query, key = query % length, key % length
        where = f"query {query}, key {key}"
        if attribution.labels is not None:
            ids = attribution.tokens[batch]
            texts = [tick_label(attribution.labels[int(ids[p])]) for p in (query, key)]
            where = f"query {query} {texts[0]}, key {key} {texts[1]}"
        where += ", minus the other keys" if contrast else ""
    figure = matrix(
        values,
        rows=names,
        columns=names,
        value_name="score",
        row_name="query",
        column_name="key",
    )
    cap = "" if attribution.softcap is None else f"; before the bound of {attribution.softcap:g}"
    return styled(
        figure,
        title=f"Where the scores of {attribution.name} come from",
        subtitle=f"{where}; sum {float(values.sum()):.2f}, pre-softmax{cap}",
        x="component of the key",
        y="component of the query",
        height=260 + 22 * len(names),
    )


def _names_beside(figure: go.Figure, names: list[str]) -> None:
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=[escape(name) for name in names],
        autorange="reversed",
        showgrid=False,
    )
