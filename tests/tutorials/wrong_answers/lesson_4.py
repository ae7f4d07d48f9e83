"""Wrong answers that students of lesson 4 give, and a word that the check must say about each."""

import torch


def fit(x, y):
    return torch.linalg.lstsq(x, y).solution


def not_centred(x, y):
    return 1 - (y - x @ fit(x, y)).square().sum() / y.square().sum()


def averaged_columns(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return (1 - (y - x @ fit(x, y)).square().sum(0) / y.square().sum(0)).mean()


def score(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return 1 - (y - x @ fit(x, y)).square().sum() / y.square().sum()


def with_residual(x, y):
    return score(x, y)


def d_over_n(n, d):
    return min(1.0, d / n)


def unexplained(n, d):
    return max(0.0, 1 - d / (n - 1))


def mean_of_the_test(x_fit, y_fit, x_test, y_test):
    a = fit(x_fit - x_fit.mean(0), y_fit - y_fit.mean(0))
    missed = y_test - y_fit.mean(0) - (x_test - x_fit.mean(0)) @ a
    return 1 - missed.square().sum() / (y_test - y_test.mean(0)).square().sum()


def fitted_on_the_test(x_fit, y_fit, x_test, y_test):
    return score(x_test, y_test)


def share_of_squares(x):
    squares = x.square().sum((0, 2))
    return squares / squares.sum()


def _loss(logits, tokens):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def map_of_the_output(model, tokens, layer, weight, bias):
    hooks = [(f"blocks.{layer}.hook_resid_post", lambda y, hook: y @ weight + bias)]
    return _loss(model.run_with_hooks(tokens, fwd_hooks=hooks), tokens)


def no_hook(model, tokens, layer, weight, bias):
    return _loss(model(tokens), tokens)


def mean_over_blocks(states):
    cosine = torch.nn.functional.cosine_similarity(states[:-1], states[1:], dim=-1)
    return (1 - cosine).mean()


def with_hooks(what, shifted=True):
    def loss(model, tokens, layer, weight, bias):
        seen = {}
        hooks = [
            (f"blocks.{layer}.hook_resid_pre", lambda x, hook: seen.update(x=x)),
            (f"blocks.{layer}.hook_resid_post", lambda y, hook: what(seen["x"], y, weight, bias)),
        ]
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
        rows, labels = (logits[:, :-1], tokens[:, 1:]) if shifted else (logits, tokens)
        return torch.nn.functional.cross_entropy(rows.flatten(0, 1), labels.flatten())

    return loss


def map_before_the_block(model, tokens, layer, weight, bias):
    hook = (f"blocks.{layer}.hook_resid_pre", lambda x, hook: x @ weight + bias)
    logits = model.run_with_hooks(tokens, fwd_hooks=[hook])
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def held_out(means_of_the_test=False, all_rows=False, clamped=False):
    def score(x, y, new_x, new_y):
        fit_x, fit_y = (torch.cat([x, new_x]), torch.cat([y, new_y])) if all_rows else (x, y)
        slope = fit(fit_x - fit_x.mean(0), fit_y - fit_y.mean(0))
        at = new_x.mean(0) if means_of_the_test else fit_x.mean(0)
        missed = new_y - fit_y.mean(0) - (new_x - at) @ slope
        found = 1 - missed.square().sum() / (new_y - y.mean(0)).square().sum()
        return found.clamp(min=0) if clamped else found

    return score


def predicts_x(x, y):
    return score(y, x)


def one_mean_for_all(x, y):
    return not_centred(x - x.mean(), y - y.mean())


def shares(mean=lambda x: x.mean((0, 1)), power=2):
    def share(x):
        away = (x - mean(x)).abs() ** power
        return away.sum((0, 2)) / away.sum()

    return share


def penalty(of_block=lambda cos: (1 - cos).mean((1, 2)), dim=-1):
    def sum_over_blocks(states):
        cosine = torch.nn.functional.cosine_similarity(states[:-1], states[1:], dim=dim)
        return of_block(cosine).sum()

    return sum_over_blocks


def dot_products(states):
    return (1 - (states[:-1] * states[1:]).sum(-1)).mean((1, 2)).sum()


def neighbours_in_the_text(states):
    cosine = torch.nn.functional.cosine_similarity(states[:, :, :-1], states[:, :, 1:], dim=-1)
    return (1 - cosine).mean((1, 2)).sum()


WRONG = [
    ("4.1", predicts_x, "predicts x from y"),
    ("4.1", one_mean_for_all, "mean of its own"),
    ("4.4", held_out(means_of_the_test=True), "test rows of x away"),
    ("4.4", held_out(all_rows=True), "all rows"),
    ("4.4", held_out(clamped=True), "below zero"),
    ("4.5", shares(lambda x: x.mean()), "vector"),
    ("4.5", shares(lambda x: x.mean(0)), "mean for each position"),
    ("4.5", shares(lambda x: x.mean(1, keepdim=True)), "mean for each row"),
    ("4.5", shares(power=1), "not squared"),
    ("4.7", penalty(lambda cos: -cos.mean((1, 2))), "-cos"),
    ("4.7", penalty(lambda cos: 1 - cos.abs().mean((1, 2))), "keeps its sign"),
    ("4.7", penalty(lambda cos: (1 - cos[:-1]).mean((1, 2))), "last block"),
    ("4.7", penalty(lambda cos: (1 - cos).mean(1)), "sum over positions"),
    ("4.7", penalty(dim=1), "dim=-1"),
    ("4.7", dot_products, "both lengths"),
    ("4.7", neighbours_in_the_text, "neighbours in the text"),
    ("4.1", not_centred, "Centre both"),
    ("4.1", averaged_columns, "Pool them"),
    ("4.2", with_residual, "with the residual"),
    ("4.3", d_over_n, "uses up one row"),
    ("4.3", unexplained, "stays unexplained"),
    ("4.4", mean_of_the_test, "fitted on"),
    ("4.4", fitted_on_the_test, "fit the test rows"),
    ("4.5", share_of_squares, "away first"),
    ("4.6", map_of_the_output, "block's input"),
    ("4.6", no_hook, "changes nothing"),
    ("4.7", mean_over_blocks, "Sum over blocks"),
    ("4.6", with_hooks(lambda x, y, W, b: x @ W), "bias is missing"),
    ("4.6", with_hooks(lambda x, y, W, b: x @ W.T + b), "transposed"),
    ("4.6", with_hooks(lambda x, y, W, b: x + x @ W + b), "stream that comes in"),
    ("4.6", with_hooks(lambda x, y, W, b: y + x @ W + b), "Put it in its place"),
    ("4.6", with_hooks(lambda x, y, W, b: x @ W + b, shifted=False), "predict the next one"),
    ("4.6", map_before_the_block, "block still runs"),
]
