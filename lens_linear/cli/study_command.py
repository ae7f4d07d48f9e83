"""``lens-linear train`` on a study: every variant and seed trained and measured, tables out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lens_linear.cli.corpus import folder_tokenizer, out_folder, read_texts
from lens_linear.cli.output import emit, envelope, table
from lens_linear.models.tokenizer import encode_stream
from lens_linear.studies.pretraining import STUDIES, load_study, run_study
from lens_linear.studies.study_tables import save_tables


def is_study(name: str) -> bool:
    """Say whether RECIPE names a bundled study, or a JSON file with variants."""
    if name in STUDIES:
        return True
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError):
        return False
    return isinstance(values, dict) and "variants" in values


def run_study_of_recipes(options: argparse.Namespace) -> None:
    """Run the study, write its tables, print what it found; finished runs are not trained anew."""
    study = load_study(options.recipe)
    if options.scale != 1.0:
        study = study.scaled(options.scale)
    corpus, valid_text, source = read_texts(options)
    folder = out_folder(options, study.name)
    tokenizer = folder_tokenizer(folder, corpus, study.recipe_for(*study.runs()[0]))
    stream, valid = encode_stream(tokenizer, corpus), encode_stream(tokenizer, valid_text)
    sys.stderr.write(
        f"{study.name}: {len(study.runs())} small models from {len(stream):,} tokens of text; finished "
        f"ones are kept in {folder}\n"
    )
    result = run_study(
        study,
        stream,
        valid,
        folder=folder / "runs",
        progress=not options.json,
        device=options.device,
    )
    written = save_tables(result, folder, text=source)
    differences = result.differences()
    text = (
        f"{result!r}\n\nFFN R² by layer, over seeds:\n{table(result.layer_spread())}\n\n"
        f"Against {study.baseline!r}, seed by seed:\n{table(differences, digits=4)}\n\n"
        f"{result.verdict()}\n\nTables: " + ", ".join(str(path) for path in written)
    )
    found = {
        "layers": result.layer_spread(),
        "differences": differences,
        "summary": result.summary(),
        "files": written,
    }
    settings = {"corpus": source, "scale": options.scale, "out": str(folder)}
    emit(options.json, envelope("train", found, settings=settings), text)
