"""Rows and texts of Hugging Face datasets: on the Hub, in a local folder, or in a local file.

The ``datasets`` library is imported when one of these functions is called, not before. Rows are
streamed, so a limit also limits the download.

>>> from lens_linear.text import huggingface_text
>>> texts = huggingface_text("stanfordnlp/imdb", split="train", limit=100)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lens_linear.checks import require_instance, require_int, require_path
from lens_linear.errors import (
    CorruptedFileError,
    InvalidArgumentError,
    NotEnoughDataError,
    OfflineError,
)
from lens_linear.text._rows import Row, require_text

_BUILDERS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}


def huggingface_text(
    name: str | Path,
    *,
    split: str = "train",
    column: str = "text",
    config: str | None = None,
    limit: int | None = None,
) -> list[str]:
    """Texts of one column of a Hugging Face dataset, in its order; empty texts are left out.

    Args:
        name: a Hub name (``"stanfordnlp/imdb"``), a folder (a dataset repository, or what
            ``save_to_disk`` wrote), or a .jsonl, .json, .csv, .tsv, .parquet, .arrow or .txt file.
        split: which split; a single file has the split ``"train"``.
        column: the column that holds text.
        config: the dataset's configuration, where it has several.
        limit: stop after so many texts; None reads the whole split.

    Returns:
        The texts, in the dataset's order.

    Raises:
        OfflineError: the Hub cannot be reached, or ``datasets`` is not installed.
        InvalidArgumentError: no such dataset, split, configuration or column.
        NotEnoughDataError: no text at all.

    Example:
        >>> import json, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.json"
        >>> _ = path.write_text(json.dumps([{"text": "A cat."}, {"text": ""}, {"text": "The old mill."}]))
        >>> huggingface_text(path)
        ['A cat.', 'The old mill.']
    """
    texts = stream_huggingface_text(name, split=split, column=column, config=config)
    limit = None if limit is None else require_int("limit", limit, minimum=1)
    found = list(islice(texts, limit))
    if not found:
        raise NotEnoughDataError(
            f"name must be a dataset with text, but column {column!r} of {str(name)!r} is empty "
            f"in split {split!r}; choose another column or split"
        )
    return found


def stream_huggingface_text(
    name: str | Path, *, split: str = "train", column: str = "text", config: str | None = None
) -> Iterator[str]:
    """The same as :func:`huggingface_text` one text at a time, for corpora larger than memory.

    Args:
        name: a Hub name, a folder, or a file, as in :func:`huggingface_text`.
        split: which split; a single file has the split ``"train"``.
        column: the column that holds text; empty texts are left out.
        config: the dataset's configuration, where it has several.

    Yields:
        One text after the other.

    Raises:
        OfflineError: the Hub cannot be reached, or ``datasets`` is not installed.
        InvalidArgumentError: no such dataset, split, configuration or column.
        CorruptedFileError: the dataset cannot be read.

    Example:
        >>> import json, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.json"
        >>> _ = path.write_text(json.dumps([{"text": "A cat."}, {"text": ""}, {"text": "The old mill."}]))
        >>> next(stream_huggingface_text(path))
        'A cat.'
    """
    for row in huggingface_rows(name, split=split, config=config):
        text = require_text(f"dataset {str(name)!r}", row, column)
        if text.strip():
            yield text


def huggingface_rows(name: str | Path, *, split: str, config: str | None = None) -> Iterator[Row]:
    """Stream the rows of a dataset as dictionaries; see :func:`huggingface_text` for names."""
    require_path("name", name)
    require_instance("split", split, str, advice="e.g. split='train'")
    if config is not None:
        require_instance("config", config, str, advice="leave it out where there is only one")
    dataset = _open(str(name), split, config)
    try:
        for row in dataset:
            yield dict(row)
    except ConnectionError as error:
        raise _offline(str(name)) from error
    except (OSError, ValueError, UnicodeError) as error:
        raise CorruptedFileError(
            f"dataset {str(name)!r} cannot be read ({_first_line(error)}); "
            "check the file, or delete the cached copy and load it again"
        ) from error


def _open(name: str, split: str, config: str | None) -> Any:
    datasets = _library()
    path = Path(name).expanduser()
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _saved(datasets, path, split)
        if path.is_file():
            return _file(datasets, path, split)
        if path.is_dir():
            return datasets.load_dataset(str(path), config, split=split, streaming=True)
        return _from_hub(datasets, name, split, config)
    except ConnectionError as error:
        raise _offline(name) from error
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(
            f"name, split and config must name a dataset that exists, got {name!r}, {split!r}, "
            f"{config!r}: {_first_line(error)}"
        ) from error


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise OfflineError(
            "reading Hugging Face datasets needs the package 'datasets', which is not installed; "
            "run: pip install datasets"
        ) from error
    return datasets


def _file(datasets: Any, path: Path, split: str) -> Any:
    suffix = path.suffix.lower()
    if suffix not in _BUILDERS:
        raise InvalidArgumentError(
            f"name must be a file ending in {', '.join(_BUILDERS)}, got {path.name!r}; convert it"
        )
    options = {"sep": "\t"} if suffix == ".tsv" else {}
    files = {"train": str(path)}
    builder = _BUILDERS[suffix]
    return datasets.load_dataset(builder, data_files=files, split=split, streaming=True, **options)


def _saved(datasets: Any, path: Path, split: str) -> Any:
    saved = datasets.load_from_disk(str(path))
    if not isinstance(saved, dict):
        return saved
    if split not in saved:
        raise InvalidArgumentError(
            f"split must be one of {', '.join(map(repr, saved))} in {str(path)!r}, got {split!r}"
        )
    return saved[split]


def _from_hub(datasets: Any, name: str, split: str, config: str | None) -> Any:
    try:
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except ConnectionError:
        # Streaming never looks in the cache; a copy that was downloaded whole may be there.
        if not datasets.config.HF_HUB_OFFLINE:
            raise
        return datasets.load_dataset(name, config, split=split)


def _offline(name: str) -> OfflineError:
    return OfflineError(
        f"dataset {name!r} is neither a file or folder here nor to be had from the Hugging Face "
        "Hub now; connect to the network, or download it elsewhere and pass the path of the "
        "folder or of its .parquet, .jsonl or .csv file; with HF_HUB_OFFLINE=1 only copies that "
        "were downloaded before are used"
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
