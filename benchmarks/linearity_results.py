"""The measured tables of ``docs/results``: linearity of the bundled models on the package's own stories.

    python benchmarks/linearity_results.py docs/results [--more NAME=FOLDER ...]

Every table is written as soon as it is done; a table that is there already is left alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pandas as pd
import torch

import lens_linear as ll
from lens_linear.linearity import (
    adam_baseline,
    compare_profiles,
    ffn_compression,
    layer_geometry,
    run_table,
)
from lens_linear.studies import load_tables, published_beside_measured

GPT = ("gpt-nano", "gpt-micro", "gpt-mini", "gpt-micro-cosine")
STEPS = (0, 100, 300, 1000)
BATCH = 16


def models(more):
    """Name to (model, tokens)."""
    out = {}
    for name in ("attn-1l", "attn-2l", *GPT):
        model = ll.load(name)
        out[name] = (model, ll.evaluation_tokens(model))
    for item in more:
        name, folder = item.split("=", 1)
        model = ll.load(folder)
        out[name] = (model, ll.evaluation_tokens(model))
    return out


def profiles(found, _folder):
    named = {}
    for name, (model, tokens) in found.items():
        for skip in (0, 1):
            label = name if skip == 0 else f"{name}, skip {skip}"
            named[label] = ll.linearity_profile(model, tokens, skip=skip, batch_size=BATCH)
    return compare_profiles(named).to_dataframe()


def in_sample(found, _folder):
    named = {
        name: ll.linearity_profile(model, tokens, fit="in-sample", batch_size=BATCH)
        for name, (model, tokens) in found.items()
    }
    frame = compare_profiles(named).to_dataframe()
    return frame[[c for c in frame.columns if not c.endswith(("_low", "_high"))]]


def checkpoints(found, _folder, *, frame=True):
    _, tokens = found["gpt-micro"]
    named = {
        f"step {step}": ll.linearity_profile(
            ll.load("gpt-micro", checkpoint=step), tokens, batch_size=BATCH
        )
        for step in STEPS
    }
    named["final"] = ll.linearity_profile(found["gpt-micro"][0], tokens, batch_size=BATCH)
    both = compare_profiles(named)
    return both.to_dataframe() if frame else both


def geometry(found, _folder):
    frames = [
        layer_geometry(model, tokens).to_dataframe().assign(name=name).reset_index()
        for name, (model, tokens) in found.items()
    ]
    return pd.concat(frames)


def curves(found, _folder):
    frames = []
    plans = [
        ("remove", "linearity", 0),
        ("linear", "linearity", 0),
        ("linear+distill", "linearity", 0),
    ]
    plans += [("linear", "reverse", 0)] + [("linear", "random", seed) for seed in range(3)]
    for name in ("gpt-nano", "gpt-micro", "gpt-micro-cosine"):
        model, tokens = found[name]
        for strategy, order, seed in plans:
            # The random order takes another split too: its spread holds both.
            curve = ll.replacement_curve(model, tokens, strategy, order=order, seed=seed)
            frames.append(
                curve.to_dataframe().assign(name=name, seed=seed, n_tokens=curve.n_tokens)
            )
    return pd.concat(frames)


def runs(found, _folder):
    frames = []
    for name in ("gpt-nano", "gpt-micro"):
        table = run_table(*found[name])
        frames.append(table.to_dataframe().assign(name=name, n_tokens=table.n_tokens))
    return pd.concat(frames)


def compression(found, _folder):
    frames = []
    for name in ("gpt-nano", "gpt-micro"):
        model, tokens = found[name]
        width = model.cfg.d_model
        table = ffn_compression(model, tokens, ranks=(None, width // 4, width // 16))
        frames.append(table.to_dataframe().assign(name=name, n_tokens=table.n_tokens))
    return pd.concat(frames)


def probes(found, _folder):
    model, tokens = found["gpt-micro"]
    frames = []
    for layer in range(model.cfg.n_layers):
        probe = ll.bilinear_probe(model, tokens, layer, rank=(1, 4, 16))
        frames.append(probe.to_dataframe().assign(layer=layer, n_tokens=probe.n_tokens))
    return pd.concat(frames).assign(name="gpt-micro")


def adam(found, _folder):
    model, tokens = found["gpt-micro"]
    frames = []
    for layer in range(model.cfg.n_layers):
        found_here = adam_baseline(model, tokens, layer, steps=1000)
        frame = found_here.to_dataframe().assign(
            layer=layer, condition_number=found_here.condition_number
        )
        frames.append(frame[frame.step.isin([100, 1000, 64, 128, 512])])
    return pd.concat(frames).assign(name="gpt-micro")


def published(found, folder):
    measured = {
        name: ll.linearity_profile(model, tokens, batch_size=BATCH)
        for name, (model, tokens) in found.items()
    }
    measured["gpt-micro in training"] = checkpoints(found, folder, frame=False)
    if (folder / "cosine.json").is_file():
        measured["3 layers, width 64"] = load_tables(folder, "cosine")
    return published_beside_measured(measured).to_dataframe()


TABLES = {
    "linearity-profiles": profiles,
    "linearity-in-sample": in_sample,
    "linearity-checkpoints": checkpoints,
    "linearity-compression": compression,
    "linearity-replacement": curves,
    "linearity-runs": runs,
    "linearity-bilinear": probes,
    "linearity-adam": adam,
    "linearity-geometry": geometry,
    "linearity-published": published,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--more", nargs="*", default=[])
    parser.add_argument("--only", nargs="*", default=list(TABLES))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    found = models(arguments.more)
    for name in arguments.only:
        path = arguments.folder / f"{name}.csv"
        if path.exists():
            continue
        start = time.process_time()
        TABLES[name](found, arguments.folder).round(6).to_csv(path, index=False)
        print(name, f"{time.process_time() - start:.0f} processor seconds", flush=True)
    settings = {
        "text": "the package's own stories, which no model was trained on",
        "rows": {name: list(tokens.shape) for name, (_, tokens) in found.items()},
        "halves": "seed 0 (random orders: seeds 0, 1, 2), by whole sequences",
        "torch": torch.__version__.split("+")[0],
        "command": "python benchmarks/linearity_results.py docs/results",
    }
    (arguments.folder / "linearity.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main()
