"""What a large model costs on a CUDA device: a shape of GPT-2-large with random weights.

    python benchmarks/gpu.py           # docs/results/gpu.json and docs/results/gpu.md
    python benchmarks/gpu.py --out F   # the two files in another folder

Needs a CUDA device and refuses without one. Times are by the clock, medians of three runs taken in turn after
one that is not counted, with the device waited for; peak memory is what torch's allocator handed out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from meter import Row
from reference import bare_forward, body, random_model, random_tokens
from run import RESULTS, machine, table, write

import lens_linear as ll
from lens_linear.dynamics.gains.directions import random_directions
from lens_linear.models.native import ModelSpec

LARGE = ModelSpec(n_layers=36, d_model=1280, n_heads=20, d_vocab=50257, n_ctx=1024)
SHAPE = "GPT-2-large shape (36 × 1280, 20 heads, vocabulary 50,257)"
GIB = 2**30
HEAD = """# On a GPU

Written by `python benchmarks/gpu.py` from one run; do not edit by hand.

"""
NOTES = """
- Random weights, float32 without TF32; statistics in float64 on the device.
- *Body*: the same model on the same tokens in the same batches, stopped after the last block. *Forward pass* has
  logits.
- *Memory*: the most that torch's allocator had handed out while the call ran, less what it had before.
- Whether an analysis gives the processor's numbers on a CUDA device is what `tests/robustness/test_devices.py` asks
  of each public call that takes a model or tensors, where there is a device.
"""


def clocked(repeats: int, **jobs: Callable[[], object]) -> dict[str, float]:
    """Median seconds by the clock of each job, the device waited for; the jobs take turns."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):  # the first pays for caches
        for name, job in jobs.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            job()
            torch.cuda.synchronize()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def added(job: Callable[[], object]) -> float:
    """GiB of the device that a call adds at its peak."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    job()
    return (torch.cuda.max_memory_allocated() - before) / GIB


def against(name: str, what: str, unit: str, seconds: dict[str, float]) -> Row:
    """A line of two times: ``ours`` over the other one."""
    ours, other = seconds["ours"], next(v for k, v in seconds.items() if k != "ours")
    measured = f"{ours:.3f} s against {other:.3f} s"
    return Row(name, f"{SHAPE}, {what}", measured, ours / other, unit, None)


def size(name: str, what: str, gib: float, budget: float | None = None) -> Row:
    return Row(name, f"{SHAPE}, {what}", "peak of the device", gib, "GiB", budget)


def profiles(model, tokens) -> list[Row]:
    """The profile's time and memory, and how far its numbers lie from those of the processor."""
    rows = []
    for name, sites in (("default sites", None), ("block + FFN", ("block", "ffn"))):
        chosen = {} if sites is None else {"sites": sites}
        seconds = clocked(
            3,
            ours=partial(ll.linearity_profile, model, tokens, batch_size=8, **chosen),
            body=partial(body, model, tokens, 8),
        )
        what = "32 × 512 tokens"
        rows.append(against(f"linearity_profile, {name}, all layers", what, "× body", seconds))
    whole = added(partial(ll.linearity_profile, model, tokens, batch_size=8))
    rows.append(size("linearity_profile, default sites, memory added", "32 × 512 tokens", whole))
    held = added(partial(ll.linearity_profile, model, tokens, batch_size=4, max_memory=4 * GIB))
    rows.append(
        size("linearity_profile with max_memory of 4 GiB, memory added", "32 × 512 tokens", held, 4)
    )
    few = tokens[:8]
    ours = ll.linearity_profile(model, few, batch_size=8)
    theirs = ll.linearity_profile(model.to("cpu"), few.cpu(), batch_size=8)
    model.to("cuda")
    apart = max(
        float((ours.scores[site].cpu() - theirs.scores[site]).abs().max()) for site in ours.scores
    )
    measured = "all layers, default sites, held out"
    rows.append(
        Row(
            "linearity_profile: largest difference of R² from the processor",
            f"{SHAPE}, 8 × 512 tokens",
            measured,
            apart,
            "",
            1e-5,
        )
    )
    return rows


def others(model, tokens) -> list[Row]:
    """One line for each of the other analyses that take a model through many tokens or heads."""
    forward = partial(bare_forward, model, tokens, 8)
    few = tokens[:16, :64]
    directions = random_directions(model)
    passes = partial(bare_forward, model, few, 16)
    lens = clocked(1, ours=partial(ll.fit_lens, model, tokens), forward=forward)
    gains = clocked(3, ours=partial(ll.gain_profile, model, few, directions), forward=passes)
    surrogate = clocked(
        1, ours=partial(ll.fit_surrogate, model, few, directions, order=32), forward=passes
    )
    scores = clocked(1, ours=partial(ll.induction_scores, model, bos=None), forward=forward)
    pairs = clocked(
        1, ours=partial(ll.composition_scores, model, n_random=2), forward=lambda: None
    )["ours"]
    long, short = "32 × 512 tokens", "16 × 64 tokens"
    unit = "× forward pass"
    return [
        against("fit_lens, all layers, its passes included", long, unit, lens),
        against("gain_profile, adjoint, all layers", short, unit, gains),
        against("fit_surrogate(order=32)", short, unit, surrogate),
        against("induction_scores, all heads, against a pass of other rows", long, unit, scores),
        Row("composition_scores with its baseline", SHAPE, "two draws", pairs, "s", None),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(
            2, "this machine has no CUDA device; benchmarks/run.py measures the processor\n"
        )
    started = time.monotonic()
    model, tokens = random_model(LARGE).to("cuda"), random_tokens(LARGE, 32, 512).cuda()
    rows = profiles(model, tokens) + others(model, tokens)
    found = {
        "machine": machine(),
        "quick": False,
        "minutes": (time.monotonic() - started) / 60,
        "rows": [row.to_dict() for row in rows],
    }
    print(table(rows))
    write(options.out, "gpu", found, HEAD, NOTES)
    return int(any(row.ok is False for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
