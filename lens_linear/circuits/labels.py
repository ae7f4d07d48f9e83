"""The text of tokens, decoded only when it is looked at."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import overload

from lens_linear.checks import counted, require_instance, require_list
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.checked import CheckedModel
from lens_linear.models.tokenizer import token_strings


class TokenText(Sequence[str]):
    """The vocabulary of a model with a tokenizer: 50,000 tokens cost nothing until one is asked for."""

    def __init__(self, model: CheckedModel, n_vocab: int) -> None:
        self._model, self._n = model, n_vocab

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return token_strings(self._model, range(*index.indices(self._n)))
        return token_strings(self._model, [range(self._n)[index]])[0]

    def __repr__(self) -> str:
        return f"TokenText: {counted(self._n, 'token')}"


def require_labels(
    labels: Sequence[str] | None,
    model: CheckedModel,
    *,
    n_tokens: int | None = None,
) -> Sequence[str] | None:
    """Accept one label a token; without labels the tokenizer's, None when there is no tokenizer.

    With ``n_tokens`` the labels of padding rows are left out.
    """
    n_vocab = model.d_vocab
    n_tokens = n_vocab if n_tokens is None else n_tokens
    if labels is None:
        return TokenText(model, n_tokens) if model.tokenizer is not None else None
    if not isinstance(labels, TokenText):
        for label in (given := require_list("labels", labels, of="str")):
            require_instance("labels", label, str, advice="one text a token")
        # A lone surrogate has no bytes of its own: its code stands there.
        labels = [label.encode("utf-8", "backslashreplace").decode() for label in given]
    if len(labels) not in (n_vocab, n_tokens):
        raise InvalidArgumentError(
            f"labels must name each of the {n_vocab} tokens, got {len(labels)}; pass one a token"
        )
    if len(labels) == n_tokens:
        return labels
    return TokenText(model, n_tokens) if isinstance(labels, TokenText) else labels[:n_tokens]


def require_token_text(name: str, text: str, labels: Sequence[str] | None) -> int:
    """Accept the text of one token, spaces included; its id comes back."""
    if labels is None:
        raise InvalidArgumentError(
            f"{name} must be an id here, got {text!r}: the model has no tokenizer and no labels were given"
        )
    known = list(labels[:])
    if text not in known:
        near = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
        others = f"nearest: {', '.join(map(repr, near))}" if near else "see its tokenizer"
        raise InvalidArgumentError(
            f"{name} must be the text of one token, got {text!r}, which is none of {len(known)}; {others}"
        )
    return known.index(text)
