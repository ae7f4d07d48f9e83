"""What a folder of ours says about itself: names of its files and its card. JSON only, no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lens_linear.errors import CorruptedFileError
from lens_linear.files import read_json, write_text

CARD = "card.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")  # as Hugging Face names them


def weights_name(step: int | None) -> str:
    """Return the file name of the final weights (None) or of a kept checkpoint."""
    return WEIGHTS if step is None else f"checkpoint-{step}.safetensors"


def write_card(folder: Path, card: dict[str, Any]) -> Path:
    """Write the card last: a folder without one is not a model yet."""
    return write_text(folder / CARD, card_text(card))


def card_text(card: dict[str, Any]) -> str:
    """The text of a card's file."""
    return json.dumps(card, indent=2) + "\n"


def read_card(folder: Path) -> dict[str, Any]:
    """Read a folder's card; whether its numbers make a model is seen when it is opened.

    Raises:
        CorruptedFileError: it is not JSON, or lacks what a card must have.
    """
    try:
        card = read_json(folder / CARD, advice="it is not a card")
        dict(card["spec"])
        str(card["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise not_a_card(folder, error) from error
    return card


def not_a_card(folder: Path, reason: object) -> CorruptedFileError:
    """Say that a folder's card is not one, and what to do."""
    return CorruptedFileError(
        f"{str(folder / CARD)!r} is not the card of a model ({reason}); train the model again, or install "
        "the package again if it is a bundled one"
    )
