"""What a figure may hold: real numbers, and not more cells than a browser draws."""

from __future__ import annotations

from typing import Any

import numpy as np

from lens_linear.checks import require_int
from lens_linear.errors import FigureTooLargeError, InvalidArgumentError

MAX_CELLS = 40_000


def check_cells(n_cells: int, *, max_cells: int = MAX_CELLS) -> int:
    """Accept at most ``max_cells`` cells.

    Args:
        n_cells: cells of the figure, from 0.
        max_cells: largest number accepted, from 1.

    Returns:
        ``n_cells``.

    Raises:
        FigureTooLargeError: too many for a browser; the message says what to do.

    Example:
        >>> check_cells(200 * 200)
        40000
    """
    if require_int("n_cells", n_cells, minimum=0) > require_int("max_cells", max_cells, minimum=1):
        raise FigureTooLargeError(
            f"the figure would have {n_cells} cells but max_cells is {max_cells}; "
            "show fewer rows and columns, or pass a larger max_cells"
        )
    return n_cells


def as_array(name: str, values: Any) -> np.ndarray:
    """Accept real numbers as an array or a tensor of any shape and precision.

    Args:
        name: of the argument, for the message.
        values: array, tensor or nested list.

    Returns:
        Numpy array of the same shape; 16-bit tensors become float32.

    Raises:
        InvalidArgumentError: not an array, or not of real numbers.

    Example:
        >>> as_array("values", [[1, 2], [3, 4]]).shape
        (2, 2)
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.dtype.itemsize == 2 else values
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"its numbers are {array.dtype}")
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"{name} must be an array of real numbers, got {type(values).__name__} ({error}); "
            "pass a tensor or a numpy array"
        ) from error
    return array
