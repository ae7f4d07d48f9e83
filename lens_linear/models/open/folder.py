"""Our own model folder: ``model.safetensors``, ``card.json`` and (there or one folder up) ``tokenizer.json``.

Bundled models and the output of ``lens-linear train`` have this one format.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from lens_linear.errors import CorruptedFileError, InvalidArgumentError
from lens_linear.files import write_tensors
from lens_linear.models.native import ModelSpec, bridge_from_module, native_module
from lens_linear.models.open.cards import (
    SPECIAL_TOKENS,
    TOKENIZER,
    not_a_card,
    read_card,
    weights_name,
)
from lens_linear.models.tokenizer import END_OF_TEXT


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_weights(folder: Path, state: dict[str, Tensor], *, step: int | None = None) -> str:
    """Write weights in half precision; returns the checksum for the card."""
    path = folder / weights_name(step)
    halves = {name: value.detach().cpu().half().contiguous() for name, value in state.items()}
    return file_sha256(write_tensors(path, halves, {"format": "pt"}))


def read_tokenizer(
    folder: Path, *, bos: str | None = END_OF_TEXT, special: dict[str, str] | None = None
) -> Any:
    """Return the folder's tokenizer as Hugging Face wraps it, or None.

    Cards that name no special tokens (``special`` None) may lean on the tokenizer of the folder above.
    """
    from transformers import PreTrainedTokenizerFast

    paths = [folder / TOKENIZER] + [folder.parent / TOKENIZER] * (special is None)
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception on damaged files
        raise CorruptedFileError(
            f"{str(path)!r} is not a tokenizer ({error}); restore the file"
        ) from error
    unknown = getattr(tokenizer.model, "unk_token", None)
    wrapped = {"unk_token": unknown} if unknown else {}
    wrapped |= {"name_or_path": path.parent.name, "tokenizer_object": tokenizer}
    first = None if bos is None else tokenizer.token_to_id(bos)
    if bos is None or first is None:
        return PreTrainedTokenizerFast(**wrapped | (special or {}))
    # Without a template and add_bos_token, TransformerLens loads the tokenizer anew from the
    # Hub to obtain them.
    tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, first)])
    wrapped |= {"eos_token": bos, "pad_token": bos} | (special or {})
    return PreTrainedTokenizerFast(**wrapped | {"add_bos_token": True, "bos_token": bos})


def load_folder(folder: Path, *, checkpoint: int | None = None) -> TransformerBridge:
    """Load a model folder of ours, checking the weights against the card's checksum.

    Raises:
        CorruptedFileError: weights and checksum disagree, or the weights do not fit the shape.
        InvalidArgumentError: there is no such checkpoint.
    """
    card = read_card(folder)
    try:
        spec = ModelSpec.from_dict(card["spec"])
        bos, special = card.get("bos", END_OF_TEXT), card.get("special_tokens")
        bos = None if bos is None else str(bos)
        if special is not None:
            special = {name: str(special[name]) for name in SPECIAL_TOKENS if name in special}
    except (ValueError, KeyError, TypeError) as error:
        raise not_a_card(folder, error) from error
    checksum = card["sha256"]
    if checkpoint is not None:
        kept = {int(step): entry["sha256"] for step, entry in card.get("checkpoints", {}).items()}
        if not kept:
            raise InvalidArgumentError(
                f"no checkpoint of {card['name']!r} was kept, got checkpoint={checkpoint}; leave it out"
            )
        if checkpoint not in kept:
            raise InvalidArgumentError(
                f"checkpoint must be one of {sorted(kept)} for {card['name']!r}, got {checkpoint}; "
                "leave it out for the final weights"
            )
        checksum = kept[checkpoint]
    path = folder / weights_name(checkpoint)
    if not path.is_file() or file_sha256(path) != checksum:
        raise CorruptedFileError(
            f"the weights {path.name!r} of {card['name']!r} do not match the checksum on their card; "
            "the file is missing, cut short or changed: install the package (or train the model) again"
        )
    try:
        state = {name: value.float() for name, value in load_file(path).items()}
        module = native_module(spec)
        module.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise CorruptedFileError(
            f"the weights {path.name!r} of {card['name']!r} do not fit the card ({error}); "
            "install the package (or train the model) again"
        ) from error
    label = card["name"] + ("" if checkpoint is None else f"@{checkpoint}")
    tokenizer = read_tokenizer(folder, bos=bos, special=special)
    module.requires_grad_(True)
    with torch.no_grad():
        return bridge_from_module(module, spec, tokenizer=tokenizer, name=label)
