"""One offline HTML page about any model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from lens_linear import __version__
from lens_linear._tl import TransformerBridge
from lens_linear.checks import require_seed
from lens_linear.circuits.paths.attention_only import AttentionOnly
from lens_linear.errors import NotEnoughDataError, UnsupportedModelError
from lens_linear.files import require_target, write_text
from lens_linear.linearity.measure.profile import linearity_profile
from lens_linear.models.capture import available_sites, evaluating
from lens_linear.models.describe.parameter_counts import n_parameters
from lens_linear.models.hooks import require_bridge
from lens_linear.models.open.checksum import weights_sha256
from lens_linear.reports.circuit_sections import (
    bigram_section,
    composition_section,
    induction_section,
    path_section,
    skip_trigram_section,
)
from lens_linear.reports.linearity_sections import linearity_section
from lens_linear.reports.page import Section, render_page
from lens_linear.stats.evaluation import evaluation_tokens


def report(
    model: TransformerBridge,
    path: str | Path,
    text: str | None = None,
    *,
    n_sequences: int | None = None,
    seed: int = 0,
    on_step: Callable[[str], None] | None = None,
) -> Path:
    """Write one self-contained HTML page that takes a model apart; it opens with the network off.

    Head scores, composition, attention patterns and linearity of every layer; for attention-only models
    also skip-trigrams and the exact path expansion. What does not apply to the model is said in its
    section.

    Args:
        model: a bridge with a tokenizer.
        path: file to write, whole or not at all.
        text: text to measure on; the package's own stories by default.
        n_sequences: use only the first rows of tokens.
        seed: of random sequences and splits.
        on_step: called with a word on what comes next.

    Returns:
        The path.

    Raises:
        NotEnoughDataError: the text is too short for the model's width.
        UnsupportedModelError: the model has no tokenizer.
        WriteError: the file cannot be written; an older one stays as it was.

    Example:
        >>> import tempfile, lens_linear as ll
        >>> folder = tempfile.mkdtemp()
        >>> report(ll.load("attn-1l"), f"{folder}/page.html").name
        'page.html'
    """
    model = require_bridge(model)
    path = require_target("path", path)  # before the work, not after it
    seed = require_seed(seed)
    tokens = evaluation_tokens(model, text, n_sequences=n_sequences)
    name = Path(str(model.cfg.model_name)).name
    say = on_step or (lambda _text: None)
    say("loss")
    sections = [overview(model, tokens, name)]
    sections += model_sections(model, tokens, name, seed=seed, on_step=say)
    settings = {
        "lens_linear": __version__,
        "model": name,
        "weights_sha256": weights_sha256(model),
        "seed": seed,
        "sequences": len(tokens),
        "tokens_a_sequence": tokens.shape[1],
        "text": "the package's own stories" if text is None else "the caller's text",
    }
    lead = (
        f"{name}, taken apart by lens_linear {__version__}. Every number was computed when this page was "
        "made; nothing is loaded from the network."
    )
    return write_text(path, render_page(f"{name}: a report", lead, sections, settings=settings))


def overview(model: TransformerBridge, tokens: Int[Tensor, "row position"], name: str) -> Section:
    """What the model is, and its loss on the text."""
    cfg = model.cfg
    with torch.no_grad(), evaluating(model):
        losses = [float(model(rows, return_type="loss")) * len(rows) for rows in tokens.split(16)]
    prose = (
        f"{name} has {cfg.n_layers} layers of {cfg.n_heads} heads, a residual stream of {cfg.d_model} "
        f"dimensions, a vocabulary of {cfg.d_vocab:,} tokens and {n_parameters(model):,} parameters. On the "
        f"text of this report ({tokens.numel():,} tokens in {len(tokens)} rows) its loss is "
        f"{sum(losses) / len(tokens):.3f} nats per token."
    )
    return Section("The model", prose)


def model_sections(
    model: TransformerBridge,
    tokens: Int[Tensor, "row position"],
    name: str,
    *,
    seed: int,
    on_step: Callable[[str], None],
) -> list[Section]:
    """All sections that apply to a model; what is refused is said with its reason."""
    sections: list[Section] = []
    view = _attention_only(model)
    attempts: dict[str, Callable[[], Section]] = {
        "Bigrams": lambda: bigram_section(model, name=name),
        "Skip-trigrams": lambda: skip_trigram_section(model, name=name),
        "Induction heads": lambda: induction_section(model, name=name, seed=seed),
        "Composition": lambda: composition_section(model, name=name),
        "Paths": lambda: path_section(view, tokens, name=name),  # type: ignore[arg-type]
        "Linearity": lambda: measured_linearity(model, tokens, name, seed=seed),
    }
    for title in _titles(model, attention_only=view is not None):
        on_step(title.lower())
        attempt = attempts[title]
        try:
            sections.append(attempt())
        except (UnsupportedModelError, NotEnoughDataError) as reason:
            sections.append(Section(f"{title}: not measured", str(reason)))
    return sections


def _titles(model: TransformerBridge, *, attention_only: bool) -> list[str]:
    """What applies to a model of this shape, in order."""
    if not model.cfg.n_layers:
        return ["Bigrams"]
    titles = ["Skip-trigrams"] if attention_only and model.cfg.n_layers == 1 else []
    titles += ["Induction heads"] + ["Composition"] * (model.cfg.n_layers > 1)
    return titles + ["Paths"] * attention_only + ["Linearity"]


def report_steps(model: TransformerBridge) -> int:
    """How often :func:`report` calls ``on_step`` for this model."""
    model = require_bridge(model)
    return 1 + len(_titles(model, attention_only=_attention_only(model) is not None))


def measured_linearity(
    model: TransformerBridge, tokens: Int[Tensor, "row position"], name: str, *, seed: int
) -> Section:
    """Profile a model with and without the first position."""
    sites = available_sites(model, 0)
    profiles = {
        skip: linearity_profile(model, tokens, sites=sites, skip=skip, seed=seed) for skip in (0, 1)
    }
    return linearity_section(profiles, name=name)


def _attention_only(model: TransformerBridge) -> AttentionOnly | None:
    try:
        return AttentionOnly(model)
    except UnsupportedModelError:
        return None
