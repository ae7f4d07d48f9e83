"""Arrays as JSON holds them: dtype, shape and base64 of the bytes, which the page reads without parsing."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from torch import Tensor

Kind = Literal["float32", "float16", "int32", "uint8"]


def pack(values: Tensor | np.ndarray, kind: Kind) -> dict[str, Any]:
    """Return ``{"dtype", "shape", "data"}`` with the little-endian bytes in base64.

    ``uint8`` holds numbers from 0 to 1 in steps of 1/255.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if kind == "uint8":
        array = np.rint(array.clip(0, 1) * 255)
    array = np.ascontiguousarray(array, dtype=np.dtype(kind).newbyteorder("<"))
    data = base64.b64encode(array.tobytes()).decode("ascii")
    return {"dtype": kind, "shape": list(array.shape), "data": data}


def unpack_ints(packed: dict[str, Any]) -> list[int]:
    """Return the numbers of a packed ``int32`` array, flat."""
    numbers: list[int] = np.frombuffer(base64.b64decode(packed["data"]), "<i4").tolist()
    return numbers


def packed_bytes(value: Any) -> int:
    """Bytes that the packed arrays in a payload take."""
    if isinstance(value, dict):
        if "data" in value and "dtype" in value:
            return len(value["data"])
        return sum(packed_bytes(one) for one in value.values())
    return sum(packed_bytes(one) for one in value) if isinstance(value, list) else 0
