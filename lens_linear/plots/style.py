"""One look for every figure of the package, and the few marks that several rooms share.

A figure function takes a result and returns a :class:`plotly.graph_objects.Figure`: it computes
nothing, calls no ``show`` and sets no global renderer or template. Readers with a colour vision
deficiency can tell the colours apart: Okabe & Ito's eight for categories, red to blue centred at
zero for signed values, viridis for unsigned ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from lens_linear.checks import require_float, require_instance, require_int, require_list
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots._cells import MAX_CELLS, as_array, check_cells

# Okabe & Ito 2008, "Color universal design", black last: grid text is already dark.
OKABE_ITO = (
    "#0072B2",  # blue
    "#D55E00",  # vermilion
    "#009E73",  # bluish green
    "#CC79A7",  # reddish purple
    "#E69F00",  # orange
    "#56B4E9",  # sky blue
    "#F0E442",  # yellow
    "#000000",  # black
)
GREY = "#7F7F7F"  # nulls, baselines, theory
DIVERGING = "RdBu"  # red below zero, blue above: the convention of TransformerLens' own lessons
SEQUENTIAL = "Viridis"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MAX_TICKS = 40  # more tick labels than this overlap; the hover still names every cell

_AXIS = {
    "showline": True,
    "linecolor": "#444444",
    "gridcolor": "#E6E6E6",
    "zeroline": False,
    "ticks": "outside",
    "tickcolor": "#444444",
    "automargin": True,
    "title": {"standoff": 10},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "Open Sans, Segoe UI, Helvetica, Arial, sans-serif", "size": 14},
        "title": {"font": {"size": 18}, "x": 0.0, "xref": "paper", "xanchor": "left"},
        "colorway": list(OKABE_ITO),
        "colorscale": {"diverging": DIVERGING, "sequential": SEQUENTIAL},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hoverlabel": {"font": {"family": "monospace", "size": 13}, "align": "left"},
        "margin": {"l": 70, "r": 30, "t": 80, "b": 60},
    }
)


def colour(index: int) -> str:
    """The ``index``-th categorical colour; the palette repeats after eight.

    Args:
        index: from 0.

    Returns:
        ``#RRGGBB``.

    Raises:
        InvalidArgumentError: below 0.

    Example:
        >>> colour(0), colour(8)
        ('#0072B2', '#0072B2')
    """
    return OKABE_ITO[require_int("index", index, minimum=0) % len(OKABE_ITO)]


def faded(hex_colour: str, alpha: float) -> str:
    """``#RRGGBB`` as an ``rgba`` string, for bands around a line.

    Args:
        hex_colour: ``#RRGGBB``.
        alpha: 0 (nothing is seen) to 1 (opaque).

    Returns:
        ``rgba(red,green,blue,alpha)``.

    Raises:
        InvalidArgumentError: alpha outside 0 to 1.

    Example:
        >>> faded(colour(0), 0.25)
        'rgba(0,114,178,0.25)'
    """
    alpha = require_float("alpha", alpha, minimum=0.0, maximum=1.0)
    red, green, blue = (int(hex_colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def styled(
    fig: go.Figure,
    *,
    title: str,
    x: str | None = None,
    y: str | None = None,
    subtitle: str | None = None,
    legend: Literal["right", "bottom", "none"] = "right",
    height: int = 480,
    width: int | None = None,
) -> go.Figure:
    """Give ``fig`` the package's look, a title and axis titles; returns the same figure.

    Titles may hold plotly's own markup (``<sub>``, ``<br>``), so text that comes from a user or a tokenizer
    goes through :func:`escape` first.

    Args:
        fig: the figure, changed in place.
        title: what the figure shows, in a few words.
        x: title of every x axis; None leaves them alone (subplots).
        y: title of every y axis.
        subtitle: one smaller line below the title: n, units, the knobs.
        legend: where the legend stands.
        height: pixels.
        width: pixels; None lets the page decide.

    Returns:
        ``fig`` itself.

    Example:
        >>> line = go.Scatter(x=[0, 1, 2], y=[0.9, 0.7, 0.8], line_color=colour(0), name="block")
        >>> figure = styled(go.Figure(line), title="Linearity", x="layer", y="R²")
        >>> figure.layout.title.text, figure.layout.xaxis.title.text
        ('Linearity', 'layer')
    """
    layout: dict[str, Any] = {"template": TEMPLATE, "height": height, "width": width}
    layout["title"] = {"text": title}
    if subtitle:
        layout["title"]["subtitle"] = {"text": subtitle, "font": {"size": 13, "color": "#555555"}}
    if legend == "none":
        layout["showlegend"] = False
    elif legend == "bottom":
        layout["legend"] = {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"}
    else:
        layout["legend"] = {"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top"}
    fig.update_layout(**layout)
    if x is not None:
        fig.update_xaxes(title_text=x)
    if y is not None:
        fig.update_yaxes(title_text=y)
    return fig


def escape(text: object) -> str:
    """Text as plotly will show it literally: ``<b>`` stays three characters, never markup.

    Args:
        text: anything; its ``str`` is taken.

    Returns:
        The text with ``&``, ``<`` and ``>`` as entities.

    Example:
        >>> escape("<b>")
        '&lt;b&gt;'
    """
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def tick_label(label: object, *, max_length: int = 16) -> str:
    """A label fit for an axis: escaped, control characters spelled out, outer spaces as ``·``.

    Args:
        label: anything; its ``str`` is taken.
        max_length: characters shown; a longer label ends in ``…``.

    Returns:
        The label; ``''`` for empty text.

    Example:
        >>> tick_label(" the"), tick_label("unbelievable", max_length=5)
        ('·the', 'unbe…')
    """
    text = str(label)
    if not text:
        return "''"
    shown = "".join(c if c.isprintable() or c == " " else repr(c)[1:-1] for c in text)
    body = shown.strip(" ")
    left = len(shown) - len(shown.lstrip(" "))
    shown = "·" * left + body + "·" * (len(shown) - left - len(body))
    if len(shown) > max_length:
        shown = shown[: max_length - 1] + "…"
    return escape(shown)


def hover_label(label: object) -> str:
    """A label fit for a hover box: the ``repr`` of text, escaped; numbers as they are.

    Args:
        label: anything.

    Returns:
        The label as text.

    Example:
        >>> hover_label("<s>"), hover_label(3)
        ("'&lt;s&gt;'", '3')
    """
    return escape(repr(label) if isinstance(label, str) else label)


def matrix(
    values: Any,
    *,
    rows: Sequence[object] | None = None,
    columns: Sequence[object] | None = None,
    value_name: str = "value",
    row_name: str = "row",
    column_name: str = "column",
    diverging: bool = True,
    limits: tuple[float, float] | None = None,
    max_cells: int = MAX_CELLS,
) -> go.Figure:
    """A heatmap drawn like a matrix: row 0 on top, integer axes, labels as ticks.

    Positions are integers, so two equal labels stay two rows; the hover shows each label's ``repr``. Call
    :func:`styled` on what comes back.

    Args:
        values: ``[rows, columns]`` array or tensor; NaN cells stay blank.
        rows: labels of the rows; None numbers them.
        columns: labels of the columns; None numbers them.
        value_name: name of the number in a cell, with its unit.
        row_name: what a row is.
        column_name: what a column is.
        diverging: signed values, colours centred at 0; otherwise viridis.
        limits: lowest and highest value of the colour bar; None takes the data's.
        max_cells: largest number of cells drawn.

    Returns:
        Figure with one heatmap, without a title.

    Raises:
        FigureTooLargeError: more than ``max_cells`` cells.
        InvalidArgumentError: labels that do not fit the shape.

    Example:
        >>> figure = matrix([[1.0, -2.0], [0.0, 3.0]], rows=[" the", " the"])
        >>> figure.layout.yaxis.ticktext, figure.data[0].zmid
        (('·the', '·the'), 0.0)
    """
    z = as_array("values", values).astype(np.float32)
    if z.ndim != 2:
        raise InvalidArgumentError(f"values must have 2 axes, got shape {z.shape}; pass a matrix")
    check_cells(z.size, max_cells=max_cells)
    if limits is not None:
        ends = [require_float("limits", v) for v in require_list("limits", limits, of="numbers")]
        if len(ends) != 2 or ends[0] >= ends[1]:
            raise InvalidArgumentError(
                f"limits must be (lowest, highest), got {limits!r}; e.g. (-1, 1)"
            )
        limits = (ends[0], ends[1])
    for name, value in (("value_name", value_name), ("row_name", row_name)):
        require_instance(name, value, str, advice="pass the words to be shown")
    require_instance("column_name", column_name, str, advice="pass the words to be shown")
    names = [_labels("rows", rows, z.shape[0]), _labels("columns", columns, z.shape[1])]
    # One hover string a cell; only where there are labels, since it is most of the figure's size.
    where = f"{row_name} %{{y}}<br>{column_name} %{{x}}"
    text = None
    if rows is not None or columns is not None:
        shown = [[hover_label(label) for label in axis] for axis in names]
        text = [
            [f"{row_name} {row}<br>{column_name} {column}" for column in shown[1]]
            for row in shown[0]
        ]
        where = "%{text}"
    heatmap = go.Heatmap(
        z=z,
        text=text,
        hovertemplate=f"{where}<br>{value_name} %{{z:.4g}}<extra></extra>",
        colorscale=DIVERGING if diverging else SEQUENTIAL,
        zmid=0.0 if diverging and limits is None else None,
        zmin=limits[0] if limits else None,
        zmax=limits[1] if limits else None,
        colorbar={"title": {"text": value_name, "side": "right"}, "thickness": 14},
    )
    figure = go.Figure(heatmap)
    as_matrix(figure, rows=names[0], columns=names[1])
    return figure


def as_matrix(
    fig: go.Figure,
    *,
    rows: Sequence[object],
    columns: Sequence[object],
    row: int | None = None,
    col: int | None = None,
) -> go.Figure:
    """Turn a figure's (or one subplot's) axes into matrix axes: row 0 on top, labels as ticks.

    Args:
        fig: the figure, changed in place.
        rows: labels of the rows.
        columns: labels of the columns.
        row: of the subplot, from 1; None for all axes.
        col: of the subplot.

    Returns:
        ``fig`` itself.

    Example:
        >>> as_matrix(go.Figure(), rows=["a", "b"], columns=["x"]).layout.yaxis.autorange
        'reversed'
    """
    below, beside = _ticks(columns), _ticks(rows)
    fig.update_xaxes(**below, showgrid=False, constrain="domain", row=row, col=col)
    fig.update_yaxes(**beside, showgrid=False, autorange="reversed", row=row, col=col)
    return fig


def _labels(name: str, labels: Sequence[object] | None, size: int) -> list[object]:
    if labels is None:
        return list(range(size))
    labels = require_list(name, labels, of="labels")
    if len(labels) != size:
        raise InvalidArgumentError(
            f"{name} must name each of the {size} {name}, got {len(labels)} labels; "
            "pass one label each"
        )
    return list(labels)


def _ticks(labels: Sequence[object]) -> dict[str, Any]:
    step = max(1, -(-len(labels) // MAX_TICKS))
    shown = range(0, len(labels), step)
    return {
        "type": "linear",
        "tickmode": "array",
        "tickvals": list(shown),
        "ticktext": [tick_label(labels[i]) for i in shown],
    }
