"""Standard streams of any encoding, or none, and quiet libraries: for the length of a command."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lens_linear.errors import INTERRUPTED, LensLinearError, LensLinearWarning


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings and log lines of libraries, say our own as notes; afterwards both are as they were."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", LensLinearWarning)
        warnings.showwarning = _notes()
        logging.disable(max(before, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(before)


def _notes() -> Callable[..., None]:
    """What writes a warning as one line; those that differ in numbers alone are said once."""
    said: set[str] = set()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        words = " ".join(str(message).split())
        kind = re.sub(r"\d+", "", words)
        if kind not in said and sys.stderr is not None and not sys.stderr.closed:
            said.add(kind)
            sys.stderr.write(f"note: {words}\n")

    return note


_MMAP_THRESHOLD, _LONG = -3, 4 << 20  # glibc's name for the setting, bytes


@contextmanager
def loading() -> Iterator[None]:
    """While the libraries of a program of its own load, an interrupt ends it at once.

    An exception would pass through the C++ code of a library that is half loaded, which then aborts. A
    handler that somebody else has set stays, and so does Python's own outside the main thread.

    Every piece of memory above 4 MiB is mapped by itself from now on, where the C library can (glibc), and
    goes back when it is freed. Otherwise pieces of up to 32 MiB come from the heap after a while and leave
    holes between matrices that stay: SmolLM2's profile then added 1.6 GB in place of 0.8 (at 3 MB). torch
    asks for large pages for them, where the system has such: half of the time in the system.
    """
    # Read by torch when it first asks for memory.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with suppress(OSError, AttributeError, TypeError):  # Windows has no library without a name
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LONG)
    own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not own or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_LINES = 10.0  # seconds between two lines in a log


@contextmanager
def waiting(words: str, *, after: float = 0.0, show: bool = True) -> Iterator[None]:
    """Say on standard error what is waited for: a terminal counts the seconds, a log gets a line every ten.

    What is over before ``after`` seconds is not spoken of.
    """
    if not show:
        yield
        return
    stop, began, line = threading.Event(), time.monotonic(), f"{words} ..."
    room = shutil.get_terminal_size().columns - len(line) > len(" 3,600 s")
    counted = sys.stderr.isatty() and room
    said = after == 0.0
    if said:
        _write(line if counted else f"{line}\n")

    def count() -> None:
        nonlocal said
        wait = after or (1.0 if counted else _LINES)
        while not stop.wait(wait):
            passed, said = f"{line} {time.monotonic() - began:,.0f} s", True
            _write(f"\r{passed}" if counted else f"{passed}\n")
            wait = 1.0 if counted else _LINES

    counting = threading.Thread(target=count, daemon=True)
    counting.start()
    try:
        yield
    finally:
        stop.set()
        counting.join()
        if said and counted:
            _write("\n")


def _write(text: str) -> None:
    with suppress(OSError):  # what is said in passing ends no command
        sys.stderr.write(text)
        sys.stderr.flush()


def _leave(*_: object) -> None:
    if sys.stderr is not None and not sys.stderr.closed:
        sys.stderr.write(f"{INTERRUPTED}\n")
        sys.stderr.flush()
    os._exit(130)


@contextmanager
def streams() -> Iterator[None]:
    """Write what a stream's encoding lacks as codes; a closed standard error swallows what is said.

    Raises:
        LensLinearError: standard output is closed, or cannot take what is left in its buffer.
    """
    if sys.stdout is None or sys.stdout.closed:
        raise LensLinearError(
            "standard output is closed, so nothing could be shown; redirect it to a file or to /dev/null"
        )
    held = sys.stderr
    if held is None or held.closed:
        sys.stderr = io.StringIO()
    changed = [
        (stream, stream.errors)
        for stream in (sys.stdout, sys.stderr)
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape")
    ]
    for stream, _ in changed:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        show("")
        for stream, errors in changed:
            stream.reconfigure(errors=errors)
        sys.stderr = held


def show(text: str) -> None:
    """Write to standard output at once.

    Raises:
        LensLinearError: it is full, or otherwise cannot be written.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise LensLinearError(
            f"standard output cannot be written ({error.strerror or error}); redirect it elsewhere"
        ) from error
