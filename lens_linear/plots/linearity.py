"""Figures of linearity: profiles by layer, maps between layers, profiles side by side, geometry.

Each function takes a result of :mod:`lens_linear.linearity` and returns a figure; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_linear.checks import require_choice
from lens_linear.linearity.measure.compare import ProfileComparison
from lens_linear.linearity.measure.geometry import LayerGeometry
from lens_linear.linearity.measure.layer_map import LayerMap
from lens_linear.linearity.measure.profile import LinearityProfile
from lens_linear.plots.style import DASHES, GREY, colour, escape, faded, matrix, styled

_LABELS = {
    "block": "block",
    "block_no_residual": "block, without residual",
    "ffn": "FFN",
    "attn": "attention",
}
PANELS_TOP = 130  # pixels above panels that have titles of their own
SCORE_NAMES: Mapping[str, str] = {
    "block_r2": "block R²",
    "block_r2_no_residual": "block R² without residual",
    "ffn_r2": "FFN R²",
    "attn_r2": "attention R²",
    "update_ratio": "‖update‖ / ‖stream‖",
}


def linearity_profile(profile: LinearityProfile, *, bands: bool = True) -> go.Figure:
    """R² by layer for blocks (with and without residual), FFNs and attention, with the null.

    The x axis is the layer, the y axis the fraction of variance explained, at most 1. Bands are bootstrap
    intervals over test sequences; an in-sample profile has none. The grey line is what an output
    independent of its input would score. Scores below −0.1 are cut off; the hover shows them.

    Args:
        profile: what ``ll.linearity_profile`` returned.
        bands: draw the intervals.

    Returns:
        Figure with one line a score that the model has, and the null.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
        >>> profile = ll.linearity_profile(ll.toy_model(d_model=16, attn_only=False), tokens)
        >>> [line.name for line in ll.plots.linearity_profile(profile, bands=False).data]
        ['block', 'block, without residual', 'FFN', 'attention', 'independent noise']
    """
    figure = go.Figure()
    layers = list(range(profile.n_layers))
    lowest = 0.0
    for index, (score, label) in enumerate(_LABELS.items()):
        values = profile.scores[score]
        if bool(values.isnan().all()):
            continue
        lowest = min(lowest, float(values.nan_to_num(nan=0.0).min()))
        low, high = profile.intervals[score].unbind(1)
        if bands and not bool(low.isnan().all()):
            figure.add_trace(_band(layers, low.tolist(), high.tolist(), colour(index)))
        figure.add_trace(
            go.Scatter(
                x=layers,
                y=values.tolist(),
                mode="lines+markers",
                name=label,
                line={"color": colour(index), "dash": DASHES[index % len(DASHES)], "width": 2.5},
                marker={"size": 8, "symbol": index},
                hovertemplate=f"layer %{{x}}<br>{label}: R² %{{y:.4f}}<extra></extra>",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=layers,
            y=profile.null_r2.clamp(min=-1).tolist(),
            mode="lines",
            name="independent noise",
            line={"color": GREY, "dash": "dot", "width": 1.5},
            hovertemplate="null: R² %{y:.4f}<extra></extra>",
        )
    )
    figure.update_yaxes(range=[max(lowest, -0.1) - 0.04, 1.04])
    figure.update_xaxes(dtick=1 if profile.n_layers <= 24 else None)
    skipped = f", first {profile.skip} positions left out" if profile.skip else ""
    fitted = f", fitted on {profile.n_fit:,}" if profile.fit == "held-out" else ""
    return styled(
        figure,
        title=f"Linearity by layer: {escape(profile.model_name)}",
        subtitle=f"{profile.fit} R² of the best affine map; n = {profile.n_tokens:,} tokens{fitted}{skipped}",
        x="layer",
        y="R² (fraction of variance explained)",
    )


def layer_map(result: LayerMap) -> go.Figure:
    """Heatmap of the R² of the best affine map from one layer boundary (row) to a later one (column).

    Cells are fractions of variance explained, colours from 0 to 1; the diagonal is 1, below it nothing is
    drawn. A later state that is independent of the earlier one gives about 0, held out a little less, which
    is shown as 0.

    Args:
        result: what ``ll.layer_map`` returned.

    Returns:
        Figure with one heatmap; up to 14 boundaries the numbers are written in the cells.

    Raises:
        FigureTooLargeError: more than 200 boundaries.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
        >>> figure = ll.plots.layer_map(ll.layer_map(ll.toy_model(d_model=16), tokens))
        >>> figure.layout.xaxis.ticktext, figure.data[0].z.shape
        (('embedding', 'after 0', 'after 1'), (3, 3))
    """
    values = result.values.clamp(min=0).numpy()
    names = ["embedding" if b == 0 else f"after {b - 1}" for b in result.boundaries]
    figure = matrix(
        values,
        rows=names,
        columns=names,
        value_name="R²",
        row_name="from",
        column_name="to",
        diverging=False,
        limits=(0.0, 1.0),
    )
    if len(names) <= 14:
        figure.update_traces(texttemplate="%{z:.2f}", textfont={"size": 11})
    figure.update_xaxes(scaleanchor="y", tickangle=-40)
    return styled(
        figure,
        title=f"Best affine map between layers: {escape(result.model_name)}",
        subtitle=f"{result.fit} R², n = {result.n_tokens:,} tokens; negative values shown as 0",
        x="to (residual stream)",
        y="from (residual stream)",
        height=560,
        width=680,
    )


def profile_comparison(
    comparison: ProfileComparison,
    *,
    scores: tuple[str, ...] = ("block_r2", "block_r2_no_residual", "ffn_r2"),
    ordered: bool = False,
) -> go.Figure:
    """One panel per score, one line per profile, over relative depth.

    The x axis runs from 0 (first layer) to 1 (last), so that models of any depth lie over each other. The y
    axis is R² (at most 1, about 0 for an output independent of its input), or a ratio of lengths for
    update_ratio.

    Args:
        comparison: what ``compare_profiles`` returned.
        scores: columns of the profiles to show: block_r2, block_r2_no_residual, ffn_r2, attn_r2,
            update_ratio.
        ordered: the names have an order (training steps, sizes): colours run from light to dark.

    Returns:
        Figure with one panel a score.

    Raises:
        InvalidArgumentError: an unknown score.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
        >>> profile = ll.linearity_profile(ll.toy_model(d_model=16), tokens)
        >>> both = ll.linearity.compare_profiles({"one": profile, "again": profile})
        >>> figure = ll.plots.profile_comparison(both, scores=("block_r2", "update_ratio"))
        >>> [panel.text for panel in figure.layout.annotations], len(figure.data)
        (['block R²', '‖update‖ / ‖stream‖'], 4)
    """
    frame = comparison.to_dataframe()
    for score in scores:
        require_choice("scores", score, SCORE_NAMES)
    titles = [SCORE_NAMES[score] for score in scores]
    figure = make_subplots(rows=1, cols=len(scores), subplot_titles=titles, shared_yaxes=False)
    names = list(comparison.profiles)
    for index, name in enumerate(names):
        part = frame[frame["name"] == name]
        shade = _shade(index, len(names)) if ordered else colour(index)
        for column, score in enumerate(scores, start=1):
            figure.add_trace(
                go.Scatter(
                    x=part["depth"],
                    y=part[score],
                    mode="lines+markers",
                    name=escape(name),
                    legendgroup=escape(name),
                    showlegend=column == 1,
                    line={"color": shade, "width": 2},
                    marker={"size": 6, "symbol": index % 8},
                    customdata=part["layer"],
                    hovertemplate=(
                        f"{escape(name)}<br>layer %{{customdata}}<br>"
                        f"{SCORE_NAMES[score]} %{{y:.4f}}<extra></extra>"
                    ),
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="depth (0 first, 1 last layer)")
    tokens = sorted({p.n_tokens for p in comparison.profiles.values()})
    counted = " or ".join(f"{n:,}" for n in tokens[:3])
    return styled(
        figure,
        title="Linearity profiles side by side",
        subtitle=f"n = {counted} tokens each",
        height=500,
        width=380 * len(scores) + 180,
    ).update_layout(margin_t=PANELS_TOP)


def layer_geometry(geometry: LayerGeometry) -> go.Figure:
    """Anisotropy and intrinsic dimension of the residual stream at every layer boundary.

    Three panels over the layer boundary (0 is the embedding). Anisotropy is the share of variance on the
    first direction: 1/d for a round cloud of width d, 1 for a line. The intrinsic dimension has no upper
    bound but the sample's reach; the effective rank goes from 1 to d, which a round cloud has.

    Args:
        geometry: what ``linearity.layer_geometry`` returned.

    Returns:
        Figure with one line a panel.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
        >>> geometry = ll.linearity.layer_geometry(ll.toy_model(d_model=16), tokens)
        >>> figure = ll.plots.layer_geometry(geometry)
        >>> [line.name for line in figure.data][2], len(figure.data[2].x)
        ('effective rank', 3)
    """
    frame = geometry.to_dataframe().reset_index()
    names = {
        "anisotropy": "anisotropy (share of first direction)",
        "intrinsic_dimension": "intrinsic dimension (TwoNN)",
        "effective_rank": "effective rank",
    }
    figure = make_subplots(rows=1, cols=3, subplot_titles=list(names.values()))
    for column, name in enumerate(names, start=1):
        figure.add_trace(
            go.Scatter(
                x=frame["boundary"],
                y=frame[name],
                mode="lines+markers",
                line={"color": colour(column - 1), "width": 2.5},
                name=names[name],
                hovertemplate="boundary %{x}: %{y:.3f}<extra></extra>",
            ),
            row=1,
            col=column,
        )
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(title_text="layer boundary (0 = embedding)", dtick=1)
    return styled(
        figure,
        title=f"Shape of the residual stream: {escape(geometry.model_name)}",
        subtitle=f"n = {geometry.n_rows:,} states per boundary",
        legend="none",
        height=460,
        width=1100,
    ).update_layout(margin_t=PANELS_TOP)


def _band(x: list[int], low: list[float], high: list[float], shade: str) -> go.Scatter:
    return go.Scatter(
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        mode="lines",
        fill="toself",
        fillcolor=faded(shade, 0.18),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def _shade(index: int, count: int) -> str:
    """From light to dark blue-green, readable in grey."""
    share = index / max(count - 1, 1)
    light, dark = (158, 202, 225), (8, 48, 107)
    mixed = (round(a + share * (b - a)) for a, b in zip(light, dark, strict=True))
    return "rgb({},{},{})".format(*mixed)
