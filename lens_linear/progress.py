"""The one progress: a bar where a person looks on, plain lines in a log, both with the time left.

What is inside a step moves the bar around it: a function that shows nothing of its own still tells how far
it is with :func:`watched`, and the step bar of a command moves.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, runtime_checkable

from tqdm.auto import tqdm

from lens_linear.checks import require_bool

# No count: it moves inside a batch. Time left stands at the end, on a terminal and in a notebook.
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"
_EVERY = 10.0  # seconds between two lines in a log
_Item = TypeVar("_Item")

# Takes the share that is done of the step that is going on; None outside steps.
_AROUND: ContextVar[Callable[[float], None] | None] = ContextVar("_AROUND", default=None)


@runtime_checkable
class _Bar(Protocol):
    """What draws: tqdm, or lines in a log."""

    n: float

    def update(self, count: float) -> object: ...
    def set_postfix_str(self, text: str, refresh: bool = ...) -> object: ...
    def refresh(self) -> object: ...


class LogLines:
    """A bar for a stream that is no terminal: a line at each new step, and one every ten seconds."""

    def __init__(
        self,
        total: float,
        what: str,
        *,
        begun: float = 0.0,
        write: Callable[[str], object] | None = None,
    ) -> None:
        self.total, self.what, self.n, self.word = total, what, begun, ""
        self.begun = begun
        self.started = time.monotonic()
        self.said = self.started
        self.write = write or _to_stderr

    def update(self, count: float) -> None:
        """Add what was done; says so when the last line is ten seconds old."""
        self.n += count
        self.refresh()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """A new step: one line at once; without ``refresh`` the word is said with the next line."""
        self.word = text
        if refresh:
            self._say()

    def refresh(self) -> None:
        """One more line if the last one is old."""
        if time.monotonic() - self.said >= _EVERY:
            self._say()

    def _say(self) -> None:
        self.said = time.monotonic()
        passed = self.said - self.started
        share = self.n / self.total if self.total else 1.0
        done = self.n - self.begun
        left = tqdm.format_interval(passed * (self.total - self.n) / done) if done else "?"
        line = (
            f"{self.what}: {100 * share:.0f}%, {tqdm.format_interval(passed)} passed, {left} left"
        )
        self.write(line + (f": {self.word}" if self.word else ""))


def _has_size() -> bool:
    """Whether the terminal says how large it is; in one of size 0 (a container's) tqdm draws nothing."""
    try:
        return min(os.get_terminal_size(sys.stderr.fileno())) > 0
    except (OSError, ValueError, AttributeError):
        return True  # tqdm finds out


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextmanager
def _drawn(total: float, what: str, begun: float = 0.0) -> Iterator[_Bar]:
    """The bar that suits standard error; a thread keeps its clock going while nothing is reported."""
    stop = threading.Event()
    # tqdm.auto is tqdm.notebook where there is one; importing that to ask would import ipywidgets
    in_notebook = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
    looked_at = in_notebook or sys.stderr.isatty()
    bar: _Bar
    if looked_at:
        # smoothing=0: the time left follows from all that was done, also after a pause
        size: dict[str, Any] = {}
        if not in_notebook and not _has_size():
            size = {"ncols": 80, "nrows": 24}
        drawn: Any = tqdm(
            total=total,
            initial=begun,
            desc=what,
            bar_format=_FORMAT,
            leave=False,
            smoothing=0,
            **size,
        )
        bar = drawn
    else:
        bar = LogLines(total, what, begun=begun)

    def clock() -> None:
        while not stop.wait(1.0):
            bar.refresh()

    ticking = threading.Thread(target=clock, daemon=True)
    ticking.start()
    try:
        yield bar
    finally:
        stop.set()
        ticking.join()
        if isinstance(bar, tqdm):
            bar.close()


@contextmanager
def sequence_bar(total: float, what: str, *, show: bool) -> Iterator[Callable[[float], None]]:
    """Yield a function that takes how much of ``total`` is done so far.

    The bar stands there at once, moves as often as the function is called (at most ten times a second), and
    never goes back. Inside a step of :func:`step_bar` it is that step that moves.

    Args:
        total: sequences, steps or anything else that is counted.
        what: what is being done, shown on the left.
        show: False draws nothing.

    Example:
        >>> with sequence_bar(10, "reading", show=False) as done:
        ...     done(3.5)
    """
    show, around = require_bool("progress", show), _AROUND.get()
    if around is not None:
        _AROUND.set(lambda _share: None)  # what goes on inside does not report past this bar
        try:
            yield lambda count: around(count / total if total else 1.0)
        finally:
            _AROUND.set(around)
    elif not show or _switched_off():
        yield lambda _count: None
    else:
        with _drawn(total, what) as bar:
            bar.set_postfix_str("")
            yield lambda count: _move(bar, count, total)


@contextmanager
def worded_bar(
    total: float, what: str, *, show: bool, begun: float = 0.0
) -> Iterator[Callable[[float, str], None]]:
    """A :func:`sequence_bar` whose reports carry a word, for a run that may go on from ``begun``.

    Example:
        >>> with worded_bar(10, "training", show=False, begun=3) as done:
        ...     done(4, "loss 5.2")
    """
    if _AROUND.get() is not None or not show or _switched_off():
        with sequence_bar(total, what, show=show) as tell:
            yield lambda count, _word: tell(count)
        return
    with _drawn(total, what, begun) as bar:
        bar.set_postfix_str("")

        def done(count: float, word: str) -> None:
            bar.set_postfix_str(word, refresh=False)
            _move(bar, count, total)

        yield done


@contextmanager
def step_bar(
    total: float, what: str, *, show: bool, heavy: Mapping[str, float] | None = None
) -> Iterator[Callable[[str], None]]:
    """Yield a function to call with a word on each step as it begins.

    Steps count alike but those that ``heavy`` names by their word: each counts as so many, also in
    ``total``. Inside a step the bar moves with what :func:`sequence_bar` and :func:`watched` report; where a
    step reports several times over, each takes half of what the step has left.

    Example:
        >>> with step_bar(2, "report", show=False) as begin:
        ...     begin("heads")
        ...     begin("linearity")
    """
    if not show or _switched_off():
        yield lambda _word: None
        return
    with _drawn(total, what) as bar:
        begun = 0.0

        def begin(word: str) -> None:
            nonlocal begun
            _move(bar, begun, total)
            end = begun + (heavy or {}).get(word, 1.0)
            _AROUND.set(_Span(lambda count: _move(bar, count, total), begun, end))
            begun = min(end, total)
            bar.set_postfix_str(word)

        before = _AROUND.get()
        try:
            yield begin
        finally:
            _AROUND.set(before)
        _move(bar, total, total)


class _Span:
    """A stretch of something longer: what reports in it moves the whole, and never back."""

    def __init__(self, tell: Callable[[float], None], low: float, high: float) -> None:
        self.tell, self.high = tell, high
        self.low, self.part, self.last = low, (high - low) / 2, 0.0

    def __call__(self, share: float) -> None:
        share = min(max(share, 0.0), 1.0)
        if share < self.last:  # something else in the same stretch reports now
            self.low += self.part
            self.part = (self.high - self.low) / 2
        self.last = share
        self.tell(self.low + self.part * share)


def watched(items: Iterable[_Item], total: float) -> Iterator[_Item]:
    """Pass items on; the step that is going on, if there is one, moves with them.

    What reports while an item is worked on moves inside that item's share.

    Example:
        >>> [i for i in watched([1, 2], 2)]
        [1, 2]
    """
    around = _AROUND.get()
    if around is None:
        yield from items
        return
    around(0.0)
    try:
        for count, item in enumerate(items):
            _AROUND.set(_Span(around, count / total, (count + 1) / total))
            yield item
            around((count + 1) / total)
    finally:
        _AROUND.set(around)


def countdown(total: int) -> Callable[[], str]:
    """What to call when one more of ``total`` is done: it says how many are, and the time left.

    For work in forked processes, where no thread may keep a bar moving.

    Example:
        >>> done = countdown(2)
        >>> done(), done()
        ('1 of 2, 00:00 left', '2 of 2, 00:00 left')
    """
    began, count = time.monotonic(), 0

    def done() -> str:
        nonlocal count
        count += 1
        left = (time.monotonic() - began) * (total - count) / count
        return f"{count} of {total}, {tqdm.format_interval(left)} left"

    return done


_QUIET = 10.0  # seconds without a result before it is said what is waited for


def readable(pipes: Sequence[int], what: str, say: Callable[[str], None] | None) -> list[int]:
    """The pipes of forked processes that can be read; while none can, ``say`` hears every ten seconds."""
    began = time.monotonic()
    while True:
        ready, _, _ = select.select(pipes, [], [], None if say is None else _QUIET)
        if ready or say is None:
            return ready
        say(f"still running {what}: {time.monotonic() - began:,.0f} s without a result")


def _move(bar: _Bar, count: float, total: float) -> None:
    bar.update(max(0.0, min(count, total) - bar.n))


def _switched_off() -> bool:
    """What tqdm reads too."""
    return os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")
