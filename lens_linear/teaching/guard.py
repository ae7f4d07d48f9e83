"""What a notebook is refused while it is graded: checks, installed files, the class's work, other processes.

A notebook runs as the same user as its grader, on the machine where the checks lie. An audit hook, which
Python cannot take back, refuses what would read them or other notebooks, touch the grades, write into
the installation, start programs, look into other processes or end those that are not the notebook's. The
cell that tries gets ``PermissionError`` and the next one runs.

Native code raises no audit event. On Linux a barrier of the kernel stands around it too
(:mod:`lens_linear.teaching.barrier`): it reads what Python, its libraries and models need, and writes into
the notebook's own folder. Elsewhere ``ctypes`` is refused, but not every library that reads files itself.
"""

from __future__ import annotations

import gc
import glob
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

from lens_linear.models.open.obtain import cache_folder
from lens_linear.teaching import checker
from lens_linear.teaching.barrier import shut_in

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
_NETWORK = {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"}
_NATIVE = {"ctypes.dlopen", "ctypes.dlsym"}
_MEMORY = {"gc.get_objects", "gc.get_referrers"}
_LISTS = {"os.listdir", "os.scandir", "os.chdir"}
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/nix/store", "/gnu/store")
_DEVICES = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]


def guard(private: Iterable[str], *, own: str) -> None:
    """Refuse all this from now on, in this process and its forks; ``ll.check`` passes whatever it is given.

    ``private`` are files and folders that are nobody's to read: the submissions, the roster, the grades.
    ``own`` is the folder that may be written into.

    The answers are judged elsewhere, so nothing that is said here counts; and a cell must not stop at it.
    """
    for name in [name for name in sys.modules if _LESSON_MODULE.match(name)]:
        _forget(name)
    gc.collect()
    checker.pass_everything()
    # Starts programs without an event of its own; multiprocessing calls it.
    for module in (subprocess, sys.modules.get("_posixsubprocess")):
        for name in ("_fork_exec", "fork_exec"):
            if hasattr(module, name):
                setattr(module, name, _no_program)
    folders = [str(Path(__file__).parent.parent)]
    folders += [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")]
    protected = tuple(os.path.realpath(folder) + os.sep for folder in folders)
    hidden = tuple(os.path.realpath(path) for path in [*private, *_solutions()])
    session = os.getsid(0)
    walled = shut_in([own, *_DEVICES], _readable(), [*hidden, *_lessons()])
    programs = (_PROGRAMS | _NETWORK) | (set() if walled else _NATIVE)

    def refuse(event: str, details: tuple[Any, ...]) -> None:
        if event == "import":
            module = str(details[0])  # _posixsubprocess: a fresh one, with what was taken out
            refused = module == "_posixsubprocess" or _LESSON_MODULE.match(module) is not None
        elif event == "open" or event in _LISTS:
            path, flags = details[0], details[-1]
            writes = event == "open" and isinstance(flags, int) and bool(flags & _WRITES)
            refused = writes if _within(path, protected) else _is_hidden(path, hidden)
            refused = refused or _is_check(path) or _of_other_process(path, session)
        elif event in _CHANGES:
            refused = any(
                _is_check(part) or _within(part, protected) or _is_hidden(part, hidden, above=True)
                for part in details
            )
        elif event in ("os.kill", "os.killpg"):
            refused = not _of_session(details[0], session)
        else:
            refused = event in programs or event in _MEMORY
        if refused:
            raise PermissionError(f"{event} is refused while notebooks are graded")

    sys.addaudithook(refuse)
    _forget(__name__)  # so that nobody changes the names which the hook looks up


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


def _solutions() -> list[str]:
    """Where the answers lie when the package is used from its checkout."""
    folder = Path(__file__).parents[2] / "tutorials"
    return [str(folder)] if (folder / "solutions").is_dir() else []


def _readable() -> list[str]:
    """What Python, its libraries and models need to read. Not the working folder: a class may lie there."""
    here = {os.getcwd(), os.path.dirname(os.path.abspath(sys.argv[0] or "x"))}
    found = [*_SYSTEM, sys.prefix, sys.base_prefix, HF_HOME, HF_HUB_CACHE, str(cache_folder())]
    found += os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    for place in map(os.path.abspath, filter(None, sys.path)):
        if os.path.basename(place).endswith("-packages"):
            found.append(place)
        elif os.path.isdir(package := os.path.join(place, "lens_linear", "teaching")):
            found.append(os.path.dirname(package))  # a checkout; its other folders hold answers
        elif place not in here:
            found.append(place)
    found.append(str(Path(__file__).parent.parent))
    return [path for path in found if path.strip(os.sep)]


def _lessons() -> list[str]:
    """The checks of every copy of the package that Python may come across."""
    places = {*sys.path, str(Path(__file__).parents[2])}
    for root in (sys.prefix, sys.base_prefix, "/usr", "/usr/local"):
        places.update(glob.glob(os.path.join(root, "lib*", "python3*", "*-packages")))
    found = [os.path.join(p, "lens_linear", "teaching", "**", "lesson_*") for p in places if p]
    return [os.path.realpath(f) for pattern in found for f in glob.glob(pattern, recursive=True)]


def _is_hidden(value: Any, hidden: tuple[str, ...], *, above: bool = False) -> bool:
    path = os.path.realpath(_path(value)) if _path(value) else ""
    return bool(path) and any(
        path == one or path.startswith(one + os.sep) or (above and one.startswith(path + os.sep))
        for one in hidden
    )


def _of_other_process(value: Any, session: int) -> bool:
    """Whether a path leads to memory or open files of a process that is not the notebook's."""
    path = _path(value)
    if not path:
        return False
    folder, name = os.path.split(os.path.abspath(path))
    places = (os.path.join(os.path.realpath(folder), name), os.path.realpath(path))
    found = [re.match(r"/proc/(\d+)(/|$)", place) for place in places]
    return any(not _of_session(int(one[1]), session) for one in found if one)


def _no_program(*_: Any) -> None:
    raise PermissionError("programs are not started while notebooks are graded")


def _of_session(pid: int, session: int) -> bool:
    try:
        return pid == 0 or os.getsid(abs(pid)) == session
    except OSError:
        return True  # no such process: the call says so itself
