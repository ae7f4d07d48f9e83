"""What is measured: each case returns lines of the table. ``quick`` shrinks shapes and claims no budget."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import linearity_profile
import numpy as np
import scaling
import torch
from meter import HERE, Row, in_process, medians, wall
from peers import tools
from reference import (
    MINI,
    SMALL,
    bare_forward,
    body,
    microscope,
    path_by_path,
    random_model,
    random_tokens,
)

import lens_linear as ll
from lens_linear.dynamics.gains.directions import random_directions
from lens_linear.models.capture import run
from lens_linear.models.native import ModelSpec
from lens_linear.stats.evaluation import evaluation_tokens

TINY = ModelSpec(n_layers=3, d_model=48, n_heads=4, d_vocab=200, n_ctx=256)

NOTES = """
- *Body*: the same model on the same tokens in the same batches, stopped after the last block: what every
  pass of a profile runs. No logits are computed. *Bare forward* has them.
- Times are processor seconds, medians of three runs taken in turn after one that is not counted (profiles
  against their body: one run); whole commands are timed by the clock. The tour runs once.
- Below each profile with a budget: what its maps take in float64 when every one is two products of its rows (one
  of them symmetric), a Cholesky factor, two triangular solves and one product of as many other rows (in
  float32), and nothing else is done.
- *Reference*: keep every activation in memory, one singular value decomposition of [tokens, width] for
  every layer and site (the method of `llm-microscope`, written here as the obvious loop in
  `benchmarks/reference.py`). Its numbers and ours are compared in the same run.
- Memory ratios compare what the measurement adds to the process that is already there (interpreter,
  libraries, model, one small warm-up run), and each is the peak of a process of its own.
- scikit-learn's Ridge multiplies float32 rows in float32, ours in float64, since a fit without a penalty needs
  it: on one pair of such matrices it is ahead in time.
- *Exponent*: slope of log time against log size between the two largest sizes; its budget is that of the
  cause, and 0.1 for noise. Random small models, one axis at a time.
- The naive surrogate asks for one Jacobian product for each of 32 directions and each layer, by central
  differences of whole forward passes; a few are timed and the rest is multiplied.
"""


def profile_time(quick: bool, _folder: Path) -> list[Row]:
    """The default profile against the body of the forward pass, at few and at many rows an input."""
    rows = []
    shapes = [
        ("GPT-2-small shape", lambda: random_model(SMALL), 4, 512, 1.45),
        ("GPT-2-small shape", lambda: random_model(SMALL), 8, 512, 1.45),
        ("gpt-mini shape", lambda: random_model(MINI), 64, 128, None),
        ("SmolLM2-135M", lambda: ll.load("smollm2-135m"), 6, 256, 1.5),
        ("SmolLM2-135M", lambda: ll.load("smollm2-135m"), 24, 256, 1.5),
    ]
    for name, opened, n, length, budget in (
        [("tiny", lambda: random_model(TINY), 16, 64, None)] if quick else shapes
    ):
        value, least = None, None
        measured = "the model is not on this machine: lens-linear models --get smollm2-135m"
        with suppress(ll.errors.UnknownModelError):
            model = opened()
            tokens = _rows_of_text(model, n, length)
            taken = medians(
                1,
                body=partial(body, model, tokens, 2),
                ours=partial(ll.linearity_profile, model, tokens, batch_size=2),
                map=partial(_one_map, n * length // 2, model.cfg.d_model),
            )
            value = taken["ours"] / taken["body"]
            measured = f"{taken['ours']:.2f} s against {taken['body']:.2f} s body"
            bare = 3 * model.cfg.n_layers * taken["map"]
            least = 1 + bare / taken["body"]
        shape, unit = f"{name}, {n} × {length} tokens", "× body of the forward pass"
        words = "linearity_profile, default sites, all layers"
        rows.append(Row(words, shape, measured, value, unit, budget))
        if least is not None and budget is not None:
            words = (
                "body, and the maps of such a profile as bare matrix products and one solve each"
            )
            rows.append(Row(words, shape, f"{bare:.2f} s for the maps", least, unit, None))
    return rows


def _one_map(n_rows: int, d: int) -> None:
    """One least-squares map in float64, and what it says of as many other rows, with nothing checked."""
    x, y = torch.ones(2, n_rows, d, dtype=torch.float64)
    square = ll.linalg.gram(x)
    square.diagonal().add_(1.0)
    root = torch.linalg.cholesky_ex(square, upper=True)[0]
    inner = torch.linalg.solve_triangular(root.T, x.T @ y, upper=False)
    weight = torch.linalg.solve_triangular(root, inner, upper=True).float()
    torch.linalg.vector_norm(y.float() - x.float() @ weight, dim=-1)


def _rows_of_text(model, n: int, length: int) -> torch.Tensor:
    """The package's own stories where the model reads text, else random ids."""
    if model.tokenizer is None:
        ids = torch.Generator().manual_seed(0)
        return torch.randint(model.cfg.d_vocab, (n, length), generator=ids)
    return evaluation_tokens(model, n_sequences=n, length=length)


def matrices(quick: bool, _folder: Path) -> list[Row]:
    """One pair of matrices: the same number from ours and from what others use."""
    from sklearn.linear_model import Ridge

    n, d = (400, 64) if quick else (4096, 768)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g)
    y = 0.8 * x + 0.3 * torch.randn(n, d, generator=g)
    centred = [(t - t.mean(0)).double().numpy() for t in (x, y)]
    ours: dict[str, Callable[[], float]] = {
        "procrustes_similarity": lambda: float(ll.procrustes_similarity(x, y)),
        "fit_linear": lambda: ll.linalg.fit_linear(x, y).r_squared,
        "fit_linear, ridge 1": lambda: ll.linalg.fit_linear(x, y, ridge=1.0).r_squared,
    }

    def lstsq() -> float:
        weight = np.linalg.lstsq(*centred, rcond=None)[0]
        return 1 - np.square(centred[1] - centred[0] @ weight).sum() / np.square(centred[1]).sum()

    def ridge() -> float:
        found = Ridge(alpha=1.0).fit(x.numpy(), y.numpy()).predict(x.numpy())
        left = np.square(y.numpy() - found).sum(dtype=float)
        return 1 - left / np.square(centred[1]).sum()

    peers = {
        "procrustes_similarity": ("llm-microscope's float32 SVD", partial(microscope, x, y), 0.7),
        "fit_linear": ("numpy.linalg.lstsq, float64", lstsq, 0.3),
        "fit_linear, ridge 1": ("scikit-learn's Ridge, float32", ridge, 1.0),
    }
    rows = []
    for name, (words, other, budget) in peers.items():
        apart = abs(ours[name]() - other())
        taken = medians(1 if quick else 3, ours=ours[name], other=other)
        rows.append(
            Row(
                f"{name} against {words}",
                f"{n:,} × {d}, R² apart by {apart:.1e}",
                f"{taken['ours']:.3f} s against {taken['other']:.3f} s",
                taken["ours"] / taken["other"],
                "×",
                None if quick else budget,
            )
        )
    return rows


def composition(quick: bool, _folder: Path) -> list[Row]:
    """All pairs of heads, against TransformerLens' own scores, which multiply every circuit out."""
    layers, heads, width = (2, 4, 64) if quick else (4, 8, 256)
    model = ll.toy_model(n_layers=layers, n_heads=heads, d_model=width)
    with torch.no_grad():
        theirs = {kind: model.all_composition_scores(kind) for kind in "QKV"}
    apart = 0.0
    for row in ll.composition_scores(model, n_random=2).to_dataframe().itertuples():
        ends = [ll.head(model, name) for name in (row.writer, row.reader)]
        place = tuple(number for end in ends for number in (end.layer, end.head))
        apart = max(apart, abs(float(theirs[row.kind][place]) - row.score))
    taken = medians(
        1 if quick else 3,
        ours=partial(ll.composition_scores, model, n_random=2),
        theirs=lambda: [model.all_composition_scores(kind) for kind in "QKV"],
    )
    return [
        Row(
            "composition_scores, two draws of a baseline, against all_composition_scores of TransformerLens",
            f"{layers} × {heads} heads, width {width}, scores apart by {apart:.1e}",
            f"{taken['ours']:.2f} s against {taken['theirs']:.2f} s",
            taken["ours"] / taken["theirs"],
            "×",
            None if quick else 0.6,
        )
    ]


def profile_memory(quick: bool, _folder: Path) -> list[Row]:
    if quick:
        return []
    rows = []
    for tokens, width in ((65_536, 768), (655_360, 128)):
        found = linearity_profile.memory((8_192, tokens), 2, width)
        small, large = (entry["peak_mib"] for entry in found["runs"])
        rows.append(
            Row(
                f"linearity_profile, peak memory at {tokens // 1024}k against 8k tokens",
                f"2 layers, width {width}",
                f"{large:.0f} MiB against {small:.0f} MiB",
                large / small,
                "×",
                1.05,
            )
        )
    wide = linearity_profile.memory((8_192,), 8, 2048)["runs"][0]
    added = (wide["peak_mib"] - wide["before_mib"]) / 1024
    shape, measured = "8 layers, width 2,048, 8,192 tokens", f"{wide['before_mib']:.0f} MiB before"
    words = "linearity_profile with max_memory of 4 GiB, memory added"
    return [*rows, Row(words, shape, measured, added, "GiB", 4.0)]


def profile_reference(quick: bool, _folder: Path) -> list[Row]:
    n_tokens = 4096 if quick else 65_536
    shape = f"gpt-mini shape, {n_tokens:,} tokens"
    repeats = 1 if quick else 3
    ours = in_process("reference.py", "profile", n_tokens, repeats)
    rows = []
    for name, words in (
        ("cached", "caching everything + SVD"),
        ("sklearn", "scikit-learn per layer"),
    ):
        other = in_process("reference.py", name, n_tokens, repeats)
        apart = max(abs(ours["scores"][k] - v) for k, v in other["scores"].items())
        added = [entry["peak_mib"] - entry["before_mib"] for entry in (ours, other)]
        rows += [
            Row(
                f"linearity_profile against {words}: time",
                shape,
                f"{ours['seconds']:.1f} s against {other['seconds']:.1f} s",
                ours["seconds"] / other["seconds"],
                "×",
                None if quick else 0.9,
            ),
            Row(
                f"linearity_profile against {words}: memory added",
                shape,
                f"{added[0]:.0f} MiB against {added[1]:.0f} MiB",
                max(added[0], 0.1) / max(added[1], 0.1),
                "×",
                None if quick else 0.03,
            ),
            Row(
                f"linearity_profile against {words}: largest difference of R²",
                shape,
                "in-sample, all layers and sites",
                apart,
                "",
                None if quick else 1e-5,
            ),
        ]
    return rows


def dynamics(quick: bool, _folder: Path) -> list[Row]:
    spec = TINY if quick else SMALL
    n, length = (8, 32) if quick else (16, 64)
    model = random_model(spec)
    prompts = random_tokens(spec, n, length)
    directions = random_directions(model)
    layers = spec.n_layers
    shape = f"{'small' if quick else 'GPT-2-small'} shape, {n} prompts of {length} tokens"
    repeats = 1 if quick else 3
    taken = medians(
        repeats,
        bare=lambda: bare_forward(model, prompts, n),
        adjoint=lambda: ll.gain_profile(model, prompts, directions),
        surrogate=lambda: ll.fit_surrogate(model, prompts, directions, order=32),
    )
    bare = taken["bare"]
    few = prompts[:2]
    some = medians(
        repeats,
        bare=lambda: bare_forward(model, few, len(few)),
        empirical=lambda: ll.gain_profile(model, few, directions, "empirical"),
        product=lambda: _one_product(model, prompts, directions, layers // 2),
    )
    bare_few, empirical, product = some["bare"], some["empirical"], some["product"]
    naive = product * 32 * layers
    return [
        Row(
            "gain_profile, adjoint, all layers",
            shape,
            f"{taken['adjoint']:.2f} s against {bare:.2f} s a forward pass",
            taken["adjoint"] / bare,
            "forward passes",
            None if quick else 1,
        ),
        Row(
            "gain_profile, empirical, all layers",
            f"{shape.split(',')[0]}, {len(few)} prompts of {length} tokens",
            f"{empirical:.2f} s against {bare_few:.2f} s a forward pass",
            empirical / bare_few,
            "forward passes",
            None if quick else 2.2 * layers,
        ),
        Row(
            "fit_surrogate(order=32)",
            shape,
            f"{taken['surrogate']:.2f} s against {bare:.2f} s a forward pass",
            taken["surrogate"] / bare,
            "forward passes",
            None if quick else 2.5,
        ),
        Row(
            "fit_surrogate(order=32) against naive Jacobian products",
            f"{shape}, 32 × {layers} products, one of them timed",
            f"{taken['surrogate']:.2f} s against {naive:.0f} s",
            taken["surrogate"] / naive,
            "×",
            None if quick else 0.01,
        ),
    ]


def _one_product(model, prompts, directions, layer: int) -> torch.Tensor:
    """A v of one block by central differences: two forward passes up to that block."""
    step = 1e-3 * directions[layer].to(next(model.parameters()).dtype)
    ends = []
    for sign in (1, -1):

        def push(x: torch.Tensor, sign: int = sign) -> torch.Tensor:
            x = x.clone()
            x[:, -1] += sign * step
            return x

        spot = (layer, "resid_post")
        out = run(model, prompts, record=[spot], edits=[((layer, "resid_pre"), push)], logits=False)
        ends.append(out[spot][:, -1])
    return (ends[0] - ends[1]) / 2e-3


def circuits(quick: bool, _folder: Path) -> list[Row]:
    large, both = (3000, 2000) if quick else (49_152, 12_000)
    top = in_process("reference.py", "pairs", large, 1 if quick else 3)
    repeats = 1 if quick else 3
    ours, dense = (in_process("reference.py", name, both, repeats) for name in ("pairs", "dense"))
    if abs(ours["checksum"] - dense["checksum"]) > 1e-6 * abs(dense["checksum"]):
        raise RuntimeError("top pairs and the dense way disagree")
    added = [entry["peak_mib"] - entry["before_mib"] for entry in (ours, dense)]
    shape = f"{large:,} × {large:,}, rank 64"
    return [
        Row(
            "top 1000 pairs of a circuit: time",
            shape,
            f"{top['seconds']:.1f} s",
            top["seconds"],
            "s",
            None if quick else 6.0,
        ),
        Row(
            "top 1000 pairs of a circuit: peak of the process",
            shape,
            f"a dense float64 matrix is {large**2 * 8 / 2**30:.1f} GiB",
            top["peak_mib"] / 1024,
            "GiB",
            None if quick else 1e9 / 2**30,
        ),
        Row(
            "top 1000 pairs against the dense way: time",
            f"{both:,} × {both:,}, rank 64",
            f"{ours['seconds']:.2f} s against {dense['seconds']:.2f} s",
            ours["seconds"] / dense["seconds"],
            "×",
            None if quick else 0.3,
        ),
        Row(
            "top 1000 pairs against the dense way: memory added",
            f"{both:,} × {both:,}, rank 64",
            f"{added[0]:.0f} MiB against {added[1]:.0f} MiB",
            max(added[0], 0.1) / max(added[1], 0.1),
            "×",
            None if quick else 0.1,
        ),
    ]


def _every_path(view: ll.AttentionOnly, tokens: torch.Tensor, *, repeats: int) -> dict[str, float]:
    # No way keeps the logits: 1.4 GiB of them at 3 x 8 heads, and time then measured the page faults.
    def ours() -> None:
        expansion = view.paths(tokens, dtype=torch.float64)
        for i in range(len(expansion.names)):
            expansion.term_logits(i)

    def naive() -> None:
        for _ in path_by_path(view.frozen(tokens, dtype=torch.float64)):
            pass

    found = path_by_path(view.frozen(tokens, dtype=torch.float64))
    apart = (sum(found) - view.paths(tokens, dtype=torch.float64).logits).abs().max()
    if not float(apart) < 1e-9:
        raise RuntimeError(f"the two ways to expand paths disagree by {float(apart):.3g}")
    return medians(repeats, ours=ours, naive=naive)


def paths(quick: bool, _folder: Path) -> list[Row]:
    rows = []
    for n_layers, n_heads in ((2, 4), (3, 8)):
        heads = 2 if quick else n_heads
        model = ll.toy_model(
            n_layers=n_layers, n_heads=heads, d_model=128, d_vocab=1024, n_ctx=64, norm="LNPre"
        )
        tokens = torch.randint(1024, (4, 32), generator=torch.Generator().manual_seed(0))
        taken = _every_path(ll.AttentionOnly(model), tokens, repeats=1 if quick else 3)
        rows.append(
            Row(
                "every path's logits against recomputing each path",
                f"{n_layers} layers × {heads} heads, {(heads + 1) ** n_layers} chains, float64",
                f"{taken['ours']:.2f} s against {taken['naive']:.2f} s, one forward pass in both",
                taken["ours"] / taken["naive"],
                "×",
                # Both are ruled by the unembedding of every path; runs vary from 0.8 to 1.1.
                None if quick else 1.0,
            )
        )
    return rows


def start(quick: bool, folder: Path) -> list[Row]:
    repeats = 2 if quick else 7
    empty = wall([sys.executable, "-c", "pass"], repeats)
    imported = wall([sys.executable, "-c", "import lens_linear"], repeats)
    command = [sys.executable, "-m", "lens_linear", "--help"]
    helped = wall(command, repeats)
    rows = [
        Row(
            "import lens_linear",
            "cold process, the bare interpreter's start taken off",
            f"{imported:.3f} s, of which the interpreter {empty:.3f} s",
            max(imported - empty, 0.0),
            "s",
            None if quick else 0.1,
        ),
        Row(
            "lens-linear --help",
            "whole command",
            f"{helped:.3f} s",
            helped,
            "s",
            None if quick else 0.25,
        ),
    ]
    commands = {"models": [], "tutorials": [str(folder), "--force"], "circuits": ["attn-2x"]}
    for name, words in commands.items():
        wrong = name == "circuits"
        command = [sys.executable, "-m", "lens_linear", name, *words]
        taken = wall(command, repeats, check=not wrong)
        shape = "whole command" + (", the model's name misspelt" if wrong else "")
        measured = f"{taken:.3f} s"
        rows.append(Row(f"lens-linear {name}", shape, measured, taken, "s", None if quick else 0.8))
    return rows


def tour(quick: bool, folder: Path) -> list[Row]:
    if quick:
        return []
    command = [sys.executable, "-m", "lens_linear", "tour", "--out", str(folder / "tour.html")]
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - begun
    size = (folder / "tour.html").stat().st_size / 1e6
    code = (
        "import sys, time; from lens_linear.reports.tour_page import tour; "
        "begun = time.process_time(); tour(sys.argv[1]); print(time.process_time() - begun)"
    )
    inside = [sys.executable, "-c", code, str(folder / "tour.html")]
    taken = float(subprocess.run(inside, check=True, capture_output=True).stdout.split()[-1])
    return [
        Row("lens-linear tour", "in process, libraries imported", f"{taken:.1f} s", taken, "s", 7),
        Row(
            "lens-linear tour",
            f"whole command, by the clock, page of {size:.1f} MB",
            f"{seconds:.0f} s",
            seconds,
            "s",
            None,
        ),
    ]


def tests(_quick: bool, _folder: Path) -> list[Row]:
    """The test command takes minutes: only where LENS_LINEAR_BENCHMARK_TESTS=1 asks for it."""
    value = None
    if os.environ.get("LENS_LINEAR_BENCHMARK_TESTS") == "1":
        begun = time.perf_counter()
        command = [sys.executable, "-m", "pytest", "-n", "2"]
        subprocess.run(command, check=True, capture_output=True, cwd=HERE.parent)
        value = (time.perf_counter() - begun) / 60
    measured = "not asked for" if value is None else f"{value:.1f} minutes"
    return [Row("pytest -n 2", "the test command of the README", measured, value, "minutes", 8)]


CASES = {
    "start": start,
    "profile time": profile_time,
    "matrices": matrices,
    "composition": composition,
    "tools of TransformerLens": tools,
    "profile memory": profile_memory,
    "profile reference": profile_reference,
    "dynamics": dynamics,
    "circuits": circuits,
    "paths": paths,
    "tour": tour,
    "replacement": scaling.replacement,
    "memory of prompts": scaling.prompt_memory,
    "large composition": scaling.large_composition,
    "threads": scaling.threads,
    "exponents": scaling.exponents,
    "tests": tests,
}
