"""A progress bar over sequences, or nothing: one function to call with the number done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


@contextmanager
def sequence_bar(total: int, what: str, *, show: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of sequences done so far.

    Args:
        total: sequences in all.
        what: what is being done, shown on the left.
        show: False draws nothing.

    Example:
        >>> with sequence_bar(10, "reading", show=False) as done:
        ...     done(4)
    """
    with tqdm(total=total, desc=what, unit="seq", disable=not show, leave=False) as bar:

        def done(count: int) -> None:
            bar.update(count - bar.n)

        yield done
