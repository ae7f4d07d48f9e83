"""One offline HTML page about any model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from lens_linear import __version__
from lens_linear.checks import counted, require_instance, require_int, require_seed, require_step
from lens_linear.errors import (
    InvalidArgumentError,
    LensLinearWarning,
    UnsupportedModelError,
)
from lens_linear.explorer.payload import LARGE
from lens_linear.extensions import added, installed, problems
from lens_linear.files import require_target, write_text
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.describe.parameter_counts import n_parameters
from lens_linear.models.frozen.frozen_attention import require_attention_only
from lens_linear.models.open.checksum import weights_sha256
from lens_linear.models.tokenizer import mostly_one_token
from lens_linear.reports.attempt import attempt
from lens_linear.reports.circuit_sections import (
    bigram_section,
    composition_section,
    induction_section,
    path_section,
    skip_trigram_section,
)
from lens_linear.reports.depth_sections import dynamics_section, ffn_section
from lens_linear.reports.explorer_link import write_explorer
from lens_linear.reports.linearity_sections import linearity_section
from lens_linear.reports.measured import Measured, rows_enough
from lens_linear.reports.page import Section, render_page
from lens_linear.stats.evaluation import evaluation_tokens
from lens_linear.stats.model_scores import score_model
from lens_linear.stats.split import as_rows
from lens_linear.stats.task_scores import require_task
from lens_linear.text.task import Task
from lens_linear.token_rows import TokenRows


def report(
    model: ModelLike,
    path: str | Path,
    task: str | Task | TokenRows | None = None,
    *,
    text: str | None = None,
    tokens: TokenRows | Task | None = None,
    n_sequences: int | None = None,
    seed: int = 0,
    on_step: Callable[[str], None] | None = None,
) -> Path:
    """Write one self-contained HTML page that takes a model apart; it opens with the network off.

    Beside it, ``<page>-explorer.html`` lets the reader pick heads, tokens and paths; the page links it.

    First what was found, in at most five sentences; then the evidence: head scores, composition, attention
    patterns, linearity of every layer, FFNs as affine maps, gains over depth, and for attention-only models
    skip-trigrams and the exact path expansion; then how to go on. What cannot be shown is said in its place.
    Sections of installed packages (:mod:`lens_linear.extensions`) stand after ours.

    Args:
        model: a bridge; with a tokenizer unless tokens are given.
        path: file to write, whole or not at all.
        task: what to measure on: text, token ids [row, position], or a Task; the package's own stories by
            default, of a model of 20 million parameters or more as many rows as give each map eight an
            input.
        text: in place of ``task``, where it is text.
        tokens: in place of ``task``, where it is token ids.
        n_sequences: use only so many rows, the first ones.
        seed: of random sequences and splits.
        on_step: called with a word on what comes next.

    Returns:
        The path.

    Raises:
        NotEnoughDataError: the text is too short for the model's width.
        UnsupportedModelError: the model has no tokenizer and no tokens were given.
        InvalidArgumentError: most of the text is one token to this model's tokenizer.
        WriteError: the file cannot be written; an older one stays as it was.

    Example:
        >>> import tempfile, lens_linear as ll
        >>> folder = tempfile.mkdtemp()
        >>> report(ll.load("attn-1l"), f"{folder}/page.html").name
        'page.html'
    """
    model = checked(model)
    path = require_target("path", path)  # before the work, not after it
    seed = require_seed(seed)
    task = _one_of(task, text, tokens)
    asked = _asked(model, task, n_sequences)
    say = require_step(on_step)
    say("loss")
    measured = Measured(model, asked, seed)
    name = measured.name
    sections = [attempt("The model", lambda: overview(measured, own=task is None))]
    sections += model_sections(measured, on_step=say)
    sections += added_sections(measured, on_step=say)
    settings = {
        "lens_linear": __version__,
        "model": name,
        "weights_sha256": weights_sha256(model),
        "seed": seed,
        "sequences": len(asked),
        "tokens_a_sequence": asked.tokens.shape[1],
        "measured_on": "the package's own stories" if task is None else "what the caller gave",
    }
    if extensions := list(installed()):
        settings["extensions"] = extensions
    lead = (
        f"{name}, taken apart by lens_linear {__version__}. Every number was computed when this page was "
        "made; nothing is loaded from the network."
    )
    say("explorer")
    words = task if isinstance(task, str) else None
    explorer = write_explorer(measured, path, text=words)
    go_on = _go_on(task, [section.title for section in sections])
    page = render_page(
        f"{name}: a report", lead, sections, settings=settings, go_on=go_on, explorer=explorer
    )
    return write_text(path, page)


GO_ON = (
    (
        "The figures of this page in a notebook, with the model opened by its name or folder:",
        "import lens_linear as ll\n"
        "model = ll.load(NAME)\n"
        "tokens = ll.evaluation_tokens(model)\n"
        "ll.induction_scores(model).plot()\n"
        "if model.cfg.n_layers > 1:\n"
        "    ll.composition_scores(model, fold=True).plot()\n"
        "ll.linearity_profile(model, tokens).plot()\n"
        "if model.cfg.attn_only:\n"
        "    view = ll.AttentionOnly(model)\n"
        "    view.skip_trigrams(0, 0).plot()\n"
        "    view.paths(tokens).importance().plot()\n"
        "else:\n"
        "    ll.linearity.ffn_compression(model, tokens).plot()\n"
        "    parts = ll.load_concept('mood').split(40, 40, 40, seed=0)\n"
        "    directions = ll.concept_directions(model, parts.concept, truncate=True)\n"
        "    texts = list(parts.evaluation.texts)\n"
        "    ll.gain_profile(model, texts, directions, truncate=True).plot()",
    ),
    (
        "The lessons explain each of these from the beginning, with exercises that check themselves:",
        "lens-linear tutorials my-course",
    ),
)


# Code of the above that a model needs not allow, by the section that then says why.
_LINES = {
    "Induction heads": ("ll.induction_scores",),
    "Depth dynamics": ("ll.load_concept", "ll.concept_directions", "texts =", "ll.gain_profile"),
}


def _go_on(task: str | Task | TokenRows | None, titles: Sequence[str]) -> list[tuple[str, str]]:
    """How to go on from this page: on what it was measured on, with the parts that the model allows."""
    (words, code), lessons = GO_ON
    if task is not None:
        given = "ll.evaluation_tokens(model, TEXT)" if isinstance(task, str) else "TASK"
        code = code.replace("ll.evaluation_tokens(model)", f"{given}  # what this page was given")
    missing = [
        part
        for title, parts in _LINES.items()
        if f"{title}: not measured" in titles
        for part in parts
    ]
    lines = [line for line in code.split("\n") if not any(part in line for part in missing)]
    return [(words, "\n".join(lines)), lessons]


def _one_of(
    task: str | Task | TokenRows | None, text: str | None, tokens: TokenRows | Task | None
) -> str | Task | TokenRows | None:
    """What to measure on, by whichever name it came."""
    given = {"task": task, "text": text, "tokens": tokens}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise InvalidArgumentError(
            f"{' and '.join(named)} each say what to measure on; pass one of them"
        )
    if text is not None:
        require_instance("text", text, str, advice="token ids are passed as tokens")
    return given[named[0]] if named else None


def _asked(
    model: CheckedModel, task: str | Task | TokenRows | None, n_sequences: int | None
) -> Task:
    """What to measure on, as a task that fits the model."""
    if task is None or isinstance(task, str):
        with warnings.catch_warnings():
            warnings.simplefilter("error", LensLinearWarning)
            try:
                rows = evaluation_tokens(model, task, n_sequences=n_sequences)
            except LensLinearWarning as reason:  # most of it is one token
                raise InvalidArgumentError(
                    f"task is no text for this model: {reason}; pass other text, or token ids"
                ) from None
        if task is None and n_sequences is None and n_parameters(model) >= LARGE:
            rows = rows[: rows_enough(model, rows.shape[1])]
        return Task(rows)
    asked = require_task(model, task, scored=True)
    if asked.is_next_token and (said := mostly_one_token(model, _real_rows(asked))):
        warnings.warn(f"report: {said}", LensLinearWarning, stacklevel=3)
    if n_sequences is not None:
        require_int("n_sequences", n_sequences, minimum=1, maximum=len(asked))
        asked = asked.take(slice(0, n_sequences))
    return asked


def _real_rows(asked: Task) -> list[list[int]]:
    """Token ids of each row, without pads."""
    return [row[real].tolist() for row, real in zip(asked.tokens, asked.mask, strict=True)]


def overview(measured: Measured, *, own: bool) -> Section:
    """What the model is, and its loss on what it is asked (``own``: on the package's own stories)."""
    model, asked = measured.model, measured.asked
    n_tokens, n_rows, loss = _whole_loss(measured, own)
    prose = (
        f"{measured.name} has {counted(model.n_layers, 'layer')} of {counted(model.n_heads, 'head')}, a "
        f"residual stream of {model.d_model} dimensions, a vocabulary of {model.d_vocab:,} tokens and "
        f"{n_parameters(model):,} parameters. On the "
        f"text of this report ({n_tokens:,} tokens in {counted(n_rows, 'row')}) its loss is "
        f"{loss:.3f} nats per {'token' if asked.is_next_token else 'answer'}; a uniform guess has "
        f"{math.log(model.d_vocab_out):.3f}."
    )
    if asked.is_next_token and (said := mostly_one_token(model, _real_rows(asked))):
        prose += f" Beware: {said}."
    return Section("The model", prose)


def _whole_loss(measured: Measured, own: bool) -> tuple[int, int, float]:
    """Tokens, rows and loss; of a large model on our own text, of the rows that test its FFNs' maps."""
    asked = measured.asked
    if own and n_parameters(measured.model) >= LARGE:
        with suppress(Exception):  # one without FFNs; what else fails is said in its section
            table = measured.compression
            return table.n_tokens, table.n_tokens // asked.tokens.shape[1], table.base_loss
    score = score_model(measured.model, as_rows(measured.model, asked), warn=False).loss
    return int(asked.lengths.sum()), len(asked.tokens), score.mean


def model_sections(measured: Measured, *, on_step: Callable[[str], None]) -> list[Section]:
    """All sections that apply to a model; a part that fails is said with its reason, in its place."""
    sections: list[Section] = []
    parts: dict[str, Callable[[Measured], Section]] = {
        "Bigrams": bigram_section,
        "Skip-trigrams": skip_trigram_section,
        "Induction heads": induction_section,
        "Composition": composition_section,
        "Paths": path_section,
        "Linearity": linearity_section,
        "FFN replacement": ffn_section,
        "Depth dynamics": dynamics_section,
    }
    for title in _titles(measured.model):
        on_step(title.lower())
        sections.append(attempt(title, partial(parts[title], measured)))
    return sections


def added_sections(measured: Measured, *, on_step: Callable[[str], None]) -> list[Section]:
    """Sections of installed packages; one that fails, or cannot be shown, is said in its place."""
    sections = []
    for title, part in added("sections").items():
        on_step(title)
        try:
            section = require_instance(
                title, part.value(measured.model.bridge, measured.asked), Section
            )
            render_page("", "", [section], settings={})
        except Exception as reason:
            section = Section(f"{title}: failed", part.failed(title, reason))
        sections.append(section)
    if reasons := problems():
        sections.append(Section("Extensions that could not be loaded", "\n\n".join(reasons)))
    return sections


def _titles(model: CheckedModel) -> list[str]:
    """What applies to a model of this shape, in order."""
    if not model.n_layers:
        return ["Bigrams"]
    attention_only = True
    try:
        require_attention_only(model)
    except UnsupportedModelError:
        attention_only = False
    titles = ["Skip-trigrams"] if attention_only and model.n_layers == 1 else []
    titles += ["Induction heads"] + ["Composition"] * (model.n_layers > 1)
    titles += ["Paths"] * attention_only + ["Linearity"]
    return titles + ["FFN replacement"] * bool(model.n_ffn) + ["Depth dynamics"]


def report_steps(model: ModelLike) -> int:
    """How often :func:`report` calls ``on_step`` for this model."""
    return 2 + len(_titles(checked(model))) + len(added("sections"))
