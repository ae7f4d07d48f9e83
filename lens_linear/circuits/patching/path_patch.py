"""Path patching and cutting: change what one head reads of another, and nothing else.

What a head writes reaches another head through the residual stream: directly, and through everything
between. The direct path alone is changed by computing the reader's query, key or value anew from the stream
with the writer's output replaced (patched from another run, or taken out), while every other reader sees
the stream as it was. The norm before the reader is computed anew on the changed stream
(``norm="recomputed"``), or held at its scale (``norm="frozen"``, which makes the change linear).

``receivers="logits"`` is the direct path to the output: the last stream is changed before the final norm.

With grouped-query attention the heads of a key-value group share keys and values, and change together.

>>> from lens_linear.models.open.toy import toy_model
>>> model, tokens = toy_model(), torch.arange(8)[None]
>>> with cut_path(model, "L0H0", "L1H3", via="k"):
...     without = model(tokens)
>>> bool((without - model(tokens)).abs().max() > 0)
True

Sources: Goldowsky-Dill et al. 2023, *Localizing Model Behavior with Path Patching*; Wang et al. 2022,
*Interpretability in the Wild*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.checks import (
    counted,
    head_name,
    require_choice,
    require_heads,
    require_list,
)
from lens_linear.circuits.attention.components import HeadOutputs, stream_spot
from lens_linear.circuits.heads.head_circuit import require_attention
from lens_linear.circuits.induction.ablation import Head, mean_z
from lens_linear.circuits.patching.patch import Effects, Into, require_pair
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.capture import Run, run
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.describe.weights import norm_scale, read_weights
from lens_linear.models.hooks import edited
from lens_linear.models.spots import Edit, Spot, What
from lens_linear.stats.task_scores import (
    RowScores,
    require_task,
    score_answers,
)
from lens_linear.text.task import Metric

Via = Literal["q", "k", "v"]
Norm = Literal["recomputed", "frozen"]
VIAS: tuple[Via, ...] = ("q", "k", "v")


class PathReader:
    """Says by how much a reader's query, key or value changes when the stream before it does."""

    def __init__(self, model: CheckedModel, norm: Norm = "recomputed") -> None:
        self.weights = read_weights(model)
        self.attention = require_attention(self.weights)
        self.outputs = HeadOutputs(model, self.weights)
        self.model, self.norm = model, norm

    def change(
        self, stream: Tensor, delta: Tensor, layer: int, head: int, via: Via
    ) -> Float[Tensor, "batch position d_head"]:
        """``(read(stream + delta) - read(stream)) W`` of one head."""
        matrix = {"q": self.attention.W_Q, "k": self.attention.W_K, "v": self.attention.W_V}[via]
        kind, eps = self.weights.norm, self.weights.eps
        before = norm_scale(stream, kind, eps)
        if self.norm == "frozen":
            return delta / before @ matrix[layer, head]
        after = norm_scale(stream + delta, kind, eps)
        return ((stream + delta) / after - stream / before) @ matrix[layer, head]

    def slot(self, head: int, via: Via) -> int:
        """Where a head's query, key or value stands: keys and values may have fewer heads."""
        return head if via == "q" else head // (self.model.n_heads // self.model.n_key_value_heads)

    def slots(self, via: Via) -> int:
        """How many stand there."""
        return self.model.n_heads if via == "q" else self.model.n_key_value_heads

    def added(self, x: Tensor, base: Tensor, changes: dict[int, Tensor], via: Via) -> Tensor:
        """The tensor at q, k or v whose given slots are ``base`` plus a change [batch, position, d_head]."""
        split = x.clone().reshape(*x.shape[:2], self.slots(via), -1)
        own = base.to(split).reshape(split.shape)
        for slot, change in changes.items():
            split[:, :, slot] = own[:, :, slot] + change.to(split)
        return split.reshape(x.shape)


@dataclass(frozen=True, eq=False)
class PathPatchEffects(Effects):
    """What the direct paths from single senders to the receivers do to the task's metric.

    Attributes:
        values: the metric of each patched run, mean over answers.
        changes_se: standard error over rows of ``value - base`` (paired); NaN for one row.
        base: the metric of the run patched into.
        source: the metric of the other run.
        into: which run was patched.
        metric: its name.
        senders: the writing heads, each patched alone.
        receivers: the reading heads, changed together; empty for the logits.
        via: the sides of the receivers that were changed.
        norm: how the norm before the readers was taken.
        n_rows: rows behind the means.
    """

    senders: tuple[Head, ...]
    receivers: tuple[Head, ...]
    via: tuple[Via, ...]
    norm: Norm
    n_rows: int

    _columns = ("sender", "value", "effect", "effect_se")

    @property
    def receiver_name(self) -> str:
        """The receivers and the side, in a word."""
        if not self.receivers:
            return "logits"
        return f"{', '.join(head_name(*at) for at in self.receivers)} ({'/'.join(self.via)})"

    def __repr__(self) -> str:
        moved = self._moved([head_name(*at) for at in self.senders], self.n_rows)
        senders = counted(len(self.senders), "sender")
        return f"PathPatchEffects of {senders} on {self.receiver_name}, {moved}"

    def to_dataframe(self) -> pd.DataFrame:
        """One row a sender: sender, layer, index, receiver, value, change, effect, effect_se, in order."""
        return pd.DataFrame(
            {
                "sender": [head_name(*at) for at in self.senders],
                "layer": [layer for layer, _ in self.senders],
                "index": [head for _, head in self.senders],
                "receiver": self.receiver_name,
                **self._columns_of_effects(),
            }
        )


def path_patch(
    model: ModelLike,
    clean: Any,
    corrupted: Any,
    metric: Metric | None = None,
    *,
    senders: Any = None,
    receivers: Any = "logits",
    via: Via | Sequence[Via] = VIAS,
    into: Into = "corrupted",
    norm: Norm = "recomputed",
    batch_size: int | None = None,
) -> PathPatchEffects:
    """Patch the direct path from each sender to the receivers, everything else held as it was.

    The receivers' queries, keys or values are computed from the base run's stream with one sender's output
    replaced by that of the other run, put into the base run, and the metric is read. ``effect`` is 0 where
    nothing changes and 1 where the metric moves all the way to the other run's.

    Args:
        model: a bridge, with or without MLPs.
        clean: a Task, or tokens, whose next tokens count.
        corrupted: tokens of the same shape.
        metric: another one than the task's.
        senders: heads as ``"L0H0"`` or (layer, head), each patched alone; all below the highest receiver by
            default.
        receivers: heads that read, changed together; or "logits".
        via: "q", "k" or "v", or several: the sides of the receivers; no meaning for "logits".
        into: which run is patched with outputs of the other. "clean" (what the answer needs) is the way of
            the papers below.
        norm: "recomputed" on the changed stream, or "frozen" at its scale.
        batch_size: rows a forward pass; None takes what memory allows.

    Returns:
        PathPatchEffects: ``.effects`` [sender]; acts as a table.

    Raises:
        InvalidArgumentError: prompts of different shapes, no such head, or no sender below a receiver.
        UnsupportedModelError: heads that cannot be read from the weights.

    Source: Goldowsky-Dill et al. 2023, *Localizing Model Behavior with Path Patching*; Wang et al. 2022.

    Example:
        >>> from lens_linear.constructions.induction_model import build_induction
        >>> built = build_induction(vocab=12, n_ctx=24)
        >>> from lens_linear.text.task import Task
        >>> clean = Task([[3, 7, 5, 3]], labels=[7])
        >>> found = path_patch(built.model, clean, torch.tensor([[4, 7, 5, 3]]), receivers="L1H1", via="k")
        >>> [f"{effect:.2f}" for effect in found["effect"].abs()]  # of L0H0 and L0H1
        ['1.00', '0.00']
    """
    model = checked(model)
    require_choice("norm", norm, ("recomputed", "frozen"))
    reader = PathReader(model, norm)
    sides = _require_via(via)
    writers, readers = _require_ends(reader, senders, receivers)
    pair = require_pair(model, clean, corrupted, metric, into, batch_size)
    parts: list[list[RowScores]] = [[] for _ in writers]
    spots = _spots(reader, writers, readers, sides)
    for here, there in pair.batches():
        own, theirs = (run(model, t, record=spots, logits=False) for t in (here, there))
        for i, writer in enumerate(writers):
            edits = _path_edits(reader, own, theirs, writer, readers, sides)
            logits = run(model, here, edits=edits).logits
            parts[i].append(score_answers(here, logits))
    return PathPatchEffects(
        *pair.measured([RowScores.joined(each) for each in parts]),
        tuple(writers),
        tuple(readers),
        sides if readers else (),
        norm,
        len(pair.base),
    )


@contextmanager
def cut_path(
    model: ModelLike,
    sender: Any,
    receiver: Any,
    *,
    via: Via | Sequence[Via] = VIAS,
    tokens: Any = None,
    norm: Norm = "recomputed",
) -> Iterator[TransformerBridge]:
    """Take what one head writes out of what another reads, for the length of a ``with`` block.

    Exact: the receiver reads the stream without the sender's output, and every other part of the model
    reads the whole stream. Any tokens can be run inside the block, also with the caller's own hooks.

    Args:
        model: a bridge; whole again after the block, also after an error.
        sender: the writing head, as ``"L0H0"`` or (layer, head).
        receiver: a head of a later layer, or "logits".
        via: "q", "k" or "v", or several.
        tokens: reference text (ids, or a Task): its mean at each position stays in, so that only what the
            sender says about a context goes. None takes everything out.
        norm: "recomputed" on the smaller stream, or "frozen" at the whole stream's scale.

    Yields:
        The model itself.

    Raises:
        InvalidArgumentError: no such head, or a receiver that does not stand above the sender.

    Example:
        >>> from lens_linear.constructions.induction_model import build_induction
        >>> model, tokens = build_induction(vocab=12, n_ctx=24).model, torch.tensor([[3, 7, 5, 3]])
        >>> whole = model(tokens)[0, -1].softmax(-1)[7].item()
        >>> with cut_path(model, "L0H0", "L1H1", via="k"):
        ...     without = model(tokens)[0, -1].softmax(-1)[7].item()
        >>> whole > 0.45, without < 0.05
        (True, True)
    """
    model = checked(model)
    require_choice("norm", norm, ("recomputed", "frozen"))
    reader = PathReader(model, norm)
    sides = _require_via(via)
    writers, readers = _require_ends(reader, [sender], receiver)
    if len(readers) > 1:
        raise InvalidArgumentError(
            "receiver must be one head, or 'logits'; open one block a receiver"
        )
    (layer, head) = writers[0]
    mean = None
    if tokens is not None:
        z = mean_z(model, require_task(model, tokens))[layer]
        mean = reader.outputs.of(z[None], layer)[head, 0]  # [position, d_model]
    held: dict[str, Tensor] = {}

    def written(z: Tensor) -> None:
        out = reader.outputs.of(z.detach(), layer)[head]
        held["delta"] = -out if mean is None else mean[: out.shape[1]] - out

    edits: list[Edit] = [((layer, "z"), written)]
    if not readers:
        edits.append(
            (stream_spot(reader.model, reader.model.n_layers), lambda x: _plus(x, held["delta"]))
        )
    else:
        (at, own) = readers[0]

        def keep(stream: Tensor) -> None:
            held["stream"] = stream.detach().to("cpu", torch.float64)

        def change(side: Via) -> Callable[[Tensor], Tensor]:
            def edit(x: Tensor) -> Tensor:
                moved = reader.change(held["stream"], held["delta"], at, own, side)
                return reader.added(x, x, {reader.slot(own, side): moved}, side)

            return edit

        edits.append(((at, "resid_pre"), keep))
        edits.extend(((at, side), change(side)) for side in sides)
    with edited(model, edits):
        yield model.bridge


def _plus(x: Tensor, delta: Tensor) -> Tensor:
    return (x.to("cpu", torch.float64) + delta).to(x)


def _require_via(via: Any) -> tuple[Via, ...]:
    asked = [via] if isinstance(via, str) else require_list("via", via, of="'q', 'k' or 'v'")
    if not asked:
        raise InvalidArgumentError(
            "via must name 'q', 'k' or 'v', got nothing; leave it out for all"
        )
    sides: list[Via] = [require_choice("via", side, VIAS) for side in asked]
    return tuple(dict.fromkeys(sides))


def _require_ends(
    reader: PathReader, senders: Any, receivers: Any
) -> tuple[list[Head], list[Head]]:
    """Writers below readers; no readers stand for the logits."""
    sizes = {"n_layers": reader.model.n_layers, "n_heads": reader.model.n_heads}
    readers: list[Head] = []
    if not (isinstance(receivers, str) and receivers == "logits"):
        readers = require_heads("receivers", receivers, **sizes)
        if not readers:
            raise InvalidArgumentError(
                "receivers must name a head such as 'L1H3', or be 'logits', got none"
            )
    top = max((layer for layer, _ in readers), default=reader.model.n_layers)
    if senders is None:
        writers = [(i, j) for i in range(top) for j in range(reader.model.n_heads)]
    else:
        writers = require_heads("senders", senders, **sizes)
    late = [at for at in writers if at[0] >= top]
    if late or not writers:
        named = ", ".join(head_name(*at) for at in late) or "none"
        raise InvalidArgumentError(
            f"senders must stand in a layer below a receiver (layer {top} at the highest), got "
            f"{named}; choose "
            "other senders or receivers"
        )
    return writers, readers


def _spots(
    reader: PathReader, writers: Sequence[Head], readers: Sequence[Head], sides: Sequence[Via]
) -> list[Spot]:
    spots: list[Spot] = [(layer, "z") for layer in sorted({at for at, _ in writers})]
    if readers:
        wanted: tuple[What, ...] = ("resid_pre", *sides)
        return spots + [
            (layer, what) for layer in sorted({at for at, _ in readers}) for what in wanted
        ]
    return [*spots, stream_spot(reader.model, reader.model.n_layers)]


def _path_edits(
    reader: PathReader,
    own: Run,
    theirs: Run,
    writer: Head,
    readers: Sequence[Head],
    sides: Sequence[Via],
) -> list[Edit]:
    """Edits that give the readers the other run's output of one writer, and nothing else."""
    layer, head = writer
    delta = reader.outputs.of(theirs[(layer, "z")], layer)[head]
    delta = delta - reader.outputs.of(own[(layer, "z")], layer)[head]
    if not readers:
        return [(stream_spot(reader.model, reader.model.n_layers), lambda x: _plus(x, delta))]
    edits: list[Edit] = []
    for at in sorted({at for at, _ in readers if at > layer}):
        stream = own[(at, "resid_pre")].to("cpu", torch.float64)
        for side in sides:
            moved = {
                reader.slot(i, side): reader.change(stream, delta, at, i, side)
                for place, i in readers
                if place == at
            }
            # Set, not added: what other receivers below it write reaches no receiver.
            edits.append(((at, side), _setter(reader, own[(at, side)], moved, side)))
    return edits


def _setter(
    reader: PathReader, base: Tensor, moved: dict[int, Tensor], side: Via
) -> Callable[[Tensor], Tensor]:
    return lambda x: reader.added(x, base, moved, side)
