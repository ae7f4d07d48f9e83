import itertools

import numpy as np
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
from lens_linear.errors import InvalidArgumentError


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
    crossed = x2 @ np.linalg.solve(x1.T @ x1, x2.T @ y2)  # L of the first, context of the second
    want = np.linalg.norm(crossed - x2 @ beta) / np.linalg.norm(x2 @ beta)
    assert float(swap.to_context_ols[0, 1]) == pytest.approx(want)
    frame = swap.to_dataframe()
    row = frame[(frame.weights == "first") & (frame.context == "second")]
    assert row.to_context_ols.item() == pytest.approx(want)
    assert "n = 40 and 25" in repr(swap)


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


def test_shift_errors_are_those_of_the_modules():
    """The fast inner loops against the hooked modules, on the same draws."""
    from lens_linear.constructions.least_squares.slow_fast import _Task

    def fresh():
        return _Task(4, 50, 200, base_condition=5.0, noise=0.1, seed=7)

    got = fresh().errors(9.0, 3, 11)
    task = fresh()
    mix = task._spread(9.0) @ task.base
    x, new = task._draw(50, 4) @ mix, task._draw(11, 4) @ mix
    y = x @ task._draw(4, 1) + 0.1 * task._draw(50, 1)
    want = new @ torch.linalg.lstsq(x, y).solution
    stacks = [(k, w) for w in (task.root, None) for k in (1, 2, 3)]
    answers = [
        gradient_step_attention(x, y, learning_rate=task.rate),
        *(NewtonSchulzAttention(4, layers=k, w_in=w).with_context(x, y) for k, w in stacks),
    ]
    errors = [float((a.predict(new) - want).norm() / want.norm()) for a in answers]
    np.testing.assert_allclose(errors, [got[1], *got[5:]], rtol=1e-6)


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
