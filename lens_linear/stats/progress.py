"""The one progress bar: a function to call with how much is done, fractions of a sequence included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

# No count: it moves inside a batch. Time left stands at the end, on a terminal, in a notebook and in a log.
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"


@contextmanager
def sequence_bar(total: float, what: str, *, show: bool) -> Iterator[Callable[[float], None]]:
    """Yield a function that takes how much of ``total`` is done so far.

    The bar stands there at once, moves as often as the function is called (at most ten times a second), and
    never goes back.

    Args:
        total: sequences, steps or anything else that is counted.
        what: what is being done, shown on the left.
        show: False draws nothing.

    Example:
        >>> with sequence_bar(10, "reading", show=False) as done:
        ...     done(3.5)
    """
    with tqdm(total=total, desc=what, bar_format=_FORMAT, disable=not show, leave=False) as bar:

        def done(count: float) -> None:
            bar.update(max(0.0, min(count, total) - bar.n))

        yield done
