"""Figures of associative memories: capacity, wrong bits, retrieval, and heads as memories."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_linear.constructions.memory.capacity import MemoryCapacity
from lens_linear.constructions.memory.head_memory import HeadMemory
from lens_linear.constructions.memory.retrieval import RetrievalCurve
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots._marks import LOG, level, mean_sd
from lens_linear.plots.style import DASHES, GREY, colour, styled

_ENERGY_COLOURS = {"quadratic": 0, "polynomial-3": 2, "polynomial-4": 3, "exponential": 1}


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
        >>> figure.data[0].name, figure.layout.annotations[0].text
        ('quadratic, d = 128', 'criterion 0.36 %')
    """
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
    """Retrieval against the number of stored patterns, one panel an energy, one line a noise.

    The x axis is logarithmic. "recall" is the fraction of queries that come back bit for bit, 0 to 1;
    "overlap" the mean agreement with the target, 1 when retrieved and near 0 for an unrelated state.

    Args:
        curve: from :func:`~lens_linear.constructions.memory.retrieval.retrieval_curve`.
        quantity: "recall" or "overlap".

    Returns:
        Figure with one panel an energy: means, with one standard deviation over seeds as bars.

    Raises:
        InvalidArgumentError: an unknown quantity.

    Example:
        >>> import lens_linear as ll
        >>> knobs = {"d": 32, "n_patterns": (2, 8), "noise": (0.0, 0.2), "seeds": 2}
        >>> curve = ll.constructions.retrieval_curve(energies="quadratic", **knobs)
        >>> [line.name for line in ll.plots.retrieval(curve).data]
        ['0 % of bits flipped', '20 % of bits flipped']
    """
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
