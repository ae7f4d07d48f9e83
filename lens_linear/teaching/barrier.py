"""A barrier of the kernel around a process, which native code cannot pass either (Landlock, Linux 5.13).

What is behind it reads what it was given and writes into one folder. From Linux 6.12 it signals no process
outside. On x86-64 and ARM64 a filter of system calls (seccomp) stands beside it: no socket of any kind, no
memory, queue or key that others could find, no limit, priority or memory of another process. No rights are
needed to raise it, and nothing takes it back, in this process or those that it starts.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, of the same number on all common machines
_READ = 1 << 2
_WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13))  # write, remove, make
_REFER, _TRUNCATE = 1 << 13, 1 << 14  # of versions 2 and 3
_OF_A_FILE = _READ | 1 << 1 | _TRUNCATE
_TCP, _SCOPES = 0b11, 0b11  # bind and connect; abstract sockets and signals
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_LIMITS = {"x86_64": 302, "aarch64": 261}  # prlimit64, of this process alone
# x86-64 and ARM64: socket; shmget shmat semget msgget mq_open; add_key request_key keyctl; ptrace
# process_vm_readv process_vm_writev kcmp pidfd_open pidfd_send_signal pidfd_getfd; setpriority ioprio_set
# sched_setparam sched_setscheduler sched_setaffinity sched_setattr; unshare setns mount; bpf
# perf_event_open userfaultfd io_uring_setup, which would pass by this filter.
_REFUSED = {
    "x86_64": (41, 29, 30, 64, 68, 240, 248, 249, 250, 101, 310, 311, 312, 434, 424, 438, 141, 251,
               142, 144, 203, 314, 272, 308, 165, 321, 298, 323, 425),
    "aarch64": (198, 194, 196, 190, 186, 180, 217, 218, 219, 117, 270, 271, 272, 434, 424, 438, 140, 30,
                118, 119, 122, 274, 97, 268, 40, 280, 241, 282, 425),
}  # fmt: skip
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of the filter
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 13  # 13: permission denied
_OTHER_NUMBERS = 0x40000000  # where x86-64 keeps a second table of calls
_BENEATH, _ASK_VERSION, _NO_NEW_PRIVILEGES = 1, 1, 38


def barrier_version() -> int:
    """Version of the barrier that this kernel has; 0 where it has none."""
    if sys.platform != "linux":
        return 0
    return max(0, _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_ASK_VERSION)))


def shut_in(writable: Sequence[str], readable: Iterable[str], hidden: Sequence[str]) -> bool:
    """Raise the barrier around this process for good.

    Args:
        writable: folders and devices to read and write.
        readable: folders and files to read only.
        hidden: what lies in these and is not to be read: real paths.

    Returns:
        False where the kernel has no such barrier; then nothing has changed.
    """
    version = barrier_version()
    writes = _WRITES | (_REFER if version > 1 else 0) | (_TRUNCATE if version > 2 else 0)
    content = struct.pack("=3Q", _READ | writes, _TCP, _SCOPES)
    size = 8 if version < 4 else 16 if version < 6 else 24
    if (
        not version
        or (rules := _call(_CREATE, content, ctypes.c_size_t(size), ctypes.c_uint(0))) < 0
    ):
        return False
    for root in {os.path.realpath(path) for path in readable}:
        for path in _without(root, hidden):
            _allow(rules, path, _READ)
    for path in writable:
        _allow(rules, path, _READ | writes)
    ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    done = _call(_RESTRICT, ctypes.c_int(rules), ctypes.c_uint(0)) == 0
    os.close(rules)
    _filter_calls()
    return done


def _filter_calls() -> bool:
    """Refuse what reaches other processes by no file, in all threads; False on other machines."""
    machine = platform.machine()
    if machine not in _SECCOMP:
        return False
    program = [
        (_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURE[machine]), (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, _OTHER_NUMBERS), (_RETURN, 0, 0, _REFUSE),
    ]  # fmt: skip
    for number in _REFUSED[machine]:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    program += [
        (_EQUAL, 0, 3, _LIMITS[machine]), (_LOAD, 0, 0, 16), (_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    wanted = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    )
    every_thread = ctypes.c_ulong(1)
    return _call(_SECCOMP[machine], ctypes.c_uint(1), every_thread, wanted) == 0


def _call(number: int, *arguments: object) -> int:
    return int(ctypes.CDLL(None).syscall(number, *arguments))


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not on this machine
        return
    rights = rights if os.path.isdir(path) else rights & _OF_A_FILE
    rule = struct.pack("=Qi", rights, place)
    _call(_ADD, ctypes.c_int(rules), ctypes.c_int(_BENEATH), rule, ctypes.c_uint(0))
    os.close(place)


def _without(path: str, hidden: Sequence[str]) -> Iterator[str]:
    """The largest folders and files of a place in which nothing is hidden."""
    inside = [one for one in hidden if one.startswith(path.rstrip(os.sep) + os.sep)]
    if not inside:
        yield path
        return
    try:
        entries = [entry.path for entry in os.scandir(path) if not entry.is_symlink()]
    except OSError:
        return
    for entry in entries:
        if entry not in inside:
            yield from _without(entry, inside)
