"""All blocks of a model linearised at the last token of some prompts, ready for batched products.

One forward pass over the prompts and one pass over their last tokens are paid once
(:func:`linearize`). After that

* a *gain profile* is one backward sweep over single tokens,
* a product of every block's mean Jacobian with one vector is one more such sweep,
* a reduced model of **any** order costs no more than the full one: its gains are the same backward sweep
  with the gradient projected at every layer boundary.

States are columns, as in the paper: ``x_{l+1} = f_l(x_l)``, ``A_l`` the Jacobian of ``f_l`` at one prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.dynamics.gains.prompts import Prompts, PromptsLike, as_prompts
from lens_linear.linalg.precision import to_compute
from lens_linear.models.frozen.frozen_context import BlockMaps, FrozenContext, freeze_context
from lens_linear.models.hooks import require_bridge


@dataclass(frozen=True, eq=False)
class Linearization:
    """Jacobian products at every prompt, in batches of prompts of similar length.

    Attributes:
        prompts: the prompts.
        states: x_0 ... x_L of the last token, float64.
        index: per batch, the prompts in it.
        maps: per batch, the blocks' Jacobian products.
        path: "cache" or "full", see :mod:`lens_linear.models.frozen.frozen_context`.
    """

    prompts: Prompts
    states: Float[Tensor, "boundary prompt d_model"]
    index: tuple[Int[Tensor, " _"], ...]
    maps: tuple[BlockMaps, ...]
    path: str

    def __repr__(self) -> str:
        return (
            f"Linearization: {self.n_layers} blocks of width {self.states.shape[-1]} at "
            f"{len(self.prompts)} prompts, path {self.path!r}"
        )

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return len(self.states) - 1

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

    def _mean(
        self, product: Literal["push", "pull"], vectors: Tensor, layers: Sequence[int] | None
    ) -> Tensor:
        total = torch.zeros_like(vectors)
        for rows, maps in zip(self.index, self.maps, strict=True):
            shared = vectors[:, :, None].expand(-1, -1, len(rows), -1)
            found = getattr(maps, product)(shared, layers=layers)
            total += to_compute(found, device=vectors.device).sum(2)
        return total / len(self.prompts)

    def costates(
        self,
        readout: Float[Tensor, " d_model"],
        *,
        right: Float[Tensor, "boundary d_model order"] | None = None,
        left: Float[Tensor, "boundary d_model order"] | None = None,
    ) -> Float[Tensor, "layer prompt d_model"]:
        """Return ``∂(C·x_L)/∂x_l`` for l = 0 ... L−1: the gain of any vector v injected there is its
        dot with v.

        With bases, every block's output (and so the readout) is projected by ``right leftᵀ`` on the way:
        what comes back is the reduced model's gradient with each prompt's own Jacobians.
        """
        found = []
        for rows, maps in zip(self.index, self.maps, strict=True):
            costate = readout.expand(len(rows), -1)
            sweep = []
            for layer in reversed(range(self.n_layers)):
                if right is not None and left is not None:
                    costate = (costate @ right[layer + 1]) @ left[layer + 1].T
                pulled = maps.pull(costate[None, None], layers=[layer])[0, 0]
                costate = to_compute(pulled, device=readout.device)
                sweep.append(costate)
            found.append(torch.stack(sweep[::-1]))
        return self._in_order(torch.cat(found, dim=1))

    def gains(
        self,
        directions: Float[Tensor, "boundary d_model"],
        readout: Float[Tensor, " d_model"],
        *,
        right: Float[Tensor, "boundary d_model order"] | None = None,
        left: Float[Tensor, "boundary d_model order"] | None = None,
    ) -> Float[Tensor, "prompt layer"]:
        """Return every prompt's gain of every layer: ``C A_{L−1} … A_k v_k``, reduced if bases are given."""
        costates = self.costates(readout, right=right, left=left)
        return torch.einsum("lpd,ld->pl", costates, directions[: self.n_layers])

    def reached(
        self, directions: Float[Tensor, "boundary d_model"]
    ) -> Iterator[Float[Tensor, "injection prompt d_model"]]:
        """Yield, for l = 0 ... L, what v_0 ... v_l injected at layers 0 ... l have become at x_l."""
        shape = (1, len(self.prompts), directions.shape[-1])
        carried = directions[0].expand(shape)
        yield carried
        for layer in range(self.n_layers):
            parts = []
            for rows, maps in zip(self.index, self.maps, strict=True):
                pushed = maps.push(carried[None, :, rows], layers=[layer])[0]
                parts.append(to_compute(pushed, device=directions.device))
            carried = self._in_order(torch.cat(parts, dim=1))
            carried = torch.cat([directions[layer + 1].expand(shape), carried])
            yield carried

    def _in_order(self, batched: Float[Tensor, "k prompt d_model"]) -> Tensor:
        """Put the prompts of concatenated batches back into the order in which they came."""
        return batched[:, torch.argsort(torch.cat(self.index)).to(batched.device)]


def frozen_batches(
    model: TransformerBridge, prompts: Prompts, *, batch_size: int, whole: bool = False
) -> Iterator[tuple[Int[Tensor, " row"], FrozenContext]]:
    """Yield batches of prompts with their recorded forward pass (``whole=True`` reruns whole prompts)."""
    for rows in prompts.batches(batch_size):
        tokens, lengths = prompts.rows(rows)
        yield rows, freeze_context(model, tokens, lengths, path="full" if whole else None)


@torch.inference_mode(False)  # derivatives need a graph, whatever the caller switched off
def linearize(
    model: TransformerBridge,
    prompts: PromptsLike | Prompts,
    *,
    attention_mask: Tensor | None = None,
    truncate: bool = False,
    batch_size: int = 64,
) -> Linearization:
    """Run prompts once and keep every block's Jacobian products at their last tokens.

    Args:
        model: a causal bridge; not changed.
        prompts: texts, rows of ids, or a padded tensor with ``attention_mask``.
        attention_mask: see :func:`~lens_linear.dynamics.gains.prompts.as_prompts`.
        truncate: keep the last tokens of prompts longer than the context.
        batch_size: prompts a forward pass.

    Returns:
        Linearization; its memory grows with prompts × layers, not with tokens.

    Raises:
        NotEnoughDataError: no prompts, or an empty one.
        InvalidArgumentError: a prompt does not fit the context or the vocabulary.
        UnsupportedModelError: the model is not causal, or its blocks cannot be rerun at one token.

    Source: Nettasinghe & Joseph 2026, arXiv 2603.12541 (Jacobians at the last token); exact
        products by automatic differentiation are ours.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> linearize(toy_model(n_layers=3), [torch.arange(5), torch.arange(8)])
        Linearization: 3 blocks of width 32 at 2 prompts, path 'cache'
    """
    model = require_bridge(model)
    prompts = as_prompts(model, prompts, attention_mask=attention_mask, truncate=truncate)
    index, maps, states, paths = [], [], [], set()
    for rows, context in frozen_batches(model, prompts, batch_size=batch_size):
        index.append(rows)
        maps.append(context.linearize())
        states.append(to_compute(context.states))
        paths.add(context.path)
    order = torch.argsort(torch.cat(index)).to(states[0].device)
    path = "cache" if paths == {"cache"} else "full"
    return Linearization(
        prompts, torch.cat(states, dim=1)[:, order], tuple(index), tuple(maps), path
    )
