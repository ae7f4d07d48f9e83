"""Wrong answers that students of lesson 6 give, and a word that the check must say about each."""

import torch


def not_unit(states, labels):
    return states[:, labels == 1].mean(1) - states[:, labels == 0].mean(1)


def backwards(states, labels):
    rows = states[:, labels == 0].mean(1) - states[:, labels == 1].mean(1)
    return rows / rows.norm(dim=1, keepdim=True)


def ties_count_nothing(scores, labels):
    return (scores[labels == 1][:, None] > scores[labels == 0]).double().mean()


def upside_down(scores, labels):
    return (scores[labels == 1][:, None] < scores[labels == 0]).double().mean()


def one_sided(f, x, v, eps):
    return (f(x + eps * v) - f(x)) / eps


def not_halved(f, x, v, eps):
    return (f(x + eps * v) - f(x - eps * v)) / eps


def without_its_own_block(A, v, C):
    row, found = C, []
    for k in reversed(range(len(A))):
        found.append(row @ v[k])
        row = row @ A[k]
    return torch.stack(found[::-1])


def wrong_order(A, v, C):
    row, found = C, []
    for k in reversed(range(len(A))):
        row = row @ A[k]
        found.append(row @ v[k])
    return torch.stack(found)


def not_orthonormal(A, P, v):
    return torch.cat([v[:, None], A @ P], dim=1)


def not_carried(A, P, v):
    return torch.linalg.qr(torch.cat([v[:, None], P], dim=1))[0]


def no_bases(A, v, C, P):
    row, found = C, []
    for k in reversed(range(len(A))):
        row = row @ A[k]
        found.append(row @ v[k])
    return torch.stack(found[::-1])


def projected_too_early(A, v, C, P):
    row, found = C, []
    for k in reversed(range(len(A))):
        row = row @ P[k + 1] @ P[k + 1].T @ A[k]
        found.append(row @ P[k] @ P[k].T @ v[k])
    return torch.stack(found[::-1])


def norm_not_squared(h, target):
    return target * h / h.norm()


def best_layer_alone(h, target):
    u = torch.zeros_like(h)
    u[h.abs().argmax()] = target / h[h.abs().argmax()]
    return u


def one_length_for_all(states, labels):
    rows = states[:, labels == 1].mean(1) - states[:, labels == 0].mean(1)
    return rows / rows.norm()


def never_below_one_half(scores, labels):
    difference = scores[labels == 1][:, None] - scores[labels == 0]
    found = ((difference > 0).double() + 0.5 * (difference == 0)).mean()
    return max(found, 1 - found)


def ranks_in_order_of_rows(scores, labels):
    ranks = scores.argsort(stable=True).argsort() + 1.0
    ones, zeros = (labels == 1).sum(), (labels == 0).sum()
    return (ranks[labels == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros)


def a_sweep_for_every_layer(A, v, C):
    gains = []
    for k in range(len(A)):
        x = v[k]
        for layer in range(k, len(A)):
            x = A[layer] @ x
        gains.append(C @ x)
    return torch.stack(gains)


def in_bfloat16(f, x, v, eps):
    x, v = x.bfloat16(), v.bfloat16()
    return (f(x + eps * v) - f(x - eps * v)) / (2 * eps)


WRONG = [
    ("6.3", in_bfloat16, "Half precision loses"),
    ("6.1", not_unit, "its length"),
    ("6.1", backwards, "point back"),
    ("6.2", ties_count_nothing, "one half"),
    ("6.2", upside_down, "Upside down"),
    ("6.3", one_sided, "one-sided"),
    ("6.3", not_halved, "two steps"),
    ("6.4", without_its_own_block, "block k itself"),
    ("6.4", wrong_order, "wrong order"),
    ("6.5", not_orthonormal, "orthonormal"),
    ("6.5", not_carried, "carry P"),
    ("6.6", no_bases, "not used"),
    ("6.6", projected_too_early, "enters in full"),
    ("6.7", norm_not_squared, "wrong size"),
    ("6.7", best_layer_alone, "best layer"),
    ("6.1", one_length_for_all, "own"),
    ("6.2", never_below_one_half, "wrong way"),
    ("6.2", ranks_in_order_of_rows, "mean rank"),
    ("6.4", a_sweep_for_every_layer, "not in one sweep"),
]
