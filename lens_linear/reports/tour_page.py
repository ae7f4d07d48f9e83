"""The tour: the bundled models, one after the other, on one page and in a few printed lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_linear import __version__
from lens_linear.checks import counted, require_seed, require_step
from lens_linear.files import require_target, write_text
from lens_linear.models.checked import checked
from lens_linear.models.open.bundled import available_models
from lens_linear.models.open.checksum import weights_sha256
from lens_linear.models.open.load import load
from lens_linear.models.threads import few_threads
from lens_linear.reports.attempt import attempt
from lens_linear.reports.build import GO_ON
from lens_linear.reports.circuit_sections import (
    bigram_section,
    composition_section,
    induction_section,
    path_section,
    skip_trigram_section,
)
from lens_linear.reports.explorer_link import write_explorer
from lens_linear.reports.linearity_sections import linearity_section
from lens_linear.reports.measured import Measured
from lens_linear.reports.page import Section, render_page
from lens_linear.stats.evaluation import evaluation_tokens
from lens_linear.text.task import Task

_LEAD = (
    "Small transformers that were trained for this page, taken apart: what a model without layers knows, "
    "what one layer adds, how two layers make induction heads, and how linear the layers of a full model "
    "are. Every number was computed when the page was made, unless it says otherwise; nothing is loaded "
    "from the network."
)
_MODELS = ("attn-0l", "attn-1l", "attn-2l", "gpt-mini")
STEPS = 8  # the models, six parts, the explorer
# Sequences of 128: 28 tokens an input of the widest model to fit its maps, as many to score.
_ROWS = 84
_EXPLORER, _LINEAR = "attn-2l: explorer", "Linear layers"
HEAVY = {_LINEAR: 20.0, _EXPLORER: 6.0}  # steps that take as long as so many of the others


@dataclass(frozen=True, eq=False)
class Tour:
    """The sections of the tour, in order, and how they were made."""

    sections: tuple[Section, ...]
    settings: dict[str, Any]
    path: Path

    def __repr__(self) -> str:
        return f"Tour: {counted(len(self.sections), 'section')} in {self.path}"

    def summary(self) -> str:
        """Return the prose of the sections as plain text."""
        parts = [f"{section.title}\n{section.prose}" for section in self.sections]
        return "\n\n".join(parts)


def tour(
    path: str | Path,
    *,
    seed: int = 0,
    on_step: Callable[[str], None] | None = None,
) -> Tour:
    """Take the bundled models apart and write one self-contained page; beside it the explorer of attn-2l.

    Args:
        path: file to write, whole or not at all.
        seed: of random sequences and splits.
        on_step: called with a word on what comes next.

    Returns:
        The tour; ``.summary()`` is its text.

    Example:
        >>> from lens_linear.reports.tour_page import tour  # about half a minute
    """
    path = require_target("path", path)
    seed = require_seed(seed)
    say = require_step(on_step)
    say("opening the models")
    models = {name: checked(load(name)) for name in _MODELS}
    sections = []
    measured = {
        name: Measured(model, Task(evaluation_tokens(model, n_sequences=_ROWS)), seed)
        for name, model in models.items()
    }
    with few_threads(max(model.d_model for model in models.values())):
        for title, part in _parts(measured).items():
            say(title)
            sections.append(attempt(title, part))
        say(_EXPLORER)
        explorer = write_explorer(measured["attn-2l"], path)
    settings = {
        "lens_linear": __version__,
        "seed": seed,
        "weights_sha256": {name: weights_sha256(model) for name, model in models.items()},
        "text": "the package's own stories",
        "sequences": len(measured["gpt-mini"].asked),
    }
    page = render_page(
        "A tour of small transformers",
        _LEAD,
        sections,
        settings=settings,
        explorer=explorer,
        go_on=GO_ON,
    )
    write_text(path, page)
    return Tour(tuple(sections), settings, path)


def _parts(measured: dict[str, Measured]) -> dict[str, Callable[[], Section]]:
    """What the tour shows, in order."""
    none, one, two, full = (measured[name] for name in _MODELS)
    card = available_models().set_index("name").loc["attn-0l"].to_dict()
    third = "Two layers: composition"
    return {
        "Zero layers": lambda: bigram_section(none, loss=card["loss"], floor=card["floor"]),
        "One layer": lambda: skip_trigram_section(one),
        third: lambda: composition_section(two, title=third),
        "Induction heads": lambda: induction_section(two),
        "Paths, exactly": lambda: path_section(two),
        _LINEAR: lambda: linearity_section(full),
    }
