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

Limits. The scatter squares the condition number of x. After scaling the columns (outlier columns
do no harm), directions whose standard deviation is below about 1e-6 of the largest lose all
digits; see :meth:`Moments.fit`. When y lives in such directions use :func:`fit_linear`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear._checks import require_float, require_int
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError
from lens_linear.linalg import _moments_io
from lens_linear.linalg._distributed import all_reduce_sum, gather_ints, world_size
from lens_linear.linalg._scatter import State, about, combine, empty, summarise
from lens_linear.linalg._solve import constant_columns, solve_scatter
from lens_linear.linalg.least_squares import (
    LinearFit,
    assemble,
    require_overdetermined,
    require_pair,
)
from lens_linear.linalg.precision import compute_device, scatter_rtol


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
        self.device = None if device is None else compute_device(device)
        self._state: State | None = None

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
            part = summarise(x.to(device), y.to(device), full=self.keep_yy)
            self._absorb(part)
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
        if other._state is None:
            return self
        self._require_sizes(len(other._state.mean_x), len(other._state.mean_y))
        device = other.mean_x.device if self.device is None else self.device
        state = other._state
        self._absorb(State(state.n, *(t.to(device) for t in state[1:])))
        return self

    def __add__(self, other: Moments) -> Moments:
        return self.copy().merge(other)

    def copy(self) -> Moments:
        """An independent object with the same statistics."""
        twin = Moments(self.d_in, self.d_out, device=self.device, keep_yy=self.keep_yy)
        twin._state = self._state  # states are never changed in place, so sharing is safe
        return twin

    def _absorb(self, part: State) -> None:
        whole = part if self._state is None else combine(self._state, part)
        self._state = whole  # one assignment: an interrupt before it loses only this batch
        self.d_in, self.d_out = len(whole.mean_x), len(whole.mean_y)
        self.device = whole.mean_x.device

    def _require_sizes(self, d_in: int, d_out: int) -> None:
        for name, mine, theirs in (("x", self.d_in, d_in), ("y", self.d_out, d_out)):
            if mine is not None and mine != theirs:
                raise InvalidArgumentError(
                    f"{name} must have {mine} columns as before, got {theirs}; "
                    "use one Moments object per site"
                )

    def _require_state(self) -> State:
        if self._state is None:
            raise NotEnoughDataError("Moments has seen no rows; call update(x, y) first")
        return self._state

    @property
    def n(self) -> int:
        """Rows seen."""
        return 0 if self._state is None else self._state.n

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
        state = self._require_state()
        return state.syy.diagonal() if self.keep_yy else state.syy

    @property
    def null_r2(self) -> float:
        """In-sample R² expected of a y independent of x: ``rank / (n − 1)``, at most 1."""
        state = self._require_state()
        constant = constant_columns(state.sxx.diagonal(), state.mean_x, state.n)
        solution = solve_scatter(
            state.sxx, state.sxy[:, :0], constant, rtol=scatter_rtol(len(state.mean_x)), ridge=0.0
        )
        return min(1.0, solution.rank / max(state.n - 1, 1))

    def fit(self, ridge: float = 0.0, *, rtol: float | None = None) -> LinearFit:
        """Least-squares affine map from x to y.

        ``R² = 1 − ‖Yc − Xc W‖² / ‖Yc‖²`` with W = argmin ‖Yc − Xc W‖² + ridge ‖W‖².

        In-sample, dimensionless, in [0, 1]; independent noise scores ``rank / (n − 1)``.

        Columns are scaled to unit norm before the eigendecomposition, so outlier columns cost no
        accuracy.

        Args:
            ridge: λ ≥ 0, as in :func:`fit_linear`.
            rtol: tolerance on singular values of the scaled x; default ``scatter_rtol(d_in)``.

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
        rtol = scatter_rtol(d) if rtol is None else require_float("rtol", rtol, minimum=0.0)
        constant = constant_columns(state.sxx.diagonal(), state.mean_x, state.n)
        return assemble(
            solve_scatter(state.sxx, state.sxy, constant, rtol=rtol, ridge=ridge),
            mean_x=state.mean_x,
            mean_y=state.mean_y,
            scatter_y=self.scatter_y,
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
        state = self._require_state()
        self._require_sizes(*fit.weight.shape)
        weight, bias = fit.weight.to(state.sxx.device), fit.bias.to(state.sxx.device)
        total = self.scatter_y.sum()
        residual = total - 2 * (weight * state.sxy).sum() + (weight * (state.sxx @ weight)).sum()
        residual = residual + state.n * (state.mean_y - state.mean_x @ weight - bias).square().sum()
        centre = fit.mean_y.to(state.sxx.device)
        total = total + state.n * (state.mean_y - centre).square().sum()
        if bool(constant_columns(total, centre.norm(), state.n)):
            raise InvalidArgumentError(
                "y must differ from the training mean somewhere, otherwise R² is 0/0"
            )
        return float(1 - residual.clamp(min=0) / total)

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
        if self.keep_yy:
            syy = state.syy - state.sxy - state.sxy.T + state.sxx
        else:
            syy = state.syy - 2 * state.sxy.diagonal() + state.sxx.diagonal()
        twin = self.copy()
        twin._state = state._replace(
            mean_y=state.mean_y - state.mean_x, sxy=state.sxy - state.sxx, syy=syy
        )
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
        every = gather_ints((self.n, self.d_in or 0, self.d_out or 0, int(self.keep_yy)))
        sizes = {row[1:] for row in every if row[0]}
        if len(sizes) > 1 or len({row[3] for row in every}) > 1:
            raise InvalidArgumentError(
                "every process must hold Moments of the same sizes and keep_yy, got (n, d_in, "
                f"d_out, keep_yy) = {every}; build them alike"
            )
        n = sum(row[0] for row in every)
        if n == 0:
            return self
        d_in, d_out, _ = sizes.pop()
        self._require_sizes(d_in, d_out)
        device = torch.device("cpu") if self.device is None else self.device
        state = self._state or empty(d_in, d_out, full=self.keep_yy, device=device)
        # First agree on the common mean, then sum the scatters about it: nothing cancels.
        mean_x = all_reduce_sum(state.mean_x * (state.n / n))
        mean_y = all_reduce_sum(state.mean_y * (state.n / n))
        moved = about(state, mean_x, mean_y)
        self._state = State(n, mean_x, mean_y, *(all_reduce_sum(t) for t in moved[3:]))
        self.d_in, self.d_out, self.device = d_in, d_out, device
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
        state = self._require_state()
        return _moments_io.write(path, state._asdict(), keep_yy=self.keep_yy)

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
        fields, keep_yy = _moments_io.read(path)
        target = compute_device("cpu" if device is None else device)
        moments = cls(device=target, keep_yy=keep_yy)
        tensors = {k: v.to(target) for k, v in fields.items() if isinstance(v, Tensor)}
        moments._absorb(State(n=int(fields["n"]), **tensors))
        return moments

    def __repr__(self) -> str:
        d_in, d_out = ("?" if d is None else d for d in (self.d_in, self.d_out))
        return f"Moments {d_in} -> {d_out}: n = {self.n} rows"
