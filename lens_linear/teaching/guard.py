"""What a notebook is refused while it is graded: the checks, the installed files, other processes.

A notebook runs as the same user as its grader, on the machine where the checks lie. An audit hook, which
Python cannot take back, refuses what would read them, write into the installation, start programs or end
processes that are not the notebook's. The cell that tries gets ``PermissionError`` and the next one runs.

This stops what can be written in a line or two of Python. It is no sandbox: a container is.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import Any

from lens_linear.teaching import checker

_LESSON_MODULE = re.compile(r"lens_linear\.teaching\.lesson_")
_LESSON_FILE = re.compile(r"lesson_\d+[a-z]?(\.cpython-[\w.-]+)?\.pyc?$")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.link",
    "os.symlink",
}
_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn"}
_MEMORY = {"gc.get_objects", "gc.get_referrers"}


def guard() -> None:
    """Refuse all this from now on, in this process and its forks; ``ll.check`` passes whatever it is given.

    The answers are judged elsewhere, so nothing that is said here counts; and a cell must not stop at it.
    """
    forget_lessons()
    checker.pass_everything()
    folders = [str(Path(__file__).parent.parent)]
    folders += [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")]
    protected = tuple(os.path.realpath(folder) + os.sep for folder in folders)
    session = os.getsid(0)

    def refuse(event: str, details: tuple[Any, ...]) -> None:
        if event == "import":
            refused = _LESSON_MODULE.match(str(details[0])) is not None
        elif event == "open":
            path, _, flags = details
            writes = isinstance(flags, int) and bool(flags & _WRITES)
            refused = _is_check(path) or (writes and _within(path, protected))
        elif event in _CHANGES:
            refused = any(_is_check(part) or _within(part, protected) for part in details)
        elif event in ("os.kill", "os.killpg"):
            refused = not _of_session(details[0], session)
        else:
            refused = event in _PROGRAMS or event in _MEMORY
        if refused:
            raise PermissionError(f"{event} is refused while notebooks are graded")

    sys.addaudithook(refuse)
    _forget(__name__)  # so that nobody changes the names which the hook looks up


def forget_lessons() -> None:
    """Take the checks out of this process's memory."""
    for name in [name for name in sys.modules if _LESSON_MODULE.match(name)]:
        _forget(name)
    gc.collect()


def _forget(module: str) -> None:
    package, _, name = module.rpartition(".")
    vars(sys.modules[package]).pop(name, None)
    del sys.modules[module]


def _path(value: Any) -> str:
    return os.fsdecode(value) if isinstance(value, (str, bytes, os.PathLike)) else ""


def _is_check(value: Any) -> bool:
    return _LESSON_FILE.search(os.path.basename(_path(value))) is not None


def _within(value: Any, folders: tuple[str, ...]) -> bool:
    path = _path(value)
    return bool(path) and os.path.realpath(path).startswith(folders)


def _of_session(pid: int, session: int) -> bool:
    try:
        return pid == 0 or os.getsid(abs(pid)) == session
    except OSError:
        return True  # no such process: the call says so itself
