"""Correlations against scipy, and what the numbers beside them mean."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lens_linear.dynamics.gains.agreement import compare_gains, pearson, ranks, spearman
from lens_linear.errors import InvalidArgumentError

values = st.lists(st.integers(-4, 4), min_size=4, max_size=8)


@settings(max_examples=40, deadline=None)
@given(x=values, seed=st.integers(0, 99))
def test_correlations_equal_scipy_with_ties(x, seed):
    y = np.random.default_rng(seed).integers(-3, 4, len(x)).astype(float)
    a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y)
    assert ranks(a).tolist() == stats.rankdata(x).tolist()
    if len(set(x)) > 1 and len(set(y.tolist())) > 1:
        assert float(spearman(a, b)) == pytest.approx(stats.spearmanr(x, y).statistic)
        assert float(pearson(a, b)) == pytest.approx(stats.pearsonr(x, y).statistic)
    else:
        assert spearman(a, b).isnan() and pearson(a, b).isnan()


def test_agreement_of_one_profile_with_two_prompts_by_hand():
    exact = torch.tensor([[1.0, 2.0, 4.0], [1.0, 3.0, 2.0]])
    found = compare_gains(torch.tensor([[1.0, 2.0, 3.0]]), exact)
    # Rank correlations 1 and 1/2; mean profile (1, 2.5, 3); errors 1, 1, 1 against norm² 35.
    assert found.spearman == pytest.approx(0.75) and found.spearman_sd == pytest.approx(0.25)
    assert found.relative_error == pytest.approx((3 / 35) ** 0.5)
    assert found.mean_spearman == pytest.approx(1.0)
    assert found.ceiling == pytest.approx(0.75) and found.layer_order == pytest.approx(0.75)
    assert found.mean_relative_error == pytest.approx(0.5 / (1 + 6.25 + 9) ** 0.5)
    assert not found.paired and "all by one profile" in repr(found)


def test_paired_rows_meet_their_own_prompt():
    exact = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    right = compare_gains(exact * 2 + 5, exact)
    assert right.paired and right.spearman == pytest.approx(1.0)
    assert right.pearson == pytest.approx(1.0) and right.relative_error > 1
    crossed = compare_gains(exact.flip(0), exact)
    assert crossed.spearman == pytest.approx(-1.0)
    assert next(iter(crossed.to_dataframe().columns)) == "spearman"


def test_constant_rows_are_left_out_and_shapes_checked():
    exact = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
    assert compare_gains(exact, exact).spearman == pytest.approx(1.0)
    with pytest.raises(InvalidArgumentError, match="predicted must have shape"):
        compare_gains(torch.zeros(3, 3), exact)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), n_layers=st.integers(2, 5))
def test_the_ceiling_is_the_best_of_all_orderings(seed, n_layers):
    rng = np.random.default_rng(seed)
    exact = rng.normal(size=(4, n_layers)) + 0.7 * np.arange(n_layers)
    best = max(
        np.mean([stats.spearmanr(order, row).statistic for row in exact])
        for order in permutations(range(n_layers))
    )
    found = compare_gains(torch.randn(1, n_layers), torch.tensor(exact))
    assert found.ceiling == pytest.approx(best) and found.spearman <= found.ceiling + 1e-12


def test_the_mean_profile_is_not_the_ceiling():
    """One prompt with huge gains bends the mean profile; the other prompts' order is worth more."""
    exact = torch.tensor([[300.0, 200.0, 100.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    mean = compare_gains(exact.mean(0, keepdim=True), exact)
    assert mean.spearman == pytest.approx(-1 / 3) and mean.ceiling == pytest.approx(1 / 3)
