"""Figures of depth dynamics: directions, gains, surrogates and their agreement, schedules and steering.

Each function takes results of :mod:`lens_linear.dynamics` and returns a figure; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lens_linear.checks import counted
from lens_linear.dynamics.gains.directions import ConceptDirections
from lens_linear.dynamics.gains.gain_profile import GainProfile
from lens_linear.dynamics.gains.step_size import StepSizeTable
from lens_linear.dynamics.steering.generation import SteeredText, SteeringCost
from lens_linear.dynamics.steering.min_energy import Schedule
from lens_linear.dynamics.steering.schedules import ScheduleComparison
from lens_linear.dynamics.surrogates.agreement_table import AgreementTable
from lens_linear.dynamics.surrogates.surrogate import Surrogate
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots._kinds import (
    add_level,
    add_line,
    figure,
    inks,
    layer_axis,
    log_axis,
    panels,
    table_figure,
)
from lens_linear.plots.style import GREY, check_cells, colour, escape, height_of, styled, tick_label
from lens_linear.token_labels import token_label

_READINGS: Mapping[str, str] = {
    "prompt": "each prompt's own Jacobian",
    "mean": "one mean Jacobian",
    "state": "gains read off each prompt's state",
}
_SCORES: Mapping[str, str] = {
    "spearman": "Spearman over layers,<br>mean of prompts",
    "mean_spearman": "Spearman of the mean profiles",
    "pearson": "Pearson over layers,<br>mean of prompts",
    "relative_error": "relative error",
}
_BASES = ("krylov", "balanced", "pca", "random", "krylov-stationary")
_CEILING = "best single profile"
_WHY = "; dashed: the best one profile for all prompts, which own Jacobians may exceed"
Agreement = Literal["spearman", "mean_spearman", "pearson", "relative_error"]
Jacobian = Literal["prompt", "mean", "state"]
RULES = ("best layer", "last layer", "uniform", "middle", "early")


@figure
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
    fig = go.Figure()
    longest = max(len(found) for found in directions.values())
    for index, (name, found) in enumerate(directions.items()):
        add_line(
            fig, range(len(found)), found.auc.tolist(), name, index=index, custom=found.d_prime.tolist(),
            of=len(directions),
            hover="boundary %{x}<br>AUC %{y:.3f}<br>d′ %{customdata:.2f}",
        )  # fmt: skip
    add_level(fig, 0.5, "chance", x=[0, longest - 1])
    n_texts = sorted({found.n_texts for found in directions.values()})
    return styled(
        layer_axis(fig, longest), title="Where the concept can be read",
        subtitle="AUC of five held-out folds, n = " + ", ".join(map(str, n_texts)) + " texts",
        x="layer boundary (0 is the embedding)", y="AUC of the projection",
    )  # fmt: skip


@figure
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

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> model = ll.toy_model(n_layers=3)
        >>> prompts = [torch.arange(5), torch.arange(9)]
        >>> exact = ll.gain_profile(model, prompts, ll.dynamics.random_directions(model))
        >>> figure = ll.plots.gain_profiles({"random": exact})
        >>> figure.layout.yaxis.title.text, len(figure.data[1].x)
        ('gain (readout per unit added)', 3)
    """
    if isinstance(profiles, (GainProfile, Surrogate)):
        profiles = {"gains": profiles}
    fig, counts, several = go.Figure(), set(), len(profiles) > 1
    for index, (name, given) in enumerate(profiles.items()):
        profile = given.profile if isinstance(given, Surrogate) else given
        frame = profile.to_dataframe()
        counts.add(len(profile.gains))
        # Bands of several profiles hide each other: bars, side by side.
        shift = min(0.07, 0.6 / len(profiles)) * (index - (len(profiles) - 1) / 2)
        ends = (frame["q05"], frame["q95"]) if bands and len(profile.gains) > 1 else None
        add_line(
            fig, [layer + shift for layer in frame.index], frame["mean"], name, index=index,
            band=None if several else ends, bars=ends if several else None, of=len(profiles),
            custom=np.stack([frame["sd"], frame.index], 1),
            hover="layer %{customdata[1]:.0f}<br>gain %{y:.4g} ± %{customdata[0]:.3g} (sd)",
        )  # fmt: skip
    add_level(fig, 0.0, "no effect", x=[0, len(frame) - 1])
    spread = "; 5th to 95th percentile over prompts" if bands and max(counts) > 1 else ""
    return styled(
        layer_axis(fig, len(frame)), title="How far the readout moves for a push at each layer",
        subtitle=f"n = {', '.join(map(str, sorted(counts)))} prompt{'s' * (max(counts) > 1)}{spread}",
        x="layer of the push", y="gain (readout per unit added)",
    )  # fmt: skip


@figure
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
    fig = add_line(
        go.Figure(), frame["eps"], frame["relative_error"], "central differences",
        custom=frame["spearman"].tolist(),
        hover="eps %{x:g}<br>error %{y:.2e}<br>Spearman %{customdata:.4f}",
    )  # fmt: skip
    fig.update_xaxes(**log_axis(frame["eps"])).update_yaxes(**log_axis(frame["relative_error"]))
    return styled(
        fig, title="Central differences against exact derivatives", legend="none",
        subtitle=f"n = {counted(len(table.adjoint.gains), 'prompt')}; large steps meet curvature, "
        "small ones rounding",
        x="step eps (units added)", y="relative error of the gains",
    )  # fmt: skip


@figure
def agreement_by_order(
    table: AgreementTable, *, score: Agreement = "spearman", jacobian: Jacobian = "prompt"
) -> go.Figure:
    """Agreement against order, one panel a model and one line a basis, with the best single profile.

    The x axis is the number of reduced coordinates, logarithmic. Correlations lie in [−1, 1], 0 for
    unrelated profiles; a relative error of 0 is exact and 1 is predicting 0. For "spearman" two grey lines
    stand beside: the dashed one is the best that any one profile for all prompts can reach (a ceiling for
    the mean Jacobian; a surrogate with each prompt's own Jacobian can lie above it), the dotted one what
    the layer's number alone scores.

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
        >>> [line.name for line in ll.plots.agreement_by_order(table).data][::2]
        ['pca', 'layer number alone']
    """
    frame = _chosen(table, jacobian)
    models = list(dict.fromkeys(frame["model"]))
    fig, places = panels([_short(model) for model in models], share_y=True)
    for model, at in zip(models, places, strict=True):
        part = frame[frame["model"] == model]
        for basis in dict.fromkeys(part["basis"]):
            line = part[part["basis"] == basis].sort_values("order")
            hover = "order %{x}<br>%{y:.4f}"
            add_line(
                fig, line["order"], line[score], basis, index=_basis(basis), at=at, hover=hover
            )
        if score == "spearman":
            span = [int(part["order"].min()), int(part["order"].max())]
            add_level(fig, float(part["ceiling"].iloc[0]), _CEILING, x=span, dash="dash", at=at)
            add_level(fig, float(part["layer_order"].iloc[0]), "layer number alone", x=span, at=at)
    fig.update_xaxes(type="log", tickvals=sorted(set(frame["order"])))
    if score == "relative_error":
        fig.update_yaxes(rangemode="tozero")
    fig.update_yaxes(title_text=_SCORES[score], col=1)
    return styled(
        fig, title=f"Agreement of surrogates with the full model, {_READINGS[jacobian]}", panels=True,
        subtitle=f"n = {counted(table.n_evaluation, 'evaluation prompt')}, identified on {table.n_operating}"
        + _WHY * (score == "spearman"),
        x="order (coordinates)", height=160 + 330 * places[-1][0],
    )  # fmt: skip


@figure
def agreement_by_size(
    table: AgreementTable,
    *,
    order: int = 32,
    score: Agreement = "spearman",
    jacobian: Jacobian = "prompt",
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
    frame = _chosen(table, jacobian)
    orders = sorted(set(frame["order"]))
    if order not in orders:
        raise InvalidArgumentError(
            f"order must be one of the table's {orders}, got {order}; pass order={orders[-1]}"
        )
    frame = frame[frame["order"] == order]
    frame = frame.assign(size=frame["n_layers"] * frame["d_model"]).sort_values("size")
    sizes, fig = frame.drop_duplicates("model"), go.Figure()
    for basis in dict.fromkeys(frame["basis"]):
        line = frame[frame["basis"] == basis]
        add_line(
            fig, line["size"], line[score], basis, index=_basis(basis),
            custom=[_short(model) for model in line["model"]], hover="%{customdata}: %{y:.4f}",
        )  # fmt: skip
    if score == "spearman":
        add_level(fig, sizes["ceiling"], _CEILING, x=sizes["size"].tolist(), dash="dash")
    names = [
        f"{_short(m)}<br>{n} × {d}"
        for m, n, d in zip(sizes["model"], sizes["n_layers"], sizes["d_model"])
    ]
    fig.update_xaxes(type="log", tickvals=sizes["size"].tolist(), ticktext=names)
    return styled(
        fig, title=f"Order-{order} surrogates against model size, {_READINGS[jacobian]}", x="model",
        subtitle=f"n = {counted(table.n_evaluation, 'evaluation prompt')}; sizes are layers × width"
        + _WHY * (score == "spearman"),
        y=_SCORES[score],
    )  # fmt: skip


def _chosen(table: AgreementTable, jacobian: str) -> pd.DataFrame:
    frame = table.to_dataframe()
    held = list(dict.fromkeys(frame["jacobian"]))
    if jacobian not in held:
        raise InvalidArgumentError(
            f"jacobian must be one that the table holds ({', '.join(held)}), got {jacobian!r}; "
            f"pass jacobian={held[0]!r}"
        )
    return frame[frame["jacobian"] == jacobian]


def _basis(basis: str) -> int:
    """A basis keeps its colour in every figure; one's own gets one of the others."""
    return _BASES.index(basis) if basis in _BASES else len(_BASES) + sum(map(ord, basis)) % 3


def _short(model: object) -> str:
    return tick_label(str(model).rstrip("/").split("/")[-1], max_length=20)


@figure
def schedule_energies(comparison: ScheduleComparison) -> go.Figure:
    """Energy of each schedule over that of minimum energy at the same prompt, on a log axis.

    Points are medians, lines quartiles over prompts; the ratio has no unit. The line at 1 is the
    minimum-energy schedule itself. It is the cheapest for the gains it was computed from; on the full
    model, which is not linear and whose gains it may only have estimated, another schedule can need less
    and lies left of the line. Schedules that reach the target at fewer than all prompts say so; unreached
    prompts count as infinite.

    Args:
        comparison: what ``ll.evaluate_schedules`` returned.

    Returns:
        Figure with one point a schedule, minimum energy on top.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> model, prompts = ll.toy_model(d_model=16), [torch.arange(5)]
        >>> directions, quick = ll.dynamics.random_directions(model), {"tolerance": 0.1, "refine_steps": 1}
        >>> found = ll.evaluate_schedules(model, prompts, directions, target=0.05, **quick)
        >>> figure = ll.plots.schedule_energies(found)
        >>> figure.layout.xaxis.type, figure.layout.yaxis.ticktext[0].startswith("minimum energy")
        ('log', True)
    """
    frame = comparison.to_dataframe()
    finite = frame["ratio_median"].replace(float("inf"), float("nan"))
    high = frame["ratio_q75"].replace(float("inf"), float("nan")).fillna(finite)
    names = [
        tick_label(name, max_length=24) + ("" if share == 1 else f" (reached at {share:.0%})")
        for name, share in zip(frame["schedule"], frame["reached"], strict=True)
    ]
    places = list(range(len(names)))
    fig = go.Figure()
    fig.add_scatter(
        x=finite.tolist(), y=places, mode="markers+text", customdata=frame["energy_median"].tolist(),
        error_x={
            "array": (high - finite).tolist(), "arrayminus": (finite - frame["ratio_q25"]).tolist(),
            "symmetric": False, "thickness": 2, "width": 5, "color": "#444444",
        },
        text=[f"{value:.3g}×" if value != 1 else "" for value in finite], textposition="top center",
        textfont={"size": 12}, hovertext=names, name="median and quartiles",
        marker={"size": 12, "color": [colour(1 if value < 1 else 0) for value in finite]},
        hovertemplate="%{hovertext}<br>%{x:.3g} × minimum energy<br>median energy %{customdata:.3g}"
        "<extra></extra>",
    )  # fmt: skip
    fig.add_vline(x=1, line={"color": GREY, "dash": "dash"}, layer="below")
    drawn = np.log10([*frame["ratio_q25"].dropna(), *high.dropna(), 1.0])
    room = 0.15 * max(float(drawn.max() - drawn.min()), 0.3)  # for the numbers above the points
    reach = [float(drawn.min()) - room, float(drawn.max()) + room]
    fig.update_xaxes(**log_axis(10 ** np.asarray(reach)), range=reach).update_yaxes(
        tickvals=places, ticktext=names, range=[len(names) - 0.4, -0.8], showgrid=False
    )
    beaten = bool((finite < 0.995).any())
    why = (
        "vermilion needs less than minimum energy, which is cheapest for the gains it was computed from, "
        "not on the full, nonlinear model"
        if beaten
        else "1: the schedule of minimum energy"
    )
    return styled(
        fig, title=f"Energy needed to move the readout by {comparison.target:.3g}", legend="none",
        subtitle=f"over minimum energy, median and quartiles of "
        f"{counted(len(comparison.baseline), 'prompt')}; {why}",
        x="energy / energy of minimum energy", height=180 + 50 * len(names),
    )  # fmt: skip


@figure
def schedule_shapes(
    schedules: Mapping[str, Schedule] | ScheduleComparison | Schedule,
) -> go.Figure:
    """Amplitudes over layers, one line a schedule; of a comparison the mean shapes, scaled to energy 1.

    The x axis is the layer, the y axis the units added along its direction; 0 (the grey line) leaves a
    layer alone. Thin grey lines are rules of thumb, against which computed schedules are held.

    Args:
        schedules: what ``ll.min_energy`` returned, by name; or what ``ll.evaluate_schedules`` returned.

    Returns:
        Figure with one line a schedule; of several prompts the mean.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> schedule = ll.min_energy(torch.tensor([1.0, 2.0]), 5.0)
        >>> list(ll.plots.schedule_shapes({"two layers": schedule}).data[0].y)
        [1.0, 2.0]
    """
    if isinstance(schedules, ScheduleComparison):
        means = schedules.shapes.mean(1)
        # A draw a prompt has no mean shape worth a line.
        lines = {n: means[i].tolist() for i, n in enumerate(schedules.names) if n != "random layer"}
        subtitle, y = "mean over prompts of shapes of energy 1", "amplitude (energy 1)"
    else:
        named = {"schedule": schedules} if isinstance(schedules, Schedule) else schedules
        values = {name: schedule.plain() for name, schedule in named.items()}
        lines = {n: (v if v.ndim == 1 else v.mean(0)).tolist() for n, v in values.items()}
        subtitle, y = "what is added along each layer's unit direction", "amplitude (units added)"
    fig, length = go.Figure(), max(map(len, lines.values()))
    ours = [name for name in lines if name not in RULES]
    palette = dict(zip(ours, inks(len(ours)), strict=True))
    for index, (name, line) in enumerate(lines.items()):
        # Rules of thumb stay thin and grey, so that the schedules that were computed stand out.
        thumb = name in RULES
        add_line(
            fig, range(len(line)), line, name, index=index, ink=palette.get(name, GREY),
            width=1.5 if thumb else 2.5, dash=None if thumb else "solid", of=len(lines),
            hover="layer %{x}<br>amplitude %{y:.4g}",
        )  # fmt: skip
    add_level(fig, 0.0, "layer left alone", x=[0, length - 1])
    return styled(
        layer_axis(fig, length), title="Schedules over layers", subtitle=subtitle, x="layer", y=y,
        height=520,
    )  # fmt: skip


@figure
def steered_text(result: SteeredText, *, max_cells: int = 400) -> go.Figure:
    """Continuations as a table: prompt, scale, text, perplexity and readout of the model left alone.

    One line a prompt and scale; lines of one prompt share a shade. Scale 0 is the model left alone: hold
    the readout and the perplexity of the other lines against it. The readout has the units of C, the
    perplexity none.

    Args:
        result: what ``ll.dynamics.steer_text`` returned.
        max_cells: largest number of cells drawn.

    Returns:
        Figure with one table; text is shown as text, never as markup.

    Raises:
        FigureTooLargeError: more than ``max_cells`` cells.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> ids, ones = torch.zeros(2, 1, 1, dtype=torch.long), torch.ones(2, 1)
        >>> texts, scales = ((" <b>sat",), (" ran",)), (0.0, 1.0)
        >>> found = ll.dynamics.SteeredText(("A cat",), texts, ids, scales, ones, ones, "prompt", 0.0, 0)
        >>> list(ll.plots.steered_text(found).data[0].cells.values[2])
        [' &lt;b&gt;sat', ' ran']
    """
    frame = result.to_dataframe()
    check_cells(frame.size, max_cells=max_cells)
    columns = {
        "prompt": [_one_line(text) for text in frame["prompt"]],
        "scale": [f"{scale:+g}" if scale else "0" for scale in frame["scale"]],
        "continuation": [_one_line(text) for text in frame["text"]],
        "perplexity": [f"{value:.3g}" for value in frame["perplexity"]],
        "readout": [f"{value:.3g}" for value in frame["readout"]],
    }
    how = "greedy" if result.temperature == 0 else f"sampled at temperature {result.temperature:g}"
    fig = table_figure(
        columns, title="What the steered model writes", widths=[3, 1, 6, 1.6, 1.3],
        subtitle=f"{how}, added at {result.where!r} tokens; scored by the model left alone",
    )  # fmt: skip
    runs = (
        frame["prompt"] != frame["prompt"].shift()
    ).cumsum()  # lines of one prompt share a shade
    fig.data[0].cells.fill.color = [["white" if run % 2 else "#F4F4F4" for run in runs]]
    longest = [
        max(len(p) // 20, len(t) // 40) for p, t in zip(frame["prompt"], frame["text"], strict=True)
    ]
    return fig.update_layout(height=height_of(fig) + 18 * sum(longest))


def _one_line(text: str) -> str:
    """Show newlines and other invisible characters as marks; spaces are spaces in running text."""
    return escape(token_label(text).replace("␣", " ")) if text else ""


@figure
def steering_cost(costs: Mapping[str, SteeringCost] | SteeringCost) -> go.Figure:
    """Loss on ordinary text over the scale of a schedule.

    The x axis is the multiple of the schedule, the y axis the loss in nats a token. Scale 0 is the model
    left alone, the baseline: how far a line rises on either side of it is the price of steering.

    Args:
        costs: what ``ll.dynamics.steering_cost`` returned, or several by name.

    Returns:
        Figure with one line a schedule; the hover gives the perplexity.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> model, tokens = ll.toy_model(), torch.arange(8)[None]
        >>> directions, schedule = ll.dynamics.random_directions(model), torch.ones(2)
        >>> cost = ll.dynamics.steering_cost(model, tokens, directions, schedule, scales=(1, 0, -1))
        >>> list(ll.plots.steering_cost(cost).data[0].x)
        [-1.0, 0.0, 1.0]
    """
    costs = {"schedule": costs} if isinstance(costs, SteeringCost) else costs
    fig = go.Figure()
    for index, (name, cost) in enumerate(costs.items()):
        frame = cost.to_dataframe().sort_values("scale")
        add_line(
            fig, frame["scale"], frame["loss"], name, index=index, custom=frame["perplexity"].tolist(),
            of=len(costs),
            hover="scale %{x:g}<br>loss %{y:.4f}<br>perplexity %{customdata:.4g}",
        )  # fmt: skip
    counts = sorted({cost.n_tokens for cost in costs.values()})
    return styled(
        fig, title="What steering costs on ordinary text", x="scale of the schedule",
        subtitle=f"added at every token, n = {', '.join(f'{n:,}' for n in counts)} tokens",
        y="loss (nats a token)", legend="bottom" if len(costs) > 1 else "none",
    )  # fmt: skip
