"""Figures of heads: scores and verdicts, composition, the circuit as a graph, ablation and patching.

Each function takes a result of :mod:`lens_linear.circuits` and returns a figure; nothing is computed here.
Tokens and maps over them: :mod:`~lens_linear.plots.tokens`; paths and attributions:
:mod:`~lens_linear.plots.paths`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lens_linear.checks import counted, require_choice
from lens_linear.circuits.heads.composition import KINDS, CompositionScores, Kind
from lens_linear.circuits.heads.factored import DiagonalAccuracy
from lens_linear.circuits.induction.ablation import AblationScores
from lens_linear.circuits.induction.in_context import InContextLoss
from lens_linear.circuits.induction.mechanism import InductionMechanism
from lens_linear.circuits.induction.scores import InductionScores
from lens_linear.circuits.induction.verdicts import VERDICTS
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots._kinds import (
    add_line,
    bars,
    bars_height,
    chosen,
    figure,
    head_map,
    panels,
)
from lens_linear.plots.style import (
    DIVERGING,
    GREY,
    SEQUENTIAL,
    as_matrix,
    check_cells,
    colour,
    escape,
    height_of,
    matrix_height,
    styled,
)

_NAMED_EDGES = 10  # edges of a large graph whose heads are named; the hover names every one
_READS = {"Q": "queries", "K": "keys", "V": "values"}
_DETAIL = 24  # heads on a side that are drawn pair by pair; more are drawn layer by layer
# The column whose size a verdict speaks of, its short name, and its colour.
_VERDICTS = {
    "induction": ("prefix_matching", "ind", colour(1)),
    "duplicate-token": ("duplicate", "dup", colour(2)),
    "previous-token": ("prev_token", "prev", colour(0)),
    "positional": ("offset_mass", "pos", colour(3)),
    "undecided": ("prefix_matching", "?", "#8C8C8C"),
}
# Kinds of composition are lines between heads: no colour of a verdict.
_KIND_INKS = {"Q": colour(4), "K": colour(7), "V": colour(5)}
_CONTROLS = {"prefix_matching": "positional_control", "duplicate": "duplicate_control"}


@figure
def head_scores(
    scores: InductionScores,
    *,
    column: str = "verdict",
    subtract_control: bool = False,
) -> go.Figure:
    """A layers × heads map of the induction table: what each head is, or one of its columns.

    Rows are layers, columns heads. By default each head with a verdict has the verdict's colour, the
    stronger the larger the score that the verdict speaks of, up to the largest of the model; heads without
    one stay pale. With a column of numbers the colours are that column's on its own scale (signed ones
    centred at 0). A head that only keeps a fixed distance scores as high on its control: with
    ``subtract_control`` such heads, and random ones, lie near 0.

    Args:
        scores: what ``ll.induction_scores`` returned.
        column: "verdict", or a column of numbers of the table: prefix_matching, positional_control,
            copying, prev_token, duplicate, offset_mass, ...
        subtract_control: draw prefix_matching (the default then) or duplicate minus its control; other
            columns have none.

    Returns:
        Figure with a heatmap (one a verdict); a short label (ind, prev, dup, pos) on each head that has a
        verdict, where there is room.

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
    numbers = [name for name in frame.columns if name not in ("head", "layer", "index")]
    require_choice("column", column, numbers)
    if subtract_control and column == "verdict":
        column = "prefix_matching"
    layers, heads = scores.copying.shape
    verdicts = np.asarray(scores.verdicts)
    if column == "verdict":
        fig, name = _verdict_map(frame, verdicts), "verdicts"
        how = "colour: the verdict; strength: its own score, up to the model's largest"
        fig.update_layout(height=height_of(fig) + 60)  # its legend
    else:
        values, name = frame[column], column.replace("_", " ")
        if subtract_control and column in _CONTROLS:
            values, name = values - frame[_CONTROLS[column]], f"{name} minus control"
        hover = [[f"L{i}H{j}: {verdicts[i, j]}" for j in range(heads)] for i in range(layers)]
        fig = head_map(values.to_numpy().reshape(layers, heads), value_name=name, hover=hover)
        how = "eigenvalues of each OV circuit" if column == "copying" else "labels are verdicts"
    if layers * heads <= 200:
        for i, j in np.argwhere(verdicts != "none").tolist():
            short = _VERDICTS[verdicts[i, j]][1]
            fig.add_annotation(
                x=j, y=i, text=short, showarrow=False, font={"size": 12, "color": "black"},
                bgcolor="rgba(255,255,255,0.75)", borderpad=1,
            )  # fmt: skip
    periods = ", ".join(map(str, scores.stats.periods))
    return styled(
        fig, title=f"Heads: {name}", x="head", y="layer", height=height_of(fig),
        subtitle=f"random tokens repeated with periods {periods}; {how}",
    )  # fmt: skip


def _verdict_map(frame: pd.DataFrame, verdicts: np.ndarray) -> go.Figure:
    """One heatmap a verdict, white to its colour, each on the scale of its own score."""
    layers, heads = verdicts.shape
    fig = head_map(np.zeros((layers, heads)), value_name="")
    fig.data = ()
    hover = np.asarray(
        [
            f"{row.head}: {row.verdict}<br>prefix matching {row.prefix_matching:.2f}, previous "
            f"{row.prev_token:.2f}<br>duplicate {row.duplicate:.2f}, offset {row.offset}: "
            f"{row.offset_mass:.2f}"
            for row in frame.itertuples()
        ]
    ).reshape(layers, heads)
    for verdict in [*_VERDICTS, "none"]:
        column, _, ink = _VERDICTS.get(verdict, ("prefix_matching", "", "#DDDDDD"))
        grid = frame[column].to_numpy(dtype=float).reshape(layers, heads)
        mine = verdicts == verdict
        if not mine.any():
            continue
        pale = "#F3F3F3" if verdict == "none" else "#FFFFFF"
        fig.add_heatmap(
            z=np.where(mine, grid, np.nan), zmin=0, zmax=float(grid[mine].max()) or 1.0, xgap=1, ygap=1,
            colorscale=[[0, pale], [1, ink]], showscale=False, text=hover, hoverongaps=False,
            hovertemplate="%{text}<extra></extra>", name=verdict, showlegend=False,
        )  # fmt: skip
        name = "no verdict" if verdict == "none" else verdict
        name += f" ({_VERDICTS[verdict][1]}), {mine.sum()}" if verdict != "none" else ""
        fig.add_scatter(
            x=[None], y=[None], mode="markers", name=name,
            marker={"size": 12, "symbol": "square", "color": ink},
        )  # fmt: skip
    return fig.update_xaxes(range=[-0.5, heads - 0.5]).update_yaxes(
        range=[layers - 0.5, -0.5], autorange=False
    )


@figure
def ablation_map(scores: AblationScores) -> go.Figure:
    """A layers × heads map of what is lost of a metric without each head, in the metric's unit.

    Rows are layers, columns heads, colours are centred at 0: a head that is not needed. Negative
    heads stand in the way. Heads that replace each other can all lie near 0, so a small number does not
    prove that a head has no part.

    Args:
        scores: what ``circuits.ablation_scores`` returned.

    Returns:
        Figure with one heatmap; the subtitle gives the whole model's value.

    Example:
        >>> import lens_linear as ll
        >>> built = ll.constructions.build_induction(16, 32)
        >>> scores = ll.circuits.ablation_scores(built.model, rows_per_period=1)
        >>> lost = ll.plots.ablation_map(scores).data[0].z
        >>> bool(lost[1, 1] > 1), bool(abs(lost[1, 0]) < 0.1)  # the induction head, and a head that is idle
        (True, True)
    """
    word = "rise of the loss" if scores.lower_is_better else f"{scores.metric} lost"
    fig = head_map(scores.lost, value_name=word)
    return styled(
        fig, title=f"{word[0].upper()}{word[1:]} without one head", x="head", y="layer",
        subtitle=f"{scores.how} ablation; {scores.metric} of the whole model {scores.before:.2f} over "
        f"{counted(scores.n_rows, 'row')}", height=height_of(fig),
    )  # fmt: skip


@figure
def composition_map(
    scores: CompositionScores,
    *,
    value: Literal["z", "score", "excess"] = "z",
    pairs: bool | None = None,
) -> go.Figure:
    """Composition of heads, one panel a kind: rows write, columns read.

    Small models are drawn pair by pair; in larger ones a cell is a pair of layers, coloured by its
    strongest pair of heads, which the hover names. Cells whose reader does not stand above the writer stay
    blank. Unrelated heads lie about 0 in "z" (standard deviation 1) and in "excess". Colours reach to the
    largest value of the figure, so look at the colour bar first: a random model is as colourful, up to a z
    of 3 or 4 (the strongest of many pairs lies higher). A "score" says little alone, because unrelated
    heads have one too: the hover gives each pair's baseline.

    Args:
        scores: what ``ll.composition_scores`` returned.
        value: "z" (standard deviations above the random baseline), "score" (dimensionless, 0 to 1), or
            "excess" (score minus baseline mean).
        pairs: True draws every pair of heads, False pairs of layers; None decides by their number.

    Returns:
        Figure with three heatmaps, Q, K and V, on one scale of colours.

    Raises:
        InvalidArgumentError: an unknown value, or a model of one layer, which has no pairs.
        FigureTooLargeError: ``pairs=True`` and more than 13,000 pairs of heads.

    Example:
        >>> import lens_linear as ll
        >>> found = ll.composition_scores(ll.toy_model(), n_random=20)
        >>> figure = ll.plots.composition_map(found)
        >>> figure.layout.title.text, [panel.text for panel in figure.layout.annotations]
        ('Composition of heads', ['queries (Q)', 'keys (K)', 'values (V)'])
    """
    n_layers, n_heads = scores.scores.shape[1:3]
    if n_layers < 2:
        raise InvalidArgumentError(
            "scores must be of a model of at least 2 layers, got 1: its heads have nobody to read from; "
            "pass a deeper model's"
        )
    by_pair = (n_layers - 1) * n_heads <= _DETAIL if pairs is None else pairs
    size = n_heads if by_pair else 1
    side = (n_layers - 1) * size
    check_cells(len(KINDS) * side * side)
    values = _pair_values(scores, value)
    z, texts = _cells(scores, values, by_pair)
    name = "L{}H{}" if by_pair else "L{}"
    labels = [[name.format(first + i // size, i % size) for i in range(side)] for first in (0, 1)]
    fig, places = panels([f"{_READS[kind]} ({kind})" for kind in KINDS], share_y=True)
    largest, signed = max(float(np.nanmax(np.abs(z))), 1e-12), value in ("z", "excess")
    for index, at in enumerate(places):
        fig.add_heatmap(
            z=z[index], text=texts[index], hovertemplate="%{text}<extra></extra>", hoverongaps=False,
            zmax=largest, zmin=-largest if signed else 0, colorscale=DIVERGING if signed else SEQUENTIAL,
            showscale=at[1] == 3, row=at[0], col=at[1],
            colorbar={"title": {"text": value, "side": "right"}, "thickness": 12},
        )  # fmt: skip
        as_matrix(fig, rows=labels[0], columns=labels[1], row=at[0], col=at[1], panels=3)
    fig.update_yaxes(title_text="writes", col=1)
    how = "norms folded" if scores.folded else "weights as stored"
    what = "" if by_pair else "each cell the strongest pair of heads of two layers; "
    return styled(
        fig, title="Composition of heads", x="reads", legend="none", panels=True,
        subtitle=f"{what}{how}; baseline: {scores.n_random} {scores.baseline} draws a pair",
        height=matrix_height(side, least=24, most=420),
    )  # fmt: skip


def _pair_values(scores: CompositionScores, value: str) -> np.ndarray:
    """[kind, writer layer, writer head, reader layer, reader head], NaN where there is no pair."""
    excess = scores.scores - scores.baseline_mean
    found = {"z": scores.z, "score": scores.scores, "excess": excess}[value].double().numpy().copy()
    layers = np.arange(found.shape[1])
    no_pair = layers[:, None] >= layers[None, :]
    found[np.broadcast_to(no_pair[None, :, None, :, None], found.shape)] = np.nan
    return found


def _cells(
    scores: CompositionScores, values: np.ndarray, by_pair: bool
) -> tuple[np.ndarray, np.ndarray]:
    """[kind, row, column] of what is drawn, and what the hover says of each cell."""
    kinds, layers, heads = values.shape[:3]
    writes, reads = values[:, :-1], np.s_[1:]
    if by_pair:
        side = (layers - 1) * heads
        z = writes[:, :, :, reads].reshape(kinds, side, side)
        at = [np.argwhere(np.isfinite(z))][0]
        where = [(k, r // heads, r % heads, c // heads + 1, c % heads) for k, r, c in at.tolist()]
    else:  # the strongest pair of heads of each pair of layers
        blocks = (
            writes[:, :, :, reads]
            .transpose(0, 1, 3, 2, 4)
            .reshape(kinds, layers - 1, layers - 1, -1)
        )
        known = np.where(np.isnan(blocks), -np.inf, blocks)
        best = known.argmax(-1)
        z = np.take_along_axis(blocks, best[..., None], -1)[..., 0]
        at = np.argwhere(np.isfinite(z))
        found = best[tuple(at.T)].tolist()
        where = [(k, w, b // heads, r + 1, b % heads) for (k, w, r), b in zip(at.tolist(), found)]
    texts = np.full(z.shape, "", dtype=object)
    texts[tuple(at.T)] = [_pair(scores, place) for place in where]
    return z, texts


def _pair(scores: CompositionScores, at: tuple[int, ...]) -> str:
    """What the hover says of a pair of heads: score, baseline and z."""
    kind, writer, i, reader, j = at
    score, mean = float(scores.scores[at]), float(scores.baseline_mean[at])
    sd = float(scores.baseline_sd[at])
    z = f"<br>z {(score - mean) / sd:.1f}" if sd > 0 else ""
    return (
        f"{KINDS[kind]}: L{writer}H{i} → L{reader}H{j}<br>score {score:.3f}, baseline {mean:.3f} ± "
        f"{sd:.3f}{z}"
    )


@figure
def circuit_graph(
    composition: CompositionScores,
    heads: InductionScores | None = None,
    *,
    min_z: float = 4.0,
    kinds: tuple[Kind, ...] = KINDS,
    max_edges: int = 40,
) -> go.Figure:
    """Heads as nodes by layer, composition well above its baseline as edges.

    Layers rise from bottom to top, heads stand side by side; there are no units. An edge leads from the
    head that writes to the head that reads; its colour is the kind, its width z. Unrelated heads hardly
    ever pass the default ``min_z``: in random models 3 of 7,200 possible edges did. Where a model has many
    heads only those with an edge are named.

    Args:
        composition: what ``ll.composition_scores`` returned.
        heads: verdicts of ``ll.induction_scores`` that colour the nodes; None leaves them grey.
        min_z: draw edges of at least this many standard deviations above the baseline.
        kinds: which kinds of composition, of "Q", "K" and "V".
        max_edges: the strongest edges drawn.

    Returns:
        Figure with one line an edge and one set of nodes a verdict.

    Raises:
        InvalidArgumentError: an unknown kind, or a ``min_z`` that is no number.

    Example:
        >>> import lens_linear as ll
        >>> built = ll.constructions.build_induction(16, 32)
        >>> figure = ll.plots.circuit_graph(ll.composition_scores(built.model, n_random=50))
        >>> [edge.hovertext.split("<br>")[0] for edge in figure.data if edge.mode == "lines"]
        ['K: L0H0 → L1H1']
    """
    n_layers, n_heads = composition.scores.shape[1:3]
    z = _pair_values(composition, "z")
    z[[kind not in kinds for kind in KINDS]] = np.nan
    strong = np.argwhere(z >= min_z)
    order = np.argsort(-z[tuple(strong.T)], kind="stable")[: chosen("max_edges", max_edges)]
    edges = [tuple(edge) for edge in strong[order].tolist()]
    widest = max((abs(float(z[edge])) for edge in edges), default=0.0) or 1.0
    fig, named = go.Figure(), set()
    for kind, writer, i, reader, j in edges:
        # Kinds of one pair of heads leave a little beside each other.
        shift, name = 0.06 * (kind - 1), f"{KINDS[kind]}-composition"
        at = (kind, writer, i, reader, j)
        fig.add_scatter(
            x=[i + shift, j + shift], y=[writer, reader], mode="lines", opacity=0.7, name=name,
            line={"color": _KIND_INKS[KINDS[kind]], "width": 1 + 4 * abs(float(z[at])) / widest},
            legendgroup=name, showlegend=name not in named, hovertext=_pair(composition, at),
            hoverinfo="text",
        )  # fmt: skip
        named.add(name)
    _nodes(fig, n_layers, n_heads, heads, [((w, i), (r, j)) for _, w, i, r, j in edges])
    step = max(1, -(-n_layers // 16))
    fig.update_yaxes(
        tickvals=list(range(0, n_layers, step)), range=[-0.6, n_layers - 0.4], showgrid=False,
        ticktext=[f"layer {i}" for i in range(0, n_layers, step)],
    )  # fmt: skip
    fig.update_xaxes(
        range=[-0.7, n_heads - 0.3], showgrid=False, dtick=max(1, n_heads // 8), tick0=0
    )
    more = f" of {len(strong):,}" if len(strong) > len(edges) else ""
    what = f"the {len(edges)} strongest{more} edges" if edges else "no edge"
    return styled(
        fig, title="Heads and what they read from each other", x="head",
        subtitle=f"{what} with z of at least {min_z:g}{'; width is z' if edges else ''}",
        height=min(900, 260 + 90 * n_layers),
    )  # fmt: skip


def _nodes(
    fig: go.Figure,
    n_layers: int,
    n_heads: int,
    heads: InductionScores | None,
    edges: Sequence[tuple[tuple[int, int], tuple[int, int]]],
) -> None:
    """All heads of a small model with their names; of a large one dots, and names at the strongest edges."""
    # As many circles fit a narrow page side by side.
    small = n_layers * n_heads <= 40 and n_heads <= 6
    touched = {at for edge in edges for at in edge}
    told_names = {at for edge in edges[:_NAMED_EDGES] for at in edge}
    every = [(i, j) for i in range(n_layers) for j in range(n_heads)]
    table = None if heads is None else heads.verdicts
    verdicts = {at: "head" if table is None else table[at[0]][at[1]] for at in every}
    for name in ("head", *VERDICTS):
        mine = [at for at in every if verdicts[at] == name]
        if not mine:
            continue
        ink = _VERDICTS[name][2] if name in _VERDICTS else GREY
        told = [small or at in touched for at in mine]
        big = {"size": 40, "line": {"color": ink, "width": 4}}
        dots = {"size": [9 if t else 4 for t in told], "line": {"color": ink, "width": 2}}
        fig.add_scatter(
            x=[j for _, j in mine], y=[i for i, _ in mine], mode="markers+text",
            marker={"color": "white" if small else ink, **(big if small else dots)},
            text=[f"L{i}H{j}" if small or (i, j) in told_names else "" for i, j in mine],
            textposition="middle center" if small else "top center",
            textfont={"size": 10, **({} if small else {"shadow": "auto"})},  # legible on top of an edge
            hovertext=[f"L{i}H{j}: {name}" for i, j in mine], hoverinfo="text",
            name="no verdict" if name == "none" else name, showlegend=name != "head", cliponaxis=False,
        )  # fmt: skip


@figure
def diagonal_accuracy(found: Mapping[str, DiagonalAccuracy] | DiagonalAccuracy) -> go.Figure:
    """Bars: how often a token's own entry is among the k largest of its row, a group of bars a circuit.

    The x axis is the share of tokens, 0 to 1. By chance it is k over the number of tokens, far below one
    per cent for a real vocabulary; the hover gives it.

    Args:
        found: what ``HeadCircuit.copying_accuracy`` (or ``circuits.diagonal_accuracy``) returned, by name.

    Returns:
        Figure with one set of bars for each k; a circuit that was not measured at a k has no bar there.

    Example:
        >>> import lens_linear as ll
        >>> head = ll.circuits.head_circuit(ll.constructions.build_induction(16, 32).model, 1, 1)
        >>> figure = ll.plots.diagonal_accuracy({"L1H1": head.copying_accuracy()})
        >>> [(bars.name, bars.x[0]) for bars in figure.data]
        [('top 1', 1.0), ('top 5', 1.0)]
    """
    if isinstance(found, DiagonalAccuracy):
        found = {"circuit": found}
    fig = go.Figure()
    frames = {name: accuracy.to_dataframe() for name, accuracy in found.items()}
    for index, k in enumerate(dict.fromkeys(k for each in found.values() for k in each.ks)):
        rows = [frame[frame["k"] == k] for frame in frames.values()]
        bars(
            list(frames), [float(row["accuracy"].iloc[0]) if len(row) else None for row in rows],
            name=f"top {k}", fig=fig, colours=colour(index), length=24,
            custom=[float(row["chance"].iloc[0]) if len(row) else 0.0 for row in rows],
            hover="%{x:.1%}, by chance %{customdata:.2%}",
        )  # fmt: skip
    fig.update_xaxes(tickformat=".0%", range=[0, 1.02])
    sizes = ", ".join(str(n) for n in sorted({len(each.ranks) for each in found.values()}))
    return styled(
        fig, title="How often a token's own entry stands out", x="share of tokens",
        subtitle=f"share of {sizes} tokens whose diagonal entry is among the k largest of its row",
        height=bars_height(len(found), pitch=max(22, min(56, 900 // len(found)))),
    )  # fmt: skip


@figure
def in_context_loss(curve: InContextLoss) -> go.Figure:
    """The loss along the sequence with its standard error, and the two halves or copies.

    The y axis is the loss in nats. The x axis is the token's index, or with random repeats the distance to
    the start of the second copy, which a dotted line marks. Without help from the context the line stays
    level: for random tokens at about the logarithm of the vocabulary's size, or above it.

    Args:
        curve: what ``circuits.in_context_loss`` returned.

    Returns:
        Figure with a band of one standard error on either side and the line of means; the subtitle gives the
        means of both halves or copies, and their difference, the gain.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> curve = ll.circuits.in_context_loss(ll.toy_model(), torch.arange(40).reshape(2, 20))
        >>> figure = ll.plots.in_context_loss(curve)
        >>> figure.layout.xaxis.title.text, len(figure.data[1].x)
        ('token index', 19)
    """
    frame = curve.to_dataframe()
    se = frame["se"].fillna(0)
    fig = add_line(
        go.Figure(), frame["index"], frame["loss"], "loss ± one standard error",
        band=(frame["loss"] - se, frame["loss"] + se), custom=frame["n"], mode="lines",
        hover="%{x}: %{y:.3f} nats over %{customdata} rows",
    )  # fmt: skip
    copies = curve.aligned == "second copy"
    if copies:
        ends = [float(frame["loss"].min()), float(frame["loss"].max())]
        add_line(fig, [0, 0], ends, "start of the second copy", ink=GREY, dash="dot", mode="lines")
    names = ("first copy", "second copy") if copies else ("first half", "second half")
    return styled(
        fig, title="Loss along the sequence", y="loss (nats)",
        subtitle=f"{names[0]} {curve.first:.3f}, {names[1]} {curve.second:.3f} nats: gain "
        f"{curve.gain:+.3f}; {counted(curve.n_rows, 'row')}",
        x="token, counted from the start of the second copy" if copies else "token index",
    )  # fmt: skip


@figure
def mechanism_table(mechanism: InductionMechanism) -> go.Figure:
    """Bars: the share of the in-context gain each intervention takes away, beside its control.

    The x axis runs from 0 % (the gain stays whole) to 100 % (all of it is lost); interventions can
    overshoot either end. The name of a step says in brackets what the story expects. Grey bars are the
    null: the same done to as many other heads, near 0 % if the named heads matter and others do not.

    Args:
        mechanism: what ``circuits.verify_induction`` returned.

    Returns:
        Figure with two sets of horizontal bars, named heads and controls; a step without control has one bar.

    Example:
        >>> import lens_linear as ll
        >>> built = ll.constructions.build_induction(16, 32)
        >>> found = ll.circuits.verify_induction(built.model, rows_per_period=1, n_controls=2)
        >>> [bars.name for bars in ll.plots.mechanism_table(found).data]
        ['named heads', 'as many other heads (null)']
    """
    frame = mechanism.to_dataframe()
    labels = [f"{step} ({expected})" for step, expected in zip(frame["step"], frame["expected"])]
    fig = bars(
        labels, frame["removed"], name="named heads", length=60,
        colours=[colour(1) if e == "lost" else colour(0) for e in frame["expected"]],
        text=[f"{value:z.0%}" for value in frame["removed"]],  # z: no "-0%"
        custom=frame[["intervention", "heads", "gain_before", "gain_after"]].map(_plain_text),
        hover="%{customdata[1]}: %{customdata[0]}<br>gain %{customdata[2]} → %{customdata[3]} nats",
    )  # fmt: skip
    bars(
        labels, frame["control_removed"], name="as many other heads (null)", fig=fig, colours="#BBBBBB",
        custom=frame[["n_controls", "control_size", "control_worst"]], length=60,
        hover="%{customdata[0]} sets of %{customdata[1]} other heads<br>mean %{x:.0%}, worst "
        "%{customdata[2]:.0%}",
    )  # fmt: skip
    drawn = [0.0, *frame["removed"], *frame["control_removed"].dropna()]
    room = 0.25 * (max(drawn) - min(drawn))
    left = 1.6 * room if min(drawn) < 0 else 0.0  # a number there stands before the names
    fig.update_xaxes(tickformat=".0%", range=[min(drawn) - left, max(drawn) + room])
    fig.data[0].marker.line = {"width": 0}
    return styled(
        fig, title="The induction mechanism, step by step", x="share of the in-context gain taken away",
        subtitle=f"gain of the whole model {mechanism.before.gain:.2f} nats a token, "
        f"{counted(mechanism.n_rows, 'row')}; in brackets what the story expects: vermilion lost, blue kept",
        height=bars_height(len(frame), pitch=46),
    )  # fmt: skip


def _plain_text(value: object) -> object:
    return f"{value:.2f}" if isinstance(value, float) else escape(value)
