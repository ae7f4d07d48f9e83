import math

import numpy as np
import pytest
import torch
from linalg_data import normal
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from lens_linear.errors import InvalidArgumentError, NonFiniteError, NotEnoughDataError
from lens_linear.linalg import Spectrum, anisotropy, intrinsic_dimension, spectra, spectrum


def planted_spectrum(values, n=200):
    """Centred rows whose singular values are exactly ``values``."""
    basis, _ = torch.linalg.qr(
        torch.cat([torch.ones(n, 1, dtype=torch.float64), normal(n, len(values))], 1)
    )
    turn, _ = torch.linalg.qr(normal(len(values), len(values), seed=1))
    return basis[:, 1:] * torch.tensor(values, dtype=torch.float64) @ turn


def test_planted_spectrum_gives_the_closed_forms():
    x = planted_spectrum([4.0, 2.0, 2.0, 0.0]) + 100
    result = spectrum(x)
    np.testing.assert_allclose(result.values.numpy(), [4, 2, 2, 0], atol=1e-9)
    assert result.rank == 3
    # p = 1/2, 1/4, 1/4: entropy 1.5 log 2
    assert result.effective_rank == pytest.approx(2**1.5, rel=1e-6)
    assert result.participation_ratio == pytest.approx((16 + 4 + 4) ** 2 / (256 + 16 + 16))
    assert result.anisotropy == pytest.approx(16 / 24)
    assert anisotropy(x) == pytest.approx(16 / 24, abs=1e-12)
    np.testing.assert_allclose(result.gaps.numpy(), [0.5, 0, 1], atol=1e-6)
    assert result.degenerate_groups() == [range(1, 3)]
    assert "rank 3" in repr(result) and "66.7%" in repr(result)
    frame = result.to_dataframe()
    assert frame["cumulative_share"].iloc[-1] == pytest.approx(1)


def test_one_direction_alone():
    alone = Spectrum(torch.tensor([3.0, 0.0, 0.0]), 9, 3, True)
    assert (alone.effective_rank, alone.participation_ratio, alone.anisotropy) == (1, 1, 1)


def test_degenerate_groups_chain_and_zero_values_do_not_join():
    values = torch.tensor([10.0, 9.8, 9.6, 5.0, 4.99, 1.0, 0.0, 0.0])
    groups = Spectrum(values, 100, 8, True).degenerate_groups(rtol=0.03)
    assert groups == [range(0, 3), range(3, 5), range(6, 8)]
    assert Spectrum(torch.tensor([2.0]), 9, 1, True).degenerate_groups() == []


@pytest.mark.parametrize("n, d", [(100, 12), (15, 40)])
def test_anisotropy_is_pcas_first_ratio(n, d):
    x = normal(n, d).float() * torch.linspace(1, 3, d) + 50
    expected = PCA().fit(x.double().numpy()).explained_variance_ratio_[0]
    assert anisotropy(x) == pytest.approx(expected, abs=1e-10)
    assert spectrum(x).anisotropy == pytest.approx(expected, abs=1e-10)


def test_uncentred_spectrum_sees_the_mean():
    x = planted_spectrum([1.0, 1.0]) + 5
    assert spectrum(x, center=False).values[0] > 100 > spectrum(x).values[0]


def test_bad_input_is_refused():
    with pytest.raises(InvalidArgumentError, match="rows are all equal"):
        anisotropy(torch.full((5, 3), 1000.1))
    with pytest.raises(NotEnoughDataError):
        spectrum(torch.ones(1, 3))
    with pytest.raises(NonFiniteError):
        spectrum(torch.full((5, 3), torch.nan))
    with pytest.raises(NotEnoughDataError, match="TwoNN"):
        intrinsic_dimension(normal(19, 3))
    with pytest.raises(NotEnoughDataError, match="distinct points"):
        intrinsic_dimension(normal(2, 3).repeat(20, 1))
    with pytest.raises(InvalidArgumentError, match="keep must be at most"):
        intrinsic_dimension(normal(50, 3), keep=1.5)


def manifold(n, dim=5, ambient=20, seed=0):
    """A curved surface of ``dim`` dimensions in ``ambient`` ones."""
    flat = torch.rand(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    bent = torch.cat([flat, 0.5 * (2 * flat).sin(), 0.3 * flat.square()], 1)
    return bent @ normal(bent.shape[1], ambient, seed=1)


def two_nn_by_hand(x, keep):
    """The estimator with scikit-learn's neighbours and a loop."""
    distances, _ = NearestNeighbors(n_neighbors=3).fit(x).kneighbors(x)
    ratios = sorted(b / a for _, a, b in distances)
    top = bottom = 0.0
    for i, ratio in enumerate(ratios[: int(len(ratios) * keep)], start=1):
        top += math.log(ratio) * -math.log(1 - i / len(ratios))
        bottom += math.log(ratio) ** 2
    return top / bottom


@pytest.mark.parametrize("keep", [0.2, 0.9])
@pytest.mark.parametrize("chunk", [64, 5000])
def test_two_nn_on_a_planted_five_dimensional_surface(keep, chunk):
    x = manifold(2000)
    result = intrinsic_dimension(x, keep=keep, chunk=chunk)
    assert result.dimension == pytest.approx(5, abs=0.6)
    assert result.dimension == pytest.approx(two_nn_by_hand(x.numpy(), keep), rel=1e-6)
    assert result.n == 2000 and result.n_removed == 0 and result.n_fitted == int(2000 * keep)
    shifted = intrinsic_dimension(1000 * x + 5e4, keep=keep).dimension
    assert shifted == pytest.approx(result.dimension, rel=1e-6)


def test_a_round_cloud_is_less_than_its_space():
    assert 1.8 < intrinsic_dimension(normal(2000, 2)).dimension < 2.2
    assert float(intrinsic_dimension(normal(1000, 50))) > 15


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_coinciding_points_count_once(noise):
    x = manifold(1000)
    both = torch.cat([x, x[:100] + noise * normal(100, 20, seed=7), x[:50]])
    result = intrinsic_dimension(both)
    alone = intrinsic_dimension(x)
    assert result.n_removed == 150 and result.n == 1150 and result.n_fitted == 200
    assert result.dimension == pytest.approx(alone.dimension, rel=1e-6)
    assert "150 removed" in repr(result)


def test_coinciding_points_as_in_the_reference_implementation():
    """Slow and plain: ratios of 0/0 and of 1 go, but keep their places at the bottom of F."""
    x = torch.cat([manifold(600), manifold(600)[:60]])
    z = x.double() - x.double().mean(0)
    apart = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    apart = apart.fill_diagonal_(torch.inf).sort(dim=1).values[:, :2] / z.norm(dim=1).mean()
    ratios = sorted(float(b / a) for a, b in apart if a > 1e-8 and b > a * (1 + 1e-8))
    places = [len(x) - len(ratios) + i + 1 for i in range(len(ratios) // 5)]
    pairs = [(math.log(m), -math.log1p(-i / len(x))) for m, i in zip(ratios, places, strict=False)]
    want = sum(a * b for a, b in pairs) / sum(a * a for a, b in pairs)
    got = intrinsic_dimension(x, coinciding="reference")
    assert (
        got.dimension == pytest.approx(want, rel=1e-9)
        and got.n_removed == len(x) - len(ratios) > 120
    )
    assert want > 1.5 * intrinsic_dimension(x).dimension
    alone = manifold(600)
    both = [intrinsic_dimension(alone, coinciding=how).dimension for how in ("once", "reference")]
    assert both[0] == pytest.approx(both[1], rel=1e-12)


def test_sampling_is_seeded_and_close():
    x = manifold(3000)
    first, again = (intrinsic_dimension(x, max_rows=1500, seed=3) for _ in range(2))
    assert first.dimension == again.dimension and first.n == 1500 and first.seed == 3
    assert first.dimension == pytest.approx(
        intrinsic_dimension(x, max_rows=None).dimension, abs=0.7
    )
    assert intrinsic_dimension(x).seed == -1
    assert first.to_dataframe().loc[0, "n"] == 1500


def test_a_lattice_has_only_ties_and_no_estimate():
    axis = torch.arange(8.0)
    lattice = torch.cartesian_prod(axis, axis)
    with pytest.raises(NotEnoughDataError, match="neighbour ratios in the fit"):
        intrinsic_dimension(lattice)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_equal_distances_of_a_lattice_are_ties_in_every_precision(precision):
    """Tokens beside positions: the nearest points of a lattice are equally far, up to rounding."""
    corners, places = torch.eye(3, 8).double(), 20 * normal(40, 8, seed=1)
    lattice = (corners[:, None] + places).flatten(0, 1)
    free = 100 + 20 * normal(60, 8, seed=2)
    found = intrinsic_dimension(torch.cat([lattice, free]).to(precision))
    assert found.n - found.n_removed == 60
    alone = intrinsic_dimension(free.to(precision)).dimension
    assert found.dimension == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("shape", [(4, 60), (60, 4)])
def test_anisotropy_multiplies_along_the_longer_side(shape, monkeypatch):
    sizes, gram = [], spectra.gram
    monkeypatch.setattr(spectra, "gram", lambda x: sizes.append(x.shape[1]) or gram(x))
    x = normal(*shape, seed=3)
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    assert anisotropy(x) == pytest.approx(s[0] ** 2 / (s**2).sum(), rel=1e-10)
    assert sizes == [4]
