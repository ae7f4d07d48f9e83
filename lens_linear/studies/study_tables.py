"""What a study found, as CSV files with the settings beside the numbers; and back again."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import torch

from lens_linear.checks import require_file, require_instance, require_path
from lens_linear.errors import CorruptedFileError
from lens_linear.files import read_json, require_folder, write_text
from lens_linear.studies.pretraining import Study, StudyResult


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

    Raises:
        InvalidArgumentError: ``result`` is no StudyResult.
        WriteError: the disk is full or the folder may not be written to.

    Example:
        >>> import tempfile
        >>> from dataclasses import replace
        >>> from lens_linear.studies.pretraining import MEASURES, load_study
        >>> study = replace(load_study("cosine"), seeds=(0,))
        >>> run = {"seed": 0, "step": 500, "final": True, "layer": 0, **dict.fromkeys(MEASURES, 0.5)}
        >>> rows = tuple({"variant": variant, **run} for variant in study.variants)
        >>> result = StudyResult(study, rows, n_tokens=100, n_text=1000, minutes=0.1)
        >>> [path.name for path in save_tables(result, tempfile.mkdtemp(), text="an example")][:2]
        ['cosine.csv', 'cosine-summary.csv']
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


def load_tables(folder: str | Path, name: str) -> StudyResult:
    """Read what :func:`save_tables` wrote, so that tables and figures need no training.

    Args:
        folder: where the files are.
        name: of the study.

    Returns:
        StudyResult, as ``run_study`` returned it, rounded to six digits.

    Raises:
        InvalidArgumentError: no such files.
        CorruptedFileError: they cannot be read, or do not fit together.

    Example:
        >>> import tempfile
        >>> from dataclasses import replace
        >>> from lens_linear.studies.pretraining import MEASURES, load_study
        >>> study = replace(load_study("cosine"), seeds=(0,))
        >>> run = {"seed": 0, "step": 500, "final": True, "layer": 0, **dict.fromkeys(MEASURES, 0.5)}
        >>> rows = tuple({"variant": variant, **run} for variant in study.variants)
        >>> result = StudyResult(study, rows, n_tokens=100, n_text=1000, minutes=0.1)
        >>> folder = tempfile.mkdtemp()
        >>> _ = save_tables(result, folder, text="an example")
        >>> load_tables(folder, "cosine")["block_r2"].tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    folder = require_path("folder", folder)
    table = require_file("name", folder / f"{name}.csv")
    card = require_file("name", folder / f"{name}.json")
    try:
        settings = read_json(card, advice="write it again with save_tables")
        study = Study(
            name=settings["study"],
            question=settings["question"],
            seeds=tuple(settings["seeds"]),
            recipe=settings["recipe"],
            baseline=settings["baseline"],
            variants=settings["variants"],
            validation=settings["validation"],
        )
        frame = pd.read_csv(table)
        found = {(v, int(s)) for v, s in zip(frame["variant"], frame["seed"], strict=True)}
        if found != set(study.runs()):
            raise ValueError("the runs in the table are not those of the settings")
        return StudyResult(
            study,
            tuple(frame.to_dict("records")),  # type: ignore[arg-type]
            settings["scored_tokens"],
            settings["training_text_tokens"],
            settings["training_minutes"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptedFileError(
            f"the tables of {name!r} in {str(folder)!r} cannot be read ({error}); run the study again"
        ) from error
