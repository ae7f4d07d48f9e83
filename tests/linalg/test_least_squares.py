import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linalg_data import ill_conditioned, normal, numpy_fit, planted
from sklearn.linear_model import Ridge, RidgeCV

from lens_linear.errors import InvalidArgumentError, NonFiniteError, NotEnoughDataError
from lens_linear.linalg import Moments, fit_linear, r_squared, reduced_rank, row_error
from lens_linear.linalg.least_squares import require_halves


def by_rows(x, y, **kw):
    return fit_linear(x, y, **kw)


def by_moments(x, y, **kw):
    moments = Moments()
    for start in range(0, len(x), 37):
        moments.update(x[start : start + 37], y[start : start + 37])
    return moments.fit(**kw)


both = pytest.mark.parametrize("fit", [by_rows, by_moments])


@both
@pytest.mark.parametrize("shift, scale", [(0.0, 1.0), (1000.0, 1.0), (0.0, 100.0), (1000.0, 100.0)])
def test_recovers_planted_r_squared(fit, shift, scale):
    x, y = planted(0.6)
    assert fit(scale * x + shift, scale * y + shift).r_squared == pytest.approx(0.6, abs=1e-9)


@both
@pytest.mark.parametrize("kind", ["bulk", "all", "smallest"])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_numpy_on_ill_conditioned_data_with_outliers(fit, kind, seed):
    x, y = ill_conditioned(kind=kind, seed=10 * seed)
    prediction, score, rank, _ = numpy_fit(x, y)
    result = fit(x, y)
    assert result.r_squared == pytest.approx(score, abs=1e-8)
    assert float((result.predict(x) - prediction).abs().max() / y.std()) < 1e-6
    assert result.rank == rank == 40


def test_plain_normal_equations_would_fail_the_same_check():
    # The oracle has teeth: without the probe the smallest directions are off by more than 1e-6.
    x, y = ill_conditioned(kind="smallest")
    xc, yc = x - x.mean(0), y - y.mean(0)
    prediction, _, _, _ = numpy_fit(x, y)
    scale = xc.norm(dim=0)
    weight = torch.linalg.solve((xc / scale).T @ (xc / scale), (xc / scale).T @ yc)
    plain = xc / scale @ weight + y.mean(0)
    assert float((plain - prediction).abs().max() / y.std()) > 1e-6


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_fitted_in_float64(fit, dtype):
    x, y = planted(0.7)
    x, y = x.to(dtype), y.to(dtype)
    prediction, score, _, _ = numpy_fit(x.double(), y.double())
    result = fit(x, y)
    assert result.r_squared == pytest.approx(score, abs=1e-10)
    torch.testing.assert_close(result.predict(x), prediction, rtol=0, atol=1e-9)


@both
def test_rank_deficient_x_gives_numpys_minimum_norm_solution(fit):
    base = normal(200, 4)
    x = torch.cat(
        [base, base @ normal(4, 3, seed=5), torch.full((200, 1), 1000.1, dtype=torch.float64)], 1
    )
    y = base @ normal(4, 2, seed=6) + normal(200, 2, seed=7)
    prediction, score, rank, weight = numpy_fit(x, y)
    result = fit(x, y)
    assert result.rank == rank == 4 and x.shape[1] == 8
    assert result.r_squared == pytest.approx(score, abs=1e-9)
    torch.testing.assert_close(result.weight, weight, rtol=0, atol=1e-7)
    torch.testing.assert_close(result.predict(x), prediction, rtol=0, atol=1e-8)


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_a_column_of_zeros_beside_collinear_ones_gets_no_weight(fit, dtype, ridge):
    """Measured in its own size, the rounding of an empty direction was 1e285 there, and R² NaN."""
    x = normal(200, 6)
    x[:, 2] = 0.0
    x[:, 4] = 2 * x[:, 1]
    y = x @ normal(6, 3, seed=3) + normal(200, 3, seed=4)
    x, y = x.to(dtype), y.to(dtype)
    xc, yc = (t.double() - t.double().mean(0) for t in (x, y))
    penalty = ridge**0.5 * torch.eye(6, dtype=torch.float64)
    rows, image = torch.cat([xc, penalty]), torch.cat([yc, torch.zeros(6, 3, dtype=torch.float64)])
    weight = torch.as_tensor(np.linalg.lstsq(rows.numpy(), image.numpy(), rcond=1e-9)[0])
    result = fit(x, y, ridge=ridge)
    torch.testing.assert_close(result.weight, weight, rtol=0, atol=1e-6)
    assert not bool(result.weight[2].any()) and (ridge or result.rank == 4)
    score = 1 - float((yc - xc @ weight).square().sum() / yc.square().sum())
    assert result.r_squared == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize("apart", [16.0, 1.0, 0.25])
def test_weights_of_twins_are_exact_down_to_the_tolerance(apart):
    """Rows and their twins are whole multiples of powers of two, so y is linear in them to the last digit."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-1024, 1025, (1500, 150), generator=g).float()
    x[:, 1] = x[:, 0] + apart * torch.randint(-1, 2, (1500,), generator=g)
    weight = torch.randint(-4, 5, (150, 3), generator=g).double()
    weight[:2] = torch.tensor([[1.0], [-1.0]])
    found = Moments().update(x, x.double() @ weight).fit()
    assert found.rank == 150
    torch.testing.assert_close(found.weight, weight, rtol=0, atol=1e-7)


@pytest.mark.parametrize("columns", [1, 3])
def test_halves_must_have_the_same_columns_and_rows(columns):
    x, y = torch.randn(2, 9, 2, generator=torch.Generator().manual_seed(0))
    require_halves(x, y, x[:4], y[:4])
    for name, pair in (
        ("x", (torch.ones(4, columns), y[:4])),
        ("y", (x[:4], torch.ones(4, columns))),
    ):
        with pytest.raises(
            InvalidArgumentError, match=f"{name}_test must have the 2 columns of {name}"
        ):
            require_halves(x, y, *pair)
    with pytest.raises(InvalidArgumentError, match="same rows, got 4 and 3"):
        require_halves(x, y, x[:4], y[:3])


@both
def test_entries_that_sum_to_zero_like_after_a_norm(fit):
    x = torch.nn.functional.layer_norm(normal(400, 30), (30,))
    y = x @ normal(30, 4, seed=1) + normal(400, 4, seed=2)
    prediction, score, _, _ = numpy_fit(x, y)
    result = fit(x, y)
    assert result.rank == 29
    assert result.r_squared == pytest.approx(score, abs=1e-10)
    torch.testing.assert_close(result.predict(x), prediction, rtol=0, atol=1e-9)


@both
@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("deficient", [False, True])
def test_ridge_is_scikit_learns(fit, ridge, deficient):
    x, y = planted(0.5)
    x = x * torch.tensor([1.0, 1, 1, 30, 1, 0.1]) + 3
    if deficient:
        x = torch.cat([x, x[:, :2] + x[:, 2:4]], 1)
    oracle = Ridge(alpha=ridge, solver="svd").fit(x.numpy(), y.numpy())
    result = fit(x, y, ridge=ridge)
    np.testing.assert_allclose(result.weight.numpy().T, oracle.coef_, atol=1e-9)
    np.testing.assert_allclose(result.bias.numpy(), oracle.intercept_, atol=1e-8)
    direct = r_squared(y, result.predict(x))
    assert result.r_squared == pytest.approx(direct, abs=1e-12)


@both
@pytest.mark.parametrize("n", [14, 300])
@pytest.mark.parametrize("ridge", [0.0, 1e-4, 1e-2])
def test_the_score_is_that_of_the_map_where_rounding_fills_empty_directions(fit, n, ridge):
    """A sum of two columns is rounded by 4e-3: a direction that is left out and still moves predictions."""
    x = normal(n, 4)
    x = torch.cat([x, x[:, :2] + x[:, 2:]], 1).bfloat16()
    y = (x.double() @ normal(6, 3, seed=3) + normal(n, 3, seed=4)).bfloat16()
    result = fit(x, y, ridge=ridge)
    assert result.rank == (6 if n * ridge == 0.14 else 4)  # a larger penalty stands above rounding
    assert result.r_squared == pytest.approx(r_squared(y, result.predict(x)), abs=1e-9)


def test_ridge_on_ill_conditioned_moments():
    x, y = ill_conditioned(kind="all", condition=1e5)
    ridge = 1e-4
    xc, yc = x - x.mean(0), y - y.mean(0)
    stacked = torch.cat([xc, ridge**0.5 * torch.eye(40, dtype=x.dtype)])
    zeros = torch.cat([yc, torch.zeros(40, 5, dtype=x.dtype)])
    weight = torch.linalg.lstsq(stacked, zeros, driver="gelsd").solution
    torch.testing.assert_close(
        by_moments(x, y, ridge=ridge).predict(x), xc @ weight + y.mean(0), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_leave_one_out_ridge_is_that_of_the_rows_and_close_to_scikit_learns(dtype):
    x = normal(90, 40) * torch.logspace(0, -1, 40)
    y = x @ normal(40, 5, seed=1) + 3 * normal(90, 5, seed=2)
    x, y = x.to(dtype), y.to(dtype)
    fit = Moments().update(x, y).fit(ridge="loo")
    oracle = RidgeCV(alphas=np.geomspace(1e-3, 1e4, 141)).fit(x.numpy(), y.numpy())
    assert 0.4 < fit.ridge / oracle.alpha_ < 2.5 and fit.ridge > 1
    same = Moments().update(x, y).fit(ridge=fit.ridge)
    assert torch.equal(same.weight, fit.weight)
    # Generalised cross-validation over the penalties of the documentation, from the rows.
    xc, yc = (x - x.mean(0)).double(), (y - y.mean(0)).double()
    errors = {}
    for penalty in np.logspace(-12, 3, 61) * float(xc.square().sum(0).mean()):
        hat = xc @ torch.linalg.solve(xc.T @ xc + penalty * torch.eye(40, dtype=xc.dtype), xc.T)
        rss = float((yc - hat @ yc).square().sum())
        errors[penalty] = rss / (90 - 1 - float(hat.trace())) ** 2
    assert fit.ridge == pytest.approx(min(errors, key=errors.__getitem__), rel=1e-4)


def test_the_leave_one_out_ridge_of_rows_without_noise_is_what_their_rounding_asks_for():
    x = normal(90, 4).float()
    fit = Moments().update(x, x.flip(1)).fit(ridge="loo")
    largest = float(torch.linalg.matrix_norm((x - x.mean(0)).double(), 2))
    assert fit.ridge == pytest.approx((row_error(x.dtype) * largest) ** 2, rel=1e-4)


@pytest.mark.parametrize("dtype, spread", [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_a_small_variation_about_a_large_mean_is_kept(dtype, spread):
    x = normal(400, 2)
    y = x.sum(1, keepdim=True)
    x[:, 0] = 1 + spread * x[:, 0]
    assert Moments().update(x.to(dtype), y.to(dtype)).fit().r_squared > 1 - 1e-6


def test_in_sample_noise_scores_rank_over_n_minus_1_on_average():
    n, d, trials = 60, 20, 200
    scores = [
        fit_linear(normal(n, d, seed=2 * s), normal(n, 4, seed=2 * s + 1)).r_squared
        for s in range(trials)
    ]
    fit = fit_linear(normal(n, d), normal(n, 4, seed=1))
    assert fit.null_r2 == pytest.approx(d / (n - 1))
    # Exact for Gaussian noise; the average of 200 draws has standard error 0.0025 here.
    error = np.std(scores) / trials**0.5
    assert error < 0.005
    assert abs(np.mean(scores) - fit.null_r2) < 4 * error


def test_r_squared_by_hand_and_against_the_training_mean():
    y = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    guess = torch.tensor([[1.0, 1.0], [2.0, 4.0]])
    # centred: 1 + 1 + 4 + 4 = 10, errors 1 + 1 = 2; about (0, 0): 1 + 9 + 16 = 26
    assert r_squared(y, guess) == pytest.approx(0.8)
    assert r_squared(y.T[:, :, None], guess.T[:, :, None]) == pytest.approx(0.8)  # rows in two axes
    assert r_squared(y, guess, mean=torch.zeros(2)) == pytest.approx(1 - 2 / 26)
    with pytest.raises(InvalidArgumentError, match="0/0"):
        r_squared(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(InvalidArgumentError, match="one shape"):
        r_squared(y, guess[:1])


def brute_force_reduced_rank(x, y, rank, starts=5):
    """Alternating least squares over factors of the map, from several random starts."""
    xc, yc = x - x.mean(0), y - y.mean(0)
    best = None
    for seed in range(starts):
        right = normal(rank, y.shape[1], seed=100 + seed)
        for _ in range(400):
            left = torch.linalg.lstsq(xc, yc @ torch.linalg.pinv(right)).solution
            right = torch.linalg.lstsq(xc @ left, yc).solution
        error = float((yc - xc @ left @ right).square().sum())
        best = error if best is None else min(best, error)
    return 1 - best / float(yc.square().sum())


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_reduced_rank_is_the_best_of_all_maps_of_that_rank(rank):
    x, y = planted(0.8, d_in=6, d_out=5)
    x = x * torch.tensor([5.0, 1, 1, 1, 0.2, 1])
    fit = reduced_rank(Moments().update(x, y), rank)
    assert fit.r_squared == pytest.approx(brute_force_reduced_rank(x, y, rank), abs=1e-8)
    assert fit.r_squared == pytest.approx(r_squared(y, fit.predict(x)), abs=1e-12)
    assert int(torch.linalg.matrix_rank(fit.weight)) == rank == fit.map_rank
    assert f"map of rank {rank}" in repr(fit)


def test_truncation_with_ridge_reports_the_r_squared_of_its_own_predictions():
    x, y = planted(0.8, d_in=6, d_out=5)
    fit = fit_linear(x, y, ridge=20.0).truncate(2)
    assert fit.r_squared == pytest.approx(r_squared(y, fit.predict(x)), abs=1e-12)
    penalised = float((y - fit.predict(x)).square().sum() + 20 * fit.weight.square().sum())
    for seed in range(200):  # no small change of the same rank does better on the penalised error
        step = 1e-3 * normal(6, 2, seed=seed) @ normal(2, 5, seed=seed + 1)
        u, s, vt = torch.linalg.svd(fit.weight + step)
        weight = u[:, :2] * s[:2] @ vt[:2]
        error = y - y.mean(0) - (x - x.mean(0)) @ weight
        assert float(error.square().sum() + 20 * weight.square().sum()) >= penalised - 1e-9


def test_truncate_to_the_full_rank_changes_nothing():
    x, y = planted(0.8)
    fit = fit_linear(x, y)
    assert fit.truncate(3) is fit and fit.truncate(99) is fit
    with pytest.raises(InvalidArgumentError, match="rank must be at least 1"):
        fit.truncate(0)


def test_dataframe_and_repr():
    x, y = planted(0.6)
    fit = fit_linear(
        x, torch.cat([y, 1 + 2.3e-16 * (torch.arange(300.0) % 2)[:, None].double()], 1)
    )
    frame = fit.to_dataframe()
    assert (
        list(frame.columns) == ["bias", "weight_norm", "r_squared"] and frame.index.name == "output"
    )
    single = [fit_linear(x, y[:, [i]]).r_squared for i in range(3)]
    np.testing.assert_allclose(frame["r_squared"][:3], single, atol=1e-12)
    assert np.isnan(frame["r_squared"][3])
    text = repr(fit)
    assert "in-sample R² = 0.6000" in text and "n = 300 rows" in text and "rank 6 of 6" in text


@both
def test_bad_input_raises_one_clear_error(fit):
    x, y = planted(0.6)
    with pytest.raises(NotEnoughDataError, match="7 rows fit any y exactly with 6 inputs"):
        fit(x[:7], y[:7])
    assert fit(x[:8], y[:8]).n == 8
    with pytest.raises(InvalidArgumentError, match="y must vary"):
        fit(x, torch.full((300, 2), 0.1, dtype=torch.float64))
    with pytest.raises(InvalidArgumentError, match="same rows"):
        fit(x, y[:20])
    broken = y.clone()
    broken[3, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="y holds 1 NaN"):
        fit(x, broken)
    with pytest.raises(InvalidArgumentError, match="ridge must be at least"):
        fit(x, y, ridge=-1.0)
    with pytest.raises(InvalidArgumentError, match="6 columns as in the fit"):
        fit(x, y).predict(x[:, :3])


def test_constant_x_explains_nothing():
    fit = fit_linear(torch.full((50, 3), 7.7), normal(50, 2))
    assert fit.rank == 0 and fit.r_squared == 0 and fit.null_r2 == 0
    assert torch.equal(fit.weight, torch.zeros(3, 2, dtype=torch.float64))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    d=st.integers(1, 6),
    extra=st.integers(2, 40),
    log_scale=st.floats(-5, 5),
    shift=st.floats(-1e4, 1e4),
)
def test_r_squared_does_not_change_when_x_is_mixed_or_y_rescaled(seed, d, extra, log_scale, shift):
    x, y = normal(d + extra, d, seed=seed), normal(d + extra, 2, seed=seed + 1)
    mixed = x @ (torch.eye(d, dtype=x.dtype) * 2 + 0.3 * normal(d, d, seed=seed + 2))
    if float(torch.linalg.cond(mixed)) > 1e4:
        return
    score = fit_linear(x, y).r_squared
    assert 0 <= score <= 1 + 1e-12
    assert fit_linear(mixed + shift, 10**log_scale * y).r_squared == pytest.approx(score, abs=1e-7)
