"""Run submitted notebooks and collect what the checks say about them.

    python tutorials/grade.py submissions/ --out grades.csv
    python tutorials/grade.py anna/lesson_1_bigrams.ipynb --json

Each notebook is executed from top to bottom in a fresh kernel, offline, going on after errors. Then
every check of the lesson is asked again, in the same kernel but by a fresh checker, so that a deleted
or edited check cell does not matter. Notebooks are told apart by their path.

This runs the students' code on your machine. Do it in a container or an account without your files.
A student who sets out to fool the checker from within the notebook can; read what looks odd.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from machinery.execute import execute
from machinery.master import MasterError, masters
from machinery.notebooks import checked_name, has_tag, make_notebook, read

COLUMNS = ("notebook", "lesson", "exercise", "passed", "message")
_ASK = """
import json as _json
from lens_linear.teaching.check import Checker as _Checker
_grader, _found = _Checker(), []
for _exercise, _name in {questions!r}:
    if _name in globals():
        _result = _grader(_exercise, globals()[_name])
        _found.append((_exercise, _result.passed, _result.message))
    else:
        _found.append((_exercise, False, "There is no " + _name + " in the notebook."))
print("GRADES " + _json.dumps(_found))
"""


def questions(lesson: int) -> list[tuple[str, str]]:
    """Exercise and function name of every check of a lesson."""
    notebook = make_notebook(masters([lesson])[0], "exercises")
    return [checked_name(cell["source"]) for cell in notebook.cells if has_tag(cell, "check")]


def lesson_of(path: Path, notebook: Any) -> int:
    """The lesson a notebook belongs to: from its metadata, or else from its name."""
    known = notebook.metadata.get("lens_linear", {}).get("lesson")
    if known is None and path.stem.startswith("lesson_") and path.stem.split("_")[1].isdigit():
        known = int(path.stem.split("_")[1])
    if known is None:
        raise MasterError(f"{path}: neither its metadata nor its name says which lesson it is")
    return int(known)


def grade(path: Path, *, timeout: int) -> list[dict[str, Any]]:
    """One row an exercise. A notebook that cannot be run at all fails every exercise."""
    notebook = read(path)
    lesson = lesson_of(path, notebook)
    asked = questions(lesson)
    try:
        run = execute(
            notebook, timeout=timeout, allow_errors=True, extra=_ASK.format(questions=asked)
        )
        found = [tuple(row) for row in json.loads(run.printed["GRADES"])]
    except Exception as error:  # a dead kernel, a cell that never ends
        reason = f"The notebook could not be run to its end ({type(error).__name__})."
        found = [(exercise, False, reason) for exercise, _ in asked]
    return [dict(zip(COLUMNS, (str(path), lesson, *row), strict=True)) for row in found]


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
    try:
        for file in files:
            mine = grade(file, timeout=options.timeout)
            rows += mine
            if not options.json:
                print(f"{file}: {sum(r['passed'] for r in mine)} of {len(mine)} passed", flush=True)
    except MasterError as error:
        parser.error(str(error))
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
