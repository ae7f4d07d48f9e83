"""Figures of circuits: composition between heads, scores of heads, what paths are worth.

Each function takes a result of :mod:`lens_linear.circuits` and returns a figure; nothing is computed here.
More figures of the room: :mod:`~lens_linear.plots.circuits_graph` (heads and composition as a graph),
:mod:`~lens_linear.plots.circuits_gain` (in-context gain, with and without heads),
:mod:`~lens_linear.plots.circuits_maps` (circuits over tokens), :mod:`~lens_linear.plots.circuits_tables`
(tables of tokens), :mod:`~lens_linear.plots.circuits_paths` (paths, score attribution).
"""

from __future__ import annotations

from typing import Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_linear.checks import require_choice
from lens_linear.circuits.heads.composition import KINDS, CompositionScores
from lens_linear.circuits.heads.factored import DiagonalAccuracy
from lens_linear.circuits.induction.scores import InductionScores
from lens_linear.circuits.paths.importance import PathImportance
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots.style import (
    DIVERGING,
    GREY,
    SEQUENTIAL,
    as_matrix,
    check_cells,
    colour,
    escape,
    matrix,
    styled,
    tick_label,
)

_PANELS_TOP = 110
_HEAD_TICKS = 12  # labels of heads that fit below a panel
# Shares of attention lie in [0, 1]: drawn on that scale, so that little attention looks like little.
_SHARES = ("prefix_matching", "positional_control", "duplicate", "prev_token", "offset_mass")
_SHORT = {
    "induction": "ind",
    "duplicate-token": "dup",
    "previous-token": "prev",
    "positional": "pos",
    "none": "",
}


def composition_map(
    scores: CompositionScores, *, value: Literal["z", "score", "excess"] = "z"
) -> go.Figure:
    """Composition of every pair of heads, one panel a kind: rows write, columns read.

    Each cell is one pair; cells whose reader does not stand above the writer stay blank. Unrelated heads
    lie about 0 in "z" (standard deviation 1) and in "excess". Colours reach to the largest value of the
    figure, so look at the colour bar first: a random model is as colourful, up to a z of 3 or 4. A "score"
    says little alone, because unrelated heads have one too: the hover gives each pair's baseline.

    Args:
        scores: what ``ll.composition_scores`` returned.
        value: "z" (standard deviations above the random baseline), "score" (dimensionless, 0 to 1), or
            "excess" (score minus baseline mean).

    Returns:
        Figure with three heatmaps, Q, K and V, on one scale of colours.

    Raises:
        InvalidArgumentError: an unknown value, or a model of one layer, which has no pairs.
        FigureTooLargeError: more than 13,000 pairs of heads.

    Example:
        >>> import lens_linear as ll
        >>> found = ll.composition_scores(ll.toy_model(), n_random=20)
        >>> figure = ll.plots.composition_map(found)
        >>> figure.layout.title.text, [panel.text for panel in figure.layout.annotations]
        ('Composition of heads', ['Q-composition', 'K-composition', 'V-composition'])
    """
    require_choice("value", value, ("z", "score", "excess"))
    n_layers, n_heads = scores.scores.shape[1:3]
    if n_layers < 2:
        raise InvalidArgumentError(
            "scores must be of a model of at least 2 layers, got 1: its heads have nobody to read from"
        )
    table = {
        "z": scores.z,
        "score": scores.scores,
        "excess": scores.scores - scores.baseline_mean,
    }[value]
    writers = [(i, h) for i in range(n_layers - 1) for h in range(n_heads)]
    readers = [(i, h) for i in range(1, n_layers) for h in range(n_heads)]
    check_cells(3 * len(writers) * len(readers))
    names = [[f"L{i}H{h}" for i, h in side] for side in (writers, readers)]
    figure = make_subplots(rows=1, cols=3, subplot_titles=[f"{kind}-composition" for kind in KINDS])
    largest = max(float(table.abs().max()), 1e-12)
    for index in range(len(KINDS)):
        z = [
            [float(table[index, w, i, r, j]) if w < r else None for r, j in readers]
            for w, i in writers
        ]
        signed = value != "score"
        heat = go.Heatmap(
            z=z,
            text=_pairs(scores, index, writers, readers),
            hovertemplate="%{text}<extra></extra>",
            colorscale=DIVERGING if signed else SEQUENTIAL,
            zmin=-largest if signed else 0,
            zmax=largest,
            showscale=index == 2,
            colorbar={"title": {"text": value, "side": "right"}, "thickness": 14},
        )
        figure.add_trace(heat, row=1, col=index + 1)
        as_matrix(figure, rows=names[0], columns=names[1], row=1, col=index + 1)
    if len(readers) > _HEAD_TICKS:
        _tick_layers(figure, n_layers, n_heads)
    figure.update_xaxes(title_text="reads")
    figure.update_yaxes(title_text="writes", col=1)
    how = "norms folded" if scores.folded else "weights as stored"
    styled(
        figure,
        title="Composition of heads",
        subtitle=f"{how}; baseline: {scores.n_random} {scores.baseline} draws a pair",
        legend="none",
        height=300 + 18 * len(writers),
    )
    return figure.update_layout(margin_t=_PANELS_TOP)


def _pairs(
    scores: CompositionScores,
    kind: int,
    writers: list[tuple[int, int]],
    readers: list[tuple[int, int]],
) -> list[list[str]]:
    """What the hover says of every pair of heads: score, baseline and z."""
    parts = (scores.scores, scores.baseline_mean, scores.baseline_sd, scores.z)
    score, mean, sd, z = (part[kind] for part in parts)
    return [
        [
            f"{KINDS[kind]}: L{w[0]}H{w[1]} → L{r[0]}H{r[1]}<br>score {float(score[w + r]):.3f}, "
            f"baseline {float(mean[w + r]):.3f} ± {float(sd[w + r]):.3f}<br>z {float(z[w + r]):.1f}"
            for r in readers
        ]
        for w in writers
    ]


def _tick_layers(figure: go.Figure, n_layers: int, n_heads: int) -> None:
    """One tick a reading layer: three panels side by side have no room for every head."""
    step = -(-(n_layers - 1) // _HEAD_TICKS)
    shown = range(0, n_layers - 1, step)
    figure.update_xaxes(
        tickvals=[n_heads * i + (n_heads - 1) / 2 for i in shown],
        ticktext=[f"L{i + 1}" for i in shown],
    )


def head_scores(
    scores: InductionScores,
    *,
    column: str = "prefix_matching",
    subtract_control: bool = False,
) -> go.Figure:
    """A layers × heads map of one column of the induction table, with every head's verdict.

    Rows are layers, columns heads. Shares of attention are drawn on a scale from 0 to 1, signed columns
    centred at 0. A head that only keeps a fixed distance scores as high on its control as on the column:
    with ``subtract_control`` such heads, and random ones, lie near 0.

    Args:
        scores: what ``ll.induction_scores`` returned.
        column: a column of numbers of the table: prefix_matching, positional_control, copying, prev_token,
            duplicate, offset_mass, ...
        subtract_control: draw prefix_matching or duplicate minus its control; other columns have none.

    Returns:
        Figure with one heatmap; a short label (ind, prev, dup, pos) on each head that has a verdict.

    Raises:
        InvalidArgumentError: no such column of numbers; the message lists them.

    Example:
        >>> import lens_linear as ll
        >>> built = ll.constructions.build_induction(16, 32)
        >>> figure = ll.plots.head_scores(ll.induction_scores(built.model, rows_per_period=2))
        >>> [label.text for label in figure.layout.annotations]
        ['prev', 'ind']
    """
    frame = scores.to_dataframe()
    numbers = [name for name in frame.columns if name not in ("head", "layer", "index", "verdict")]
    require_choice("column", column, numbers)
    controls = {"prefix_matching": "positional_control", "duplicate": "duplicate_control"}
    values, name = frame[column], column.replace("_", " ")
    if subtract_control and column in controls:
        values, name = values - frame[controls[column]], f"{name} minus control"
    layers, heads = scores.copying.shape
    grid = values.to_numpy().reshape(layers, heads)
    figure = matrix(
        grid,
        rows=[f"L{i}" for i in range(layers)],
        columns=[f"H{j}" for j in range(heads)],
        value_name=name,
        row_name="layer",
        column_name="head",
        diverging=bool((grid < 0).any()),
        limits=(0, 1) if column in _SHARES and not bool((grid < 0).any()) else None,
    )
    verdicts = scores.verdicts
    figure.data[0].text = [
        [f"L{i}H{j}: {verdicts[i][j]}" for j in range(heads)] for i in range(layers)
    ]
    for i in range(layers):
        for j in range(heads):
            if verdicts[i][j] != "none":
                figure.add_annotation(
                    x=j,
                    y=i,
                    text=_SHORT[verdicts[i][j]],
                    showarrow=False,
                    font={"color": "white", "size": 13},
                    bgcolor="rgba(0,0,0,0.55)",
                    borderpad=2,
                )
    periods = ", ".join(map(str, scores.stats.periods))
    how = f"random tokens repeated with periods {periods}"
    how = "eigenvalues of each OV circuit" if column == "copying" else how
    return styled(
        figure,
        title=f"Heads: {name}",
        subtitle=f"{how}; labels are verdicts",
        x="head",
        y="layer",
        height=280 + 34 * layers,
    )


def diagonal_accuracy(found: dict[str, DiagonalAccuracy]) -> go.Figure:
    """Bars: how often a token's own entry is among the k largest of its row, a group of bars a circuit.

    The y axis is the share of tokens, 0 to 1. By chance it is k over the number of tokens, far below one
    per cent for a real vocabulary; the hover gives it.

    Args:
        found: what ``HeadCircuit.copying_accuracy`` (or ``circuits.diagonal_accuracy``) returned, by name.

    Returns:
        Figure with one set of bars for each k; a circuit that was not measured at a k has no bar there.

    Example:
        >>> import lens_linear as ll
        >>> head = ll.circuits.head_circuit(ll.constructions.build_induction(16, 32).model, 1, 1)
        >>> figure = ll.plots.diagonal_accuracy({"L1H1": head.copying_accuracy()})
        >>> [(bars.name, bars.y[0]) for bars in figure.data]
        [('top 1', 1.0), ('top 5', 1.0)]
    """
    figure = go.Figure()
    frames = {name: accuracy.to_dataframe() for name, accuracy in found.items()}
    for index, k in enumerate(dict.fromkeys(k for each in found.values() for k in each.ks)):
        rows = [frame[frame["k"] == k] for frame in frames.values()]
        figure.add_trace(
            go.Bar(
                x=list(range(len(rows))),
                y=[float(row["accuracy"].iloc[0]) if len(row) else None for row in rows],
                marker_color=colour(index),
                name=f"top {k}",
                customdata=[
                    [escape(name), float(row["chance"].iloc[0]) if len(row) else 0.0]
                    for name, row in zip(frames, rows, strict=True)
                ],
                hovertemplate="%{customdata[0]}: %{y:.1%}<br>by chance %{customdata[1]:.2%}"
                f"<extra>top {k}</extra>",
            )
        )
    figure.update_xaxes(
        tickmode="array",
        tickvals=list(range(len(frames))),
        ticktext=[tick_label(name) for name in frames],
    )
    figure.update_yaxes(tickformat=".0%", range=[0, 1])
    sizes = sorted({len(each.ranks) for each in found.values()})
    return styled(
        figure,
        title="How often a token's own entry stands out",
        subtitle=f"share of {', '.join(map(str, sizes))} tokens whose diagonal entry is among the k largest",
        x="circuit",
        y="share of tokens",
    )


def path_importance(importance: PathImportance) -> go.Figure:
    """Bars: by how much the paths of each order lower the loss, given all lower orders.

    The x axis is the number of heads on a path, the y axis nats a token. 0 (the grey line) is an order that
    adds nothing; bars below it, in the second colour, are orders that make the loss worse. All bars
    together are the fall from a uniform guess to the loss with every path.

    Args:
        importance: what ``PathExpansion.importance`` or ``AttentionOnly.importance`` returned.

    Returns:
        Figure with one bar an order.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> found = ll.AttentionOnly(ll.toy_model()).importance(torch.arange(8))
        >>> ll.plots.path_importance(found).data[0].x
        ('direct path', 'one head', 'two heads')
    """
    frame = importance.to_dataframe()
    names = ["direct path", "one head", "two heads", "three heads"]
    labels = [names[i] if i < len(names) else f"{i} heads" for i in frame["order"]]
    figure = go.Figure(
        go.Bar(
            x=labels,
            y=frame["effect"],
            marker_color=[colour(0) if effect >= 0 else colour(1) for effect in frame["effect"]],
            text=[f"{effect:+.3f}" for effect in frame["effect"]],
            textposition="outside",
            cliponaxis=False,
            customdata=frame[["n_paths", "loss_after", "effect_per_path"]],
            hovertemplate="%{x}: %{customdata[0]} paths<br>loss after %{customdata[1]:.3f} nats<br>"
            "%{customdata[2]:.4f} nats a path<extra></extra>",
        )
    )
    figure.add_hline(y=0, line={"color": GREY, "width": 1})
    last = importance.losses[-1]
    return styled(
        figure,
        title="What paths of each order are worth",
        subtitle=f"from {importance.uniform:.2f} nats (uniform guess) to {last:.2f}, "
        f"{importance.n_tokens} tokens; patterns and norm scales frozen",
        y="loss lowered by (nats a token)",
        legend="none",
    )
