"""The logits of an attention-only transformer as an exact sum over end-to-end paths.

With attention patterns and norm scales held at their values, every logit is a sum: the direct path from the
embedding, one term for every head, one for every chain of heads through the layers ("virtual heads"), the
same for position rows and biases. Nothing is approximated; ``max_error`` is rounding.

>>> import torch
>>> from lens_linear.circuits.paths.attention_only import AttentionOnly
>>> from lens_linear.models.open.toy import toy_model
>>> paths = AttentionOnly(toy_model(n_layers=2, n_heads=2)).paths(torch.arange(8))
>>> paths.max_error < 1e-5, len(paths.terms)
(True, 18)

What a path does *not* say: patterns are given, so paths through QK (why a head looks where it looks) are
another question, see :mod:`lens_linear.circuits.attention.attribution`.

Source: Elhage et al. 2021, "The Path Expansion Trick" and "Term Importance Analysis".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.checks import counted, require_int
from lens_linear.circuits.paths.chains import Heads, PathName
from lens_linear.circuits.paths.importance import (
    PathImportance,
    importance_of_orders,
    require_answers,
)
from lens_linear.stats.task_scores import (
    refuse_seen_tokens,
    score_answers,
    warn_if_worse_than_a_guess,
)
from lens_linear.tables import Result
from lens_linear.text.task import Task


@dataclass(frozen=True, eq=False)
class PathTerm:
    """One end-to-end path and what it adds to the logits.

    ``term.logits`` are computed when asked for: a model has many paths.

    Attributes:
        name: e.g. ``token → L0H1 → L1H2``.
        source: "token", "position" or a bias.
        heads: (layer, head) in order; empty for the direct path.
    """

    name: str
    source: str
    heads: Heads
    expansion: PathExpansion = field(repr=False)
    index: int = field(repr=False)

    @property
    def order(self) -> int:
        """How many heads the path passes."""
        return len(self.heads)

    @property
    def logits(self) -> Float[Tensor, "batch position vocab_out"]:
        """What the path adds to the logits, [batch, position, token]."""
        return self.expansion.term_logits(self.index)


@dataclass(frozen=True, eq=False)
class PathTable(Result):
    """Which paths wrote one logit, largest first.

    Attributes:
        position, token, batch: of the logit.
        logit: the model's own logit there.
        rows: path name, source, order, logit, and the logit minus the path's mean over tokens.
        token_text: text of the token, or None.
    """

    position: int
    token: int
    batch: int
    logit: float
    rows: tuple[dict[str, Any], ...] = field(repr=False)
    token_text: str | None = None

    _figure = "path_logits"

    def __repr__(self) -> str:
        return (
            f"PathTable: {counted(len(self.rows), 'path')} to the logit {self.logit:.3f} of token "
            f"{self.token} at "
            f"position {self.position}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns path, source, order, logit (sums to the model's), relative (minus the mean token)."""
        return pd.DataFrame(self.rows, columns=["path", "source", "order", "logit", "relative"])


@dataclass(frozen=True, eq=False)
class PathAblation(Result):
    """What the task's metric becomes when one path's logits are taken away, patterns and scales frozen.

    Attributes:
        loss: the metric of all paths together: nats a token for a loss.
        rows: path, order, and how much worse the metric is without it (positive: the path helps).
        metric: its name.
    """

    _figure = "path_ablations"

    loss: float
    rows: tuple[dict[str, Any], ...] = field(repr=False)
    metric: str = "loss"

    def __repr__(self) -> str:
        return (
            f"PathAblation: {counted(len(self.rows), 'path')} taken away one by one; {self.metric} "
            f"{self.loss:.3f}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns path, source, order, effect (nats a token), most helpful first."""
        frame = pd.DataFrame(self.rows, columns=["path", "source", "order", "effect"])
        return frame.sort_values("effect", ascending=False, kind="stable").reset_index(drop=True)


@dataclass(frozen=True, eq=False)
class PathExpansion(Result):
    """The logits of some tokens as a sum over paths.

    Attributes:
        model_name: for messages; the expansion keeps no model, so it can be pickled without one.
        causal: whether the model does not see later tokens; else next tokens are no question for it.
        task: the tokens and what is asked of them; next tokens unless a Task was passed.
        names: of the paths, in the order of :attr:`terms`.
        streams: what each path leaves in the residual stream; the last ``len(direct)`` paths have none.
        direct: logits of the paths that do not pass the stream (b_U).
        unembedding: ``W_U``, the final norm folded.
        final_scale: the final norm's scale at each position.
        model_logits: the model's own.
        labels: text of the vocabulary, or None.
    """

    _figure = "path_importance"

    model_name: str = field(repr=False)
    causal: bool = field(repr=False)
    task: Task = field(repr=False)
    names: tuple[PathName, ...]
    streams: Float[Tensor, "path batch position d_model"] = field(repr=False)
    direct: tuple[Tensor, ...] = field(repr=False)
    unembedding: Float[Tensor, "d_model vocab_out"] = field(repr=False)
    final_scale: Float[Tensor, "batch position 1"] = field(repr=False)
    model_logits: Float[Tensor, "batch position vocab_out"] = field(repr=False)
    labels: Sequence[str] | None = field(default=None, repr=False)

    @property
    def tokens(self) -> Int[Tensor, "batch position"]:
        """The ids."""
        return self.task.tokens

    def __repr__(self) -> str:
        batch, length = self.tokens.shape
        return (
            f"PathExpansion: {counted(len(self.names), 'path')} of up to "
            f"{max(len(n.heads) for n in self.names)} "
            f"heads, {batch} × {length} tokens, largest error against the model {self.max_error:.2g} logits"
        )

    @cached_property
    def terms(self) -> tuple[PathTerm, ...]:
        """One term for each end-to-end path; their ``logits`` sum to :attr:`logits`."""
        return tuple(
            PathTerm(str(name), name.source, name.heads, self, index)
            for index, name in enumerate(self.names)
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Columns path, source, order, size: root mean square of its logits above their mean over tokens."""
        sizes = []
        for term in self.terms:
            logits = term.logits
            sizes.append(float((logits - logits.mean(-1, keepdim=True)).square().mean().sqrt()))
        return pd.DataFrame(
            {
                "path": [term.name for term in self.terms],
                "source": [term.source for term in self.terms],
                "order": [term.order for term in self.terms],
                "size": sizes,
            }
        )

    def term_logits(self, index: int) -> Float[Tensor, "batch position vocab_out"]:
        """Return what one path adds to the logits."""
        index = require_int("index", index, minimum=0, maximum=len(self.names) - 1)
        if index >= len(self.streams):
            return self.direct[index - len(self.streams)].expand_as(self.model_logits)
        return self.streams[index] / self.final_scale @ self.unembedding

    @cached_property
    def logits(self) -> Float[Tensor, "batch position vocab_out"]:
        """The sum of all terms."""
        total = self.streams.sum(0) / self.final_scale @ self.unembedding
        for extra in self.direct:
            total = total + extra
        return total

    @cached_property
    def max_error(self) -> float:
        """Largest difference between :attr:`logits` and the model's own, in logits."""
        return float((self.logits - self.model_logits).abs().max())

    @cached_property
    def loss(self) -> float:
        """Mean cross-entropy of the right answers under the sum, nats an answer.

        Raises:
            UnsupportedModelError: no labels, and the model sees the next tokens, or has no such outputs.
        """
        self._require_question()
        loss = score_answers(self.task, self.logits, metric="loss").mean
        self._warn_of(loss)
        return loss

    def _require_question(self) -> None:
        """Refuse to score what the model is not asked."""
        if not self.causal and self.task.is_next_token:
            refuse_seen_tokens(self.model_name)
        require_answers(self.task)

    def _warn_of(self, loss: float) -> None:
        n_outputs = self.unembedding.shape[1]
        warn_if_worse_than_a_guess(self.task, loss, self.model_name, n_outputs, stacklevel=4)

    def token_table(self, position: int, token: int | None = None, *, batch: int = 0) -> PathTable:
        """Say which paths wrote one logit.

        Args:
            position: where; negative counts from the end.
            token: whose logit; the right answer by default, or the model's favourite where nothing is asked.
            batch: which sequence.

        Returns:
            One row a path. ``logit`` adds up to the model's logit. ``relative`` is the logit minus the
            path's mean over all tokens, which is what the softmax can see.
        """
        batch = require_int("batch", batch, minimum=0, maximum=len(self.tokens) - 1)
        length = self.tokens.shape[1]
        position = require_int("position", position, minimum=-length, maximum=length - 1) % length
        if token is None:
            right = int(self.task.targets[batch, position])
            known = right >= 0 and (self.causal or not self.task.is_next_token)
            token = right if known else int(self.model_logits[batch, position].argmax())
        token = require_int("token", token, minimum=0, maximum=self.unembedding.shape[1] - 1)
        scale = self.final_scale[batch, position]
        streams = self.streams[:, batch, position] / scale
        logit = streams @ self.unembedding[:, token]
        relative = logit - streams @ self.unembedding.mean(1)
        for extra in self.direct:
            row = extra.expand_as(self.model_logits)[batch, position]
            logit = torch.cat([logit, row[token][None]])
            relative = torch.cat([relative, (row[token] - row.mean())[None]])
        rows = [
            {
                "path": str(self.names[i]),
                "source": self.names[i].source,
                "order": len(self.names[i].heads),
                "logit": float(logit[i]),
                "relative": float(relative[i]),
            }
            for i in relative.abs().argsort(descending=True, stable=True).tolist()
        ]
        total = float(self.model_logits[batch, position, token])
        same = self.labels is not None and len(self.labels) == self.unembedding.shape[1]
        text = self.labels[token] if same and self.labels is not None else None
        return PathTable(position, token, batch, total, tuple(rows), text)

    def importance(self) -> PathImportance:
        """Marginal effect on the task's metric of the paths of each order: direct path, single heads, chains.

        The paper's algorithm, as a cumulative sum: the loss with all paths of at most n heads, for
        n = 0, 1, 2, ...; the effect of order n is how much adding its paths lowers the loss (or raises
        another metric). The loss before anything is that of a uniform guess, ln(vocabulary). Biases count
        with the number of heads they pass.
        """
        self._require_question()
        orders = [len(name.heads) for name in self.names]
        streams = []
        for order in range(max(orders) + 1):
            chosen = [i for i, o in enumerate(orders[: len(self.streams)]) if o == order]
            streams.append(self.streams[chosen].sum(0))
        counts = [orders.count(order) for order in range(max(orders) + 1)]
        found = importance_of_orders(
            streams, self.direct, counts, self.final_scale, self.unembedding, self.task
        )
        if found.metric == "loss":
            self._warn_of(found.losses[-1])
        return found

    def ablations(self) -> PathAblation:
        """Take each path's logits away, one at a time: the direct effect of the path on the task's metric."""
        self._require_question()
        whole, sign = score_answers(self.task, self.logits).mean, -1.0
        if self.task.metric == "loss":
            sign = 1.0
            self._warn_of(whole)
        rows = []
        for term in self.terms:
            without = score_answers(self.task, self.logits - term.logits).mean
            effect = sign * (without - whole)
            rows.append(
                {"path": term.name, "source": term.source, "order": term.order, "effect": effect}
            )
        return PathAblation(whole, tuple(rows), self.task.metric_name)
