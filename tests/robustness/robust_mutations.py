"""What can go wrong with one argument: for each kind of value, the values that a caller gets wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

Mutation = tuple[str, Any]
_GARBAGE: tuple[Mutation, ...] = (
    ("None", None),
    ("a word", "banana"),
    ("an object", object()),
    ("an empty list", []),
    ("a dict", {"a": 1}),
    ("bytes", b"\x00"),
    ("a number", 3.5),
    ("an empty array", np.array([])),
    ("a table", pd.DataFrame({"layer": [0, None], "x": ["a", 1]})),
    ("a tensor of no axis", torch.tensor(2.0)),
    ("half a character", "a \ud800"),
    ("a class", float),
)


def mutations(value: Any) -> Iterator[Mutation]:
    """Bad values in place of ``value``, each with a name. Some may be right by accident."""
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(value, bool) or (callable(value) and not isinstance(value, (nn.Module, Tensor))):
        return
    yield from _GARBAGE
    if isinstance(value, TransformerBridge):
        yield "a module", nn.Linear(2, 2)
    elif isinstance(value, Tensor) and value.is_floating_point():
        yield from _float_tensors(value)
    elif isinstance(value, Tensor):
        yield from _id_tensors(value)
    elif isinstance(value, int):
        yield from ((str(v), v) for v in (-1, -(10**9), 2.5, "2", True, np.float64(1.5)))
        yield "nan", math.nan
    elif isinstance(value, float):
        yield from ((str(v), v) for v in (-1.0, math.nan, math.inf, -math.inf, "0.5"))
        yield "a tensor", torch.zeros(3)
    elif isinstance(value, (str, Path)):
        yield from (
            ("empty", ""),
            ("zero byte", "a\0b"),
            ("markup", "<b>"),
            ("a path", "/proc/no/such"),
        )
        yield "a folder", Path("/proc/self/ns")
    elif isinstance(value, (list, tuple)):
        yield from _sequences(value)
    elif value is None:
        yield from (("-1", -1), ("nan", math.nan), ("a tensor", torch.full((2, 2), math.nan)))


def _float_tensors(value: Tensor) -> Iterator[Mutation]:
    for name, bad in (("a NaN", math.nan), ("an infinity", math.inf)):
        if value.numel():
            changed = value.clone()
            changed.view(-1)[value.numel() // 2] = bad
            yield f"with {name}", changed
    yield "whole numbers", value.long()
    yield "truth values", value > 0
    yield "complex", value.to(torch.complex64)
    yield "one axis more", value[None]
    yield "a scalar", torch.tensor(1.0)
    yield "a list", value.tolist()
    yield "all zero", torch.zeros_like(value)
    if value.ndim:
        yield "no rows", value[:0]
        yield "one row", value[:1]
        yield "one column less", value[..., :-1]
        yield "transposed", value.T if value.ndim == 2 else value.flatten()[:2]


def _id_tensors(value: Tensor) -> Iterator[Mutation]:
    yield (
        "a negative id",
        torch.where(torch.arange(value.numel()).view(value.shape) == 1, -1, value),
    )
    yield "an id too large", value + 10**6
    yield "floats", value.float()
    yield "NaN floats", torch.full(value.shape, math.nan)
    yield "truth values", value > 0
    yield "one axis more", value[None]
    yield "a scalar", torch.tensor(1)
    yield "a list", value.tolist()
    if value.ndim:
        yield "no rows", value[:0]
        yield "one row", value[:1]
    if value.ndim == 2:
        yield "too long", value.repeat(1, 40)
        yield "one column", value[:, :1]
        yield "no column", value[:, :0]


def _sequences(value: Any) -> Iterator[Mutation]:
    kind = type(value) if type(value) in (list, tuple) else list
    yield "empty", kind()
    yield "of objects", kind([object()])
    yield "of None", kind([None])
    yield "of -1", kind([-1])
    yield "of NaN", kind([math.nan])
    yield "of words", kind(["banana"])
    yield "nested", kind([[1]])
    if len(value):
        yield "doubled", kind([*value, *value])
