"""Two answers hold the same numbers: for calls repeated in another mode or on another device."""

import dataclasses
import math

import pandas as pd
import pytest
import torch

import lens_linear as ll

DURATIONS = {"adam_baseline", "train"}  # answers that hold seconds: these differ from run to run


def numbers(found: object) -> list[float]:
    """Every number an answer holds: tensors, tables, and the fields of results, in order."""
    if isinstance(found, torch.Tensor):
        values = torch.view_as_real(found) if found.is_complex() else found
        return values.detach().double().flatten().tolist()
    if isinstance(found, bool | int | float):
        return [float(found)]
    if isinstance(found, pd.DataFrame):
        return found.select_dtypes("number").to_numpy(dtype="float64").flatten().tolist()
    if isinstance(found, ll.Task):
        return []  # what was asked is no answer
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        return [
            value
            for field in dataclasses.fields(found)
            if hasattr(found, field.name)
            for value in numbers(getattr(found, field.name))
        ]
    if isinstance(found, dict):
        return [value for part in found.values() for value in numbers(part)]
    if isinstance(found, list | tuple):
        return [value for part in found for value in numbers(part)]
    return []


def check_same(name: str, got: list[float], want: list[float], *, rel: float = 1e-6) -> None:
    """Fail where an answer holds other numbers; of answers with durations only the count is compared."""
    assert len(got) == len(want)
    if name in DURATIONS:
        return
    for at, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        same = ours == theirs or (math.isnan(ours) and math.isnan(theirs))
        told = f"{name}: number {at} of {len(want)} is {ours}, not {theirs}"
        assert same or ours == pytest.approx(theirs, rel=rel, abs=1e-9), told


# Known up to a sign or a rotation, which another device may choose otherwise: bases, and maps in their
# coordinates. And a gap between two numbers that are equal but for rounding.
BASES = {"A", "B", "C", "bases", "core", "a", "b", "c", "whole_gap"}


def check_near(name: str, got: object, want: object, *, share: float) -> None:
    """Fail where a part of an answer is apart by more than a share of the part's largest number."""
    if name in DURATIONS:
        return
    parts = {name: (got, want)}
    if dataclasses.is_dataclass(want):
        parts = {
            f"{name}.{field.name}": (getattr(got, field.name), getattr(want, field.name))
            for field in dataclasses.fields(want)
            if field.name[0] != "_" and field.name not in BASES and hasattr(want, field.name)
        }
    for part, (ours, theirs) in parts.items():
        _near(part, numbers(ours), numbers(theirs), share)


def _near(name: str, got: list[float], want: list[float], share: float) -> None:
    found, wanted = (torch.tensor(part, dtype=torch.float64) for part in (got, want))
    size = float(wanted[wanted.isfinite()].abs().max()) if wanted.isfinite().any() else 0.0
    torch.testing.assert_close(
        found,
        wanted,
        rtol=0,
        atol=share * size + 1e-9,
        equal_nan=True,
        msg=lambda m: f"{name}: {m}",
    )
