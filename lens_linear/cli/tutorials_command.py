"""``lens-linear tutorials``: the exercise notebooks, copied into a folder."""

from __future__ import annotations

import argparse

from lens_linear.cli.output import Answer
from lens_linear.teaching.tutorials import copy_tutorials


def tutorials(options: argparse.Namespace) -> Answer:
    """Copy them, and say how to start."""
    copied = copy_tutorials(options.directory, force=options.force)
    states = {name: list(getattr(copied, name)) for name in ("written", "unchanged", "kept")}
    return Answer([copied.how_to_start], {"directory": str(copied.directory), **states})
