"""The dial turned on a trained head: its own queries, keys and values, from linear attention to softmax.

One number, β, multiplies the head's scores: at 1 the head reads as it was trained, towards 0 it becomes
linear attention, without bound it reads its best key alone. Two geometries under the same dial:

    own            s_j = q · k_j × the model's factor           the slow memory of the weights
    least squares  s_j = (q - k̄) C⁻¹ (k_j - k̄)ᵀ                C: covariance of the keys that the query sees

The second is :func:`~lens_linear.constructions.memory.dial.attention_dial` on the head's data: as β → 0 its
readout, times 1/β, *is* the least squares of the context (values on keys, with intercept, at the query). The
first tends to linear attention under the head's own geometry, which is that least squares only if the weights
hold the inverse covariance of the context. ``ols_error`` says how far they are from it.

β has a unit of its own in each geometry. ``spread``, the standard deviation of the scores in nats, is common.

>>> from lens_linear.models.open.toy import toy_model
>>> tokens = torch.randint(64, (2, 40), generator=torch.Generator().manual_seed(0))
>>> dial = head_dial(toy_model(n_layers=1), tokens, heads=["L0H2"], betas=(1e-3, 1.0))
>>> [round(error, 3) for error in dial.summary().query("geometry == 'least squares'").ols_error]
[0.003, 0.866]

Source: Tan & Zhao 2026, arXiv 2604.13656 (slow and fast memory, linear to exponential); Nadaraya 1964 and
Watson 1964; the dial on a head and its measures are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_linear._tl import derive_generator
from lens_linear.checks import (
    counted,
    head_name,
    require_bool,
    require_floats,
    require_int,
    require_seed,
)
from lens_linear.constructions.least_squares.spectral import (
    centred,
    minus,
    rounding,
    spectral_root,
)
from lens_linear.constructions.memory.dial import ENOUGH, HELD, crossings, medians
from lens_linear.constructions.memory.trained_head import HeadReads, head_reads
from lens_linear.constructions.memory.trained_heads import (
    heads_by_layer,
    middle,
    nearest_factor,
    product_rounding,
    row_losses,
)
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError
from lens_linear.models.batch_memory import sequences_a_pass
from lens_linear.models.capture import require_model_tokens
from lens_linear.models.checked import ModelLike, checked
from lens_linear.tables import Result, cells
from lens_linear.token_rows import TokenRows

GEOMETRIES = ("own", "least squares")
MEASURES = (
    "spread", "gain", "ols_error", "raw_error", "linear_error", "kernel_error", "effective_keys",
    "best_share", "capacity",
)  # fmt: skip
_BETAS: tuple[float, ...] = tuple(10.0 ** (i / 4) for i in range(-12, 9))


@dataclass(frozen=True, eq=False)
class HeadDial(Result):
    """Readouts of trained heads at every setting of the dial, in both geometries.

    ``values[measure, head, geometry, beta, row]``, measures in the order of ``MEASURES``; each is taken over
    the queries of one row of tokens. Errors are relative, 0 equal and 1 as far as the mean of the visible
    values; NaN where these do not vary (equal values or equal scores, but for rounding).

    * ``spread``: standard deviation of the scores over the visible keys, times β, in nats (median);
    * ``gain``: the one factor that brings the centred readout nearest to least squares of the context;
    * ``ols_error``: distance to that least squares after the factor, ``raw_error`` before it;
    * ``linear_error``: after a factor of its own, to linear attention over the same scores (β → 0);
    * ``kernel_error``: of the raw readout to Nadaraya-Watson regression of width 1/√β around the query;
    * ``effective_keys``: exp(entropy of the weights), ``best_share``: the largest weight (medians);
    * ``capacity``: keys, the best among random others, of which the best still holds half of the weight
      (median; at most the keys there are).
    """

    _figure = "head_dial"
    _columns = ("head", "geometry", "beta", "row", "ols_error", "kernel_error", "capacity")

    values: Float[Tensor, "measure head geometry beta row"]
    losses: Float[Tensor, "head beta row"]  # rise in nats a token, own geometry; NaN where not run
    heads: tuple[str, ...]
    betas: tuple[float, ...]
    model: str
    n_positions: int
    queries: int
    d_head: int
    skip: int  # leading positions that no query sees
    seed: int

    def __repr__(self) -> str:
        found = self.regimes().query("geometry == 'own'")["trained"].value_counts()
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.items())
        return (
            f"HeadDial of {self.model}: {counted(len(self.heads), 'head')} × "
            f"{counted(len(self.betas), 'setting')} on "
            f"{counted(self.values.shape[-1], 'row')} of {counted(self.n_positions, 'token')}, "
            f"{counted(self.queries, 'query')} a row; as "
            f"trained: {kinds}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a head, geometry, setting and row: ``beta``, the measures, ``loss`` (its rise, nats)."""
        axes = {
            "head": self.heads,
            "geometry": GEOMETRIES,
            "beta": self.betas,
            "row": range(self.values.shape[-1]),
        }
        missing = torch.full_like(self.losses, torch.nan)
        losses = torch.stack([self.losses, missing], dim=1)
        return cells(axes, {**dict(zip(MEASURES, self.values, strict=True)), "loss": losses})

    def summary(self) -> pd.DataFrame:
        """One row a head, geometry and setting.

        The median of each measure over the rows of tokens, ``_low`` and ``_high`` (95 % of them; NaN
        for one row); ``loss`` is a mean, with its standard error ``loss_se``.
        """
        groups = self.to_dataframe().groupby(["head", "geometry", "beta"], sort=False)
        loss = groups["loss"]
        rest = {"loss": loss.mean(), "loss_se": loss.sem(), "n_rows": groups.size()}
        return medians(groups, MEASURES).assign(**rest).reset_index()

    def regimes(self) -> pd.DataFrame:
        """One row a head and geometry: where it stops being regression and starts being retrieval.

        Columns: ``regression_ends`` (β where ``linear_error`` passes 0.1), ``retrieval_starts`` (β where
        ``best_share`` passes one half), each with ``_low`` and ``_high`` (95 % of the rows, NaN for one;
        infinite where the dial was not turned that far, 0 where it lies below the β asked, NaN where these
        are more than a factor of 2 apart there); ``ols_error`` (the least median along the dial) and
        ``ols_beta`` (where); ``spread`` of the scores at β = 1; and for the own geometry ``trained``:
        "regression", "between" or "retrieval" by the medians at β = 1, "not known" where the β asked do not
        tell, or the readout does not vary.
        """
        error, share, least, spread = (
            self.values[MEASURES.index(name)]
            for name in ("linear_error", "best_share", "ols_error", "spread")
        )
        rows = []
        for h, head in enumerate(self.heads):
            for g, geometry in enumerate(GEOMETRIES):
                row: dict[str, str | float] = {"head": head, "geometry": geometry}
                for name, curve, level in (
                    ("regression_ends", error[h, g], ENOUGH),
                    ("retrieval_starts", share[h, g], HELD),
                ):
                    found = crossings(self.betas, curve, level).sort().values
                    for end, q in (("", 0.5), ("_low", 0.025), ("_high", 0.975)):
                        known = len(found) > 1 or not end
                        at = float(found[round(q * (len(found) - 1))])
                        row[name + end] = at if known else math.nan
                along = least[h, g].nanquantile(0.5, dim=-1)
                best = int(along.nan_to_num(math.inf).argmin())
                known = bool(along[best].isfinite())
                row["ols_error"] = float(along[best])
                row["ols_beta"] = self.betas[best] if known else math.nan
                row["spread"] = float((spread[h, g, 0] / self.betas[0]).quantile(0.5))
                medians = [m[h, g].nanquantile(0.5, dim=-1).tolist() for m in (error, share)]
                row["trained"] = _place(self.betas, *medians) if geometry == "own" else ""
                rows.append(row)
        return pd.DataFrame(rows)


def _place(betas: Sequence[float], error: list[float], share: list[float]) -> str:
    """What the curves say at β = 1: at that setting, or at both of its neighbours alike."""
    kinds = [
        "not known"
        if math.isnan(missed)
        else "retrieval"
        if held > HELD
        else "regression"
        if missed <= ENOUGH
        else "between"
        for missed, held in zip(error, share, strict=True)
    ]
    at = [kind for beta, kind in zip(betas, kinds, strict=True) if math.isclose(beta, 1)]
    below = [kind for beta, kind in zip(betas, kinds, strict=True) if beta <= 1][-1:]
    above = [kind for beta, kind in zip(betas, kinds, strict=True) if beta >= 1][:1]
    if at:
        return at[0]
    return below[0] if below and below == above else "not known"


def head_dial(
    model: ModelLike,
    tokens: Int[Tensor, "batch position"] | TokenRows,
    *,
    heads: Sequence[tuple[int, int] | str] | None = None,
    betas: Sequence[float] = _BETAS,
    queries: int = 32,
    skip: int = 0,
    losses: bool = False,
    batch_size: int | None = None,
    seed: int = 0,
) -> HeadDial:
    """Turn the inverse temperature of trained heads, on their own queries, keys and values.

    Args:
        model: a causal bridge.
        tokens: ``[batch, position]`` ids; more than ``skip + 2 d_head`` positions, so that the least squares
            of a context (values on keys) has twice as many rows as unknowns.
        heads: ``"L1H3"`` or ``(layer, head)`` each; None takes all.
        betas: factors of the scores, each above 0; 1 is the head as trained. In the geometry of least
            squares the scores are those of one average row.
        queries: positions asked a row, spread evenly over those that see more than ``2 d_head`` keys.
        skip: leading positions that later queries do not see (1 leaves out the first, a sink in many models).
        losses: also the rise of the model's loss with the head run at each β, one forward pass each.
        batch_size: rows a forward pass; as many as memory allows by default.
        seed: of the random order in which keys are stored for ``capacity``.

    Returns:
        HeadDial: ``.summary()``, ``.regimes()``; relative errors, 0 is equal.

    Raises:
        UnsupportedModelError: a head whose scores are not q·k over all earlier keys.
        NotEnoughDataError: rows of tokens that are too short.
        InvalidArgumentError: a value out of range, or an unknown head.

    Source: Tan & Zhao 2026, arXiv 2604.13656; see the module's head.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> tokens = torch.randint(64, (2, 40), generator=torch.Generator().manual_seed(0))
        >>> head_dial(toy_model(n_layers=1), tokens, heads=["L0H2"], betas=(0.01, 1.0))
        HeadDial of toy: 1 head × 2 settings on 2 rows of 40 tokens, 24 queries a row; as trained: 1 regression
    """  # noqa: E501
    model = checked(model)
    tokens = require_model_tokens(model, tokens)
    settings = tuple(sorted(set(require_floats("betas", betas, minimum=1e-6, maximum=1e100))))
    if not settings:
        raise InvalidArgumentError("betas must name at least one setting; pass betas=(1.0,)")
    queries, skip = require_int("queries", queries, minimum=2), require_int("skip", skip, minimum=0)
    losses, seed = require_bool("losses", losses), require_seed(seed)
    batch_size = sequences_a_pass(model, tokens.shape[1], batch_size)
    chosen = heads_by_layer(model, heads)
    width, length = model.d_head, tokens.shape[1]
    asked = _asked(length, width, skip, queries)
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    visible[skip:, :skip] = False
    plain = row_losses(model, tokens, batch_size) if losses else None
    values, rises, names = [], [], []
    reads = head_reads(model, tokens, list(chosen), batch_size)
    for layer, head in ((layer, head) for layer, several in chosen.items() for head in several):
        q, k, v = reads[layer].of(head)
        scale, eps = reads[layer].scale, _rounding(reads[layer])
        rows = [
            _Row(one, scale, eps, asked, visible, skip, (seed, layer, head, b))
            for b, one in enumerate(zip(q, k, v, strict=True))
        ]
        values.append([[[r.measure(g, b) for r in rows] for b in settings] for g in GEOMETRIES])
        names.append(head_name(layer, head))
        if plain is None:
            rises.append(torch.full((len(settings), len(tokens)), torch.nan, dtype=torch.float64))
            continue
        scores = (scale * q @ k.transpose(1, 2)).masked_fill(~visible, -torch.inf)
        reads_out = ((beta * scores).softmax(-1) @ v for beta in settings)
        changed = [row_losses(model, tokens, batch_size, layer, head, z) for z in reads_out]
        rises.append(torch.stack(changed) - plain)
    return HeadDial(
        values=torch.tensor(values, dtype=torch.float64).permute(4, 0, 1, 2, 3).contiguous(),
        losses=torch.stack(rises),
        heads=tuple(names),
        betas=settings,
        model=model.name,
        n_positions=length,
        queries=len(asked),
        d_head=width,
        skip=skip,
        seed=seed,
    )


def _asked(length: int, width: int, skip: int, queries: int) -> Int[Tensor, " q"]:
    """Positions of the queries, evenly spread over those that see more than ``2 width`` keys."""
    first = skip + 2 * width
    if length < first + 2:
        raise NotEnoughDataError(
            f"tokens must have at least {first + 2} positions, got {length}: the least squares of a context "
            f"needs twice as many keys as a head is wide ({width}); pass longer rows"
        )
    return torch.linspace(first, length - 1, min(queries, length - first)).round().long()


def _rounding(reads: HeadReads) -> float:
    """Rounding of the keys, relative: they come in the model's dtype and are widened to float64."""
    return float(torch.finfo(reads.k.dtype).eps / torch.finfo(torch.float64).eps)


class _Row:
    """One row of tokens as a head sees it: some queries, what each can see, and its least squares."""

    def __init__(
        self,
        reads: tuple[Tensor, Tensor, Tensor],
        scale: float,
        eps: float,
        asked: Int[Tensor, " q"],
        visible: Bool[Tensor, "n n"],
        skip: int,
        labels: tuple[int, ...],
    ) -> None:
        q, k, values = reads
        # In units of the largest: squares of 1e-170 are 0, and every measure is relative.
        self.values = values / values.abs().amax().clamp_min(torch.finfo(values.dtype).tiny)
        q, self.visible = q[asked], visible[asked]
        self.even = self.visible.double() / self.visible.sum(1, keepdim=True)
        own = scale * q @ k.T
        # Scores, and the squared lengths of the keys in their unit: -|q - k|² / 2 is score - length / 2
        # up to what all keys share.
        self.geometries = {"own": (own, (scale * k.square().sum(1)).expand_as(own))}
        scores, lengths = torch.zeros_like(own), torch.zeros_like(own)
        for i, last in enumerate(asked.tolist()):
            seen = slice(skip, last + 1)
            keys, centre = centred(k[seen])
            noise = rounding(k[seen]) * eps
            root = spectral_root(keys, noise=noise).root * len(keys) ** 0.5
            white = keys @ root
            scores[i, seen] = (minus(q[i : i + 1], centre) @ root @ white.T)[0]
            lengths[i, seen] = white.square().sum(1)
        self.geometries["least squares"] = (scores, lengths)
        self.ols = (self.even * scores) @ self.values
        self.least = product_rounding(self.even * scores, self.values)
        generator = derive_generator(labels[0], "head dial: order", *labels[1:])
        self.order = torch.rand(own.shape, generator=generator, dtype=torch.float64)

    def measure(self, geometry: str, beta: float) -> list[float]:
        """The measures at one setting, in their order."""
        scores, lengths = self.geometries[geometry]
        logits = self._seen(beta * scores)
        weights = logits.softmax(1)
        out = (weights - self.even) @ self.values
        gain = nearest_factor(self.ols, out)
        mean = (self.even * scores).sum(1, keepdim=True)
        deviation = scores - mean
        linear = (self.even * deviation) @ self.values
        kernel = (self._seen(beta * (scores - lengths / 2)).softmax(1) - self.even) @ self.values
        # What rounding leaves of a product that should be 0: of equal values, and of equal scores.
        blurred = product_rounding(self.even, self.values)
        weighted = product_rounding(self.even * scores, self.values)
        missed = _distance(gain * out, self.ols, self.least)
        entropy = -(weights * weights.clamp_min(1e-300).log()).sum(1)
        return [
            beta * middle((self.even * deviation.square()).sum(1).sqrt()),
            math.nan if math.isnan(missed) else gain,
            missed,
            _distance(out, self.ols, self.least),
            _distance(nearest_factor(linear, out) * out, linear, weighted),
            _distance(out, kernel, blurred),
            middle(entropy.exp()),
            middle(weights.amax(1)),
            self._capacity(logits),
        ]

    def _capacity(self, logits: Float[Tensor, "q n"]) -> float:
        """Keys stored at random beside the best one until it holds half of the weight no more."""
        best = logits.argmax(1, keepdim=True)
        order = self.order.masked_fill(~self.visible, 2.0).scatter(1, best, -1.0).argsort(1)
        stored = logits.gather(1, order)
        share = (stored[:, :1] - stored.logcumsumexp(1)).exp()
        there = torch.arange(logits.shape[1]) < self.visible.sum(1, keepdim=True)
        return middle(((share > HELD) & there).sum(1).double())

    def _seen(self, logits: Float[Tensor, "q n"]) -> Float[Tensor, "q n"]:
        return logits.masked_fill(~self.visible, -torch.inf)


def _distance(got: Tensor, want: Tensor, least: float) -> float:
    """``‖got - want‖ / ‖want‖``, both from the mean of the visible values; NaN where want is that mean."""
    size = float(want.norm())
    return float((got - want).norm()) / size if size > least else math.nan
