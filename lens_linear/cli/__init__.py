"""The command ``lens-linear``: parse, call, write. No mathematics here.

Only the parser is imported at first, so that ``lens-linear --help`` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from lens_linear.cli.parser import build_parser
from lens_linear.errors import LensLinearError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, 2 for bad arguments or input, 130 when interrupted."""
    parser = build_parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help()
        return 0
    options = parser.parse_args(arguments)
    try:
        alone = options.command in ("models", "grade")
        module = f"{options.command}_command" if alone else "commands"
        status = importlib.import_module(f"lens_linear.cli.{module}").run(options)
    except LensLinearError as error:
        sentence = " ".join(str(error).split())  # what a library said may span lines
        sys.stderr.write(f"lens-linear {options.command}: {sentence}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nlens-linear: interrupted; nothing half-written was left behind\n")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return int(status or 0)
