"""Checkpoints of a training run: one safetensors file, written whole or not at all. No pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from lens_linear.checksummed import read_sealed, write_sealed
from lens_linear.errors import CorruptedFileError
from lens_linear.training.recipes import Recipe

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class RunState:
    """How far a run has come, and what it keeps for good."""

    step: int = 0
    minutes: float = 0.0
    history: list[tuple[int, float, float]] = field(default_factory=list)
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    batch: str = ""  # checksum of the last batch that was learnt from, where the caller makes them


def save_checkpoint(
    path: str | Path,
    recipe: Recipe,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: RunState,
    *,
    corpus: str,
) -> None:
    """Write weights, optimiser state, kept weights and history to ``path``; ``corpus`` is a checksum."""
    tensors = {f"model.{k}": v.detach().cpu() for k, v in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for moment in _MOMENTS:
            if parameter in optimizer.state:
                value = optimizer.state[parameter][moment]
                tensors[f"{moment}.{name}"] = value.detach().cpu()
    for step, weights in state.kept.items():
        tensors.update({f"kept.{step}.{k}": v for k, v in weights.items()})
    metadata = {
        "recipe": json.dumps(recipe.to_dict(), sort_keys=True),
        "corpus": corpus,
        "step": str(state.step),
        "minutes": repr(state.minutes),
        "batch": state.batch,
        "history": json.dumps(state.history),
    }
    write_sealed(path, tensors, metadata)


def load_checkpoint(
    path: str | Path | None,
    recipe: Recipe,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    corpus: str,
) -> RunState:
    """Restore a run from ``path`` in place; a fresh state if there is no such file.

    Raises:
        CorruptedFileError: the file is damaged, or belongs to another recipe or corpus.
    """
    if path is None or not Path(path).exists():
        return RunState()
    tensors, metadata = read_sealed(path, what="checkpoint")
    if metadata.get("recipe") != json.dumps(recipe.to_dict(), sort_keys=True):
        raise CorruptedFileError(
            f"checkpoint {str(path)!r} was written by another recipe than {recipe.name!r}; "
            "remove it, or name another file"
        )
    if metadata.get("corpus", corpus) != corpus:
        raise CorruptedFileError(
            f"checkpoint {str(path)!r} was written while {recipe.name!r} was trained on another corpus, or "
            "with other labels or another loss_mask; "
            "remove it to begin anew, or name another file"
        )
    step = int(metadata["step"])
    weights = {k: v for k, v in tensors.items() if k.startswith("model.")}
    module.load_state_dict({k.removeprefix("model."): v for k, v in weights.items()})
    for name, parameter in module.named_parameters():
        if f"exp_avg.{name}" in tensors:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                **{m: tensors[f"{m}.{name}"].to(parameter.device) for m in _MOMENTS},
            }
    kept: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("kept."):
            _, at, name = key.split(".", 2)
            kept.setdefault(int(at), {})[name] = value
    history = [tuple(row) for row in json.loads(metadata["history"])]
    minutes = float(metadata["minutes"])
    return RunState(step, minutes, history, kept, metadata.get("batch", ""))
