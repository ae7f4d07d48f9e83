"""Wrong answers that students of lesson 2 give, and a word that the check must say about each."""

import torch


def no_mask(q, k):
    return (q @ k.T / q.shape[1] ** 0.5).softmax(-1)


def no_scale(q, k):
    mask = torch.ones(len(q), len(q)).triu(1).bool()
    return (q @ k.T).masked_fill(mask, -torch.inf).softmax(-1)


def mask_after_softmax(q, k):
    mask = torch.ones(len(q), len(q)).triu(1).bool()
    return (q @ k.T / q.shape[1] ** 0.5).softmax(-1).masked_fill(mask, 0)


def qk_transposed(W_E, W_Q, W_K):
    return W_E @ W_K @ W_Q.T @ W_E.T / W_Q.shape[1] ** 0.5


def qk_without_scale(W_E, W_Q, W_K):
    return W_E @ W_Q @ W_K.T @ W_E.T


def qk_wrong_scale(W_E, W_Q, W_K):
    return W_E @ W_Q @ W_K.T @ W_E.T / W_E.shape[1] ** 0.5


def ov_transposed(W_E, W_V, W_O, W_U):
    return (W_E @ W_V @ W_O @ W_U).T


def without_pattern(pattern, x, W_V, W_O, W_U):
    return x @ W_V @ W_O @ W_U


def pattern_transposed(pattern, x, W_V, W_O, W_U):
    return pattern.T @ x @ W_V @ W_O @ W_U


def only_last_token(qk, ov, tokens):
    return ov[tokens[-1]]


def without_self(qk, ov, tokens):
    return qk[tokens[-1], tokens[:-1]].softmax(0) @ ov[tokens[:-1]]


def singular_values(A, B):
    values = torch.linalg.svdvals(B @ A)
    return float(values.sum() / values.abs().sum())


def trace_only(A, B):
    return float((B @ A).trace())


def dense_eigenvalues(A, B):
    values = torch.linalg.eigvals(A @ B)
    return float(values.real.sum() / values.abs().sum())


def planted_transposed(n_vocab, source, destination, out):
    qk, ov = torch.zeros(n_vocab, n_vocab), torch.zeros(n_vocab, n_vocab)
    qk[source, destination], ov[source, out] = 10, 10
    return qk, ov


def planted_as_bigram(n_vocab, source, destination, out):
    qk, ov = torch.zeros(n_vocab, n_vocab), torch.zeros(n_vocab, n_vocab)
    qk[destination, source], ov[destination, out], ov[source, out] = 10, 30, 10
    return qk, ov


def masked_with_zero(q, k):
    return torch.tril(q @ k.T / q.shape[1] ** 0.5).softmax(-1)


def softmax_over_vocabulary(qk, ov, tokens):
    return qk[tokens[-1]].softmax(0)[tokens] @ ov[tokens]


def column_of_the_last_token(qk, ov, tokens):
    return qk[tokens, tokens[-1]].softmax(0) @ ov[tokens]


def first_token_asks(qk, ov, tokens):
    return qk[tokens[0], tokens].softmax(0) @ ov[tokens]


def ov_columns(qk, ov, tokens):
    return qk[tokens[-1], tokens].softmax(0) @ ov.T[tokens]


def _causal(q, k):
    later = torch.ones(len(q), len(q)).triu(1).bool()
    return (q @ k.T / q.shape[1] ** 0.5).masked_fill(later, -torch.inf)


def softmax_over_queries(q, k):
    return _causal(q, k).softmax(0)


def scores_only(q, k):
    return _causal(q, k)


def not_itself(q, k):
    return (
        (q @ k.T / q.shape[1] ** 0.5)
        .masked_fill(torch.ones(len(q), len(q)).triu(0).bool(), -1e9)
        .softmax(-1)
    )


WRONG = [
    ("2.1", softmax_over_queries, "runs over the queries"),
    ("2.1", scores_only, "softmax"),
    ("2.1", not_itself, "may see itself"),
    ("2.5", first_token_asks, "another token asks"),
    ("2.5", ov_columns, "Rows of ov"),
    ("2.1", no_mask, "Mask the keys"),
    ("2.1", no_scale, "√d_head"),
    ("2.1", mask_after_softmax, "before"),
    ("2.2", qk_transposed, "rows are the query"),
    ("2.2", qk_without_scale, "scale is missing"),
    ("2.2", qk_wrong_scale, "not √d_model"),
    ("2.3", ov_transposed, "Transposed"),
    ("2.4", without_pattern, "pattern is missing"),
    ("2.4", pattern_transposed, "transposed"),
    ("2.5", only_last_token, "last token is the query"),
    ("2.5", without_self, "itself"),
    ("2.6", singular_values, "eigenvalues"),
    ("2.6", trace_only, "Divide"),
    ("2.6", dense_eigenvalues, "too large"),
    ("2.7", planted_transposed, "transposed"),
    ("2.7", planted_as_bigram, "Without the source"),
    ("2.1", masked_with_zero, "-inf"),
    ("2.5", softmax_over_vocabulary, "vocabulary"),
    ("2.5", column_of_the_last_token, "Rows of qk are queries"),
]
