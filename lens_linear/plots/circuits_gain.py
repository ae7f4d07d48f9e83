"""Figures of the in-context gain: the loss along a sequence, and what is lost without heads.

The in-context gain is how much lower the loss is where the context helps (nats a token).
"""

from __future__ import annotations

import plotly.graph_objects as go

from lens_linear.circuits.induction.ablation import AblationScores
from lens_linear.circuits.induction.in_context import InContextLoss
from lens_linear.circuits.induction.mechanism import InductionMechanism
from lens_linear.plots.style import GREY, colour, faded, matrix, styled


def in_context_loss(curve: InContextLoss) -> go.Figure:
    """The loss along the sequence with its standard error, and the two halves or copies.

    The y axis is the loss in nats. The x axis is the token's index, or with random repeats the distance to
    the start of the second copy, which a dotted line marks. Without help from the context the line stays
    level: for random tokens at about the logarithm of the vocabulary's size, or above it.

    Args:
        curve: what ``circuits.in_context_loss`` returned.

    Returns:
        Figure with a band of one standard error on either side and the line of means; the subtitle gives the
        means of both halves or copies, and their difference, the gain.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> curve = ll.circuits.in_context_loss(ll.toy_model(), torch.arange(40).reshape(2, 20))
        >>> figure = ll.plots.in_context_loss(curve)
        >>> figure.layout.xaxis.title.text, len(figure.data[1].x)
        ('token index', 19)
    """
    frame = curve.to_dataframe()
    high, low = frame["loss"] + frame["se"].fillna(0), frame["loss"] - frame["se"].fillna(0)
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[*frame["index"], *frame["index"][::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            fillcolor=faded(colour(0), 0.2),
            line={"width": 0},
            hoverinfo="skip",
            name="± one standard error",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=frame["index"],
            y=frame["loss"],
            mode="lines",
            line={"color": colour(0)},
            name="loss",
            customdata=frame["n"],
            hovertemplate="%{x}: %{y:.3f} nats over %{customdata} rows<extra></extra>",
        )
    )
    copies = curve.aligned == "second copy"
    if copies:
        figure.add_vline(x=0, line={"color": GREY, "dash": "dot"})
    names = ("first copy", "second copy") if copies else ("first half", "second half")
    return styled(
        figure,
        title="Loss along the sequence",
        subtitle=f"{names[0]} {curve.first:.3f}, {names[1]} {curve.second:.3f} nats: gain {curve.gain:+.3f}; "
        f"{curve.n_rows} rows",
        x="token, counted from the start of the second copy" if copies else "token index",
        y="loss (nats)",
    )


def ablation_map(scores: AblationScores) -> go.Figure:
    """A layers × heads map of the in-context gain that is lost without each head (nats a token).

    Rows are layers, columns heads, colours are centred at 0: a head that the gain does not need. Negative
    heads stand in the way. Heads that replace each other can all lie near 0, so a small number does not
    prove that a head has no part.

    Args:
        scores: what ``circuits.ablation_scores`` returned.

    Returns:
        Figure with one heatmap; the subtitle gives the whole model's gain.

    Example:
        >>> import lens_linear as ll
        >>> built = ll.constructions.build_induction(16, 32)
        >>> scores = ll.circuits.ablation_scores(built.model, rows_per_period=1)
        >>> lost = ll.plots.ablation_map(scores).data[0].z
        >>> bool(lost[1, 1] > 1), bool(abs(lost[1, 0]) < 0.1)  # the induction head, and a head that is idle
        (True, True)
    """
    layers, heads = scores.gain_without.shape
    figure = matrix(
        scores.lost,
        rows=[f"L{i}" for i in range(layers)],
        columns=[f"H{j}" for j in range(heads)],
        value_name="gain lost (nats)",
        row_name="layer",
        column_name="head",
    )
    return styled(
        figure,
        title="In-context gain lost without one head",
        subtitle=f"{scores.how} ablation; whole model gains {scores.gain:.2f} nats a token over "
        f"{scores.n_rows} rows",
        x="head",
        y="layer",
        height=280 + 34 * layers,
    )


def mechanism_table(mechanism: InductionMechanism) -> go.Figure:
    """Bars: the share of the in-context gain each intervention takes away, beside its control.

    The x axis runs from 0 % (the gain stays whole) to 100 % (all of it is lost); interventions can
    overshoot either end. The name of a step says in brackets what the story expects. Grey bars are the
    null: the same done to as many other heads, near 0 % if the named heads matter and others do not.

    Args:
        mechanism: what ``circuits.verify_induction`` returned.

    Returns:
        Figure with two sets of horizontal bars, named heads and controls; a step without control has one bar.

    Example:
        >>> import lens_linear as ll
        >>> built = ll.constructions.build_induction(16, 32)
        >>> found = ll.circuits.verify_induction(built.model, rows_per_period=1, n_controls=2)
        >>> [bars.name for bars in ll.plots.mechanism_table(found).data]
        ['named heads', 'as many other heads']
    """
    frame = mechanism.to_dataframe()
    labels = [f"{step} ({expected})" for step, expected in zip(frame["step"], frame["expected"])]
    figure = go.Figure()
    figure.add_trace(
        go.Bar(
            y=labels,
            x=frame["removed"],
            orientation="h",
            marker_color=[colour(1) if e == "lost" else colour(0) for e in frame["expected"]],
            name="named heads",
            text=[f"{round(value, 2) + 0.0:.0%}" for value in frame["removed"]],  # no "-0%"
            textposition="outside",
            cliponaxis=False,
            customdata=frame[["intervention", "heads", "gain_before", "gain_after"]],
            hovertemplate="%{customdata[1]}: %{customdata[0]}<br>gain %{customdata[2]:.2f} → "
            "%{customdata[3]:.2f} nats<extra></extra>",
        )
    )
    figure.add_trace(
        go.Bar(
            y=labels,
            x=frame["control_removed"],
            orientation="h",
            marker_color="#BBBBBB",
            name="as many other heads",
            customdata=frame[["n_controls", "control_size", "control_worst"]],
            hovertemplate="%{customdata[0]} sets of %{customdata[1]} other heads<br>mean %{x:.0%}, worst "
            "%{customdata[2]:.0%}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    ends = [0.0, *frame["removed"], *frame["control_removed"].dropna()]
    room = 0.1 * (max(ends) - min(ends))  # for the numbers beside the bars
    figure.update_xaxes(tickformat=".0%", range=[min(ends) - room, max(ends) + room])
    return styled(
        figure,
        title="The induction mechanism, step by step",
        subtitle=f"in-context gain of the whole model {mechanism.before.gain:.2f} nats a token, "
        f"{mechanism.n_rows} rows; in brackets what the story expects",
        x="share of the in-context gain taken away",
        legend="bottom",
        height=180 + 46 * len(frame),
    )
