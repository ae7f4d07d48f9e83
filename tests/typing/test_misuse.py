"""An editor says what is wrong before anything runs: every misuse is flagged, and nothing else is."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("misuse.py")


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_each_of_ten_misuses_is_flagged_and_nothing_else():
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", str(FILE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if not done.stdout.startswith("{"):  # its program comes from npm at the first run
        pytest.skip(f"pyright could not start: {done.stderr[-200:]}")
    found = json.loads(done.stdout)["generalDiagnostics"]
    flagged = {one["range"]["start"]["line"] for one in found if one["severity"] == "error"}
    lines = FILE.read_text(encoding="utf-8").splitlines()
    wrong = {i for i, line in enumerate(lines) if re.search(r"  # wrong:", line)}
    assert len(wrong) == 10 and flagged == wrong
