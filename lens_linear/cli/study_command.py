"""``lens-linear train`` on a study: every variant and seed trained and measured, tables out."""

from __future__ import annotations

import argparse
from pathlib import Path

from lens_linear.cli.corpus import folder_tokenizer, out_folder, read_texts
from lens_linear.cli.output import Answer, Table, remark
from lens_linear.errors import CorruptedFileError
from lens_linear.files import read_json
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
        return "variants" in read_json(path, advice="mend it")
    except CorruptedFileError:
        return False


def run_study_of_recipes(options: argparse.Namespace) -> Answer:
    """Run the study, write its tables, print what it found; finished runs are not trained anew."""
    study = load_study(options.recipe)
    if options.scale != 1.0:
        study = study.scaled(options.scale)
    corpus, valid_text, source = read_texts(options)
    folder = out_folder(options, study.name)
    tokenizer = folder_tokenizer(folder, corpus, study.recipe_for(*study.runs()[0]))
    stream, valid = encode_stream(tokenizer, corpus), encode_stream(tokenizer, valid_text)
    remark(
        options,
        f"{study.name}: {len(study.runs())} small models from {len(stream):,} tokens of text; finished "
        f"ones are kept in {folder}",
    )
    result = run_study(
        study,
        stream,
        valid,
        folder=folder / "runs",
        progress=not options.quiet,
        device=options.device,
    )
    written = save_tables(result, folder, text=source)
    differences = result.differences()
    found = {
        "layers": result.layer_spread(),
        "differences": differences,
        "summary": result.summary(),
        "files": written,
    }
    settings = {"corpus": source, "scale": options.scale, "out": str(folder)}
    parts: list[str | Table] = [
        repr(result),
        Table("layers", result.layer_spread(), says="FFN R² by layer, over seeds:"),
        Table("differences", differences, says=f"Against {study.baseline!r}, seed by seed:"),
        result.verdict(),
        "Tables: " + ", ".join(str(path) for path in written),
    ]
    return Answer(parts, found, settings=settings)
