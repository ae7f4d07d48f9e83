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


class Counted(Tensor):
    """A tensor whose products, and those of what comes of it, are counted and limited."""

    spent: list[int]

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        parts = [p for a in args for p in (a if isinstance(a, (list, tuple)) else [a])]
        counted = [p for p in parts if isinstance(p, Counted) and hasattr(p, "spent")]
        result = super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        if not counted:
            return result
        spent = counted[0].spent
        name = getattr(function, "__name__", "")
        if any(word in name for word in ("mul", "mm", "mv", "dot", "einsum")):
            spent[0] -= max(1, sum(isinstance(p, Tensor) for p in parts) - 1)
            if spent[0] < 0:
                raise MemoryError
        for made in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(made, Counted):
                made.spent = spent
        return result
