"""Text to token ids and back, for bundled models and for any model that carries a tokenizer."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from lens_linear._checks import require_int
from lens_linear._files import write_with
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(text: str, *, n_vocab: int = 1024) -> Tokenizer:
    """Train a byte-level BPE tokenizer with ``n_vocab`` tokens; token 0 is ``<|endoftext|>``."""
    require_int("n_vocab", n_vocab, minimum=258)
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
    return write_with(path, lambda temporary: tokenizer.save(str(temporary)))


def encode_stream(tokenizer: Tokenizer, text: str) -> Int[Tensor, " token"]:
    """Encode a long text as one row of ids, line by line (newlines kept, no special tokens)."""
    pieces = tokenizer.encode_batch(text.splitlines(keepends=True), add_special_tokens=False)
    return torch.tensor([token for piece in pieces for token in piece.ids], dtype=torch.int32)
