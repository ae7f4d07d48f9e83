"""Streaming statistics of two activation streams, enough to fit and score the best affine map.

:class:`Moments` keeps counts, means and centred scatter in float64. Memory is constant in rows,
batches may come in any size, parts may be merged in any order, saved, resumed, or summed over
processes, and the numbers stay the same (1e-10 relative).

>>> import torch
>>> g = torch.Generator().manual_seed(0)
>>> moments = Moments()
>>> for _ in range(4):
...     x = torch.randn(50, 3, generator=g)
...     _ = moments.update(x, x.cumsum(1) + 7)
>>> moments
Moments 3 -> 3: n = 200 rows
>>> round(moments.fit().r_squared, 6)
1.0

Accuracy. Plain sums of products square the condition number of x. Here columns are scaled (so
outlier columns do no harm), and directions in which the first ``max(2 d_in, 256)`` rows hardly vary
are measured apart, row by row (``_probe.py``). The fit then agrees with ``numpy.linalg.lstsq`` on
the rows within 1e-6 at condition number 1e6 with outlier columns 1000 times the rest, even for a y
that lives in the smallest directions. Use :func:`fit_linear` when the first rows are not like the
later ones *and* x is that ill-conditioned, or when the condition number exceeds 1e8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import require_device, require_float, require_instance, require_int
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError
from lens_linear.linalg import _moments_io
from lens_linear.linalg._distributed import agree_on_sizes, all_reduce_state, world_size
from lens_linear.linalg._held import Held, join, start, state_rtol, take
from lens_linear.linalg._probe import residual_scatter, solve_state
from lens_linear.linalg._scatter import State
from lens_linear.linalg._solve import constant_columns
from lens_linear.linalg.least_squares import (
    LinearFit,
    assemble,
    require_overdetermined,
    require_pair,
)
from lens_linear.linalg.precision import compute_device


class Moments:
    """Streaming centred float64 statistics of x and y.

    Sizes may be left out: the first update sets them. Every change replaces the whole state at
    once, so an update that raises, or is interrupted, leaves the statistics as they were.
    ``update``, ``merge`` and ``all_reduce_`` change the object and return it; ``a + b`` makes a
    new one.

    Args:
        d_in: columns of x.
        d_out: columns of y.
        device: where the statistics live; default: where the first batch is (the CPU for MPS).
        keep_yy: keep all of Σ yᵀy, [d_out, d_out], not only its diagonal.

    Raises:
        InvalidArgumentError: a size below 1.

    Source: Chan, Golub & LeVeque 1983, *Algorithms for computing the sample variance*, eq. 2.1.
    """

    def __init__(
        self,
        d_in: int | None = None,
        d_out: int | None = None,
        *,
        device: torch.device | str | None = None,
        keep_yy: bool = False,
    ) -> None:
        self.d_in = None if d_in is None else require_int("d_in", d_in, minimum=1)
        self.d_out = None if d_out is None else require_int("d_out", d_out, minimum=1)
        self.keep_yy = bool(keep_yy)
        self.device = None if device is None else compute_device(require_device("device", device))
        self._held = Held(None, ())

    def update(self, x: Float[Tensor, "... d_in"], y: Float[Tensor, "... d_out"]) -> Self:
        """Take in more rows.

        Args:
            x: [..., d_in], any floating dtype; leading axes are flattened to rows.
            y: [..., d_out], same leading axes. No rows is allowed and changes nothing.

        Returns:
            This object.

        Raises:
            NonFiniteError: NaN or infinity; the statistics stay as they were.
            InvalidArgumentError: shapes or sizes disagree; likewise.
        """
        x, y = require_pair(x, y, finite=False)
        self._require_sizes(x.shape[1], y.shape[1])
        if x.shape[0] == 0:
            return self
        device = compute_device(x.device) if self.device is None else self.device
        with torch.no_grad():
            held = take(self._held, x.to(device), y.to(device), full=self.keep_yy)
        self._hold(held)
        return self

    def merge(self, other: Moments) -> Self:
        """Take in the rows another object has seen (which is left as it was).

        Args:
            other: statistics of other rows of the same two streams.

        Returns:
            This object.

        Raises:
            InvalidArgumentError: sizes or ``keep_yy`` disagree.
        """
        if not isinstance(other, Moments):
            raise InvalidArgumentError(
                f"other must be Moments, got {type(other).__name__}; pass statistics to merge"
            )
        if other.keep_yy != self.keep_yy:
            raise InvalidArgumentError(
                f"keep_yy must agree to merge, got {self.keep_yy} and {other.keep_yy}; "
                "build both with the same value"
            )
        if other.n == 0:
            return self
        self._require_sizes(*other._sizes())
        device = other.mean_x.device if self.device is None else self.device
        self._hold(join(self._held.to(device), other._held.to(device), full=self.keep_yy))
        return self

    def __add__(self, other: Moments) -> Moments:
        return self.copy().merge(other)

    def copy(self) -> Moments:
        """An independent object with the same statistics."""
        twin = Moments(self.d_in, self.d_out, device=self.device, keep_yy=self.keep_yy)
        twin._held = self._held  # what is held is never changed in place, so sharing is safe
        return twin

    def _hold(self, held: Held) -> None:
        self._held = held  # one assignment: an interrupt before it loses only this batch
        self.d_in, self.d_out = self._sizes()
        self.device = (held.rows[0][0] if held.state is None else held.state.sxx).device

    def _sizes(self) -> tuple[int, int]:
        state, rows = self._held
        if state is not None:
            return len(state.mean_x), len(state.mean_y)
        return rows[0][0].shape[1], rows[0][1].shape[1]

    def _require_sizes(self, d_in: int, d_out: int) -> None:
        for name, mine, theirs in (("x", self.d_in, d_in), ("y", self.d_out, d_out)):
            if mine is not None and mine != theirs:
                raise InvalidArgumentError(
                    f"{name} must have {mine} columns as before, got {theirs}; "
                    "use one Moments object per site"
                )

    def _require_state(self) -> State:
        """The statistics of all rows so far, kept rows included."""
        state, rows = self._held
        if state is not None:
            return state
        if not rows:
            raise NotEnoughDataError("Moments has seen no rows; call update(x, y) first")
        return start(rows, full=self.keep_yy)

    @property
    def n(self) -> int:
        """Rows seen."""
        state, rows = self._held
        return sum(len(x) for x, _ in rows) if state is None else state.n

    @property
    def mean_x(self) -> Float[Tensor, " d_in"]:
        """Mean of x by column."""
        return self._require_state().mean_x

    @property
    def mean_y(self) -> Float[Tensor, " d_out"]:
        """Mean of y by column."""
        return self._require_state().mean_y

    @property
    def sxx(self) -> Float[Tensor, "d_in d_in"]:
        """Scatter ``Σ (x − mean)ᵀ(x − mean)``."""
        return self._require_state().sxx

    @property
    def sxy(self) -> Float[Tensor, "d_in d_out"]:
        """Cross-scatter ``Σ (x − mean)ᵀ(y − mean)``."""
        return self._require_state().sxy

    @property
    def syy(self) -> Float[Tensor, "d_out d_out"]:
        """Scatter of y; only with ``keep_yy=True``."""
        state = self._require_state()
        if not self.keep_yy:
            raise InvalidArgumentError(
                "syy is kept only with keep_yy=True; build Moments so, or use scatter_y (diagonal)"
            )
        return state.syy

    @property
    def scatter_y(self) -> Float[Tensor, " d_out"]:
        """Diagonal of the scatter of y: ``Σ (y − mean)²`` by column."""
        return self._require_state().scatter_y

    @property
    def null_r2(self) -> float:
        """In-sample R² expected of a y independent of x: ``rank / (n − 1)``, at most 1."""
        state = self._require_state()
        bare = state._replace(sxy=state.sxy[:, :0], szy=state.szy[:, :0])
        rank = solve_state(bare, rtol=state_rtol(state), ridge=0.0).rank
        return min(1.0, rank / max(state.n - 1, 1))

    def fit(self, ridge: float = 0.0, *, rtol: float | None = None) -> LinearFit:
        """Least-squares affine map from x to y.

        ``R² = 1 − ‖Yc − Xc W‖² / ‖Yc‖²`` with W = argmin ‖Yc − Xc W‖² + ridge ‖W‖².

        In-sample, dimensionless, in [0, 1]; independent noise scores ``rank / (n − 1)``.

        Args:
            ridge: λ ≥ 0, as in :func:`fit_linear`.
            rtol: tolerance on singular values of the scaled x; default ``scatter_rtol(d_in)``,
                or ``default_rtol(n, d_in)`` when small directions are measured apart. Pass 1e-6
                for a map that will run inside a float32 model (see :func:`fit_linear`).

        Returns:
            The fit; rank-deficient x gives the solution of minimum norm, and its rank.

        Raises:
            NotEnoughDataError: ``n <= d_in + 1``.
            InvalidArgumentError: y is constant.
        """
        state = self._require_state()
        ridge = require_float("ridge", ridge, minimum=0.0)
        d = len(state.mean_x)
        require_overdetermined(state.n, d)
        rtol = state_rtol(state) if rtol is None else require_float("rtol", rtol, minimum=0.0)
        return assemble(
            solve_state(state, rtol=rtol, ridge=ridge),
            mean_x=state.mean_x,
            mean_y=state.mean_y,
            scatter_y=state.scatter_y,
            n=state.n,
            rtol=rtol,
            ridge=ridge,
        )

    def score(self, fit: LinearFit) -> float:
        """R² of a given map on these rows, without seeing them again.

        ``R² = 1 − Σ‖y − x W − b‖² / Σ‖y − mean_train‖²``, both sums from the statistics.

        Dimensionless, at most 1; held out, a y independent of x scores about
        ``−rank / n_train``, a little below 0.

        Args:
            fit: a map fitted on other rows (held out) or on these (in-sample).

        Returns:
            R², subtracting the mean of y that ``fit`` was trained on.

        Raises:
            InvalidArgumentError: sizes disagree, or y equals the training mean everywhere.
        """
        require_instance("fit", fit, LinearFit, advice="make one with .fit() or fit_linear(x, y)")
        state = self._require_state()
        self._require_sizes(*fit.weight.shape)
        device = state.sxx.device
        weight, bias, centre = (t.to(device) for t in (fit.weight, fit.bias, fit.mean_y))
        offset = (state.mean_y - state.mean_x @ weight - bias).square().sum()
        residual = max(residual_scatter(state, weight), 0.0) + state.n * float(offset)
        total = state.scatter_y.sum() + state.n * (state.mean_y - centre).square().sum()
        if bool(constant_columns(total, centre.norm(), state.n)):
            raise InvalidArgumentError(
                "y must differ from the training mean somewhere, otherwise R² is 0/0"
            )
        return 1 - residual / float(total)

    def without_input(self) -> Moments:
        """The statistics of (x, y − x): what a block adds to its input, by algebra.

        Args: none; x and y must have as many columns.

        Returns:
            A new object.

        Raises:
            InvalidArgumentError: ``d_in != d_out``.
        """
        state = self._require_state()
        if len(state.mean_x) != len(state.mean_y):
            raise InvalidArgumentError(
                f"y − x needs as many columns in y as in x, got {len(state.mean_y)} and "
                f"{len(state.mean_x)}; this site is not a residual one"
            )
        twin = self.copy()
        if self._held.state is None:
            rows = tuple((x, y.double() - x.double()) for x, y in self._held.rows)
            twin._held = Held(None, rows)
            return twin
        syy = state.sdd
        if self.keep_yy:
            syy = state.syy - state.sxy - state.sxy.T + state.sxx
            syy.diagonal().copy_(state.sdd)
        change = state._replace(
            mean_y=state.mean_y - state.mean_x,
            sxy=state.sxy - state.sxx,
            szy=state.szy - state.szx,
            syy=syy,
            sdd=(state.scatter_y + 4 * state.sxx.diagonal() - 4 * state.sxy.diagonal()).clamp(
                min=0
            ),
        )
        twin._held = Held(change, ())
        return twin

    def all_reduce_(self) -> Self:
        """Sum the statistics over all processes of ``torch.distributed``; every process gets all.

        Without an initialised process group this does nothing. Every process must call it; one
        that has seen no rows takes part all the same.

        Returns:
            This object, now with the rows of all processes.

        Raises:
            InvalidArgumentError: sizes disagree between processes.
        """
        if world_size() == 1:
            return self
        n, d_in, d_out = agree_on_sizes(self.n, self.d_in or 0, self.d_out or 0, self.keep_yy)
        if n == 0:
            return self
        self._require_sizes(d_in, d_out)
        device = torch.device("cpu") if self.device is None else self.device
        state = self._require_state() if self.n else None
        total = all_reduce_state(state, n, d_in, d_out, full=self.keep_yy, device=device)
        self._hold(Held(total, ()))
        return self

    def save(self, path: str | Path) -> Path:
        """Write the statistics to a safetensors file, whole or not at all.

        Args:
            path: file name; an older file is replaced only when the new one is complete.

        Returns:
            The path.

        Raises:
            NotEnoughDataError: nothing to save.
            WriteError: the disk is full or the folder may not be written to.
        """
        self._require_state()
        state, rows = self._held
        tensors = {} if state is None else {k: v for k, v in state._asdict().items() if k != "n"}
        if rows:
            tensors = {"x": torch.cat([x for x, _ in rows]), "y": torch.cat([y for _, y in rows])}
        return _moments_io.write(path, self.n, tensors, keep_yy=self.keep_yy)

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str | None = None) -> Self:
        """Read statistics written by :meth:`save`.

        Args:
            path: the file.
            device: where to put them; default the CPU.

        Returns:
            Statistics that can be updated, merged and fitted as if never saved.

        Raises:
            CorruptedFileError: truncated, changed, or not a file of Moments.
            InvalidArgumentError: no such file.
        """
        n, tensors, keep_yy = _moments_io.read(path)
        target = compute_device(require_device("device", "cpu" if device is None else device))
        tensors = {name: tensor.to(target) for name, tensor in tensors.items()}
        moments = cls(keep_yy=keep_yy)
        if "x" in tensors:
            moments._hold(Held(None, ((tensors["x"], tensors["y"]),)))
        else:
            moments._hold(Held(State(n=n, **tensors), ()))
        return moments

    def __repr__(self) -> str:
        d_in, d_out = ("?" if d is None else d for d in (self.d_in, self.d_out))
        return f"Moments {d_in} -> {d_out}: n = {self.n} rows"
