"""Where an attention head sits between linear and exponential memory.

A head is a Hopfield memory: its keys are the stored patterns, its query the state, β = 1/√d_head the
inverse temperature, its softmax the exponential energy's update. Whether it retrieves one pattern
or averages many is decided by the *scores*: the lead of the target over the others' mean, ``signal
= β (o* - ō)``, against their spread ``β sd(o)``, both in nats. With Gaussian scores, K others weigh
as much together as the target alone when

    log K = signal - spread²/2          if signal >= spread² (many others share the weight)
    log K = signal² / (2 spread²)       otherwise (the best of the others holds it)

(``predicted_capacity``, the random energy model): exponential in the signal, and the signal is what
training sets. A linear memory weighs by ``|o|`` instead, so K others outweigh the target at about
``1.25 signal / spread``.

:func:`attention_head_memory` takes tensors, so it serves any model. It stores K of the keys, asks
for one of them, and reads out through softmax, linear and polynomial attention, beside random keys
of the same size. :func:`lens_linear.constructions.memory.trained_head.trained_head_memory` captures them
from a model.

>>> import torch
>>> keys = 4 * torch.randn(64, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
>>> result = attention_head_memory(keys, noise=0.2)
>>> bool(result.recall[0, 0, -1].mean() > 0.9)
True

Source: Ramsauer et al. 2020 (heads as Hopfield memories: one pattern, a metastable few, or the
global average); Lucibello & Mézard 2024 (capacity by the random energy model).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear._tl import derive_generator
from lens_linear.checks import (
    counted,
    require_bool,
    require_float,
    require_int,
    require_ints,
    require_rows,
    require_seed,
)
from lens_linear.constructions.least_squares.spectral import as_float64
from lens_linear.constructions.memory.capacity import crossing
from lens_linear.constructions.memory.energies import Energy, parse_energies
from lens_linear.errors import InvalidArgumentError
from lens_linear.tables import Result, cells

SOURCES = ("head", "random keys")


@dataclass(frozen=True, eq=False)
class HeadMemory(Result):
    """Retrieval from a head's keys and from random ones, by energy and number of stored keys.

    ``recall``: fraction of queries whose target holds more than half of the absolute weights;
    ``similarity``: cosine between readout and target; ``weight``: the target's share of the
    absolute attention weights. NaN where fewer keys were visible. Axes: source (head, random keys),
    energy, number of keys, repetition.
    """

    _figure = "head_memory"

    recall: Float[Tensor, "sources energies k reps"]
    similarity: Float[Tensor, "sources energies k reps"]
    weight: Float[Tensor, "sources energies k reps"]
    signal: Float[Tensor, " sources"]  # β (target's score - mean score), nats, mean over queries
    spread: Float[Tensor, " sources"]  # β × standard deviation of the other scores, nats
    log_capacity: Float[Tensor, " sources"]  # of the random energy model, median over queries
    effective_patterns: Float[Tensor, " sources"]  # exp(entropy of the softmax), median
    energies: tuple[str, ...]
    n_patterns: tuple[int, ...]
    n_keys: int
    d: int
    beta: float
    own_queries: bool  # the head's own queries, or its keys with noise
    noise: float
    causal: bool
    seed: int

    def __repr__(self) -> str:
        rows = self.position().set_index("source")
        head = rows.loc["head"]
        return (
            f"HeadMemory: {counted(self.n_keys, 'key')} of d = {self.d}, β = {self.beta:.3g}; signal "
            f"{head.signal:.2f} nats over a spread of {head.spread:.2f}: predicted capacity "
            f"{head.predicted_capacity:.3g} keys (random keys: "
            f"{rows.loc['random keys'].predicted_capacity:.3g})"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a cell.

        Columns: ``source``, ``energy``, ``n_patterns``, ``rep``, ``recall``, ``similarity``,
        ``weight``.
        """
        axes = {
            "source": SOURCES,
            "energy": self.energies,
            "n_patterns": self.n_patterns,
            "rep": range(self.recall.shape[-1]),
        }
        return cells(axes, {n: getattr(self, n) for n in ("recall", "similarity", "weight")})

    def summary(self) -> pd.DataFrame:
        """Mean and standard deviation over repetitions: ``recall``, ``recall_sd``, ``weight``, ..."""
        names = ["recall", "similarity", "weight"]
        groups = self.to_dataframe().groupby(["source", "energy", "n_patterns"], sort=False)[names]
        return groups.mean().join(groups.std().add_suffix("_sd")).reset_index()

    def position(self, *, min_recall: float = 0.5) -> pd.DataFrame:
        """One row a source: signal, spread, and the capacities.

        Columns: ``signal``, ``spread``, ``predicted_capacity``, ``effective_patterns``, and
        ``capacity_<energy>``: the number of keys at which mean recall falls below ``min_recall``.
        It is infinite where recall never falls to the level, and 0 where it starts below.
        """
        require_float("min_recall", min_recall, minimum=0.0, maximum=1.0)
        rows = []
        for s, source in enumerate(SOURCES):
            row: dict[str, Any] = {
                "source": source,
                "signal": float(self.signal[s]),
                "spread": float(self.spread[s]),
                "predicted_capacity": math.exp(min(float(self.log_capacity[s]), 700.0)),
                "effective_patterns": float(self.effective_patterns[s]),
            }
            for e, energy in enumerate(self.energies):
                missed = 1 - self.recall[s, e].nanmean(-1)
                seen = ~missed.isnan()
                grid = tuple(k for k, ok in zip(self.n_patterns, seen, strict=True) if ok)
                missed = missed[seen]
                capacity = crossing(grid, missed, 1 - min_recall)
                if math.isnan(capacity):
                    capacity = 0.0 if float(missed[0]) >= 1 - min_recall else math.inf
                row[f"capacity_{energy}"] = capacity
            rows.append(row)
        return pd.DataFrame(rows)


def attention_head_memory(
    keys: Any,
    queries: Any = None,
    *,
    beta: float | None = None,
    values: Any = None,
    energies: str | Sequence[str] = ("exponential", "quadratic", "polynomial-3"),
    n_patterns: Sequence[int] | None = None,
    noise: float = 0.5,
    causal: bool = False,
    max_queries: int = 256,
    draws: int = 2,
    seed: int = 0,
) -> HeadMemory:
    """Retrieval of single keys from random subsets of a head's keys.

    Without ``queries`` the memory is shown stored keys with Gaussian noise added. With them, the
    head's own queries are used and the target is the visible key with the highest score. Keys are
    centred on their visible mean: softmax does not notice, and the linear memory is not charged for
    it.

    Recall, similarity and weight lie between 0 and 1 (similarity from -1); the random keys show what no
    learning gives.

    Args:
        keys: ``[n, d]`` stored patterns, or ``[batch, n, d]``: one memory a sequence.
        queries: ``[m, d]`` or ``[batch, m, d]``; None uses noisy keys.
        beta: factor of the scores inside the softmax; None takes ``1/√d``.
        values: ``[n, v]`` or ``[batch, n, v]``; None reads out the keys themselves.
        energies: names, see :func:`~lens_linear.constructions.memory.energies.parse_energy`.
        n_patterns: numbers of stored keys; None takes powers of two up to n, to n/2
            if causal.
        noise: standard deviation of the query noise beside that of the keys; without ``queries``.
        causal: query i sees the keys up to i only (needs m = n).
        max_queries: queries asked a sequence, chosen at random.
        draws: random subsets a query and K; with the batch they make the repetitions.
        seed: of the local generator.

    Returns:
        HeadMemory: ``.to_dataframe()``, ``.position()``.

    Raises:
        InvalidArgumentError: shapes that do not fit together.
        NotEnoughDataError: fewer than two keys.

    Source: Ramsauer et al. 2020 (heads as Hopfield memories); Lucibello & Mézard 2024 (capacity by the random
        energy model).

    Example:
        >>> keys = math.log(15) ** 0.5 * torch.eye(16)  # one key weighs as much as the other 15
        >>> found = attention_head_memory(keys, beta=1.0, noise=0.0)
        >>> round(found.signal[0].item(), 4), round(found.effective_patterns[0].item() ** 2, 4)
        (2.7081, 60.0)
    """
    k = _batched("keys", keys)
    v = k if values is None else _batched("values", values)
    q = None if queries is None else _batched("queries", queries)
    causal = require_bool("causal", causal)
    _check_shapes(k, q, v, causal)
    n, d = k.shape[1:]
    factor = d**-0.5 if beta is None else require_float("beta", beta, minimum=1e-9)
    noise = require_float("noise", noise, minimum=0.0)
    draws, seed = require_int("draws", draws, minimum=1), require_seed(seed)
    max_queries = require_int("max_queries", max_queries, minimum=1)
    kinds, grid = _kinds_and_grid(energies, n_patterns, n, causal)
    given = [
        _Memory(k[b], None if q is None else q[b], v[b], factor, noise, causal, (seed, b, "head"))
        for b in range(len(k))
    ]
    head = _measure(given, kinds, grid, max_queries, draws)
    random = [memory.randomised(own_values=values is None) for memory in given]
    control = _measure(random, kinds, grid, max_queries, draws)
    recall, similarity, weight = torch.stack([head[0], control[0]]).unbind(3)
    signal, spread, log_capacity, effective = torch.stack([head[1], control[1]]).unbind(1)
    return HeadMemory(
        recall=recall,
        similarity=similarity,
        weight=weight,
        signal=signal,
        spread=spread,
        log_capacity=log_capacity,
        effective_patterns=effective,
        energies=tuple(kind.name for kind in kinds),
        n_patterns=grid,
        n_keys=n,
        d=d,
        beta=factor,
        own_queries=q is not None,
        noise=noise if q is None else 0.0,
        causal=causal,
        seed=seed,
    )


class _Memory:
    """One sequence's keys, queries, visibility and targets."""

    def __init__(
        self,
        keys: Tensor,
        queries: Tensor | None,
        values: Tensor,
        beta: float,
        noise: float,
        causal: bool,
        labels: tuple[int, int, str],
    ) -> None:
        self.keys, self.values, self.beta = keys, values, beta
        # Seed, sequence and source: with what is drawn they make a generator of its own, so that no
        # number depends on which others were asked for.
        self.noise, self.causal, self.labels = noise, causal, labels
        self.given = queries
        n = len(keys)
        self.size = (keys - keys.mean(0)).square().mean().sqrt()  # per entry
        self.queries = keys if queries is None else queries
        self.visible = torch.ones(len(self.queries), n, dtype=torch.bool)
        if causal:
            self.visible = self.visible.tril()

    def randomised(self, *, own_values: bool) -> _Memory:
        """Gaussian keys, queries and values of the same size, in place of the given ones."""
        keys = self._draw("random keys", self.keys) * self.size
        queries = None
        if self.given is not None:
            queries = self._draw("random queries", self.given)
            queries = queries * self.given.square().mean().sqrt()
        values = keys if own_values else self._draw("random values", self.values)
        labels = (*self.labels[:2], "random keys")
        return _Memory(keys, queries, values, self.beta, self.noise, self.causal, labels)

    def choose(self, max_queries: int) -> None:
        """Pick the queries, their noise and their targets."""
        rows = torch.randperm(len(self.queries), generator=self._generator("queries"))[:max_queries]
        rows = rows[self.visible[rows].sum(1) >= 2]
        self.visible = self.visible[rows]
        queries = self.queries[rows]
        if self.given is None:
            queries = queries + self.noise * self.size * self._draw("noise", queries)
        scores = (queries @ self.keys.T).masked_fill(~self.visible, -torch.inf)
        self.target = rows if self.given is None else scores.argmax(1)
        mean = scores.masked_fill(~self.visible, 0).sum(1) / self.visible.sum(1)
        self.scores = self.beta * (scores - mean[:, None])

    def statistics(self) -> Tensor:
        """Signal, spread, log capacity and effective number of patterns, over all visible keys."""
        here = torch.arange(len(self.target))
        lead = self.scores[here, self.target]
        others = self.visible.clone()
        others[here, self.target] = False
        count = others.sum(1)
        values = self.scores.masked_fill(~others, 0)
        mean = values.sum(1) / count
        spread = ((values - mean[:, None]).masked_fill(~others, 0).square().sum(1) / count).sqrt()
        log_p = torch.log_softmax(self.scores, 1)
        entropy = -(log_p.exp() * log_p.masked_fill(~self.visible, 0)).sum(1)
        signal, variance = lead - mean, spread**2
        log_capacity = torch.where(
            signal >= variance,
            signal - variance / 2,
            signal**2 / (2 * variance.clamp_min(1e-300)),
        )
        return torch.stack(
            [signal.mean(), spread.mean(), log_capacity.median(), entropy.exp().median()]
        )

    def retrieve(self, kinds: list[Energy], count: int, draw: int) -> Tensor:
        """``[energies, 3]``: recall, similarity, weight with ``count`` keys stored a query."""
        enough = self.visible.sum(1) >= count
        if not bool(enough.any()):
            return torch.full((len(kinds), 3), torch.nan, dtype=torch.float64)
        scores, target = self.scores[enough], self.target[enough]
        here = torch.arange(len(target))
        order = torch.rand(
            scores.shape, dtype=torch.float32, generator=self._generator("subset", count, draw)
        )
        order = order.masked_fill(~self.visible[enough], -1.0)
        order[here, target] = 2.0  # the target is always stored
        stored = order.topk(count, dim=1).indices
        member = torch.zeros_like(scores, dtype=torch.bool).scatter(1, stored, True)
        scores = scores.masked_fill(~member, 0.0)
        seen = self.visible[enough].double()
        mean = seen @ self.values / seen.sum(1, keepdim=True)
        out = []
        for kind in kinds:
            logs = kind.log_weights(scores).masked_fill(~member, -torch.inf)
            share = torch.softmax(logs, dim=1)  # |F'(o)|, summing to 1
            signed = share
            if kind.degree is not None and kind.degree % 2 == 0:
                signed = share * torch.sign(scores)
            readout = signed @ self.values - signed.sum(1, keepdim=True) * mean
            similarity = torch.cosine_similarity(readout, self.values[target] - mean, dim=1)
            held = share[here, target]
            out.append(torch.stack([(held > 0.5).double().mean(), similarity.mean(), held.mean()]))
        return torch.stack(out)

    def _generator(self, *what: object) -> torch.Generator:
        return derive_generator(self.labels[0], "head memory", *self.labels[1:], *what)

    def _draw(self, what: str, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator(what), dtype=torch.float64)


def _measure(
    memories: list[_Memory], kinds: list[Energy], grid: tuple[int, ...], queries: int, draws: int
) -> tuple[Float[Tensor, "energies k 3 reps"], Float[Tensor, " 4"]]:
    """Retrieval for every memory and draw, and the memories' mean statistics."""
    cells, stats = [], []
    for memory in memories:
        memory.choose(queries)
        stats.append(memory.statistics())
        for draw in range(draws):
            cells.append(
                torch.stack([memory.retrieve(kinds, count, draw) for count in grid], dim=1)
            )
    return torch.stack(cells, dim=-1), torch.stack(stats).mean(0)


def _kinds_and_grid(
    energies: str | Sequence[str], n_patterns: Sequence[int] | None, n: int, causal: bool
) -> tuple[list[Energy], tuple[int, ...]]:
    """The energies by name, each once, and the numbers of stored keys in rising order."""
    kinds = parse_energies(energies)
    if n_patterns is None:
        # Under a causal mask few queries see nearly all keys: stop where half of them do.
        most = max(2, n // 2 if causal else n)
        n_patterns = [2**i for i in range(1, int(math.log2(most)) + 1)]
    grid = tuple(sorted(set(require_ints("n_patterns", n_patterns, minimum=2, maximum=n))))
    if not kinds or not grid:
        raise InvalidArgumentError("energies and n_patterns must each name at least one value")
    return kinds, grid


def _batched(name: str, value: Any) -> Float[Tensor, "batch n d"]:
    ndim = getattr(value, "ndim", 2)
    tensor = as_float64(name, value, ndim=3 if ndim == 3 else 2).detach().cpu()
    return tensor if ndim == 3 else tensor[None]


def _check_shapes(k: Tensor, q: Tensor | None, v: Tensor, causal: bool) -> None:
    require_rows("keys", k.shape[1], minimum=2, why="one to find among others")
    if v.shape[:2] != k.shape[:2]:
        raise InvalidArgumentError(
            f"values must have one row for each key, got {tuple(v.shape)} for keys {tuple(k.shape)}"
        )
    if q is not None and (len(q) != len(k) or q.shape[2] != k.shape[2] or not q.shape[1]):
        raise InvalidArgumentError(
            f"queries must have the keys' batch and last axis, got {tuple(q.shape)} for keys "
            f"{tuple(k.shape)}; for grouped-query heads pass the group's keys"
        )
    if causal and (q is None or q.shape[1] != k.shape[1]):
        raise InvalidArgumentError(
            "causal=True needs as many queries as keys, query i at the position of key i; "
            "pass queries, or causal=False"
        )
