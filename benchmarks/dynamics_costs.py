"""Cost of depth dynamics in forward passes over the same prompts.

    python benchmarks/dynamics_costs.py gpt-nano gpt-micro gpt-mini gpt2-shape

Budgets: ``gain_profile(method="adjoint")`` at most 4 forward passes for all layers,
``fit_surrogate(order=32)`` at most 8. The empirical profile, 2 × layers passes, stands beside them. A
forward pass is one over the same right-padded batches, unembedding included. Processor seconds are compared,
best of several runs: on a busy machine elapsed ones mean nothing.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from reference import SMALL, random_model

import lens_linear as ll
from lens_linear.dynamics import as_prompts, random_directions
from lens_linear.models.capture import run


def model_of(name):
    if name != "gpt2-shape":
        return ll.load(name)
    return random_model(SMALL)


def prompts_of(model, name, n_prompts, length):
    """Mood sentences where the model has a tokenizer, else random tokens of one length."""
    if getattr(model, "tokenizer", None) is not None and not length:
        texts = ll.load_concept("mood").texts[:n_prompts]
        return as_prompts(model, list(texts), truncate=True)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.cfg.d_vocab, (n_prompts, length or 32), generator=generator)
    return as_prompts(model, tokens)


def forward(model, prompts, batch_size=64):
    for rows in prompts.batches(batch_size):
        run(model, prompts.rows(rows)[0])


def seconds(call, repeats):
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def measure(name, *, n_prompts, length, repeats):
    model = model_of(name)
    prompts = prompts_of(model, name, n_prompts, length)
    directions = random_directions(model)
    forward(model, prompts)
    bare = seconds(lambda: forward(model, prompts), repeats)
    out = {
        "model": name,
        "n_layers": model.cfg.n_layers,
        "d_model": model.cfg.d_model,
        "n_prompts": len(prompts),
        "tokens_a_prompt": float(prompts.lengths.double().mean()),
        "forward_s": bare,
        "adjoint": seconds(lambda: ll.gain_profile(model, prompts, directions), repeats) / bare,
    }
    if name != "gpt2-shape":
        out["empirical"] = (
            seconds(lambda: ll.gain_profile(model, prompts, directions, "empirical"), 1) / bare
        )
    for basis in ("krylov", "balanced", "pca", "random"):
        call = lambda basis=basis: ll.fit_surrogate(  # noqa: E731
            model, prompts, directions, order=32, basis=basis
        )
        out[f"fit_{basis}_32"] = seconds(call, max(1, repeats - 1)) / bare
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["gpt-nano", "gpt-micro", "gpt-mini"])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--length", type=int, default=0, help="random tokens of this length")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        found = measure(
            name, n_prompts=options.prompts, length=options.length, repeats=options.repeats
        )
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}))


if __name__ == "__main__":
    main()
