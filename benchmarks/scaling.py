"""How times grow: the slope of log time against log size between the two largest sizes, and its cause."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from meter import WITHOUT_HOLES, Row, in_process, median_seconds, medians, peak_mib
from reference import body

import lens_linear as ll
from lens_linear._tl import FactoredMatrix
from lens_linear.circuits.heads.factored import top_pairs
from lens_linear.dynamics.gains.directions import random_directions
from lens_linear.models.native import ModelSpec

Job = Callable[[], object]
_NOISE = 0.1  # what an exponent may lie above its cause


def _tokens(model, n: int, length: int) -> torch.Tensor:
    ids = torch.Generator().manual_seed(0)
    return torch.randint(model.cfg.d_vocab, (n, length), generator=ids)


def _profile(n_layers: int = 2, width: int = 64, sequences: int = 72) -> Job:
    model = ll.toy_model(n_layers=n_layers, d_model=width, attn_only=False, norm="LN")
    return partial(ll.linearity_profile, model, _tokens(model, sequences, 64))


def _lens(n_layers: int) -> Job:
    model = ll.toy_model(n_layers=n_layers, d_model=64, attn_only=False, norm="LN")
    return partial(ll.fit_lens, model, _tokens(model, 72, 64))


def _composition(n_layers: int = 4, n_heads: int = 4, width: int = 256) -> Job:
    model = ll.toy_model(n_layers=n_layers, d_model=width, n_heads=n_heads)
    return partial(ll.composition_scores, model, n_random=20)


def _prompts(analysis: Callable[..., object], n_layers: int = 4, prompts: int = 16) -> Job:
    model = ll.toy_model(n_layers=n_layers, d_model=128, attn_only=False, norm="LN")
    return partial(analysis, model, _tokens(model, prompts, 48), random_directions(model))


def _curve(n_layers: int) -> Job:
    model = ll.toy_model(n_layers=n_layers, d_model=64, attn_only=False, norm="LN")
    return partial(ll.replacement_curve, model, _tokens(model, 72, 64), "linear")


def _pairs(vocabulary: int) -> Job:
    ids = torch.Generator().manual_seed(0)
    a, b = (torch.randn(vocabulary, 64, generator=ids) for _ in range(2))
    return partial(top_pairs, FactoredMatrix(a, b.T), 1000)


LAYERS = (4, 12, 48)
# Analysis, what grows, its sizes, the job at a size, the exponent that its cause allows, and the cause.
GROWTH: list[tuple[str, str, tuple[int, ...], Callable[[int], Job], float, str]] = [
    ("linearity_profile", "layers", LAYERS, lambda n: _profile(n_layers=n), 1, "a pass"),
    ("linearity_profile", "width", (64, 512, 2048), lambda n: _profile(1, n), 3, "a solve is cubic"),
    ("linearity_profile", "tokens", (4_608, 18_432, 73_728), lambda n: _profile(2, 64, n // 64), 1, "a pass"),
    ("fit_lens", "layers", LAYERS, _lens, 1, "a pass"),
    ("composition_scores", "layers", LAYERS, lambda n: _composition(n), 2, "pairs of layers"),
    ("composition_scores", "heads", (4, 8, 32), lambda n: _composition(2, n), 2, "pairs of heads"),
    ("composition_scores", "width", (64, 512, 2048), lambda n: _composition(2, 4, n), 3, "4 heads, each a quarter of the width: width × d_head²"),
    ("gain_profile", "prompts", (16, 64, 256), lambda n: _prompts(ll.gain_profile, 4, n), 1, "a pass"),
    ("gain_profile", "layers", LAYERS, lambda n: _prompts(ll.gain_profile, n), 1, "a pass"),
    # 64 prompts are one batch, which stays alive; of several, streams are carried from layer to layer.
    ("fit_surrogate", "prompts", (64, 128, 512), lambda n: _prompts(ll.fit_surrogate, 4, n), 1, "a pass a product"),
    ("fit_surrogate", "layers", LAYERS, lambda n: _prompts(ll.fit_surrogate, n), 1, "a pass"),
    ("fit_surrogate, batches of 16", "layers", LAYERS, lambda n: _prompts(partial(ll.fit_surrogate, batch_size=16), n, 64), 1, "a pass"),
    ("replacement_curve, linear", "layers", LAYERS, _curve, 2, "a pass for each number of blocks"),
    ("top 1000 pairs", "vocabulary", (3_000, 12_000, 48_000), _pairs, 2, "pairs of tokens"),
]  # fmt: skip


def exponents(quick: bool, _folder: Path) -> list[Row]:
    """One line an analysis and axis."""
    rows = []
    for name, axis, sizes, job, cause, why in GROWTH[:1] if quick else GROWTH:
        taken = [_seconds(job(size)) for size in sizes]
        slope = math.log(taken[-1] / taken[-2]) / math.log(sizes[-1] / sizes[-2])
        pairs = zip(sizes, taken, strict=True)
        rows.append(
            Row(
                f"{name}: exponent over {axis}",
                f"{', '.join(f'{size:,}' for size in sizes)} {axis}; at most {cause}: {why}",
                ", ".join(f"{size:,}: {seconds:.2f} s" for size, seconds in pairs),
                slope,
                "",
                None if quick else cause + _NOISE,
            )
        )
    return rows


def _seconds(job: Job) -> float:
    """Least processor time of calls after the first, at most three or four seconds."""
    start = time.process_time()
    job()
    taken, spent = [], time.process_time() - start
    while not taken or (spent < 4 and len(taken) < 5):
        start = time.process_time()
        job()
        taken.append(time.process_time() - start)
        spent += taken[-1]
    return min(taken)


def large_composition(quick: bool, _folder: Path) -> list[Row]:
    """All pairs of 48 × 25 heads with their baseline."""
    shape = (2, 4, 64) if quick else (48, 25, 1600)
    found = in_process("scaling.py", "composition", *shape)
    return [
        Row(
            "composition_scores with its baseline",
            f"{shape[0]} × {shape[1]} heads, width {shape[2]:,}",
            f"{found['pairs']:,} pairs, peak {found['peak_mib'] / 1024:.1f} GiB, the model included",
            found["seconds"],
            "s",
            None if quick else 120,
        )
    ]


def replacement(quick: bool, _folder: Path) -> list[Row]:
    """A step of a curve whose maps are distilled, beside a forward pass over the rows that it fits on."""
    n_layers, width = (3, 32) if quick else (12, 512)
    model = ll.toy_model(n_layers=n_layers, d_model=width, attn_only=False, norm="LN", n_ctx=128)
    tokens = _tokens(model, 32, 128)
    taken = medians(
        1,
        curve=partial(ll.replacement_curve, model, tokens, "linear+distill"),
        body=partial(body, model, tokens[:16], 16),
    )
    step = taken["curve"] / n_layers
    return [
        Row(
            "replacement_curve, linear+distill: a block replaced, and the loss on the other half",
            f"{n_layers} layers, width {width}, 32 × 128 tokens",
            f"{step:.2f} s a step, {taken['body']:.2f} s a pass over the half that is fitted on",
            step / taken["body"],
            "× body",
            None if quick else 2.0,
        )
    ]


def prompt_memory(quick: bool, _folder: Path) -> list[Row]:
    """Peaks of two analyses at few and at many prompts, a batch alive at a time."""
    rows = []
    for name in ("gain_profile", "fit_surrogate"):
        counts = (16, 32) if quick else (64, 1024)
        few, many = (in_process("scaling.py", name, n, **WITHOUT_HOLES)["peak_mib"] for n in counts)
        rows.append(
            Row(
                f"{name}, peak memory at {counts[1]:,} against {counts[0]} prompts",
                "4 layers, width 128, 48 tokens a prompt, batches of 16",
                f"{many:.0f} MiB against {few:.0f} MiB",
                many / few,
                "×",
                None if quick else 1.05,
            )
        )
    return rows


def threads(quick: bool, _folder: Path) -> list[Row]:
    """Small models on the threads that torch takes by default, beside one thread, idle and with every core busy."""
    rows = []
    for busy in (False, True):
        burners = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range(2 * (os.cpu_count() or 1) if busy else 0)
        ]
        try:
            default, one = _timed({}), _timed({"OMP_NUM_THREADS": "1"})
        finally:
            for burner in burners:
                burner.kill()
        for what in ("train", "induction_scores"):
            rows.append(
                Row(
                    f"{what}, a small model: default threads against one",
                    f"clock, {'two other processes a core' if busy else 'idle machine'}",
                    f"{default[what]:.2f} s against {one[what]:.2f} s",
                    default[what] / one[what],
                    "×",
                    None if quick else 1.5,
                )
            )
    return rows


def _timed(environment: dict[str, str]) -> dict[str, float]:
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, __file__, "threads"]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**kept, **environment}
    )
    return json.loads(done.stdout.splitlines()[-1])


def _in_this_process(what: str, *shape: int) -> dict[str, float]:
    if what == "composition":
        torch.set_num_threads(1)
        n_layers, n_heads, width = shape
        model = ll.toy_model(n_layers=n_layers, n_heads=n_heads, d_model=width)
        seconds, scores = median_seconds(1, lambda: ll.composition_scores(model))
        return {"seconds": seconds, "pairs": len(scores.to_dataframe()), "peak_mib": peak_mib()}
    if hasattr(ll, what):
        torch.set_num_threads(1)
        _prompts(partial(getattr(ll, what), batch_size=16), 4, *shape)()
        return {"peak_mib": peak_mib()}
    model = ll.load("attn-2l")
    spec = ModelSpec(n_layers=2, d_model=64, n_heads=4, d_vocab=256)
    ids = torch.randint(256, (20_000,), generator=torch.Generator().manual_seed(0))
    jobs = {
        "induction_scores": lambda: ll.induction_scores(model),
        "train": lambda: ll.train(spec, ids, steps=8, progress=False),
    }
    found = {}
    for name, job in jobs.items():
        start = time.perf_counter()
        job()
        found[name] = time.perf_counter() - start
    return found


if __name__ == "__main__":
    print(json.dumps(_in_this_process(sys.argv[1], *map(int, sys.argv[2:]))))
