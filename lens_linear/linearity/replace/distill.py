"""A few gradient steps on the maps alone, towards what the original model has after every block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lens_linear.linearity.replace.affine_map import AffineMap
from lens_linear.models.capture import row_ranges, run
from lens_linear.models.spots import Spot
from lens_linear.models.stand_ins import BlockStandIns, StandIn
from lens_linear.stats.split import RowView


def polish(
    stand_ins: BlockStandIns,
    rows: RowView,
    maps: Sequence[AffineMap],
    *,
    steps: int,
    learning_rate: float = 1e-4,
    batch_size: int = 8,
) -> list[AffineMap]:
    """Train block maps together by Adam; the model's own weights stay as they are.

    The loss is ``Σ_l ‖x̂_l − x_l‖² / ‖x_l − x̄_l‖²`` over the blocks from the first replaced one on, x̂ the
    residual stream of the model with the maps in place, x that of the original. Batches go through the
    sequences in order, again and again.

    Args:
        stand_ins: of a bridge in float32 or wider.
        rows: sequences.
        maps: block maps to start from.
        steps: Adam steps.
        learning_rate: its peak; it falls linearly to zero.
        batch_size: sequences a step.

    Returns:
        New maps. ``r_squared`` is NaN: they are no longer least-squares fits.
    """
    model = stand_ins.model
    spots: list[Spot] = [
        (layer, "resid_post") for layer in range(min(m.first for m in maps), model.n_layers)
    ]
    weights = [m.weight.float().clone().requires_grad_() for m in maps]
    biases = [m.bias.float().clone().requires_grad_() for m in maps]
    optimizer = torch.optim.Adam([*weights, *biases], lr=learning_rate)
    functions = {m.first: _affine(w, b) for m, w, b in zip(maps, weights, biases, strict=True)}
    starts = list(row_ranges(rows, batch_size, model=model))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        tokens = rows[slice(*starts[step % len(starts)])]
        target = run(model, tokens, record=spots, logits=False)
        with torch.enable_grad(), stand_ins.applied(functions):
            student = run(model, tokens, record=spots, logits=False, grad=True)
            loss = torch.stack([_miss(student[spot], target[spot]) for spot in spots]).sum()
            gradients = torch.autograd.grad(loss, [*weights, *biases])
        for parameter, gradient in zip([*weights, *biases], gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [
        replace(m, weight=w.detach().double(), bias=b.detach().double(), r_squared=float("nan"))
        for m, w, b in zip(maps, weights, biases, strict=True)
    ]


def _affine(weight: Tensor, bias: Tensor) -> StandIn:
    return lambda x: (x.to(weight) @ weight + bias).to(x.dtype)


def _miss(student: Tensor, teacher: Tensor) -> Tensor:
    centred = teacher - teacher.mean((0, 1))
    return (student - teacher).square().sum() / centred.square().sum().clamp(min=1e-12)
