"""The explorer beside a page: written next to it and linked from it."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lens_linear.errors import LensLinearError, LensLinearWarning
from lens_linear.explorer.explorer import explore
from lens_linear.reports.measured import Measured


@dataclass(frozen=True)
class ExplorerLink:
    """What a page says of its explorer; ``address`` is empty where there is none."""

    sentence: str
    address: str = ""


def write_explorer(measured: Measured, page: Path, *, text: str | None = None) -> ExplorerLink:
    """Write ``<page>-explorer.html`` beside a page, of its numbers; where the model allows none, say why."""
    try:
        saved = explore(measured.model, text=text, seed=measured.seed, **measured.found()).save(
            page.with_name(f"{page.stem}-explorer.html")
        )
    except LensLinearError as reason:
        return ExplorerLink(f"There is no explorer beside this page: {reason}")
    except Exception as reason:  # the page has more to show
        warnings.warn(f"report: explorer failed: {reason!r}", LensLinearWarning, stacklevel=3)
        said = f"{type(reason).__name__}: {reason}"
        return ExplorerLink(f"There is no explorer beside this page, it failed: {said}")
    return ExplorerLink(
        f"Open the explorer of {measured.name} ({saved.stat().st_size / 1e6:.1f} MB, beside this page)",
        quote(os.fsencode(saved.name)),
    )
