"""Run a model and take tensors out on the way, without ever keeping the whole run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lens_linear.checks import (
    require_bool,
    require_choice,
    require_int,
    require_layers,
    require_list,
    shown,
)
from lens_linear.errors import (
    InsufficientMemoryError,
    InvalidArgumentError,
    LensLinearError,
    NonFiniteError,
    UnsupportedModelError,
    is_out_of_memory,
)
from lens_linear.linalg.precision import without_autocast
from lens_linear.models.batch_memory import sequences_a_pass
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.hooks import hooked, in_training, is_still, model_lock
from lens_linear.models.spots import Edit, Spot
from lens_linear.models.threads import few_threads
from lens_linear.progress import watched
from lens_linear.token_rows import (
    PaddedRows,
    PaddedTokens,
    check_ids,
    read_token_rows,
    require_mask,
    require_tokens,
)
from lens_linear.token_rows import (
    TokenRows as TokenRows,
)

Site = Literal["block", "attn", "ffn"]
SITES: tuple[Site, ...] = ("block", "ffn", "attn")
_ENDS: dict[str, tuple[Any, Any]] = {
    "block": ("resid_pre", "resid_post"),
    "attn": ("attn_in", "attn_out"),
    "ffn": ("ffn_in", "ffn_out"),
}
_STOPPED = torch.empty(0, 0, 0)  # the logits of a run that was stopped before it made any


class Stop(Exception):
    """Ends a forward pass early, once everything asked for has been seen."""


@dataclass(frozen=True, eq=False)
class Run:
    """One forward pass: logits (empty when it was stopped early) and the tensors recorded."""

    logits: Float[Tensor, "batch position vocab"]
    recorded: dict[Spot, Tensor]

    def __repr__(self) -> str:
        logits = f"logits {list(self.logits.shape)}" if self.logits.numel() else "no logits"
        parts = ", ".join(f"{spot} {list(value.shape)}" for spot, value in self.recorded.items())
        return f"Run: {logits}; recorded {parts or 'nothing'}"

    def __getitem__(self, spot: Spot) -> Tensor:
        return self.recorded[spot]


def model_device(model: ModelLike) -> torch.device:
    """Return the device on which the model wants its tokens."""
    return checked(model).device


def forward_logits(
    model: ModelLike, tokens: Int[Tensor, "batch position"], **arguments: Any
) -> Float[Tensor, "batch position vocab"]:
    """Return the logits of tokens, without dropout, on the model's device."""
    model = checked(model)
    with evaluating(model), without_autocast():
        logits: Tensor = model.bridge(tokens.to(model.device), return_type="logits", **arguments)
        return logits


@contextmanager
def evaluating(model: ModelLike) -> Iterator[None]:
    """Switch dropout off for the length of a block; every module's own mode comes back at the end.

    Another thread that wants to run the same model waits meanwhile.
    """
    model = checked(model)
    # The wrapped model is no registered part of its bridge, so its own dropout is looked for as well.
    with model_lock(model), few_threads(model.d_model):
        training = [] if is_still(model) else in_training(model.bridge, model.bridge.original_model)
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True


@contextmanager
def _running(model: CheckedModel, tokens: TokenRows) -> Iterator[None]:
    """Say so if the model itself cannot run; whatever else is raised inside passes on unchanged."""
    try:
        yield
    except LensLinearError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            shape = tuple(getattr(tokens, "shape", (len(tokens),)))
            raise InsufficientMemoryError(
                f"memory ran out in a forward pass over tokens of shape {shape}; pass a smaller batch_size, "
                "or shorter sequences, e.g. lens_linear.tokenize(model, text, length=256)"
            ) from error
        require_runs(model, tokens[:1])
        raise  # the model runs: a visitor or an edit raised this


def require_runs(model: CheckedModel, tokens: Tensor) -> Tensor:
    """Return the model's logits, or refuse a model whose forward pass fails.

    Raises:
        UnsupportedModelError: TransformerLens opened the model but cannot run it.
    """
    try:
        with torch.no_grad():
            return forward_logits(model, tokens)
    except Exception as error:
        first = str(error).splitlines()[0][:160] if str(error) else ""
        raise UnsupportedModelError(
            f"TransformerLens opened {model.name!r} but cannot run it ({type(error).__name__}: "
            f"{first}); use another model, or one of this kind that TransformerLens runs"
        ) from error


def run(
    model: ModelLike,
    tokens: Int[Tensor, "*batch position"] | PaddedTokens | TokenRows,
    *,
    record: Iterable[Spot] = (),
    edits: Sequence[Edit] = (),
    attention_mask: Shaped[Tensor, "batch position"] | None = None,
    logits: bool = True,
    grad: bool = False,
    finite: bool = True,
) -> Run:
    """Run the model once, record tensors at spots, edit others on the way.

    Args:
        model: a bridge.
        tokens: ids [batch, position], of any kind that :mod:`lens_linear.token_rows` reads, or a Task. Rows
            of unequal length are padded on the right, and pads are masked in attention.
        record: spots ``(layer, what)``, see :mod:`lens_linear.models.hooks`. Recorded tensors are what
            later parts of the model read, edits included.
        edits: ``((layer, what), function)``; the function gets the tensor and returns its replacement.
        attention_mask: 1 (True) for real tokens, 0 for padding on either side; what comes back keeps the
            places of the tokens that were passed.
        logits: False stops as soon as the last recorded spot was seen, and saves the unembedding.
        grad: keep the graph, so that gradients can be taken.
        finite: refuse NaN and infinity in what is recorded, and in the logits of a run without edits.

    Returns:
        Run: ``.logits`` and ``run[(layer, what)]``.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2, seed=0)
        >>> out = run(model, torch.arange(6)[None], record=[(1, "resid_post")])
        >>> out[(1, "resid_post")].shape
        torch.Size([1, 6, 32])
    """
    model = checked(model)
    tokens, attention_mask = _with_mask(model, tokens, attention_mask)
    logits, grad = require_bool("logits", logits), require_bool("grad", grad)
    finite = require_bool("finite", finite)
    asked = require_list("record", record, of="spots (layer, what)")
    for spot in asked:
        model.hook_name(spot)  # refuses what is no spot
    spots = list(dict.fromkeys(asked))
    recorded: dict[Spot, Tensor] = {}

    def recorder(spot: Spot) -> Callable[[Tensor], None]:
        def hook(tensor: Tensor) -> None:
            recorded[spot] = tensor if grad else tensor.detach()
            if not logits and len(recorded) == len(spots):
                raise Stop

        return hook

    fired: set[Spot] = set()

    def noted(spot: Spot, function: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
        def hook(tensor: Tensor) -> Tensor | None:
            fired.add(spot)
            return function(tensor)

        return hook

    pairs = _edits(edits)
    hooks: list[tuple[str, Callable[[Tensor], Tensor | None]]] = [
        (model.hook_name(spot), noted(spot, function)) for spot, function in pairs
    ]
    hooks += [(model.hook_name(spot), recorder(spot)) for spot in spots]
    arguments: dict[str, Any] = {}
    if attention_mask is not None:
        arguments["attention_mask"] = attention_mask.to(model.device, torch.int64)
    out: Tensor | None = None
    mode = nullcontext() if grad else torch.no_grad()
    with _running(model, tokens), hooked(model, hooks), mode, suppress(Stop):
        out = forward_logits(model, tokens, **arguments)
    if out is not None:
        _require_seen(model, [*spots, *(spot for spot, _ in pairs)], {*recorded, *fired})
    found = Run(_STOPPED if out is None else out, recorded)
    if finite and not _is_finite(found, attention_mask, edited=bool(pairs)):
        _refuse_not_finite(model, tokens, attention_mask, found)
    return found


def _is_finite(found: Run, mask: Tensor | None, *, edited: bool) -> bool:
    """No NaN or infinity at real tokens; minus infinity in logits is a word that never comes.

    What an edit does to the logits is for its caller to say.
    """

    def real(value: Tensor) -> Tensor:
        return value.detach() if mask is None else value.detach()[mask.bool().to(value.device)]

    for (_, what), value in found.recorded.items():
        if mask is None or what != "pattern":  # what a pad attends to may be anything
            part = real(value)
            if not math.isfinite(part.sum(dtype=torch.float32)) and not part.isfinite().all():
                return False
    if edited or not found.logits.numel():
        return True
    return bool(real(found.logits).amax() < math.inf)


def _refuse_not_finite(
    model: CheckedModel, tokens: Tensor, mask: Tensor | None, found: Run
) -> None:
    """Say in which layer NaN or infinity stands first: a pass through all of them tells."""
    last = model.n_layers - 1
    streams: list[Spot] = [(layer, "resid_pre") for layer in range(last + 1)]
    if last >= 0:
        streams.append((last, "resid_post"))
    every = run(model, tokens, record=streams, attention_mask=mask, logits=False, finite=False)
    for spot, value in {**every.recorded, **found.recorded}.items():
        if not _is_finite(Run(_STOPPED, {spot: value}), mask, edited=False):
            _require_finite(*spot, value)
    raise NonFiniteError(
        f"the logits of {model.name!r} hold NaN or infinity; check the unembedding and the "
        "final norm, or load the model in a wider precision"
    )


def _with_mask(
    model: CheckedModel, tokens: Any, attention_mask: Any
) -> tuple[Tensor, Tensor | None]:
    """Ids that fit the model, and the mask that came with them or was passed beside them."""
    if attention_mask is None:
        rows = require_model_rows(model, tokens)
        return rows.tokens, rows.mask
    tokens = require_model_tokens(model, tokens)
    return tokens, require_mask("attention_mask", attention_mask, tokens)


def _require_seen(model: CheckedModel, asked: Iterable[Spot], seen: set[Spot]) -> None:
    for layer, what in asked:
        if (layer, what) not in seen:
            raise UnsupportedModelError(
                f"the hook point {model.hook_name((layer, what))!r} of {model.name!r} was never "
                f"reached, so {what!r} of layer {layer} cannot be read; use another site, or another model"
            )


def _edits(edits: Any) -> list[Edit]:
    pairs = require_list("edits", edits, of="((layer, what), function) pairs")
    if not all(isinstance(pair, tuple) and len(pair) == 2 and callable(pair[1]) for pair in pairs):
        raise InvalidArgumentError(
            f"edits must hold pairs ((layer, what), function), got {shown(pairs)}; "
            "e.g. [((0, 'attn_out'), torch.zeros_like)]"
        )
    return pairs


def batched(
    tokens: TokenRows, batch_size: int | None, *, model: ModelLike | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, rows) pieces as :func:`row_ranges` cuts them."""
    of = None if model is None else checked(model)
    ranges = list(row_ranges(tokens, batch_size, model=of))
    for start, stop in watched(ranges, len(ranges)):
        yield start, tokens[start:stop]


def row_ranges(
    tokens: TokenRows,
    batch_size: int | None,
    *,
    model: CheckedModel | None = None,
    logits: bool = True,
) -> Iterator[tuple[int, int]]:
    """Yield (first, past the last) of pieces of at most ``batch_size`` sequences, all of one length.

    Rows say their lengths in an attribute ``lengths``; without it all have one. Without a ``batch_size``
    a piece holds as many sequences as memory allows the model.
    """
    if batch_size is not None or model is None:
        require_int("batch_size", batch_size, minimum=1)
    lengths = getattr(tokens, "lengths", None)
    ends = [len(tokens)]
    if lengths is not None:
        ends = [*((lengths.diff() != 0).nonzero()[:, 0] + 1).tolist(), len(tokens)]
    start = 0
    for end in ends:
        size = batch_size
        if size is None and model is not None and start < end:
            length = tokens[start : start + 1].shape[1]
            size = sequences_a_pass(model, length, logits=logits)
        while start < end:
            yield start, min(start + (size or 1), end)
            start = min(start + (size or 1), end)


def available_sites(model: ModelLike, layer: int) -> tuple[Site, ...]:
    """Return the sites a layer has: always "block", "attn" and "ffn" where they exist."""
    model = checked(model)
    return tuple(site for site in SITES if all(model.has((layer, end)) for end in _ENDS[site]))


def visit_sites(
    model: ModelLike,
    tokens: TokenRows | PaddedTokens,
    visit: Callable[[int, Site, Tensor, Tensor], None],
    *,
    sites: Sequence[Site] = SITES,
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> None:
    """Call ``visit(layer, site, x, y)`` with the input and output of every site, batch by batch.

    x and y are [batch, position, d_model], in the model's own precision, and the visitor's only during the
    call: nothing is kept, so memory does not grow with tokens. No pass goes on to the unembedding.

    Args:
        model: a bridge.
        tokens: ids [sequence, position], or a disk-backed stream of rows.
        visit: the visitor; what it raises ends the pass.
        sites: some of "block" (residual stream in and out), "attn", "ffn" (after its norm, and what is
            written into the stream). A site that a layer lacks is refused.
        layers: all by default.
        batch_size: sequences a forward pass; as many as memory allows by default.
        on_batch: called with the number of sequences done after every batch.
        on_progress: called after every block with the sequences done so far, in fractions.

    Raises:
        NonFiniteError: NaN or infinity, naming the layer and the site.
        UnsupportedModelError: the model lacks a site.
    """
    model = checked(model)
    n_layers = model.n_layers
    chosen = list(range(n_layers)) if layers is None else require_layers("layers", layers, n_layers)
    asked = [require_choice("sites", s, SITES) for s in require_list("sites", sites, of="sites")]
    kept: list[Site] = [site for site in SITES if site in asked]
    rows = _require_rows(model, tokens)
    _require_sites(model, kept, chosen)
    outputs: list[Spot] = [(layer, _ENDS[site][1]) for layer in chosen for site in kept]
    last: list[Spot] = [(max(chosen), "resid_post")] if chosen else []
    watch = _SiteWatch(visit)
    edits = watch.edits(chosen, kept)
    for start, stop in row_ranges(rows, batch_size, model=model, logits=False):
        watch.start()
        piece = rows[start:stop]
        try:
            with hooked(model, per_block(model, on_progress, start, stop)):
                run(model, piece, record=last, edits=edits, logits=False, finite=False)
        except NonFiniteError:
            # A layer below that was not asked for may be the one to name.
            if chosen != list(range(len(chosen))):
                below: list[Spot] = [(layer, "resid_pre") for layer in range(max(chosen) + 1)]
                run(model, piece, record=below, logits=False)
            raise
        _require_seen(model, outputs, watch.left)
        if on_batch is not None:
            on_batch(stop)


def per_block(
    model: CheckedModel,
    on_progress: Callable[[float], None] | None,
    start: int,
    stop: int,
) -> list[tuple[str, Callable[[Tensor], None]]]:
    """Hooks that report progress inside a batch: from ``start`` to ``stop``, a step after every block."""
    if on_progress is None:
        return []
    n_layers = model.n_layers

    def tick(layer: int) -> Callable[[Tensor], None]:
        return lambda _: on_progress(start + (stop - start) * (layer + 1) / n_layers)

    # At a block's input: its output may be where a pass stops.
    return [(model.hook_name((layer, "resid_pre")), tick(layer - 1)) for layer in range(n_layers)]


class _SiteWatch:
    """The edits of ``visit_sites``: an input waits until its output comes, then both go to the visitor."""

    def __init__(self, visit: Callable[[int, Site, Tensor, Tensor], None]) -> None:
        self.visit = visit
        self.waiting: dict[tuple[int, Site], Tensor] = {}
        self.left: set[Spot] = set()

    def start(self) -> None:
        """Forget the batch before."""
        self.waiting.clear()
        self.left.clear()

    def edits(self, layers: Sequence[int], sites: Sequence[Site]) -> list[Edit]:
        """Two a site, which change nothing."""
        edits: list[Edit] = []
        for layer in layers:
            for site in sites:
                start, end = _ENDS[site]
                edits.append(((layer, start), self._enter(layer, site)))
                edits.append(((layer, end), self._leave(layer, site)))
        return edits

    def _enter(self, layer: int, site: Site) -> Callable[[Tensor], None]:
        def hook(tensor: Tensor) -> None:
            self.waiting[(layer, site)] = tensor.detach()

        return hook

    def _leave(self, layer: int, site: Site) -> Callable[[Tensor], None]:
        def hook(tensor: Tensor) -> None:
            x = self.waiting.pop((layer, site), None)
            if x is None:
                return  # its input was never seen: refused after the pass
            y = tensor.detach().to(x.device)  # under a device map a block's ends can lie apart
            self.left.add((layer, _ENDS[site][1]))
            _require_finite(layer, site, x, y)
            self.visit(layer, site, x, y)

        return hook


def _require_rows(model: CheckedModel, tokens: Any) -> TokenRows:
    """Accept ids, or rows on disk, which are checked batch by batch."""
    if is_row_stream(tokens):
        rows: TokenRows = tokens
        return rows
    return require_model_tokens(model, tokens)


def is_row_stream(tokens: Any) -> bool:
    """Say whether ``tokens`` gives rows of one length on slicing: an array, or rows on disk."""
    if isinstance(tokens, (Tensor, str, bytes, list, tuple, range)) or not hasattr(
        tokens, "__len__"
    ):
        return False
    if (
        hasattr(tokens, "keys")
        or hasattr(tokens, "column_names")
        or not hasattr(tokens, "__getitem__")
    ):
        return False
    first = tokens[0:1] if len(tokens) else None
    return getattr(first, "ndim", 0) == 2


def _require_sites(model: CheckedModel, sites: Sequence[Site], layers: Sequence[int]) -> None:
    for site in sites:
        for layer in layers:
            if site not in available_sites(model, layer):
                raise UnsupportedModelError(
                    f"layer {layer} of {model.name!r} has no {site!r} site; "
                    f"choose among {available_sites(model, layer)}"
                )


def residual_stream(
    model: ModelLike,
    tokens: Int[Tensor, "batch position"] | PaddedTokens | TokenRows,
    *,
    attention_mask: Shaped[Tensor, "batch position"] | None = None,
) -> Float[Tensor, "boundary batch position d_model"]:
    """Return the residual stream at every layer boundary: 0 is the embedding, L the last output."""
    model = checked(model)
    return torch.stack(residual_streams(model, tokens, attention_mask=attention_mask))


def residual_streams(
    model: CheckedModel,
    tokens: Int[Tensor, "batch position"] | PaddedTokens | TokenRows,
    *,
    attention_mask: Shaped[Tensor, "batch position"] | None = None,
) -> list[Float[Tensor, "batch position d_model"]]:
    """The same, boundary by boundary and without a copy."""
    n_layers = model.n_layers
    spots: list[Spot] = [(0, "resid_pre"), *((layer, "resid_post") for layer in range(n_layers))]
    out = run(model, tokens, record=spots, attention_mask=attention_mask, logits=False)
    return [out[spot].to(model.device) for spot in spots]


def require_model_tokens(model: CheckedModel, tokens: Any) -> Tensor:
    """Accept token ids of one length that fit the model's vocabulary and context."""
    return require_tokens("tokens", tokens, n_vocab=model.d_vocab, n_ctx=model.n_ctx)


def require_model_rows(model: CheckedModel, tokens: Any, *, min_length: int = 1) -> PaddedRows:
    """Accept token ids, also of unequal length or with pads, that fit the model; padded on the right."""
    rows = read_token_rows("tokens", tokens)
    n_vocab, n_ctx = model.d_vocab, model.n_ctx
    check_ids("tokens", rows.tokens, n_vocab=n_vocab, n_ctx=n_ctx, min_length=min_length)
    return rows


def _require_finite(layer: int, what: str, *values: Tensor) -> None:
    # One sum each: NaN and infinity both survive it, and it costs little beside the products.
    total = sum(value.detach().sum(dtype=torch.float32) for value in values)
    if not bool(torch.isfinite(torch.as_tensor(total))) and not all(
        bool(torch.isfinite(value).all()) for value in values
    ):
        if what == "resid_pre" and layer > 0:  # what a block reads is what the one below gave
            layer, what = layer - 1, "resid_post"
        raise NonFiniteError(
            f"the {what} of layer {layer} has NaN or infinite activations; check the weights, or load "
            "the model in a wider precision (dtype=torch.float32)"
        )
