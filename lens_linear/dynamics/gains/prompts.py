"""Prompts as every function of this room takes them: texts, rows of ids, or one padded tensor.

Whatever comes in is padded on the right here. In a causal model no real token sees what stands after
it, so right padding is exact, needs no mask, and leaves positions as they are; left-padded tensors are
unpadded by their mask first. Both paddings therefore give the same answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lens_linear.checks import counted, require_bool, require_int, texts_in
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.batch_memory import sequences_a_pass
from lens_linear.models.capture import require_model_tokens
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.tokenizer import tokenize_prompts
from lens_linear.text.concepts import BUNDLED, Concept, ConceptSplit
from lens_linear.text.task import Task
from lens_linear.token_rows import TokenRows, read_token_rows

PromptsLike = (
    Iterable[str]
    | Iterable[Tensor]
    | Iterable[Sequence[int]]
    | Tensor
    | TokenRows
    | Mapping[str, Any]
    | Concept
    | ConceptSplit
    | Task
)
Part = Literal["operating", "evaluation"]


_PROMPTS = 64  # at most, in a batch of short ones


@dataclass(frozen=True, eq=False)
class Prompts:
    """Rows of token ids padded on the right with token 0.

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
        return f"Prompts: {counted(len(self), 'row')} of {low} to {high} tokens"

    def rows(self, index: Tensor) -> tuple[Int[Tensor, "row position"], Int[Tensor, " row"]]:
        """Return tokens and lengths of some rows, cut to the longest of them."""
        lengths = self.lengths[index]
        return self.tokens[index, : int(lengths.max())], lengths

    def batches(self, size: int) -> Iterator[Int[Tensor, " row"]]:
        """Yield row indices, rows of similar length together (less padding is run)."""
        order = torch.argsort(self.lengths, stable=True)
        yield from order.split(size)

    def a_pass(self, model: CheckedModel, batch_size: int | None) -> int:
        """Prompts of a batch: ``batch_size``, or at most 64 and what memory holds, all blocks recorded."""
        if batch_size is not None:
            return require_int("batch_size", batch_size, minimum=1)
        length, blocks = int(self.lengths.max()), max(1, model.n_layers)
        return min(_PROMPTS, sequences_a_pass(model, length, logits=False, blocks=blocks))


def as_prompts(
    model: ModelLike,
    prompts: PromptsLike | Prompts,
    *,
    attention_mask: Tensor | None = None,
    truncate: bool = False,
    part: Part = "evaluation",
) -> Prompts:
    """Accept texts, rows of ids of any lengths, a padded tensor, a concept or a task; pad on the right.

    Args:
        model: a bridge; texts need its tokenizer.
        prompts: a list or a column of texts, or one text; ids of any kind that
            :mod:`lens_linear.token_rows` reads, also uneven rows, tokenizer output and a Task (its real
            tokens); a Concept (its texts), or a ConceptSplit (those of ``part``).
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
    model = checked(model)
    truncate = require_bool("truncate", truncate)
    if isinstance(prompts, str) and prompts in BUNDLED:
        raise InvalidArgumentError(
            f"prompts must be texts, got the name of a concept, {prompts!r}; pass lens_linear.load_concept"
            f"({prompts!r}), or [{prompts!r}] if the word itself is meant"
        )
    given: Any = getattr(prompts, part) if isinstance(prompts, ConceptSplit) else prompts
    if isinstance(given, Iterator):
        given = list(given)
    texts = texts_in("prompts", given) if attention_mask is None else None
    if texts is not None:
        rows = tokenize_prompts(model, texts, truncate=truncate)
    else:
        if isinstance(given, list | tuple):  # a row may come as [1, position]
            given = [
                p[0] if isinstance(p, Tensor) and p.ndim == 2 and len(p) == 1 else p for p in given
            ]
        read = read_token_rows("prompts", given, mask=attention_mask)
        real = torch.ones_like(read.tokens, dtype=torch.bool) if read.mask is None else read.mask
        rows = [row[keep] for row, keep in zip(read.tokens.cpu(), real.cpu(), strict=True)]
    return _padded(model, rows, truncate)


def _padded(model: CheckedModel, rows: list[Tensor], truncate: bool) -> Prompts:
    n_ctx = model.n_ctx
    for index, row in enumerate(rows):
        if len(row) > n_ctx and not truncate:
            raise InvalidArgumentError(
                f"prompts[{index}] has {len(row)} tokens but the context n_ctx is {n_ctx}; shorten it, "
                "or pass truncate=True to keep its last tokens"
            )
    rows = [row[-n_ctx:] for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    # Padding is token 0: it is in the vocabulary, and is never read.
    tokens = require_model_tokens(model, pad_sequence(rows, batch_first=True))
    digest = hashlib.sha256(lengths.numpy().tobytes())
    for row in rows:
        digest.update(row.numpy().tobytes())
    return Prompts(tokens, lengths, digest.hexdigest()[:16])
