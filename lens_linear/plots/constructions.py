"""Figures of the constructions: least-squares attention, slow and fast memory, capacity."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_linear.constructions.head_memory import HeadMemory
from lens_linear.constructions.memory import MemoryCapacity
from lens_linear.constructions.ols import HatMatrix
from lens_linear.constructions.ols_training import TrainingRun
from lens_linear.constructions.retrieval import RetrievalCurve
from lens_linear.constructions.slow_fast import MemorySwap, ShiftCurve
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots._marks import FLOOR, LOG, band, level, mean_sd, quartiles
from lens_linear.plots.style import DASHES, GREY, MAX_CELLS, as_matrix, colour, matrix, styled

_ENERGY_COLOURS = {"quadratic": 0, "polynomial-3": 2, "polynomial-4": 3, "exponential": 1}
_QUANTITIES = {  # axis title, figure title
    "prediction_error": (
        "distance to least squares (relative)",
        "Does gradient descent reach the least-squares prediction?",
    ),
    "geometry_error": (
        "distance of W<sub>Q</sub>W<sub>K</sub>ᵀ to (XᵀX)⁻¹ (relative)",
        "Does gradient descent reach the construction's geometry?",
    ),
    "loss": ("mean squared error (squared units of y)", "Training loss beside least squares"),
}


def ols_convergence(
    run: TrainingRun,
    *,
    quantity: Literal["prediction_error", "geometry_error", "loss"] = "prediction_error",
) -> go.Figure:
    """Convergence to least squares over epochs: median over seeds, band from best to worst.

    Args:
        run: from :func:`~lens_linear.constructions.ols_training.train_ols_attention`.
        quantity: which curve.
    """
    if quantity not in _QUANTITIES:
        raise InvalidArgumentError(
            f"quantity must be one of {', '.join(map(repr, _QUANTITIES))}, got {quantity!r}"
        )
    frame = run.summary().query("quantity == @quantity")
    seeds = run.loss.shape[1]
    floor = FLOOR * (float(frame["high"].iloc[0]) if quantity == "loss" else 1.0)
    figure = go.Figure(band(frame, "epoch", "all seeds", colour(0), floor=floor))
    figure.add_scatter(
        x=frame["epoch"],
        y=frame["median"].clip(lower=floor),
        mode="lines",
        line={"color": colour(0), "width": 2.5},
        name="median",
        hovertemplate="epoch %{x}<br>%{y:.3g}<extra>median</extra>",
    )
    if quantity == "prediction_error" and run.tolerance > 0:
        level(figure, run.tolerance, f"converged below {run.tolerance:g}", log=True)
    if quantity == "loss":
        level(figure, max(run.ols_loss, floor), "least squares", log=True)
    else:  # from float64's resolution to a little above 1; a seed that diverges leaves the figure
        figure.update_yaxes(range=[-16.5, 1.5])
    when = run.epochs_to_converge
    done = int((~when.isnan()).sum())
    last = f", the last after {when.nan_to_num(0).max():.0f} epochs" if done else ""
    last += f", {run.diverged} diverged" if run.diverged else ""
    n, p = run.x.shape
    title = _QUANTITIES[quantity][1]
    if quantity == "geometry_error" and run.form == "paper" and p == 1:
        title = "One input and a free scale: the distance is zero by definition"
    styled(
        figure,
        title=title,
        subtitle=f"{run.form} form, n = {n}, p = {p}, {run.optimizer}, learning rate "
        f"{run.learning_rate:g}; {done} of {seeds} seeds converged{last}",
        x="epoch (full-batch step)",
        y=_QUANTITIES[quantity][0],
        width=760,
    )
    return figure.update_yaxes(**LOG)


def hat_matrix(hat: HatMatrix, *, max_cells: int = MAX_CELLS) -> go.Figure:
    """The hat matrix as a heatmap: row q says what each label of the context counts for.

    Raises:
        FigureTooLargeError: more than ``max_cells`` cells.
    """
    queries, n = hat.values.shape
    figure = matrix(
        hat.values.detach().cpu(),
        value_name="weight",
        row_name="query",
        column_name="context row",
        max_cells=max_cells,
    )
    figure.update_traces(colorbar_title_side="top")  # at the side it runs into long tick labels
    same = ", queries are the context's own rows" if hat.on_training_rows else ""
    return styled(
        figure,
        title="Hat matrix: attention scores that are least squares",
        subtitle=f"{queries} queries × {n} context rows, rank {hat.rank}"
        f"{', with intercept' if hat.intercept else ''}{same}",
        x="context row (label it multiplies)",
        y="query",
        height=520,
        width=660,
    )


def memory_swap(swap: MemorySwap) -> go.Figure:
    """Two 2 × 2 tables: error to the context's regression and to the weights' regression."""
    titles = ("to least squares on the context", "to least squares on the weights' data")
    figure = make_subplots(cols=2, subplot_titles=titles, horizontal_spacing=0.2)
    for i, values in enumerate((swap.to_context_ols, swap.to_weights_ols), start=1):
        shown = [[f"{v:.2g}" if v > 1e-9 else "0" for v in row] for row in values.tolist()]
        figure.add_heatmap(
            z=values.clamp(max=2.0).numpy(),
            text=shown,
            texttemplate="%{text}",
            textfont={"size": 18},
            colorscale=[[0, "#F2F2F2"], [1, colour(4)]],
            zmin=0,
            zmax=2,
            xgap=4,
            ygap=4,
            showscale=False,
            hovertemplate="weights %{y}, context %{x}<br>relative error %{text}<extra></extra>",
            row=1,
            col=i,
        )
        as_matrix(figure, rows=("first", "second"), columns=("first", "second"), row=1, col=i)
    styled(
        figure,
        title="Slow memory in the weights, fast memory in the context",
        subtitle=f"{swap.form} form, n = {swap.n[0]} and {swap.n[1]}, p = {swap.p}; geometry "
        f"distance {swap.geometry_distance:.2g}; cells: relative error of the prediction, 0 is exact",
        x="context from",
        y="weights from",
        legend="none",
        height=420,
        width=820,
    )
    return figure.update_layout(margin={"t": 130, "b": 80})


def covariance_shift(curve: ShiftCurve, *, layers: Sequence[int] = (3, 5, 7, 9, 13)) -> go.Figure:
    """Error against covariance shift: fixed weights, one gradient step, Newton-Schulz by depth.

    Args:
        curve: from :func:`~lens_linear.constructions.slow_fast.covariance_shift`.
        layers: depths (readout included) of the Newton-Schulz stacks that are drawn.
    """
    frame = curve.summary()
    figure = go.Figure()
    for i, (method, label) in enumerate(
        (("fixed weights", "fixed L (1 layer)"), ("gradient step", "one gradient step (1 layer)"))
    ):
        part = frame[frame["method"] == method]
        figure.add_trace(quartiles(part, "condition", label, GREY if i else "#000000", DASHES[i]))
    deep = frame[frame["method"] == "Newton-Schulz from L"]
    for i, depth in enumerate(d for d in layers if d in set(deep["layers"])):
        part = deep[deep["layers"] == depth]
        name = f"Newton-Schulz, {depth} layers ({part['flops'].iloc[0] / curve.flops[0]:.1f}×)"
        figure.add_trace(quartiles(part, "condition", name, colour(i), "solid"))
    styled(
        figure,
        title="Fixed weights pay for a covariance shift; layers in context do not",
        subtitle=f"d = {curve.d}, contexts of n = {curve.n}, {curve.errors.shape[2]} seeds, median "
        "and quartiles; (×) flops beside the fixed layer",
        x="condition number of the shift (1: none)",
        y="relative error to least squares",
        width=980,
    )
    figure.update_xaxes(type="log", tickvals=[4**i for i in range(8)])
    return figure.update_yaxes(**LOG)


def shift_cost(curve: ShiftCurve, *, condition: float | None = None) -> go.Figure:
    """Error against the number of attention layers, at one shift (the largest by default)."""
    condition = max(curve.conditions) if condition is None else condition
    frame = curve.summary()
    frame = frame[frame["condition"] == condition]
    if frame.empty:
        raise InvalidArgumentError(
            f"condition must be one of {curve.conditions}, got {condition}; pass a measured shift"
        )
    figure = go.Figure()
    lines = ("Newton-Schulz from L", "Newton-Schulz from I", "gradient descent")
    for i, method in enumerate(lines):
        part = frame[frame["method"] == method]
        figure.add_trace(quartiles(part, "layers", method, colour(i), DASHES[i]))
    for i, method in enumerate(("fixed weights", "gradient step")):
        part = frame[frame["method"] == method]
        trace = quartiles(part, "layers", method, GREY if i else "#000000", "solid")
        figure.add_trace(trace.update(mode="markers", marker={"size": 11, "symbol": "diamond"}))
    styled(
        figure,
        title="What it costs to recompute the inverse in context",
        subtitle=f"shift of condition number {condition:g}, d = {curve.d}, n = {curve.n}, "
        f"{curve.errors.shape[2]} seeds, median and quartiles",
        x="attention layers (readout included)",
        y="relative error to least squares",
        width=900,
    )
    return figure.update_yaxes(**LOG)


def memory_capacity(
    result: MemoryCapacity, *, heads: HeadMemory | Sequence[HeadMemory] = ()
) -> go.Figure:
    """Measured capacity with error bars beside theory: powers of d left, exponential right.

    Args:
        result: from :func:`~lens_linear.constructions.memory.memory_capacity`.
        heads: attention heads to put on the picture, at the width of their keys. Their capacity is
            another one: keys among which the target still holds half of the weight.
    """
    table, slopes = result.capacity(), result.slopes().set_index("energy").to_dict("index")
    exponential = table["energy"] == "exponential"
    parts = [part for part in (table[~exponential], table[exponential]) if len(part)]
    figure = make_subplots(cols=len(parts), horizontal_spacing=0.1)
    for column, part in enumerate(parts, start=1):
        for name, group in part.groupby("energy", sort=False):
            _capacities(figure, str(name), group, slopes[name], column)
        linear = part["energy"].iloc[0] == "exponential"
        ticks = sorted(set(part["d"])) if linear else [2**i for i in range(1, 20)]
        scale = "linear" if linear else "log"
        figure.update_xaxes(type=scale, tickvals=ticks, row=1, col=column)
    heads = [heads] if isinstance(heads, HeadMemory) else list(heads)
    if heads:
        _heads(figure, heads)
    styled(
        figure,
        title="Memory capacity, from linear to exponential",
        subtitle=f"patterns held at {100 * result.max_bit_error:g} % wrong bits after one update, "
        f"noise {result.noise:g}; {result.seeds} seeds (± sd); dashed: theory at this d",
        x="bits d (heads: width of a key)" if heads else "bits d",
        legend="bottom",
        height=600 if heads else 560,
        width=950,
    )
    figure.update_yaxes(title_text="stored patterns", row=1, col=1)
    return figure.update_yaxes(dtick=1, **LOG)


def _capacities(
    figure: go.Figure, name: str, group: pd.DataFrame, slope: dict[Hashable, float], column: int
) -> None:
    """One energy: measured points with error bars, and the theory as a dashed line."""
    ink = colour(_ENERGY_COLOURS.get(name, 4))
    theory = f"{slope['theory_low']:.3g}"
    if slope["theory_high"] > slope["theory_low"]:
        theory += f" to {slope['theory_high']:.3g}"
    figure.add_scatter(
        x=group["d"],
        y=group["capacity"],
        error_y={"array": group["sd"], "thickness": 1.5, "width": 4},
        mode="markers",
        marker={"color": ink, "size": 8},
        name=f"{name}: slope {slope['slope']:.2f} ± {slope['se']:.2f} (theory {theory})",
        hovertemplate="d %{x}<br>%{y:.3g} patterns<extra>" + name + "</extra>",
        row=1,
        col=column,
    )
    figure.add_scatter(
        x=group["d"],
        y=group["expected"],
        mode="lines",
        line={"color": ink, "dash": "dash", "width": 1.5},
        showlegend=False,
        hovertemplate="d %{x}<br>expected %{y:.3g}<extra></extra>",
        row=1,
        col=column,
    )


def _heads(figure: go.Figure, heads: Sequence[HeadMemory]) -> None:
    """Heads in the first panel: their softmax, random keys under it, and linear attention."""
    rows = [head.position().set_index("source") for head in heads]
    lines = [
        ("head, softmax (predicted)", "head", "predicted_capacity", 1, "star"),
        ("random keys, softmax (predicted)", "random keys", "predicted_capacity", 1, "star-open"),
        ("head, linear attention (measured)", "head", "capacity_quadratic", 0, "star"),
    ]
    for name, source, column, ink, symbol in lines:
        held = [float(r[column][source]) if column in r else math.nan for r in rows]
        figure.add_scatter(
            x=[head.d for head in heads],
            y=[h if math.isfinite(h) and h > 0 else None for h in held],
            mode="markers",
            marker={"color": colour(ink), "size": 9, "symbol": symbol},
            name=name,
            hovertemplate="d %{x}<br>%{y:.3g} keys<extra>" + name + "</extra>",
            row=1,
            col=1,
        )


def bit_error(result: MemoryCapacity) -> go.Figure:
    """Bit error against the number of stored patterns, at the largest d of each energy."""
    frame = result.summary()
    figure = go.Figure()
    for name, part in frame.groupby("energy", sort=False):
        group = part[part["d"] == part["d"].max()]
        ink = colour(_ENERGY_COLOURS.get(str(name), 4))
        label = f"{name}, d = {group['d'].iloc[0]}"
        figure.add_trace(mean_sd(group, "n_patterns", "bit_error", label, ink))
    level(figure, result.max_bit_error, f"criterion {100 * result.max_bit_error:g} %", log=True)
    styled(
        figure,
        title="Wrong bits against stored patterns",
        subtitle=f"one update, noise {result.noise:g}, {result.queries} queries × "
        f"{result.seeds} seeds (± sd)",
        x="stored patterns",
        y="fraction of wrong bits",
        width=900,
    )
    figure.update_yaxes(range=[-4, 0], **LOG)
    return figure.update_xaxes(dtick=1, **LOG)


def retrieval(
    curve: RetrievalCurve, *, quantity: Literal["recall", "overlap"] = "recall"
) -> go.Figure:
    """Retrieval against the number of stored patterns, one panel an energy, one line a noise."""
    if quantity not in ("recall", "overlap"):
        raise InvalidArgumentError(f"quantity must be 'recall' or 'overlap', got {quantity!r}")
    frame = curve.summary()
    figure = make_subplots(
        cols=len(curve.energies), subplot_titles=curve.energies, shared_yaxes=True
    )
    for column, energy in enumerate(curve.energies, start=1):
        for i, noise in enumerate(curve.noise):
            part = frame[(frame["energy"] == energy) & (frame["noise"] == noise)]
            name = f"{100 * noise:g} % of bits flipped"
            trace = mean_sd(part, "n_patterns", quantity, name, colour(i), dash=DASHES[i % 5])
            figure.add_trace(trace.update(showlegend=column == 1), row=1, col=column)
    styled(
        figure,
        title="Retrieval from a Hopfield memory",
        subtitle=f"d = {curve.d} bits, {curve.steps} updates, {curve.queries} queries × "
        f"{curve.overlap.shape[-1]} seeds (± sd)",
        x="stored patterns",
        legend="bottom",
        width=1000,
    )
    words = {"recall": "fraction recovered bit for bit", "overlap": "overlap with the target"}
    figure.update_yaxes(title_text=words[quantity], row=1, col=1)
    figure.update_layout(margin_t=110)
    return figure.update_xaxes(dtick=1, **LOG)


def head_memory(result: HeadMemory) -> go.Figure:
    """Recall of one key against the number stored: the head solid, random keys dashed."""
    frame, position = result.summary(), result.position().set_index("source")
    figure = go.Figure()
    for energy in result.energies:
        for dash, source in zip(("solid", "dash"), ("head", "random keys"), strict=True):
            part = frame[(frame["energy"] == energy) & (frame["source"] == source)]
            ink = colour(_ENERGY_COLOURS.get(energy, 4))
            figure.add_trace(
                mean_sd(part, "n_patterns", "recall", f"{energy}, {source}", ink, dash=dash)
            )
    for dash, source in zip(("solid", "dash"), ("head", "random keys"), strict=True):
        where = float(position["predicted_capacity"][source])
        if where <= 4 * max(result.n_patterns):
            figure.add_vline(x=where, line={"color": GREY, "dash": dash, "width": 1.5})
    head = position.loc["head"]
    whose = "its own queries" if result.own_queries else f"keys with noise {result.noise:g}"
    styled(
        figure,
        title="An attention head as an associative memory",
        subtitle=f"{result.n_keys} keys of d = {result.d}, {whose}, β = {result.beta:.3g}; signal "
        f"{head['signal']:.1f} nats, spread {head['spread']:.1f}; grey: predicted capacity",
        x="stored keys",
        y="recall: target holds over half",
        width=950,
    )
    return figure.update_xaxes(type="log", tickvals=list(result.n_patterns))
