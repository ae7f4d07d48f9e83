import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linalg_data import ill_conditioned, normal, numpy_fit, planted

from lens_linear.errors import InvalidArgumentError, NonFiniteError, NotEnoughDataError
from lens_linear.linalg import Moments, r_squared
from lens_linear.linalg.scatter import Target


def collect(x, y, sizes=(50,), **kw):
    moments, start, turn = Moments(**kw), 0, 0
    while start < len(x):
        size = sizes[turn % len(sizes)]
        moments.update(x[start : start + size], y[start : start + size])
        start, turn = start + size, turn + 1
    return moments


def assert_same(a, b, rtol=1e-10):
    """The same numbers, relative to the size of each array."""
    assert a.n == b.n
    spread = float(b.sxx.diagonal().max() + b.scatter_y.max()) ** 0.5
    for name in ("mean_x", "mean_y", "sxx", "sxy", "scatter_y"):
        left, right = getattr(a, name), getattr(b, name)
        size = float(right.abs().max()) + (spread if name.startswith("mean") else 0)
        assert float((left - right).abs().max()) <= rtol * size, name
    if a.n > a.d_in + 1:
        fit_a, fit_b = a.fit(), b.fit()
        assert fit_a.r_squared == pytest.approx(fit_b.r_squared, rel=rtol)
        torch.testing.assert_close(fit_a.weight, fit_b.weight, rtol=1e-8, atol=1e-8)
        assert a.score(fit_b) == pytest.approx(b.score(fit_a), rel=1e-9)


@pytest.mark.parametrize("size, varies", [(1e-7, False), (1e-4, True)])
def test_what_varies_by_rounding_of_its_own_dtype_alone_is_constant(size, varies):
    x, noise = torch.randn(2, 400, 8, generator=torch.Generator().manual_seed(0))
    rows = 3.7 + size * noise
    assert collect(x, rows).varies is varies
    assert collect(x.double(), 3.7 + size * noise.double()).varies


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_statistics_are_those_of_numpy(shift):
    x, y = planted(0.5)
    x, y = x + shift, y - shift
    moments = collect(x, y, (41, 7), keep_yy=True)
    joint = np.cov(torch.cat([x, y], 1).numpy().T) * (len(x) - 1)
    np.testing.assert_allclose(moments.sxx.numpy(), joint[:6, :6], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.sxy.numpy(), joint[:6, 6:], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.syy.numpy(), joint[6:, 6:], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.scatter_y.numpy(), joint[6:, 6:].diagonal(), rtol=1e-9)
    np.testing.assert_allclose(moments.mean_x.numpy(), x.mean(0).numpy(), rtol=1e-12)
    assert moments.n == 300 and repr(moments) == "Moments 6 -> 3: n = 300 rows"


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 399), min_size=1, max_size=6, unique=True),
    order=st.randoms(use_true_random=False),
    kind=st.sampled_from(["plain", "shifted", "norm", "outliers"]),
    keep_yy=st.booleans(),
    resume=st.booleans(),
)
def test_any_split_any_order_saved_and_resumed(
    tmp_path_factory, cuts, order, kind, keep_yy, resume
):
    x, y = normal(400, 5, seed=3), normal(400, 3, seed=4)
    if kind == "shifted":
        x, y = 100 * x + 1000, y + 1000
    if kind == "norm":
        x = torch.nn.functional.layer_norm(x, (5,))
    if kind == "outliers":
        x = x * torch.tensor([1000.0, 1, 1, 1e-3, 1])
    whole = Moments(keep_yy=keep_yy).update(x, y)
    edges = [0, *sorted(cuts), 400]
    parts = [collect(x[a:b], y[a:b], (60, 13), keep_yy=keep_yy) for a, b in pairwise(edges)]
    order.shuffle(parts)
    if resume:
        folder = tmp_path_factory.mktemp("moments")
        parts = [Moments.load(p.save(folder / f"{i}.safetensors")) for i, p in enumerate(parts)]
    merged = parts[0].copy()
    for part in parts[1:]:
        merged.merge(part)
    assert_same(merged, whole)
    assert_same(sum(parts[1:], parts[0]), whole)


def test_merging_ill_conditioned_parts_keeps_the_accuracy():
    x, y = ill_conditioned(kind="smallest")
    prediction, score, _, _ = numpy_fit(x, y)
    parts = [collect(x[a : a + 300], y[a : a + 300], (64,)) for a in (600, 0, 300)]
    fit = (parts[0] + parts[1] + parts[2]).fit()
    assert fit.r_squared == pytest.approx(score, abs=1e-8)
    assert float((fit.predict(x) - prediction).abs().max() / y.std()) < 1e-6


def test_scores_of_ill_conditioned_fits_are_those_of_the_rows():
    x, y = ill_conditioned(n=1200, kind="smallest")
    train, test = collect(x[:600], y[:600]), collect(x[600:], y[600:])
    fit = train.fit()
    direct = r_squared(y[600:], fit.predict(x[600:]), mean=fit.mean_y)
    assert test.score(fit) == pytest.approx(direct, abs=1e-7)


def test_score_equals_r_squared_of_the_rows_with_the_training_mean():
    x, y = planted(0.6)
    train, test = collect(x[:150], y[:150]), collect(x[150:] + 0.3, y[150:] - 0.2)
    fit = train.fit()
    direct = r_squared(y[150:] - 0.2, fit.predict(x[150:] + 0.3), mean=fit.mean_y)
    assert test.score(fit) == pytest.approx(direct, abs=1e-12)
    own_mean = r_squared(y[150:] - 0.2, fit.predict(x[150:] + 0.3))
    assert abs(direct - own_mean) > 1e-3  # so the training mean is really what is subtracted
    assert train.score(fit) == pytest.approx(fit.r_squared, abs=1e-12)


def test_independent_noise_scores_about_zero_held_out():
    n, d = 400, 20
    scores = []
    for seed in range(40):
        x, y = normal(2 * n, d, seed=2 * seed), normal(2 * n, 4, seed=2 * seed + 1)
        fit = collect(x[:n], y[:n]).fit()
        scores.append(collect(x[n:], y[n:]).score(fit))
        assert fit.r_squared > 0.01
    # Expected: minus the variance of the fitted map, about -d / n_train (a little more).
    assert -0.08 < np.mean(scores) < -0.03


@pytest.mark.parametrize("keep_yy", [False, True])
@pytest.mark.parametrize("n", [40, 400])
def test_without_input_is_the_same_as_subtracting_first(keep_yy, n):
    x, change = normal(n, 5), 0.01 * normal(n, 5, seed=1)
    x[:, 0] *= 1000
    moments = collect(x, x + change, keep_yy=keep_yy).without_input()
    assert_same(moments, collect(x, (x + change) - x, keep_yy=keep_yy), rtol=1e-9)
    if keep_yy:
        torch.testing.assert_close(
            moments.syy, (change - change.mean(0)).T @ change, rtol=1e-6, atol=1e-7
        )
    with pytest.raises(InvalidArgumentError, match="as many columns"):
        collect(x, change[:, :2]).without_input()


@pytest.mark.parametrize("keep_yy", [False, True])
def test_without_input_of_sums_of_float32_rows(keep_yy):
    """Float32 rows are kept as sums, not as a factor."""
    x = normal(4000, 5).float()
    y = x + (x @ normal(5, 5, seed=2).float()) + 0.3 * normal(4000, 5, seed=1).float()
    moments = collect(x, y, keep_yy=keep_yy)
    assert type(moments.scatter.form).__name__ == "Products"
    direct = collect(x.double(), y.double() - x.double(), keep_yy=keep_yy)
    assert_same(moments.without_input(), direct, rtol=1e-6)
    both = moments.without_input().fit(), direct.fit()
    torch.testing.assert_close(both[0].weight, both[1].weight, rtol=1e-4, atol=1e-5)
    assert both[0].r_squared == pytest.approx(both[1].r_squared, abs=1e-6)


def test_leading_axes_are_rows_and_empty_batches_change_nothing():
    x, y = normal(4, 10, 5), normal(4, 10, 3, seed=1)
    flat = Moments(5, 3).update(x.reshape(-1, 5), y.reshape(-1, 3))
    deep = Moments(5, 3).update(x[:0], y[:0]).update(x, y).update(x[:, :0], y[:, :0])
    assert_same(deep, flat)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_batches_are_summed_in_float64(dtype):
    x, y = (normal(600, 4) + 100).to(dtype), normal(600, 2, seed=1).to(dtype)
    assert_same(collect(x, y, (17,)), collect(x.double(), y.double(), (600,)))


def test_input_buffers_may_be_reused():
    x, y = planted(0.6)
    moments, buffer_x, buffer_y = (
        Moments(),
        torch.empty(50, 6, dtype=x.dtype),
        torch.empty(50, 3, dtype=x.dtype),
    )
    for start in range(0, 300, 50):
        buffer_x.copy_(x[start : start + 50])
        buffer_y.copy_(y[start : start + 50])
        moments.update(buffer_x, buffer_y)
    assert torch.equal(buffer_x, x[250:])
    assert_same(moments, Moments().update(x, y))


@pytest.mark.parametrize("before", [0, 100, 300])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["x", "y"])
def test_a_broken_batch_raises_and_loses_nothing(before, bad, where):
    x, y = planted(0.6)
    moments = collect(x[:before], y[:before])
    broken = {"x": x[:20].clone(), "y": y[:20].clone()}
    broken[where][7, 1] = bad
    with pytest.raises(NonFiniteError, match=f"{where} holds 1 NaN or infinite"):
        moments.update(**broken)
    moments.update(x[before:], y[before:]) if before < 300 else None
    assert_same(moments, Moments().update(x, y), rtol=1e-12)


def test_squares_that_would_overflow_are_refused():
    with pytest.raises(InvalidArgumentError, match="rescale it"):
        Moments().update(torch.full((9, 2), 1e200, dtype=torch.float64), normal(9, 2))
    large = 1e30 * normal(300, 2).float()
    assert Moments().update(large, large.flip(1)).fit().r_squared == pytest.approx(1)


def test_an_interrupt_in_the_middle_of_an_update_loses_only_that_batch(monkeypatch):
    x, y = planted(0.6)
    moments = collect(x[:260], y[:260])
    kept = copy.deepcopy(moments.sxx)

    def interrupt(*args, **kw):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lens_linear.linalg.moments.combine", interrupt)
        with pytest.raises(KeyboardInterrupt):
            moments.update(x[260:], y[260:])
    assert moments.n == 260 and torch.equal(moments.sxx, kept)
    assert_same(moments.update(x[260:], y[260:]), Moments().update(x, y))


def test_copies_and_merged_objects_are_independent():
    x, y = planted(0.6)
    first, second = collect(x[:150], y[:150]), collect(x[150:], y[150:])
    before = second.sxx.clone()
    twin = first.copy().merge(second)
    twin.update(x, y)
    second_twin = second.copy().update(x, y)
    assert first.n == 150 and second.n == 150 and twin.n == 600 and second_twin.n == 450
    assert torch.equal(second.sxx, before)


def test_gradients_do_not_leak_in():
    x, y = planted(0.6)
    moments = collect(x.requires_grad_(), y)
    assert not moments.sxx.requires_grad and not moments.fit().weight.requires_grad


def test_bad_input_raises_one_clear_error():
    x, y = planted(0.6)
    moments = Moments(6, 3)
    with pytest.raises(NotEnoughDataError, match="seen no rows"):
        moments.fit()
    with pytest.raises(InvalidArgumentError, match="x must have 6 columns as before, got 3"):
        moments.update(y, y)
    with pytest.raises(InvalidArgumentError, match=r"y must have shape \[n, d\]"):
        moments.update(x, y[:, 0])
    with pytest.raises(InvalidArgumentError, match=r"x must have shape \[n, d\].* x\[:, None\]"):
        Moments().update(x[:, 0], y)
    with pytest.raises(InvalidArgumentError, match="at least one column"):
        Moments().update(x[:, :0], y)
    with pytest.raises(InvalidArgumentError, match="d_in must be at least 1"):
        Moments(0, 3)
    with pytest.raises(InvalidArgumentError, match="keep_yy must agree"):
        moments.merge(Moments(6, 3, keep_yy=True))
    with pytest.raises(InvalidArgumentError, match="other must be Moments"):
        moments.merge(x)
    with pytest.raises(InvalidArgumentError, match="keep_yy=True"):
        moments.update(x, y).syy  # noqa: B018
    with pytest.raises(InvalidArgumentError, match="y must have 3 columns"):
        moments.score(Moments().update(x, x).fit())
    assert moments.merge(Moments()).n == 300


@pytest.mark.parametrize("full", [False, True])
def test_float32_products_are_those_of_float64_to_their_own_precision(full):
    generator = torch.Generator().manual_seed(5)
    x = (torch.randn(3000, 80, generator=generator) * torch.logspace(-2, 2, 80) + 30).float()
    x[:, 3] += 9000  # a float32 mean of such numbers lies beside the mean
    y = (x[:, :5] - x[:, 5:10] + torch.randn(3000, 5, generator=generator)).float()
    single = collect(x, y, (1300, 400), keep_yy=full, single=True)
    exact = collect(x, y, keep_yy=full)
    for name in ("sxx", "sxy", "syy") if full else ("sxx", "sxy"):
        left, right = getattr(single, name), getattr(exact, name)
        size_x, size_y = exact.sxx.diagonal().sqrt(), exact.scatter_y.sqrt()
        sides = {"sxx": (size_x, size_x), "sxy": (size_x, size_y), "syy": (size_y, size_y)}[name]
        assert float(((left - right).abs() / torch.outer(*sides)).max()) < 1e-6, name
    torch.testing.assert_close(single.mean_x, exact.mean_x, rtol=1e-7, atol=1e-9)
    penalty = 1e-3 * float(exact.sxx.diagonal().mean())
    one, other = single.fit(ridge=penalty), exact.fit(ridge=penalty)
    assert one.r_squared == pytest.approx(other.r_squared, abs=5e-8)
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-4, atol=1e-6)
    doubles = collect(x.double(), y.double(), keep_yy=full, single=True)  # not rounded
    assert_same(doubles, collect(x.double(), y.double(), keep_yy=full))
    with pytest.raises(NonFiniteError):
        Moments(single=True).update(x * float("nan"), y)


@pytest.mark.parametrize("single", [False, True])
def test_a_target_beside_several_x_is_the_rows_themselves(single):
    generator = torch.Generator().manual_seed(6)
    x = [torch.randn(7, 50, d, generator=generator) for d in (3, 3, 5)]
    y = x[0][..., :2] * 3 + torch.randn(7, 50, 2, generator=generator) + 20
    for full in (False, True):
        target = Target(y[:, 1:])
        for rows in x:
            beside = Moments(single=single, keep_yy=full).update(rows[:, 1:], target)
            beside.update(rows[:, 1:], target)
            alone = Moments(single=single, keep_yy=full).update(rows[:, 1:], y[:, 1:])
            alone.update(rows[:, 1:], y[:, 1:].clone())
            assert_same(beside, alone, rtol=0)
    with pytest.raises(InvalidArgumentError, match="same rows"):
        Moments().update(x[0], target)
    with pytest.raises(NonFiniteError, match="y"):
        Moments(single=single).update(x[0], Target(y * float("inf")))


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_target_that_changed_in_place_is_read_anew(single, dtype):
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(4, 9, 3, generator=generator, dtype=dtype)
    whole = torch.randn(4, 10, 2, generator=generator, dtype=dtype)
    y = whole[:, 1:]  # a view: its rows change with the whole
    target, beside, alone = Target(y), Moments(single=single), Moments(single=single)
    for _ in range(3):
        beside.update(x, target)
        alone.update(x, y.clone())
        whole.mul_(5).add_(1)
    assert_same(beside, alone, rtol=0)


def test_rows_that_were_checked_before_still_agree_in_size_and_are_finite():
    x, y = normal(4, 9, 3), normal(4, 9, 2, seed=1)
    moments = Moments().add(x, Target(y)).add(x[:0], Target(y[:0]))
    assert_same(moments, Moments().update(x, y), rtol=0)
    with pytest.raises(InvalidArgumentError, match="x must have 3 columns"):
        moments.add(y, Target(y))
    for bad in ((x * float("nan"), y), (x, y * float("inf"))):
        with pytest.raises(NonFiniteError):
            moments.add(bad[0], Target(bad[1]))
    assert_same(moments, Moments().update(x, y), rtol=0)
