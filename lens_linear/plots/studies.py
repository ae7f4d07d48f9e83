"""Figures of pretraining studies: measures by variant with every seed shown, FFN profiles side by side."""

from __future__ import annotations

from typing import Any, Protocol

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_linear.checks import require_choice
from lens_linear.plots.linearity import PANELS_TOP, SCORE_NAMES
from lens_linear.plots.style import GREY, colour, escape, styled

MEASURES = ("loss", "block_r2", "block_r2_no_residual", "ffn_r2", "update_ratio")
_NAMES = {"loss": "validation loss (nats per token)", **SCORE_NAMES}


class _StudyLike(Protocol):
    """What a figure needs of ``studies.StudyResult``, which stands on a higher floor."""

    study: Any
    n_text: int
    minutes: float
    n_tokens: int

    def to_dataframe(self) -> pd.DataFrame: ...


def study_measures(
    result: _StudyLike,
    *,
    measures: tuple[str, ...] = ("loss", "block_r2", "block_r2_no_residual", "ffn_r2"),
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

    Raises:
        InvalidArgumentError: an unknown measure.

    Example:
        >>> import lens_linear as ll
        >>> study = ll.studies.load_study("cosine")
        >>> one = {"step": 9, "final": True, "layer": 0, "loss": 2.5, "ffn_r2": 0.9}
        >>> rows = [{"variant": variant, "seed": seed, **one} for variant, seed in study.runs()]
        >>> result = ll.studies.StudyResult(study, tuple(rows), n_tokens=100, n_text=100, minutes=1.0)
        >>> figure = ll.plots.study_measures(result, measures=("loss", "ffn_r2"))
        >>> [panel.text for panel in figure.layout.annotations], float(figure.data[1].y[0])
        (['validation loss (nats per token)', 'FFN R²'], 2.5)
    """
    for measure in measures:
        require_choice("measures", measure, MEASURES)
    frame = result.to_dataframe()
    final = frame[frame["final"]].groupby(["variant", "seed"], sort=False)[list(measures)].mean()
    final = final.reset_index()
    variants = list(result.study.variants)
    figure = make_subplots(rows=1, cols=len(measures), subplot_titles=[_NAMES[m] for m in measures])
    for column, measure in enumerate(measures, start=1):
        means = final.groupby("variant", sort=False)[measure].mean()
        figure.add_trace(_dots(final, measure, variants), row=1, col=column)
        figure.add_trace(
            go.Scatter(
                x=list(range(len(variants))),
                y=[means[v] for v in variants],
                mode="markers",
                marker={"symbol": "line-ew", "size": 26, "line": {"width": 3, "color": "#222222"}},
                hovertemplate="mean %{y:.4f}<extra></extra>",
                showlegend=False,
            ),
            row=1,
            col=column,
        )
        figure.add_hline(
            y=float(means[result.study.baseline]),
            line={"color": GREY, "dash": "dot"},
            row=1,
            col=column,
        )
    figure.update_xaxes(
        tickvals=list(range(len(variants))),
        ticktext=[escape(v) for v in variants],
        tickangle=-35,
        range=[-0.6, len(variants) - 0.4],
    )
    return styled(
        figure,
        title=escape(result.study.question),
        subtitle=_subtitle(result),
        height=520,
        width=310 * len(measures) + 60,
    ).update_layout(margin_t=PANELS_TOP)


def _dots(final: pd.DataFrame, measure: str, variants: list[str]) -> go.Scatter:
    """One dot a final model, by variant and seed."""
    return go.Scatter(
        x=[variants.index(v) for v in final["variant"]],
        y=final[measure],
        mode="markers",
        marker={
            "color": [colour(variants.index(v)) for v in final["variant"]],
            "size": 9,
            "opacity": 0.75,
        },
        customdata=[[escape(v), s] for v, s in zip(final["variant"], final["seed"])],
        hovertemplate="%{customdata[0]}, seed %{customdata[1]}: %{y:.4f}<extra></extra>",
        showlegend=False,
    )


def study_profiles(result: _StudyLike, *, measure: str = "ffn_r2") -> go.Figure:
    """One panel per variant: the measure by layer, a line per seed; thin lines are earlier checkpoints.

    All panels share the y axis: R² (at most 1), a ratio of lengths, or nats per token for the loss. The
    panel of the baseline is what the others are held against; lines of one panel differ by the seed alone.

    Args:
        result: what ``studies.run_study`` returned.
        measure: one of loss, block_r2, block_r2_no_residual, ffn_r2, update_ratio.

    Returns:
        Figure with one panel a variant.

    Raises:
        InvalidArgumentError: an unknown measure.

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
    require_choice("measure", measure, MEASURES)
    frame = result.to_dataframe()
    variants = list(result.study.variants)
    figure = make_subplots(
        rows=1, cols=len(variants), subplot_titles=[escape(v) for v in variants], shared_yaxes=True
    )
    steps = sorted(frame["step"].unique())
    for column, variant in enumerate(variants, start=1):
        for (seed, step), part in frame[frame["variant"] == variant].groupby(["seed", "step"]):
            last = bool(part["final"].iloc[0])
            index = steps.index(step)
            figure.add_trace(
                go.Scatter(
                    x=part["layer"],
                    y=part[measure],
                    mode="lines+markers" if last else "lines",
                    line={
                        "color": colour(0) if last else colour(1 + index),
                        "width": 2.5 if last else 1,
                    },
                    marker={"size": 6},
                    name=f"after {step} steps",
                    legendgroup=str(step),
                    showlegend=column == 1 and seed == result.study.seeds[0],
                    hovertemplate=(
                        f"{escape(variant)}, seed {seed}, step {step}<br>layer %{{x}}: "
                        "%{y:.4f}<extra></extra>"
                    ),
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="layer", dtick=1)
    figure.update_yaxes(title_text=_NAMES[measure], row=1, col=1)
    return styled(
        figure,
        title=f"{_NAMES[measure]} by layer, every seed",
        subtitle=_subtitle(result),
        height=480,
        width=300 * len(variants) + 160,
    ).update_layout(margin_t=PANELS_TOP)


def _subtitle(result: _StudyLike) -> str:
    spec = result.study.recipe["spec"]
    return (
        f"{spec['n_layers']} layers, width {spec['d_model']}, {len(result.study.seeds)} seeds each; "
        f"n = {result.n_tokens:,} validation tokens"
    )
