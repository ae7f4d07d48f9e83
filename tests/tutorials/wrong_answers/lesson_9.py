"""Wrong answers that students of lesson 9 give, and a word that the check must say about each."""

import torch


def hook_in_place(z, hook, heads):
    z[:, :, heads] = 0
    return z


def hook_returns_nothing(z, hook, heads):
    z.clone()[:, :, heads] = 0


def hook_on_positions(z, hook, heads):
    z = z.clone()
    z[:, 1] = 0
    return z


def p_without_itself(effect, draws):
    return float((draws >= effect).double().mean())


def p_strict(effect, draws):
    return (1 + int((draws > effect).sum())) / (1 + len(draws))


def p_of_the_smaller(effect, draws):
    return (1 + int((draws < effect).sum())) / (1 + len(draws))


def current_token_only(tokens):
    now = tokens[:, :-1]
    same = now[:, :, None] == now[:, None]
    return (same & torch.ones_like(same[0]).tril(-1)).any(2)


def next_token_only(tokens):
    n = tokens.shape[1] - 1
    return torch.stack(
        [(tokens[:, : t + 1] == tokens[:, t + 1 : t + 2]).any(1) for t in range(n)], 1
    )


def itself_too(tokens):
    now, after = tokens[:, :-1], tokens[:, 1:]
    return ((now[:, :, None] == now[:, None]) & (after[:, :, None] == after[:, None])).any(2)


def share_about_zero(x):
    squares = x.square().sum(-1)
    return float(squares[:, 0].sum() / squares.sum())


def share_mean_by_position(x):
    squares = (x - x.mean(0)).square().sum(-1)
    return float(squares[:, 0].sum() / squares.sum())


def share_of_lengths(x):
    lengths = (x - x.mean((0, 1))).norm(dim=-1)
    return float(lengths[:, 0].sum() / lengths.sum())


WRONG = [
    ("9.1", hook_in_place, "copy"),
    ("9.1", hook_returns_nothing, "returns nothing"),
    ("9.1", hook_on_positions, "position"),
    ("9.2", p_without_itself, "itself"),
    ("9.2", p_strict, "equal"),
    ("9.2", p_of_the_smaller, "below"),
    ("9.3", current_token_only, "current token only"),
    ("9.3", next_token_only, "next token only"),
    ("9.3", itself_too, "earlier positions only"),
    ("9.4", share_about_zero, "mean away first"),
    ("9.4", share_mean_by_position, "one mean"),
    ("9.4", share_of_lengths, "squares"),
]
