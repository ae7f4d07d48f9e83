"""Figures of circuits: composition between heads, scores of heads, what paths are worth, circuit graphs.

Each function takes a result of :mod:`lens_linear.circuits` and returns a figure; nothing is computed here.
More figures of the room: :mod:`~lens_linear.plots.circuits_tables` (circuits over tokens and tables),
:mod:`~lens_linear.plots.circuits_paths` (paths, score attribution, loss curves).
"""

from __future__ import annotations

from typing import Any, Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_linear._checks import require_choice, require_float
from lens_linear.circuits.ablation import AblationScores
from lens_linear.circuits.composition import KINDS, CompositionScores, Kind
from lens_linear.circuits.factored import DiagonalAccuracy
from lens_linear.circuits.importance import PathImportance
from lens_linear.circuits.induction import VERDICTS, InductionScores
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

    Args:
        scores: what ``ll.composition_scores`` returned.
        value: "z" (standard deviations above the random baseline), "score", or "excess" (score minus
            baseline mean).

    Raises:
        InvalidArgumentError: the model has one layer, so there are no pairs.
        FigureTooLargeError: more than 13,000 pairs of heads.
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
        hover = [
            [
                f"{KINDS[index]}: {writer} → {reader}<br>score "
                f"{float(scores.scores[index][w + r]):.3f}, baseline "
                f"{float(scores.baseline_mean[index][w + r]):.3f} ± "
                f"{float(scores.baseline_sd[index][w + r]):.3f}<br>z "
                f"{float(scores.z[index][w + r]):.1f}"
                for r, reader in zip(readers, names[1], strict=True)
            ]
            for w, writer in zip(writers, names[0], strict=True)
        ]
        signed = value != "score"
        heat = go.Heatmap(
            z=z,
            text=hover,
            hovertemplate="%{text}<extra></extra>",
            colorscale=DIVERGING if signed else SEQUENTIAL,
            zmin=-largest if signed else 0,
            zmax=largest,
            showscale=index == 2,
            colorbar={"title": {"text": value, "side": "right"}, "thickness": 14},
        )
        figure.add_trace(heat, row=1, col=index + 1)
        as_matrix(figure, rows=names[0], columns=names[1], row=1, col=index + 1)
    if len(readers) > _HEAD_TICKS:  # three panels side by side: one tick a layer
        step = -(-(n_layers - 1) // _HEAD_TICKS)
        shown = range(0, n_layers - 1, step)
        figure.update_xaxes(
            tickvals=[n_heads * i + (n_heads - 1) / 2 for i in shown],
            ticktext=[f"L{i + 1}" for i in shown],
        )
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


def head_scores(
    scores: InductionScores,
    *,
    column: str = "prefix_matching",
    subtract_control: bool = False,
) -> go.Figure:
    """A layers × heads map of one column of the induction table, with every head's verdict.

    Args:
        scores: what ``ll.induction_scores`` returned.
        column: prefix_matching, positional_control, copying, prev_token, duplicate, offset_mass, ...
        subtract_control: draw prefix_matching or duplicate minus its control.
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


def ablation_map(scores: AblationScores) -> go.Figure:
    """A layers × heads map of the in-context gain that is lost without each head (nats a token)."""
    layers, heads = scores.gain_without.shape
    figure = matrix(
        scores.lost,
        rows=[f"L{i}" for i in range(layers)],
        columns=[f"H{j}" for j in range(heads)],
        value_name="gain lost (nats)",
        row_name="layer",
        column_name="head",
    )
    return styled(
        figure,
        title="In-context gain lost without one head",
        subtitle=f"{scores.how} ablation; whole model gains {scores.gain:.2f} nats a token over "
        f"{scores.n_rows} rows",
        x="head",
        y="layer",
        height=280 + 34 * layers,
    )


def diagonal_accuracy(found: dict[str, DiagonalAccuracy]) -> go.Figure:
    """Bars: how often a token's own entry is among the k largest of its row, a group of bars a circuit.

    Args:
        found: what ``HeadCircuit.copying_accuracy`` (or ``circuits.diagonal_accuracy``) returned, by name.
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
    """Bars: by how much the paths of each order lower the loss, given all lower orders."""
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


def circuit_graph(
    composition: CompositionScores,
    heads: InductionScores | None = None,
    *,
    min_z: float = 4.0,
    kinds: tuple[Kind, ...] = KINDS,
    max_edges: int = 60,
) -> go.Figure:
    """Heads as nodes by layer, composition well above its baseline as edges.

    Args:
        composition: what ``ll.composition_scores`` returned.
        heads: verdicts that colour the nodes.
        min_z: draw edges of at least this many standard deviations above the baseline.
        kinds: which kinds of composition.
        max_edges: the strongest edges drawn.
    """
    require_float("min_z", min_z)
    for kind in kinds:
        require_choice("kinds", kind, KINDS)
    n_layers, n_heads = composition.scores.shape[1:3]
    frame = composition.to_dataframe()
    frame = frame[(frame["z"] >= min_z) & frame["kind"].isin(kinds)]
    frame = frame.sort_values("z", ascending=False, kind="stable").head(max_edges)
    figure = go.Figure()
    inks = {kind: colour(index) for index, kind in enumerate(KINDS)}
    strongest = max(float(frame["z"].max()) if len(frame) else 1.0, 1e-12)
    shown: set[str] = set()
    edges: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    for edge in edges:
        kind = edge["kind"]
        # Kinds of one pair of heads leave a little beside each other.
        shift = 0.05 * (KINDS.index(kind) - 1)
        x = [edge["writer_head"] + shift, edge["reader_head"] + shift]
        y = [edge["writer_layer"], edge["reader_layer"]]
        figure.add_trace(
            go.Scatter(
                x=[x[0], sum(x) / 2, x[1]],
                y=[y[0], sum(y) / 2, y[1]],
                mode="lines",
                line={"color": inks[kind], "width": 1 + 5 * edge["z"] / strongest},
                opacity=0.75,
                name=f"{kind}-composition",
                legendgroup=kind,
                showlegend=kind not in shown,
                hovertext=f"{kind}: {edge['writer']} → {edge['reader']}<br>score {edge['score']:.3f}, "
                f"z {edge['z']:.1f}",
                hoverinfo="text",
            )
        )
        shown.add(kind)
    _nodes(figure, n_layers, n_heads, heads)
    figure.update_yaxes(tickmode="array", tickvals=list(range(n_layers)), showgrid=False)
    figure.update_yaxes(
        ticktext=[f"layer {i}" for i in range(n_layers)], range=[-0.5, n_layers - 0.5]
    )
    figure.update_xaxes(visible=False, range=[-0.6, n_heads - 0.4])
    return styled(
        figure,
        title="Heads and what they read from each other",
        subtitle=f"{len(frame)} edges with z of at least {min_z:g}; width is z",
        height=240 + 130 * n_layers,
    )


def _nodes(figure: go.Figure, n_layers: int, n_heads: int, heads: InductionScores | None) -> None:
    every = [(i, j) for i in range(n_layers) for j in range(n_heads)]
    verdicts = {at: "head" if heads is None else heads.verdicts[at[0]][at[1]] for at in every}
    for name in dict.fromkeys(["head", *VERDICTS]):
        chosen = [at for at in every if verdicts[at] == name]
        if not chosen:
            continue
        ink = GREY if name in ("head", "none") else colour(3 + VERDICTS.index(name))  # type: ignore[arg-type]
        figure.add_trace(
            go.Scatter(
                x=[j for _, j in chosen],
                y=[i for i, _ in chosen],
                mode="markers+text",
                marker={"size": 46, "color": "white", "line": {"color": ink, "width": 4}},
                text=[f"{i}.{j}" for i, j in chosen],
                hovertext=[f"L{i}H{j}: {name}" for i, j in chosen],
                hoverinfo="text",
                name="no verdict" if name == "none" else name,
                showlegend=name != "head",
            )
        )
