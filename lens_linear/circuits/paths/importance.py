"""Term importance: what the paths of each order do to the loss (Elhage et al. 2021).

The paper's procedure: run the model and keep its attention patterns. Run it again with the patterns forced
and every head's output replaced by zero: only the direct path is left, record the loss. Run it again with
every head's output replaced by what it was in the run before: now paths of one head are in, and so on. Run n
holds exactly the paths of at most n heads. Here the same sums are formed directly, order by order:
``x_n`` after layer l is ``x_n`` before it plus the heads of layer l applied to ``x_{n-1}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import counted
from lens_linear.circuits.paths.chains import bias_sources, direct_sources, embedding_sources, send
from lens_linear.errors import NotEnoughDataError
from lens_linear.models.frozen.frozen_attention import FrozenRun
from lens_linear.stats.task_scores import score_answers
from lens_linear.tables import Result
from lens_linear.text.task import Task


@dataclass(frozen=True, eq=False)
class PathImportance(Result):
    """Marginal loss effect of the paths of each order.

    Attributes:
        orders: 0 is the direct path (with position rows and b_U), 1 single heads, 2 chains of two, ...
        n_paths: how many paths have this order.
        losses: the metric with all paths of at most this order: nats a token for a loss.
        uniform: the metric of a uniform guess (a loss of ln(vocabulary)): where order 0 starts from.
        n_tokens: answers behind the means.
        metric: its name.
    """

    _figure = "path_importance"

    n_paths: tuple[int, ...]
    losses: tuple[float, ...]
    uniform: float
    n_tokens: int = field(default=0)
    metric: str = "loss"

    @property
    def effects(self) -> tuple[float, ...]:
        """By how much each order lowers the loss, or raises another metric, given all lower ones."""
        before, sign = (self.uniform, *self.losses[:-1]), 1 if self.metric == "loss" else -1
        return tuple(sign * (b - a) for b, a in zip(before, self.losses, strict=True))

    def __repr__(self) -> str:
        parts = ", ".join(f"order {n}: {effect:+.3f}" for n, effect in enumerate(self.effects))
        what = "loss lowered (nats)" if self.metric == "loss" else f"{self.metric} raised"
        return f"PathImportance over {counted(self.n_tokens, 'token')}, {what} by {parts}"

    def to_dataframe(self) -> pd.DataFrame:
        """Columns order, n_paths, loss_before, loss_after, effect, effect_per_path."""
        return pd.DataFrame(
            {
                "order": range(len(self.losses)),
                "n_paths": self.n_paths,
                "loss_before": (self.uniform, *self.losses[:-1]),
                "loss_after": self.losses,
                "effect": self.effects,
                "effect_per_path": [
                    effect / max(1, n) for effect, n in zip(self.effects, self.n_paths, strict=True)
                ],
            }
        )


def importance_of_orders(
    streams: Sequence[Float[Tensor, "batch position d_model"]],
    direct: Sequence[Tensor],
    n_paths: Sequence[int],
    final_scale: Tensor,
    unembedding: Tensor,
    task: Task,
) -> PathImportance:
    """Turn what each order leaves in the stream into the task's metric with orders 0 to n.

    ``direct`` are logits that belong to order 0.
    """
    total = torch.zeros_like(streams[0])
    extra = sum(direct, torch.zeros((), dtype=unembedding.dtype))
    losses = []
    for stream in streams:
        total = total + stream
        logits = total / final_scale @ unembedding + extra
        losses.append(score_answers(task, logits).mean)
    uniform = score_answers(task, torch.zeros_like(logits)).mean
    return PathImportance(
        tuple(n_paths), tuple(losses), uniform, int(task.asked.sum()), task.metric_name
    )


def require_answers(task: Task) -> None:
    """Refuse rows of one token when the next token is asked for.

    Raises:
        NotEnoughDataError: nothing can be predicted.
    """
    if task.is_next_token and not bool(task.asked.any()):
        raise NotEnoughDataError(
            f"tokens must have at least 2 positions for a next-token loss, got {task.tokens.shape[1]}; "
            "pass longer sequences"
        )


def importance_by_order(frozen: FrozenRun, task: Task) -> PathImportance:
    """Term importance for any depth and number of heads: (layers + 1) streams instead of all paths."""
    n_layers = len(frozen.patterns)
    names, sources = embedding_sources(frozen)
    orders = torch.zeros(n_layers + 1, *frozen.embedding.shape, dtype=frozen.embedding.dtype)
    orders[0] = sources.sum(0)
    counts = [len(names)] + [0] * n_layers
    for layer in range(n_layers):
        through = send(frozen, layer, orders[: layer + 1])
        moved = [counts[n] * len(through) for n in range(layer + 1)]
        orders[1 : layer + 2] += through.sum(0)
        for n, count in enumerate(moved):
            counts[n + 1] += count
        for name, stream in zip(*bias_sources(frozen, layer), strict=True):
            orders[len(name.heads)] += stream
            counts[len(name.heads)] += 1
    direct = direct_sources(frozen)[1]
    counts[0] += len(direct)
    return importance_of_orders(
        list(orders), direct, counts, frozen.scales[-1], frozen.weights.W_U, task
    )
