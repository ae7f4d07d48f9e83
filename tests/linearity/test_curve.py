"""Replacement curves, runs of blocks and FFN compression against plain loops."""

import math

import pytest
import torch
from linearity_data import activations, linear_blocks, numpy_r2, small, split, tokens

import lens_linear as ll
from lens_linear.errors import (
    InvalidArgumentError,
    NonFiniteError,
    NotEnoughDataError,
    UnsupportedModelError,
)
from lens_linear.linalg import Moments, fit_linear
from lens_linear.linearity.replace.affine_map import Linearization, fitted_map, identity_map
from lens_linear.linearity.replace.compression import _fits, ffn_compression
from lens_linear.linearity.replace.replacement import fit_linearization
from lens_linear.linearity.replace.runs import run_table
from lens_linear.models.capture import run
from lens_linear.models.checked import checked
from lens_linear.models.hooks import hooked
from lens_linear.models.stand_ins import BlockStandIns
from lens_linear.stats.model_scores import perplexity, score_model
from lens_linear.stats.split import RowView, halves


def plain_loss(model, ids):
    with torch.no_grad():
        logits = model(ids, return_type="logits").double()
    chosen = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    return float(-chosen.mean())


def test_loss_by_sequence_is_the_mean_cross_entropy():
    model, ids = small(2), tokens()
    losses = score_model(model, RowView(ids), batch_size=7).loss
    assert losses.values.shape == (40,)
    assert losses.mean == pytest.approx(plain_loss(model, ids), abs=1e-6)
    single = score_model(model, RowView(ids[3:4])).loss
    assert single.mean == pytest.approx(float(losses.values[3]), abs=1e-6)
    assert perplexity(2.0) == pytest.approx(math.e**2) and perplexity(1e4) == math.inf
    with pytest.raises(NotEnoughDataError, match="nothing to predict"):
        score_model(model, RowView(ids[:, :1]))
    with torch.no_grad():
        model.unembed.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="logits"):
        score_model(model, RowView(ids))


@pytest.mark.parametrize("strategy", ["remove", "linear", "linear+distill"])
def test_every_step_equals_the_model_with_those_layers_replaced_by_hand(strategy):
    model, ids = small(3), tokens(60)
    train, test = split(ids)
    curve = ll.replacement_curve(model, ids, strategy)
    frame = curve.to_dataframe()
    assert list(frame.columns[:4]) == ["n_replaced", "layers", "loss", "perplexity"]
    assert frame.n_replaced.tolist() == [0, 1, 2, 3]
    assert frame.loss[0] == pytest.approx(plain_loss(model, test), abs=1e-6)
    assert curve["loss"].tolist() == frame.loss.tolist()
    for row in range(1, 4):
        layers = frame.layers[row]
        assert layers[:-1] == frame.layers[row - 1]
        if strategy == "remove":
            kept = {}
            hooks = []
            for layer in layers:
                enter, leave = f"blocks.{layer}.hook_in", f"blocks.{layer}.hook_out"
                hooks.append((enter, lambda t, at=layer, kept=kept: kept.update({at: t}) or None))
                hooks.append((leave, lambda t, at=layer, kept=kept: kept[at]))
            with hooked(checked(model), hooks):
                want = plain_loss(model, test)
        else:
            fitted = fit_linearization(model, train, layers, sequential="distill" in strategy)
            with fitted.applied(model):
                want = plain_loss(model, test)
            assert frame.n_parameters[row] == fitted.n_parameters
        assert frame.loss[row] == pytest.approx(want, abs=2e-5)
        assert frame.perplexity[row] == pytest.approx(math.exp(frame.loss[row]))


def test_orders():
    model, ids = small(4), tokens(60)
    forward = ll.replacement_curve(model, ids, order="linearity").steps[-1]
    train, _ = split(ids)
    inside = ll.linearity_profile(model, train, fit="in-sample", sites=["block"])
    assert list(forward) == inside.ranking()
    assert ll.replacement_curve(model, ids, order="reverse").steps[-1] == forward[::-1]
    drawn = [ll.replacement_curve(model, ids, order="random", seed=s).steps[-1] for s in (0, 0, 5)]
    assert drawn[0] == drawn[1] and sorted(drawn[0]) == [0, 1, 2, 3]
    given = ll.replacement_curve(model, ids, order=[2, 0])
    assert given.steps == ((), (2,), (2, 0)) and "order [2, 0]" in repr(given)
    short = ll.replacement_curve(model, ids, max_replaced=1)
    assert len(short) == 2 and "with 1 replaced" in repr(short)


def test_affine_blocks_cost_nothing_until_the_last():
    model, ids = linear_blocks(3, linear=(0, 2)), tokens(60)
    frame = ll.replacement_curve(model, ids).to_dataframe()
    assert sorted(frame.layers[2]) == [0, 2]
    assert frame.loss_increase[2] == pytest.approx(0, abs=1e-9)
    assert abs(frame.loss_increase[3]) > 1e-4
    assert frame.loss_increase_se[2] == pytest.approx(0, abs=1e-9)


def tapped(model, ids, fitted, layer):
    """The residual stream after a block of the linearised model."""
    seen = {}
    name = f"blocks.{layer}.hook_out"
    with (
        fitted.applied(model),
        hooked(checked(model), [(name, lambda t: seen.update(y=t) or None)]),
    ):
        plain_loss(model, ids)
    return seen["y"]


def test_distillation_brings_the_stream_closer_to_the_original():
    model, ids = small(4, seed=3), tokens(80)
    train, _ = split(ids)

    def miss(fitted):
        _, target = activations(model, train, 2, "block")
        return float((tapped(model, train, fitted, 2) - target).square().sum())

    plain = fit_linearization(model, train, [0, 1, 2])
    distilled = fit_linearization(model, train, [0, 1, 2], sequential=True)
    assert miss(distilled) < miss(plain)


def test_gradient_polish_lowers_its_own_loss_and_trains_nothing_else():
    from lens_linear.linearity.replace.distill import _miss, polish

    model, ids = small(3, seed=2), tokens(40)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = fit_linearization(model, ids, [0, 1], sequential=True)

    def loss(maps):
        out = 0.0
        for layer in range(3):
            _, target = activations(model, ids, layer, "block")
            put = Linearization(tuple(maps), "", "", 0, 0)
            out += float(_miss(tapped(model, ids, put, layer).double(), target))
        return out

    maps = polish(
        BlockStandIns(checked(model)),
        RowView(ids),
        start.maps,
        steps=60,
        learning_rate=1e-3,
        batch_size=40,
    )
    assert loss(maps) < loss(start.maps) * 0.999
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in model.parameters())
    curve = ll.replacement_curve(model, ids, "linear+distill", distill_steps=2, max_replaced=1)
    assert curve.distill_steps == 2


def test_bad_arguments():
    model, ids = small(2), tokens()
    for arguments, message in [
        ({"strategy": "prune"}, "strategy must be one of"),
        ({"order": "best"}, "order must be one of"),
        ({"order": [0, 0]}, "at most once"),
        ({"order": [5]}, "order must be at most 1"),
        ({"distill_steps": -1}, "distill_steps"),
        ({"max_replaced": 0}, "max_replaced must be at least 1"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            ll.replacement_curve(model, ids, **arguments)
    with pytest.raises(NotEnoughDataError):
        ll.replacement_curve(model, ids[:2])
    for call in (ll.replacement_curve, ll.linearity_profile):
        with pytest.raises(UnsupportedModelError):
            call(small(0, attn_only=True), ids)
    with pytest.raises(UnsupportedModelError, match="'ffn' site"):
        ffn_compression(small(1, attn_only=True), ids)
    with pytest.raises(InvalidArgumentError, match="must each name at least one"):
        ffn_compression(model, ids, layers=[])


def test_runs_equal_a_fit_by_hand():
    model, ids = small(3), tokens(60)
    train, test = split(ids)
    table = run_table(model, ids)
    frame = table.to_dataframe()
    assert len(frame) == 12 and set(frame.n_replaced) == {1, 2, 3}
    row = frame[(frame["first"] == 0) & (frame["last"] == 1) & (frame.method == "linear")].iloc[0]
    x, _ = activations(model, train, 0, "block")
    _, y = activations(model, train, 1, "block")
    fit = fit_linear(x, y)
    assert row.r2 == pytest.approx(fit.r_squared, abs=1e-9)
    kept = {}
    hooks = [
        ("blocks.0.hook_in", lambda t: kept.update(x=t) or None),
        ("blocks.1.hook_out", lambda t: fit.predict(kept["x"]).float()),
    ]
    with hooked(checked(model), hooks):
        assert row.loss == pytest.approx(plain_loss(model, test), abs=1e-5)
    cosine = torch.nn.functional.cosine_similarity(x, y, dim=-1)
    assert row.cosine_distance == pytest.approx(float(1 - cosine.mean()), abs=1e-6)
    affine = run_table(linear_blocks(3, linear=(0, 1)), tokens(60), lengths=[2]).to_dataframe()
    exact = affine[(affine["first"] == 0) & (affine.method == "linear")].iloc[0]
    assert exact.loss_increase == pytest.approx(0, abs=1e-9)
    with pytest.raises(InvalidArgumentError, match="lengths must be at most 3"):
        run_table(model, ids, lengths=[4])


def test_compression_counts_scores_and_losses():
    model, ids = small(2), tokens(60)
    train, test = split(ids)
    frame = ffn_compression(model, ids, ranks=(None, 2)).to_dataframe()
    profile = ll.linearity_profile(model, ids, sites=["ffn"])
    ffn = 16 * 64 + 64 + 64 * 16 + 16
    for layer in range(2):
        full, low = (frame[frame.layer == layer].iloc[k] for k in range(2))
        assert full.ffn_r2 == pytest.approx(float(profile.scores["ffn"][layer]), abs=3e-3)
        x, y = activations(model, train, layer, "ffn")
        assert full.ffn_r2 == pytest.approx(
            numpy_r2(
                x[..., :-1],
                y,
                *(
                    t[..., :-1] if k == 0 else t
                    for k, t in enumerate(activations(model, test, layer, "ffn"))
                ),
            ),
            abs=1e-4,
        ), "the last entry of a normalised input is minus the sum of the others"
        assert (full.ffn_parameters, full.map_parameters) == (ffn, 16 * 16 + 16)
        assert low.map_parameters == 2 * 32 + 16 and low["rank"] == 2
        assert full.times_fewer == pytest.approx(ffn / 272)
        fitted = fit_linearization(model, train, [layer], site="ffn", rank=2)
        with fitted.applied(model):
            assert low.loss == pytest.approx(plain_loss(model, test), abs=1e-5)
        assert low.perplexity_increase == pytest.approx(
            math.exp(low.loss) - math.exp(plain_loss(model, test)), abs=1e-2
        )
    with pytest.raises(InvalidArgumentError, match="ranks must be at most 16"):
        ffn_compression(model, ids, ranks=(17,))


def test_a_model_whose_ffns_write_a_constant_leaves_nothing_to_compress():
    model, ids = small(1), tokens(60)
    with torch.no_grad():
        model.original_model.layers[0].mlp.fc_out.weight.zero_()
    found = ffn_compression(model, ids)
    assert len(found.to_dataframe()) == 0 and "no FFN whose output varies" in repr(found)
    assert found.base_loss == pytest.approx(plain_loss(model, split(ids)[1]), abs=1e-5)


@pytest.mark.parametrize("n, own", [(4, False), (5, True), (9, True)])
def test_rows_after_the_first_have_a_map_of_their_own_where_they_do_not_fit_it_by_number(n, own):
    g = torch.Generator().manual_seed(n)
    x, y = (torch.randn(n + 6, d, generator=g).double() for d in (3, 2))
    rest, first = Moments().update(x[:n], y[:n]), Moments().update(x[n:], y[n:])
    full, later = _fits((rest + first, rest, 0.5), 0.0)
    kept = slice(n) if own else slice(None)
    ones = torch.ones(n + 6, 1).double()
    expected = torch.linalg.lstsq(torch.cat([x, ones], 1)[kept], y[kept]).solution
    torch.testing.assert_close(later.weight, expected[:3])
    torch.testing.assert_close(later.bias, expected[3])
    assert full.n == n + 6 and later.n == (n if own else n + 6)


@pytest.mark.parametrize("strategy", ["linear", "linear+distill"])
def test_each_block_is_solved_once_and_removed_blocks_do_not_run(strategy, monkeypatch):
    from lens_linear.linearity.replace import curve

    solves = []

    def counted(moments, site, layer, **knobs):
        solves.append(layer)
        return fitted_map(moments, site, layer, **knobs)

    monkeypatch.setattr(curve, "fitted_map", counted)
    model, ids = small(4), tokens(60)
    ll.replacement_curve(model, ids, strategy, order=[3, 2, 1, 0])
    if strategy == "linear":
        assert sorted(solves) == [0, 1, 2, 3]
    else:  # on top of these, every step refits what stands above the newly replaced block
        assert sorted(solves[4:]) == sorted([3, 3, 3, 2, 2, 1])
    ran = []
    part = next(model.blocks[3].original_component.children())
    part.register_forward_hook(lambda *_: ran.append(1))
    ll.replacement_curve(model, ids, "remove", order=[3], batch_size=100)
    assert len(ran) == 2  # two tokens to learn what it returns, and the whole model


def test_the_metric_of_a_task_runs_along_the_curve():
    model, ids = small(2), tokens(60)
    labels = torch.arange(60) % 64
    task = ll.Task(ids, labels=labels, positions=2, metric="logit_difference")
    found = ll.replacement_curve(model, task, "remove", order=[1])
    test = halves(RowView(ids), seed=0)[1].index
    for step in (0, 1):
        edits = identity_map(1, 1, 16).edits() if step else ()
        last = run(model, ids[test], edits=edits).logits[:, 2].double()
        at = last.gather(1, labels[test][:, None])[:, 0]
        expected = at - (last.sum(1) - at) / 63
        assert found["metric_value"][step] == pytest.approx(float(expected.mean()), abs=1e-6)
        nats = last.logsumexp(1) - at
        assert found["loss"][step] == pytest.approx(float(nats.mean()), abs=1e-6)
    assert "logit difference" in repr(found)
