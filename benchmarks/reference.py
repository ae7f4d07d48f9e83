"""The slow, obvious ways that the package is measured against. Nothing here is used by the package.

Run as a script, one job in a process of its own, it prints time and peak memory as JSON:

    python benchmarks/reference.py profile|cached|sklearn N_TOKENS REPEATS
    python benchmarks/reference.py pairs|dense SIZE REPEATS
"""

from __future__ import annotations

import json
import sys

import torch
from meter import median_seconds, peak_mib

import lens_linear as ll
from lens_linear._tl import FactoredMatrix
from lens_linear.circuits.heads.factored import top_pairs
from lens_linear.models.capture import batched, visit_sites
from lens_linear.models.native import ModelSpec, bridge_from_module, native_module

SITES = ("block", "ffn")
MINI = ModelSpec(n_layers=8, d_model=192, n_heads=6, d_vocab=1024, n_ctx=128)
SMALL = ModelSpec(n_layers=12, d_model=768, n_heads=12, d_vocab=50257, n_ctx=1024)


def random_model(spec):
    return bridge_from_module(native_module(spec), spec, name="random weights")


def random_tokens(spec, n, length):
    return torch.randint(spec.d_vocab, (n, length), generator=torch.Generator().manual_seed(0))


def body(model, tokens, batch_size):
    """The forward pass without logits: what every pass of a profile runs, with nothing measured."""
    last = model.cfg.n_layers - 1
    visit_sites(
        model, tokens, lambda *_: None, sites=("block",), layers=[last], batch_size=batch_size
    )


def microscope(x, y):
    """The score of llm-microscope: both matrices centred and of norm one, a float32 SVD of x."""
    x, y = (t - t.mean(0, keepdim=True) for t in (x, y))
    x, y = x / x.norm(), y / y.norm()
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    return float(1 - (x @ ((vt.T / s) @ (u.T @ y)) - y).norm() ** 2)


def cached_activations(model, tokens):
    """Every site's input and output over all tokens, kept in memory as float32."""
    kept = {}
    visit_sites(
        model,
        tokens,
        lambda layer, site, x, y: kept.setdefault((layer, site), []).append(
            (x.flatten(0, 1).clone(), y.flatten(0, 1).clone())
        ),
        sites=SITES,
    )
    return {
        key: tuple(torch.cat(column) for column in zip(*parts, strict=True))
        for key, parts in kept.items()
    }


def svd_r2(x, y):
    """In-sample R² of the best linear map of centred x: projection on the left singular vectors."""
    x, y = x - x.mean(0), y - y.mean(0)
    u, _, _ = torch.linalg.svd(x, full_matrices=False)
    return float((u.T @ y).square().sum() / y.square().sum())


def cached_svd(model, tokens):
    """The reference method: cache everything, one SVD of [n, d] a layer and site."""
    return {key: svd_r2(x, y) for key, (x, y) in cached_activations(model, tokens).items()}


def cached_sklearn(model, tokens):
    """The same with scikit-learn's LinearRegression, fitted and scored on the cached rows."""
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import r2_score

    found = {}
    for key, (x, y) in cached_activations(model, tokens).items():
        x, y = x.numpy(), y.numpy()
        guess = LinearRegression().fit(x, y).predict(x)
        found[key] = float(r2_score(y, guess, multioutput="variance_weighted"))
    return found


def profile(model, tokens):
    """Ours, in-sample, so that the numbers can be compared."""
    found = ll.linearity_profile(model, tokens, fit="in-sample", sites=SITES)
    return {
        (layer, site): float(value)
        for site in SITES
        for layer, value in enumerate(found.scores[site])
    }


METHODS = {"profile": profile, "cached": cached_svd, "sklearn": cached_sklearn}


def measure_method(name, n_tokens, repeats):
    model = random_model(MINI)
    tokens = random_tokens(MINI, n_tokens // MINI.n_ctx, MINI.n_ctx)
    METHODS[name](model, tokens[: max(4, 2048 // MINI.n_ctx)])
    before = peak_mib()
    seconds, scores = median_seconds(repeats, lambda: METHODS[name](model, tokens))
    named = {f"{layer}.{site}": value for (layer, site), value in scores.items()}
    return {"seconds": seconds, "before_mib": before, "peak_mib": peak_mib(), "scores": named}


def factored(size, rank=64):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(size, rank, generator=generator, dtype=torch.float64)
    b = torch.randn(rank, size, generator=generator, dtype=torch.float64)
    return FactoredMatrix(a, b)


def dense_pairs(matrix, k):
    """The dense way: multiply out, sort what is there."""
    full = matrix.A @ matrix.B
    found = full.flatten().topk(k)
    return found.values


def our_pairs(matrix, k):
    """Ours: block by block, through the factors."""
    return torch.as_tensor(top_pairs(matrix, k).to_dataframe()["value"].to_numpy().copy())


def measure_pairs(name, size, repeats, k=1000):
    matrix = factored(size)
    before = peak_mib()
    seconds, values = median_seconds(
        repeats, lambda: our_pairs(matrix, k) if name == "pairs" else dense_pairs(matrix, k)
    )
    return {
        "seconds": seconds,
        "before_mib": before,
        "peak_mib": peak_mib(),
        "checksum": float(values.sum()),
    }


def path_by_path(frozen):
    """Every end-to-end path's logits, each recomputed from its source: nothing is shared.

    Sources are token embeddings and positions; models without biases only.
    """
    at = frozen.weights.attention
    sources = [frozen.embedding]
    if frozen.positions is not None:
        sources.append(frozen.positions.expand_as(frozen.embedding))
    n_layers, n_heads = at.W_V.shape[:2]

    def extend(chain, layer):
        for stream in sources:
            for at_layer, head in chain:
                values = stream / frozen.scales[at_layer] @ at.W_V[at_layer, head]
                moved = frozen.patterns[at_layer][:, head] @ values
                stream = moved @ at.W_O[at_layer, head]
            yield stream / frozen.scales[-1] @ frozen.weights.W_U
        for later in range(layer, n_layers):
            for head in range(n_heads):
                yield from extend([*chain, (later, head)], later + 1)

    return extend([], 0)


def bare_forward(model, tokens, batch_size):
    with torch.no_grad():
        for _, rows in batched(tokens, batch_size):
            model(rows, return_type="logits")


if __name__ == "__main__":
    what, size, repeats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    job = measure_method if what in METHODS else measure_pairs
    print(json.dumps(job(what, size, repeats)))
