"""How much memory an analysis may take, and errors that call a lack of memory by its name."""

from __future__ import annotations

import ctypes
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lens_linear.checks import require_int
from lens_linear.errors import InsufficientMemoryError

SHARE = 0.5  # of what is free, when the caller does not say
_PROCESS, _CONTAINERS = Path("/proc/self"), Path("/sys/fs/cgroup")


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Bytes that are free on a device now: what the system gives without swapping, or the card's own.

    A limit on this process (``ulimit -v``) or on its container (a cgroup) counts where it leaves less.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return max(0, min([_machine_bytes(), *_below_ulimit(), *_below_container()]))


def _machine_bytes() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        except (AttributeError, OSError, ValueError):
            return 4 << 30  # a system that says nothing


def _below_ulimit() -> list[int]:
    """What a limit of the address space leaves; nothing where none is set or the system has none."""
    with suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            pages = int((_PROCESS / "statm").read_text(encoding="ascii").split()[0])
            return [most - pages * resource.getpagesize()]
    return []


def _below_container() -> list[int]:
    """What every cgroup around this process leaves (versions 1 and 2); files kept in memory count as free."""
    left: list[int] = []
    try:
        lines = (_PROCESS / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return left
    for line in lines:
        kinds, _, path = line.partition(":")[2].partition(":")
        if kinds and "memory" not in kinds.split(","):
            continue
        top = _CONTAINERS / "memory" if kinds else _CONTAINERS
        names = ("limit_in_bytes", "usage_in_bytes") if kinds else ("max", "current")
        here = top / path.strip("/")
        for place in (here, *here.parents):
            if place != top and top not in place.parents:
                break
            with suppress(OSError, ValueError):  # no such file, or no limit ("max")
                most, used = (int((place / f"memory.{name}").read_text()) for name in names)
                left.append(most - used + _kept_files(place))
    return left


def _kept_files(place: Path) -> int:
    with suppress(OSError, ValueError):
        rows = (line.split() for line in (place / "memory.stat").read_text().splitlines())
        kept = {row[0]: int(row[1]) for row in rows}
        return kept.get("total_inactive_file", kept.get("inactive_file", 0))
    return 0


def usable_bytes(max_memory: int | None = None, device: torch.device | str = "cpu") -> int:
    """Bytes that an analysis may add: ``max_memory``, or half of what is free now.

    Example:
        >>> usable_bytes(1 << 30)
        1073741824
    """
    if max_memory is not None:
        return require_int("max_memory", max_memory, minimum=1)
    return int(SHARE * free_bytes(device))


def groups(
    n: int,
    each: float,
    max_memory: int | None,
    device: torch.device | str,
    *,
    what: str,
    beside: float = 0.0,
) -> list[range]:
    """Cut ``n`` parts of ``each`` bytes into groups of equal size, as few as memory holds.

    ``beside`` are bytes taken whatever the groups: what is made of the parts, and rooms for work.

    Raises:
        InsufficientMemoryError: not even one part fits.

    Example:
        >>> groups(5, 100.0, 250, "cpu", what="a layer")
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    usable = usable_bytes(max_memory, device)
    if each + beside > usable:
        more = f" and {size_text(beside)} beside them" if beside else ""
        raise InsufficientMemoryError(
            f"{what} needs about {size_text(each)} of statistics{more}, and "
            f"{'half of the free memory' if max_memory is None else 'max_memory'} is {size_text(usable)}; "
            f"pass max_memory={math.ceil(each + beside)}"
        )
    usable -= math.ceil(beside)
    count = -(-n // max(1, int(usable // max(1.0, each))))
    size = -(-n // max(1, count))
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def require_room(needed: float, device: torch.device | str, *, what: str, advice: str) -> None:
    """Refuse what would not fit in the memory that is free now, before anything runs.

    Raises:
        InsufficientMemoryError: it would not.
    """
    free = free_bytes(device)
    if needed > free:
        raise InsufficientMemoryError(
            f"{what} would take about {size_text(needed)}, and {size_text(free)} are free; {advice}"
        )


def size_text(n_bytes: float) -> str:
    """Bytes in words.

    Example:
        >>> size_text(3 * 2**29)
        '1.5 GiB'
    """
    value: Any = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def give_back() -> None:
    """Give freed memory back to the system, where the C library can (glibc).

    Matrices that come and go leave holes between those that stay, and a later pass asks for longer pieces
    than these: SmolLM2's profile added 0.7 to 2.4 GB from run to run, for 0.5 GB of statistics.
    """
    with suppress(OSError, AttributeError, TypeError):  # Windows has no library without a name
        ctypes.CDLL(None).malloc_trim(0)
