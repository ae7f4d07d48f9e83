"""Wrong answers that students of lesson 3 give, and a word that the check must say about each."""

import torch


def gain_off_by_one(losses, period):
    return float(losses[:, 2 : period + 1].mean() - losses[:, period + 2 : 2 * period + 1].mean())


def gain_with_first_tokens(losses, period):
    return float(losses[:, :period].mean() - losses[:, period : 2 * period].mean())


def gain_to_the_end(losses, period):
    return float(losses[:, 1:period].mean() - losses[:, period + 1 :].mean())


def usual_score(pattern, periods):
    found = []
    for p in sorted(set(periods.tolist()) - {0}):
        band = pattern.diagonal(-(p - 1), dim1=-2, dim2=-1)[..., 2 : p + 2].mean(-1)
        found.append(band[periods == p].mean(0))
    return torch.stack(found).mean(0)


def duplicate_score(pattern, periods):
    found = []
    for p in sorted(set(periods.tolist()) - {0}):
        band = pattern.diagonal(-p, dim1=-2, dim2=-1)[..., 1 : p + 1].mean(-1)
        found.append(band[periods == p].mean(0) - band[periods == 0].mean(0))
    return torch.stack(found).mean(0)


def spectral_score(W_V, W_O, W_Q, W_K):
    a, b = W_V @ W_O, W_K @ W_Q.T
    return float(
        torch.linalg.matrix_norm(a @ b, 2)
        / torch.linalg.matrix_norm(a, 2)
        / torch.linalg.matrix_norm(b, 2)
    )


def q_composition(W_V, W_O, W_Q, W_K):
    a, b = W_V @ W_O, W_Q @ W_K.T
    return float((a @ b).norm() / (a.norm() * b.norm()))


def no_scale(W_E, W_V, W_O, W_Q, W_K):
    return (W_E @ W_Q) @ (W_E @ W_V @ W_O @ W_K).T


def queries_read(W_E, W_V, W_O, W_Q, W_K):
    return (W_E @ W_V @ W_O @ W_Q) @ (W_E @ W_K).T / W_Q.shape[1] ** 0.5


def in_place(z, heads, mean):
    z[:, :, heads] = mean[heads]
    return z


def zeroed(z, heads, mean):
    z = z.clone()
    z[:, :, heads] = 0
    return z


def no_norm(keys, written, W_K, scale):
    return keys - written @ W_K


def only_the_path(keys, written, W_K, scale):
    return written / scale @ W_K


def excess_of(pattern, periods, first, last):
    gaps = []
    for period in sorted(set(periods.tolist()) - {0}):
        means = []
        for kind in (period, 0):
            rows = [row for row, own in enumerate(periods.tolist()) if own == kind]
            queries = range(period + first, 2 * period + last + 1)
            cells = [pattern[row, :, q, q - period + 1] for row in rows for q in queries]
            means.append(torch.stack(cells).mean(0))
        gaps.append(means[0] - means[1])
    return torch.stack(gaps).mean(0)


def last_query_missing(pattern, periods):
    return excess_of(pattern, periods, 1, -1)


def first_query_missing(pattern, periods):
    return excess_of(pattern, periods, 2, 0)


def no_denominator(W_V, W_O, W_Q, W_K):
    return (W_V @ W_O @ W_K @ W_Q.T).norm()


def half_a_denominator(W_V, W_O, W_Q, W_K):
    return (W_V @ W_O @ W_K @ W_Q.T).norm() / (W_V @ W_O).norm()


def positions_without_norm(W_pos, W_Q, W_K, scale):
    scores = (W_pos @ W_Q) @ (W_pos @ W_K).T / W_Q.shape[1] ** 0.5
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)


def positions_queries_only(W_pos, W_Q, W_K, scale):
    scores = (W_pos / scale[:, None] @ W_Q) @ (W_pos @ W_K).T / W_Q.shape[1] ** 0.5
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)


def positions_see_ahead(W_pos, W_Q, W_K, scale):
    reads = W_pos / scale[:, None]
    return ((reads @ W_Q) @ (reads @ W_K).T / W_Q.shape[1] ** 0.5).softmax(-1)


def top1_averaged(A, B):
    hits = [((a @ b).argmax(1) == torch.arange(len(a))).float().mean() for a, b in zip(A, B)]
    return float(sum(hits) / len(hits))


def top1_of_columns(A, B):
    table = torch.cat(A, 1) @ torch.cat(B, 0)
    return float((table.argmax(0) == torch.arange(len(table))).float().mean())


def top1_counted(A, B):
    table = torch.cat(A, 1) @ torch.cat(B, 0)
    return float((table.argmax(1) == torch.arange(len(table))).sum())


def shares_without_scale(query, parts, W_K):
    return parts @ W_K @ query


def shares_of_attention(query, parts, W_K):
    return (parts @ W_K @ query / len(query) ** 0.5).softmax(0)


def whole_score(query, parts, W_K):
    return parts.sum(0) @ W_K @ query / len(query) ** 0.5


def logits_not_centred(parts, W_U, targets):
    return (parts @ W_U).gather(-1, targets.expand(len(parts), -1)[..., None])[..., 0]


def log_probabilities(parts, W_U, targets):
    logs = (parts @ W_U).log_softmax(-1)
    return logs.gather(-1, targets.expand(len(parts), -1)[..., None])[..., 0]


def chain_patterns_swapped(first, second, x, first_OV, second_OV, W_U):
    return first @ second @ x @ first_OV @ second_OV @ W_U


def chain_circuits_swapped(first, second, x, first_OV, second_OV, W_U):
    return second @ first @ x @ second_OV @ first_OV @ W_U


def chain_by_entry(first, second, x, first_OV, second_OV, W_U):
    return (second * first) @ x @ first_OV @ second_OV @ W_U


WRONG = [
    ("3.1", gain_off_by_one, "one position too far"),
    ("3.1", gain_with_first_tokens, "first token of each copy"),
    ("3.1", gain_to_the_end, "end of the row"),
    ("3.2", usual_score, "control"),
    ("3.2", duplicate_score, "p - 1"),
    ("3.3", spectral_score, "Frobenius"),
    ("3.3", q_composition, "Q-composition"),
    ("3.4", no_scale, "square root of d_head"),
    ("3.4", queries_read, "Q-composition"),
    ("3.5", in_place, "copy"),
    ("3.5", zeroed, "zero ablation"),
    ("3.6", no_norm, "norm is missing"),
    ("3.6", only_the_path, "subtract"),
    ("3.2", last_query_missing, "2p - 1"),
    ("3.2", first_query_missing, "p + 2"),
    ("3.3", no_denominator, "Divide"),
    ("3.3", half_a_denominator, "Divide"),
    ("3.7", positions_without_norm, "norm is missing"),
    ("3.7", positions_queries_only, "keys"),
    ("3.7", positions_see_ahead, "later key"),
    ("3.8", top1_averaged, "average"),
    ("3.8", top1_of_columns, "columns"),
    ("3.8", top1_counted, "Divide"),
    ("3.9", shares_without_scale, "scale is missing"),
    ("3.9", shares_of_attention, "softmax"),
    ("3.9", whole_score, "each writer"),
    ("3.10", logits_not_centred, "mean logit"),
    ("3.10", log_probabilities, "softmax"),
    ("3.11", chain_patterns_swapped, "patterns are in the wrong order"),
    ("3.11", chain_circuits_swapped, "circuits are in the wrong order"),
    ("3.11", chain_by_entry, "entry by entry"),
]
