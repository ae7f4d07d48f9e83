"""Cost of ``linearity_profile``: time against the bare forward pass, and peak memory against tokens.

    python benchmarks/linearity_profile.py time            # GPT-2-small shape, random weights
    python benchmarks/linearity_profile.py memory          # peak at 8k and at 64k tokens, two processes

Budgets: time at most 1.5 times the bare forward pass over the same tokens (logits included); peak memory
at 64k tokens within 5 % of the peak at 8k.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch
from meter import WITHOUT_HOLES, in_process, peak_mib
from reference import SMALL, random_model, random_tokens

import lens_linear as ll
from lens_linear.models.capture import batched, forward_logits

LIMIT = 4 * 2**30  # bytes that a profile may add


def time_profile(*, n_sequences=8, length=512, batch_size=2, repeats=2, sites=("block", "ffn")):
    """Seconds of the bare forward pass and of the profile, taken in turn; the best of each.

    Processor seconds stand beside elapsed ones: on a machine that is busy only they mean something.
    """
    model = random_model(SMALL)
    tokens = random_tokens(SMALL, n_sequences, length)
    bare, profile = [], []
    with torch.no_grad():
        forward_logits(model, tokens[:1])
        for _ in range(repeats):
            start = clocks()
            for _, rows in batched(tokens, batch_size):
                forward_logits(model, rows)
            bare.append(since(start))
            start = clocks()
            ll.linearity_profile(model, tokens, sites=sites, batch_size=batch_size)
            profile.append(since(start))
    elapsed, processor = (
        {"bare_s": min(b[k] for b in bare), "profile_s": min(p[k] for p in profile)}
        for k in range(2)
    )
    return {
        "tokens": n_sequences * length,
        "threads": torch.get_num_threads(),
        "elapsed": {**elapsed, "ratio": elapsed["profile_s"] / elapsed["bare_s"]},
        "processor": {**processor, "ratio": processor["profile_s"] / processor["bare_s"]},
    }


def clocks():
    return time.perf_counter(), time.process_time()


def since(start):
    return tuple(now - then for now, then in zip(clocks(), start, strict=True))


def peak_memory(n_tokens, *, length=512, n_layers=2, d_model=768):
    """Peak resident memory (MiB) of this process after a profile over ``n_tokens``."""
    spec = replace(SMALL, n_layers=n_layers, d_model=d_model, n_heads=d_model // 64, d_vocab=1024)
    model = random_model(spec)
    tokens = random_tokens(spec, n_tokens // length, length)
    before = peak_mib()
    ll.linearity_profile(model, tokens, sites=("block", "ffn"), batch_size=8, max_memory=LIMIT)
    after = peak_mib()
    return {"tokens": n_tokens, "before_mib": before, "peak_mib": after}


def memory(sizes=(8_192, 65_536), n_layers=2, d_model=768):
    """Peaks at some numbers of tokens, each in a process of its own."""
    shape = ["--layers", str(n_layers), "--width", str(d_model)]
    out = [
        in_process("linearity_profile.py", "peak", n_tokens, *shape, **WITHOUT_HOLES)
        for n_tokens in sizes
    ]
    growth = out[-1]["peak_mib"] / out[0]["peak_mib"] - 1
    return {"runs": out, "growth": growth}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["time", "memory", "peak"])
    parser.add_argument("n_tokens", nargs="?", type=int, default=8_192)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=768)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    found = {
        "time": lambda: time_profile(repeats=arguments.repeats),
        "memory": memory,
        "peak": lambda: peak_memory(
            arguments.n_tokens, n_layers=arguments.layers, d_model=arguments.width
        ),
    }[arguments.what]()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
