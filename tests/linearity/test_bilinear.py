"""The bilinear probe on planted products, on none, and on a real gated layer."""

import pytest
import torch
from linearity_data import activations, numpy_r2, small, split, tokens

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError
from lens_linear.linearity.measure.bilinear import bilinear_on_rows
from lens_linear.linearity.measure.products import fit_products


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


D, OUT, K = 16, 8, 2
A, B, C, W = (
    normal(K, D, seed=1),
    normal(K, D, seed=2),
    normal(K, OUT, seed=3),
    normal(D, OUT, seed=4),
)


def planted(n, noise, seed, sizes=None, shift=0.0):
    x = normal(n, D, seed=seed)
    y = x @ W + ((x @ A.T) * (x @ B.T)) @ C / D**0.5 + noise * normal(n, OUT, seed=seed + 1)
    return (x if sizes is None else x * sizes) + shift, y


def cosine(u, v):
    unit = torch.nn.functional.normalize
    return (unit(u, dim=1) @ unit(v, dim=1).T).abs()


@pytest.mark.parametrize("ill", [False, True])
def test_planted_products_are_found_exactly(ill):
    sizes = torch.logspace(0, -4, D, dtype=torch.float64) if ill else torch.ones(D).double()
    x, y = planted(1500, 0.0, 10, sizes, shift=3.0)
    x_test, y_test = planted(1500, 0.0, 20, sizes, shift=3.0)
    probe = bilinear_on_rows(x, y, x_test, y_test, rank=(1, 2, 3))
    assert probe.ranks == (0, 1, 2, 3)
    assert probe.r2[2] == pytest.approx(1, abs=1e-4), "two products are the truth"
    assert probe.r2[1] < 0.98 and probe.affine_r2 < 0.9
    assert probe.affine_r2 == pytest.approx(numpy_r2(x, y, x_test, y_test), abs=1e-9)
    two = bilinear_on_rows(x, y, x_test, y_test, rank=2)
    # Readings of x are recovered up to order, sign and which of the pair is a.
    a, b = two.a / sizes.reciprocal(), two.b / sizes.reciprocal()
    match = torch.maximum(cosine(a, A) * cosine(b, B), cosine(a, B) * cosine(b, A))
    assert float(match.amax(0).min()) > 0.999


def test_each_product_starts_from_what_the_earlier_ones_leave():
    x = normal(1500, 6, seed=1)
    planted_r = torch.stack([3 * x[:, 0] * x[:, 1], x[:, 2] * x[:, 3], 0.3 * x[:, 4] * x[:, 5]], 1)
    affine = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    r = planted_r - affine @ torch.linalg.lstsq(affine, planted_r).solution
    # Two iterations are too few to mend a bad start.
    found = fit_products(x, r, 3, keep=(1, 2, 3), iterations=2, seed=0)
    left = [float((r - found[k].predict(x)).square().sum() / r.square().sum()) for k in (1, 2, 3)]
    assert left == pytest.approx([1.09 / 10.09, 0.09 / 10.09, 0], rel=0.2, abs=1e-3)


def test_gain_is_the_share_the_products_carry_and_noise_gives_none():
    x, y = planted(3000, 0.5, 10)
    x_test, y_test = planted(3000, 0.5, 20)
    probe = bilinear_on_rows(x, y, x_test, y_test, rank=2)
    products = ((x_test @ A.T) * (x_test @ B.T)) @ C / D**0.5
    share = (products - products.mean(0)).square().sum() / (y_test - y_test.mean(0)).square().sum()
    assert float(probe.gains[1]) == pytest.approx(float(share), abs=0.03)
    plain = x @ W + normal(3000, OUT, seed=5)
    null = bilinear_on_rows(x[:1500], plain[:1500], x[1500:], plain[1500:], rank=(1, 4))
    assert bool((null.gains[1:] < 0.002).all()) and bool((null.train_gains[1:] > 0).all())


def test_on_a_model_it_beats_nothing_by_itself_and_says_what_it_did():
    model = small(1, gated=True, activation="silu", d_mlp=8, norm="none")
    ids = tokens(120)
    probe = ll.bilinear_probe(model, ids, 0, rank=(2, 8), iterations=100)
    train, test = split(ids)
    want = numpy_r2(*activations(model, train, 0, "ffn"), *activations(model, test, 0, "ffn"))
    assert probe.affine_r2 == pytest.approx(want, abs=1e-6)
    frame = probe.to_dataframe()
    assert frame["rank"].tolist() == [0, 2, 8]
    assert frame.gain[0] == 0 and frame.gain[2] > frame.gain[1] > 0.01
    assert ((frame.gain_low <= frame.gain) & (frame.gain <= frame.gain_high)).all()
    # silu(u) is near u/2 + u²/4 for small u: a gated layer of width 8 is near 8 products.
    assert frame.share_of_residual[2] > 0.5
    assert probe.a.shape == (8, 16) and probe.c.shape == (8, 16)
    assert "ffn of layer 0" in repr(probe) and "n = 960 test rows" in repr(probe)


def test_same_seed_same_numbers():
    ids = tokens(60)
    first, again = (ll.bilinear_probe(small(1), ids, 0, rank=1, seed=4) for _ in range(2))
    assert torch.equal(first.r2, again.r2)


def test_refusals():
    with pytest.raises(InvalidArgumentError, match="rank must be at least 1"):
        ll.bilinear_probe(small(1), tokens(), 0, rank=0)
    with pytest.raises(InvalidArgumentError, match="rank must name"):
        ll.bilinear_probe(small(1), tokens(), 0, rank=())
    with pytest.raises(InvalidArgumentError, match="layer must be at most 0"):
        ll.bilinear_probe(small(1), tokens(), 1)
    with pytest.raises(
        InvalidArgumentError, match="site must be one of 'block', 'attn', got 'ffn'"
    ):
        ll.bilinear_probe(small(1, attn_only=True), tokens(), 0)
    with pytest.raises(NotEnoughDataError):
        ll.bilinear_probe(small(1), tokens(2), 0)


def test_a_ridge_by_leave_one_out_saves_the_affine_fit_of_few_rows():
    """70 rows for 48 inputs: a plain fit is far below the mean. scikit-learn is the oracle of a penalty."""
    from sklearn.linear_model import Ridge

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 370, 48, generator=g, dtype=torch.float64)
    y = y + 0.3 * x
    cut = (x[:70], y[:70], x[70:], y[70:])
    plain = bilinear_on_rows(*cut, rank=1, iterations=2)
    chosen = bilinear_on_rows(*cut, rank=1, iterations=2, ridge="loo")
    assert plain.affine_r2 < -1 < -0.2 < chosen.affine_r2
    assert 'ridge="loo")' in repr(plain) and "the ridge was chosen already" in repr(chosen)
    given = bilinear_on_rows(*cut, rank=1, iterations=2, ridge=40.0)
    said = Ridge(alpha=40.0).fit(cut[0].numpy(), cut[1].numpy()).predict(cut[2].numpy())
    left, spread = cut[3] - torch.tensor(said), cut[3] - cut[1].mean(0)
    wanted = 1 - float(left.square().sum() / spread.square().sum())
    assert given.affine_r2 == pytest.approx(wanted, abs=1e-10)
    assert given.gains[1] == pytest.approx(float(given.r2[1] - given.r2[0]))
