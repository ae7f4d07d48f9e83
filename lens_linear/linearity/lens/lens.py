"""A fitted lens, what it scores and what it reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div

from lens_linear._tl import TransformerBridge
from lens_linear.checks import (
    counted,
    require_choice,
    require_float_tensor,
    require_instance,
    require_int,
    require_layers,
    require_seed,
)
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import without_autocast
from lens_linear.linearity.lens.readout import Readout
from lens_linear.linearity.measure.intervals import ratio_interval
from lens_linear.models.capture import row_ranges, run
from lens_linear.models.describe.weights_mark import WeightsMark
from lens_linear.models.tokenizer import token_strings, tokenize_prompts
from lens_linear.progress import sequence_bar
from lens_linear.stats.split import as_rows
from lens_linear.stats.task_scores import (
    RowScores,
    require_open_question,
    score_answers,
    warn_if_not_next_token,
)
from lens_linear.tables import Result

FEW = 20  # rows an input below which a fitted lens is far from that of enough text
READINGS = ("lens", "raw", "logit")


@dataclass(frozen=True, eq=False)
class LensScore(Result):
    """How far the reading of each layer is from the output, held out; the last row is the output itself.

    Attributes:
        table: one row a layer: ``kl`` with ``kl_low``, ``kl_high`` (95 %), nats, positions after the first;
            ``kl_first`` at the first position alone; ``top1`` share of positions with the output's favourite;
            ``loss`` of what the task asks; ``raw_kl`` and ``logit_kl`` of the raw least-squares lens and the
            logit lens; ``n`` positions of ``kl``.
        model_name: as the model calls itself.
        n_sequences: rows of tokens.
    """

    _figure = "lens_profile"
    _columns = ("layer", "kl", "kl_first", "raw_kl", "logit_kl", "top1", "loss", "n")

    table: pd.DataFrame
    model_name: str
    n_sequences: int

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer."""
        return self.table.copy()

    def __repr__(self) -> str:
        middle = self.table.iloc[len(self.table) // 2]
        raw = "" if math.isnan(middle.raw_kl) else f"raw least squares {middle.raw_kl:.3f}, "
        return (
            f"LensScore of {self.model_name}: KL to the output {middle.kl:.3f} nats at layer "
            f"{int(middle.layer)} ({raw}logit lens {middle.logit_kl:.3f}), "
            f"first position apart; n = {counted(int(middle.n), 'position', ',')} of "
            f"{counted(self.n_sequences, 'sequence')}"
        )


@dataclass(frozen=True, eq=False)
class LensReading(Result):
    """What each layer would say next at every position of a text.

    Attributes:
        table: one row a layer and position: ``token``, ``top`` and ``probability``, then ``top_2``,
            ``probability_2`` and so on.
        model_name: as the model calls itself.
    """

    _figure = "lens_grid"
    _columns = ("layer", "position", "token", "top", "probability", "top_2", "probability_2")

    table: pd.DataFrame
    model_name: str

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer and position."""
        return self.table.copy()

    def __repr__(self) -> str:
        layers, positions = self.table["layer"].nunique(), self.table["position"].nunique()
        return f"LensReading of {self.model_name}: {layers} layers × {positions} positions"


@dataclass(frozen=True, eq=False)
class Lens(Result):
    """Affine maps from the normalised stream entering each layer to the normalised last stream.

    Decoded directly: ``(γ ⊙ u + β) W_U + b_U``, no second norm, with ``u = d + s_l (r − d)``: d is
    ``n(x_l) A_l + b_l``, r the raw least-squares lens' ``n(x_l A'_l + b'_l)``. Layer L, after the last
    block, is the output itself.

    Attributes:
        weight: [layer, d_model, d_model], A.
        bias: [layer, d_model], b.
        raw_weight: [layer, d_model, d_model], of the raw least-squares lens, from x_l to x_L; of no layer
            where it was not fitted.
        raw_bias: [layer, d_model].
        r2: [layer], in-sample R² of the closed form.
        n: rows each map was fitted on.
        ridge: share of the mean variance of n(x_l) that is the penalty of a row.
        polish: epochs of Adam on the KL after the closed form.
        seed: of the order of the rows in these.
        model_name: as the model calls itself.
        readout: the model's last norm and unembedding.
        raw_share: [layer], s in [0, 1]; 0 where the raw lens was not fitted or has nothing to add.
    """

    _columns = ("layer", "r2", "raw_share", "n")

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]
    raw_weight: Float[Tensor, "kept d_model d_model"]
    raw_bias: Float[Tensor, "kept d_model"]
    r2: Float[Tensor, " layer"]
    n: int
    ridge: float
    polish: int
    seed: int
    model_name: str
    readout: Readout
    mark: WeightsMark = field(repr=False)
    raw_share: Float[Tensor, " layer"]

    @property
    def model(self) -> TransformerBridge:
        """The model it was fitted on."""
        return self.readout.model.bridge

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer: in-sample R² of its direct map, share of the raw reading, and rows."""
        return pd.DataFrame(
            {
                "layer": range(len(self.r2)),
                "r2": self.r2.numpy(),
                "raw_share": self.raw_share.numpy(),
                "n": self.n,
            }
        )

    def __repr__(self) -> str:
        rows = self.n / self.weight.shape[1]
        how = (
            f", {counted(self.polish, 'epoch')} of Adam on the KL"
            if self.polish
            else ", closed form"
        )
        few = f"; only {rows:.1f} rows an input ({FEW} at least)" if rows < FEW else ""
        return (
            f"Lens of {self.model_name}: {counted(len(self.r2), 'layer')}{how}, in-sample R² "
            f"{float(self.r2.min()):.3f} to {float(self.r2.max()):.3f}; n = "
            f"{counted(self.n, 'row', ',')}{few}"
            f"{self.mark.note(self.readout.model)}"
        )

    @without_autocast()
    def normed(
        self, stream: Float[Tensor, "... d_model"], layer: int, reading: str = "lens"
    ) -> Float[Tensor, "... d_model"]:
        """What stands for the normalised last stream in one reading: "lens", "direct", "raw" or "logit"."""
        layer = require_int("layer", layer, minimum=0, maximum=len(self.weight))
        require_choice("reading", reading, ("lens", "direct", "raw", "logit"))
        stream, width = require_float_tensor("stream", stream, finite=False), self.weight.shape[1]
        if stream.shape[-1:] != (width,):
            raise InvalidArgumentError(
                f"stream must be what enters a layer, [..., {width}], got shape {tuple(stream.shape)}; "
                "take it from the model that the lens was fitted on"
            )
        if layer == len(self.weight) or reading == "logit":
            return self.readout.normalise(stream)
        if reading == "raw":
            if not len(self.raw_weight):
                raise InvalidArgumentError(
                    "reading is 'raw', but this lens was fitted with raw=False; fit it with raw=True"
                )
            stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
            return self.readout.normalise(
                torch.addmm(
                    self.raw_bias[layer].to(stream),
                    stream.reshape(-1, width),
                    self.raw_weight[layer].to(stream),
                ).reshape(stream.shape)
            )
        x = self.readout.normalise(stream)
        direct = x @ self.weight[layer].to(x) + self.bias[layer].to(x)
        return direct if reading == "direct" else self.with_raw(stream, layer, direct)

    def with_raw(
        self,
        stream: Float[Tensor, "... d_model"],
        layer: int,
        direct: Float[Tensor, "... d_model"],
    ) -> Float[Tensor, "... d_model"]:
        """``d + s (r − d)``: a direct reading with the layer's share of the raw one."""
        share = float(self.raw_share[layer])
        return direct if share == 0 else direct.lerp(self.normed(stream, layer, "raw"), share)

    def translator(self) -> Callable[[Tensor, int], Tensor]:
        """A function (stream, layer) for the ``lens`` argument of TransformerLens' ``logit_lens``.

        It gives what the unembedding reads, so that no norm may follow: pass ``apply_ln=False`` beside it,
        and leave ``incl_mid`` out.

        Returns:
            The function; layer L gives the model's own logits.

        Example:
            >>> from transformer_lens.tools.analysis import logit_lens
            >>> from lens_linear.linearity import fit_lens
            >>> from lens_linear.models.open.toy import toy_model
            >>> model = toy_model(n_layers=2)
            >>> tokens = torch.randint(64, (100, 16), generator=torch.Generator().manual_seed(0))
            >>> translate = fit_lens(model, tokens).translator()
            >>> seen = logit_lens(model, tokens[:1], lens=translate, apply_ln=False, positions=None)
            >>> torch.allclose(seen.values[-1], model(tokens[:1]), atol=1e-4)
            True
        """
        self.mark.warn(self.readout.model, "the lens", "fit it anew")

        def translate(stream: Tensor, layer: int) -> Tensor:
            return self.readout.affine(self.normed(stream, layer)).to(stream.dtype)

        return translate

    def score(
        self,
        tokens: Any,
        *,
        layers: list[int] | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> LensScore:
        """KL from the output to each layer's reading, on text the maps have not seen.

        ``KL = Σ_v p (log p − log q)``, p the model's output, q the reading; nats, 0 for the output itself.
        Intervals resample sequences.

        Args:
            tokens: ids [sequence, position], or a Task.
            layers: some of 0 to n_layers (the output); all by default.
            batch_size: sequences a forward pass.
            seed: of the resampling.
            progress: show a bar with the time left.

        Returns:
            LensScore, one row a layer, with the raw least-squares lens and the logit lens beside it.

        Raises:
            InvalidArgumentError: tokens or layers that the model does not have.
            UnsupportedModelError: next tokens are asked of a model that sees later ones.
        """
        self.mark.warn(self.readout.model, "the lens", "fit it anew")
        rows = as_rows(self.readout.model, tokens, skip=1)
        require_open_question(self.readout.model, rows.task)
        seed = require_seed(seed)
        chosen = _layers(layers, len(self.weight))
        sums: dict[int, list[Tensor]] = {layer: [] for layer in chosen}
        own: list[RowScores] = []
        known = [r for r in READINGS if r != "raw" or len(self.raw_weight)]
        with sequence_bar(len(rows), "scoring", show=progress) as bar:
            for start, stop in row_ranges(rows, batch_size, model=self.readout.model):
                task = rows.asked(slice(start, stop))
                streams, logits = self._run(rows[start:stop])
                own.append(score_answers(task, logits, metric="loss"))
                output = logits.log_softmax(-1), logits.argmax(-1)
                for count, layer in enumerate(chosen, start=1):
                    found = {r: self._sums(streams[layer], layer, *output, task, r) for r in known}
                    nothing = torch.full_like(found["lens"], torch.nan)
                    parts = [found.get(r, nothing) for r in READINGS]
                    sums[layer].append(torch.cat(parts))
                    bar(start + (stop - start) * count / len(chosen))
        warn_if_not_next_token(task, RowScores.joined(own).mean, self.readout.model)
        whole = {layer: torch.cat(parts, dim=1) for layer, parts in sums.items()}
        table = _score_table(whole, seed)
        return LensScore(table, self.model_name, len(rows))

    def _run(self, ids: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """The stream at every boundary, and the model's own logits."""
        n = len(self.weight)
        spots: list[Any] = [(0, "resid_pre"), *((i, "resid_post") for i in range(n))]
        out = run(self.readout.model, ids, record=spots)
        return {i: out[spot] for i, spot in enumerate(spots)}, out.logits.float()

    def _sums(
        self, stream: Tensor, layer: int, output: Tensor, top: Tensor, task: Any, reading: str
    ) -> Float[Tensor, "6 sequence"]:
        """By sequence: Σ KL after the first position, positions, KL at the first, top-1, loss, answers."""
        with torch.no_grad():
            read = self.readout.decode(self.normed(stream, layer, reading))
            kl = kl_div(read.log_softmax(-1), output, reduction="none", log_target=True).sum(-1)
            same = (read.argmax(-1) == top).double()
            loss = score_answers(task, read, metric="loss")
        kl, n = kl.double().cpu(), torch.full((len(kl),), kl.shape[1] - 1.0, dtype=torch.float64)
        return torch.stack(
            [
                kl[:, 1:].sum(1),
                n,
                kl[:, 0],
                same.cpu()[:, 1:].sum(1),
                loss.values * loss.counts,
                loss.counts.double(),
            ]
        )

    def read(self, text: str, k: int = 5) -> LensReading:
        """The k tokens that each layer favours at every position of a text.

        Args:
            text: any text; it becomes tokens as the model's prompts do.
            k: tokens a cell, 1 to the vocabulary's size.

        Returns:
            LensReading, one row a layer and position; probabilities in [0, 1].

        Raises:
            InvalidArgumentError: the text is not a string, or k is out of range.
        """
        require_instance("text", text, str, advice="pass one text")
        if not text:
            raise InvalidArgumentError("text must hold something to read, got ''; pass a sentence")
        k = require_int("k", k, minimum=1, maximum=int(self.model.W_U.shape[1]))
        self.mark.warn(self.readout.model, "the lens", "fit it anew")
        ids = tokenize_prompts(self.readout.model, [text])[0][None]
        streams, _ = self._run(ids)
        words = token_strings(self.readout.model, ids[0])
        with torch.no_grad():
            found = [
                self.readout.decode(self.normed(streams[layer], layer))[0].softmax(-1).topk(k)
                for layer in streams
            ]
        rows = []
        for layer, (p, top) in enumerate(found):
            names = token_strings(self.readout.model, top.flatten().cpu())
            for position, word in enumerate(words):
                row: dict[str, Any] = {"layer": layer, "position": position, "token": word}
                for i in range(k):
                    end = "" if i == 0 else f"_{i + 1}"
                    row[f"top{end}"] = names[position * k + i]
                    row[f"probability{end}"] = float(p[position, i])
                rows.append(row)
        return LensReading(pd.DataFrame(rows), self.model_name)


def _layers(layers: list[int] | None, n: int) -> list[int]:
    chosen = list(range(n + 1)) if layers is None else require_layers("layers", layers, n + 1)
    if not chosen:
        raise InvalidArgumentError("layers must name at least one, got []; leave it out for all")
    return chosen


def _score_table(sums: dict[int, Tensor], seed: int) -> pd.DataFrame:
    rows = []
    for layer, s in sums.items():
        kl, n, first, same, loss, answers = s[:6]
        low, high = (1 - ratio_interval(kl[None], n[None], seed=seed)[0]).flip(0).tolist()
        rows.append(
            {
                "layer": layer,
                "kl": float(kl.sum() / n.sum()),
                "kl_low": low,
                "kl_high": high,
                "kl_first": float(first.mean()),
                "top1": float(same.sum() / n.sum()),
                "loss": float(loss.sum() / answers.sum()),
                "raw_kl": float(s[6].sum() / n.sum()),
                "logit_kl": float(s[12].sum() / n.sum()),
                "raw_kl_first": float(s[8].mean()),
                "logit_kl_first": float(s[14].mean()),
                "n": int(n.sum()),
            }
        )
    return pd.DataFrame(rows)
