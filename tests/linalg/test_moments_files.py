"""Moments on disk: whole or not at all, and never read as something they are not."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from linalg_data import planted
from safetensors import safe_open
from safetensors.torch import save_file

from lens_linear.errors import CorruptedFileError, InvalidArgumentError, NotEnoughDataError
from lens_linear.linalg import Moments


@pytest.fixture
def saved(tmp_path):
    x, y = planted(0.6)
    moments = Moments().update(x, y)
    return moments, moments.save(tmp_path / "stats.safetensors")


def test_what_is_loaded_is_what_was_saved_bit_for_bit(saved, tmp_path):
    moments, path = saved
    back = Moments.load(path)
    assert back.n == 300 and not back.keep_yy
    for name in ("mean_x", "mean_y", "sxx", "sxy", "scatter_y"):
        assert torch.equal(getattr(back, name), getattr(moments, name))
    x, y = planted(0.6)
    few = Moments(keep_yy=True).update(x[:9].half(), y[:9].float())  # fewer rows than are needed
    again = Moments.load(few.save(tmp_path / "few.safetensors"))
    assert again.keep_yy and torch.equal(again.syy, few.syy)
    with safe_open(path, framework="pt") as archive:
        assert archive.metadata()["version"] == "2"


def test_every_truncation_is_seen(saved, tmp_path):
    data = saved[1].read_bytes()
    for size in [0, 1, 7, 8, 100, len(data) // 2, len(data) - 1]:
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(data[:size])
        with pytest.raises(CorruptedFileError, match=r"cut\.safetensors"):
            Moments.load(cut)


def test_every_flipped_byte_is_seen(saved, tmp_path):
    data = saved[1].read_bytes()
    for position in range(0, len(data), 23):
        changed = bytearray(data)
        changed[position] ^= 0x10
        path = tmp_path / "flipped.safetensors"
        path.write_bytes(changed)
        with pytest.raises(CorruptedFileError):
            Moments.load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"mean_x": torch.ones(2)}, path)
    with pytest.raises(CorruptedFileError, match="holds no Moments"):
        Moments.load(path)
    save_file(
        {"a": torch.ones(2)}, path, metadata={"format": "lens_linear.moments", "version": "9"}
    )
    with pytest.raises(CorruptedFileError, match="format version '9'"):
        Moments.load(path)
    path.write_text("not a tensor file")
    with pytest.raises(CorruptedFileError, match="cannot be read as Moments"):
        Moments.load(path)
    with pytest.raises(InvalidArgumentError, match="must be a file that exists"):
        Moments.load(tmp_path / "absent.safetensors")
    with pytest.raises(NotEnoughDataError, match="seen no rows"):
        Moments(2, 2).save(path)


def test_a_failed_save_leaves_the_older_file(saved, monkeypatch):
    moments, path = saved
    before = path.read_bytes()

    def full_disk(*args, **kw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        moments.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


WRITER = """
import sys, torch
from lens_linear.linalg import Moments
x = torch.randn(600, 200, generator=torch.Generator().manual_seed(0))
moments = Moments()
while True:
    moments.update(x, x)
    moments.save(sys.argv[1])
    print(moments.n, flush=True)
"""


def test_kill_in_the_middle_of_saving_loses_nothing(tmp_path):
    path = tmp_path / "stats.safetensors"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    last = 0
    for delay in (0.0, 0.011, 0.037):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for _ in range(3):
            last = int(child.stdout.readline())
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        last = int(rest[-1]) if rest else last
        moments = Moments.load(path)  # raises if the file were half written
        assert moments.n in (last, last + 600)
