"""A figure for every result that has none of its own: its table, drawn column by column."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from lens_linear.plots._kinds import Tabular, bars_height, figure, frame_of, panels, table_figure
from lens_linear.plots.style import colour, escape, legend_name, styled, tick_label

_PANELS = 6
_ROWS = 24  # names that can be read beside bars; longer tables become lines
_LINES = 30
_DIGITS = 4


@figure
def overview(result: Tabular | pd.DataFrame) -> go.Figure:
    """Draw a table: one panel a column of numbers, against its rows; a table where there are none.

    Columns that the result says matter come first, six of them at most; bars with the names of the rows up
    to 24 rows, lines against the row's number above.

    Args:
        result: any result, or its table.

    Returns:
        A figure; text alternative in ``layout.meta["alt"]``.

    Example:
        >>> frame = pd.DataFrame({"name": ["a", "b"], "loss": [1.0, 2.0]})
        >>> [float(x) for x in overview(frame).data[0].x]
        [1.0, 2.0]
    """
    frame = frame_of(result).rename(columns=str)
    frame = frame.loc[:, ~frame.columns.duplicated()]
    title = (
        "A table, column by column" if isinstance(result, pd.DataFrame) else type(result).__name__
    )
    subtitle = f"{len(frame)} rows" if isinstance(result, pd.DataFrame) else repr(result)
    if frame.index.name is not None:
        frame = frame.reset_index()
    numbers = _numbers(frame, getattr(result, "_columns", ()))
    if len(frame) < 2 or not numbers:
        return _as_table(frame, title, subtitle)
    shown = numbers[:_PANELS]
    labels, long = _row_names(frame, numbers), len(frame) > _ROWS
    each = 220 if long else bars_height(len(frame), pitch=18) - 90
    across = min(2 if long else 3, len(shown))  # lines have numbers beside every panel
    height = 160 + each * -(-len(shown) // across)
    heads = [escape(name.replace("_", " ")) for name in shown]
    gap = 80 * (height // each - 1) / height
    fig, places = panels(heads, across=across, beside=0.2 if long else None, below=gap)
    for name, (row, column) in zip(shown, places, strict=True):
        values = frame[name].astype(float).tolist()
        if long:
            fig.add_scatter(
                y=values, mode="lines", line_color=colour(0), name=legend_name(name),
                row=row, col=column,
            )  # fmt: skip
            continue
        fig.add_bar(
            y=list(range(len(frame))), x=values, orientation="h", marker_color=colour(0),
            name=legend_name(name),
            hovertext=[escape(label) for label in labels],
            hovertemplate="%{hovertext}<br>%{x:.4g}<extra></extra>", row=row, col=column,
        )  # fmt: skip
        names = [tick_label(label, max_length=20) for label in labels] if column == 1 else []
        fig.update_yaxes(
            tickmode="array", tickvals=list(range(len(names))), ticktext=names, autorange="reversed",
            row=row, col=column,
        )  # fmt: skip
    left = len(numbers) - len(shown)
    more = f"; {left} more columns in the table" if left else ""
    return styled(
        fig,
        title=title,
        subtitle=subtitle + more,
        legend="none",
        height=height,
        panels=True,
    )


def _numbers(frame: pd.DataFrame, wanted: Sequence[str]) -> list[str]:
    """Columns of numbers that vary or are alone, those that matter first."""
    names = [
        name
        for name in frame.columns
        if pd.api.types.is_numeric_dtype(frame[name])
        and not pd.api.types.is_bool_dtype(frame[name])
        and frame[name].tolist() != list(range(len(frame)))  # a counter, not a score
        and name not in ("layer", "head", "index")
        and frame[name].notna().any()
    ]
    names = [name for name in names if frame[name].nunique() > 1] or names
    first = [name for name in wanted if name in names]
    return [*first, *(name for name in names if name not in first)]


def _row_names(frame: pd.DataFrame, numbers: Sequence[str]) -> list[str]:
    """What tells the rows apart: columns that are no scores, or the row's number."""
    keys = [name for name in frame.columns if name not in numbers and frame[name].nunique() > 1]
    few = [keys[:i] for i in (1, 2, 3) if len(keys) >= i and not frame.duplicated(keys[:i]).any()]
    if not keys:
        return [str(i) for i in range(len(frame))]
    told = few[0] if few else keys[:3]

    def word(name: str, value: object) -> str:  # a number alone says nothing
        return (
            f"{name.replace('_', ' ')} {value}" if isinstance(value, (int, float)) else str(value)
        )

    rows = frame[told].itertuples(index=False, name=None)
    return [" · ".join(word(n, v) for n, v in zip(told, row, strict=True)) for row in rows]


def _as_table(frame: pd.DataFrame, title: str, subtitle: str) -> go.Figure:
    """One row as pairs of name and value; more rows as they are."""
    if len(frame) == 1:
        pairs = frame.iloc[0]
        columns = {
            "what": [escape(str(name).replace("_", " ")) for name in pairs.index],
            "value": [escape(_short(value)) for value in pairs],
        }
    else:
        head = frame.head(_LINES)
        columns = {escape(name): [escape(_short(v)) for v in head[name]] for name in head.columns}
    return table_figure(columns, title=title, subtitle=subtitle)


def _short(value: object) -> str:
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else str(value)
