"""Wrong answers that students of lesson 1 give, and a word that the check must say about each."""

import torch


def no_bias(W_E, W_U, b_U):
    return W_E @ W_U


def across_rows(tokens, n_vocab):
    flat = tokens.flatten()
    pairs = flat[:-1] * n_vocab + flat[1:]
    counts = torch.bincount(pairs, minlength=n_vocab**2).view(n_vocab, n_vocab).double()
    counts[counts.sum(1) == 0] = 1
    return counts / counts.sum(1, keepdim=True)


def joint_table(tokens, n_vocab):
    pairs = tokens[:, :-1] * n_vocab + tokens[:, 1:]
    counts = torch.bincount(pairs.flatten(), minlength=n_vocab**2).view(n_vocab, n_vocab).double()
    return counts / counts.sum()


def entropy_of_pairs(joint):
    return float(-torch.xlogy(joint, joint).sum())


def entropy_with_nan(joint):
    conditional = joint / joint.sum(1, keepdim=True)
    return float(-(joint * conditional.log()).sum())


def cross_entropy_only(joint, logits):
    return float(-(joint * logits.log_softmax(-1)).sum())


def reverse_divergence(joint, logits):
    current = joint.sum(1, keepdim=True)
    p = joint / current.clamp(min=1e-9)
    q = logits.softmax(-1)
    return float((current * torch.where(p > 0, q * (q / p).log(), 0.0)).sum())


def not_shifted(logits, tokens):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def sum_of_losses(logits, tokens):
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
    )


def smallest_values(table, rank):
    U, S, Vh = torch.linalg.svd(table, full_matrices=False)
    return (U[:, -rank:] * S[-rank:]) @ Vh[-rank:]


def returns_factors(table, rank):
    return torch.linalg.svd(table, full_matrices=False)[0][:, :rank]


def logarithm_of_pairs(joint, logits):
    return float((joint * (joint.log() - logits.log_softmax(-1))).nansum())


def into_the_next_row(logits, tokens):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1)[:-1], tokens.flatten()[1:])


def a_number(logits, tokens):
    return torch.nn.functional.cross_entropy(logits[:, :-1].mT, tokens[:, 1:]).item()


WRONG = [
    ("1.1", no_bias, "bias"),
    ("1.2", across_rows, "inside each row"),
    ("1.2", joint_table, "each row sums to one"),
    ("1.3", entropy_of_pairs, "entropy of the pair"),
    ("1.3", entropy_with_nan, "is nan"),
    ("1.4", cross_entropy_only, "Subtract"),
    ("1.4", reverse_divergence, "other way round"),
    ("1.5", not_shifted, "cut the last"),
    ("1.5", sum_of_losses, "mean"),
    ("1.6", smallest_values, "largest singular values"),
    ("1.6", returns_factors, "shape"),
    ("1.4", logarithm_of_pairs, "p(b | a)"),
    ("1.5", into_the_next_row, "row before"),
    ("1.5", a_number, "differentiated"),
]
