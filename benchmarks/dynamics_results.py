"""The measured tables of depth dynamics on bundled models.

    python benchmarks/dynamics_results.py docs/results [--more NAME=FOLDER ...] [--second FILE]

Writes ``dynamics-agreement.csv`` (every basis and order), ``dynamics-reaching.csv`` (order at which
Spearman passes 0.95), ``dynamics-published.csv``, ``dynamics-directions.csv``,
``dynamics-gains.csv``, ``dynamics-steps.csv``
(central differences against the adjoint), ``dynamics-schedules.csv``, ``dynamics-joint.csv`` and
``dynamics-text*.csv``. Concept: the package's mood sentences, 200 texts for the directions, 100 operating
and 200 evaluation prompts. ``--second`` names a file of other labelled texts and writes
``dynamics-second.csv``: whether what holds for mood holds for them. A table that is there already is
left alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

import lens_linear as ll
from lens_linear import dynamics as dy

GPT = ("gpt-nano", "gpt-micro", "gpt-mini")
ORDERS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192)
BASES = ("krylov", "balanced", "pca", "random", "krylov-stationary")
JACOBIANS = ("prompt", "mean", "state")
PROMPTS = ("Once upon a time there was a", "The children went to the", "She opened the letter and")


def joined(named):
    return pd.concat([frame.assign(model=name).reset_index() for name, frame in named.items()])


def agreement(models, split):
    """One table for all models, with the names they were given."""
    frames, reaching, published = [], [], []
    for name, model in models.items():
        table = dy.agreement_table([model], split, orders=ORDERS, bases=BASES, jacobians=JACOBIANS)
        frames.append(table.to_dataframe().assign(model=name))
        reaching.append(table.reaching(0.95).assign(model=name))
        rows = table.published()
        published.append(rows[rows["published_spearman"] == "none"].assign(model=name))
    paper = rows[rows["published_spearman"] != "none"]
    return {
        "dynamics-agreement": pd.concat(frames),
        "dynamics-reaching": pd.concat(reaching),
        "dynamics-published": pd.concat([paper, *published]),
    }


def second(models, file):
    """Agreement of small and order-32 surrogates on another concept."""
    split = ll.load_concept(file).split(200, 100, 200, seed=0)
    frames = [
        dy.agreement_table(
            [model], split, orders=(4, 8, 32), bases=("krylov", "balanced"), jacobians=JACOBIANS
        )
        .to_dataframe()
        .assign(model=name)
        for name, model in models.items()
    ]
    return {"dynamics-second": pd.concat(frames)}


def directions_of(models, split):
    return {
        name: ll.concept_directions(model, split.concept, truncate=True)
        for name, model in models.items()
    }


def profiles(models, split, directions):
    gains, seen = {}, {}
    for name, model in models.items():
        texts = list(split.evaluation.texts)
        profile = ll.gain_profile(model, texts, directions[name], truncate=True)
        gains[name] = profile.to_dataframe()
        seen[name] = directions[name].to_dataframe()
    return {"dynamics-gains": joined(gains), "dynamics-directions": joined(seen)}


def steps(models, split, directions):
    named = {}
    for name, model in models.items():
        texts = list(split.evaluation.texts)[:40]
        for label, dtype in (("float32", torch.float32), ("float64", torch.float64)):
            model = model.to(dtype)
            table = dy.step_size_table(
                model,
                texts,
                directions[name],
                steps=(1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
                truncate=True,
            )
            named[name, label] = table.to_dataframe().assign(precision=label)
        model.to(torch.float32)
    frames = [frame.assign(model=name) for (name, _), frame in named.items()]
    return {"dynamics-steps": pd.concat(frames)}


def schedules(models, split, directions):
    frames = []
    for name, model in models.items():
        texts, v = list(split.evaluation.texts), directions[name]
        operating = list(split.operating.texts)
        surrogate = ll.fit_surrogate(model, operating, v, order=32, truncate=True)
        spread = float((dy.last_states(model, texts, truncate=True)[-1] @ v[-1]).std(correction=0))
        for share in (0.1, 0.3, 1.0):
            target = share * spread
            shared = dy.refined_min_energy(model, operating, v, surrogate, target, truncate=True)
            found = ll.evaluate_schedules(
                model,
                texts,
                v,
                surrogate,
                target=target,
                truncate=True,
                schedules={"refined, mean of operating prompts": shared.plain().mean(0)},
            )
            frames.append(found.to_dataframe().assign(model=name, target_in_sd=share))
    return {"dynamics-schedules": pd.concat(frames)}


def joint(models, split, directions):
    """Mood and a second concept (whether the sentence is long) at once: one moved, the other held."""
    frames = []
    for name, model in models.items():
        texts = split.concept.texts
        middle = sorted(map(len, texts))[len(texts) // 2]
        length = ll.Concept(
            "length",
            texts,
            [int(len(text) >= middle) for text in texts],
            "length of mood sentences",
        )
        other = ll.concept_directions(model, length, truncate=True)
        operating = list(split.operating.texts)
        for targets in ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0)):
            found = dy.steer_concepts(
                model, operating, [directions[name], other], targets, truncate=True
            )
            frame = found.to_dataframe().assign(model=name, energy=found.energy)
            frame["concept"] = ["mood", "length"]
            frames.append(frame)
    return {"dynamics-joint": pd.concat(frames)}


def text(models, split, directions):
    written, costs, moved = [], [], []
    for name, model in models.items():
        v = directions[name]
        profile = ll.gain_profile(model, list(split.operating.texts), v, truncate=True)
        spread = float(
            (dy.last_states(model, list(split.operating.texts), truncate=True)[-1] @ v[-1]).std()
        )
        u = ll.min_energy(profile, spread)
        beginnings = [" ".join(text.split()[:5]) for text in split.evaluation.texts[:100]]
        for where in ("generated", "prompt"):
            found = dy.steer_text(
                model, list(PROMPTS), v, u, n_tokens=20, scales=(0, 1, -1, 2, -2), where=where
            )
            written.append(found.to_dataframe().assign(model=name, where=where))
            many = dy.steer_text(
                model, beginnings, v, u, n_tokens=12, scales=(0, 1, -1, 2, -2), where=where
            )
            moved.append(moves(many).assign(model=name, where=where))
        rows = ll.evaluation_tokens(model)[:32, :128]
        cost = dy.steering_cost(model, rows, v, u, scales=(-4, -2, -1, 0, 1, 2, 4))
        costs.append(cost.to_dataframe().assign(model=name, target=spread))
    return {
        "dynamics-text": pd.concat(written),
        "dynamics-text-means": pd.concat(moved),
        "dynamics-cost": pd.concat(costs),
    }


def moves(found):
    """Means over prompts of what each scale did, against the model left alone, with standard errors."""
    frame = found.to_dataframe()
    plain = frame[frame["scale"] == 0].set_index("prompt")["readout"]
    rows = []
    for scale, part in frame.groupby("scale"):
        change = part.set_index("prompt")["readout"] - plain
        rows.append(
            {
                "scale": scale,
                "readout_change": change.mean(),
                "se": change.sem(),
                "perplexity": float(part["perplexity"].median()),
                "n_prompts": len(part),
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--more", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--second", metavar="FILE", help="labelled texts of another concept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    models = {name: ll.load(name) for name in GPT}
    for item in options.more:
        name, folder = item.split("=", 1)
        models[name] = ll.load(folder)
    split = ll.load_concept("mood").split(200, 100, 200, seed=0)
    directions = directions_of(models, split)
    jobs = {
        "dynamics-agreement": lambda: agreement(models, split),
        "dynamics-gains": lambda: profiles(models, split, directions),
        "dynamics-steps": lambda: steps(models, split, directions),
        "dynamics-schedules": lambda: schedules(models, split, directions),
        "dynamics-joint": lambda: joint(models, split, directions),
        "dynamics-text": lambda: text(models, split, directions),
    }
    if options.second:
        jobs["dynamics-second"] = lambda: second(models, options.second)
    for first, job in jobs.items():
        if (options.folder / f"{first}.csv").exists():
            continue
        for name, frame in job().items():
            # Columns that hold words beside numbers are not formatted by to_csv.
            short = frame.map(lambda x: float(f"{x:.6g}") if isinstance(x, float) else x)
            short.to_csv(options.folder / f"{name}.csv", index=False, float_format="%.6g")
            print(name, len(frame), flush=True)


if __name__ == "__main__":
    main()
