"""Figures of surrogates: agreement with the full model by order and by model size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_linear.checks import require_choice
from lens_linear.dynamics.surrogates.agreement_table import AgreementTable
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots.style import GREY, colour, escape, styled

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


def agreement_by_order(
    table: AgreementTable, *, score: str = "spearman", jacobian: str = "prompt"
) -> go.Figure:
    """Agreement against order, one panel a model and one line a basis, with the ceiling of any one profile.

    The x axis is the number of reduced coordinates, logarithmic. Correlations lie in [−1, 1], 0 for
    unrelated profiles; a relative error of 0 is exact and 1 is predicting 0. For "spearman" two grey lines
    stand beside: the dashed one is the best that any one profile for all prompts can reach, the dotted one
    what the layer's number alone scores.

    Args:
        table: what ``ll.dynamics.agreement_table`` returned.
        score: "spearman", "mean_spearman", "pearson" or "relative_error".
        jacobian: "prompt", "mean" or "state"; one that the table was made with.

    Returns:
        Figure with one panel a model.

    Raises:
        InvalidArgumentError: an unknown score, or a Jacobian that the table does not hold.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> from lens_linear.dynamics.surrogates.agreement_table import AgreementRow
        >>> exact = torch.tensor([[1.0, 2.0, 4.0], [1.0, 3.0, 2.0]])
        >>> score = ll.dynamics.compare_gains(torch.tensor([[1.0, 2.0, 3.0]]), exact)
        >>> rows = [AgreementRow("toy", 3, 16, "mood", 0.9, "pca", k, "prompt", score) for k in (1, 2)]
        >>> table = ll.dynamics.AgreementTable(tuple(rows), "adjoint", 20, 10, 2, seed=0)
        >>> [line.name for line in ll.plots.agreement_by_order(table).data]
        ['pca', 'ceiling of one profile', 'layer number alone']
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

    The x axis is layers times width, logarithmic, one tick a model. The y axis is as in
    :func:`agreement_by_order`: 0 for unrelated profiles; for "spearman" the dashed grey line is the ceiling
    of any one profile.

    Args:
        table: agreement of several models, from ``ll.dynamics.agreement_table``.
        order: of the surrogates; one that the table holds.
        score: "spearman", "mean_spearman", "pearson" or "relative_error".
        jacobian: "prompt", "mean" or "state"; one that the table was made with.

    Returns:
        Figure with one line a basis.

    Raises:
        InvalidArgumentError: an unknown score, or an order or a Jacobian that the table does not hold.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> from lens_linear.dynamics.surrogates.agreement_table import AgreementRow
        >>> exact = torch.tensor([[1.0, 2.0, 4.0], [1.0, 3.0, 2.0]])
        >>> score = ll.dynamics.compare_gains(torch.tensor([[1.0, 2.0, 3.0]]), exact)
        >>> rows = [AgreementRow(f"toy-{d}", 3, d, "mood", 0.9, "pca", 2, "prompt", score) for d in (8, 16)]
        >>> table = ll.dynamics.AgreementTable(tuple(rows), "adjoint", 20, 10, 2, seed=0)
        >>> list(ll.plots.agreement_by_size(table, order=2).data[0].x)
        [24, 48]
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
