"""The tour: the bundled models, one after the other, on one page and in a few printed lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_linear import __version__
from lens_linear.checks import require_seed
from lens_linear.circuits.paths.attention_only import AttentionOnly
from lens_linear.files import require_target, write_text
from lens_linear.models.open.bundled import available_models
from lens_linear.models.open.checksum import weights_sha256
from lens_linear.models.open.load import load
from lens_linear.reports.build import measured_linearity
from lens_linear.reports.circuit_sections import (
    bigram_section,
    composition_section,
    induction_section,
    path_section,
    skip_trigram_section,
)
from lens_linear.reports.explorer_link import write_explorer
from lens_linear.reports.page import Section, render_page
from lens_linear.stats.evaluation import evaluation_tokens

_LEAD = (
    "Small transformers that were trained for this page, taken apart: what a model without layers knows, "
    "what one layer adds, how two layers make induction heads, and how linear the layers of a full model "
    "are. Every number was computed when the page was made, unless it says otherwise; nothing is loaded "
    "from the network."
)


@dataclass(frozen=True, eq=False)
class Tour:
    """The sections of the tour, in order, and how they were made."""

    sections: tuple[Section, ...]
    settings: dict[str, Any]
    path: Path

    def __repr__(self) -> str:
        return f"Tour: {len(self.sections)} sections in {self.path}"

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
    say = on_step or (lambda _text: None)
    cards = available_models().set_index("name")
    models = {}
    sections: list[Section] = []

    say("attn-0l: bigrams")
    models["attn-0l"] = model = load("attn-0l")
    card = cards.loc["attn-0l"].to_dict()
    sections.append(bigram_section(model, loss=card["loss"], floor=card["floor"], name="attn-0l"))

    say("attn-1l: skip-trigrams")
    models["attn-1l"] = model = load("attn-1l")
    sections.append(skip_trigram_section(model, name="attn-1l"))

    say("attn-2l: composition, induction, paths")
    models["attn-2l"] = model = load("attn-2l")
    sections.append(composition_section(model, name="attn-2l", title="Two layers: composition"))
    sections.append(induction_section(model, name="attn-2l", seed=seed))
    tokens = evaluation_tokens(model)
    sections.append(path_section(AttentionOnly(model), tokens, name="attn-2l"))

    say("gpt-mini: linearity")
    models["gpt-mini"] = model = load("gpt-mini")
    tokens = evaluation_tokens(model)
    sections.append(measured_linearity(model, tokens, "gpt-mini", seed=seed))

    settings = {
        "lens_linear": __version__,
        "seed": seed,
        "weights_sha256": {name: weights_sha256(one) for name, one in models.items()},
        "text": "the package's own stories",
        "sequences": len(tokens),
    }
    say("attn-2l: explorer")
    explorer = write_explorer(models["attn-2l"], path, name="attn-2l", seed=seed)
    page = render_page(
        "A tour of small transformers", _LEAD, sections, settings=settings, explorer=explorer
    )
    write_text(path, page)
    return Tour(tuple(sections), settings, path)
