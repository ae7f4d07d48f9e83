"""Take heads away and see what is lost.

A head is ablated by replacing its ``z`` (the values it gathered, before W_O): by zeros, or by its mean over
reference tokens, which keeps what the head writes always and takes away what it says about this context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.checks import require_choice, require_int, require_list
from lens_linear.circuits.induction.in_context import copy_losses, row_losses
from lens_linear.circuits.induction.repeated_rows import ProbeRows, probe_rows
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.capture import batched, require_model_tokens, run
from lens_linear.models.describe.shape import ModelShape, model_shape
from lens_linear.models.hooks import Edit, Spot, edited
from lens_linear.tables import Result

if TYPE_CHECKING:
    import pandas as pd

Head = tuple[int, int]
How = Literal["mean", "zero"]


@dataclass(frozen=True, eq=False)
class AblationScores(Result):
    """In-context gain with each head taken away, one at a time.

    Attributes:
        gain: of the whole model, nats a token.
        gain_without: of the model without the head.
        how: mean or zero ablation.
        n_rows: random rows behind the means.
    """

    _figure = "ablation_map"

    gain: float
    gain_without: Float[Tensor, "layer head"]
    how: How
    n_rows: int

    @property
    def lost(self) -> Float[Tensor, "layer head"]:
        """``gain - gain_without``, nats a token: what the head is worth to in-context copying."""
        return self.gain - self.gain_without

    def __repr__(self) -> str:
        layer, head = divmod(int(self.lost.argmax()), self.lost.shape[1])
        return (
            f"AblationScores: in-context gain {self.gain:.3f} nats; without L{layer}H{head} "
            f"{float(self.gain_without[layer, head]):.3f} ({self.how} ablation, {self.n_rows} rows)"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns head, layer, index, gain, gain_without, lost."""
        import pandas as pd

        layers, heads = self.gain_without.shape
        return pd.DataFrame(
            {
                "head": [f"L{i}H{j}" for i in range(layers) for j in range(heads)],
                "layer": [i for i in range(layers) for _ in range(heads)],
                "index": [j for _ in range(layers) for j in range(heads)],
                "gain": self.gain,
                "gain_without": self.gain_without.flatten().numpy(),
                "lost": self.lost.flatten().numpy(),
            }
        )


@contextmanager
def ablate_heads(
    model: TransformerBridge,
    heads: Sequence[Head],
    *,
    how: How = "mean",
    tokens: Int[Tensor, "batch position"] | None = None,
) -> Iterator[TransformerBridge]:
    """Run the model without some heads for the length of a ``with`` block.

    Args:
        model: a bridge; whole again after the block, also after an error.
        heads: (layer, head) pairs.
        how: "mean" puts the head's mean output over ``tokens`` in its place, "zero" nothing.
        tokens: reference for the means; random tokens by default.

    Yields:
        The model itself, whose listed heads are replaced while the block lasts.

    Raises:
        InvalidArgumentError: no such head, or an unknown ``how``.
        UnsupportedModelError: the model has no attention that can be read.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> model, tokens = toy_model(), torch.arange(8)[None]
        >>> whole = model(tokens)
        >>> with ablate_heads(model, [(0, 1), (1, 2)], how="zero"):
        ...     without = model(tokens)
        >>> bool((whole - without).abs().max() > 0), bool((model(tokens) == whole).all())
        (True, True)
    """
    shape = model_shape(model)
    heads = require_heads(shape, heads)
    require_choice("how", how, ("mean", "zero"))
    means = None
    if how == "mean":
        if tokens is None:
            tokens = probe_rows(
                shape, periods=None, rows_per_period=4, bos=shape.bos, seed=0
            ).tokens
        means = mean_z(model, require_model_tokens(model, tokens))
    with edited(model, ablation_edits(heads, means, shape)):
        yield model


def require_heads(shape: ModelShape, heads: Sequence[Head]) -> list[Head]:
    """Accept (layer, head) pairs of the model, each once."""
    found = []
    for pair in require_list("heads", heads, of="(layer, head) pairs"):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidArgumentError(f"heads must be (layer, head) pairs, got {pair!r}")
        layer = require_int("layer", pair[0], minimum=0, maximum=shape.n_layers - 1)
        found.append((layer, require_int("head", pair[1], minimum=0, maximum=shape.n_heads - 1)))
    if len(set(found)) != len(found):
        raise InvalidArgumentError(f"heads names a head twice: {found}; name each once")
    return found


def mean_z(
    model: TransformerBridge, tokens: Int[Tensor, "batch position"], *, batch_size: int = 16
) -> Float[Tensor, "layer head d_head"]:
    """Mean of every head's ``z`` over all positions of some tokens."""
    shape = model_shape(model)
    spots: list[Spot] = [(layer, "z") for layer in range(shape.n_layers)]
    total = torch.zeros(shape.n_layers, shape.n_heads, shape.d_head, dtype=torch.float64)
    for _, part in batched(tokens, batch_size):
        out = run(model, part, record=spots, logits=False)
        for layer, spot in enumerate(spots):
            z = out[spot].to("cpu", torch.float64)
            total[layer] += z.reshape(-1, shape.n_heads, shape.d_head).sum(0)
    return total / tokens.numel()


def ablation_edits(
    heads: Sequence[Head], means: Float[Tensor, "layer head d_head"] | None, shape: ModelShape
) -> list[Edit]:
    """Return the edits that replace the ``z`` of heads by their means (zeros without means)."""
    layers = sorted({layer for layer, _ in heads})

    def replace(layer: int) -> Callable[[Tensor], Tensor]:
        own = [head for at, head in heads if at == layer]

        def edit(z: Tensor) -> Tensor:
            split = z.clone().reshape(*z.shape[:2], shape.n_heads, -1)
            split[:, :, own] = 0.0 if means is None else means[layer, own].to(z)
            return split.reshape(z.shape)

        return edit

    return [((layer, "z"), replace(layer)) for layer in layers]


def ablation_scores(
    model: TransformerBridge,
    *,
    how: How = "mean",
    periods: Sequence[int] | None = None,
    rows_per_period: int = 4,
    bos: int | Literal["auto"] | None = "auto",
    batch_size: int = 32,
    seed: int = 0,
) -> AblationScores:
    """Measure what every single head is worth to copying from the first copy of random repeats.

    One forward pass over the rows for each head. See :func:`ablate_heads` for ``how`` and
    :func:`~lens_linear.circuits.induction.scores.induction_scores` for the rows.

    ``lost = gain - gain_without``, nats a token; the gain is the loss of the first copy minus that of the
    second. Around 0 for a head that copying does not need, negative for one that hinders it.

    Args:
        model: a bridge, with or without MLPs.
        how: "mean" puts the head's mean output in its place, "zero" nothing.
        periods: of the random repeats, as in :func:`~lens_linear.circuits.induction.scores.induction_scores`.
        rows_per_period: random rows for each period.
        bos: token put in front of every row; "auto" takes the tokenizer's.
        batch_size: rows a forward pass.
        seed: of the rows.

    Returns:
        AblationScores: ``.lost`` [layer, head]; acts as a table with one row a head.

    Raises:
        InvalidArgumentError: an unknown ``how``, or periods that do not fit.
        UnsupportedModelError: no attention, or a context or vocabulary too small.

    Source: Olsson et al. 2022, *In-context Learning and Induction Heads* (ablations of single heads).

    Example:
        >>> from lens_linear.constructions.induction_model import build_induction
        >>> built = build_induction(vocab=12, n_ctx=24)  # L0H0 and L1H1 do it, the others write nothing
        >>> found = ablation_scores(built.model, how="zero", periods=(4, 6))
        >>> (found.lost > 1).tolist()
        [[True, False], [False, True]]
    """
    shape = model_shape(model)
    require_choice("how", how, ("mean", "zero"))
    first = shape.bos if bos == "auto" else bos
    rows = probe_rows(
        shape, periods=periods, rows_per_period=rows_per_period, bos=first, seed=seed
    ).repeating()
    means = mean_z(model, rows.tokens, batch_size=batch_size) if how == "mean" else None

    def gain(edits: Sequence[Edit]) -> float:
        return in_context_gain(model, rows, edits=edits, batch_size=batch_size)

    found = torch.zeros(shape.n_layers, shape.n_heads, dtype=torch.float64)
    for layer in range(shape.n_layers):
        for head in range(shape.n_heads):
            found[layer, head] = gain(ablation_edits([(layer, head)], means, shape))
    return AblationScores(gain([]), found, how, len(rows.tokens))


def in_context_gain(
    model: TransformerBridge,
    rows: ProbeRows,
    *,
    edits: Sequence[Edit] = (),
    batch_size: int = 32,
) -> float:
    """Mean loss of the first copies minus that of the second copies, nats a token."""
    losses = row_losses(model, rows.tokens, edits=edits, batch_size=batch_size)
    first, second = copy_losses(losses, rows)
    return float((first - second).mean())
