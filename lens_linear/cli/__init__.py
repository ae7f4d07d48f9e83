"""The command ``lens-linear``: parse, check, call, write. No mathematics here.

Only the parser is imported at first, so that ``lens-linear --help`` and wrong words are answered at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from lens_linear.errors import INTERRUPTED, LensLinearError, is_out_of_memory

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, 2 for bad arguments or input, 130 when interrupted.

    Called from Python, it leaves warnings, logging and the standard streams as it found them.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(arguments, str) or not all(isinstance(word, str) for word in words):
        return _said(
            f"lens-linear: arguments must be a list of words, got {arguments!r}; pass e.g. ['models']",
            2,
        )
    named = [word for word in words[:1] if word.isidentifier()]
    try:
        # Imported inside, so that an interrupt is met from the first moment.
        terminal = importlib.import_module("lens_linear.cli.terminal")
        with terminal.quiet(), terminal.streams():
            return _run(words, terminal.loading if arguments is None else nullcontext)
    except LensLinearError as error:
        sentence = " ".join(str(error).split())  # what a library said may span lines
        return _said(f"{' '.join(['lens-linear', *named])}: {sentence}", 2)
    except KeyboardInterrupt:
        return _said(INTERRUPTED, 130)
    except BrokenPipeError:
        # Who read the output has gone: what is still in the buffer must not fail when Python ends.
        if sys.stdout is sys.__stdout__ and sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        advice = (
            "close other programs, raise the limit, or take a smaller model or a shorter --text"
        )
        return _said(f"{' '.join(['lens-linear', *named])}: memory ran out; {advice}", 2)


def _run(words: list[str], loading: Callable[[], AbstractContextManager[None]]) -> int:
    with loading():
        parsing = importlib.import_module("lens_linear.cli.parser")
    parser = parsing.build_parser()
    if not words:
        parser.print_help()
        return 0
    options = parser.parse_args(words)
    parsing.check_options(options)
    module, _, function = parsing.find_command(options.command).run.partition(":")
    with loading(), _waiting(options):
        command = importlib.import_module(f"lens_linear.cli.{module}")
    answer = getattr(command, function)(options)
    # pandas only, which every answer has loaded by now
    return int(importlib.import_module("lens_linear.cli.output").emit(options, answer))


def _waiting(options: argparse.Namespace) -> AbstractContextManager[None]:
    """Say from the start what is opened: the libraries alone take seconds."""
    model = getattr(options, "model", None)
    words, after = (f"opening {model}", 0.0) if model else ("loading the libraries", 1.0)
    terminal = importlib.import_module("lens_linear.cli.terminal")
    said: AbstractContextManager[None] = terminal.waiting(
        words, after=after, show=not getattr(options, "quiet", False)
    )
    return said


def _said(words: str, status: int) -> int:
    if sys.stderr is not None and not sys.stderr.closed:
        encoding = sys.stderr.encoding or "ascii"
        sys.stderr.write(f"{words}\n".encode(encoding, "backslashreplace").decode(encoding))
    return status
