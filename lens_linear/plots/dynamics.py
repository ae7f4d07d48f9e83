"""Figures of depth dynamics: directions, gain profiles, agreement of surrogates, step size.

Each function takes results of :mod:`lens_linear.dynamics` and returns a figure; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_linear._checks import require_choice
from lens_linear.dynamics.directions import ConceptDirections
from lens_linear.dynamics.gains import GainProfile
from lens_linear.dynamics.scaling import AgreementTable
from lens_linear.dynamics.step_size import StepSizeTable
from lens_linear.dynamics.surrogates import Surrogate
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots._marks import LOG
from lens_linear.plots.style import DASHES, GREY, colour, escape, faded, styled

_BASIS_INK = {
    basis: colour(index)
    for index, basis in enumerate(("krylov", "balanced", "pca", "random", "krylov-stationary"))
}
_READINGS: Mapping[str, str] = {
    "prompt": "each prompt's own Jacobian",
    "mean": "one mean Jacobian",
    "state": "gains read off each prompt's state",
}
_SCORES: Mapping[str, str] = {
    "spearman": "Spearman over layers, mean of prompts",
    "mean_spearman": "Spearman of the mean profiles",
    "pearson": "Pearson over layers, mean of prompts",
    "relative_error": "relative error",
}


def concept_separation(
    directions: Mapping[str, ConceptDirections] | ConceptDirections,
) -> go.Figure:
    """How well each layer's direction tells held-out texts apart, one line a set of directions.

    Args:
        directions: what ``ll.concept_directions`` returned, or several by name.
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
    """Mean gain of every layer, with the 5th to the 95th percentile over prompts (a band, or bars of
    several).

    Args:
        profiles: gain profiles or surrogates by name; or one of them.
        bands: draw the spread over prompts.
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
        bars = {
            "array": (frame["q95"] - frame["mean"]).tolist(),
            "arrayminus": (frame["mean"] - frame["q05"]).tolist(),
            "symmetric": False,
            "thickness": 1.5,
            "width": 3,
        }
        if bands and not several and len(profile.gains) > 1:
            figure.add_trace(
                go.Scatter(
                    x=[*layers, *reversed(layers)],
                    y=[*frame["q95"], *reversed(frame["q05"].tolist())],
                    mode="lines",
                    line={"width": 0},
                    fill="toself",
                    fillcolor=faded(colour(index), 0.13),
                    showlegend=False,
                    hoverinfo="skip",
                )
            )
        figure.add_trace(
            go.Scatter(
                x=[layer + shift for layer in layers],
                y=frame["mean"].tolist(),
                error_y=bars if bands and several else None,
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


def agreement_by_order(
    table: AgreementTable, *, score: str = "spearman", jacobian: str = "prompt"
) -> go.Figure:
    """Agreement against order, one panel a model and one line a basis, with the ceiling of any one profile.

    Args:
        table: what ``ll.dynamics.agreement_table`` returned.
        score: "spearman", "mean_spearman", "pearson" or "relative_error".
        jacobian: "prompt", "mean" or "state".
    """
    frame = _chosen(table, score, jacobian)
    models = list(dict.fromkeys(frame["model"]))
    titles = [escape(_short(model)) for model in models]
    figure = make_subplots(rows=1, cols=len(models), subplot_titles=titles, shared_yaxes=True)
    for column, model in enumerate(models, start=1):
        part = frame[frame["model"] == model]
        for basis in dict.fromkeys(part["basis"]):
            line = part[part["basis"] == basis].sort_values("order")
            figure.add_trace(
                go.Scatter(
                    x=line["order"].tolist(),
                    y=line[score].tolist(),
                    mode="lines+markers",
                    name=basis,
                    legendgroup=basis,
                    showlegend=column == 1,
                    line={"color": _BASIS_INK[basis], "width": 2.5},
                    hovertemplate=f"{basis}, order %{{x}}<br>%{{y:.4f}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
        if score == "spearman":
            _reference_lines(figure, part, column)
    figure.update_xaxes(type="log", tickvals=sorted(set(frame["order"])))
    if score == "relative_error":
        figure.update_yaxes(rangemode="tozero")
    which = _READINGS[jacobian]
    height, width = 480, max(640, 320 * len(models) + 200)
    styled(
        figure,
        title=f"Agreement of surrogates with the full model, {which}",
        subtitle=f"n = {table.n_evaluation} evaluation prompts, identified on {table.n_operating}",
        x="order (reduced coordinates)",
        height=height,
        width=width,
    )
    figure.update_yaxes(title_text=_SCORES[score], row=1, col=1)
    return figure.update_layout(margin={"t": 110})


def agreement_by_size(
    table: AgreementTable, *, order: int = 32, score: str = "spearman", jacobian: str = "prompt"
) -> go.Figure:
    """Agreement at one order against model size (layers × width), one line a basis.

    Args:
        table: agreement of several models.
        order: of the surrogates.
        score: see :func:`agreement_by_order`.
        jacobian: "prompt", "mean" or "state".
    """
    frame = _chosen(table, score, jacobian)
    frame = frame[frame["order"] == order]
    if frame.empty:
        raise InvalidArgumentError(
            f"order must be one of the table's {sorted(set(table['order']))}, got {order}"
        )
    frame = frame.assign(size=frame["n_layers"] * frame["d_model"]).sort_values("size")
    sizes = frame.drop_duplicates("model")
    figure = go.Figure()
    for basis in dict.fromkeys(frame["basis"]):
        line = frame[frame["basis"] == basis]
        figure.add_trace(
            go.Scatter(
                x=line["size"].tolist(),
                y=line[score].tolist(),
                text=[escape(_short(model)) for model in line["model"]],
                mode="lines+markers",
                name=basis,
                line={"color": _BASIS_INK[basis], "width": 2.5},
                marker={"size": 9},
                hovertemplate=f"%{{text}}<br>{basis}: %{{y:.4f}}<extra></extra>",
            )
        )
    if score == "spearman":
        figure.add_trace(
            go.Scatter(
                x=sizes["size"].tolist(),
                y=sizes["ceiling"].tolist(),
                mode="lines+markers",
                name="ceiling of one profile",
                line={"color": GREY, "dash": "dash"},
                hovertemplate="ceiling %{y:.4f}<extra></extra>",
            )
        )
    names = [f"{escape(_short(m))}<br>{n} × {d}" for m, n, d in _shapes(sizes)]
    figure.update_xaxes(type="log", tickvals=sizes["size"].tolist(), ticktext=names)
    which = _READINGS[jacobian]
    return styled(
        figure,
        title=f"Order-{order} surrogates against model size, {which}",
        subtitle=f"n = {table.n_evaluation} evaluation prompts; sizes are layers × width",
        x="model",
        y=_SCORES[score],
    )


def step_size(table: StepSizeTable) -> go.Figure:
    """Relative error of central differences against the exact gains, over the step.

    Args:
        table: what ``ll.dynamics.step_size_table`` returned.
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


def _chosen(table: AgreementTable, score: str, jacobian: str) -> pd.DataFrame:
    require_choice("score", score, _SCORES)
    require_choice("jacobian", jacobian, _READINGS)
    frame = table.to_dataframe()
    frame = frame[frame["jacobian"] == jacobian]
    if frame.empty:
        raise InvalidArgumentError(
            f"jacobian must be one that the table holds, got {jacobian!r}; make the table with it"
        )
    return frame


def _reference_lines(figure: go.Figure, part: pd.DataFrame, column: int) -> None:
    """The ceiling of any one profile, and what the layer's number alone scores."""
    span = [int(part["order"].min()), int(part["order"].max())]
    for key, name, dash in (
        ("ceiling", "ceiling of one profile", "dash"),
        ("layer_order", "layer number alone", "dot"),
    ):
        value = float(part[key].iloc[0])
        figure.add_trace(
            go.Scatter(
                x=span,
                y=[value, value],
                mode="lines",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                line={"color": GREY, "dash": dash, "width": 1.5},
                hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>",
            ),
            row=1,
            col=column,
        )


def _short(model: str) -> str:
    return str(model).rstrip("/").split("/")[-1]


def _shapes(sizes: pd.DataFrame) -> Sequence[tuple[str, int, int]]:
    return list(zip(sizes["model"], sizes["n_layers"], sizes["d_model"], strict=True))
