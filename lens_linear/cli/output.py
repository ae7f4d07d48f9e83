"""What a command prints: text for people, or one JSON object that says how it was made."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm

from lens_linear import __version__

if TYPE_CHECKING:
    from lens_linear._tl import TransformerBridge


def envelope(
    command: str,
    result: Any,
    *,
    models: dict[str, TransformerBridge] | None = None,
    seed: int | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the JSON object of a command: version, checksums, seed, settings, result."""
    checksums = {}
    if models:
        from lens_linear.models.open.checksum import (
            weights_sha256,  # torch, which cards do not need
        )

        checksums = {name: weights_sha256(model) for name, model in models.items()}
    return {
        "lens_linear": __version__,
        "command": command,
        "models": checksums,
        "seed": seed,
        "settings": settings or {},
        "result": plain(result),
    }


@contextmanager
def steps(total: int, what: str, *, hide: bool = False) -> Iterator[Callable[[str], None]]:
    """Yield a function to call with a word on each step as it begins; a bar where a person looks on."""
    with tqdm(total=total, desc=what, unit="step", disable=hide or None, leave=False) as bar:
        begun = 0

        def begin(text: str) -> None:
            nonlocal begun
            bar.update(begun - bar.n)
            bar.set_postfix_str(text)
            begun = min(begun + 1, total)

        yield begin
        bar.update(total - bar.n)


def plain(value: Any) -> Any:
    """Turn frames, arrays and tensors into JSON values; what is not finite becomes null."""
    if isinstance(value, pd.DataFrame):
        frame = value.reset_index() if value.index.name is not None else value
        return [{str(k): plain(v) for k, v in row.items()} for row in frame.to_dict("records")]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def emit(as_json: bool, payload: dict[str, Any], text: str) -> None:
    """Write the JSON object or the text to standard output."""
    shown = json.dumps(payload, indent=1, allow_nan=False) if as_json else text.rstrip()
    sys.stdout.write(shown + "\n")


def table(frame: pd.DataFrame, *, digits: int = 3) -> str:
    """Return a frame as plain text."""
    named = frame.index.name is not None
    return frame.to_string(
        index=named, float_format=lambda v: f"{v:.{digits}f}", na_rep="–", max_colwidth=70
    )
