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

Accuracy. The fit is that of ``numpy.linalg.lstsq`` on the rows. Where x is well-conditioned (columns
scaled, rounding left out) float64 products are enough; where it is not, or the rows are float64, a
triangular factor of the rows is kept instead (:mod:`~lens_linear.linalg.scatter`).
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lens_linear.checks import (
    counted,
    require_bool,
    require_device,
    require_file,
    require_instance,
    require_int,
)
from lens_linear.errors import CorruptedFileError, InvalidArgumentError, NotEnoughDataError
from lens_linear.files import write_tensors
from lens_linear.linalg.distributed import gather_ints, process
from lens_linear.linalg.least_squares import (
    LinearFit,
    Ridge,
    leave_one_out_ridge,
    require_overdetermined,
    require_pair,
    require_ridge,
    solve,
)
from lens_linear.linalg.precision import compute_device, constant_columns
from lens_linear.linalg.scatter import (
    Factor,
    Scatter,
    Target,
    all_reduce,
    combine,
    summarise,
    without_input,
)

FORMAT = "lens_linear.moments"
VERSION = 2
_SHORT = 1024  # rows whose products are summed in float32, where that is asked for


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
        single: multiply float32 rows in float32, one sequence of [sequence, position, d] at a time and at
            most a thousand rows, and sum in float64: half the time. Entries are then right to 1e-6 of
            their columns' sizes, mostly to 1e-7: for fits with a penalty.

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
        single: bool = False,
    ) -> None:
        self.d_in = None if d_in is None else require_int("d_in", d_in, minimum=1)
        self.d_out = None if d_out is None else require_int("d_out", d_out, minimum=1)
        self.keep_yy = require_bool("keep_yy", keep_yy)
        self.single = require_bool("single", single)
        self.device = None if device is None else compute_device(require_device("device", device))
        self._scatter: Scatter | None = None

    def update(self, x: Float[Tensor, "... d_in"], y: Float[Tensor, "... d_out"] | Target) -> Self:
        """Take in more rows.

        Args:
            x: [..., d_in], any floating dtype; leading axes are flattened to rows.
            y: [..., d_out], same leading axes; a :class:`~lens_linear.linalg.scatter.Target` of them where
                several x have the same y. No rows is allowed and changes nothing.

        Returns:
            This object.

        Raises:
            NonFiniteError: NaN or infinity; the statistics stay as they were.
            InvalidArgumentError: shapes or sizes disagree; likewise.
        """
        target = y if isinstance(y, Target) else Target(y)
        require_pair(x, target.rows, finite=False)
        return self.add(x, target)

    def add(self, x: Float[Tensor, "... d_in"], y: Target) -> Self:
        """:meth:`update` for rows that are known to be floating numbers, as many in x as in y."""
        rows, length = y.rows, x.shape[-2]
        self._require_sizes(x.shape[-1], rows.shape[-1])
        if x.shape[:-1].numel() == 0:
            return self
        device = compute_device(x.device) if self.device is None else self.device
        with torch.no_grad():
            x = x.detach().reshape(-1, x.shape[-1]).to(device)
            target = y if rows.device == device else Target(rows.to(device))
            single = min(length, _SHORT) if self.single else 0
            part = summarise(x, target, full=self.keep_yy, like=self._scatter, single=single)
            held = part if self._scatter is None else combine(self._scatter, part, reuse=True)
        self._hold(held)
        return self

    @classmethod
    def of_equal_rows(
        cls, x: Float[Tensor, " d_in"], y: Float[Tensor, " d_out"], n: int
    ) -> Moments:
        """The statistics of ``n`` rows that are all (x, y), e.g. to give a mean more weight.

        Args:
            x: [d_in].
            y: [d_out].
            n: at least 1.

        Returns:
            Statistics with no scatter.

        Example:
            >>> x, y = torch.ones(2), torch.zeros(3)
            >>> Moments.of_equal_rows(x, y, 5).n
            5
        """
        held = cls().update(x[None], y[None])
        held._scatter = replace(held.scatter, n=require_int("n", n, minimum=1))
        return held

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
        theirs = other._scatter
        if theirs is None:
            return self
        self._require_sizes(len(theirs.mean_x), len(theirs.mean_y))
        if self._scatter is not None:
            theirs = combine(self._scatter, theirs.to(self._scatter.mean_x.device))
        elif self.device is not None:
            theirs = theirs.to(self.device)
        self._hold(theirs)
        return self

    def __add__(self, other: Moments) -> Moments:
        return self.copy().merge(other)

    def copy(self) -> Moments:
        """An independent object with the same statistics."""
        return copy.copy(self)  # what is held is never changed in place: sharing is safe

    def _hold(self, scatter: Scatter) -> None:
        self._scatter = scatter  # one assignment: an interrupt before it loses only this batch
        self.d_in, self.d_out = len(scatter.mean_x), len(scatter.mean_y)
        self.device = scatter.mean_x.device

    def _require_sizes(self, d_in: int, d_out: int) -> None:
        for name, mine, theirs in (("x", self.d_in, d_in), ("y", self.d_out, d_out)):
            if mine is not None and mine != theirs:
                raise InvalidArgumentError(
                    f"{name} must have {mine} columns as before, got {theirs}; "
                    "use one Moments object per site"
                )

    @property
    def scatter(self) -> Scatter:
        """Everything that is held: count, means, centred scatter.

        Raises:
            NotEnoughDataError: no rows yet.
        """
        if self._scatter is None:
            raise NotEnoughDataError("Moments has seen no rows; call update(x, y) first")
        return self._scatter

    @property
    def n(self) -> int:
        """Rows seen."""
        return 0 if self._scatter is None else self._scatter.n

    @property
    def mean_x(self) -> Float[Tensor, " d_in"]:
        """Mean of x by column."""
        return self.scatter.mean_x

    @property
    def mean_y(self) -> Float[Tensor, " d_out"]:
        """Mean of y by column."""
        return self.scatter.mean_y

    @property
    def sxx(self) -> Float[Tensor, "d_in d_in"]:
        """Scatter ``Σ (x − mean)ᵀ(x − mean)``."""
        return self.scatter.products.sxx

    @property
    def sxy(self) -> Float[Tensor, "d_in d_out"]:
        """Cross-scatter ``Σ (x − mean)ᵀ(y − mean)``."""
        return self.scatter.products.sxy

    @property
    def syy(self) -> Float[Tensor, "d_out d_out"]:
        """Scatter of y; only with ``keep_yy=True``."""
        products = self.scatter.products
        if not self.keep_yy:
            raise InvalidArgumentError(
                "syy is kept only with keep_yy=True; build Moments so, or use scatter_y (diagonal)"
            )
        return products.syy

    @property
    def scatter_y(self) -> Float[Tensor, " d_out"]:
        """Diagonal of the scatter of y: ``Σ (y − mean)²`` by column."""
        return self.scatter.form.scatter_y

    @property
    def varies(self) -> bool:
        """Whether y varies at all by more than rounding: otherwise R² is 0/0."""
        here = self.scatter
        constant = constant_columns(here.form.scatter_y, here.mean_y, here.n, here.dtype)
        return not bool(constant.all())

    def fit(self, ridge: Ridge = 0.0) -> LinearFit:
        """Least-squares affine map from x to y.

        ``R² = 1 − ‖Yc − Xc W‖² / ‖Yc‖²`` with W = argmin ‖Yc − Xc W‖² + ridge ‖W‖².

        In-sample, dimensionless, in [0, 1]; independent noise scores ``rank / (n − 1)``.

        Args:
            ridge: λ ≥ 0, as in :func:`fit_linear`; "loo" takes the one of least leave-one-out error
                (:func:`~lens_linear.linalg.least_squares.leave_one_out_ridge`).

        Returns:
            The fit, with the rank found, the directions dropped and the solver that ran;
            rank-deficient x gives the solution of minimum norm.

        Raises:
            NotEnoughDataError: ``n <= d_in + 1``.
            InvalidArgumentError: y is constant.
        """
        ridge = require_ridge(ridge)
        require_overdetermined(self.scatter.n, len(self.scatter.mean_x))
        if ridge == "loo":
            ridge = leave_one_out_ridge(self.scatter)
        return solve(self.scatter, ridge=ridge)

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
        here, form = self.scatter, self.scatter.form
        self._require_sizes(*fit.weight.shape)
        weight, bias, centre = (
            t.to(here.mean_x.device) for t in (fit.weight, fit.bias, fit.mean_y)
        )
        if isinstance(form, Factor):
            missed, rest = form.image - form.root @ weight, form.rest
            residual = missed.square().sum() + (rest.trace() if rest.ndim == 2 else rest.sum())
        else:
            residual = form.scatter_y.sum() - 2 * (weight * form.sxy).sum()
            residual = residual + (weight * (form.sxx @ weight)).sum()
        offset = (here.mean_y - here.mean_x @ weight - bias).square().sum()
        residual = residual.clamp(min=0) + here.n * offset
        total = form.scatter_y.sum() + here.n * (here.mean_y - centre).square().sum()
        if bool(constant_columns(total, centre.norm(), here.n, torch.float64)):
            raise InvalidArgumentError(
                "y must differ from the training mean somewhere, otherwise R² is 0/0; pass rows that "
                "vary"
            )
        return float(1 - residual / total)

    def without_input(self) -> Moments:
        """The statistics of (x, y − x): what a block adds to its input, by algebra.

        Args: none; x and y must have as many columns.

        Returns:
            A new object.

        Raises:
            InvalidArgumentError: ``d_in != d_out``.
        """
        d_in, d_out = len(self.scatter.mean_x), len(self.scatter.mean_y)
        if d_in != d_out:
            raise InvalidArgumentError(
                f"y − x needs as many columns in y as in x, got {d_out} and {d_in}; this site is not "
                "a residual one"
            )
        twin = self.copy()
        twin._scatter = without_input(self.scatter)
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
        if process()[1] == 1:
            return self
        every = gather_ints((self.n, self.d_in or 0, self.d_out or 0, int(self.keep_yy)))
        sizes = {(row[1], row[2]) for row in every if row[0]}
        if len(sizes) > 1 or len({row[3] for row in every}) > 1:
            raise InvalidArgumentError(
                "every process must hold Moments of the same sizes and keep_yy, got (n, d_in, d_out, "
                f"keep_yy) = {every}; build them alike"
            )
        if not sizes:
            return self
        self._require_sizes(*min(sizes))
        device = torch.device("cpu") if self.device is None else self.device
        self._hold(all_reduce(self._scatter, *min(sizes), full=self.keep_yy, device=device))
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
        tensors = {name: t.cpu().contiguous() for name, t in self.scatter.tensors().items()}
        facts = {
            "n": str(self.n),
            "dtype": str(self.scatter.dtype).removeprefix("torch."),
            "keep_yy": str(int(self.keep_yy)),
        }
        metadata = {"format": FORMAT, "version": str(VERSION), **facts}
        return write_tensors(path, tensors, {**metadata, "sha256": _checksum(facts, tensors)})

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
        metadata, tensors = _read(require_file("path", path))
        target = compute_device(require_device("device", "cpu" if device is None else device))
        moments = cls(keep_yy=metadata["keep_yy"] == "1")
        tensors = {name: tensor.to(target) for name, tensor in tensors.items()}
        dtype = getattr(torch, metadata["dtype"])
        moments._hold(Scatter.of_tensors(int(metadata["n"]), dtype, tensors))
        return moments

    def __repr__(self) -> str:
        d_in, d_out = ("?" if d is None else d for d in (self.d_in, self.d_out))
        return f"Moments {d_in} -> {d_out}: n = {counted(self.n, 'row')}"


def reduced_rank(moments: Moments, rank: int, *, ridge: float = 0.0) -> LinearFit:
    """Best affine map of rank at most ``rank`` from streamed statistics.

    ``W_r = W V Vᵀ`` with W the full least-squares map and V the leading principal directions of
    its fitted values. Its R² is at most that of the full map; units, range and null as there.

    Args:
        moments: statistics of x and y.
        rank: number of directions kept, at least 1.
        ridge: penalty of the full map.

    Returns:
        The truncated fit.

    Raises:
        InvalidArgumentError: bad ``rank``; and whatever ``moments.fit`` raises.

    Source: Izenman 1975, *Reduced-rank regression for the multivariate linear model*.

    Example:
        >>> x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> moments = Moments().update(x, x * torch.tensor([3.0, 1.0]))  # variances 9 and 1
        >>> round(reduced_rank(moments, 1).r_squared, 6)
        0.9
    """
    require_instance("moments", moments, Moments, advice="fill them with .update(x, y)")
    return moments.fit(ridge=ridge).truncate(rank)


def _checksum(facts: dict[str, str], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(repr(sorted(facts.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file of Moments.

    Raises:
        CorruptedFileError: the file is not what it claims to be.
    """
    try:
        with safe_open(file, framework="pt") as archive:
            metadata = archive.metadata() or {}
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise CorruptedFileError(
            f"{str(file)!r} cannot be read as Moments ({error}); it is truncated or no such file: "
            "collect the statistics again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise CorruptedFileError(
            f"{str(file)!r} holds no Moments (format {metadata.get('format')!r}); "
            "pass a file written by Moments.save"
        )
    if metadata.get("version") != str(VERSION):
        raise CorruptedFileError(
            f"{str(file)!r} has format version {metadata.get('version')!r}, this release reads "
            f"version {VERSION}; collect the statistics again"
        )
    facts = {name: metadata.get(name, "") for name in ("n", "dtype", "keep_yy")}
    if _checksum(facts, tensors) != metadata.get("sha256"):
        raise CorruptedFileError(
            f"{str(file)!r} does not match its checksum: bytes changed after it was written; "
            "collect the statistics again"
        )
    return metadata, tensors
