"""Figures of probes: bilinear gain by rank, and Adam falling short of the closed form."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from lens_linear.checks import require_instance
from lens_linear.errors import InvalidArgumentError
from lens_linear.linearity.measure.adam import AdamBaseline
from lens_linear.linearity.measure.bilinear import BilinearProbe
from lens_linear.plots.style import GREY, colour, escape, faded, styled


def bilinear_gain(probes: BilinearProbe | Mapping[str, BilinearProbe]) -> go.Figure:
    """Held-out gain of R² over the affine fit against the number of products, one line per probe.

    The x axis is the rank of the bilinear term, the y axis a difference of two R². 0 (the grey line) is no
    better than the affine fit. Bands are bootstrap intervals over test sequences; the dotted line of the
    same colour is the gain on the training half, so the distance between the two is what overfitting adds.

    Args:
        probes: one probe of ``ll.bilinear_probe``, or several by name.

    Returns:
        Figure with two lines a probe, held out and training.

    Raises:
        InvalidArgumentError: no probes, or something that is neither a probe nor {name: probe}.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> from lens_linear.linearity.measure.bilinear import probe_rows
        >>> x, new = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0)).double()
        >>> probe = probe_rows(x, x[:, :1] * x[:, 1:2], new, new[:, :1] * new[:, 1:2], rank=1)
        >>> figure = ll.plots.bilinear_gain({"a product": probe})
        >>> [line.name for line in figure.data], bool(figure.data[0].y[1] > 0.9)
        (['a product, held out', 'a product, training'], True)
    """
    named = {probes.where: probes} if isinstance(probes, BilinearProbe) else probes
    require_instance("probes", named, Mapping, advice="pass one probe, or {name: probe}")
    if not named:
        raise InvalidArgumentError("probes must hold at least one BilinearProbe")
    figure = go.Figure()
    for index, (name, probe) in enumerate(named.items()):
        frame = probe.to_dataframe()
        shade, shown = colour(index), escape(name)
        if not frame["gain_low"].isna().all():
            figure.add_trace(
                go.Scatter(
                    x=[*frame["rank"], *reversed(list(frame["rank"]))],
                    y=[*frame["gain_high"], *reversed(list(frame["gain_low"]))],
                    mode="lines",
                    fill="toself",
                    fillcolor=faded(shade, 0.18),
                    line={"width": 0},
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
        for column, dash, what in (
            ("gain", "solid", "held out"),
            ("train_gain", "dot", "training"),
        ):
            figure.add_trace(
                go.Scatter(
                    x=frame["rank"],
                    y=frame[column],
                    mode="lines+markers",
                    name=f"{shown}, {what}",
                    line={"color": shade, "dash": dash, "width": 2},
                    marker={"size": 7, "symbol": index % 8},
                    hovertemplate=f"{shown}, {what}<br>%{{x}} products: %{{y:+.4f}}<extra></extra>",
                )
            )
    figure.add_hline(y=0, line={"color": GREY, "dash": "dot"})
    first = next(iter(named.values()))
    return styled(
        figure,
        title="What a few products add to the affine fit",
        subtitle=f"n = {first.n_tokens:,} held-out rows, fitted on {first.n_fit:,}",
        x="products (rank of the bilinear term)",
        y="gain of R² over the affine fit",
        legend="bottom",
        height=540,
    )


def adam_convergence(baseline: AdamBaseline) -> go.Figure:
    """Held-out R² of a linear layer under Adam, raw and standardised inputs, beside least squares.

    The x axis is Adam's steps, logarithmic; the y axis the held-out R², at most 1, where 0 predicts the
    mean. The dashed line is the closed form on the same rows. Raw inputs that stay below it while
    standardised ones reach it are slow because of their condition number, not for want of a linear map.

    Args:
        baseline: what ``linearity.adam_baseline`` returned.

    Returns:
        Figure with two lines and the level of the closed form.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> from lens_linear.linearity.measure.adam import adam_on_rows
        >>> x, new = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0)).double()
        >>> found = adam_on_rows(x, x.cumsum(1), new, new.cumsum(1), steps=20)
        >>> figure = ll.plots.adam_convergence(found)
        >>> [line.name for line in figure.data], figure.layout.annotations[0].text
        (['Adam, raw inputs', 'Adam, standardised inputs'], 'closed form 1.0000')
    """
    frame = baseline.to_dataframe()
    figure = go.Figure()
    lines = {"r2": "Adam, raw inputs", "r2_standardized": "Adam, standardised inputs"}
    # Step 0 has no place on a logarithmic axis, and one step is close enough to it.
    frame = frame[frame["step"] > 0]
    for index, (column, label) in enumerate(lines.items()):
        figure.add_trace(
            go.Scatter(
                x=frame["step"],
                y=frame[column],
                mode="lines+markers",
                name=label,
                line={"color": colour(index), "width": 2.5},
                marker={"symbol": index, "size": 7},
                hovertemplate=f"{label}<br>step %{{x}}: R² %{{y:.4f}}<extra></extra>",
            )
        )
    figure.add_hline(
        y=baseline.closed_form,
        line={"color": "#000000", "dash": "dash"},
        annotation_text=f"closed form {baseline.closed_form:.4f}",
        annotation_position="top left",
    )
    low = max(-0.2, float(frame[list(lines)].min().min()))
    figure.update_yaxes(range=[min(low, 0) - 0.02, min(1.02, baseline.closed_form + 0.12)])
    figure.update_xaxes(type="log")
    return styled(
        figure,
        title=f"A trained linear layer: {escape(baseline.where)}",
        subtitle=(
            f"learning rate {baseline.learning_rate:g}, batches of {baseline.batch}; condition number "
            f"{baseline.condition_number:.3g}; n = {baseline.n_tokens:,} held-out rows"
        ),
        x="Adam steps",
        y="held-out R²",
    )
