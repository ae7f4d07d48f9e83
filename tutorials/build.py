"""Make the exercise, solution and instructor notebooks from their masters.

    python tutorials/build.py              all lessons
    python tutorials/build.py 1 7          two lessons
    python tutorials/build.py 1 --draft    no PNGs (no Chromium needed), for writing; do not commit
    python tutorials/build.py 1 --text     only prose or imports changed: keep the stored outputs, run nothing
    python tutorials/build.py --check      fail when a stored notebook does not match its master

The solution notebook is executed once, offline; the other two take its outputs. Never edit a
notebook by hand: change tutorials/masters/ and build again.
"""

from __future__ import annotations

import argparse
import re
import sys

from machinery.execute import execute
from machinery.master import Master, MasterError, masters
from machinery.notebooks import (
    KINDS,
    fingerprint,
    has_tag,
    lint,
    make_notebook,
    notebook_path,
    read,
    write,
)
from machinery.outputs import MAX_BYTES, add_images, check_stubs, clean, copy_outputs
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

# From where a name is imported changes no output.
_IMPORT = re.compile(r"^ *from lens_linear[.\w]* import (\([^)]*\)|[^\n(]*)\n?", re.MULTILINE)


def build(master: Master, *, draft: bool = False) -> None:
    """Execute one lesson and write its three notebooks."""
    lint(master)
    run = execute(make_notebook(master, "solutions"))
    failed = [result for result in run.results if not result["passed"]]
    if failed or len(run.results) != len(master.exercises):
        raise MasterError(
            f"{master.name}: {len(run.results)} of {len(master.exercises)} exercises were checked; "
            f"failed: {failed}"
        )
    clean(run.notebook)
    images = 0 if draft else add_images(run.notebook)
    store(master, run.notebook)
    print(f"  {run.total:.0f} s in all, slowest cell {max(run.seconds):.1f} s, {images} PNGs")


def rewrite(master: Master) -> None:
    """Bring prose up to date and keep stored outputs; refused when code has changed."""
    lint(master)
    stored = read(notebook_path(master, "solutions"))
    solutions = make_notebook(master, "solutions")
    if code_of(stored) != code_of(solutions):
        raise MasterError(f"{master.name}: code has changed, so build it without --text")
    for old, new in zip(_with_outputs(stored), _with_outputs(solutions), strict=True):
        new["outputs"], new["execution_count"] = old["outputs"], old["execution_count"]
    solutions.cells[1]["execution_count"] = 1  # the install cell, which has no output
    store(master, solutions)


def code_of(notebook: NotebookNode) -> list[str]:
    """Sources of all code cells that can have outputs, without what they import from the package."""
    return [_IMPORT.sub("", cell["source"]) for cell in _with_outputs(notebook)]


def _with_outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [c for c in notebook.cells if c["cell_type"] == "code" and not has_tag(c, "install")]


def store(master: Master, solutions: NotebookNode) -> None:
    """Write the executed solution notebook, and the other two with its outputs."""
    notebooks = {"solutions": solutions}
    for kind in ("exercises", "instructor"):
        notebooks[kind] = make_notebook(master, kind)
        copy_outputs(solutions, notebooks[kind])
    check_stubs(notebooks["exercises"])
    for kind, notebook in notebooks.items():
        path = notebook_path(master, kind)
        write(notebook, path)
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise MasterError(f"{path.name} has {size:,} bytes; at most {MAX_BYTES:,} are allowed")
        print(f"  {kind}/{path.name}: {size / 1000:.0f} kB")


def differences(master: Master) -> list[str]:
    """Say which stored notebooks do not match the master."""
    found = []
    lint(master)
    for kind in KINDS:
        path = notebook_path(master, kind)
        if not path.is_file():
            found.append(f"{kind}/{path.name} is missing")
        elif fingerprint(read(path)) != fingerprint(make_notebook(master, kind)):
            found.append(f"{kind}/{path.name} does not match {master.path.name}")
    return found


def strays() -> list[str]:
    """Stored notebooks that no master makes."""
    wanted = {notebook_path(master, kind) for master in masters() for kind in KINDS}
    folders = {path.parent for path in wanted}
    stored = {path for folder in folders for path in folder.glob("*.ipynb")}
    return [f"{path.parent.name}/{path.name} has no master" for path in sorted(stored - wanted)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 is success."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "lessons", nargs="*", type=int, help="lesson numbers; all when none is given"
    )
    parser.add_argument("--check", action="store_true", help="compare sources, write nothing")
    parser.add_argument(
        "--text", action="store_true", help="only prose or imports changed: run nothing"
    )
    parser.add_argument("--draft", action="store_true", help="leave out the PNGs")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            chosen = masters(options.lessons)
            found = [line for master in chosen for line in differences(master)]
            found += [] if options.lessons else strays()
            for line in found:
                print(f"{line}; run: python tutorials/build.py", file=sys.stderr)
            return 1 if found else 0
        for master in masters(options.lessons):
            print(f"lesson {master.number}: {master.title}", flush=True)
            if options.text:
                rewrite(master)
            elif (reason := master.lacks()) is not None:
                print(f"  kept as it is: {reason}")
            else:
                build(master, draft=options.draft)
    except (MasterError, CellExecutionError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
