"""What it costs to take blocks out, one after the other: removed, linearised, linearised and distilled.

Blocks go in the order of their linearity (or its reverse, or at random); after each step the model's loss
is taken on sequences that neither the order nor the maps have seen.

>>> import torch
>>> from lens_linear.models.open.toy import toy_model
>>> tokens = torch.randint(64, (40, 16), generator=torch.Generator().manual_seed(0))
>>> curve = replacement_curve(toy_model(n_layers=2, d_model=16), tokens)
>>> list(curve.to_dataframe())[:4]
['n_replaced', 'layers', 'loss', 'perplexity']
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import (
    require_choice,
    require_int,
    require_ints,
    require_seed,
)
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError
from lens_linear.linalg import Moments
from lens_linear.linalg.least_squares import Ridge, require_ridge
from lens_linear.linalg.memory import usable_bytes
from lens_linear.linearity.measure.intervals import few_rows
from lens_linear.linearity.replace.affine_map import (
    AffineMap,
    fitted_map,
    identity_map,
)
from lens_linear.linearity.replace.distill import polish
from lens_linear.linearity.replace.replacement import map_groups
from lens_linear.models.capture import batched, residual_streams, run
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.describe.parameter_counts import n_parameters, site_parameters
from lens_linear.models.spots import Spot
from lens_linear.models.stand_ins import BlockStandIns, lone_blocks
from lens_linear.progress import sequence_bar
from lens_linear.stats.collect import collect_moments, require_rows_for_fit
from lens_linear.stats.model_scores import ModelScores, perplexity, score_model
from lens_linear.stats.split import RowView, as_rows, halves
from lens_linear.tables import Result
from lens_linear.text.task import Task
from lens_linear.token_rows import TokenRows

Strategy = Literal["remove", "linear", "linear+distill"]
Order = Literal["linearity", "reverse", "random"]


@dataclass(frozen=True, eq=False)
class ReplacementCurve(Result):
    """Loss against the number of blocks replaced; acts as its table.

    Attributes:
        scores: losses (nats an answer) and the task's metric on each test sequence, by step; step 0 is the
            whole model.
        steps: layers replaced at each step, in the order they went.
        metric: what the task scores besides the loss.
        n_parameters: of the model with maps in place, by step.
        model_name: as the model calls itself.
        strategy: "remove", "linear" or "linear+distill".
        order: "linearity" (most linear first), "reverse", "random", or the layers that were given.
        d_model: inputs of each map.
        n_fit: rows the maps and the order were fitted on.
        n_tokens: tokens the loss was taken on.
        distill_steps: gradient steps after each closed-form refit.
        seed: of the halves, and of the random order.
        ridge: penalty of the fits, or "loo".
    """

    _figure = "replacement_curves"
    _columns = (
        "n_replaced",
        "layers",
        "loss",
        "loss_increase",
        "loss_increase_se",
        "metric",
        "metric_value",
        "n_parameters",
    )

    scores: tuple[ModelScores, ...]
    steps: tuple[tuple[int, ...], ...]
    metric: str
    n_parameters: tuple[int, ...]
    model_name: str
    strategy: Strategy
    order: str
    d_model: int
    n_fit: int
    n_tokens: int
    distill_steps: int
    seed: int
    ridge: Ridge = 0.0

    def to_dataframe(self) -> pd.DataFrame:
        """One row per step: n_replaced, layers, loss, perplexity, loss_increase, metric, metric_value.

        ``loss_increase_se`` is over test sequences, of the difference to the whole model (paired).
        """
        losses = [score.loss for score in self.scores]
        change = [loss.minus(losses[0]) for loss in losses]
        return pd.DataFrame(
            {
                "n_replaced": [len(step) for step in self.steps],
                "layers": [list(step) for step in self.steps],
                "loss": [loss.mean for loss in losses],
                "perplexity": [perplexity(loss.mean) for loss in losses],
                "loss_increase": [one.mean for one in change],
                "loss_increase_se": [one.standard_error for one in change],
                "metric": self.metric,
                "metric_value": [score.metric.mean for score in self.scores],
                "n_parameters": self.n_parameters,
                "strategy": self.strategy,
                "order": self.order,
                "n_tokens": self.n_tokens,
                "n_fit": self.n_fit,
            }
        )

    def __repr__(self) -> str:
        mean = [score.metric.mean for score in self.scores]
        what = "loss" if self.metric == "loss" else self.metric
        unit = " nats per token" if self.metric == "loss" else ""
        few = ""
        if self.strategy != "remove":
            few = few_rows(self.n_fit, self.d_model, ridge=self.ridge, so="the loss is above")
        first = "" if len(mean) == 2 else f"{mean[1]:.3f} with 1 block replaced, "
        return (
            f"ReplacementCurve of {self.model_name}: strategy {self.strategy!r}, order {self.order}; "
            f"{what} {mean[0]:.3f}{unit} whole, {first}{mean[-1]:.3f} with "
            f"{len(self.steps) - 1} replaced; n = {self.n_tokens:,} test tokens, fitted "
            f"on {self.n_fit:,}{few}"
        )


def replacement_curve(
    model: ModelLike,
    tokens: Int[Tensor, "sequence position"] | TokenRows | Task,
    strategy: Strategy = "linear",
    *,
    order: Order | Sequence[int] = "linearity",
    max_replaced: int | None = None,
    distill_steps: int = 0,
    ridge: Ridge = 0.0,
    skip: int = 0,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    max_memory: int | None = None,
) -> ReplacementCurve:
    """Replace more and more blocks and take the loss on held-out sequences after each.

    ``"remove"`` lets the residual stream pass by; ``"linear"`` puts each block's affine fit in its place,
    all fitted on the original model; ``"linear+distill"`` is layerwise distillation in closed form: from
    the first replaced block to the last, the map is refitted on what reaches it in the model with the
    earlier maps in place, towards the original model's output of that block. With ``distill_steps`` all
    maps are then polished together by Adam towards the original model's residual stream after every block
    from the first replaced one on; every other weight stays as it is.

    Loss in nats per token; perplexity is its exponential. A uniform guess costs log(vocabulary).

    Args:
        model: a bridge; its weights do not change.
        tokens: ids [sequence, position]; one half fits maps and order, the other gives the loss.
        strategy: what stands in for a block.
        order: "linearity" (highest held-in block R² first), "reverse", "random" (seeded), or a list of
            layers.
        max_replaced: stop after so many blocks; all by default.
        distill_steps: Adam steps of the polish (only with "linear+distill").
        ridge: penalty of the fits, or "loo" for the one of least leave-one-out error.
        skip: leading positions left out of the fits; the loss counts every position.
        seed: of the halves and of the random order.
        batch_size: sequences a forward pass; as many as memory allows by default.
        progress: show a bar over steps.
        max_memory: bytes that statistics and maps may add, half of what is free by default. Layers that do
            not fit together are fitted group after group, each in a pass of its own. Distilling counts three
            streams of the rows it fits on, but not what Adam holds with ``distill_steps``.

    Returns:
        ReplacementCurve; its ``to_dataframe()`` has n_replaced, layers, loss, perplexity.

    Raises:
        NotEnoughDataError: too few rows to fit on.
        InsufficientMemoryError: one map needs more than ``max_memory``.
        InvalidArgumentError: bad strategy, order or layers.
        UnsupportedModelError: a model without blocks.

    Source: Razzhigaev et al. 2024, arXiv 2405.12250, section 4 (pruning and layerwise distillation).

    Example:
        >>> import torch
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2, d_model=16, attn_only=False)
        >>> tokens = torch.randint(64, (60, 16), generator=torch.Generator().manual_seed(0))
        >>> replacement_curve(model, tokens, strategy="remove")["n_replaced"].tolist()
        [0, 1, 2]
    """
    model = checked(model)
    seed = require_seed(seed)
    _require_plan(strategy, max_replaced, distill_steps, ridge)
    rows = as_rows(model, tokens, skip=skip)
    model.require_blocks()
    width = model.d_model
    require_rows_for_fit(rows, width, skip=skip, halved=True)
    train, test = halves(rows, seed=seed)
    fits: dict[int, AffineMap] = {}
    if strategy != "remove" or (isinstance(order, str) and order != "random"):
        carried = 3 * _stream_bytes(model, train) if strategy == "linear+distill" else 0
        fits = _fits(model, train, ridge, skip, batch_size, progress, max_memory, carried)
    sequence = _sequence(model.n_layers, fits, order, seed)[:max_replaced]
    builder = _Builder(
        model, train, fits, strategy, distill_steps, ridge, skip, batch_size, max_memory
    )
    del fits  # the builder lets go of those that it no longer needs
    scores, sizes, steps = [], [], [tuple(sequence[:k]) for k in range(len(sequence) + 1)]
    with sequence_bar(len(steps), "replacing", show=progress) as bar:
        for count, step in enumerate(steps, start=1):
            maps = builder.maps(step, partial(_half, bar, count - 1))
            with builder.stand_ins.applied({m.first: m for m in maps}):
                done = partial(_half, bar, count - 0.5)
                scores.append(
                    score_model(model, test, batch_size=batch_size, warn=not step, on_progress=done)
                )
            own = 0 if strategy == "remove" else sum(m.n_parameters for m in maps)
            sizes.append(builder.parameters_left(step) + own)
            maps.clear()  # the next step makes its own beside those that the builder keeps
            bar(count)
    return ReplacementCurve(
        scores=tuple(scores),
        steps=tuple(steps),
        metric="loss" if rows.task is None else rows.task.metric_name,
        n_parameters=tuple(sizes),
        model_name=model.name,
        strategy=strategy,
        order=order if isinstance(order, str) else str(list(order)),
        d_model=width,
        n_fit=train.n_tokens(skip),
        n_tokens=test.n_tokens(),
        distill_steps=distill_steps,
        seed=seed,
        ridge=ridge,
    )


def _require_plan(
    strategy: Strategy, max_replaced: int | None, distill_steps: int, ridge: Ridge
) -> None:
    require_choice("strategy", strategy, ("remove", "linear", "linear+distill"))
    require_int("distill_steps", distill_steps, minimum=0)
    require_ridge(ridge)
    require_int("max_replaced", 1 if max_replaced is None else max_replaced, minimum=1)


def _half(bar: Callable[[float], None], done: float, share: float) -> None:
    """Progress inside a step: half of it makes the maps, half takes the loss."""
    bar(done + share / 2)


def _fits(
    model: CheckedModel,
    rows: RowView,
    ridge: Ridge,
    skip: int,
    batch_size: int | None,
    progress: bool,
    max_memory: int | None,
    carried: int,
) -> dict[int, AffineMap]:
    """The affine fit of every block on the original activations, from one pass; one solve a block.

    A pass for each group of layers where memory does not hold the statistics of all.
    """
    fits = {}
    for layers in map_groups(model, model.n_layers, max_memory, carried=carried):
        statistics = collect_moments(
            model,
            rows,
            sites=("block",),
            layers=layers,
            skip=skip,
            batch_size=batch_size,
            progress=progress,
        )
        for layer in layers:
            moments = statistics.pop((layer, "block"))
            fits[layer] = fitted_map(moments, "block", layer, ridge=ridge)
    return fits


def _stream_bytes(model: CheckedModel, rows: RowView) -> int:
    """Bytes of the residual stream at one boundary, of all rows."""
    return model.dtype.itemsize * model.d_model * len(rows) * rows.length


def _sequence(
    n_layers: int, fits: Mapping[int, AffineMap], order: Order | Sequence[int], seed: int
) -> list[int]:
    if not isinstance(order, str):
        layers = require_ints("order", order, minimum=0, maximum=n_layers - 1)
        if len(set(layers)) != len(layers) or not layers:
            raise InvalidArgumentError(f"order must name each layer at most once, got {layers}")
        return layers
    require_choice("order", order, ("linearity", "reverse", "random"))
    if order == "random":
        return torch.randperm(n_layers, generator=torch.Generator().manual_seed(seed)).tolist()
    # A block whose output never varies has no R²; its constant is exact.
    score = {layer: 1.0 if math.isnan(m.r_squared) else m.r_squared for layer, m in fits.items()}
    ranked = sorted(score, key=lambda layer: -score[layer])
    return ranked if order == "linearity" else ranked[::-1]


class _Builder:
    """Makes the maps of each step; keeps those that do not change from step to step."""

    def __init__(
        self,
        model: CheckedModel,
        rows: RowView,
        fits: Mapping[int, AffineMap],
        strategy: Strategy,
        distill_steps: int,
        ridge: Ridge,
        skip: int,
        batch_size: int | None,
        max_memory: int | None,
    ) -> None:
        self.model, self.rows, self.fits, self.strategy = model, rows, fits, strategy
        self.distill_steps, self.skip = distill_steps, skip
        self.ridge: Ridge = ridge
        self.batch_size, self.max_memory = batch_size, max_memory
        self.stand_ins = BlockStandIns(model)
        self.streams: list[list[Tensor]] = []
        self.alone = False  # whether that was looked at
        self.total = n_parameters(model)
        self.sizes = [site_parameters(model, layer) for layer in range(model.n_layers)]
        # A map depends on the replaced blocks before it alone, so most serve the next step too.
        self.known: dict[tuple[int, ...], AffineMap] = {}

    def parameters_left(self, layers: Sequence[int]) -> int:
        """Parameters of the model without these blocks."""
        return self.total - sum(self.sizes[layer] for layer in layers)

    def maps(self, layers: Sequence[int], on_progress: Callable[[float], None]) -> list[AffineMap]:
        """The maps for a set of layers; ``on_progress`` is told the share of the walk that is done."""
        ordered = sorted(layers)
        if self.strategy == "remove":
            return [identity_map(layer, layer, self.model.d_model) for layer in ordered]
        if self.strategy == "linear" or not ordered:
            return [self.fits[layer] for layer in ordered]
        done = self._distilled(ordered, on_progress)
        if self.distill_steps:
            done = polish(
                self.stand_ins,
                self.rows,
                done,
                steps=self.distill_steps,
                batch_size=self.batch_size or 8,
            )
        return done

    def _distilled(
        self, layers: Sequence[int], on_progress: Callable[[float], None]
    ) -> list[AffineMap]:
        """Refit the maps after the first one whose predecessors changed, in one walk up the blocks.

        Two streams are carried from block to block for all batches: the original model's, kept for all
        steps where memory holds it, and that of the model with maps in place. So a step costs one forward
        pass at most, or two, whatever is replaced.
        """
        before = [tuple(layers[: place + 1]) for place in range(len(layers))]
        self.known[before[0]] = self.fits[layers[0]]
        # Steps only add blocks: no other map, and no fit of a later block, is asked for again.
        self.known = {key: self.known[key] for key in before if key in self.known}
        self.fits = {layer: m for layer, m in self.fits.items() if layer <= layers[0]}
        done = list(self.known.values())
        if len(done) == len(layers):
            return done
        first = layers[len(done)]
        batches = [tokens for _, tokens in batched(self.rows, self.batch_size, model=self.model)]
        self._require_lone_blocks(batches[0][:1])
        kept = self._original_streams(batches)
        if kept:
            teacher = [streams[first] for streams in kept]
        else:
            teacher = [self._stream_before(tokens, first, {}) for tokens in batches]
        placed = {m.first: m for m in done}
        student = [self._stream_before(tokens, first, placed) for tokens in batches]
        total = (layers[-1] + 1 - first) * len(batches)
        for layer in range(first, layers[-1] + 1):
            moments = Moments()
            for i, tokens in enumerate(batches):
                on_progress(((layer - first) * len(batches) + i) / total)
                teacher[i] = (
                    kept[i][layer + 1]
                    if kept
                    else self.stand_ins.advance(tokens, teacher[i], layer)
                )
                if layer in layers:
                    moments.update(student[i][:, self.skip :], teacher[i][:, self.skip :])
                else:
                    student[i] = self.stand_ins.advance(tokens, student[i], layer)
            if layer in layers:
                m = fitted_map(moments, "block", layer, ridge=self.ridge)
                self.known[before[len(done)]] = m
                done.append(m)
                student = [m(stream) for stream in student]
        return done

    def _require_lone_blocks(self, tokens: Tensor) -> None:
        if not self.alone and lone_blocks(self.model, tokens) is None:
            raise UnsupportedModelError(
                f"the blocks of {self.model.name!r} do not give alone what they give in a whole "
                "run (they share something beside the residual stream, or hooks of yours change it between "
                'two blocks), so maps cannot be distilled one after the other; use strategy="linear", or '
                "call model.reset_hooks(including_permanent=True) first"
            )
        self.alone = True

    def _original_streams(self, batches: Sequence[Tensor]) -> list[list[Tensor]]:
        """The original model's stream at every boundary by batch; nothing where memory does not hold it."""
        # The changed stream stands beside them, twice while a map is put in place.
        needed = (self.model.n_layers + 3) * _stream_bytes(self.model, self.rows)
        needed += (
            8 * (self.model.n_layers + 12) * self.model.d_model**2
        )  # maps, and the statistics of one
        if not self.streams and needed <= usable_bytes(self.max_memory, self.model.device):
            self.streams = [residual_streams(self.model, tokens) for tokens in batches]
        return self.streams

    def _stream_before(
        self, tokens: Tensor, layer: int, placed: Mapping[int, AffineMap]
    ) -> Float[Tensor, "batch position d_model"]:
        spot: Spot = (layer, "resid_pre")
        with self.stand_ins.applied(placed):
            return run(self.model, tokens, record=[spot], logits=False)[spot]
