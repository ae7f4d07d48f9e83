"""Write a file whole or not at all: to a temporary name beside it, flushed, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_linear.checks import require_path
from lens_linear.errors import CorruptedFileError, InvalidArgumentError, LensLinearError, WriteError

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from torch import Tensor


_UMASK = threading.Lock()
# Part of temporary names, so that only a process of the same machine judges whether theirs still runs.
_HOST = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:32] or "host"


def require_target(name: str, value: str | Path) -> Path:
    """Accept the path of a file to be written: in a folder that exists, a regular file or not there yet.

    A symbolic link is followed: what it points to is written, the link stays.
    """
    path = require_path(name, value)
    try:
        target = Path(os.path.realpath(path, strict=False))
        kind = target.stat().st_mode if os.path.lexists(target) else None
    except OSError as error:  # a loop of links, or a folder that may not be looked into
        raise InvalidArgumentError(
            f"{name} must name a file, but {str(path)!r} leads nowhere ({error.strerror}); choose another"
        ) from error
    if kind is not None and stat.S_ISDIR(kind):
        raise InvalidArgumentError(f"{name} must name a file, but {str(path)!r} is a folder")
    if kind is not None and not stat.S_ISREG(kind):
        raise InvalidArgumentError(
            f"{name} must name a regular file, but {str(path)!r} is a device, a pipe or a socket; choose "
            "another name"
        )
    if not target.parent.is_dir():
        raise InvalidArgumentError(
            f"{name} must lie in a folder that exists, got {str(path)!r}; make the folder first"
        )
    return target


def _short(path: Path) -> str:
    """Return a name for company of a file that is short however long the file's own name is."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]
    return path.name if len(os.fsencode(path.name)) < 100 else f"{path.name[:24]}-{digest}"


def _remove_left_behind(path: Path) -> None:
    """Delete temporary files of this target whose process was killed while it wrote."""
    start = f".{_short(path)}.{_HOST}."
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

    An existing file is replaced and its mode kept; a link to it stays a link.

    Raises:
        InvalidArgumentError: the folder does not exist, or ``path`` is no regular file.
        WriteError: the disk is full, or the folder or the existing file may not be written to.
    """
    path = require_target("path", path)
    mode = _mode(path)
    _remove_left_behind(path)
    owner = f".{_short(path)}.{_HOST}.{os.getpid()}."
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
        temporary.chmod(mode)
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


def require_writable(path: Path) -> None:
    """Refuse a file that its own mode keeps from being changed.

    Raises:
        WriteError: it is read-only.
    """
    _mode(path)


def _mode(path: Path) -> int:
    """Return the mode a file at ``path`` shall have: its own, or what a new file gets."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        with _UMASK:  # the mask can be read only by setting it
            mask = os.umask(0)
            os.umask(mask)
        return 0o666 & ~mask
    # The administrator could write all the same: what a file's own mode says counts.
    if not mode & 0o222 or not os.access(path, os.W_OK):
        raise WriteError(
            f"cannot write {str(path)!r}: the file is read-only; choose another name, or allow writing it"
        )
    return mode


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
    data = text.encode("utf-8", "backslashreplace")  # a lone surrogate has no bytes of its own
    return write_with(path, lambda temporary: temporary.write_bytes(data))


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write a safetensors file atomically; returns the path.

    Its bytes are made in memory: safetensors' own writer goes through a temporary file with a name of its
    own, which a kill leaves behind for good.
    """
    from safetensors.torch import save

    return write_with(path, lambda temporary: temporary.write_bytes(save(tensors, metadata)))


def write_together(parts: Mapping[Path, bytes]) -> None:
    """Write several files: no older one is touched before all new ones are whole; the first appears last."""
    with contextlib.ExitStack() as stack:
        for path, data in parts.items():
            stack.enter_context(atomic_path(path)).write_bytes(data)


def write_with(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call ``write(temporary_path)`` and rename the result to ``path``; returns the path."""
    with atomic_path(path) as temporary:
        write(temporary)
    return Path(path).expanduser()


MAX_JSON = 64 * 2**20  # bytes; the largest tokenizer files are below 40 MB
_DIGITS = 1000  # of a whole number; none that is meant has so many


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
        values = json.loads(path.read_text(encoding="utf-8"), parse_int=_whole)
        if isinstance(values, dict):
            return values
        reason = "it holds no JSON object"
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise CorruptedFileError(f"{str(path)!r} cannot be read ({reason}); {advice}")


def _whole(digits: str) -> int:
    """A whole number as JSON writes it; Python's own refusal of a huge one advises a setting of Python."""
    if len(digits) > _DIGITS:
        raise ValueError(f"it holds a whole number of {len(digits):,} digits")
    return int(digits)


_HELD: dict[Path, tuple[BaseFileLock, int]] = {}  # lock file: its lock, thread that holds it
_HELD_GUARD = threading.Lock()


def hold(path: Path, *, what: str) -> None:
    """Keep this user's other runs from a file until :func:`release`; a kill lets it go too.

    The thread that holds it may ask again: an earlier pass of its own was broken off. The lock is the
    system's own (``flock``, or ``msvcrt`` on Windows); without either it is a file that names its process.

    Raises:
        WriteError: somebody else uses it, or the folder may not be written to.
    """
    from filelock import FileLock, Timeout

    place, me = _lock_file(path), threading.get_ident()
    with _HELD_GUARD:
        if place in _HELD:
            lock, thread = _HELD[place]
            alive = thread in {t.ident for t in threading.enumerate()}
            if thread != me and alive:
                raise _in_use(path, what)
        else:
            lock = FileLock(place, mode=0o600, thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise _in_use(path, what) from error
            except (OSError, NotImplementedError) as error:
                raise WriteError(
                    f"cannot lock {str(path)!r} by {str(place)!r} ({error}); set TMPDIR to a folder that can "
                    "be written to"
                ) from error
        _HELD[place] = (lock, me)


def release(path: Path) -> None:
    """Let go what :func:`hold` took; nothing happens if it was not held."""
    with _HELD_GUARD:
        lock, _ = _HELD.pop(_lock_file(path), (None, 0))
        if lock is not None:
            lock.release()


@contextmanager
def held(path: Path | None, *, what: str) -> Iterator[None]:
    """Hold a file for the length of a block; None holds nothing."""
    if path is None:
        yield
        return
    hold(path, what=what)
    try:
        yield
    finally:
        release(path)


def _lock_file(path: Path) -> Path:
    """Where a file's lock lies: apart from it, so that a folder of results holds results only."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:24]
    user = (
        os.getuid() if hasattr(os, "getuid") else "user"
    )  # the folder is the user's own on Windows
    return Path(tempfile.gettempdir()) / f"lens_linear-{user}-{digest}.lock"


def _in_use(path: Path, what: str) -> WriteError:
    return WriteError(
        f"{what} {str(path)!r} is in use by another run that has not ended; wait for it, or name another file"
    )
