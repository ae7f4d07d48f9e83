"""Text and tokenizer of a training command."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Tokenizer

from lens_linear.checks import require_file, require_path
from lens_linear.errors import CorruptedFileError, InvalidArgumentError
from lens_linear.files import require_folder
from lens_linear.models.open.cards import TOKENIZER
from lens_linear.models.tokenizer import save_tokenizer, train_tokenizer
from lens_linear.text.corpora import read_documents, read_text
from lens_linear.text.huggingface import huggingface_text
from lens_linear.training.recipes import Recipe


def read_texts(options: argparse.Namespace) -> tuple[str, str, str]:
    """Return training text, validation text and a word on where they came from."""
    corpus = require_path("--corpus", options.corpus)
    if corpus.is_file() and corpus.suffix.lower() not in (".parquet", ".arrow"):
        texts, source = read_documents(corpus, column=options.column), corpus.name
        texts = texts[: options.limit]
    else:
        try:
            texts = huggingface_text(
                options.corpus, split="train", column=options.column, limit=options.limit
            )
        except InvalidArgumentError as error:
            raise InvalidArgumentError(
                f"--corpus {options.corpus!r} cannot be read as a dataset: {error}; or pass a text file"
            ) from error
        source = options.corpus
    text = "\n".join(texts)
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


def out_folder(options: argparse.Namespace, name: str) -> Path:
    """The folder to write to, made if it is not there."""
    folder = require_path("--out", options.out or name)
    if not folder.parent.is_dir():
        raise InvalidArgumentError(
            f"--out lies in {str(folder.parent)!r}, which does not exist; make that folder first"
        )
    return require_folder("--out", folder)


def folder_tokenizer(folder: Path, corpus: str, recipe: Recipe) -> Tokenizer:
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
    save_tokenizer(tokenizer, path)
    return tokenizer
