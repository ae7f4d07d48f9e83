"""A long pass over tokens that a kill does not undo: everything it knows in one safetensors file.

The file holds every ``Moments`` (as the bytes of its own checksummed file), any other tensors, how many
sequences are done, and a fingerprint of the question. It is written to a temporary name and renamed.
A file with another fingerprint is refused, never mixed in.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens_linear.checks import require_int
from lens_linear.checksummed import read_sealed, write_sealed
from lens_linear.errors import CorruptedFileError
from lens_linear.files import hold, release, require_target
from lens_linear.linalg import Moments, process
from lens_linear.models.capture import SITES
from lens_linear.models.checked import ModelLike, checked
from lens_linear.models.open.checksum import model_fingerprint
from lens_linear.stats.split import RowView, as_rows

Key = tuple[int, str]  # a layer, and a site or a name made of one
FORMAT = "lens_linear.pass 1"


@dataclass
class PassState:
    """How far a pass has come: sequences done in each phase, statistics, other sums."""

    done: dict[str, int] = field(default_factory=dict)
    moments: dict[Key, Moments] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)


def fingerprint(model: ModelLike, rows: Any, **knobs: Any) -> str:
    """Hash of configuration, weights, tokens and knobs: equal only when a pass asks the same question.

    ``rows`` are of any kind that :func:`~lens_linear.stats.split.as_rows` reads.
    """
    model = checked(model)
    rows = as_rows(model, rows)
    words = json.dumps(knobs, sort_keys=True, default=str)
    question = f"{model_fingerprint(model)} {words} {len(rows)} {tokens_sha256(rows)}"
    return hashlib.sha256(question.encode()).hexdigest()


def tokens_sha256(rows: RowView) -> str:
    """Hash of token ids, row by row: equal only for the same sequences in the same order."""
    digest = hashlib.sha256()
    if rows.lengths is not None:  # a pad is no token, whatever its id
        digest.update(rows.lengths.numpy().tobytes())
    for start in range(0, len(rows), 1024):
        digest.update(rows[start : start + 1024].cpu().long().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Checkpoint:
    """Where a pass keeps its state; ``path=None`` keeps nothing.

    Args:
        path: the file; under ``torch.distributed`` every process adds its rank to the name.
        question: fingerprint; a file that carries another is refused.
        every: sequences between two writes.
    """

    def __init__(self, path: str | Path | None, question: str, *, every: int = 256) -> None:
        self.every = require_int("save_every", every, minimum=1)
        self.question = question
        self.path = None if path is None else _own(require_target("checkpoint", path))

    def load(self) -> PassState:
        """Read the state, or start afresh when there is no file; nobody else may use it until ``remove``.

        Raises:
            CorruptedFileError: damaged, or of another question.
            WriteError: another run uses it.
        """
        if self.path is None:
            return PassState()
        hold(self.path, what="checkpoint")
        if not self.path.is_file():
            return PassState()
        tensors, metadata = read_sealed(self.path, what="checkpoint")
        if metadata.get("format") != FORMAT or metadata.get("question") != self.question:
            raise CorruptedFileError(
                f"checkpoint {str(self.path)!r} belongs to another model, text or setting; "
                "remove it, or name another file"
            )
        state = PassState(done=json.loads(metadata["done"]))
        with tempfile.TemporaryDirectory() as folder:
            for name, value in tensors.items():
                if name.startswith("sums."):
                    state.sums[name.removeprefix("sums.")] = value
                    continue
                layer, site = name.removeprefix("moments.").split(".")
                # One name each: tensors read from a file stay mapped to it.
                file_name = Path(folder) / name
                file_name.write_bytes(value.numpy().tobytes())
                state.moments[(int(layer), site)] = Moments.load(file_name)
        self._require_equal_counts(state)
        return state

    def _require_equal_counts(self, state: PassState) -> None:
        """Every layer has seen the same rows, at every site of one kind; a file of two runs has not."""
        counts: dict[str, set[int]] = {}
        for (_, site), moments in state.moments.items():
            counts.setdefault("rows" if site in SITES else site, set()).add(moments.n)
        apart = {kind: sorted(each) for kind, each in counts.items() if len(each) > 1}
        if apart:
            raise CorruptedFileError(
                f"checkpoint {str(self.path)!r} counts its layers differently ({apart}), as when two runs "
                "wrote it; remove it to start again"
            )

    def save(self, state: PassState) -> None:
        """Write the state, whole or not at all."""
        if self.path is None:
            return
        tensors = {f"sums.{name}": value.cpu() for name, value in state.sums.items()}
        # One name, used again and again: a kill leaves at most one, and the next write takes it away.
        part = self.path.with_name(f".{self.path.name}.part")
        for (layer, site), moments in state.moments.items():
            if moments.n:
                data = bytearray(moments.save(part).read_bytes())
                tensors[f"moments.{layer}.{site}"] = torch.frombuffer(data, dtype=torch.uint8)
        part.unlink(missing_ok=True)
        metadata = {
            "format": FORMAT,
            "question": self.question,
            "done": json.dumps(state.done),
        }
        write_sealed(self.path, tensors, metadata)

    def remove(self) -> None:
        """Delete the file: the pass is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            release(self.path)


def _own(path: Path) -> Path:
    rank, world = process()
    return path if world == 1 else path.with_name(f"{path.name}.{rank}-of-{world}")
