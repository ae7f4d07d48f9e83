"""Results: frozen values with the knobs that made them, a sentence, a table and a figure.

A class that inherits :class:`Result` defines ``to_dataframe`` and ``__repr__``. It gives columns by name,
shows itself in a notebook as its sentence and a rounded table, and draws itself with ``plot()``. It is not a
DataFrame: what a frame can do is asked of ``result.to_dataframe()``, which is a copy.
"""

from __future__ import annotations

import html
import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from lens_linear.checks import counted
from lens_linear.token_labels import text_label

if TYPE_CHECKING:
    from torch import Tensor

# What people ask of a result as if it were a frame or a figure.
_FRAMES = ("to_csv", "to_json", "to_dict", "to_parquet", "to_latex", "head", "tail", "sort_values", "query",
           "loc", "iloc", "columns", "describe", "groupby", "iterrows", "itertuples")  # fmt: skip
_MEANT = {
    **{name: f".to_dataframe().{name}" for name in _FRAMES},
    **dict.fromkeys(("df", "frame", "data", "table", "dataframe", "to_pandas"), ".to_dataframe()"),
    **dict.fromkeys(("show", "draw", "fig", "figure", "render"), ".plot()"),
    **dict.fromkeys(
        ("save", "write", "export"), ".to_dataframe().to_csv(path), or .plot().write_html(path)"
    ),
}
_ROWS = 20
_DIGITS = 4


class View:
    """What shows itself: a sentence, a rounded table, a figure. Tensors with notes inherit this alone."""

    #: Name of the figure in ``lens_linear.plots`` that draws this.
    _figure: ClassVar[str] = "overview"

    #: Columns that matter, which the view shows, all when empty; without labels "x_label" means "x".
    _columns: ClassVar[tuple[str, ...]] = ()

    def _that_matter(self) -> tuple[str, ...]:
        """The columns that matter of this one result."""
        return self._columns

    if not TYPE_CHECKING:  # an editor or a type checker must not take any name for one of a result

        def __getattr__(self, name: str) -> Any:
            advice = f"; you may want {_MEANT[name]}" if name in _MEANT else ""
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}{advice}", name=name, obj=self
            )

    def to_dataframe(self) -> pd.DataFrame:
        """Return the table as a DataFrame of its own."""
        raise NotImplementedError

    def _in_view(self) -> pd.DataFrame:
        """The table in the order in which people look at it: the view shows its first rows."""
        return self.to_dataframe()

    def plot(self, **options: Any) -> Any:
        """Draw the result; the same as ``lens_linear.plots.<figure>(result, **options)``.

        Args:
            **options: of that figure.

        Returns:
            A ``plotly.graph_objects.Figure``.
        """
        # The one place where a result knows of a floor above it, by name and only when asked.
        figures = importlib.import_module("lens_linear.plots")
        return getattr(figures, self._figure)(self, **options)

    def _repr_html_(self) -> str:
        frame = self._in_view()
        wanted = main_columns(self, frame)
        hidden = len(frame.columns) - len(wanted) if wanted else 0
        table = rounded(frame[wanted] if wanted else frame)
        notes = []
        if hidden:
            notes.append(f"{counted(hidden, 'more column')} in <code>.to_dataframe()</code>")
        if len(table) > _ROWS:
            notes.append(f"the first {_ROWS} of {len(table):,} rows")
        notes.append("<code>.plot()</code> draws it")
        # pandas escapes cell contents, so tokens such as <script> are shown and not run.
        shown = table.head(_ROWS).to_html(
            notebook=True, border=0, max_cols=20, float_format=_digits, na_rep="–"
        )
        note = f"<p><small>{'; '.join(notes)}.</small></p>"
        return f"<p>{html.escape(text_label(repr(self)))}</p>{shown}{note}"


class Result(View):
    """What every analysis returns.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Squares(Result):
        ...     n: int
        ...     def __repr__(self):
        ...         return f"Squares of the first {self.n} numbers"
        ...     def to_dataframe(self):
        ...         return pd.DataFrame({"x": range(self.n), "y": [i * i for i in range(self.n)]})
        >>> int(Squares(4)["y"].sum())
        14
    """

    def __getitem__(self, column: Any) -> Any:
        """One column of the table, or several: ``result["r2"]``, ``result[["layer", "r2"]]``."""
        frame = self.to_dataframe()
        asked = column if isinstance(column, list) else [column]
        names = [name for name in asked if isinstance(name, (str, int, float, tuple, type(None)))]
        if all(isinstance(name, bool) for name in names):
            return frame[column]  # a mask of rows
        unknown = [name for name in names if not isinstance(name, str) or name not in frame.columns]
        if unknown:
            raise KeyError(
                f"{type(self).__name__} has no column {unknown[0]!r}; it has {list(frame.columns)}; rows and "
                "masks are asked of .to_dataframe()"
            )
        return frame[column]

    def __len__(self) -> int:
        """Rows of the table."""
        return len(self.to_dataframe())

    def __bool__(self) -> bool:
        # A result is a thing, also when its table is empty.
        return True

    # Without this, Python would iterate by asking for column 0, 1, 2 …
    __iter__ = None


def cells(axes: Mapping[str, Iterable[Any]], values: Mapping[str, Tensor]) -> pd.DataFrame:
    """One row a cell of tensors with the same axes: what stands at each axis, then the entries."""
    index = pd.MultiIndex.from_product([*axes.values()], names=[*axes])
    columns = {name: value.reshape(-1).cpu().numpy() for name, value in values.items()}
    return pd.DataFrame(columns, index=index).reset_index()


def main_columns(result: View, frame: pd.DataFrame) -> list[str]:
    """The columns that matter of those that the table has; ids stand in for labels that are not there."""
    names = (
        name if name in frame.columns else name.removesuffix("_label")
        for name in result._that_matter()
    )
    return [name for name in names if name in frame.columns]


def _digits(value: float) -> str:
    """Four digits and no zeros behind them, which would be digits that nobody measured."""
    text = f"{value:.{_DIGITS}g}"
    return f"{value:,.0f}" if "e+" in text and abs(value) < 1e9 else text


def rounded(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with floats to four significant digits, for people."""

    def short(value: Any) -> Any:
        if isinstance(value, (float, np.floating)) and np.isfinite(value) and value != 0:
            return float(f"{value:.{_DIGITS}g}")
        return text_label(value) if isinstance(value, str) and value else value

    return frame.map(short)
