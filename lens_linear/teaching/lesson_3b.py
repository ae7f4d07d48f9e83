"""Checks of the second half of lesson 3: closer looks at the two heads of an induction circuit."""

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
    softmax_rows,
    tensor,
)


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
