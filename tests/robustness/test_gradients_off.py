"""Notebooks switch gradients off at the top, or autocast on: every public function says the same."""

from contextlib import contextmanager

import pytest
import torch
from robust_calls import CALLS
from robust_numbers import check_same, numbers
from test_bad_input import REFUSED

ANSWERED = [call for call in CALLS if call.name not in REFUSED]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@contextmanager
def no_grad_and_autocast():
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        yield


@pytest.mark.parametrize("call", ANSWERED, ids=lambda call: call.name)
def test_gradients_off_and_autocast_on_change_nothing(call):
    want = numbers(call.function(**call.arguments()))
    for mode in (no_grad_and_autocast, torch.inference_mode):
        with mode():
            got = numbers(call.function(**call.arguments()))
        check_same(call.name, got, want)


def test_the_comparison_sees_numbers():
    seen = sum(bool(numbers(call.function(**call.arguments()))) for call in ANSWERED[:20])
    assert seen > 10
