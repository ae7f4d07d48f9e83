"""Run every solution notebook in a fresh kernel with the network off, and hold it to its budget.

    python tutorials/run_all.py                 all lessons: exit status 1 when a cell fails, a check
                                                does not pass, or a budget is exceeded
    python tutorials/run_all.py 1 7             two lessons
    python tutorials/run_all.py --slack 3       a slow or busy machine: budgets times three

Budgets on two cores: 10 s a cell, 60 s a cell tagged "training", 90 s a notebook; twice that for a lesson that
needs a real language model. Such a lesson is skipped, with the reason, where its model is not installed.
"""

from __future__ import annotations

import argparse
import sys

from machinery.execute import execute
from machinery.master import MasterError, masters
from machinery.notebooks import has_tag, notebook_path, read
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

CELL, TRAINING, NOTEBOOK = 10.0, 60.0, 90.0
REAL = 2.0  # a lesson on a real language model: its budgets are times this


def run_lesson(number: int, *, slack: float) -> list[str]:
    """Run one lesson's stored solution notebook; returns what is wrong with it."""
    master = masters([number])[0]
    if (reason := master.lacks()) is not None:
        print(f"lesson {number}: skipped: {reason}", flush=True)
        return []
    stored = read(notebook_path(master, "solutions"))
    try:
        run = execute(stored, timeout=int(TRAINING * slack) + 30)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return [f"lesson {number}: {error}"]
    slack *= 1.0 if master.needs is None else REAL
    problems = []
    for index, (cell, seconds) in enumerate(zip(run.notebook.cells, run.seconds, strict=True)):
        limit = slack * (TRAINING if has_tag(cell, "training") else CELL)
        if seconds > limit:
            problems.append(f"lesson {number}: cell {index} took {seconds:.1f} s of {limit:.0f} s")
    if run.total > slack * NOTEBOOK:
        problems.append(f"lesson {number}: took {run.total:.0f} s of {slack * NOTEBOOK:.0f} s")
    passed = {result["exercise"] for result in run.results if result["passed"]}
    for exercise in master.exercises:
        if exercise.exercise not in passed:
            problems.append(f"lesson {number}: the solution of {exercise.exercise} did not pass")
    print(
        f"lesson {number}: {run.total:5.1f} s, slowest cell {max(run.seconds):4.1f} s, "
        f"{len(passed)} of {len(master.exercises)} checks passed",
        flush=True,
    )
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 is success."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "lessons", nargs="*", type=int, help="lesson numbers; all when none is given"
    )
    parser.add_argument("--slack", type=float, default=1.0, help="multiply all budgets")
    options = parser.parse_args(arguments)
    try:
        chosen = masters(options.lessons)
    except MasterError as error:
        parser.error(str(error))
    problems = [
        line for master in chosen for line in run_lesson(master.number, slack=options.slack)
    ]
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
