"""Figures of the dial from linear attention to softmax, and of trained heads on it."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_linear.constructions.memory.dial import AttentionDial
from lens_linear.constructions.memory.trained_heads import EXCHANGES, TrainedHeads
from lens_linear.plots._marks import LOG, band, quartiles
from lens_linear.plots.style import DASHES, colour, styled

_LINES = {
    "ols_error": "to least squares (one gain)",
    "raw_error": "to least squares (no gain)",
    "kernel_error": "to kernel regression of the same width",
    "truth_error": "to the noiseless labels (one gain)",
}
_KINDS = ("averaging", "regression", "between", "retrieval")


def attention_dial(dial: AttentionDial) -> go.Figure:
    """Relative errors and capacity against the inverse temperature β of the softmax.

    Above: distances of the readout to least squares, to kernel regression and to the truth, 0 equal and 1 as
    far as predicting the mean; dotted, what least squares and the best kernel themselves miss of the truth.
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
    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.08)
    for i, (measure, name) in enumerate(_LINES.items()):
        part = _named(frame, measure)
        figure.add_trace(quartiles(part, "setting", name, colour(i), DASHES[i % len(DASHES)]), 1, 1)
    for value, name in zip(
        dial.levels.median(1).values.tolist(), ("least squares", "best kernel"), strict=True
    ):
        figure.add_hline(y=value, line={"dash": "dot", "width": 1}, row=1, col=1)
        figure.add_annotation(
            text=f"{name} to the truth", x=1, xref="x domain", xanchor="right", y=value,
            yanchor="bottom" if name == "best kernel" else "top", showarrow=False, row=1, col=1,
        )  # fmt: skip
    for i, (measure, name) in enumerate(
        (("effective_rows", "rows that weigh in"), ("capacity", "stored rows, one found"))
    ):
        part = _named(frame, measure)
        figure.add_trace(band(part, "setting", "95 % of seeds", colour(4 + i)), 2, 1)
        figure.data[-1].showlegend = False
        figure.add_scatter(
            x=part["setting"], y=part["median"], name=name, line_color=colour(4 + i), row=2, col=1
        )
    marks = dial.regimes().set_index("regime")["beta"].to_dict()
    for i, (regime, beta) in enumerate((n, b) for n, b in marks.items() if math.isfinite(b)):
        figure.add_vline(x=beta, line={"dash": "dash", "width": 1})
        figure.add_annotation(
            text=regime,
            x=math.log10(beta),  # annotations take the exponent on a log axis
            y=1 - 0.08 * i,
            yref="y domain",
            xanchor="right",
            showarrow=False,
            row=1,
            col=1,
        )
    styled(
        figure,
        title="From linear attention to softmax: where regression ends and retrieval starts",
        subtitle=f"n = {dial.n} rows, d = {dial.d}, {dial.values.shape[2]} seeds: median and 95 % of them",
        height=760,
        width=960,
        legend="bottom",
    )
    figure.update_xaxes(type="log", exponentformat="power")
    figure.update_xaxes(title_text="β (scores of one average row)", row=2, col=1)
    figure.update_yaxes(title_text="relative error", row=1, col=1)
    return figure.update_yaxes(title_text="rows", row=2, col=1, **LOG)


def trained_heads(heads: TrainedHeads) -> go.Figure:
    """Heads of a model between regression and retrieval, and what the loss says of their memories.

    Left: each head by the share of its readout that linear attention (x) and its best key alone (y) explain,
    both at most 1. Right: the rise of the loss in nats a token when its memories are exchanged, with bars of
    one standard error over rows.

    Args:
        heads: from :func:`~lens_linear.constructions.memory.trained_heads.trained_heads`; of many heads the
            twelve whose loss moves most are drawn on the right.

    Returns:
        Figure of two panels.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> from lens_linear.models.open.toy import toy_model
        >>> tokens = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(0))
        >>> found = ll.constructions.trained_heads(toy_model(n_layers=1), tokens, exchanges=("linear",))
        >>> [mark.name for mark in ll.plots.trained_heads(found).data]
        ['averaging', 'linear']
    """
    frame = heads.to_dataframe()
    names = {name: f"loss_{name.replace(' ', '_')}" for name in EXCHANGES}
    ran = {name: column for name, column in names.items() if column in frame}
    figure = make_subplots(
        cols=2 if ran else 1, horizontal_spacing=0.1, column_widths=[0.4, 0.6] if ran else None
    )
    for i, kind in enumerate(kind for kind in _KINDS if (frame["kind"] == kind).any()):
        part = frame[frame["kind"] == kind]
        figure.add_scatter(
            x=part["regression_r2"], y=part["retrieval_r2"], text=part["head"], name=kind,
            mode="markers+text" if len(frame) <= 24 else "markers", textposition="top center",
            marker={"size": 10, "color": colour(i)}, row=1, col=1,
            hovertemplate="%{text}<br>linear %{x:.2f}, best key %{y:.2f}<extra>" + kind + "</extra>",
        )  # fmt: skip
    if ran:
        most = frame[list(ran.values())].max(axis=1).sort_values(ascending=False).index[:12]
        shown = frame.loc[sorted(most)]
        for i, (name, column) in enumerate(ran.items()):
            figure.add_bar(
                x=shown["head"], y=shown[column], name=name, marker_color=colour(i), row=1, col=2,
                error_y={"array": shown[f"{column}_se"], "thickness": 1, "width": 2},
            )  # fmt: skip
        figure.update_xaxes(title_text="head", row=1, col=2)
        figure.update_yaxes(title_text="rise of the loss (nats a token)", row=1, col=2)
    styled(
        figure,
        title="Regression or retrieval? Heads of a trained model",
        subtitle=f"{heads.model}, {heads.n_rows} rows of {heads.n_positions} tokens, loss {heads.loss:.3f}; "
        "right: slow and fast memories exchanged",
        legend="bottom",
        height=560,
        width=1080 if ran else 620,
    )
    figure.update_xaxes(title_text="explained by linear attention", row=1, col=1)
    return figure.update_yaxes(title_text="explained by the best key alone", row=1, col=1)


def _named(frame: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A measure and its spread under the names that the marks read."""
    names = {measure: "median", f"{measure}_low": "low", f"{measure}_high": "high"}
    return frame[["setting", *names]].rename(columns=names)
