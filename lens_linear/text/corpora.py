"""Text to read and tokens to feed: the package's own stories, files, and packing into rows.

>>> from lens_linear.text import pack
>>> pack(range(10), 4)
tensor([[0, 1, 2, 3],
        [4, 5, 6, 7]])

Nothing here knows a tokenizer: text goes out as strings, tokens come in as ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from lens_linear.checks import require_bool, require_file, require_int
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError
from lens_linear.text._rows import TABLE_SUFFIXES, own_file, read_rows, read_utf8, require_text
from lens_linear.text._seeds import labelled_generator
from lens_linear.text.token_stream import TokenStream
from lens_linear.token_rows import flat_ids, require_tokens

STORY_SEPARATOR = "* * *"


def default_stories() -> list[str]:
    """The short stories written for this package, one string each, paragraphs on their own line.

    Returns:
        The stories, in a fixed order.

    Raises:
        CorruptedFileError: the installed package lacks them.

    Example:
        >>> default_stories()[0].splitlines()[0]
        'The Bell on Corrandale Quay'
    """
    return _split_stories(own_file("stories.txt").read_text(encoding="utf-8"))


def default_text() -> str:
    """The package's own stories as one text, a blank line between stories.

    This is the text that every analysis uses when it is given none.

    Returns:
        The text; about 58,000 characters.

    Raises:
        CorruptedFileError: the installed package lacks the stories.

    Example:
        >>> default_text().split()[:5]
        ['The', 'Bell', 'on', 'Corrandale', 'Quay']
    """
    return "\n\n".join(default_stories())


def read_documents(path: str | Path, *, column: str = "text") -> list[str]:
    """Documents of a file: one for each row of a .jsonl, .json, .csv or .tsv, else the whole file.

    Args:
        path: the file, UTF-8 text whatever its name ends in.
        column: the column that holds the text, for tables; rows with empty text are left out.

    Returns:
        The texts, in the order of the file.

    Raises:
        InvalidArgumentError: no such file, or no such column.
        CorruptedFileError: binary, not UTF-8, or not what the suffix says.
        NotEnoughDataError: no text in it.

    Example:
        >>> import json, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.json"
        >>> _ = path.write_text(json.dumps([{"text": "A cat."}, {"text": "The old mill."}]))
        >>> read_documents(path)
        ['A cat.', 'The old mill.']
    """
    path = require_file("path", path)
    if path.suffix.lower() not in TABLE_SUFFIXES:
        return [read_utf8(path)]
    texts = []
    for number, row in enumerate(read_rows(path), start=1):
        text = require_text(f"row {number} of {str(path)!r}", row, column)
        if text.strip():
            texts.append(text)
    if not texts:
        raise NotEnoughDataError(
            f"column {column!r} of {str(path)!r} must hold text, but every row is empty; "
            "name another column"
        )
    return texts


def read_text(path: str | Path, *, column: str = "text") -> str:
    """:func:`read_documents` as one text, a blank line between documents.

    Args:
        path: the file, UTF-8 text whatever its name ends in.
        column: the column that holds the text, for tables.

    Returns:
        The text.

    Raises:
        InvalidArgumentError: no such file, or no such column.
        CorruptedFileError: binary, not UTF-8, or not what the suffix says.
        NotEnoughDataError: no text in it.

    Example:
        >>> import json, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.json"
        >>> _ = path.write_text(json.dumps([{"text": "A cat."}, {"text": "The old mill."}]))
        >>> read_text(path).splitlines()
        ['A cat.', '', 'The old mill.']
    """
    return "\n\n".join(read_documents(path, column=column))


def pack(
    ids: Sequence[int] | Integer[Tensor | np.ndarray, " token"],
    length: int,
    *,
    drop_last: bool = True,
    pad: int | None = None,
) -> Int[Tensor, "row position"]:
    """Cut one long run of token ids into rows of ``length``; no token is used twice.

    Args:
        ids: token ids in order (a list, a range, or a 1-D tensor or array).
        length: tokens a row.
        drop_last: leave out the tokens that do not fill a row.
        pad: with ``drop_last=False``, the id that fills the last row.

    Returns:
        Rows [row, length], int64, in the order of ``ids``.

    Raises:
        NotEnoughDataError: there is no whole row.
        InvalidArgumentError: ids are not whole numbers, or a last row needs ``pad``.

    Example:
        >>> pack([1, 2, 3], 2, drop_last=False, pad=0)
        tensor([[1, 2],
                [3, 0]])
    """
    length = require_int("length", length, minimum=1)
    flat = flat_ids("ids", ids)
    rest = len(flat) % length
    if rest and not require_bool("drop_last", drop_last):
        if pad is None:
            raise InvalidArgumentError(
                f"pad must be given when drop_last=False and the last row is short: it has {rest} "
                f"of {length} tokens; pass pad=<id> or drop_last=True"
            )
        filler = torch.full((length - rest,), require_int("pad", pad, minimum=0))
        flat = torch.cat([flat, filler])
    n_rows = len(flat) // length
    if n_rows == 0:
        raise NotEnoughDataError(
            f"ids has {len(flat)} tokens but one row needs {length}; pass more text or a shorter "
            "length"
        )
    return flat[: n_rows * length].reshape(n_rows, length)


def batches(
    tokens: Integer[Tensor | np.ndarray, "row position"] | TokenStream,
    size: int,
    *,
    seed: int | None = None,
    drop_last: bool = False,
) -> Iterator[Int[Tensor, "batch position"]]:
    """Go through the rows once, ``size`` at a time.

    Args:
        tokens: rows of one length, of any kind that :mod:`lens_linear.token_rows` reads, or a
            :class:`TokenStream` on disk.
        size: rows a batch.
        seed: None keeps the order of the rows; a number shuffles them by that seed.
        drop_last: leave out a last batch that is smaller than ``size``.

    Yields:
        Rows [batch, position]; every row once.

    Raises:
        InvalidArgumentError: ``size`` below 1, or ``tokens`` are no rows.

    Example:
        >>> [len(batch) for batch in batches(pack(range(10), 2), 2)]
        [2, 2, 1]
    """
    size = require_int("size", size, minimum=1)
    if hasattr(tokens, "__array__") or getattr(tokens, "ndim", 0) != 2:  # no stream on disk
        tokens = require_tokens("tokens", tokens)
    n_rows = len(tokens)
    order = None
    if seed is not None:
        order = torch.randperm(n_rows, generator=labelled_generator(seed, "batches"))
    for start in range(0, n_rows, size):
        stop = min(start + size, n_rows)
        if drop_last and stop - start < size:
            return
        rows = tokens[start:stop] if order is None else tokens[order[start:stop]]
        yield rows if isinstance(rows, Tensor) else require_tokens("tokens", rows)


def _split_stories(text: str) -> list[str]:
    stories: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip() == STORY_SEPARATOR:
            stories.append([])
        else:
            stories[-1].append(line)
    joined = ["\n".join(lines).strip() for lines in stories]
    return [story for story in joined if story]
