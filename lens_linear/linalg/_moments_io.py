"""Moments on disk: one safetensors file with a format version and a checksum of the numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lens_linear._checks import require_file
from lens_linear._files import write_with
from lens_linear.errors import CorruptedFileError

FORMAT = "lens_linear.moments"
VERSION = 1
_TENSORS = ("mean_x", "mean_y", "sxx", "sxy", "syy")


def _checksum(n: int, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(str(n).encode())
    for name in _TENSORS:
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def write(path: str | Path, fields: dict[str, Any], *, keep_yy: bool) -> Path:
    """Write the fields atomically; returns the path."""
    tensors = {name: fields[name].cpu().contiguous() for name in _TENSORS}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "n": str(fields["n"]),
        "keep_yy": str(int(keep_yy)),
        "sha256": _checksum(fields["n"], tensors),
    }
    return write_with(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def read(path: str | Path) -> tuple[dict[str, Any], bool]:
    """Read the fields and ``keep_yy``.

    Raises:
        CorruptedFileError: the file is not what it claims to be.
    """
    file = require_file("path", path)
    try:
        with safe_open(file, framework="pt") as archive:
            metadata = archive.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CorruptedFileError(
                    f"{str(file)!r} holds no Moments (format {metadata.get('format')!r}); "
                    "pass a file written by Moments.save"
                )
            if metadata.get("version") != str(VERSION):
                raise CorruptedFileError(
                    f"{str(file)!r} has format version {metadata.get('version')!r}, this release "
                    f"reads version {VERSION}; save the statistics again"
                )
            tensors = {name: archive.get_tensor(name) for name in _TENSORS}
            n, keep_yy = int(metadata["n"]), metadata["keep_yy"] == "1"
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        if isinstance(error, CorruptedFileError):
            raise
        raise CorruptedFileError(
            f"{str(file)!r} cannot be read as Moments ({error}); it is truncated or no such file: "
            "collect the statistics again"
        ) from error
    _require_consistent(file, n, tensors, keep_yy=keep_yy)
    if _checksum(n, tensors) != metadata.get("sha256"):
        raise CorruptedFileError(
            f"{str(file)!r} does not match its checksum: bytes changed after it was written; "
            "collect the statistics again"
        )
    return {"n": n, **tensors}, keep_yy


def _require_consistent(file: Path, n: int, tensors: dict[str, Tensor], *, keep_yy: bool) -> None:
    d_in, d_out = tensors["mean_x"].numel(), tensors["mean_y"].numel()
    shapes = {
        "mean_x": (d_in,),
        "mean_y": (d_out,),
        "sxx": (d_in, d_in),
        "sxy": (d_in, d_out),
        "syy": (d_out, d_out) if keep_yy else (d_out,),
    }
    fits = all(
        tuple(tensors[k].shape) == s and tensors[k].dtype == torch.float64
        for k, s in shapes.items()
    )
    if n < 1 or not fits:
        raise CorruptedFileError(
            f"{str(file)!r} holds tensors that do not fit together as Moments; "
            "collect the statistics again"
        )
