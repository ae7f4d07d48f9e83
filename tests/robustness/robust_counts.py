"""What was tried is counted here; with ``LENS_LINEAR_COUNTS=1`` the counts are shown at the end."""

import atexit
import os
import sys
from pathlib import Path

SHARED = Path(os.environ.get("LENS_LINEAR_SHARED", Path(__file__).resolve().parents[3] / "shared"))
COUNTS: dict[str, int] = {}


def count(what: str, n: int = 1) -> None:
    """Add to a count that is shown at the end."""
    COUNTS[what] = COUNTS.get(what, 0) + n


@atexit.register
def _show() -> None:
    if COUNTS and os.environ.get("LENS_LINEAR_COUNTS"):
        parts = ", ".join(f"{n} {what}" for what, n in sorted(COUNTS.items()))
        sys.__stderr__.write(f"\nrobustness: {parts}\n")
