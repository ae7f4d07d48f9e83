"""``lens-linear dynamics``: gains over depth, a surrogate, steering; or one table over several models."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from lens_linear.cli.opening import model_name, open_model
from lens_linear.cli.output import Answer, Table, result_table, steps
from lens_linear.dynamics.gains.directions import concept_directions
from lens_linear.dynamics.gains.gain_profile import gain_profile
from lens_linear.dynamics.steering.schedules import evaluate_schedules
from lens_linear.dynamics.surrogates.agreement_table import agreement_table
from lens_linear.dynamics.surrogates.bases import require_basis
from lens_linear.dynamics.surrogates.surrogate import fit_surrogate
from lens_linear.models.open.checksum import weights_sha256
from lens_linear.text.concepts import ConceptSplit, load_concept

_STEERED = 20  # prompts; every schedule is run on the full model at each


def dynamics(options: argparse.Namespace) -> Answer:
    """Gains by layer, how well a small surrogate predicts them, and what steering costs."""
    concept = load_concept(options.concept)  # before the model: a wrong file is said at once
    split = concept.split(options.prompts, options.prompts, options.prompts, seed=options.seed)
    if options.more:
        return _several(options, split)
    require_basis("--basis", options.basis)
    model = open_model(options)
    order = min(options.order, model.d_model)
    evaluation = list(split.evaluation.texts)
    with steps(options, 4) as begin:
        begin("directions")
        directions = concept_directions(model, split.concept, truncate=True)
        begin("gains")
        measured = gain_profile(model, evaluation, directions, truncate=True)
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
            evaluation[: min(_STEERED, options.prompts)],
            directions,
            surrogate,
            truncate=True,
            seed=options.seed,
        )
    agreement = surrogate.agreement(measured)
    gains = measured.to_dataframe()
    predicted = surrogate.mean.cpu().numpy()
    columns = ("mean", "surrogate", "sd", "q05", "median", "q95")
    parts: list[str | Table] = [
        Table("gains", gains.assign(surrogate=predicted), columns, repr(measured)),
        repr(surrogate),
        result_table("agreement", agreement),
        result_table("schedules", schedules),
    ]
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
    return Answer(parts, result, {model_name(options): model}, settings=settings)


def _several(options: argparse.Namespace, split: ConceptSplit) -> Answer:
    names = [options.model, *options.more]
    tables, checksums = [], {}
    with steps(options, len(names)) as begin:
        for name in names:  # one model in memory at a time
            begin(name)
            model = open_model(options, name)
            checksums[Path(name).name] = weights_sha256(model)
            tables.append(
                agreement_table(
                    model, split, jacobians=("prompt", "mean", "state"), seed=options.seed
                )
            )
    found = replace(tables[0], rows=tuple(row for table in tables for row in table.rows))
    shown = result_table("agreement", found)
    published = found.published()
    return Answer(
        [shown, Table("published", published, says="Beside the published numbers:")],
        {"agreement": shown.frame, "published": published},
        checksums,
        settings={"models": names, "concept": options.concept, "prompts": options.prompts},
    )
