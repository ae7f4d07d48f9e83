"""Jacobian products of many blocks at once, from one recorded graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import counted
from lens_linear.linalg.precision import own_modes


@dataclass(frozen=True, eq=False)
class BlockMaps:
    """Jacobian products of all blocks at the last token, batched over prompts and directions.

    Convention: states are columns, ``x_{l+1} = f_l(x_l)``, A_l its Jacobian. ``push`` gives ``A_l t``,
    ``pull`` gives ``A_lᵀ w``. The forward pass was run once; a product costs about one more pass over one
    token a prompt. ``push`` differentiates ``A_lᵀ w`` with respect to w (it is linear in w), so it needs no
    forward-mode rule and no second run of the model.
    """

    inputs: tuple[Float[Tensor, "prompt d_model"], ...]
    outputs: tuple[Float[Tensor, "prompt d_model"], ...]

    @cached_property
    def _transposed(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Cotangents w (zeros) and the graph of ``A_lᵀ w``; built at the first ``push``."""
        probes = tuple(torch.zeros_like(output).requires_grad_() for output in self.outputs)
        with torch.enable_grad():
            pulled = torch.autograd.grad(self.outputs, self.inputs, probes, create_graph=True)
        return probes, pulled

    def __repr__(self) -> str:
        prompts, d_model = self.inputs[0].shape
        return (
            f"BlockMaps: {counted(len(self.inputs), 'block')} of width {d_model} at "
            f"{counted(prompts, 'prompt')}"
        )

    @own_modes()
    def push(
        self,
        tangents: Float[Tensor, "layer direction prompt d_model"],
        *,
        layers: Sequence[int] | None = None,
    ) -> Float[Tensor, "layer direction prompt d_model"]:
        """Return ``A_l t`` for every layer asked for (all by default), direction and prompt."""
        chosen = range(len(self.inputs)) if layers is None else layers
        probes, pulled = self._transposed
        return _products(
            [pulled[layer] for layer in chosen], [probes[layer] for layer in chosen], tangents
        )

    @own_modes()
    def pull(
        self,
        cotangents: Float[Tensor, "layer direction prompt d_model"],
        *,
        layers: Sequence[int] | None = None,
    ) -> Float[Tensor, "layer direction prompt d_model"]:
        """Return ``A_lᵀ w`` for every layer asked for (all by default), direction and prompt."""
        chosen = range(len(self.inputs)) if layers is None else layers
        return _products(
            [self.outputs[layer] for layer in chosen],
            [self.inputs[layer] for layer in chosen],
            cotangents,
        )


def _products(outputs: list[Tensor], inputs: list[Tensor], vectors: Tensor) -> Tensor:
    # Layers may lie on different devices: every vector goes to its own, the products to the first.
    parts = [part.to(output) for part, output in zip(vectors, outputs, strict=True)]
    single = vectors.shape[1] == 1
    found = torch.autograd.grad(
        outputs,
        inputs,
        [part[0] for part in parts] if single else parts,
        retain_graph=True,
        is_grads_batched=not single,
    )
    stacked = torch.stack([part.to(found[0].device) for part in found])
    return stacked[:, None] if single else stacked
