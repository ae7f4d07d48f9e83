"""Figures of depth dynamics: directions, gain profiles, step size.

Each function takes results of :mod:`lens_linear.dynamics` and returns a figure; nothing is computed here.
More figures of the room: :mod:`~lens_linear.plots.dynamics_agreement` (surrogates),
:mod:`~lens_linear.plots.dynamics_steering` (schedules and steered text).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from lens_linear.dynamics.gains.directions import ConceptDirections
from lens_linear.dynamics.gains.gain_profile import GainProfile
from lens_linear.dynamics.gains.step_size import StepSizeTable
from lens_linear.dynamics.surrogates.surrogate import Surrogate
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots._marks import LOG
from lens_linear.plots.style import DASHES, GREY, colour, escape, faded, styled


def concept_separation(
    directions: Mapping[str, ConceptDirections] | ConceptDirections,
) -> go.Figure:
    """How well each layer's direction tells held-out texts apart, one line a set of directions.

    The x axis is the layer boundary (0 is the embedding), the y axis the AUC: the chance that a text of
    class 1 projects higher than one of class 0. The dotted line at 0.5 is chance; 1 is perfect. The hover
    gives d′ too.

    Args:
        directions: what ``ll.concept_directions`` returned, or several by name.

    Returns:
        Figure with one line a set of directions and the line of chance.

    Raises:
        InvalidArgumentError: no directions.

    Example:
        >>> import lens_linear as ll
        >>> split = ll.load_concept("mood").split(20, 10, 10, seed=0)
        >>> found = ll.concept_directions(ll.load("gpt-nano"), split.concept)
        >>> figure = ll.plots.concept_separation(found)
        >>> [line.name for line in figure.data], len(figure.data[0].x)
        (['mood, mean-difference', 'chance'], 5)
    """
    if isinstance(directions, ConceptDirections):
        directions = {f"{directions.concept}, {directions.method}": directions}
    if not directions:
        raise InvalidArgumentError("directions must hold at least one set; pass {name: directions}")
    figure = go.Figure()
    longest = max(len(found) for found in directions.values())
    for index, (name, found) in enumerate(directions.items()):
        figure.add_trace(
            go.Scatter(
                x=list(range(len(found))),
                y=found.auc.tolist(),
                customdata=found.d_prime.tolist(),
                mode="lines+markers",
                name=escape(name),
                line={"color": colour(index), "dash": DASHES[index % len(DASHES)]},
                marker={"size": 8, "symbol": index},
                hovertemplate="boundary %{x}<br>AUC %{y:.3f}<br>d′ %{customdata:.2f}<extra></extra>",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=[0, longest - 1],
            y=[0.5, 0.5],
            mode="lines",
            name="chance",
            line={"color": GREY, "dash": "dot"},
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(dtick=1 if longest <= 24 else None)
    n_texts = sorted({found.n_texts for found in directions.values()})
    return styled(
        figure,
        title="Where the concept can be read",
        subtitle="AUC of five held-out folds, n = " + ", ".join(map(str, n_texts)) + " texts",
        x="layer boundary (0 is the embedding)",
        y="AUC of the projection",
    )


def gain_profiles(
    profiles: Mapping[str, GainProfile | Surrogate] | GainProfile | Surrogate,
    *,
    bands: bool = True,
) -> go.Figure:
    """Mean gain of every layer over prompts, with the spread from the 5th to the 95th percentile.

    The x axis is the layer of the push, the y axis the change of the readout for each unit added there. 0
    (the grey line) is a layer whose push does not reach the readout; directions drawn at random scatter
    about it.

    Args:
        profiles: gain profiles or surrogates by name; or one of them.
        bands: draw the spread over prompts: a band, or bars where there are several profiles.

    Returns:
        Figure with one line a profile.

    Raises:
        InvalidArgumentError: no profiles.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> model = ll.toy_model(n_layers=3)
        >>> prompts = [torch.arange(5), torch.arange(9)]
        >>> exact = ll.gain_profile(model, prompts, ll.dynamics.random_directions(model))
        >>> figure = ll.plots.gain_profiles({"random": exact})
        >>> figure.layout.yaxis.title.text, len(figure.data[-1].x)
        ('gain (readout per unit added)', 3)
    """
    if isinstance(profiles, (GainProfile, Surrogate)):
        profiles = {"gains": profiles}
    if not profiles:
        raise InvalidArgumentError("profiles must hold at least one profile; pass {name: profile}")
    figure = go.Figure()
    counts = []
    for index, (name, given) in enumerate(profiles.items()):
        profile = given.profile if isinstance(given, Surrogate) else given
        frame = profile.to_dataframe()
        counts.append(len(profile.gains))
        layers = list(frame.index)
        # Bands of several profiles hide each other: bars, side by side.
        several = len(profiles) > 1
        shift = 0.07 * (index - (len(profiles) - 1) / 2)
        if bands and not several and len(profile.gains) > 1:
            figure.add_trace(_spread_band(frame, colour(index)))
        figure.add_trace(
            go.Scatter(
                x=[layer + shift for layer in layers],
                y=frame["mean"].tolist(),
                error_y=_spread_bars(frame) if bands and several else None,
                customdata=frame["sd"].tolist(),
                text=layers,
                mode="lines+markers",
                name=escape(name),
                line={"color": colour(index), "dash": DASHES[index % len(DASHES)], "width": 2.5},
                marker={"size": 8, "symbol": index},
                hovertemplate="layer %{text}<br>gain %{y:.4g} ± %{customdata:.3g} (sd)<extra></extra>",
            )
        )
    figure.add_hline(y=0, line={"color": GREY, "width": 1})
    figure.update_xaxes(dtick=1 if len(layers) <= 24 else None)
    spread = "; 5th to 95th percentile over prompts" if bands else ""
    return styled(
        figure,
        title="How far the readout moves for a push at each layer",
        subtitle=f"n = {', '.join(map(str, sorted(set(counts))))} prompts{spread}",
        x="layer of the push",
        y="gain (readout per unit added)",
    )


def _spread_band(frame: pd.DataFrame, ink: str) -> go.Scatter:
    """The 5th to the 95th percentile over prompts as an area."""
    layers = list(frame.index)
    return go.Scatter(
        x=[*layers, *reversed(layers)],
        y=[*frame["q95"], *reversed(frame["q05"].tolist())],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=faded(ink, 0.13),
        showlegend=False,
        hoverinfo="skip",
    )


def _spread_bars(frame: pd.DataFrame) -> dict[str, Any]:
    """The same as error bars."""
    return {
        "array": (frame["q95"] - frame["mean"]).tolist(),
        "arrayminus": (frame["mean"] - frame["q05"]).tolist(),
        "symmetric": False,
        "thickness": 1.5,
        "width": 3,
    }


def step_size(table: StepSizeTable) -> go.Figure:
    """Relative error of central differences against the exact gains, over the step.

    Both axes are logarithmic: the step in units added, and the relative error, 0 for exact gains and 1 for
    predicting 0. From right to left the error falls with the square of the step, until rounding takes over
    and it rises again: the lowest point is the step to use.

    Args:
        table: what ``ll.dynamics.step_size_table`` returned.

    Returns:
        Figure with one line.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> model = ll.toy_model(d_model=16)
        >>> directions = ll.dynamics.random_directions(model)
        >>> table = ll.dynamics.step_size_table(model, [torch.arange(5)], directions, steps=(0.1, 0.01))
        >>> list(ll.plots.step_size(table).data[0].x)
        [0.01, 0.1]
    """
    frame = table.to_dataframe().sort_values("eps")
    figure = go.Figure(
        go.Scatter(
            x=frame["eps"].tolist(),
            y=frame["relative_error"].tolist(),
            customdata=frame["spearman"].tolist(),
            mode="lines+markers",
            line={"color": colour(0), "width": 2.5},
            hovertemplate="eps %{x:g}<br>error %{y:.2e}<br>Spearman %{customdata:.4f}<extra></extra>",
        )
    )
    figure.update_xaxes(**LOG, dtick=1)
    figure.update_yaxes(**LOG, dtick=1)
    return styled(
        figure,
        title="Central differences against exact derivatives",
        subtitle=f"n = {len(table.adjoint.gains)} prompts; large steps meet curvature, small ones rounding",
        x="step eps (units added)",
        y="relative error of the gains",
        legend="none",
    )
