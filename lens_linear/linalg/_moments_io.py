"""Moments on disk: one safetensors file with a format version and a checksum of the numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lens_linear.checks import require_file
from lens_linear.errors import CorruptedFileError
from lens_linear.files import write_tensors

FORMAT = "lens_linear.moments"
VERSION = 1
_STATE = ("mean_x", "mean_y", "sxx", "sxy", "syy", "probe", "szx", "szy", "szz", "sdd")
_ROWS = ("x", "y")  # before there are enough rows for statistics, the rows themselves are kept


def _checksum(n: int, keep_yy: bool, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{n} {int(keep_yy)}".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write(path: str | Path, n: int, tensors: dict[str, Tensor], *, keep_yy: bool) -> Path:
    """Write count and tensors atomically; returns the path."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "n": str(n),
        "keep_yy": str(int(keep_yy)),
        "sha256": _checksum(n, keep_yy, ready),
    }
    return write_tensors(path, ready, metadata)


def read(path: str | Path) -> tuple[int, dict[str, Tensor], bool]:
    """Read count, tensors and ``keep_yy``.

    Raises:
        CorruptedFileError: the file is not what it claims to be.
    """
    file = require_file("path", path)
    try:
        with safe_open(file, framework="pt") as archive:
            metadata = archive.metadata() or {}
            _require_format(file, metadata)
            names = list(archive.keys())
            tensors = {name: archive.get_tensor(name) for name in names}
        n, keep_yy = int(metadata["n"]), {"0": False, "1": True}[metadata["keep_yy"]]
        intact = _checksum(n, keep_yy, tensors) == metadata["sha256"]
    except CorruptedFileError:
        raise
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise CorruptedFileError(
            f"{str(file)!r} cannot be read as Moments ({error}); it is truncated or no such file: "
            "collect the statistics again"
        ) from error
    if not intact or set(tensors) not in (set(_STATE), set(_ROWS)):
        raise CorruptedFileError(
            f"{str(file)!r} does not match its checksum: bytes changed after it was written; "
            "collect the statistics again"
        )
    return n, tensors, keep_yy


def _require_format(file: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise CorruptedFileError(
            f"{str(file)!r} holds no Moments (format {metadata.get('format')!r}); "
            "pass a file written by Moments.save"
        )
    if metadata.get("version") != str(VERSION):
        raise CorruptedFileError(
            f"{str(file)!r} has format version {metadata.get('version')!r}, this release reads "
            f"version {VERSION}; save the statistics again"
        )
