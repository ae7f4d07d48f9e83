"""Checks of lesson 6 (depth as time: sensitivity and steering)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lens_linear.teaching.answers import (
    Exercise,
    Wrong,
    call,
    exact,
    half_format,
    matches,
    number,
    outgrown,
    random_tensor,
    require_close,
    tensor,
)
from lens_linear.teaching.given import Counted, cubic


def _mean_difference(answer: Any) -> str:
    states = torch.tensor(
        [[[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]], [[1.0, 0.0], [1.0, 1.0], [1.0, 3.0]]]
    )
    labels = torch.tensor([0, 1, 1])
    # Boundary 0: (3, 4) of length 5. Boundary 1: (1, 2) - (1, 0) = (0, 2).
    got = tensor(call(answer, states, labels, case="on 3 texts"), shape=(2, 2))
    want = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    if matches(got, -want):
        raise Wrong("The directions should point from class 0 to class 1; yours point back.")
    if matches(got, torch.tensor([[3.0, 4.0], [0.0, 2.0]])):
        raise Wrong("Divide each row by its length: gains are per unit of direction.")
    if matches(got, torch.tensor([[3.0, 4.0], [0.0, 2.0]]) / 29**0.5):
        raise Wrong("You divide by the length of the whole table. Each row has its own: dim=1.")
    require_close(got, want, "The directions of 3 texts are not right.")
    states, labels = random_tensor(4, 30, 6, seed=1), torch.arange(30) % 3 == 0
    got = tensor(call(answer, states, labels.long(), case="on 30 texts"), shape=(4, 6))
    require_close(got.norm(dim=1), torch.ones(4), "Each row should have length 1.")
    rows = states[:, labels].double().mean(1) - states[:, ~labels].double().mean(1)
    want = rows / rows.norm(dim=1, keepdim=True)
    require_close(got, want, "Right on 3 texts, wrong when the classes are of unequal size.")
    return "Correct. One unit vector for each layer boundary."


def _auc(answer: Any) -> str:
    scores = torch.tensor([1.0, 5.0, 2.0, 4.0, 3.0])
    labels = torch.tensor([0, 1, 0, 0, 1])
    # Pairs of a 1 (5, 3) and a 0 (1, 2, 4): 5 beats all three, 3 beats two.
    got = number(call(answer, scores, labels, case="on 5 texts"), what="The AUC")
    if matches(got, 1 / 6):
        raise Wrong("Upside down: count the pairs in which the text of class 1 scores higher.")
    require_close(got, 5 / 6, "The AUC of 5 texts is not right: 5 of 6 pairs are in order.")
    got = number(call(answer, 3 * scores - 100, labels, case="on rescaled scores"))
    require_close(got, 5 / 6, "Only the order counts: another scale should change nothing.")
    tied = torch.tensor([1.0, 1.0, 1.0, 2.0])
    got = number(call(answer, tied, torch.tensor([0, 1, 0, 1]), case="with ties"), what="The AUC")
    if matches(got, 0.5) or matches(got, 1.0):
        raise Wrong("A pair with equal scores counts one half.")
    require_close(got, 0.75, "With ties the AUC is not right.")
    got = number(call(answer, -scores, labels, case="on scores turned round"), what="The AUC")
    if matches(got, 5 / 6):
        raise Wrong(
            "With all scores turned round it should be 1/6. An AUC below one half says that the "
            "direction points the wrong way; do not hide it."
        )
    require_close(got, 1 / 6, "With all scores turned round the AUC is not right.")
    _many_ties(answer)
    return "Correct. One half is chance, one is perfect, zero is perfect and upside down."


def _many_ties(answer: Any) -> None:
    scores = (3 * random_tensor(60, seed=12)).round() % 3  # three values only
    labels = (random_tensor(60, seed=13) > 0).long()
    pairs = scores[labels == 1][:, None] - scores[labels == 0]
    want = float(((pairs > 0).double() + (pairs == 0).double() / 2).mean())
    for order in (torch.arange(60), labels.argsort(), (-labels).argsort()):
        got = number(call(answer, scores[order], labels[order], case="with many ties"))
        require_close(
            got,
            want,
            "Where many texts have the same score the AUC is not right: a pair with equal scores counts "
            "one half, whichever of the two comes first. With ranks, equal scores share their mean rank.",
        )


def _central_difference(answer: Any) -> str:
    x, v = torch.tensor([2.0, 0.0]).double(), torch.tensor([1.0, 0.0]).double()
    # ((2 + e)³ - (2 - e)³) / 2e = 12 + e².
    for eps in (0.1, 1.0, 0.01):
        got = number(call(answer, cubic, x, v, eps, case=f"with eps = {eps:g}"), what="The gain")
        if eps >= 0.1 and matches(got, 12 + 6 * eps + eps**2):
            raise Wrong("That is a one-sided difference. Take one step forward and one back.")
        if matches(got, (12 + eps**2) * 2):
            raise Wrong("From -eps to +eps it is two steps: divide by 2 eps.")
        if matches(got, (12 + eps**2) * 2 * eps):
            raise Wrong("Divide by the distance between the two points, 2 eps.")
        near = " Half precision loses the difference of two numbers so close: use float32." * (
            half_format() is not None
        )
        said = f"The gain of x³ at 2 is not right with eps = {eps:g}.{near}"
        require_close(got, 12 + eps**2, said)
    v = torch.tensor([0.0, 3.0]).double()
    got = number(call(answer, cubic, x, v, 0.1, case="along another direction"), what="The gain")
    require_close(got, 6.0, "Along (0, 3) the function rises by 6 for each unit of the direction.")
    x, v = random_tensor(2, 2, seed=17).double()
    want = float((3 * x[0] ** 2 + 0.5**2 * v[0] ** 2) * v[0] + 2 * v[1])
    got = number(call(answer, cubic, x, v, 0.5, case="at another point"), what="The gain")
    require_close(got, want, "Right at (2, 0), wrong at another point and along another direction.")
    return "Correct. On a curved function the answer depends on eps; on a straight one it does not."


def _oracle(A: Tensor, v: Tensor, C: Tensor, bases: list[Tensor] | None = None) -> Tensor:
    """All gains, a sweep each; of a state that is projected on its basis after every layer, if any."""
    found = []
    for k in range(len(A)):
        x = v[k]
        for layer in range(k, len(A)):
            x = A[layer] @ x
            x = x if bases is None else bases[layer + 1] @ (bases[layer + 1].T @ x)
        found.append(C @ x)
    return torch.stack(found)


def _adjoint_gains(answer: Any) -> str:
    A = torch.tensor([[[0.0, 2.0], [1.0, 0.0]], [[2.0, 1.0], [0.0, 3.0]]])
    v = torch.tensor([[1.0, 0.0], [1.0, 1.0], [9.0, 9.0]])
    C = torch.tensor([1.0, 10.0])
    # v_0 = (1, 0) becomes (0, 1), then (1, 3): 31. v_1 = (1, 1) becomes (3, 3): 33.
    got = tensor(call(answer, A, v, C, case="with 2 layers"), shape=(2,), what="The gains")
    if matches(got, [33.0, 31.0]):
        raise Wrong("The gains are in the wrong order: entry 0 belongs to layer 0.")
    if matches(got, _oracle(A.mT, v, C)):
        raise Wrong("A column is multiplied from the left: x_{l+1} = A_l x_l, so take C @ A_l.")
    later = torch.stack([C @ A[1] @ v[0], C @ v[1]])
    if matches(got, later):
        raise Wrong("v_k enters *before* block k: the Jacobian of block k itself acts on it too.")
    require_close(got, [31.0, 33.0], "The gains of the 2 layers are not right.")
    A, v, C = random_tensor(5, 4, 4, seed=2), random_tensor(6, 4, seed=3), random_tensor(4, seed=4)
    got = tensor(call(answer, A, v, C, case="with 5 layers"), shape=(5,), what="The gains")
    require_close(got, _oracle(A, v, C), "Right with 2 layers, wrong with 5.", atol=1e-3)
    _one_sweep(answer)
    return "Correct. One sweep from the end to the start gives all of them."


_QUADRATIC = (
    "Right, but not in one sweep: with L layers you take some L² / 2 products. Carry one row from the end "
    "to the start, and use it for every gain on the way."
)


def _layers(n: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        random_tensor(n, 3, 3, seed=14) / 3,
        random_tensor(n + 1, 3, seed=15) / 3,
        random_tensor(3, seed=16) / 3,
    )


def _one_sweep(answer: Any) -> None:
    """Products of torch are counted; of any other kind, time must not grow with the square of the layers."""
    plain = _layers(60)
    budget = [6 * 60]  # a sweep takes two products a layer; all pairs of layers take 1,830
    given = [part.as_subclass(Counted) for part in plain]
    for part in given:
        part.spent = budget
    try:
        got = answer(*given)
        slow = outgrown(answer, _layers(400), _layers(40))  # some 0.005 s, or 0.3 s and more
    except MemoryError:
        raise Wrong(_QUADRATIC) from None
    except Exception as error:
        raise Wrong(
            f"With 60 layers your function raised {type(error).__name__}: {error}"
        ) from None
    if slow:
        raise Wrong(_QUADRATIC)
    got = tensor(got, shape=(60,), what="The gains")
    require_close(got, _oracle(*plain), "Right with 5 layers, wrong with 60.", atol=1e-3)


def _next_basis(answer: Any) -> str:
    A, v = torch.eye(3).double() * 2, torch.tensor([0.0, 0.0, 3.0]).double()
    P = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).double()
    _basis(answer, A, P, v, 3, "in three dimensions")
    for order in (3, 5):
        A = random_tensor(8, 8, seed=5).double()
        P, _ = torch.linalg.qr(random_tensor(8, order - 1, seed=6).double())
        _basis(answer, A, P, random_tensor(8, seed=7).double(), order, f"with {order} columns")
    return "Correct. Whatever could be described before the block still can be after it."


def _basis(answer: Any, A: Tensor, P: Tensor, v: Tensor, order: int, case: str) -> None:
    got = tensor(call(answer, A, P, v, case=case), what="The basis")
    if got.ndim != 2 or len(got) != len(v):
        raise Wrong(
            f"The basis has shape {tuple(got.shape)}; it needs one row for each of {len(v)}."
        )
    if got.shape[1] != order:
        raise Wrong(
            f"The basis has {got.shape[1]} columns, but it should have {order}: one for v and one for "
            "each column of P."
        )
    got = exact(got, _nearest_basis, A, P, v)
    identity = torch.eye(order, dtype=torch.float64)
    require_close(
        got.T @ got, identity, "The columns should be orthonormal.", atol=1e-4, show=False
    )
    first = (got[:, 0] @ v).abs() / v.norm()
    if abs(float(first) - 1) > 1e-4:
        raise Wrong("The first column should be v, scaled to length 1.")
    pushed = A @ P
    left = pushed - got @ (got.T @ pushed)
    if float(left.norm()) > 1e-4 * float(pushed.norm()):
        raise Wrong(
            "A P does not lie in the span of your columns: carry P through the block first."
        )


def _nearest_basis(got: Tensor, A: Tensor, P: Tensor, v: Tensor) -> Tensor:
    """The nearest orthonormal columns of the span whose first is v or its opposite."""
    found = torch.linalg.qr(torch.cat([v[:, None], A @ P], dim=1))[0]
    first, rest = found[:, :1], found[:, 1:]
    u, _, vh = torch.linalg.svd(rest.T @ got[:, 1:], full_matrices=False)
    return torch.cat([first * (first.T @ got[:, :1]).sign(), rest @ u @ vh], dim=1)


def _reduced_gains(answer: Any) -> str:
    A, v, C = random_tensor(4, 6, 6, seed=8), random_tensor(5, 6, seed=9), random_tensor(6, seed=10)
    A, v, C = A.double(), v.double(), C.double()
    full = [torch.eye(6).double() for _ in range(5)]
    got = tensor(call(answer, A, v, C, full, case="with a full basis"), shape=(4,))
    require_close(got, _oracle(A, v, C), "With a full basis nothing may be lost.", atol=1e-3)
    # As in the notebook the first basis holds one column, and later ones more.
    bases = [
        torch.linalg.qr(random_tensor(6, columns, seed=20 + k).double())[0]
        for k, columns in enumerate((1, 2, 3, 3, 2))
    ]
    got = tensor(call(answer, A, v, C, bases, case="with 1 to 3 coordinates"), shape=(4,))
    if matches(got, _oracle(A, v, C), atol=1e-3):
        raise Wrong("These are the exact gains: the bases are not used.")
    projected = torch.stack([bases[k] @ bases[k].T @ v[k] for k in range(4)])
    if matches(got, _oracle(A, projected, C, bases), atol=1e-3):
        raise Wrong(
            "You project v_k before block k as well. It enters in full: B_k = P_{k+1}ᵀ A_k v_k."
        )
    want = _oracle(A, v, C, bases)
    require_close(got, want, "With few coordinates the gains are not right.", atol=1e-3)
    return "Correct. Small matrices stand for large ones, and the price is what the bases miss."


def _min_energy(answer: Any) -> str:
    h = torch.tensor([3.0, 4.0])
    got = tensor(call(answer, h, 10.0, case="with gains 3 and 4"), shape=(2,), what="The schedule")
    if matches(got, [6.0, 8.0]):
        raise Wrong("Right direction, wrong size: divide by ‖h‖², not by ‖h‖.")
    if matches(got, [0.0, 2.5]):
        raise Wrong(
            "All into the best layer is not the cheapest: its energy is 6.25, yours could be 4."
        )
    if not matches((got * h.double()).sum(), 10.0, atol=1e-3):
        raise Wrong(
            f"The predicted shift h · u is {float((got * h.double()).sum()):.4g}, but it should be 10."
        )
    require_close(got, [1.2, 1.6], "It reaches the target, but a cheaper schedule does too.")
    h = random_tensor(7, seed=11) - 0.5
    got = tensor(call(answer, h, -2.0, case="with 7 layers and a negative target"), shape=(7,))
    want = -2 * h.double() / h.double().square().sum()
    require_close(got, want, "With 7 layers the schedule is not the cheapest one.")
    return "Correct. Each layer gets a share that is proportional to its gain."


EXERCISES: dict[str, Exercise] = {
    "6.1": Exercise(
        _mean_difference,
        (
            "Average over the texts of class 1 and over those of class 0, at every boundary.",
            "`states[:, labels == 1].mean(1) - states[:, labels == 0].mean(1)`, then divide each row "
            "by its norm.",
        ),
    ),
    "6.2": Exercise(
        _auc,
        (
            "Compare every text of class 1 with every text of class 0.",
            "`ones[:, None] > zeros[None, :]` is a table of all pairs; its mean is nearly the answer.",
            "Add one half of the share of pairs that are equal.",
        ),
    ),
    "6.3": Exercise(
        _central_difference,
        (
            "Evaluate f at x + eps v and at x - eps v.",
            "The two points are 2 eps apart, in units of v.",
        ),
    ),
    "6.4": Exercise(
        _adjoint_gains,
        (
            "Carry a row from the end to the start: begin with C, and at each layer multiply by A_l "
            "from the right.",
            "After the row has passed block k, its product with v_k is the gain of layer k.",
        ),
    ),
    "6.5": Exercise(
        _next_basis,
        (
            "Put v and A @ P side by side: `torch.cat([v[:, None], A @ P], dim=1)`.",
            "`torch.linalg.qr` makes the columns orthonormal and keeps the first one in its place, up "
            "to its sign.",
        ),
    ),
    "6.6": Exercise(
        _reduced_gains,
        (
            "Small matrices: Ā_l = P_{l+1}ᵀ A_l P_l, and B̄_l = P_{l+1}ᵀ A_l v_l; C̄ = C P_L.",
            "The gain of layer k is C̄ Ā_{L-1} … Ā_{k+1} B̄_k: the same backward sweep, begun with C̄.",
        ),
    ),
    "6.7": Exercise(
        _min_energy,
        (
            "Of all u with h · u = Δy the shortest is the one that points along h.",
            "Put u = c h and solve h · u = Δy for c.",
        ),
    ),
}
