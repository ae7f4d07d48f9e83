"""Every lesson: solutions pass, stubs fail readably, wrong answers fail helpfully, imports are public."""

import ast
import importlib.util
from pathlib import Path

import nbformat
import pytest
import torch
from machinery.master import masters
from machinery.notebooks import checked_name, has_tag, make_notebook
from machinery.outputs import define
from nbformat.v4 import new_code_cell, new_notebook

from lens_linear.teaching.answers import copied, fresh_cases, random_tensor
from lens_linear.teaching.checker import Checker, exercises
from lens_linear.teaching.grading import grade

pytestmark = pytest.mark.whole

MASTERS = masters()
NAMES = [(master, cell.exercise) for master in MASTERS for cell in master.exercises]
WRONG = Path(__file__).resolve().parent / "wrong_answers"


def ident(value):
    return (
        value if isinstance(value, str) else getattr(value, "name", getattr(value, "__name__", ""))
    )


def wrong_answers(number):
    path = WRONG / f"lesson_{number}.py"
    spec = importlib.util.spec_from_file_location(f"wrong_lesson_{number}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WRONG


PLANTED = [planted for master in MASTERS for planted in wrong_answers(master.number)]


def answer(master, kind, exercise):
    notebook = make_notebook(master, kind)
    cells = [c for c in notebook.cells if has_tag(c, "check")]
    name = dict(checked_name(cell["source"]) for cell in cells)[exercise]
    return define(notebook, exercise)[name]


@pytest.mark.parametrize("master, exercise", NAMES, ids=ident)
def test_the_solution_passes(master, exercise):
    result = Checker()(exercise, answer(master, "solutions", exercise))
    assert result.passed, result
    assert "\n" not in result.message, "a solution breaks no later cell"


def same(x, y):
    if isinstance(x, torch.Tensor):
        x, y = (p.as_subclass(torch.Tensor) if isinstance(p, torch.Tensor) else p for p in (x, y))
        return isinstance(y, torch.Tensor) and torch.equal(x, y)
    if isinstance(x, (list, tuple)):
        return isinstance(y, (list, tuple)) and len(x) == len(y) and all(map(same, x, y))
    return x is y if callable(x) else x == y


@pytest.mark.parametrize("master, exercise", NAMES, ids=ident)
def test_fresh_cases_pass_the_solution_and_nothing_that_was_looked_up(master, exercise):
    solution = answer(master, "solutions", exercise)
    seen = []

    def records(*given):
        kept = copied(list(given))
        seen.append((kept, solution(*given)))
        return seen[-1][1]

    def looks_up(*given):
        return next((value for kept, value in seen if same(kept, list(given))), None)

    assert Checker()(exercise, records).passed
    if exercise not in ("1.5", "4.6", "8.2", "8.3"):  # a gradient; objects that are made anew
        assert Checker()(exercise, looks_up).passed
    for draw in (2**20, 2**30 + 1, 2**40 + 7):
        with fresh_cases(draw):
            assert Checker()(exercise, solution).passed
            assert not Checker()(exercise, looks_up).passed
    assert random_tensor(3, seed=1).equal(random_tensor(3, seed=1)), "afterwards the old cases"


@pytest.mark.parametrize("master, exercise", NAMES, ids=ident)
def test_the_stub_fails_readably(master, exercise):
    result = Checker()(exercise, answer(master, "exercises", exercise))
    assert not result.passed and result.attempts == 0
    assert result.message.startswith("Not written yet")


@pytest.mark.parametrize("exercise, function, word", PLANTED, ids=ident)
def test_a_planted_wrong_answer_fails_helpfully(exercise, function, word):
    result = Checker()(exercise, function)
    assert not result.passed
    assert word in result.message
    assert "Traceback" not in result.message and "could not read" not in result.message


@pytest.mark.parametrize("master", MASTERS, ids=ident)
def test_each_lesson_has_three_planted_wrong_answers(master):
    assert len(wrong_answers(master.number)) >= 3


def test_masters_and_checks_know_the_same_exercises():
    assert [exercise for _, exercise in NAMES] == list(exercises())


@pytest.mark.parametrize("exercise", list(exercises()))
def test_every_exercise_has_two_hints(exercise):
    assert len(exercises()[exercise].hints) >= 2


@pytest.mark.parametrize("exercise", list(exercises()))
@pytest.mark.parametrize(
    "odd",
    [None, 3, "text", lambda: 1, lambda *a: None, lambda *a: "x", lambda *a: {}, lambda *a: a],
)
def test_odd_answers_never_raise_and_never_pass(exercise, odd):
    result = Checker()(exercise, odd)
    assert not result.passed and len(result.message) > 20


@pytest.mark.parametrize("master", MASTERS, ids=ident)
def test_every_solution_gets_its_point_from_outside(master, tmp_path):
    """Graded by another process, in a notebook that has switched gradients off, as the lessons do."""
    whole = make_notebook(master, "solutions")
    cells = [c for c in whole.cells if has_tag(c, "exercise-") or has_tag(c, "check")]
    first = "from __future__ import annotations\nimport torch\nimport lens_linear as ll\n"
    cells.insert(0, new_code_cell(first + "torch.set_grad_enabled(False)"))
    future = "from __future__ import annotations\n"
    for cell in cells[1:]:
        cell["source"] = future + cell["source"]
    nbformat.write(new_notebook(cells=cells, metadata=whole.metadata), tmp_path / "anna.ipynb")
    rows = grade(tmp_path).to_dataframe()
    assert list(rows["exercise"]) == [c.exercise for c in master.exercises]
    assert rows["points"].eq(1).all(), rows[rows["points"].ne(1)][["exercise", "message"]]


def not_public(source):
    """Names of the package that a cell imports although no room exports them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith("lens_linear.")]
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lens_linear"):
            found += [node.module] * (node.module.count(".") > 1)  # one room, no file of it
            room = importlib.import_module("lens_linear")
            for part in node.module.split(".")[1:]:
                found += [node.module] * (part not in room.__all__)
                room = importlib.import_module(f"{room.__name__}.{part}")
            public = getattr(room, "__all__", ())
            found += [f"{node.module}.{a.name}" for a in node.names if a.name not in public]
    return found


@pytest.mark.parametrize("master", MASTERS, ids=ident)
def test_lessons_import_public_names_only(master):
    assert not [name for cell in master.cells if not cell.is_text for name in not_public(cell.text)]


def test_a_deep_import_is_noticed():
    assert not_public("from lens_linear.linalg.moments import Moments")
    assert not_public("from lens_linear.plots.style import colour")
    assert not_public("from lens_linear.linalg import spectra_of_nothing")
    assert not_public("import lens_linear as ll\nfrom lens_linear.plots import colour") == []
