"""Figures of associative memories: capacity, retrieval, heads as memories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lens_linear.checks import counted
from lens_linear.constructions.memory.capacity import MemoryCapacity
from lens_linear.constructions.memory.head_memory import HeadMemory
from lens_linear.constructions.memory.retrieval import RetrievalCurve
from lens_linear.plots._kinds import add_level, add_line, figure, log_axis, panels
from lens_linear.plots.style import GREY, colour, styled

_ENERGIES = {"quadratic": 0, "polynomial-3": 2, "polynomial-4": 3, "exponential": 1}


def _mean(fig: go.Figure, part: pd.DataFrame, y: str, name: str, **look: Any) -> go.Figure:
    """A line of means against the patterns stored, with bars of one standard deviation."""
    sd = part[f"{y}_sd"].fillna(0)
    bars = (part[y] - sd, part[y] + sd)
    return add_line(
        fig, part["n_patterns"], part[y], name, bars=bars, hover="%{x:.4g}: %{y:.3g}", **look
    )


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
    fig.update_yaxes(title_text="stored patterns", col=1)
    fig.update_yaxes(**log_axis([*frame["capacity"], *frame["expected"]]))
    return styled(
        fig, title="Memory capacity, from linear to exponential", panels=True, height=600,
        subtitle=f"patterns held at {100 * result.max_bit_error:g} % wrong bits after one update, "
        f"noise {result.noise:g}; {counted(result.seeds, 'seed')} (±\u00a0sd); dashed: theory at this d",
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
    se = f" ± {slope['se']:.2f}" if np.isfinite(slope["se"]) else ""
    label = f"{name}: slope {slope['slope']:.2f}{se} (theory {theory})"
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
    fig.update_yaxes(range=[-4, 0], **log_axis([1e-4, 1])).update_xaxes(
        **log_axis(frame["n_patterns"])
    )
    return styled(
        fig, title="Wrong bits against stored patterns", x="stored patterns", y="fraction of wrong bits",
        subtitle=f"one update, noise {result.noise:g}, {counted(result.queries, 'query')} × "
        f"{counted(result.seeds, 'seed')} (±\u00a0sd); none wrong leaves the axis",
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
    fig.update_yaxes(title_text=words[quantity], col=1).update_xaxes(**log_axis(curve.n_patterns))
    return styled(
        fig, title="Retrieval from a Hopfield memory", x="stored patterns", panels=True,
        subtitle=f"d = {curve.d} bits, {counted(curve.steps, 'update')}, {counted(curve.queries, 'query')} × "
        f"{counted(curve.overlap.shape[-1], 'seed')} (±\u00a0sd)", height=160 + 330 * places[-1][0],
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
        subtitle=f"{counted(result.n_keys, 'key')} of d = {result.d}, {whose}, β = {result.beta:.3g}; signal "
        f"{head['signal']:.1f} nats, spread {head['spread']:.1f}", y="recall: target holds over half",
    )  # fmt: skip
