"""Turn a master into three notebooks: exercises (stubs), solutions, instructor."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from machinery.master import Cell, Master, MasterError, measured_numbers, stub, without_marks

BRANCH = "main"
KINDS = ("exercises", "solutions", "instructor")
TUTORIALS = Path(__file__).resolve().parent.parent


def project_address() -> str | None:
    """Where the project is hosted: the key ``Repository`` of ``[project.urls]``; None while it is not set."""
    text = (TUTORIALS.parent / "pyproject.toml").read_text(encoding="utf-8")
    address = tomllib.loads(text)["project"].get("urls", {}).get("Repository")
    return None if address is None else str(address).rstrip("/").removesuffix(".git")


ADDRESS = project_address()
NAME = "lens-linear>=0.1,<0.2"
INSTALL = f"""# Does nothing where the package is installed already.
# To install from elsewhere, name it here: a wheel file, the folder of a checkout, or "git+https://…".
SOURCE = ""

import importlib.util
import warnings
from pathlib import Path

if importlib.util.find_spec("lens_linear") is None:
    folders = [Path.cwd(), *Path.cwd().parents]
    near = [*sorted(Path.cwd().glob("lens_linear-*.whl"), reverse=True)]  # a wheel beside this notebook,
    near += [folder for folder in folders if (folder / "lens_linear" / "teaching").is_dir()]  # or a checkout
    source = SOURCE or str([*near, "{f"git+{ADDRESS}" if ADDRESS else NAME}"][0])
    %pip install -q "{{source}}"
    importlib.invalidate_caches()
    if importlib.util.find_spec("lens_linear") is None:
        raise ModuleNotFoundError(
            f"lens_linear could not be installed from {{source}} (pip says why above). Put its wheel, "
            "lens_linear-….whl, beside this notebook, or write a wheel, a checkout or a git+https address "
            "into SOURCE; then run this cell again."
        )
warnings.filterwarnings("ignore", message="IProgress not found")  # plain bars will do"""

_DOTS = "●●●●●○○○○○"
_CHECK = re.compile(r'll\.check\("(\d+\.\d+)", "(\w+)"\)')


def notebook_path(master: Master, kind: str) -> Path:
    """Where a notebook is stored."""
    return TUTORIALS / kind / f"{master.name}.ipynb"


def make_notebook(master: Master, kind: str) -> NotebookNode:
    """The notebook of one kind, without outputs."""
    cells = [_title_cell(master, kind), _install_cell()]
    for cell in master.cells:
        made = _notebook_cell(cell, kind)
        if made is not None:
            cells.append(made)
    for index, cell in enumerate(cells):
        key = f"{master.name}/{kind}/{index}/{cell['source']}"
        cell["id"] = hashlib.sha256(key.encode()).hexdigest()[:12]
    notebook = new_notebook(cells=cells)
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(display_name="Python 3", language="python", name="python3"),
        language_info=NotebookNode(name="python"),
        lens_linear=NotebookNode(lesson=master.number, kind=kind, master=master.path.name),
    )
    return notebook


def _title_cell(master: Master, kind: str) -> NotebookNode:
    note = {
        "exercises": "Figures and tables that you see before you run anything come from a reference "
        "run. Your own run replaces them. Run the cells from top to bottom, one by one: *Run All* "
        "would clear them and stop at the first line that raises `NotImplementedError`. Those lines are yours to "
        "write. Below each exercise a cell checks your answer and says "
        f'what is wrong; `ll.check.hint("{master.number}.1")` gives a hint.',
        "solutions": "This is the solution notebook.",
        "instructor": "This is the instructor's copy: the solutions, with notes for teaching.",
    }[kind]
    what = "the package is" if master.needs is None else f"the package and `{master.needs}` are"
    tested = sum(cell.scale["minutes"] for cell in master.exercises)
    text = (
        f"# Lesson {master.number} · {master.title}\n\n"
        f"{_badge(master, kind)}"
        f"About {master.minutes} minutes, {tested} of them for {len(master.exercises)} exercises. "
        f"No account, no GPU; no network once {what} installed.\n\n{note}"
    )
    return new_markdown_cell(text)


def _badge(master: Master, kind: str) -> str:
    """A line that opens the notebook in Colab, once the project's address is a GitHub address."""
    if ADDRESS is None or not ADDRESS.startswith("https://github.com/"):
        return ""
    where = ADDRESS.removeprefix("https://github.com/")
    picture = "https://colab.research.google.com/assets/colab-badge.svg"
    page = f"{where}/blob/{BRANCH}/tutorials/{kind}/{master.name}.ipynb"
    return f"[![Open In Colab]({picture})](https://colab.research.google.com/github/{page})\n\n"


def _install_cell() -> NotebookNode:
    return _code(INSTALL, "install")


def _notebook_cell(cell: Cell, kind: str) -> NotebookNode | None:
    if cell.kind == "instructor":
        if kind != "instructor":
            return None
        return new_markdown_cell("> **For instructors**\n>\n" + _quoted(cell.text))
    if cell.kind == "solution-only":
        return None if kind == "exercises" else _code(cell.text, "solution-only")
    if cell.kind == "exercise":
        return new_markdown_cell(_exercise_header(cell))
    if cell.kind == "markdown":
        return new_markdown_cell(cell.text)
    if cell.kind == "solution":
        name = str(cell.exercise)
        text = stub(cell.text, name) if kind == "exercises" else without_marks(cell.text)
        return _graded(_code(text, f"exercise-{name}"), f"exercise-{name}", solution=True)
    tags = {"check": "check", "training": "training"}
    # A check cell may be the first that a student runs.
    text = f"import lens_linear as ll\n\n{cell.text}" if cell.kind == "check" else cell.text
    made = _code(text, *([tags[cell.kind]] if cell.kind in tags else []))
    return _graded(made, f"check-{cell.exercise}", grade=True) if cell.kind == "check" else made


def _graded(
    cell: NotebookNode, name: str, *, solution: bool = False, grade: bool = False
) -> NotebookNode:
    """Say to nbgrader what a cell is: the student's answer, or a locked test worth one point."""
    cell["metadata"]["nbgrader"] = {
        "schema_version": 3,
        "grade_id": name.replace(".", "-"),
        "solution": solution,
        "grade": grade,
        "locked": grade,
        "task": False,
        **({"points": 1} if grade else {}),
    }
    return cell


def _exercise_header(cell: Cell) -> str:
    def dots(value: int) -> str:
        return _DOTS[5 - value : 10 - value]

    scale = cell.scale
    return (
        f"### Exercise {cell.exercise} · {cell.title}\n\n"
        f"Difficulty {dots(scale['difficulty'])} · importance {dots(scale['importance'])} · "
        f"about {scale['minutes']} minutes\n\n{cell.text}"
    )


def _code(source: str, *tags: str) -> NotebookNode:
    metadata = {"tags": list(tags)} if tags else {}
    return new_code_cell(source, metadata=metadata)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def lint(master: Master) -> None:
    """Refuse measured numbers in prose: let a cell print them. Instructor notes are free."""
    for cell in master.cells:
        if cell.kind in ("markdown", "exercise"):
            found = measured_numbers(cell.text)
            if found:
                raise MasterError(
                    f"{master.path.name}:{cell.line}: numbers in prose {found}; print them in a cell"
                )


def checked_name(source: str) -> tuple[str, str]:
    """The exercise and the name of the function that a check cell checks."""
    match = _CHECK.search(source)
    if match is None:
        raise MasterError(f'a check cell must read ll.check("1.1", "name"), got {source!r}')
    return match[1], match[2]


def has_tag(cell: Any, prefix: str) -> bool:
    """Whether a notebook cell carries a tag that begins so."""
    return any(tag.startswith(prefix) for tag in cell.get("metadata", {}).get("tags", []))


def fingerprint(notebook: NotebookNode) -> list[Any]:
    """What --check compares: everything but outputs and execution counts."""
    cells = [
        (
            cell["cell_type"],
            cell["id"],
            cell["source"],
            json.dumps(cell["metadata"], sort_keys=True),
        )
        for cell in notebook.cells
    ]
    return [json.dumps(notebook.metadata, sort_keys=True), *cells]


def read(path: Path) -> NotebookNode:
    """Read a stored notebook."""
    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook with a stable layout."""
    nbformat.validate(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
