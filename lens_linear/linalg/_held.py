"""What :class:`Moments` holds: the first rows as they came, then statistics in their place.

The small directions of x have to be known before the first product (see :mod:`_probe`), so the
first few rows wait until there are enough of them to find those directions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lens_linear.linalg._probe import common_probe, find_probe, with_probe
from lens_linear.linalg._scatter import State, along, centre, combine, summarise
from lens_linear.linalg.precision import COMPUTE_DTYPE, default_rtol, scatter_rtol


class Held(NamedTuple):
    """What a Moments object holds: the first rows as they came, then statistics instead."""

    state: State | None
    rows: tuple[tuple[Tensor, Tensor], ...]

    def to(self, device: torch.device) -> Held:
        """The same on another device."""
        state = None if self.state is None else self.state.to(device)
        return Held(state, tuple((x.to(device), y.to(device)) for x, y in self.rows))


def start(rows: tuple[tuple[Tensor, Tensor], ...], *, full: bool) -> State:
    """Statistics of the first rows: find their small directions, then measure along them."""
    x, y = torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows])
    plain = summarise(x, y, x.new_zeros(x.shape[1], 0, dtype=COMPUTE_DTYPE), full=full)
    probe = find_probe(plain)
    return along(plain, x, y, probe) if probe.shape[1] else plain


def take(held: Held, x: Tensor, y: Tensor, *, full: bool) -> Held:
    """``held`` with more rows; nothing in it is changed in place."""
    if held.state is not None:
        part = summarise(x, y, held.state.probe, full=full)
        return Held(combine(held.state, part, reuse=True), ())
    enough = max(2 * x.shape[1], 256)
    if sum(len(rows) for rows, _ in held.rows) + len(x) >= enough:
        return Held(start((*held.rows, (x, y)), full=full), ())
    centre("x", x), centre("y", y)  # refuses what is not finite
    return Held(None, (*held.rows, (x.clone(), y.clone())))


def state_rtol(state: State) -> float:
    d, k = state.probe.shape
    return default_rtol(state.n, d) if k else scatter_rtol(d)


def join(mine: Held, theirs: Held, *, full: bool) -> Held:
    """The rows of both; neither is changed. At least one has statistics or rows."""
    if mine.state is None or theirs.state is None:
        held, rows = (theirs, mine.rows) if mine.state is None else (mine, theirs.rows)
    else:
        probe = common_probe(mine.state.probe, theirs.state.probe)
        state = combine(with_probe(mine.state, probe), with_probe(theirs.state, probe))
        held, rows = Held(state, ()), ()
    for x, y in rows:
        held = take(held, x, y, full=full)
    return held
