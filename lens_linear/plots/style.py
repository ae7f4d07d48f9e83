"""One look for every figure of the package: colours, titles, labels, matrices.

A figure function takes a result and returns a :class:`plotly.graph_objects.Figure`: it computes
nothing, calls no ``show`` and sets no global renderer or template. Readers with a colour vision
deficiency can tell the colours apart: Okabe & Ito's eight for categories, red to blue centred at
zero for signed values, viridis for unsigned ones. No figure has a width of its own: the page or the
notebook gives it one, from 390 pixels on.

A figure is made for white paper. Where a page of ours draws it (report, tour, gallery) the page turns it for
readers who prefer dark: ground, ink, and every scale that runs to white. A notebook or a picture file stores
it as it is, so there it keeps its white ground whatever the reader prefers.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from lens_linear.checks import (
    require_bool,
    require_floats,
    require_instance,
    require_int,
    require_list,
)
from lens_linear.errors import FigureTooLargeError, InvalidArgumentError
from lens_linear.token_labels import text_label

__all__ = ["GREY", "OKABE_ITO", "colour", "escape", "matrix", "styled"]

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
MAX_CELLS = 40_000
MAX_ROWS = 40  # tick labels beside a matrix; more overlap, and the hover still names every cell
LABELS_BELOW = 20  # upright tick labels that fit below a matrix
NAME_LENGTH = 34  # characters of a legend's name
_LEGEND_LINE = 29  # pixels

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
# Numbers as they are read aloud, 10,000 and 0.0001, beyond that powers of ten; not plotly's "10k" and "100µ".
_NUMBERS = {"exponentformat": "power", "minexponent": 5, "separatethousands": True}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "Open Sans, Segoe UI, Helvetica, Arial, sans-serif", "size": 13},
        "title": {"font": {"size": 17}, "x": 0.0, "xref": "container", "yref": "container"}
        | {"xanchor": "left"},
        "colorway": list(OKABE_ITO),
        "colorscale": {"diverging": DIVERGING, "sequential": SEQUENTIAL},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": _AXIS | _NUMBERS,
        "yaxis": _AXIS | _NUMBERS,
        "hoverlabel": {"font": {"family": "monospace", "size": 13}, "align": "left"},
        "margin": {"l": 60, "r": 20, "b": 50},
        "autosize": True,
    },
    data={"heatmap": [{"colorbar": _NUMBERS}], "scatter": [{"marker": {"colorbar": _NUMBERS}}]},
)
_LINE, _SMALL = 23, 17  # pixels of a line of the title and of the subtitle
_LETTER = 7  # pixels of a tick label's letter
_UPRIGHT = 5  # upright letters that every height has room for


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


def height_of(fig: go.Figure) -> int:
    """Pixels a figure is tall, as its builder set it."""
    layout: Any = fig.layout
    return int(layout.height)


def shades(count: int) -> list[str]:
    """Colours of an ordered series along viridis, dark first, also apart in grey; not its palest end."""
    ends = np.linspace(0.0, 0.82, count)
    return [str(shade) for shade in sample_colorscale(SEQUENTIAL, ends.tolist())]


def faded(ink: str) -> str:
    """A colour (``#RRGGBB`` or ``rgb(r, g, b)``) as an ``rgba`` string, for bands around a line."""
    parts = (
        re.findall(r"\d+", ink) if ink[0] != "#" else [int(ink[i : i + 2], 16) for i in (1, 3, 5)]
    )
    red, green, blue = map(int, parts)
    return f"rgba({red},{green},{blue},0.18)"


def styled(
    fig: go.Figure,
    *,
    title: str,
    x: str | None = None,
    y: str | None = None,
    subtitle: str | None = None,
    legend: Literal["right", "bottom", "none"] = "bottom",
    height: int = 480,
    width: int | None = None,
    panels: bool = False,
) -> go.Figure:
    """Give ``fig`` the package's look, a title and axis titles; returns the same figure.

    Titles may hold plotly's own markup (``<sub>``, ``<br>``), so text that comes from a user or a tokenizer
    goes through :func:`escape` first. Long titles are wrapped so that they fit a narrow page.

    Args:
        fig: the figure, changed in place.
        title: what the figure shows, in a few words.
        x: title of every x axis; None leaves them alone (subplots).
        y: title of every y axis.
        subtitle: smaller lines below the title: n, units, the knobs.
        legend: where the legend stands; at the right it takes room from the figure.
        height: pixels; a legend of more than two lines at the bottom adds its own, and so do long labels that
            stand upright.
        width: pixels; None lets the page decide.
        panels: subplots with titles of their own, which need room.

    Returns:
        ``fig`` itself.

    Example:
        >>> line = go.Scatter(x=[0, 1, 2], y=[0.9, 0.7, 0.8], line_color=colour(0), name="block")
        >>> figure = styled(go.Figure(line), title="Linearity", x="layer", y="R²")
        >>> figure.layout.title.text, figure.layout.xaxis.title.text
        ('Linearity', 'layer')
    """
    lines, small = _wrapped(title, 44), _wrapped(subtitle or "", 60)
    height += _LEGEND_LINE * max(0, _legend_lines(fig) - 2) if legend == "bottom" else 0
    height += _LETTER * max(0, _upright_letters(fig) - _UPRIGHT)
    layout: dict[str, Any] = {"template": TEMPLATE, "height": height, "width": width}
    layout["title"] = {
        "text": "<br>".join(lines),
        "y": 1 - (8 + _LINE / 2 * len(lines)) / height,
        "yanchor": "middle",
        "pad": {"l": 12},
    }
    if small:
        layout["title"]["subtitle"] = {
            "text": "<br>".join(small),
            "font": {"size": 13, "color": "#555555"},
        }
    notes: Any = fig.layout
    heads = [note.text.count("<br>") + 1 for note in notes.annotations if note.yanchor == "bottom"]
    above = 6 + 15 * max(2, *heads, 0) if panels else 0  # titles of panels, in lines
    layout["margin"] = {"t": 28 + _LINE * len(lines) + _SMALL * len(small) + above}
    if legend == "none":
        layout["showlegend"] = False
    elif legend == "bottom":
        layout["legend"] = {"orientation": "h", "x": 0, "yref": "container", "y": 0}
        layout["legend"] |= {"xanchor": "left", "yanchor": "bottom"}
    else:
        layout["legend"] = {"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top"}
    fig.update_layout(**layout)
    if x is not None:  # of panels side by side the one in the middle names the axis of all
        axes: list[Any] = list(fig.select_xaxes())
        across = len({axis.domain for axis in axes})
        fig.update_xaxes(title_text=x, col=2 if panels and across == 3 else None)
    if y is not None:
        fig.update_yaxes(title_text=shortened(y, 30))
    return fig


def _legend_lines(fig: go.Figure) -> int:
    """Lines of a legend below a figure of 700 pixels: plotly gives all names the widest one's room."""
    names = {trace.name for trace in fig.data if trace.name and trace.showlegend is not False}
    widest = max((len(html.unescape(name)) for name in names), default=0)
    return -(-len(names) // max(1, 610 // (45 + 8 * widest)))


def _upright_letters(fig: go.Figure) -> int:
    """Letters of the longest tick label that stands upright below a panel."""
    every: list[Any] = list(fig.select_xaxes())
    axes = [axis for axis in every if axis.tickangle == -90]
    return max((len(_signs(text)) for axis in axes for text in axis.ticktext or ()), default=0)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of like length, at most ``width`` characters; breaks stay, ``n = 3`` is never cut."""
    lines: list[str] = []
    for part in text.replace(" = ", "\0=\0").split("<br>"):
        part = " ".join(_cut(word, width) for word in part.split(" "))
        even = -(-len(part) // max(1, -(-len(part) // (width - 8)))) + 8
        lines += textwrap.wrap(part, min(width, even), break_long_words=False)
    return [line.replace("\0", " ").replace("\1 ", "").strip("\1") for line in lines]


def _cut(word: str, width: int) -> str:
    """A word in pieces of at most ``width`` characters, each but the last marked as not its end."""
    if len(word) <= width:
        return word
    signs = _signs(word)
    return "\1 ".join("".join(signs[i : i + width]) for i in range(0, len(signs), width))


def _signs(escaped: str) -> list[str]:
    """Characters of a text, an entity or a tag counted as one."""
    return re.findall(r"&#?\w+;|<[^>]*>|.", escaped, re.DOTALL)


def shortened(escaped: str, width: int) -> str:
    """An escaped text with every word of more than ``width`` characters cut in its middle."""
    found = [(word, _signs(word)) for word in escaped.split(" ")]
    half = (width - 1) // 2
    return " ".join(
        word if len(signs) <= width else "".join((*signs[:half], "…", *signs[-half:]))
        for word, signs in found
    )


def escape(text: object) -> str:
    """Text as plotly will show it literally: ``<b>`` stays three characters, never markup.

    Args:
        text: anything; its ``str`` is taken.

    Returns:
        The text with ``&``, ``<`` and ``>`` as entities, and so the marks that plotly reads: ``$`` and
        ``%{``.

    Example:
        >>> escape("<b>"), escape("%{x}")
        ('&lt;b&gt;', '%&#123;x}')
    """
    safe = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return safe.replace("$", "&#36;").replace("%{", "%&#123;")


def tick_label(label: object, *, max_length: int | None = 16) -> str:
    """A label fit for an axis: escaped, the invisible made visible as everywhere in the package.

    The middle of a label of more than ``max_length`` characters becomes ``…``; empty text becomes ``∅``.

    Example:
        >>> tick_label(" the"), tick_label("unbelievable", max_length=7)
        ('␣the', 'unb…ble')
    """
    return escape(text_label(str(label), max_length=max_length))


def legend_name(name: object) -> str:
    """A name fit for a legend: escaped, and at most 34 characters before that.

    Example:
        >>> legend_name("a" * 80)
        'aaaaaaaaaaaaaaaaa…aaaaaaaaaaaaaaaa'
    """
    return tick_label(name, max_length=NAME_LENGTH)


def check_cells(n_cells: int, *, max_cells: int = MAX_CELLS) -> None:
    """Accept at most ``max_cells`` cells, more of which a browser could not draw."""
    if require_int("n_cells", n_cells, minimum=0) > require_int("max_cells", max_cells, minimum=1):
        raise FigureTooLargeError(
            f"the figure would have {n_cells} cells but max_cells is {max_cells}; "
            "show fewer rows and columns, or pass a larger max_cells"
        )


def as_array(name: str, values: Any) -> np.ndarray:
    """Accept real numbers as an array, a tensor (of 16 bits too) or a nested list of any shape."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.dtype.itemsize == 2 else values
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"its numbers are {array.dtype}")
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"{name} must be an array of real numbers, got {type(values).__name__} ({error}); "
            "pass a tensor or a numpy array"
        ) from error
    return array


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
    square: bool = False,
    numbers: bool = False,
) -> go.Figure:
    """A heatmap drawn like a matrix: row 0 on top, integer axes, labels as ticks.

    Positions are integers, so two equal labels stay two rows; the hover shows each label whole. Call
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
        square: cells as high as wide.
        numbers: write the numbers into the cells where they fit (up to 7 columns).

    Returns:
        Figure with one heatmap, without a title.

    Raises:
        FigureTooLargeError: more than ``max_cells`` cells.
        InvalidArgumentError: labels that do not fit the shape.

    Example:
        >>> figure = matrix([[1.0, -2.0], [0.0, 3.0]], rows=[" the", " the"])
        >>> figure.layout.yaxis.ticktext, figure.data[0].zmid
        (('␣the', '␣the'), 0.0)
    """
    z = as_array("values", values).astype(np.float32)
    if z.ndim != 2:
        raise InvalidArgumentError(f"values must have 2 axes, got shape {z.shape}; pass a matrix")
    check_cells(z.size, max_cells=max_cells)
    if limits is not None:
        ends = require_floats("limits", limits)
        if len(ends) != 2 or ends[0] >= ends[1]:
            raise InvalidArgumentError(
                f"limits must be (lowest, highest), got {limits!r}; e.g. (-1, 1)"
            )
        limits = (ends[0], ends[1])
    words = {"value_name": value_name, "row_name": row_name, "column_name": column_name}
    for name, value in words.items():
        require_instance(name, value, str, advice="pass the words to be shown")
    names = [_labels("rows", rows, z.shape[0]), _labels("columns", columns, z.shape[1])]
    # One hover string a cell; only where there are labels, since it is most of the figure's size.
    where, text = f"{row_name} %{{y}}<br>{column_name} %{{x}}", None
    if rows is not None or columns is not None:
        shown = [[tick_label(label, max_length=None) for label in axis] for axis in names]
        text = [
            [f"{row_name} {row}<br>{column_name} {column}" for column in shown[1]]
            for row in shown[0]
        ]
        where = "%{text}"
    heatmap = go.Heatmap(
        z=z,
        text=text,
        hovertemplate=f"{where}<br>{value_name} %{{z:.4g}}<extra></extra>",
        hoverongaps=False,
        colorscale=DIVERGING if require_bool("diverging", diverging) else SEQUENTIAL,
        zmid=0.0 if diverging and limits is None else None,
        zmin=limits[0] if limits else None,
        zmax=limits[1] if limits else None,
        colorbar={"title": {"text": value_name, "side": "right"}, "thickness": 12, "xpad": 4},
    )
    figure = go.Figure(heatmap)
    if require_bool("numbers", numbers) and z.shape[1] <= 7 and z.shape[0] <= 20:
        figure.update_traces(texttemplate="%{z:.2f}", textfont={"size": 11})
    return as_matrix(figure, rows=names[0], columns=names[1], square=require_bool("square", square))


def as_matrix(
    fig: go.Figure,
    *,
    rows: Sequence[object],
    columns: Sequence[object],
    row: int | None = None,
    col: int | None = None,
    square: bool = False,
    panels: int = 1,
) -> go.Figure:
    """Turn a figure's (or one subplot's) axes into matrix axes: row 0 on top, labels as ticks.

    ``panels`` are the subplots side by side, which share the room for labels.
    """
    longest = max((min(len(str(label)), 16) for label in columns), default=1)
    level = len(columns) * (longest + 1) <= 38 // panels  # characters that fit side by side
    below: Any = _ticks(columns, LABELS_BELOW // panels) | {"tickangle": 0 if level else -90}
    fig.update_xaxes(**below, showgrid=False, constrain="domain", row=row, col=col)
    beside = _ticks(rows, LABELS_BELOW if square else MAX_ROWS) | {
        "autorange": "reversed",
        "showgrid": False,
    }
    if square:
        axis = next(fig.select_xaxes(row=row, col=col)).plotly_name.replace("axis", "")
        beside |= {"scaleanchor": axis, "constrain": "domain", "constraintoward": "top"}
    fig.update_yaxes(**beside, row=row, col=col)
    return fig


def matrix_height(n_rows: int, *, least: int = 20, most: int = 640) -> int:
    """Pixels of a figure of so many rows, title and axis included: every label has its line.

    A row of few has ``least``, all rows together at most ``most``.
    """
    return 180 + max(80, min(most, least * n_rows))


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


def _ticks(labels: Sequence[object], most: int) -> dict[str, Any]:
    step = max(1, -(-len(labels) // max(most, 2)))
    shown = range(0, len(labels), step)
    return {
        "type": "linear",
        "tickmode": "array",
        "tickvals": list(shown),
        "ticktext": [tick_label(labels[i]) for i in shown],
    }
