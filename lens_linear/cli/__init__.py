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
    options = build_parser().parse_args(arguments)
    try:
        module = "models_command" if options.command == "models" else "commands"
        importlib.import_module(f"lens_linear.cli.{module}").run(options)
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
    return 0
