"""``ll.explore(model)``: four linked views of a model, in one offline page or in the notebook.

>>> import lens_linear as ll
>>> explorer = ll.explore(ll.load("attn-1l"), ["The old mill stood by the river."])
>>> explorer
Explorer of attn-1l: any text runs in the page, 4 heads, ...
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lens_linear.checks import (
    HasTexts,
    counted,
    require_choice,
    require_heads,
    require_instance,
    require_int,
    require_list,
    require_seed,
    require_step,
    require_texts,
)
from lens_linear.circuits.heads.composition import CompositionScores
from lens_linear.circuits.induction.scores import InductionScores
from lens_linear.errors import InvalidArgumentError
from lens_linear.explorer.page import bundle, frame, page
from lens_linear.explorer.payload import (
    PARTS,
    Known,
    Subject,
    build_payload,
    named_tokens,
    read_subject,
)
from lens_linear.explorer.picture import map_picture
from lens_linear.explorer.runs import run_payload
from lens_linear.files import require_target, write_text
from lens_linear.linearity.measure.profile_result import LinearityProfile
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.tokenizer import token_strings, tokenize_prompts

PROMPTS = (
    "Zabriskie met Quillfeather by the old mill. Then Zabriskie met Quillfeather again.",
    "The king looked at the queen, and the queen looked at the king.",
    "Once upon a time there was a little girl who lived in a house by the wood.",
)
MAX_BYTES = 10_000_000
Part = Literal["linearity", "lens", "circuits"]


@dataclass(frozen=True, eq=False)
class Explorer:
    """A model to poke at: shows itself as the last line of a notebook cell; :meth:`save` writes one page.

    Attributes:
        payload: everything the page shows, as JSON holds it.
        max_bytes: what the payload had to fit into.
    """

    payload: dict[str, Any] = field(repr=False)
    max_bytes: int
    _subject: Subject = field(repr=False)

    def __repr__(self) -> str:
        facts = self.payload["model"]
        heads = facts["n_layers"] * facts["n_heads"]
        if self.payload["kind"] == "live":
            what = "any text runs in the page"
        else:
            what = (
                f"{len(self.payload['runs'])} of {counted(len(self.payload['prompts']), 'prompt')} in "
                f"the page"
            )
        left_out = sum(map(len, self.payload["missing"].values()))
        said = f", {counted(left_out, 'note')} on what is left out" if left_out else ""
        note = self._subject.mark.note(self._subject.model)
        schema = self.payload["schema"]
        return f"Explorer of {facts['name']}: {what}, {counted(heads, 'head')}, schema {schema}{said}{note}"

    def save(self, path: str | Path) -> Path:
        """Write one page that opens offline, in any browser of the last three years.

        Args:
            path: file to write, whole or not at all.

        Returns:
            The path.

        Raises:
            WriteError: the file cannot be written; an older one stays as it was.
        """
        return write_text(require_target("path", path), self.html())

    def html(self) -> str:
        """The page as text."""
        return page(self.payload, self.picture())

    def picture(self) -> bytes:
        """The model map as a PNG: prefix matching of every head."""
        facts = self.payload["model"]
        values = [[0.0] * max(1, facts["n_heads"]) for _ in range(max(1, facts["n_layers"]))]
        for row in self.payload["heads"]:
            values[row["layer"]][row["index"]] = row["prefix_matching"] or 0.0
        return map_picture(values)

    def run(self, text: str, ablated: Sequence[str] = ()) -> dict[str, Any]:
        """Run one text as the notebook's view asks for it: attention, predictions, shares, lenses.

        Args:
            text: any text that fits the context.
            ablated: heads such as ``"L1H3"`` whose ``z`` is replaced by its mean over the text of linearity.

        Returns:
            A run as in ``payload["runs"]``, with the texts of its tokens under ``"vocabulary"``.
        """
        subject = self._subject
        subject.mark.warn(subject.model, "the explorer", "explore the model anew")
        ids = tokenize_prompts(subject.model, [text], truncate=True)[0]
        heads = require_heads(
            "ablated", list(ablated), n_layers=subject.model.n_layers, n_heads=subject.model.n_heads
        )
        made = run_payload(
            subject.model, subject.weights, subject.lens, text, ids,
            ablated=ablated, edits=subject.means.edits(heads) if heads else (),
        )  # fmt: skip
        used = sorted(named_tokens([made]))
        words = token_strings(subject.model, used)
        return {**made, "vocabulary": dict(zip(map(str, used), words, strict=True))}

    def widget(self) -> Any:
        """The explorer as an anywidget whose texts are run by the kernel; needs ``lens-linear[explorer]``."""
        from lens_linear.explorer.widget import ExplorerWidget

        live = self.payload["kind"] == "live"
        payload = {**self.payload, "kind": "live" if live else "kernel"}
        return ExplorerWidget(payload, self.run, repr(self))

    def _repr_html_(self) -> str:
        return frame(self.payload, self.picture())

    def _ipython_display_(self) -> None:
        from IPython.display import Image, display

        if importlib.util.find_spec("anywidget") is None:
            display({"text/html": self._repr_html_(), "text/plain": repr(self)}, raw=True)
        else:
            display(self.widget())
        # An output of its own: what a stored notebook shows where neither widget nor frame runs.
        display(Image(self.picture(), alt="Model map: prefix matching of every head"))


def explore(
    model: ModelLike,
    prompts: Iterable[str] | HasTexts | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    precision: Literal["float16", "float32"] = "float16",
    text: str | None = None,
    induction: InductionScores | None = None,
    composition: CompositionScores | None = None,
    linearity: LinearityProfile | None = None,
    parts: Sequence[Part] = ("linearity", "lens", "circuits"),
    seed: int = 0,
    on_step: Callable[[str], None] | None = None,
) -> Explorer:
    """Open a model to be poked at: its heads, texts, paths and layers, linked with each other.

    Attention-only models of up to 5 MB run inside the page, on any text. Of other models a saved page shows
    the prompts, and in a notebook the kernel runs any text. On opening, the page compares its own logits with
    Python's and says the largest difference: below 0.02 with half-precision weights, 1e-4 with single.

    Args:
        model: a bridge with a tokenizer.
        prompts: texts to begin with; three short ones by default. Of a concept its texts, of a split those of
            its evaluation part.
        max_bytes: largest page. Prompts that do not fit are named in the page.
        precision: of the weights in the page.
        text: text for linearity and the linear lens; the package's stories by default.
        induction: :func:`~lens_linear.circuits.induction_scores` of this model, measured here by default.
        composition: :func:`~lens_linear.circuits.composition_scores` of this model, likewise.
        linearity: :func:`~lens_linear.linearity_profile` of this model, held out, likewise.
        parts: of the page beside texts and heads' scores. Each takes most of a minute for a model of 135M:
            with ``parts=()`` and ``induction`` at hand its page takes ten seconds.
        seed: of random sequences and splits.
        on_step: called with a word on what comes next.

    Returns:
        Explorer.

    Raises:
        InvalidArgumentError: the page would not fit into ``max_bytes`` even without prompts.
        NotEnoughDataError: an empty list of prompts or an empty prompt.
        UnsupportedModelError: the model has no tokenizer.

    Example:
        >>> import tempfile, lens_linear as ll
        >>> explorer = ll.explore(ll.load("attn-0l"), ["Once upon a time"])
        >>> explorer.save(f"{tempfile.mkdtemp()}/page.html").name
        'page.html'
    """
    model = checked(model)
    max_bytes = require_int("max_bytes", max_bytes, minimum=1)
    if text is not None:
        require_instance("text", text, str, advice="read a file with lens_linear.text.read_text")
    say = require_step(on_step)
    seed = require_seed(seed)
    chosen = frozenset(
        require_choice("parts", x, PARTS) for x in require_list("parts", parts, of="str")
    )
    known = Known(induction, composition, linearity)
    _require_known_of(model, known)
    require_choice("precision", precision, ("float16", "float32"))
    given = (
        list(PROMPTS)
        if prompts is None
        else require_texts("prompts", prompts, empty="pass at least one text, or leave prompts out")
    )
    payload, subject = build_payload(
        read_subject(model, given, known, chosen),
        precision=precision,
        max_bytes=max_bytes - len(bundle()) - 12_000,  # the page around the payload
        text=text,
        seed=seed,
        say=say,
    )
    explorer = Explorer(payload, max_bytes, subject)
    size = len(explorer.html().encode())
    if size > max_bytes:
        raise InvalidArgumentError(
            f"max_bytes is {max_bytes:,} but the page of {payload['model']['name']!r} takes {size:,} bytes "
            f"with {len(payload['runs'])} prompts; pass max_bytes={size * 11 // 10}"
        )
    return explorer


def _require_known_of(model: CheckedModel, known: Known) -> None:
    """Accept results of as many layers and heads as the model has."""
    want = model.n_layers, model.n_heads
    if (heads := known.induction) is not None:
        advice = "pass what ll.induction_scores(model) returns"
        require_instance("induction", heads, InductionScores, advice=advice)
        _require_same("induction", tuple(heads.copying.shape), want, advice)
    if (pairs := known.composition) is not None:
        advice = "pass what ll.circuits.composition_scores(model) returns"
        require_instance("composition", pairs, CompositionScores, advice=advice)
        _require_same("composition", tuple(pairs.scores.shape[1:3]), want, advice)
    if (profile := known.linearity) is not None:
        advice = "pass what ll.linearity_profile(model, tokens) returns"
        require_instance("linearity", profile, LinearityProfile, advice=advice)
        _require_same("linearity", tuple(profile.null_r2.shape), want[:1], advice)
        if profile.fit != "held-out" or profile.skip:
            raise InvalidArgumentError(
                f"linearity must be held out with skip=0, got fit={profile.fit!r} and skip={profile.skip}; "
                f"{advice}"
            )


def _require_same(name: str, got: tuple[int, ...], want: tuple[int, ...], advice: str) -> None:
    if got != want:
        raise InvalidArgumentError(
            f"{name} has results of [layer, head] = {got} but the model has {want}; {advice}"
        )
