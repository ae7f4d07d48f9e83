"""``lens-linear train``: any text in, a model folder out; killed and started again, it goes on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lens_linear.checks import require_device, require_file
from lens_linear.cli.corpus import folder_tokenizer, out_folder, read_texts
from lens_linear.cli.output import Answer, Table, remark
from lens_linear.cli.study_command import is_study, run_study_of_recipes
from lens_linear.cli.terminal import waiting
from lens_linear.errors import InvalidArgumentError
from lens_linear.files import read_json
from lens_linear.models.open.bundled import training_table
from lens_linear.models.open.load import load
from lens_linear.models.tokenizer import encode_stream
from lens_linear.studies.baking import bake
from lens_linear.studies.pretraining import STUDIES
from lens_linear.training.loop import train
from lens_linear.training.recipes import RECIPES, Recipe

_LAST = 10  # steps shown


def train_model(options: argparse.Namespace) -> Answer:
    """Train by a recipe and write the model folder."""
    require_device("--device", options.device)
    if is_study(options.recipe):
        return run_study_of_recipes(options)
    recipe = _recipe(options.recipe)
    if options.scale != 1.0:
        recipe = recipe.scaled(options.scale)
    corpus, valid_text, source = read_texts(options)
    folder = out_folder(options, recipe.name)
    tokenizer = folder_tokenizer(folder, corpus, recipe)
    stream, valid = encode_stream(tokenizer, corpus), encode_stream(tokenizer, valid_text)
    remark(
        options,
        f"{recipe.name}: {recipe.steps} steps, {recipe.tokens:,} tokens of training from {len(stream):,} "
        f"tokens of text; checkpoint in {folder}, start again to go on from it\n{_before(recipe)}".rstrip(),
    )
    checkpoint = folder / "training.safetensors"
    finished = train(
        recipe,
        stream,
        checkpoint=checkpoint,
        device=options.device,
        progress=not options.quiet,
    )
    with waiting("measuring the validation loss", after=1.0, show=not options.quiet):
        bake(finished, folder, train=stream, valid=valid, data=source)
    checkpoint.unlink(missing_ok=True)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    text = (
        f"{finished!r}\nvalidation loss {card['validation_loss']:.3f} nats per token on "
        f"{card['validation_tokens']:,} tokens\nload it with lens_linear.load({_shown(folder)!r})"
    )
    history = finished.to_dataframe()
    settings = {
        "corpus": source,
        "valid": options.valid,
        "column": options.column,
        "limit": options.limit,
        "scale": options.scale,
        "out": str(folder),
        "load": _shown(folder),
    }
    return Answer(
        [text, Table("history", history.tail(_LAST), says="The last steps:")],
        card,
        {recipe.name: load(folder)},
        recipe.seed,
        settings,
    )


def _before(recipe: Recipe) -> str:
    """Say what the bundled model of this recipe took and reached."""
    if recipe != RECIPES.get(recipe.name):
        return ""
    row = training_table().set_index("name").loc[recipe.name]
    return (
        f"the bundled {recipe.name} took {row['minutes']:.1f} minutes on a machine with 2 cores "
        f"({row['threads']} thread) and reached {row['loss']:.3f} nats per token on unseen books\n"
    )


def _shown(folder: Path) -> str:
    """The folder as ``load`` takes it, also where it is called like a bundled model."""
    return f"./{folder}" if len(folder.parts) == 1 else str(folder)


def _recipe(name: str) -> Recipe:
    if name in RECIPES:
        return RECIPES[name]
    if not name.endswith(".json"):
        raise InvalidArgumentError(
            f"RECIPE must be one of {', '.join((*RECIPES, *STUDIES))} or a .json file, got {name!r}"
        )
    path = require_file("RECIPE", name)
    return Recipe.from_dict(
        read_json(path, advice="RECIPE must hold one JSON object with name, spec and phases")
    )
