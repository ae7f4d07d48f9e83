"""Direct logit attribution: what every component writes straight into the logit of an answer.

The last residual stream is a sum of the embedding, the position row, every head's output, every FFN's output
and biases. With the final norm's scale held at its value, unembedding is linear, so the logit is a sum over
them too: ``logit[t] = Σ_c x_c / scale · W_U[:, t] + b_U[t]``. The sum is exact up to rounding.

``relative`` is a component's logit minus its mean over all outputs: what the softmax can see, and what ranks.
What a component does *through* later ones is not in it; see
:func:`~lens_linear.circuits.patching.patch.patch`. Where a model bounds its logits (Gemma 2), the sum is
the logit before the bound.

>>> import torch
>>> from lens_linear.models.open.toy import toy_model
>>> model = toy_model(n_layers=2, attn_only=False, norm="RMS")
>>> found = direct_logit_attribution(model, torch.arange(9)[None])
>>> found.max_error < 1e-4, len(found.components)
(True, 13)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import counted, head_name, require_int
from lens_linear.circuits.attention.components import (
    Component,
    HeadOutputs,
    stream_components,
    stream_spots,
)
from lens_linear.circuits.induction.ablation import task_batches
from lens_linear.circuits.labels import require_labels
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.capture import run
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.describe.weights import norm_scale, read_weights
from lens_linear.stats.task_scores import answer_values, require_task, warn_if_not_next_token
from lens_linear.tables import Result
from lens_linear.text.task import Task

# Largest gap between the sum and the model's logits, relative to the largest. float32 measures 1e-6.
_LIMITS = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_LIMIT = 1e-1
BLOCK = 64 * 2**20  # bytes of components held at once


@dataclass(frozen=True, eq=False)
class DirectLogitAttribution(Result):
    """The logits of the right answers as sums over components.

    Attributes:
        task: what was asked.
        components: name, kind, layer and head of each.
        logit: what each adds to the right answer's logit.
        relative: the same minus its mean over all outputs, or minus the wrong answer's where the task has
            one.
        answers: row, position and right output of each answer.
        model_logits: the model's own logit of each answer (bounded, where it has a soft cap).
        softcap: the bound the model puts on logits, or None.
        labels: text of the outputs, or None.
    """

    task: Task = field(repr=False)
    components: tuple[Component, ...] = field(repr=False)
    logit: Float[Tensor, "component answer"] = field(repr=False)
    relative: Float[Tensor, "component answer"] = field(repr=False)
    answers: Int[Tensor, "answer 3"] = field(repr=False)
    model_logits: Float[Tensor, " answer"] = field(repr=False)
    softcap: float | None = None
    labels: Sequence[str] | None = field(default=None, repr=False)

    _figure = "direct_logit_attribution"
    _columns = ("component", "logit", "relative", "relative_se")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the components."""
        return tuple(component.name for component in self.components)

    @property
    def total(self) -> Float[Tensor, " answer"]:
        """The sum over components: each answer's logit, bounded where the model does."""
        total = self.logit.sum(0)
        return total if self.softcap is None else self.softcap * torch.tanh(total / self.softcap)

    @property
    def max_error(self) -> float:
        """Largest difference between :attr:`total` and the model's own logits."""
        return float((self.total - self.model_logits).abs().max())

    def __repr__(self) -> str:
        mean = self.relative.mean(1)
        best = mean.abs().topk(min(3, len(mean))).indices.tolist()
        named = ", ".join(f"{self.names[i]} {float(mean[i]):+.2f}" for i in best)
        bound = f", before the bound of {self.softcap:g}" if self.softcap is not None else ""
        return (
            f"DirectLogitAttribution: {counted(len(self.components), 'component')}, "
            f"{counted(len(self.answers), 'answer')}, largest error {self.max_error:.2g}{bound}; "
            f"largest on average (logits above the others): {named}"
        )

    def to_dataframe(self, answer: int | None = None) -> pd.DataFrame:
        """One row a component, largest first: component, kind, layer, head, logit, relative, relative_se.

        Args:
            answer: which answer; the mean over all by default. ``relative_se`` is the standard error of that
                mean over rows, NaN for one answer or one row.
        """
        if answer is None:
            logit, relative = self.logit.mean(1), self.relative.mean(1)
            spread = self._standard_error()
        else:
            answer = require_int("answer", answer, minimum=0, maximum=len(self.answers) - 1)
            logit, relative = self.logit[:, answer], self.relative[:, answer]
            spread = torch.full_like(logit, float("nan"))
        frame = pd.DataFrame(
            {
                "component": self.names,
                "kind": [c.kind for c in self.components],
                "layer": [c.layer for c in self.components],
                "head": [
                    head_name(c.layer, c.head) if c.head >= 0 else "" for c in self.components
                ],
                "logit": logit.numpy(),
                "relative": relative.numpy(),
                "relative_se": spread.numpy(),
            }
        )
        return frame.sort_values(
            "relative", key=abs, ascending=False, kind="stable", ignore_index=True
        )

    def _standard_error(self) -> Float[Tensor, " component"]:
        """Of the mean over answers, rows being independent."""
        rows, which = self.answers[:, 0].unique(return_inverse=True)
        n = len(rows)
        if n < 2:
            return torch.full((len(self.relative),), float("nan"), dtype=torch.float64)
        apart = self.relative - self.relative.mean(1, keepdim=True)
        sums = torch.zeros(len(apart), n, dtype=apart.dtype).index_add_(1, which, apart)
        return (sums.square().sum(1) * n / (n - 1)).sqrt() / self.relative.shape[1]


def direct_logit_attribution(
    model: ModelLike,
    task: Any,
    *,
    labels: Sequence[str] | None = None,
    batch_size: int | None = None,
) -> DirectLogitAttribution:
    """Split the logits of the right answers into what every component writes into them directly.

    ``logit[c] = x_c / scale · W_U[:, answer]``, in logits; ``relative`` is 0 for a component that favours no
    output. Norm weights are folded, the final norm's scale is held at its value.

    Args:
        model: a bridge, with or without MLPs, norms and post-norms.
        task: a Task, or tokens, whose next token is the right answer at every position.
        labels: text of the outputs; the task's names or the tokenizer's by default.
        batch_size: rows a forward pass; None takes what memory allows.

    Returns:
        DirectLogitAttribution: ``.logit`` and ``.relative`` [component, answer]; acts as a table with one row
        a component, largest first.

    Raises:
        UnsupportedModelError: the components do not add up to the model's stream or logits.

    Source: Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, "Residual stream" (logits
        as sums over components); with norms, post-norms and MLPs as here it is common usage.

    Example:
        >>> from lens_linear.constructions.induction_model import build_induction
        >>> built = build_induction(vocab=12, n_ctx=24)  # L1H1 is the one head that writes to the logits
        >>> from lens_linear.text.task import Task
        >>> tokens = torch.tensor([[3, 7, 5, 9, 3, 7, 5, 9]])
        >>> direct_logit_attribution(built.model, Task(tokens, positions=[4, 5, 6]))["component"][0]
        'L1H1'
    """
    model = checked(model)
    asked = require_task(model, task, scored=True)
    weights = read_weights(model)
    heads = HeadOutputs(model, weights)
    parts, first = [], 0
    for part in task_batches(model, asked, batch_size):
        parts.append(_of_batch(model, heads, part, first))
        first += len(part)
    components = parts[0][0]
    _, logits, relatives, targets, owns, losses = zip(*parts, strict=True)
    warn_if_not_next_token(asked, float(torch.cat(losses).mean()), model)
    logit, relative = torch.cat(logits, dim=1), torch.cat(relatives, dim=1)
    answers, own = torch.cat(targets), torch.cat(owns)
    if labels is None and asked.names is not None:
        text: Sequence[str] | None = asked.names
    else:
        text = require_labels(labels, model) if model.d_vocab == model.d_vocab_out else None
    found = DirectLogitAttribution(
        asked, components, logit, relative, answers, own.double(), model.logit_softcap, text
    )
    limit = _LIMITS.get(own.dtype, _HALF_LIMIT)
    if not found.max_error <= limit * max(1.0, float(own.abs().max())):
        raise UnsupportedModelError(
            f"the components of {model.name!r} miss its logits by {found.max_error:.3g}; it treats its last "
            "stream in a way not known here; use lens_linear.patch, which runs the model itself"
        )
    return found


def _of_batch(
    model: CheckedModel, heads: HeadOutputs, task: Task, first_row: int
) -> tuple[tuple[Component, ...], Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Components, logit, relative, answers, the model's own logits and its losses of some rows."""
    weights = heads.weights
    out = run(model, task, record=stream_spots(model, model.n_layers))
    row, position = task.asked.nonzero().unbind(1)
    right = task.targets[row, position]
    wrong = None if task.wrong is None else task.wrong[row, position]
    components: tuple[Component, ...] = ()
    logits, relatives = [], []
    size = max(1, BLOCK // (8 * model.d_model * (model.n_layers * (model.n_heads + 2) + 2)))
    for chosen in torch.arange(len(row)).split(size):
        at = (row[chosen], position[chosen])
        found = stream_components(heads, out, task.tokens, model.n_layers, at=at)
        reads = found.parts[:, 0] / norm_scale(found.stream[0], weights.final_norm, weights.eps)
        toward = weights.W_U.T[right[chosen]]
        seen = weights.class_directions(right[chosen])
        bias = weights.b_U[right[chosen]]
        above = bias - weights.b_U.mean()
        if wrong is not None:
            seen = toward - weights.W_U.T[wrong[chosen]]
            above = bias - weights.b_U[wrong[chosen]]
        logits.append(torch.cat([torch.einsum("cad,ad->ca", reads, toward), bias[None]]))
        relatives.append(torch.cat([torch.einsum("cad,ad->ca", reads, seen), above[None]]))
        components = (*found.found, Component("b_U", "bias"))
    answers = torch.stack([row + first_row, position, right], dim=1)
    own = out.logits[
        row.to(out.logits.device), position.to(out.logits.device), right.to(out.logits.device)
    ]
    losses = answer_values(task, out.logits, metric="loss").detach().double().cpu()
    own = own.detach().cpu()
    return components, torch.cat(logits, 1), torch.cat(relatives, 1), answers, own, losses
