"""Figures of paths and scores: which paths wrote a logit, which components made a score, loss curves."""

from __future__ import annotations

import plotly.graph_objects as go

from lens_linear._checks import require_int
from lens_linear.circuits.attribution import QKAttribution
from lens_linear.circuits.in_context import InContextLoss
from lens_linear.circuits.paths import PathAblation, PathTable
from lens_linear.plots.style import GREY, colour, escape, faded, matrix, styled, tick_label


def path_logits(table: PathTable, *, k: int = 20) -> go.Figure:
    """Bars: what each path adds to one logit (above the path's mean over tokens), largest first."""
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
    """Bars: how much the loss rises without each path's logits; the largest effects of either sign."""
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

    Args:
        attribution: what ``ll.qk_attribution`` returned.
        query: position of the query; with ``key`` one score, else the mean over all keys up to their
            query.
        key: position of the key.
        batch: which sequence.
        contrast: subtract the mean over the query's other keys, which the softmax cannot see.
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


def in_context_loss(curve: InContextLoss) -> go.Figure:
    """The loss along the sequence with its standard error, and the two halves or copies."""
    frame = curve.to_dataframe()
    high, low = frame["loss"] + frame["se"].fillna(0), frame["loss"] - frame["se"].fillna(0)
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[*frame["index"], *frame["index"][::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            fillcolor=faded(colour(0), 0.2),
            line={"width": 0},
            hoverinfo="skip",
            name="± one standard error",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=frame["index"],
            y=frame["loss"],
            mode="lines",
            line={"color": colour(0)},
            name="loss",
            customdata=frame["n"],
            hovertemplate="%{x}: %{y:.3f} nats over %{customdata} rows<extra></extra>",
        )
    )
    copies = curve.aligned == "second copy"
    if copies:
        figure.add_vline(x=0, line={"color": GREY, "dash": "dot"})
    names = ("first copy", "second copy") if copies else ("first half", "second half")
    return styled(
        figure,
        title="Loss along the sequence",
        subtitle=f"{names[0]} {curve.first:.3f}, {names[1]} {curve.second:.3f} nats: gain {curve.gain:+.3f}; "
        f"{curve.n_rows} rows",
        x="token, counted from the start of the second copy" if copies else "token index",
        y="loss (nats)",
    )


def _names_beside(figure: go.Figure, names: list[str]) -> None:
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=[escape(name) for name in names],
        autorange="reversed",
        showgrid=False,
    )
