"""The measured tables of least-squares attention, slow and fast memory, and capacity.

    python benchmarks/ols_results.py docs/results

Writes ``ols-equality.csv`` (the layer against numpy's least squares and scikit-learn),
``ols-starts.csv`` (the paper's experiment from 2000 starts), ``ols-training.csv`` (more dimensions),
``ols-shift.csv`` and ``ols-cost.csv`` (covariance shift), ``ols-capacity.csv``, ``ols-slopes.csv``,
``ols-heads.csv`` (heads of ``attn-2l`` on the package's own stories), ``ols-dial.csv`` and
``ols-regimes.csv`` (from linear attention to softmax), ``ols-trained-heads.csv`` (regression or retrieval
in trained heads, with their memories exchanged), ``ols-head-dial.csv`` and ``ols-head-regimes.csv`` (the dial
turned on those heads) and, where ``smollm2-135m`` is at hand, ``ols-real-heads.csv``,
``ols-real-head-dial.csv``, ``ols-real-head-regimes.csv`` and ``ols-real-head-losses.csv``. A table that is there already is left alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LinearRegression, Ridge

import lens_linear as ll
from lens_linear import constructions as made
from lens_linear.errors import LensLinearError

KINDS = (
    "plain", "collinear", "wide", "constant column", "zero column", "tiny column", "tiny all",
    "huge all", "offset", "spread columns",
)  # fmt: skip
PROBLEMS = 100  # of each kind
RIDGE = 0.5


def problem(kind, seed):
    """Inputs, labels and new inputs of one random regression."""
    r = np.random.default_rng(seed)
    n, p, m = r.integers(3, 40), r.integers(2, 8), r.integers(1, 4)
    if kind == "wide":
        p = n + r.integers(1, 9)
    x, new = r.normal(size=(n, p)), r.normal(size=(9, p))
    for a in (x, new):
        if kind == "collinear":
            a[:, -1] = a[:, 0] + 2 * a[:, p // 2]
        elif kind == "constant column":
            a[:, -1] = 3.1
        elif kind == "zero column":
            a[:, 0] = 0.0
        elif kind == "tiny column":
            a[:, 0] *= 1e-6
        elif kind in ("tiny all", "huge all"):
            a *= 1e-9 if kind == "tiny all" else 1e9
        elif kind == "offset":
            a += 1000.0
        elif kind == "spread columns":
            a *= 10.0 ** np.linspace(-3, 3, p)
    y = x @ r.normal(size=(p, m)) / np.abs(x).max() + r.normal(size=(n, m))
    return x, y, new


def oracles(x, y, new):
    """Name, keyword arguments of the layer, and the other library's answer."""
    yield "numpy.linalg.lstsq", {}, new @ np.linalg.lstsq(x, y, rcond=None)[0]
    plain = LinearRegression(tol=1e-12).fit(x, y)
    yield "sklearn LinearRegression", {"intercept": True}, plain.predict(new)
    ridge = Ridge(alpha=RIDGE, solver="svd").fit(x, y)
    yield "sklearn Ridge", {"intercept": True, "ridge": RIDGE}, ridge.predict(new)


def equality():
    rows = []
    for kind in KINDS:
        for seed in range(PROBLEMS):
            x, y, new = problem(kind, seed)
            for oracle, options, want in oracles(x, y, new):
                want = want.reshape(len(new), -1)
                for form in ("in-context", "paper"):
                    layer = ll.OLSAttention.from_data(x, y, form=form, **options)
                    off = np.abs(layer.predict(new).numpy() - want).max()
                    error = off / max(1.0, np.abs(want).max())
                    rows.append((kind, oracle, form, error, layer.spectrum.condition))
    frame = pd.DataFrame(rows, columns=["kind", "oracle", "form", "error", "condition"])
    groups = frame.groupby(["kind", "oracle", "form"], sort=False)
    return groups.agg(
        problems=("error", "size"),
        worst_error=("error", "max"),
        median_error=("error", "median"),
        largest_condition=("condition", "max"),
    ).reset_index()


def starts():
    rows = []
    for optimizer, rate in (("gd", None), ("adam", 0.03)):
        run = ll.train_ols_attention(optimizer=optimizer, learning_rate=rate, seeds=2000)
        rows.append(row_of(run))
    return pd.DataFrame(rows)


def row_of(run):
    done = run.epochs_to_converge[~run.epochs_to_converge.isnan()]
    geometry = run.geometry_error[-1]
    geometry = geometry[geometry.isfinite()]  # without those that diverged
    return {
        "form": run.form,
        "inputs": run.x.shape[1],
        "tasks": run.y.shape[1],
        "optimizer": run.optimizer,
        "learning_rate": run.learning_rate,
        "starts": run.loss.shape[1],
        "converged": len(done),
        "diverged": run.diverged,
        "median_epochs": float(done.median()),
        "slowest_epochs": float(done.max()),
        "geometry_median": float(geometry.median()),
        "geometry_worst": float(geometry.max()),
    }


def training():
    runs = [
        ll.train_ols_attention(form=form, d=d, seeds=32)
        for form in ("paper", "in-context")
        for d in (1, 2, 4, 8, 16)
    ]
    return pd.DataFrame([row_of(run) for run in runs])


CACHE = {}


def once(name, make):
    if name not in CACHE:
        CACHE[name] = make()
    return CACHE[name]


def shift():
    frame = once("shift", made.covariance_shift).summary()
    return frame[frame["condition"].isin([1, 4, 16, 64, 256])]


def cost():
    return once("shift", made.covariance_shift).cost(tolerance=1e-6)


def capacity():
    return once("capacity", ll.memory_capacity).capacity()


def slopes():
    return once("capacity", ll.memory_capacity).slopes()


def heads():
    model = ll.load("attn-2l")
    tokens = ll.evaluation_tokens(model)[:16]
    frames = []
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            found = made.trained_head_memory(model, tokens, layer=layer, head=head)
            frames.append(found.position().assign(layer=layer, head=head, keys=found.n_keys))
    return pd.concat(frames)


def dial():
    return once("dial", made.attention_dial).summary()


def regimes():
    return once("dial", made.attention_dial).regimes()


def trained_heads():
    model = ll.load("attn-2l")
    text = ll.evaluation_tokens(model)[:16]
    frames = []
    for name, tokens in (("stories", text), ("random rows twice", twice(model, 16, 32))):
        frames.append(made.trained_heads(model, tokens).to_dataframe().assign(tokens=name))
    return pd.concat(frames)


def real_heads():
    """Random tokens twice, on which induction heads work; every head placed on 16 rows; of those that do not
    read the first position the five that retrieve most surely and the three nearest to regression
    exchanged on 8 rows.
    """
    model = ll.load("smollm2-135m")
    tokens = twice(model, 16, 24, 1000, 40_000)
    placed = made.trained_heads(model, tokens, exchanges=()).to_dataframe()
    away = placed[placed["first_share"] < 0.3]  # the others read the first position
    sure = away.nlargest(5, "retrieval_r2").index
    regress = away[away["kind"] == "regression"].nlargest(3, "regression_r2").index
    chosen = [
        (int(placed["layer"][i]), int(placed["head"][i].split("H")[1]))
        for i in sorted(set(sure) | set(regress))
    ]
    found = made.trained_heads(model, tokens[:8], heads=chosen).to_dataframe()
    losses = [name for name in found if name.startswith("loss_")]
    return placed.merge(found[["layer", "head", *losses]], how="left", on=["layer", "head"])


def twice(model, rows, length, low=0, high=None):
    """Rows of random tokens given twice, on which induction heads work."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randint(low, high or model.cfg.d_vocab, (rows, length), generator=generator)
    return torch.cat([half, half], dim=1)


def head_dials():
    """The dial on every head of attn-2l: stories, and random rows of 64 given twice."""
    model = ll.load("attn-2l")
    parts = [("stories", ll.evaluation_tokens(model)[:16])]
    parts.append(("random rows twice", twice(model, 16, 64)))
    return {
        name: once(name, lambda tokens=tokens: made.head_dial(model, tokens, losses=True))
        for name, tokens in parts
    }


def head_dial():
    dials = head_dials().items()
    return pd.concat([found.summary().assign(tokens=name) for name, found in dials])


def head_regimes():
    dials = head_dials().items()
    return pd.concat([found.regimes().assign(tokens=name) for name, found in dials])


REAL = ("L1H5", "L11H1", "L11H6", "L16H0", "L16H2", "L17H4", "L18H6", "L19H4")


def real_dial(**options):
    """The dial on SmolLM2; random rows of 128 given twice."""
    model = ll.load("smollm2-135m")
    return made.head_dial(model, twice(model, 4, 128, 1000, 40_000), **options)


def real_head_dials():
    """The heads that ``ols-real-heads`` exchanges, as they are and without the first position (the sink)."""
    return {
        skip: once(skip, lambda skip=skip: real_dial(heads=REAL, queries=24, skip=skip))
        for skip in (0, 1)
    }


def real_head_dial():
    return pd.concat(f.summary().assign(skip=skip) for skip, f in real_head_dials().items())


def real_head_regimes():
    return pd.concat(f.regimes().assign(skip=skip) for skip, f in real_head_dials().items())


def real_head_losses():
    """Four settings of the three heads that matter most, and these heads as trained without the first position."""
    options = {"heads": ("L1H5", "L16H0", "L18H6"), "queries": 2, "losses": True}
    along = real_dial(betas=(0.1, 10**-0.5, 10**0.5, 10.0), **options).summary().assign(skip=0)
    bare = real_dial(betas=(1.0,), skip=1, **options).summary().assign(skip=1)
    both = pd.concat([along, bare]).query("geometry == 'own'")
    return both[["head", "skip", "beta", "loss", "loss_se", "n_rows"]]


TABLES = {
    "ols-equality": equality,
    "ols-starts": starts,
    "ols-training": training,
    "ols-shift": shift,
    "ols-cost": cost,
    "ols-capacity": capacity,
    "ols-slopes": slopes,
    "ols-heads": heads,
    "ols-dial": dial,
    "ols-regimes": regimes,
    "ols-trained-heads": trained_heads,
    "ols-real-heads": real_heads,
    "ols-head-dial": head_dial,
    "ols-head-regimes": head_regimes,
    "ols-real-head-dial": real_head_dial,
    "ols-real-head-regimes": real_head_regimes,
    "ols-real-head-losses": real_head_losses,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in TABLES.items():
        path = folder / f"{name}.csv"
        if path.exists():
            continue
        start = time.process_time()
        try:
            table = make()
        except LensLinearError as error:  # the real model is not at hand
            print(name, "not run:", error, flush=True)
            continue
        table.to_csv(path, index=False, float_format="%.6g")
        print(name, f"{time.process_time() - start:.0f} processor seconds", flush=True)
    settings = {
        "equality": f"{PROBLEMS} problems of each kind, seeds 0 to {PROBLEMS - 1}; errors relative to "
        f"the largest prediction, at least 1; ridge {RIDGE}",
        "training": "y = 2x + noise of sd 0.1, n = 100, 1000 epochs; starts from seed 0",
        "shift, capacity": "the functions' defaults",
        "dial": "the function's defaults",
        "trained heads": "16 sequences of stories, and 16 rows of 32 random tokens given twice (real "
        "model: heads placed on 16 rows of 24, exchanged on 8 of them)",
        "head dial": "16 sequences of stories, and 16 rows of 64 random tokens given twice (real model: 4 rows "
        "of 128, 24 queries a row; with and without the first position)",
        "heads": "16 sequences of the package's own stories, which the model was not trained on",
        "torch": torch.__version__.split("+")[0],
        "command": "python benchmarks/ols_results.py docs/results",
    }
    (folder / "ols.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main()
