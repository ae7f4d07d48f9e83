"""The dial on a trained head, against a loop over queries with scikit-learn and numpy."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics.pairwise import rbf_kernel

import lens_linear as ll
from lens_linear.constructions import head_dial, trained_heads
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError
from lens_linear.models.open.toy import toy_model

BETAS = (1e-4, 0.7, 1.0, 3.0, 1e6)


def tokens(rows=2, length=40, seed=0):
    return torch.randint(64, (rows, length), generator=torch.Generator().manual_seed(seed))


def loud(seed=0):
    """A toy whose scores spread over about a nat, so that every setting differs."""
    model = toy_model(n_layers=2, seed=seed).double()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.mul_(6.0)
            block.attn.W_K.mul_(6.0)
            block.attn.W_O.mul_(10.0)
    return model


def loop(model, ids, layer, head, asked, skip, beta, geometry):
    """The measures of one row of tokens, query by query."""
    _, cache = model.run_with_cache(ids[None])
    q, k, v = (
        cache[f"blocks.{layer}.attn.hook_{what}"][0, :, head].detach().numpy() for what in "qkv"
    )
    scale = q.shape[1] ** -0.5
    outs, ols, kernel, linear, effective, best, spread = [], [], [], [], [], [], []
    for t in asked:
        keys, values, query = k[skip : t + 1], v[skip : t + 1], q[t]
        mean = values.mean(0)
        ols.append(LinearRegression().fit(keys, values).predict(query[None])[0] - mean)
        if geometry == "own":
            points, at, width = keys, query, scale
        else:  # whitened by the covariance of the keys that it sees
            root = np.linalg.cholesky(np.linalg.inv(np.cov(keys.T, bias=True)))
            points, at, width = (keys - keys.mean(0)) @ root, (query - keys.mean(0)) @ root, 1.0
        scores = width * points @ at
        weights = np.exp(beta * (scores - scores.max()))
        weights /= weights.sum()
        outs.append(weights @ values - mean)
        linear.append((scores - scores.mean()) @ values / len(keys))
        near = rbf_kernel(at[None], points, gamma=beta * width / 2)[0]
        kernel.append(near @ values / near.sum() - mean)
        effective.append(np.exp(-(weights * np.log(weights + 1e-300)).sum()))
        best.append(weights.max())
        spread.append(beta * scores.std())
    outs, ols, kernel, linear = map(np.concatenate, (outs, ols, kernel, linear))

    def off(want):
        factor = np.linalg.lstsq(outs[:, None], want, rcond=None)[0].item()
        return factor, np.linalg.norm(factor * outs - want) / np.linalg.norm(want)

    gain, error = off(ols)
    return {
        "gain": gain, "ols_error": error, "linear_error": off(linear)[1],
        "raw_error": np.linalg.norm(outs - ols) / np.linalg.norm(ols),
        "kernel_error": np.linalg.norm(outs - kernel) / np.linalg.norm(kernel),
        "effective_keys": np.median(effective),
        "best_share": np.median(best),
        "spread": np.median(spread),
    }  # fmt: skip


@pytest.mark.parametrize(("layer", "head", "skip"), [(0, 1, 0), (1, 3, 0), (1, 0, 3)])
@pytest.mark.parametrize("geometry", ["own", "least squares"])
def test_a_setting_is_what_sklearn_and_a_loop_say(layer, head, skip, geometry):
    model, ids = loud(), tokens()
    dial = head_dial(model, ids, heads=[(layer, head)], betas=(0.3, 0.7, 2.0), queries=7, skip=skip)
    asked = np.linspace(16 + skip, 39, 7).round().astype(int)
    frame = dial.to_dataframe().set_index(["head", "geometry", "beta", "row"])
    for beta, row in ((0.7, 0), (2.0, 1)):
        found = frame.loc[f"L{layer}H{head}", geometry, beta, row]
        want = loop(model, ids[row], layer, head, asked, skip, beta, geometry)
        for name, value in want.items():
            assert found[name] == pytest.approx(value, rel=1e-6), name


def test_the_two_ends():
    dial = head_dial(loud(), tokens(), heads=["L1H2"], betas=BETAS)
    frame = dial.summary().set_index(["geometry", "beta"])
    assert frame.loc[("least squares", 1e-4), "ols_error"] < 1e-2
    assert frame.loc[("least squares", 1e-4), "gain"] == pytest.approx(1e4, rel=1e-2)
    assert frame.loc[("own", 1e-4), "linear_error"] < 1e-2
    # The weights' geometry is not the inverse covariance of the context.
    assert frame.loc[("own", 1e-4), "ols_error"] > 0.5
    for geometry in ("own", "least squares"):
        assert (
            frame.loc[(geometry, 1e-4), "capacity"] == 2
        )  # the best of two holds a hair over half
        assert frame.loc[(geometry, 1e6), "best_share"] == pytest.approx(1)
        assert frame.loc[(geometry, 1e6), "capacity"] == 28.5  # all: queries 16 to 39 see 17 to 40
        assert frame.loc[(geometry, 1e-4), "effective_keys"] == pytest.approx(28.5, rel=1e-3)
    assert frame.loc[("own", 3.0), "spread"] == pytest.approx(3 * frame.loc[("own", 1.0), "spread"])


def test_capacity_is_where_random_others_outweigh_the_best():
    """The largest number of stored keys at which the best holds half, drawn again by hand."""
    model, ids = loud(), tokens(rows=1)
    dial = head_dial(model, ids, heads=["L0H1"], betas=(2.0,), queries=24)
    found = dial.summary().query("geometry == 'own'").capacity.item()
    _, cache = model.run_with_cache(ids)
    q, k = (cache[f"blocks.0.attn.hook_{what}"][0, :, 1].detach().numpy() for what in "qk")
    r, counts = np.random.default_rng(3), []
    for _ in range(200):
        held = []
        for t in range(16, 40):
            weights = np.exp(2.0 * k[: t + 1] @ q[t] / 8**0.5)
            best = weights.argmax()
            others = r.permutation(np.delete(weights, best))
            shares = weights[best] / (weights[best] + np.concatenate([[0], others.cumsum()]))
            held.append((shares > 0.5).sum())
        counts.append(np.median(held))
    assert np.quantile(counts, 0.01) <= found <= np.quantile(counts, 0.99)
    assert 3 < np.median(counts) < 15


def test_losses_along_the_dial():
    model, ids = loud(3), tokens(rows=3)
    betas = (1e-6, 1.0, 1e6)
    dial = head_dial(model, ids, heads=["L1H1"], betas=betas, losses=True, batch_size=2)
    rise = dial.summary().query("geometry == 'own'").set_index("beta")
    assert rise.loss[1.0] == pytest.approx(0, abs=1e-5)  # as trained
    # β = 0 is every visible key alike, which trained_heads reaches in its own way.
    even = trained_heads(model, ids, heads=[(1, 1)], exchanges=("no geometry",)).to_dataframe()
    assert rise.loss[1e-6] == pytest.approx(even.loss_no_geometry.item(), abs=1e-4)
    assert rise.loss_se[1e-6] == pytest.approx(even.loss_no_geometry_se.item(), abs=1e-4)
    assert abs(even.loss_no_geometry.item()) > 1e-3
    other = dial.summary().query("geometry == 'least squares'")
    assert other.loss.isna().all()
    # Without the first key the head does not read as trained at β = 1 either.
    skipped = head_dial(model, ids, heads=["L1H1"], betas=(1.0,), skip=1, losses=True)
    assert abs(skipped.summary().loss.iloc[0]) > 1e-4


def test_numbers_do_not_depend_on_company():
    model, ids = loud(), tokens()
    alone = head_dial(model, ids, heads=["L1H2"], betas=(0.7,)).to_dataframe()
    beside = head_dial(model, ids, betas=(3.0, 0.7, 0.7)).to_dataframe()
    same = beside.query("head == 'L1H2' and beta == 0.7").reset_index(drop=True)
    assert len(beside) == 8 * 2 * 2 * 2
    np.testing.assert_array_equal(alone.iloc[:, 3:].to_numpy(), same.iloc[:, 3:].to_numpy())


def test_regimes_read_the_curves():
    dial = head_dial(loud(), tokens(rows=4), heads=["L1H2", "L0H1"])
    frame, curves = dial.regimes(), dial.to_dataframe()
    for row in frame.itertuples():
        mine = curves[(curves["head"] == row.head) & (curves.geometry == row.geometry)]
        for name, column, level in (
            ("retrieval_starts", "best_share", 0.5),
            ("regression_ends", "linear_error", 0.1),
        ):
            at, low, high = (getattr(row, name + end) for end in ("", "_low", "_high"))
            found = sorted(
                np.interp(
                    level, part[column].cummax(), np.log(part.beta), left=math.nan, right=math.inf
                )
                for _, part in mine.groupby("row")
            )
            assert np.exp(found[1]) <= at * 1.001 and at <= np.exp(found[2]) * 1.001
            np.testing.assert_allclose((low, high), np.exp([found[0], found[3]]), rtol=1e-3)
        least = mine.groupby("beta").ols_error.median()
        assert row.ols_error <= least.min() + 1e-12 and row.ols_beta in least.index
        assert row.spread == pytest.approx(mine[mine.beta == 1].spread.median())
    own = frame[frame.geometry == "own"].set_index("head")
    assert (own.trained == own.apply(lambda r: place(r), axis=1)).all()
    assert "as trained: " in repr(dial)
    for betas in (
        (0.9, 1.1),
        (50, 100),
        (0.01, 0.02),
        (0.001, 100),
    ):  # the label stays, or is not known
        other = head_dial(loud(), tokens(rows=4), heads=["L1H2", "L0H1"], betas=betas).regimes()
        found = other[other.geometry == "own"].set_index("head").trained
        assert (found == (own.trained if betas == (0.9, 1.1) else "not known")).all()


def place(row):
    if row.retrieval_starts <= 1:
        return "retrieval"
    return "regression" if row.regression_ends > 1 else "between"


def test_one_row_has_no_interval():
    model, betas = loud(), (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
    one = head_dial(model, tokens(rows=2)[:1], heads=["L1H2"], betas=betas)
    for frame in (one.summary(), one.regimes()):
        ends = [name for name in frame if name.endswith(("_low", "_high"))]
        assert len(ends) >= 4 and frame[ends].isna().all(None)
    assert one.summary()["best_share"].notna().all()


def test_half_precision_keys_have_the_rank_of_their_dtype():
    """A bfloat16 model's keys are widened: their rounding is no direction, and every number is finite."""
    model = toy_model(n_layers=1).to(torch.bfloat16)
    dial = head_dial(model, tokens(), heads=["L0H0"], betas=(0.01, 1.0))
    assert np.isfinite(dial.to_dataframe().drop(columns=["head", "geometry", "loss"])).all(None)


def test_bad_arguments_say_what_to_do():
    model, ids = toy_model(n_layers=1), tokens()
    with pytest.raises(NotEnoughDataError, match=r"at least 18 positions, got 17.*longer rows"):
        head_dial(model, ids[:, :17])
    assert head_dial(model, ids[:, :18], heads=["L0H0"]).queries == 2
    with pytest.raises(NotEnoughDataError, match="at least 20 positions"):
        head_dial(model, ids[:, :18], skip=2)
    with pytest.raises(InvalidArgumentError, match="betas must name at least one"):
        head_dial(model, ids, betas=())
    with pytest.raises(InvalidArgumentError, match="betas must be at least"):
        head_dial(model, ids, betas=(0.0,))
    with pytest.raises(InvalidArgumentError, match="heads must name at least one head"):
        head_dial(model, ids, heads=[])
    with pytest.raises(InvalidArgumentError, match="head must be at most 3, got 9"):
        head_dial(model, ids, heads=["L0H9"])


def test_heads_of_attn_2l_are_far_from_the_least_squares_of_their_context():
    model = ll.load("attn-2l")
    ids = ll.evaluation_tokens(model)[:3]
    frame = head_dial(model, ids, betas=(0.001, 0.1, 1.0), queries=12).summary()
    own = frame[frame.geometry == "own"]
    assert own.ols_error.min() > 0.7
    ideal = frame[(frame.geometry == "least squares") & (frame.beta == 0.001)]
    assert ideal.ols_error.max() < 0.05


def test_keys_that_are_collinear_but_for_rounding_are_so_in_float32_too():
    exact = loud()
    with torch.no_grad():
        for block in exact.blocks:
            keys = block.attn.W_K
            keys[..., -1] = keys[..., 0] + keys[..., 1]
    rounded = loud().float()
    rounded.load_state_dict(exact.state_dict())
    want, got = (
        head_dial(model, tokens(), heads=["L1H2"], betas=(0.7,), queries=5).values
        for model in (exact, rounded)
    )
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
