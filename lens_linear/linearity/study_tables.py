"""Write what a study found as CSV files, with the settings beside the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lens_linear._checks import require_instance
from lens_linear._files import require_folder, write_text
from lens_linear.linearity.study import StudyResult


def save_tables(result: StudyResult, folder: str | Path, *, text: str) -> list[Path]:
    """Write the tables of a study as CSV and its settings, counts and verdict as JSON.

    ``NAME.csv`` holds every row; ``NAME-summary.csv``, ``NAME-differences.csv`` and ``NAME-layers.csv`` the
    tables of the result's methods; ``NAME.json`` the rest.

    Args:
        result: what ``run_study`` returned.
        folder: made if it is not there.
        text: what the models were trained and validated on, for the reader.

    Returns:
        The files, in this order.
    """
    require_instance("result", result, StudyResult, advice="pass what run_study returned")
    folder = require_folder("folder", folder)
    study = result.study
    tables = {
        "": result.to_dataframe(),
        "-summary": result.summary(),
        "-differences": result.differences(),
        "-layers": result.layer_spread(),
    }
    paths = [
        write_text(folder / f"{study.name}{end}.csv", table.round(6).to_csv(index=False))
        for end, table in tables.items()
    ]
    settings = {
        "study": study.name,
        "question": study.question,
        "recipe": dict(study.recipe),
        "variants": {name: dict(change) for name, change in study.variants.items()},
        "baseline": study.baseline,
        "seeds": list(study.seeds),
        "validation": dict(study.validation),
        "text": text,
        "training_text_tokens": result.n_text,
        "scored_tokens": result.n_tokens,
        "training_minutes": round(result.minutes, 1),
        "torch": torch.__version__.split("+")[0],
        "verdict": result.verdict().splitlines(),
    }
    paths.append(write_text(folder / f"{study.name}.json", json.dumps(settings, indent=2) + "\n"))
    return paths
