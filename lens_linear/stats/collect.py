"""One pass over tokens: fill ``Moments`` for every layer and site, or score maps on other tokens.

Memory does not grow with the number of tokens: what a pass keeps is the statistics (d x d numbers per
layer and site) and a few numbers per sequence. Statistics live on the model's device, in float64.

Under ``torch.distributed`` every process is given the same tokens and takes its share of the sequences;
the sums are added at the end, so every process returns the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_linear.checks import counted, require_choice, require_int, require_seed
from lens_linear.errors import NotEnoughDataError
from lens_linear.linalg import Moments, all_reduce_sum, process
from lens_linear.linalg.memory import require_room
from lens_linear.linalg.scatter import Target
from lens_linear.models.capture import SITES, Site, available_sites, visit_sites
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.progress import sequence_bar
from lens_linear.stats.residuals import Reading, SiteScorer
from lens_linear.stats.resume import Checkpoint, Key, PassState
from lens_linear.stats.split import RowView, as_rows

_NOTHING = Checkpoint(None, "")

# Rows turned to float64 at once. Whole batches leave holes in the heap that later ones do not fit: peak
# memory at width 768 grew by 25 % from 8k to 24k tokens, in pieces by 2 %, at the same speed.
_PIECE = 1024


@dataclass(frozen=True, eq=False)
class SequenceSums:
    """Sums of squares by sequence, one site: what a score and its error bars are made of.

    Attributes:
        residual: [sequence], ``Σ ‖y − ŷ‖²``.
        total: [sequence], ``Σ ‖y − ȳ‖²``, ȳ the mean of y over the *training* rows.
        total_update: [sequence], the same for y − x.
    """

    residual: Float[Tensor, " sequence"]
    total: Float[Tensor, " sequence"]
    total_update: Float[Tensor, " sequence"]

    def __repr__(self) -> str:
        share = 1 - float(self.residual.sum() / self.total.sum())
        return f"SequenceSums: R² {share:.4g} over {counted(len(self.total), 'sequence', ',')}"


def first_key(key: Key) -> Key:
    """Under which name the statistics of the first position stand, where they are kept apart."""
    return key[0], f"{key[1]}-first"


def common_sites(model: ModelLike, sites: Sequence[Site] = SITES) -> tuple[Site, ...]:
    """Return those of ``sites`` that every layer has."""
    model = checked(model)
    layers = range(model.n_layers)
    return tuple(s for s in sites if all(s in available_sites(model, layer) for layer in layers))


def require_rows_for_fit(rows: RowView, width: int, *, skip: int = 0, halved: bool) -> None:
    """Refuse too few sequences before anything runs, and say how many are needed.

    Raises:
        NotEnoughDataError: the rows the map is fitted on are at most ``width + 1``.
    """
    n_sequences, length = len(rows), rows.n_tokens(skip) // len(rows)
    fitted = (n_sequences + 1) // 2 if halved else n_sequences
    if fitted * length > width + 1 and (not halved or n_sequences > 1):
        return
    needed = -(-(width + 2) // length)
    needed = max(2, 2 * needed - 1) if halved else needed
    raise NotEnoughDataError(
        f"tokens has {n_sequences} sequences of {length} counted positions, so {fitted * length} rows "
        f"would fit {width} inputs, and at most {width + 1} rows fit anything exactly; pass at least "
        f"{needed} sequences of this length (ten times as many give a usable score)"
    )


def collect_moments(
    model: ModelLike,
    rows: Any,
    *,
    sites: Sequence[Site] = ("block", "ffn"),
    layers: Sequence[int] | None = None,
    skip: int = 0,
    keep_yy: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
    checkpoint: Checkpoint = _NOTHING,
    state: PassState | None = None,
    first_apart: bool = False,
    also: Callable[[int, Site, Tensor, Tensor, slice], None] | None = None,
) -> dict[Key, Moments]:
    """Stream the rows through the model and fill one ``Moments`` per layer and site.

    Args:
        model: a bridge.
        rows: sequences, of any kind that :func:`~lens_linear.stats.split.as_rows` reads; under
            ``torch.distributed`` the same in every process.
        sites: which maps; every layer must have them.
        layers: all by default.
        skip: leading positions of every sequence that are left out.
        keep_yy: keep all of Σ yᵀy.
        batch_size: sequences a forward pass, as many as memory allows by default; the numbers do not
            depend on it.
        progress: show a bar.
        checkpoint: where to keep the state on the way; killed and started again, the pass goes on.
        state: what ``checkpoint.load()`` gave.
        first_apart: keep the first position out of the statistics, and in some of its own under
            :func:`first_key`. Both together are those of all positions.
        also: called with (layer, site, x, y, places) after each update, positions cut; ``places`` says
            which of ``rows`` these are.

    Returns:
        Statistics by (layer, site), of all processes together.

    Raises:
        NonFiniteError: NaN or infinite activations, naming the layer.
        InsufficientMemoryError: the statistics would not fit in what is free.
    """
    model = checked(model)
    rows = as_rows(model, rows, skip=skip)
    chosen = list(range(model.n_layers)) if layers is None else list(layers)
    # Products or a factor, and those of the first position beside them.
    matrices = 2 + keep_yy + 2 * first_apart
    require_room(
        8.0 * len(chosen) * len(sites) * matrices * model.d_model**2,
        model.device,
        what=f"statistics of {len(chosen)} layers of width {model.d_model:,} at {len(sites)} sites",
        advice="name fewer layers or sites in one call",
    )
    state = PassState() if state is None else state
    empty = Moments(keep_yy=keep_yy)
    for layer in chosen:
        for site in sites:
            state.moments.setdefault((layer, site), empty.copy())
            if first_apart:
                state.moments.setdefault(first_key((layer, site)), empty.copy())

    def visit(layer: int, site: Site, x: Tensor, y: Tensor) -> None:
        if first_apart:
            state.moments[first_key((layer, site))].add(x[:, 0], Target(y[:, 0]))
        for start, x_part, y_part in _pieces(x[:, skip:], y[:, skip:]):
            rest = slice(int(first_apart), None)
            state.moments[layer, site].add(x_part[:, rest], Target(y_part[:, rest]))
            if also is not None:
                also(layer, site, x_part, y_part, _places(state, "fit", start, len(x_part)))

    _walk(model, rows, visit, "fit", sites, chosen, batch_size, progress, checkpoint, state)
    if process()[1] == 1:
        return state.moments
    return {key: moments.copy().all_reduce_() for key, moments in state.moments.items()}


def score_fits(
    model: ModelLike,
    rows: Any,
    readings: Sequence[Reading],
    *,
    batch_size: int | None = None,
    progress: bool = False,
    checkpoint: Checkpoint = _NOTHING,
    state: PassState | None = None,
    also: Callable[[int, Site, Tensor, Tensor, slice], None] | None = None,
) -> list[dict[Key, SequenceSums]]:
    """Residuals of given maps on other sequences, taken row by row, summed by sequence.

    The residual ``y − x W − b`` is formed before it is squared, so nothing cancels, also when y lies a
    million times further from its mean than the map misses it by.

    Args:
        model: a bridge.
        rows: sequences the maps have not seen, of any kind that :func:`~lens_linear.stats.split.as_rows`
            reads.
        readings: maps by (layer, site), each set with the positions it is scored on; the first set names
            the layers and sites, every layer must have the same sites.
        batch_size: sequences a forward pass.
        progress: show a bar.
        checkpoint: where to keep the state.
        state: what ``checkpoint.load()`` gave.
        also: as in :func:`collect_moments`.

    Returns:
        For every reading, sums by (layer, site), in the order of ``as_rows(model, rows)``.
    """
    model = checked(model)
    rows = as_rows(model, rows)
    state = PassState() if state is None else state
    fits, skip = readings[0].fits, readings[0].skip
    layers = sorted({layer for layer, _ in fits})
    sites: tuple[Site, ...] = tuple(site for site in SITES if any(s == site for _, s in fits))
    for layer, site in fits:
        empty = torch.zeros(len(readings), 3, len(rows), dtype=torch.float64)
        state.sums.setdefault(f"{layer}.{site}", empty)

    scorers: dict[Key, SiteScorer] = {}

    def visit(layer: int, site: Site, x: Tensor, y: Tensor) -> None:
        key = (layer, site)
        if key not in fits:
            return
        known = [i for i, reading in enumerate(readings) if key in reading.fits]
        if key not in scorers:
            scorers[key] = SiteScorer([readings[i] for i in known], key, x)
        for start, x_part, y_part in _pieces(x[:, skip:], y[:, skip:]):
            places = _places(state, "score", start, len(x_part))
            state.sums[f"{layer}.{site}"][known, :, places] = scorers[key](x_part, y_part)
            if also is not None:
                also(layer, site, x_part, y_part, places)

    _walk(model, rows, visit, "score", sites, layers, batch_size, progress, checkpoint, state)
    totals = {key: all_reduce_sum(state.sums[f"{key[0]}.{key[1]}"]) for key in fits}
    return [
        {key: SequenceSums(*totals[key][i]) for key in fits if key in reading.fits}
        for i, reading in enumerate(readings)
    ]


def _places(state: PassState, phase: str, start: int, count: int) -> slice:
    """Which rows a piece holds: those of one process lie apart by the number of processes."""
    rank, world = process()
    first = rank + world * (state.done.get(phase, 0) + start)
    return slice(first, first + world * (count - 1) + 1, world)


def _pieces(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Whole sequences, about ``_PIECE`` rows at a time, with the place of the first."""
    count = max(1, _PIECE // x.shape[1])
    for start in range(0, len(x), count):
        yield start, x[start : start + count], y[start : start + count]


def _walk(
    model: CheckedModel,
    rows: RowView,
    visit: Callable[[int, Site, Tensor, Tensor], None],
    phase: str,
    sites: Sequence[Site],
    layers: Sequence[int],
    batch_size: int | None,
    progress: bool,
    checkpoint: Checkpoint,
    state: PassState,
) -> None:
    mine = rows.share(*process())
    start = state.done.get(phase, 0)
    words = {"fit": "fitting", "score": "scoring"}
    with sequence_bar(len(mine), words[phase], show=progress) as bar:
        bar(start)

        def on_batch(count: int) -> None:
            before, state.done[phase] = state.done.get(phase, 0), start + count
            bar(start + count)
            if before // checkpoint.every != (start + count) // checkpoint.every:
                checkpoint.save(state)

        if start < len(mine):
            rest = mine.take(slice(start, None))
            visit_sites(
                model,
                rest,
                visit,
                sites=sites,
                layers=layers,
                batch_size=batch_size,
                on_batch=on_batch,
                on_progress=lambda count: bar(start + count),
            )
    checkpoint.save(state)


@dataclass(frozen=True, eq=False)
class SiteRows:
    """Activations of one site, kept: for probes that must see their data more than once.

    Attributes:
        x: [row, d_in], in the model's precision.
        y: [row, d_out].
        sequence: [row], which sequence each row came from.
        first: [row], whether it is the first position of its sequence.
    """

    x: Float[Tensor, "row d_in"]
    y: Float[Tensor, "row d_out"]
    sequence: Int[Tensor, " row"]
    first: Bool[Tensor, " row"]

    def without_first(self) -> SiteRows:
        """The rows after the first position."""
        keep = ~self.first
        here = keep.to(self.x.device)
        sequence = self.sequence[keep.to(self.sequence.device)]
        return SiteRows(self.x[here], self.y[here], sequence, self.first[keep])


def gather_rows(
    model: ModelLike,
    rows: Any,
    *,
    layer: int,
    site: Site = "ffn",
    skip: int = 0,
    max_rows: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> SiteRows:
    """Keep (x, y) of one site; at most ``max_rows`` of them, drawn with a seed.

    ``rows`` are of any kind that :func:`~lens_linear.stats.split.as_rows` reads.

    Raises:
        InvalidArgumentError: the layer has no such site.
    """
    model = checked(model)
    site = require_choice("site", site, available_sites(model, layer))
    rows = as_rows(model, rows, skip=skip)
    seed = require_seed(seed)
    if max_rows is not None:
        require_int("max_rows", max_rows, minimum=1)
    total = rows.n_tokens(skip)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    kept = torch.zeros(total, dtype=torch.bool)
    kept[order[: total if max_rows is None else max_rows]] = True
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    done, seen = 0, 0

    def visit(_layer: int, _site: Site, x: Tensor, y: Tensor) -> None:
        nonlocal seen
        x, y = x[:, skip:], y[:, skip:]
        mask = kept[seen : seen + x.shape[:2].numel()].reshape(x.shape[:2])
        seen += mask.numel()
        here = mask.to(x.device)
        sequence, position = mask.nonzero().T
        parts.append((x[here], y[here], done + sequence, position + skip == 0))

    def on_batch(count: int) -> None:
        nonlocal done
        done = count

    visit_sites(
        model, rows, visit, sites=(site,), layers=[layer], batch_size=batch_size, on_batch=on_batch
    )
    x, y, sequence, first = (torch.cat(column) for column in zip(*parts, strict=True))
    return SiteRows(x, y, sequence.to(model.device), first)
