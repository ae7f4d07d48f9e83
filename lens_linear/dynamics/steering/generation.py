"""What steering does to what the model writes, and what it costs in perplexity.

A schedule adds ``u_l v_l`` to the residual stream at the input of every block l. Where along the text:

* ``where="generated"``: at the prompt's last token and at every generated one (what steering with a key/value
  cache does: each token is the last one of its own step);
* ``where="prompt"``: at the prompt's last token alone, the state that the gains speak of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import (
    counted,
    require_choice,
    require_float,
    require_float_tensor,
    require_floats,
    require_int,
    require_seed,
)
from lens_linear.dynamics.gains.directions import last_states
from lens_linear.dynamics.gains.gain_profile import require_directions
from lens_linear.dynamics.gains.prompts import Prompts, PromptsLike, as_prompts
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import to_compute
from lens_linear.models.capture import run
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.spots import Edit
from lens_linear.models.tokenizer import require_tokenizer
from lens_linear.stats.model_scores import score_model
from lens_linear.stats.split import as_rows
from lens_linear.tables import Result, cells

Where = Literal["generated", "prompt"]


@dataclass(frozen=True, eq=False)
class SteeredText(Result):
    """Continuations at several scales of one schedule, usable as a data frame.

    Attributes:
        prompts: the prompts as text.
        texts: continuations, one row a scale.
        tokens: their ids, one row a scale.
        scales: multiples of the schedule; 0 is the model left alone.
        loss: nats a token of each continuation under the model left alone.
        readout: C·x_L at the continuation's last token, the model left alone: what the text itself says.
        where: see the module's head.
        temperature: 0 is greedy.
        seed: of the sampling.
    """

    _figure = "steered_text"

    prompts: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    tokens: Int[Tensor, "scale prompt step"]
    scales: tuple[float, ...]
    loss: Float[Tensor, "scale prompt"]
    readout: Float[Tensor, "scale prompt"]
    where: Where
    temperature: float
    seed: int

    def __repr__(self) -> str:
        how = "greedy" if self.temperature == 0 else f"temperature {self.temperature:g}"
        return (
            f"SteeredText: {counted(len(self.prompts), 'prompt')} continued by "
            f"{counted(self.tokens.shape[2], 'token')} at "
            f"scales {', '.join(f'{s:g}' for s in self.scales)}, {how}, added at {self.where!r} tokens"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a prompt and scale: prompt, scale, text, perplexity, readout."""
        values = {"perplexity": self.loss.exp().T, "readout": self.readout.T}
        frame = cells({"prompt": self.prompts, "scale": self.scales}, values)
        frame.insert(
            2, "text", [text for prompt in zip(*self.texts, strict=True) for text in prompt]
        )
        return frame


def steer_text(
    model: ModelLike,
    prompts: PromptsLike | Prompts,
    directions: Float[Tensor, "boundary d_model"],
    schedule: Float[Tensor, " layer"],
    *,
    n_tokens: int = 20,
    scales: Sequence[float] = (0.0, 1.0, -1.0),
    where: Where = "generated",
    temperature: float = 0.0,
    readout: Float[Tensor, " d_model"] | None = None,
    truncate: bool = False,
    seed: int = 0,
) -> SteeredText:
    """Continue prompts while a schedule is added to the residual stream.

    Each continuation is scored by the model left alone: its perplexity says how odd the text has become, its
    readout how far it carries the concept.

    Args:
        model: a causal bridge with a tokenizer.
        prompts: texts, or rows of ids.
        directions: v_0 ... v_L.
        schedule: amplitudes u_l, e.g. from :func:`~lens_linear.min_energy`.
        n_tokens: tokens to write.
        scales: multiples of the schedule.
        where: "generated" or "prompt", see the module's head.
        temperature: 0 takes the likeliest token; above 0 samples. All scales share the random numbers.
        readout: C; v_L by default.
        truncate: keep the last tokens of prompts longer than the context.
        seed: of the sampling.

    Returns:
        SteeredText: ``.texts``, ``.loss`` (nats a token), ``.readout``, [scale, prompt]; acts as a table.

    Raises:
        InvalidArgumentError: prompt and continuation do not fit the context, or the schedule has not one
            entry a layer.
        UnsupportedModelError: the model has no tokenizer.

    Source: Nettasinghe & Joseph 2026, arXiv 2603.12541 (steering by a schedule); the score
        by the model left alone is ours.

    Example:
        >>> from lens_linear.dynamics.gains.directions import random_directions
        >>> from lens_linear.models.open.load import load
        >>> model, push = load("attn-2l"), torch.tensor([20.0, 20.0])
        >>> many = {"n_tokens": 4, "scales": (0, 1)}
        >>> found = steer_text(model, ["Once upon a"], random_directions(model), push, **many)
        >>> found.tokens.shape, bool(found.loss[1] > found.loss[0])  # pushed far, the text turns odd
        (torch.Size([2, 1, 4]), True)
    """
    n_tokens = require_int("n_tokens", n_tokens, minimum=1)
    temperature = require_float("temperature", temperature, minimum=0.0)
    require_choice("where", where, ("generated", "prompt"))
    model = checked(model)
    tokenizer = require_tokenizer(model)
    directions, readout = require_directions(model, directions, readout)
    start = as_prompts(model, prompts, truncate=truncate)
    longest = int(start.lengths.max())
    if longest + n_tokens > model.n_ctx:
        raise InvalidArgumentError(
            f"n_tokens must leave room: {longest} prompt tokens and {n_tokens} more exceed the context of "
            f"{model.n_ctx}; pass shorter prompts or a smaller n_tokens"
        )
    offsets = _offsets(schedule, directions)
    factors = _factors(scales)
    seed = require_seed(seed)
    written, losses, readouts = [], [], []
    for scale in factors:
        tokens, lengths = _continued(
            model, start, scale * offsets, n_tokens, where, temperature, seed
        )
        # Each row's continuation starts at its own length; what stands behind it is padding.
        place = lengths[:, None] + torch.arange(-n_tokens, 0)
        written.append(tokens.gather(1, place))
        rows = [row[:length] for row, length in zip(tokens, lengths.tolist(), strict=True)]
        losses.append(_continuation_loss(model, tokens, place))
        readouts.append(last_states(model, rows)[-1] @ readout)
    texts = [[tokenizer.decode(row.tolist()) for row in tokens] for tokens in written]
    shown = [
        tokenizer.decode(row[:length].tolist(), skip_special_tokens=True)
        for row, length in zip(start.tokens, start.lengths.tolist(), strict=True)
    ]
    return SteeredText(
        tuple(shown),
        tuple(tuple(row) for row in texts),
        torch.stack(written),
        factors,
        torch.stack(losses),
        torch.stack(readouts),
        where,
        temperature,
        seed,
    )


def _offsets(schedule: Tensor, directions: Tensor) -> Float[Tensor, "layer d_model"]:
    n_layers = len(directions) - 1
    amplitudes = to_compute(require_float_tensor("schedule", schedule)).to(directions.device)
    if amplitudes.shape != (n_layers,):
        raise InvalidArgumentError(
            f"schedule must have one amplitude for each of {n_layers} layers, got shape "
            f"{tuple(amplitudes.shape)}; of a schedule a prompt take the mean over prompts"
        )
    return amplitudes[:, None] * directions[:n_layers]


def _added(offsets: Tensor, positions: Tensor | None) -> list[Edit]:
    """Edits that add the offsets at marked positions [row, position], or everywhere."""

    def add(layer: int) -> Callable[[Tensor], Tensor]:
        def hook(x: Tensor) -> Tensor:
            vector = offsets[layer].to(x)
            return x + (vector if positions is None else positions[..., None].to(x) * vector)

        return hook

    return [((layer, "resid_pre"), add(layer)) for layer in range(len(offsets))]


def _continued(
    model: CheckedModel,
    start: Prompts,
    offsets: Float[Tensor, "layer d_model"],
    n_tokens: int,
    where: Where,
    temperature: float,
    seed: int,
) -> tuple[Int[Tensor, "prompt position"], Int[Tensor, " prompt"]]:
    """Write n_tokens after every prompt; rows stay padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    room = start.tokens[:, -1:].expand(-1, n_tokens)
    tokens, lengths = torch.cat([start.tokens, room], dim=1), start.lengths.clone()
    column = torch.arange(tokens.shape[1])
    for _ in range(n_tokens):
        width = int(lengths.max())
        marked = column[:width] >= start.lengths[:, None] - 1
        if where == "prompt":
            marked &= column[:width] < start.lengths[:, None]
        out = run(model, tokens[:, :width], edits=_added(offsets, marked.to(model.device)))
        last = out.logits[torch.arange(len(lengths)), lengths - 1].double().cpu()
        if temperature == 0:
            following = last.argmax(-1)
        else:
            chances = (last / temperature).softmax(-1)
            following = torch.multinomial(chances, 1, generator=generator)[:, 0]
        tokens = tokens.scatter(1, lengths[:, None], following[:, None])
        lengths = lengths + 1
    return tokens, lengths


def _continuation_loss(
    model: CheckedModel, tokens: Tensor, place: Int[Tensor, "prompt step"]
) -> Float[Tensor, " prompt"]:
    """Mean loss, in nats a token, of the tokens at the places given, by the model left alone."""
    out = run(model, tokens)
    # Only the continuation's rows go to float64: a whole prompt's logits over a large vocabulary are many.
    rows = torch.arange(len(place))[:, None].to(out.logits.device)
    scores = out.logits[rows, (place - 1).to(out.logits.device)].double().cpu().log_softmax(-1)
    targets = tokens.gather(1, place)
    return -scores.gather(2, targets[..., None])[..., 0].mean(-1)


@dataclass(frozen=True, eq=False)
class SteeringCost(Result):
    """Loss with a schedule added at every token.

    Attributes:
        scales: multiples of the schedule.
        losses: nats an answer (a token, unless a Task asks something else), one a scale.
        n_tokens: real tokens read.
        scores: the task's own metric, one a scale; the losses again where that is the loss.
        metric: its name.
    """

    _figure = "steering_cost"

    scales: tuple[float, ...]
    losses: tuple[float, ...]
    n_tokens: int
    scores: tuple[float, ...] = ()
    metric: str = "loss"

    def __repr__(self) -> str:
        worst = max(self.losses)
        return (
            f"SteeringCost: {counted(len(self.scales), 'scale')} on {counted(self.n_tokens, 'token')}, "
            f"loss up to {worst:.3f} "
            "nats a token"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a scale: scale, loss, perplexity, n_tokens, and a task's own metric under its name."""
        import math

        columns = {
            "scale": self.scales,
            "loss": self.losses,
            "perplexity": [math.exp(min(loss, 700.0)) for loss in self.losses],
            "n_tokens": self.n_tokens,
        }
        return pd.DataFrame(
            columns if self.metric == "loss" else {**columns, self.metric: self.scores}
        )


def _factors(scales: Sequence[float]) -> tuple[float, ...]:
    factors = tuple(require_floats("scales", scales))
    if not factors:
        raise InvalidArgumentError("scales must name at least one multiple; pass e.g. (0.0, 1.0)")
    return factors


def steering_cost(
    model: ModelLike,
    tokens: Any,
    directions: Float[Tensor, "boundary d_model"],
    schedule: Float[Tensor, " layer"],
    *,
    scales: Sequence[float] = (-2.0, -1.0, 0.0, 1.0, 2.0),
    batch_size: int | None = 16,
) -> SteeringCost:
    """Loss on ordinary text while a schedule is added at every token: the price of steering.

    Nats a token; scale 0 is the model left alone.

    Args:
        model: a causal bridge.
        tokens: ids of text that has nothing to do with the concept, or a :class:`~lens_linear.Task` with
            the answers that are right.
        directions: v_0 ... v_L.
        schedule: amplitudes u_l.
        scales: multiples of the schedule.
        batch_size: sequences a forward pass.

    Returns:
        SteeringCost: ``.losses``, one a scale; acts as a table.

    Raises:
        NotEnoughDataError: rows of one token.
        InvalidArgumentError: a schedule or scales that do not fit.

    Example:
        >>> from lens_linear.dynamics.gains.directions import random_directions
        >>> from lens_linear.models.open.toy import toy_model
        >>> model, tokens = toy_model(n_layers=2), torch.arange(12)[None]
        >>> cost = steering_cost(model, tokens, random_directions(model), torch.ones(2), scales=(0.0,))
        >>> alone = torch.nn.functional.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:])
        >>> abs(cost.losses[0] - alone.item()) < 1e-5
        True
    """
    model = checked(model)
    rows = as_rows(model, tokens)
    directions, _ = require_directions(model, directions)
    offsets = _offsets(schedule, directions)
    factors = _factors(scales)
    found = []
    for scale in factors:
        edits = _added(scale * offsets, None) if scale else ()
        found.append(score_model(model, rows, edits=edits, batch_size=batch_size))
    return SteeringCost(
        factors,
        tuple(one.loss.mean for one in found),
        rows.n_tokens(),
        tuple(one.metric.mean for one in found),
        "loss" if rows.task is None else rows.task.metric_name,
    )
