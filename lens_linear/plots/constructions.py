"""Figures of least squares: what training reaches, the hat matrix, slow and fast memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from lens_linear.checks import counted
from lens_linear.constructions.least_squares.hat import HatMatrix
from lens_linear.constructions.least_squares.ols_training import OLSTraining
from lens_linear.constructions.least_squares.slow_fast import MemorySwap, ShiftCurve
from lens_linear.errors import InvalidArgumentError
from lens_linear.linearity.measure.adam import AdamBaseline
from lens_linear.plots._kinds import (
    FLOOR,
    add_level,
    add_line,
    figure,
    heights,
    log_axis,
    panels,
    window,
)
from lens_linear.plots.style import (
    DASHES,
    GREY,
    MAX_CELLS,
    as_matrix,
    colour,
    escape,
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


def _middle(fig: go.Figure, part: pd.DataFrame, x: str, name: str, **look: Any) -> go.Figure:
    """A line of medians with bars that hold 95 % of the seeds, for a logarithmic axis."""
    columns = ("error_low", "error", "error_high")
    low, middle, high = (part[column].clip(lower=FLOOR) for column in columns)
    return add_line(
        fig, part[x], middle, name, bars=(low, high), hover="%{x:.4g}: %{y:.3g}", **look
    )


@figure
def ols_convergence(
    run: OLSTraining,
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
    start = frame["high"].fillna(frame["median"]).iloc[0]
    floor = FLOOR * (float(start) if quantity == "loss" else 1.0)
    low, middle, high = (frame[column].clip(lower=floor) for column in ("low", "median", "high"))
    name = "median (band: best to worst seed)" if seeds > 1 else "the only seed"
    fig = add_line(
        go.Figure(), epochs, middle, name, band=(low, high), mode="lines",
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
        fig.update_yaxes(**log_axis(heights(fig))), title=title, x="epoch (full-batch step)", y=y,
        subtitle=f"{run.form} form, n = {n}, p = {p}, {run.optimizer}, learning rate "
        f"{run.learning_rate:g}; {done} of {counted(seeds, 'seed')} converged{last}",
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
    least = hat.least_squares
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
        ("to least squares<br>on the context", "to least squares<br>on the weights' data"),
        share_y=True,
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
    margin: Any = fig.layout["margin"]
    return fig.update_layout(margin_t=margin.t + 18)


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
    measured = sorted(set(frame["condition"]))
    ticks = measured if len(measured) <= 8 else [4**i for i in range(8)]
    fig.update_xaxes(type="log", tickvals=ticks).update_yaxes(**log_axis(heights(fig)))
    return styled(
        fig, title="Fixed weights pay for a covariance shift; layers in context do not",
        subtitle=f"d = {curve.d}, contexts of n = {curve.n}, {counted(curve.errors.shape[2], 'seed')}: "
        f"median "
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
        fig.update_yaxes(**log_axis(heights(fig))), title="What it costs to recompute the inverse in context",
        subtitle=f"shift of condition number {condition:g}, d = {curve.d}, n = {curve.n}, "
        f"{counted(curve.errors.shape[2], 'seed')}: median and 95 % of them",
        x="attention layers (readout included)", y="relative error to least squares", height=520,
    )  # fmt: skip


@figure
def adam_convergence(baseline: AdamBaseline) -> go.Figure:
    """Held-out R² of a linear layer under Adam, raw and standardised inputs, beside least squares.

    The x axis is Adam's steps, logarithmic; the y axis the held-out R², at most 1, where 0 predicts the
    mean. The dashed line is the closed form on the same rows: best on the training half, so a run that is
    stopped early can lie a little above it on the other. Raw inputs that stay below it while standardised
    ones reach it are slow because of their condition number, not for want of a linear map.

    Args:
        baseline: what ``linearity.adam_baseline`` returned.

    Returns:
        Figure with two lines and the level of the closed form.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> from lens_linear.linearity.measure.adam import adam_on_rows
        >>> x, new = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0)).double()
        >>> found = adam_on_rows(x, x.cumsum(1), new, new.cumsum(1), steps=20)
        >>> figure = ll.plots.adam_convergence(found)
        >>> [line.name for line in figure.data]
        ['Adam, raw inputs', 'Adam, standardised inputs', 'closed form 1.0000']
    """
    frame = baseline.to_dataframe()
    # Step 0 has no place on a logarithmic axis, and one step is close enough to it.
    frame, fig = frame[frame["step"] > 0], go.Figure()
    lines = {"r2": "Adam, raw inputs", "r2_standardized": "Adam, standardised inputs"}
    for index, (column, label) in enumerate(lines.items()):
        hover = "step %{x}: R² %{y:.4f}"
        add_line(fig, frame["step"], frame[column], label, index=index, hover=hover)
    add_level(fig, baseline.closed_form, f"closed form {baseline.closed_form:.4f}", x=list(frame["step"]),
              dash="dash")  # fmt: skip
    window(fig, lowest=-0.2)
    above = float(frame[list(lines)].max().max()) > baseline.closed_form + 1e-4
    note = "; above the closed form: stopped early, it overfits less" if above else ""
    return styled(
        fig.update_xaxes(**log_axis(frame["step"])),
        title=f"A trained linear layer: {escape(baseline.where)}",
        subtitle=f"learning rate {baseline.learning_rate:g}, batches of {baseline.batch}; condition number "
        f"{baseline.condition_number:.3g}; n = {counted(baseline.n_tokens, 'held-out row', ',')}{note}"
        f"{escape(baseline.first_position)}",
        x="Adam steps", y="held-out R²",
    )  # fmt: skip
