"""In a notebook, a check that runs before its exercise says so, also where it names the function itself.

``ll.check("2.1", attention_pattern)`` fails before the check is called when there is no such function yet:
Python raises ``NameError``. IPython then asks a handler, and this one shows what the check of the quoted name
would have shown. Every other ``NameError`` is shown as always.
"""

from __future__ import annotations

import linecache
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

_CHECK = r"""check\(\s*(?:exercise\s*=\s*)?["'](\d+\.\d+)["']\s*,\s*(?:answer\s*=\s*)?%s\b"""


def missing(name: str, exercise: str) -> str:
    """What a student reads whose function is not there yet."""
    return (
        f"There is no {name} yet: run the cell of exercise {exercise} first, then this one again."
    )


def checked_too_early(error: NameError, trace: Any) -> tuple[str, str] | None:
    """The exercise and the missing name, when the error is a cell's own check of a bare name."""
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    if not frames or not error.name or frames[-1].f_locals is not frames[-1].f_globals:
        return None  # raised inside a function
    source = "".join(linecache.getlines(frames[-1].f_code.co_filename))
    found = re.search(_CHECK % re.escape(error.name), source)
    return None if found is None else (found[1], error.name)


def say_when_too_early(tell: Callable[[str, str], Any], shell: Any = None) -> None:
    """Ask IPython to show what ``tell`` returns of the exercise and the missing name; elsewhere do nothing.

    A handler that stands already is left in place.
    """
    if shell is None and "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
    if shell is None or shell.custom_exceptions:
        return

    def handler(
        shell: Any,
        kind: type[NameError],
        error: NameError,
        trace: Any,
        tb_offset: int | None = None,
    ) -> None:
        early = checked_too_early(error, trace)
        shown = None if early is None else tell(*early)
        if shown is None:
            shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
        else:
            from IPython.display import display

            display(shown)

    shell.set_custom_exc((NameError,), handler)
