"""What every command that opens a model does first."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from lens_linear.cli.terminal import waiting
from lens_linear.models.checked import CheckedModel, checked
from lens_linear.models.native import no_bars_of_libraries
from lens_linear.models.open.load import load
from lens_linear.text.corpora import read_text


def open_model(options: argparse.Namespace, name: str | None = None) -> CheckedModel:
    """Open MODEL (or another one) where ``--device`` and in the type that ``--dtype`` says."""
    # of MODEL it was said before the libraries were loaded
    words, after = (f"opening {name}", 0.0) if name else ("reading the weights", 1.0)
    with waiting(words, after=after, show=not options.quiet), no_bars_of_libraries():
        dtype = getattr(torch, options.dtype)
        return checked(load(name or options.model, device=options.device, dtype=dtype))


def model_name(options: argparse.Namespace) -> str:
    """The last part of MODEL, for titles and file names."""
    return Path(options.model).name


def given_text(options: argparse.Namespace) -> str | None:
    """What ``--text`` holds; None for the package's own stories."""
    return None if options.text is None else read_text(options.text)
