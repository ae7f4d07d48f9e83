"""``lens-linear grade``: submitted notebooks in, a table of grades out."""

from __future__ import annotations

import argparse
from functools import partial

from lens_linear.cli.output import Answer, Table, remark
from lens_linear.teaching.grading import grade


def grade_notebooks(options: argparse.Namespace) -> Answer:
    """Grade, print the points of each student, and say what to read by hand."""
    grades = grade(
        options.submissions,
        roster=options.roster,
        out=options.out,
        jobs=options.jobs,
        seconds=options.seconds,
        say=None if options.json else partial(remark, options),
    )
    text = f"{grades!r}."
    if options.out is not None:
        text += f"\nRows are in {options.out}, notebooks to read in {options.out}.review.md."
    shown = grades.by_student()
    return Answer(
        [*([Table("grades", shown)] if len(shown) else []), text],
        {"grades": list(grades.rows), "review": grades.review, "missing": grades.missing},
        status=0 if grades.finished else 130,
    )
