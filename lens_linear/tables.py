"""Results that are tables: a frozen result that can be used like the DataFrame it documents.

A class that inherits :class:`Table` defines ``to_dataframe``. Its objects then answer ``result[column]``,
``len(result)``, ``for column in result``, ``result.columns`` and every other attribute of the frame
(``.loc``, ``.query``, ``.sort_values``), while their own fields keep the knobs that made them. The frame
is handed out as a copy, so changing it does not change the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class Table:
    """Mixin for results whose data is one table.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Squares(Table):
        ...     n: int
        ...     def to_dataframe(self):
        ...         import pandas as pd
        ...         return pd.DataFrame({"x": range(self.n), "y": [i * i for i in range(self.n)]})
        >>> squares = Squares(4)
        >>> len(squares), list(squares), int(squares["y"].sum()), int(squares.loc[3, "y"])
        (4, ['x', 'y'], 14, 9)
    """

    def to_dataframe(self) -> pd.DataFrame:
        """Return the table as a DataFrame of its own."""
        raise NotImplementedError

    def __getitem__(self, key: Any) -> Any:
        return self.to_dataframe()[key]

    def __len__(self) -> int:
        return len(self.to_dataframe())

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_dataframe())

    def __contains__(self, column: object) -> bool:
        return column in self.to_dataframe()

    def __bool__(self) -> bool:
        # A frame has no truth value; a result is a thing, also when its table is empty.
        return True

    def __getattr__(self, name: str) -> Any:
        # Only called for names that the result itself does not have. Names that start with an
        # underscore are protocols (copy, pickle, IPython) and never belong to the frame.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        frame = self.to_dataframe()
        if not hasattr(frame, name):
            raise AttributeError(
                f"{type(self).__name__!r} has neither a field nor a column nor a DataFrame attribute "
                f"{name!r}; its columns are {list(frame.columns)}"
            )
        return getattr(frame, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.to_dataframe())})

    def _repr_html_(self) -> str:
        # pandas escapes cell contents, so tokens such as <script> are shown and not run.
        return self.to_dataframe().to_html(max_rows=60, max_cols=20, notebook=True)
