"""Figures of the constructions: least-squares attention, slow and fast memory, associative memories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from lens_linear.constructions.least_squares.ols import HatMatrix
from lens_linear.constructions.least_squares.ols_training import TrainingRun
from lens_linear.constructions.least_squares.slow_fast import MemorySwap, ShiftCurve
from lens_linear.constructions.memory.capacity import MemoryCapacity
from lens_linear.constructions.memory.head_memory import HeadMemory
from lens_linear.constructions.memory.retrieval import RetrievalCurve
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots._kinds import FLOOR, LOG, add_level, add_line, figure, panels
from lens_linear.plots.style import (
    DASHES,
    GREY,
    MAX_CELLS,
    as_matrix,
    colour,
    matrix,
    styled,
)

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
_ENERGIES = {"quadratic": 0, "polynomial-3": 2, "polynomial-4": 3, "exponential": 1}


def _middle(
    fig: go.Figure, part: pd.DataFrame, x: str, name: str, *, floor: float = FLOOR, **look: Any
) -> go.Figure:
    """A line of medians with bars that hold 95 % of the seeds, for a log axis that ends at ``floor``."""
    low, middle, high = (
        part[column].clip(lower=floor) for column in ("error_low", "error", "error_high")
    )
    return add_line(
        fig, part[x], middle, name, bars=(low, high), hover="%{x:.4g}: %{y:.3g}", **look
    )


def _mean(fig: go.Figure, part: pd.DataFrame, y: str, name: str, **look: Any) -> go.Figure:
    """A line of means against the patterns stored, with bars of one standard deviation."""
    sd = part[f"{y}_sd"].fillna(0)
    bars = (part[y] - sd, part[y] + sd)
    return add_line(
        fig, part["n_patterns"], part[y], name, bars=bars, hover="%{x:.4g}: %{y:.3g}", **look
    )


@figure
def ols_convergence(
    run: TrainingRun,
    *,
    quantity: Literal["prediction_error", "geometry_error", "loss"] = "prediction_error",
) -> go.Figure:
    """Convergence to least squares over epochs: median over seeds, band from best to worst.

    The x axis is full-batch steps, the y axis logarithmic: a relative distance, or the squared error in
    squared units of y. Distances are 0 for the construction and about 1 for unrelated weights, where random
    starts begin. A dotted line marks the distance that counts as converged, or the loss that least squares
    leaves.

    Args:
        run: from :func:`~lens_linear.constructions.least_squares.ols_training.train_ols_attention`.
        quantity: which curve: "prediction_error", "geometry_error" or "loss".

    Returns:
        Figure with a band and a line; the subtitle counts the seeds that converged or diverged.

    Example:
        >>> import lens_linear as ll
        >>> figure = ll.plots.ols_convergence(ll.train_ols_attention(epochs=200, seeds=2))
        >>> [curve.name for curve in figure.data], figure.layout.yaxis.type
        ([None, 'median (band: best to worst seed)', 'converged below 0.001'], 'log')
    """
    frame = run.summary().query("quantity == @quantity")
    seeds, epochs = run.loss.shape[1], list(frame["epoch"])
    floor = FLOOR * (float(frame["high"].iloc[0]) if quantity == "loss" else 1.0)
    low, middle, high = (frame[column].clip(lower=floor) for column in ("low", "median", "high"))
    fig = add_line(
        go.Figure(), epochs, middle, "median (band: best to worst seed)", band=(low, high), mode="lines",
        hover="epoch %{x}<br>%{y:.3g}",
    )  # fmt: skip
    if quantity == "prediction_error" and run.tolerance > 0:
        add_level(
            fig, run.tolerance, f"converged below {run.tolerance:g}", x=[epochs[0], epochs[-1]]
        )
    if quantity == "loss":
        add_level(fig, max(run.ols_loss, floor), "least squares", x=[epochs[0], epochs[-1]])
    else:  # from float64's resolution to a little above 1; a seed that diverges leaves the figure
        fig.update_yaxes(range=[-16.5, 1.5])
    when = run.epochs_to_converge
    done = int((~when.isnan()).sum())
    last = f", the last after {when.nan_to_num(0).max():.0f} epochs" if done else ""
    last += f", {run.diverged} diverged" if run.diverged else ""
    n, p = run.x.shape
    y, title = _QUANTITIES[quantity]
    if quantity == "geometry_error" and run.form == "paper" and p == 1:
        title = "One input and a free scale: the distance is zero by definition"
    return styled(
        fig.update_yaxes(**LOG), title=title, x="epoch (full-batch step)", y=y,
        subtitle=f"{run.form} form, n = {n}, p = {p}, {run.optimizer}, learning rate "
        f"{run.learning_rate:g}; {done} of {seeds} seeds converged{last}",
    )  # fmt: skip


@figure
def hat_matrix(hat: HatMatrix, *, max_cells: int = MAX_CELLS) -> go.Figure:
    """The hat matrix as a heatmap: row q says what each label of the context counts for.

    Rows are queries, columns the context's rows, cells weights without unit, centred at 0: a label that
    does not count. On the context's own rows the diagonal is the leverage, which sums to the effective
    degrees of freedom: for least squares it lies between 0 and 1 and sums to the rank.

    Args:
        hat: from ``OLSAttention.hat``.
        max_cells: largest number of cells drawn.

    Returns:
        Figure with one heatmap, query 0 on top.

    Raises:
        FigureTooLargeError: more than ``max_cells`` cells.

    Example:
        >>> import lens_linear as ll
        >>> model = ll.OLSAttention.from_data([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [1.0, 2.0, 3.0])
        >>> figure = ll.plots.hat_matrix(model.hat())
        >>> round(float(figure.data[0].z.trace()), 3)  # the rank
        2.0
    """
    queries, n = hat.values.shape
    fig = matrix(
        hat.values.detach().cpu(), value_name="weight", row_name="query", column_name="context row",
        max_cells=max_cells, square=True,
    )  # fmt: skip
    same = ""
    if hat.on_training_rows:
        same = (
            f", queries are the context's own rows, {hat.degrees_of_freedom:.3g} degrees of freedom"
        )
    least = hat.solution in ("unique", "minimum-norm", "ridge")
    return styled(
        fig,
        title="Hat matrix: attention scores that are least squares"
        if least
        else f"Attention scores of a layer that is not least squares here ({hat.solution})",
        subtitle=f"{queries} queries × {n} context rows, rank {hat.rank}"
        f"{', with intercept' if hat.intercept else ''}{same}",
        x="context row (label it multiplies)", y="query", height=240 + min(480, 26 * max(queries, 8)),
    )  # fmt: skip


@figure
def memory_swap(swap: MemorySwap) -> go.Figure:
    """Two 2 × 2 tables: error to the context's regression and to the weights' regression.

    Rows say which data the weights come from, columns which data the context. Cells are relative errors: 0
    answers exactly with that regression, about 1 has nothing to do with it; colours end at 2. The memory
    that the layer answers from is the table that is 0.

    Args:
        swap: from :func:`~lens_linear.constructions.least_squares.slow_fast.swap_memories`.

    Returns:
        Figure with two heatmaps, each number written in its cell.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> x = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> first, second = (x, torch.tensor([4.0, 5.0])), (x, torch.tensor([3.0, 0.0]))
        >>> figure = ll.plots.memory_swap(ll.constructions.swap_memories(first, second))
        >>> [list(row) for row in figure.data[0].text]  # the same x: the labels were only in the context
        [['0', '0'], ['0', '0']]
    """
    fig, places = panels(
        ("to least squares<br>on the context", "to least squares<br>on the weights' data")
    )
    for (row, col), values in zip(places, (swap.to_context_ols, swap.to_weights_ols), strict=True):
        shown = [[f"{v:.2g}" if v > 1e-9 else "0" for v in line] for line in values.tolist()]
        fig.add_heatmap(
            z=values.clamp(max=2.0).numpy(), text=shown, texttemplate="%{text}", textfont={"size": 17},
            colorscale=[[0, "#F2F2F2"], [1, colour(4)]], zmin=0, zmax=2, xgap=4, ygap=4, showscale=False,
            hovertemplate="weights %{y}, context %{x}<br>relative error %{text}<extra></extra>",
            row=row, col=col,
        )  # fmt: skip
        as_matrix(fig, rows=("first", "second"), columns=("first", "second"), row=row, col=col)
    fig.update_yaxes(title_text="weights from", col=1)
    fig = styled(
        fig, title="Slow memory in the weights, fast memory in the context", panels=True, legend="none",
        subtitle=f"{swap.form} form, n = {swap.n[0]} and {swap.n[1]}, p = {swap.p}; geometry distance "
        f"{swap.geometry_distance:.2g}; cells: relative error of the prediction, 0 is exact",
        x="context from", height=420,
    )  # fmt: skip
    return fig.update_layout(margin_t=fig.layout.margin.t + 18)


@figure
def covariance_shift(curve: ShiftCurve, *, layers: Sequence[int] = (3, 5, 7, 9, 13)) -> go.Figure:
    """Error against covariance shift: fixed weights, one gradient step, Newton-Schulz by depth.

    Both axes are logarithmic: the condition number of the shift (1 is none), and the relative error to
    least squares on the context (0 is exact; 1 is as wrong as predicting 0). Even without a shift the fixed
    layer is off by about √(d/n), because n rows do not have exactly the covariance in the weights.

    Args:
        curve: from :func:`~lens_linear.constructions.least_squares.slow_fast.covariance_shift`.
        layers: depths (readout included) of the Newton-Schulz stacks that are drawn; those that were not
            measured are left out.

    Returns:
        Figure with one line a method and depth: medians, with bars that hold 95 % of the seeds.

    Example:
        >>> import lens_linear as ll
        >>> curve = ll.constructions.covariance_shift(conditions=(1, 16), layers=3, seeds=2)
        >>> figure = ll.plots.covariance_shift(curve, layers=(3,))
        >>> [line.name.split(" (")[0] for line in figure.data]
        ['fixed L', 'one gradient step', 'Newton-Schulz, 3 layers']
    """
    frame, fig = curve.summary(), go.Figure()
    named = {"fixed weights": "fixed L (1 layer)", "gradient step": "one gradient step (1 layer)"}
    for i, (method, label) in enumerate(named.items()):
        ink = GREY if i else "#000000"
        _middle(fig, frame[frame["method"] == method], "condition", label, ink=ink, dash=DASHES[i])
    deep = frame[frame["method"] == "Newton-Schulz from L"]
    for i, depth in enumerate(d for d in layers if d in set(deep["layers"])):
        part = deep[deep["layers"] == depth]
        name = f"Newton-Schulz, {depth} layers ({part['flops'].iloc[0] / curve.flops[0]:.1f}×)"
        _middle(fig, part, "condition", name, index=i, dash="solid")
    fig.update_xaxes(type="log", tickvals=[4**i for i in range(8)]).update_yaxes(**LOG)
    return styled(
        fig, title="Fixed weights pay for a covariance shift; layers in context do not",
        subtitle=f"d = {curve.d}, contexts of n = {curve.n}, {curve.errors.shape[2]} seeds: median "
        "and 95 % of them; (×) flops beside the fixed layer",
        x="condition number of the shift (1: none)", y="relative error to least squares", height=540,
    )  # fmt: skip


@figure
def shift_cost(curve: ShiftCurve, *, condition: float | None = None) -> go.Figure:
    """Error against the number of attention layers, at one shift (the largest by default).

    The x axis counts attention layers, the readout included; the y axis is logarithmic, the relative error
    to least squares (0 is exact, drawn at 1e-16). Diamonds are the one-layer baselines: fixed weights and
    one gradient step.

    Args:
        curve: from :func:`~lens_linear.constructions.least_squares.slow_fast.covariance_shift`.
        condition: the shift's condition number, one that was measured.

    Returns:
        Figure with three lines and two diamonds: medians, with bars that hold 95 % of the seeds.

    Raises:
        InvalidArgumentError: a condition that was not measured; the message lists those that were.

    Example:
        >>> import lens_linear as ll
        >>> curve = ll.constructions.covariance_shift(conditions=(1, 16), layers=3, seeds=2)
        >>> [mark.name for mark in ll.plots.shift_cost(curve).data][:2]
        ['Newton-Schulz from L', 'Newton-Schulz from I']
    """
    condition = max(curve.conditions) if condition is None else condition
    frame = curve.summary()
    frame = frame[frame["condition"] == condition]
    if frame.empty:
        raise InvalidArgumentError(
            f"condition must be one of {curve.conditions}, got {condition}; pass a measured shift"
        )
    fig = go.Figure()
    for i, method in enumerate(
        ("Newton-Schulz from L", "Newton-Schulz from I", "gradient descent")
    ):
        _middle(fig, frame[frame["method"] == method], "layers", method, index=i)
    for i, method in enumerate(("fixed weights", "gradient step")):
        part = frame[frame["method"] == method]
        _middle(fig, part, "layers", method, ink=GREY if i else "#000000", mode="markers")
        fig.data[-1].marker = {"size": 11, "symbol": "diamond", "color": GREY if i else "#000000"}
    return styled(
        fig.update_yaxes(**LOG), title="What it costs to recompute the inverse in context",
        subtitle=f"shift of condition number {condition:g}, d = {curve.d}, n = {curve.n}, "
        f"{curve.errors.shape[2]} seeds: median and 95 % of them",
        x="attention layers (readout included)", y="relative error to least squares", height=520,
    )  # fmt: skip


@figure
def memory_capacity(
    result: MemoryCapacity, *, heads: HeadMemory | Sequence[HeadMemory] = ()
) -> go.Figure:
    """Measured capacity with error bars beside theory: powers of d left, exponential right.

    The x axis is the number of bits d, the y axis the number of patterns that are held, logarithmic. The
    left panel has a logarithmic x axis, so that a power of d is a straight line; the right one a linear, so
    that an exponential is. Dashed lines are the theory at each d; the legend gives slopes beside their
    theory.

    Args:
        result: from :func:`~lens_linear.constructions.memory.capacity.memory_capacity`.
        heads: attention heads to put on the picture, at the width of their keys. Their capacity is
            another one: keys among which the target still holds half of the weight.

    Returns:
        Figure with points (bars: one standard deviation over seeds) and a dashed line an energy; heads are
        stars.

    Example:
        >>> import lens_linear as ll
        >>> result = ll.memory_capacity(energies="quadratic", dims=(64, 128), seeds=2, queries=32)
        >>> figure = ll.plots.memory_capacity(result)
        >>> figure.layout.yaxis.title.text, figure.data[0].name.split(":")[0]
        ('stored patterns', 'quadratic')
    """
    frame, slopes = result.capacity(), result.slopes().set_index("energy").to_dict("index")
    exponential = frame["energy"] == "exponential"
    parts = [part for part in (frame[~exponential], frame[exponential]) if len(part)]
    titles = [
        "exponential" if p["energy"].iloc[0] == "exponential" else "powers of d" for p in parts
    ]
    fig, places = panels(titles)
    for (row, col), part, title in zip(places, parts, titles, strict=True):
        for name, group in part.groupby("energy", sort=False):
            _capacities(fig, str(name), group, slopes[name], (row, col))
        linear = title == "exponential"
        ticks = sorted(set(part["d"])) if linear else [2**i for i in range(1, 20)]
        fig.update_xaxes(type="linear" if linear else "log", tickvals=ticks, row=row, col=col)
    if heads := [heads] if isinstance(heads, HeadMemory) else list(heads):
        _heads(fig, heads)
    fig.update_yaxes(title_text="stored patterns", col=1).update_yaxes(dtick=1, **LOG)
    return styled(
        fig, title="Memory capacity, from linear to exponential", panels=True, height=600,
        subtitle=f"patterns held at {100 * result.max_bit_error:g} % wrong bits after one update, "
        f"noise {result.noise:g}; {result.seeds} seeds (± sd); dashed: theory at this d",
        x="bits d" + (" (heads: width of a key)" if heads else ""),
    )  # fmt: skip


def _capacities(
    fig: go.Figure, name: str, group: pd.DataFrame, slope: Any, at: tuple[int, int]
) -> None:
    """One energy: measured points with error bars, and the theory as a dashed line."""
    ink = colour(_ENERGIES.get(name, 4))
    theory = f"{slope['theory_low']:.3g}"
    if slope["theory_high"] > slope["theory_low"]:
        theory += f" to {slope['theory_high']:.3g}"
    label = f"{name}: slope {slope['slope']:.2f} ± {slope['se']:.2f} (theory {theory})"
    held, sd = group["capacity"], group["sd"].fillna(0)
    add_line(
        fig, group["d"], held, name, ink=ink, at=at, bars=(held - sd, held + sd), mode="markers",
        hover="d %{x}<br>%{y:.3g} patterns",
    )  # fmt: skip
    fig.data[-1].update(name=label, showlegend=True)
    add_line(
        fig, group["d"], group["expected"], name, ink=ink, at=at, dash="dash", width=1.5, legend=False,
        mode="lines", hover="d %{x}<br>expected %{y:.3g}",
    )  # fmt: skip


def _heads(fig: go.Figure, heads: Sequence[HeadMemory]) -> None:
    """Heads in the first panel: their softmax, random keys under it, and linear attention."""
    rows = [head.position().set_index("source") for head in heads]
    lines = [
        ("head, softmax (predicted)", "head", "predicted_capacity", 1, "star"),
        ("random keys, softmax (predicted)", "random keys", "predicted_capacity", 1, "star-open"),
        ("head, linear attention (measured)", "head", "capacity_quadratic", 0, "star"),
    ]
    for name, source, column, ink, symbol in lines:
        held = [float(r[column][source]) if column in r else math.nan for r in rows]
        fig.add_scatter(
            x=[head.d for head in heads],
            y=[h if math.isfinite(h) and h > 0 else None for h in held],
            mode="markers", marker={"color": colour(ink), "size": 9, "symbol": symbol}, name=name,
            hovertemplate="d %{x}<br>%{y:.3g} keys<extra>" + name + "</extra>", row=1, col=1,
        )  # fmt: skip


@figure
def bit_error(result: MemoryCapacity) -> go.Figure:
    """Bit error against the number of stored patterns, at the largest d of each energy.

    Both axes are logarithmic; the y axis is the fraction of wrong bits after one update, from 0.0001 to 1.
    0 is perfect and leaves the figure, one half is chance. The dotted line is the criterion of the
    capacity.

    Args:
        result: from :func:`~lens_linear.constructions.memory.capacity.memory_capacity`.

    Returns:
        Figure with one line an energy: means, with one standard deviation over seeds as bars.

    Example:
        >>> import lens_linear as ll
        >>> result = ll.memory_capacity(energies="quadratic", dims=(64, 128), seeds=2, queries=32)
        >>> figure = ll.plots.bit_error(result)
        >>> [line.name for line in figure.data]
        ['quadratic, d = 128', 'criterion 0.36 %']
    """
    frame, fig = result.summary(), go.Figure()
    for name, part in frame.groupby("energy", sort=False):
        group = part[part["d"] == part["d"].max()]
        _mean(fig, group, "bit_error", f"{name}, d = {group['d'].iloc[0]}",
              index=_ENERGIES.get(str(name), 4))  # fmt: skip
    ends = [float(frame["n_patterns"].min()), float(frame["n_patterns"].max())]
    add_level(fig, result.max_bit_error, f"criterion {100 * result.max_bit_error:g} %", x=ends)
    fig.update_yaxes(range=[-4, 0], **LOG).update_xaxes(dtick=1, **LOG)
    return styled(
        fig, title="Wrong bits against stored patterns", x="stored patterns", y="fraction of wrong bits",
        subtitle=f"one update, noise {result.noise:g}, {result.queries} queries × {result.seeds} seeds "
        "(± sd); none wrong leaves the axis",
    )  # fmt: skip


@figure
def retrieval(
    curve: RetrievalCurve, *, quantity: Literal["recall", "overlap"] = "recall"
) -> go.Figure:
    """Retrieval against the number of stored patterns, one panel an energy, one line a noise.

    The x axis is logarithmic. "recall" is the fraction of queries that come back bit for bit, 0 to 1;
    "overlap" the mean agreement with the target, 1 when retrieved and near 0 for an unrelated state.

    Args:
        curve: from :func:`~lens_linear.constructions.memory.retrieval.retrieval_curve`.
        quantity: "recall" or "overlap".

    Returns:
        Figure with one panel an energy: means, with one standard deviation over seeds as bars.

    Example:
        >>> import lens_linear as ll
        >>> knobs = {"d": 32, "n_patterns": (2, 8), "noise": (0.0, 0.2), "seeds": 2}
        >>> curve = ll.constructions.retrieval_curve(energies="quadratic", **knobs)
        >>> [line.name for line in ll.plots.retrieval(curve).data]
        ['0 % of bits flipped', '20 % of bits flipped']
    """
    frame = curve.summary()
    fig, places = panels(curve.energies, share_y=True)
    for energy, at in zip(curve.energies, places, strict=True):
        for i, noise in enumerate(curve.noise):
            part = frame[(frame["energy"] == energy) & (frame["noise"] == noise)]
            _mean(fig, part, quantity, f"{100 * noise:g} % of bits flipped", index=i, at=at)
    words = {"recall": "fraction recovered bit for bit", "overlap": "overlap with the target"}
    fig.update_yaxes(title_text=words[quantity], col=1).update_xaxes(dtick=1, **LOG)
    return styled(
        fig, title="Retrieval from a Hopfield memory", x="stored patterns", panels=True,
        subtitle=f"d = {curve.d} bits, {curve.steps} updates, {curve.queries} queries × "
        f"{curve.overlap.shape[-1]} seeds (± sd)", height=160 + 330 * places[-1][0],
    )  # fmt: skip


@figure
def head_memory(result: HeadMemory) -> go.Figure:
    """Recall of one key against the number stored: the head solid, random keys dashed.

    The x axis is logarithmic; the y axis is the fraction of queries whose target holds over half of the
    weight, 0 to 1. Random keys of the same number and width are the null: what the head's keys do beyond
    their size is the gap to the dashed line. Grey vertical lines are the capacities that theory predicts,
    where they are near the measured range.

    Args:
        result: from :func:`~lens_linear.constructions.memory.head_memory.attention_head_memory` or
            ``trained_head_memory``.

    Returns:
        Figure with two lines an energy: means, with one standard deviation over repetitions as bars.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> keys = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
        >>> figure = ll.plots.head_memory(ll.constructions.attention_head_memory(keys))
        >>> [line.name for line in figure.data][:2]
        ['exponential, head', 'exponential, random keys']
    """
    frame, position = result.summary(), result.position().set_index("source")
    fig = go.Figure()
    for energy in result.energies:
        for dash, source in zip(("solid", "dash"), ("head", "random keys"), strict=True):
            part = frame[(frame["energy"] == energy) & (frame["source"] == source)]
            index = _ENERGIES.get(energy, 4)
            _mean(fig, part, "recall", f"{energy}, {source}", index=index, dash=dash)
    for dash, source in zip(("solid", "dash"), ("head", "random keys"), strict=True):
        where = float(position["predicted_capacity"][source])
        if where <= 4 * max(result.n_patterns):
            name = f"predicted capacity, {source}"
            add_line(
                fig, [where, where], [0, 1], name, ink=GREY, dash=dash, width=1.5, mode="lines"
            )
    head = position.loc["head"]
    whose = "its own queries" if result.own_queries else f"keys with noise {result.noise:g}"
    return styled(
        fig.update_xaxes(type="log", tickvals=list(result.n_patterns)), height=540, x="stored keys",
        title="An attention head as an associative memory",
        subtitle=f"{result.n_keys} keys of d = {result.d}, {whose}, β = {result.beta:.3g}; signal "
        f"{head['signal']:.1f} nats, spread {head['spread']:.1f}", y="recall: target holds over half",
    )  # fmt: skip
