"""What each command does: call the library, print text or JSON. No mathematics here."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm

from lens_linear._checks import require_file, require_int
from lens_linear._tl import TransformerBridge
from lens_linear.circuits.attention_only import AttentionOnly
from lens_linear.circuits.composition import composition_scores
from lens_linear.circuits.induction import induction_scores
from lens_linear.cli.output import emit, envelope, plain, table
from lens_linear.cli.train_command import run_train
from lens_linear.dynamics.directions import concept_directions
from lens_linear.dynamics.gains import gain_profile
from lens_linear.dynamics.scaling import agreement_table
from lens_linear.dynamics.schedules import evaluate_schedules
from lens_linear.dynamics.surrogates import fit_surrogate
from lens_linear.errors import UnsupportedModelError
from lens_linear.linearity.profile import linearity_profile
from lens_linear.linearity.published import published_beside_measured
from lens_linear.models.bundled import available_models, training_table
from lens_linear.models.capture import available_sites
from lens_linear.models.load import load
from lens_linear.reports.build import report
from lens_linear.reports.tour import tour
from lens_linear.stats.evaluation import evaluation_tokens
from lens_linear.teaching.tutorials import copy_tutorials
from lens_linear.text.concepts import load_concept
from lens_linear.text.corpora import read_text


def run(options: argparse.Namespace) -> None:
    """Run the command that was parsed."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    for name in ("top", "prompts", "order", "sequences", "limit"):
        value = getattr(options, name, None)
        if value is not None:
            require_int(f"--{name}", value, minimum=1)
    _COMMANDS[options.command](options)


def _text(options: argparse.Namespace) -> str | None:
    return None if options.text is None else read_text(require_file("--text", options.text))


def _name(options: argparse.Namespace) -> str:
    return Path(options.model).name


def _tour(options: argparse.Namespace) -> None:
    with tqdm(total=4, desc="tour", unit="model", disable=None) as bar:
        done = -1

        def step(text: str) -> None:
            nonlocal done
            done += 1
            bar.update(done > 0)
            bar.set_description(text)

        result = tour(options.out, seed=options.seed, on_step=step)
        bar.update(1)
    text = f"{result.summary()}\n\nThe page with figures: {result.path}"
    payload = {
        **envelope("tour", [], seed=options.seed),
        "models": result.settings["weights_sha256"],
        "settings": {"out": str(result.path)},
        "result": [{"title": one.title, "prose": one.prose} for one in result.sections],
    }
    emit(options.json, payload, text)


def _models(options: argparse.Namespace) -> None:
    frame, training = available_models(), training_table()
    minutes = training["minutes"].map("{:.1f}".format)
    shown = frame.assign(sha256=frame["sha256"].str[:12])
    text = (
        f"{table(shown)}\n\nHow they were trained (`lens-linear train NAME --corpus FILE` does it again; "
        f"minutes on a machine with 2 cores, loss in nats per token on unseen books):\n\n"
        f"{table(training.drop(columns='note').assign(minutes=minutes))}\n\n"
        + "\n".join(f"{row['name']}: {row['note']}" for _, row in training.iterrows())
        + "\n\nWeights at a checkpoint: lens_linear.load('gpt-micro@300')."
    )
    emit(options.json, envelope("models", frame.merge(training.drop(columns="loss"))), text)


def _circuits(options: argparse.Namespace) -> None:
    model = load(options.model)
    scores = induction_scores(model, seed=options.seed)
    heads = scores.to_dataframe()
    parts = [repr(scores), table(heads)]
    result = {"heads": heads}
    if model.cfg.n_layers > 1:
        composition = composition_scores(model)
        pairs = composition.to_dataframe().sort_values("z", ascending=False).head(options.top)
        parts += [repr(composition), table(pairs)]
        result["composition"] = pairs
    try:
        view = AttentionOnly(model)
    except UnsupportedModelError as reason:
        parts.append(f"Token-space circuits of the whole model are left out: {reason}")
    else:
        for head in view.heads()[: model.cfg.n_heads]:
            trigrams = view.skip_trigrams(head.layer, head.head, k=options.top)
            parts += [repr(trigrams), table(trigrams.to_dataframe())]
            result[f"skip_trigrams {head.name}"] = trigrams.to_dataframe()
    _emit(options, model, result, parts, {"top": options.top})


def _linearity(options: argparse.Namespace) -> None:
    model = load(options.model)
    tokens = evaluation_tokens(model, _text(options), n_sequences=options.sequences)
    profile = linearity_profile(
        model,
        tokens,
        fit=options.fit,
        skip=options.skip,
        seed=options.seed,
        sites=available_sites(model, 0),
        progress=not options.json,
    )
    settings = {"fit": options.fit, "skip": options.skip, "text": options.text or "own stories"}
    frame = profile.to_dataframe()
    parts = [repr(profile), table(frame)]
    published = published_beside_measured({_name(options): profile}).about(_name(options))
    if len(published):
        parts.append(f"Published beside measured:\n{table(published)}")
        settings["published"] = plain(published)
    _emit(options, model, frame, parts, settings)


def _dynamics(options: argparse.Namespace) -> None:
    if options.more:
        _dynamics_of_several(options)
        return
    model = load(options.model)
    concept = load_concept(options.concept)
    split = concept.split(options.prompts, options.prompts, options.prompts, seed=options.seed)
    directions = concept_directions(model, split.concept, truncate=True)
    measured = gain_profile(model, list(split.evaluation.texts), directions, truncate=True)
    order = min(options.order, model.cfg.d_model)
    surrogate = fit_surrogate(
        model,
        list(split.operating.texts),
        directions,
        order=order,
        basis=options.basis,
        truncate=True,
        seed=options.seed,
    )
    agreement = surrogate.agreement(measured)
    schedules = evaluate_schedules(
        model,
        list(split.evaluation.texts)[: min(20, options.prompts)],
        directions,
        surrogate,
        truncate=True,
        seed=options.seed,
    )
    gains = measured.to_dataframe()
    parts = [repr(measured), repr(surrogate), repr(agreement), repr(schedules)]
    parts.append(table(schedules.to_dataframe()))
    result = {
        "gains": gains,
        "surrogate_gains": surrogate.mean,
        "agreement": agreement.to_dataframe(),
        "schedules": schedules.to_dataframe(),
    }
    settings = {
        "concept": options.concept,
        "order": order,
        "basis": options.basis,
        "prompts": options.prompts,
    }
    _emit(options, model, result, parts, settings)


def _dynamics_of_several(options: argparse.Namespace) -> None:
    names = [options.model, *options.more]
    with tqdm(total=len(names), desc="dynamics", unit="model", disable=options.json or None) as bar:
        done = -1

        def step(name: str) -> None:
            nonlocal done
            bar.update(max(0, done + 1 - bar.n))
            bar.set_postfix_str(name)
            done += 1

        found = agreement_table(
            names,
            options.concept,
            jacobians=("prompt", "mean", "state"),
            n_concept=options.prompts,
            n_operating=options.prompts,
            n_evaluation=options.prompts,
            seed=options.seed,
            on_model=step,
        )
        bar.update(len(names) - bar.n)
    frame, published = found.to_dataframe(), found.published()
    shown = [
        "model",
        "basis",
        "order",
        "jacobian",
        "spearman",
        "pearson",
        "relative_error",
        "ceiling",
    ]
    parts = [repr(found), table(frame[shown]), "Beside the published numbers:", table(published)]
    payload = envelope(
        options.command,
        {"agreement": frame, "published": published},
        seed=options.seed,
        settings={"models": names, "concept": options.concept, "prompts": options.prompts},
    )
    emit(options.json, payload, "\n\n".join(parts))


def _report(options: argparse.Namespace) -> None:
    model = load(options.model)
    out = options.out or f"{_name(options)}-report.html"
    path = report(model, out, _text(options), n_sequences=options.sequences, seed=options.seed)
    _emit(options, model, {"path": str(path)}, [f"The page: {path}"], {"out": str(path)})


def _tutorials(options: argparse.Namespace) -> None:
    copied = copy_tutorials(options.directory, force=options.force)
    states = {name: list(getattr(copied, name)) for name in ("written", "unchanged", "kept")}
    payload = envelope("tutorials", {"directory": str(copied.directory), **states})
    emit(options.json, payload, copied.how_to_start)


def _emit(
    options: argparse.Namespace,
    model: TransformerBridge,
    result: object,
    parts: list[str],
    settings: dict[str, object],
) -> None:
    payload = envelope(
        options.command,
        result,
        models={_name(options): model},
        seed=getattr(options, "seed", None),
        settings=settings,
    )
    emit(options.json, payload, "\n\n".join(parts))


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "tour": _tour,
    "models": _models,
    "circuits": _circuits,
    "linearity": _linearity,
    "dynamics": _dynamics,
    "report": _report,
    "train": run_train,
    "tutorials": _tutorials,
}
