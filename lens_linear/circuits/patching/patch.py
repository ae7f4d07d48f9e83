"""Activation patching: put activations of one run into another, and see how far the answer follows.

Two prompts of the same length differ in what matters, and the metric of the task tells them apart. A run on
one of them gets, at one place, the activation that the other run had there::

    effect = (metric of the patched run - metric of the run patched into) / (metric of the other run - the
    same)

0 changes nothing, 1 moves the metric all the way to the other run's; single effects need not lie between,
and do not add up. ``into="corrupted"`` (denoising) asks what is enough to restore the answer,
``into="clean"`` (noising) what it needs.

``what="path"``, for attention-only models, moves single end-to-end paths: what a path adds to the logits in
one run is replaced by what it adds in the other, patterns and norm scales being those of each run. All
paths together move the metric exactly from one run to the other.

>>> import torch
>>> from lens_linear.models.open.toy import toy_model
>>> clean, corrupted = torch.tensor([[3, 7, 3]]), torch.tensor([[3, 8, 3]])
>>> found = patch(toy_model(), Task(clean, labels=[7]), corrupted, what="residual")
>>> round(float(found.effects[1]), 3), found.names[1]  # the stream at the one token that differs
(1.0, 'L0 @ 1')

Sources: Vig et al. 2020, *Causal Mediation Analysis*; Meng et al. 2022, *Locating and Editing Factual
Associations*; Heimersheim and Nanda 2024, *How to use and interpret activation patching*.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import counted, head_name, require_bool, require_choice
from lens_linear.circuits.induction.ablation import score_task
from lens_linear.circuits.paths.attention_only import AttentionOnly
from lens_linear.errors import InvalidArgumentError, LensLinearWarning, UnsupportedModelError
from lens_linear.models.batch_memory import sequences_a_pass
from lens_linear.models.capture import run
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.spots import Spot
from lens_linear.stats.task_scores import (
    RowScores,
    require_task,
    score_answers,
    warn_if_worse_than_a_guess,
)
from lens_linear.tables import Result
from lens_linear.text.task import Metric, Task

PatchWhat = Literal["head", "residual", "attn_out", "ffn_out", "path"]
WHATS: tuple[PatchWhat, ...] = ("head", "residual", "attn_out", "ffn_out", "path")
Into = Literal["corrupted", "clean"]
_SPOTS = {"head": "z", "residual": "resid_pre", "attn_out": "attn_out", "ffn_out": "ffn_out"}


@dataclass(frozen=True)
class Site:
    """Where a patch is put: a path's name, or a layer with a head (-1: none) and a position (-1: all)."""

    layer: int
    head: int = -1
    position: int = -1
    path: str = ""
    order: int = -1


@dataclass(frozen=True, eq=False)
class Effects(Result):
    """How far patches move the metric of one run towards that of another.

    Attributes:
        values: the metric of each patched run, mean over answers.
        changes_se: standard error over rows of ``value - base`` (paired); NaN for one row.
        base: the metric of the run patched into.
        source: the metric of the run that activations were taken from.
        into: which run was patched.
        metric: its name.
    """

    values: Float[Tensor, " site"] = field(repr=False)
    changes_se: Float[Tensor, " site"] = field(repr=False)
    base: float
    source: float
    into: Into
    metric: str

    _figure = "patching"

    @property
    def effects(self) -> Float[Tensor, " site"]:
        """``(value - base) / (source - base)``; NaN where the two runs have the same metric."""
        return (self.values - self.base) / self._gap

    @property
    def _gap(self) -> float:
        gap = self.source - self.base
        return gap if abs(gap) > 1e-9 else math.nan

    def _moved(self, names: Sequence[str], n_rows: int) -> str:
        """The metric of both runs, and the patches that move it most, in words."""
        order = self.effects.abs().nan_to_num(nan=-1.0).argsort(descending=True)[:3].tolist()
        best = ", ".join(f"{names[i]} {float(self.effects[i]):+.2f}" for i in order)
        return (
            f"into the {self.into} run over {counted(n_rows, 'row')}: {self.metric} {self.base:.3f}, "
            f"{self.source:.3f} in the other run; share of the way: {best}"
        )

    def _columns_of_effects(self) -> dict[str, Any]:
        return {
            "value": self.values.numpy(),
            "change": (self.values - self.base).numpy(),
            "effect": self.effects.numpy(),
            "effect_se": (self.changes_se / abs(self._gap)).numpy(),
        }


@dataclass(frozen=True, eq=False)
class PatchEffects(Effects):
    """What each patch does to the task's metric.

    Attributes:
        values: the metric of each patched run, mean over answers.
        changes_se: standard error over rows of ``value - base`` (paired); NaN for one row.
        base: the metric of the run patched into.
        source: the metric of the run that activations were taken from.
        into: which run was patched.
        metric: its name.
        what: the kind of place.
        sites: the places.
        task: what was asked.
    """

    what: PatchWhat
    sites: tuple[Site, ...] = field(repr=False)
    task: Task = field(repr=False)

    _columns = ("site", "value", "effect", "effect_se")

    @property
    def names(self) -> list[str]:
        """``L1H3``, ``L1``, ``L1 @ 4``, or a path's name."""
        found = []
        for site in self.sites:
            place = site.path or (
                head_name(site.layer, site.head) if site.head >= 0 else f"L{site.layer}"
            )
            found.append(place if site.position < 0 else f"{place} @ {site.position}")
        return found

    def __repr__(self) -> str:
        moved = self._moved(self.names, len(self.task))
        return f"PatchEffects of {len(self.sites)} {self.what} patches {moved}"

    def to_dataframe(self) -> pd.DataFrame:
        """One row a patch: site, layer, head, position, value, change, effect, effect_se; paths also order.

        ``head`` is a name like L1H3 ("" where none); ``position`` is -1 where all were patched together. In
        the order of the model; paths largest first.
        """
        columns: dict[str, Any] = {"site": self.names}
        if self.what == "path":
            columns["order"] = [site.order for site in self.sites]
        else:
            columns["layer"] = [site.layer for site in self.sites]
            columns["head"] = [
                head_name(site.layer, site.head) if site.head >= 0 else "" for site in self.sites
            ]
            columns["position"] = [site.position for site in self.sites]
        frame = pd.DataFrame(columns | self._columns_of_effects())
        if self.what == "path":
            frame = frame.sort_values("effect", key=abs, ascending=False, kind="stable")
        return frame.reset_index(drop=True)


def patch(
    model: ModelLike,
    clean: Any,
    corrupted: Any,
    *,
    what: PatchWhat = "head",
    metric: Metric | None = None,
    into: Into = "corrupted",
    by_position: bool | None = None,
    batch_size: int | None = None,
) -> PatchEffects:
    """Patch every head, stream, sublayer or path from one run into another, one at a time.

    ``effect`` is the share of the way that the metric moves from the run patched into to the other one:
    0 nothing, 1 all.

    Args:
        model: a bridge, with or without MLPs; attention-only for paths.
        clean: a Task (its labels and metric say what counts), or tokens, whose next tokens count.
        corrupted: tokens of the same shape; what the answers are is taken from ``clean``.
        what: "head" (each head's gathered values), "residual" (the stream at the input of each block),
            "attn_out", "ffn_out" (what the sublayer writes), or "path" (each end-to-end path's logits).
        metric: another one than the task's.
        into: which run is patched with activations of the other.
        by_position: patch each position by itself; by default heads at all positions together, and everything
            else by position. Paths are not cut by position.
        batch_size: rows a forward pass, which several patches share; None takes what memory allows.

    Returns:
        PatchEffects: ``.effects`` [site]; acts as a table.

    Raises:
        InvalidArgumentError: prompts of different shapes, or an unknown word.
        UnsupportedModelError: a model without such a place; paths of a model with MLPs.

    Source: Vig et al. 2020; Meng et al. 2022; Heimersheim and Nanda 2024 on how to use and interpret
        activation patching.

    Example:
        >>> from lens_linear.constructions.induction_model import build_induction
        >>> from lens_linear.text.task import Task
        >>> built = build_induction(vocab=12, n_ctx=24)  # L0H0 and L1H1 copy what followed the last time
        >>> clean = Task([[3, 7, 5, 3]], labels=[7])
        >>> found = patch(built.model, clean, torch.tensor([[3, 8, 5, 3]]), what="head")
        >>> found.names[int(found.effects.argmax())], round(float(found.effects.max()), 3)
        ('L1H1', 1.0)
    """
    model = checked(model)
    require_choice("what", what, WHATS)
    pair = require_pair(model, clean, corrupted, metric, into, batch_size)
    if what == "path":
        sites, scores = _paths(model, pair.base, pair.source)
    else:
        each = what != "head" if by_position is None else require_bool("by_position", by_position)
        sites = _sites(model, what, pair.base.tokens.shape[1] if each else 0)
        scores = _patched(model, pair, what, sites)
    task = pair.source if into == "corrupted" else pair.base
    return PatchEffects(*pair.measured(scores), what, tuple(sites), task)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two prompts of one shape, the one that is patched and the other one, with their metrics before."""

    base: Task
    source: Task
    before: RowScores
    goal: RowScores
    into: Into
    batch_size: int

    def batches(self) -> Iterator[tuple[Task, Task]]:
        """Some rows of both at a time."""
        for start in range(0, len(self.base), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.base.take(rows), self.source.take(rows)

    def measured(
        self, scores: Sequence[RowScores]
    ) -> tuple[Tensor, Tensor, float, float, Into, str]:
        """The fields of :class:`Effects`; warns where both runs have one metric: there are no shares then."""
        base, source, metric = self.before.mean, self.goal.mean, self.base.metric_name
        if not abs(source - base) > 1e-9:
            warnings.warn(
                f"corrupted is answered as clean is ({metric} is {base:.6g} for both), so there is nothing "
                "to give shares of and the effects are NaN; pass prompts that differ in what decides the "
                "answer",
                LensLinearWarning,
                stacklevel=3,
            )
        values = torch.tensor([score.mean for score in scores], dtype=torch.float64)
        errors = [score.minus(self.before).standard_error for score in scores]
        return values, torch.tensor(errors, dtype=torch.float64), base, source, self.into, metric


def require_pair(
    model: CheckedModel,
    clean: Any,
    corrupted: Any,
    metric: Metric | None,
    into: Into,
    batch_size: int | None,
) -> Pair:
    """Accept two prompts of one shape; the answers of the clean one are asked of both."""
    require_choice("into", into, ("corrupted", "clean"))
    asked = require_task(model, clean, scored=True)
    if metric is not None:
        asked = replace(asked, metric=metric)
    other = require_task(model, corrupted)
    same = asked.tokens.shape == other.tokens.shape and bool((asked.mask == other.mask).all())
    if not same:
        raise InvalidArgumentError(
            f"corrupted must have the shape of clean, position by position, got {tuple(other.tokens.shape)} "
            f"tokens for {tuple(asked.tokens.shape)} (or other pads); make both prompts equally long"
        )
    # What is right is what is right of the clean prompt, also where it is the next token.
    labels = asked.labels
    if labels is None:
        labels = (
            asked.targets if asked.positions is None else asked.targets.gather(1, asked.positions)
        )
    asked = replace(asked, labels=labels)
    other = replace(asked, tokens=other.tokens)
    size = sequences_a_pass(model, asked.tokens.shape[1], batch_size)
    base, source = (other, asked) if into == "corrupted" else (asked, other)
    before = score_task(model, base, batch_size=size)
    goal = score_task(model, source, batch_size=size)
    if asked.metric == "loss":
        loss = (before if into == "clean" else goal).mean
        warn_if_worse_than_a_guess(
            require_task(model, clean), loss, model.name, model.d_vocab_out, stacklevel=4
        )
    return Pair(base, source, before, goal, into, size)


def _sites(model: CheckedModel, what: PatchWhat, n_positions: int) -> list[Site]:
    """Every place of a kind, layer by layer; no positions patches all of them together."""
    positions = range(n_positions) if n_positions else (-1,)
    heads = range(model.n_heads) if what == "head" else (-1,)
    layers = [layer for layer in range(model.n_layers) if model.has(_spot(what, layer))]
    if not layers:
        raise UnsupportedModelError(
            f"model {model.name!r} has no {_SPOTS[what]!r} in any layer; patch another place, e.g. 'residual'"
        )
    return [Site(layer, head, at) for layer in layers for head in heads for at in positions]


def _spot(what: PatchWhat, layer: int) -> Spot:
    return (layer, _SPOTS[what])  # type: ignore[return-value]


def _patched(
    model: CheckedModel, pair: Pair, what: PatchWhat, sites: Sequence[Site]
) -> list[RowScores]:
    """Score the base run with each site patched; copies of the rows share a forward pass."""
    found: list[list[RowScores]] = [[] for _ in sites]
    layers = sorted({site.layer for site in sites})
    for here, there in pair.batches():
        seen = run(model, there, record=[_spot(what, layer) for layer in layers], logits=False)
        copies = max(1, pair.batch_size // len(here))
        for layer in layers:
            own = [i for i, site in enumerate(sites) if site.layer == layer]
            for first in range(0, len(own), copies):
                group = own[first : first + copies]
                edit = _write([sites[i] for i in group], seen[_spot(what, layer)], model, what)
                many = here.take(torch.arange(len(here)).repeat(len(group)))
                logits = run(model, many, edits=[(_spot(what, layer), edit)]).logits
                for i, part in zip(group, logits.split(len(here)), strict=True):
                    found[i].append(score_answers(here, part))
    return [RowScores.joined(parts) for parts in found]


def _write(
    sites: Sequence[Site], clean: Tensor, model: CheckedModel, what: PatchWhat
) -> Callable[[Tensor], Tensor]:
    """The edit that writes one site into each copy of the rows."""
    n = len(clean)
    heads = model.n_heads if what == "head" else 1

    def edit(x: Tensor) -> Tensor:
        split = x.clone().reshape(*x.shape[:2], heads, -1)
        new = clean.to(split).reshape(*clean.shape[:2], heads, -1)
        for i, site in enumerate(sites):
            rows = slice(i * n, (i + 1) * n)
            head = slice(None) if site.head < 0 else slice(site.head, site.head + 1)
            place = slice(None) if site.position < 0 else slice(site.position, site.position + 1)
            split[rows, place, head] = new[:, place, head]
        return split.reshape(x.shape)

    return edit


def _paths(model: CheckedModel, base: Task, source: Task) -> tuple[list[Site], list[RowScores]]:
    """Move each path's logits from one run to the other."""
    if not bool(base.mask.all()):
        raise InvalidArgumentError("tokens must have rows of one length for what='path'; cut them")
    view = AttentionOnly(model)
    here, there = view.paths(base.tokens), view.paths(source.tokens)
    others = {str(name): i for i, name in enumerate(there.names)}
    sites, scores = [], []
    for index, name in enumerate(here.names):
        change = there.term_logits(others[str(name)]) - here.term_logits(index)
        sites.append(Site(-1, path=str(name), order=len(name.heads)))
        scores.append(score_answers(base, here.model_logits + change))
    return sites, scores
