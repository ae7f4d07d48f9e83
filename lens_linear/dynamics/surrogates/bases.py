"""Reduced coordinates for the last token's state at every layer boundary.

A basis is a pair of matrices per boundary: ``r = leftᵀ x`` reads the reduced state, ``x ≈ right r`` rebuilds
it, ``leftᵀ right = 1``. The orthonormal ones (left = right = P_l) all have v_l as their first column:

* ``"krylov"`` (the paper's, for a system that changes with depth): ``P_{l+1} = [v_{l+1}, Ā_l v_l,
  Ā_l Ā_{l-1} v_{l-1}, …]``, what injections at this and earlier layers leave behind under the mean Jacobian;
  that is ``P_{l+1} = orth [v_{l+1}, Ā_l P_l]``. ``P_0 = [v_0, Ā_0 v_0, Ā_0² v_0, …]`` fills what is
  left. From order L + 1 on the mean system is followed exactly;
* ``"krylov-stationary"``: each layer's own Jacobian over and over, ``P_{l+1} = [v_{l+1}, b, Ā_l b,
  Ā_l² b, …]`` with ``b = Ā_l v_l``: the literal Krylov space, of a system that would not change with
  depth (control);
* ``"pca"``: the rest from the states' principal directions over the operating prompts (control);
* ``"random"``: the rest at random (control).

``"balanced"`` is oblique and ours. A direction is worth a coordinate if injections *reach* it and the readout
*sees* it; an orthonormal basis grown forwards knows only the first half. Snapshots of both are taken at every
operating prompt p: ``Φ_p(k, l) v_k`` for all k ≤ l (v_k injected at layer k, carried forward to l) and
``λ_l,p = ∂(C·x_L)/∂x_l`` (the readout carried backward). Balanced proper orthogonal decomposition keeps the
leading singular directions of their products. With one prompt, order 1 is exact: the readout is a single
number, so only one direction of each state, λ_l, ever matters. Higher orders are needed only because λ
differs from prompt to prompt, and their Hankel values say by how much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Union

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import require_choice, require_float_tensor, require_int, shown
from lens_linear.dynamics.gains.jacobian_products import BlockJacobians
from lens_linear.errors import InvalidArgumentError
from lens_linear.extensions import added
from lens_linear.linalg.balanced import balanced_truncation
from lens_linear.linalg.krylov import complete_basis, krylov_basis
from lens_linear.linalg.precision import to_compute
from lens_linear.progress import watched
from lens_linear.tables import Result, cells

Basis = Literal["krylov", "balanced", "pca", "random", "krylov-stationary"]
BasisLike = Union[Basis, str, "Bases", Callable[..., Any]]
BASES: tuple[Basis, ...] = ("krylov", "balanced", "pca", "random", "krylov-stationary")

# Products come from the model's own precision: what is new in a vector below this is rounding.
_RTOL = 1e-5


@dataclass(frozen=True, eq=False)
class Bases(Result):
    """Reading and rebuilding matrices at boundaries 0 ... L.

    Attributes:
        right: columns that rebuild the state, ``x ≈ right r``.
        left: columns that read it, ``r = leftᵀ x``; ``leftᵀ right`` is the identity.
        kind: how they were made.
        hankel: for "balanced", per boundary the leading Hankel singular values, in units of readout per
            unit injected; NaN beyond those that exist. None for the others.
        seed: of random columns.
        products: ``Ā_l right_l`` where building the bases computed them anyway ("krylov"), else None.
    """

    right: Float[Tensor, "boundary d_model order"]
    left: Float[Tensor, "boundary d_model order"]
    kind: str
    hankel: Float[Tensor, "boundary order"] | None
    seed: int
    products: Float[Tensor, "layer d_model order"] | None = None

    @property
    def order(self) -> int:
        """Reduced coordinates a boundary."""
        return self.right.shape[-1]

    def __repr__(self) -> str:
        boundaries, d_model, order = self.right.shape
        return f"Bases: {self.kind}, order {order} of {d_model} at {boundaries} layer boundaries"

    def truncated(self, order: int) -> Bases:
        """Return the first ``order`` coordinates; they are what building at that order would have given."""
        order = require_int("order", order, minimum=1, maximum=self.order)
        hankel = None if self.hankel is None else self.hankel[:, :order]
        products = None if self.products is None else self.products[..., :order]
        right, left = self.right[..., :order], self.left[..., :order]
        return Bases(right, left, self.kind, hankel, self.seed, products)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a boundary and coordinate: boundary, coordinate, right_norm, left_norm, hankel."""
        right, left = self.right.norm(dim=1), self.left.norm(dim=1)
        hankel = torch.full_like(right, torch.nan) if self.hankel is None else self.hankel
        return cells(
            {"boundary": range(len(right)), "coordinate": range(self.order)},
            {"right_norm": right, "left_norm": left, "hankel": hankel},
        )


def build_bases(
    maps: BlockJacobians,
    directions: Float[Tensor, "boundary d_model"],
    readout: Float[Tensor, " d_model"],
    *,
    order: int,
    kind: BasisLike,
    seed: int = 0,
) -> Bases:
    """Build bases of any order up to d_model at every layer boundary.

    Args:
        maps: the blocks' Jacobians at the operating prompts.
        directions: v_0 ... v_L.
        readout: C.
        order: coordinates a boundary, 1 to d_model.
        kind: see the module's head; or bases, or a function that makes them.
        seed: of random columns (all of "random"; elsewhere only where a space is exhausted).

    Returns:
        Bases, float64.
    """
    if isinstance(kind, Bases):
        return _given(kind, kind.kind, directions, min(order, kind.order), seed)
    with maps.one_look():
        return _built(maps, directions, readout, order, kind, seed)


def _built(
    maps: BlockJacobians,
    directions: Float[Tensor, "boundary d_model"],
    readout: Float[Tensor, " d_model"],
    order: int,
    kind: str | Callable[..., Any],
    seed: int,
) -> Bases:
    if not isinstance(kind, str):
        made = kind(maps, directions, readout, order)
        name = getattr(kind, "__name__", type(kind).__name__)
        return _given(made, name, directions, order, seed)
    if kind == "balanced":
        return _balanced(maps, directions, readout, order, seed)
    if kind == "krylov":
        basis, products = _carried(maps, directions, order, seed)
        return Bases(basis, basis, kind, None, seed, products)
    if kind == "krylov-stationary":
        columns = _powers(maps, directions, order, seed)
    elif kind == "pca":
        states = maps.states()
        centred = states - states.mean(1, keepdim=True)
        _, sizes, rows = torch.linalg.svd(centred, full_matrices=False)
        # Fewer states than columns: what the rest of them point to is rounding, which random ones replace.
        rows = rows * (sizes > _RTOL * sizes[:, :1])[..., None]
        columns = rows.mT[..., : max(order - 1, 0)]
    else:
        columns = directions.new_zeros(*directions.shape, 0)
    basis = _orthonormal(directions, columns, order, seed)
    return Bases(basis, basis, kind, None, seed)


def _orthonormal(first: Tensor, columns: Tensor, order: int, seed: int) -> Tensor:
    """Orthonormal columns: the direction itself, then what the columns add to it, then random ones."""
    together = torch.cat([first[..., None], columns], dim=-1)
    return complete_basis(together, order=order, rtol=_RTOL, seed=seed)


def _carried(
    maps: BlockJacobians, directions: Tensor, order: int, seed: int
) -> tuple[Float[Tensor, "boundary d_model order"], Float[Tensor, "layer d_model order"]]:
    """P_{l+1} = orth [v_{l+1}, Ā_l P_l]: every basis carried through its block; also the Ā_l P_l."""
    start = directions[:1]
    whole: Tensor | None = None
    if maps.n_batches > 1:  # one pass for the whole mean Jacobian, not one a power
        eye = torch.eye(start.shape[1], dtype=start.dtype, device=start.device)
        whole = maps.mean_push(eye[None], layers=[0])[0]

    def apply(rows: Float[Tensor, "direction d_model"]) -> Tensor:
        return maps.mean_push(rows[None], layers=[0])[0] if whole is None else rows @ whole

    powers = start.new_zeros(1, start.shape[1], 0)
    if order > 1:
        powers = krylov_basis(apply, apply(start), order=order - 1, rtol=_RTOL, seed=seed).basis
    found, products = [_orthonormal(start, powers, order, seed)[0]], []
    for layer, push in enumerate(watched(maps.mean_pushes(), maps.n_layers)):
        products.append(push(found[-1].T).T)
        found.append(_orthonormal(directions[layer + 1], products[-1], order, seed))
    return torch.stack(found), torch.stack(products)


def _powers(
    maps: BlockJacobians, directions: Tensor, order: int, seed: int
) -> Float[Tensor, "boundary d_model columns"]:
    """Columns b, Ā_l b, Ā_l² b, … of every boundary; all layers share each product."""
    if order == 1:
        return directions.new_zeros(*directions.shape, 0)

    def apply(rows: Float[Tensor, "layer d_model"]) -> Tensor:
        return maps.mean_push(rows[:, None])[:, 0]

    arriving = apply(directions[:-1])
    found = krylov_basis(apply, arriving, order=order - 1, rtol=_RTOL, seed=seed).basis
    return torch.cat([found[:1], found])


def _balanced(
    maps: BlockJacobians, directions: Tensor, readout: Tensor, order: int, seed: int
) -> Bases:
    n_prompts, boundaries = len(maps.prompts), len(directions)
    # Snapshots are only needed up to their Gram matrices: what is kept is a square root of each, by QR,
    # which does not square their condition and does not grow with the prompts.
    reach = [directions.new_zeros(0, directions.shape[1])] * boundaries
    see = list(reach)
    for batch, (_, costates) in zip(maps.batches(), maps.costates(readout), strict=True):
        last = readout.expand(1, len(batch.rows), -1)
        for boundary, seen in enumerate(torch.cat([costates, last])):
            see[boundary] = _stacked(see[boundary], seen)
        for boundary, reached in enumerate(maps.reached(batch, directions)):
            reach[boundary] = _stacked(reach[boundary], reached.flatten(0, 1))
    rights, lefts, values = [], [], []
    for boundary in range(boundaries):
        found = balanced_truncation(
            reach[boundary].T / n_prompts**0.5,
            see[boundary].T / n_prompts**0.5,
            order=order,
            rtol=_RTOL,
        )
        hankel = readout.new_full((order,), float("nan"))
        hankel[: min(order, len(found.hankel))] = found.hankel[:order]
        right, left = _completed(found.right, found.left, order)
        rights.append(right)
        lefts.append(left)
        values.append(hankel)
    return Bases(torch.stack(rights), torch.stack(lefts), "balanced", torch.stack(values), seed)


def _stacked(root: Float[Tensor, "k d"], rows: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
    """A matrix with the Gram matrix of both together, of at most d rows."""
    both = torch.cat([root, rows])
    return both if len(both) <= both.shape[1] else torch.linalg.qr(both, mode="r").R


def _given(made: Any, name: str, directions: Tensor, order: int, seed: int) -> Bases:
    """Bases that somebody else made, checked: ``leftᵀ right = 1`` at every boundary."""
    if isinstance(made, Bases):
        found = made.truncated(min(order, made.order))
    else:
        right, left = made if isinstance(made, (tuple, list)) and len(made) == 2 else (made, None)
        for half in (right,) if left is None else (right, left):
            if not isinstance(half, Tensor):
                raise InvalidArgumentError(
                    f"basis {name!r} must return a tensor [boundary, d_model, order], or a pair of them, got "
                    f"{shown(made)}; return e.g. torch.stack of one matrix a boundary"
                )
        right = to_compute(require_float_tensor(f"basis {name!r}", right, ndim=3))
        if left is None:
            left = torch.linalg.pinv(right).mT
        left = to_compute(require_float_tensor(f"the left half of basis {name!r}", left, ndim=3))
        right, left = right.to(directions.device), left.to(directions.device)
        found = Bases(right[..., :order], left[..., :order], name, None, seed)
    want = (*directions.shape, found.order)
    if tuple(found.right.shape) != want or tuple(found.left.shape) != want or not found.order:
        raise InvalidArgumentError(
            f"basis {name!r} must have shape [boundary, d_model, order] = {want}, got "
            f"{tuple(found.right.shape)}; one matrix for each of the {len(directions)} layer boundaries"
        )
    eye = torch.eye(found.order, dtype=found.right.dtype, device=found.right.device)
    gap = float((found.left.mT @ found.right - eye).abs().max())
    if not gap <= 1e-6:
        raise InvalidArgumentError(
            f"basis {name!r} must have leftᵀ right = 1 at every boundary, but it misses by {gap:.2g}; return "
            "independent columns alone, or their dual beside them"
        )
    return found


def require_basis(name: str, value: Any) -> BasisLike:
    """Accept the name of a basis, ours or an installed package's, bases, or a function that makes them."""
    if isinstance(value, Bases) or (isinstance(value, str) and value in BASES):
        return value
    if callable(value) and not isinstance(value, type):
        label = getattr(value, "__name__", type(value).__name__)
        return _guarded(
            value,
            label,
            lambda reason: (
                f"{name} must be a function of maps, directions, readout and order, but {label!r} failed "
                f"({type(reason).__name__}: {reason}); mend it"
            ),
        )
    installed = added("bases", ours=BASES)
    part = installed[require_choice(name, value, (*BASES, *installed))]
    return _guarded(part.value, str(value), lambda reason: part.failed(str(value), reason))


def _guarded(
    function: Callable[..., Any], label: str, words: Callable[[Exception], str]
) -> Callable[..., Any]:
    """A function of somebody else's, its failures made into words."""

    def basis(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as reason:
            raise InvalidArgumentError(words(reason)) from reason

    basis.__name__ = label
    return basis


def _completed(
    right: Float[Tensor, "d k"], left: Float[Tensor, "d k"], order: int
) -> tuple[Float[Tensor, "d order"], Float[Tensor, "d order"]]:
    """Add coordinates from what the first ones neither rebuild nor read, keeping ``leftᵀ right = 1``."""
    k, missing = right.shape[1], order - right.shape[1]
    if missing <= 0:
        return right, left
    unread = torch.linalg.qr(left, mode="complete").Q[:, k:]
    unbuilt = torch.linalg.qr(right, mode="complete").Q[:, k:]
    # unreadᵀ unbuilt = U S Vᵀ: turned by U and V the two are dual up to the scale S.
    u, s, vh = torch.linalg.svd(unread.T @ unbuilt)
    unread, unbuilt = unread @ u, unbuilt @ vh.T / s
    return (
        torch.cat([right, unread[:, :missing]], dim=1),
        torch.cat([left, unbuilt[:, :missing]], dim=1),
    )
