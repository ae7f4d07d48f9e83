"""Checks of lesson 3: two layers, composition and induction heads, then closer looks at the two heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lens_linear.teaching.answers import (
    Exercise,
    Wrong,
    call,
    matches,
    name_slip,
    number,
    random_tensor,
    require_close,
    tensor,
)
from lens_linear.teaching.lesson_2 import softmax_rows


def _copy_gain(answer: Any) -> str:
    # Period 4: predictions 1, 2, 3 are about the rest of the first copy, 5, 6, 7 of the second.
    losses = torch.tensor([[100.0, 7, 7, 7, 200, 1, 1, 1, 400, 400]])
    got = number(call(answer, losses, 4, case="with one row and period 4"), what="The gain")
    if matches(got, -6.0):
        raise Wrong("The sign is wrong: a model that gains from its context has a positive gain.")
    if matches(got, (100 + 7 * 3) / 4 - (200 + 3) / 4):
        raise Wrong(
            "Leave out the first token of each copy. The prediction about position 1 is made at position "
            "0, and nobody can make it."
        )
    if any(matches(got, (a + 200 - b - 400) / n) for a, b, n in ((21, 3, 4), (14, 2, 3))):
        raise Wrong(
            "You are one position too far: `losses[:, t]` is about the token at position t + 1, so the last "
            "token of the first copy (position p) is predicted at t = p - 1."
        )
    if matches(got, 7 - (3 + 800) / 5):
        raise Wrong(
            "Your second copy goes on to the end of the row. It ends with the token at position 2p."
        )
    require_close(got, 6.0, "With period 4 the predictions t = 1, 2, 3 and t = 5, 6, 7 count.")
    losses = random_tensor(5, 20, seed=1)
    for period in (6, 10):
        want = torch.stack([losses[:, t] for t in range(1, period)]).mean()
        want = want - torch.stack([losses[:, t] for t in range(period + 1, 2 * period)]).mean()
        got = number(call(answer, losses, period, case=f"with period {period}"), what="The gain")
        require_close(got, want, f"Right for period 4, wrong for period {period} and five rows.")
    return "Correct. Zero for a model without memory, and close to the first copy's loss for a good one."


def _pattern(n_rows: int, length: int, seed: int) -> Tensor:
    return softmax_rows(2 * random_tensor(n_rows, 2, length, length, seed=seed)).float()


def _looking_back(
    periods: Tensor, length: int, *, fixed: int | None = None, extra: int = 1
) -> Tensor:
    """A head that attends to ``period - extra`` back in repeats, or always a fixed distance back."""
    pattern = torch.zeros(len(periods), 1, length, length)
    for row, period in enumerate(periods.tolist()):
        for query in range(length):
            back = fixed if fixed is not None else (period - extra if query > period > 0 else query)
            pattern[row, 0, query, max(0, query - back)] = 1.0
    return pattern


def _excess(pattern: Tensor, periods: Tensor, first: int = 1, last: int = 0) -> Tensor:
    """Score of the queries ``p + first, ..., 2p + last``; 1 and 0 are right."""
    gaps = []
    for period in sorted(set(periods.tolist()) - {0}):
        means = []
        for kind in (period, 0):
            rows = [r for r, own in enumerate(periods.tolist()) if own == kind]
            queries = range(period + first, 2 * period + last + 1)
            cells = [pattern[r, :, q, q - period + 1] for r in rows for q in queries]
            means.append(torch.stack(cells).double().mean(0))
        gaps.append(means[0] - means[1])
    return torch.stack(gaps).mean(0)


def _induction_excess(answer: Any) -> str:
    periods = torch.tensor([4, 0, 7, 7, 4, 7, 0, 0])
    ideal = _looking_back(periods, 15)
    got = tensor(call(answer, ideal, periods, case="on an ideal induction head"), shape=(1,))
    if matches(got, [0.0]) or float(got[0]) < 0.3:
        raise Wrong(
            f"A head that attends fully to the token after the previous occurrence should score 1, but "
            f"yours gives {float(got[0]):.3g}. The key is p - 1 positions before the query, not p or p + 1."
        )
    require_close(
        got,
        [1.0],
        "A perfect induction head should score 1. Count the queries p + 1, ..., 2p only: before them there "
        "is nothing to look back at.",
    )
    duplicate = _looking_back(periods, 15, extra=0)
    got = tensor(call(answer, duplicate, periods, case="on a duplicate-token head"), shape=(1,))
    if matches(got, [1.0]):
        raise Wrong(
            "You score attention to the previous occurrence itself. An induction head attends to the token "
            "*after* it: p - 1 positions back."
        )
    fixed = _looking_back(periods, 15, fixed=6)
    got = tensor(call(answer, fixed, periods, case="on a head that looks 6 back"), shape=(1,))
    if float(got[0]) > 0.1:
        raise Wrong(
            "A head that always looks 6 positions back, whatever the tokens, should score 0, and yours "
            f"gives {float(got[0]):.3g}. Subtract the control: the same queries and the same distance in "
            "rows of period 0."
        )
    require_close(got, [0.0], "A head that always looks 6 back should score 0.")
    pattern = _pattern(len(periods), 15, seed=2)
    case = "on random attention of two heads"
    got = tensor(call(answer, pattern, periods, case=case), shape=(2,))
    want = _excess(pattern, periods)
    for first, last, queries in ((2, 0, "p + 2, ..., 2p"), (1, -1, "p + 1, ..., 2p - 1")):
        if matches(got, _excess(pattern, periods, first, last)):
            raise Wrong(
                f"You count the queries {queries}. Count p + 1, ..., 2p, both ends included."
            )
    require_close(
        got,
        want,
        "Right for ideal heads, wrong on random attention. Average over rows and queries within each "
        "period first, then over the periods, so that each period counts the same.",
    )
    return "Correct. Position alone cannot earn this score."


def _k_composition(answer: Any) -> str:
    e = torch.eye(4)
    # The writer writes direction 0; the reader's keys read directions 0 and 1 equally.
    W_V, W_O = 3 * e[:, 2:3], e[0:1]
    W_K, W_Q = 2 * e[:, 0:2], e[:, 2:4]
    got = number(call(answer, W_V, W_O, W_Q, W_K, case="with unit vectors"), what="The score")
    want = 1 / 2**0.5
    # ‖both‖ = 6, ‖writes‖ = 3, ‖reads‖ = 2√2; all largest singular values cancel to 1.
    if any(matches(got, size) for size in (6.0, 6 / 3, 6 / 8**0.5)):
        raise Wrong(
            "Divide by the norms of both parts, what is written and what is read: the score should not "
            "depend on their size."
        )
    if matches(got, 1.0):
        raise Wrong(
            "Half of what the keys read is what is written, so the score is 1/√2, and you give 1. Use the "
            "Frobenius norm (`.norm()`), not the largest singular value."
        )
    if matches(got, 0.0):
        raise Wrong(
            "What is written here is read by the keys, so the score is not 0. Is it W_K that stands next to "
            "W_O? With W_Q there it would be Q-composition."
        )
    require_close(got, want, "The score is not right on a case made of unit vectors.")
    W_V, W_O = random_tensor(9, 3, seed=3), random_tensor(3, 9, seed=4)
    W_Q, W_K = random_tensor(9, 3, seed=5), random_tensor(9, 3, seed=6)
    uneven = torch.tensor([4.0, 1.0, 0.2])  # both factors of a product count
    W_V, W_Q = W_V * uneven, W_Q * uneven
    got = number(call(answer, W_V, W_O, W_Q, W_K, case="with random weights"), what="The score")
    writes, reads = W_V @ W_O, W_K @ W_Q.T
    swapped = W_Q @ W_K.T
    sizes = [m.square().sum().sqrt() for m in (writes, reads)]
    both = torch.einsum("ij,jk->ik", writes, reads).square().sum().sqrt()
    want = float(both / sizes[0] / sizes[1])
    if matches(got, float((writes @ swapped).norm() / writes.norm() / swapped.norm())):
        raise Wrong("That is Q-composition: the writer is read by the queries. Swap W_Q and W_K.")
    require_close(got, want, "Right on unit vectors, wrong on random weights.")
    got = number(call(answer, 10 * W_V, W_O, W_Q, 3 * W_K, case="with scaled weights"))
    require_close(got, want, "The score must not change when a matrix is multiplied by a number.")
    return "Correct. Now ask what chance gives before you read meaning into it."


def _composed_qk(answer: Any) -> str:
    W_E = torch.eye(3)
    W_V = W_O = torch.eye(3)
    W_Q = torch.tensor([[2.0, 0, 0], [0, 0, 0], [0, 0, 0]])
    W_K = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0, 0, 0]])
    # Only token 0 asks, and only token 1 before the key answers: 2 · 1 / sqrt(3).
    want = torch.zeros(3, 3)
    want[0, 1] = 2 / 3**0.5
    case = "with three tokens"
    got = tensor(call(answer, W_E, W_V, W_O, W_Q, W_K, case=case), shape=(3, 3), what="The table")
    if matches(got, want.T):
        raise Wrong("Your table is transposed: the row is the query's token.")
    if matches(got, want * 3**0.5):
        raise Wrong("The scale is missing: divide by the square root of d_head.")
    require_close(got, want, "The table is not right on a case with three tokens.")
    W_E = random_tensor(6, 8, seed=7)
    W_V, W_O = random_tensor(8, 2, seed=8), random_tensor(2, 8, seed=9)
    W_Q, W_K = random_tensor(8, 2, seed=10), random_tensor(8, 2, seed=11)
    case = "with 6 tokens, d_model 8 and d_head 2"
    got = tensor(call(answer, W_E, W_V, W_O, W_Q, W_K, case=case), shape=(6, 6), what="The table")
    want = torch.zeros(6, 6)
    for a in range(6):
        for b in range(6):
            note = W_E[b] @ W_V @ W_O
            want[a, b] = (W_E[a] @ W_Q) @ (note @ W_K) / 2**0.5
    if matches(got, want * 2**0.5 / 8**0.5):
        raise Wrong("You divide by √d_model. The scale of a head is √d_head, the columns of W_Q.")
    if matches(got, want * 2**0.5):
        raise Wrong("The scale is missing: divide by the square root of d_head.")
    if matches(got, (W_E @ W_V @ W_O @ W_Q) @ (W_E @ W_K).T / 2**0.5):
        raise Wrong(
            "That is Q-composition: your queries read what the writer wrote. Here the keys read it."
        )
    if matches(got, (W_E @ W_Q) @ (W_E @ W_K).T / 2**0.5):
        raise Wrong("That is the reader's own QK circuit: the writer's W_V W_O is missing.")
    require_close(got, want, "Right on three tokens, wrong on random weights.", show=False)
    return "Correct. A large diagonal means: I look for keys that stood after a token like me."


def _without_heads(answer: Any) -> str:
    z, mean = random_tensor(2, 3, 4, 5, seed=12), random_tensor(4, 5, seed=13)
    case, spoilt = "without heads 1 and 3", "You changed z itself. Work on a copy: `z.clone()`."
    got = tensor(call(answer, z, [1, 3], mean, case=case, untouched=spoilt), shape=(2, 3, 4, 5))
    zeroed, full = z.clone(), z.clone()
    for head in (1, 3):
        zeroed[:, :, head] = 0
        full[:, :, head] = mean[head]
    if matches(got, zeroed):
        raise Wrong("That is zero ablation. Put the heads' means in their place.")
    others = [0, 2]
    require_close(got[:, :, others], z[:, :, others], "Heads 0 and 2 should stay as they were.")
    require_close(
        got, full, "Heads 1 and 3 should hold their own rows of `mean` at every row and position."
    )
    got = tensor(call(answer, z, [], mean, case="with no head named"), shape=(2, 3, 4, 5))
    require_close(got, z, "With no head named nothing should change.")
    return "Correct. What the head always says stays; what it says about this context is gone."


def _cut_path(answer: Any) -> str:
    W_K, bias = random_tensor(6, 3, seed=14), random_tensor(3, seed=15)
    parts = [random_tensor(2, 4, 6, seed=seed) for seed in (16, 17, 18)]
    scale = 0.5 + random_tensor(2, 4, 1, seed=19).abs()
    stream = parts[0] + parts[1] + parts[2]
    keys = stream / scale @ W_K + bias
    want = (parts[0] + parts[2]) / scale @ W_K + bias
    case = "with three writers"
    got = tensor(call(answer, keys, parts[1], W_K, scale, case=case), shape=(2, 4, 3), what="Keys")
    if matches(got, keys - parts[1] @ W_K):
        raise Wrong("The norm is missing: what was written reached the keys divided by `scale`.")
    if matches(got, parts[1] / scale @ W_K):
        raise Wrong(
            "That is what the written part adds to the keys. Return the keys without it: subtract it."
        )
    if matches(got, keys + parts[1] / scale @ W_K):
        raise Wrong("You add the path once more. Subtract it.")
    require_close(got, want, "The keys should be those of the stream without the written part.")
    twice = tensor(call(answer, want, parts[2], W_K, scale, case="(a second cut)"), shape=(2, 4, 3))
    only = parts[0] / scale @ W_K + bias
    require_close(twice, only, "Two cuts, one after the other, should take away both writers.")
    return "Correct. Every other path of the model is left as it was."


def _positional_pattern(answer: Any) -> str:
    W_pos, W_Q, W_K = random_tensor(5, 6, seed=20) / 2, *random_tensor(2, 6, 9, seed=21)
    root = 9**0.5  # of d_head
    scale = torch.tensor([1.0, 0.5, 2.0, 0.25, 1.5])
    case = "with 5 positions and d_head 9"
    got = tensor(call(answer, W_pos, W_Q, W_K, scale, case=case), shape=(5, 5), what="The pattern")
    bare = torch.stack([(W_pos[i] @ W_Q) @ (W_pos @ W_K).T for i in range(5)])
    scores = bare / scale[:, None] / scale[None] / root
    slips = {
        "The norm is missing: divide each position vector by its own scale.": bare / root,
        "Both sides are read through the norm: divide the queries and the keys by their scales.": (
            bare / scale[:, None] / root
        ),
        "The keys are divided by their scale, the queries are not.": bare / scale[None] / root,
        "The scale of a head is missing: divide the scores by √d_head.": scores * root,
        "You divide by √d_model. The scale of a head is √d_head, the columns of W_Q.": (
            scores * root / 6**0.5
        ),
        "Rows are queries, columns are keys; yours are the other way round.": scores.T,
    }
    want = softmax_rows(scores)
    name_slip(got, want, {said: softmax_rows(slip) for said, slip in slips.items()})
    if matches(got, scores.softmax(-1)) or bool((got.triu(1).abs() > 1e-6).any()):
        raise Wrong("No query may see a later key: put -inf there before the softmax.")
    require_close(got, want, "The pattern is not right.")
    got = tensor(
        call(answer, W_pos, 0 * W_Q, W_K, scale, case="with queries of zero"), shape=(5, 5)
    )
    require_close(got, softmax_rows(0 * scores), "With equal scores each query spreads evenly.")
    return "Correct. What is left of a head when there are no words."


def _top1(table: Tensor) -> float:
    hits = [float(row[i] == row.max()) for i, row in enumerate(table)]
    return sum(hits) / len(hits)


def _ov_top1(answer: Any) -> str:
    # One head puts tokens 0 and 1 first, the other 2 and 3; together four of five. No two entries are equal.
    noise = 0.01 * random_tensor(2, 5, 5, seed=21)
    first = torch.diag(torch.tensor([2.0, 2.0, -0.5, -0.5, -0.5])) + noise[0]
    second = torch.diag(torch.tensor([-0.5, -0.5, 3.0, 3.0, -1.0])) + noise[1]
    first[2:, 0] += 1.0
    second[:2, 4] += 0.5
    eye = torch.eye(5)
    for tables, what in (([first], "one head"), ([second], "another"), ([first, second], "both")):
        got = number(
            call(answer, list(tables), [eye] * len(tables), case=f"with {what}"), what="The share"
        )
        want = _top1(sum(tables[1:], tables[0]))
        single = sum(_top1(t) for t in tables) / len(tables)
        if matches(got, 100 * want):
            raise Wrong("Return a share between 0 and 1, not a percentage.")
        if matches(got, want * 5):
            raise Wrong("That is how many tokens come first. Divide by how many there are.")
        if matches(got, single) and not matches(single, want):
            raise Wrong(
                "You average the heads' own shares. Add their circuits first, then look for the largest."
            )
        require_close(got, want, f"The share is not right with {what}, on five tokens.")
    A = [random_tensor(30, 3, seed=22 + i) for i in range(3)]
    B = [a.T + 0.7 * random_tensor(3, 30, seed=32 + i) for i, a in enumerate(A)]
    table = torch.zeros(30, 30)
    for a, b in zip(A, B, strict=True):
        table += a @ b
    got = number(call(answer, A, B, case="with three random heads"), what="The share")
    if matches(got, _top1(table.T)) and not matches(_top1(table.T), _top1(table)):
        raise Wrong("You look along the columns. A row is what attending to one token adds.")
    require_close(got, _top1(table), "Right for small heads, wrong for three random ones.")
    return "Correct. A plain question beside the eigenvalues: does the token itself come first?"


def _score_by_writer(answer: Any) -> str:
    query, parts, W_K = (
        random_tensor(3, seed=40),
        random_tensor(5, 6, seed=41),
        random_tensor(6, 3, seed=42),
    )
    want = torch.stack([(part @ W_K) @ query for part in parts]) / 3**0.5
    got = tensor(
        call(answer, query, parts, W_K, case="with 5 writers and d_head 3"), what="The shares"
    )
    if got.numel() == 1:
        raise Wrong("That is the whole score. Return one share for each writer.")
    if tuple(got.shape) != (5,):
        raise Wrong(
            f"Return one number for each of the 5 writers; yours has shape {tuple(got.shape)}."
        )
    if matches(got, want * 3**0.5):
        raise Wrong("The scale is missing: divide by √d_head.")
    if matches(got, want * 3**0.5 / 6**0.5):
        raise Wrong(
            "You divide by √d_model. The scale of a head is √d_head, the length of the query."
        )
    if matches(got, want.softmax(0)):
        raise Wrong(
            "Leave the softmax out: shares of a *score* add up, shares of attention do not."
        )
    require_close(got, want, "The shares are not right.")
    total = parts.sum(0) @ W_K @ query / 3**0.5
    require_close(got.sum(), total, "The shares should sum to the score of the whole stream.")
    return "Correct. Scores are linear in what the key reads, so they split without a remainder."


def _logit_attribution(answer: Any) -> str:
    parts, W_U = random_tensor(3, 4, 6, seed=43), random_tensor(6, 9, seed=44)
    W_U = W_U + torch.linspace(0, 2, 6)[:, None]  # the mean logit is not zero
    targets = torch.tensor([8, 0, 3, 3])
    rows = torch.stack([torch.stack([p[t] @ W_U[:, targets[t]] for t in range(4)]) for p in parts])
    means = torch.stack([torch.stack([(p[t] @ W_U).mean() for t in range(4)]) for p in parts])
    case = "with 3 writers and 4 positions"
    got = tensor(call(answer, parts, W_U, targets, case=case), what="The table")
    if tuple(got.shape) == (4,):
        raise Wrong("That is the sum over writers. Keep one row for each writer.")
    if tuple(got.shape) != (3, 4):
        raise Wrong(
            f"The table has shape {tuple(got.shape)}; it should be [writer, position], (3, 4)."
        )
    if matches(got, rows):
        raise Wrong("Take away the mean logit that the writer adds at that position.")
    log_probs = torch.stack(
        [(p @ W_U).log_softmax(-1).gather(1, targets[:, None])[:, 0] for p in parts]
    )
    if matches(got, log_probs):
        raise Wrong("No softmax here: log-probabilities of parts do not add up, logits do.")
    require_close(got, rows - means, "The table is not right.")
    return "Correct. All writers together are the model's own logit, above its mean."


def _virtual_logits(answer: Any) -> str:
    first, second = (softmax_rows(random_tensor(4, 4, seed=i)).float() for i in (45, 46))
    x, (one, two) = random_tensor(4, 5, seed=47), (random_tensor(5, 5, seed=i) for i in (48, 49))
    W_U = random_tensor(5, 7, seed=50)
    case = "with 4 positions and 7 tokens"
    got = tensor(
        call(answer, first, second, x, one, two, W_U, case=case), shape=(4, 7), what="The logits"
    )
    moved = torch.zeros(4, 5, dtype=torch.float64)
    for q in range(4):
        for k in range(4):
            moved[q] += float(first[q, k]) * (x[k].double() @ one.double())
    want = torch.zeros(4, 7, dtype=torch.float64)
    for q in range(4):
        for k in range(4):
            want[q] += float(second[q, k]) * (moved[k] @ two.double() @ W_U.double())
    both = one @ two @ W_U
    slips = {
        "The patterns are in the wrong order: the first head has moved before the second one looks.": (
            first @ second @ x @ both
        ),
        "The OV circuits are in the wrong order: rows pass through the first head's first.": (
            second @ first @ x @ two @ one @ W_U
        ),
        "That is the second head alone: the chain reads what the first head wrote.": (
            second @ x @ two @ W_U
        ),
        "That is the first head alone: the second one moves it on.": first @ x @ one @ W_U,
        "The patterns are multiplied entry by entry; the chain is a matrix product.": (
            (second * first) @ x @ both
        ),
    }
    name_slip(got, want, slips)
    require_close(got, want, "The logits are not right.")
    return "Correct. Two heads in a row are one, with the products of patterns and of circuits."


EXERCISES: dict[str, Exercise] = {
    "3.1": Exercise(
        _copy_gain,
        (
            "Write down the tokens of a row with period 4, positions 0 to 8. Which prediction, made at "
            "which t, is about which position?",
            "The first copy fills positions 1 to p. Without its first token, positions 2 to p, predicted "
            "at t = 1 to p - 1.",
            "`losses[:, 1:period]` against the same slice shifted by `period`.",
        ),
    ),
    "3.2": Exercise(
        _induction_excess,
        (
            "Write it with loops first: for each period, for the rows of that period, for q in "
            "range(p + 1, 2 * p + 1), the cell `pattern[row, :, q, q - p + 1]`.",
            "The control is the same loop over the rows with `periods == 0`.",
            "`pattern.diagonal(-(p - 1), dim1=-2, dim2=-1)` holds all cells p - 1 left of the diagonal; its "
            "entry i is query p - 1 + i.",
        ),
    ),
    "3.3": Exercise(
        _k_composition,
        (
            "Multiply out two matrices of shape [d_model, d_model]: what is written, `W_V @ W_O`, and what "
            "the keys read, `W_K @ W_Q.T`.",
            "`(writes @ reads).norm() / (writes.norm() * reads.norm())`.",
        ),
    ),
    "3.4": Exercise(
        _composed_qk,
        (
            "Build a table of queries, one row a token, and a table of keys, one row a token.",
            "Keys: `W_E @ W_V @ W_O @ W_K`. Then all dot products at once: `queries @ keys.T`, divided by "
            "the root of the number of columns of W_Q.",
        ),
    ),
    "3.5": Exercise(
        _without_heads,
        (
            "A list of heads can be an index: `changed[:, :, heads]`.",
            "`mean[heads]` has shape [heads named, d_head] and spreads over rows and positions by itself.",
        ),
    ),
    "3.6": Exercise(
        _cut_path,
        (
            "The keys are a sum: one part for each writer into the stream, plus the bias.",
            "The part of one writer is `written / scale @ W_K`.",
        ),
    ),
    "3.7": Exercise(
        _positional_pattern,
        (
            "It is the pattern of exercise 2.1, of a stream that holds positions only.",
            "`reads = W_pos / scale[:, None]`, then queries `reads @ W_Q` and keys `reads @ W_K`.",
        ),
    ),
    "3.8": Exercise(
        _ov_top1,
        (
            "The summed circuit of two heads is `A[0] @ B[0] + A[1] @ B[1]`, one table.",
            "`table.argmax(dim=1)` is the token that each row raises most; compare with `torch.arange(n)`.",
        ),
    ),
    "3.9": Exercise(
        _score_by_writer,
        (
            "Each writer's part of the key is `parts[w] @ W_K`.",
            "All at once: `parts @ W_K @ query`, over the root of the query's length.",
        ),
    ),
    "3.10": Exercise(
        _logit_attribution,
        (
            "`parts @ W_U` are the logits of every writer at every position.",
            "`logits.gather(-1, index)` picks the targets; `index` is `targets` once per writer, with "
            "a last axis of one. Then subtract `logits.mean(dim=-1)`.",
        ),
    ),
    "3.11": Exercise(
        _virtual_logits,
        (
            "After the first head, position k holds `first[k] @ x @ first_OV`.",
            "The second head reads that: `second @ (first @ x @ first_OV) @ second_OV @ W_U`.",
        ),
    ),
}
