"""Two maps for the price of one: against numpy's least squares of the rows themselves."""

import numpy as np
import pytest
import torch

from lens_linear.linalg import Moments
from lens_linear.linalg.more_rows import solve_both


def _rows(n, *, empty, seed=0):
    """Float32 rows of x (one direction empty if asked) and y; the first 4 rows are outliers."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 96, generator=g) * torch.logspace(-1, 1, 96) + 3
    x[:4] *= 200
    if empty:
        x = x - x.mean(1, keepdim=True)
    y = x[:, :40] * 0.3 + torch.randn(n, 40, generator=g)
    return x, y


def _lstsq(x, y):
    x, y = x.double().numpy(), y.double().numpy()
    xc, yc = x - x.mean(0), y - y.mean(0)
    weight = np.linalg.lstsq(xc, yc, rcond=1e-6)[0]
    return weight, 1 - np.square(yc - xc @ weight).sum() / np.square(yc).sum()


@pytest.mark.parametrize("empty", [False, True])
def test_both_maps_are_those_of_their_own_rows(empty):
    x, y = _rows(900, empty=empty)
    rest, more = Moments().update(x[4:], y[4:]), Moments().update(x[:4], y[:4])
    one, both, step = solve_both(rest.scatter, more.scatter, (rest + more).scatter)
    assert step is not None
    for fit, a, b in ((one, x[4:], y[4:]), (both, x, y)):
        weight, score = _lstsq(a, b)
        assert fit.rank == (95 if empty else 96)
        assert fit.r_squared == pytest.approx(score, abs=1e-7)
        centred = a.double() - a.double().mean(0)
        error = centred @ (fit.weight - torch.from_numpy(weight))
        assert float(error.norm() / (centred @ fit.weight).norm()) < 1e-5
    fitted = _fitted_scatter(x, both)
    assert (
        float((both.core.T @ both.core - fitted).norm() / fitted.norm()) < 2e-6
    )  # rounding of the rows
    torch.testing.assert_close(both.weight - one.weight, step.along @ step.amount)


def _fitted_scatter(x, fit):
    fitted = (x.double() - x.double().mean(0)) @ fit.weight
    return fitted.T @ fitted


def test_rows_along_an_empty_direction_are_solved_apart():
    x, y = _rows(900, empty=True)
    x[:4] += 50  # now the first rows do reach the direction that the rest leaves empty
    rest, more = Moments().update(x[4:], y[4:]), Moments().update(x[:4], y[:4])
    one, both, step = solve_both(rest.scatter, more.scatter, (rest + more).scatter)
    assert step is None
    assert (one.rank, both.rank) == (95, 96)
