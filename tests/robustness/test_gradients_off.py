"""Notebooks switch gradients off at the top: every public function must still run, and say the same."""

import dataclasses
import math

import pandas as pd
import pytest
import torch
from robust_calls import CALLS
from test_bad_input import REFUSED

ANSWERED = [call for call in CALLS if call.name not in REFUSED]
# Answers that hold a duration.
UNLIKE = {"adam_baseline", "train"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def numbers(found: object) -> list[float]:
    """Every number an answer holds: tensors, tables, and the fields of results, in order."""
    if isinstance(found, torch.Tensor):
        values = torch.view_as_real(found) if found.is_complex() else found
        return values.detach().double().flatten().tolist()
    if isinstance(found, bool | int | float):
        return [float(found)]
    if isinstance(found, pd.DataFrame):
        return found.select_dtypes("number").to_numpy(dtype="float64").flatten().tolist()
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


@pytest.mark.parametrize("call", ANSWERED, ids=lambda call: call.name)
def test_gradients_off_changes_nothing(call):
    want = numbers(call.function(**call.arguments()))
    with torch.no_grad():
        got = numbers(call.function(**call.arguments()))
    assert len(got) == len(want)
    if call.name in UNLIKE:
        return
    for ours, theirs in zip(got, want, strict=True):
        same = ours == theirs or (math.isnan(ours) and math.isnan(theirs))
        assert same or ours == pytest.approx(theirs, rel=1e-6, abs=1e-9)


def test_the_comparison_sees_numbers():
    seen = sum(bool(numbers(call.function(**call.arguments()))) for call in ANSWERED[:20])
    assert seen > 10
