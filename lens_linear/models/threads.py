"""How many threads a pass uses: one for small models, whose products are too short to share.

On a machine where other work runs, threads of one short product wait for one another: a training step of
a small model took 3.7 s with the default number and 0.12 s with one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lens_linear.checks import require_int

SMALL_WIDTH = 256
_AT_IMPORT = torch.get_num_threads()


@contextmanager
def few_threads(width: int, threads: int | None = None) -> Iterator[None]:
    """Run a block with one thread where the model is at most ``SMALL_WIDTH`` wide; restored afterwards.

    ``threads`` asks for a number. A number that the caller set before (``torch.set_num_threads``,
    ``OMP_NUM_THREADS``) is left alone.
    """
    before = torch.get_num_threads()
    chosen = before != _AT_IMPORT or "OMP_NUM_THREADS" in os.environ
    if threads is not None:
        wanted = require_int("threads", threads, minimum=1)
    else:
        wanted = 1 if width <= SMALL_WIDTH and not chosen else before
    if wanted == before:
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
