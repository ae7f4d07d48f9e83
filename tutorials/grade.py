"""Run submitted notebooks and collect what the checks say about them.

    python tutorials/grade.py submissions/ --out grades.csv
    python tutorials/grade.py anna/lesson_1_bigrams.ipynb --json

Each notebook is executed from top to bottom in a fresh kernel, offline, going on after errors. Then
every check of the lesson is asked again, in the same kernel but by a fresh checker, so that a deleted
or edited check cell does not matter. Notebooks are told apart by their path. A file that cannot be read,
a cell that never ends and a kernel that dies cost only what they touch; the rest is graded.

This runs the students' code on your machine. Do it in a container or an account without your files.
A student who sets out to fool the checker from within the notebook can; read what looks odd.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

from machinery.execute import execute
from machinery.master import MasterError, masters
from machinery.notebooks import checked_name, has_tag, make_notebook, read

from lens_linear.teaching.checker import LESSONS

COLUMNS = ("notebook", "lesson", "exercise", "passed", "message")
# One cell an exercise, so that an answer that never ends costs only its own.
_ASK = """
import builtins as _b, json as _json
from lens_linear.teaching.checker import Checker as _Checker
if {name!r} in globals():
    _result = _Checker()({exercise!r}, globals()[{name!r}])
    _row = [_result.passed, _result.message]
else:
    _row = [False, "There is no {name} in the notebook."]
_b.print("\\nGRADE-{exercise} " + _json.dumps(_row))
"""


def questions(lesson: int) -> list[tuple[str, str]]:
    """Exercise and function name of every check of a lesson."""
    notebook = make_notebook(masters([lesson])[0], "exercises")
    return [checked_name(cell["source"]) for cell in notebook.cells if has_tag(cell, "check")]


def lesson_of(path: Path, notebook: Any) -> int:
    """The lesson a notebook belongs to: from its metadata, or else from its name."""
    known = notebook.metadata.get("lens_linear", {}).get("lesson")
    named = re.match(r"lesson_(\d+)", path.stem)
    if known is None and named:
        known = int(named[1])
    if known not in LESSONS:
        raise MasterError(
            f"neither its metadata nor its name says which lesson it is (found {known})"
        )
    return int(known)


def grade(path: Path, *, timeout: int) -> list[dict[str, Any]]:
    """One row an exercise; one row without an exercise if the file cannot be read."""
    try:
        notebook = read(path)
        lesson = lesson_of(path, notebook)
    except Exception as error:  # not a notebook, or none of ours: the others still count
        reason = f"This file was not graded: {type(error).__name__}: {str(error).splitlines()[0]}"
        return [dict(zip(COLUMNS, (str(path), None, None, False, reason), strict=True))]
    asked = questions(lesson)
    cells = [_ASK.format(exercise=exercise, name=name) for exercise, name in asked]
    reason = "The check of this exercise did not end in time, or the notebook stopped it."
    printed: dict[str, str] = {}
    try:
        printed = execute(notebook, timeout=timeout, allow_errors=True, extra=cells).printed
    except Exception as error:  # a dead kernel, a cell that cannot be interrupted
        reason = f"The notebook could not be run to its end ({type(error).__name__})."
    rows = []
    for exercise, _ in asked:
        found = printed.get(f"GRADE-{exercise}")
        passed, message = json.loads(found) if found else (False, reason)
        rows.append(dict(zip(COLUMNS, (str(path), lesson, exercise, passed, message), strict=True)))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 is success, whatever the grades."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, help="notebooks, or folders to search")
    parser.add_argument("--out", type=Path, help="write a CSV file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a summary")
    parser.add_argument("--timeout", type=int, default=180, help="seconds a cell")
    options = parser.parse_args(arguments)
    files = [
        file
        for path in options.paths
        for file in ([path] if path.is_file() else sorted(path.rglob("*.ipynb")))
        if ".ipynb_checkpoints" not in file.parts
    ]
    if not files:
        parser.error(f"no notebooks found in {', '.join(map(str, options.paths))}")
    rows: list[dict[str, Any]] = []
    for file in files:
        mine = grade(file, timeout=options.timeout)
        rows += mine
        unread = mine[0]["exercise"] is None
        said = (
            mine[0]["message"]
            if unread
            else f"{sum(r['passed'] for r in mine)} of {len(mine)} passed"
        )
        if not options.json:
            print(f"{file}: {said}", flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))
    if options.out:
        with options.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
