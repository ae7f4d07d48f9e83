"""``lens-linear train``: any text in, a model folder out; killed and started again, it goes on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

from lens_linear._checks import require_device, require_file, require_float, require_path
from lens_linear.cli.output import emit, envelope
from lens_linear.errors import CorruptedFileError, InvalidArgumentError
from lens_linear.models.folder import TOKENIZER
from lens_linear.models.load import load
from lens_linear.models.tokenize import encode_stream, save_tokenizer, train_tokenizer
from lens_linear.text.corpora import read_text
from lens_linear.text.huggingface import huggingface_text
from lens_linear.training.bake import bake
from lens_linear.training.loop import train
from lens_linear.training.recipes import RECIPES, Recipe


def run_train(options: argparse.Namespace) -> None:
    """Train by a recipe and write the model folder."""
    recipe = _recipe(options.recipe)
    require_device("--device", options.device)
    require_float("--scale", options.scale, minimum=1e-4)
    if options.scale != 1.0:
        recipe = recipe.scaled(options.scale)
    corpus, valid_text, source = _texts(options)
    folder = require_path("--out", options.out or recipe.name)
    if folder.exists() and not folder.is_dir():
        raise InvalidArgumentError(f"--out must be a folder, but {str(folder)!r} is a file")
    if not folder.parent.is_dir():
        raise InvalidArgumentError(f"--out lies in {str(folder.parent)!r}, which does not exist")
    folder.mkdir(exist_ok=True)
    tokenizer = _tokenizer(folder, corpus, recipe)
    stream, valid = encode_stream(tokenizer, corpus), encode_stream(tokenizer, valid_text)
    sys.stderr.write(
        f"{recipe.name}: {recipe.steps} steps, {recipe.tokens:,} tokens of training from {len(stream):,} "
        f"tokens of text; checkpoint in {folder}\n"
    )
    checkpoint = folder / "training.safetensors"
    finished = train(recipe, stream, checkpoint=checkpoint, device=options.device)
    bake(finished, folder, train=stream, valid=valid, data=source)
    checkpoint.unlink(missing_ok=True)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    text = (
        f"{finished!r}\nvalidation loss {card['validation_loss']:.3f} nats per token on "
        f"{card['validation_tokens']:,} tokens\nload it with lens_linear.load({str(folder)!r})"
    )
    payload = envelope(
        "train",
        card,
        models={recipe.name: load(folder)},
        seed=recipe.seed,
        settings={"corpus": source, "scale": options.scale, "out": str(folder)},
    )
    emit(options.json, payload, text)


def _recipe(name: str) -> Recipe:
    if name in RECIPES:
        return RECIPES[name]
    if not name.endswith(".json"):
        raise InvalidArgumentError(
            f"RECIPE must be one of {', '.join(RECIPES)} or a .json file, got {name!r}"
        )
    path = require_file("RECIPE", name)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(
            f"RECIPE {name!r} is not JSON ({error}); mend the file"
        ) from error
    if not isinstance(values, dict):
        raise InvalidArgumentError(
            f"RECIPE {name!r} must hold one JSON object with name, spec, phases"
        )
    return Recipe.from_dict(values)


def _texts(options: argparse.Namespace) -> tuple[str, str, str]:
    """Return training text, validation text and a word on where they came from."""
    if Path(options.corpus).exists():
        text, source = (
            read_text(require_file("--corpus", options.corpus)),
            Path(options.corpus).name,
        )
    else:
        texts = huggingface_text(
            options.corpus, split="train", column=options.column, limit=options.limit
        )
        text, source = "\n".join(texts), options.corpus
    if options.valid is not None:
        return text, read_text(require_file("--valid", options.valid)), source
    lines = text.splitlines(keepends=True)
    if len(lines) < 20:
        raise InvalidArgumentError(
            f"--corpus has {len(lines)} lines, too few to keep some for validation; pass --valid FILE"
        )
    cut = len(lines) - len(lines) // 20
    return (
        "".join(lines[:cut]),
        "".join(lines[cut:]),
        f"{source}, last twentieth kept for validation",
    )


def _tokenizer(folder: Path, corpus: str, recipe: Recipe) -> Tokenizer:
    """Take the folder's tokenizer, so that a resumed run sees the same ids, or train one."""
    path = folder / TOKENIZER
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception on damaged files
            raise CorruptedFileError(
                f"{str(path)!r} is not a tokenizer ({error}); remove it, or choose another --out"
            ) from error
    tokenizer = train_tokenizer(corpus, n_vocab=recipe.spec.d_vocab)
    if tokenizer.get_vocab_size() > recipe.spec.d_vocab:
        raise InvalidArgumentError("the recipe's d_vocab is smaller than the byte alphabet (257)")
    save_tokenizer(tokenizer, path)
    return tokenizer
