"""Prompts as every function of this room takes them: texts, rows of ids, or one padded tensor.

Whatever comes in is padded on the right here. In a causal model no real token sees what stands after
it, so right padding is exact, needs no mask, and leaves positions as they are; left-padded tensors are
unpadded by their mask first. Both paddings therefore give the same answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.checks import require_bool, require_instance, require_int
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError
from lens_linear.models.batch_memory import sequences_a_pass
from lens_linear.models.capture import require_model_tokens
from lens_linear.models.hooks import require_bridge
from lens_linear.models.tokenizer import tokenize_prompts
from lens_linear.text.concepts import Concept, ConceptSplit
from lens_linear.text.task import Task

PromptsLike = Sequence[str] | Sequence[Tensor] | Tensor | Concept | ConceptSplit | Task
Part = Literal["operating", "evaluation"]


_PROMPTS = 64  # at most, in a batch of short ones


@dataclass(frozen=True, eq=False)
class Prompts:
    """Rows of token ids padded on the right with a copy of their own last token.

    ``lengths`` counts the real tokens, ``key`` is a checksum: results that carry the same key were taken
    on the same prompts in the same order.
    """

    tokens: Int[Tensor, "prompt position"]
    lengths: Int[Tensor, " prompt"]
    key: str

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        low, high = int(self.lengths.min()), int(self.lengths.max())
        return f"Prompts: {len(self)} rows of {low} to {high} tokens"

    def rows(self, index: Tensor) -> tuple[Int[Tensor, "row position"], Int[Tensor, " row"]]:
        """Return tokens and lengths of some rows, cut to the longest of them."""
        lengths = self.lengths[index]
        return self.tokens[index, : int(lengths.max())], lengths

    def batches(self, size: int) -> Iterator[Int[Tensor, " row"]]:
        """Yield row indices, rows of similar length together (less padding is run)."""
        order = torch.argsort(self.lengths, stable=True)
        yield from order.split(size)

    def a_pass(self, model: TransformerBridge, batch_size: int | None) -> int:
        """Prompts of a batch: ``batch_size``, or at most 64 and what memory holds, all blocks recorded."""
        if batch_size is not None:
            return require_int("batch_size", batch_size, minimum=1)
        length = int(self.lengths.max())
        blocks = max(1, int(model.cfg.n_layers))
        return min(_PROMPTS, max(1, sequences_a_pass(model, length, logits=False) // blocks))


def as_prompts(
    model: TransformerBridge,
    prompts: PromptsLike | Prompts,
    *,
    attention_mask: Tensor | None = None,
    truncate: bool = False,
    part: Part = "evaluation",
) -> Prompts:
    """Accept texts, rows of ids of any lengths, a padded tensor, a concept or a task; pad on the right.

    Args:
        model: a bridge; texts need its tokenizer.
        prompts: list of str; list of 1-D id tensors; ids [prompt, position] (or one row); a Concept (its
            texts), a ConceptSplit (those of ``part``), or a Task (its real tokens).
        attention_mask: for a padded tensor, 1 (True) for real tokens, 0 for padding on either side.
        truncate: keep only the last ``n_ctx`` tokens of rows that are longer than the context.
        part: of a :class:`~lens_linear.text.concepts.ConceptSplit`, whose texts are the prompts.

    Returns:
        Prompts: ``.tokens`` [prompt, position] padded on the right, ``.lengths`` [prompt].

    Raises:
        InvalidArgumentError: a row does not fit the context or the vocabulary, or the mask has holes.
        NotEnoughDataError: no prompts, or an empty one.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> left = torch.tensor([[0, 0, 7, 8], [1, 2, 3, 4]])
        >>> mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
        >>> found = as_prompts(toy_model(n_layers=1), left, attention_mask=mask)
        >>> found.lengths.tolist(), found.tokens[0, :2].tolist()
        ([2, 4], [7, 8])
    """
    if isinstance(prompts, Prompts):
        return prompts
    model = require_bridge(model)
    truncate = require_bool("truncate", truncate)
    if isinstance(prompts, ConceptSplit):
        prompts = getattr(prompts, part)
    if isinstance(prompts, Concept):
        prompts = list(prompts.texts)
    if isinstance(prompts, Task):
        prompts = [row[real] for row, real in zip(prompts.tokens, prompts.mask, strict=True)]
    if isinstance(prompts, str):
        prompts = [prompts]
    if attention_mask is not None and not isinstance(prompts, Tensor):
        raise InvalidArgumentError(
            "attention_mask belongs to a padded tensor of ids, but prompts is a "
            f"{type(prompts).__name__}; leave the mask out"
        )
    if isinstance(prompts, Tensor):
        rows = _unpadded(prompts, attention_mask)
    elif not isinstance(prompts, Sequence):
        raise InvalidArgumentError(
            f"prompts must be texts, rows of ids or a tensor, got {type(prompts).__name__}; "
            "pass a list"
        )
    elif not len(prompts):
        raise NotEnoughDataError("prompts is empty; pass at least one prompt")
    elif all(isinstance(prompt, str) for prompt in prompts):
        rows = tokenize_prompts(model, [str(prompt) for prompt in prompts], truncate=truncate)
    else:
        rows = [_one_row(index, prompt) for index, prompt in enumerate(prompts)]
    return _padded(model, rows, truncate)


def _one_row(index: int, prompt: Any) -> Int[Tensor, " position"]:
    row = prompt if isinstance(prompt, Tensor) else _ids(index, prompt)
    if row.ndim == 2 and len(row) == 1:
        row = row[0]
    if row.ndim != 1:
        raise InvalidArgumentError(
            f"prompts[{index}] must be one row of ids, got shape {tuple(row.shape)}; "
            "pass 1-D tensors, or one padded tensor with attention_mask"
        )
    return row


def _ids(index: int, prompt: Any) -> Tensor:
    try:
        return torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(
            f"prompts[{index}] must be a text or a row of ids, got {type(prompt).__name__}; "
            "do not mix texts and ids"
        ) from error


def _unpadded(tokens: Tensor, mask: Tensor | None) -> list[Int[Tensor, " position"]]:
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    if tokens.ndim != 2 or not tokens.numel():
        raise InvalidArgumentError(
            f"prompts must have shape [prompt, position], got {tuple(tokens.shape)}; reshape it"
        )
    if mask is None:
        return list(tokens)
    require_instance("attention_mask", mask, Tensor, advice="pass one 0 or 1 for each token")
    mask = mask[None] if mask.ndim == 1 else mask
    if mask.shape != tokens.shape:
        raise InvalidArgumentError(
            f"attention_mask must have the shape of prompts {tuple(tokens.shape)}, got "
            f"{tuple(mask.shape)}; pass one 0 or 1 for each token"
        )
    real: Bool[Tensor, "prompt position"] = mask.to(tokens.device) != 0
    # A run of real tokens starts where the mask steps up: more than one start is a hole.
    starts = real[:, :1].long().sum(1) + (real[:, 1:] & ~real[:, :-1]).sum(1)
    if bool((starts != 1).any()):
        bad = int((starts != 1).nonzero()[0])
        raise InvalidArgumentError(
            f"attention_mask must mark one unbroken run of real tokens in each row, but row {bad} has "
            f"{int(starts[bad])}; pad on the left or on the right only"
        )
    return [row[keep] for row, keep in zip(tokens, real, strict=True)]


def _padded(model: TransformerBridge, rows: list[Tensor], truncate: bool) -> Prompts:
    n_ctx = model.cfg.n_ctx
    for index, row in enumerate(rows):
        if not row.numel():
            raise NotEnoughDataError(f"prompts[{index}] holds no tokens; leave it out")
        if len(row) > n_ctx and not truncate:
            raise InvalidArgumentError(
                f"prompts[{index}] has {len(row)} tokens but the context n_ctx is {n_ctx}; shorten it, "
                "or pass truncate=True to keep its last tokens"
            )
    rows = [require_model_tokens(model, row[-n_ctx:])[0].cpu() for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    # Padding repeats the row's own last token: it is in the vocabulary, and is never read.
    tokens = torch.stack(
        [torch.cat([row, row[-1:].expand(int(lengths.max()) - len(row))]) for row in rows]
    )
    digest = hashlib.sha256(lengths.numpy().tobytes())
    for row in rows:
        digest.update(row.numpy().tobytes())
    return Prompts(tokens, lengths, digest.hexdigest()[:16])
