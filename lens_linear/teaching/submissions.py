"""Submitted notebooks: whose they are, what they hold, and what is said of files that are no notebooks."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_linear.checks import require_file
from lens_linear.errors import InvalidArgumentError
from lens_linear.teaching.checker import LESSONS

CHECK = re.compile(r"""check\(\s*["'](\d+\.\d+)["']\s*,\s*["']?([A-Za-z_]\w*)""")
_LARGEST = 50 * 2**20


@dataclass(frozen=True)
class Submission:
    """One file that was handed in."""

    student: str
    path: Path
    name: str  # below the folder of submissions
    sha256: str


def read_roster(path: str | Path | None) -> list[str]:
    """The students of a class, from a CSV file with a column ``student``."""
    if path is None:
        return []
    columns, rows = read_csv("roster", path)
    if "student" not in columns:
        raise InvalidArgumentError(
            f"roster must have a column 'student', got {columns}; add it to the first line"
        )
    names = [(row["student"] or "").strip() for row in rows]
    return list(dict.fromkeys(name for name in names if name))


def read_csv(name: str, path: str | Path) -> tuple[list[str], list[dict[str, str | None]]]:
    """Column names and rows of a small table; short rows lack values.

    Raises:
        InvalidArgumentError: no regular file, not UTF-8, or no table.
    """
    file = require_file(name, path)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            # Spreadsheets in many languages write semicolons.
            split = max(",;\t", key=lambda mark: (first.count(mark), mark == ","))
            reader = csv.DictReader(stream, delimiter=split)
            return list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgumentError(
            f"{name} must be a table in CSV, but {str(file)!r} cannot be read ({error}); save it as CSV "
            "in UTF-8"
        ) from error


def find_submissions(folder: Path, students: Sequence[str]) -> list[Submission]:
    """Every notebook of a folder, or one notebook, with its student."""
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.[iI][pP][yY][nN][bB]"))
    files = [f for f in files if ".ipynb_checkpoints" not in f.parts]
    files = [f for f in files if f.is_symlink() or not f.is_dir()]
    if not files:
        raise InvalidArgumentError(
            f"submissions must hold notebooks (.ipynb), found none in {str(folder)!r}; check the path"
        )
    top = folder.parent if folder.is_file() else folder
    found = []
    for path in files:
        # File names may hold any bytes; tables and terminals may not.
        name = Path(printable(os.fsencode(path.relative_to(top)).decode("utf-8", "replace")))
        found.append(Submission(_student_of(name, students), path, str(name), _sha256(path)))
    return found


def _sha256(path: Path) -> str:
    """Checksum of a file that can be graded; otherwise a word why not."""
    try:
        if path.is_symlink() or not path.is_file():
            return "no regular file"  # a pipe would be waited for
        small = path.stat().st_size <= _LARGEST
        return hashlib.sha256(path.read_bytes()).hexdigest() if small else "too large"
    except OSError:
        return "unreadable"


def _student_of(name: Path, students: Sequence[str]) -> str:
    """The student a path belongs to: a folder's or file's whole name, then a part of one, but not its lesson.

    Of several the one that stands first; letters that are written in several ways are equal, capital and
    small ones where that tells who is meant. Otherwise the first part of the path.
    """
    parts = [unicodedata.normalize("NFC", part) for part in (*name.parts[:-1], name.stem)]
    names = {student: unicodedata.normalize("NFC", student) for student in students}
    for alike in (str, str.casefold):
        whole = {alike(known): student for student, known in reversed(names.items())}
        for part in parts:
            if alike(part) in whole:
                return whole[alike(part)]
    for alike in (str, str.casefold):
        found = []
        for depth, part in enumerate(parts):
            rest = alike(re.sub(r"(?i)lesson[_ -]?\d+", "", part))  # a number there is no student's
            for student, known in names.items():
                one = re.escape(alike(known))
                if match := re.search(rf"(?<![^\W_]){one}(?![^\W_])", rest):
                    found.append((depth, match.start(), -len(known), student))
        if found:
            return min(found)[-1]
    return name.parts[0] if len(name.parts) > 1 else name.stem


_AGAIN = "save it in Jupyter and hand it in again"


def read_notebook(path: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The lesson that a notebook says it is, and its code cells, each with its source as one text.

    Raises:
        InvalidArgumentError: why the file is no notebook.
    """
    if path.is_symlink() or not path.is_file():
        raise InvalidArgumentError(
            "it is a link, a pipe or a device; the notebook itself must be handed in"
        )
    if path.stat().st_size > _LARGEST:
        raise InvalidArgumentError("it is larger than 50 MiB; it can be handed in without outputs")
    content = path.read_bytes()
    if not content.strip():
        raise InvalidArgumentError("it is empty; it must be handed in again")
    try:
        notebook = json.loads(content)
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"it is not UTF-8; {_AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"it is not a notebook ({error}); {_AGAIN}") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise InvalidArgumentError(f"it is not a notebook (JSON without a list of cells); {_AGAIN}")
    code = [c for c in cells if isinstance(c, dict) and c.get("cell_type") == "code"]
    metadata = notebook.get("metadata")
    own = metadata.get("lens_linear") if isinstance(metadata, dict) else None
    lesson = own.get("lesson") if isinstance(own, dict) else None
    return lesson, [{**cell, "source": _text(cell.get("source"))} for cell in code]


def _text(source: Any) -> str:
    lines = source if isinstance(source, list) else [source]
    return "".join(line for line in lines if isinstance(line, str))


def printable(text: str) -> str:
    """A text as any table and terminal can show it, in one line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def lesson_of(path: Path, known: Any, sources: Sequence[str]) -> int:
    """The lesson: from the notebook's metadata, its name, or the exercises that it checks."""
    if isinstance(known, int) and known in LESSONS:
        return int(known)
    named = re.search(r"lesson[_ -]?(\d+)", path.stem)
    if named and int(named[1]) in LESSONS:
        return int(named[1])
    asked = [int(m[1].split(".")[0]) for m in CHECK.finditer("\n".join(sources))]
    if asked:
        return max(set(asked), key=asked.count)
    raise InvalidArgumentError(
        "neither its metadata, its name nor its checks say which lesson it is; name it like "
        "lesson_3.ipynb"
    )
