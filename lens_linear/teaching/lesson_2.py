"""Checks of lesson 2: one layer, QK and OV circuits, skip-trigrams, copying."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.teaching.answers import (
    Exercise,
    Wrong,
    call,
    matches,
    name_slip,
    number,
    outgrown,
    random_integers,
    random_tensor,
    require_close,
    tensor,
)
from lens_linear.teaching.given import Thin


def softmax_rows(scores: Float[Tensor, "... query key"]) -> Float[Tensor, "... query key"]:
    """Causal softmax, one row after the other."""
    found = torch.zeros_like(scores, dtype=torch.float64)
    for row in range(scores.shape[-1]):
        found[..., row, : row + 1] = scores[..., row, : row + 1].double().softmax(-1)
    return found


def _pattern_slips(scores: Tensor) -> dict[str, Tensor]:
    """What common slips give for 3 positions and d_head 4, under what to say about each."""
    later, half = torch.ones(3, 3).triu(1).bool(), scores / 2
    return {
        "Mask the keys that come after the query: a model that predicts must not see them.": (
            half.softmax(-1)
        ),
        "Divide the scores by √d_head before the softmax.": softmax_rows(scores),
        "You mask after the softmax, so the rows no longer sum to one. Mask the scores with -inf before "
        "it.": half.softmax(-1).masked_fill(later, 0.0),
        "A score of zero still gets attention, because e⁰ = 1. Put -inf where the key comes later.": (
            half.masked_fill(later, 0.0).softmax(-1)
        ),
        "The scale is √d_head, the width of a query, not the root of their number.": (
            softmax_rows(scores / 3**0.5)
        ),
        "Take the softmax over the keys, the last axis: yours runs over the queries.": (
            half.masked_fill(later, -torch.inf).softmax(0)
        ),
        "Those are logarithms of the pattern. Take the softmax itself.": (
            half.masked_fill(later, -1e9).log_softmax(-1)
        ),
        "Those are the scores. The pattern is their softmax over the keys.": (
            half.masked_fill(later, 0.0)
        ),
        "Rows are queries, columns are keys; yours are the other way round.": softmax_rows(half).T,
        "Divide the scores by √d_head before the softmax, not the pattern after it.": (
            softmax_rows(scores) / 2
        ),
        "A query may see itself: mask the keys that come after it, not its own.": scores.new_tensor(
            [[1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
        ),
        "You mask the keys that come before the query. Mask those that come after it.": (
            half.masked_fill(later.T, -torch.inf).softmax(-1)
        ),
        "The scale is √d_head; you divide by d_head.": softmax_rows(scores / 4),
        "Mask the keys that come after the query, and divide the scores by √d_head.": (
            scores.softmax(-1)
        ),
    }


def _attention_pattern(answer: Any) -> str:
    q = torch.tensor([[0.0] * 4, [2.0, 0.0, 0.0, 0.0], [0.0] * 4])
    k = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0] * 4, [9.0] * 4])
    # Scores of query 1 over √4: 1 with key 0, 0 with key 1; key 2 comes later and does not count.
    first = float(torch.sigmoid(torch.tensor(1.0)))
    want = torch.tensor([[1.0, 0.0, 0.0], [first, 1 - first, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    got = tensor(
        call(answer, q, k, case="with 3 positions"),
        shape=(3, 3),
        what="The pattern",
        infinite="A score of -inf becomes 0 in the softmax. A row of nothing else becomes NaN: every query "
        "may see itself.",
    )
    scores = q @ k.T
    if matches(got, softmax_rows(scores.T / 2)):
        raise Wrong("Rows are queries, columns are keys; yours are the other way round.")
    name_slip(got, want, _pattern_slips(scores))
    require_close(
        got.sum(-1),
        torch.ones(3),
        "Each query's row, a softmax over the keys that it may see, should sum to one.",
        show=False,
    )
    require_close(got, want, "The pattern is not right.")
    q, k = random_tensor(6, 5, seed=1), random_tensor(6, 5, seed=2)
    got = tensor(call(answer, q, k, case="on random queries"), shape=(6, 6), what="The pattern")
    require_close(got.triu(1), torch.zeros(6, 6), "No query may see a later key.", show=False)
    for row in range(6):
        weights = torch.stack([(q[row] @ k[j] / 5**0.5).exp() for j in range(row + 1)])
        require_close(got[row, : row + 1], weights / weights.sum(), f"Row {row} is not right.")
    return "Correct. Every query spreads one unit of attention over itself and what came before."


def _qk_circuit(answer: Any) -> str:
    W_E = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    W_Q = torch.tensor([[4.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0]])
    W_K = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 5.0, 5.0]])
    # Queries: 4e0, 4e1, 4e0 + 4e1. Keys: e1, 5e2 + 5e3, their sum. √d_head = 2.
    want = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 2.0], [2.0, 0.0, 2.0]])
    got = tensor(call(answer, W_E, W_Q, W_K, case="with 3 tokens, d_head 4"), shape=(3, 3))
    if matches(got, want.T):
        raise Wrong("Transposed: rows are the query's token, columns are the key's token.")
    if matches(got, want * 2):
        raise Wrong("The scale is missing: divide by √d_head.")
    if matches(got, want * 2 / 2**0.5):
        raise Wrong("The scale is √d_head, the width of a query, not √d_model.")
    require_close(got, want, "The circuit is not right.")
    W_E, W_Q, W_K = (random_tensor(*s, seed=i) for i, s in enumerate([(7, 5), (5, 3), (5, 3)]))
    got = tensor(call(answer, W_E, W_Q, W_K, case="on random weights"), shape=(7, 7))
    for query, key in ((0, 6), (5, 2)):
        one = (W_E[query] @ W_Q) @ (W_E[key] @ W_K) / 3**0.5
        require_close(
            got[query, key], one, f"The entry of query {query} and key {key} is not right."
        )
    return "Correct. Entry [a, b]: how much a head wants to look from token a to token b."


def _ov_circuit(answer: Any) -> str:
    W_E = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    W_V, W_O = torch.tensor([[3.0], [0.0]]), torch.tensor([[0.0, 2.0]])
    W_U = torch.tensor([[1.0, 1.0, 1.0], [1.0, 10.0, 0.0]])
    # Only the first embedding dimension is read (3), and the second is written (2).
    want = torch.tensor([[6.0, 60.0, 0.0], [0.0, 0.0, 0.0], [6.0, 60.0, 0.0]])
    got = tensor(call(answer, W_E, W_V, W_O, W_U, case="with d_head 1"), shape=(3, 3))
    if matches(got, want.T):
        raise Wrong("Transposed: rows are the token that is attended to, columns the output token.")
    require_close(got, want, "The circuit is not right.")
    shapes = [(7, 5), (5, 3), (3, 5), (5, 7)]
    W_E, W_V, W_O, W_U = (random_tensor(*s, seed=i) for i, s in enumerate(shapes))
    got = tensor(call(answer, W_E, W_V, W_O, W_U, case="on random weights"), shape=(7, 7))
    written = ((W_E[4] @ W_V) @ W_O) @ W_U
    require_close(got[4], written, "The row of token 4 is not right.")
    return "Correct. Row a: what attending to token a adds to every logit."


def _head_logits(answer: Any) -> str:
    shapes = [(4, 5), (5, 3), (3, 5), (5, 6)]
    x, W_V, W_O, W_U = (random_tensor(*s, seed=10 + i) for i, s in enumerate(shapes))
    pattern = torch.tensor(
        [[1.0, 0, 0, 0], [0.25, 0.75, 0, 0], [0, 0, 1.0, 0], [0.1, 0.2, 0.3, 0.4]]
    )
    got = tensor(
        call(answer, pattern, x, W_V, W_O, W_U, case="with 4 positions"),
        shape=(4, 6),
        what="The logits",
    )
    alone = x @ W_V @ W_O @ W_U
    if matches(got, alone):
        raise Wrong("The pattern is missing: each position mixes the values of others.")
    if matches(got, pattern.T @ alone):
        raise Wrong("The pattern is transposed: its rows are the positions that receive.")
    require_close(
        got[2], alone[2], "A query with all its attention on one key gets just its value."
    )
    mixed = 0.25 * alone[0] + 0.75 * alone[1]
    require_close(got[1], mixed, "Position 1 should get a quarter of key 0 and the rest of key 1.")
    require_close(got, pattern @ alone, "The logits are not right.")
    return "Correct. The head moves information with its pattern, and translates it with OV."


def _reading(
    qk: Float[Tensor, "v v"], ov: Float[Tensor, "v out"], tokens: Int[Tensor, " n"]
) -> Float[Tensor, " out"]:
    weights = qk[tokens[-1], tokens].double().softmax(0)
    return weights @ ov[tokens].double()


def _head_on_text(answer: Any) -> str:
    qk = torch.zeros(4, 4)
    qk[3, 0] = 50.0  # from token 3 look at token 0, whatever else is there
    qk[1, 3] = 50.0  # and from token 1 at token 3: told apart from the column of token 3
    qk[1, 2], qk[2, 1], qk[2, 2] = 70.0, 50.0, 50.0  # and other tokens ask for others
    ov = torch.diag(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    tokens = torch.tensor([1, 0, 2, 3])
    got = tensor(call(answer, qk, ov, tokens, case="where token 3 looks at token 0"), shape=(4,))
    if matches(got, [0.0, 0.0, 0.0, 8.0]):
        raise Wrong(
            "You read the last token itself. The last token is the query; read what it looks at."
        )
    if matches(got, qk[tokens, tokens[-1]].softmax(0) @ ov[tokens]):
        raise Wrong(
            "You take the column of the last token. Rows of qk are queries: the last token asks, so its "
            "scores are qk[tokens[-1], tokens]."
        )
    if any(matches(got, qk[asks, tokens].softmax(0) @ ov[tokens]) for asks in tokens[:-1]):
        raise Wrong("The query is the last token, tokens[-1]; in yours another token asks.")
    if matches(got, ov[tokens].sum(0)) or matches(got, ov[tokens].mean(0)):
        raise Wrong("Weight each earlier token by its attention: softmax of its QK scores.")
    require_close(
        got, [1.0, 0.0, 0.0, 0.0], "All attention is on token 0, so its OV row should come out."
    )
    even = torch.tensor([2, 1, 1, 0])
    got = tensor(call(answer, qk, ov, even, case="with equal scores"), shape=(4,))
    if matches(got, torch.tensor([0.0, 4.0, 4.0, 0.0]) / 3):
        raise Wrong("The last token may look at itself too: it is a key like the others.")
    require_close(got, [0.25, 1.0, 1.0, 0.0], "With equal scores every position gets a quarter.")
    qk, ov = random_tensor(9, 9, seed=3), random_tensor(9, 9, seed=4)
    for tokens in (torch.tensor([3, 1, 4, 1, 5, 8, 2, 6]), torch.tensor([7])):
        got = tensor(call(answer, qk, ov, tokens, case="on random circuits"), shape=(9,))
        if matches(got, qk[tokens[-1]].softmax(0)[tokens] @ ov[tokens]):
            raise Wrong(
                "Take the softmax over the tokens of the text, not over the whole vocabulary: the "
                "weights of the positions should sum to one."
            )
        if matches(got, qk[tokens[-1], tokens].softmax(0) @ ov.T[tokens]):
            raise Wrong("Rows of ov are the tokens that are looked at: mix the rows `ov[tokens]`.")
        require_close(
            got,
            _reading(qk, ov, tokens),
            "On random circuits the mix of rows of ov, weighted by the softmax of the last token's scores, "
            "is not right.",
        )
    return "Correct. Swap two earlier tokens and nothing changes: this head has no idea of order."


def _copying_score(answer: Any) -> str:
    eye, cycle = torch.eye(3), torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    cases = [
        (2 * eye, eye, 1.0, "a head that copies every token"),
        (-eye, eye, -1.0, "a head that suppresses every token"),
        (cycle, eye, 0.0, "a head that turns each token into the next of three"),
    ]
    for A, B, want, what in cases:
        got = number(call(answer, A, B, case=f"on {what}"), what="The score")
        if want < 1 and matches(got, 1.0):
            raise Wrong(
                f"For {what} you give 1. Singular values and absolute values forget the sign: use the "
                "eigenvalues, and their real parts."
            )
        if abs(want) == 1 and matches(got, float((B @ A).trace())):
            raise Wrong("Divide the sum of the real parts by the sum of the absolute values.")
        require_close(got, want, f"The score of {what} is not right.", atol=1e-4)
    A, B = random_tensor(40, 4, seed=5), random_tensor(4, 40, seed=6)
    values = torch.linalg.eigvals(A.double() @ B.double())
    want = float(values.real.sum() / values.abs().sum())
    got = number(call(answer, A, B, case="with 40 tokens and rank 4"), what="The score")
    require_close(got, want, "The score of a random rank-4 circuit is not right.", atol=1e-4)
    sizes = [
        (random_tensor(n, 2, seed=7), random_tensor(2, n, seed=8)) for n in (2000, 200, 30_000)
    ]
    A, B = sizes[2]
    small = torch.linalg.eigvals(B.double() @ A.double())
    want = float(small.real.sum() / small.abs().sum())
    try:
        # The eigenvalues of 2,000 x 2,000 take a second, those of 2 x 2 none.
        if outgrown(answer, *sizes[:2]):
            raise MemoryError
        got = number(_without_square(answer, A, B), what="The score")
    except MemoryError:
        raise Wrong(
            "Right, but you build the whole token by token matrix, which is too large for a real "
            "vocabulary. A B and B A have the same eigenvalues apart from zeros: use the small one."
        ) from None
    require_close(got, want, "Wrong for a vocabulary of 30,000 tokens.", atol=1e-3)
    return "Correct. Near 1: what the head reads, it makes likelier. Near -1: it forbids repeats."


def _without_square(answer: Any, A: Tensor, B: Tensor) -> Any:
    """Call the answer with tensors that refuse a huge product, instead of filling the memory."""
    try:
        value = answer(A.as_subclass(Thin), B.as_subclass(Thin))
    except MemoryError:
        raise
    except Exception as error:
        raise Wrong(
            f"With 30,000 tokens your function raised {type(error).__name__}: {error}"
        ) from None
    return value.as_subclass(Tensor) if isinstance(value, Tensor) else value


def _plant(answer: Any) -> str:
    for tokens in ([2, 5, 7, 0, 3, 1, 4, 6], random_integers(0, 11, 11, seed=9)):
        _planted(answer, *tokens)
    return "Correct. Two entries, one in each circuit, make a skip-trigram."


def _planted(answer: Any, source: int, destination: int, out: int, *rest: int) -> None:
    n_vocab = len(rest) + 3
    case = f"with {n_vocab} tokens"
    result = call(answer, n_vocab, source, destination, out, case=case)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise Wrong("Return two matrices: qk and ov.")
    qk = tensor(result[0], shape=(n_vocab, n_vocab), what="qk")
    ov = tensor(result[1], shape=(n_vocab, n_vocab), what="ov")
    first, second, third, instead, last, *_ = rest
    text = torch.tensor([first, source, second, third, destination])
    armed = _reading(qk, ov, text)
    calm = _reading(qk, ov, torch.tensor([first, instead, second, third, destination]))
    other = _reading(qk, ov, torch.tensor([first, source, second, third, last]))
    swapped = _reading(qk.T, ov, text)
    gain = armed[out] - armed.mean()
    if gain < 4 and float(swapped[out] - swapped.mean()) > 4:
        raise Wrong(
            "Your qk is transposed: rows are the query (destination), columns the key (source)."
        )
    if gain < 4:
        raise Wrong(
            f"With the source in the text, the logit of `out` should rise by at least 4 above the average "
            f"after the destination; yours rises by {float(gain):.2f}. Does the destination look at the "
            "source, and does the source's OV row point at `out`?"
        )
    if float(armed.argmax()) != out:
        raise Wrong("With the source in the text, `out` should be the token that rises most.")
    if float((calm[out] - calm.mean()).abs()) > 0.5:
        raise Wrong(
            "Without the source `out` should not rise, but yours does. The source's row of OV should hold "
            "the message, not the destination's."
        )
    if float(other[out] - other.mean()) > gain / 2:
        raise Wrong(
            "After other tokens than the destination `out` should rise much less. Let only the "
            "destination look hard at the source."
        )


EXERCISES: dict[str, Exercise] = {
    "2.1": Exercise(
        _attention_pattern,
        (
            "Three steps: scores q kᵀ / √d_head, minus infinity where the key comes later, softmax over "
            "the keys.",
            "`torch.ones(n, n).triu(1).bool()` marks the later keys; `scores.masked_fill(mask, "
            "-torch.inf)`.",
        ),
    ),
    "2.2": Exercise(
        _qk_circuit,
        (
            "The query of token a is `W_E[a] @ W_Q`, the key of token b is `W_E[b] @ W_K`.",
            "All queries: `W_E @ W_Q`. All keys: `W_E @ W_K`. Queries times keys transposed, over √d_head.",
        ),
    ),
    "2.3": Exercise(
        _ov_circuit,
        (
            "Follow one attended token: embed it, take its value, write it out, unembed it.",
            "Four matrices, multiplied from left to right.",
        ),
    ),
    "2.4": Exercise(
        _head_logits,
        (
            "Values first: `x @ W_V`, one a position. Then each query mixes them by its row of the pattern.",
            "`pattern @ (x @ W_V) @ W_O @ W_U`",
        ),
    ),
    "2.5": Exercise(
        _head_on_text,
        (
            "The query is the last token. Its scores with every token of the text are "
            "`qk[tokens[-1], tokens]`.",
            "Softmax them, and mix the rows `ov[tokens]` by these weights.",
        ),
    ),
    "2.6": Exercise(
        _copying_score,
        (
            "If A B v = λ v then B A (B v) = λ (B v): the small matrix B A has the same non-zero "
            "eigenvalues.",
            "`values = torch.linalg.eigvals(B @ A)`; sum of `.real` over sum of `.abs()`.",
        ),
    ),
    "2.7": Exercise(
        _plant,
        (
            "Which entry of qk makes the destination look at the source? Which entry of ov makes the "
            "source raise `out`?",
            "All zeros but `qk[destination, source]` and `ov[source, out]`, both large, say 10.",
        ),
    ),
}
