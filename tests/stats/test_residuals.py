"""Sums of squared residuals: float32 where it is safe, float64 where it is not, both against plain sums."""

import pytest
import torch

from lens_linear.linalg import Moments
from lens_linear.linalg.more_rows import solve_both
from lens_linear.stats.residuals import Reading, SiteScorer

KEY = (0, "block")


def _readings(x, y):
    rest = Moments().update(x[:, 1:], y[:, 1:])
    more = Moments().update(x[:, 0], y[:, 0])
    whole = rest + more
    one, both, step = solve_both(rest.scatter, more.scatter, whole.scatter)
    return [
        Reading(skip, {KEY: fit}, {KEY: m.mean_x}, {KEY: m.scatter.spread}, {KEY: s} if s else {})
        for skip, fit, m, s in ((0, both, whole, step), (1, one, rest, None))
    ]


@pytest.mark.parametrize(
    "twin, width, dtype",
    [(1.0, 256, torch.float32), (1e-4, 256, torch.float64), (1.0, 80, torch.float64)],
)
def test_sums_are_those_of_float64_rows(twin, width, dtype):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(24, 40, width, generator=g) + 5
    x[..., 1] = x[..., 0] + twin * torch.randn(24, 40, generator=g)  # twins need large weights
    x[:, 0] *= 100
    y = 0.2 * x + 0.1 * torch.randn(24, 40, width, generator=g)
    y += ((x[..., 1] - x[..., 0]) / twin)[..., None]
    readings = _readings(x[:12], y[:12])
    scorer = SiteScorer(readings, KEY, x)
    assert scorer.dtype == dtype
    found = scorer(x[12:], y[12:])
    alone = SiteScorer(readings[1:], KEY, x)(x[12:, 1:], y[12:, 1:])
    torch.testing.assert_close(alone[0], found[1], rtol=1e-6, atol=0)
    for reading, sums in zip(readings, found, strict=True):
        fit, skip = reading.fits[KEY], reading.skip
        inside, outside = x[12:, skip:].double(), y[12:, skip:].double()
        residual = (outside - fit.predict(inside)).square().sum((1, 2))
        total = (outside - fit.mean_y).square().sum((1, 2))
        update = (outside - inside - (fit.mean_y - reading.mean_x[KEY])).square().sum((1, 2))
        for ours, true in zip(sums, (residual, total, update), strict=True):
            scale = torch.maximum(true, total)  # an error of R² is one of the total
            assert float(((ours - true).abs() / scale).max()) < 5e-7
