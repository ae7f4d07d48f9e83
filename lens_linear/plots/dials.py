"""Figures of the way from linear attention to softmax: on data, and in the heads of a model."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from lens_linear.checks import counted
from lens_linear.constructions.memory.dial import AttentionDial
from lens_linear.constructions.memory.head_dial import GEOMETRIES, HeadDial
from lens_linear.constructions.memory.trained_heads import EXCHANGES, TrainedHeads
from lens_linear.plots._kinds import add_level, add_line, figure, log_axis, panels
from lens_linear.plots.style import GREY, OKABE_ITO, colour, escape, styled

_DISTANCES = {
    "ols_error": "to least squares (one gain)",
    "raw_error": "to least squares (no gain)",
    "kernel_error": "to kernel regression, same width",
    "truth_error": "to the noiseless labels (one gain)",
}
_ROWS = {"effective_rows": "rows that weigh in", "capacity": "stored rows, one found"}
_KINDS = ("averaging", "regression", "between", "retrieval")
_PICTURES = {
    "ols_error": "relative error to least squares of the context (one gain)",
    "kernel_error": "relative error to kernel regression, same width",
    "capacity": "capacity (stored keys, one found)",
    "loss": "rise of the loss (nats a token)",
}
_INSTEAD = {"linear": "linear attention instead", "retrieval": "best key alone"}
_MOST = 8  # heads in one picture


@figure
def attention_dial(dial: AttentionDial) -> go.Figure:
    """Relative errors and capacity against the inverse temperature β of the softmax.

    Above: distances of the readout to least squares, to kernel regression and to the truth, 0 equal and 1 as
    far as predicting the mean; grey, what least squares and the best kernel themselves miss of the truth.
    Below: rows that weigh in (exp of the entropy) and stored rows among which one is still found, both
    counts on a logarithmic axis. Vertical lines mark where regression ends and retrieval starts.

    Args:
        dial: from :func:`~lens_linear.constructions.memory.dial.attention_dial`.

    Returns:
        Figure of two panels: medians, with bars or bands that hold 95 % of the seeds.

    Example:
        >>> import lens_linear as ll
        >>> dial = ll.constructions.attention_dial(betas=(0.01, 1.0, 100.0), orders=(), seeds=2)
        >>> [line.name for line in ll.plots.attention_dial(dial).data][:2]
        ['to least squares (one gain)', 'to least squares (no gain)']
    """
    frame = dial.summary()
    frame = frame[frame["dial"] == "temperature"]
    betas = [float(frame["setting"].min()), float(frame["setting"].max())]
    fig, (above, below) = panels(["relative error of the readout", "rows (counts)"], across=1)
    for index, (measure, name) in enumerate((_DISTANCES | _ROWS).items()):
        ends = (frame[f"{measure}_low"], frame[f"{measure}_high"])
        add_line(
            fig, frame["setting"], frame[measure], name, index=index, hover="β %{x:.3g}<br>%{y:.3g}",
            at=above if measure in _DISTANCES else below, bars=ends if measure in _DISTANCES else None,
            band=None if measure in _DISTANCES else ends,
        )  # fmt: skip
        fig.data[-1].showlegend = True
    levels = dial.levels.median(1).values.tolist()
    for value, name, dash in zip(
        levels, ("least squares", "best kernel"), ("dot", "dash"), strict=True
    ):
        add_level(fig, value, f"{name} to the truth", x=betas, dash=dash, at=above)
    marks = dial.regimes().set_index("regime")["beta"].to_dict()
    for i, (regime, beta) in enumerate(
        (n, b) for n, b in marks.items() if b > 0 and math.isfinite(b)
    ):
        fig.add_vline(x=beta, line={"dash": "dash", "width": 1, "color": GREY})
        fig.add_annotation(  # annotations take the exponent on a log axis
            text=escape(regime), x=math.log10(beta), y=1 - 0.09 * i, yref="y domain", xanchor="right",
            showarrow=False, row=1, col=1,
        )  # fmt: skip
    counts = [v for t in fig.data if t.yaxis == "y2" for v in t.y]
    fig.update_xaxes(**log_axis(betas)).update_yaxes(row=2, col=1, **log_axis(counts))
    fig.update_xaxes(title_text="β (scores of one average row)", row=2, col=1)
    return styled(
        fig, title="From linear attention to softmax: where regression ends and retrieval starts",
        subtitle=f"n = {counted(dial.n, 'row')}, d = {dial.d}, {counted(dial.values.shape[2], 'seed')}: "
        f"median and 95 % of them",
        height=860, panels=True,
    )  # fmt: skip


@figure
def trained_heads(heads: TrainedHeads) -> go.Figure:
    """Heads of a model between regression and retrieval, and what the loss says of their memories.

    Above: each head by the share of its readout that linear attention (x) and its best key alone (y) explain,
    both at most 1; open marks read the first position (at least .3 of a median query). Below: the rise of
    the loss in nats a token when its memories are exchanged, with bars of one standard error over rows.

    Args:
        heads: from :func:`~lens_linear.constructions.memory.trained_heads.trained_heads`; of many heads the
            twelve whose loss moves most are drawn below.

    Returns:
        Figure of two panels.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> from lens_linear.models.open.toy import toy_model
        >>> tokens = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(0))
        >>> found = ll.constructions.trained_heads(toy_model(n_layers=1), tokens, exchanges=("linear",))
        >>> [mark.name for mark in ll.plots.trained_heads(found).data]
        ['averaging', 'linear attention instead']
    """
    frame = heads.to_dataframe()
    names = {name: f"loss_{name.replace(' ', '_')}" for name in EXCHANGES}
    ran = {name: column for name, column in names.items() if column in frame}
    titles = ["regression or retrieval", "rise of the loss (nats a token)"]
    fig, places = panels(titles[: 1 + bool(ran)], across=1)
    sink = (frame["first_share"] >= 0.3).astype(int)
    placed = frame[frame["regression_r2"].notna()]
    for i, kind in enumerate(_KINDS):  # one colour and mark a kind, in every figure
        part = placed[placed["kind"] == kind]
        if part.empty:
            continue
        fig.add_scatter(
            x=part["regression_r2"], y=part["retrieval_r2"], text=part["head"], name=kind,
            mode="markers+text" if len(frame) <= 24 else "markers",
            textposition=[_beside(placed, index) for index in part.index],
            marker={"size": 10, "color": colour(i), "symbol": (i + 100 * sink[part.index]).tolist()},
            row=1, col=1,
            hovertemplate="%{text}<br>linear %{x:.2f}, best key %{y:.2f}<extra>" + kind + "</extra>",
        )  # fmt: skip
    if ran:
        most = (
            frame[list(ran.values())].dropna().max(axis=1).sort_values(ascending=False).index[:12]
        )
        shown = frame.loc[sorted(most)]
        for name, column in ran.items():
            fig.add_bar(
                x=shown["head"], y=shown[column], name=_INSTEAD.get(name, name), row=2, col=1,
                error_y={"array": shown[f"{column}_se"], "thickness": 1, "width": 2},
                marker_color=colour(place := list(names).index(name) + 4),
                marker_pattern_shape="/" if place >= len(OKABE_ITO) else "",  # above, kinds have these
            )  # fmt: skip
    ends = placed[["regression_r2", "retrieval_r2"]].agg(["min", "max"]) if len(placed) else None
    (left, low), (right, high) = (
        ((0.0, 0.0), (1.0, 1.0)) if ends is None else ends.to_numpy().tolist()
    )
    room, wide = (
        0.15 * max(high - low, 0.05),
        0.25 * max(right - left, 0.05),
    )  # names stand about their marks
    named = {
        "title_text": "share explained by linear attention",
        "range": [left - wide, right + wide],
    }
    fig.update_xaxes(**named, row=1, col=1)
    upright = [low - room, high + room]
    fig.update_yaxes(
        title_text="share explained by<br>the best key alone", range=upright, row=1, col=1
    )
    size = f"{counted(heads.n_rows, 'row')} of {counted(heads.n_positions, 'token')}"
    says = [f"{escape(heads.model)}, {size}"]
    says += ["open: they read the first position"] if sink.any() else []
    alike = len(frame) - len(placed)
    says += [f"{alike} not placed: equal values or scores"] if alike else []
    says += ["below: slow and fast memories exchanged"] if ran else []
    return styled(
        fig, title="Regression or retrieval? Heads of a trained model", panels=True,
        subtitle="; ".join(says), height=200 + 340 * len(places),
    )  # fmt: skip


def _beside(frame: pd.DataFrame, index: Any) -> str:
    """Where a head's name stands: above its mark, or on the side away from a close neighbour."""
    x, y = frame["regression_r2"] - frame["regression_r2"][index], frame["retrieval_r2"]
    near = x[(x.abs() < 0.08) & ((y - y[index]).abs() < 0.05)].drop(index)
    if near.empty:
        return "top center"
    return "middle left" if float(near.mean()) > 0 else "middle right"


@figure
def head_dial(dial: HeadDial) -> go.Figure:
    """Trained heads along the dial: distances to two regressions, capacity, and the loss.

    The x axis is the spread of the scores in nats (β times their standard deviation), logarithmic, so that
    both geometries stand on one axis. A solid line is a head under its own geometry, with a large mark where
    it was trained (β = 1); a dotted one the same keys and values under the geometry of least squares. Errors
    are relative, 0 equal and 1 as far as the mean value; capacity is a count on a logarithmic axis.

    Args:
        dial: from :func:`~lens_linear.constructions.memory.head_dial.head_dial`; of many heads the first
            eight are drawn.

    Returns:
        Figure of three panels, four where the losses were run: medians over the rows of tokens.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> from lens_linear.models.open.toy import toy_model
        >>> tokens = torch.randint(64, (2, 40), generator=torch.Generator().manual_seed(0))
        >>> dial = ll.constructions.head_dial(toy_model(n_layers=1), tokens, heads=["L0H2"])
        >>> [line.name for line in ll.plots.head_dial(dial).data][:2]
        ['L0H2', 'L0H2 as trained']
    """
    frame = dial.summary()
    shown = dict(_PICTURES)
    if frame["loss"].isna().all():
        del shown["loss"]
    fig, places = panels(list(shown.values()), across=1)
    for (measure, _), at in zip(shown.items(), places, strict=True):
        for i, head in enumerate(dial.heads[:_MOST]):
            for geometry, dash in zip(GEOMETRIES, ("solid", "dot"), strict=True):
                part = frame[(frame["head"] == head) & (frame["geometry"] == geometry)]
                if part[measure].isna().all():
                    continue
                name = head if geometry == "own" else f"{head}, {geometry}"
                look: dict[str, Any] = {
                    "ink": colour(i),
                    "at": at,
                    "hover": "spread %{x:.3g} nats<br>%{y:.3g}",
                }
                own = geometry == "own"
                add_line(
                    fig, part["spread"], part[measure], name, dash=dash, mode="lines", legend=own,
                    width=2.5 if own else 1.5, **look,
                )  # fmt: skip
                there = part[part["beta"] == 1]
                if own and len(there):
                    add_line(
                        fig, there["spread"], there[measure], f"{head} as trained", mode="markers",
                        legend=False, **look,
                    )  # fmt: skip
                    fig.data[-1].marker.size = 11
        if measure == "capacity":
            fig.update_yaxes(row=at[0], col=1, **log_axis(frame[measure].dropna()))
    fig.update_xaxes(range=[-2, 2.2], **log_axis([1e-2, 1e2]))
    fig.update_xaxes(title_text="spread of the scores (nats)", row=len(places), col=1)
    skipped = f", the first {dial.skip} unseen" if dial.skip else ""
    return styled(
        fig, title="The dial on trained heads: regression or retrieval", panels=True,
        subtitle=f"{escape(dial.model)}, {counted(dial.values.shape[-1], 'row')} of "
        f"{counted(dial.n_positions, 'token')}{skipped}; "
        "solid: own geometry (mark: as trained); dotted: geometry of least squares",
        height=140 + 300 * len(places),
    )  # fmt: skip
