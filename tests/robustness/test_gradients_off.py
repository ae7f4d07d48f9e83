"""Notebooks switch gradients off at the top: every public function must still run, and say the same."""

import pytest
import torch
from robust_calls import CALLS
from robust_numbers import check_same, numbers
from test_bad_input import REFUSED

ANSWERED = [call for call in CALLS if call.name not in REFUSED]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("call", ANSWERED, ids=lambda call: call.name)
def test_gradients_off_changes_nothing(call):
    want = numbers(call.function(**call.arguments()))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = numbers(call.function(**call.arguments()))
        check_same(call.name, got, want)


def test_the_comparison_sees_numbers():
    seen = sum(bool(numbers(call.function(**call.arguments()))) for call in ANSWERED[:20])
    assert seen > 10
