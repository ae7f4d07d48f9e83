import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_linear.errors import InvalidArgumentError
from lens_linear.text import random_tokens, repeated_tokens


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 20),
    periods=st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True),
    extra=st.integers(1, 12),
    bos=st.sampled_from([None, 0, 7]),
    distinct=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rows_repeat_with_their_own_period(n, periods, extra, bos, distinct, seed):
    length = max(periods) + extra + (bos is not None)
    tokens, row_periods = repeated_tokens(n, periods, length, 50, seed, bos=bos, distinct=distinct)
    assert tokens.shape == (n, length) and tokens.dtype == torch.int64
    assert int(tokens.min()) >= 0 and int(tokens.max()) < 50
    counts = [int((row_periods == p).sum()) for p in periods]
    assert sum(counts) == n and max(counts) - min(counts) <= 1
    for row, period in zip(tokens.tolist(), row_periods.tolist()):
        if bos is not None:
            assert row[0] == bos
            row = row[1:]
        assert all(row[t] == row[t - period] for t in range(period, len(row)))
        if distinct:
            assert len(set(row[:period])) == period


def test_tokens_are_uniform_over_the_allowed_ids():
    allowed = [3, 5, 11, 20]
    tokens = random_tokens(400, 50, allowed, seed=1)
    counts = torch.bincount(tokens.flatten(), minlength=21)
    assert counts.nonzero().flatten().tolist() == allowed
    error = (20_000 * 0.25 * 0.75) ** 0.5
    assert all(abs(int(counts[i]) - 5000) < 4 * error for i in allowed)
    block = repeated_tokens(400, 25, 50, torch.tensor(allowed), seed=1).tokens
    assert set(block.flatten().tolist()) == set(allowed)


def test_without_distinct_the_previous_occurrence_is_ambiguous_at_times():
    plain = repeated_tokens(200, 8, 20, 20, seed=0).tokens
    assert any(len(set(row[:8])) < 8 for row in plain.tolist())


def test_seed_and_bos():
    one = repeated_tokens(8, [3, 5], 12, 30, 4)
    assert torch.equal(one.tokens, repeated_tokens(8, [3, 5], 12, 30, 4).tokens)
    assert not torch.equal(one.tokens, repeated_tokens(8, [3, 5], 12, 30, 5).tokens)
    whole = repeated_tokens(1, 5, 10, 5, distinct=True).tokens  # as many ids as the period is long
    assert sorted(whole[0, :5].tolist()) == [0, 1, 2, 3, 4]
    assert random_tokens(3, 4, 10, bos=9)[:, 0].tolist() == [9, 9, 9]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: repeated_tokens(2, 10, 10, 50), "periods must be shorter than the 10"),
        (lambda: repeated_tokens(2, 10, 11, 50, bos=0), "length > 11"),
        (lambda: repeated_tokens(2, [], 10, 50), "at least one"),
        (lambda: repeated_tokens(2, 5, 10, 4, distinct=True), "at least 5 ids"),
        (lambda: repeated_tokens(2, 5, 10, [1, 1]), "different ids"),
        (lambda: random_tokens(0, 5, 10), "n_sequences"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(InvalidArgumentError, match=words):
        call()
