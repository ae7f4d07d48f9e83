import os
import subprocess
import sys

import pytest
import torch

from lens_linear.errors import InsufficientMemoryError, is_out_of_memory
from lens_linear.linalg import memory
from lens_linear.linalg.memory import (
    free_bytes,
    groups,
    size_text,
    usable_bytes,
)


@pytest.mark.parametrize(
    "n, each, most", [(5, 100.0, 250), (7, 10.0, 30), (4, 0.0, 3), (6, 8.0, 48), (8, 1.25, 10)]
)
def test_groups_are_as_few_as_memory_holds_and_equal(n, each, most):
    found = groups(n, each, most, "cpu", what="a layer")
    assert [i for group in found for i in group] == list(range(n))
    assert max(map(len, found)) * max(each, 1) <= most
    assert len(found) == -(-n // int(most // max(each, 1)))
    assert len({len(group) for group in found[:-1]} | {len(found[0])}) == 1
    with pytest.raises(InsufficientMemoryError, match="max_memory=101"):
        groups(n, 100.5, 100, "cpu", what="a layer")


@pytest.mark.parametrize(
    "first, n_bytes", [("MemAvailable:   12345 kB\n", 12345 * 1024), ("", None)]
)
def test_memory_of_the_machine_is_what_the_system_says(first, n_bytes, tmp_path, monkeypatch):
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal:  99999 kB\n{first}Cached: 5 kB\n")
    monkeypatch.setattr("builtins.open", lambda name, _open=open, **how: _open(path, **how))
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    assert memory._machine_bytes() == (half if n_bytes is None else n_bytes)


def test_what_just_fits_has_room(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 4096)
    memory.require_room(4096.0, "cpu", what="a table", advice="pass less")
    with pytest.raises(
        InsufficientMemoryError, match=r"a table would take about 4\.0 KiB.*pass less"
    ):
        memory.require_room(4096.1, "cpu", what="a table", advice="pass less")


def test_memory_that_is_free(monkeypatch):
    assert usable_bytes() <= free_bytes() // 2 * 1.2 and free_bytes() > 1 << 20
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 1000))
    assert free_bytes("cuda") == 600 and usable_bytes(device="cuda") == 300


@pytest.mark.parametrize(
    "size, text",
    [(1023, "1023 B"), (1024, "1.0 KiB"), (1.5 * 2**30, "1.5 GiB"), (2**41, "2.0 TiB")],
)
def test_bytes_in_words(size, text):
    assert size_text(size) == text


def test_what_the_allocator_says_here_is_a_lack_of_memory():
    with pytest.raises(RuntimeError) as said:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(said.value) and is_out_of_memory(OSError(12, "no room"))
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(RuntimeError("std::bad_alloc"))
    assert is_out_of_memory(torch.OutOfMemoryError("a card is full"))
    mapped = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    assert is_out_of_memory(mapped) and not is_out_of_memory(
        ImportError(f"{mapped}: not permitted")
    )
    try:
        raise ValueError("a wrapper") from MemoryError()
    except ValueError as wrapped:
        assert is_out_of_memory(wrapped)
    assert (
        not is_out_of_memory(None)
        and not is_out_of_memory(RuntimeError("shapes differ"))
        and not is_out_of_memory(OSError(2, "no file"))
    )


@pytest.mark.parametrize(
    "line, folder, most, used, kept",
    [
        ("0::/pod/box", "pod/box", "memory.max", "memory.current", "inactive_file"),
        ("0::/pod/box", "pod", "memory.max", "memory.current", "inactive_file"),
        ("0::/", "", "memory.max", "memory.current", "inactive_file"),
        (
            "9:cpu:/a\n4:hugetlb,memory:/docker/7",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
)
def test_a_container_s_limit_is_what_is_free(tmp_path, monkeypatch, line, folder, most, used, kept):
    process, containers = tmp_path / "self", tmp_path / "cgroup"
    process.mkdir()
    (containers / folder).mkdir(parents=True)
    (process / "cgroup").write_text(line + "\n")
    monkeypatch.setattr(memory, "_PROCESS", process)
    monkeypatch.setattr(memory, "_CONTAINERS", containers)
    assert free_bytes() > 1 << 20  # no limit yet
    (containers / folder / most).write_text("700000\n")
    (containers / folder / used).write_text("300000\n")
    assert free_bytes() == 400_000
    (containers / folder / "memory.stat").write_text(f"anon 5\n{kept} 1000\n")
    assert free_bytes() == 401_000 and usable_bytes() == 200_500
    (containers / folder / most).write_text(
        "max\n" if most == "memory.max" else f"{2**63 - 4096}\n"
    )
    assert free_bytes() > 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space as Linux has them")
def test_a_limit_on_the_process_is_what_is_free():
    code = (
        "import resource; from lens_linear.linalg.memory import free_bytes\n"
        "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (taken + 50_000_000, -1))\n"
        "assert 30_000_000 < free_bytes() <= 50_000_000, free_bytes()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
