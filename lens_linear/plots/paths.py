"""Figures of who wrote what (paths, components, patches), and of what can be read off after each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lens_linear.checks import counted
from lens_linear.circuits.attention.attribution import QKAttribution
from lens_linear.circuits.paths.expansion import PathAblation, PathExpansion, PathTable
from lens_linear.circuits.paths.importance import PathImportance
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots._kinds import (
    Tabular,
    add_line,
    bars,
    bars_height,
    chosen,
    ends_of,
    figure,
    frame_of,
    head_map,
    layer_axis,
    panels,
    require_columns,
)
from lens_linear.plots.style import (
    GREY,
    check_cells,
    colour,
    escape,
    height_of,
    matrix,
    matrix_height,
    styled,
    tick_label,
)


@figure
def path_importance(importance: PathImportance | PathExpansion) -> go.Figure:
    """Bars: by how much the paths of each order lower the loss, given all lower orders.

    The y axis names the number of heads on a path, the x axis is nats a token. 0 is an order that adds
    nothing; bars to its left, in the second colour, are orders that make the loss worse. All bars together
    are the fall from a uniform guess to the loss with every path.

    Args:
        importance: what ``PathExpansion.importance`` or ``AttentionOnly.importance`` returned, or a whole
            PathExpansion.

    Returns:
        Figure with one bar an order.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> found = ll.AttentionOnly(ll.toy_model()).importance(torch.arange(8))
        >>> ll.plots.path_importance(found).layout.yaxis.ticktext
        ('direct path', 'one head', 'two heads')
    """
    if isinstance(importance, PathExpansion):
        importance = importance.importance()
    frame = importance.to_dataframe()
    names = ["direct path", "one head", "two heads", "three heads"]
    labels = [names[i] if i < len(names) else f"{i} heads" for i in frame["order"]]
    fig = bars(
        labels, frame["effect"], text=[f"{effect:+.3f}" for effect in frame["effect"]],
        colours=[colour(0) if effect >= 0 else colour(1) for effect in frame["effect"]],
        custom=frame[["n_paths", "loss_after", "effect_per_path"]],
        hover="%{customdata[0]} paths<br>loss after %{customdata[1]:.3f} nats<br>"
        "%{customdata[2]:.4f} nats a path",
    )  # fmt: skip
    return styled(
        fig, title="What paths of each order are worth", x="loss lowered by (nats a token)",
        subtitle=f"from {importance.uniform:.2f} nats (uniform guess) to {importance.losses[-1]:.2f}, "
        f"{counted(importance.n_tokens, 'token')}; patterns and norm scales frozen", legend="none",
        height=bars_height(len(labels), pitch=40),
    )  # fmt: skip


@figure
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

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> table = ll.AttentionOnly(ll.toy_model()).paths(torch.arange(8)).token_table(3, 1)
        >>> figure = ll.plots.path_logits(table, k=5)
        >>> bool(abs(sum(figure.data[0].x) - table["relative"].sum()) < 1e-4), len(figure.data[0].x)
        (True, 6)
    """
    frame = table.to_dataframe()
    shown = frame.head(chosen("k", k))
    names, values = list(shown["path"]), list(shown["relative"])
    orders = list(shown["order"])
    if len(frame) > len(shown):
        names.append(f"the other {len(frame) - len(shown)} paths")
        values.append(float(frame["relative"].iloc[len(shown) :].sum()))
        orders.append(-1)
    fig = bars(
        names, values, text=[f"{value:+.2f}" for value in values], hover="%{x:+.4f} logits",
        colours=[GREY if order < 0 else colour(order) for order in orders],
    )  # fmt: skip
    if len(frame) > len(shown):
        _cut_rest(fig, values)
    _orders(fig, orders)
    token = tick_label(table.token_text) if table.token_text is not None else f"#{table.token}"
    return styled(
        fig, title=f"Which paths wrote the logit of {token}", x="logit above the path's mean token",
        subtitle=f"position {table.position}, logit {table.logit:.2f}; bars add up to the logit above the "
        "mean token's", height=bars_height(len(names)),
    )  # fmt: skip


def _cut_rest(fig: go.Figure, values: Sequence[float]) -> None:
    """Cut the bar of the others, the last, where it dwarfs the named ones; its number is beside its name."""
    named, rest = max(map(abs, values[:-1])), values[-1]
    if abs(rest) <= 2 * named:
        return
    ends = [min(0.0, *values[:-1]), max(0.0, *values[:-1])]
    ends[rest > 0] = named if rest > 0 else -named
    room = 0.25 * (ends[1] - ends[0])
    fig.update_xaxes(range=[ends[0] - room * (ends[0] < 0), ends[1] + room * (ends[1] > 0)])
    layout: Any = fig.layout
    *names, last = layout.yaxis.ticktext
    fig.update_yaxes(ticktext=[*names, f"{last}: {rest:+.2f}"])
    if fig.data[0].text is not None:
        fig.data[0].text = [*fig.data[0].text[:-1], ""]


def _orders(fig: go.Figure, orders: list[int]) -> None:
    """Name the colours of paths in a legend: how many heads a path passes."""
    names = {-1: "the others", 0: "no head", 1: "one head", 2: "two heads", 3: "three heads"}
    for order in sorted(set(orders), key=lambda o: (o < 0, o)):
        ink = GREY if order < 0 else colour(order)
        fig.add_bar(x=[None], y=[None], orientation="h", marker_color=ink,
                    name=names.get(order, f"{order} heads"))  # fmt: skip
    fig.data[0].showlegend = False
    fig.update_layout(barmode="overlay")


@figure
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

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> found = ll.AttentionOnly(ll.toy_model()).paths(torch.arange(8)).ablations()
        >>> figure = ll.plots.path_ablations(found, k=5)
        >>> figure.layout.title.text, len(figure.data[0].x)
        ('What the loss becomes<br>without one path', 5)
    """
    frame = ablation.to_dataframe()
    largest = frame["effect"].abs().sort_values(ascending=False, kind="stable").index
    frame = frame.loc[largest[: chosen("k", k)]].sort_values(
        "effect", ascending=False, kind="stable"
    )
    fig = bars(
        list(frame["path"]), frame["effect"], hover="%{x:+.4f} nats",
        colours=[colour(order) for order in frame["order"]],
    )  # fmt: skip
    _orders(fig, list(frame["order"]))
    return styled(
        fig, title="What the loss becomes without one path",
        subtitle=f"loss of all paths {ablation.loss:.3f} nats; right: the path helps",
        x="loss without the path minus loss with it (nats)", height=bars_height(len(frame)),
    )  # fmt: skip


@figure
def qk_attribution(
    attribution: QKAttribution,
    query: int | None = None,
    key: int | None = None,
    *,
    batch: int = 0,
    contrast: bool = False,
    k: int = 24,
) -> go.Figure:
    """Which components of the query and of the key make an attention score.

    Rows are components of the query, columns of the key, cells their product in units of the score before
    the softmax, centred at 0; all cells together are the score. Of a large model the k components with the
    largest cells are drawn, the others are summed into one row and one column, so the sum stays. What all
    keys have in common moves no attention: with ``contrast`` only the difference to the other keys is
    left, near 0 for a key that is like the others.

    Args:
        attribution: what ``ll.qk_attribution`` returned.
        query: position of the query; with ``key`` one score, without both the mean over all keys up to
            their query.
        key: position of the key. Negative positions count from the end.
        batch: which sequence.
        contrast: subtract the mean over the query's other keys, which the softmax cannot see; only with
            ``query`` and ``key``.
        k: components drawn on either side, at least 1.

    Returns:
        Figure with one heatmap; the subtitle gives the sum.

    Raises:
        InvalidArgumentError: a position or a sequence that is not there, or a query without a key.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> found = ll.qk_attribution(ll.toy_model(), torch.arange(6), 1, 0)
        >>> figure = ll.plots.qk_attribution(found, 5, 2)
        >>> figure.layout.title.text, bool(abs(figure.data[0].z.sum() - found.total[0, 5, 2]) < 1e-4)
        ('Where the scores of L1H0 come from', True)
    """
    if (query is None) != (key is None) or (contrast and key is None):
        raise InvalidArgumentError(
            f"query and key must be given together, got query={query}, key={key}, contrast={contrast}; "
            "pass both positions for one score, or neither for the mean"
        )
    if query is None or key is None:
        values, where = attribution.mean_map(), "mean over all queries and keys"
    else:
        values = (attribution.contrast if contrast else attribution.map)(query, key, batch=batch)
        length = attribution.tokens.shape[1]
        query, key = query % length, key % length
        where = f"query {query}, key {key}"
        if attribution.labels is not None:
            ids = attribution.tokens[batch]
            texts = [tick_label(attribution.labels[int(ids[p])]) for p in (query, key)]
            where = f"query {query} {texts[0]}, key {key} {texts[1]}"
        where += ", minus the other keys" if contrast else ""
    grid, rows, columns = _strongest(values.detach().double().numpy(), attribution, chosen("k", k))
    # Sums of many others would be the only colours: the scale is that of the components with a name.
    named = grid if len(grid) == len(values) else grid[:-1, :-1]
    largest = float(np.abs(named).max())
    fig = matrix(
        grid, rows=rows, columns=columns, value_name="score", row_name="query", column_name="key",
        square=True, limits=(-largest, largest) if largest > 0 else None,
    )  # fmt: skip
    cap = "" if attribution.softcap is None else f"; before the bound of {attribution.softcap:g}"
    few = (
        ""
        if len(grid) == len(values)
        else f"; the {k} strongest of {counted(len(values), 'component')}"
    )
    return styled(
        fig, title=f"Where the scores of {attribution.name} come from", x="component of the key",
        subtitle=f"{where}; sum {float(values.sum()):.2f}, pre-softmax{cap}{few}",
        y="component of the query", height=240 + min(560, max(200, 22 * len(rows))),
    )  # fmt: skip


def _strongest(
    values: np.ndarray, attribution: QKAttribution, k: int
) -> tuple[np.ndarray, list[str], list[str]]:
    """The k rows and columns with the largest cells, in their order, and the sums of the others."""
    names = list(attribution.components)
    sides: list[list[str]] = []
    for axis in (0, 1):
        if len(names) <= k + 1:
            sides.append(names)
            continue
        keep = np.sort(np.argsort(-np.abs(values).max(1 - axis), kind="stable")[:k])
        rest = values.sum(axis, keepdims=True) - values.take(keep, axis).sum(axis, keepdims=True)
        values = np.concatenate([values.take(keep, axis), rest], axis)
        sides.append([*(names[i] for i in keep), f"the other {len(names) - k}"])
    return values, sides[0], sides[1]


@figure
def direct_logit_attribution(result: Tabular | pd.DataFrame, *, k: int = 24) -> go.Figure:
    """Bars: what each component writes straight onto the right answer, largest first.

    The x axis is in logits above the mean output's (or above the wrong answer's, where the task has one);
    0 is a component that the answer does not need. All bars together, the grey one of the others included,
    are the logit itself. Whiskers are standard errors over rows.

    Args:
        result: what ``ll.direct_logit_attribution`` returned, or a table with the columns component and
            relative.
        k: components shown, at least 1; the others are one grey bar at the end.

    Returns:
        Figure with one horizontal bar a component.

    Raises:
        InvalidArgumentError: a column is missing, or k is below 1.

    Example:
        >>> import pandas as pd
        >>> import lens_linear as ll
        >>> parts = pd.DataFrame({"component": ["L0H1", "embed"], "relative": [2.0, -0.5]})
        >>> list(ll.plots.direct_logit_attribution(parts).data[0].x)
        [2.0, -0.5]
    """
    frame = frame_of(result)
    require_columns("result", frame, ("component", "relative"))
    fig = _effects(
        frame, list(frame["component"].astype(str)), "relative", chosen("k", k), rest=True
    )
    return styled(
        fig, title="What each component writes onto the answer", legend="none",
        subtitle=f"{counted(len(frame), 'component')}, sum {float(frame['relative'].sum()):+.3f}; norm "
        f"scales frozen",
        x="direct effect (logits)", height=bars_height(len(fig.data[0].y)),
    )  # fmt: skip


def _effects(
    frame: pd.DataFrame, names: list[str], column: str, k: int, *, rest: bool = False
) -> go.Figure:
    """Bars of the k largest effects of either sign, with their standard errors and perhaps the rest."""
    order = np.argsort(-frame[column].abs().to_numpy(), kind="stable")
    values, se = frame[column].to_numpy(), frame.get(f"{column}_se")
    shown = [float(v) for v in values[order[:k]]]
    labels = [names[i] for i in order[:k]]
    colours = [colour(0) if value >= 0 else colour(1) for value in shown]
    if rest and len(order) > k:
        labels.append(f"the other {len(order) - k}")
        shown.append(float(values[order[k:]].sum()))
        colours.append(GREY)
    numbers = [f"{v:+.2f}" for v in shown]
    fig = bars(labels, shown, colours=colours, text=numbers, length=22, hover="%{x:+.4f}")
    if se is not None:
        spread = [float(e) for e in se.fillna(0.0).to_numpy()[order[:k]]]
        fig.data[0].error_x = {"array": spread, "thickness": 1, "width": 3}
        fig.data[0].text = None  # numbers stand beyond the ends of the error bars
        ends = [v + (e if v >= 0 else -e) for v, e in zip(shown, [*spread, 0.0], strict=False)]
        fig.add_scatter(
            x=ends, y=list(range(len(ends))), text=[f"\u00a0{v:+.2f}\u00a0" for v in shown], mode="text",
            textposition=["middle right" if v >= 0 else "middle left" for v in shown],
            hoverinfo="skip", showlegend=False, cliponaxis=False,
        )  # fmt: skip
        layout: Any = fig.layout
        reach = [*layout.xaxis.range, *(1.25 * end for end in ends)]
        fig.update_xaxes(range=[min(reach), max(reach)])
    if rest and len(order) > k:
        _cut_rest(fig, shown)
    return fig


@figure
def patching(result: Tabular | pd.DataFrame, *, k: int = 24) -> go.Figure:
    """What each patch does to the metric: layer × head, layer × position, or bars of paths and layers.

    Signed colours are centred at 0: a patch that changes nothing; 1 is the whole way to the other run.
    Patches of heads are a map of layer × head, patches at positions one of layer × position; anything else
    (paths, whole layers) is drawn as bars, the k largest.

    Args:
        result: what ``ll.patch`` or ``ll.path_patch`` returned, or a table with the column effect and with
            layer and head, layer and position, site, or sender and receiver.
        k: bars shown where there is no map, at least 1.

    Returns:
        Figure with one heatmap, or with bars.

    Raises:
        InvalidArgumentError: a column is missing, or k is below 1.

    Example:
        >>> import pandas as pd
        >>> import lens_linear as ll
        >>> cells = {"layer": [0, 0, 1, 1], "head": ["L0H0", "L0H1", "L1H0", "L1H1"]}
        >>> figure = ll.plots.patching(pd.DataFrame({**cells, "effect": [0.0, 0.9, 0.1, -0.2]}))
        >>> figure.data[0].z.astype(float).round(1).tolist()
        [[0.0, 0.9], [0.1, -0.2]]
    """
    frame = frame_of(result)
    require_columns("result", frame, ("effect",))
    unit = "effect (share of the way)"
    placed = "position" in frame and bool((frame["position"] >= 0).any())
    headed = "head" in frame and "layer" in frame and bool((frame["head"] != "").all())
    said = counted(len(frame), "patch") if result is frame else escape(result)
    if headed and not placed:
        at = frame["head"].str.extract(r"H(\d+)$")[0].astype(int)
        fig = head_map(_grid(frame, at), value_name=unit)
        x, y, height = "head", "layer", height_of(fig)
    elif placed and not headed:
        grid = _grid(frame, frame["position"])
        top = float(np.nanmax(np.abs(grid))) or 1.0
        layers = sorted(set(frame["layer"]))
        fig = matrix(
            grid, rows=[f"L{layer}" for layer in layers], columns=sorted(set(frame["position"])),
            value_name=unit, row_name="layer", column_name="position", limits=(-top, top),
        )  # fmt: skip
        x, y, height = "position", "layer", matrix_height(len(grid), least=26)
    else:
        fig = _effects(frame, _patch_names(frame), "effect", chosen("k", k))
        x, y, height = unit, None, bars_height(len(fig.data[0].y))
    return styled(
        fig, title="What each patch restores", subtitle=said, x=x, y=y, legend="none", height=height
    )


def _grid(frame: pd.DataFrame, at: pd.Series) -> np.ndarray:
    """Effects as [layer, head or position]."""
    wide = frame.assign(_at=at).pivot_table(
        index="layer", columns="_at", values="effect", dropna=False
    )
    return wide.to_numpy()


def _patch_names(frame: pd.DataFrame) -> list[str]:
    if "site" in frame:
        return list(frame["site"].astype(str))
    require_columns("result", frame, ("sender", "receiver"))
    return [
        f"{sender} → {to}" for sender, to in zip(frame["sender"], frame["receiver"], strict=True)
    ]


@figure
def lens_grid(read: Tabular | pd.DataFrame, *, max_cells: int = 4_000) -> go.Figure:
    """What each layer would say next at every position: layer × position, with the favoured token.

    Rows are layers (the last on top is the model's own output), columns positions, colours the probability
    of the favoured token, 0 to 1; the token stands in its cell where there is room, and in the hover. A
    uniform guess has one over the vocabulary's size everywhere.

    Args:
        read: what ``Lens.read`` returned, or a table with the columns layer, position, token (the text at
            the position), top (the favoured token's text) and probability.
        max_cells: refuse more cells than this.

    Returns:
        Figure with one heatmap.

    Raises:
        InvalidArgumentError: a column is missing.
        FigureTooLargeError: more than ``max_cells`` cells.

    Example:
        >>> import pandas as pd
        >>> import lens_linear as ll
        >>> cells = {"layer": [0, 1], "position": [0, 0], "token": [" the"] * 2, "top": [" a", " cat"]}
        >>> figure = ll.plots.lens_grid(pd.DataFrame({**cells, "probability": [0.1, 0.6]}))
        >>> figure.data[0].z.shape, figure.layout.yaxis.title.text
        ((2, 1), 'layers passed')
    """
    frame = frame_of(read)
    require_columns("read", frame, ("layer", "position", "token", "top", "probability"))
    layers, positions = list(dict.fromkeys(frame["layer"])), sorted(set(frame["position"]))
    check_cells(len(frame), max_cells=max_cells)
    at = {layer: i for i, layer in enumerate(layers)}, {p: i for i, p in enumerate(positions)}
    z = np.full((len(layers), len(positions)), np.nan)
    words = np.full(z.shape, "", dtype=object)
    inside = words.copy()
    texts = frame.drop_duplicates("position").set_index("position")["token"]
    labels = [str(texts[p]) for p in positions]
    for row in frame.itertuples():
        i, j = at[0][row.layer], at[1][row.position]
        z[i, j] = row.probability
        inside[i, j] = tick_label(row.top, max_length=7)
        where = f"after layer {escape(row.layer)}, position {row.position} {tick_label(row.token)}"
        words[i, j] = f"{where}<br>{tick_label(row.top)}"
    fig = matrix(
        z, rows=layers, columns=labels, value_name="probability", row_name="layer", diverging=False,
        column_name="position", limits=(0.0, 1.0),
    )  # fmt: skip
    fig.data[0].text = words
    if len(positions) <= 14 and len(layers) <= 32:
        hover = "%{customdata}<br>%{z:.3f}<extra></extra>"
        fig.update_traces(customdata=words, hovertemplate=hover, text=inside)
        fig.update_traces(texttemplate="%{text}", textfont={"size": 10})
    fig.update_yaxes(autorange=True)
    return styled(
        fig, title="What each layer would say next", x="token at the position", y="layers passed",
        subtitle="colour: probability of the favoured token; the hover names it",
        height=matrix_height(len(layers), least=26),
    )  # fmt: skip


@figure
def lens_profile(score: Tabular | pd.DataFrame) -> go.Figure:
    """How far each layer's reading is from the model's output: KL and loss by layer, top-1 beside them.

    The x axis is how many layers have been passed; the last is the model itself. Left, in nats a token: the
    KL from the model's output to the reading (0 at the output) and the loss on the real next token; beside
    them, where the table has them, the KL of the raw least-squares lens and of the logit lens, which leaves
    the axis where it is far above the rest. Right: the share of positions where the favourite token is the
    output's, 0 to 1.

    Args:
        score: what ``Lens.score`` returned, or a table with the columns layer, kl, loss and top1, with
            ``…_low`` and ``…_high`` where there are intervals; raw_kl and logit_kl are drawn too.

    Returns:
        Figure with two panels.

    Raises:
        InvalidArgumentError: a column is missing.

    Example:
        >>> import pandas as pd
        >>> import lens_linear as ll
        >>> rows = {"layer": [0, 1], "kl": [2.0, 0.0], "loss": [5.0, 3.1], "top1": [0.3, 1.0]}
        >>> [line.name for line in ll.plots.lens_profile(pd.DataFrame(rows)).data]
        ['KL to the output', 'loss', 'same favourite']
    """
    frame = frame_of(score)
    frame = frame.reset_index() if "layer" not in frame else frame
    require_columns("score", frame, ("layer", "kl", "loss", "top1"))
    fig, places = panels(["nats a token", "share of positions"])
    lines = [("kl", "KL to the output", 0), ("loss", "loss", 0), ("top1", "same favourite", 1)]
    others = [
        name for name in ("raw_kl", "logit_kl") if name in frame and frame[name].notna().any()
    ]
    beside = [c for c in ("kl", "loss", "raw_kl") if c in frame]
    within = float(np.nanmax(frame[beside].to_numpy(dtype=float)))
    for column in others:
        high = float(np.nanmax(frame[column].to_numpy(dtype=float)))
        outside = f" (up to {high:.3g}, off the axis)" if high > 1.5 * within else ""
        words = "raw least squares" if column == "raw_kl" else "logit lens"
        lines.append((column, f"KL of {words}{outside}", 0))
    for index, (column, name, panel) in enumerate(lines):
        add_line(
            fig, frame["layer"], frame[column], name, index=index, at=places[panel],
            hover="after %{x} layers: %{y:.4f}", band=ends_of(frame, column),
        )  # fmt: skip
    fig.update_traces(showlegend=True, selector={"name": "same favourite"})
    fig.update_yaxes(rangemode="tozero")
    if any("off the axis" in name for _, name, _ in lines):
        fig.update_yaxes(range=[0, 1.1 * within], col=1)
    fig.update_yaxes(range=[0, 1.03], col=2)
    table = isinstance(score, pd.DataFrame)
    said = counted(len(frame), "layer") if table else escape(score)
    return styled(
        layer_axis(fig, len(frame), room=8), title="What can be read off after each layer", subtitle=said,
        x="layers passed", panels=True,
    )  # fmt: skip
