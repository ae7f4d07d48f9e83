"""Stored notebooks agree with their masters and hold what a code host can show."""

import dataclasses
import json

import build
import pytest
from machinery import notebooks
from machinery.execute import execute
from machinery.master import MasterError, masters, measured_numbers, read_master, stub
from machinery.notebooks import INSTALL, KINDS, has_tag, make_notebook, notebook_path, read
from machinery.outputs import MAX_BYTES, PLOTLY, figures
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = pytest.mark.whole

MASTERS = masters()
STORED = [(master, kind) for master in MASTERS for kind in KINDS]


def ident(value):
    return value if isinstance(value, str) else value.name


@pytest.mark.parametrize("master", MASTERS, ids=ident)
def test_notebooks_match_their_master(master):
    assert build.differences(master) == []


def test_no_notebook_is_without_a_master():
    assert build.strays() == []


def test_a_changed_master_is_noticed():
    other = changed_copy(MASTERS[0], "markdown", " more")
    assert len(build.differences(other)) == len(KINDS)


@pytest.mark.parametrize("master, kind", STORED, ids=ident)
def test_size_images_and_outputs(master, kind):
    path = notebook_path(master, kind)
    assert path.stat().st_size < MAX_BYTES
    notebook = read(path)
    assert figures(notebook), "a lesson without a figure"
    for data in figures(notebook):
        assert len(data["image/png"]) > 5_000, "no static picture beside the interactive one"
    text = json.dumps(list(notebook.cells))
    assert "srcdoc" not in text
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"
        if cell["cell_type"] == "code" and not has_tag(cell, "exercise-"):
            assert cell["execution_count"], "a stored notebook is an executed notebook"


@pytest.mark.parametrize("master, kind", STORED, ids=ident)
def test_title_badge_and_install_cell(master, kind):
    first, second = read(notebook_path(master, kind)).cells[:2]
    assert first["source"].startswith(f"# Lesson {master.number} · {master.title}")
    assert second["source"] == INSTALL
    assert ("Open In Colab" in first["source"]) == (notebooks.ADDRESS is not None)


def test_badges_come_with_the_address_of_the_project(monkeypatch):
    master = MASTERS[0]
    for address, badge in (
        (None, False),
        ("https://example.org/x", False),
        ("https://github.com/a/b", True),
    ):
        monkeypatch.setattr(notebooks, "ADDRESS", address)
        title = make_notebook(master, "exercises").cells[0]["source"]
        assert ("Open In Colab" in title) == badge
    assert f"github/a/b/blob/main/tutorials/exercises/{master.name}.ipynb" in title


@pytest.mark.parametrize("master", MASTERS, ids=ident)
def test_an_exercise_notebook_holds_no_solution(master):
    exercise = read(notebook_path(master, "exercises"))
    stubs = [c for c in exercise.cells if has_tag(c, "exercise-")]
    assert len(stubs) == len(master.exercises)
    for cell in stubs:
        assert "raise NotImplementedError" in cell["source"] and cell["outputs"] == []
    solutions = [c.text for c in master.cells if c.kind == "solution"]
    text = "\n".join(c["source"] for c in exercise.cells)
    for solution in solutions:
        inside = solution.split("# BEGIN SOLUTION")[1].split("# END SOLUTION")[0]
        assert inside.strip() not in text
    assert "For instructors" not in text


@pytest.mark.parametrize("master", MASTERS, ids=ident)
def test_a_check_cell_run_first_of_all_says_what_to_run(master):
    cells = [c for c in read(notebook_path(master, "exercises")).cells if has_tag(c, "check")]
    assert len(cells) == len(master.exercises)
    for cell in cells:
        exec(cell["source"], space := {})
        exercise, name = notebooks.checked_name(cell["source"])
        (told,) = [r for r in space["ll"].check.results() if r.exercise == exercise]
        assert not told and f"There is no {name} yet" in told.message


@pytest.mark.parametrize("master", MASTERS, ids=ident)
def test_figures_come_as_data_once(master):
    for data in figures(read(notebook_path(master, "solutions"))):
        assert PLOTLY in data and "text/html" not in data


def changed_copy(master, kind, text):
    """The master with one cell of that kind extended."""
    cells = list(master.cells)
    index = next(i for i, cell in enumerate(cells) if cell.kind == kind)
    cells[index] = dataclasses.replace(cells[index], text=cells[index].text + text)
    return dataclasses.replace(master, cells=tuple(cells))


def test_text_can_change_without_running_anything(tmp_path, monkeypatch):
    master = MASTERS[0]
    for kind in KINDS:
        stored = tmp_path / kind / f"{master.name}.ipynb"
        stored.parent.mkdir()
        stored.write_bytes(notebook_path(master, kind).read_bytes())
    monkeypatch.setattr(build, "notebook_path", lambda m, kind: tmp_path / kind / f"{m.name}.ipynb")
    before = read(tmp_path / "exercises" / f"{master.name}.ipynb")
    build.rewrite(changed_copy(master, "markdown", " More."))
    after = read(tmp_path / "exercises" / f"{master.name}.ipynb")
    assert "More." in after.cells[2]["source"] and "More." not in before.cells[2]["source"]
    assert [c.get("outputs") for c in after.cells] == [c.get("outputs") for c in before.cells]
    with pytest.raises(MasterError, match="code has changed"):
        build.rewrite(changed_copy(master, "code", "\nx = 1"))


GOOD = """# ---
# lesson: 9
# title: T
# minutes: 10
# ---
"""


def exercise(name, mark="difficulty=1 importance=1 minutes=1"):
    return (
        f"# %% [exercise {name} {mark}] Title\n# text\n\n# %% [solution {name}]\ndef f(x):\n"
        f"    # BEGIN SOLUTION\n    return x\n    # END SOLUTION\n\n# %% [check {name}]\n"
        f'll.check("{name}", f)\n\n'
    )


def test_the_format(tmp_path):
    path = tmp_path / "lesson_9_x.py"
    path.write_text(GOOD + "".join(exercise(f"9.{i}") for i in range(1, 5)))
    master = read_master(path)
    assert [c.exercise for c in master.exercises] == ["9.1", "9.2", "9.3", "9.4"]
    assert master.exercises[0].scale == {"difficulty": 1, "importance": 1, "minutes": 1}


@pytest.mark.parametrize(
    "text, word",
    [
        ("", "header"),
        (GOOD + exercise("9.1"), "at least 4"),
        (GOOD + "".join(exercise(f"9.{i}") for i in (1, 2, 4, 3)), "expected"),
        (GOOD + exercise("9.1", "difficulty=9 importance=1 minutes=1"), "difficulty"),
        (GOOD + "# %% [markdown]\nnot a comment\n", "text lines"),
        (GOOD + "# %% [unknown]\n", "unknown cell mark"),
        (GOOD + "x = 1\n", "before the first cell"),
    ],
)
def test_a_broken_master_is_refused(tmp_path, text, word):
    path = tmp_path / "lesson_9_x.py"
    path.write_text(text)
    with pytest.raises(MasterError, match=word):
        read_master(path)


def test_a_stub_keeps_what_stands_around_the_region():
    text = 'def f(x):\n    """Doc."""\n    # BEGIN SOLUTION\n    y = x\n    # END SOLUTION\n    return y'
    want = 'def f(x):\n    """Doc."""\n    raise NotImplementedError("exercise 9.1")\n    return y'
    assert stub(text, "9.1") == want
    with pytest.raises(MasterError, match="never closed"):
        stub("# BEGIN SOLUTION\nx", "9.1")


@pytest.mark.parametrize("text", ["a loss of 2.31 nats", "about 95 % of heads", "30% more"])
def test_measured_numbers_in_prose_are_found(text):
    assert measured_numbers(text)


@pytest.mark.parametrize(
    "text",
    ["$0.5 x$ and `0.1`", "exercise 1.3", "arXiv 2604.13656", "see [x](http://a/1.2)", "two"],
)
def test_other_numbers_are_left_alone(text):
    assert not measured_numbers(text)


def test_the_network_is_off_while_notebooks_run():
    ask = "import urllib.request\nurllib.request.urlopen('http://example.org', timeout=5)"
    with pytest.raises(CellExecutionError, match="network is off"):
        execute(new_notebook(cells=[new_code_cell(ask)]))
