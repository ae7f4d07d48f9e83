"""Figures of steering: energy of schedules, schedules over layers, steered text, the price in perplexity."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from lens_linear.dynamics.steering.generation import SteeredText, SteeringCost
from lens_linear.dynamics.steering.min_energy import Schedule
from lens_linear.dynamics.steering.schedules import ScheduleComparison
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots._marks import LOG
from lens_linear.plots.style import DASHES, GREY, check_cells, colour, escape, styled

# Columns of the table of steered text (prompt, scale, continuation, perplexity, readout), and how many
# characters of the text's size fit into one unit of their width.
_WIDTHS = (3.0, 1.0, 6.0, 1.6, 1.3)
_PER_UNIT = 9

RULES = ("best layer", "last layer", "uniform", "middle", "early")


def schedule_energies(comparison: ScheduleComparison) -> go.Figure:
    """Energy of each schedule over that of minimum energy at the same prompt, on a log axis.

    Points are medians, lines quartiles over prompts; the ratio has no unit. The dashed line at 1 is the
    minimum-energy schedule itself; left of it a schedule needs less. Schedules that reach the target at
    fewer than all prompts say so; unreached prompts count as infinite.

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
        >>> figure.layout.xaxis.type, figure.data[0].y[-1].startswith("minimum energy")
        ('log', True)
    """
    frame = comparison.to_dataframe().iloc[::-1]
    figure = go.Figure()
    finite = frame["ratio_median"].replace(float("inf"), float("nan"))
    high = frame["ratio_q75"].replace(float("inf"), float("nan")).fillna(finite)
    names = [
        escape(name) + ("" if share == 1 else f" (reached at {share:.0%})")
        for name, share in zip(frame["schedule"], frame["reached"], strict=True)
    ]
    figure.add_trace(
        go.Scatter(
            x=finite.tolist(),
            y=names,
            error_x={
                "array": (high - finite).tolist(),
                "arrayminus": (finite - frame["ratio_q25"]).tolist(),
                "symmetric": False,
                "thickness": 2,
                "width": 5,
                "color": "#444444",  # one colour: error bars take no list of them
            },
            customdata=frame["energy_median"].tolist(),
            mode="markers+text",
            text=[f"{value:.3g}×" if value != 1 else "" for value in finite],
            textposition="top center",
            textfont={"size": 12},
            marker={
                "size": 12,
                "color": [colour(1 if value < 1 else 0) for value in finite],
            },
            hovertemplate=(
                "%{y}<br>%{x:.3g} × minimum energy<br>"
                "median energy %{customdata:.3g}<extra></extra>"
            ),
        )
    )
    figure.add_vline(x=1, line={"color": GREY, "dash": "dash"}, layer="below")
    figure.update_xaxes(**LOG, dtick="D2")
    styled(
        figure,
        title=f"Energy needed to move the readout by {comparison.target:.3g}",
        subtitle=(
            f"over minimum energy, median and quartiles of {len(comparison.baseline)} prompts; "
            "below 1 needs less"
        ),
        x="energy / energy of the minimum-energy schedule",
        legend="none",
        height=120 + 52 * len(names),
    )
    return figure.update_yaxes(showgrid=False)


def schedule_shapes(schedules: Mapping[str, Schedule] | ScheduleComparison) -> go.Figure:
    """Amplitudes over layers, one line a schedule; of a comparison the mean shapes, scaled to energy 1.

    The x axis is the layer, the y axis the units added along its direction; 0 (the grey line) leaves a
    layer alone. Thin grey lines are rules of thumb, against which computed schedules are held.

    Args:
        schedules: what ``ll.min_energy`` returned, by name; or what ``ll.evaluate_schedules`` returned.

    Returns:
        Figure with one line a schedule; of several prompts the mean.

    Raises:
        InvalidArgumentError: no schedules.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> schedule = ll.min_energy(torch.tensor([1.0, 2.0]), 5.0)
        >>> list(ll.plots.schedule_shapes({"two layers": schedule}).data[0].y)
        [1.0, 2.0]
    """
    if isinstance(schedules, ScheduleComparison):
        means = schedules.shapes.mean(1)
        lines = {
            name: means[index].tolist()
            for index, name in enumerate(schedules.names)
            if name != "random layer"  # a draw a prompt has no mean shape worth a line
        }
        subtitle, y = "mean over prompts of shapes of energy 1", "amplitude (energy 1)"
    else:
        lines = {}
        for name, schedule in schedules.items():
            values = schedule.plain()
            lines[name] = (values if values.ndim == 1 else values.mean(0)).tolist()
        subtitle, y = "what is added along each layer's unit direction", "amplitude (units added)"
    if not lines:
        raise InvalidArgumentError("schedules must hold at least one; pass {name: schedule}")
    figure = go.Figure()
    found = 0
    for index, (name, line) in enumerate(lines.items()):
        # Rules of thumb stay thin and dashed, so that the schedules that were computed stand out.
        thumb = name in RULES
        ink = {"color": GREY, "width": 1.5, "dash": DASHES[1 + index % (len(DASHES) - 1)]}
        found += not thumb
        figure.add_trace(
            go.Scatter(
                x=list(range(len(line))),
                y=line,
                mode="lines+markers",
                name=escape(name),
                line=ink if thumb else {"color": colour(found - 1), "width": 2.5},
                marker={"size": 8, "symbol": index},
                hovertemplate="layer %{x}<br>amplitude %{y:.4g}<extra></extra>",
            )
        )
    figure.add_hline(y=0, line={"color": GREY, "width": 1})
    figure.update_xaxes(dtick=1 if len(line) <= 24 else None)
    return styled(figure, title="Schedules over layers", subtitle=subtitle, x="layer", y=y)


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
    cells = [
        [_one_line(text) for text in frame["prompt"]],
        [f"{scale:+g}" if scale else "0" for scale in frame["scale"]],
        [_one_line(text) for text in frame["text"]],
        [f"{value:.3g}" for value in frame["perplexity"]],
        [f"{value:.3g}" for value in frame["readout"]],
    ]
    shade = ["#F4F4F4" if index % 2 else "white" for index in _groups(frame["prompt"].tolist())]
    figure = go.Figure(
        go.Table(
            columnwidth=_WIDTHS,
            header={
                "values": ["prompt", "scale", "continuation", "perplexity", "readout"],
                "align": "left",
                "fill_color": "#E6E6E6",
                "font": {"size": 13},
            },
            cells={
                "values": cells,
                "align": "left",
                "fill_color": [shade],
                "font": {"size": 12},
                "height": 24,
            },
        )
    )
    how = "greedy" if result.temperature == 0 else f"sampled at temperature {result.temperature:g}"
    lines = sum(
        max(_lines(prompt, _WIDTHS[0]), _lines(text, _WIDTHS[2]))
        for prompt, text in zip(cells[0], cells[2], strict=True)
    )
    styled(
        figure,
        title="What the steered model writes",
        subtitle=f"{how}, added at {result.where!r} tokens; scored by the model left alone",
        legend="none",
        width=900,
        height=190 + 10 * len(frame) + 18 * lines,
    )
    return figure.update_layout(margin={"b": 20, "r": 30})


def steering_cost(costs: Mapping[str, SteeringCost] | SteeringCost) -> go.Figure:
    """Loss on ordinary text over the scale of a schedule.

    The x axis is the multiple of the schedule, the y axis the loss in nats a token. Scale 0 is the model
    left alone, the baseline: how far a line rises on either side of it is the price of steering.

    Args:
        costs: what ``ll.dynamics.steering_cost`` returned, or several by name.

    Returns:
        Figure with one line a schedule; the hover gives the perplexity.

    Raises:
        InvalidArgumentError: no costs.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> model, tokens = ll.toy_model(), torch.arange(8)[None]
        >>> directions, schedule = ll.dynamics.random_directions(model), torch.ones(2)
        >>> cost = ll.dynamics.steering_cost(model, tokens, directions, schedule, scales=(1, 0, -1))
        >>> list(ll.plots.steering_cost(cost).data[0].x)
        [-1.0, 0.0, 1.0]
    """
    if isinstance(costs, SteeringCost):
        costs = {"schedule": costs}
    if not costs:
        raise InvalidArgumentError("costs must hold at least one; pass {name: cost}")
    figure = go.Figure()
    for index, (name, cost) in enumerate(costs.items()):
        frame = cost.to_dataframe().sort_values("scale")
        figure.add_trace(
            go.Scatter(
                x=frame["scale"].tolist(),
                y=frame["loss"].tolist(),
                customdata=frame["perplexity"].tolist(),
                mode="lines+markers",
                name=escape(name),
                line={"color": colour(index), "width": 2.5},
                marker={"size": 8, "symbol": index},
                hovertemplate="scale %{x:g}<br>loss %{y:.4f}<br>perplexity %{customdata:.4g}<extra></extra>",
            )
        )
    counts = sorted({cost.n_tokens for cost in costs.values()})
    return styled(
        figure,
        title="What steering costs on ordinary text",
        subtitle=f"added at every token, n = {', '.join(f'{n:,}' for n in counts)} tokens",
        x="scale of the schedule",
        y="loss (nats a token)",
        legend="right" if len(costs) > 1 else "none",
    )


def _one_line(text: str) -> str:
    """Show newlines and other control characters as their escapes, quotation marks as they are."""
    return escape(repr(text)[1:-1].replace("\\'", "'"))


def _lines(text: str, width: float) -> int:
    """Lines that a cell's text takes when it is wrapped."""
    return 1 + len(text) // int(_PER_UNIT * width)


def _groups(values: list[str]) -> list[int]:
    """Number the runs of equal values."""
    found, current = [], -1
    for index, value in enumerate(values):
        current += index == 0 or value != values[index - 1]
        found.append(current)
    return found
