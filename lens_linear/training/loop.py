"""The training loop: AdamW, checkpoints, exact resume, progress. One recipe and one token stream in."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn

from lens_linear._tl import TransformerBridge
from lens_linear.checks import (
    counted,
    require_bool,
    require_callable,
    require_device,
    require_float,
    require_instance,
    require_int,
    require_ints,
    require_rows,
    require_seed,
    shown,
)
from lens_linear.errors import CorruptedFileError, InvalidArgumentError, NonFiniteError
from lens_linear.files import held, require_target
from lens_linear.linalg.precision import own_modes
from lens_linear.models.native import ModelSpec, bridge_from_module, native_module, plain_defaults
from lens_linear.models.threads import few_threads
from lens_linear.progress import worded_bar
from lens_linear.tables import Result
from lens_linear.text.task import NOT_ASKED, Task
from lens_linear.token_rows import TokenRows, require_stream, require_tokens
from lens_linear.training.checkpoint import load_checkpoint, save_checkpoint
from lens_linear.training.data import repeated_rows, step_generator, text_rows
from lens_linear.training.recipes import Phase, Recipe
from lens_linear.training.regularizer import CosineRegularizer

BOS = 0


@dataclass(frozen=True, eq=False)
class TrainingRun(Result):
    """A trained module with the history of its losses (nats per token)."""

    recipe: Recipe
    module: nn.Module
    history: list[tuple[int, float, float]]  # step, training loss, learning rate
    checkpoints: dict[int, dict[str, Tensor]]
    minutes: float
    threads: int

    def to_dataframe(self) -> pd.DataFrame:
        """One row a step: step, loss (training, nats per token), learning_rate."""
        return pd.DataFrame(self.history, columns=["step", "loss", "learning_rate"])

    @property
    def model(self) -> TransformerBridge:
        """A bridge around a copy of the trained module: every analysis takes it."""
        return self._bridge(_copy(self.module), self.recipe.name)

    def at(self, step: int) -> TransformerBridge:
        """The model after as many steps as ``checkpoints`` names.

        Raises:
            InvalidArgumentError: the weights of that step were not kept.
        """
        if step not in self.checkpoints:
            kept = ", ".join(map(str, self.checkpoints)) or "none"
            raise InvalidArgumentError(
                f"step must be one whose weights were kept ({kept}), got {shown(step)}; train with "
                f"checkpoints=[{shown(step)}]"
            )
        return self._bridge(self.checkpoints[step], f"{self.recipe.name}, step {step}")

    def _bridge(self, weights: dict[str, Tensor], name: str) -> TransformerBridge:
        module = native_module(self.recipe.spec, seed=self.recipe.seed)
        module.load_state_dict(weights)
        return bridge_from_module(module.eval(), self.recipe.spec, name=name)

    def __repr__(self) -> str:
        last = self.history[-1][1] if self.history else math.nan
        return (
            f"TrainingRun: {self.recipe.name}, {counted(self.recipe.steps, 'step')}, "
            f"{counted(self.recipe.tokens, 'token', ',')}, last training loss {last:.3f} nats per "
            f"token, {self.minutes:.1f} minutes"
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
    logits: Float[Tensor, "row position vocab"],
    tokens: Int[Tensor, "row position"],
    *,
    labels: Int[Tensor, "row position"] | None = None,
    mask: Bool[Tensor, "*row position"] | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the next token, in nats; of ``labels``, where ``mask`` says, when given."""
    if labels is None:
        logits, labels = logits[:, :-1], tokens[:, 1:]
        mask = None if mask is None else mask[..., :-1]
    each = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return each.mean() if mask is None else each[mask.expand_as(each)].mean()


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


def _asked(labels: Any) -> tuple[Any, Bool[Tensor, "row position"] | None]:
    """Labels as ids, and where one is asked for: not where they are -100, as in a Task and in torch."""
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or not (labels == NOT_ASKED).any()
    ):
        return labels, None
    return labels.masked_fill(labels == NOT_ASKED, 0), (labels != NOT_ASKED).cpu()


def _optimizer(module: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=1e-3, betas=(0.9, 0.95))


Batch = Tensor | tuple[Tensor, Tensor]
Batches = Callable[[int], Batch]
LossMask = Tensor | Callable[[Tensor], Tensor]


@own_modes()
@torch.enable_grad()  # notebooks often switch gradients off at the top
@plain_defaults()
def train(
    recipe: Recipe | ModelSpec,
    stream: Int[Tensor, " token"] | None = None,
    *,
    batches: Batches | None = None,
    loss_mask: LossMask | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    checkpoints: Sequence[int] | None = None,
    checkpoint: str | Path | None = None,
    save_every: int = 200,
    progress: bool = True,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainingRun:
    """Train a model by a recipe, or a shape on batches of one's own; started again, it goes on.

    The loss is the mean cross-entropy of the next token (nats), plus ``recipe.cosine`` times the
    cosine penalty when that is not zero. Every batch is a function of (seed, step), so a resumed run
    sees the batches an unbroken one would have seen.

    Args:
        recipe: shape, phases, seed; or a shape alone (with ``batches`` or a ``stream``).
        stream: token ids of the corpus, one after the other; ignored by phases of repeats only.
        batches: in place of text: a function of the step that returns tokens [row, position], or a pair
            (tokens, labels) where the right answer at a position is not the next token; -100 asks for none.
        loss_mask: True where a prediction counts, [position] or [row, position], or a function that
            makes it from the tokens. The prediction at position p is of token p + 1, or of label p.
        steps: with a shape: optimiser steps, 1000 by default.
        learning_rate: with a shape: peak, 1e-3 by default; warm-up takes a quarter of the steps, 50 at most.
        seed: with a shape: of weights and batches, 0 by default.
        checkpoints: with a shape: numbers of steps after which the weights are kept, for ``run.at(step)``.
        checkpoint: file that holds weights and optimiser state; read if it is there, written every
            ``save_every`` steps, and no other run's meanwhile. None keeps nothing.
        save_every: steps between two writes.
        progress: show a progress bar on standard error.
        device: where to train.
        threads: of the processor; one for small models unless the caller chose a number before. A number of
            threads fixes the weights to the last bit; another one sums in another order (two layers of width
            128, 30 steps, 1 against 2 threads: 41 % of the weights differ, by 1.3e-4 at most), so resume
            with the number that a run began with. The result and the card say it.
        on_step: called with (step, loss) after every step.

    Returns:
        The trained module with its history; ``.model`` is the bridge.

    Raises:
        NotEnoughDataError: the stream is shorter than one row.
        NonFiniteError: the loss left the finite numbers; lower the learning rate.
        CorruptedFileError: the checkpoint is of another recipe or corpus, or damaged.
        WriteError: another run uses the checkpoint.

    Example:
        >>> from lens_linear.models.native import ModelSpec
        >>> spec = ModelSpec(1, d_model=16, n_heads=2, d_vocab=32, n_ctx=16, attn_only=True)
        >>> rows = torch.arange(64).view(4, 16) % 32
        >>> len(train(spec, batches=lambda step: rows, steps=3, progress=False).history)
        3
    """
    require_int("save_every", save_every, minimum=1)
    recipe = _recipe(recipe, steps, learning_rate, seed, checkpoints)
    checkpoint = None if checkpoint is None else require_target("checkpoint", checkpoint)
    place, progress = require_device("device", device), require_bool("progress", progress)
    if on_step is not None:
        require_callable("on_step", on_step, advice="a function of step and loss")
    source = _Batches(recipe, stream, batches, loss_mask)
    with held(checkpoint, what="checkpoint"), few_threads(recipe.spec.d_model, threads):
        return _train(recipe, source, checkpoint, save_every, progress, place, on_step)


def _recipe(
    recipe: Recipe | ModelSpec,
    steps: int | None,
    learning_rate: float | None,
    seed: int | None,
    checkpoints: Sequence[int] | None,
) -> Recipe:
    """Return the recipe, or make one for a shape."""
    require_instance(
        "recipe", recipe, (Recipe, ModelSpec), advice="see lens_linear.training.recipes.RECIPES"
    )
    asked = {
        "steps": steps,
        "learning_rate": learning_rate,
        "seed": seed,
        "checkpoints": checkpoints,
    }
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if isinstance(recipe, Recipe):
        if given:
            raise InvalidArgumentError(
                f"{', '.join(given)} stand in the recipe {recipe.name!r}; change it there, or pass its spec"
            )
        return recipe
    n_steps = require_int("steps", given.get("steps", 1000), minimum=1)
    peak = require_float(
        "learning_rate", given.get("learning_rate", 1e-3), minimum=0.0, maximum=1e30
    )
    phase = Phase(n_steps, length=recipe.n_ctx, learning_rate=peak, warmup=min(50, n_steps // 4))
    kept = require_ints("checkpoints", given.get("checkpoints", ()), minimum=0, maximum=n_steps - 1)
    seed = require_seed(given.get("seed", 0))
    return Recipe("own", recipe, (phase,), seed=seed, precision="float32", checkpoints=tuple(kept))


def _sha256(*parts: Tensor | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if part is not None:
            digest.update(part.cpu().to(torch.int32).contiguous().numpy().tobytes())
    return digest.hexdigest()


class _Batches:
    """What is learnt from: text and repeats as the recipe says, or the caller's own batches."""

    def __init__(
        self,
        recipe: Recipe,
        stream: Tensor | None,
        batches: Batches | None,
        loss_mask: LossMask | None,
    ) -> None:
        if (stream is None) == (batches is None):
            raise InvalidArgumentError(
                "pass a stream of tokens or batches=, a function of the step; got "
                f"{'neither' if stream is None else 'both'}"
            )
        self.recipe, self.batches, self.loss_mask = recipe, batches, loss_mask
        self.stream: Tensor | None = None
        if stream is not None:
            self.stream = require_stream("stream", stream, n_vocab=recipe.spec.d_vocab).cpu()
            longest = max(phase.length for phase in recipe.phases)
            require_rows(
                "stream", len(self.stream), minimum=longest, why="one row of the longest phase"
            )
        elif not callable(batches):
            raise InvalidArgumentError(
                f"batches must be a function of the step, got {type(batches).__name__}; "
                "e.g. lambda step: rows"
            )

    def checksum(self) -> str:
        """SHA-256 of the corpus, or of the first batch where the caller makes them, and of what counts."""
        first, labels, mask = self.at(0)
        return _sha256(first if self.stream is None else self.stream, labels, mask)

    def batch_checksum(self, step: int) -> str:
        """SHA-256 of one step's batch where the caller makes them, else nothing."""
        return "" if self.batches is None else _sha256(*self.at(step))

    def at(self, step: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Tokens, labels and mask of one step."""
        labels = asked = None
        if self.batches is None:
            tokens = batch_at(self.recipe, self.stream, step)  # type: ignore[arg-type]
        else:
            try:
                made = self.batches(step)
            except TypeError as error:
                raise InvalidArgumentError(
                    f"batches must be a function of the step that returns rows, but batches({step}) fails "
                    f"({error}); write e.g. lambda step: rows"
                ) from error
            if isinstance(made, (tuple, list)) and len(made) == 2:
                made, labels = made
            spec = self.recipe.spec
            tokens = require_tokens(
                "batches(step)",
                made,
                n_vocab=spec.d_vocab,
                n_ctx=spec.n_ctx,
                min_length=2 if labels is None else 1,
            )
            if labels is not None:
                labels, asked = _asked(labels)
                labels = require_tokens("labels", labels, n_vocab=spec.d_vocab)
                if labels.shape != tokens.shape:
                    raise InvalidArgumentError(
                        f"labels must have the shape of the tokens {tuple(tokens.shape)}, got "
                        f"{tuple(labels.shape)}; one label a position, loss_mask says which count"
                    )
        mask = self._mask(tokens, labels is None)
        if asked is not None:
            mask = asked if mask is None else asked & mask
            if not bool(mask.any()):
                raise InvalidArgumentError(
                    "labels ask for nothing that counts: they are -100 wherever loss_mask lets one count; "
                    "pass labels of tokens there, or a loss_mask that is True where they are"
                )
        return tokens, labels, mask

    def _mask(self, tokens: Tensor, shifted: bool) -> Tensor | None:
        if self.loss_mask is None:
            return None
        try:
            mask = self.loss_mask(tokens) if callable(self.loss_mask) else self.loss_mask
            mask = torch.as_tensor(mask).cpu()
            if mask.is_floating_point() and not bool(torch.isfinite(mask).all()):
                raise ValueError("it holds NaN or infinity")
            mask = mask.bool()
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            raise InvalidArgumentError(
                f"loss_mask must be a mask of the shape of the tokens, got {shown(self.loss_mask)} "
                f"({error}); pass a tensor of True and False, or a function that returns one"
            ) from error
        if mask.shape not in (tokens.shape, tokens.shape[1:]):
            raise InvalidArgumentError(
                f"loss_mask must be [position] or [row, position] = {tuple(tokens.shape)}, got "
                f"{tuple(mask.shape)}; True where a prediction counts"
            )
        if not bool((mask[..., :-1] if shifted else mask).any()):
            raise InvalidArgumentError(
                "loss_mask leaves no prediction; the prediction at position p is of token p + 1"
            )
        return mask


def _train(
    recipe: Recipe,
    source: _Batches,
    checkpoint: Path | None,
    save_every: int,
    progress: bool,
    device: torch.device,
    on_step: Callable[[int, float], None] | None,
) -> TrainingRun:
    started = time.monotonic()
    module = native_module(recipe.spec, seed=recipe.seed).to(device)
    module.train()
    optimizer = _optimizer(module, recipe.weight_decay)
    corpus = source.checksum()
    state = load_checkpoint(checkpoint, recipe, module, optimizer, corpus=corpus)
    if state.step and state.batch != source.batch_checksum(state.step - 1):
        raise CorruptedFileError(
            f"checkpoint {str(checkpoint)!r} was written on other batches: those of step {state.step - 1} "
            "differ; remove it to begin anew, or name another file"
        )
    states = _States(module) if recipe.cosine else None
    penalty = CosineRegularizer(recipe.cosine) if recipe.cosine else None
    with worded_bar(recipe.steps, recipe.name, show=progress, begun=state.step) as done:
        for step in range(state.step, recipe.steps):
            if step in recipe.checkpoints and step not in state.kept:
                state.kept[step] = _copy(module)
            phase, inner = recipe.phase_at(step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(phase, inner)
            loss = _loss(recipe, module, source.at(step), device)
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
            done(step + 1, f"step {step + 1:,} of {recipe.steps:,}, loss {value:.3f}")
            if checkpoint is not None and (
                (step + 1) % save_every == 0 or step + 1 == recipe.steps
            ):
                state.step = step + 1
                state.minutes += (time.monotonic() - started) / 60
                started = time.monotonic()
                state.batch = source.batch_checksum(step)
                save_checkpoint(checkpoint, recipe, module, optimizer, state, corpus=corpus)
    minutes = state.minutes + (time.monotonic() - started) / 60
    module.eval()
    return TrainingRun(recipe, module, state.history, state.kept, minutes, torch.get_num_threads())


def _loss(
    recipe: Recipe,
    module: nn.Module,
    batch: tuple[Tensor, Tensor | None, Tensor | None],
    device: torch.device,
) -> Tensor:
    tokens = batch[0].to(device)
    labels, mask = (None if part is None else part.to(device) for part in batch[1:])
    autocast = recipe.precision == "bfloat16"
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast):
        logits = module(tokens)
    return next_token_loss(logits.float(), tokens, labels=labels, mask=mask)


def _require_finite_loss(value: float, recipe: Recipe, step: int) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the training loss of {recipe.name!r} became {value} at step {step}; "
            "lower learning_rate in the recipe; the last checkpoint is kept"
        )


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


@own_modes()
@torch.no_grad()
def validation_loss(
    module: nn.Module, rows: Integer[Tensor, "row position"] | TokenRows | Task, *, batch: int = 64
) -> float:
    """Mean next-token loss (nats) of a native module over rows of at least two tokens."""
    if isinstance(rows, Task) and (rows.labels is not None or rows.positions is not None):
        raise InvalidArgumentError(
            "rows is a Task with labels or positions, but here next tokens are scored; pass its tokens, or "
            "use lens_linear.stats.score_model on a bridge"
        )
    cfg: Any = module.cfg
    rows = require_tokens("rows", rows, n_vocab=cfg.d_vocab, n_ctx=cfg.n_ctx, min_length=2)
    device = next(module.parameters()).device
    losses = [
        float(next_token_loss(module(part.to(device)), part.to(device))) * len(part)
        for part in rows.split(batch)
    ]
    return sum(losses) / len(rows)
