"""The root ``L = V Λ^{-1/2}`` of ``(XᵀX)^{-1}``, computed without squaring the condition number.

``XᵀX = V Λ Vᵀ`` gives ``L Lᵀ = (XᵀX)^{-1}`` and ``(XL)ᵀ(XL) = I``. The eigenvectors of ``XᵀX`` are
the right singular vectors of ``X`` and its eigenvalues are the squared singular values, so
``L = V S^{-1}`` comes from the SVD of ``X`` itself: with a condition number of 1e8 the smallest
eigenvalue of a computed ``XᵀX`` has no correct digit. Columns of very different size get one step
more, see :func:`spectral_root`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear._tl import HookedRootModule
from lens_linear.checks import counted, require_float, require_float_tensor, shown
from lens_linear.errors import InvalidArgumentError, NonFiniteError, NotEnoughDataError

Solution = Literal["unique", "minimum-norm", "ridge"]
_CONTEXT = ("context_x", "context_y")


@dataclass(frozen=True, eq=False)
class SpectralRoot:
    """``root @ root.T`` is the inverse of ``XᵀX`` (or its pseudo- or ridge inverse).

    ``solution`` says which least squares the root stands for: ``"unique"`` (full column rank),
    ``"minimum-norm"`` (rank below the number of columns, numpy's convention) or ``"ridge"``.
    """

    root: Float[Tensor, "p r"]  # L = V (Λ + ridge)^{-1/2}, one column a kept direction
    eigenvalues: Float[Tensor, " r"]  # Λ: of XᵀX, decreasing, without the ridge; inf past 1e308
    condition: float  # largest over smallest kept singular value of X
    solution: Solution
    n: int
    p: int
    rank: int
    ridge: float
    rtol: float  # singular values below rtol times the largest count as zero

    def __repr__(self) -> str:
        return (
            f"SpectralRoot: {self.solution} root from n = {counted(self.n, 'row')}, "
            f"rank {self.rank} of p = {counted(self.p, 'column')}, condition number {self.condition:.3g}"
        )


def default_rtol(n: int, p: int) -> float:
    """numpy's: what rounding leaves of a singular value that is 0, as a share of the largest."""
    return torch.finfo(torch.float64).eps * max(n, p)


def as_float64(name: str, value: Any, *, ndim: int) -> Tensor:
    """Accept finite real numbers with ``ndim`` axes; a float64 tensor out, where it was.

    Tensors keep their device and their graph; arrays, data frames and nested lists become float64
    without passing through float32. True and False are 1 and 0.
    """
    tensor = value if isinstance(value, Tensor) else _from_numpy(name, value)
    if tensor.is_complex():
        raise InvalidArgumentError(
            f"{name} must hold real numbers, got dtype {tensor.dtype}; pass e.g. {name}.real"
        )
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if ndim == 2 and tensor.ndim == 1:
        raise InvalidArgumentError(
            f"{name} must have 2 axes [n, columns], got shape {tuple(tensor.shape)}; "
            f"for one column pass {name}[:, None], for one row {name}[None]"
        )
    return require_float_tensor(name, tensor.double(), ndim=ndim)


def _from_numpy(name: str, value: Any) -> Tensor:
    """Numbers of anything numpy can read: array, data frame, series, nested list, list of tensors."""
    if np.ma.is_masked(value):
        raise NonFiniteError(f"{name} has masked entries; drop those rows or fill them first")
    why = "no numbers"
    try:
        if value is None:
            raise TypeError(why)
        if isinstance(value, (list, tuple)) and value and all(isinstance(v, Tensor) for v in value):
            return torch.stack([v.detach().cpu() for v in value])
        array = np.asarray(value)
        if array.dtype.kind == "c":
            return torch.from_numpy(array.astype(np.complex128))
        if array.dtype.kind in "biufO":
            return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise InvalidArgumentError(
        f"{name} must be an array of numbers, got {type(value).__name__} ({shown(why)}); "
        "pass a torch tensor, a numpy array or a data frame of numbers"
    )


def float_rows(name: str, value: Any) -> Float[Tensor, "n p"]:
    """Accept a matrix with at least one row and one column; device and graph are kept."""
    x = as_float64(name, value, ndim=2)
    if x.numel() == 0:
        raise NotEnoughDataError(
            f"{name} must have at least one row and one column, got shape {tuple(x.shape)}; "
            "pass more data"
        )
    return x


def as_design(name: str, value: Any) -> Float[Tensor, "n p"]:
    """:func:`float_rows` as data: on the CPU, without a graph."""
    return float_rows(name, value).detach().cpu()


def as_outputs(name: str, value: Any, n: int) -> tuple[Float[Tensor, "n m"], bool]:
    """Accept ``[n]`` or ``[n, m]`` labels; returns ``[n, m]`` and whether one axis came in."""
    value = value if isinstance(value, Tensor) else _from_numpy(name, value)
    if value.ndim not in (1, 2):
        raise InvalidArgumentError(
            f"{name} must have 1 axis [n] or 2 axes [n, m], got shape {tuple(value.shape)}; "
            "pass one row of labels for each row of x"
        )
    vector = value.ndim == 1
    y = as_float64(name, value, ndim=value.ndim).detach().cpu()
    y = y[:, None] if vector else y
    if len(y) != n or y.shape[1] == 0:
        raise InvalidArgumentError(
            f"{name} must have one row for each of the {n} rows of x and at least one column, "
            f"got shape {tuple(value.shape)}; check that x and {name} belong together"
        )
    return y, vector


def centred(
    x: Float[Tensor, "n p"],
) -> tuple[Float[Tensor, "n p"], Float[Tensor, "2 p"]]:
    """Rows minus their mean, and the mean in two parts; columns constant up to rounding become zero.

    The second part is the rounding of the first: subtract both in turn (:func:`minus`) to put other
    rows where these are. Without the last step a constant column of value 0.1 would leave 1e-17
    behind, a direction that data of size 1e-10 would take for signal.
    """
    size = power_of_two(x)  # a sum of large rows overflows where their mean does not
    mean = (x / size).mean(0) * size
    centre = torch.stack([mean, ((x - mean) / size).mean(0) * size])
    shifted = minus(x, centre)
    constant = shifted.abs().amax(0) <= rounding(x)
    return torch.where(constant, torch.zeros_like(shifted), shifted), centre


def minus(x: Float[Tensor, "n p"], centre: Float[Tensor, "2 p"]) -> Float[Tensor, "n p"]:
    """Subtract both parts of a mean in turn: rounded once, as the rows it was taken from were."""
    return x - centre[0] - centre[1]


def power_of_two(x: Tensor, dim: int | None = None) -> Tensor:
    """The power of two just above the largest entry of x, so that dividing by it rounds nothing.

    Products of rows of 1e170 overflow in float64; of rows divided by this they do not. 1 for zeros.
    ``dim``: one for each of the other axis's places.
    """
    largest = x.detach().abs().amax() if dim is None else x.detach().abs().amax(dim)
    _, exponent = torch.frexp(largest)
    limit = torch.finfo(x.dtype)
    exponent = exponent.clamp(math.frexp(limit.tiny)[1] - 1, math.frexp(limit.max)[1] - 1)
    return torch.ldexp(torch.ones_like(largest), exponent)


def within_range(name: str, value: Tensor, like: Tensor, *, whole: bool = False) -> Tensor:
    """``value`` in the dtype and on the device of ``like``; refused where it does not fit.

    ``whole``: refused too where a whole column would be rounded to zero, or to the few digits next to it.
    """
    cast = value.to(like)
    if whole and bool((lost := column_lost(value, cast)).any()):
        size = value.detach().abs().amax(0)
        raise NonFiniteError(
            f"{name} has a column that reaches {float(size[lost].amin()):.3g} only, less than "
            f"{cast.dtype} can hold; scale it up, or use a module in float64 (module.double())"
        )
    if not bool(torch.isfinite(cast).all()):
        raise NonFiniteError(
            f"{name} reaches {float(value.abs().amax()):.3g}, more than {cast.dtype} can hold; "
            f"scale {name} down, or use a module in float64 (module.double())"
        )
    return cast


def column_lost(value: Tensor, cast: Tensor) -> Tensor:
    """Columns that hold something, and nothing that is a normal number after the cast."""
    kept = cast.detach().abs().amax(0).to(value) >= torch.finfo(cast.dtype).tiny
    return value.detach().ne(0).any(0) & ~kept


class RangedModule(HookedRootModule):
    """A hooked module that keeps its numbers when it is moved to another dtype, or refuses to move.

    torch casts without asking: a context of 1e-60 would be zero in float32, and the prediction with it.
    """

    vector_output: bool  # the labels came with one axis
    #: Parameters and buffers of which no column may be rounded to zero; the others may (rounding does).
    _whole: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for name, held in (*self.named_buffers(), *self.named_parameters()):
            moved = fn(held.detach())
            if moved.dtype != held.dtype and held.numel():
                within_range(name, held.detach(), moved, whole=name in self._whole)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    #: Settings that a loaded state must share, because they say which computation it is.
    _fixed: ClassVar[tuple[str, ...]] = ()

    def _settings(self) -> dict[str, float]:
        """What the prediction depends on beside weights and context; the ``state_dict`` carries it."""
        raise NotImplementedError

    def _adopt(self, settings: dict[str, float]) -> None:
        """Take over those settings of a loaded state that may differ."""
        self.vector_output = bool(settings["vector_output"])

    def predict(self, x_new: Any) -> Tensor:
        """The prediction for ``x_new`` ``[q, p]`` in one forward pass, without gradients.

        Returns:
            Tensor: ``[q]`` if the labels had one axis, else ``[q, m]``; float64, unless the module
            was moved to another dtype.

        Raises:
            InvalidArgumentError: the number of columns differs from the training data's.
        """
        with torch.no_grad():
            out: Tensor = self.forward(x_new)
        return out[:, 0] if self.vector_output else out

    def get_extra_state(self) -> Tensor:
        """The settings as one tensor, as whatever maps the tensors of a state expects."""
        return torch.tensor(list(self._settings().values()), dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the settings over from a loaded state."""
        self._adopt(dict(zip(self._settings(), state.tolist(), strict=True)))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Refuse, before anything is copied, a state that this module would answer wrongly with."""
        held: dict[str, Tensor] = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        loaded = {name: state_dict[prefix + name] for name in held if prefix + name in state_dict}
        carried = state_dict.get(f"{prefix}_extra_state")
        here = self._settings()
        if (carried is None and loaded) or (carried is not None and carried.numel() != len(here)):
            raise InvalidArgumentError(
                f"the state must hold {prefix}_extra_state with {', '.join(here)}, which predictions depend "
                "on; save it again with module.state_dict(), or build the module from its data"
            )
        if carried is not None:
            theirs = dict(zip(here, carried.tolist(), strict=True))
            for name in self._fixed:
                if theirs[name] != here[name]:
                    raise InvalidArgumentError(
                        f"the state was saved by a module with another {name}; load it into one that is "
                        f"built with the same {name}"
                    )
        for name, tensor in loaded.items():
            if tensor.dtype != held[name].dtype and tensor.numel():
                within_range(name, tensor, held[name].detach(), whole=name in self._whole)
        weights_fit = all(loaded[n].shape == held[n].shape for n in loaded if n not in _CONTEXT)
        if weights_fit and all(name in loaded for name in _CONTEXT):
            x, y = (loaded[name] for name in _CONTEXT)
            if x.shape == (len(y), held["context_x"].shape[1]) and y.ndim == 2:
                for name in _CONTEXT:  # of any number of rows
                    setattr(self, name, held[name].new_empty(loaded[name].shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def require_result(out: Tensor) -> Tensor:
    """A prediction, unless a product on the way to it left the range of its dtype."""
    if not bool(torch.isfinite(out.detach()).all()):
        raise NonFiniteError(
            f"the prediction leaves the range of {out.dtype}, or weights, context or a hook hold NaN or "
            "infinity; bring x_new, context and labels to one scale, or use module.double()"
        )
    return out


def explains_nothing(prediction: Float[Tensor, "n m"], y: Float[Tensor, "n m"]) -> bool:
    """Whether a least-squares prediction is zero, or what rounding left of labels orthogonal to x."""
    unit = power_of_two(y)
    size, whole = float((prediction / unit).norm()), float((y / unit).norm())
    return size <= 1e-13 * math.sqrt(len(y)) * whole


def rounding(x: Float[Tensor, "n p"]) -> Float[Tensor, " p"]:
    """How far rounding may have moved the entries of each column of ``centred(x)``."""
    return 4 * torch.finfo(x.dtype).eps * x.abs().amax(0)


def spectral_root(
    x: Float[Tensor, "n p"],
    *,
    ridge: float = 0.0,
    rtol: float | None = None,
    noise: Float[Tensor, " p"] | None = None,
) -> SpectralRoot:
    """``L = V (Λ + ridge)^{-1/2}`` of ``XᵀX = V Λ Vᵀ``, in float64.

    Full column rank: the SVD is taken after dividing each column by its largest entry and turned
    back into the eigenvector basis by a rotation, which leaves ``L Lᵀ`` alone. That is the same
    matrix L, but its small rows keep their digits: with columns spread over 12 decades, held-out
    predictions measured an error of 3e-15 instead of 1e-6.

    Args:
        x: ``[n, p]`` rows.
        ridge: added to every eigenvalue; 0 is ordinary least squares.
        rtol: singular values below ``rtol`` times the largest count as zero; None takes numpy's
            ``eps * max(n, p)``.
        noise: ``[p]`` size of the rounding in each column. A direction v counts as zero too when
            its singular value is below ``√n ‖noise ∘ v‖``: columns that sum to 2026 leave 1e-13
            behind once they are centred.

    Returns:
        SpectralRoot: ``root`` ``[p, r]`` and which solution it stands for.

    Raises:
        InvalidArgumentError: wrong shape, or a negative ``ridge`` or ``rtol``.
        NonFiniteError: NaN or infinity in ``x``, or rows so small that the root overflows.

    Source: Tan & Zhao 2026, arXiv 2604.13656 (L = V Λ^{-1/2}); the numerics are ours.

    Example:
        >>> found = spectral_root(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> (9 * found.root @ found.root.T).round(decimals=6).tolist()  # 9 (XᵀX)^{-1}
        [[5.0, -4.0], [-4.0, 5.0]]
    """
    x = as_design("x", x)
    ridge = require_float("ridge", ridge, minimum=0.0)
    n, p = x.shape
    if rtol is None:
        rtol = default_rtol(n, p)
    rtol = require_float("rtol", rtol, minimum=0.0, maximum=1.0)
    size = power_of_two(x)
    x, penalty = x / size, ridge**0.5 / float(size)
    _, s, vt = torch.linalg.svd(x, full_matrices=False)
    floor = (rtol * s[0]).expand_as(s)
    if noise is not None:
        noise = require_float_tensor("noise", noise, ndim=1)
        if len(noise) != p:
            raise InvalidArgumentError(
                f"noise must have one entry for each of {p} columns, got {len(noise)}; see rounding(x)"
            )
        floor = torch.maximum(floor, n**0.5 * (vt * (noise / size)).norm(dim=1))
    kept = s > floor
    rank = int(kept.sum())
    s, v = s[kept], vt[kept].T
    if rank == p:
        # A ridge is p more rows: x stacked on √ridge I has the Gram matrix XᵀX + ridge I.
        more = penalty * torch.eye(p, dtype=x.dtype, device=x.device)
        root = _root_of_full_rank(torch.cat([x, more]) if ridge else x)
    else:
        root = v / torch.hypot(s, torch.tensor(penalty, dtype=x.dtype))
    if ridge == 0.0:
        # One Newton step towards orthonormal keys; at condition numbers of 1e6 to 1e7 the
        # prediction's largest error over 300 problems measured 1e-9 instead of 6e-9.
        keys = x @ root
        root = 1.5 * root - 0.5 * root @ (keys.T @ keys)
    root = within_range("the inverse root of x", root / size, root)
    solution: Solution = "ridge" if ridge > 0 else "unique" if rank == p else "minimum-norm"
    return SpectralRoot(
        root=root * _signs(root),
        eigenvalues=(s * size) ** 2,
        condition=float(s[0] / s[-1]) if rank else 1.0,
        solution=solution,
        n=n,
        p=p,
        rank=rank,
        ridge=ridge,
        rtol=rtol,
    )


def _root_of_full_rank(x: Float[Tensor, "n p"]) -> Float[Tensor, "p p"]:
    scale = x.abs().amax(0)
    _, s, wt = torch.linalg.svd(x / scale, full_matrices=False)
    root = (wt.T / s) / scale[:, None]  # root @ root.T = (XᵀX)^{-1}, in another basis
    # root = V Λ^{-1/2} R: rotating by Rᵀ from the right gives the eigenvector basis. Multiplying
    # the accurate factor, rather than reading V and Λ off this SVD, keeps its small rows accurate.
    _, _, rotation = torch.linalg.svd(root)
    turned: Tensor = (root @ rotation.T).flip(1)
    return turned


def _signs(root: Float[Tensor, "p r"]) -> Float[Tensor, " r"]:
    """Signs that make the first of each column's largest entries positive: a reproducible L."""
    if root.numel() == 0:
        return root.new_ones(root.shape[1])
    large = root.abs() >= (1 - 1e-9) * root.abs().amax(0)
    first = large.to(torch.int8).argmax(0)
    signs = torch.sign(root[first, torch.arange(root.shape[1])])
    return torch.where(signs == 0, torch.ones_like(signs), signs)
