"""Token ids on disk, read row by row: a corpus that does not fit in memory.

One file: a 512-byte header (a JSON line) and then the ids, two or four bytes each. It is written in
chunks under a temporary name and renamed at the end, so an interrupted run leaves nothing behind.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "corpus.bin"
>>> stream = TokenStream.write(path, [[1, 2, 3], [4, 5]], length=2, n_vocab=10)
>>> len(stream), stream[0].tolist(), stream[:].tolist()
(2, [1, 2], [[1, 2], [3, 4]])
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lens_linear.checks import counted, require_file, require_int, require_iterable, shown
from lens_linear.errors import CorruptedFileError, InvalidArgumentError, NotEnoughDataError
from lens_linear.files import atomic_path
from lens_linear.token_rows import flat_ids

_MAGIC = "lens_linear tokens 1"
_HEADER_BYTES = 512


class RowIndexError(InvalidArgumentError, IndexError):
    """No such row; an IndexError too, so that iteration ends where a tensor's would."""


class TokenStream:
    """Rows of token ids on disk; stands where a ``[row, position]`` token tensor stands.

    ``len``, ``shape``, indexing by row, slice, list or index tensor, and iteration behave as they
    do for the tensor; only the rows that are asked for are read. Tokens that do not fill a last
    row are left out. The row length is chosen when the file is opened, not when it is written.

    Args:
        path: a file made by :meth:`write`.
        length: tokens a row.

    Raises:
        CorruptedFileError: not such a file, or cut short.
        NotEnoughDataError: fewer tokens than one row.
    """

    def __init__(self, path: str | Path, *, length: int) -> None:
        self.path = require_file("path", path)
        self.length = require_int("length", length, minimum=1)
        header = _read_header(self.path)
        self.n_tokens: int = header["n_tokens"]
        self.n_vocab: int = header["n_vocab"]
        self._ids = np.memmap(
            self.path,
            dtype=np.dtype(header["dtype"]),
            mode="r",
            offset=_HEADER_BYTES,
            shape=(self.n_tokens,),
        )
        if self.n_tokens < self.length:
            raise NotEnoughDataError(
                f"length must be at most the {self.n_tokens} tokens in {str(self.path)!r}, got "
                f"{self.length}; pass a shorter length"
            )
        self._rows = self._ids[: len(self) * self.length].reshape(len(self), self.length)

    @classmethod
    def write(
        cls,
        path: str | Path,
        chunks: Iterable[Sequence[int] | Int[Tensor, " token"]],
        *,
        length: int,
        n_vocab: int,
    ) -> TokenStream:
        """Write ids chunk by chunk (never all in memory), then open the file.

        Args:
            path: the file to make; an older one is replaced only when everything is written.
            chunks: flat runs of ids, joined in order.
            length: tokens a row of the stream that is returned.
            n_vocab: ids are below this; up to 65,536 they take two bytes each.

        Raises:
            InvalidArgumentError: an id is not in the vocabulary.
            NotEnoughDataError: fewer tokens than one row; no file is left.
            WriteError: the disk is full or the folder may not be written to.
        """
        length = require_int("length", length, minimum=1)
        n_vocab = require_int("n_vocab", n_vocab, minimum=1, maximum=2**31)
        dtype = np.dtype("<u2" if n_vocab <= 2**16 else "<u4")
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            file.write(b" " * _HEADER_BYTES)
            parts = require_iterable("chunks", chunks, of="runs of token ids")
            n_tokens = sum(_write_chunk(file, chunk, n_vocab, dtype) for chunk in parts)
            if n_tokens < length:
                raise NotEnoughDataError(
                    f"chunks has {n_tokens} tokens but one row needs {length}; "
                    "pass more text or a shorter length"
                )
            file.seek(0)
            file.write(_header(n_tokens, n_vocab, dtype))
        return cls(path, length=length)

    def __len__(self) -> int:
        return self.n_tokens // self.length

    @property
    def shape(self) -> torch.Size:
        """``(rows, tokens a row)``."""
        return torch.Size((len(self), self.length))

    @property
    def ndim(self) -> int:
        """Always 2, as for a token tensor."""
        return 2

    def __getitem__(
        self, index: int | np.integer[Any] | slice | Sequence[int] | tuple[Any, ...] | Tensor
    ) -> Int[Tensor, "..."]:
        if isinstance(index, Tensor):
            index = index.tolist()
        if isinstance(index, int) and not -len(self) <= index < len(self):
            raise RowIndexError(f"index {index} is out of range for {len(self)} rows")
        try:
            rows = self._rows[index]
        except IndexError as error:
            raise RowIndexError(
                f"index must name rows of {len(self)}, got {shown(index)} ({error}); pass a row, a slice, or "
                "a list of rows"
            ) from error
        except (TypeError, ValueError):
            rows = None
        if rows is None or index is None:
            raise InvalidArgumentError(
                f"index must be a row, a slice, or a list of rows, got {shown(index)}; pass e.g. 0 or [0, 1]"
            )
        return torch.from_numpy(np.asarray(rows).astype(np.int64))

    def __repr__(self) -> str:
        return (
            f"TokenStream: {counted(len(self), 'row')} of {counted(self.length, 'token')} on disk in "
            f"{self.path.name}, "
            f"{counted(self.n_tokens, 'token')}, vocabulary {self.n_vocab}"
        )


def _header(n_tokens: int, n_vocab: int, dtype: np.dtype) -> bytes:
    fields = {"format": _MAGIC, "dtype": dtype.str, "n_tokens": n_tokens, "n_vocab": n_vocab}
    return json.dumps(fields).encode().ljust(_HEADER_BYTES - 1) + b"\n"


def _write_chunk(file: BinaryIO, chunk: object, n_vocab: int, dtype: np.dtype) -> int:
    ids = flat_ids("chunks", chunk)  # type: ignore[arg-type]
    if len(ids) and int(ids.max()) >= n_vocab:
        raise InvalidArgumentError(
            f"chunks must hold ids below n_vocab = {n_vocab}, got {int(ids.max())}; "
            "pass the vocabulary size of the tokenizer that made them"
        )
    file.write(ids.numpy().astype(dtype).tobytes())
    return len(ids)


def _read_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        raw = file.read(_HEADER_BYTES)
    try:
        header = json.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        header = None
    if not isinstance(header, dict) or header.get("format") != _MAGIC:
        raise CorruptedFileError(
            f"path must be a file made by TokenStream.write, but {str(path)!r} is not; "
            "write it again"
        )
    try:
        width = {"<u2": 2, "<u4": 4}[header["dtype"]]
        needed = _HEADER_BYTES + require_int("n_tokens", header["n_tokens"], minimum=1) * width
        require_int("n_vocab", header["n_vocab"], minimum=1)
    except (KeyError, TypeError, InvalidArgumentError) as error:
        raise CorruptedFileError(
            f"the header of {str(path)!r} cannot be read ({error}); write it again"
        ) from error
    if path.stat().st_size != needed:
        raise CorruptedFileError(
            f"{str(path)!r} has {path.stat().st_size} bytes where its header says {needed}; "
            "it was cut short or changed: write it again"
        )
    return header
