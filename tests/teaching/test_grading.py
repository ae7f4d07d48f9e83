"""A small class is graded from outside: honest points kept, cheats worth nothing."""

import csv
import inspect
import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import lens_linear as ll
from lens_linear.errors import CorruptedFileError, InvalidArgumentError, LensLinearError, WriteError
from lens_linear.files import hold, release
from lens_linear.teaching import grading, guard, lesson_1, tutorials
from lens_linear.teaching.barrier import barrier_version
from lens_linear.teaching.grading import COLUMNS, grade
from lens_linear.teaching.notebook_process import NotebookProcess
from lens_linear.teaching.submissions import _student_of, read_roster
from lens_linear.teaching.wire import decode, encode

pytestmark = pytest.mark.whole

RIGHT = {
    "1.1": "def direct_path(W_E, W_U, b_U):\n    return W_E @ W_U + b_U",
    "1.2": "import torch\ndef bigram_counts(tokens, n_vocab):\n    out = torch.zeros(n_vocab, n_vocab)\n"
    "    pair = (tokens[:, :-1].flatten(), tokens[:, 1:].flatten())\n"
    "    out.index_put_(pair, torch.ones(1), accumulate=True)\n"
    "    out[out.sum(1) == 0] = 1.0\n    return out / out.sum(1, keepdim=True)",
}


def names():
    from lens_linear.teaching.grading import _questions

    return dict(_questions(1))


def notebook(*cells, lesson=1):
    made = [
        {"cell_type": "code", "metadata": {}, "source": s, "outputs": [], "execution_count": None}
        for s in cells
    ]
    metadata = {} if lesson is None else {"lens_linear": {"lesson": lesson}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def answer(exercise):
    head, _, body = RIGHT[exercise].partition("def ")
    return f"{head}def {names()[exercise]}({body.partition('(')[2]}"


def put(folder, student, made, name="lesson_1_bigrams.ipynb"):
    (folder / student).mkdir(parents=True, exist_ok=True)
    (folder / student / name).write_text(json.dumps(made), encoding="utf-8")


CHEATS = {
    "patched": "from lens_linear.teaching import checker\n"
    "checker.Checker.__call__ = lambda self, e, a, **k: checker.CheckResult(e, True, 'Correct.', 1)",
    "printed": "import builtins\nbuiltins.print = lambda *a, **k: None",
    "lenient": "import lens_linear.teaching.answers as a\na.require_close = lambda *x, **k: None\n"
    "import torch\ntorch.allclose = lambda *x, **k: True",
}


# What a check's own code makes of its own cases: recorded in the notebook, given back when asked.
REPLAY = """
import importlib, torch
L = importlib.import_module('lens_linear.teaching.' + 'lesson_1')
seen = []
def record(*a):
    seen.append([a, None])
    return torch.zeros(len(a[0]), len(a[0]))
L.matches = lambda *a, **k: False
def close(got, want, *a, **k):
    seen[-1][1] = want
L.require_close = close
L.EXERCISES['1.1'].check(record)
"""
REPLAYED = """
def {}(*a):
    for given, want in seen:
        if all(x.shape == y.shape and bool((x == y).all()) for x, y in zip(given, a)):
            return want
"""
SOURCE = """
def {}(W_E, W_U, b_U):
    import lens_linear, pathlib
    file = pathlib.Path(lens_linear.__file__).parent / 'teaching' / 'lesson_1.py'
    return W_E @ W_U + b_U * ('want' in file.read_text())
"""
#: Cells that reach outside the notebook; what comes after them still counts, and nothing else is lost.
REACHES = {
    "writes": "import lens_linear, pathlib\n"
    "folder = pathlib.Path(lens_linear.__file__).parent\n"
    "(folder / 'planted_by_a_notebook.py').write_text('x')",
    "removes": "import lens_linear, os\nos.remove(lens_linear.__file__)",
    "kills": "import os\nos.kill(os.getppid(), 9)",
    "patches": "import lens_linear.teaching.guard as g, re\ng._LESSON_FILE = re.compile('never')\n"
    "import pathlib\n"
    "text = pathlib.Path(g.__file__).with_name('lesson_1.py').read_text()\n"
    "def {}(W_E, W_U, b_U): return W_E @ W_U + b_U",
    "spawns": "import multiprocessing.util as u\nu.spawnv_passfds(b'/bin/true', [b'true'], ())\n"
    "def {}(W_E, W_U, b_U): return W_E @ W_U + b_U",
    "spawns_again": "import sys, subprocess\ndel sys.modules['_posixsubprocess']\nimport _posixsubprocess\n"
    "def {}(W_E, W_U, b_U): return W_E @ W_U + b_U",
    "pipes": "import os\nos.symlink(f'/proc/{os.getppid()}', 'judge')\nnames = []\n"
    "for n in range(3, 30):\n    try: names.append(open(f'judge/fd/{n}', 'w').write('[]'))\n"
    "    except PermissionError: raise\n    except OSError: pass\n"
    "def {}(W_E, W_U, b_U): return W_E @ W_U + b_U",
    "traces": "import sys\nsys.settrace(lambda *a: None)",
    "moves": "import os\nos.environ.update(PATH='', HOME='/nowhere', PYTHONPATH='/nowhere')",
}
DAEMON = """
import ctypes, os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        ctypes.CDLL(None).prctl(15, {!r})
        time.sleep(300)
    os._exit(0)
"""
PRETENDS = """
class Anything:
    def __eq__(self, other): return True
    def __array__(self, *a, **k):
        import inspect
        return [f.frame.f_locals['want'] for f in inspect.stack() if 'want' in f.frame.f_locals][0]
    def __torch_function__(self, *a, **k): return True
    def __float__(self): return 0.0
def {}(*a): return Anything()
"""


# Each tries to be worth more by the work of somebody else, or to cost it.
COPY = """
import json
for cell in json.load({reader})["cells"]:
    exec("".join(cell["source"]) if "def " in "".join(cell["source"]) else "")
"""
CLASSMATES = {
    "copies": "import glob" + COPY.replace("{reader}", "open(glob.glob('{0}/anna*/*.ipynb')[0])"),
    "walks": "import os" + COPY.replace(
        "{reader}", "open([os.path.join(d, n) for d, _, f in os.walk('{0}') for n in f if 'anna' in d][0])"
    ),
    "changes": "import os\nos.chdir('{0}')"
    + COPY.replace("{reader}", "open('anna/' + os.listdir('anna')[0])"),
    "spoils": "import os\nfor d, _, names in os.walk('{0}'):\n"
    " for n in names: open(os.path.join(d, n), 'w').write('no')",
    "moves_all": "import os\nos.rename('{0}', '{0}-gone')",
    "adds": "open('{0}/../grades.csv', 'a').write('adds,1,1.1,1,1,,,,\\n')",
}  # fmt: skip


@pytest.fixture(scope="module")
def reaching(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reaching")
    name = names()["1.1"]
    put(folder, "replay", notebook(REPLAY, REPLAYED.format(name), answer("1.2")))
    put(folder, "source", notebook(SOURCE.format(name), answer("1.2")))
    put(folder, "odd", notebook(PRETENDS.format(name), answer("1.2")))
    daemon = f"left-{os.getpid()}".encode()
    put(folder, "anna", notebook(answer("1.1"), answer("1.2")))
    for who, cell in CLASSMATES.items():
        put(folder, who, notebook(cell.format(str(folder)), answer("1.2")))
    put(folder, "daemon", notebook(DAEMON.format(daemon), answer("1.2")))
    for who, cell in REACHES.items():
        put(folder, who, notebook(cell.replace("{}", name), answer("1.2")))
    asked = "import lens_linear as ll\nll.check.strict = True\nll.check('1.1', None)\nll.check.hint('1.2')\n"
    put(folder, "asks", notebook(asked + answer("1.2")))
    return grade(folder, out=folder.parent / "grades.csv", seconds=20, jobs=2), daemon


def test_no_reach_outside_the_notebook_is_worth_a_point_or_costs_one(reaching):
    grades, _ = reaching
    for who in ("replay", "source", "odd", "daemon", "asks", *REACHES, *CLASSMATES):
        assert points(grades, who) == {"1.2"}, who
    assert points(grades, "anna") == {"1.1", "1.2"}
    package = Path(ll.__file__).parent
    assert (package / "__init__.py").is_file() and not list(package.glob("planted*"))
    noted = {name.split("/")[0] for name, _ in grades.review}
    assert {"replay", "odd", "daemon", "kills", "traces", "moves", "writes"} <= noted


def test_solutions_of_a_checkout_are_nobodys_to_read(tmp_path, monkeypatch):
    """A cell that reads them is refused; where they may be read, the same cell goes on."""
    solutions = tmp_path / "tutorials" / "solutions"
    solutions.mkdir(parents=True)
    (solutions / "one.py").write_text("x = 1", encoding="utf-8")
    readers = {
        "opens": "open('{0}/one.py').read()",
        "lists": "os.listdir('{0}')[0]",
        "walks": "[n for _, _, f in os.walk('{0}') for n in f][0]",
        "links": "(os.symlink('{0}', 'here'), open('here/one.py').read())",
        "raw": "os.open('{0}/one.py', os.O_RDONLY)",
    }
    cells = [
        f"import os\n{text.format(solutions)}\ndef {who}(): return 1"
        for who, text in readers.items()
    ]

    def got():
        process = NotebookProcess(cells, 20, 60, memory=2**30)
        try:
            assert process.start()
            return {who for who in readers if process.answer(who) is not None}
        finally:
            process.stop()

    monkeypatch.setattr(guard, "__file__", str(tmp_path / "lens_linear" / "teaching" / "guard.py"))
    assert got() == set()
    monkeypatch.setattr(guard, "shut_in", lambda *a: False)  # the rule alone, as on other systems
    assert got() == set()
    monkeypatch.setattr(guard, "_solutions", list)
    assert got() == set(readers)


def test_a_file_beside_the_notebook_is_said_to_be_missing(tmp_path):
    name = names()["1.1"]
    right = answer("1.1").replace("def ", "import helper\ndef ", 1)
    put(tmp_path, "imports", notebook(right, answer("1.2")))
    put(tmp_path, "first", notebook("import helper", f"def {name}(*a): return helper.f(*a)"))
    put(tmp_path, "data", notebook(f"def {name}(*a): return open('mine.txt').read()"))
    put(
        tmp_path,
        "typo",
        notebook("ll.check('1.1', 'f')", answer("1.1").replace("return", "retrun")),
    )
    (tmp_path / "imports" / "helper.py").write_text("f = None", encoding="utf-8")
    grades = grade(tmp_path)
    said = {r["student"]: r["message"] for r in grades.rows if r["exercise"] == "1.1"}
    for who in ("imports", "first", "data"):
        assert "graded alone, in an empty folder" in said[who], who
    assert "No module named 'helper'" in said["imports"] and "Cell 1 raised" in said["first"]
    assert "Cell 2 raised SyntaxError" in said["typo"] and "alone" not in said["typo"]
    assert points(grades, "imports") == {"1.2"}
    noted = {name.split("/")[0] for name, why in grades.review if "not handed in" in why}
    assert noted == {"imports", "first", "data"}


def test_cells_of_ipython_are_run_as_ipython_reads_them(tmp_path):
    first, second = names()["1.1"], names()["1.2"]
    one = answer("1.1")
    cells = {
        "timed": [f"%%time\n{one}"],
        "captured": [f"%%capture out --no-stderr\n{one}"],
        "asked": [f"len?\n{one}\n?len"],
        "shell": [f"found = !ls -l\n%timeit -n 1 1 + 1\nbest = %timeit -o 2\n{one}"],
        "inside": [one.replace("\n", "\n    %matplotlib inline\n", 1)],
        "checked": [f'll.check("1.2", {second})\n{one}'],  # not a cell of checks alone
        "written": [f"%%writefile mine.py\n{one}"],  # a file, not an answer
    }
    for who, made in cells.items():
        put(tmp_path, who, notebook("import lens_linear as ll", *made, answer("1.2")))
    put(tmp_path, "checked", notebook("import lens_linear as ll", answer("1.2"), *cells["checked"]))
    grades = grade(tmp_path)
    assert points(grades, "written") == {"1.2"}
    for who in cells.keys() - {"written"}:
        assert points(grades, who) == {"1.1", "1.2"}, (who, first)


def test_the_number_of_a_lesson_is_no_students(tmp_path):
    from lens_linear.teaching.submissions import _student_of

    numbers = [str(n) for n in range(1, 13)]
    for path, who in {
        "7/lesson_6_dynamics.ipynb": "7",
        "12/lesson_6_dynamics.ipynb": "12",
        "lesson_6_dynamics_7.ipynb": "7",
        "handed in by 11/Lesson 6.ipynb": "11",
        "lesson-6/9.ipynb": "9",
    }.items():
        assert _student_of(Path(path), numbers) == who, path
    assert _student_of(Path("x/lesson_6.ipynb"), numbers) == "x"
    assert _student_of(Path("ann lee/lesson_1.ipynb"), ["ann", "ann lee"]) == "ann lee"


def test_a_copy_of_the_package_without_notebooks_says_so(tmp_path, monkeypatch):
    put(tmp_path, "anna", notebook(answer("1.1")))
    monkeypatch.setattr(tutorials, "_INSTALLED", tmp_path)
    monkeypatch.setattr(tutorials, "_CHECKOUT", tmp_path)
    with pytest.raises(CorruptedFileError, match=r"copy of the package.*with pip from a wheel"):
        grade(tmp_path)


def test_a_system_that_cannot_fork_is_told_where_to_grade(tmp_path, monkeypatch):
    put(tmp_path, "anna", notebook(answer("1.1")))
    monkeypatch.delattr(os, "fork")
    with pytest.raises(LensLinearError, match="on Windows in WSL"):
        grade(tmp_path)


def test_a_machine_without_the_barrier_says_so_and_refuses_what_it_can(tmp_path, monkeypatch):
    put(
        tmp_path,
        "anna",
        notebook("import ctypes\nctypes.CDLL(None)\n" + answer("1.1"), answer("1.2")),
    )
    monkeypatch.setattr(guard, "shut_in", lambda *a: False)
    monkeypatch.setattr(grading, "barrier_version", lambda: 0)
    grades = grade(tmp_path, out=tmp_path.parent / "bare.csv")
    assert points(grades, "anna") == {"1.2"}
    assert "no barrier" in (tmp_path.parent / "bare.csv.review.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not barrier_version(), reason="no Landlock in this kernel")
def test_native_code_reads_and_writes_its_own_place_only(tmp_path):
    """Each cell must be able to do its work without the barrier, as the last line shows."""
    check, theirs = Path(ll.teaching.__file__).with_name("lesson_1.py"), tmp_path / "theirs"
    theirs.write_text("secret", encoding="utf-8")
    c = "import ctypes, os\nc = ctypes.CDLL(None)\n"
    cells = {
        "tensor": f"import torch\ntorch.from_file({str(check)!r}, size=9, dtype=torch.uint8)",
        "native": f"{c}assert c.open({str(check).encode()!r}, 0) >= 0",
        "another": f"{c}assert c.open({str(theirs).encode()!r}, 0) >= 0",
        "history": f"import readline\nreadline.read_history_file({str(theirs)!r})",
        "writes": f"{c}assert c.open({str(tmp_path / 'new').encode()!r}, 0o101, 0o600) >= 0",
        "links": f"{c}assert c.link({str(theirs).encode()!r}, b'mine') == 0",
        "removes": f"{c}assert c.unlink({str(tmp_path / 'gone').encode()!r}) == 0",
    }
    cells["udp"] = "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
    cells["native udp"] = f"{c}assert c.socket(2, 2, 0) >= 0"
    cells["shared"] = "open('/dev/shm/lens-linear-test', 'w').close()"
    cells["segment"] = (
        f"{c}s = c.shmget(0x1717, 64, 0o1600)\nassert s >= 0 and c.shmctl(s, 0, None) == 0"
    )
    cells["limits"] = (
        f"{c}old = (ctypes.c_ulong * 2)()\nassert c.prlimit(os.getppid(), 0, None, old) == 0"
    )
    cells["memory"] = f"{c}assert c.open(b'/proc/%d/mem' % os.getppid(), 0) >= 0"
    right = {
        "own": "import tempfile\nwith tempfile.NamedTemporaryFile() as f: f.write(b'1')\n"
        "open('x', 'w').write('1')\nassert open('x').read() == '1'",
        "imports": "import pandas, transformers, plotly.graph_objects as go\ngo.Figure().to_html()",
        "models": "import lens_linear as ll\nll.load('attn-1l')",
    }
    right["limit"] = "import resource\nresource.getrlimit(resource.RLIMIT_CPU)"
    (tmp_path / "gone").touch()
    tried = {**cells, **right}
    sources = [f"{text}\ndef {who}(): return 1" for who, text in tried.items()]
    process = NotebookProcess(sources, 60, 120, memory=2**31)
    try:
        assert process.start() and not process.lost
        assert {who for who in tried if process.answer(who)} == set(right), process.errors
    finally:
        process.stop()
    Path("/dev/shm/lens-linear-test").unlink(missing_ok=True)
    assert (tmp_path / "gone").exists() and not (tmp_path / "new").exists()
    for who, text in cells.items():
        if who != "history":  # it is this process's own
            exec(text.replace("b'mine'", repr(str(tmp_path / "mine").encode())), {})


@pytest.mark.parametrize(
    "path, students, whose",
    [
        ("jose\u0301/lesson_2.ipynb", ["jose", "jos\u00e9"], "jos\u00e9"),
        ("jos\u00e9_lesson_2.ipynb", ["jose\u0301"], "jose\u0301"),
        ("john_smith_lesson_2.ipynb", ["smith", "john"], "john"),
        ("bob_lesson_2_one_layer.ipynb", ["layer", "bob"], "bob"),
        ("bob/annabel/lesson_2.ipynb", ["annabel", "bob"], "bob"),
        ("s1/lesson_2.ipynb", ["S1", "s1"], "s1"),
        ("S1_lesson_2.ipynb", ["s1", "S1"], "S1"),
        ("ANN/lesson_2.ipynb", ["ann"], "ann"),
        ("s10_lesson_2.ipynb", ["s1", "s10"], "s10"),
        ("s1_2_lesson_2.ipynb", ["s1", "s1_2"], "s1_2"),
        ("x/lesson_2.ipynb", ["2"], "x"),
    ],
)
def test_whose_a_path_is(path, students, whose):
    assert _student_of(Path(path), students) == whose
    assert _student_of(Path(path), students[::-1]) == whose


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_roster_of_any_spreadsheet(tmp_path, mark):
    file = tmp_path / "roster.csv"
    file.write_bytes(
        f"\ufeffstudent{mark}group\r\nann{mark}1\r\nann{mark}1\r\nben{mark}2\r\n".encode()
    )
    assert read_roster(file) == ["ann", "ben"]


def test_what_is_no_file_is_said_and_capital_endings_count(tmp_path):
    put(tmp_path, "ann", notebook(answer("1.1")))
    (tmp_path / "ben").mkdir()
    (tmp_path / "ben" / "LESSON_1.IPYNB").write_text(
        json.dumps(notebook(answer("1.2"))), encoding="utf-8"
    )
    for who in ("cat", "dan", "eve"):
        (tmp_path / who).mkdir()
    (tmp_path / "cat" / "lesson_1.ipynb").symlink_to(next((tmp_path / "ann").iterdir()))
    (tmp_path / "dan" / "lesson_1.ipynb").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "eve" / "lesson_1.ipynb")
    grades = grade(tmp_path, out=tmp_path.parent / "kinds.csv")
    assert points(grades, "ann") == {"1.1"} and points(grades, "ben") == {"1.2"}
    for who in ("cat", "dan", "eve"):
        assert points(grades, who) == set()
        assert any(
            "must be handed in" in row["message"] for row in grades.rows if row["student"] == who
        )


def test_one_grader_at_a_time_and_copies_of_a_short_notebook_are_named(tmp_path):
    for who in ("ann", "ben"):
        put(tmp_path, who, notebook(answer("1.1")))
        put(tmp_path, f"{who}-empty", notebook("x = 1"))
    out = tmp_path.parent / "one.csv"
    hold(out, what="grades")
    try:
        told = {}

        def other():  # the lock lets its own thread in again
            with pytest.raises(WriteError, match="in use by another run") as error:
                grade(tmp_path, out=out)
            told["error"] = error

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert told and not out.exists()
    finally:
        release(out)
    copies = [line for line in grade(tmp_path, out=out).review if "the same code" in line[1]]
    assert len(copies) == 1 and "ann/" in copies[0][0] and "ben/" in copies[0][1]


def test_a_full_disk_tears_no_row(tmp_path, monkeypatch):
    put(tmp_path, "ann", notebook(answer("1.1")))
    put(tmp_path, "ben", notebook(answer("1.2")))
    out, real, calls = tmp_path.parent / "full.csv", os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) == 4:  # the head twice, ann, ben
            raise OSError(28, "No space left on device")
        return real(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="goes on where it ended"):
        grade(tmp_path, out=out)
    kept = out.read_text(encoding="utf-8")
    assert kept.endswith("\n") and "ann" in kept and "ben" not in kept
    grades = grade(tmp_path, out=out)
    assert points(grades, "ann") == {"1.1"} and points(grades, "ben") == {"1.2"}


def test_a_table_of_the_published_cases_is_worth_nothing(tmp_path):
    seen = []

    def record(W_E, W_U, b_U):
        seen.append(([x.tolist() for x in (W_E, W_U, b_U)], (W_E @ W_U + b_U).tolist()))
        return seen[-1][1]

    assert ll.teaching.Checker()("1.1", record).passed
    name = names()["1.1"]
    table = f"import torch\nseen = {seen!r}\ndef {name}(*a):\n    a = [x.tolist() for x in a]\n"
    table += "    return next((torch.tensor(y) for x, y in seen if x == a), None)"
    space = {}
    exec(table, space)
    assert ll.teaching.Checker()("1.1", space[name]).passed
    put(tmp_path, "table", notebook(table, answer("1.2")))
    grades = grade(tmp_path)
    assert points(grades, "table") == {"1.2"}
    said = {r["exercise"]: r["message"] for r in grades.rows}["1.1"]
    assert "wrong on fresh ones" in said and ("table" in grades.review[-1][0])


def test_equal_code_is_named_whatever_else_a_notebook_holds(tmp_path):
    long = "def f(x):\n    y = x % 7\n" + "".join(f"    y = y * {n} % 5\n" for n in range(20))
    short = "def g(x):\n    return x % 2"
    right = inspect.getsource(lesson_1._entropy).replace("_entropy", names()["1.3"])
    put(tmp_path, "ann", notebook(long + "    return y", "%matplotlib inline\nx = !ls"))
    spoilt = "def (:" + "(" * 5000
    put(tmp_path, "ben", notebook("%time\n" + long + "    return y  # mine", spoilt))
    put(tmp_path, "cat", notebook(long.replace("% 7", "% 8") + "    return y"))
    put(tmp_path, "dan", notebook(short, "x = " + "+".join("1" * 9000), right))
    put(tmp_path, "eve", notebook(short))
    review = [f"{name}: {why}" for name, why in grade(tmp_path).review]
    equal = [line for line in review if "the same code" in line]
    assert len(equal) == 1 and "ann/" in equal[0] and "ben/" in equal[0]
    assert [line[:3] for line in review if "check's own" in line] == ["dan"]


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux")
def test_what_a_notebook_left_running_is_ended(reaching):
    _, daemon = reaching

    def running():
        return daemon in {file.read_bytes().strip() for file in Path("/proc").glob("[0-9]*/comm")}

    assert not running()
    space = {}
    if (child := os.fork()) == 0:  # it can be seen where nothing ends it
        exec(DAEMON.format(daemon).replace("300", "1"), space)
        os._exit(0)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 10
    while not running() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert time.monotonic() < deadline


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    put(folder, "anna", notebook(answer("1.1"), answer("1.2")))
    put(folder, "renamed", notebook("x = 1", answer("1.1"), lesson=None), "lesson 1 mine.ipynb")
    for who, cell in CHEATS.items():
        put(folder, who, notebook(cell, answer("1.2")))
    endless = (
        f"def {names()['1.1']}(*a):\n    while True:\n        try:\n            while True: pass\n"
    )
    endless += "        except BaseException: pass"
    put(folder, "endless", notebook(endless, answer("1.2")))
    put(folder, "dead", notebook("import os\nos._exit(0)", answer("1.1"), answer("1.2")))
    put(
        folder,
        "exits",
        notebook(f"import os\ndef {names()['1.1']}(*a): os._exit(1)", answer("1.2")),
    )
    (folder / "broken").mkdir()
    (folder / "broken" / "lesson_1.ipynb").write_text("{", encoding="utf-8")
    roster = folder / "roster.csv"
    people = "anna renamed patched printed lenient endless dead exits broken zoe".split()
    roster.write_text("student\n" + "\n".join(people), encoding="utf-8")
    out = folder / "grades.csv"
    said = []
    grades = grade(folder, roster=roster, out=out, seconds=6, say=said.append, jobs=3)
    return folder, roster, out, grades, said


def points(grades, student):
    return {r["exercise"] for r in grades.rows if r["student"] == student and int(r["points"])}


def test_honest_points_are_kept_and_cheats_are_worth_nothing(graded):
    *_, grades, said = graded
    assert points(grades, "anna") == {"1.1", "1.2"}
    assert points(grades, "renamed") == {"1.1"}
    for who in CHEATS:
        assert points(grades, who) == {"1.2"}, who
    assert len(said) == 9
    assert [re.search(r"\((\d+ of 9), \d\d:\d\d left\)$", line)[1] for line in said] == [
        f"{i} of 9" for i in range(1, 10)
    ]


def test_what_dies_or_never_ends_costs_only_itself(graded):
    *_, grades, _ = graded
    assert points(grades, "endless") == {"1.2"}
    assert points(grades, "dead") == {"1.1", "1.2"}
    assert points(grades, "exits") == {"1.2"}
    messages = {
        r["student"]: r["message"] for r in grades.rows if r["exercise"] in ("1.1", None, "")
    }
    assert "did not end in time" in messages["endless"]
    assert "ended the whole process" in messages["exits"]
    assert "not graded" in messages["broken"] and "Nothing" in messages["zoe"]
    assert grades.missing == ("zoe",)


def test_odd_notebooks_are_named_for_reading(graded):
    *_, grades, _ = graded
    named = {name.split("/")[0] for name, _ in grades.review}
    assert {"patched", "printed", "lenient", "dead", "broken"} <= named
    assert (
        "dead/lesson_1_bigrams.ipynb",
        "left out: code cell 1 ended the whole notebook",
    ) in grades.review
    assert "anna" not in named


def test_a_second_run_keeps_what_has_not_changed(graded):
    folder, roster, out, first, _ = graded
    put(folder, "printed", notebook(answer("1.1")))
    said = []
    again = grade(folder, roster=roster, out=out, seconds=6, say=said.append)
    assert [line.split("/")[0] for line in said] == [
        "broken",
        "printed",
    ]  # what was not graded, again
    assert set(again.by_student()["points"]) <= {0, 1, 2}
    assert set(again.by_student()["lesson"].dropna().map(str)) == {"1"}
    assert points(again, "printed") == {"1.1"} and points(again, "anna") == points(first, "anna")
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS) and len(rows) == len(again.rows)


ODD = {
    "empty": (b" \n", "it is empty"),
    "deep": (b"[" * 200_000, "not a notebook"),
    "list": (b"[]", "without a list of cells"),
    "latin": ('{"cells": [], "x": "\xfc"}'.encode("latin-1"), "not UTF-8"),
    "nameless": (
        b'{"cells": [3, {"cell_type": "code", "source": [5]}], "metadata": null}',
        "which lesson",
    ),
}


def test_files_that_are_no_notebooks_are_said_and_the_others_count(tmp_path):
    for who, (content, _) in ODD.items():
        (tmp_path / f"{who}.ipynb").write_bytes(content)
    told = json.dumps(notebook("raise ValueError('a\\0\\ud800')", answer("1.1")))
    (tmp_path / "wide lesson 1.ipynb").write_bytes(told.encode("utf-16"))
    odd = f"def {names()['1.1']}(*a): raise ValueError('a\\0\\x1b\\ud800')"
    (tmp_path / "nul\n lesson 1.ipynb").write_text(json.dumps(notebook(odd)), encoding="utf-8-sig")
    grades = grade(tmp_path, out=tmp_path / "grades.csv", seconds=6)
    messages = {row["student"]: row["message"] for row in reversed(grades.rows)}
    for who, (_, word) in ODD.items():
        assert "not graded" in messages[who] and word in messages[who]
    assert points(grades, "wide lesson 1") == {"1.1"}
    assert "ValueError: a\ufffd\ufffd\ufffd" in messages["nul\ufffd lesson 1"]
    (tmp_path / "grades.csv").write_text(",".join(COLUMNS) + "\na,1,1.1,half,1,0,m,n,s\n")
    with pytest.raises(InvalidArgumentError, match="whole points"):
        grade(tmp_path, out=tmp_path / "grades.csv")


def test_what_a_notebook_prints_takes_no_memory(tmp_path):
    cell = (
        "import resource\ndef most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    )
    cell += "before = most()\nfor _ in range(300): print('y\\ud800' * 500_000)\ngrown = most() - before\n"
    cell += "assert grown < 100_000  # kilobytes, of 600,000 printed"
    put(tmp_path, "anna", notebook(cell + "\n" + answer("1.1")))
    assert points(grade(tmp_path), "anna") == {"1.1"}


def test_a_list_without_end_costs_its_cell():
    endless = "kept = []\nwhile True: kept.append(bytearray(10**7))"
    process = NotebookProcess([endless, "def two(): return 2"], 60, 60, memory=400 * 2**20)
    try:
        assert process.start() and not process.lost
        assert process.answer("two")() == 2
    finally:
        process.stop()


def test_a_table_that_is_something_else_is_left_alone(graded, tmp_path):
    folder, *_ = graded
    other = tmp_path / "mine.csv"
    other.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match="choose another name"):
        grade(folder, out=other)
    assert other.read_text(encoding="utf-8") == "a,b\n1,2\n"


def test_values_cross_without_pickle():
    moments = ll.Moments().update(torch.randn(9, 2), torch.randn(9, 1))
    sent = {"x": [1, 2.5, None, True, torch.eye(2, dtype=torch.complex64)], 3: (moments, object())}
    got = decode(encode(sent))
    assert got["x"][:4] == [1, 2.5, None, True] and torch.equal(got["x"][4], sent["x"][4])
    assert torch.equal(got[3][0].mean_x, moments.mean_x) and type(got[3][1]).__name__ == "object"
    for junk in (b"", b"\x00" * 20, encode(1)[:-3], b"cos\nsystem\n(S'true'\ntR."):
        with pytest.raises(ConnectionError):
            decode(junk)


def test_strict_checks_raise():
    checker = ll.teaching.Checker()
    with pytest.raises(ll.teaching.CheckFailed, match="exercise 1"):
        checker("1.1", lambda *a: None, strict=True)
    checker.strict = True
    with pytest.raises(AssertionError):
        checker("1.1", lambda *a: None)
    assert not checker("1.1", lambda *a: None, strict=False).passed
