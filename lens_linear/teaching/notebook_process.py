"""A submitted notebook in a process of its own, and its answers as functions that are called from outside.

The notebook's cells run in a forked process, one after the other, going on after errors. A cell that never
ends, or that ends the process, is left out and the rest is run again. When the cells are done, that process
forks once more for every exercise, and the fork answers calls over a socket: an answer that hangs or dies
costs its own exercise. The judge never runs a line of the notebook.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import importlib
import io
import linecache
import os
import pickle
import re
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from lens_linear.teaching.answers import Wrong
from lens_linear.teaching.wire import decode, encode, pack_arguments, receive, send

# Read now: in a graded notebook's process nothing more may be imported from here.
_TRANSFORM: Callable[[str], str] | None = None
with contextlib.suppress(ImportError):
    from IPython.core.inputtransformer2 import TransformerManager

    _TRANSFORM = TransformerManager().transform_cell

TOO_LONG = "Your function did not end in time."
_RESTARTS = 6
_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux
_GENERATIONS = 50
_MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)
# Of these the cell is Python all the same; what other cell magics hold is another language, or a file.
_TIMED = re.compile(r"\s*%%(time|timeit|capture|prun)\b.*\n?")


@dataclass
class NotebookProcess:
    """The running notebook.

    Args:
        cells: source of its code cells, in order.
        seconds: how long one cell, and later one call, may take.
        whole: how long all cells together may take.
        memory: bytes that it may take beside what this process has (on Linux).
        private: files and folders that it may not read.
    """

    cells: list[str]
    seconds: float
    whole: float
    memory: int
    private: tuple[str, ...] = ()
    lost: dict[int, str] = field(default_factory=dict)  # cell -> why it was left out
    errors: dict[int, str] = field(
        default_factory=dict
    )  # cell -> what it raised, as the notebook says
    _pid: int = 0
    _folder: str = ""
    _control: socket.socket | None = None

    def start(self) -> bool:
        """Run the cells; False when nothing could be run to the end."""
        began = time.monotonic()
        for _ in range(_RESTARTS):
            self.stop()
            self._folder = os.path.realpath(tempfile.mkdtemp(prefix="notebook-"))
            mine, theirs = socket.socketpair()
            self._pid = os.fork()
            if self._pid == 0:
                mine.close()
                lost = set(self.lost)
                _run(self.cells, lost, self.memory, self.private, self._folder, theirs)
            theirs.close()
            self._control = mine
            if self._wait(mine, began):
                return True
            if time.monotonic() - began > self.whole:
                return False
        return False

    def _wait(self, control: socket.socket, began: float) -> bool:
        """Follow the cells; False when one was lost, which is then noted."""
        cell = -1
        while True:
            left = min(self.seconds, self.whole - (time.monotonic() - began))
            control.settimeout(max(left, 0.01))
            try:
                content = receive(control)
                if content[8:] and cell >= 0:
                    self.errors[cell] = content[8:].decode(errors="replace")
                (cell,) = struct.unpack(">q", content[:8])
            except TimeoutError:
                self.lost[cell] = "did not end in time"
                return False
            except (ConnectionError, OSError, struct.error):
                self.lost[cell] = "ended the whole notebook"
                return False
            if cell == len(self.cells):
                return True

    def answer(self, name: str) -> Callable[..., Any] | None:
        """A function of the notebook, called in a fork of it; None when there is no such name."""
        if self._control is None:
            return None
        mine, theirs = socket.socketpair()
        mine.settimeout(self.seconds)
        try:
            socket.send_fds(self._control, [name.encode()], [theirs.fileno()])
            theirs.close()
            if receive(mine) != b"ready":
                return None
        except (ConnectionError, TimeoutError, OSError):
            return None

        def remote(*arguments: Any) -> Any:
            return _ask(mine, arguments)

        remote.__name__ = remote.__qualname__ = name
        return remote

    def stop(self) -> None:
        """End the notebook and everything it started."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = 0
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""


def _ask(where: socket.socket, arguments: tuple[Any, ...]) -> Any:
    """One call of the answer: its result, or its error raised here."""
    try:
        # A notebook may have switched gradients off for good; the answer is called as the check wants it.
        send(where, pack_arguments((torch.is_grad_enabled(), arguments)))
        (kind, result, changed, hooks, same) = decode(receive(where))
    except TimeoutError:
        raise Wrong(TOO_LONG) from None
    except (ConnectionError, OSError, ValueError, TypeError):
        raise Wrong("Your function ended the whole process (exit, or out of memory).") from None
    for index, value in changed:
        _put_back(arguments[index], value)
    if kind == "raised":
        raise _error(*result)
    if hooks:
        raise Wrong(
            "After your function the model still has a hook. Use run_with_hooks, which removes them."
        )
    return arguments[same] if same >= 0 else result


def _put_back(mine: Any, theirs: Any) -> None:
    """Show in the judge what the answer did to an argument in place."""
    if (
        isinstance(mine, torch.Tensor)
        and isinstance(theirs, torch.Tensor)
        and mine.shape == theirs.shape
    ):
        with torch.no_grad():
            mine.copy_(theirs)
    elif isinstance(mine, dict) and isinstance(theirs, dict):
        mine.clear()
        mine.update(theirs)
    elif isinstance(mine, list) and isinstance(theirs, list):
        mine[:] = theirs


def _error(name: str, text: str, line: str) -> BaseException:
    """The answer's error: of the same builtin type, or of an empty one of that name."""
    kind = getattr(builtins, str(name), None)
    known = isinstance(kind, type) and issubclass(kind, Exception)
    chosen: Any = kind if known else type(str(name), (Exception,), {})
    error: BaseException = chosen(text)
    error.__dict__["student_line"] = line
    return error


def adopt_orphans() -> None:
    """Let processes whose parent ends become children of this one, in whatever session they are (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans() -> None:
    """End all children of this process, and theirs as they become its own; a judge has no others (Linux)."""
    for _ in range(_GENERATIONS):
        children = _children() if sys.platform == "linux" else []
        if not children:
            return
        for pid in children:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _children() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        with (
            contextlib.suppress(OSError, ValueError),
            open(f"/proc/{int(entry)}/stat", "rb") as file,
        ):
            # The name, in brackets, may hold anything; state and parent follow it.
            if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(entry))
    return found


# From here on: code that runs in the student's process.


def _run(
    cells: list[str],
    lost: set[int],
    memory: int,
    private: tuple[str, ...],
    own: str,
    control: socket.socket,
) -> None:
    """Run the cells, then fork for every function that is asked for. Never returns."""
    with contextlib.suppress(BaseException):
        os.setsid()
        os.closerange(3, control.fileno())
        os.closerange(control.fileno() + 1, 2**16)
        _quiet()
        _limit_memory(memory)
        importlib.import_module("lens_linear.teaching.guard").guard(private, own=own)
        os.chdir(own)
        tempfile.tempdir = os.environ["TMPDIR"] = own
        space: dict[str, Any] = {
            "__name__": "__main__",
            "get_ipython": _NoShell,
            "display": _nothing,
        }
        raised = b""
        for number, source in enumerate(cells):
            send(control, struct.pack(">q", number) + raised)
            raised = b""
            if number not in lost:
                try:
                    _execute(source, number, space)
                except BaseException as error:
                    raised = _named(error)
        send(control, struct.pack(">q", len(cells)) + raised)
        _serve(control, space)
    os._exit(0)


def _serve(control: socket.socket, space: dict[str, Any]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        content, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
        if not content:
            return
        if os.fork() == 0:
            control.close()
            with contextlib.suppress(BaseException):
                _answer_calls(
                    socket.socket(fileno=descriptors[0]),
                    space.get(content.decode()),
                    content.decode() in space,
                )
            os._exit(0)
        os.close(descriptors[0])


def _answer_calls(where: socket.socket, function: Any, known: bool) -> None:
    send(where, b"ready" if known else b"missing")
    while True:
        gradients, arguments = pickle.loads(receive(where))  # made by the judge, who is trusted
        before = [_hooks(argument) for argument in arguments]
        try:
            with torch.set_grad_enabled(gradients):
                result = function(*arguments)  # what cannot be called raises TypeError
            kind = "returned"
        except BaseException as error:
            result, kind = _described(error), "raised"
        hooks = any(_hooks(argument) != was for argument, was in zip(arguments, before))
        changed = [(i, a) for i, a in enumerate(arguments) if _holds(a)]
        same = next((i for i, a in enumerate(arguments) if result is a and _holds(a)), -1)
        try:
            content = encode((kind, None if same >= 0 else result, changed, hooks, same))
        except BaseException as error:
            content = encode(("raised", _described(error), [], False, -1))
        send(where, content)


def _holds(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, dict, list))


def _described(error: BaseException) -> tuple[str, str, str]:
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith("<cell ")]
    line = (own[-1].line or "") if own else ""
    return type(error).__name__, str(error)[:2000], line


def _named(error: BaseException) -> bytes:
    """Type and first line of an error, for the teacher; an error may fail to say what it is."""
    with contextlib.suppress(BaseException):
        text = (str(error).strip().splitlines() or [""])[0][:200]
        return f"{type(error).__name__}: {text}".encode(errors="replace")
    return b"an error"


def _hooks(value: Any) -> int:
    if not callable(getattr(value, "modules", None)):
        return 0
    return sum(len(m.fwd_hooks) for m in value.modules() if hasattr(m, "fwd_hooks"))


def _execute(source: str, number: int, space: dict[str, Any]) -> None:
    name = f"<cell {number}>"
    source = as_python(source)
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), space)


def as_python(source: str) -> str:
    """A cell as Python: what only IPython understands becomes a call of a shell that does nothing."""
    source = _TIMED.sub("", source, count=1) if _TIMED.match(source) else source
    if source.lstrip().startswith("%%"):
        return ""
    try:
        compile(source, "cell", "exec")
    except SyntaxError:  # without IPython, which knows better, lines for the shell are left out
        return _TRANSFORM(source) if _TRANSFORM else _MAGIC.sub(r"\1pass", source)
    return source


def _nothing(*_: Any, **__: Any) -> None:
    """Show nothing."""


class _NoShell:
    """Stands for IPython's shell and does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _nothing


def _limit_memory(more: int) -> None:
    """Let an endless list raise MemoryError here, before the machine ends some other process."""
    status = "/proc/self/status"
    if not os.path.exists(status):
        return
    import resource

    with open(status, encoding="utf-8") as file:
        taken = next(int(line.split()[1]) for line in file if line.startswith("VmData")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (taken + more, taken + more))


def _quiet() -> None:
    hole = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(hole, number)
    # Not kept: a cell may print without end, and anything.
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
    sys.stdin = io.StringIO()

    def refused(*_: Any, **__: Any) -> None:
        raise OSError("no network while notebooks are graded")

    socket.socket.connect = refused  # type: ignore[method-assign]
    socket.create_connection = refused  # type: ignore[assignment]
