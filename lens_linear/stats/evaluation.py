"""Tokens to measure on: the package's own stories, or the caller's text, cut for a model."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from lens_linear.checks import require_int
from lens_linear.errors import NotEnoughDataError
from lens_linear.models.checked import ModelLike, checked
from lens_linear.models.tokenizer import tokenize
from lens_linear.text.corpora import default_text


def evaluation_tokens(
    model: ModelLike,
    text: str | None = None,
    *,
    n_sequences: int | None = None,
    length: int | None = None,
) -> Int[Tensor, "sequence position"]:
    """Token rows to measure a model on; the package's own stories when no text is given.

    Args:
        model: a bridge with a tokenizer.
        text: any text; None takes the stories in the package (about 58 kB, no model was trained on them).
        n_sequences: keep only the first rows.
        length: tokens a row; by default the model's context, at most 128.

    Returns:
        Token ids [sequence, position].

    Raises:
        NotEnoughDataError: the text gives fewer rows than asked for.

    Example:
        >>> from lens_linear.models.open.load import load
        >>> evaluation_tokens(load("gpt-nano"), n_sequences=4).shape
        torch.Size([4, 128])
    """
    model = checked(model)
    rows = tokenize(
        model,
        default_text() if text is None else text,
        length=min(model.n_ctx, 128) if length is None else length,
    )
    if n_sequences is None:
        return rows
    require_int("n_sequences", n_sequences, minimum=1)
    if len(rows) < n_sequences:
        raise NotEnoughDataError(
            f"the text gives {len(rows)} rows of {rows.shape[1]} tokens but n_sequences is {n_sequences}; "
            "pass more text or a shorter length"
        )
    return rows[:n_sequences]
