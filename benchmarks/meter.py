"""How things are measured here: medians of processor time taken in turn, peaks of own processes."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Row:
    """One line of the table; ``budget`` is a limit on ``value``, "at least" where ``least`` is True."""

    name: str
    shape: str
    measured: str
    value: float | None
    unit: str
    budget: float | None
    least: bool = False

    @property
    def ok(self) -> bool | None:
        """Whether the budget holds; None where nothing was measured or there is no budget."""
        if self.value is None or self.budget is None:
            return None
        return self.value >= self.budget if self.least else self.value <= self.budget

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def medians(repeats: int, **jobs: Callable[[], object]) -> dict[str, float]:
    """Median processor seconds of each job; the jobs take turns, so that what slows one slows all."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()  # first calls pay for caches and lazy imports
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def peak_mib() -> float:
    """Largest resident memory of this process so far.

    Linux's own count, where there is one: ``ru_maxrss`` of a process that another one started begins at
    the peak of that other one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def median_seconds(repeats: int, job: Callable[[], Any]) -> tuple[float, Any]:
    """Median processor seconds of several calls, and what the last one returned."""
    taken, found = [], None
    for _ in range(repeats):
        start = time.process_time()
        found = job()
        taken.append(time.process_time() - start)
    return statistics.median(taken), found


# One arena, and pieces above 4 MiB mapped by themselves, as the commands do: no holes.
WITHOUT_HOLES = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(4 << 20)}


def in_process(script: str, *arguments: object, **environment: str) -> dict[str, Any]:
    """Run a script beside this one in a process of its own; its last line is JSON."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return json.loads(done.stdout.splitlines()[-1])


def wall(command: list[str], repeats: int, *, check: bool = True) -> float:
    """Median seconds of a whole command; ``check=False`` where it is meant to fail."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=check, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
