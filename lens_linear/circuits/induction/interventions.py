"""Interventions on an induction circuit, measured on random repeats: the bench under ``verify_induction``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.circuits.induction.ablation import Head, StandIns
from lens_linear.circuits.induction.in_context import copy_losses
from lens_linear.circuits.induction.repeated_rows import RepeatedRows
from lens_linear.circuits.patching.path_patch import PathReader, Via
from lens_linear.models.capture import Run, batched, run
from lens_linear.models.checked import CheckedModel
from lens_linear.models.describe.weights import norm_scale
from lens_linear.models.spots import Edit, Spot
from lens_linear.stats.task_scores import answer_values
from lens_linear.text.task import Task


@dataclass(frozen=True)
class Outcome:
    """What an intervention leaves: in-context gain and loss of the second copy (nats a token), and prefix
    matching of the induction heads.
    """

    gain: float
    prefix: float
    second: float


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows with the clean run's tensors."""

    rows: RepeatedRows
    clean: Run


MakeEdits = Callable[[Batch], list[Edit]]
LogitChange = Callable[[Batch], Tensor]


class Lab:
    """Runs a model on repeats with edits that are computed from the clean run of the same rows."""

    def __init__(
        self,
        model: CheckedModel,
        rows: RepeatedRows,
        induction: Sequence[Head],
        batch_size: int | None,
    ) -> None:
        self.model, self.induction = model, list(induction)
        self.reader = PathReader(model, "frozen")
        self.weights, self.outputs = self.reader.weights, self.reader.outputs
        layers = range(self.model.n_layers)
        spots: list[Spot] = [(layer, "z") for layer in layers]
        spots.extend((layer, "resid_pre") for layer in layers)
        spots.extend((layer, "pattern") for layer in layers)
        spots.extend((layer, "v") for layer in layers)
        spots.append((self.model.n_layers - 1, "resid_post"))
        self.batches = []
        for first, tokens in batched(rows.tokens, batch_size, model=model):
            part = RepeatedRows(tokens, rows.periods[first : first + len(tokens)], rows.start)
            self.batches.append(Batch(part, run(model, tokens, record=spots, logits=False)))
        # Pooled over positions: the rows are few, and a mean at one position would keep a share of each.
        mean_z = self._mean("z", self.model.n_heads)[:, None, None]
        self.means = StandIns(mean_z, "pooled", self.model)
        self.mean_v = self._mean("v", self.model.n_key_value_heads)
        self.mean_outputs = torch.stack([self._mean_output(layer) for layer in layers])

    def outcome(self, make: MakeEdits | None = None, change: LogitChange | None = None) -> Outcome:
        """Run all rows with edits (and a change of the logits) and measure gain and prefix matching."""
        gains, prefixes, seconds = [], [], []
        layers = sorted({layer for layer, _ in self.induction})
        for batch in self.batches:
            out = run(
                self.model,
                batch.rows.tokens,
                record=[(layer, "pattern") for layer in layers],
                edits=make(batch) if make else (),
            )
            logits = out.logits.to("cpu", torch.float64)
            if change is not None:
                logits = logits + change(batch)
            losses = answer_values(Task(batch.rows.tokens), logits, metric="loss")
            first, second = copy_losses(losses.view(len(logits), -1), batch.rows)
            gains.append(first - second)
            seconds.append(second)
            prefixes.append(self._prefix(batch.rows, out))
        return Outcome(*(float(torch.cat(x).mean()) for x in (gains, prefixes, seconds)))

    def without(self, heads: Sequence[Head]) -> MakeEdits:
        """Put the mean output of heads in their place."""
        return lambda batch: self.means.edits(heads)

    def path_cut(self, writers: Sequence[Head], side: Via) -> MakeEdits:
        """Take what the writers say out of what the induction heads read on one side, and nowhere else.

        The reader's query, key or value is computed anew from the residual stream minus the writers'
        outputs (above their means), through the norm's scale as it was; other heads see the whole stream.
        With grouped-query attention all heads of a key-value group lose it together.
        """

        def make(batch: Batch) -> list[Edit]:
            return [
                ((layer, side), self._minus(batch, writers, layer, side))
                for layer in sorted({at for at, _ in self.induction})
                if any(at < layer for at, _ in writers)
            ]

        return make

    def values_replaced(self, where: Literal["at", "elsewhere"]) -> MakeEdits:
        """Let the induction heads read mean values at the induction key, or everywhere else."""

        def make(batch: Batch) -> list[Edit]:
            edits: list[Edit] = []
            for layer in sorted({at for at, _ in self.induction}):
                z = batch.clean[(layer, "z")].to("cpu", torch.float64)
                split = z.reshape(*z.shape[:2], self.model.n_heads, -1).clone()
                for head in [h for at, h in self.induction if at == layer]:
                    split[:, :, head] += self._value_change(batch, layer, head, where)
                new = split.reshape(z.shape)
                edits.append(((layer, "z"), _constant(new)))
            return edits

        return make

    def direct_path_cut(self, heads: Sequence[Head]) -> LogitChange:
        """Take the direct path from heads to the logits away, the final norm's scale as it was."""

        def change(batch: Batch) -> Tensor:
            stream = batch.clean[(self.model.n_layers - 1, "resid_post")].to("cpu", torch.float64)
            scale = norm_scale(stream, self.weights.final_norm, self.weights.eps)
            total = torch.zeros_like(stream)
            for layer, head in heads:
                total -= self.outputs.of(batch.clean[(layer, "z")], layer)[head]
            return total / scale @ self.weights.W_U

        return change

    def _minus(
        self, batch: Batch, writers: Sequence[Head], layer: int, side: Via
    ) -> Callable[[Tensor], Tensor]:
        reader = self.reader
        stream = batch.clean[(layer, "resid_pre")].to("cpu", torch.float64)
        written = torch.zeros_like(stream)
        for at, head in writers:
            if at < layer:
                own_output = self.outputs.of(batch.clean[(at, "z")], at)[head]
                # Only what varies is taken out: the mean says nothing about this context.
                written += own_output - self.mean_outputs[at, head]
        changes = {
            reader.slot(head, side): reader.change(stream, -written, layer, head, side)
            for at, head in self.induction
            if at == layer
        }
        return lambda tensor: reader.added(tensor, tensor, changes, side)

    def _value_change(
        self, batch: Batch, layer: int, head: int, where: Literal["at", "elsewhere"]
    ) -> Float[Tensor, "row position d_head"]:
        pattern = batch.clean[(layer, "pattern")][:, head].to("cpu", torch.float64)
        slot = self.reader.slot(head, "v")
        v = batch.clean[(layer, "v")].to("cpu", torch.float64)
        v = v.reshape(*v.shape[:2], self.reader.slots("v"), -1)[:, :, slot]
        shift = self.mean_v[layer, slot] - v
        chosen = torch.zeros_like(pattern)
        row, query, key = induction_keys(batch.rows)
        chosen[row, query, key] = 1.0
        if where == "elsewhere":
            inside = torch.zeros_like(pattern[..., 0])
            inside[row, query] = 1.0
            chosen = inside[..., None] - chosen
        return (pattern * chosen) @ shift

    def _prefix(self, rows: RepeatedRows, out: Run) -> Float[Tensor, " point"]:
        row, query, key = induction_keys(rows)
        found = [
            out[(layer, "pattern")][:, head].to("cpu", torch.float64)[row, query, key]
            for layer, head in self.induction
        ]
        return torch.stack(found).mean(0)

    def _mean(self, what: Literal["z", "v"], n: int) -> Float[Tensor, "layer head d_head"]:
        means = []
        for layer in range(self.model.n_layers):
            parts = [batch.clean[(layer, what)].to("cpu", torch.float64) for batch in self.batches]
            means.append(torch.cat([p.reshape(-1, n, self.model.d_head) for p in parts]).mean(0))
        return torch.stack(means)

    def _mean_output(self, layer: int) -> Float[Tensor, "head d_model"]:
        parts = [self.outputs.of(batch.clean[(layer, "z")], layer) for batch in self.batches]
        return torch.cat([part.flatten(1, 2) for part in parts], dim=1).mean(1)


def induction_keys(
    rows: RepeatedRows,
) -> tuple[Int[Tensor, " point"], Int[Tensor, " point"], Int[Tensor, " point"]]:
    """Return (row, query, key) of every token of a second copy and what follows its first occurrence."""
    position = torch.arange(rows.tokens.shape[1])[None] - rows.start
    period = rows.periods[:, None]
    row, query = ((position >= period) & (position < 2 * period)).nonzero().unbind(1)
    return row, query, query - rows.periods[row] + 1


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tensor: value.to(tensor)
