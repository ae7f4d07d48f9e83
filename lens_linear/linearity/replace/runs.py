"""Runs of neighbouring blocks, each replaced by one affine map, with the loss each leaves.

Depth pruning as ReplaceMe does it (arXiv 2505.02819): the fewer blocks a map has to stand for, the
better; here every run of the given lengths is fitted in closed form and judged on held-out text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from lens_linear.checks import counted, require_ints
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.least_squares import Ridge, require_ridge
from lens_linear.linearity.measure.intervals import few_rows
from lens_linear.linearity.replace.affine_map import AffineMap, from_fit, identity_map
from lens_linear.linearity.replace.replacement import assemble, span_moments
from lens_linear.models.capture import batched, residual_stream
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.progress import sequence_bar
from lens_linear.stats.collect import require_rows_for_fit
from lens_linear.stats.model_scores import perplexity, score_model
from lens_linear.stats.split import RowView, as_rows, halves
from lens_linear.stats.task_scores import RowScores
from lens_linear.tables import Result
from lens_linear.text.task import Task
from lens_linear.token_rows import TokenRows


@dataclass(frozen=True, eq=False)
class RunTable(Result):
    """Every run of neighbouring blocks as one map; acts as its table.

    Attributes:
        rows: one mapping per run and method.
        base_loss: of the whole model on the same test tokens, nats per token.
        model_name: as the model calls itself.
        d_model: inputs of each map.
        n_fit: rows fitted on.
        n_tokens: tokens the loss was taken on.
        seed: of the halves.
        ridge: penalty of the fits, or "loo".
    """

    _figure = "run_table"
    _columns = (
        "first",
        "last",
        "method",
        "r2",
        "null_r2",
        "loss_increase",
        "loss_increase_se",
        "n_parameters",
        "cosine_distance",
    )

    rows: tuple[dict[str, object], ...]
    base_loss: float
    model_name: str
    d_model: int
    n_fit: int
    n_tokens: int
    seed: int
    ridge: Ridge = 0.0

    def to_dataframe(self) -> pd.DataFrame:
        """One row per run and method ("linear" or "remove").

        Columns: first, last, n_replaced, method, r2 (held in), null_r2, loss, perplexity, loss_increase,
        loss_increase_se, n_parameters, cosine_distance (between the two ends), n_tokens, n_fit.
        """
        return pd.DataFrame(list(self.rows)).assign(n_tokens=self.n_tokens, n_fit=self.n_fit)

    def __repr__(self) -> str:
        linear = [row for row in self.rows if row["method"] == "linear"]
        few = few_rows(self.n_fit, self.d_model, ridge=self.ridge, so="the loss is above")
        best = min(linear, key=lambda row: float(row["loss"]))  # type: ignore[arg-type]
        return (
            f"RunTable of {self.model_name}: {counted(len(linear), 'run')} of blocks as one affine map; "
            f"cheapest is "
            f"{best['first']}-{best['last']}, loss {best['loss']:.3f} for {self.base_loss:.3f} nats per "
            f"token; n = {self.n_tokens:,} test tokens, fitted on {self.n_fit:,}{few}"
        )


def run_table(
    model: ModelLike,
    tokens: Int[Tensor, "sequence position"] | TokenRows | Task,
    lengths: Sequence[int] | None = None,
    *,
    ridge: Ridge = 0.0,
    skip: int = 0,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> RunTable:
    """Replace every run of ``lengths`` neighbouring blocks by one affine map, and by nothing.

    The map is the least-squares fit of the residual stream after the run on that before it, fitted on half
    of the sequences; the loss is taken on the other half. ``cosine_distance`` is the mean over tokens of
    ``1 − cos`` between the two ends, by which ReplaceMe picks the run to cut.

    Args:
        model: a bridge; unchanged.
        tokens: ids [sequence, position].
        lengths: how many blocks a run has; 1 to all by default.
        ridge: penalty of the fits, or "loo" for the one of least leave-one-out error.
        skip: leading positions left out of the fit.
        seed: of the halves.
        batch_size: sequences a forward pass; as many as memory allows by default.
        progress: show a bar over runs.

    Returns:
        RunTable.

    Raises:
        NotEnoughDataError: too few rows.
        InvalidArgumentError: a length below 1 or above the number of layers.

    Source: Shopkhoev et al. 2025, arXiv 2505.02819, sections 2.2 and 2.3 (least-squares variant; the map
        goes on the whole residual stream here, not on the MLP's output alone).

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2, d_model=16, attn_only=False)
        >>> tokens = torch.randint(64, (40, 16), generator=torch.Generator().manual_seed(0))
        >>> frame = run_table(model, tokens).to_dataframe()
        >>> frame[frame["method"] == "linear"][["first", "last"]].values.tolist()
        [[0, 0], [1, 1], [0, 1]]
    """
    model = checked(model)
    require_ridge(ridge)
    rows = as_rows(model, tokens, skip=skip)
    n_layers = model.n_layers
    chosen = list(range(1, n_layers + 1))
    if lengths is not None:
        chosen = require_ints("lengths", lengths, minimum=1, maximum=n_layers)
    spans = [(first, first + k - 1) for k in chosen for first in range(n_layers - k + 1)]
    if not spans:
        raise InvalidArgumentError("lengths names no run; pass e.g. lengths=[2]")
    require_rows_for_fit(rows, model.d_model, skip=skip, halved=True)
    train, test = halves(rows, seed=seed)
    base = score_model(model, test, batch_size=batch_size).loss
    distance = _cosine_distances(model, train, skip, batch_size)
    out: list[dict[str, object]] = []
    with sequence_bar(len(spans), "runs", show=progress) as bar:
        for count, (first, last) in enumerate(spans, start=1):
            moments = span_moments(
                model, train, first, last, "block", skip=skip, batch_size=batch_size
            )
            fit = moments.fit(ridge=ridge)
            fitted = from_fit("block", first, last, fit)
            removed = identity_map(first, last, model.d_model)
            for method, m in (("linear", fitted), ("remove", removed)):
                loss = score_model(model, test, edits=m.edits(), batch_size=batch_size).loss
                null = fit.null_r2 if method == "linear" else float("nan")
                ends = {"null_r2": null, "cosine_distance": float(distance[first, last + 1])}
                out.append(_row(model, m, method, base, loss) | ends)
            bar(count)
    return RunTable(
        rows=tuple(out),
        base_loss=base.mean,
        model_name=model.name,
        d_model=model.d_model,
        n_fit=train.n_tokens(skip),
        n_tokens=test.n_tokens(),
        seed=seed,
        ridge=ridge,
    )


def _row(
    model: CheckedModel, m: AffineMap, method: str, base: RowScores, loss: RowScores
) -> dict[str, object]:
    put = assemble(model, [m], method)
    own = m.n_parameters if method == "linear" else 0
    increase = loss.minus(base)
    return {
        "first": m.first,
        "last": m.last,
        "n_replaced": len(m.layers),
        "method": method,
        "r2": m.r_squared,
        "loss": loss.mean,
        "perplexity": perplexity(loss.mean),
        "loss_increase": increase.mean,
        "loss_increase_se": increase.standard_error,
        "n_parameters": put.parameters_before - put.parameters_replaced + own,
    }


def _cosine_distances(
    model: CheckedModel, rows: RowView, skip: int, batch_size: int | None
) -> Tensor:
    """Mean of 1 − cos between every two layer boundaries, over tokens."""
    total, count = torch.zeros((), dtype=torch.float32), 0
    for _, tokens in batched(rows, batch_size, model=model):
        states = residual_stream(model, tokens.long())[:, :, skip:].double().flatten(1, 2)
        unit = torch.nn.functional.normalize(states, dim=-1)
        total = total + torch.einsum("ind,jnd->ij", unit, unit).cpu()
        count += unit.shape[1]
    return 1 - total / count
