"""Checks of lesson 1: bigrams, the zero-layer transformer."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lens_linear.teaching.answers import (
    Exercise,
    Wrong,
    call,
    exact,
    generator,
    matches,
    number,
    random_tensor,
    require_close,
    tensor,
)


def _bigram_logits(answer: Any) -> str:
    W_E = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    W_U = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]])
    b_U = torch.tensor([10.0, 20.0, 30.0])
    # By hand: token 1 is (0, 2), so its logits are 2 · (0, 1, 0) + (10, 20, 30).
    want = torch.tensor([[11.0, 22.0, 33.0], [10.0, 22.0, 30.0], [11.0, 23.0, 33.0]])
    got = tensor(call(answer, W_E, W_U, b_U, case="with 3 tokens and width 2"), shape=(3, 3))
    if matches(got, want - b_U):
        raise Wrong("The product is right, but the unembedding bias b_U is missing.")
    if matches(got, want.T) or matches(got, (want - b_U).T + b_U):
        raise Wrong(
            "Your table is transposed: rows are the current token, columns are the next token."
        )
    if matches(got, want - b_U + b_U[:, None]):
        raise Wrong("b_U belongs to the next token, so it is added along columns, not along rows.")
    require_close(got, want, "The logits are not right.")
    W_E, W_U, b_U = random_tensor(7, 3, seed=1), random_tensor(3, 7, seed=2), random_tensor(7)
    got = tensor(call(answer, W_E, W_U, b_U, case="with 7 tokens and width 3"), shape=(7, 7))
    rows = torch.stack([sum(W_E[a, i] * W_U[i] for i in range(3)) + b_U for a in range(7)])
    require_close(got, rows, "Right on the small case, wrong on random weights.", show=False)
    return "Correct. This table is the whole model: nothing else happens between input and output."


def _bigram_table(answer: Any) -> str:
    tokens = torch.tensor([[0, 1, 0, 1, 0], [2, 1, 1, 1, 0]])
    # Pairs inside rows: 0→1 twice, 1→0 three times, 1→1 twice, 2→1 once; nothing follows token 3.
    want = torch.tensor(
        [[0, 1, 0, 0], [0.6, 0.4, 0, 0], [0, 1, 0, 0], [0.25, 0.25, 0.25, 0.25]],
        dtype=torch.float64,
    )
    got = tensor(call(answer, tokens, 4, case="with 4 tokens"), shape=(4, 4), what="The table")
    crossed = want.clone()
    crossed[0] = torch.tensor([0.0, 2 / 3, 1 / 3, 0.0])
    if matches(got, crossed):
        raise Wrong(
            "You count the pair that joins the end of one row to the start of the next. Rows are "
            "separate texts: count pairs inside each row."
        )
    if matches(got[:3], want[:3]) and not matches(got, want):
        raise Wrong(
            "Token 3 is never followed by anything. Its row should be uniform: one over the number "
            "of tokens in every column."
        )
    if bool((got > 1).any()):
        raise Wrong(
            "You return counts. Divide each row by its sum, so that rows are probabilities."
        )
    if matches(got.sum(), 1.0):
        raise Wrong(
            "Your whole table sums to one: that is the probability of a pair. Asked for is the "
            "probability of the next token given the current one: each row sums to one."
        )
    sums = got.sum(dim=1)
    require_close(sums, torch.ones(4), "Each row must sum to one, and yours do not.", show=False)
    require_close(got, want, "The rows sum to one, but the probabilities are not right.")
    tokens = torch.randint(6, (9, 11), generator=generator(5))
    got = tensor(call(answer, tokens, 6, case="with 6 tokens"), shape=(6, 6), what="The table")
    counts = torch.zeros(6, 6, dtype=torch.float64)
    for row in tokens.tolist():
        for a, b in pairwise(row):
            counts[a, b] += 1
    require_close(got, counts / counts.sum(1, keepdim=True), "Wrong on a random text of 9 rows.")
    return "Correct. A table of counts is the best bigram model of the text it was counted from."


def _entropy(joint: Tensor) -> float:
    p = joint.double()
    conditional = p / p.sum(1, keepdim=True).clamp(min=1e-300)
    return float(-(p * conditional.clamp(min=1e-300).log()).sum())


def _conditional_entropy(answer: Any) -> str:
    joint = torch.tensor([[0.5, 0.25], [0.0, 0.25]])
    # Given 0 (three times in four) the next is 0 or 1 as 2 to 1; given 1 it is certain.
    third = torch.tensor(3.0).log() - 2 / 3 * torch.tensor(2.0).log()
    want = 0.75 * float(third)
    value = call(answer, joint, case="on a 2 × 2 table with a zero in it")
    got = number(value, what="The entropy")
    pairs = float(-(joint * joint.clamp(min=1e-30).log()).sum())
    if matches(got, pairs):
        raise Wrong(
            "That is the entropy of the pair. Subtract the entropy of the current token, or average "
            "the entropy of each row of p(next | current)."
        )
    if matches(got, want / torch.tensor(2.0).log()):
        raise Wrong("That is in bits. Use the natural logarithm: the losses here are in nats.")
    if matches(got, -want):
        raise Wrong("The sign is wrong: an entropy is never negative.")
    if matches(got, float(third) / 2):
        raise Wrong(
            "Weight each row by how likely its current token is; do not average them evenly."
        )
    require_close(got, want, "The conditional entropy is not right.")
    for joint, case in (
        (torch.full((3, 3), 1 / 9), "three tokens, all pairs equally likely"),
        (torch.eye(4) / 4, "each token always followed by itself"),
        (torch.softmax(random_tensor(25, seed=3), 0).view(5, 5), "a random table"),
    ):
        got = number(call(answer, joint, case=f"({case})"), what="The entropy")
        require_close(got, _entropy(joint), f"Wrong for this case: {case}.")
    return "Correct. No model that sees only the current token can have a lower loss than this."


def _excess_loss(answer: Any) -> str:
    joint = torch.tensor([[0.6, 0.2], [0.1, 0.1]])
    logits = torch.zeros(2, 2)
    # q is one half everywhere, so KL = ln 2 - H(row): rows (3/4, 1/4) and (1/2, 1/2).
    row = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    want = 0.8 * float(row)
    got = number(call(answer, joint, logits, case="with uniform predictions"), what="The excess")
    reverse = 0.8 * 0.5 * float(torch.tensor(2 / 3).log() + torch.tensor(2.0).log())
    if matches(got, reverse):
        raise Wrong(
            "That is the divergence the other way round. The text comes from p, so average "
            "log p - log q under p."
        )
    if matches(got, torch.tensor(2.0).log()):
        raise Wrong("That is the whole cross-entropy. Subtract what no bigram model can avoid.")
    if matches(got, float(row) / 2):
        raise Wrong(
            "Weight each row by how likely its current token is; do not average them evenly."
        )
    if matches(got, want + float((joint.sum(1) * joint.sum(1).log()).sum())):
        raise Wrong(
            "You use ln p(a, b). The divergence compares p(b | a) with q(b | a): divide the joint table "
            "by its row sums first."
        )
    require_close(got, want, "The excess loss is not right.")
    joint = torch.softmax(random_tensor(36, seed=4), 0).view(6, 6)
    shift = random_tensor(6, 1, seed=5)
    perfect = joint.log() + 3 * shift
    got = number(call(answer, joint, perfect, case="with perfect logits"), what="The excess")
    require_close(
        got,
        0.0,
        "For logits equal to log p(next | current) plus a constant a row the excess must be zero. "
        "Logits are not log-probabilities: normalise each row with log_softmax first.",
        atol=1e-4,
    )
    joint[2] = 0
    joint[:, 1] = 0
    joint = joint / joint.sum()
    logits = random_tensor(6, 6, seed=6)
    got = number(call(answer, joint, logits, case="with pairs that never occur"), what="The excess")
    cross = float(-(joint * logits.log_softmax(1)).sum())
    require_close(got, cross - _entropy(joint), "Wrong where some pairs never occur.", atol=1e-4)
    return "Correct. Training a zero-layer model can only shrink this part of the loss."


def _next_token_loss(answer: Any) -> str:
    tokens = torch.tensor([[0, 1, 2], [2, 2, 0]])
    # Logits that are certain of the right next token, whatever stands at the last position.
    sure = torch.full((2, 3, 3), -30.0)
    for row in range(2):
        for position in range(2):
            sure[row, position, tokens[row, position + 1]] = 30.0
    got = number(call(answer, sure, tokens, case="with perfect predictions"), what="The loss")
    if got > 20:
        raise Wrong(
            "Logits that put everything on the right next token should have loss zero, but yours is "
            "large. The logits at position t predict the token at position t + 1: cut the last "
            "position off the logits and the first off the tokens."
        )
    joined = torch.nn.functional.cross_entropy(sure.flatten(0, 1)[:-1], tokens.flatten()[1:])
    if matches(got, joined):
        raise Wrong(
            "You also predict the first token of a row from the last one of the row before. Cut each "
            "row, then flatten: `logits[:, :-1]` and `tokens[:, 1:]`."
        )
    require_close(got, 0.0, "Perfect predictions should have loss zero.", atol=1e-4)
    logits = random_tensor(4, 6, 5, seed=7)
    tokens = torch.randint(5, (4, 6), generator=generator(8))
    logp = logits.double().log_softmax(-1)
    each = [-logp[r, t, tokens[r, t + 1]] for r in range(4) for t in range(5)]
    want = float(torch.stack(each).mean())
    got = number(call(answer, logits, tokens, case="with random logits"), what="The loss")
    if matches(got, want * 20):
        raise Wrong("You return the sum over all predictions. Return their mean.")
    if matches(got, want * 5):
        raise Wrong("You add up the positions of a row. Return the mean over all predictions.")
    require_close(got, want, "The loss of random logits is not right.")
    uniform = number(call(answer, torch.zeros(2, 4, 7), torch.ones(2, 4).long()), what="The loss")
    require_close(uniform, torch.tensor(7.0).log(), "Equal logits over 7 tokens have loss ln 7.")
    with torch.enable_grad():
        loss = call(answer, logits.requires_grad_(), tokens, case="while training")
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        raise Wrong(
            "The number is right, but training cannot use it: it has to be differentiated. Return a "
            "tensor made by torch, without .item(), float() or .detach()."
        )
    return "Correct. This is the number that every language model here is trained on."


def _low_rank(answer: Any) -> str:
    table = random_tensor(9, 12, seed=9)
    values = torch.linalg.svdvals(table.double())
    for rank in (1, 4, 9):
        case = f"for rank {rank} of a 9 × 12 table"
        got = tensor(call(answer, table, rank, case=case), shape=(9, 12), what="The table")
        got = exact(got, partial(_best_of_rank, rank), table.double())
        have = int(torch.linalg.matrix_rank(got, rtol=1e-4))
        if have > rank:
            raise Wrong(f"Asked for rank {rank}, your table has rank {have}.")
        error = float((got - table).norm())
        best = float(values[rank:].square().sum().sqrt())
        if error > best * 1.001 + 1e-4:
            raise Wrong(
                f"For rank {rank} your table is {error:.3g} away from the original; the best of that "
                f"rank is {best:.3g} away. Keep the {rank} largest singular values."
            )
    return "Correct. A residual stream of width d can only hold logit tables of rank d."


def _best_of_rank(rank: int, _: Tensor, table: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(table, full_matrices=False)
    best: Tensor = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return best


EXERCISES: dict[str, Exercise] = {
    "1.1": Exercise(
        _bigram_logits,
        (
            "Row a of W_E is the vector that token a puts into the residual stream. What happens to "
            "that vector next?",
            "Row a of the table is `W_E[a] @ W_U + b_U`. A matrix product does all rows at once.",
        ),
    ),
    "1.2": Exercise(
        _bigram_table,
        (
            "The current tokens are `tokens[:, :-1]`, the next ones `tokens[:, 1:]`. Both keep the "
            "rows apart.",
            "Number the pairs `a * n_vocab + b`; `torch.bincount(..., minlength=n_vocab**2)` counts "
            "them. Look out for rows whose sum is zero before you divide.",
        ),
    ),
    "1.3": Exercise(
        _conditional_entropy,
        (
            "p(next | current) is the joint table divided by its row sums.",
            "H = -Σ p(a, b) ln p(b | a). Pairs with probability zero add nothing: `torch.xlogy` or a "
            "mask keeps 0 · ln 0 at zero.",
        ),
    ),
    "1.4": Exercise(
        _excess_loss,
        (
            "The cross-entropy is -Σ p(a, b) ln q(b | a), with ln q from `log_softmax`.",
            "Cross-entropy minus the conditional entropy of exercise 1.3 is the divergence: "
            "Σ p(a, b) (ln p(b | a) - ln q(b | a)).",
        ),
    ),
    "1.5": Exercise(
        _next_token_loss,
        (
            "A text of n tokens holds n - 1 predictions: `logits[:, :-1]` against `tokens[:, 1:]`.",
            "`torch.nn.functional.cross_entropy` wants logits of shape [predictions, vocab] and "
            "targets of shape [predictions]: flatten both.",
        ),
    ),
    "1.6": Exercise(
        _low_rank,
        (
            "The best table of a given rank keeps the largest singular values and drops the others.",
            "`U, S, Vh = torch.linalg.svd(table, full_matrices=False)`, then multiply the first "
            "`rank` columns, values and rows back together.",
        ),
    ),
}
