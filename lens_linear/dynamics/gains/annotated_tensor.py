"""Tensors that remember how they were made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from lens_linear.tables import View


class MadeTensor(View, Tensor):
    """A tensor with read-only notes beside its values; arithmetic on it gives plain tensors.

    Directions and schedules are used as tensors everywhere (``d @ x``, ``d[3]``, ``u.sum()``), and still
    have a sentence as their ``repr`` and a data frame.
    """

    _notes: dict[str, Any]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    if TYPE_CHECKING:

        def __init__(self, values: Tensor, **notes: Any) -> None: ...

    def __new__(cls, values: Tensor, **notes: Any) -> Self:
        """Wrap values with notes."""
        made: Self = Tensor._make_subclass(cls, values.detach())
        made._notes = dict(notes)
        return made

    def __getattr__(self, name: str) -> Any:
        notes = self.__dict__.get("_notes", {})
        if name in notes:
            return notes[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def plain(self) -> Tensor:
        """Return the values alone, as an ordinary tensor that shares their memory."""
        return self.as_subclass(Tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> MadeTensor:
        return type(self)(self.plain().clone(), **self.__dict__["_notes"])
