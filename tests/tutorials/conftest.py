"""The tutorials' own machinery is not part of the package: make it importable here."""

import sys
from pathlib import Path

TUTORIALS = Path(__file__).resolve().parent.parent.parent / "tutorials"
sys.path.insert(0, str(TUTORIALS))
if not (TUTORIALS / "build.py").is_file():  # a source distribution has the exercises only
    collect_ignore_glob = ["test_*.py"]
