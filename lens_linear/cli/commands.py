"""What each command does: call the library, print text or JSON. No mathematics here."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

from lens_linear._tl import TransformerBridge
from lens_linear.checks import require_file, require_int
from lens_linear.circuits.heads.composition import composition_scores
from lens_linear.circuits.induction.scores import induction_scores
from lens_linear.circuits.paths.attention_only import AttentionOnly
from lens_linear.cli.explore_command import run_explore
from lens_linear.cli.output import emit, envelope, plain, steps, table
from lens_linear.cli.train_command import run_train
from lens_linear.dynamics.gains.directions import concept_directions
from lens_linear.dynamics.gains.gain_profile import gain_profile
from lens_linear.dynamics.steering.schedules import evaluate_schedules
from lens_linear.dynamics.surrogates.agreement_table import agreement_table
from lens_linear.dynamics.surrogates.surrogate import fit_surrogate
from lens_linear.errors import UnsupportedModelError
from lens_linear.linearity.measure.profile import linearity_profile
from lens_linear.models.capture import available_sites
from lens_linear.models.open.checksum import weights_sha256
from lens_linear.models.open.load import load
from lens_linear.reports.build import report, report_steps
from lens_linear.reports.tour_page import tour
from lens_linear.stats.evaluation import evaluation_tokens
from lens_linear.studies.published import published_beside_measured
from lens_linear.teaching.tutorials import copy_tutorials
from lens_linear.text.concepts import load_concept
from lens_linear.text.corpora import read_text

# A table of more rows is nothing to read; seeds are added to inside, and torch takes 64 bits.
_MOST = {"top": 1000, "seed": 2**62}


def run(options: argparse.Namespace) -> None:
    """Run the command that was parsed."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    for name in ("top", "prompts", "order", "sequences", "limit"):
        value = getattr(options, name, None)
        if value is not None:
            require_int(f"--{name}", value, minimum=1, maximum=_MOST.get(name))
    if getattr(options, "seed", None) is not None:
        require_int("--seed", options.seed, minimum=0, maximum=_MOST["seed"])
    _COMMANDS[options.command](options)


def _text(options: argparse.Namespace) -> str | None:
    return None if options.text is None else read_text(require_file("--text", options.text))


def _name(options: argparse.Namespace) -> str:
    return Path(options.model).name


def _tour(options: argparse.Namespace) -> None:
    with steps(4, "tour", hide=options.json) as begin:
        result = tour(options.out, seed=options.seed, on_step=begin)
    text = f"{result.summary()}\n\nThe page with figures: {result.path}"
    payload = {
        **envelope("tour", [], seed=options.seed),
        "models": result.settings["weights_sha256"],
        "settings": {"out": str(result.path)},
        "result": [{"title": one.title, "prose": one.prose} for one in result.sections],
    }
    emit(options.json, payload, text)


def _circuits(options: argparse.Namespace) -> None:
    model = load(options.model)
    with steps(3, "circuits", hide=options.json) as begin:
        result, parts = _circuit_tables(model, options, begin)
    _emit(options, model, result, parts, {"top": options.top})


def _circuit_tables(
    model: TransformerBridge, options: argparse.Namespace, begin: Callable[[str], None]
) -> tuple[dict[str, object], list[str]]:
    begin("heads")
    scores = induction_scores(model, seed=options.seed)
    heads = scores.to_dataframe()
    parts = [repr(scores), table(heads)]
    result: dict[str, object] = {"heads": heads}
    begin("composition")
    if model.cfg.n_layers > 1:
        composition = composition_scores(model, seed=options.seed)
        pairs = composition.to_dataframe().sort_values("z", ascending=False).head(options.top)
        parts += [repr(composition), table(pairs)]
        result["composition"] = pairs
    begin("skip-trigrams")
    try:
        view = AttentionOnly(model)
    except UnsupportedModelError as reason:
        parts.append(f"Token-space circuits of the whole model are left out: {reason}")
    else:
        for head in view.heads()[: model.cfg.n_heads]:
            trigrams = view.skip_trigrams(head.layer, head.head, k=options.top)
            parts += [repr(trigrams), table(trigrams.to_dataframe())]
            result[f"skip_trigrams {head.name}"] = trigrams.to_dataframe()
    return result, parts


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
    settings: dict[str, object] = {
        "fit": options.fit,
        "skip": options.skip,
        "text": options.text or "own stories",
        "sequences": options.sequences,
    }
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
    order = min(options.order, model.cfg.d_model)
    with steps(4, "dynamics", hide=options.json) as begin:
        begin("directions")
        directions = concept_directions(model, split.concept, truncate=True)
        begin("gains")
        measured = gain_profile(model, list(split.evaluation.texts), directions, truncate=True)
        begin("surrogate")
        surrogate = fit_surrogate(
            model,
            list(split.operating.texts),
            directions,
            order=order,
            basis=options.basis,
            truncate=True,
            seed=options.seed,
        )
        begin("schedules")
        schedules = evaluate_schedules(
            model,
            list(split.evaluation.texts)[: min(20, options.prompts)],
            directions,
            surrogate,
            truncate=True,
            seed=options.seed,
        )
    agreement = surrogate.agreement(measured)
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
    with steps(len(names), "dynamics", hide=options.json) as begin:
        found = agreement_table(
            names,
            options.concept,
            jacobians=("prompt", "mean", "state"),
            n_concept=options.prompts,
            n_operating=options.prompts,
            n_evaluation=options.prompts,
            seed=options.seed,
            on_model=begin,
        )
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
    payload["models"] = {Path(name).name: weights_sha256(load(name)) for name in names}
    emit(options.json, payload, "\n\n".join(parts))


def _report(options: argparse.Namespace) -> None:
    model = load(options.model)
    out = options.out or f"{_name(options)}-report.html"
    text = _text(options)
    with steps(report_steps(model), "report", hide=options.json) as begin:
        path = report(
            model, out, text, n_sequences=options.sequences, seed=options.seed, on_step=begin
        )
    settings = {
        "out": str(path),
        "text": options.text or "own stories",
        "sequences": options.sequences,
    }
    _emit(options, model, {"path": str(path)}, [f"The page: {path}"], settings)


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
    "circuits": _circuits,
    "linearity": _linearity,
    "dynamics": _dynamics,
    "report": _report,
    "explore": run_explore,
    "train": run_train,
    "tutorials": _tutorials,
}
