"""Whether a model still has the weights that something was read from.

Heads, lenses and folders of maps hold numbers read from a model *and* the model itself. When its weights are
edited in between, the two no longer fit, and this is how that is said.
"""

from __future__ import annotations

import math
import re
import warnings
import weakref
from collections.abc import Collection
from functools import cache

import torch
from torch import Tensor

from lens_linear.errors import LensLinearWarning
from lens_linear.models.checked import CheckedModel
from lens_linear.models.open.checksum import weights_sha256


class WeightsMark:
    """The weights of a model as they are now, to be compared with what they are later.

    A change is seen at use when a tensor was written to or replaced, or when a weighted sum over some values
    of each of its rows moved: torch does not count edits through ``.data``.

    Args:
        model: a bridge.
        read: take a checksum of every weight too (about 0.7 s a gigabyte), which a ``repr`` compares.

    Example:
        >>> from lens_linear.models.checked import checked
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = checked(toy_model(n_layers=1))
        >>> mark = WeightsMark(model)
        >>> _ = model.bridge.blocks[0].attn.W_Q.data.mul_(2)
        >>> mark.fits(model)
        False
    """

    def __init__(self, model: CheckedModel, *, read: bool = True) -> None:
        self._sha256 = weights_sha256(model) if read else None
        state = model.bridge.original_model.state_dict(keep_vars=True)
        # A bridge lists a tensor under each of the parts that wrap it.
        once = {(_layer(name), id(value)): value for name, value in state.items()}
        self._seen = [
            (layer, weakref.ref(value), _place(value), _digest(value))
            for (layer, _), value in once.items()
        ]

    def __repr__(self) -> str:
        return f"WeightsMark {(self._sha256 or 'by place')[:8]}"

    def fits(self, model: CheckedModel) -> bool:
        """Whether every weight is what it was; reads all of them, where they were read to begin with."""
        if self._sha256 is None:
            return not self._touched()
        return weights_sha256(model) == self._sha256

    def note(self, model: CheckedModel) -> str:
        """What a ``repr`` adds: nothing, or that the weights have changed."""
        return "" if self.fits(model) else "; the model's weights have changed since it was made"

    def warn(
        self,
        model: CheckedModel,
        what: str,
        advice: str,
        *,
        layers: Collection[int] | None = None,
        stacklevel: int = 3,
    ) -> None:
        """Say it where the old weights are used; of ``layers`` and outside all of them, where given."""
        if self._touched(layers) and not self.fits(model):
            warnings.warn(
                f"{what} holds weights that {model.name!r} no longer has: they have changed "
                f"since it was made; {advice}",
                LensLinearWarning,
                stacklevel=stacklevel,
            )

    def _touched(self, layers: Collection[int] | None = None) -> bool:
        return any(
            (found := ref()) is None
            or _place(found) != place
            or ((layers is None or layer is None or layer in layers) and _digest(found) != digest)
            for layer, ref, place, digest in self._seen
        )


def _layer(name: str) -> int | None:
    """The layer that a weight's name tells: its first whole number; None outside the layers."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def _place(value: Tensor) -> tuple[int, int]:
    """Where a tensor lies, and how often it was written to as far as torch counts."""
    return value.data_ptr(), 0 if value.is_inference() else value._version


def _digest(value: Tensor) -> str:
    """A weighted sum of a tensor's values at even distances: moved by an edit of a row, or an exchange."""
    if value.numel() == 0:
        return ""
    flat, width = value.detach().reshape(-1), value.shape[-1] if value.ndim else 1
    # No longer than a row, so that none is passed over; no factor in common, so that all columns are met.
    step = max(1, min(flat.numel() // 4096, width))
    while math.gcd(step, width) > 1:
        step -= 1
    flat = flat[::step].double()
    return float(flat @ _ramp(len(flat)).to(flat.device)).hex()  # NaN equals NaN as text


@cache
def _ramp(n: int) -> Tensor:
    return torch.linspace(1, 2, n, dtype=torch.float64)
