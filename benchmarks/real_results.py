"""The measured tables of a real language model: ``docs/results/real-*.csv``, one command.

    lens-linear models --get smollm2-135m
    python benchmarks/real_results.py docs/results --text WIKITEXT --stories STORIES --concept SENTENCES

``--text`` is WikiText-2 validation, ``--stories`` any other text, ``--concept`` labelled sentences beside the
package's ``mood``. Each table is written when it is done, with n, seed, settings and processor time in
``real.json``; one that is there is left alone, so that the command may be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cached_property, partial
from pathlib import Path

import pandas as pd
import torch
from torch.nn.functional import kl_div

import lens_linear as ll
from lens_linear import circuits, dynamics, linearity, stats
from lens_linear.models.capture import residual_stream

ORDERS = (8, 16, 32, 64)
BASES = ("krylov", "balanced", "pca", "random")
JACOBIANS = ("prompt", "mean", "state")
SIZES = ("gpt-nano", "gpt-micro", "gpt-mini", "stories260K", "smollm2-135m")


class Material:
    """The model and the texts, read when they are first asked for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    @cached_property
    def model(self):
        return ll.load(self.options.model)

    @cached_property
    def texts(self):
        return {
            "wikitext2": self.options.text.read_text(encoding="utf-8"),
            "stories": self.options.stories.read_text(encoding="utf-8"),
        }

    def rows(self, n, text="wikitext2"):
        """The first n rows of 256 tokens (or as many as the context has)."""
        length = min(256, self.model.cfg.n_ctx)
        return ll.tokenize(self.model, self.texts[text][: n * length * 12], length=length)[:n]

    @cached_property
    def everything(self):
        """More rows than the text holds."""
        return len(self.texts["wikitext2"])

    def concepts(self):
        out = {"mood": ll.load_concept("mood")}
        if self.options.concept:
            out["polarity"] = ll.load_concept(self.options.concept)
        return {name: concept.split(200, 100, 200, seed=0) for name, concept in out.items()}


def profile(m):
    """Block, FFN and attention R² with and without the first position, on two texts."""
    frames = [
        ll.linearity_profile(m.model, m.rows(24, text))
        .to_dataframe()
        .reset_index()
        .assign(text=text)
        for text in m.texts
    ]
    return pd.concat(frames), {"n": "24 rows of 256 a text, half to fit", "ridge": 0.0}


def layer_map(m):
    frames = [
        ll.layer_map(m.model, m.rows(24), skip=skip)
        .to_dataframe()
        .stack()
        .rename("r2")
        .reset_index()
        .assign(skip=skip)
        for skip in (0, 1)
    ]
    return pd.concat(frames), {"n": "24 rows of 256, half to fit; skip 0 and 1"}


def replacement(m):
    """Blocks in the order of their linearity: left out, as affine maps, and maps distilled."""
    frames = []
    for strategy in ("remove", "linear", "linear+distill"):
        curve = ll.replacement_curve(
            m.model, m.rows(16), strategy, max_replaced=min(10, m.model.cfg.n_layers)
        )
        frames.append(curve.to_dataframe().assign(n_tokens=curve.n_tokens))
    return pd.concat(frames), {"n": "16 rows of 256, half to fit", "max_replaced": 10}


def runs(m):
    table = linearity.run_table(m.model, m.rows(12), lengths=[min(6, m.model.cfg.n_layers)])
    return table.to_dataframe().assign(n_tokens=table.n_tokens), {
        "n": "12 rows of 256, half to fit"
    }


def compression(m):
    """Each FFN as one affine map: parameters, R², loss, perplexity; and two of them at once."""
    table = linearity.ffn_compression(m.model, m.rows(24))
    return table.to_dataframe().assign(n_tokens=table.n_tokens), {
        "n": "24 rows of 256, half to fit"
    }


def pairs(m):
    """Two FFNs together, and one block, as affine maps fitted on other rows."""
    rows = m.rows(48)
    fitted, held = rows[:36], rows[36:]
    plain = stats.score_model(m.model, stats.as_rows(m.model, held)).loss.mean
    lines = []
    middle = m.model.cfg.n_layers // 2
    for site, layers in (("ffn", sorted({2, middle})), ("block", [middle])):
        with ll.linearize(m.model, fitted, layers=layers, site=site):
            loss = stats.score_model(m.model, stats.as_rows(m.model, held)).loss.mean
        lines.append(
            {"site": site, "layers": " ".join(map(str, layers)), "loss": loss, "whole_model": plain}
        )
    return pd.DataFrame(lines).assign(n_tokens=held.numel(), n_fit=fitted.numel()), {
        "n": "36 rows of 256 to fit, 12 to score"
    }


def bilinear(m):
    frames = []
    n_layers = m.model.cfg.n_layers
    for layer in (0, n_layers // 4, n_layers // 2, n_layers - 1):
        probe = ll.bilinear_probe(m.model, m.rows(24), layer, rank=(1, 4), iterations=30)
        frames.append(probe.to_dataframe().assign(layer=layer, n_tokens=probe.n_tokens))
    return pd.concat(frames), {"n": "24 rows of 256, half to fit", "iterations": 30}


def adam(m):
    frames = []
    for layer in (0, m.model.cfg.n_layers // 2):
        found = linearity.adam_baseline(m.model, m.rows(24), layer, steps=1000)
        frames.append(
            found.to_dataframe().assign(layer=layer, condition_number=found.condition_number)
        )
    return pd.concat(frames), {"n": "24 rows of 256, half to fit", "steps": 1000}


def geometry(m):
    found = linearity.layer_geometry(m.model, m.rows(12), max_rows=2048)
    return found.to_dataframe().reset_index(), {"n": "2,048 rows"}


def heads(m):
    """Scores of every head, and copying from random repeats without its kind."""
    scores = ll.induction_scores(m.model)
    return scores.to_dataframe().reset_index(), {"n": "8 rows a period, mixed periods"}


def ablations(m):
    """Loss on the two copies of random tokens without the heads of a verdict, beside as many others."""
    scores = ll.induction_scores(m.model).to_dataframe().reset_index()
    generator = torch.Generator().manual_seed(0)
    lines = []

    def measured(name, named):
        found = circuits.in_context_loss(m.model, rows_per_period=2)
        lines.append(
            {"without": name, "n_heads": len(named), "heads": " ".join(named), "first": found.first,
             "second": found.second, "gain": found.gain}
        )  # fmt: skip

    measured("none", [])
    others = scores[scores["verdict"] == "none"]
    for verdict in ("induction", "previous-token", "duplicate-token"):
        named = scores[scores["verdict"] == verdict]["head"].tolist()
        if not named:
            continue
        with circuits.ablate_heads(m.model, named, how="zero"):
            measured(verdict, named)
        pick = torch.randperm(len(others), generator=generator)[: len(named)].tolist()
        chosen = others["head"].iloc[pick].tolist()
        with circuits.ablate_heads(m.model, chosen, how="zero"):
            measured(f"as many as {verdict}, of the others", chosen)
    return pd.DataFrame(lines), {"how": "zero", "n": "2 rows a period"}


def composition(m):
    found = ll.composition_scores(m.model, fold=True, n_random=50)
    frame = found.to_dataframe().reset_index(drop=True)
    return frame.sort_values("ratio", ascending=False).groupby("kind").head(100), {
        "shown": "the 100 strongest of a kind by ratio to random, norms folded in", "n": f"{len(frame):,} pairs, 50 random rotations"
    }  # fmt: skip


def agreement(m, name):
    """Surrogates of every order, basis and reading, per prompt and of the mean profile."""
    table = dynamics.agreement_table(
        [m.model], m.concepts()[name], orders=ORDERS, bases=BASES, jacobians=JACOBIANS
    )
    return table.to_dataframe().assign(concept=name), {
        "n": "200 texts for directions, 100 operating, 200 evaluation prompts"
    }


def gains(m):
    frames = []
    for name, split in m.concepts().items():
        v = ll.concept_directions(m.model, split.concept, truncate=True)
        found = ll.gain_profile(m.model, list(split.evaluation.texts), v, truncate=True)
        values = found.gains
        frames.append(
            pd.DataFrame(
                {"concept": name, "layer": range(values.shape[1]), "gain": values.mean(0).numpy(),
                 "gain_sd": values.std(0).numpy(), "gain_median": values.quantile(0.5, dim=0).numpy(),
                 "auc": v.auc[: values.shape[1]].numpy(), "n": len(values)}
            )
        )  # fmt: skip
    return pd.concat(frames), {"n": "200 evaluation prompts a concept", "method": "adjoint"}


def steering(m):
    frames = []
    for name, split in m.concepts().items():
        v = ll.concept_directions(m.model, split.concept, truncate=True)
        surrogate = ll.fit_surrogate(
            m.model, list(split.operating.texts), v, order=32, jacobian="mean", truncate=True
        )
        found = ll.evaluate_schedules(
            m.model, list(split.evaluation.texts)[:50], v, surrogate, truncate=True
        )
        frames.append(
            found.to_dataframe().reset_index().assign(concept=name, n=50, target=found.target)
        )
    return pd.concat(frames), {
        "n": "50 evaluation prompts a concept",
        "order": 32,
        "jacobian": "mean",
    }


def lens(m):
    """Rows drawn from the whole text, scored on others of the kind; then the first rows, and those that follow."""
    rows = m.rows(m.everything)
    mixed = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    frames = []
    for name, ids in {"drawn": mixed[:134], "following": rows[:134]}.items():
        fitted = ll.fit_lens(m.model, ids[:118])
        frame = fitted.score(ids[118:]).to_dataframe().assign(scored=name, n_fit=fitted.n)
        frame["raw_share"] = pd.Series(fitted.raw_share.numpy()).reindex(frame.index)
        frame.loc[12, "polished_kl"] = polished(m.model, fitted, 12, ids[:118], ids[118:])
        frames.append(frame)
    settings = {
        "n": "118 rows of 256 to fit, 16 to score: drawn from the whole text, or those that follow"
    }
    return pd.concat(frames), settings | {"polished": "layer 12, one epoch of Adam as in fit_lens"}


def polished(model, fitted, layer, rows, held):
    """KL of one layer's reading after one epoch of Adam on the KL, two rows a step, without the first position."""
    readout = fitted.readout
    parts = [t[layer].float().clone().requires_grad_() for t in (fitted.weight, fitted.bias)]
    adam = torch.optim.Adam(parts, lr=1e-3)
    steps = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).split(2)
    falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, total_iters=len(steps))

    def loss(few, skip):
        with torch.no_grad():
            streams = residual_stream(model, few)[:, :, skip:].flatten(1, 2)
            target = readout.decode(readout.normalise(streams[-1])).log_softmax(-1)
            x = readout.normalise(streams[layer])
        direct = x @ parts[0] + parts[1]
        read = readout.decode(fitted.with_raw(streams[layer], layer, direct)).log_softmax(-1)
        return kl_div(read, target, reduction="batchmean", log_target=True)

    for few in steps:
        loss(rows[few], 0).backward(inputs=parts)
        adam.step()
        adam.zero_grad()
        falling.step()
    with torch.no_grad():
        return float(torch.stack([loss(row[None], 1) for row in held]).mean())


def sizes(m):
    """Order 32, mean Jacobian and own, over three decades of parameters."""
    frames = []
    split = m.concepts()["mood"]
    for name in SIZES:
        given = m.options.stories260k if name == "stories260K" else name
        if given is None:
            continue
        model = m.model if name == m.options.model else ll.load(given)
        table = dynamics.agreement_table(
            [model], split, orders=(32,), bases=("krylov", "balanced"), jacobians=("prompt", "mean")
        )
        count = sum(p.numel() for p in model.parameters())
        frames.append(table.to_dataframe().assign(model=name, parameters=count))
    return pd.concat(frames), {"n": "200 evaluation prompts of mood", "order": 32}


TABLES = {
    "agreement-mood": partial(agreement, name="mood"),
    "agreement-polarity": partial(agreement, name="polarity"), "gains": gains, "profile": profile, "heads": heads, "ablations": ablations,
    "steering": steering, "lens": lens, "compression": compression, "pairs": pairs, "replacement": replacement,
    "composition": composition, "bilinear": bilinear, "adam": adam, "geometry": geometry, "sizes": sizes,
    "layer-map": layer_map, "runs": runs,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True, help="WikiText-2 validation")
    parser.add_argument("--stories", type=Path, required=True, help="another text")
    parser.add_argument("--concept", help="labelled sentences beside mood")
    parser.add_argument("--stories260k", help="folder of the third-party Llama, for the sizes")
    parser.add_argument("--only", nargs="*", default=list(TABLES), choices=list(TABLES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    material, notes = Material(options), options.folder / "real.json"
    for name in options.only:
        path = options.folder / f"real-{name}.csv"
        if path.exists():
            continue
        start = time.process_time()
        frame, settings = TABLES[name](material)
        seconds = round(time.process_time() - start, 1)
        short = frame.map(lambda x: float(f"{x:.6g}") if isinstance(x, float) else x)
        short.assign(seed=0).to_csv(path, index=False)
        known = json.loads(notes.read_text()) if notes.exists() else {}
        known[path.stem] = {"model": options.model, "seed": 0, **settings, "processor_seconds": seconds,
                            "torch": torch.__version__.split("+")[0]}  # fmt: skip
        notes.write_text(json.dumps(known, indent=2) + "\n")
        print(name, len(frame), f"{seconds:.0f} processor seconds", flush=True)


if __name__ == "__main__":
    main()
