"""``lens-linear tour``, ``report`` and ``explore``: one offline page each."""

from __future__ import annotations

import argparse

from lens_linear.cli.opening import given_text, model_name, open_model
from lens_linear.cli.output import Answer, steps
from lens_linear.explorer.explorer import PROMPTS, explore
from lens_linear.reports.build import report, report_steps
from lens_linear.reports.tour_page import HEAVY, STEPS, tour


def tour_page(options: argparse.Namespace) -> Answer:
    """The bundled models, taken apart."""
    out = options.out or "lens-linear-tour.html"
    with steps(options, STEPS, HEAVY) as begin:
        result = tour(out, seed=options.seed, on_step=begin)
    return Answer(
        [result.summary(), f"The page with figures, and a link to its explorer: {result.path}"],
        [{"title": one.title, "prose": one.prose} for one in result.sections],
        dict(result.settings["weights_sha256"]),
        settings={"out": str(result.path)},
        page=result.path,
    )


def report_page(options: argparse.Namespace) -> Answer:
    """The written page about a model."""
    text = given_text(options)
    model, name = open_model(options), model_name(options)
    out = options.out or f"{name}-report.html"
    with steps(options, report_steps(model)) as begin:
        path = report(
            model, out, text, n_sequences=options.sequences, seed=options.seed, on_step=begin
        )
    settings = {
        "out": str(path),
        "text": options.text or "own stories",
        "sequences": options.sequences,
    }
    said = [f"The page: {path}"]
    return Answer(said, {"path": str(path)}, {name: model}, settings=settings, page=path)


def explorer_page(options: argparse.Namespace) -> Answer:
    """The interactive page about a model."""
    text = given_text(options)
    model, name = open_model(options), model_name(options)
    with steps(options, 4 + len(options.prompt or PROMPTS)) as begin:
        explorer = explore(
            model,
            options.prompt or None,
            max_bytes=int(options.max_mb * 1e6),
            text=text,
            seed=options.seed,
            on_step=begin,
        )
        path = explorer.save(options.out or f"{name}-explorer.html")
    size, missing = path.stat().st_size, explorer.payload["missing"]
    notes = [f"Not in the page: {note}" for part in missing.values() for note in part]
    return Answer(
        ["\n".join([repr(explorer), *notes, f"The page ({size / 1e6:.1f} MB): {path}"])],
        {"path": str(path), "bytes": size, "left_out": missing},
        {name: model},
        settings={
            "out": str(path),
            "max_mb": options.max_mb,
            "text": options.text or "own stories",
        },
        page=path,
    )
