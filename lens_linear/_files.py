"""Write a file whole or not at all: to a temporary name beside it, flushed, then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lens_linear._checks import require_path
from lens_linear.errors import InvalidArgumentError, LensLinearError


class WriteError(LensLinearError, OSError):
    """A file could not be written; nothing was left behind and an older file is untouched."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` if the block succeeds.

    Raises:
        InvalidArgumentError: the folder does not exist, or ``path`` is a folder.
        WriteError: the disk is full or the folder may not be written to.
    """
    path = require_path("path", path)
    if path.is_dir():
        raise InvalidArgumentError(f"path must name a file, but {str(path)!r} is a folder")
    if not path.parent.is_dir():
        raise InvalidArgumentError(
            f"path must lie in a folder that exists, got {str(path)!r}; make the folder first"
        )
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise WriteError(
            f"cannot write {str(path)!r}: {error.strerror}; choose another folder or free some space"
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except LensLinearError:
        raise  # of the block's own making, such as OfflineError, which is an OSError too
    except OSError as error:
        raise WriteError(
            f"cannot write {str(path)!r}: {error.strerror or error}; nothing was left behind; "
            "choose another folder or free some space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def require_folder(name: str, value: str | Path) -> Path:
    """Accept a folder to write into, made (with the folders above it) if it is not there.

    Raises:
        InvalidArgumentError: it is a file, or no path.
        WriteError: it cannot be made.
    """
    folder = require_path(name, value)
    if folder.exists() and not folder.is_dir():
        raise InvalidArgumentError(f"{name} must be a folder, but {str(folder)!r} is a file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"cannot make the folder {str(folder)!r}: {error.strerror or error}; choose another place"
        ) from error
    return folder


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically; returns the path."""
    return write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_with(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call ``write(temporary_path)`` and rename the result to ``path``; returns the path."""
    with atomic_path(path) as temporary:
        write(temporary)
    return Path(path).expanduser()
