"""Rank is decided by what the rows are known to, and the score of a fit is that of its map."""

import numpy as np
import pytest
import torch
from linalg_data import ill_conditioned, normal, numpy_fit, planted

from lens_linear.linalg import Moments, fit_linear, r_squared, row_error


def streamed(x, y, **kw):
    moments = Moments()
    for start in range(0, len(x), 64):
        moments.update(x[start : start + 64], y[start : start + 64])
    return moments.fit(**kw)


both = pytest.mark.parametrize("fit", [fit_linear, streamed], ids=["rows", "streamed"])


def scored(fit, x, y):
    """What the returned map really scores, with numpy, on the rows it was fitted on."""
    x, y = x.double().numpy(), y.double().numpy()
    guess = x @ fit.weight.numpy() + fit.bias.numpy()
    return 1 - ((y - guess) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()


def without_rounding(x, y, kept):
    """R² of float64 least squares on the ``kept`` longest directions of x with unit columns."""
    xc, yc = (v.double().numpy() - v.double().numpy().mean(0) for v in (x, y))
    u, _, _ = np.linalg.svd(xc / np.linalg.norm(xc, axis=0), full_matrices=False)
    return ((u[:, :kept].T @ yc) ** 2).sum() / (yc**2).sum()


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tiny", [1e-3, 1e-8, 1e-16, 1e-20, 1e-30])
def test_a_tiny_column_is_as_good_as_any_other(fit, tiny, dtype):
    a, b = normal(400, 1), normal(400, 1, seed=1)
    x, y = torch.cat([a, -a, tiny * b], 1).to(dtype), (a + b).to(dtype)
    result = fit(x, y)
    assert (result.rank, result.dropped) == (2, 1)
    assert result.r_squared == pytest.approx(1, abs=1e-9)
    assert scored(result, x, y) == pytest.approx(result.r_squared, abs=1e-9)
    torch.testing.assert_close(
        result.weight[:2, 0], torch.tensor([0.5, -0.5]).double(), atol=1e-6, rtol=0
    )
    assert float(result.weight[2, 0]) == pytest.approx(1 / tiny, rel=1e-6)


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tiny", [1e-38, 1e-42, 0.0])
def test_a_column_whose_weight_would_overflow_float32_is_dropped(fit, tiny, dtype):
    a, b = normal(400, 1), normal(400, 1, seed=1)
    x, y = (
        torch.cat([a, a + 0.1 * b, tiny * normal(400, 1, seed=2)], 1).to(dtype),
        (a + b).to(dtype),
    )
    y = y + 3 * normal(400, 1, seed=2).to(dtype)
    result = fit(x, y)
    assert (result.rank, result.dropped) == (2, 1)
    assert bool(torch.isfinite(result.weight.float()).all()) and float(result.weight[2, 0]) == 0
    alone = numpy_fit(x[:, :2].double(), y.double())[1]
    assert result.r_squared == pytest.approx(alone, abs=1e-7)
    assert scored(result, x, y) == pytest.approx(alone, abs=1e-7)


@both
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_a_map_of_float16_rows_is_finite_in_float16(fit, scale):
    x = torch.cat([normal(500, 3), 2e-5 * normal(500, 1, seed=1)], 1)
    y = (normal(500, 2, seed=2) + x[:, :2] + 1e4 * x[:, 3:]) * scale
    result = fit(x.half(), y.half())
    assert bool(torch.isfinite(result.weight.half()).all())
    assert scored(result, x.half(), y.half()) == pytest.approx(result.r_squared, abs=1e-6)


@both
@pytest.mark.parametrize("width", [8, 30, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_rounding_of_a_layer_norm_is_no_direction(fit, width, dtype):
    n = 60 * width
    x = torch.nn.functional.layer_norm(normal(2 * n, width).to(dtype), (width,))
    y = torch.nn.functional.gelu(x @ normal(width, width, seed=1).to(dtype) / width**0.5)
    result = fit(x[:n], y[:n])
    assert (result.rank, result.dropped) == (width - 1, 1)
    assert float(result.weight.norm()) < 2 * width**0.5
    assert result.r_squared == pytest.approx(without_rounding(x[:n], y[:n], width - 1), abs=1e-6)
    held_out = r_squared(y[n:], result.predict(x[n:]), mean=result.mean_y)
    single = r_squared(
        y[n:], x[n:].float() @ result.weight.float() + result.bias.float(), mean=result.mean_y
    )
    assert single == pytest.approx(held_out, abs=1e-6)  # the map runs in float32 as it was scored


def test_the_layer_norm_of_the_first_report():
    x = torch.nn.functional.layer_norm(normal(800, 8).float(), (8,))
    y = torch.nn.functional.gelu(x @ normal(8, 8, seed=1).float())
    results = [fit_linear(x[:400].to(t), y[:400].to(t)) for t in (torch.float32, torch.float64)]
    held = [r_squared(y[400:], r.predict(x[400:]), mean=r.mean_y) for r in results]
    assert [r.rank for r in results] == [7, 8]  # float64 rows are taken at their word
    assert float(results[1].weight.norm()) > 1e4 * float(results[0].weight.norm())
    assert abs(held[0] - held[1]) > 1e-5


@both
@pytest.mark.parametrize("kind", ["bulk", "all", "smallest"])
def test_float32_rows_of_condition_1e6_agree_with_lstsq(fit, kind):
    x, y = ill_conditioned(kind=kind, n=1500, d=24)
    x, y = (x - 5).float(), y.float()
    prediction, score, rank, _ = numpy_fit(x.double(), y.double())
    result = fit(x, y)
    assert result.rank == rank == 24 and result.solver == "svd"
    assert result.r_squared == pytest.approx(score, abs=1e-6)
    assert float((result.predict(x) - prediction).abs().max() / y.std()) < 1e-6
    assert scored(result, x, y) == pytest.approx(result.r_squared, abs=1e-6)


@both
@pytest.mark.parametrize("size", [1e-3, 1e-7, 1e-10, 1e-12])
def test_small_directions_planted_in_float64_are_kept(fit, size):
    latent = normal(900, 12)
    latent[:, -1] *= size
    turn, _ = torch.linalg.qr(normal(12, 12, seed=1))
    x = latent @ turn.T
    y = latent[:, -1:] / size + 0.5 * normal(900, 1, seed=2)
    result = fit(x, y)
    assert (result.rank, result.dropped, result.solver) == (12, 0, "svd")
    oracle = numpy_fit(latent / latent.std(0), y)[1]
    assert result.r_squared == pytest.approx(oracle, abs=max(1e-9, 1e-16 / size))


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("empty", [1, 5, 40, 150])
def test_any_number_of_empty_directions(fit, dtype, empty):
    base = normal(900, 200 - empty)
    x = torch.cat([base, base[:, :empty] + base.flip(1)[:, :empty]], 1) if empty < 100 else None
    if x is None:
        x = base @ normal(200 - empty, 200, seed=3) / 10
    y = base[:, :4] @ normal(4, 4, seed=1) + normal(900, 4, seed=2)
    x, y = x.to(dtype), y.to(dtype)
    result = fit(x, y)
    assert (result.rank, result.dropped) == (200 - empty, empty)
    solvers = {torch.float64: "svd", torch.float32: "cholesky" if empty < 16 else "eigh"}
    assert result.solver == solvers[dtype] and result.solver in repr(result)
    assert result.r_squared == pytest.approx(numpy_fit(base, y.double())[1], abs=1e-6)
    shortest = torch.linalg.lstsq(
        x.double() - x.double().mean(0), y.double() - y.double().mean(0), rcond=1e-5, driver="gelsd"
    ).solution
    torch.testing.assert_close(result.weight, shortest, atol=2e-4, rtol=0)


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_constant_column_counts_as_dropped(fit, dtype):
    x = torch.cat([normal(400, 3), torch.full((400, 1), 100.1)], 1).to(dtype)
    y = (x[:, :2] + normal(400, 2, seed=1)).to(dtype)
    result = fit(x, y)
    assert (result.rank, result.dropped) == (3, 1)
    assert result.r_squared == pytest.approx(numpy_fit(x[:, :3].double(), y.double())[1], abs=1e-6)


def test_the_precision_of_the_coarsest_rows_counts():
    x, y = planted(0.5, n=600)
    x[:, 0] = x[:, 1] + 1e-5 * x[:, 0]
    fine = Moments().update(x[:300], y[:300])
    assert fine.copy().merge(Moments().update(x[300:], y[300:])).fit().rank == 6
    mixed = fine.copy().merge(Moments().update(x[300:].half(), y[300:]))
    assert mixed.fit().rank == 5 and mixed.fit().tolerance == row_error(torch.float16)
    assert Moments().update(x.float(), y).fit().rank == 6


def test_a_tiny_ridge_does_not_bring_rounding_back():
    x = torch.nn.functional.layer_norm(normal(500, 30).float(), (30,))
    y = normal(500, 2, seed=1).float()
    plain, ridge = fit_linear(x, y), fit_linear(x, y, ridge=1e-12)
    assert ridge.rank == plain.rank == 29
    torch.testing.assert_close(ridge.weight, plain.weight, atol=1e-9, rtol=0)
    assert scored(ridge, x, y) == pytest.approx(ridge.r_squared, abs=1e-9)
