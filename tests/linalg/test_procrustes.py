import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch
from linalg_data import ill_conditioned, normal, planted

from lens_linear.errors import InvalidArgumentError, NonFiniteError, NotEnoughDataError
from lens_linear.linalg import orthogonal_procrustes, procrustes_similarity


def by_definition(x, y):
    """The score as the paper defines it, with a pseudo-inverse in plain numpy."""
    x, y = x.double().numpy(), y.double().numpy()
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / np.sqrt((x**2).sum()), y / np.sqrt((y**2).sum())
    best = np.linalg.pinv(x) @ y
    return 1 - ((x @ best - y) ** 2).sum()


@pytest.mark.parametrize("shift, scale", [(0.0, 1.0), (1000.0, 1.0), (0.0, 1e-3)])
def test_similarity_is_the_papers_formula(shift, scale):
    x, y = planted(0.6)
    x, y = scale * x + shift, 7 * y - shift
    assert procrustes_similarity(x, y) == pytest.approx(by_definition(x, y), abs=1e-10)
    assert procrustes_similarity(x, y) == pytest.approx(0.6, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_similarity_in_low_precision(dtype):
    x, y = planted(0.6)
    x, y = x.to(dtype), y.to(dtype)
    assert procrustes_similarity(x, y) == pytest.approx(by_definition(x, y), abs=1e-10)


def test_similarity_on_ill_conditioned_data():
    x, y = ill_conditioned(kind="all")
    assert procrustes_similarity(x, y) == pytest.approx(by_definition(x, y), abs=1e-8)


def test_similarity_is_finite_and_right_on_rank_deficient_data():
    x, y = planted(0.6)
    doubled = torch.cat([x, x @ normal(6, 6, seed=9), torch.ones(300, 1, dtype=x.dtype)], 1)
    assert procrustes_similarity(doubled, y) == pytest.approx(0.6, abs=1e-9)
    assert procrustes_similarity(doubled.float(), y) == pytest.approx(0.6, abs=0.02)


def test_noise_scores_d_over_n_minus_1():
    scores = [
        procrustes_similarity(normal(81, 40, seed=2 * s), normal(81, 40, seed=2 * s + 1))
        for s in range(20)
    ]
    assert np.mean(scores) == pytest.approx(0.5, abs=0.01)


def test_similarity_refuses_what_has_no_answer():
    x, y = planted(0.6)
    with pytest.raises(NotEnoughDataError, match="fit any y exactly"):
        procrustes_similarity(x[:7], y[:7])
    with pytest.raises(NonFiniteError):
        procrustes_similarity(x / 0, y)
    with pytest.raises(InvalidArgumentError, match="must vary"):
        procrustes_similarity(x, 0 * y)


def test_orthogonal_is_scipys():
    x, y = normal(50, 4), normal(50, 4) @ normal(4, 4, seed=2) + normal(50, 4, seed=3) + 9
    fit = orthogonal_procrustes(x, y)
    _, _, disparity = scipy.spatial.procrustes(y.numpy(), x.numpy())
    assert fit.r_squared == pytest.approx(1 - disparity, abs=1e-12)
    rigid = orthogonal_procrustes(x, y, scale=False)
    xc, yc = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    rotation, overlap = scipy.linalg.orthogonal_procrustes(xc, yc)
    np.testing.assert_allclose(rigid.rotation.numpy(), rotation, atol=1e-12)
    np.testing.assert_allclose(fit.rotation.numpy(), rotation, atol=1e-12)
    assert rigid.scale == 1 and fit.scale == pytest.approx(overlap / (xc**2).sum())
    for result in (fit, rigid):
        error = float((result.predict(x) - y).square().sum()) / (yc**2).sum()
        assert result.r_squared == pytest.approx(1 - error, abs=1e-12)
    assert rigid.r_squared < fit.r_squared < procrustes_similarity(x, y)


def test_a_known_reflection_is_found():
    reflection = torch.tensor([[0.6, 0.8], [0.8, -0.6]], dtype=torch.float64)
    x = normal(30, 2)
    fit = orthogonal_procrustes(x, 2.5 * x @ reflection + 3)
    torch.testing.assert_close(fit.rotation, reflection)
    assert fit.scale == pytest.approx(2.5) and fit.r_squared == pytest.approx(1)
    assert "best rotation and scale" in repr(fit) and "n = 30" in repr(fit)
    assert fit.to_dataframe().loc[0, "scale"] == pytest.approx(2.5)


def test_orthogonal_refuses_different_widths_and_constants():
    x, y = planted(0.6)
    with pytest.raises(InvalidArgumentError, match="as many columns for a rotation"):
        orthogonal_procrustes(x, y)
    with pytest.raises(InvalidArgumentError, match="x must vary"):
        orthogonal_procrustes(torch.ones(9, 3), y[:9])
    with pytest.raises(NotEnoughDataError):
        orthogonal_procrustes(y[:1], y[:1])
    with pytest.raises(InvalidArgumentError, match="must have 3 columns"):
        orthogonal_procrustes(y, y).predict(x)
