"""The least-squares layer as a bridge: equal to numpy, and opened by the rest of the library."""

import numpy as np
import pytest
import torch

import lens_linear as ll
from lens_linear.constructions import ols_transformer
from lens_linear.dynamics import gain_profile
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError
from lens_linear.models.open.toy import toy_model


def data(seed=0, n=12, p=3, m=2):
    r = np.random.default_rng(seed)
    return r.normal(size=(n, p)), r.normal(size=(n, m)), r.normal(size=(5, p))


def slopes(x, y):
    return np.linalg.lstsq(x, y, rcond=None)[0]


@pytest.mark.parametrize("form", ["in-context", "paper"])
@pytest.mark.parametrize(("n", "p", "m"), [(12, 3, 2), (3, 5, 1), (9, 1, 4)])
def test_logits_at_the_last_position_are_least_squares(form, n, p, m):
    x, y, new = data(1, n, p, m)
    layer = ll.OLSAttention.from_data(x, y, form=form)
    whole = ols_transformer(layer, new)
    np.testing.assert_allclose(whole.predict(), new @ slopes(x, y), atol=1e-10)
    moved = layer.with_context(x[: n - 1] * 1.5, y[: n - 1] + 1)  # fast memory swapped, slow kept
    np.testing.assert_allclose(
        ols_transformer(moved, new).predict(), moved.predict(new).reshape(5, m), atol=1e-10
    )


def test_pattern_is_the_hat_matrix_and_the_ffn_is_the_identity():
    x, y, new = data()
    layer = ll.OLSAttention.from_data(x, y)
    whole = ols_transformer(layer, new)
    _, cache = whole.model.run_with_cache(whole.tokens)
    pattern = cache["blocks.0.attn.hook_pattern"][:, 0, -1]
    torch.testing.assert_close(pattern[:, :12], layer.hat(new).values)
    assert not bool(pattern[:, 12].any())  # a query tells nothing
    found, answer = (whole.slots[name] for name in ("found", "answer"))
    ffn = cache["blocks.0.hook_mlp_out"]
    torch.testing.assert_close(ffn[..., answer], cache["blocks.0.hook_resid_mid"][..., found])
    after = cache["blocks.0.hook_resid_post"]
    assert float(after[..., found].abs().max()) < 1e-14
    # an ablated key takes exactly its own share away
    drop = [
        ("blocks.0.attn.hook_pattern", lambda a, hook: a.index_fill(-1, torch.tensor([4]), 0.0))
    ]
    edited = whole.model.run_with_hooks(whole.tokens, fwd_hooks=drop)[:, -1, :2]
    want = whole.predict() - pattern[:, 4:5] * torch.as_tensor(y[4:5])
    torch.testing.assert_close(edited.detach(), want)


def test_context_rows_see_a_regression_that_grows_with_them():
    x, y, new = data()
    layer = ll.OLSAttention.from_data(x, y)
    whole = ols_transformer(layer, new)
    with torch.no_grad():
        stream = whole.model(whole.tokens[:1])[0, :12, :2]
    root = layer.W_Q.detach().numpy()
    for t in (0, 5, 11):
        want = x[t] @ root @ (x[: t + 1] @ root).T @ y[: t + 1]
        np.testing.assert_allclose(stream[t], want, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_depth_is_richardsons_iteration(layers):
    x, y, new = data(2, n=30)
    other = x * [1.2, 0.8, 1.0]
    layer = ll.OLSAttention.from_data(x, y).with_context(other, y)
    beta, inverse = np.zeros((3, 2)), np.linalg.inv(x.T @ x)
    for _ in range(layers):
        beta = beta + inverse @ other.T @ (y - other @ beta)
    got = ols_transformer(layer, new, layers=layers).predict()
    np.testing.assert_allclose(got, new @ beta, atol=1e-10)
    exact = ols_transformer(ll.OLSAttention.from_data(other, y), new, layers=layers).predict()
    np.testing.assert_allclose(exact, new @ slopes(other, y), atol=1e-10)  # nothing is left to find


def test_the_rest_of_the_library_answers_or_says_why_not():
    x, y, new = data(n=20)
    layer = ll.OLSAttention.from_data(x, y)
    whole, deep = ols_transformer(layer, new), ols_transformer(layer, new, layers=2)
    rows = torch.randint(25, (40, 21), generator=torch.Generator().manual_seed(0))
    profile = ll.linearity_profile(whole.model, rows).to_dataframe()
    assert float(profile["ffn_r2"].iloc[0]) == pytest.approx(1.0, abs=1e-9)
    assert float(profile["attn_r2"].iloc[0]) < 0.99
    directions = torch.eye(whole.model.cfg.d_model, dtype=torch.float64)[:2]
    exact = gain_profile(whole.model, whole.tokens, directions)
    steps = gain_profile(whole.model, whole.tokens, directions, method="empirical", eps=1e-4)
    torch.testing.assert_close(exact.gains, steps.gains, atol=1e-6, rtol=1e-4)
    scores = ll.composition_scores(deep.model).to_dataframe()
    # what the first layer writes, the second neither asks with nor is asked by
    assert scores.query("kind == 'K'")["score"].item() == pytest.approx(0.0, abs=1e-12)
    assert scores.query("kind == 'Q'")["score"].item() == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(UnsupportedModelError, match="it has no softmax"):
        ll.qk_attribution(whole.model, whole.tokens[:1], 0, 0)
    with pytest.raises(UnsupportedModelError, match="must be attention-only"):
        ll.AttentionOnly(whole.model)
    with pytest.raises(UnsupportedModelError, match="must be causal"):
        gain_profile(deep.model, deep.tokens, torch.eye(deep.model.cfg.d_model)[:3])


def test_linear_attention_models_expand_into_paths_exactly():
    model = toy_model(attention="linear", n_layers=2)
    tokens = torch.arange(8)[None]
    paths = ll.AttentionOnly(model).paths(tokens)
    assert paths.max_error < 1e-5
    _, cache = model.run_with_cache(tokens)
    q, k = cache["blocks.0.attn.hook_q"][0, :, 1], cache["blocks.0.attn.hook_k"][0, :, 1]
    want = (q @ k.T / model.cfg.d_head**0.5).tril()
    torch.testing.assert_close(cache["blocks.0.attn.hook_pattern"][0, 1], want)


def test_what_does_not_fit_is_refused():
    x, y, new = data()
    with pytest.raises(InvalidArgumentError, match="add a column of ones"):
        ols_transformer(ll.OLSAttention.from_data(x, y, intercept=True), new)
    ones = np.hstack([x, np.ones((12, 1))])  # the advice
    whole = ols_transformer(ll.OLSAttention.from_data(ones, y), np.hstack([new, np.ones((5, 1))]))
    want = ll.OLSAttention.from_data(x, y, intercept=True).predict(new)
    np.testing.assert_allclose(whole.predict(), want, atol=1e-10)
    with pytest.raises(InvalidArgumentError, match="layers must be 1 in the paper's form"):
        ols_transformer(ll.OLSAttention.from_data(x, y, form="paper"), new, layers=2)
    with pytest.raises(InvalidArgumentError, match="must have 3 columns"):
        ols_transformer(ll.OLSAttention.from_data(x, y), new[:, :2])


@pytest.mark.parametrize("fit", ["held-out", "in-sample"])
def test_layers_that_find_nothing_more_have_no_share_of_variance(fit):
    """What the second layer adds is rounding: R² of it was -1,060 to -5,761."""
    x, y, _ = data(n=20)
    queries = np.random.default_rng(1).normal(size=(40, 3))
    whole = ols_transformer(ll.OLSAttention.from_data(x, y), queries, layers=3)
    profile = ll.linearity_profile(whole.model, whole.tokens, fit=fit)
    frame = profile.to_dataframe()
    assert float(frame["update_ratio"][1:].max()) < 1e-15
    columns = ["block_r2_no_residual", "ffn_r2", "attn_r2"]
    assert frame[columns][1:].isna().all(None) and frame[columns].iloc[0].between(0.5, 1.0001).all()
    if fit == "held-out":
        assert "layers that add nothing have no R² without residual: 1, 2" in repr(profile)
        assert frame["block_r2"].between(0.99, 1).all()


def test_profile_of_layers_whose_columns_have_any_scale():
    """Deeper layers read slots that are zero or 1e-17; in-sample R² was NaN there."""
    x, y, new = data(3, 30, 3, 2)
    layer = ll.OLSAttention.from_data(x * [1e4, 1.0, 1e-3], y * [1e-17, 1.0])
    whole = ols_transformer(layer, new * [1e4, 1.0, 1e-3], layers=3)
    for fit in ("in-sample", "held-out"):
        scores = ll.linearity_profile(whole.model, whole.tokens, fit=fit)["block_r2"]
        np.testing.assert_allclose(scores, 1.0, atol=1e-6)
