"""The grader runs a submission, asks every check again, and survives what students hand in."""

import csv

import grade
import pytest
from machinery.execute import execute
from machinery.master import MasterError
from nbclient.exceptions import CellExecutionError
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook

RIGHT = "def bigram_logits(W_E, W_U, b_U):\n    return W_E @ W_U + b_U"
WRONG = "def low_rank(table, rank):\n    return table"
ENDLESS = "def excess_loss(joint, logits):\n    while True: pass"
STUB = 'def bigram_table(tokens, n_vocab):\n    raise NotImplementedError("exercise 1.2")'


def submission(path, *cells, lesson=1):
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    if lesson:
        notebook.metadata["lens_linear"] = {"lesson": lesson}
    write(notebook, path)
    return path


def test_grades_a_folder(tmp_path, capsys):
    (tmp_path / "anna").mkdir()
    submission(tmp_path / "anna" / "x.ipynb", RIGHT, "1 / 0", WRONG, STUB, ENDLESS)
    (tmp_path / "broken.ipynb").write_text('{"cells": [')
    submission(tmp_path / "nobody.ipynb", "x = 1", lesson=99)
    out = tmp_path / "grades.csv"
    assert grade.main([str(tmp_path), "--out", str(out), "--timeout", "10"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 6 passed" in printed and printed.count("was not graded") == 2
    with out.open() as file:
        rows = {row["exercise"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["1.1", "1.2", "1.3", "1.4", "1.5", "1.6", ""]
    assert rows["1.1"]["passed"] == "True"
    assert rows["1.2"]["message"].startswith("Not written yet")
    assert "no conditional_entropy" in rows["1.3"]["message"]
    assert "did not end in time" in rows["1.4"]["message"]
    assert rows["1.6"]["passed"] == "False" and "rank" in rows["1.6"]["message"]


def test_a_cell_that_cannot_be_interrupted_ends_its_notebook_only(tmp_path, monkeypatch):
    monkeypatch.setattr("machinery.execute._GRACE", 1)
    stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    rows = grade.grade(submission(tmp_path / "x.ipynb", RIGHT, stubborn), timeout=2)
    assert len(rows) == 6 and not any(row["passed"] for row in rows)
    assert "could not be run to its end" in rows[0]["message"]


def test_the_lesson_comes_from_metadata_or_name(tmp_path):
    named = submission(tmp_path / "lesson_7_me.ipynb", "x = 1", lesson=None)
    assert grade.lesson_of(named, grade.read(named)) == 7
    other = submission(tmp_path / "me.ipynb", "x = 1", lesson=None)
    with pytest.raises(MasterError, match="which lesson"):
        grade.lesson_of(other, grade.read(other))


def test_no_notebooks_is_an_error(tmp_path):
    with pytest.raises(SystemExit) as stop:
        grade.main([str(tmp_path)])
    assert stop.value.code == 2


def test_the_network_is_off_while_notebooks_run():
    ask = "import urllib.request\nurllib.request.urlopen('http://example.org', timeout=5)"
    with pytest.raises(CellExecutionError, match="network is off"):
        execute(new_notebook(cells=[new_code_cell(ask)]))
