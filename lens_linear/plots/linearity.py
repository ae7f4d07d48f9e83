"""Figures of linearity: profiles by layer, maps between layers, what replacement costs, probes, studies.

Each function takes a result of :mod:`lens_linear.linearity` (or of a pretraining study) and returns a
figure; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lens_linear.checks import counted, require_choice
from lens_linear.errors import InvalidArgumentError
from lens_linear.linearity.measure.bilinear import BilinearProbe
from lens_linear.linearity.measure.compare import ProfileComparison, ProfileDifference
from lens_linear.linearity.measure.geometry import LayerGeometry
from lens_linear.linearity.measure.layer_map import LayerMap
from lens_linear.linearity.measure.profile_result import LinearityProfile
from lens_linear.linearity.replace.compression import CompressionTable
from lens_linear.linearity.replace.curve import ReplacementCurve
from lens_linear.linearity.replace.runs import RunTable
from lens_linear.plots._kinds import (
    add_level,
    add_line,
    below_axis,
    ends_of,
    figure,
    heights,
    in_legend,
    inks,
    layer_axis,
    log_axis,
    panels,
    window,
)
from lens_linear.plots.style import escape, matrix, styled

_SITES = {"block": "block", "ffn": "FFN", "attn": "attention"}
_LABELS = {
    "block_r2": "block",
    "block_r2_no_residual": "block, without residual",
    "ffn_r2": "FFN",
    "attn_r2": "attention",
}
COLUMN_NAMES = {
    "block_r2": "block R²",
    "block_r2_no_residual": "block R² without residual",
    "ffn_r2": "FFN R²",
    "attn_r2": "attention R²",
    "update_ratio": "‖update‖ / ‖stream‖",
    "loss": "validation loss (nats per token)",
}


@figure
def linearity_profile(
    profile: LinearityProfile, *, scores: Sequence[str] | None = None, bands: bool = True
) -> go.Figure:
    """R² by layer for blocks (with and without residual), FFNs and attention, with the null.

    The x axis is the layer, the y axis the fraction of variance explained, at most 1. Bands are bootstrap
    intervals over test sequences; an in-sample profile has none. The grey line is what an output
    independent of its input would score. Scores below −0.1 are cut off; the hover shows them. Thin lines,
    where the profile has them, are the same scores without the first position, whose outlier can carry
    most of the variance. Statistics of one's own stand beside it, each in a panel of its own.

    Args:
        profile: what ``ll.linearity_profile`` returned.
        scores: columns to draw: block_r2, block_r2_no_residual, ffn_r2, attn_r2 share a panel, any other,
            such as a statistic of one's own, has its own. By default these four and all statistics.
        bands: draw the intervals.

    Returns:
        Figure with one line a score that the model has, and the null.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
        >>> profile = ll.linearity_profile(ll.toy_model(d_model=16, attn_only=False), tokens)
        >>> [line.name for line in ll.plots.linearity_profile(profile, bands=False).data][:3]
        ['block', 'block, without residual', 'FFN']
    """
    frame = profile.to_dataframe().reset_index()
    asked = [*_LABELS, *profile.statistics] if scores is None else scores
    shown = drawn_columns("scores", asked, frame)
    shares = [score for score in _LABELS if score in shown]
    own = {
        name: f"{words} ({_SITES[profile.statistics[name].site]})" if name in profile.statistics else words
        for name, words in shown.items()
        if name not in _LABELS
    }  # fmt: skip
    titles = ["R²"] * bool(shares) + list(own.values())
    fig, places = panels(titles) if len(titles) > 1 else (go.Figure(), [])
    at = places[0] if places else None
    below = _r2_lines(fig, profile, frame, shares, bands=bands, at=at) if shares else ""
    for index, name in enumerate(own, start=bool(shares)):
        at = places[index] if places else None
        add_line(
            fig, frame["layer"], frame[name], name, index=index, dash="solid", at=at, legend=at is None,
            band=ends_of(frame, name) if bands else None, hover="layer %{x}: %{y:.4g}",
        )  # fmt: skip
    skipped = f", first {profile.skip} positions left out" if profile.skip else ""
    fitted = f", fitted on {profile.n_fit:,}" if profile.fit == "held-out" else ""
    measure = f"{profile.fit} R² of the best affine map; " if shares else ""
    return styled(
        layer_axis(fig, profile.n_layers), title=f"Linearity by layer: {escape(profile.model_name)}",
        subtitle=f"{measure}n = "
        f"{counted(profile.n_tokens, 'token', ',')}{fitted}{skipped}{below}", panels=bool(places),
        x="layer", y=None if places else "R² (fraction of variance explained)" if shares else titles[0],
        height=130 + 340 * places[-1][0] if places else 480,
    )  # fmt: skip


def _r2_lines(
    fig: go.Figure,
    profile: LinearityProfile,
    frame: pd.DataFrame,
    scores: Sequence[str],
    *,
    bands: bool,
    at: tuple[int, int] | None,
) -> str:
    """Shares of variance: with and without the first position, and the null; says what lies below."""
    layers = frame["layer"].tolist()
    known = [
        (index, score, _LABELS[score])
        for index, score in enumerate(_LABELS)
        if score in scores and frame[score].notna().any()
    ]
    for index, score, label in known:
        band = ends_of(frame, score) if bands else None
        hover = "layer %{x}: R² %{y:.4f}"
        add_line(fig, layers, frame[score], label, index=index, band=band, hover=hover, at=at)
    drawn = [(score, label) for _, score, label in known]
    for index, score, label in known:
        later = frame[f"{score}_without_first"]
        if not profile.skip and later.notna().any():
            hover = f"{label}<br>layer %{{x}}: R² %{{y:.4f}}"
            add_line(fig, layers, later, "thin: without the first position", index=index, width=1,
                     hover=hover, mode="lines", legend=index == known[0][0], at=at)  # fmt: skip
            drawn.append((f"{score}_without_first", f"{label} without the first position"))
    null = frame["null_r2"]
    lowest = float(null.min())
    outside = f" ({lowest:.2g}, off the axis)" if lowest < -1 else ""
    add_level(fig, null.clip(lower=-1), f"independent noise{outside}", x=layers, at=at)
    floor = -0.1 if outside else max(-1.0, min(-0.1, lowest))
    window(fig, lowest=floor, highest=1.0, at=at)
    return below_axis(frame, drawn, floor)


@figure
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
    names = ["embedding" if b == 0 else f"after {b - 1}" for b in result.boundaries]
    fig = matrix(
        result.values.clamp(min=0).numpy(), rows=names, columns=names, value_name="R²",
        row_name="from", column_name="to", diverging=False, limits=(0.0, 1.0), square=True, numbers=True,
    )  # fmt: skip
    return styled(
        fig, title=f"Best affine map between layers: {escape(result.model_name)}",
        subtitle=f"{result.fit} R², n = {counted(result.n_tokens, 'token', ',')}; negative values shown as 0"
        f"{escape(result.first_position)}",
        x="to (residual stream)", y="from (residual stream)", height=220 + min(520, 60 + 34 * len(names)),
    )  # fmt: skip


@figure
def profile_comparison(
    comparison: ProfileComparison,
    *,
    scores: Sequence[str] | None = None,
    ordered: bool = False,
    bands: bool = True,
) -> go.Figure:
    """One panel per score, one line per profile, over relative depth.

    The x axis runs from 0 (first layer) to 1 (last), so that models of any depth lie over each other. The y
    axis is R² (at most 1, about 0 for an output independent of its input), or a ratio of lengths for
    update_ratio.

    Args:
        comparison: what ``compare_profiles`` returned.
        scores: columns of the profiles to show: block_r2, block_r2_no_residual, ffn_r2, attn_r2,
            update_ratio, or statistics of one's own. By default the first three and all statistics.
        ordered: the names have an order (training steps, sizes): colours run from light to dark.
        bands: draw the intervals of columns that have them.

    Returns:
        Figure with one panel a score.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
        >>> profile = ll.linearity_profile(ll.toy_model(d_model=16), tokens)
        >>> both = ll.linearity.compare_profiles({"one": profile, "again": profile})
        >>> figure = ll.plots.profile_comparison(both, scores=("block_r2", "update_ratio"))
        >>> [panel.text for panel in figure.layout.annotations], len(figure.data)
        (['block R²', '‖update‖ / ‖stream‖'], 6)
    """
    frame = comparison.to_dataframe()
    shown = drawn_columns("scores", _or_known(scores, frame, comparison.statistics), frame)
    fig, places = panels(list(shown.values()))
    names = list(comparison.profiles)
    for index, (name, ink) in enumerate(zip(names, inks(len(names), ordered=ordered), strict=True)):
        part = frame[frame["name"] == name]
        for (score, words), at in zip(shown.items(), places, strict=True):
            add_line(
                fig, part["depth"], part[score], name, index=index, ink=ink, at=at, width=2,
                custom=part["layer"], hover=f"layer %{{customdata}}<br>{words} %{{y:.4f}}",
                dash="solid", legend=in_legend(index, len(names)),
                band=ends_of(part, score) if bands else None,
            )  # fmt: skip
    tokens = sorted({p.n_tokens for p in comparison.profiles.values()})
    sizes = " or ".join(f"{n:,}" for n in tokens[:3])
    moved = [name for name, p in comparison.profiles.items() if p.first_position_layers()]
    first = (
        f"; the first position moves block R² of {', '.join(map(escape, moved[:3]))}"
        if moved
        else ""
    )
    first += f" and {len(moved) - 3} more" if len(moved) > 3 else ""
    fig.update_xaxes(nticks=4)
    return styled(
        fig, title="Linearity profiles side by side", subtitle=f"n = {sizes} tokens each{first}", panels=True,
        x="depth (0 first, 1 last)",
        height=130 + 340 * places[-1][0],
    )  # fmt: skip


@figure
def profile_difference(
    difference: ProfileDifference,
    *,
    scores: Sequence[str] | None = None,
) -> go.Figure:
    """One panel per score: one profile minus another, layer by layer, with its paired interval.

    R², or the unit of a statistic of one's own; 0 is no difference.

    Args:
        difference: what ``ll.compare(profiles).difference(first, second)`` returned.
        scores: some of block_r2, block_r2_no_residual, ffn_r2, attn_r2 and statistics of one's own that both
            have. By default the first three and all statistics.

    Returns:
        Figure with one panel a score.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
        >>> profile = ll.linearity_profile(ll.toy_model(d_model=16), tokens)
        >>> found = ll.compare({"one": profile, "again": profile}).difference("one", "again")
        >>> [float(y) for y in ll.plots.profile_difference(found, scores=["attn_r2"]).data[1].y]
        [0.0, 0.0]
    """
    frame = difference.to_dataframe().reset_index()
    shown = drawn_columns("scores", _or_known(scores, frame, difference.statistics), frame)
    fig, places = panels(list(shown.values()))
    name, layers = f"{difference.first} minus {difference.second}", frame["layer"].tolist()
    for (score, words), at in zip(shown.items(), places, strict=True):
        add_line(
            fig, layers, frame[score], name, at=at, width=2, band=ends_of(frame, score),
            hover=f"layer %{{x}}<br>{words} %{{y:.4f}}",
        )  # fmt: skip
        panel: dict[str, Any] = {"row": at[0], "col": at[1]}
        fig.add_hline(0, line_dash="dot", line_width=1, **panel)
    layer_axis(fig, max(layers) + 1, room=4)
    return styled(
        fig, title="Difference of two linearity profiles", panels=True, x="layer",
        subtitle=f"{escape(difference.first)} minus {escape(difference.second)}; "
        f"n = {counted(difference.n_sequences, 'sequence', ',')}, paired; "
        f"{100 * difference.confidence:.4g} % bands",
        height=130 + 340 * places[-1][0],
    )  # fmt: skip


def _or_known(
    scores: Sequence[str] | None, frame: pd.DataFrame, own: Sequence[str]
) -> Sequence[str]:
    """Columns that were asked for, or what these profiles know of R² and one's own."""
    if scores is not None:
        return scores
    usual = ("block_r2", "block_r2_no_residual", "ffn_r2")
    return [name for name in usual if frame[name].notna().any()] + list(own) or ["attn_r2"]


def drawn_columns(name: str, asked: Sequence[str], frame: pd.DataFrame) -> dict[str, str]:
    """Columns to draw, each with its words: columns of numbers, one of them with a value to draw."""
    numbers = [str(column) for column in frame.select_dtypes("number").columns]
    found = [require_choice(name, one, numbers) for one in asked]
    if not found:
        raise InvalidArgumentError(
            f"{name} must name at least one column, got none; e.g. ['ffn_r2']"
        )
    if not np.isfinite(frame[found].to_numpy(dtype=float)).any():
        raise InvalidArgumentError(
            f"{name} must have a finite value in some row, but {', '.join(found)} has none; name "
            "columns that were measured (sites=), or mend the statistic"
        )
    return {one: COLUMN_NAMES.get(one, escape(one)) for one in found}


@figure
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
        "anisotropy": "anisotropy",
        "intrinsic_dimension": "intrinsic dimension (TwoNN)",
        "effective_rank": "effective rank",
    }
    fig, places = panels(list(names.values()))
    for index, ((column, name), at) in enumerate(zip(names.items(), places, strict=True)):
        hover = "boundary %{x}: %{y:.3f}"
        add_line(
            fig,
            frame["boundary"],
            frame[column],
            name,
            index=index,
            at=at,
            dash="solid",
            hover=hover,
        )
    fig.update_yaxes(rangemode="tozero")
    return styled(
        layer_axis(fig, len(frame), room=6), legend="none", height=430, panels=True, x="layer boundary",
        title=f"Shape of the residual stream: {escape(geometry.model_name)}",
        subtitle=f"n = {geometry.n_rows:,} states at each boundary (0 is the embedding); anisotropy is the "
        f"share of variance on the first direction{escape(geometry.first_position)}",
    )  # fmt: skip


@figure
def bilinear_gain(probes: BilinearProbe | Mapping[str, BilinearProbe]) -> go.Figure:
    """Held-out gain of R² over the affine fit against the number of products, one line per probe.

    The x axis is the rank of the bilinear term, the y axis a difference of two R². 0 (the grey line) is no
    better than the affine fit. Bands are bootstrap intervals over test sequences; the dotted line of the
    same colour is the gain on the training half, so the distance between the two is what overfitting adds.

    Args:
        probes: one probe of ``ll.bilinear_probe``, or several by name.

    Returns:
        Figure with two lines a probe, held out and training.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> from lens_linear.linearity.measure.bilinear import bilinear_on_rows
        >>> x, new = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0)).double()
        >>> probe = bilinear_on_rows(x, x[:, :1] * x[:, 1:2], new, new[:, :1] * new[:, 1:2], rank=1)
        >>> figure = ll.plots.bilinear_gain({"a product": probe})
        >>> [line.name for line in figure.data], bool(figure.data[0].y[1] > 0.9)
        (['a product, held out', 'a product, training', 'affine fit alone'], True)
    """
    named = {probes.where: probes} if isinstance(probes, BilinearProbe) else probes
    fig, many = go.Figure(), len(named) > 4  # then the bands would hide each other
    for index, (name, probe) in enumerate(named.items()):
        frame = probe.to_dataframe()
        band = None if many else (frame["gain_low"], frame["gain_high"])
        told = in_legend(index, len(named))
        for column, dash, what in (
            ("gain", "solid", "held out"),
            ("train_gain", "dot", "training"),
        ):
            add_line(
                fig, frame["rank"], frame[column], f"{name[:22]}, {what}", index=index, dash=dash,
                band=band if column == "gain" else None, hover="%{x} products: %{y:+.4f}",
                ink=inks(len(named))[index], width=1.5 if many and column != "gain" else 2.5,
                legend=told and (column == "gain" or not many),
            )  # fmt: skip
    first = next(iter(named.values()))
    most = max(float(probe.to_dataframe()["rank"].max()) for probe in named.values())
    add_level(fig, 0.0, "affine fit alone", x=[0, most])
    return styled(
        layer_axis(fig, int(most) + 1), title="What a few products add to the affine fit",
        y="gain of R² over the affine fit",
        subtitle=f"n = {counted(first.n_tokens, 'held-out row', ',')}, fitted on {first.n_fit:,}; "
        + ("dotted: on the training half" if many else "bands: 95 % intervals over sequences")
        + escape(first.first_position), x="products (rank of the bilinear term)", height=500,
    )  # fmt: skip


@figure
def replacement_curves(
    curves: ReplacementCurve | Mapping[str, ReplacementCurve], *, perplexity: bool = False
) -> go.Figure:
    """Held-out loss (or perplexity) against the number of blocks replaced, one line per curve.

    The x axis counts blocks, the y axis is nats per token. The dotted line is the whole model, where every
    curve begins; a uniform guess costs the logarithm of the vocabulary's size. Error bars are standard
    errors over test sequences of the difference to the whole model.

    Args:
        curves: one curve of ``ll.replacement_curve``, or several by name.
        perplexity: show the exponential of the loss on a logarithmic axis, without error bars.

    Returns:
        Figure with one line a curve, and the whole model's.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
        >>> curve = ll.replacement_curve(ll.toy_model(d_model=16), tokens, "remove")
        >>> figure = ll.plots.replacement_curves(curve)
        >>> [line.name for line in figure.data], len(figure.data[0].x)
        (['remove', 'whole model'], 3)
    """
    named = {curves.strategy: curves} if isinstance(curves, ReplacementCurve) else curves
    first, fig = next(iter(named.values())), go.Figure()
    value = "perplexity" if perplexity else "loss" if first.metric == "loss" else "metric_value"
    y = {"perplexity": "perplexity", "loss": "loss (nats per token)"}.get(value, first.metric)
    for index, (name, curve) in enumerate(named.items()):
        frame = curve.to_dataframe()
        order = [", ".join(map(str, layers)) or "none" for layers in frame["layers"]]
        se = frame["loss_increase_se"].fillna(0)
        ends = None if value != "loss" else (frame["loss"] - se, frame["loss"] + se)
        add_line(
            fig, frame["n_replaced"], frame[value], name, index=index, bars=ends, custom=order,
            of=len(named),
            hover="%{x} blocks replaced: %{y:.4g}<br>layers %{customdata}",
        )  # fmt: skip
    most = max(len(curve.steps) for curve in named.values()) - 1
    add_level(fig, float(first.to_dataframe()[value].iloc[0]), "whole model", x=[0, most])
    if perplexity:
        fig.update_yaxes(**log_axis(heights(fig)))
    return styled(
        layer_axis(fig, most + 1), title=f"Replacing blocks: {escape(first.model_name)}",
        subtitle=f"n = {counted(first.n_tokens, 'held-out token', ',')}, maps fitted on {first.n_fit:,}",
        x="blocks replaced", y=escape(y),
    )  # fmt: skip


@figure
def run_table(table: RunTable, *, method: Literal["linear", "remove"] = "linear") -> go.Figure:
    """Heatmap of the loss increase when blocks first (row) to last (column) become one map.

    Cells are nats per token above the whole model's loss: 0 is a run that is replaced for free. The
    diagonal is one block alone; below it nothing is drawn. Hold "linear" against "remove", which leaves the
    blocks out: only what the map saves over it is owed to the map.

    Args:
        table: what ``linearity.run_table`` returned.
        method: "linear" or "remove".

    Returns:
        Figure with one heatmap; up to 200 cells the numbers are written in.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
        >>> table = ll.linearity.run_table(ll.toy_model(d_model=16), tokens)
        >>> figure = ll.plots.run_table(table, method="remove")
        >>> figure.layout.xaxis.title.text, figure.data[0].z.shape
        ('last block of the run', (2, 2))
    """
    frame = table.to_dataframe()
    grid = frame[frame["method"] == method].pivot(
        index="first", columns="last", values="loss_increase"
    )
    fig = matrix(
        grid.to_numpy(), rows=list(grid.index), columns=list(grid.columns), row_name="first block",
        value_name="loss increase (nats)", column_name="last block", diverging=False, square=True,
        numbers=True,
    )  # fmt: skip
    what = "one affine map" if method == "linear" else "nothing"
    return styled(
        fig, title=f"Runs of blocks replaced by {what}: {escape(table.model_name)}",
        subtitle=f"loss {table.base_loss:.3f} nats per token whole; n = "
        f"{counted(table.n_tokens, 'held-out token', ',')}",
        x="last block of the run", y="first block of the run", height=220 + min(520, 60 + 34 * len(grid)),
    )  # fmt: skip


_COMPRESSED = ["rank", "ffn_r2", "perplexity_increase"]
_COMPRESSED_HOVER = (
    "rank %{customdata[0]}<br>loss %{y:+.4f} nats, perplexity %{customdata[2]:+.3f}"
    "<br>held-out R² %{customdata[1]:.3f}"
)


@figure
def ffn_compression(table: CompressionTable) -> go.Figure:
    """Loss increase of each single-FFN replacement against how many times fewer parameters it has.

    The x axis is logarithmic: the FFN's parameters over the map's, low ranks to the right. The y axis is
    nats per token above the whole model; 0 (the dotted line) is a replacement that costs nothing. Bars are
    standard errors over test sequences. The hover names rank, perplexity and held-out R².

    Args:
        table: what ``linearity.ffn_compression`` returned.

    Returns:
        Figure with one line a layer; where every map has one size, one line over layers.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
        >>> model = ll.toy_model(d_model=16, attn_only=False)
        >>> figure = ll.plots.ffn_compression(ll.linearity.ffn_compression(model, tokens, ranks=(None, 2)))
        >>> [line.name for line in figure.data]
        ['layer 0', 'layer 1', 'whole model']
    """
    frame, fig = table.to_dataframe(), go.Figure()
    layers = list(dict.fromkeys(frame["layer"]))
    alone = frame["times_fewer"].nunique() == 1 and len(layers) > 1
    if alone:  # one map a layer: they stand side by side
        parts, x, hover = {"one FFN replaced": frame}, "layer", "layer %{x}, "
        said = f"{frame['times_fewer'].iloc[0]:.1f} times fewer parameters"
        layer_axis(fig, max(layers) + 1)
    else:
        parts = {
            f"layer {layer}": frame[frame["layer"] == layer].sort_values("map_parameters")
            for layer in layers
        }
        x, hover = "times_fewer", "%{x:.1f} times fewer parameters<br>"
        said = "low rank to the right"
        fig.update_xaxes(**log_axis(frame[x]))
    for index, (name, part) in enumerate(parts.items()):
        y, se = part["loss_increase"], part["loss_increase_se"].fillna(0)
        add_line(
            fig, part[x], y, name, index=index, ink=inks(len(parts))[index], width=2.5 if alone else 1.5,
            bars=(y - se, y + se), legend=in_legend(index, len(parts)), custom=part[_COMPRESSED],
            hover=hover + _COMPRESSED_HOVER,
        )  # fmt: skip
    ends = [float(frame[x].min()), float(frame[x].max())]
    add_level(fig, 0.0, "whole model", x=layers if alone else ends)
    return styled(
        fig, title=f"One FFN as one affine layer: {escape(table.model_name)}",
        subtitle=f"loss {table.base_loss:.3f} nats per token whole; n = "
        f"{counted(table.n_tokens, 'held-out token', ',')}; {said}{escape(table.first_position)}",
        x="layer" if alone else "times fewer parameters than the FFN", y="loss increase (nats per token)",
    )  # fmt: skip
