"""The numerics policy of the package: one compute dtype, one rank tolerance, one symmetric product.

Statistics are computed in float64, whatever the model runs in. A device without float64 (Apple's
MPS) hands its tensors to the CPU.

Rank is decided here and nowhere else. A number that came in float32 is known to about 1e-6 of its
size, so a direction of x that varies by less than that, measured in the size of each column, is
rounding: no map may lean on it. The size of a column is its root mean square, mean included, so
that outlier columns hide nothing, a constant column has no direction, and a column of 1e-20 is as
good as any other as long as the entries of the map stay finite.

>>> import torch
>>> to_compute(torch.ones(2, dtype=torch.bfloat16)).dtype
torch.float64
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import require_float_tensor, require_int

COMPUTE_DTYPE = torch.float64
EPS = torch.finfo(COMPUTE_DTYPE).eps


@contextmanager
def without_autocast() -> Iterator[None]:
    """Compute in the tensors' own precision: under a caller's autocast numbers would move without a word."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "mps"):
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def own_modes() -> Iterator[None]:
    """:func:`without_autocast`, and with a graph for derivatives and weights also in inference mode."""
    with torch.inference_mode(False), without_autocast():
        yield


def row_error(dtype: torch.dtype) -> float:
    """Relative error that an entry of rows of this dtype may carry.

    float16, bfloat16: the rounding of the dtype (9.8e-4, 7.8e-3): half rows are results of float32
    sums, rounded once. float32: 1.9e-6, float64: 2.3e-13, 16 and 1024 times the rounding of the dtype,
    because such rows are themselves sums, through many layers. Measured in a GPT of 8 layers, the
    empty direction of a LayerNorm holds 1.1e-7 to 1.4e-7 in float32 and 1e-15 in float64, and float32
    and float64 runs differ by up to 1.1e-6 of a column; the smallest real direction was 6e-2.

    Args:
        dtype: a floating dtype.

    Returns:
        A dimensionless tolerance: a direction of x whose standard deviation is below it, columns
        scaled to a root mean square of one, counts as absent.

    Example:
        >>> f"{row_error(torch.float32):.1e} {row_error(torch.bfloat16):.1e}"
        '1.9e-06 7.8e-03'
    """
    info = torch.finfo(dtype)
    return info.eps * {4: 16, 8: 1024}.get(dtype.itemsize, 1)


def coarser(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """The less precise of two floating dtypes."""
    return a if torch.finfo(a).eps >= torch.finfo(b).eps else b


def largest_entry(dtype: torch.dtype) -> float:
    """Size that no entry of a map of such rows may reach: it must be finite in the model's dtype.

    Half the largest number of the dtype, or of float32 for float64 rows: maps are saved and run in it.
    """
    return min(torch.finfo(dtype).max, torch.finfo(torch.float32).max) / 2


def constant_columns(
    scatter: Float[Tensor, "*d"], mean: Float[Tensor, "*d"], n: int, dtype: torch.dtype
) -> Tensor:
    """Mask of columns that vary by no more than their rounding."""
    return scatter <= n * (row_error(dtype) * mean).square()


def gram_tolerance(dtype: torch.dtype, largest: float) -> float:
    """Tolerance when only products of rows are known.

    Sums of products in float64 hide variances below about ``eps`` times the largest eigenvalue.

    Args:
        dtype: what the rows came in.
        largest: largest eigenvalue of the scaled second moments, at most the number of columns.

    Returns:
        ``max(row_error, sqrt(16 eps largest))``; up to 1,000 columns it is that of float32 rows.
    """
    return max(row_error(dtype), math.sqrt(16 * EPS * largest))


def compute_device(device: torch.device | str) -> torch.device:
    """Where statistics of tensors on ``device`` are kept: the same device, or the CPU for MPS.

    Args:
        device: where the data is.

    Returns:
        A device that has float64.

    Example:
        >>> compute_device("mps")
        device(type='cpu')
    """
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def to_compute(x: Float[Tensor, "..."], *, device: torch.device | None = None) -> Tensor:
    """Detach ``x`` and return it in float64 on a device that has float64.

    Args:
        x: half, bfloat16, float32 or float64 tensor of any shape.
        device: where to put it; default: where it is (the CPU for MPS).

    Returns:
        A float64 tensor; ``x`` itself, detached, when nothing had to change.

    Raises:
        InvalidArgumentError: ``x`` is no floating tensor.

    Example:
        >>> to_compute(torch.tensor([0.1], dtype=torch.float16))  # what half precision holds of 0.1
        tensor([0.1000], dtype=torch.float64)
    """
    require_float_tensor("x", x, finite=False)
    return checked_to_compute(x, device=device)


def checked_to_compute(x: Float[Tensor, "..."], *, device: torch.device | None = None) -> Tensor:
    """:func:`to_compute` of what was checked at a public face."""
    target = compute_device(x.device if device is None else device)
    return x.detach().to(target).to(COMPUTE_DTYPE)


_MIRROR = 128  # columns that are mirrored together


def _block(d: int) -> int:
    """Columns a block: a sixth of the width, a multiple of 32, between 32 and 192."""
    return min(192, max(32, d // 6 // 32 * 32))


def gram(x: Float[Tensor, "n d"], *, block: int | None = None) -> Float[Tensor, "d d"]:
    """Symmetric product ``x^T x``, computing only the upper block triangle and mirroring it.

    The result is exactly symmetric. Time against the full product, one thread, float64, measured:
    0.98 at d = 64, 0.76 at 256, 0.72 at 768, 0.66 at 3072 (4096 rows; 1024 for the last).

    Args:
        x: rows [n, d]; no gradient passes.
        block: columns a block; default: a sixth of d, between 32 and 192. At ``block >= d`` it is
            the plain product.

    Returns:
        ``x^T x`` [d, d], in the dtype of x.

    Raises:
        InvalidArgumentError: ``x`` is no floating matrix, or ``block`` is below 1.

    Example:
        >>> gram(torch.eye(2, dtype=torch.float64)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    require_float_tensor("x", x, ndim=2, finite=False)
    return checked_gram(
        x.detach(), None if block is None else require_int("block", block, minimum=1)
    )


def checked_gram(x: Float[Tensor, "n d"], block: int | None = None) -> Float[Tensor, "d d"]:
    """:func:`gram` of what was checked at a public face."""
    d = x.shape[1]
    size = _block(d) if block is None else block
    out = x.new_empty(d, d)
    for start in range(0, d, size):
        stop = min(start + size, d)
        torch.mm(x[:, start:stop].T, x[:, start:], out=out[start:stop, start:])
    return mirror_(out)


def add_gram(total: Float[Tensor, "d d"], x: Float[Tensor, "n d"], *, first: bool = False) -> None:
    """Add ``x^T x`` to the upper block triangle of ``total``; what lies below means nothing until mirrored.

    ``first`` writes it there instead, over whatever ``total`` holds.

    ``total`` may have another dtype than x. Adding :func:`gram` to a float64 sum took 1.3 times as long at
    256 x 576 rows of float32, three times at 256 x 2048.
    """
    d = x.shape[1]
    size = _block(d)
    room = x.new_empty(size * d)
    for start in range(0, d, size):
        stop = min(start + size, d)
        part = room[: (stop - start) * (d - start)].view(stop - start, d - start)
        torch.mm(x[:, start:stop].T, x[:, start:], out=part)
        place = total[start:stop, start:]
        place.copy_(part) if first else place.add_(part)


def mirror_(total: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Make ``total`` the symmetric matrix with its upper triangle, in place.

    In blocks: twice as fast as two triangles added up at d = 576, twelve times at d = 2048.
    """
    for start in range(0, len(total), _MIRROR):
        stop = start + _MIRROR
        corner = total[start:stop, start:stop]
        corner.copy_(corner.triu() + corner.triu(1).T)
        total[stop:, start:stop] = total[start:stop, stop:].T
    return total
