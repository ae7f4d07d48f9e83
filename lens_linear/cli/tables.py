"""``lens-linear circuits`` and ``linearity``: tables about one model."""

from __future__ import annotations

import argparse
from dataclasses import replace

from lens_linear.checks import require_choice
from lens_linear.circuits.induction.scores import induction_scores
from lens_linear.circuits.paths.attention_only import AttentionOnly
from lens_linear.cli.opening import given_text, model_name, open_model
from lens_linear.cli.output import Answer, Table, result_table, steps
from lens_linear.errors import UnsupportedModelError
from lens_linear.explorer.heads import shown_composition
from lens_linear.extensions import added
from lens_linear.linearity.measure.profile import linearity_profile
from lens_linear.stats.evaluation import evaluation_tokens
from lens_linear.studies.published import published_beside_measured


def circuits(options: argparse.Namespace) -> Answer:
    """Scores of heads, composition, and skip-trigrams where the model is attention-only."""
    model = open_model(options)
    with steps(options, 3) as begin:
        begin("heads")
        heads = induction_scores(model, seed=options.seed)
        strongest = heads.ranked().head(len(heads.named()) + options.top)
        parts: list[str | Table] = [replace(result_table("heads", heads), printed=strongest)]
        begin("composition")
        if model.n_layers > 1:
            scores = shown_composition(model, seed=options.seed)
            frame = scores.to_dataframe().head(options.top)  # largest ratio first
            parts.append(result_table("composition", scores, frame))
        begin("skip-trigrams")
        try:
            view = AttentionOnly(model)
        except UnsupportedModelError as reason:
            parts.append(f"Token-space circuits of the whole model are left out: {reason}")
        else:
            for head in view.heads()[: model.n_heads]:
                trigrams = view.skip_trigrams(head.layer, head.head, k=options.top)
                parts.append(result_table(f"skip_trigrams {head.name}", trigrams))
    return Answer(
        parts,
        models={model_name(options): model},
        settings={"top": options.top},
    )


def linearity(options: argparse.Namespace) -> Answer:
    """Linearity of every layer, and published numbers beside it where a paper has them."""
    for statistic in options.statistic or []:
        require_choice("--statistic", statistic, added("statistics"))
    model, name = open_model(options), model_name(options)
    tokens = evaluation_tokens(model, given_text(options), n_sequences=options.sequences)
    profile = linearity_profile(
        model,
        tokens,
        fit=options.fit,
        skip=options.skip,
        ridge=options.ridge,
        statistics=options.statistic,
        seed=options.seed,
        progress=not options.quiet,
    )
    settings: dict[str, object] = {
        "fit": options.fit,
        "skip": options.skip,
        "ridge": options.ridge,
        "statistics": options.statistic or [],
        "text": options.text or "own stories",
        "sequences": options.sequences,
    }
    found = result_table("linearity", profile)
    parts: list[str | Table] = [found]
    published = published_beside_measured({name: profile}).about(name)
    if len(published):
        parts.append(Table("published", published, says="Published beside measured:"))
        settings["published"] = published
    return Answer(parts, found.frame, models={name: model}, settings=settings)
