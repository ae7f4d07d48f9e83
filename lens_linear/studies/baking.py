"""From a finished run to a model folder: weights in half precision, card with measured losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lens_linear.checks import require_rows
from lens_linear.files import require_folder
from lens_linear.models.native import native_module
from lens_linear.models.open.cards import write_card
from lens_linear.models.open.folder import write_weights
from lens_linear.training.data import repeated_rows, step_generator
from lens_linear.training.loop import BOS, TrainingRun, validation_loss
from lens_linear.training.recipes import Recipe


def validation_rows(
    ids: Int[Tensor, " token"], length: int, n: int | None = None
) -> Int[Tensor, "row position"]:
    """The first ``n`` (or all) whole rows of ``length - 1`` ids, each after a beginning-of-sequence token."""
    n = len(ids) // (length - 1) if n is None else n
    require_rows("validation", len(ids), minimum=n * (length - 1), why=f"{n} rows of {length}")
    rows = ids[: n * (length - 1)].reshape(n, length - 1).long()
    return torch.cat([torch.full((n, 1), BOS), rows], dim=1)


def bigram_floor(
    train: Int[Tensor, " token"], valid: Int[Tensor, " held_out"], n_vocab: int
) -> float:
    """Loss (nats per token) on ``valid`` of bigram counts of ``train``, smoothed by unigram counts.

    The pseudo-count is the best of a few on ``valid`` itself, so the number is slightly favourable to
    the table. What a model without layers can hope for.
    """
    train, valid = train.long(), valid.long()
    counts = torch.zeros(n_vocab, n_vocab, dtype=torch.float64)
    counts.index_put_((train[:-1], train[1:]), torch.ones(len(train) - 1).double(), accumulate=True)
    unigram = (counts.sum(0) + 1) / (counts.sum() + n_vocab)
    losses = []
    for pseudo in (1.0, 3.0, 10.0, 30.0):
        table = (counts + pseudo * unigram) / (counts.sum(1, keepdim=True) + pseudo)
        losses.append(float(-table[valid[:-1], valid[1:]].log().mean()))
    return min(losses)


@torch.no_grad()
def repeat_losses(module: nn.Module, recipe: Recipe) -> tuple[float, float]:
    """Loss (nats per token) on the first and on the later copies of repeated random tokens."""
    length = max(phase.length for phase in recipe.phases)
    tokens = repeated_rows(
        64,
        length,
        periods=(length // 2 - 1, length // 2 - 1),
        n_vocab=recipe.spec.d_vocab,
        bos=BOS,
        generator=step_generator(recipe.seed + 1, 0),
    )
    logits = module(tokens).float()
    losses = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    ).view(len(tokens), -1)
    period = length // 2 - 1
    return float(losses[:, :period].mean()), float(losses[:, period:].mean())


def bake(
    run: TrainingRun,
    folder: str | Path,
    *,
    train: Int[Tensor, " token"],
    valid: Int[Tensor, " held_out"],
    data: str,
) -> Path:
    """Write a run as a model folder; the losses on the card are of the weights as stored.

    Args:
        run: from :func:`~lens_linear.training.loop.train`.
        folder: where to; made if needed.
        train: the token stream it was trained on.
        valid: held-out tokens.
        data: what the corpus was, for the card.

    Returns:
        The folder.
    """
    folder = require_folder("folder", folder)
    recipe = run.recipe
    rows = validation_rows(valid, max(phase.length for phase in recipe.phases))
    state = run.module.state_dict()
    checksum = write_weights(folder, state)
    stored = _stored(recipe, state)
    first, later = repeat_losses(stored, recipe)
    card: dict[str, Any] = {
        "name": recipe.name,
        "spec": recipe.spec.to_dict(),
        "recipe": recipe.to_dict(),
        "data": data,
        "note": recipe.note,
        "parameters": sum(value.numel() for value in run.module.parameters()),
        "steps": recipe.steps,
        "tokens": recipe.tokens,
        "seed": recipe.seed,
        "minutes": round(run.minutes, 1),
        "threads": run.threads,
        "training_loss": sum(loss for _, loss, _ in run.history[-100:])
        / max(1, len(run.history[-100:])),
        "validation_loss": validation_loss(stored, rows),
        "validation_loss_float32": validation_loss(run.module, rows),
        "validation_tokens": rows[:, 1:].numel(),
        "repeats_first": first,
        "repeats_later": later,
        "floor": bigram_floor(train, valid, recipe.spec.d_vocab)
        if recipe.spec.n_layers == 0
        else None,
        "sha256": checksum,
        "checkpoints": {},
    }
    for step, weights in sorted(run.checkpoints.items()):
        kept = _stored(recipe, weights)
        card["checkpoints"][str(step)] = {
            "sha256": write_weights(folder, weights, step=step),
            "validation_loss": validation_loss(kept, rows),
        }
    write_card(folder, card)
    return folder


def _stored(recipe: Recipe, state: dict[str, Tensor]) -> nn.Module:
    """Return a module with the weights rounded to half precision, as they are stored."""
    module = native_module(recipe.spec, seed=recipe.seed)
    module.load_state_dict({name: value.cpu().half().float() for name, value in state.items()})
    return module.eval()
