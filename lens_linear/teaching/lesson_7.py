"""Checks of lesson 7: least squares inside attention, slow and fast memory, capacity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lens_linear.teaching.answers import (
    Exercise,
    Wrong,
    call,
    exact,
    matches,
    random_tensor,
    require_close,
    tensor,
)


def _linear_attention(answer: Any) -> str:
    q = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    k = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    v = torch.tensor([[1.0], [10.0], [100.0]])
    # Scores by hand: query 0 gives (2, 0, 1), query 1 gives (2, 2, 3).
    want = torch.tensor([[102.0], [322.0]])
    got = tensor(call(answer, q, k, v, case="with 2 queries and 3 keys"), shape=(2, 1))
    scores = q @ k.T
    if matches(got, scores.softmax(-1) @ v) or matches(got, (scores / 2**0.5).softmax(-1) @ v):
        raise Wrong(
            "There is no softmax in linear attention: the scores themselves are the weights."
        )
    if matches(got, want / 2**0.5):
        raise Wrong("Do not divide by √d here: the weights take care of every scale.")
    require_close(got, want, "The output is not right.")
    q, k, v = random_tensor(4, 3, seed=1), random_tensor(6, 3, seed=2), random_tensor(6, 2, seed=3)
    want = torch.einsum("id,jd,jm->im", q, k, v)
    got = tensor(call(answer, q, k, v, case="on random tensors"), shape=(4, 2))
    require_close(got, want, "Right on the small case, wrong on random tensors.")
    return "Correct. A weighted sum of values, with weights that may be negative and need not sum to 1."


def _inverse_root(answer: Any) -> str:
    for n, p, seed in ((2, 2, 0), (30, 4, 1), (12, 12, 2)):
        x = random_tensor(n, p, seed=seed).double()
        if n == p:
            x += 6 * torch.eye(n)  # whatever is drawn, its inverse is one that float32 can hold
        x[:, 0] *= 5
        if n == 2:
            x = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        case = f"on data with {n} rows and {p} columns"
        root = tensor(call(answer, x, case=case), what="L")
        if root.ndim != 2 or root.shape[0] != p:
            raise Wrong(
                f"L has shape {tuple(root.shape)}, but it needs one row for each of the {p} inputs."
            )
        root = exact(root, _nearest_root, x)
        gram, got = x.T @ x, root @ root.T
        identity = torch.eye(p, dtype=torch.float64)
        if matches(got, gram, rtol=1e-3):
            raise Wrong(
                "Your L Lᵀ is XᵀX itself. It should be its inverse: use Λ to the power -1/2."
            )
        if matches(got, torch.linalg.inv(gram @ gram), rtol=1e-3):
            raise Wrong(
                "Your L is the inverse of XᵀX. Asked for is a root of it: Λ to the power -1/2."
            )
        if matches(root.T @ root, torch.linalg.inv(gram), rtol=1e-3) and not matches(
            got, torch.linalg.inv(gram), rtol=1e-3
        ):
            raise Wrong("Your L is transposed: Lᵀ L is the inverse, but asked for is L Lᵀ.")
        require_close(
            got @ gram,
            identity,
            f"L Lᵀ is not the inverse of XᵀX ({case}): L Lᵀ XᵀX should be the identity.",
            atol=1e-4,
        )
    return "Correct. Any rotation of the columns of L would do as well: only L Lᵀ matters."


def _nearest_root(root: Tensor, x: Tensor) -> Tensor:
    """The root of the inverse that is a rotation away from one of them and nearest to this one."""
    values, vectors = torch.linalg.eigh(x.T @ x)
    u, _, vh = torch.linalg.svd((vectors * values.sqrt()).T @ root, full_matrices=False)
    nearest: Tensor = (vectors * values.rsqrt()) @ u @ vh
    return nearest


def _attention_regression(answer: Any) -> str:
    x = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    y = torch.tensor([[4.0], [5.0]], dtype=torch.float64)
    new = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    # The slopes are (1, 2): 2·1 + 1·2 = 4 and 1·1 + 2·2 = 5. So the answers are 3 and 2.
    got = tensor(call(answer, x, y, new, case="on two rows"), shape=(2, 1), what="The prediction")
    require_close(got, [[3.0], [2.0]], "The prediction is not right; the slopes here are 1 and 2.")
    x, new = random_tensor(40, 5, seed=4).double(), random_tensor(7, 5, seed=5).double()
    y = random_tensor(40, 2, seed=6).double()
    got = tensor(call(answer, x, y, x, case="queried at its own rows"), shape=(40, 2))
    got = exact(got, _least_squares, x, y, x)
    require_close(
        x.T @ (y - got),
        torch.zeros(5, 2),
        "At its own rows least squares leaves residuals orthogonal to every column of x; yours are "
        "not.",
        atol=1e-3,
        show=False,
    )
    got = tensor(call(answer, x, y, new, case="on 40 rows"), shape=(7, 2), what="The prediction")
    require_close(
        got, _least_squares(got, x, y, new), "Right at its own rows, wrong at new ones.", atol=1e-4
    )
    return "Correct. One attention layer, one forward pass, and the regression is done."


def _least_squares(_: Tensor, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    slopes: Tensor = torch.linalg.lstsq(x, y).solution
    return new @ slopes


def _leverage(answer: Any) -> str:
    x = torch.tensor([[1.0], [1.0], [2.0]], dtype=torch.float64)
    # One column: the leverage is x² over the sum of squares, 1/6, 1/6, 4/6.
    want = torch.tensor([1 / 6, 1 / 6, 4 / 6])
    got = tensor(call(answer, x, case="on one column (1, 1, 2)"), shape=(3,), what="The leverage")
    require_close(got, want, "The leverage of a single column is not right.")
    x = (
        random_tensor(25, 4, seed=7).double()
        @ torch.diag(torch.tensor([1.0, 3.0, 9.0, 27.0])).double()
    )
    got = tensor(call(answer, x, case="on 25 rows and 4 columns"), shape=(25,))
    require_close(got.sum(), 4.0, "The leverages should sum to the number of columns.", atol=1e-3)
    for row in (0, 11):  # leverage is how far a prediction follows its own label
        y = torch.zeros(25, 1, dtype=torch.float64)
        y[row] = 1
        own = (x @ torch.linalg.solve(x.T @ x, x.T @ y))[row, 0]
        require_close(got[row], own, f"The leverage of row {row} is not right.")
    return "Correct. It is the weight that attention gives to a row's own label."


def _running_memory(answer: Any) -> str:
    k = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 1.0]])
    v = torch.tensor([[1.0], [10.0], [100.0]])
    want = torch.tensor([[[1.0], [0.0]], [[11.0], [20.0]], [[11.0], [120.0]]])
    got = tensor(call(answer, k, v, case="with 3 tokens"), shape=(3, 2, 1), what="The memory")
    if matches(got, torch.einsum("nr,nm->nrm", k, v)):
        raise Wrong("These are the single updates. Add them up: the memory keeps what it had.")
    if matches(got, torch.cumsum(want, 0)):
        raise Wrong("You add up twice.")
    shifted = torch.cat([torch.zeros(1, 2, 1), want[:2]])
    if matches(got, shifted):
        raise Wrong("Entry t should hold tokens 0 to t, token t included; yours lags one behind.")
    require_close(got, want, "The memory is not right.")
    k, v = random_tensor(9, 4, seed=8), random_tensor(9, 3, seed=9)
    got = tensor(call(answer, k, v, case="on random tokens"), shape=(9, 4, 3), what="The memory")
    require_close(got[-1], k.T @ v, "After the last token the memory should be Kᵀ V.")
    for t in (3, 8):
        require_close(
            got[t] - got[t - 1], torch.outer(k[t], v[t]), f"The update by token {t} is not right."
        )
    return "Correct. The memory has the same size after three tokens and after three million."


def _newton_schulz(answer: Any) -> str:
    values = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    left, _ = torch.linalg.qr(random_tensor(6, 3, seed=10).double())
    right, _ = torch.linalg.qr(random_tensor(3, 3, seed=11).double())
    k = (left * values) @ right.T
    q = random_tensor(4, 3, seed=12).double()
    result = call(answer, q, k, case="with 4 queries and 6 keys")
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise Wrong("Return two tensors: the new queries and the new keys.")
    new_q = tensor(result[0], shape=(4, 3), what="The first result, the queries,")
    new_k = tensor(result[1], shape=(6, 3), what="The second result, the keys,")
    step = 1.5 * torch.eye(3, dtype=torch.float64) - 0.5 * k.T @ k
    want = values * (3 - values**2) / 2
    found = torch.linalg.svdvals(new_k)
    if matches(new_q, q @ step @ step) or (
        not matches(new_q, q @ step) and matches(new_k, k @ step)
    ):
        raise Wrong(
            "The keys are right, the queries are not. Both go through the same step, with the KᵀK of "
            "the keys as they came in."
        )
    require_close(
        found,
        want,
        "A singular value s of the keys should become s (3 - s²) / 2. Yours are not that.",
    )
    require_close(
        new_k, k @ step, "The singular values are right, but the keys themselves are not."
    )
    require_close(new_q, q @ step, "The queries are not right.")
    return "Correct. Nothing in this layer is learnt from the context, and yet it adapts to it."


def _softmax_memory(answer: Any) -> str:
    patterns = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    state = torch.tensor([[1.0, 0.0]])
    for beta in (1.0, 3.0):
        first = torch.sigmoid(torch.tensor(beta))  # weights e^β : 1
        want = torch.stack([first, 1 - first])[None]
        case = f"with beta = {beta:g}"
        got = tensor(call(answer, state, patterns, beta, case=case), shape=(1, 2))
        if matches(got, (state @ patterns.T) @ patterns):
            raise Wrong("That is linear attention. Put the softmax between the scores and the sum.")
        if beta != 1 and matches(got, torch.sigmoid(torch.tensor([[1.0, -1.0]]))):
            raise Wrong("beta is missing: the scores are multiplied by it before the softmax.")
        require_close(got, want, f"The update is not right {case}.")
    patterns, state = random_tensor(7, 5, seed=13), random_tensor(3, 5, seed=14)
    got = tensor(call(answer, state, patterns, 5000.0, case="with a large beta"), shape=(3, 5))
    nearest = patterns[(state @ patterns.T).argmax(1)]
    require_close(
        got, nearest, "For a large beta the update should return the best match.", atol=1e-2
    )
    got = tensor(call(answer, state, patterns, 1e-6, case="with a tiny beta"), shape=(3, 5))
    require_close(
        got,
        patterns.mean(0).expand(3, 5),
        "For a tiny beta it should return the average.",
        atol=1e-3,
    )
    return "Correct. One update of an exponential memory is one readout of softmax attention."


EXERCISES: dict[str, Exercise] = {
    "7.1": Exercise(
        _linear_attention,
        (
            "The scores are the dot products of each query with each key: a [queries, keys] matrix.",
            "Multiply the scores with the values. No softmax, no mask, no scale.",
        ),
    ),
    "7.2": Exercise(
        _inverse_root,
        (
            "If XᵀX = U Λ Uᵀ then (XᵀX)⁻¹ = U Λ⁻¹ Uᵀ. Split Λ⁻¹ evenly between L and Lᵀ.",
            "`values, vectors = torch.linalg.eigh(x.T @ x)`, then scale the columns of `vectors`.",
        ),
    ),
    "7.3": Exercise(
        _attention_regression,
        (
            "What are queries, keys and values? The labels are what is to be averaged.",
            "queries = x_new @ L, keys = x @ L, values = y.",
        ),
    ),
    "7.4": Exercise(
        _leverage,
        (
            "The hat matrix has entry [i, j] = (x_i L) · (x_j L). You need its diagonal.",
            "The diagonal of K Kᵀ is the sum of squares of each row of K.",
        ),
    ),
    "7.5": Exercise(
        _running_memory,
        (
            "Token t adds the outer product of its key and its value.",
            "All outer products at once: `torch.einsum('nr,nm->nrm', k, v)`; then `.cumsum(0)`.",
        ),
    ),
    "7.6": Exercise(
        _newton_schulz,
        (
            "A token h becomes 3/2 h - 1/2 (h Kᵀ) K: a residual connection and a linear attention.",
            "Take `memory = k.T @ k` once, then `1.5 * h - 0.5 * h @ memory` for h = q and h = k.",
        ),
    ),
    "7.7": Exercise(
        _softmax_memory,
        (
            "Scores `state @ patterns.T`, times beta, softmax over the patterns, then a weighted sum.",
            "`torch.softmax(beta * scores, dim=-1) @ patterns`",
        ),
    ),
}
