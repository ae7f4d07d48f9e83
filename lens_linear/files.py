"""Write a file whole or not at all: to a temporary name beside it, flushed, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_linear.checks import require_path
from lens_linear.errors import CorruptedFileError, InvalidArgumentError, LensLinearError

if TYPE_CHECKING:
    from torch import Tensor


class WriteError(LensLinearError, OSError):
    """A file could not be written; nothing was left behind and an older file is untouched."""


# Part of temporary names, so that only a process of the same machine judges whether theirs still runs.
_HOST = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:32] or "host"


def require_target(name: str, value: str | Path) -> Path:
    """Accept the path of a file to be written: in a folder that exists, and not itself a folder."""
    path = require_path(name, value)
    if path.is_dir():
        raise InvalidArgumentError(f"{name} must name a file, but {str(path)!r} is a folder")
    if not path.parent.is_dir():
        raise InvalidArgumentError(
            f"{name} must lie in a folder that exists, got {str(path)!r}; make the folder first"
        )
    return path


def _remove_left_behind(path: Path) -> None:
    """Delete temporary files of this target whose process was killed while it wrote."""
    start = f".{path.name}.{_HOST}."
    with contextlib.suppress(OSError):
        for entry in os.scandir(path.parent):
            owner = entry.name.removeprefix(start).partition(".")[0]
            if not entry.name.startswith(start) or not entry.name.endswith(".tmp"):
                continue
            if owner.isdigit() and not _runs(int(owner)):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _runs(process: int) -> bool:
    if os.name != "posix":
        return True  # asking would end the process there
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it runs, but belongs to someone else
    return True


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` if the block succeeds.

    Raises:
        InvalidArgumentError: the folder does not exist, or ``path`` is a folder.
        WriteError: the disk is full or the folder may not be written to.
    """
    path = require_target("path", path)
    _remove_left_behind(path)
    owner = f".{path.name}.{_HOST}.{os.getpid()}."
    try:
        handle, name = tempfile.mkstemp(prefix=owner, suffix=".tmp", dir=path.parent)
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


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write a safetensors file atomically; returns the path.

    Its bytes are made in memory: safetensors' own writer goes through a temporary file with a name of its
    own, which a kill leaves behind for good.
    """
    from safetensors.torch import save

    return write_with(path, lambda temporary: temporary.write_bytes(save(tensors, metadata)))


def write_with(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call ``write(temporary_path)`` and rename the result to ``path``; returns the path."""
    with atomic_path(path) as temporary:
        write(temporary)
    return Path(path).expanduser()


MAX_JSON = 64 * 2**20  # bytes; the largest tokenizer files are below 40 MB


def read_json(path: Path, *, advice: str) -> dict[str, Any]:
    """Read a JSON object that somebody else wrote; ``advice`` ends the message when it is none.

    Raises:
        CorruptedFileError: absent, no JSON object, nested too deep, or larger than ``MAX_JSON``.
    """
    try:
        if not path.is_file():
            raise OSError("no such file")
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, more than any such file needs")
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return values
        reason = "it holds no JSON object"
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise CorruptedFileError(f"{str(path)!r} cannot be read ({reason}); {advice}")
