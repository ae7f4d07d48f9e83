"""Figures of the pretraining studies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import pandas as pd
import plotly.graph_objects as go

from lens_linear.plots._kinds import (
    add_level,
    add_line,
    figure,
    layer_axis,
    panels,
)
from lens_linear.plots.linearity import COLUMN_NAMES, drawn_columns
from lens_linear.plots.style import colour, escape, legend_name, styled, tick_label

Measure = Literal["loss", "block_r2", "block_r2_no_residual", "ffn_r2", "update_ratio"]


@runtime_checkable
class StudyLike(Protocol):
    """What a figure needs of ``studies.StudyResult``, which stands on the same floor."""

    study: Any
    n_text: int
    minutes: float
    n_tokens: int

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row a variant, seed, step and layer."""
        ...


@figure
def study_measures(
    result: StudyLike,
    *,
    measures: Sequence[Measure] = ("loss", "block_r2", "block_r2_no_residual", "ffn_r2"),
) -> go.Figure:
    """One panel per measure: final models by variant, a dot per seed, a bar at their mean.

    The x axis names the variants. The loss is in nats per token; scores are R² (at most 1) or a ratio of
    lengths, means over layers. The dotted line is the baseline's mean: a difference smaller than the
    scatter of the dots is no effect.

    Args:
        result: what ``studies.run_study`` returned.
        measures: any of loss, block_r2, block_r2_no_residual, ffn_r2, update_ratio.

    Returns:
        Figure with one panel a measure.

    Example:
        >>> import lens_linear as ll
        >>> study = ll.studies.load_study("cosine")
        >>> one = {"step": 9, "final": True, "layer": 0, "loss": 2.5, "ffn_r2": 0.9}
        >>> rows = [{"variant": variant, "seed": seed, **one} for variant, seed in study.runs()]
        >>> result = ll.studies.StudyResult(study, tuple(rows), n_tokens=100, n_text=100, minutes=1.0)
        >>> figure = ll.plots.study_measures(result, measures=("loss", "ffn_r2"))
        >>> [panel.text for panel in figure.layout.annotations], float(figure.data[1].y[0])
        (['validation loss (nats per<br>token)', 'FFN R²'], 2.5)
    """
    frame = result.to_dataframe()
    chosen: list[Any] = list(drawn_columns("measures", measures, frame))
    final = frame[frame["final"]].groupby(["variant", "seed"], sort=False)[chosen].mean()
    final, variants = final.reset_index(), list(result.study.variants)
    fig, places = panels([COLUMN_NAMES[measure] for measure in chosen], across=2, below=0.24)
    at_variant = [variants.index(v) for v in final["variant"]]
    for measure, (row, col) in zip(chosen, places, strict=True):
        means = final.groupby("variant", sort=False)[measure].mean()
        fig.add_scatter(
            x=at_variant, y=final[measure], mode="markers", showlegend=False, row=row, col=col,
            marker={"color": [colour(v) for v in at_variant], "size": 9, "opacity": 0.75},
            customdata=[[escape(v), s] for v, s in zip(final["variant"], final["seed"])],
            hovertemplate="%{customdata[0]}, seed %{customdata[1]}: %{y:.4f}<extra></extra>",
        )  # fmt: skip
        fig.add_scatter(
            x=list(range(len(variants))), y=[means[v] for v in variants], mode="markers",
            marker={"symbol": "line-ew", "size": 16, "line": {"width": 3, "color": "#222222"}},
            hovertemplate="mean %{y:.4f}<extra></extra>", name="mean over seeds", row=row, col=col,
            showlegend=(row, col) == (1, 1),
        )  # fmt: skip
        ends = [-0.4, len(variants) - 0.6]
        add_level(
            fig, float(means[result.study.baseline]), "mean of the baseline", x=ends, at=(row, col)
        )
    names = [tick_label(v, max_length=14) for v in variants]
    fig.update_xaxes(tickvals=list(range(len(variants))), ticktext=names, tickangle=-40)
    fig.update_xaxes(range=[-0.5, len(variants) - 0.5])
    return styled(
        fig, title=escape(result.study.question), subtitle=_study(result), panels=True,
        height=180 + 300 * places[-1][0],
    )  # fmt: skip


@figure
def study_profiles(result: StudyLike, *, measure: Measure = "ffn_r2") -> go.Figure:
    """One panel per variant: the measure by layer, a line per seed; thin lines are earlier checkpoints.

    All panels share the y axis: R² (at most 1), a ratio of lengths, or nats per token for the loss. The
    panel of the baseline is what the others are held against; lines of one panel differ by the seed alone.

    Args:
        result: what ``studies.run_study`` returned.
        measure: one of loss, block_r2, block_r2_no_residual, ffn_r2, update_ratio.

    Returns:
        Figure with one panel a variant.

    Example:
        >>> import lens_linear as ll
        >>> study = ll.studies.load_study("cosine")
        >>> one = {"step": 9, "final": True, "layer": 0, "ffn_r2": 0.9}
        >>> rows = [{"variant": variant, "seed": seed, **one} for variant, seed in study.runs()]
        >>> result = ll.studies.StudyResult(study, tuple(rows), n_tokens=100, n_text=100, minutes=1.0)
        >>> figure = ll.plots.study_profiles(result)
        >>> figure.layout.yaxis.title.text, len(figure.data) == len(study.runs())
        ('FFN R²', True)
    """
    frame, variants = result.to_dataframe(), list(result.study.variants)
    fig, places = panels([legend_name(v) for v in variants], share_y=True)
    steps = sorted(frame["step"].unique())
    named: set[Any] = set()
    for variant, at in zip(variants, places, strict=True):
        for (seed, step), part in frame[frame["variant"] == variant].groupby(["seed", "step"]):
            last = bool(part["final"].iloc[0])
            add_line(
                fig, part["layer"], part[measure], f"after {step} steps", at=at, dash="solid",
                index=0 if last else 1 + steps.index(step), width=2.5 if last else 1,
                mode="lines+markers" if last else "lines", legend=step not in named,
                hover=f"{escape(variant)}, seed {seed}<br>layer %{{x}}: %{{y:.4f}}",
            )  # fmt: skip
            named.add(step)
    fig.update_yaxes(title_text=COLUMN_NAMES[measure], col=1)
    return styled(
        layer_axis(fig, int(frame["layer"].max()) + 1, room=6), subtitle=_study(result), panels=True,
        x="layer", title=f"{COLUMN_NAMES[measure]} by layer, every seed", height=140 + 320 * places[-1][0],
    )  # fmt: skip


def _study(result: StudyLike) -> str:
    spec = result.study.recipe["spec"]
    return (
        f"{spec['n_layers']} layers, width {spec['d_model']}, {len(result.study.seeds)} seeds each; "
        f"n = {result.n_tokens:,} validation tokens"
    )
