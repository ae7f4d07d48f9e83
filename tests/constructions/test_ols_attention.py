import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, Ridge

import lens_linear as ll
from lens_linear.constructions.least_squares.spectral import default_rtol, spectral_root
from lens_linear.errors import (
    InvalidArgumentError,
    LensLinearError,
    NonFiniteError,
    NotEnoughDataError,
)

KINDS = ("plain", "collinear", "wide", "constant", "tiny column", "tiny all", "offset", "zero")


def problem(kind, n, p, m, seed):
    """(x, y, x_new): one random regression of the kind named, float64 numpy."""
    r = np.random.default_rng(seed)
    if kind == "wide":
        n, p = min(n, p), max(n, p) + 1
    x, new = r.normal(size=(n, p)), r.normal(size=(9, p))
    for a in (x, new):
        if kind == "collinear" and p > 1:
            a[:, -1] = a[:, 0] + 2 * a[:, p // 2]
        if kind == "constant":
            a[:, -1] = 3.1
        if kind == "tiny column":
            a[:, 0] *= 1e-6
        if kind == "tiny all":
            a *= 1e-9
        if kind == "offset":
            a *= 1e-2
            a += 1000.0
        if kind == "zero":
            a[:, 0] = 0.0
    y = x @ r.normal(size=(p, m)) / max(np.abs(x).max(), 1e-300) + r.normal(size=(n, m))
    return x, y, new


def tolerance(model, want):
    """1e-8 of the predictions' size; above a condition number of 1e6 in proportion to it."""
    return 1e-8 * max(1.0, model.spectrum.condition / 1e6) * max(1.0, np.abs(want).max())


problems = st.builds(
    problem,
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 40),
    p=st.integers(1, 7),
    m=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)


@settings(max_examples=300, deadline=None)
@given(problems, st.sampled_from(["in-context", "paper"]))
def test_prediction_equals_numpy_lstsq(data, form):
    x, y, new = data
    model = ll.OLSAttention.from_data(x, y, form=form)
    beta = np.linalg.lstsq(x, y, rcond=None)[0]
    for rows in (x, new):
        want = rows @ beta
        assert np.abs(model.predict(rows).numpy() - want).max() <= tolerance(model, want)


@settings(max_examples=200, deadline=None)
@given(problems, st.sampled_from(["in-context", "paper"]))
def test_prediction_with_intercept_equals_sklearn(data, form):
    x, y, new = data
    model = ll.OLSAttention.from_data(x, y, form=form, intercept=True)
    # scikit-learn 1.9 drops directions below tol = 1e-6 by default, more than numpy does; at
    # 1e-12 it keeps rounding noise of the centred "offset" data as signal.
    oracle = LinearRegression(tol=1e-9).fit(x, y)
    for rows in (x, new):
        want = oracle.predict(rows).reshape(len(rows), -1)
        assert np.abs(model.predict(rows).numpy() - want).max() <= tolerance(model, want)


@settings(max_examples=60, deadline=None)
@given(problems, st.booleans(), st.sampled_from(["in-context", "paper"]))
def test_ridge_equals_sklearn(data, intercept, form):
    x, y, new = data
    model = ll.OLSAttention.from_data(x, y, ridge=0.5, intercept=intercept, form=form)
    oracle = Ridge(alpha=0.5, fit_intercept=intercept, solver="svd").fit(x, y)
    want = oracle.predict(new).reshape(9, -1)
    np.testing.assert_allclose(model.predict(new).numpy(), want, atol=1e-8)


def test_the_worked_example_of_the_docstring():
    model = ll.OLSAttention.from_data([[2.0, 1.0], [1.0, 2.0]], [4.0, 5.0])
    prediction, cache = model.run_with_cache(torch.tensor([[1.0, 1.0]]))
    half = math.sqrt(0.5)
    np.testing.assert_allclose(model.spectrum.eigenvalues, [9, 1], rtol=1e-14)
    np.testing.assert_allclose(
        model.W_Q.detach(), [[half / 3, half], [half / 3, -half]], rtol=1e-14
    )
    np.testing.assert_allclose(cache["hook_k"], [[half, half], [half, -half]], rtol=1e-14)
    np.testing.assert_allclose(cache["hook_q"], [[half * 2 / 3, 0]], atol=1e-15)
    np.testing.assert_allclose(cache["hook_scores"], [[1 / 3, 1 / 3]], rtol=1e-14)
    np.testing.assert_allclose(model.coefficients, [[1.0], [2.0]], rtol=1e-14)
    assert prediction.item() == pytest.approx(3.0, abs=1e-14)


@pytest.mark.parametrize("form", ["in-context", "paper"])
@pytest.mark.parametrize("intercept", [False, True])
def test_hat_matrix_is_the_projection(form, intercept):
    x, y, _ = problem("plain", 20, 4, 2, 0)
    model = ll.OLSAttention.from_data(x, y, form=form, intercept=intercept)
    design = np.hstack([np.ones((20, 1)), x]) if intercept else x
    want = design @ np.linalg.solve(design.T @ design, design.T)
    hat = model.hat()
    np.testing.assert_allclose(hat.values, want, atol=1e-12)
    assert hat.degrees_of_freedom == pytest.approx(4 + intercept)
    np.testing.assert_allclose(hat.leverage, np.diag(want), atol=1e-12)
    low, high = np.diag(want).min(), np.diag(want).max()
    assert f"leverage {low:.3g} to {high:.3g}, {np.trace(want):.4g} effective" in repr(hat)
    frame = hat.to_dataframe()
    assert len(frame) == 400
    assert frame.query("query == 3 and context == 7")["weight"].item() == pytest.approx(want[3, 7])


@settings(max_examples=60, deadline=None)
@given(problems, st.booleans(), st.sampled_from(["in-context", "paper"]))
def test_hat_matrix_is_a_projection_of_the_stated_rank(data, intercept, form):
    x, y, _ = data
    model = ll.OLSAttention.from_data(x, y, intercept=intercept, form=form)
    hat, slack = model.hat(), 1e-9 * max(1.0, model.spectrum.condition / 1e5)
    torch.testing.assert_close(hat.values @ hat.values, hat.values, atol=slack, rtol=0)
    torch.testing.assert_close(hat.values.T, hat.values, atol=slack, rtol=0)
    assert float(hat.values.trace()) == pytest.approx(model.spectrum.rank + intercept, abs=1e-8)
    assert hat.rank == model.spectrum.rank


def test_queries_that_are_keys_stand_where_they_stand():
    """Far from zero, two ways of taking a mean off differ by more than the smallest direction."""
    x, y, _ = problem("offset", 7, 6, 1, 1)
    hat = ll.OLSAttention.from_data(x, y, intercept=True).hat().values
    centred = x - x.mean(0)
    assert np.linalg.svd(centred)[1][-1] < 2e-4  # beside an offset of 1000
    torch.testing.assert_close(hat, hat.T, atol=1e-14, rtol=0)
    torch.testing.assert_close(hat @ hat, hat, atol=1e-13, rtol=0)


@pytest.mark.parametrize(("ridge", "freedom"), [(0.0, 2.0), (0.5, 9 / 9.5 + 1 / 1.5), (10.0, None)])
def test_degrees_of_freedom_are_the_shrunken_eigenvalues(ridge, freedom):
    hat = ll.OLSAttention.from_data([[2.0, 1.0], [1.0, 2.0]], [4.0, 5.0], ridge=ridge).hat()
    want = 9 / (9 + ridge) + 1 / (1 + ridge)
    assert hat.degrees_of_freedom == pytest.approx(want, abs=1e-12)
    assert freedom is None or want == pytest.approx(freedom)
    assert hat.rank == 2 and f"{want:.4g} effective degrees of freedom" in repr(hat)
    with pytest.raises(InvalidArgumentError, match=r"call hat\(\) without x_new"):
        ll.OLSAttention.from_data([[2.0]], [4.0]).hat([[1.0]]).leverage  # noqa: B018


def test_hooks_reach_every_step():
    x, y, new = problem("plain", 12, 3, 2, 1)
    model = ll.OLSAttention.from_data(x, y)
    _, cache = model.run_with_cache(torch.as_tensor(new))
    assert {k: tuple(v.shape) for k, v in cache.items()} == {
        "hook_q": (9, 3),
        "hook_k": (12, 3),
        "hook_v": (12, 2),
        "hook_scores": (9, 12),
        "hook_hat": (9, 12),
        "hook_z": (9, 2),
        "hook_out": (9, 2),
    }
    # Deleting row 0 from the hat matrix must move the prediction by exactly its contribution.
    drop = [("hook_hat", lambda hat, hook: hat.index_fill(1, torch.tensor([0]), 0.0))]
    ablated = model.run_with_hooks(torch.as_tensor(new), fwd_hooks=drop)
    want = model.predict(new) - cache["hook_hat"][:, :1] * torch.as_tensor(y[:1])
    torch.testing.assert_close(ablated.detach(), want)
    torch.testing.assert_close(model.predict(new), cache["hook_out"])  # the hooks are gone


def test_keys_are_orthonormal_and_root_is_the_spectral_one():
    x, _, _ = problem("plain", 30, 5, 1, 2)
    root = spectral_root(torch.as_tensor(x))
    assert root.condition == pytest.approx(np.linalg.cond(x))
    none = spectral_root(torch.zeros(4, 3))
    assert (none.rank, none.condition, none.root.shape) == (0, 1.0, (3, 0))
    values, vectors = np.linalg.eigh(x.T @ x)
    np.testing.assert_allclose(root.eigenvalues, values[::-1], rtol=1e-12)
    direct = vectors[:, ::-1] / np.sqrt(values[::-1])
    np.testing.assert_allclose(np.abs(root.root), np.abs(direct), atol=1e-12)
    keys = torch.as_tensor(x) @ root.root
    np.testing.assert_allclose(keys.T @ keys, np.eye(5), atol=1e-13)


def test_columns_over_twelve_decades_keep_their_digits():
    r = np.random.default_rng(0)
    scale = 10.0 ** -np.array([6, 0, 12, 3, 9])
    z, new = r.normal(size=(40, 5)), r.normal(size=(10, 5))
    y = r.normal(size=40)
    want = new @ np.linalg.lstsq(z, y, rcond=None)[0]  # least squares ignores column scales
    got = ll.OLSAttention.from_data(z * scale, y).predict(new * scale)
    np.testing.assert_allclose(got, want, atol=1e-13)
    _, s, vt = np.linalg.svd(z * scale, full_matrices=False)
    naive = vt.T / s  # the plain V Λ^{-1/2}
    off = (new * scale) @ naive @ (z * scale @ naive).T @ y - want
    assert np.abs(off).max() > 1e-8  # the case is hard


@pytest.mark.parametrize(
    ("x", "ridge", "solution", "words"),
    [
        (np.eye(3), 0.0, "unique", "unique least-squares solution"),
        (np.ones((3, 2)), 0.0, "minimum-norm", "collinear or constant columns"),
        (np.eye(2, 5), 0.0, "minimum-norm", "2 free rows < p"),
        (np.eye(2, 5), 0.1, "ridge", "ridge = 0.1"),
    ],
)
def test_which_solution_it_is_is_stated(x, ridge, solution, words):
    model = ll.OLSAttention.from_data(x, np.arange(len(x)), ridge=ridge)
    assert model.solution == solution
    assert words in repr(model)
    assert solution in repr(model.spectrum)


def test_data_without_signal_predict_zero_or_the_mean():
    y = [1.0, 2.0, 6.0]
    assert ll.OLSAttention.from_data(np.zeros((3, 2)), y).predict([[5.0, 5.0]]).tolist() == [0.0]
    constant = ll.OLSAttention.from_data(np.full((3, 2), 0.1), y, intercept=True)
    assert constant.predict([[5.0, 5.0]]).item() == pytest.approx(3.0)
    assert constant.spectrum.rank == 0


def test_constant_column_beside_tiny_variance_is_not_signal():
    r = np.random.default_rng(3)
    x = np.column_stack([np.full(30, 0.1), 1e-10 * r.normal(size=30)])
    y = 1e10 * x[:, 1] + 5
    model = ll.OLSAttention.from_data(x, y, intercept=True)
    assert model.spectrum.rank == 1
    assert model.predict([[7.0, 1e-10]]).item() == pytest.approx(6.0, abs=1e-6)


def test_output_shape_follows_the_labels():
    x = np.random.default_rng(0).normal(size=(6, 2))
    assert ll.OLSAttention.from_data(x, x[:, 0]).predict(x).shape == (6,)
    assert ll.OLSAttention.from_data(x, x[:, :1]).predict(x).shape == (6, 1)
    assert ll.OLSAttention.from_data(x.astype(np.float32), x).predict(x).dtype is torch.float64
    frame = ll.OLSAttention.from_data(x, x @ [[1.0], [2.0]]).to_dataframe()
    np.testing.assert_allclose(frame["coefficient"], [1, 2])


@pytest.mark.parametrize(
    ("x", "y", "error", "words"),
    [
        (np.ones(3), np.ones(3), InvalidArgumentError, r"x\[:, None\]"),
        (np.ones((3, 2)), np.ones(4), InvalidArgumentError, "3 rows of x"),
        (np.ones((3, 2)), np.ones((3, 1, 1)), InvalidArgumentError, r"1 axis \[n\] or 2 axes"),
        (np.ones((0, 2)), np.ones(0), NotEnoughDataError, "at least one row"),
        (np.ones((3, 0)), np.ones(3), NotEnoughDataError, "one column"),
        (np.full((3, 1), np.nan), np.ones(3), NonFiniteError, "x holds 3 NaN"),
        (np.ones((3, 1)), [1.0, np.inf, 1.0], NonFiniteError, "y holds 1 NaN or inf"),
        ("text", np.ones(3), InvalidArgumentError, "array of numbers"),
        (np.ones((3, 1)), None, InvalidArgumentError, "y must be an array"),
    ],
)
def test_bad_data_are_refused(x, y, error, words):
    with pytest.raises(error, match=words):
        ll.OLSAttention.from_data(x, y)


def test_bad_knobs_are_refused():
    x, y = np.eye(3), np.ones(3)
    with pytest.raises(InvalidArgumentError, match="form must be one of"):
        ll.OLSAttention.from_data(x, y, form="papr")
    with pytest.raises(InvalidArgumentError, match="ridge must be at least 0"):
        ll.OLSAttention.from_data(x, y, ridge=-1)
    with pytest.raises(InvalidArgumentError, match="x_new must have 3 columns"):
        ll.OLSAttention.from_data(x, y).predict(np.ones((2, 4)))
    with pytest.raises(InvalidArgumentError, match="context must have 3 inputs"):
        ll.OLSAttention.from_data(x, y).with_context(np.ones((2, 4)), np.ones(2))
    assert issubclass(InvalidArgumentError, LensLinearError)


def test_gradients_flow_through_the_forward_pass():
    x, y, new = problem("plain", 12, 3, 1, 5)
    model = ll.OLSAttention.from_data(x, y)
    model(new).sum().backward()
    assert float(model.W_Q.grad.norm()) > 0
    assert not model.predict(new).requires_grad


def test_columns_that_sum_to_a_constant_far_from_zero_are_collinear():
    r = np.random.default_rng(0)
    age = r.uniform(20, 80, size=50)
    x = np.column_stack([age, 2026 - age])
    y = 0.3 * age + r.normal(size=50)
    model = ll.OLSAttention.from_data(x, y, intercept=True)
    assert model.spectrum.rank == 1
    slope, constant = np.polyfit(age, y, 1)
    rows = np.array([[30.0, 1996.0], [70.0, 1956.0]])
    np.testing.assert_allclose(model.predict(rows), slope * rows[:, 0] + constant, atol=1e-9)


@pytest.mark.parametrize("form", ["in-context", "paper"])
@pytest.mark.parametrize("intercept", [False, True])
def test_many_scores_are_never_formed_unless_hooked(monkeypatch, form, intercept):
    x, y, new = problem("plain", 12, 3, 2, 1)
    model = ll.OLSAttention.from_data(x, y, form=form, intercept=intercept)
    want = model.predict(new)
    monkeypatch.setattr("lens_linear.constructions.least_squares.ols._MAX_SCORES", 9 * 12 - 1)
    torch.testing.assert_close(model.predict(new), want)  # the same product in the other order
    _, cache = model.run_with_cache(new, names_filter=["hook_z", "hook_out"])
    assert set(cache) == {"hook_z", "hook_out"}
    zero = [("hook_scores", lambda scores, hook: 0 * scores)]
    edited = model.run_with_hooks(new, fwd_hooks=zero)  # but a hook sees them
    mean = y.mean(0) if intercept else np.zeros(2)
    np.testing.assert_allclose(edited.detach(), np.tile(mean, (9, 1)), atol=1e-12)
    with pytest.raises(InvalidArgumentError, match="at most 8 rows for the hat matrix over 12"):
        model.hat(new)
    assert model.hat(new[:8]).values.shape == (8, 12)


def test_a_hundred_thousand_rows_need_no_square_matrix():
    x = torch.randn(100_000, 5, generator=torch.Generator().manual_seed(0))
    y = x @ torch.arange(5.0) + 3
    model = ll.OLSAttention.from_data(x, y, intercept=True)
    np.testing.assert_allclose(model.predict(x), y, atol=1e-4)  # y is in single precision


def test_single_precision_and_other_dtypes_are_accepted():
    x, y, new = problem("plain", 12, 3, 1, 1)
    want = ll.OLSAttention.from_data(x, y).predict(new)
    half = ll.OLSAttention.from_data(torch.as_tensor(x).bfloat16(), y)
    assert half.predict(new).dtype is torch.float64
    single = ll.OLSAttention.from_data(x, y).float()
    torch.testing.assert_close(single.predict(new).double(), want, atol=1e-4, rtol=1e-4)
    assert ll.OLSAttention.from_data([[1], [2]], [2, 4]).predict([[3]]).item() == pytest.approx(6.0)
    grad = torch.as_tensor(x).requires_grad_()
    torch.testing.assert_close(ll.OLSAttention.from_data(grad, y).predict(new), want)
    assert ll.OLSAttention.from_data(x > 0, y > 0).predict(new > 0).shape == (9, 1)


@pytest.mark.parametrize("shape", [(3, 7), (9, 2)])
def test_the_default_tolerance_is_numpys(shape):
    assert default_rtol(*shape) == max(shape) * np.finfo(np.float64).eps
