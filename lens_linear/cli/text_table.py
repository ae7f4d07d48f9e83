"""A table as text, no wider than the terminal."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lens_linear.token_labels import token_label

_FALLBACK = 100  # columns, where standard output is no terminal and COLUMNS is not set
_DIGITS = 3
# Characters of a cell before it is wrapped: the widest of these with which every column fits.
_LONGEST = (40, 32, 26, 20, 16, 12)
_NARROWEST = 16
# Token ids stand last: people read the text beside them.
_IDS = ("source", "destination", "out", "token", "id", "index", "sha256")


def terminal_width() -> int:
    """COLUMNS, else the width of the terminal, else 100; at least 40."""
    return max(40, shutil.get_terminal_size((_FALLBACK, 24)).columns)


def fitted(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return a frame as lines that fit the terminal.

    Columns that matter come first, ids and the ends of intervals last. Heads are broken at ``_``, long cells
    at spaces, the narrower the more columns there are; what still does not fit is left out and named below.

    Args:
        frame: with a named index, which is shown first, or without.
        columns: those that matter; the frame's own order when empty.
    """
    width = terminal_width()
    if frame.index.name is not None:
        first = str(frame.index.name)
        frame = frame.reset_index()
    else:
        names = [str(name) for name in frame.columns if not _is_id(frame, str(name))]
        first = next(iter([*names, *map(str, frame.columns)]), "")
    order = _ordered(frame, columns, first)
    for longest in _LONGEST:
        if sum(_Column(name, frame[name], longest).width + 2 for name in order) - 2 <= width:
            break
    else:
        longest = _LONGEST[0]  # some are left out anyway
    blocks: list[_Column] = []
    left_out: list[str] = []
    room = width
    for name in order:
        column = _Column(name, frame[name], longest)
        if column.width > room and room >= _NARROWEST and column.is_text:
            column = _Column(name, frame[name], room)
        if column.width <= room and not left_out:
            blocks.append(column)
            room -= column.width + 2
        else:
            left_out.append(name)
    lines = [line.rstrip() for line in _lines(blocks)]
    if left_out:
        words = f"{len(left_out)} more columns with --csv: {', '.join(left_out)}"
        lines += ["", *textwrap.wrap(words, width)]
    return "\n".join(lines)


def _ordered(frame: pd.DataFrame, columns: Sequence[str], first: str) -> list[str]:
    """The key, then what matters, then the rest; ids and ends of intervals at the end."""
    names = [str(name) for name in frame.columns]
    wanted = [first, *(name for name in columns if name in names and name != first)]

    def late(name: str) -> int:
        if name != first and _is_id(frame, name):
            return 2
        return 1 if name.endswith(("_low", "_high")) else 0

    labels = [name for name in names if name.endswith("_label")]
    rest = [*labels, *(name for name in names if name not in labels)]
    order = list(dict.fromkeys(wanted + rest)) if first else []
    return sorted(order, key=late)  # stable


def _is_id(frame: pd.DataFrame, name: str) -> bool:
    return name == "sha256" or (name in _IDS and bool(pd.api.types.is_integer_dtype(frame[name])))


class _Column:
    """The lines of one column's head and cells."""

    def __init__(self, name: str, values: pd.Series, longest: int) -> None:
        self.is_text = not pd.api.types.is_numeric_dtype(values)
        tokens = name.endswith("_label") or name in ("token", "next")
        cells = [_cell(value, tokens=tokens) for value in values]
        broken = textwrap.wrap if self.is_text and not tokens else _whole
        self.cells = [broken(cell, longest) or [""] for cell in cells]
        widest = max((_width(line) for cell in self.cells for line in cell), default=0)
        self.head = _head(name, max(widest, 4))
        self.width = max(widest, *(len(line) for line in self.head))

    def padded(self, line: str) -> str:
        space = " " * max(0, self.width - _width(line))
        return line + space if self.is_text else space + line


def _whole(text: str, _width: int) -> list[str]:
    return [text]


def _head(name: str, width: int) -> list[str]:
    """The name, broken after ``_`` where it is wider than its cells."""
    lines: list[str] = []
    for part in (piece for piece in name.replace("_", "_\n").splitlines() if piece):
        if lines and len(lines[-1]) + len(part) <= width:
            lines[-1] += part
        else:
            lines.append(part)
    return lines


def _lines(blocks: Sequence[_Column]) -> list[str]:
    if not blocks:
        return []
    tall = max(len(block.head) for block in blocks)
    heads = [[""] * (tall - len(block.head)) + block.head for block in blocks]
    lines = [
        "  ".join(b.padded(h[i]) for b, h in zip(blocks, heads, strict=True)) for i in range(tall)
    ]
    lines.append("  ".join("─" * block.width for block in blocks))
    for row in range(len(blocks[0].cells)):
        cells = [block.cells[row] for block in blocks]
        for i in range(max(len(cell) for cell in cells)):
            shown = (cell[i] if i < len(cell) else "" for cell in cells)
            lines.append("  ".join(b.padded(text) for b, text in zip(blocks, shown, strict=True)))
    return lines


def _cell(value: Any, *, tokens: bool) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:z.{_DIGITS}f}"  # z: no "-0.000"
    if value is None or value is pd.NA:
        return "–"
    if not isinstance(value, str):
        return str(value)
    return token_label(value) if tokens else value


def _width(text: str) -> int:
    """Cells of a terminal that a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )
