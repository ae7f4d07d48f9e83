"""Trained heads against a loop over queries, and heads whose readout does not vary."""

import math

import numpy as np
import pytest
import torch

import lens_linear as ll
from lens_linear.constructions import head_dial, trained_heads
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.open.toy import toy_model


@pytest.fixture(scope="module")
def loud():
    """Scores that spread over a nat or more; one head without values, one without scores."""
    model = toy_model(n_layers=2, seed=0).double()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.mul_(6.0)
            block.attn.W_K.mul_(6.0)
        model.blocks[0].attn.W_V[1] = 0.0
        model.blocks[0].attn.W_Q[2] = 0.0
        model.blocks[0].attn.b_V[1] = 3.0
        model.blocks[0].attn.b_Q[2] = 0.0
    return model


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(32, (3, 30), generator=torch.Generator().manual_seed(5))


def loop(model, ids, layer, head):
    """Shares explained by linear attention and by the best key, query by query, from the pattern alone."""
    _, cache = model.run_with_cache(ids)
    pattern = cache[f"blocks.{layer}.attn.hook_pattern"][:, head].detach().numpy()
    values = cache[f"blocks.{layer}.attn.hook_v"][:, :, head].detach().numpy()
    readout, linear, best, effective = [], [], [], []
    for weights, v in zip(pattern, values, strict=True):
        for t in range(3, len(v)):
            p, seen = weights[t, : t + 1], v[: t + 1] - v[: t + 1].mean(0)
            scores = np.log(p)
            readout.append(p @ seen)
            linear.append((scores - scores.mean()) @ seen / (t + 1))
            best.append(seen[p.argmax()])
            effective.append(math.exp(-(p @ scores)))
    readout = np.concatenate(readout)

    def explained(end):
        end = np.concatenate(end)
        return 1 - np.sum((readout - end * (end @ readout) / (end @ end)) ** 2) / np.sum(readout**2)

    return {
        "regression_r2": explained(linear),
        "retrieval_r2": explained(best),
        "effective_keys": np.median(effective),
    }


def test_measures_are_those_of_a_loop_over_queries(loud, tokens):
    found = trained_heads(loud, tokens, exchanges=()).to_dataframe().set_index("head")
    names = ("L0H0", "L0H3", "L1H1", "L1H2")
    for name in names:
        for measure, value in loop(loud, tokens, int(name[1]), int(name[3])).items():
            assert found.loc[name, measure] == pytest.approx(value, rel=1e-6), (name, measure)
    spread = found.loc[list(names), ["regression_r2", "retrieval_r2"]]
    assert float(spread.max().max()) > 0.8 and float(spread.min().min()) < 0.5


def test_a_readout_that_does_not_vary_has_no_share(loud, tokens):
    """Of equal values, and of equal scores: what is left is rounding."""
    heads = ["L0H1", "L0H2"]
    found = trained_heads(loud, tokens, heads=heads, exchanges=("linear",)).to_dataframe()
    assert found[["regression_r2", "retrieval_r2"]].isna().all(None)
    assert set(found.kind) == {"averaging"}
    np.testing.assert_allclose(found.loss_linear, 0, atol=1e-9)
    dial = head_dial(loud, tokens, heads=heads, betas=(0.5, 0.9, 1.6))
    own = dial.summary().query("geometry == 'own'").set_index("head")
    errors = ["gain", "ols_error", "raw_error", "linear_error", "kernel_error"]
    assert own.loc["L0H1", errors].isna().all(None) and own.loc["L0H2", "linear_error"].isna().all()
    assert (own.loc["L0H2", "ols_error"] == 1).all()  # least squares of the context does vary
    regimes = dial.regimes().query("geometry == 'own'").set_index("head")
    assert set(regimes.trained) == {"not known"} and regimes.regression_ends.isna().all()
    assert math.isnan(regimes.ols_beta["L0H1"])
    figure = ll.plots.trained_heads(trained_heads(loud, tokens, exchanges=()))
    assert sum(len(mark.x) for mark in figure.data) == 6  # the other heads
    assert "2 not placed" in figure.layout.title.subtitle.text
    assert ll.plots.trained_heads(trained_heads(loud, tokens, heads=heads, exchanges=())).layout


def test_small_values_and_large_settings_are_still_measured(loud, tokens):
    kwargs = {"heads": ["L1H1"], "betas": (1.0, 1e100), "queries": 5}
    want = head_dial(loud, tokens, **kwargs).values
    weight, bias = loud.blocks[1].attn.W_V, loud.blocks[1].attn.b_V
    kept = weight.detach().clone(), bias.detach().clone()
    measures = ["regression_r2", "retrieval_r2"]
    before = trained_heads(loud, tokens, heads=["L1H1"], exchanges=()).to_dataframe()[measures]
    try:
        with torch.no_grad():
            weight.mul_(1e-170)
            bias.mul_(1e-170)
        small = head_dial(loud, tokens, **kwargs).values
        after = trained_heads(loud, tokens, heads=["L1H1"], exchanges=()).to_dataframe()[measures]
    finally:
        with torch.no_grad():
            weight.copy_(kept[0])
            bias.copy_(kept[1])
    torch.testing.assert_close(small, want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(after, before, rtol=1e-9)
    assert bool(want.isfinite().all())
    with pytest.raises(InvalidArgumentError, match="betas must be at most 1e"):
        head_dial(loud, tokens, betas=(1e308,))


def test_rows_a_pass_change_no_number(loud, tokens):
    one, all_ = (
        (
            head_dial(loud, tokens, heads=["L1H1"], betas=(0.7,), losses=True, batch_size=size),
            trained_heads(loud, tokens, heads=["L1H1"], batch_size=size).to_dataframe(),
        )
        for size in (1, None)
    )
    torch.testing.assert_close(one[0].values, all_[0].values, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one[0].losses, all_[0].losses, rtol=1e-9, atol=1e-12)
    numbers = one[1].select_dtypes("number").columns
    np.testing.assert_allclose(one[1][numbers], all_[1][numbers], rtol=1e-9, atol=1e-12)


def test_no_heads_say_what_to_pass(loud, tokens):
    with pytest.raises(InvalidArgumentError, match="heads must name at least one head"):
        trained_heads(loud, tokens, heads=[])
