"""The kinds of figures, one builder each: lines, levels, bars, panels, tables, heads; and their guard.

Every public figure function is a :func:`figure`: its arguments are held against its annotations once, and
what it returns gets a text alternative in ``figure.layout.meta["alt"]``.
"""

from __future__ import annotations

import functools
import html
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, Union, runtime_checkable

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_linear.checks import counted, require_choice, require_float, require_int, shown
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots.style import (
    DASHES,
    GREY,
    colour,
    escape,
    faded,
    legend_name,
    matrix,
    matrix_height,
    shades,
    shortened,
    styled,
    tick_label,
)

P = ParamSpec("P")
R = TypeVar("R")
FLOOR = 1e-16  # relative errors below float64's resolution are drawn here on a log axis
# A logarithmic axis; plotly sets powers in a larger type than other labels.
LOG: dict[str, Any] = {"type": "log", "exponentformat": "power", "tickfont": {"size": 12}}
MANY_POINTS = 40  # from here on a line has no markers
_ROW = 32  # pixels of a table's line; a cell with an escaped token takes 31


@runtime_checkable
class Tabular(Protocol):
    """Anything that gives a table: a result, or a class of one's own."""

    def to_dataframe(self) -> pd.DataFrame:
        """Return the table."""
        ...


# Guards -----------------------------------------------------------------------------------------


def figure(build: Callable[P, R]) -> Callable[P, R]:
    """Guard a figure function: arguments as annotated, words and the function's name on the figure."""
    signature = inspect.signature(build)

    @functools.cache
    def hints() -> dict[str, Any]:
        return typing.get_type_hints(build)

    @functools.wraps(build)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            _require(name, value, hints()[name], build)
        made = build(*args, **kwargs)
        if isinstance(made, go.Figure):
            made.update_layout(meta={"alt": describe(made), "figure": build.__name__})
        return made

    return guarded


def _require(name: str, value: Any, hint: Any, build: Callable[..., Any]) -> None:
    if typing.get_origin(hint) is Literal:
        require_choice(name, value, typing.get_args(hint))
    elif hint is float:
        require_float(name, value)
    elif not _accepts(value, hint):
        raise InvalidArgumentError(
            f"{name} must be {_words(hint)}, got {shown(value)} ({type(value).__name__}); "
            f"{_advice(name, build)}"
        )


def _accepts(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation of a figure function says."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_accepts(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is not None and issubclass(origin, Mapping):
        known = isinstance(value, Mapping) and len(value) > 0
        return known and all(isinstance(k, str) and _accepts(v, parts[1]) for k, v in value.items())
    if origin is not None and issubclass(origin, Sequence):
        if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
            return False
        items = value.tolist() if hasattr(value, "tolist") else value
        return isinstance(items, Sequence) and all(_accepts(item, parts[0]) for item in items)
    if hint is bool:
        return type(value).__name__ in ("bool", "bool_")
    if hint in (int, float):
        number = isinstance(value, Integral if hint is int else Real)
        return number and not isinstance(value, (bool, np.bool_))
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    """An annotation in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in parts)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin is not None and issubclass(origin, Mapping):
        return f"{{name: {_words(parts[1]).removeprefix('a ')}}} with at least one name"
    if origin is not None and issubclass(origin, Sequence):
        return f"a list, each {_words(parts[0])}"
    plain = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}
    names: dict[Any, str] = {
        type(None): "None",
        Tabular: "a result with to_dataframe()",
        **plain,
    }
    return names.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _advice(name: str, build: Callable[..., Any]) -> str:
    """What the docstring says of an argument, which tells where such a thing comes from."""
    found = re.search(
        rf"^    {name}: (.*?)(?=^    \w+: |^\w|\Z)", inspect.getdoc(build) or "", re.M | re.S
    )
    text = (
        " ".join(found[1].split()).replace("``", "").rstrip(".") if found else "see its docstring"
    )
    return f"pass {text}" if text.startswith("what ") else f"{name}: {text}"


def describe(fig: go.Figure) -> str:
    """The text alternative of a figure: its title, its axes, and the reach of what is drawn."""
    layout: Any = fig.layout
    said = [_plain(layout.title.text), _plain(layout.title.subtitle.text)]
    drawn: list[tuple[str, Any]] = [("x", fig.select_xaxes()), ("y", fig.select_yaxes())]
    for name, axes in drawn:
        said += [f"{name}: {_plain(axis.title.text)}" for axis in axes if axis.title.text][:1]
    for trace in list(fig.data)[:12]:
        if trace.type == "table":
            heads = ", ".join(_plain(head) for head in trace.header["values"])
            said.append(f"table of {len(trace.cells['values'][0])} lines: {heads}")
            continue
        name = "cells" if trace.type == "heatmap" else trace.name
        values = (
            trace.z if trace.type == "heatmap" else trace.x if trace.orientation == "h" else trace.y
        )
        if name and trace.showlegend is not False and values is not None:
            numbers = pd.to_numeric(pd.Series(np.ravel(values)), errors="coerce").dropna()
            if len(numbers):
                ends = f"{numbers.min():.3g} to {numbers.max():.3g}"
                said.append(f"{_plain(name)} from {ends}")
    return ". ".join(part.rstrip(".") for part in said if part) + "."


def _plain(text: str | None) -> str:
    words = html.unescape(re.sub(r"<[^>]*>", " ", text or "")).strip()
    return words.replace("<", "‹").replace(">", "›")  # safe wherever a page puts it


# Lines ------------------------------------------------------------------------------------------


def add_line(
    fig: go.Figure,
    x: Any,
    y: Any,
    name: str,
    *,
    index: int = 0,
    ink: str | None = None,
    dash: str | None = None,
    band: tuple[Any, Any] | None = None,
    bars: tuple[Any, Any] | None = None,
    hover: str = "%{x}: %{y:.4g}",
    custom: Any = None,
    at: tuple[int, int] | None = None,
    legend: bool = True,
    width: float = 2.5,
    mode: str | None = None,
    of: int = 0,
) -> go.Figure:
    """Add a line with its markers; ``band`` and ``bars`` are the low and high ends around it, if known.

    ``at`` is the panel (row, column); panels after the first repeat no legend. ``of`` is the number of named
    lines of which this is one: more than eight get shades, of more than twelve some are named.
    """
    x, y = list(x), list(y)
    row, col = at or (None, None)
    ink = ink or (inks(of)[index] if of else colour(index))
    legend = legend and (of == 0 or in_legend(index, of, most=12))
    if band is not None and not np.isnan(np.asarray(band, dtype=float)).all():
        low, high = map(list, band)
        fig.add_scatter(
            x=[*x, *reversed(x)], y=[*high, *reversed(low)], mode="lines", fill="toself",
            fillcolor=faded(ink), line={"width": 0},
            hoverinfo="skip", showlegend=False, row=row, col=col,
        )  # fmt: skip
    error = None
    if bars is not None and not np.isnan(np.asarray(bars, dtype=float)).all():
        least, middle, most = (np.asarray(part, dtype=float) for part in (bars[0], y, bars[1]))
        error = {"array": most - middle, "arrayminus": middle - least, "symmetric": False}
        error |= {"thickness": 1, "width": 3}
    few = len(x) <= MANY_POINTS
    return fig.add_scatter(
        x=x, y=y, error_y=error, customdata=custom, name=legend_name(name),
        mode=mode or ("lines+markers" if few else "lines"),
        line={"color": ink, "dash": dash or DASHES[index % len(DASHES)], "width": width},
        marker={"size": 7, "symbol": index % 8, "color": ink},
        legendgroup=escape(name), showlegend=legend and at in (None, (1, 1)),
        hovertemplate=f"{escape(name)}<br>{hover}<extra></extra>", row=row, col=col,
    )  # fmt: skip


def add_level(
    fig: go.Figure,
    value: Any,
    name: str,
    *,
    x: Sequence[Any],
    dash: str = "dot",
    at: tuple[int, int] | None = None,
) -> go.Figure:
    """Add a null, a baseline or a ceiling: a grey line with a name in the legend, inside the axis."""
    values = (
        list(value) if isinstance(value, (Sequence, np.ndarray, pd.Series)) else [value] * len(x)
    )
    return add_line(fig, x, values, name, ink=GREY, dash=dash, at=at, width=1.5, mode="lines")


def ends_of(frame: pd.DataFrame, column: str) -> tuple[Any, Any] | None:
    """The ends of a column's interval, where a table has them."""
    low, high = frame.get(f"{column}_low"), frame.get(f"{column}_high")
    return None if low is None or high is None else (low, high)


def window(
    fig: go.Figure,
    *,
    lowest: float,
    highest: float | None = None,
    at: tuple[int, int] | None = None,
) -> go.Figure:
    """Set the y axis (of a panel) so that all that is drawn so far is inside, but not below ``lowest``."""
    drawn = heights(fig) if fig.data else np.zeros(1)
    low, high = max(float(drawn.min()), lowest), float(drawn.max())
    high = high if highest is None else max(highest, high)
    room = 0.04 * max(high - low, 1e-3)
    row, col = at or (None, None)
    return fig.update_yaxes(range=[low - room, high + room], row=row, col=col)


def below_axis(frame: pd.DataFrame, drawn: Sequence[tuple[str, str]], floor: float) -> str:
    """How many scores (column, label) of layers lie below the axis, and the lowest; nothing where none do."""
    off = [(float(frame[name].min()), name, label) for name, label in drawn]
    least, name, label = min(off, key=lambda found: found[0], default=(0.0, "", ""))
    if not off or least >= floor:
        return ""
    count = sum(int((frame[name] < floor).sum()) for name, _ in drawn)
    where = int(frame["layer"].iloc[int(np.nanargmin(frame[name]))])
    return (
        f"<br>{counted(count, 'score')} below the axis, lowest: {label}, layer {where}: {least:.3g}"
    )


def heights(fig: go.Figure) -> np.ndarray:
    """The finite numbers along y of all that is drawn so far."""
    values = [np.asarray(t.y, dtype=float) for t in fig.data if t.y is not None]
    drawn: np.ndarray = np.concatenate([np.zeros(0), *values])
    return np.asarray(drawn[np.isfinite(drawn)])


def log_axis(values: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis: at most nine powers of ten, or whole numbers where there would be none or one.

    Plotly's own ticks between powers are small bare digits: "2" where 20 is meant.
    """
    drawn = [float(value) for value in values if value > 0 and np.isfinite(value)]
    if not drawn:
        return {**LOG, "dtick": 1}
    low, high = min(drawn), max(drawn)
    tens = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    decades = sum(low <= 10.0**ten <= high for ten in tens)
    if decades >= 2:
        return {**LOG, "dtick": -(-decades // 9)}
    for digits in ((1, 2, 5), range(1, 10)):
        ticks = [float(f"{digit}e{ten}") for ten in tens for digit in digits]
        if sum(low <= tick <= high for tick in ticks) >= 2:
            break
    words = [f"{tick:g}" for tick in ticks]
    return {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": words}


def layer_axis(fig: go.Figure, count: int, *, room: int = 13) -> go.Figure:
    """Whole numbers on the x axis, as many as have room."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if count <= s * room or s == 1000)
    return fig.update_xaxes(dtick=step, tick0=0)


def inks(count: int, *, ordered: bool = False) -> list[str]:
    """Colours of so many series: categories up to eight, else (or if they have an order) shades."""
    from_order = ordered or count > 8
    return shades(count) if from_order else [colour(index) for index in range(count)]


def in_legend(index: int, count: int, *, most: int = 8) -> bool:
    """Whether one of many ordered series is named in the legend: first, last and some between."""
    return index % max(1, -(-count // most)) == 0 or index == count - 1


def panels(
    titles: Sequence[str],
    *,
    share_y: bool = False,
    across: int = 3,
    beside: float | None = None,
    below: float = 0.16,
) -> tuple[go.Figure, list[tuple[int, int]]]:
    """Subplots in rows of at most ``across``, and where each stands; titles are escaped already.

    ``beside`` and ``below`` are the shares of the figure that lie between panels, all rows together.
    """
    gap = beside or (0.04 if share_y else 0.12)
    across = min(across, len(titles))
    rows = -(-len(titles) // across)
    room = {1: 60, 2: 26}.get(across, 16)  # characters of a title that fit side by side
    long = {1: 50, 2: 24}.get(across, 16)  # of one word, which stands on a line of its own
    shared: Any = "all" if share_y else False
    fig = make_subplots(
        rows=rows, cols=across, subplot_titles=[
            "<br>".join(textwrap.wrap(shortened(title, long), room, break_long_words=False))
            for title in titles
        ],
        shared_yaxes=shared, horizontal_spacing=0.0 if across == 1 else gap,
        vertical_spacing=below / max(rows - 1, 1) if rows > 1 else 0.0,
    )  # fmt: skip
    fig.update_annotations(font_size=12)
    return fig, [(i // across + 1, i % across + 1) for i in range(len(titles))]


# Bars, tables, heads ----------------------------------------------------------------------------


def bars(
    names: Sequence[str],
    values: Iterable[float | None],
    *,
    name: str = "",
    fig: go.Figure | None = None,
    colours: Sequence[str] | str | None = None,
    text: Sequence[str] | None = None,
    custom: Any = None,
    hover: str = "%{x:.4g}",
    length: int = 36,
) -> go.Figure:
    """Horizontal bars with their names beside them, the first on top; call again for a second set."""
    fig = go.Figure() if fig is None else fig
    places = list(range(len(names)))
    labels = [tick_label(each, max_length=length) for each in names]
    whole = [escape(each) for each in names]
    fig.add_bar(
        y=places, x=list(values), orientation="h", name=legend_name(name) if name else None,
        marker_color=colours if colours is not None else colour(0), text=text,
        textposition="outside" if text is not None else None, cliponaxis=False, customdata=custom,
        hovertext=whole, hovertemplate=f"%{{hovertext}}<br>{hover}<extra></extra>",
    )  # fmt: skip
    fig.update_yaxes(
        tickmode="array", tickvals=places, ticktext=labels, autorange="reversed", showgrid=False
    )
    fig.update_xaxes(zeroline=True, zerolinecolor=GREY, zerolinewidth=1)
    drawn = [v for trace in fig.data for v in trace.x if v is not None and np.isfinite(v)]
    low, high = min(0.0, *drawn, 0.0), max(0.0, *drawn, 0.0)
    room = (high - low or 1.0) * (0.25 if text is not None else 0.04)  # for the numbers outside
    return fig.update_xaxes(range=[low - room * (low < 0), high + room])


def bars_height(n_bars: int, *, pitch: int = 24) -> int:
    """Pixels of a figure of so many bars."""
    return 190 + pitch * max(n_bars, 2)


def table(
    columns: Mapping[str, Sequence[str]], *, widths: Sequence[float] | None = None
) -> go.Table:
    """A table of text that is escaped already."""
    cells: dict[str, Any] = {"align": "left", "font": {"size": 13}}
    return go.Table(
        columnwidth=widths,
        header={"values": list(columns), "fill_color": "#DCE6F0", "height": 28, **cells},
        cells={"values": list(columns.values()), "fill_color": "white", "height": _ROW, **cells},
    )


def table_figure(
    columns: Mapping[str, Sequence[str]],
    *,
    title: str,
    subtitle: str,
    widths: Sequence[float] | None = None,
) -> go.Figure:
    """A figure that is one table, high enough for its lines and a few that are wrapped."""
    lines = len(next(iter(columns.values())))
    fig = styled(
        go.Figure(table(columns, widths=widths)), title=title, subtitle=subtitle, legend="none",
        height=230 + _ROW * lines,
    )  # fmt: skip
    return fig.update_layout(margin={"l": 12, "r": 12})  # no axis needs the room


def head_map(
    values: Any,
    *,
    value_name: str,
    hover: Sequence[Sequence[str]] | None = None,
) -> go.Figure:
    """A layers × heads map on the data's scale: signed values centred at 0, others from 0 on."""
    grid = np.asarray(values, dtype=np.float32)
    signed = bool((grid < 0).any())
    top = float(np.nanmax(np.abs(grid))) if np.isfinite(grid).any() else 1.0
    fig = matrix(
        grid, rows=[f"L{i}" for i in range(grid.shape[0])],
        columns=[f"H{j}" for j in range(grid.shape[1])], value_name=value_name, row_name="layer",
        column_name="head", diverging=signed,
        limits=(-top, top) if signed else (0.0, top or 1.0),
    )  # fmt: skip
    if hover is not None:
        fig.data[0].text = [list(row) for row in hover]
    fig.update_traces(xgap=1, ygap=1)
    return fig.update_layout(height=matrix_height(grid.shape[0], least=32))


def frame_of(result: Tabular | pd.DataFrame) -> pd.DataFrame:
    """The table of a result, or a table itself."""
    return result if isinstance(result, pd.DataFrame) else result.to_dataframe()


def require_columns(name: str, frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Accept a table that has these columns."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise InvalidArgumentError(
            f"{name} must have the columns {', '.join(columns)}, got {', '.join(map(str, frame.columns))}; "
            f"{', '.join(missing)} is missing: pass what the analysis returned"
        )


def chosen(name: str, k: int) -> int:
    """A number of lines to be shown, at least 1."""
    return require_int(name, k, minimum=1)
