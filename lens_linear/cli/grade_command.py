"""``lens-linear grade``: submitted notebooks in, a table of grades out."""

from __future__ import annotations

import argparse
import sys

from lens_linear.cli.output import emit, envelope, table
from lens_linear.teaching.grading import grade


def run(options: argparse.Namespace) -> int:
    """Grade, print the points of each student, and say what to read by hand."""
    grades = grade(
        options.submissions,
        roster=options.roster,
        out=options.out,
        jobs=options.jobs,
        seconds=options.seconds,
        say=None if options.json else lambda sentence: print_line(sentence),
    )
    rows = {"grades": list(grades.rows), "review": grades.review, "missing": grades.missing}
    shown = grades.by_student()
    text = f"\n{table(shown)}\n\n{grades!r}." if len(shown) else f"\n{grades!r}."
    if options.out is not None:
        text += f"\nRows are in {options.out}, notebooks to read in {options.out}.review.md."
    emit(options.json, envelope("grade", rows), text)
    return 0 if grades.finished else 130


def print_line(sentence: str) -> None:
    """One line at once, so that a teacher sees how far it is."""
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()
