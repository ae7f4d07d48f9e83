"""The models that can be opened by a short name: what their cards say, and whether they are here."""

from __future__ import annotations

import difflib
import importlib.util
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from lens_linear.checks import require_path, shown
from lens_linear.errors import UnknownModelError
from lens_linear.models.open.cards import CARD, read_card
from lens_linear.models.open.obtain import OBTAINABLE, obtained_folder

BUNDLED = Path(str(resources.files("lens_linear") / "models" / "bundled_models"))


def bundled_names() -> list[str]:
    """Return the names of the bundled models, in the order of the alphabet."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CARD}"))


def refuse_unknown_name(name: str, text: str) -> None:
    """Refuse what can be no model's name or folder, without importing TransformerLens.

    A name of one word must be bundled, obtainable, a folder or file, or stand in TransformerLens's own lists,
    which are read as text; ``owner/model`` may be on the Hub.

    Args:
        name: of the argument.
        text: what was given.

    Raises:
        UnknownModelError: no model can go by it.
    """
    path = require_path(name, text)
    bundled = bundled_names()
    if text.split("@")[0] in bundled or text in OBTAINABLE or path.exists():
        return
    refuse_absent_folder(text, path)
    if "/" in text or f'"{text.lower()}"' in _registry_text():
        return
    near = difflib.get_close_matches(text.lower(), (*bundled, *OBTAINABLE), n=3, cutoff=0.5)
    raise unknown_name(text, ", ".join(near) or "none")


def refuse_absent_folder(text: str, path: Path) -> None:
    """Refuse what can only be a path, where nothing is.

    Raises:
        UnknownModelError: it is written as a path.
    """
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise UnknownModelError(
            f"there is no folder {shown(str(path))}; check the path, or pass a bundled name: "
            f"{', '.join(bundled_names())}"
        )


def unknown_name(text: str, near: str) -> UnknownModelError:
    """The error for a name that no model has; ``near`` lists those like it."""
    return UnknownModelError(
        f"no model is called {shown(text)} here; nearest names: {near}; bundled: "
        f"{', '.join(bundled_names())}; or pass a local folder or a Hub name owner/model"
    )


def _registry_text() -> str:
    """Names of TransformerLens as its files spell them; importing it to ask takes seven seconds."""
    spec = importlib.util.find_spec("transformer_lens")
    root = Path(str(spec.origin)).parent if spec else Path()
    files = ("supported_models.py", "tools/model_registry/data/model_aliases.json")
    return "".join(
        (root / one).read_text("utf-8").lower() for one in files if (root / one).is_file()
    )


def available_models() -> pd.DataFrame:
    """Table of the models that a short name opens, read from their cards, fewest layers first.

    Columns: ``name``, ``layers``, ``d_model``, ``heads``, ``vocab``, ``parameters``, ``loss`` (nats per
    token on two whole books that were not trained on; NaN for models that others trained), ``floor``
    (nats per token; what a bigram table counted on the training text reaches there, given for models
    without layers, NaN for others), ``sha256`` of the file of weights and ``state``: "bundled" (in the
    package), "present" (fetched before) or "obtainable" (``lens-linear models --get NAME`` fetches it).

    Returns:
        DataFrame with one row a model.

    Raises:
        CorruptedFileError: a card of the installed package cannot be read.

    Example:
        >>> "attn-2l" in set(available_models()["name"])
        True
    """
    rows = []
    for card in _cards():
        spec = card["spec"]
        rows.append(
            {
                "name": card["name"],
                "layers": spec["n_layers"],
                "d_model": spec["d_model"],
                "heads": spec["n_heads"] if spec["n_layers"] else 0,
                "vocab": spec["d_vocab"],
                "parameters": card["parameters"],
                "loss": card["validation_loss"],
                "floor": card["floor"] if card.get("floor") is not None else float("nan"),
                "sha256": card["sha256"],
                "state": "bundled",
            }
        )
    for entry in OBTAINABLE.values():
        shape = {key: getattr(entry, key) for key in ("layers", "d_model", "heads", "vocab")}
        rows.append(
            {
                "name": entry.name,
                **shape,
                "parameters": entry.parameters,
                "loss": float("nan"),
                "floor": float("nan"),
                "sha256": entry.sha256,
                "state": "obtainable" if obtained_folder(entry.name) is None else "present",
            }
        )
    return pd.DataFrame(rows)


def training_table() -> pd.DataFrame:
    """How the bundled models were trained, read from their cards: what each recipe costs and reaches.

    Columns: ``name``, ``steps``, ``tokens`` (seen in training), ``minutes`` and ``threads`` (as measured
    on a machine with 2 cores), ``loss`` (nats per token on unseen books), ``checkpoints`` (steps
    whose weights can be loaded too) and ``note`` (what was mixed in).

    Returns:
        DataFrame with one row a model, in the order of :func:`available_models`, bundled ones only.

    Example:
        >>> int(training_table().set_index("name").loc["attn-2l", "steps"])
        6700
    """
    columns = ["name", "steps", "tokens", "minutes", "threads", "validation_loss"]
    rows = [
        {
            **{column: card[column] for column in columns},
            "checkpoints": ", ".join(sorted(card["checkpoints"], key=int)),
            "note": card["note"],
        }
        for card in _cards()
    ]
    return pd.DataFrame(rows).rename(columns={"validation_loss": "loss"})


def _cards() -> list[dict[str, Any]]:
    cards = [read_card(BUNDLED / name) for name in bundled_names()]
    return sorted(cards, key=lambda card: (card["spec"]["n_layers"], card["parameters"]))
