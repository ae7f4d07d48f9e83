"""Downstream scores through EleutherAI's lm-eval, the harness of TransformerLens' ``evals`` extra.

That extra (``pip install "transformer-lens[evals]"``) installs the harness but brings no adapter, so a thin
one is here: any bridge, linearised or not, can be scored on any log-likelihood task (SuperGLUE, TinyStories
perplexity, a task of one's own), from local files without the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from lens_linear.checks import counted, require_int
from lens_linear.errors import InvalidArgumentError, OfflineError, UnsupportedModelError
from lens_linear.models.batch_memory import sequences_a_pass
from lens_linear.models.capture import forward_logits
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.tables import Result


@dataclass(frozen=True, eq=False)
class DownstreamScores(Result):
    """Scores by task and metric; acts as its table.

    Attributes:
        rows: one mapping per task and metric.
        model_name: as the model calls itself.
        limit: examples per task, None for all.
    """

    rows: tuple[Mapping[str, Any], ...]
    model_name: str
    limit: int | None

    def to_dataframe(self) -> pd.DataFrame:
        """Columns: task, metric, value, se (NaN where the harness gives none), n."""
        return pd.DataFrame(list(self.rows))

    def __repr__(self) -> str:
        shown = ", ".join(f"{r['task']} {r['metric']} {r['value']:.4g}" for r in self.rows[:4])
        tasks = len({row["task"] for row in self.rows})
        return f"DownstreamScores of {self.model_name}: {counted(tasks, 'task')} ({shown}), lm-eval"


def downstream_scores(
    model: ModelLike,
    tasks: Sequence[str | Mapping[str, Any]],
    *,
    limit: int | None = None,
    batch_size: int | None = None,
) -> DownstreamScores:
    """Score a model on lm-eval tasks. For a linearised model call this inside ``with linearize(...)``.

    Args:
        model: a bridge with a tokenizer.
        tasks: names of harness tasks (their data is downloaded by the harness), or task configurations as
            mappings; ``{"dataset_path": "json", "dataset_kwargs": {"data_files": path}, ...}`` is local.
        limit: examples per task.
        batch_size: requests a forward pass; as many as memory allows by default.

    Returns:
        DownstreamScores.

    Raises:
        OfflineError: lm-eval is not installed.
        UnsupportedModelError: the task generates text, or the model has no tokenizer.

    Source: Gao et al., the Language Model Evaluation Harness (``lm-eval``).

    Example:
        >>> from lens_linear.models.open.load import load
        >>> downstream_scores(load("attn-2l"), ["boolq"], limit=100)  # doctest: +SKIP
        DownstreamScores of attn-2l: 1 tasks (boolq acc ...), lm-eval
    """
    model = checked(model)
    adapter = lm_eval_adapter(model, batch_size=batch_size)
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]

    found = simple_evaluate(
        model=adapter,
        tasks=[task if isinstance(task, str) else dict(task) for task in tasks],
        limit=limit,
        bootstrap_iters=200,
        log_samples=False,
    )
    if found is None or not found.get("results"):
        raise InvalidArgumentError(f"tasks gave no results, got {tasks!r}; name at least one task")
    rows = []
    for task, metrics in found["results"].items():
        counted = found.get("n-samples", {}).get(task, {}).get("effective")
        for name, value in metrics.items():
            metric, _, kind = name.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, (int, float)) or not kind:
                continue
            error = metrics.get(f"{metric}_stderr,{kind}")
            error = float(error) if isinstance(error, (int, float)) else float("nan")
            entry = {"task": task, "metric": metric, "value": float(value)}
            rows.append({**entry, "se": error, "n": counted})
    return DownstreamScores(tuple(rows), model.name, limit)


def _prefix_token(model: CheckedModel) -> int:
    """Return the token that a text without context begins with."""
    if model.tokenizer is None:
        raise UnsupportedModelError(
            f"model {model.name!r} has no tokenizer, but downstream tasks are text; set "
            "model.tokenizer"
        )
    first = model.bos
    first = model.tokenizer.eos_token_id if first is None else first
    if first is None:
        raise UnsupportedModelError(
            f"the tokenizer of {model.name!r} has neither a beginning nor an end "
            "token; set its bos_token"
        )
    return int(first)


def lm_eval_adapter(model: ModelLike, *, batch_size: int | None = None) -> Any:
    """Return an ``lm_eval.api.model.LM`` that scores text with ``model``.

    Raises:
        OfflineError: lm-eval is not installed.
        UnsupportedModelError: the model has no tokenizer, or no token to begin with.
    """
    if batch_size is not None:
        require_int("batch_size", batch_size, minimum=1)
    try:
        from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
        from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
            get_rolling_token_windows,
            make_disjoint_window,
        )
    except ImportError as error:
        raise OfflineError(
            f"lm-eval is not installed ({error}); pip install 'transformer-lens[evals]'"
        ) from error
    subject = checked(model)
    tokenizer, prefix = subject.tokenizer, _prefix_token(subject)

    class BridgeLM(TemplateLM):  # type: ignore[misc]
        """A bridge as lm-eval sees it."""

        @property
        def eot_token_id(self) -> int:
            return prefix

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            return list(tokenizer(string, add_special_tokens=False)["input_ids"])

        def _loglikelihood_tokens(
            self, requests: list[Any], disable_tqdm: bool = False, **_: Any
        ) -> list[tuple[float, bool]]:
            pairs = [(context or [prefix], target) for _, context, target in requests]
            return log_likelihoods(subject, pairs, batch_size=batch_size)

        def loglikelihood_rolling(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[float]:
            out = []
            for request in requests:
                windows = get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=prefix,
                    max_seq_len=subject.n_ctx,
                    context_len=1,
                )
                pairs = [make_disjoint_window(window) for window in windows]
                scored = log_likelihoods(subject, pairs, batch_size=batch_size)
                out.append(sum(value for value, _ in scored))
            return out

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            raise UnsupportedModelError(
                "tasks that generate text are not supported here; choose log-likelihood tasks"
            )

    return BridgeLM()


@torch.no_grad()
def log_likelihoods(
    model: CheckedModel,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int | None = None,
) -> list[tuple[float, bool]]:
    """Log-probability (nats) of each continuation after its context, and whether it is the greedy one.

    Contexts that do not fit lose their beginning; rows are padded on the right, which a causal model
    cannot see.

    Args:
        model: a bridge.
        pairs: (context ids, continuation ids); contexts must not be empty.
        batch_size: rows a forward pass; as many as memory allows by default.

    Raises:
        InvalidArgumentError: an empty context, or a continuation longer than the model's context.
    """
    out: list[tuple[float, bool]] = []
    whole = [_fitting(model.n_ctx, list(context), list(target)) for context, target in pairs]
    size = sequences_a_pass(model, max(map(len, whole), default=1), batch_size)
    for start in range(0, len(pairs), size):
        chunk, rows = pairs[start : start + size], whole[start : start + size]
        longest = max(len(row) for row in rows)
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        logits = forward_logits(model, padded).float().log_softmax(-1)
        for place, (row, (_, target)) in enumerate(zip(rows, chunk, strict=True)):
            here = logits[place, len(row) - len(target) : len(row)]
            ids = torch.tensor(list(target), device=here.device)
            out.append(_score(here, ids))
    return out


def _fitting(n_ctx: int, context: list[int], target: list[int]) -> list[int]:
    """What the model reads: context and continuation without its last token, cut from the left."""
    if not context or len(target) > n_ctx:
        raise InvalidArgumentError(
            f"each context needs a token and each continuation at most n_ctx = {n_ctx}, got "
            f"{len(context)} and {len(target)} tokens; shorten the text"
        )
    return (context + target)[:-1][-n_ctx:]


def _score(log_probabilities: Tensor, target: Int[Tensor, " position"]) -> tuple[float, bool]:
    chosen = log_probabilities.gather(1, target[:, None]).double().sum()
    return float(chosen), bool((log_probabilities.argmax(-1) == target).all())
