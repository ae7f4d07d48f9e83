"""The command ``lens-linear``: parse, check, call, write. No mathematics here.

Only the parser is imported at first, so that ``lens-linear --help`` and wrong words are answered at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from lens_linear.cli.parser import build_parser, check_options, find_command
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
        check_options(options)
        module, _, function = find_command(options.command).run.partition(":")
        answer = getattr(importlib.import_module(f"lens_linear.cli.{module}"), function)(options)
        # pandas only, which every answer has loaded by now
        return int(importlib.import_module("lens_linear.cli.output").emit(options, answer))
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
