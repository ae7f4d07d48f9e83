"""Wrong answers that students of lesson 5 give, and a word that the check must say about each."""

import torch


def correlation(f, x):
    return torch.corrcoef(torch.stack([x, f(x)]))[0, 1]


def no_bias(x, y):
    return torch.linalg.lstsq(x, y).solution, torch.zeros(y.shape[1])


def only_the_weight(x, y):
    return torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution


def inverted_gram(x, y):
    centred = x - x.mean(0)
    gram = centred.T @ centred + 1e-30 * torch.eye(x.shape[1])
    weight = torch.linalg.inv(gram) @ centred.T @ (y - y.mean(0))
    return weight, y.mean(0) - x.mean(0) @ weight


def weights_only(d_model, d_mlp, rank):
    return 2 * d_model * d_mlp / (d_model**2 if rank is None else 2 * d_model * rank)


def one_thin_matrix(d_model, d_mlp, rank):
    weights = d_model**2 if rank is None else d_model * rank
    return (2 * d_model * d_mlp + d_mlp + d_model) / (weights + d_model)


def cut_weight(x, weight, rank):
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def not_cut(x, weight, rank):
    return weight


def sum_of_readings(x, a, b, c):
    return (x @ a.T + x @ b.T) @ c


def learnt(eigenvalues, steps):
    return 1 - (1 - eigenvalues / eigenvalues.max()) ** steps


def unit_step(eigenvalues, steps):
    return (1 - eigenvalues) ** steps


def not_centred(x, weight, rank):
    V = torch.linalg.svd(x @ weight, full_matrices=False)[2][:rank].T
    return weight @ V @ V.T


WRONG = [
    ("5.1", correlation, "square"),
    ("5.2", no_bias, "slope"),
    ("5.2", only_the_weight, "two tensors"),
    ("5.2", inverted_gram, "column"),
    ("5.3", weights_only, "biases"),
    ("5.3", one_thin_matrix, "two thin matrices"),
    ("5.4", cut_weight, "centred output"),
    ("5.4", not_cut, "rank above"),
    ("5.5", sum_of_readings, "linear again"),
    ("5.6", learnt, "is left"),
    ("5.6", unit_step, "largest eigenvalue"),
    ("5.4", not_centred, "centre"),
]
