"""Both readings of a profile from one pass, few rows said, statistics of one's own, paired differences."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from linearity_data import activations, numpy_r2, small, split, tokens

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError
from lens_linear.linearity import (
    adam_baseline,
    compare_profiles,
    ffn_compression,
    fit_linearization,
    layer_geometry,
)
from lens_linear.models.capture import residual_stream

SCORES = ("block_r2", "block_r2_no_residual", "ffn_r2", "attn_r2")


def outlier(n_layers=2, size=300.0, seed=0):
    """A model whose first position carries most of the variance, as in real language models."""
    model = small(n_layers, seed=seed)
    with torch.no_grad():
        model.pos_embed.weight[0] += size * torch.randn(
            16, generator=torch.Generator().manual_seed(1)
        )
    return model


@pytest.mark.parametrize("fit", ["held-out", "in-sample"])
def test_without_first_is_the_profile_with_skip_1(fit):
    model, ids = outlier(), tokens(60)
    both, alone = (ll.linearity_profile(model, ids, skip=s, fit=fit).to_dataframe() for s in (0, 1))
    for name in SCORES:
        assert np.allclose(both[f"{name}_without_first"], alone[name], atol=1e-9)
        assert np.allclose(alone[f"{name}_without_first"], alone[name], atol=0)
        if fit == "held-out":
            for end in ("low", "high"):
                assert np.allclose(
                    both[f"{name}_without_first_{end}"], alone[f"{name}_{end}"], atol=1e-9
                )
    assert (both.block_r2 - both.block_r2_without_first).abs().max() > 0.01
    assert alone.block_first_share.isna().all()


def test_the_share_of_the_first_position_is_that_of_the_rows_fitted():
    model, ids = outlier(), tokens(60)
    profile = ll.linearity_profile(model, ids)
    train, _ = split(ids)
    for site in ("block", "ffn", "attn"):
        y = activations(model, train, 1, site)[1]
        about = (y - y.mean((0, 1))).square().sum((0, 2))
        want = float(about[0] / about.sum())
        assert float(profile.first_share[site][1]) == pytest.approx(want, rel=1e-4)
    assert float(profile.first_share["block"][1]) > 0.9
    plain = ll.linearity_profile(small(), ids)
    assert float(plain.first_share["block"][1]) == pytest.approx(1 / 16, abs=0.05)


def test_the_sentence_says_both_readings_only_where_they_differ():
    profile = ll.linearity_profile(outlier(), tokens(120))
    assert profile.first_position_layers("block")
    share = float(profile.first_share["block"].max())
    assert f"the first position holds up to {share:.0%} of a block's variance" in repr(profile)
    both = [float(v["block"].nanmedian()) for v in (profile.scores, profile.without_first.values)]
    assert f"blocks {both[0]:.3f} with it, {both[1]:.3f} without" in repr(profile)
    # in sample there is no interval: a difference of more than 0.01 is said
    inside = ll.linearity_profile(outlier(), tokens(120), fit="in-sample")
    both = [float(v["block"].nanmedian()) for v in (inside.scores, inside.without_first.values)]
    assert f"blocks {both[0]:.3f} with it, {both[1]:.3f} without" in repr(inside)
    assert "first position" not in repr(ll.linearity_profile(outlier(), tokens(120), skip=1))


def test_few_rows_are_said_and_the_ridge_of_least_leave_one_out_error_helps():
    model = small(2, d_model=32)
    few, enough = (ll.linearity_profile(model, tokens(n)) for n in (6, 14))
    assert "only 1.5 rows an input" in repr(few) and "rows an input" not in repr(enough)
    ridged = ll.linearity_profile(model, tokens(6), ridge="loo").to_dataframe()
    assert (ridged.ffn_r2 > few["ffn_r2"] + 0.05).all()
    with pytest.raises(InvalidArgumentError, match="ridge"):
        ll.linearity_profile(model, tokens(6), ridge="cv")


def erank(moments):
    p = torch.linalg.eigvalsh(moments.syy).clamp(min=0)
    return float(torch.special.entr(p / p.sum()).sum().exp())


def test_a_statistic_of_ones_own_on_both_halves_with_an_interval(tmp_path):
    model, ids = small(), tokens(60)
    own = {"erank": erank, "rows": lambda m: m.n}
    profile = ll.linearity_profile(model, ids, statistics=own, batch_size=7)
    frame = profile.to_dataframe()
    for part, column in zip(split(ids), ("erank_fit", "erank"), strict=True):
        y = activations(model, part, 1, "block")[1].flatten(0, 1)
        p = torch.linalg.svdvals(y - y.mean(0)).square()
        want = float(torch.special.entr(p / p.sum()).sum().exp())
        assert frame[column][1] == pytest.approx(want, rel=1e-6)
    assert (frame.erank_low < frame.erank).all() and (frame.erank < frame.erank_high).all()
    assert frame.rows.tolist() == [30 * 16] * 2
    # Leaving out three of 30 sequences at a time, by hand: the linear statistic's standard error.
    left = np.full(10, 27 * 16.0)
    spread = math.sqrt(9 * left.var())
    assert frame.rows_high[0] - frame.rows[0] == pytest.approx(spread * 2.2621571628, abs=1e-9)
    wider = ll.linearity_profile(model, ids, statistics=own, confidence=0.99).to_dataframe()
    assert wider.rows_high[0] - wider.rows[0] == pytest.approx(spread * 3.2498355, abs=1e-6)
    with pytest.raises(InvalidArgumentError, match="statistics must map names"):
        ll.linearity_profile(model, ids, statistics={"a b": erank})


def test_the_interval_of_a_mean_is_that_of_its_groups():
    model, ids = small(), tokens(80)
    own = {"first": lambda m: float(m.mean_x[0])}
    frame = ll.linearity_profile(model, ids, statistics=own).to_dataframe()
    _, test = split(ids)
    x = activations(model, test, 0, "block")[0][..., 0].mean(1)  # by sequence
    groups = torch.stack([x[g::10].mean() for g in range(10)])
    error = float(groups.std() / 10**0.5) * 2.2621571628
    assert frame["first"][0] == pytest.approx(float(x.mean()), rel=1e-6)
    assert frame.first_high[0] - frame["first"][0] == pytest.approx(error, rel=1e-5)


def test_a_killed_profile_goes_on_with_its_statistics_and_both_readings(tmp_path):
    model, ids, path = outlier(), tokens(40), tmp_path / "pass.safetensors"
    arguments = {"statistics": {"erank": erank}, "batch_size": 4}
    want = ll.linearity_profile(model, ids, **arguments).to_dataframe()
    calls = 0

    def dies(_module, _inputs):
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt

    handle = model.blocks[1].mlp.register_forward_pre_hook(dies)
    with pytest.raises(KeyboardInterrupt):
        ll.linearity_profile(model, ids, **arguments, checkpoint=path, save_every=4)
    handle.remove()
    assert path.is_file() and calls == 8
    got = ll.linearity_profile(
        model, ids, **arguments, checkpoint=path, save_every=4
    ).to_dataframe()
    assert float((want - got).abs().max().max()) < 1e-9 and not path.exists()


def test_a_paired_difference_is_narrower_than_two_intervals_and_right():
    ids = tokens(60)
    models = {"a": small(2), "b": small(2)}
    with torch.no_grad():
        models["b"].blocks[1].mlp.out.weight.mul_(1.3)
    found = compare_profiles({name: ll.linearity_profile(m, ids) for name, m in models.items()})
    frame = found.difference("a", "b").to_dataframe()
    one, other = found.profiles["a"], found.profiles["b"]
    want = one.scores["block"] - other.scores["block"]
    assert np.allclose(frame.block_r2, want, atol=1e-12) and float(want[1].abs()) > 1e-3
    g = torch.Generator().manual_seed(0)
    drawn = torch.randint(30, (1000, 30), generator=g)
    values = []
    for profile in (one, other):
        residual, total = profile.sums["block"][:, 1]
        values.append(1 - residual[drawn].sum(1) / total[drawn].sum(1))
    low, high = np.quantile((values[0] - values[1]).numpy(), [0.025, 0.975])
    assert (frame.block_r2_low[1], frame.block_r2_high[1]) == pytest.approx((low, high), abs=1e-12)
    apart = sum(
        float(p.intervals["block"][1, 1] - p.intervals["block"][1, 0]) for p in (one, other)
    )
    assert frame.block_r2_high[1] - frame.block_r2_low[1] < 0.7 * apart
    assert np.allclose(found.difference("a", "a")["ffn_r2_high"], 0)
    other = ll.linearity_profile(models["b"], tokens(50))
    with pytest.raises(InvalidArgumentError, match="n_sequences is 30 and 25"):
        compare_profiles({"a": one, "b": other}).difference("a", "b")
    turned = ll.linearity_profile(models["b"], ids.flip(0))  # as many sequences, but others
    with pytest.raises(InvalidArgumentError, match="but their token ids differ"):
        compare_profiles({"a": one, "b": turned}).difference("a", "b")
    with pytest.raises(InvalidArgumentError, match="name must be one of"):
        found.difference("a", "c")
    inside = ll.linearity_profile(models["a"], ids, fit="in-sample")
    with pytest.raises(InvalidArgumentError, match="held-out"):
        compare_profiles({"a": inside}).difference("a", "a")


def test_own_statistics_are_paired_by_the_same_tenths():
    ids, own = tokens(70), {"first": lambda m: float(m.mean_y[0])}
    models = {"a": small(2), "b": small(2, seed=5)}
    found = compare_profiles(
        {
            name: ll.linearity_profile(model, ids, statistics=own, confidence=0.9)
            for name, model in models.items()
        }
    )
    difference = found.difference("a", "b")
    _, test = split(ids)
    y = [activations(m, test, 1, "block")[1][..., 0].mean(1) for m in models.values()]
    apart = y[0] - y[1]  # by sequence
    left = np.array([np.delete(apart, np.s_[g::10]).mean() for g in range(10)])
    error = math.sqrt(9 * left.var()) * 1.8331129  # Student's t with 9 degrees of freedom
    row = difference.to_dataframe().loc[1]
    assert row["first"] == pytest.approx(float(apart.mean()), abs=1e-6)
    assert row.first_high - row["first"] == pytest.approx(error, rel=1e-4)
    assert row["first"] - row.first_low == pytest.approx(error, rel=1e-4)
    assert difference.statistics == ["first"] == found.statistics
    assert found.summary().first_max["b"] == pytest.approx(found.profiles["b"]["first"].max())
    other = ll.linearity_profile(
        models["a"], ids, statistics=own, sites=("ffn", "attn"), confidence=0.9
    )
    with pytest.raises(InvalidArgumentError, match="of the ffn in 'a' and of the block in 'b'"):
        compare_profiles({"a": other, "b": found.profiles["b"]}).difference("a", "b")
    without = ll.linearity_profile(models["a"], ids, confidence=0.9)
    assert not compare_profiles({"a": without, "b": other}).difference("a", "b").statistics


def test_the_reading_is_that_of_numpy_without_the_first_position():
    model, ids = outlier(), tokens(60)
    train, test = split(ids)
    data = [v for part in (train, test) for v in activations(model, part, 1, "attn", skip=1)]
    want = numpy_r2(*data, rounding=1e-6)
    profile = ll.linearity_profile(model, ids, sites=["attn"])
    assert float(profile.without_first.values["attn"][1]) == pytest.approx(want, abs=1e-6)
    assert profile.solvers["attn"][1] in ("cholesky", "svd") and profile.solvers["ffn"] == ("", "")


def test_other_results_say_few_rows_too():
    model = small(2, d_model=32)
    few, enough = (ll.layer_map(model, tokens(n)) for n in (6, 14))
    assert "only 1.5 rows an input" in repr(few) and "rows an input" not in repr(enough)
    assert few.null_r2 == pytest.approx(-32 / (48 - 32 - 2))
    probe = ll.bilinear_probe(model, tokens(6), 0, rank=1, iterations=2)
    chosen = ll.bilinear_probe(model, tokens(6), 0, rank=1, iterations=2, ridge="loo")
    assert all('(3 at least; or ridge="loo")' in repr(one) for one in (few, probe))
    assert "the ridge was chosen already" in repr(chosen) and chosen.affine_r2 > probe.affine_r2


def fitted_on(model, ids, **knobs):
    return fit_linearization(model, ids, [0, 1], **knobs)


def replacing(model, ids, **knobs):
    return ll.replacement_curve(model, ids, "linear", max_replaced=1, **knobs)


@pytest.mark.parametrize(
    ("measure", "so", "rows"),
    [
        (ll.linearity_profile, "score is far below", 2),
        (partial(ll.linearity_profile, fit="in-sample"), "score is far above", 1),
        (partial(ll.layer_map, fit="in-sample"), "score is far above", 1),
        (ffn_compression, "score is far below", 2),
        (ll.linearity.run_table, "loss is above", 2),
        (replacing, "loss is above", 2),
        (fitted_on, "loss is above", 1),
    ],
)
def test_few_rows_say_which_way_they_err_and_do_not_advise_what_was_done(measure, so, rows):
    model = small(2, d_model=24)
    few, enough = (tokens(k * rows) for k in (3, 5))
    assert f'only 2.0 rows an input: the {so} that of enough text (3 at least; or ridge="loo")' in (
        repr(measure(model, few))
    )
    assert "rows an input" not in repr(measure(model, enough))
    ridged = repr(measure(model, few, ridge="loo"))
    assert "the ridge was chosen already" in ridged and "or ridge=" not in ridged


def test_tables_of_replacements_carry_n_and_null():
    model, ids = small(2, d_model=24), tokens(20)
    curve, runs = replacing(model, ids), ll.linearity.run_table(model, ids)
    for result in (curve, runs):
        frame = result.to_dataframe()
        assert (frame.n_tokens == 160).all() and (frame.n_fit == 160).all()
    linear = runs.to_dataframe().query("method == 'linear'")
    assert linear.null_r2.tolist() == pytest.approx([24 / 159] * 3)
    maps = fitted_on(model, ids).to_dataframe()
    assert maps.null_r2.tolist() == pytest.approx([24 / 319] * 2)


def test_profiles_side_by_side_say_both_readings_null_and_few_rows():
    ids = tokens(50)
    profiles = {"far": ll.linearity_profile(outlier(3, size=2000.0), ids),
                "near": ll.linearity_profile(small(3), ids[:4])}  # fmt: skip
    both = compare_profiles(profiles)
    later = float(profiles["far"].without_first.values["block"].nanmean())
    assert f"{later:.3f} without the first position" in repr(both)
    assert repr(both).count("null about -") == 2 and repr(both).count("rows an input") == 1
    assert both.summary().block_r2_without_first_mean["far"] == pytest.approx(later)
    assert {"null_r2_mean", "attn_r2_without_first_max"} <= set(both.summary())
    assert {"block_r2_without_first", "null_r2", "n_tokens"} <= set(type(both)._columns)
    said = [name for name, p in profiles.items() if p.first_position_layers()]
    assert "far" in said and f"moves block R² of {', '.join(said)}" in str(both.plot().layout.title)


def upper(result):
    return float(result.values[0, 1:].mean())


def replaced(model, ids, ridge):
    with ll.linearize(model, ids, [0, 1], site="ffn", ridge=ridge) as linearization:
        maps = linearization.maps
    found = []
    ll.models.visit_sites(
        model, tokens(40)[20:], lambda _l, _s, x, y: found.append((x, y)), sites=("ffn",)
    )
    return -sum(
        float((y - x.double() @ m.weight - m.bias).square().mean())
        for m, (x, y) in zip(maps, found, strict=True)
    )


def held_out_error(score):
    return score("loo") > score(0.0)


def moves(score):  # a loss of a random model need not fall
    return abs(score("loo") - score(0.0)) > 1e-6


@pytest.mark.parametrize(
    ("score", "better"),
    [
        (lambda m, i, ridge: upper(ll.layer_map(m, i, ridge=ridge)), held_out_error),
        (lambda m, i, ridge: ffn_compression(m, i, ridge=ridge)["ffn_r2"].mean(), held_out_error),
        (replaced, held_out_error),
        (
            lambda m, i, ridge: ll.replacement_curve(m, i, "linear", ridge=ridge)["loss"].sum(),
            moves,
        ),
        (
            lambda m, i, ridge: ll.linearity.run_table(m, i, ridge=ridge)["loss_increase"].sum(),
            moves,
        ),
    ],
    ids=["layer_map", "ffn_compression", "linearize", "replacement_curve", "run_table"],
)
def test_every_fit_takes_the_ridge_that_few_rows_advise(score, better):
    model = small(2, d_model=32)
    assert better(lambda ridge: score(model, tokens(6), ridge))
    with pytest.raises(InvalidArgumentError, match="ridge"):
        score(model, tokens(6), "cv")


def layer_map_values(model, ids, skip):
    return ll.layer_map(model, ids, skip=skip).values


def probed(model, ids, skip):
    return ll.bilinear_probe(model, ids, 1, rank=1, iterations=5, skip=skip).r2


def trained(model, ids, skip):
    return torch.tensor(adam_baseline(model, ids, 1, steps=20, skip=skip).closed_form)


def compressed(model, ids, skip):
    return torch.tensor(ffn_compression(model, ids, skip=skip)["ffn_r2"].to_numpy())


def shaped(model, ids, skip):
    return layer_geometry(model, ids, skip=skip).anisotropy


@pytest.mark.parametrize(
    ("measured", "other"),
    [
        (layer_map_values, lambda m, i: ll.layer_map(m, i).without_first),
        (
            probed,
            lambda m, i: ll.bilinear_probe(m, i, 1, rank=1, iterations=5).without_first.r2,
        ),
        (
            trained,
            lambda m, i: torch.tensor(adam_baseline(m, i, 1, steps=20).without_first.closed_form),
        ),
        (
            compressed,
            lambda m, i: torch.tensor(ffn_compression(m, i)["ffn_r2_without_first"].to_numpy()),
        ),
        (shaped, lambda m, i: layer_geometry(m, i).without_first.anisotropy),
    ],
)
def test_every_result_carries_the_reading_with_skip_1_from_the_same_pass(measured, other):
    model, ids = outlier(), tokens(60)
    want = measured(model, ids, 1)
    torch.testing.assert_close(other(model, ids), want, atol=1e-6, rtol=1e-6, equal_nan=True)
    assert float((measured(model, ids, 0) - want).abs().nan_to_num().max()) > 0.01


@pytest.mark.parametrize(
    "call",
    [
        ll.layer_map,
        layer_geometry,
        ffn_compression,
        lambda m, i, **k: ll.bilinear_probe(m, i, 1, rank=1, iterations=2, site="block", **k),
        lambda m, i, **k: adam_baseline(m, i, 1, steps=4, site="block", **k),
    ],
)
def test_every_sentence_and_figure_says_the_first_position_where_it_matters(call):
    found = call(outlier(size=3000.0), tokens(60))
    assert "the first position holds" in repr(found)
    subtitle = found.plot().layout.title.subtitle.text or found.plot().layout.title.text
    assert "first position" in subtitle.replace("<br>", " ")
    assert "first position" not in repr(call(outlier(size=3000.0), tokens(60), skip=1))


def test_the_shares_of_the_first_position_are_those_of_the_rows():
    model, ids = outlier(), tokens(60)
    states = residual_stream(model, ids).double()
    want = (states - states.mean((1, 2), keepdim=True)).square().sum(-1)
    want = want[:, :, 0].sum(1) / want.sum((1, 2))
    torch.testing.assert_close(layer_geometry(model, ids).first_share, want, atol=1e-5, rtol=1e-5)
    train, _ = split(ids)
    states = residual_stream(model, train).double()
    squares = (states - states.mean((1, 2), keepdim=True)).square().sum(-1)
    shares = squares[:, :, 0].sum(1) / squares.sum((1, 2))
    torch.testing.assert_close(ll.layer_map(model, ids).first_share, shares, atol=1e-5, rtol=1e-5)
