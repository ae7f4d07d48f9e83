"""From linear attention to softmax on one context, against slow oracles."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics.pairwise import rbf_kernel

import lens_linear as ll
from lens_linear.constructions import attention_dial, trained_heads
from lens_linear.constructions.memory.dial import MEASURES, _Context, crossings
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError
from lens_linear.models.open.toy import toy_model


def at(found, measure, **where):
    frame = found.summary()
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame[measure].item()


def test_the_two_ends_are_least_squares_and_the_nearest_key():
    dial = attention_dial(betas=(1e-4, 1e4), orders=(2,), seeds=3)
    assert at(dial, "ols_error", dial="order") < 1e-12
    assert at(dial, "ols_error", setting=1e-4) < 1e-3
    assert at(dial, "gain", setting=1e-4) == pytest.approx(1e4, rel=1e-3)
    assert at(dial, "raw_error", setting=1e-4) == pytest.approx(1, abs=1e-3)
    assert at(dial, "best_share", setting=1e4) > 0.999
    assert at(dial, "effective_rows", setting=1e-4) == pytest.approx(256, rel=1e-4)


def test_a_setting_is_what_sklearn_and_a_loop_say():
    context = _Context(3, 40, 7, 0.5, 0.1, 5)
    keys, asked, y = context.keys.numpy(), context.asked.numpy(), context.y.numpy()
    np.testing.assert_allclose(keys.T @ keys / 40, np.eye(3), atol=1e-12)
    edges = math.sqrt(2 * math.log(40)) / np.linalg.norm(asked, axis=1)
    assert float(context.frozen_at()) == pytest.approx(np.median(edges))
    ols = LinearRegression().fit(keys, y).predict(asked)
    np.testing.assert_allclose(context.ols, ols, atol=1e-12)
    weights = rbf_kernel(asked, keys, gamma=0.8 / 2)
    kernel = weights @ y / weights.sum(1)
    np.testing.assert_allclose(context.kernel(0.8), kernel, atol=1e-12)
    soft = np.exp(0.8 * asked @ keys.T)
    soft /= soft.sum(1, keepdims=True)
    found = dict(zip(MEASURES, context.measure("temperature", 0.8), strict=True))
    raw = soft @ y
    size = np.linalg.norm(ols - y.mean())
    assert found["raw_error"] == pytest.approx(np.linalg.norm(raw - ols) / size)
    gain = np.linalg.lstsq((raw - y.mean())[:, None], ols - y.mean(), rcond=None)[0].item()
    assert found["gain"] == pytest.approx(gain)
    left = y.mean() + gain * (raw - y.mean()) - ols
    assert found["ols_error"] == pytest.approx(np.linalg.norm(left) / size)
    want = np.linalg.norm(raw - kernel) / np.linalg.norm(kernel - y.mean())
    assert found["kernel_error"] == pytest.approx(want)
    assert found["best_share"] == pytest.approx(np.median(soft.max(1)), rel=0.05)
    entropy = np.exp(-(soft * np.log(soft)).sum(1))
    assert np.sort(entropy)[3] == pytest.approx(found["effective_rows"])
    cubic = (asked @ keys.T) ** 3 @ (y - y.mean()) / 40
    found = dict(zip(MEASURES, context.measure("order", 4), strict=True))
    gain = cubic @ (ols - y.mean()) / (cubic @ cubic)
    assert found["gain"] == pytest.approx(gain)
    for measure, factor in (("ols_error", gain), ("raw_error", 1.0)):
        want = np.linalg.norm(factor * cubic - (ols - y.mean())) / size
        assert found[measure] == pytest.approx(want)


def test_tilting_a_gaussian_is_least_squares_until_the_rows_run_out():
    """At β = 0.5 ten times the rows bring softmax, with its gain of 1/β, nearer to least squares."""
    few, many = (
        attention_dial(betas=(0.5,), orders=(), n=n, bend=0.0, seeds=4, queries=32)
        for n in (100, 1000)
    )
    assert at(many, "ols_error") < 0.6 * at(few, "ols_error")
    assert at(many, "gain") == pytest.approx(2, rel=0.05)
    freeze = float(many.frozen_at.median())
    assert freeze == pytest.approx(
        (2 * math.log(1000)) ** 0.5 / 3.357**0.5, rel=0.1
    )  # χ² median, d = 4


def test_regimes_follow_in_order_and_capacity_grows():
    dial = attention_dial(betas=tuple(0.05 * 1.8**k for k in range(10)), orders=(), seeds=4)
    ends = dial.regimes().set_index("regime")
    assert ends.beta["regression ends"] < 1 < ends.beta["retrieval starts"]
    assert ends.beta_low["retrieval starts"] <= ends.beta["retrieval starts"]
    values, levels = (t[..., :1].expand(*t.shape[:-1], 41) for t in (dial.values, dial.levels))
    of_41 = dataclasses.replace(dial, values=values, levels=levels, frozen_at=torch.arange(41.0))
    many = of_41.regimes().set_index("regime")
    assert many.loc["freezing (theory)"][["beta", "beta_low", "beta_high"]].tolist() == [20, 1, 39]
    capacity = dial.summary().capacity.to_numpy()
    assert capacity[0] < 4 < 9 < capacity[-1]
    share = dial.summary().best_share.to_numpy()
    assert (np.diff(share) > 0).all()
    assert f"up to β = {ends.beta['regression ends']:.3g}" in repr(dial)
    curves = torch.tensor([[0.0, 0.0, 0.4], [0.2, 0.0, 0.5], [0.4, 0.0, 0.6]]).double()
    found = crossings([1.0, 2.0, 4.0], curves, 0.3)  # a factor of 2 is near enough
    assert found.tolist() == [pytest.approx(2**1.5), math.inf, 0.0]


@pytest.mark.parametrize(
    "betas, said",
    [
        ((5, 10), "a β below"),
        ((0.01, 10), "do not tell"),
        ((0.01, 0.015), "a β beyond"),
        ((), "do not tell"),
    ],
)
def test_a_regime_that_was_not_turned_to_is_not_given_a_number(betas, said):
    dial = attention_dial(betas=betas, orders=(2,), seeds=2)
    assert said in repr(dial).partition("up to ")[2].partition(" and ")[0]
    assert not dial.regimes().beta[:2].between(1e-9, 1e9).any()
    assert dial.plot() is not None


def test_numbers_do_not_depend_on_what_else_was_asked():
    alone = attention_dial(betas=(1.0,), orders=(), seeds=1, seed=2)
    more = attention_dial(betas=(0.1, 1.0), orders=(3,), seeds=4)
    torch.testing.assert_close(
        alone.values[:, 0, 0], more.values[:, 2, 2], rtol=0, atol=0, equal_nan=True
    )
    twice = attention_dial(betas=(1.0, 1.0), orders=(3, 3), seeds=1)
    assert twice.setting == (3.0, 1.0) and (twice.summary().n_seeds == 1).all()
    with pytest.raises(InvalidArgumentError, match="at least one setting"):
        attention_dial(betas=(), orders=())


@pytest.fixture(scope="module")
def trained():
    model = ll.load("attn-2l")
    return model, ll.evaluation_tokens(model)[:6, :48]


def test_readouts_of_a_trained_head_are_what_hooks_say(trained):
    model, tokens = trained
    names = ("other values", "no geometry", "retrieval")
    found = trained_heads(model, tokens, heads=[(0, 0)], exchanges=names).to_dataframe().iloc[0]
    _, cache = model.run_with_cache(tokens)
    pattern = cache["blocks.0.attn.hook_pattern"][:, 0]
    entropy = -(pattern * pattern.clamp_min(1e-30).log()).sum(-1)[:, 3:]
    assert found["effective_keys"] == pytest.approx(float(entropy.exp().quantile(0.5)), rel=1e-4)
    for name, share in (("first", pattern[:, 3:, 0]), ("best", pattern[:, 3:].amax(-1))):
        assert found[f"{name}_share"] == pytest.approx(float(share.quantile(0.5)), rel=1e-4)

    def loss(hooks):
        with torch.no_grad():
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[:, :-1].log_softmax(-1)
        return float(-logits.gather(2, tokens[:, 1:, None]).mean())

    def even(a, hook):
        a = a.clone()
        ones = torch.ones_like(a[:, 0]).tril()
        a[:, 0] = ones / ones.sum(-1, keepdim=True)
        return a

    def hard(a, hook):
        a = a.clone()
        a[:, 0] = torch.nn.functional.one_hot(a[:, 0].argmax(-1), a.shape[-1]).to(a)
        return a

    def swapped(v, hook):
        v = v.clone()
        v[:, :, 0] = v[:, :, 0].roll(1, 0)
        return v

    plain = loss([])
    for name, hook in (
        ("no_geometry", ("blocks.0.attn.hook_pattern", even)),
        ("retrieval", ("blocks.0.attn.hook_pattern", hard)),
        ("other_values", ("blocks.0.attn.hook_v", swapped)),
    ):
        assert found[f"loss_{name}"] == pytest.approx(loss([hook]) - plain, abs=2e-5)


def test_the_previous_token_head_retrieves_and_its_geometry_carries_the_loss(trained):
    model, tokens = trained
    table = trained_heads(model, tokens, heads=[(0, 0), (0, 1)]).to_dataframe().set_index("head")
    assert table.kind.tolist() == ["retrieval", "averaging"]  # of so few keys; of 128 it regresses
    assert table.regression_r2["L0H1"] > table.retrieval_r2["L0H1"] + 0.1
    first, second = table.loc["L0H0"], table.loc["L0H1"]
    assert first.retrieval_r2 > 0.9 > first.regression_r2
    assert first.loss_turned_geometry > 0.2 > 0.05 > first.loss_retrieval
    assert second.loss_retrieval > second.loss_linear + 3 * second.loss_linear_se


def test_untrained_heads_average_and_softmax_is_linear_there():
    tokens = torch.randint(64, (4, 24), generator=torch.Generator().manual_seed(0))
    table = trained_heads(toy_model(n_layers=2), tokens, exchanges=("linear",)).to_dataframe()
    assert set(table.kind) == {"averaging"}
    assert (table.regression_r2 > 0.9).all()


def test_bad_arguments_say_what_to_do(trained):
    model, tokens = trained
    with pytest.raises(NotEnoughDataError, match="one context to exchange"):
        trained_heads(model, tokens[:1])
    with pytest.raises(InvalidArgumentError, match="exchanges must be one of"):
        trained_heads(model, tokens, exchanges=("swap",))
    with pytest.raises(InvalidArgumentError, match="head must be at most 3"):
        trained_heads(model, tokens, heads=[(0, 4)])
    with pytest.raises(InvalidArgumentError, match="at least 4 positions, got 3"):
        trained_heads(model, tokens[:, :3])
    assert (
        len(trained_heads(model, tokens[:, :4], heads=[(0, 1)], exchanges=()).to_dataframe()) == 1
    )


def test_one_seed_has_no_interval():
    one = attention_dial(betas=(0.1, 0.2, 1.0, 2.0), orders=(), n=32, queries=8, seeds=1)
    frame, ends = one.summary(), one.regimes()
    spread = [name for name in frame if name.endswith(("_low", "_high"))]
    assert len(spread) > 4 and frame[spread].isna().all(None) and frame["ols_error"].notna().all()
    assert ends[["beta_low", "beta_high"]].isna().all(None)
    assert float(ends.set_index("regime").beta["freezing (theory)"]) > 0
