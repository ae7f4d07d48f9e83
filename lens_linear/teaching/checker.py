"""``ll.check("3.2", answer)``: is the answer right, and if not, what to look at next.

>>> import lens_linear as ll
>>> result = ll.check("1.1", lambda W_E, W_U, b_U: W_E @ W_U + b_U)
>>> result.passed, result.exercise, result.attempts
(True, '1.1', 1)

A check calls the answer on small cases whose result is known by hand or by a property (rows sum to
one, parts sum to the whole), so every correct variant passes and no solution is needed. A wrong
answer gets one sentence. Hints come only when asked for: ``ll.check.hint("3.2")`` opens the next
one. ``ll.check.results()`` is what a grader collects.
"""

from __future__ import annotations

import difflib
import functools
import html
import importlib
import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lens_linear.checks import counted
from lens_linear.errors import InvalidArgumentError
from lens_linear.files import write_text
from lens_linear.teaching.answers import Exercise, NotWritten, Wrong, changed, copied, unfit
from lens_linear.teaching.early import missing, say_when_too_early

LESSONS = range(1, 10)
_NAME = re.compile(r"(\d+)\.(\d+)")
_GOOD, _BAD = "#009E73", "#D55E00"  # Okabe & Ito: told apart by every reader


@dataclass(frozen=True, eq=False)
class CheckResult:
    """What a check found. True in a condition when the answer passed.

    Attributes:
        exercise: name, such as "3.2".
        passed: whether the answer is right.
        message: for the student; hints that were asked for stand on lines of their own.
        attempts: how often a written answer was checked in this session (a stub does not count).
    """

    exercise: str
    passed: bool
    message: str
    attempts: int

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        sign = "✓" if self.passed else "✗"
        return f"{sign} exercise {self.exercise}: {self.message}"

    def _repr_html_(self) -> str:
        colour, sign = (_GOOD, "✓") if self.passed else (_BAD, "✗")
        text = html.escape(self.message).replace("\n", "<br>")
        text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
        return (
            f'<div style="border-left:4px solid {colour};padding:4px 12px;margin:4px 0">'
            f"<b>{sign} exercise {html.escape(self.exercise)}</b><br>{text}</div>"
        )


class CheckFailed(AssertionError):
    """An answer did not pass a check that was asked with ``strict=True``."""


class Checker:
    """Checks answers and remembers attempts; :data:`check` is the one that notebooks share.

    ``check("1.2", answer)`` returns a :class:`CheckResult`; a wrong answer never raises.

    Example:
        >>> bool(check("1.1", "not a function").passed)
        False
    """

    def __init__(self) -> None:
        #: With True, a failing check raises :class:`CheckFailed` in the whole notebook.
        self.strict = False
        self._attempts: dict[str, int] = {}
        self._hints: dict[str, int] = {}
        self._results: dict[str, CheckResult] = {}

    def __repr__(self) -> str:
        done = sum(result.passed for result in self._results.values())
        return f"Checker: {done} of {counted(len(self._results), 'exercise')} tried in this session passed"

    def __call__(self, exercise: str, answer: Any, *, strict: bool | None = None) -> CheckResult:
        """Check an answer to an exercise.

        Args:
            exercise: name as the notebook writes it, such as "3.2".
            answer: the function you wrote (the function itself, not its result), or its name: then a cell
                that runs before the function is there says so.
            strict: True raises for an answer that does not pass, so that nbgrader and Otter count it;
                default: ``check.strict``, False unless a notebook sets it.

        Returns:
            CheckResult: shown as a box in a notebook; a wrong answer raises only with ``strict``.

        Raises:
            InvalidArgumentError: there is no exercise of that name.
            CheckFailed: the answer does not pass and ``strict`` is on.

        Example:
            >>> Checker()("1.1", lambda W_E, W_U, b_U: W_E.T).passed
            False
        """
        entry = find_exercise(exercise)
        written = True
        remarks: dict[str, None] = {}
        try:
            if isinstance(answer, str) and answer.isidentifier():
                answer = _named(answer, sys._getframe(1).f_globals, exercise)
            remark = entry.check(_watched(answer, remarks, whole=entry.whole))
            passed, message = True, "\n".join([remark or "Correct.", *remarks])
        except NotWritten as wrong:
            passed, message, written = False, str(wrong), False
        except Wrong as wrong:
            passed, message = False, "\n".join([str(wrong), *remarks])
        except Exception as error:  # an answer so odd that the check itself stumbled
            passed = False
            message = (
                f"The check could not read your answer ({type(error).__name__}: {error}). "
                "Does your function return what its docstring says?"
            )
        if written:
            self._attempts[exercise] = self._attempts.get(exercise, 0) + 1
        attempts = self._attempts.get(exercise, 0)
        if not passed and written:
            shown = entry.hints[: self._hints.get(exercise, 0)]
            message = "\n".join([message, *_numbered(shown)])
            if len(shown) < len(entry.hints):
                message += f'\nStuck? `ll.check.hint("{exercise}")` gives a hint.'
        result = CheckResult(exercise, passed, message, attempts)
        self._results[exercise] = result
        if not passed and (self.strict if strict is None else strict):
            raise CheckFailed(repr(result))
        return result

    def hint(self, exercise: str) -> str:
        """Reveal the next hint of an exercise and return all that are open by now.

        Example:
            >>> Checker().hint("1.1").startswith("Hint 1")
            True
        """
        entry = find_exercise(exercise)
        opened = min(self._hints.get(exercise, 0) + 1, len(entry.hints))
        self._hints[exercise] = opened
        lines = _numbered(entry.hints[:opened])
        if opened == len(entry.hints):
            lines.append("There are no more hints.")
        return _Text("\n".join(lines))

    def results(self) -> tuple[CheckResult, ...]:
        """Return the latest result of every exercise tried in this session, in order."""
        return tuple(self._results[name] for name in sorted(self._results, key=_order))

    def to_dataframe(self) -> pd.DataFrame:
        """Return the results as a table: exercise, passed, attempts, message."""
        columns = ["exercise", "passed", "attempts", "message"]
        return pd.DataFrame([asdict(result) for result in self.results()], columns=columns)

    def save(self, path: str | Path) -> Path:
        """Write the results as JSON for a grader; returns the path."""
        return write_text(path, json.dumps([asdict(r) for r in self.results()], indent=1) + "\n")

    def reset(self) -> None:
        """Forget attempts, hints and results."""
        for memory in (self._attempts, self._hints, self._results):
            memory.clear()


class _Text(str):
    """A string that a notebook shows with its line breaks."""

    def __repr__(self) -> str:
        return str(self)


def _named(name: str, space: dict[str, Any], exercise: str) -> Any:
    """The function of that name where ``check`` was called."""
    if name not in space:
        raise NotWritten(missing(name, exercise))
    return space[name]


def _watched(answer: Any, remarks: dict[str, None], *, whole: bool) -> Any:
    """Return the student's function so wrapped that what would break later cells is remarked on."""
    if not callable(answer):
        return answer

    @functools.wraps(answer)
    def watched(*arguments: Any) -> Any:
        before = [copied(argument) for argument in arguments]
        value = answer(*arguments)
        told = [unfit(value, whole=whole)]
        for number, (was, now) in enumerate(zip(before, arguments, strict=True), start=1):
            if changed(was, now):
                told.append(
                    f"Your function changes its input number {number} itself, which other cells use too. "
                    "Work on a copy: `.clone()`."
                )
        remarks.update((remark, None) for remark in told if remark)
        return value

    return watched


def exercises() -> dict[str, Exercise]:
    """Return every exercise that has a check, by name, in order."""
    found: dict[str, Exercise] = {}
    for lesson in LESSONS:
        found.update(_lesson(lesson))
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def find_exercise(name: str) -> Exercise:
    """Return one exercise, or raise with the nearest names."""
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    entry = _lesson(int(match[1])).get(name) if match else None
    if entry is None:
        known = list(exercises())
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        raise InvalidArgumentError(
            f"exercise must be a name such as '1.1' (a string), got {name!r}; "
            f"nearest: {', '.join(near or known) or 'none'}"
        )
    return entry


def _lesson(number: int) -> dict[str, Exercise]:
    if number not in LESSONS:
        return {}
    exercises: dict[str, Exercise]
    exercises = importlib.import_module(f"lens_linear.teaching.lesson_{number}").EXERCISES
    return exercises


def pass_everything() -> None:
    """Let every check of this process pass: where a notebook is graded, its answers are judged elsewhere."""
    passes = Exercise(lambda _: "Judged from outside, not here.", ("No hints while it is graded.",))
    globals()["_lesson"] = lambda number: {f"{number}.{index}": passes for index in range(1, 30)}


def _order(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("."))


def _numbered(hints: tuple[str, ...]) -> list[str]:
    return [f"Hint {number}: {hint}" for number, hint in enumerate(hints, start=1)]


def _early(exercise: str, name: str) -> CheckResult | None:
    """What a check shows of a function that is not there yet; None where it must raise."""

    def absent(*_: Any) -> None:
        raise NotWritten(missing(name, exercise))

    return None if check.strict else check(exercise, absent)


check = Checker()
say_when_too_early(_early)
