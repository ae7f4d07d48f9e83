"""Linearity profiles against numpy on the captured activations, nulls, and refusals."""

import math

import numpy as np
import pytest
import torch
from linearity_data import activations, ill_conditioned_model, numpy_r2, small, split, tokens

import lens_linear as ll
from lens_linear.errors import (
    InvalidArgumentError,
    NonFiniteError,
    NotEnoughDataError,
    UnsupportedModelError,
)
from lens_linear.linalg import procrustes_similarity
from lens_linear.linearity.measure.intervals import held_out_null, ratio_interval

COLUMNS = [
    "block_r2",
    "block_r2_no_residual",
    "ffn_r2",
    "attn_r2",
    "null_r2",
    "update_ratio",
    "n_tokens",
]


def expected(model, ids, layer, site, *, held_out, skip=0, update=False, seed=0, rounding=None):
    parts = split(ids, seed) if held_out else (ids,)
    data = []
    for part in parts:
        x, y = activations(model, part, layer, site, skip)
        data += [x, y - x if update else y]
    return numpy_r2(*data, rounding=rounding)


@pytest.mark.parametrize("held_out", [True, False])
def test_equals_numpy_on_ill_conditioned_activations_with_outliers(held_out):
    model = ill_conditioned_model()
    ids = tokens(60, 16, vocab=200)
    x = activations(model, ids, 0, "block")[0].flatten(0, 1)
    assert np.linalg.cond((x - x.mean(0)).numpy()) > 1e6
    profile = ll.linearity_profile(model, ids, fit="held-out" if held_out else "in-sample")
    for layer in range(2):
        for site in ("block", "ffn", "attn"):
            want = expected(model, ids, layer, site, held_out=held_out)
            assert float(profile.scores[site][layer]) == pytest.approx(want, abs=1e-6), site
        want = expected(model, ids, layer, "block", held_out=held_out, update=True)
        got = float(profile.scores["block_no_residual"][layer])
        assert got == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("skip", [0, 3])
def test_skip_and_in_sample_score_is_the_procrustes_similarity(skip):
    model, ids = small(), tokens()
    frame = ll.linearity_profile(model, ids, fit="in-sample", skip=skip).to_dataframe()
    for layer in range(2):
        x, y = activations(model, ids, layer, "block", skip)
        assert frame.block_r2[layer] == pytest.approx(procrustes_similarity(x, y), abs=1e-9)
        want = procrustes_similarity(x, y - x)
        assert frame.block_r2_no_residual[layer] == pytest.approx(want, abs=1e-9)
        ratio = ((y - x).norm(dim=-1) / x.norm(dim=-1)).mean()
        assert frame.update_ratio[layer] == pytest.approx(float(ratio), rel=1e-6)
    assert set(frame.n_tokens) == {40 * (16 - skip)}


def test_frame_has_the_promised_columns_and_acts_as_it():
    profile = ll.linearity_profile(small(), tokens())
    frame = profile.to_dataframe()
    assert list(frame.columns[:7]) == COLUMNS
    assert frame.index.name == "layer" and list(frame.index) == [0, 1]
    assert frame.n_tokens.tolist() == [20 * 16] * 2 and frame.n_fit.tolist() == [20 * 16] * 2
    assert list(profile["block_r2"]) == list(frame["block_r2"])
    assert (frame.block_r2_low <= frame.block_r2).all()
    assert (frame.block_r2 <= frame.block_r2_high).all()
    assert "n = 320 tokens in 20 sequences, fitted on 320" in repr(profile)
    assert profile.ranking() == sorted([0, 1], key=lambda layer: -frame.block_r2[layer])


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batch_size_does_not_change_the_numbers(batch_size):
    model, ids = small().double(), tokens(50)
    want = ll.linearity_profile(model, ids, batch_size=16).to_dataframe()
    got = ll.linearity_profile(model, ids, batch_size=batch_size).to_dataframe()
    assert float((want - got).abs().max().max()) < 1e-10


def test_seed_changes_the_halves_only():
    model, ids = small(), tokens()
    first, again, other = (ll.linearity_profile(model, ids, seed=s) for s in (0, 0, 1))
    assert first.to_dataframe().equals(again.to_dataframe())
    assert float((first.scores["block"] - other.scores["block"]).abs().max()) > 1e-6
    want = expected(model, ids, 1, "ffn", held_out=True, seed=1, rounding=1e-6)
    assert float(other.scores["ffn"][1]) == pytest.approx(want, abs=1e-9)


def test_sites_that_do_not_exist_are_nan_and_sites_can_be_chosen():
    frame = ll.linearity_profile(small(attn_only=True), tokens()).to_dataframe()
    assert frame.ffn_r2.isna().all() and frame.attn_r2.notna().all()
    assert set(frame.ffn_rank) == {-1}
    frame = ll.linearity_profile(small(), tokens(), sites=["ffn"]).to_dataframe()
    assert frame.block_r2.isna().all() and frame.update_ratio.isna().all()
    assert frame.ffn_r2.notna().all() and (frame.null_r2 < 0).all()
    with pytest.raises(UnsupportedModelError, match="none of the sites"):
        ll.linearity_profile(small(attn_only=True), tokens(), sites=["ffn"])


@pytest.fixture
def fed(monkeypatch):
    """Feed given activations to a profile in place of a model's: one layer, one site."""

    def use(x, y):
        def visit_sites(_model, rows, visit, *, sites, layers, batch_size, on_batch, **_other):
            batch_size = batch_size or 16
            for start in range(0, len(rows), batch_size):
                at = rows.index[start : start + batch_size]
                for layer in layers:
                    for site in sites:
                        visit(layer, site, x[at], y[at])
                on_batch(start + len(at))

        monkeypatch.setattr("lens_linear.stats.collect.visit_sites", visit_sites)

    return use


def planted(share, n, length, d, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, length, d, generator=g, dtype=torch.float64)
    signal = x @ torch.linalg.qr(torch.randn(d, d, generator=g).double())[0]
    noise = torch.randn(n, length, d, generator=g, dtype=torch.float64)
    return x, signal * share**0.5 + noise * (1 - share) ** 0.5


@pytest.mark.parametrize("share", [0.6, 0.0])
@pytest.mark.parametrize("shift, scale", [(0.0, 1.0), (1000.0, 0.01)])
def test_planted_share_is_recovered_and_noise_scores_nothing(fed, share, shift, scale):
    x, y = planted(share, 400, 16, 16, seed=0)
    fed(x * scale + shift, y * scale - shift)
    ids = tokens(400, 16)
    frame = ll.linearity_profile(small(1), ids, sites=["ffn"]).to_dataframe()
    # 3200 rows x 16 columns: the standard error of the share is about 0.005.
    assert frame.ffn_r2[0] == pytest.approx(share, abs=0.02)
    assert frame.ffn_r2_low[0] < share < frame.ffn_r2_high[0] + 0.01
    inside = ll.linearity_profile(small(1), ids, sites=["ffn"], fit="in-sample").to_dataframe()
    assert inside.null_r2[0] == pytest.approx(16 / (400 * 16 - 1))
    if share == 0:
        assert frame.ffn_r2[0] < 0 < inside.ffn_r2[0]
        assert inside.ffn_r2[0] == pytest.approx(inside.null_r2[0], rel=0.4)


def test_held_out_null_is_the_mean_over_noise():
    d, n, m, trials = 8, 40, 20, 3000
    g = torch.Generator().manual_seed(0)
    missed = total = 0.0
    for _ in range(trials):
        x, y = torch.randn(2, n, d, generator=g, dtype=torch.float64)
        x_new, y_new = torch.randn(2, m, d, generator=g, dtype=torch.float64)
        one, new = torch.ones(n, 1).double(), torch.ones(m, 1).double()
        weight = torch.linalg.lstsq(torch.cat([x, one], 1), y).solution
        missed += float((y_new - torch.cat([x_new, new], 1) @ weight).square().sum())
        total += float((y_new - y.mean(0)).square().sum())
    assert held_out_null(n, d) == pytest.approx(-d / (n - d - 2)) == pytest.approx(-8 / 30)
    assert 1 - missed / total == pytest.approx(held_out_null(n, d), abs=0.006)
    assert held_out_null(10, 8) == -math.inf


def test_intervals_equal_a_plain_bootstrap_and_widen_with_confidence():
    g = torch.Generator().manual_seed(0)
    residual, total = torch.rand(2, 30, generator=g, dtype=torch.float64) + 0.1
    ends = ratio_interval(residual[None], total[None], n_resamples=400, seed=3)[0]
    drawn = torch.randint(30, (400, 30), generator=torch.Generator().manual_seed(3))
    values = [1 - float(residual[i].sum() / total[i].sum()) for i in drawn]
    assert ends.tolist() == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist(), abs=1e-12)
    wide = ratio_interval(residual[None], total[None], confidence=0.999)[0]
    narrow = ratio_interval(residual[None], total[None], confidence=0.5)[0]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert bool(ratio_interval(residual[None, :1], total[None, :1]).isnan().all())


def test_intervals_cover_the_score_that_endless_text_would_give():
    """Sequences of different size and with a common part, so that rows would not do as units."""
    g = torch.Generator().manual_seed(0)
    many = torch.rand(200_000, 2, generator=g, dtype=torch.float64)
    total = 1 + 3 * many[:, 0]
    residual = total * (0.2 + 0.4 * many[:, 1])  # the score is 0.6
    truth = 1 - float(residual.sum() / total.sum())
    inside = 0
    for seed in range(300):
        at = torch.randint(len(many), (40,), generator=g)
        low, high = ratio_interval(residual[at][None], total[at][None], n_resamples=400, seed=seed)[
            0
        ]
        inside += bool(low <= truth <= high)
    assert truth == pytest.approx(0.6, abs=0.002) and 0.90 < inside / 300 < 0.985


def test_too_few_sequences_are_refused_with_a_number_that_is_right():
    model, ids = small(d_model=32), tokens(100, 10)
    with pytest.raises(NotEnoughDataError, match="at least 7 sequences"):
        ll.linearity_profile(model, ids[:6])
    assert ll.linearity_profile(model, ids[:7]).n_fit == 40
    with pytest.raises(NotEnoughDataError, match="at least 4 sequences"):
        ll.linearity_profile(model, ids[:3], fit="in-sample")
    ll.linearity_profile(model, ids[:4], fit="in-sample")
    with pytest.raises(NotEnoughDataError, match="longer than the 10 positions"):
        ll.linearity_profile(model, ids, skip=10)


def test_nan_weights_name_the_layer():
    model = small(3)
    with torch.no_grad():
        model.blocks[1].mlp.out.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="layer 1"):
        ll.linearity_profile(model, tokens())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_scored_in_float64(dtype):
    model, ids = small().to(dtype), tokens()
    profile = ll.linearity_profile(model, ids)
    want = expected(model, ids, 1, "ffn", held_out=True, rounding=5e-3)
    assert int(profile.ranks["ffn"][1]) == 15  # the sum of a LayerNorm's entries is rounding
    assert float(profile.scores["ffn"][1]) == pytest.approx(want, abs=1e-6)
    full = ll.linearity_profile(small(), ids)
    assert float((full.scores["block"] - profile.scores["block"]).abs().max()) < 0.02


@pytest.mark.parametrize("tiny", [1e-8, 1e-20, 1e-42, 0.0])
@pytest.mark.parametrize("count", [1, 5])
def test_norm_weights_driven_to_nothing_leave_scores_maps_and_ranks_sound(tiny, count):
    ids = tokens(120, 16)
    frames, logits = [], []
    for dtype in (torch.float32, torch.float64):
        model = small(3).to(dtype)
        with torch.no_grad():
            for block in model.blocks:
                block.ln2.weight[-count:] = tiny
                block.ln2.bias.zero_()
        frames.append(ll.linearity_profile(model, ids).to_dataframe())
        with ll.linearize(model, ids[:60], [1, 2], site="ffn") as maps:
            logits.append(model(ids[:4]).detach().double())
            assert all(bool(torch.isfinite(m.weight.float()).all()) for m in maps.maps)
    single, double = frames
    # LayerNorm's entries sum to nothing; columns that float32 cannot use are dropped beside that.
    assert set(single.ffn_rank) == {15 if tiny in (1e-8, 1e-20) else 16 - count}
    for column in ("ffn_rank", "block_rank", "attn_rank"):
        assert single[column].equals(double[column])
    for column in ("ffn_r2", "block_r2", "block_r2_no_residual", "attn_r2"):
        assert float((single[column] - double[column]).abs().max()) < 1e-5
    assert bool(torch.isfinite(logits[0]).all())
    assert float((logits[0] - logits[1]).abs().max()) < 1e-3
    train, test = split(ids)
    x, y, x_test, y_test = (v for part in (train, test) for v in activations(model, part, 1, "ffn"))
    kept = slice(None) if tiny in (1e-8, 1e-20) else slice(0, 16 - count)
    unit = x.flatten(0, 1).std(0)[kept]
    want = numpy_r2(x[..., kept] / unit, y, x_test[..., kept] / unit, y_test, rounding=1e-9)
    assert double.ffn_r2[1] == pytest.approx(want, abs=1e-6)


def test_a_layer_that_writes_nothing_is_nan_and_a_constant_input_is_rank_deficient():
    model = small(2, norm="none")
    with torch.no_grad():
        model.blocks[1].mlp.out.weight.zero_()
        model.embed.weight[:, 8:] = 0.25  # half of the columns never vary
        model.pos_embed.weight.zero_()
    frame = ll.linearity_profile(model, tokens()).to_dataframe()
    assert math.isnan(frame.ffn_r2[1]) and frame.ffn_rank[1] == -1
    assert frame.block_rank[0] == 8 and math.isfinite(frame.block_r2[0])
    ridged = ll.linearity_profile(model, tokens(), ridge=1e-3).to_dataframe()
    assert math.isfinite(ridged.block_r2[0])


@pytest.mark.parametrize("fit", ["held-out", "in-sample"])
@pytest.mark.parametrize("size, lost", [(1e-9, True), (1e-2, False)])
def test_what_the_stream_cannot_hold_has_no_score(fit, size, lost):
    model = small(2, norm="none")
    with torch.no_grad():
        model.blocks[1].attn.W_O.zero_()
        model.blocks[1].mlp.out.weight.mul_(size)
        model.embed.weight[:, 0] += torch.linspace(-40, 40, 64)
    frame = ll.linearity_profile(model, tokens(), fit=fit).to_dataframe()
    assert math.isnan(frame.ffn_r2[1]) == math.isnan(frame.block_r2_no_residual[1]) == lost
    assert math.isfinite(frame.block_r2[1]) and math.isfinite(frame.ffn_r2[0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"fit": "held out"}, "fit must be one of"),
        ({"sites": "ffn"}, "sites must be a list"),
        ({"sites": ["mlp"]}, "sites must be one of"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"ridge": -1.0}, "ridge must be at least"),
        ({"batch_size": 0}, "batch_size"),
        ({"skip": -1}, "skip"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        ll.linearity_profile(small(), tokens(), **arguments)


def test_tokens_that_do_not_fit_are_refused():
    with pytest.raises(InvalidArgumentError, match="vocabulary"):
        ll.linearity_profile(small(), tokens() + 60)
    with pytest.raises(InvalidArgumentError, match="n_ctx"):
        ll.linearity_profile(small(), tokens(10, 65))
    with pytest.raises(InvalidArgumentError, match="must be token ids"):
        ll.linearity_profile(small(), ["one", "two"])


def test_random_blocks_with_small_updates_look_linear_only_through_the_residual():
    model = small(2)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.o.weight.mul_(0.05)
            block.mlp.out.weight.mul_(0.05)
            block.mlp.out.bias.zero_()
    frame = ll.linearity_profile(model, tokens(100, 32)).to_dataframe()
    assert (frame.block_r2 > 0.995).all()
    assert (frame.block_r2_no_residual < 0.9).all()
    assert (frame.update_ratio < 0.2).all()
