"""The training loop: AdamW, checkpoints, exact resume, progress. One recipe and one token stream in."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from lens_linear.checks import require_device, require_instance, require_int, require_rows
from lens_linear.errors import NonFiniteError
from lens_linear.files import require_target
from lens_linear.models.native import native_module
from lens_linear.token_rows import require_stream
from lens_linear.training.checkpoint import load_checkpoint, save_checkpoint
from lens_linear.training.data import repeated_rows, step_generator, text_rows
from lens_linear.training.recipes import Phase, Recipe
from lens_linear.training.regularizer import CosineRegularizer

BOS = 0


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """A trained module with the history of its losses (nats per token)."""

    recipe: Recipe
    module: nn.Module
    history: list[tuple[int, float, float]]  # step, training loss, learning rate
    checkpoints: dict[int, dict[str, Tensor]]
    minutes: float
    threads: int

    def __repr__(self) -> str:
        last = self.history[-1][1] if self.history else math.nan
        return (
            f"TrainingRun: {self.recipe.name}, {self.recipe.steps} steps, {self.recipe.tokens:,} "
            f"tokens, last training loss {last:.3f} nats per token, {self.minutes:.1f} minutes"
        )


def learning_rate(phase: Phase, step: int) -> float:
    """Linear warm-up, then cosine decay from the peak to ``final`` times the peak."""
    require_instance("phase", phase, Phase, advice="e.g. recipe.phase_at(step)[0]")
    require_int("step", step, minimum=0)
    if step < phase.warmup:
        return phase.learning_rate * (step + 1) / phase.warmup
    progress = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return phase.learning_rate * (phase.final + (1 - phase.final) * cosine)


def batch_at(
    recipe: Recipe, stream: Int[Tensor, " token"], step: int
) -> Int[Tensor, "row position"]:
    """Return the batch of one step: natural text and, as the phase says, repeated random tokens."""
    phase, _ = recipe.phase_at(step)
    generator = step_generator(recipe.seed, step)
    n_repeats = round(phase.rows * phase.repeats)
    parts = []
    if n_repeats < phase.rows:
        parts.append(
            text_rows(stream, phase.rows - n_repeats, phase.length, bos=BOS, generator=generator)
        )
    if n_repeats:
        parts.append(
            repeated_rows(
                n_repeats,
                phase.length,
                periods=phase.periods,
                n_vocab=recipe.spec.d_vocab,
                bos=BOS,
                generator=generator,
            )
        )
    return torch.cat(parts)


def next_token_loss(
    logits: Float[Tensor, "row position vocab"], tokens: Int[Tensor, "row position"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the next token, in nats."""
    return nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1)
    )


class _States:
    """Collects the residual stream at every layer boundary of a native module while it runs."""

    def __init__(self, module: nn.Module) -> None:
        self.states: list[Tensor] = []
        layers = list(module.layers)  # type: ignore[arg-type]
        layers[0].register_forward_pre_hook(self._before)
        for layer in layers:
            layer.register_forward_hook(self._after)

    def _before(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.states = [args[0]]

    def _after(self, _module: nn.Module, _args: object, output: tuple[Tensor, ...]) -> None:
        self.states.append(output[0])


def _optimizer(module: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=1e-3, betas=(0.9, 0.95))


@torch.inference_mode(False)  # gradients, or weights that can have them, need a graph
@torch.enable_grad()  # notebooks often switch gradients off at the top
def train(
    recipe: Recipe,
    stream: Int[Tensor, " token"],
    *,
    checkpoint: str | Path | None = None,
    save_every: int = 200,
    progress: bool = True,
    device: str | torch.device = "cpu",
    on_step: Callable[[int, float], None] | None = None,
) -> TrainingRun:
    """Train a model by a recipe; killed and started again, it goes on from its last checkpoint.

    The loss is the mean cross-entropy of the next token (nats), plus ``recipe.cosine`` times the
    cosine penalty when that is not zero. Every batch is a function of (seed, step), so a resumed run
    sees the batches an unbroken one would have seen.

    Args:
        recipe: shape, phases, seed.
        stream: token ids of the corpus, one after the other; ignored by phases of repeats only.
        checkpoint: file that holds weights and optimiser state; read if it is there, written every
            ``save_every`` steps. None keeps nothing.
        save_every: steps between two writes.
        progress: show a progress bar on standard error.
        device: where to train.
        on_step: called with (step, loss) after every step.

    Returns:
        The trained module with its history.

    Raises:
        NotEnoughDataError: the stream is shorter than one row.
        NonFiniteError: the loss left the finite numbers; lower the learning rate.
        CorruptedFileError: the checkpoint is of another recipe or corpus, or damaged.

    Example:
        >>> from lens_linear.models.native import ModelSpec
        >>> spec = ModelSpec(1, d_model=16, n_heads=2, d_vocab=32, n_ctx=16, attn_only=True)
        >>> recipe = Recipe("tiny", spec, (Phase(steps=3, rows=4, length=16, periods=(3, 6)),))
        >>> len(train(recipe, torch.arange(500) % 32, progress=False).history)
        3
    """
    require_int("save_every", save_every, minimum=1)
    require_instance("recipe", recipe, Recipe, advice="see lens_linear.training.recipes.RECIPES")
    checkpoint = None if checkpoint is None else require_target("checkpoint", checkpoint)
    device = require_device("device", device)
    stream = require_stream("stream", stream, n_vocab=recipe.spec.d_vocab).cpu()
    longest = max(phase.length for phase in recipe.phases)
    require_rows("stream", len(stream), minimum=longest, why="one row of the longest phase")
    started = time.monotonic()
    module = native_module(recipe.spec, seed=recipe.seed).to(device)
    module.train()
    optimizer = _optimizer(module, recipe.weight_decay)
    corpus = hashlib.sha256(stream.to(torch.int32).contiguous().numpy().tobytes()).hexdigest()
    state = load_checkpoint(checkpoint, recipe, module, optimizer, corpus=corpus)
    states = _States(module) if recipe.cosine else None
    penalty = CosineRegularizer(recipe.cosine) if recipe.cosine else None
    autocast = recipe.precision == "bfloat16"
    steps = range(state.step, recipe.steps)
    bar = tqdm(
        steps, initial=state.step, total=recipe.steps, desc=recipe.name, disable=not progress
    )
    for step in bar:
        if step in recipe.checkpoints and step not in state.kept:
            state.kept[step] = _copy(module)
        phase, inner = recipe.phase_at(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(phase, inner)
        tokens = batch_at(recipe, stream, step).to(device)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast):
            logits = module(tokens)
        loss = next_token_loss(logits.float(), tokens)
        total = loss if penalty is None or states is None else loss + penalty(states.states)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        value = float(loss.detach())
        _require_finite_loss(value, recipe, step)
        state.history.append((step, value, optimizer.param_groups[0]["lr"]))
        if on_step is not None:
            on_step(step, value)
        if step % 10 == 0:
            bar.set_postfix(loss=f"{value:.3f}", refresh=False)
        if checkpoint is not None and ((step + 1) % save_every == 0 or step + 1 == recipe.steps):
            state.step = step + 1
            state.minutes += (time.monotonic() - started) / 60
            started = time.monotonic()
            save_checkpoint(checkpoint, recipe, module, optimizer, state, corpus=corpus)
    minutes = state.minutes + (time.monotonic() - started) / 60
    module.eval()
    return TrainingRun(recipe, module, state.history, state.kept, minutes, torch.get_num_threads())


def _require_finite_loss(value: float, recipe: Recipe, step: int) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the training loss of {recipe.name!r} became {value} at step {step}; "
            "lower learning_rate in the recipe; the last checkpoint is kept"
        )


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def validation_loss(
    module: nn.Module, rows: Int[Tensor, "row position"], *, batch: int = 64
) -> float:
    """Mean next-token loss (nats) of a native module over rows of tokens."""
    device = next(module.parameters()).device
    losses = [
        float(next_token_loss(module(part.to(device)), part.to(device))) * len(part)
        for part in rows.split(batch)
    ]
    return sum(losses) / len(rows)
