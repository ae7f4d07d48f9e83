"""Count, means and centred scatter of rows of x and y, and how two of them add up.

Two forms, by what the rows of x ask for:

* :class:`Factor`: ``root`` and ``image`` with ``rootᵀ root = sxx`` and ``rootᵀ image = sxy``, and
  ``rest``, the scatter of the part of y that x does not reach. At first these are the centred rows
  themselves; QR keeps them few. Nothing is squared, so directions of any size keep their digits.
* :class:`Products`: ``sxx``, ``sxy``, ``syy`` in float64, three times as fast. Squaring costs half of
  float64's digits. Rows of float32 or less whose directions vary within a factor of 10,000 do not need
  them (``_well_conditioned``, on the first rows); all others stay a factor.

In both, the means of two parts differ by one step, and that step is one more row (Chan's formula).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import require_finite
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.conditioning import largest_eigenvalue, smallest_directions
from lens_linear.linalg.distributed import all_reduce_sum, gather_ints, process
from lens_linear.linalg.precision import (
    COMPUTE_DTYPE,
    add_gram,
    checked_gram,
    coarser,
    gram_tolerance,
    mirror_,
    row_error,
    without_autocast,
)

# Squares of centred entries must fit in float64; only float64 input can break this.
_LARGEST = 1e150
_DTYPES = tuple(  # by precision, so that processes can agree on one
    sorted(
        (torch.float64, torch.float32, torch.float16, torch.bfloat16),
        key=lambda dtype: torch.finfo(dtype).eps,
    )
)


@dataclass(frozen=True, eq=False)
class Products:
    """Scatter as products. ``syy`` is its diagonal, or the whole matrix."""

    sxx: Float[Tensor, "d_in d_in"]
    sxy: Float[Tensor, "d_in d_out"]
    syy: Tensor

    @property
    def scatter_y(self) -> Float[Tensor, " d_out"]:
        """Diagonal of ``syy``."""
        return self.syy.diagonal() if self.syy.ndim == 2 else self.syy


@dataclass(frozen=True, eq=False)
class Factor:
    """Scatter as a factor: ``sxx = rootᵀ root``, ``sxy = rootᵀ image``, ``syy = imageᵀ image + rest``."""

    root: Float[Tensor, "k d_in"]
    image: Float[Tensor, "k d_out"]
    rest: Tensor

    def compressed(self) -> Factor:
        """The same scatter with at most d_in rows."""
        k, d = self.root.shape
        if k <= d:
            return self
        q, root = torch.linalg.qr(self.root)
        root, image = root.contiguous(), q.T @ self.image
        return Factor(
            root, image, self.rest + _squares(self.image - q @ image, self.rest.ndim == 2)
        )

    @property
    def scatter_y(self) -> Float[Tensor, " d_out"]:
        """Scatter of y by column."""
        rest = self.rest.diagonal() if self.rest.ndim == 2 else self.rest
        return rest + self.image.square().sum(0)

    @cached_property
    def products(self) -> Products:
        """The same scatter as products, kept."""
        return self.to_products()

    def to_products(self) -> Products:
        """The same scatter as products."""
        syy = self.rest + _squares(self.image, self.rest.ndim == 2)
        return Products(checked_gram(self.root), self.root.T @ self.image, syy)


def _squares(y: Tensor, full: bool) -> Tensor:
    return checked_gram(y) if full else y.square().sum(0)


@dataclass(frozen=True, eq=False)
class Scatter:
    """Count, means and centred scatter of some rows; never changed in place.

    Attributes:
        n: rows.
        dtype: the coarsest dtype that rows of x came in: how far they can be trusted.
        mean_x: [d_in].
        mean_y: [d_out].
        form: the centred scatter.
    """

    n: int
    dtype: torch.dtype
    mean_x: Float[Tensor, " d_in"]
    mean_y: Float[Tensor, " d_out"]
    form: Products | Factor

    @property
    def products(self) -> Products:
        """The centred scatter as products."""
        return self.form if isinstance(self.form, Products) else self.form.products

    @property
    def spread(self) -> Float[Tensor, " d_in"]:
        """Standard deviation of each column of x."""
        form = self.form
        square = form.root.square().sum(0) if isinstance(form, Factor) else form.sxx.diagonal()
        return (square.clamp(min=0) / max(self.n, 1)).sqrt()

    @cached_property
    def size(self) -> Float[Tensor, " d_in"]:
        """Root mean square of each column of x, mean included: what its directions are judged by."""
        size = (self.spread.square() + self.mean_x.square()).sqrt()
        return size.clamp(min=torch.finfo(COMPUTE_DTYPE).tiny)

    def second_moments(self, size: Float[Tensor, " d_in"]) -> tuple[Tensor, float]:
        """``sxx / n`` in units of ``size`` [d_in, d_in], and the tolerance for its directions."""
        moments = self.products.sxx / self.n / size[:, None] / size
        # The largest eigenvalue is at most the number of columns: looked at only where it can matter.
        tolerance = gram_tolerance(self.dtype, len(size))
        if tolerance > row_error(self.dtype):
            tolerance = gram_tolerance(self.dtype, largest_eigenvalue(moments))
        return moments, tolerance

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {"mean_x": self.mean_x, "mean_y": self.mean_y, **tensors_of(self.form)}

    @classmethod
    def of_tensors(cls, n: int, dtype: torch.dtype, tensors: dict[str, Tensor]) -> Scatter:
        """From what :meth:`tensors` gave."""
        rest = {name: t for name, t in tensors.items() if not name.startswith("mean")}
        form = Products(**rest) if "sxx" in rest else Factor(**rest)
        return cls(n, dtype, tensors["mean_x"], tensors["mean_y"], form)

    def to(self, device: torch.device) -> Scatter:
        """The same numbers on another device."""
        if self.mean_x.device == device:
            return self
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return self.of_tensors(self.n, self.dtype, moved)


def tensors_of(form: Products | Factor) -> dict[str, Tensor]:
    """The tensors of a form by name."""
    names = ("sxx", "sxy", "syy") if isinstance(form, Products) else ("root", "image", "rest")
    return {name: getattr(form, name) for name in names}


def centre(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Column means and centred rows in float64.

    Converting the whole batch first is 8 times as fast as summing float32 into float64 (measured at
    4096 x 768).

    Raises:
        NonFiniteError: NaN or infinity.
        InvalidArgumentError: squares would overflow.
    """
    rows = x.to(COMPUTE_DTYPE)
    mean = rows.mean(0)
    if not bool(torch.isfinite(mean).all()):  # one NaN or infinity anywhere spoils its column
        require_finite(name, x)
    if x.dtype == COMPUTE_DTYPE:
        if float(x.abs().amax()) > _LARGEST:
            raise InvalidArgumentError(
                f"{name} must stay below {_LARGEST:g} in size, so that its squares fit in float64, "
                f"got {float(x.abs().amax()):g}; rescale it"
            )
        return mean, rows - mean
    return mean, rows.sub_(mean)  # our own copy: no need for another


class Piece(NamedTuple):
    """Float32 rows about their mean; the mean, and the step from it to the float32 mean, in float64."""

    rows: Float[Tensor, "k d"]
    mean: Float[Tensor, " d"]
    step: Float[Tensor, " d"]


def _pieces(rows: Float[Tensor, "n d"], length: int) -> Iterator[Piece]:
    for part in rows.split(length):
        near = part.float().mean(0)
        centred = part.float() - near
        # A float32 mean lies a step beside the mean.
        step = centred.mean(0).to(COMPUTE_DTYPE)
        yield Piece(centred, near + step, step)


class Target:
    """Rows of y, prepared once for all the x that they are put beside, and anew after they changed in place.

    Args:
        rows: [..., d_out]; in inference mode, where PyTorch counts no changes, they must stay as they are.
    """

    def __init__(self, rows: Float[Tensor, "... d_out"]) -> None:
        self.rows = rows
        self._version = 0
        self._kept: dict[Any, Any] = {}

    def _once(self, name: Any, make: Callable[[], Any]) -> Any:
        version = 0 if self.rows.is_inference() else self.rows._version
        if version != self._version:
            self._version, self._kept = version, {}
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    @property
    def flat(self) -> Float[Tensor, "n d_out"]:
        """The rows as a matrix."""
        flat: Tensor = self._once(
            "flat", lambda: self.rows.detach().reshape(-1, self.rows.shape[-1])
        )
        return flat

    @property
    def centred(self) -> tuple[Tensor, Tensor]:
        """Mean and centred rows in float64."""
        found: tuple[Tensor, Tensor] = self._once("centred", lambda: centre("y", self.flat))
        return found

    def pieces(self, length: int, full: bool) -> tuple[list[Piece], Tensor]:
        """Float32 rows, ``length`` at a time, and the sum of their squares (``full``: products)."""

        def make() -> tuple[list[Piece], Tensor]:
            pieces = list(_pieces(self.flat, length))
            total = sum(_squares(piece.rows, full).to(COMPUTE_DTYPE) for piece in pieces)
            return pieces, torch.as_tensor(total)

        found: tuple[list[Piece], Tensor] = self._once((length, full), make)
        return found


def summarise(
    x: Tensor, y: Target, *, full: bool, like: Scatter | None = None, single: int = 0
) -> Scatter:
    """The statistics of one batch, centred by its own mean before anything is squared.

    Args:
        x: [n, d_in].
        y: n rows.
        full: keep the whole scatter of y, not only its diagonal.
        like: statistics that they will be added to: they come in its form.
        single: rows whose products are taken in float32 at once, see :func:`_in_single`; 0 for float64.
    """
    if single and max(x.dtype.itemsize, y.rows.dtype.itemsize) <= 4:
        return _in_single(x, y, full, single)
    (mean_x, xc), (mean_y, yc) = centre("x", x), y.centred
    if like is not None and isinstance(like.form, Products):
        form = Products(checked_gram(xc), xc.T @ yc, _squares(yc, full))
        return Scatter(len(x), x.dtype, mean_x, mean_y, form)
    d = yc.shape[1]
    rows = Factor(xc, yc, yc.new_zeros((d, d) if full else d))
    return _settled(Scatter(len(x), x.dtype, mean_x, mean_y, rows))


@without_autocast()
def _in_single(x: Tensor, y: Target, full: bool, length: int) -> Scatter:
    """Products of ``length`` rows in float32 about their own mean, added up in float64.

    Half the time of float64 products. An entry is wrong by about 1e-7 of the sizes of its two columns, by up
    to 1e-6 where rows are outliers, so a fit needs a penalty well above that. What the means of the
    pieces add is float64.
    """
    d = x.shape[1], y.flat.shape[1]
    sxx = x.new_empty(d[0], d[0], dtype=COMPUTE_DTYPE)
    sxy = sxx.new_empty(d)
    targets, syy = y.pieces(length, full)
    means, steps = list[Tensor](), list[Tensor]()
    product = x.new_empty(d, dtype=torch.float32)
    for mine, theirs in zip(_pieces(x, length), targets, strict=True):
        add_gram(sxx, mine.rows, first=not means)
        torch.mm(mine.rows.T, theirs.rows, out=product)
        sxy.add_(product) if means else sxy.copy_(product)
        means.append(torch.cat([mine.mean, theirs.mean]))
        steps.append(torch.cat([mine.step, theirs.step]))
    mirror_(sxx)
    sizes = [len(piece.rows) for piece in targets]
    found, share = torch.stack(means), torch.tensor(sizes).to(sxx)[:, None]
    mean = (found * share).sum(0) / len(x)
    require_finite("x", mean[: d[0]])
    require_finite("y", mean[d[0] :])
    # What the means add, less what the steps added.
    rows = torch.cat([found - mean, torch.stack(steps)]) * torch.cat([share, share]).sqrt()
    along_x, along_y = rows.split(d, 1)
    signed = torch.cat([along_x[: len(found)], -along_x[len(found) :]])
    sxx.addmm_(signed.T, along_x)
    sxy.addmm_(signed.T, along_y)
    gained, lost = along_y.split(len(found))
    syy = syy + _squares(gained, full) - _squares(lost, full)
    mean_x, mean_y = mean.split(d)
    return Scatter(len(x), x.dtype, mean_x, mean_y, Products(sxx, sxy, syy))


def _settled(scatter: Scatter) -> Scatter:
    """The same statistics, as products as soon as that is known to be safe, or a factor of few rows."""
    form = scatter.form
    if isinstance(form, Products):
        return scatter
    k, d = form.root.shape
    if scatter.dtype != torch.float64 and k >= 1.25 * d + 16:
        products = replace(scatter, form=form.products)
        if _well_conditioned(products):
            return products
    return replace(scatter, form=form.compressed()) if k > 3 * d else scatter


def _well_conditioned(scatter: Scatter) -> bool:
    """Whether every direction of x is either rounding or at least 1e-4 of the largest."""
    moments, tolerance = scatter.second_moments(scatter.size)
    dead = moments.diagonal() <= tolerance**2
    moments = moments[~dead][:, ~dead]
    if len(moments) == 0:
        return True
    found = smallest_directions(moments, tolerance**2)
    values = torch.linalg.eigvalsh(moments) if found is None else found.values
    values = values[values > tolerance**2]
    return len(values) == 0 or float(values[0]) > 1e-8 * largest_eigenvalue(moments)


def combine(a: Scatter, b: Scatter, *, reuse: bool = False) -> Scatter:
    """Scatter of the rows of both about their common mean, exact up to roundoff.

    ``reuse`` builds the result in the memory of ``b``, which must not be used afterwards.
    """
    n, share = a.n + b.n, b.n / (a.n + b.n)
    step_x, step_y = b.mean_x - a.mean_x, b.mean_y - a.mean_y
    weight = a.n * share
    form: Products | Factor
    if isinstance(a.form, Factor) and isinstance(b.form, Factor):
        row = weight**0.5
        root = torch.cat([a.form.root, b.form.root, row * step_x[None]])
        image = torch.cat([a.form.image, b.form.image, row * step_y[None]])
        form = Factor(root, image, a.form.rest + b.form.rest)
    else:
        reuse = reuse and isinstance(b.form, Products)
        mine, theirs = (
            s.form if isinstance(s.form, Products) else s.form.to_products() for s in (a, b)
        )
        form = _sum(mine, theirs, step_x, step_y, weight, reuse)
    mean_x, mean_y = a.mean_x + share * step_x, a.mean_y + share * step_y
    return _settled(Scatter(n, coarser(a.dtype, b.dtype), mean_x, mean_y, form))


def _sum(
    a: Products, b: Products, step_x: Tensor, step_y: Tensor, weight: float, reuse: bool
) -> Products:
    sxx, sxy, syy = (
        mine.add_(theirs) if reuse else mine + theirs
        for mine, theirs in zip(tensors_of(b).values(), tensors_of(a).values(), strict=True)
    )
    sxx.addr_(step_x, step_x, alpha=weight)
    sxy.addr_(step_x, step_y, alpha=weight)
    if syy.ndim == 2:
        syy.addr_(step_y, step_y, alpha=weight)
    else:
        syy.add_(step_y.square(), alpha=weight)
    return Products(sxx, sxy, syy)


def without_input(scatter: Scatter) -> Scatter:
    """The statistics of (x, y − x), by algebra; columns in which y equals x up to rounding become 0."""
    form, mean = scatter.form, scatter.mean_y - scatter.mean_x
    new: Products | Factor
    if isinstance(form, Factor):
        new = Factor(form.root, form.image - form.root, form.rest)
    else:
        sxx, sxy = form.sxx, form.sxy
        syy = form.scatter_y + sxx.diagonal() - 2 * sxy.diagonal()
        if form.syy.ndim == 2:
            syy = form.syy - sxy - sxy.T + sxx
        new = Products(sxx, sxy - sxx, syy)
    size = scatter.form.scatter_y + scatter.products.sxx.diagonal()
    size = size + scatter.n * (scatter.mean_x.square() + scatter.mean_y.square())
    moved = new.scatter_y > (row_error(scatter.dtype) / 16) ** 2 * size
    tail = new.syy if isinstance(new, Products) else new.rest
    tail = tail * (moved[:, None] & moved if tail.ndim == 2 else moved)
    if isinstance(new, Products):
        return replace(scatter, mean_y=mean, form=Products(new.sxx, new.sxy * moved, tail))
    return replace(scatter, mean_y=mean, form=Factor(new.root, new.image * moved, tail))


def all_reduce(
    scatter: Scatter | None, d_in: int, d_out: int, *, full: bool, device: torch.device
) -> Scatter:
    """Statistics of the rows of all processes together; None stands for no rows."""
    if scatter is None:
        zeros = torch.zeros(d_out, d_in + d_out, dtype=COMPUTE_DTYPE, device=device)
        x, y = zeros.split([d_in, d_out], 1)
        nothing = Factor(x[:0], y[:0], y if full else y[0])
        scatter = Scatter(0, torch.float64, zeros[0, :d_in], zeros[0, d_in:], nothing)
    precision = _DTYPES.index(scatter.dtype) if scatter.dtype in _DTYPES else len(_DTYPES) - 1
    every = gather_ints((scatter.n, precision, int(isinstance(scatter.form, Factor))))
    n, dtype = sum(row[0] for row in every), _DTYPES[max(row[1] for row in every)]
    # First agree on the common mean, then sum the scatters about it: nothing cancels.
    mean_x = all_reduce_sum(scatter.mean_x * (scatter.n / n))
    mean_y = all_reduce_sum(scatter.mean_y * (scatter.n / n))
    step_x, step_y = scatter.mean_x - mean_x, scatter.mean_y - mean_y
    form: Products | Factor
    if isinstance(scatter.form, Factor) and all(row[2] for row in every):
        form = _sum_of_factors(scatter.form, scatter.n**0.5 * step_x, scatter.n**0.5 * step_y)
    else:
        mine = scatter.products
        nought = Products(*(torch.zeros_like(t) for t in tensors_of(mine).values()))
        moved = _sum(nought, mine, step_x, step_y, float(scatter.n), False)
        form = Products(*(all_reduce_sum(t) for t in tensors_of(moved).values()))
    return Scatter(n, dtype, mean_x, mean_y, form)


def _sum_of_factors(form: Factor, row_x: Tensor, row_y: Tensor) -> Factor:
    """The factors of all processes, each with one more row, one below the other."""
    root, image = torch.cat([form.root, row_x[None]]), torch.cat([form.image, row_y[None]])
    mine = Factor(root, image, form.rest).compressed()
    rank, world = process()
    d_in, d_out = root.shape[1], image.shape[1]
    every = root.new_zeros(world, d_in, d_in + d_out)
    every[rank, : len(mine.root)] = torch.cat([mine.root, mine.image], 1)
    root, image = all_reduce_sum(every).flatten(0, 1).split([d_in, d_out], 1)
    return Factor(root, image, all_reduce_sum(mine.rest)).compressed()
