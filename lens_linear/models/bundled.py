"""The models inside the package: where they are, and what their cards say."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from lens_linear.models.folder import CARD, read_card

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = (
    "name",
    "layers",
    "d_model",
    "heads",
    "vocab",
    "parameters",
    "loss",
    "floor",
    "sha256",
    "checkpoints",
)
BUNDLED = Path(str(resources.files("lens_linear") / "models" / "bundled_models"))


def bundled_names() -> list[str]:
    """Return the names of the bundled models, smallest kind first."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CARD}"))


def available_models() -> pd.DataFrame:
    """Table of the bundled models, read from their cards.

    Columns: ``name``, ``layers``, ``d_model``, ``heads``, ``vocab``, ``parameters``, ``loss`` (nats per
    token on two whole books that were not trained on), ``floor`` (nats per token; what a bigram table
    counted on the training text reaches there, given for models without layers, NaN for others),
    ``sha256`` of the weights, and ``checkpoints`` (training steps that can be loaded too).

    Returns:
        DataFrame with one row a model.

    Example:
        >>> "attn-2l" in set(available_models()["name"])
        True
    """
    import pandas as pd

    rows = []
    for name in bundled_names():
        card = read_card(BUNDLED / name)
        spec = card["spec"]
        rows.append(
            {
                "name": name,
                "layers": spec["n_layers"],
                "d_model": spec["d_model"],
                "heads": spec["n_heads"] if spec["n_layers"] else 0,
                "vocab": spec["d_vocab"],
                "parameters": card["parameters"],
                "loss": card["validation_loss"],
                "floor": card["floor"] if card.get("floor") is not None else float("nan"),
                "sha256": card["sha256"],
                "checkpoints": sorted(int(step) for step in card.get("checkpoints", {})),
            }
        )
    columns = [
        "name",
        "layers",
        "d_model",
        "heads",
        "vocab",
        "parameters",
        "loss",
        "floor",
        "sha256",
        "checkpoints",
    ]
    return pd.DataFrame(rows, columns=columns)
