"""Wrong answers that students of lesson 7 give, and a word that the check must say about each."""

import torch


def with_softmax(q, k, v):
    return (q @ k.T).softmax(-1) @ v


def with_scale(q, k, v):
    return (q @ k.T) @ v / q.shape[1] ** 0.5


def root_of_gram(x):
    values, vectors = torch.linalg.eigh(x.T @ x)
    return vectors * values.sqrt()


def whole_inverse(x):
    return torch.linalg.inv(x.T @ x)


def transposed_root(x):
    values, vectors = torch.linalg.eigh(x.T @ x)
    return (vectors * values**-0.5).T


def gradient_step(x, y, x_new):
    return x_new @ x.T @ y / len(x)


def whole_hat(x):
    return x @ torch.linalg.inv(x.T @ x) @ x.T


def single_updates(k, v):
    return torch.einsum("nr,nm->nrm", k, v)


def lags_behind(k, v):
    total = torch.einsum("nr,nm->nrm", k, v).cumsum(0)
    return torch.cat([torch.zeros_like(total[:1]), total[:-1]])


def queries_with_new_keys(q, k):
    k = 1.5 * k - 0.5 * k @ (k.T @ k)
    return 1.5 * q - 0.5 * q @ (k.T @ k), k


def only_keys(q, k):
    return 1.5 * k - 0.5 * k @ (k.T @ k)


def no_beta(state, patterns, beta):
    return torch.softmax(state @ patterns.T, dim=-1) @ patterns


def linear_memory(state, patterns, beta):
    return beta * (state @ patterns.T) @ patterns


WRONG = [
    ("7.1", with_softmax, "no softmax"),
    ("7.1", with_scale, "√d"),
    ("7.2", root_of_gram, "inverse"),
    ("7.2", whole_inverse, "root"),
    ("7.2", transposed_root, "transposed"),
    ("7.3", gradient_step, "slopes here"),
    ("7.4", whole_hat, "shape"),
    ("7.5", single_updates, "Add them up"),
    ("7.5", lags_behind, "lags one behind"),
    ("7.6", queries_with_new_keys, "as they came in"),
    ("7.6", only_keys, "two tensors"),
    ("7.7", no_beta, "beta is missing"),
    ("7.7", linear_memory, "linear attention"),
]
