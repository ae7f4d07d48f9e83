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


WRONG = [
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
