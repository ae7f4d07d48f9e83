import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lens_linear as ll
from lens_linear.constructions.least_squares.newton_schulz import (
    NewtonSchulzAttention,
    gradient_step_attention,
)
from lens_linear.constructions.least_squares.slow_fast import covariance_shift, swap_memories
from lens_linear.errors import InvalidArgumentError, NonFiniteError


def data(seed, n=40, p=3, stretch=None, m=1):
    r = np.random.default_rng(seed)
    x = r.normal(size=(n, p)) * (1 if stretch is None else stretch)
    return x, x @ r.normal(size=(p, m)) + 0.1 * r.normal(size=(n, m)), r.normal(size=(9, p))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 30))
def test_deep_newton_schulz_is_least_squares_for_any_context(seed, p, n):
    x, y, new = data(seed, n=n, p=p, stretch=np.geomspace(1, 4, p))
    deep = NewtonSchulzAttention(p, layers=40).with_context(x, y)
    want = new @ np.linalg.lstsq(x, y, rcond=None)[0]  # minimum norm when n < p
    singular = np.linalg.svd(x, compute_uv=False)
    if singular[0] / singular[-1] < 1e4:
        np.testing.assert_allclose(deep.predict(new), want, atol=1e-7)


def test_fast_memory_tends_to_the_identity_layer_by_layer():
    x, y, new = data(0)
    deep = NewtonSchulzAttention(3, layers=9).with_context(x, y)
    _, cache = deep.run_with_cache(torch.as_tensor(new))
    off = [float((cache[f"layers.{i}.hook_memory"] - torch.eye(3)).norm()) for i in range(9)]
    assert off[0] > 0.5 and off[-1] < 1e-6
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(off))
    # Each layer is the residual plus plain linear attention with Q = K = V = tokens.
    k0, k1 = cache["layers.0.hook_k"], cache["layers.1.hook_k"]
    torch.testing.assert_close(k1, 1.5 * k0 - 0.5 * (k0 @ k0.T) @ k0)
    q0, q1 = cache["layers.0.hook_q"], cache["layers.1.hook_q"]
    torch.testing.assert_close(q1, 1.5 * q0 - 0.5 * (q0 @ k0.T) @ k0)
    assert cache["hook_scores"].shape == (9, 40)


def test_slow_memory_saves_layers():
    x, y, new = data(1, p=4, stretch=[1, 3, 10, 30])
    want = new @ np.linalg.lstsq(x, y, rcond=None)[0]
    start = ll.OLSAttention.from_data(x, y).W_Q

    def error(layers, w_in):
        deep = NewtonSchulzAttention(4, layers=layers, w_in=w_in).with_context(x, y)
        return np.abs(deep.predict(new).numpy() - want).max()

    assert error(6, start) < 1e-8 < 1e-2 < error(6, None)
    assert error(16, None) < 1e-8


def test_newton_schulz_flops_are_those_of_its_products():
    stack = NewtonSchulzAttention(3, layers=2)
    n, q, m = 40, 9, 2
    products = [(n, 3, 3), (q, 3, 3), (3, n, 3)]  # W_in on both, KᵀK of the norm
    products += [(3, n, 3), (n, 3, 3), (q, 3, 3)] * 2  # memory, keys, queries
    products += [(3, n, m), (q, 3, m)]  # Kᵀ Y, q (Kᵀ Y)
    assert stack.flops(n, q, m) == sum(2 * a * b * c for a, b, c in products)
    curve = covariance_shift(conditions=(1,), layers=2, d=3, n=n, queries=q, base_rows=9, seeds=1)
    flops = curve.to_dataframe().set_index(["method", "layers"]).flops
    assert flops["Newton-Schulz from L", 3] == stack.flops(n, q, 1)
    inputs = 2 * (n + q) * 3 * 3  # W_in is the identity: no product
    assert flops["Newton-Schulz from I", 3] == stack.flops(n, q, 1) - inputs
    readout = 2 * 3 * (n + q)  # Kᵀ y, q (Kᵀ y)
    assert flops["fixed weights", 1] == inputs + readout and flops["gradient step", 1] == readout
    step = 2 * n * 3 + 2 * n * 3  # the residual, and its product with the inputs
    assert flops["gradient descent", 2] == 2 * n * 3 * 3 + 2 * step + 2 * q * 3


def test_gradient_step_is_one_step_of_autograd():
    x, y, new = data(2, m=2)
    slopes = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    loss = (torch.as_tensor(y) - torch.as_tensor(x) @ slopes).square().sum() / (2 * len(x))
    (grad,) = torch.autograd.grad(loss, slopes)
    layer = gradient_step_attention(x, y, learning_rate=0.3)
    torch.testing.assert_close(layer.predict(new), torch.as_tensor(new) @ (-0.3 * grad))
    assert "weights given by hand" in repr(layer)


def test_gradient_step_is_the_token_construction_of_von_oswald():
    """Their Proposition 1: tokens (x, y), one linear self-attention layer, minus the last entry."""
    x, y, new = data(2)
    tokens = np.hstack([x, y])
    keep_x, minus_y = np.diag([1.0, 1, 1, 0]), np.diag([0.0, 0, 0, -1])
    want = []
    for row in new:
        query = np.append(row, 0.0)
        update = 0.3 / len(x) * (tokens @ minus_y).T @ (tokens @ keep_x) @ (keep_x @ query)
        want.append(-update[3])
    layer = gradient_step_attention(x, y, learning_rate=0.3)
    np.testing.assert_allclose(layer.predict(new)[:, 0], want, atol=1e-14)


def test_same_geometry_other_labels_only_the_context_matters():
    x, y, _ = data(3)
    other = x @ [[-1.0], [0.0], [5.0]]
    swap = swap_memories((x, y), (x, other))
    assert float(swap.to_context_ols.max()) < 1e-12
    assert float(swap.to_weights_ols[0, 1]) > 0.1
    paper = swap_memories((x, y), (x, other), form="paper")  # there the labels are in the weights
    assert float(paper.to_weights_ols.max()) < 1e-12
    assert float(paper.to_context_ols[0, 1]) > 0.1
    assert swap.geometry_distance < 1e-12


def test_other_geometry_costs_what_the_formula_says():
    (x1, y1, _), (x2, y2, _) = data(4), data(5, n=25, stretch=[3, 1, 0.3])
    swap = swap_memories((x1, y1), (x2, y2))
    beta = np.linalg.solve(x2.T @ x2, x2.T @ y2)
    # L of the first, context of the second: 40 rows of geometry, 25 of context.
    crossed = x2 @ np.linalg.solve(x1.T @ x1 / 40, x2.T @ y2 / 25)
    want = np.linalg.norm(crossed - x2 @ beta) / np.linalg.norm(x2 @ beta)
    assert float(swap.to_context_ols[0, 1]) == pytest.approx(want)
    frame = swap.to_dataframe()
    row = frame[(frame.weights == "first") & (frame.context == "second")]
    assert row.to_context_ols.item() == pytest.approx(want)
    assert "n = 40 and 25" in repr(swap)
    c1, c2 = x1.T @ x1 / 40, x2.T @ x2 / 25
    shift = np.linalg.eigvals(np.linalg.solve(c1, c2)) - 1
    assert swap.geometry_distance == pytest.approx(np.sqrt((shift**2).sum().real / 3))


@pytest.mark.parametrize("form", ["in-context", "paper"])
@pytest.mark.parametrize("times", [2, 3, 50])
@pytest.mark.parametrize("intercept", [False, True])
def test_a_context_given_again_and_again_keeps_its_least_squares(form, times, intercept):
    x, y, new = data(6, n=12, m=2)
    model = ll.OLSAttention.from_data(x, y, form=form, intercept=intercept)
    again = model.with_context(np.tile(x, (times, 1)), np.tile(y, (times, 1)))
    np.testing.assert_allclose(again.predict(new), model.predict(new), atol=1e-12)
    assert again.solution == "unique" and model.hat().degrees_of_freedom == pytest.approx(
        3 + intercept
    )
    np.testing.assert_allclose(again.hat().degrees_of_freedom, 3 + intercept, atol=1e-9)


def test_the_example_of_two_rows_given_twice():
    x, y = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([4.0, 5.0])
    twice = ll.OLSAttention.from_data(x, y).with_context(torch.cat([x, x]), torch.cat([y, y]))
    assert twice.predict([[1.0, 1.0]]).item() == pytest.approx(3.0, abs=1e-12)
    one = ll.OLSAttention.from_data(torch.cat([x] * 5), torch.cat([y] * 5)).with_context(x, y)
    assert one.predict([[1.0, 1.0]]).item() == pytest.approx(3.0, abs=1e-12)


@pytest.mark.parametrize(("few", "many"), [(500, 5000), (80, 8000)])
def test_numbers_of_rows_are_no_geometry(few, many):
    """Two samples of one distribution: errors and distance of the order of √(p / n)."""
    r = np.random.default_rng(2)
    slopes = r.normal(size=(4, 1))
    x1, x2 = r.normal(size=(few, 4)), r.normal(size=(many, 4))
    swap = swap_memories((x1, x1 @ slopes), (x2, x2 @ slopes))
    turned = swap_memories((x2, x2 @ slopes), (x1, x1 @ slopes))
    order = (4 / few) ** 0.5
    for found in (swap, turned):
        assert 0 < float(found.to_context_ols.max()) < 3 * order
        assert 0.2 * order < found.geometry_distance < 3 * order


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_geometry_that_the_weights_never_saw_is_infinitely_far(size):
    r = np.random.default_rng(0)
    x, y = size * r.normal(size=(9, 2)), r.normal(size=9)
    line = x[:, :1] * [1.0, 0.3]
    assert swap_memories((line, y), (x, y)).geometry_distance == np.inf
    back = swap_memories((x, y), (line, y)).geometry_distance
    assert back < np.inf  # here a direction is merely absent
    again = swap_memories((line, y), (np.tile(line, (7, 1)), np.tile(y, 7)))
    assert again.geometry_distance < 1e-12


def test_results_say_what_they_are_now():
    x, y, _ = data(7, n=20)
    model = ll.OLSAttention.from_data(x, y)
    assert "the unique least-squares solution" in repr(model)
    other = model.with_context(x * [3.0, 1.0, 0.2], y)
    assert other.solution == "other data" and "least-squares solution" not in repr(other)
    assert other.hat().solution == "other data" and float(other.hat().leverage.max()) > 1
    labels = model.with_context(x, y + x[:, :1])
    assert labels.solution == "unique"  # another regression over the same geometry, and answered
    paper = ll.OLSAttention.from_data(x, y, form="paper").with_context(x, y + x[:, :1])
    assert paper.solution == "other data"  # its labels stand in the weights
    with torch.no_grad():
        model.W_Q.mul_(2)
    assert model.solution == "other data" and "off by 1 of their size" in repr(model)
    with torch.no_grad():
        model.W_Q.div_(2)
    assert model.solution == "unique"
    model.context_x[0] += 1
    assert model.solution == "other data"
    ridge = ll.OLSAttention.from_data(x, y, ridge=0.5).with_context(
        np.tile(x, (2, 1)), np.tile(y, (2, 1))
    )
    assert ridge.solution == "ridge" and "ridge = 1," in repr(ridge)
    trained = ll.train_ols_attention(epochs=5, seeds=1).model(0)
    assert trained.solution == "trained" and "trained by gradient descent" in repr(trained)
    half = ll.OLSAttention.from_data(x, y, form="paper", intercept=True).float()
    assert half.solution == "unique"


def test_labels_that_happen_to_fit_make_no_hat_matrix():
    torch.manual_seed(2)
    model = ll.OLSAttention.from_data(torch.randn(40, 2), torch.randn(40))
    stretched = torch.randn(10, 2) * torch.tensor([1.0, 30.0])
    silent = model.with_context(
        stretched, torch.zeros(10)
    )  # zero is their least squares, with any weights
    assert silent.solution == "unique" and float(silent.hat().leverage.max()) > 1
    assert silent.hat().solution == silent.hat(torch.ones(1, 2)).solution == "other data"
    assert model.hat().solution == "unique" == model.hat(torch.ones(1, 2)).solution


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("intercept", [False, True])
def test_what_a_dtype_rounds_is_no_other_data(dtype, intercept):
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x[:, 2] = x[:, 0] + x[:, 1]  # no longer exactly so once rounded
    labels = torch.randn(200, generator=torch.Generator().manual_seed(4))
    model = ll.OLSAttention.from_data(x, labels, intercept=intercept).to(dtype)
    assert model.solution == model.hat().solution == "minimum-norm" and model.hat().rank == 2
    plain = ll.OLSAttention.from_data(x[:, :2] + 40 * intercept, labels, intercept=intercept)
    long = plain.with_context(plain.context_x.repeat(50, 1), labels.repeat(50)).to(torch.float32)
    assert long.solution == "unique"  # sums of 10,000 products in float32, a mean of 40 spreads
    with torch.no_grad():
        long.W_K[0] *= 1.001
    assert long.solution == "other data"
    tiny = ll.OLSAttention.from_data(x[:, :2], 1e-250 * labels.double())  # its square is zero
    tiny.context_x[0] *= 9
    assert tiny.solution == "other data"


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, 1e10),
        (torch.float32, 1e-25),
        (torch.float32, 1e37),
        (torch.float64, 1e78),
        (torch.float64, 1e200),
        (torch.float64, 1e-200),
        (torch.float16, 2e4),
        (torch.bfloat16, 1e25),
    ],
)
def test_newton_schulz_over_the_whole_range_of_its_dtype(dtype, size):
    x = size * torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    deep = NewtonSchulzAttention(2, layers=9).to(dtype).with_context(x, [4.0, 5.0])
    got = deep.predict(size * torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    assert got.dtype is dtype
    assert got.item() == pytest.approx(3.0, rel=max(1e-6, 2 * torch.finfo(dtype).eps))
    labels = deep.with_context(x, [4e4, 5e4]) if dtype is torch.float16 else deep
    assert bool(labels.predict(x / 4).isfinite().all())
    with pytest.raises(NonFiniteError, match=r"more than torch\.float32 can hold; scale x down"):
        NewtonSchulzAttention(1, layers=2).float().with_context([[1e200]], [1.0])


@pytest.mark.parametrize("size", [1e-290, 1e-170, 1e170, 1e300])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("form", ["in-context", "paper"])
def test_least_squares_has_no_units(size, intercept, form):
    x, y, new = data(8, n=15)
    knobs = {"intercept": intercept, "form": form}
    want = ll.OLSAttention.from_data(x, y, **knobs).predict(new)
    got = ll.OLSAttention.from_data(size * x, y, **knobs).predict(size * new)
    np.testing.assert_allclose(got, want, atol=1e-11)
    with pytest.raises(NonFiniteError, match="inverse root of x"):
        ll.OLSAttention.from_data(1e-320 * x, y)


def test_covariance_shift_curve():
    curve = covariance_shift(conditions=(1, 16, 128), layers=14, seeds=5)
    frame = curve.to_dataframe()
    median = frame.groupby(["method", "layers", "condition"])["error"].median()
    fixed = median["fixed weights", 1]
    assert 0.05 < fixed[1.0] < 0.4 and fixed[16.0] > 3 * fixed[1.0] < fixed[128.0]
    for start in ("L", "I"):
        assert median[f"Newton-Schulz from {start}"].xs(15, level="layers").max() < 1e-6
    assert median["gradient descent", 14, 128.0] > 1e-2
    cost = curve.cost().set_index(["method", "condition"])
    warm, cold = cost.loc["Newton-Schulz from L"], cost.loc["Newton-Schulz from I"]
    assert warm.layers[1.0] < cold.layers[1.0]
    assert warm.layers[1.0] < warm.layers[128.0]
    assert cost.loc["fixed weights"].layers.isna().all()
    assert (warm.ratio > 5).all()
    assert set(frame.seed) == set(range(5))


def test_a_shift_does_not_depend_on_what_else_was_asked():
    alone = covariance_shift(conditions=(16,), layers=2, seeds=2, seed=3)
    beside = covariance_shift(conditions=(1, 4, 16, 64), layers=5, seeds=4, seed=2)
    torch.testing.assert_close(alone.errors[:2, 0], beside.errors[:2, 2, 1:3], rtol=0, atol=0)
    row = beside.summary().query("method == 'fixed weights' and condition == 16").iloc[0]
    assert row.error_low < row.error < row.error_high and row.n_seeds == 4
    assert row.error == pytest.approx(float(beside.errors[0, 2].quantile(0.5)))


def test_cost_counts_the_seeds_that_get_there():
    curve = covariance_shift(conditions=(64,), layers=12, seeds=8)
    cost = curve.cost(tolerance=1e-6).set_index("method")
    frame = curve.to_dataframe().query("method == 'Newton-Schulz from L'")
    first = frame[frame.error <= 1e-6].groupby("seed").layers.min()
    row = cost.loc["Newton-Schulz from L"]
    assert (row.layers_low, row.layers_high, row.reached) == (first.min(), first.max(), 1.0)
    two = covariance_shift(conditions=(64,), layers=12, seeds=2).cost(tolerance=1e-6)
    assert two.set_index("method").loc["Newton-Schulz from L"].layers_high <= first[:2].max()
    lost = curve.cost(tolerance=0.3).set_index("method").loc["gradient descent"]
    got = (curve.errors[2:14, 0] <= 0.3).any(0).double().mean()
    assert lost.reached == pytest.approx(float(got)) and lost.reached < 1
    assert lost.layers_high is pd.NA


def test_shift_errors_are_those_of_the_modules():
    """The fast inner loops against the hooked modules, on the same draws."""
    from lens_linear.constructions.least_squares.slow_fast import _Task

    def fresh():
        return _Task(4, 50, 200, base_condition=5.0, noise=0.1, seed=7)

    got = fresh().errors(9.0, 3, 11)
    task = fresh()
    mix = task._spread(9.0, "axes") @ task.base
    x, new = task._draw("rows", 50, 4) @ mix, task._draw("queries", 11, 4) @ mix
    y = x @ task._draw("slopes", 4, 1) + 0.1 * task._draw("noise", 50, 1)
    want = new @ torch.linalg.lstsq(x, y).solution
    stacks = [(k, w) for w in (task.root, None) for k in (1, 2, 3)]
    answers = [
        gradient_step_attention(x, y, learning_rate=task.rate),
        *(NewtonSchulzAttention(4, layers=k, w_in=w).with_context(x, y) for k, w in stacks),
    ]
    errors = [float((a.predict(new) - want).norm() / want.norm()) for a in answers]
    np.testing.assert_allclose(errors, [got[1], *got[5:]], rtol=1e-6)
    shift = torch.linalg.eigvalsh(task._spread(9.0, "axes")).square()
    assert float(shift[-1] / shift[0]) == pytest.approx(9) and float(shift.prod()) == pytest.approx(
        1
    )
    base = task._draw("base rows", 200, 4) @ task.base
    gram = base.T @ base / 200

    def miss(rate):  # of one step, averaged over all slopes
        return float((torch.eye(4) - rate * gram).norm())

    assert miss(task.rate) < min(miss(0.999 * task.rate), miss(1.001 * task.rate))
    slopes = torch.zeros_like(x.T @ y)
    for error in got[2:5]:  # gradient descent in context
        slopes = slopes + x.T @ (y - x @ slopes) / (x.T @ x).norm()
        assert error == pytest.approx(float((new @ slopes - want).norm() / want.norm()))


def test_bad_arguments_say_what_to_do():
    x, y, _ = data(0)
    with pytest.raises(InvalidArgumentError, match="call with_context"):
        NewtonSchulzAttention(3, layers=1).predict(x)
    with pytest.raises(InvalidArgumentError, match="3 columns like W_in"):
        NewtonSchulzAttention(3, layers=1).with_context(x[:, :2], y)
    with pytest.raises(InvalidArgumentError, match="one row for each of the 3"):
        NewtonSchulzAttention(3, layers=1, w_in=np.eye(2))
    with pytest.raises(InvalidArgumentError, match="conditions must be at least 1"):
        covariance_shift(conditions=(0.5,))
    with pytest.raises(InvalidArgumentError, match="at least one shift"):
        covariance_shift(conditions=())
    with pytest.raises(InvalidArgumentError, match="no relative error exists"):
        swap_memories((x, y), (x, 0 * y))


def test_edited_and_broken_weights_are_said():
    trained = ll.train_ols_attention(epochs=400, seeds=1).model(0)
    assert "off by 0.0" in repr(trained) or "e-" in repr(trained)
    moved = trained.with_context(trained.context_x, -trained.context_y)
    assert moved.solution == "trained" and "off by 2 of their size" in repr(moved)
    with torch.no_grad():
        trained.W_Q.mul_(3)
    assert trained.solution == "edited" == trained.with_context([[1.0]], [2.0]).solution
    assert "edited since" in repr(trained) and "off by 2 of their size" in repr(trained)
    assert trained.float().solution == "edited"
    broken = ll.OLSAttention.from_data(*data(7)[:2])
    with torch.no_grad():
        broken.W_K[0, 0] = torch.nan
    assert "hold NaN or infinity" in repr(broken)
    with pytest.raises(NonFiniteError, match="hold NaN or infinity"):
        broken.hat()


@pytest.mark.parametrize("size", [1e-60, 1e-42])
def test_a_context_that_a_dtype_rounds_to_zero_is_refused(size):
    x, y = size * np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([4.0, 5.0])
    deep = NewtonSchulzAttention(2, layers=12)
    assert float(deep.with_context(x, y).predict([[size, size]])) == pytest.approx(3)
    flat = ll.OLSAttention.from_data([[2.0, 1.0], [1.0, 2.0]], y).float()
    for layer in (deep.float(), flat):
        with pytest.raises(NonFiniteError, match="scale it up"):
            layer.with_context(x, y)
        with pytest.raises(NonFiniteError, match="scale it up"):
            layer.with_context(x / size, size * y)


def test_a_prediction_out_of_range_is_refused():
    x, y = 1e-200 * np.eye(2), np.array([1.0, 2.0])
    for layer in (
        ll.OLSAttention.from_data(x, y),
        NewtonSchulzAttention(2, layers=12).with_context(x, y),
    ):
        with pytest.raises(NonFiniteError, match="to one scale"):
            layer.predict([[1e200, 1e200]])


@pytest.mark.parametrize("form", ["in-context", "paper"])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, 1e-60),
        (torch.float32, 1e45),
        (torch.float16, 1e-6),
        (torch.float16, 1e6),
        (torch.bfloat16, 1e-40),
    ],
)
def test_a_module_is_not_moved_to_a_dtype_that_cannot_hold_it(form, dtype, size):
    """torch casts a context of 1e-60 to zero, and the answer with it; the module stays as it was."""
    x, y = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double() * size, [4.0, 5.0]
    layers = [ll.OLSAttention.from_data(x, y, form=form)]
    layers.append(NewtonSchulzAttention(2, layers=8).with_context(x, y))
    for layer in layers:
        with pytest.raises(NonFiniteError, match="use a module in float64"):
            layer.to(dtype)
        assert layer.context_x.dtype == torch.float64
        assert layer.predict([[size, size]]).item() == pytest.approx(3)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e-18), (torch.float16, 4.0)])
def test_a_module_moves_where_its_numbers_fit(dtype, size):
    x = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double() * size
    for y in (
        [4.0, 5.0],
        [0.0, 0.0],
        [1e-30, 1.0],
    ):  # a column of zeros, a small entry beside a large
        layer = ll.OLSAttention.from_data(x, y).to(dtype)
        want = np.linalg.lstsq(x.numpy(), np.array(y), rcond=None)[0] @ [size, size]
        assert layer.predict([[size, size]]).item() == pytest.approx(want, rel=3e-3)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e300])
def test_the_hat_of_rows_of_any_size_is_that_of_rows_of_size_one(scale):
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hat = ll.OLSAttention.from_data(x * scale, x.sum(1)).hat()
    torch.testing.assert_close(hat.values, x @ torch.linalg.pinv(x), rtol=1e-9, atol=1e-12)
    assert hat.rank == 3


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        (torch.float64, [1e200, 1.0, 1e-200]),
        (torch.float64, [1e-290, 1e-160, 1e290]),
        (torch.float32, [1e25, 1e-25, 1.0]),
        (torch.float32, [1e35, 1e30, 1e-30]),
    ],
)
def test_newton_schulz_undoes_the_scale_of_every_column_by_itself(dtype, sizes):
    x, y, new = data(9, n=30)
    want = new @ np.linalg.lstsq(x, y, rcond=None)[0]
    mix = np.random.default_rng(1).normal(size=(3, 3)) + 2 * np.eye(3)
    for w_in in (np.diag(1 / np.array(sizes)), mix / np.array(sizes)[:, None]):
        deep = NewtonSchulzAttention(3, layers=25, w_in=w_in).to(dtype).with_context(x * sizes, y)
        got = deep.predict(new * sizes)
        np.testing.assert_allclose(got, want, rtol=1e-9 if dtype is torch.float64 else 1e-3)
    blank = NewtonSchulzAttention(3, layers=25).to(dtype).with_context(x * [1, 0, 1], y)
    assert bool(blank.predict(new).isfinite().all())  # a column of zeros has no scale
    with pytest.raises(NonFiniteError, match="differ in size by more than"):
        NewtonSchulzAttention(3, layers=25).to(dtype).with_context(x * sizes, y).predict(new)


def test_swaps_say_which_data_do_not_fit():
    x, y, _ = data(0)
    zero = np.linalg.svd(x)[0][:, 5:6]  # orthogonal to every column, up to rounding
    cases = [
        ((x, y), (x[:, :2], y), "second must have 3 inputs and 1 outputs like first, got 2 and 1"),
        ((x, 0 * y), (x[:, :2], y), "second must have 3 inputs"),
        ((x, zero), (x, y), "first must have labels that x explains in part"),
        ((x, y), (x, 1e-200 * zero), "second must have labels that x explains in part"),
        ((x, y), (x, y[:5]), r"second\[1\] must have one row"),
    ]
    for first, second, words in cases:
        with pytest.raises(InvalidArgumentError, match=words):
            swap_memories(first, second)
    for size in (1e-200, 1e200):
        far = swap_memories((x, size * y), (2 * x, size * y))
        near = swap_memories((x, y), (2 * x, y))
        torch.testing.assert_close(far.to_context_ols, near.to_context_ols)


def test_one_seed_of_a_shift_has_no_interval():
    one = covariance_shift(conditions=(1, 4), layers=9, seeds=1)
    assert one.summary()[["error_low", "error_high"]].isna().all(None)
    cost = one.cost()
    assert cost[["layers_low", "layers_high"]].isna().all(None) and cost.layers.notna().any()
    assert all(line.error_y.array is None for line in one.plot().data)
