"""Text to token ids and back, for bundled models and for any model that carries a tokenizer."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from lens_linear.checks import (
    HasTexts,
    require_bool,
    require_instance,
    require_int,
    require_ints,
    require_texts,
)
from lens_linear.errors import (
    InvalidArgumentError,
    LensLinearWarning,
    NotEnoughDataError,
    UnsupportedModelError,
)
from lens_linear.files import write_text
from lens_linear.models.checked import CheckedModel, ModelLike, checked

END_OF_TEXT = "<|endoftext|>"
_SPACE = "▁"  # how SentencePiece writes a space inside its pieces
ROW_LENGTH = 256  # tokens a row where nobody says otherwise
_ONE_TOKEN = 0.5  # share of one token above which text says nothing about a model
_ENOUGH = 16  # tokens from which that is said of any token
_UNDECODED = "\ufffd"  # what decoders put for bytes that are no whole character


def require_characters(name: str, text: str) -> str:
    """Accept text without lone surrogates, which have no bytes."""
    half = re.search("[\ud800-\udfff]", text)
    if half:
        raise InvalidArgumentError(
            f"{name} holds half a character ({half[0]!r} at {half.start()}), which no tokenizer takes; "
            "decode the file with errors='replace'"
        )
    return text


def train_tokenizer(text: str, *, n_vocab: int = 1024) -> Tokenizer:
    """Train a byte-level BPE tokenizer with ``n_vocab`` tokens; token 0 is ``<|endoftext|>``."""
    require_instance("text", text, str, advice="read a file with lens_linear.text.read_text")
    require_int("n_vocab", n_vocab, minimum=258)
    require_characters("text", text)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> Path:
    """Write a tokenizer as ``tokenizer.json``, whole or not at all."""
    return write_text(path, tokenizer.to_str(pretty=True))


def encode_stream(tokenizer: Tokenizer, text: str) -> Int[Tensor, " token"]:
    """Encode a long text as one row of ids, line by line (newlines kept, no special tokens)."""
    require_characters("text", text)
    pieces = tokenizer.encode_batch(text.splitlines(keepends=True), add_special_tokens=False)
    return torch.tensor([token for piece in pieces for token in piece.ids], dtype=torch.int32)


def require_tokenizer(model: CheckedModel) -> Any:
    """Return the model's tokenizer, or say what to do without one."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UnsupportedModelError(
            f"model {model.name!r} has no tokenizer, which text needs; set model.tokenizer, put "
            "the tokenizer's files into the model's folder, or pass token ids where they are taken"
        )
    return tokenizer


def bos_token(model: ModelLike) -> int | None:
    """Return the id of the beginning-of-sequence token, None when the model knows none."""
    return checked(model).bos


def _ids(model: CheckedModel, texts: list[str]) -> list[list[int]]:
    tokenizer = require_tokenizer(model)
    for index, text in enumerate(texts):
        require_characters(f"text {index}", text)
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    highest = max((max(row) for row in rows if row), default=0)
    if highest >= model.d_vocab:
        raise InvalidArgumentError(
            f"the tokenizer of {model.name!r} gives id {highest} but the model has "
            f"{model.d_vocab} tokens; the tokenizer belongs to another model: set model.tokenizer to its "
            "own"
        )
    if said := mostly_one_token(model, rows):
        warnings.warn(said, LensLinearWarning, stacklevel=3)
    return rows


def mostly_one_token(model: CheckedModel, rows: Iterable[list[int]]) -> str | None:
    """Say in a sentence that most of a text is unknown, or one and the same token; None if it is not."""
    counts = Counter(token for row in rows for token in row)
    if not counts or model.d_vocab <= 2:
        return None
    (common, count), n = counts.most_common(1)[0], counts.total()
    unknown = common == getattr(model.tokenizer, "unk_token_id", None)
    if count <= _ONE_TOKEN * n or not (unknown or n >= _ENOUGH):
        return None
    return (
        f"{count / n:.0%} of the text is token {common}"
        f"{', which stands for what the tokenizer does not know' if unknown else ''}, so little that is "
        "measured on it would mean much; pass text that the model knows, or token ids"
    )


def tokenize(
    model: ModelLike, text: str, *, length: int | None = None, bos: bool = True
) -> Int[Tensor, "sequence position"]:
    """Cut one long text into equal rows of token ids: 256 a row, or the model's context if that is less.

    Every row begins with the beginning-of-sequence token when the model has one. Text shorter than one
    row gives one shorter row; of longer text the ragged rest is left out.

    Args:
        model: a bridge with a tokenizer.
        text: any text.
        length: tokens a row, up to the model's context ``n_ctx``. Attention costs memory for the square
            of it: a row that fills a context of 131,072 tokens needs tens of gigabytes.
        bos: put the beginning-of-sequence token before each row.

    Returns:
        Token ids [sequence, position].

    Raises:
        NotEnoughDataError: the text is empty.
        UnsupportedModelError: the model has no tokenizer.
        InvalidArgumentError: ``length`` beyond the context, or another model's tokenizer.

    Example:
        >>> from lens_linear.models.open.load import load
        >>> tokenize(load("attn-2l"), "Once upon a time", length=8).shape[0]
        1
    """
    if not isinstance(text, str):
        raise InvalidArgumentError(
            f"text must be a str, got {type(text).__name__}; for several texts use tokenize_prompts"
        )
    model = checked(model)
    n_ctx = model.n_ctx
    length = (
        min(n_ctx, ROW_LENGTH)
        if length is None
        else require_int("length", length, minimum=2, maximum=n_ctx)
    )
    ids = _ids(model, [text])[0]
    if not ids:
        raise NotEnoughDataError("text holds no tokens; pass text that is not empty")
    first = model.bos if require_bool("bos", bos) else None
    if first is not None and ids[0] == first and len(ids) > 1:
        ids = ids[1:]  # the text has one already
    body = length - (first is not None)
    if len(ids) < body:
        rows = torch.tensor([ids])
    else:
        count = len(ids) // body
        rows = torch.tensor(ids[: count * body]).view(count, body)
    if first is None:
        return rows
    return torch.cat([torch.full((len(rows), 1), first), rows], dim=1)


def tokenize_prompts(
    model: ModelLike,
    texts: Iterable[str] | HasTexts,
    *,
    bos: bool = True,
    truncate: bool = False,
) -> list[Int[Tensor, " position"]]:
    """Encode short texts one by one; rows keep their own lengths.

    Args:
        model: a bridge with a tokenizer.
        texts: a list or a column of texts, none empty; a concept, or the evaluation part of a
            split.
        bos: put the beginning-of-sequence token first when the model has one.
        truncate: keep only the last tokens of a text that is longer than the context.

    Returns:
        One row of ids a text.

    Raises:
        NotEnoughDataError: no texts, or an empty one.
        InvalidArgumentError: a text is longer than the context and ``truncate`` is False.

    Example:
        >>> from lens_linear.models.open.load import load
        >>> [len(row) > 1 for row in tokenize_prompts(load("attn-2l"), ["A cat.", "The old mill."])]
        [True, True]
    """
    model = checked(model)
    texts = require_texts("texts", texts)
    first = model.bos if require_bool("bos", bos) else None
    start = [] if first is None else [first]
    room = model.n_ctx - len(start)
    rows = []
    for index, ids in enumerate(_ids(model, texts)):
        if not ids:
            raise NotEnoughDataError(f"texts[{index}] holds no tokens; leave empty texts out")
        if len(ids) > room and not truncate:
            raise InvalidArgumentError(
                f"texts[{index}] has {len(ids)} tokens but the context has room for {room}; shorten it, "
                "or pass truncate=True where there is one"
            )
        kept = ids[-room:]
        rows.append(torch.tensor(kept if start and kept[0] == first else start + kept))
    return rows


def token_strings(model: ModelLike, ids: Sequence[int] | Tensor) -> list[str]:
    """Return each token's text; ``#id`` where the model has no tokenizer, or the tokenizer no such token."""
    model = checked(model)
    n_vocab = model.d_vocab
    values = require_ints("ids", ids, minimum=0, maximum=n_vocab - 1)
    tokenizer = model.tokenizer
    if tokenizer is None:
        return [f"#{value}" for value in values]
    known = model.n_tokens
    pieces = tokenizer.convert_ids_to_tokens([min(value, known - 1) for value in values])
    return [
        _piece_text(tokenizer, value, piece) if value < known and piece is not None else f"#{value}"
        for value, piece in zip(values, pieces, strict=True)
    ]


def _piece_text(tokenizer: Any, value: int, piece: object) -> str:
    """Text of one token, with the space that SentencePiece decoders drop at the start of a text."""
    text = str(tokenizer.decode([value], clean_up_tokenization_spaces=False))
    if _UNDECODED in text and isinstance(piece, str):
        text = _bytes_text(piece) or text
    spaces = len(piece) - len(piece.lstrip(_SPACE)) if isinstance(piece, str) else 0
    return (
        text if text.startswith(_SPACE) else " " * spaces + (text.lstrip(" ") if spaces else text)
    )


def _bytes_text(piece: str) -> str | None:
    """Text of a token that holds part of a character, stray bytes written out; None if unknown."""
    fallback = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)  # SentencePiece
    if fallback:
        return bytes.fromhex(fallback[1]).decode("utf-8", "backslashreplace")
    values = [_BYTE_OF.get(character) for character in piece]
    if None in values:
        return None
    return bytes(v for v in values if v is not None).decode("utf-8", "backslashreplace")


def _byte_alphabet() -> dict[str, int]:
    """Byte behind each character of a byte-level vocabulary: printable ones stand for themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def vocabulary(model: ModelLike) -> list[str]:
    """Return the text of every token of the model's vocabulary."""
    model = checked(model)
    return token_strings(model, range(model.d_vocab))
