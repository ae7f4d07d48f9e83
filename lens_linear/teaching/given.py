"""What checks hand to answers beside plain tensors.

A graded answer runs in a process that may not read the checks; so what travels there stands in a module of
its own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def cubic(x: Tensor) -> Tensor:
    """A curved function of two numbers."""
    return x[..., 0] ** 3 + 2 * x[..., 1]


class Thin(Tensor):
    """A tensor that refuses to become a vocabulary by vocabulary matrix."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if "mul" in name or "mm" in name:
            shapes = [a.shape for a in args if isinstance(a, Tensor) and a.ndim == 2]
            if len(shapes) == 2 and shapes[0][0] * shapes[1][-1] > 10_000_000:
                raise MemoryError
        return super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]
