"""Grade a folder of submitted notebooks: one row an exercise, written as soon as a notebook is done.

Each notebook runs in a process of its own, with the network off. Its answers are judged in another process,
which never runs a line of the notebook: it calls functions from outside and looks only at the values
that come back (:mod:`lens_linear.teaching.wire`). What a student patches in the notebook, the checker or
``print`` included, changes nothing here. An answer has to be right on the published cases of its check and
on fresh ones, so that knowing the checks is worth no more than knowing the answer.

Grading runs students' code. Do it in a container or an account without files of your own.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import os
import re
import secrets
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lens_linear.checks import counted, require_float, require_int, require_path
from lens_linear.errors import InvalidArgumentError, LensLinearError, WriteError
from lens_linear.files import held, write_text
from lens_linear.linalg.memory import free_bytes
from lens_linear.progress import countdown, readable
from lens_linear.tables import Result
from lens_linear.teaching.answers import fresh_cases
from lens_linear.teaching.barrier import barrier_version
from lens_linear.teaching.checker import LESSONS, Checker, CheckResult, exercises
from lens_linear.teaching.notebook_process import (
    TOO_LONG,
    NotebookProcess,
    adopt_orphans,
    as_python,
    end_orphans,
)
from lens_linear.teaching.submissions import (
    CHECK,
    Submission,
    find_submissions,
    lesson_of,
    printable,
    read_csv,
    read_notebook,
    read_roster,
)
from lens_linear.teaching.tutorials import exercise_notebooks

COLUMNS = (
    "student",
    "lesson",
    "exercise",
    "points",
    "out_of",
    "hints",
    "message",
    "notebook",
    "sha256",
)
_UNKNOWN = re.compile(r"raised (NameError|ModuleNotFoundError|ImportError|FileNotFoundError)")
_ABSENT = ("ModuleNotFoundError", "ImportError", "FileNotFoundError")
_ALONE = (
    " A notebook is graded alone, in an empty folder: a file that lay beside it is not there. Its code "
    "belongs into a cell."
)
_LOOKED_UP = "Right on the cases of the notebook's own check, wrong on fresh ones."
_DRAWS = 5
_NO_BARRIER = (
    "The kernel of this machine has no barrier for notebooks (Landlock, Linux 5.13): code that reads files "
    "without Python could read the checks, though fresh cases are drawn for each answer."
)
# What the parser says of cells that are no Python, or nested without end.
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
_CHECK_CELL = re.compile(rf"\s*(?:import lens_linear as ll\s+)?(?:ll\.)?{CHECK.pattern}")
# What an honest notebook does not touch; each is a reason to read it, not a verdict.
_ODD = {
    "changes the checker": re.compile(
        r"\bll\.check\s*=|Checker\b|teaching\W+(checker|answers|guard|lesson_\d)"
    ),
    "replaces builtins": re.compile(r"\bbuiltins\b|__builtins__"),
    "ends processes or starts them": re.compile(
        r"os\._exit|os\.kill|os\.fork|os\.system|subprocess|multiprocessing"
    ),
    "reads other processes, frames or source": re.compile(
        r"/proc/|_getframe|gc\.get_|inspect\.stack|settrace|setprofile|audithook|getsource|ctypes"
    ),
    "names the installation or the environment": re.compile(
        r"site-packages|__file__|os\.environ|putenv"
    ),
}


@dataclass(frozen=True, eq=False)
class Grades(Result):
    """Grades of a class.

    Attributes:
        rows: one mapping an exercise, with the columns of ``COLUMNS``.
        review: (notebook, reason) for every notebook that should be read by a person.
        missing: students of the roster of whom nothing was found.
        finished: False when grading was stopped before the end.
    """

    rows: tuple[dict[str, Any], ...]
    review: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    finished: bool = True

    def __repr__(self) -> str:
        students = len({row["student"] for row in self.rows})
        got, most = (sum(row[name] for row in self.rows) for name in ("points", "out_of"))
        stopped = "" if self.finished else "; stopped before the end, run it again to go on"
        return (
            f"Grades: {got} of {counted(most, 'point')} over {counted(students, 'student')}, "
            f"{counted(len(self.review), 'note')} to read, "
            f"nothing from {len(self.missing)}{stopped}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row an exercise of a notebook."""
        return pd.DataFrame(list(self.rows), columns=list(COLUMNS))

    def by_student(self) -> pd.DataFrame:
        """Points of each student and lesson, the best notebook counting."""
        frame = self.to_dataframe()
        if frame.empty:
            return frame[["student", "lesson", "points", "out_of"]]
        frame["lesson"] = frame["lesson"].astype("Int64")  # none for what was not graded
        each = frame.groupby(["student", "lesson", "notebook"], dropna=False)[
            ["points", "out_of"]
        ].sum()
        return each.groupby(["student", "lesson"], dropna=False).max().reset_index()


_Opens = Callable[[list[str]], NotebookProcess]  # cells -> a process with all its limits


def grade(
    submissions: str | Path,
    *,
    roster: str | Path | None = None,
    out: str | Path | None = None,
    jobs: int = 1,
    seconds: float = 120.0,
    whole: float = 900.0,
    say: Any = None,
) -> Grades:
    """Run submitted notebooks, judge their answers from outside, and write a row an exercise.

    A point an exercise. Rows of a notebook are written to ``out`` when it is done; running the same line
    again keeps rows of notebooks that have not changed and grades the rest. Ctrl-C stops, keeps what is done
    and scores nobody 0 for it. On Linux the notebooks share four fifths of the free memory.

    Args:
        submissions: one notebook, or a folder that is searched for notebooks: one folder a student, or names
            that begin with the student's id.
        roster: CSV file with a column ``student``; who handed in nothing gets a row of 0 points.
        out: CSV file for the rows; notes to read go to ``<out>.review.md`` beside it.
        jobs: notebooks at once.
        seconds: how long one cell, and one call of an answer, may take.
        whole: how long the cells of one notebook may take together.
        say: called with a sentence after each notebook, with the time left, and while one takes long.

    Returns:
        The grades.

    Raises:
        InvalidArgumentError: no notebook is found, or the roster has no column ``student``.
        LensLinearError: the system cannot fork processes (Windows).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     grade(folder)
        Traceback (most recent call last):
        lens_linear.errors.InvalidArgumentError: submissions must hold notebooks (.ipynb), found none ...
    """
    if not hasattr(os, "fork"):
        raise LensLinearError(
            "grading needs a system whose processes can fork, and this one has none; run it on Linux or "
            "macOS, on Windows in WSL"
        )
    jobs = require_int("jobs", jobs, minimum=1)
    require_float("seconds", seconds, minimum=0.1)
    require_float("whole", whole, minimum=0.1)
    students = read_roster(roster)
    found = find_submissions(require_path("submissions", submissions), students)
    target = None if out is None else require_path("out", out)
    private = [submissions, roster, *([] if target is None else [target, _review_of(target)])]
    hidden = tuple(str(Path(path).resolve()) for path in private if path is not None)
    memory = free_bytes() * 4 // 5 // jobs
    opens = partial(NotebookProcess, seconds=seconds, whole=whole, memory=memory, private=hidden)
    with held(target, what="grades"):
        return _grade(found, students, target, jobs, opens, say)


def _grade(
    found: Sequence[Submission],
    students: Sequence[str],
    target: Path | None,
    jobs: int,
    opens: _Opens,
    say: Any,
) -> Grades:
    kept = _kept_rows(target, found)
    done = {(row["notebook"], row["sha256"]) for row in kept}
    todo = [s for s in found if (s.name, s.sha256) not in done]
    rows, finished = list(kept), True
    if target is not None:
        write_text(target, ",".join(COLUMNS) + "\n")
        _append_rows(target, kept)
    exercise_notebooks()  # says so where the installation has none
    exercises()  # loaded now: no file that a notebook changes later can change a judge
    torch.set_num_threads(1)  # forks of a process with busy thread pools hang
    done_one = countdown(len(todo))
    try:
        for submission, new in _in_parallel(todo, jobs, opens, say):
            rows += new
            if target is not None:
                _append_rows(target, new)
            if say is not None:
                say(f"{_sentence(submission, new)} ({done_one()})")
    except KeyboardInterrupt:
        finished = False
    seen = {submission.student for submission in found}
    missing = tuple(name for name in students if name not in seen)
    if finished:
        absent = [Submission(name, Path(), "", "") for name in missing]
        nothing = [_row(one, "Nothing was handed in.") for one in absent]
        rows += nothing
        if target is not None and nothing:
            _append_rows(target, nothing)
    grades = Grades(tuple(rows), tuple(_review(found, rows)), missing, finished)
    if target is not None:
        write_text(_review_of(target), _review_page(grades))
    return grades


def _review_of(target: Path) -> Path:
    return target.with_name(target.name + ".review.md")


def _kept_rows(target: Path | None, found: Sequence[Submission]) -> list[dict[str, Any]]:
    """Rows of an earlier run that still hold: same notebook, same bytes, graded, no row lost."""
    if target is None or not target.is_file():
        return []
    columns, found_rows = read_csv("out", target)
    if columns != list(COLUMNS):
        raise InvalidArgumentError(
            f"out must be a table of grades or a new file, got {str(target)!r} with columns {columns}; "
            "choose another name"
        )
    rows = [_as_made(row) for row in found_rows if all(row[name] is not None for name in COLUMNS)]
    whole = []
    for notebook in found:
        mine = [r for r in rows if (r["notebook"], r["sha256"]) == (notebook.name, notebook.sha256)]
        lesson = mine[0]["lesson"] if mine else None
        if lesson is not None and len(mine) == len(_questions(lesson)):
            whole += mine
    return whole


def _as_made(row: dict[str, Any]) -> dict[str, Any]:
    """A row that was read from a table, with numbers where it had them."""
    try:
        numbers = {name: int(row[name]) for name in ("points", "out_of", "hints")}
    except ValueError as error:
        raise InvalidArgumentError(
            f"out must hold whole points and hints, but {error} for {row['student']!r}, exercise "
            f"{row['exercise']}; keep changes of your own in another file"
        ) from None
    return {**row, **numbers, "lesson": int(row["lesson"]) if row["lesson"] else None,
            "exercise": row["exercise"] or None}  # fmt: skip


def _append_rows(target: Path, rows: Sequence[dict[str, Any]]) -> None:
    """All of them or none.

    Raises:
        WriteError: the disk is full, or the file cannot be written any more.
    """
    size = target.stat().st_size
    try:
        with target.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, list[str](COLUMNS)).writerows(rows)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            os.truncate(target, size)
        raise WriteError(
            f"cannot write {str(target)!r} ({error.strerror or error}); the rows before are kept: free some "
            "space and run the same command, which goes on where it ended"
        ) from error


def _row(
    of: Submission, message: str, asked: tuple[Any, Any] = (None, None), points: int = 0, hints: int = 0
) -> dict[str, Any]:  # fmt: skip
    """A row of an exercise (``asked``: its lesson and name), or of what could not be graded."""
    values = (*asked, points, int(asked != (None, None)), hints, printable(message))
    return dict(zip(COLUMNS, (of.student, *values, of.name, of.sha256), strict=True))


def _in_parallel(
    todo: Sequence[Submission], jobs: int, opens: _Opens, say: Any
) -> Iterator[tuple[Submission, list[dict[str, Any]]]]:
    """Judge in forked processes, ``jobs`` at a time; each writes its rows to a pipe of its own."""
    waiting = list(todo)
    running: dict[int, tuple[int, Submission, bytearray]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                submission = waiting.pop(0)
                out, into = os.pipe()
                pid = os.fork()
                if pid == 0:
                    os.close(out)
                    _judge_and_exit(submission, into, opens)
                os.close(into)
                running[out] = (pid, submission, bytearray())
            names = ", ".join(one.name for _, one, _ in running.values())
            for out in readable(list(running), names, say):
                part = os.read(out, 2**16)
                pid, submission, content = running[out]
                content += part
                if not part:
                    del running[out]
                    os.close(out)
                    os.waitpid(pid, 0)
                    yield submission, _rows_of(submission, bytes(content))
    finally:
        for out, (pid, _, _) in running.items():
            with suppress(OSError):
                os.kill(pid, signal.SIGTERM)
                os.waitpid(pid, 0)
                os.close(out)


def _rows_of(submission: Submission, content: bytes) -> list[dict[str, Any]]:
    try:
        return [dict(row) for row in json.loads(content)]
    except ValueError:
        why = "This file was not graded: the judge ended (out of memory?). Look at it by hand."
        return [_row(submission, why)]


def _judge_and_exit(submission: Submission, into: int, opens: _Opens) -> None:
    notebook: list[NotebookProcess] = []

    def stop(*_: Any) -> None:
        for process in notebook:
            process.stop()
        end_orphans()
        os._exit(1)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the grader decides
    adopt_orphans()
    with suppress(BaseException):
        try:
            rows = _judge(submission, opens, notebook)
        except Exception as error:
            why = f"This file was not graded: the judge met {type(error).__name__}: {error}"
            rows = [_row(submission, why)]
        end_orphans()
        content = json.dumps(rows).encode()
        while content:
            content = content[os.write(into, content) :]
    os._exit(0)


def _only_checks(source: str) -> bool:
    """Whether a cell holds nothing but checks (and imports): it has no part of an answer."""
    if not _CHECK_CELL.match(source):
        return False
    try:
        statements = ast.parse(source).body
    except _UNREADABLE:
        return False
    calls = [
        s.value for s in statements if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)
    ]
    checks = [c for c in calls if getattr(c.func, "attr", getattr(c.func, "id", "")) == "check"]
    imports = [s for s in statements if isinstance(s, (ast.Import, ast.ImportFrom))]
    return len(checks) + len(imports) == len(statements)


def _judge(
    submission: Submission, opens: _Opens, running: list[NotebookProcess]
) -> list[dict[str, Any]]:
    """The rows of one notebook."""
    try:
        known, cells = read_notebook(submission.path)
        sources = [cell["source"] for cell in cells]
        lesson = lesson_of(submission.path, known, sources)
        questions = _questions(lesson)
    except (InvalidArgumentError, OSError) as error:  # the others still count
        return [_row(submission, f"This file was not graded: {error}")]
    run = ["" if _only_checks(source) else source for source in sources]  # numbers stay
    process = opens(run)
    running.append(process)
    ran = process.start()
    rows = []
    for exercise, function in questions:
        points, message = _ask(process, ran, exercise, function)
        hints = _hints_used(cells, exercise)
        rows.append(_row(submission, message, (lesson, exercise), points, hints))
    if process.lost:
        cells_lost = "; ".join(
            f"code cell {number + 1} {why}" for number, why in sorted(process.lost.items())
        )
        rows[-1]["message"] += f" ({cells_lost})"
    process.stop()
    return rows


def _ask(process: NotebookProcess, ran: bool, exercise: str, name: str) -> tuple[int, str]:
    if not ran:
        return 0, "The notebook could not be run to its end."
    function = process.answer(name)
    if function is None:
        return 0, f"There is no {name} in the notebook.{_why_not(process, name)}"
    result = _judged(exercise, function)
    message = result.message.split("\n")[0]
    if not result.passed and (raised := _UNKNOWN.search(message)):
        message += _ALONE if raised[1] in _ABSENT else _why_not(process, name)
    return int(result.passed), message


def _judged(exercise: str, function: Any) -> CheckResult:
    """A right answer is right on the notebook's own cases, which can be looked up, and on fresh ones.

    One draw of several will do: some are spoilt by rounding, of half precision above all.
    """
    published = Checker()(exercise, function)
    if not published.passed:
        return published
    for _ in range(_DRAWS):
        with fresh_cases(1_000_000 + secrets.randbits(40)):
            fresh = Checker()(exercise, function)
        if fresh.passed:
            return fresh
        if TOO_LONG in fresh.message:
            break
    return replace(fresh, message=f"{_LOOKED_UP} {fresh.message}")


def _why_not(process: NotebookProcess, name: str) -> str:
    """The error of the cell that should have made a name, else the first one that missed a file or module."""
    defines = re.compile(rf"^\s*(def\s+{re.escape(name)}\b|{re.escape(name)}\s*=)", re.MULTILINE)
    of_cell = [cell for cell in process.errors if defines.search(process.cells[cell])]
    missing = [cell for cell, text in process.errors.items() if text.startswith(_ABSENT)]
    told = [f" Cell {cell + 1} raised {process.errors[cell]}." for cell in (missing or of_cell)[:1]]
    return "".join(told) + (_ALONE if missing else "")


def _questions(lesson: int) -> list[tuple[str, str]]:
    """Exercise and function name of every check of a lesson, read from the notebook in the package."""
    for path in exercise_notebooks():
        if path.name.startswith(f"lesson_{lesson}_"):
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            found = [CHECK.search("".join(c["source"])) for c in cells if c["cell_type"] == "code"]
            return [(match[1], match[2]) for match in found if match]
    raise InvalidArgumentError(f"lesson must be one of {list(LESSONS)}, got {lesson}")


def _hints_used(cells: Sequence[Any], exercise: str) -> int:
    """How many hints of an exercise stand in the stored outputs."""
    most = 0
    for cell in cells:
        if exercise in cell["source"] and "check" in cell["source"]:
            text = json.dumps(cell.get("outputs", []))
            most = max(most, *[int(n) for n in re.findall(r"Hint (\d+):", text)], 0)
    return most


def _review(
    found: Sequence[Submission], rows: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Reasons to read a notebook."""
    copies: dict[str, list[str]] = {}
    checks = Path(__file__).parent.glob("lesson_*.py")
    ours = {b for b in _bodies(f.read_text("utf-8") for f in checks) if b.count("\n") >= 2}
    for submission in found:
        mine = [row for row in rows if row["notebook"] == submission.name]
        yield from (
            (submission.name, m) for row in mine if "not graded" in (m := str(row["message"]))
        )
        try:
            _, cells = read_notebook(submission.path)
        except (InvalidArgumentError, OSError):
            continue
        source = "\n".join(cell["source"] for cell in cells)
        yield from (
            (submission.name, what) for what, pattern in _ODD.items() if pattern.search(source)
        )
        stored = json.dumps([c.get("outputs", []) for c in cells], ensure_ascii=False)
        for row in mine:
            if _LOOKED_UP in str(row["message"]):
                yield submission.name, f"{row['exercise']} is right on the published cases only"
            if _ALONE.strip() in str(row["message"]):
                yield submission.name, f"it needs what was not handed in: {row['message']}"
            if "(code cell" in str(row["message"]):
                left_out = str(row["message"]).rpartition(" (code")[2]
                yield submission.name, f"left out: code{left_out.removesuffix(')')}"
            if row["exercise"] and f"✓ exercise {row['exercise']}" in stored and not row["points"]:
                yield (
                    submission.name,
                    f"its stored output says {row['exercise']} passed; here it did not",
                )
        bodies = _bodies(cell["source"] for cell in cells)
        if ours & set(bodies):
            yield submission.name, "a function that is a check's own, word for word"
        if sum(body.count("\n") for body in bodies) >= 20:  # less is too little to compare
            key = hashlib.sha256("\n\n".join(bodies).encode("utf-8", "replace")).hexdigest()
            copies.setdefault(key, []).append(submission.name)
        elif any(row["points"] for row in mine):
            copies.setdefault(submission.sha256, []).append(submission.name)
    for names in copies.values():
        if len({name.split("/")[0] for name in names}) > 1:
            yield names[0], f"the same code as {', '.join(names[1:])}"


def _bodies(sources: Iterable[str]) -> list[str]:
    """What every written function of some cells does, without docstring, comments and layout.

    A cell that is no Python has none, and the others count.
    """
    found = []
    for source in sources:
        with suppress(*_UNREADABLE):
            tree = ast.parse(as_python(source))
            functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
            without = [f.body[ast.get_docstring(f, clean=False) is not None :] for f in functions]
            found += ["\n".join(map(ast.unparse, body)) for body in without]
    return [body for body in found if body and "NotImplementedError" not in body]


def _review_page(grades: Grades) -> str:
    lines = ["# Notebooks to look at", "", repr(grades) + ".", ""]
    lines += [f"- `{name}`: {reason}" for name, reason in grades.review] or [
        "Nothing odd was seen."
    ]
    lines += ["", "Each line is a reason to read a notebook, not a verdict.", ""]
    if not barrier_version():
        lines += [_NO_BARRIER, ""]
    if grades.missing:
        lines += ["Nothing from: " + ", ".join(grades.missing), ""]
    return "\n".join(lines)


def _sentence(submission: Submission, rows: Sequence[dict[str, Any]]) -> str:
    if rows and rows[0]["lesson"] is None:
        return f"{submission.name}: {rows[0]['message']}"
    points = sum(row["points"] for row in rows)
    return f"{submission.name}: {points} of {len(rows)} passed"
