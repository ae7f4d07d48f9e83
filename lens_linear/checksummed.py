"""Tensors on disk with a checksum: written whole or not at all, never read when a byte has changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lens_linear.errors import CorruptedFileError
from lens_linear.files import write_tensors

_SEAL = "sha256"


def checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 over the metadata and over names, shapes, types and bytes of the tensors."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_sealed(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write tensors and words with their checksum; an older file is replaced only by a whole one.

    Raises:
        WriteError: the disk is full or the folder may not be written to.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    words = {**metadata, _SEAL: checksum(ready, metadata)}
    return write_tensors(path, ready, words)


def read_sealed(path: str | Path, *, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what :func:`write_sealed` wrote; ``what`` names the file in messages.

    Raises:
        CorruptedFileError: cut short, changed, or not such a file.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        seal = metadata.pop(_SEAL, None)
        intact = seal == checksum(tensors, metadata)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CorruptedFileError(
            f"{what} {str(path)!r} cannot be read ({error}); remove it to start again"
        ) from error
    if not intact:
        raise CorruptedFileError(
            f"{what} {str(path)!r} does not match its checksum: bytes changed after it was written, or "
            "something else wrote it; remove it to start again"
        )
    return tensors, metadata
