"""Errors give advice: for each place that raises, what its message says is done, and the call succeeds.

A row is a call that is refused, the words of its advice, and the call with the advice followed. Where all
rows run in one process, a place that no row reaches is a failure.
"""

import ast
import functools
import traceback
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from robust_counts import count

import lens_linear
from lens_linear import text
from lens_linear.errors import LensLinearError

ROOT = Path(lens_linear.__file__).parent
ROOMS = [import_module(path.stem) for path in sorted(Path(__file__).parent.glob("advice_*.py"))]
ROWS = [
    pytest.param(*row, id=f"{room.__name__.removeprefix('advice_')}-{place}")
    for room in ROOMS
    for place, row in enumerate(getattr(room, "ROWS", ()))
]
# Answers to students, what Python itself expects, and errors that are caught again inside the package.
OTHERS = {
    "Wrong", "NotWritten", "CheckFailed", "SystemExit", "ValueError", "KeyError", "TypeError", "OSError",
    "AttributeError", "ConnectionError", "FloatingPointError", "PermissionError", "_error",
}  # fmt: skip
REACHED: set[tuple[str, int]] = set()
RAN: list[str] = []


def places() -> set[tuple[str, int]]:
    """Every place of the package that raises one of our errors, as (file, line of the statement)."""
    found = set()
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            if ast.unparse(node.exc.func) not in OTHERS:
                found.add((str(file), node.lineno))
    return found


@functools.cache
def statement(file: str, line: int) -> tuple[str, int]:
    """The place of the ``raise`` that a traceback's line lies in."""
    for node in ast.walk(ast.parse(Path(file).read_text())):
        if isinstance(node, ast.Raise) and node.lineno <= line <= (node.end_lineno or node.lineno):
            return file, node.lineno
    return file, line


def raised_at(error: BaseException | None, seen: frozenset[int] = frozenset()):
    """File and line of an error, and of those that it was made from."""
    if error is not None and id(error) not in seen:  # a chain may come back to where it began
        *_, last = traceback.walk_tb(error.__traceback__)
        yield last[0].f_code.co_filename, last[1]
        yield from raised_at(error.__cause__ or error.__context__, seen | {id(error)})


@pytest.fixture(scope="module", autouse=True)
def every_place_is_reached():
    yield
    if len(RAN) < len(ROWS):  # rows were chosen, failed, or are spread over processes
        return
    every = places()
    count("places that raise", len(every))
    count("of them reached by advice that is followed", len(every & REACHED))
    left = sorted(f"{Path(file).relative_to(ROOT)}:{line}" for file, line in every - REACHED)
    assert not left, f"no row follows the advice of {', '.join(left)}"


@pytest.mark.filterwarnings("ignore::lens_linear.errors.LensLinearWarning")
@pytest.mark.parametrize(("wrong", "advice", "followed"), ROWS)
def test_what_the_message_says_succeeds(wrong, advice, followed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LensLinearError, match=f"(?s){advice}") as error:
        wrong()
    assert followed() is not None
    own = [place for place in raised_at(error.value) if place[0].startswith(str(ROOT))]
    REACHED.update(statement(*place) for place in own)
    RAN.append(advice)


def test_a_list_is_asked_for_where_one_is_meant():
    for given in (3, np.float64(2.0), torch.tensor(2), np.array(1)):
        with pytest.raises(LensLinearError, match="pass a list of them"):
            text.token_labels(given)
