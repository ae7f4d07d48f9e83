"""Figures of what replacement costs: curves over blocks, runs of blocks, FFN compression."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from lens_linear.checks import require_choice, require_instance
from lens_linear.errors import InvalidArgumentError
from lens_linear.linearity.replace.compression import CompressionTable
from lens_linear.linearity.replace.curve import ReplacementCurve
from lens_linear.linearity.replace.runs import RunTable
from lens_linear.plots.style import DASHES, GREY, colour, escape, matrix, styled


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

    Raises:
        InvalidArgumentError: no curves, or something that is neither a curve nor {name: curve}.

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
    require_instance("curves", named, Mapping, advice="pass one curve, or {name: curve}")
    if not named:
        raise InvalidArgumentError("curves must hold at least one ReplacementCurve")
    figure = go.Figure()
    for index, (name, curve) in enumerate(named.items()):
        frame = curve.to_dataframe()
        order = [", ".join(map(str, layers)) or "none" for layers in frame["layers"]]
        figure.add_trace(
            go.Scatter(
                x=frame["n_replaced"],
                y=frame["perplexity" if perplexity else "loss"],
                error_y=None
                if perplexity
                else {"type": "data", "array": frame["loss_increase_se"], "thickness": 1},
                mode="lines+markers",
                name=escape(name),
                line={"color": colour(index), "dash": DASHES[index % len(DASHES)], "width": 2.5},
                marker={"size": 7, "symbol": index % 8},
                customdata=order,
                hovertemplate=(
                    f"{escape(name)}<br>%{{x}} blocks replaced: %{{y:.4g}}<br>"
                    "layers %{customdata}<extra></extra>"
                ),
            )
        )
    first = next(iter(named.values()))
    whole = float(first.to_dataframe()["perplexity" if perplexity else "loss"].iloc[0])
    most = max(len(curve.steps) for curve in named.values()) - 1
    figure.add_trace(
        go.Scatter(
            x=[0, most],
            y=[whole, whole],
            mode="lines",
            name="whole model",
            line={"color": GREY, "dash": "dot", "width": 1.5},
            hovertemplate="whole model: %{y:.4g}<extra></extra>",
        )
    )
    if perplexity:
        figure.update_yaxes(type="log")
    figure.update_xaxes(dtick=1)
    return styled(
        figure,
        title=f"Replacing blocks: {escape(first.model_name)}",
        subtitle=f"n = {first.n_tokens:,} held-out tokens, maps fitted on {first.n_fit:,}",
        x="blocks replaced",
        y="perplexity" if perplexity else "loss (nats per token)",
    )


def run_table(table: RunTable, *, method: str = "linear") -> go.Figure:
    """Heatmap of the loss increase when blocks first (row) to last (column) become one map.

    Cells are nats per token above the whole model's loss: 0 is a run that is replaced for free. The
    diagonal is one block alone; below it nothing is drawn. Hold "linear" against "remove", which leaves the
    blocks out: only what the map saves over it is owed to the map.

    Args:
        table: what ``linearity.run_table`` returned.
        method: "linear" or "remove".

    Returns:
        Figure with one heatmap; up to 200 cells the numbers are written in.

    Raises:
        InvalidArgumentError: an unknown method.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
        >>> table = ll.linearity.run_table(ll.toy_model(d_model=16), tokens)
        >>> figure = ll.plots.run_table(table, method="remove")
        >>> figure.layout.xaxis.title.text, figure.data[0].z.shape
        ('last block of the run', (2, 2))
    """
    require_choice("method", method, ("linear", "remove"))
    frame = table.to_dataframe()
    frame = frame[frame["method"] == method]
    grid = frame.pivot(index="first", columns="last", values="loss_increase")
    figure = matrix(
        grid.to_numpy(),
        rows=list(grid.index),
        columns=list(grid.columns),
        value_name="loss increase (nats)",
        row_name="first block",
        column_name="last block",
        diverging=False,
    )
    if grid.size <= 200:
        figure.update_traces(texttemplate="%{z:.2f}", textfont={"size": 11})
    what = "one affine map" if method == "linear" else "nothing"
    return styled(
        figure,
        title=f"Runs of blocks replaced by {what}: {escape(table.model_name)}",
        subtitle=f"loss {table.base_loss:.3f} nats per token whole; n = {table.n_tokens:,} held-out tokens",
        x="last block of the run",
        y="first block of the run",
        width=640,
    )


def ffn_compression(table: CompressionTable) -> go.Figure:
    """Loss increase of each single-FFN replacement against how many times fewer parameters it has.

    The x axis is logarithmic: the FFN's parameters over the map's, low ranks to the right. The y axis is
    nats per token above the whole model; 0 (the dotted line) is a replacement that costs nothing. Bars are
    standard errors over test sequences. The hover names rank, perplexity and held-out R².

    Args:
        table: what ``linearity.ffn_compression`` returned.

    Returns:
        Figure with one line a layer.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
        >>> model = ll.toy_model(d_model=16, attn_only=False)
        >>> figure = ll.plots.ffn_compression(ll.linearity.ffn_compression(model, tokens, ranks=(None, 2)))
        >>> [line.name for line in figure.data]
        ['layer 0', 'layer 1']
    """
    frame = table.to_dataframe()
    figure = go.Figure()
    for index, (layer, part) in enumerate(frame.groupby("layer")):
        part = part.sort_values("map_parameters")
        figure.add_trace(
            go.Scatter(
                x=part["times_fewer"],
                y=part["loss_increase"],
                error_y={"type": "data", "array": part["loss_increase_se"], "thickness": 1},
                mode="lines+markers",
                name=f"layer {layer}",
                line={"color": colour(index), "width": 1.5, "dash": DASHES[index // 8 % 5]},
                marker={"size": 8, "symbol": index % 8},
                customdata=part[["rank", "ffn_r2", "perplexity_increase"]].to_numpy(),
                hovertemplate=(
                    f"layer {layer}, rank %{{customdata[0]}}<br>%{{x:.1f}} times fewer parameters<br>"
                    "loss %{y:+.4f} nats, perplexity %{customdata[2]:+.3f}<br>"
                    "held-out R² %{customdata[1]:.3f}<extra></extra>"
                ),
            )
        )
    figure.add_hline(y=0, line={"color": GREY, "dash": "dot"})
    figure.update_xaxes(type="log")
    return styled(
        figure,
        title=f"One FFN as one affine layer: {escape(table.model_name)}",
        subtitle=(
            f"loss {table.base_loss:.3f} nats per token whole; n = {table.n_tokens:,} held-out tokens; "
            "low rank to the right"
        ),
        x="times fewer parameters than the FFN",
        y="loss increase (nats per token)",
    )
