"""Parts of a page that may fail: what cannot be shown is said in its place."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from lens_linear.errors import LensLinearError, LensLinearWarning
from lens_linear.linalg.memory import give_back
from lens_linear.reports.page import Section, render_page


def attempt(title: str, make: Callable[[], Section]) -> Section:
    """The section that ``make`` gives; of one that fails, or cannot be drawn, the reason."""
    try:
        section = make()
        render_page("", "", [section], settings={})
    except LensLinearError as reason:
        return Section(f"{title}: not measured", str(reason))
    except Exception as reason:  # one part must not take the page with it
        warnings.warn(f"report: {title} failed: {reason!r}", LensLinearWarning, stacklevel=2)
        return Section(f"{title}: failed", f"{type(reason).__name__}: {reason}")
    finally:
        give_back()  # or a real model's page grows from part to part
    return section
