"""All blocks of a model as linear maps of the last token's state, ready for batched products.

One forward pass over a batch of prompts and one pass over their last tokens are paid for each batch
(:func:`block_jacobians`). After that

* a *gain profile* is one backward sweep over single tokens,
* a product of every block's mean Jacobian with one vector is one more such sweep,
* a reduced model of **any** order costs no more than the full one: its gains are the same backward sweep
  with the gradient projected at every layer boundary.

One batch is alive at a time, so memory does not grow with the number of prompts (bases carried through the
layers keep the streams of all while these take less than a batch alive). Prompts that fit into one
batch (``batch_size``) are run once; of more, each product runs the batches again, up to the layer that it
needs.

States are columns, as in the paper: ``x_{l+1} = f_l(x_l)``, ``A_l`` the Jacobian of ``f_l`` at one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.checks import counted
from lens_linear.dynamics.gains.prompts import Prompts, PromptsLike, as_prompts
from lens_linear.errors import NonFiniteError
from lens_linear.linalg.precision import own_modes, to_compute
from lens_linear.models.capture import evaluating, run
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.describe.weights_mark import WeightsMark
from lens_linear.models.frozen.block_maps import BlockMaps
from lens_linear.models.frozen.frozen_context import (
    FrozenContext,
    first_rotary,
    freeze_block,
    freeze_context,
)
from lens_linear.models.hooks import still
from lens_linear.models.spots import Spot
from lens_linear.models.stand_ins import BlockStandIns, lone_blocks
from lens_linear.progress import watched

_TOGETHER = 64  # directions a product: its memory grows with directions × prompts


@dataclass(frozen=True, eq=False)
class _Batch:
    """One batch with its recorded pass and its blocks' maps, up to some layer."""

    rows: Int[Tensor, " row"]
    context: FrozenContext
    maps: BlockMaps


@dataclass(eq=False)
class BlockJacobians:
    """Jacobian products of every block at the last token of every prompt.

    Attributes:
        prompts: the prompts.
        batch_size: prompts a forward pass, and alive at a time.
        mark: of the weights that ran last; where the model has others, it is run again.
    """

    _model: CheckedModel = field(repr=False)
    prompts: Prompts
    batch_size: int
    mark: WeightsMark = field(repr=False)
    _alive: tuple[int, _Batch] | None = field(default=None, repr=False)
    _looked: bool = field(default=False, init=False, repr=False)

    def __repr__(self) -> str:
        size = f"{counted(self.n_layers, 'block')} of width {self._model.d_model}"
        return f"BlockJacobians: {size} at {counted(len(self.prompts), 'prompt')}"

    @property
    def model(self) -> TransformerBridge:
        """What runs; not changed."""
        return self._model.bridge

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return self._model.n_layers

    @property
    def n_batches(self) -> int:
        """Batches that the prompts make; more than one are run again for every product."""
        return -(-len(self.prompts) // self.batch_size)

    def batches(self, upto: int | None = None) -> Iterator[_Batch]:
        """Yield the batches, at least the first ``upto`` blocks of them (all by default)."""
        if not self._looked:
            self._look()
        upto = self.n_layers if upto is None else upto
        for i, rows in enumerate(watched(self.prompts.batches(self.batch_size), self.n_batches)):
            if len(rows) == len(self.prompts):
                upto = self.n_layers  # the only batch stays alive: record it whole, once
            if self._alive is None or self._alive[0] != i or self._alive[1].context.n_layers < upto:
                self._alive = None  # let go of the last batch before the next one is built
                self._alive = i, self._recorded(rows, upto)
            yield self._alive[1]

    def _look(self) -> None:
        """Let go of what is alive where it is of weights that are no longer there."""
        if not self.mark.fits(self._model):
            self._alive, self.mark = None, WeightsMark(self._model, read=False)

    @contextmanager
    def one_look(self) -> Iterator[None]:
        """Look at the weights once for all products inside: each look reads those of all layers."""
        if self._looked:
            yield
            return
        self._look()
        self._looked = True
        try:
            yield
        finally:
            self._looked = False

    @own_modes()
    def _recorded(self, rows: Int[Tensor, " row"], upto: int) -> _Batch:
        tokens, lengths = self.prompts.rows(rows)
        context = freeze_context(self._model, tokens, lengths, n_layers=upto)
        return _Batch(rows, context, context.jacobians())

    def states(self) -> Float[Tensor, "boundary prompt d_model"]:
        """Return x_0 ... x_L of the last tokens, prompts in their order; grows with the prompts."""
        return states_of((batch.rows, batch.context) for batch in self.batches())

    def baseline(self, readout: Float[Tensor, " d_model"]) -> Float[Tensor, " prompt"]:
        """Return ``C·x_L`` of every prompt."""
        found = readout.new_zeros(len(self.prompts))
        for batch in self.batches():
            last = to_compute(batch.context.states[-1], device=readout.device)
            found[batch.rows.to(found.device)] = last @ readout
        return found

    def mean_push(
        self,
        vectors: Float[Tensor, "layer direction d_model"],
        *,
        layers: Sequence[int] | None = None,
    ) -> Float[Tensor, "layer direction d_model"]:
        """Return ``Ā_l v``, the mean over prompts, for every layer asked for (all by default)."""
        return self._mean("push", vectors, layers)

    def mean_pull(
        self,
        vectors: Float[Tensor, "layer direction d_model"],
        *,
        layers: Sequence[int] | None = None,
    ) -> Float[Tensor, "layer direction d_model"]:
        """Return ``Ā_lᵀ w``, the mean over prompts, for every layer asked for (all by default)."""
        return self._mean("pull", vectors, layers)

    def mean_pushes(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield for each layer what gives ``Ā_l v`` of vectors [direction, d_model]; each is called once.

        Of several batches the residual streams are carried from layer to layer, so that no block runs
        twice; where they would take more than a batch alive does, each product runs the blocks before it.
        """
        batches = list(self.prompts.batches(self.batch_size))
        stand_ins = self._lone_blocks(batches[0][:1]) if len(batches) > 1 else None
        if stand_ins is None:
            for layer in range(self.n_layers):
                yield partial(lambda at, v: self.mean_push(v[None], layers=[at])[0], layer)
            return
        self._alive = None
        first: Spot = (0, "resid_pre")
        with own_modes():
            streams = [
                run(self._model, self.prompts.rows(rows)[0], record=[first], logits=False)[first]
                for rows in batches
            ]
        rotary = first_rotary(self._model, int(self.prompts.lengths.max()))

        def pushed(layer: int, vectors: Tensor) -> Tensor:
            with own_modes(), evaluating(self._model), still(self._model):
                total = torch.zeros_like(vectors)
                for i, rows in enumerate(watched(batches, len(batches))):
                    tokens, lengths = self.prompts.rows(rows)
                    maps, streams[i] = freeze_block(
                        self._model,
                        tokens,
                        lengths,
                        layer,
                        streams[i],
                        stand_ins,
                        rotary,
                        self.mark,
                    )
                    total += _summed(maps.push, vectors[None], len(rows), [0])[0]
            return total / len(self.prompts)

        for layer in range(self.n_layers):
            yield partial(pushed, layer)

    @own_modes()
    def _lone_blocks(self, row: Tensor) -> BlockStandIns | None:
        """What runs one block alone; None where that, or keeping one stream of all prompts, is too much."""
        kept = self._model.n_key_value_heads * self._model.d_head
        if len(self.prompts) * self._model.d_model > 2 * self.n_layers * kept * self.batch_size:
            return None
        return lone_blocks(self._model, self.prompts.rows(row)[0])

    def _mean(
        self, product: Literal["push", "pull"], vectors: Tensor, layers: Sequence[int] | None
    ) -> Tensor:
        total = torch.zeros_like(vectors)
        for batch in self.batches(None if layers is None else max(layers) + 1):
            total += _summed(getattr(batch.maps, product), vectors, len(batch.rows), layers)
        return total / len(self.prompts)

    def costates(
        self,
        readout: Float[Tensor, " d_model"],
        *,
        right: Float[Tensor, "boundary d_model order"] | None = None,
        left: Float[Tensor, "boundary d_model order"] | None = None,
    ) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "layer row d_model"]]]:
        """Yield for each batch its rows and ``∂(C·x_L)/∂x_l``, l = 0 ... L−1: the gain of any vector v
        injected there is its dot with v.

        With bases, every block's output (and so the readout) is projected by ``right leftᵀ`` on the way:
        what comes back is the reduced model's gradient with each prompt's own Jacobians.
        """
        for batch in self.batches():
            costate = readout.expand(len(batch.rows), -1)
            sweep = []
            for layer in reversed(range(self.n_layers)):
                if right is not None and left is not None:
                    costate = (costate @ right[layer + 1]) @ left[layer + 1].T
                pulled = batch.maps.pull(costate[None, None], layers=[layer])[0, 0]
                costate = to_compute(pulled, device=readout.device)
                sweep.append(costate)
            yield batch.rows, torch.stack(sweep[::-1])

    def gains(
        self,
        directions: Float[Tensor, "boundary d_model"],
        readout: Float[Tensor, " d_model"],
        *,
        right: Float[Tensor, "boundary d_model order"] | None = None,
        left: Float[Tensor, "boundary d_model order"] | None = None,
    ) -> Float[Tensor, "prompt layer"]:
        """Return every prompt's gain of every layer: ``C A_{L−1} … A_k v_k``, reduced if bases are given."""
        found = directions.new_zeros(len(self.prompts), self.n_layers)
        for rows, costates in self.costates(readout, right=right, left=left):
            gains = torch.einsum("lpd,ld->pl", costates, directions[: self.n_layers])
            found[rows.to(found.device)] = gains
        return require_finite_gains(found)

    def reached(
        self, batch: _Batch, directions: Float[Tensor, "boundary d_model"]
    ) -> Iterator[Float[Tensor, "injection row d_model"]]:
        """Yield, for l = 0 ... L, what v_0 ... v_l injected at layers 0 ... l have become at x_l."""
        shape = (1, len(batch.rows), directions.shape[-1])
        carried = directions[0].expand(shape)
        yield carried
        for layer in range(self.n_layers):
            pushed = batch.maps.push(carried[None], layers=[layer])[0]
            carried = to_compute(pushed, device=directions.device)
            carried = torch.cat([directions[layer + 1].expand(shape), carried])
            yield carried


def _summed(
    product: Callable[..., Tensor],
    vectors: Float[Tensor, "layer direction d_model"],
    n_rows: int,
    layers: Sequence[int] | None,
) -> Float[Tensor, "layer direction d_model"]:
    """Products of shared vectors, summed over the prompts of a batch."""
    total = torch.zeros_like(vectors)
    for start in range(0, vectors.shape[1], _TOGETHER):
        part = slice(start, start + _TOGETHER)
        found = product(vectors[:, part, None].expand(-1, -1, n_rows, -1), layers=layers)
        total[:, part] = to_compute(found, device=total.device).sum(2)
    return total


def require_finite_gains(gains: Float[Tensor, "prompt layer"]) -> Tensor:
    """Refuse NaN and infinity, naming the layer: finite states may still have derivatives without end."""
    bad = ~torch.isfinite(gains)
    if bool(bad.any()):
        layer = int(
            bad.any(0).nonzero()[-1]
        )  # gradients run backwards: the last one is where it began
        raise NonFiniteError(
            f"the gain of layer {layer} is NaN or infinite at {int(bad[:, layer].sum())} of {len(gains)} "
            "prompts; look at the weights of that layer and those after it, or load the model in a wider "
            "precision"
        )
    return gains


def frozen_batches(
    model: CheckedModel, prompts: Prompts, *, batch_size: int | None, whole: bool = False
) -> Iterator[tuple[Int[Tensor, " row"], FrozenContext]]:
    """Yield batches of prompts with their recorded forward pass (``whole=True`` reruns whole prompts)."""
    size = prompts.a_pass(model, batch_size)
    for rows in watched(prompts.batches(size), -(-len(prompts) // size)):
        tokens, lengths = prompts.rows(rows)
        yield rows, freeze_context(model, tokens, lengths, path="full" if whole else None)


def states_of(
    batches: Iterable[tuple[Int[Tensor, " row"], FrozenContext]],
) -> Float[Tensor, "boundary prompt d_model"]:
    """The last tokens' states of all batches, float64, prompts in their order."""
    index, found = [], []
    for rows, context in batches:
        index.append(rows)
        found.append(to_compute(context.states))
    order = torch.argsort(torch.cat(index)).to(found[0].device)
    return torch.cat(found, dim=1)[:, order]


def block_jacobians(
    model: ModelLike,
    prompts: PromptsLike | Prompts,
    *,
    attention_mask: Tensor | None = None,
    truncate: bool = False,
    batch_size: int | None = None,
) -> BlockJacobians:
    """Every block's Jacobian at the last tokens of some prompts, as products: ``A_l v`` and ``A_lᵀ w``.

    Args:
        model: a causal bridge; not changed.
        prompts: texts, rows of ids, a concept, or a padded tensor with ``attention_mask``.
        attention_mask: see :func:`~lens_linear.dynamics.gains.prompts.as_prompts`.
        truncate: keep the last tokens of prompts longer than the context.
        batch_size: prompts a forward pass, and alive at a time; as many as memory allows (at most 64) by
            default.

    Returns:
        BlockJacobians; its memory does not grow with the number of prompts.

    Raises:
        NotEnoughDataError: no prompts, or an empty one.
        InvalidArgumentError: a prompt does not fit the context or the vocabulary.
        UnsupportedModelError: (when products are taken) the model is not causal.

    Source: Nettasinghe & Joseph 2026, arXiv 2603.12541 (Jacobians at the last token); exact
        products by automatic differentiation are ours.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> block_jacobians(toy_model(n_layers=3), [torch.arange(5), torch.arange(8)])
        BlockJacobians: 3 blocks of width 32 at 2 prompts
    """
    model = checked(model)
    prompts = as_prompts(model, prompts, attention_mask=attention_mask, truncate=truncate)
    return BlockJacobians(
        model, prompts, prompts.a_pass(model, batch_size), WeightsMark(model, read=False)
    )
