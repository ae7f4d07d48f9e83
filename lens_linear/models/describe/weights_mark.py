"""Whether a model still has the weights that something was read from.

Heads, lenses and folders of maps hold numbers read from a model *and* the model itself. When its weights are
edited in between, the two no longer fit, and this is how that is said.
"""

from __future__ import annotations

import warnings
import weakref

from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.errors import LensLinearWarning
from lens_linear.models.open.checksum import weights_sha256


class WeightsMark:
    """The weights of a model as they are now, to be compared with what they are later.

    Args:
        model: a bridge.
        read: take a checksum of every weight (about 0.7 s a gigabyte). Without it a change is a tensor
            written to, replaced, or whose 64 values at even distances have another sum.

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=1)
        >>> mark = WeightsMark(model)
        >>> _ = model.blocks[0].attn.W_Q.data.mul_(2)
        >>> mark.fits(model)
        False
    """

    def __init__(self, model: TransformerBridge, *, read: bool = True) -> None:
        self._sha256 = weights_sha256(model) if read else None
        state = model.original_model.state_dict(keep_vars=True).values()
        self._seen = [(weakref.ref(value), self._place(value)) for value in state]

    def __repr__(self) -> str:
        return f"WeightsMark {(self._sha256 or 'by place')[:8]}"

    def fits(self, model: TransformerBridge) -> bool:
        """Whether every weight is what it was; reads all of them, where they were read to begin with."""
        if self._sha256 is None:
            return not self._touched()
        return weights_sha256(model) == self._sha256

    def note(self, model: TransformerBridge) -> str:
        """What a ``repr`` adds: nothing, or that the weights have changed."""
        return "" if self.fits(model) else "; the model's weights have changed since it was made"

    def warn(
        self, model: TransformerBridge, what: str, advice: str, *, stacklevel: int = 3
    ) -> None:
        """Say it where the old weights are used; only :meth:`note` sees edits through ``.data``."""
        if self._touched() and not self.fits(model):
            warnings.warn(
                f"{what} holds weights that {str(model.cfg.model_name)!r} no longer has: they have changed "
                f"since it was made; {advice}",
                LensLinearWarning,
                stacklevel=stacklevel,
            )

    def _touched(self) -> bool:
        return any(
            (found := ref()) is None or self._place(found) != place for ref, place in self._seen
        )

    def _place(self, value: Tensor) -> tuple[int, int, float]:
        """Where a tensor lies, how often it was written to, and what is read of it.

        torch does not count edits through ``.data``. Reading takes .01 ms a tensor: too long for heads, which
        are used by the hundred.
        """
        some = 0.0
        if self._sha256 is None:
            some = float(_some_values(value).double().sum())
        return value.data_ptr(), 0 if value.is_inference() else value._version, some


def _some_values(value: Tensor) -> Tensor:
    n = value.numel()
    return value.detach().reshape(-1)[:: max(1, n // 64)][:64]
