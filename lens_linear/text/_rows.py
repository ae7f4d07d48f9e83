"""Read text files and tables of rows, with one clear error for each way they can be bad."""

from __future__ import annotations

import io
import json
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import pandas as pd

from lens_linear.checks import require_file
from lens_linear.errors import CorruptedFileError, InvalidArgumentError, NotEnoughDataError

TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")

MAX_TEXT = 2**30  # bytes; as words in memory it is several times as much
_HEAD = 2**16

Row = dict[str, Any]


def read_utf8(path: str | Path) -> str:
    """The whole file as text; a byte-order mark is dropped, CR LF becomes LF.

    Raises:
        InvalidArgumentError: no such file, or more than ``MAX_TEXT`` bytes.
        CorruptedFileError: the bytes are not UTF-8 text (a binary file, or another encoding).
        NotEnoughDataError: nothing but white space.
    """
    path = require_file("path", path)
    size = path.stat().st_size
    with path.open("rb") as file:
        zero = file.read(_HEAD).find(b"\0")  # before the rest: a sparse file costs no memory
        if zero < 0 and size > MAX_TEXT:
            raise InvalidArgumentError(
                f"path must be a text of at most {MAX_TEXT:,} bytes to be read at once, but {str(path)!r} "
                f"has {size:,}; split it, or write its ids with TokenStream.write"
            )
        file.seek(0)
        data = b"" if zero >= 0 else file.read()
    zero = zero if zero >= 0 else data.find(b"\0")
    if zero >= 0:
        raise CorruptedFileError(
            f"path must be a text file, but {str(path)!r} has a zero byte at {zero}: it is binary "
            "or UTF-16; pass UTF-8 text"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptedFileError(
            f"path must be UTF-8 text, but {str(path)!r} is not at byte {error.start}; "
            "save it as UTF-8 first"
        ) from error
    if not text.strip():
        raise NotEnoughDataError(f"path must hold text, but {str(path)!r} is empty; pass another")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_rows(path: str | Path) -> list[Row]:
    """Rows of a ``.jsonl``, ``.json`` (a list of objects), ``.csv`` or ``.tsv`` file, in order.

    Values of csv files are strings. Blank lines of jsonl files are skipped.

    Raises:
        InvalidArgumentError: no such file, or a suffix that is not a table's.
        CorruptedFileError: the file is not what its suffix says; the message has the line.
        NotEnoughDataError: no rows.
    """
    path = require_file("path", path)
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise InvalidArgumentError(
            f"path must end in {', '.join(TABLE_SUFFIXES)} to hold rows, got {path.name!r}; "
            "rename or convert it"
        )
    text = read_utf8(path)
    if suffix in (".csv", ".tsv"):
        rows = _csv_rows(path, text, "," if suffix == ".csv" else "\t")
    elif suffix == ".jsonl":
        rows = [
            _json_object(path, line, number)
            for number, line in enumerate(text.split("\n"), start=1)
            if line.strip()
        ]
    else:
        rows = _json_list(path, text)
    if not rows:
        raise NotEnoughDataError(f"path must hold rows, but {str(path)!r} has none; pass another")
    return rows


def require_column(where: str, row: Row, column: str) -> str:
    """Accept a column that the row has; the error lists those it does have."""
    if not isinstance(column, str) or column not in row:
        raise InvalidArgumentError(
            f"{where} has no column {column!r}; it has {', '.join(map(repr, row))}; "
            "name one of these"
        )
    return column


def require_text(where: str, row: Row, column: str) -> str:
    """The text in a column of a row; the error lists the columns that there are."""
    text = row[require_column(where, row, column)]
    if not isinstance(text, str):
        raise InvalidArgumentError(
            f"column {column!r} must hold text, got {type(text).__name__} in {where}; it has "
            f"{', '.join(map(repr, row))}: name another column"
        )
    return text


def own_file(name: str) -> Traversable:
    """A file of the package's own texts.

    Raises:
        CorruptedFileError: the installation lacks it.
    """
    resource = files("lens_linear.text") / "data" / name
    if not resource.is_file():
        raise CorruptedFileError(
            f"the package's own text/data/{name} is missing from this installation; install lens-linear again"
        )
    return resource


def _json_object(path: Path, line: str, number: int) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits, 100,000 brackets
        raise CorruptedFileError(
            f"line {number} of {str(path)!r} is not JSON ({error}); fix or remove that line"
        ) from error
    if not isinstance(row, dict):
        raise CorruptedFileError(
            f"line {number} of {str(path)!r} must be a JSON object, got {type(row).__name__}; "
            'write {"text": ...} on each line'
        )
    return row


def _json_list(path: Path, text: str) -> list[Row]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptedFileError(
            f"{str(path)!r} is not JSON ({error}); "
            "fix it, or name it .jsonl if it has one object a line"
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CorruptedFileError(
            f"{str(path)!r} must hold a JSON list of objects; "
            "write [{...}, ...] or one object a line in a .jsonl file"
        )
    return rows


def _csv_rows(path: Path, text: str, separator: str) -> list[Row]:
    try:
        frame = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, na_filter=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise CorruptedFileError(
            f"{str(path)!r} is not a table separated by {separator!r} ({error}); "
            "check its quotes and its suffix"
        ) from error
    return [
        {str(key): value for key, value in row.items()} for row in frame.to_dict(orient="records")
    ]
