"""Marks that several rooms' figures share. Each takes a summary table with the columns it names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lens_linear.plots.style import GREY, faded

FLOOR = 1e-16  # relative errors below float64's resolution are drawn here on a log axis
# A logarithmic axis; plotly sets powers in a larger type than other labels.
LOG: dict[str, Any] = {"type": "log", "exponentformat": "power", "tickfont": {"size": 12}}


def band(frame: pd.DataFrame, x: str, name: str, ink: str, *, floor: float = FLOOR) -> go.Scatter:
    """The area between the columns ``low`` and ``high``, for a log axis that ends at ``floor``."""
    low, high = frame["low"].clip(lower=floor), frame["high"].clip(lower=floor)
    return go.Scatter(
        x=np.concatenate([frame[x], frame[x][::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor=faded(ink, 0.2),
        line={"width": 0},
        name=name,
        hoverinfo="skip",
    )


def quartiles(frame: pd.DataFrame, x: str, name: str, ink: str, dash: str) -> go.Scatter:
    """A line through ``median`` with bars from ``low`` to ``high``, for a log axis."""
    middle = frame["median"].clip(lower=FLOOR)
    return go.Scatter(
        x=frame[x],
        y=middle,
        error_y={
            "array": frame["high"].clip(lower=FLOOR) - middle,
            "arrayminus": middle - frame["low"].clip(lower=FLOOR),
            "symmetric": False,
            "thickness": 1,
            "width": 3,
        },
        mode="lines+markers",
        line={"color": ink, "dash": dash},
        name=name,
        hovertemplate="%{x:.4g}<br>%{y:.3g}<extra>" + name + "</extra>",
    )


def mean_sd(
    frame: pd.DataFrame, x: str, y: str, name: str, ink: str, *, dash: str = "solid"
) -> go.Scatter:
    """A line through column ``y`` with bars of one standard deviation, column ``y_sd``."""
    return go.Scatter(
        x=frame[x],
        y=frame[y],
        error_y={"array": frame[f"{y}_sd"], "thickness": 1, "width": 3},
        mode="lines+markers",
        line={"color": ink, "dash": dash},
        name=name,
        hovertemplate="%{x:.4g}<br>%{y:.3g}<extra>" + name + "</extra>",
    )


def level(figure: go.Figure, value: float, text: str, *, log: bool = False) -> go.Figure:
    """A dotted horizontal line with its name at the right end; ``log`` on a log axis."""
    figure.add_hline(y=value, line={"color": GREY, "dash": "dot", "width": 1.5})
    return figure.add_annotation(
        text=text,
        x=1,
        xref="x domain",
        xanchor="right",
        y=math.log10(value) if log else value,  # annotations take the exponent on a log axis
        yanchor="bottom",
        showarrow=False,
        font={"color": "#555555"},
    )
