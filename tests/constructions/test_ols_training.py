import dataclasses

import numpy as np
import pytest
import torch

import lens_linear as ll
from lens_linear.constructions.least_squares.ols_training import regression_data
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError


def slopes(x, y):
    return np.linalg.lstsq(np.asarray(x), np.asarray(y), rcond=None)[0]


def test_the_papers_experiment_converges_within_1000_epochs_from_every_start():
    run = ll.train_ols_attention(seeds=32)
    assert run.x.shape == (100, 1) and run.y.shape == (100, 1)
    assert float(slopes(run.x, run.y)[0, 0]) == pytest.approx(2.0, abs=0.05)  # y = 2x + ε
    assert len(run.loss) == 1001
    assert bool((run.epochs_to_converge <= 1000).all())
    assert float(run.prediction_error[0].median()) > 0.5  # it did not start there
    for seed in (0, 31):
        got = run.model(seed).coefficients
        np.testing.assert_allclose(got, slopes(run.x, run.y), rtol=1e-6)
    assert "32 of 32 seeds" in repr(run)


def test_the_in_context_form_reaches_the_construction_itself():
    run = ll.train_ols_attention(form="in-context", d=3, seeds=6)
    assert float(run.geometry_error[-1].max()) < 1e-6
    assert float(run.geometry_error[0].min()) > 0.3
    inverse = np.linalg.inv(run.x.T @ run.x)
    for seed in range(6):
        model = run.model(seed)
        trained = (model.W_Q @ model.W_K.T).detach()
        np.testing.assert_allclose(trained, inverse, rtol=1e-4, atol=1e-7)
        # W_Q itself is not L: only the product is determined.
        construction = ll.OLSAttention.from_data(run.x, run.y)
        assert float((model.W_Q - construction.W_Q).detach().norm()) > 0.1 * float(
            construction.W_Q.detach().norm()
        )


def test_the_papers_form_finds_the_function_but_not_the_geometry():
    run = ll.train_ols_attention(d=4, seeds=6)
    assert float(run.prediction_error[-1].max()) < 1e-6
    assert float(run.geometry_error[-1].min()) > 0.2


def test_curves_are_those_of_the_slow_obvious_loop():
    x, y = regression_data(n=30, d=2, outputs=1, seed=3)
    run = ll.train_ols_attention(x, y, epochs=5, seeds=2, seed=3, learning_rate=0.01)
    xs, ys = x / x.square().mean().sqrt(), y / y.square().mean().sqrt()
    generator = torch.Generator().manual_seed(4)  # the second seed
    weights = [
        (torch.randn(s, generator=generator, dtype=torch.float64) / 2**0.5).requires_grad_()
        for s in [(2, 2), (2, 2), (2, 2), (2, 1)]
    ]
    for epoch in range(6):
        q, k, v = (xs @ w for w in weights[:3])
        prediction = (q @ k.T / 30) @ v @ weights[3]
        loss = (prediction - ys).square().mean()
        want = loss.item() * y.square().mean().item()
        assert run.loss[epoch, 1].item() == pytest.approx(want, rel=1e-10)
        grads = torch.autograd.grad(loss, weights)
        weights = [(w - 0.01 * g).detach().requires_grad_() for w, g in zip(weights, grads)]


def test_epochs_to_converge_is_the_last_crossing():
    run = ll.train_ols_attention(seeds=4, tolerance=1e-2)
    for s in range(4):
        above = (run.prediction_error[:, s] >= 1e-2).nonzero()
        assert run.epochs_to_converge[s].item() == above.max().item() + 1
    short = ll.train_ols_attention(seeds=4, epochs=1)
    assert bool(short.epochs_to_converge.isnan().all())
    assert "0 of 4 seeds" in repr(short)


def test_seeds_do_not_depend_on_each_other_and_repeat():
    x, y = regression_data(n=30, seed=1)
    many = ll.train_ols_attention(x, y, seeds=3, epochs=20)
    one = ll.train_ols_attention(x, y, seeds=1, epochs=20, seed=2)
    torch.testing.assert_close(many.loss[:, 2:], one.loss)
    loss = many.loss.clone()
    loss[9:, 0] = torch.inf  # one seed diverged: two are left, then one
    loss[15:, 1] = torch.nan
    summary = dataclasses.replace(many, loss=loss).summary().query("quantity == 'loss'")
    both, alone = loss[9:15, 1:].sort(1).values, loss[15:, 2]
    np.testing.assert_array_equal(summary[["low", "high"]][9:15], both)
    np.testing.assert_array_equal(summary["median"][15:], alone)
    assert summary[["low", "high"]][15:].isna().all(None)
    frame = many.to_dataframe()
    assert list(frame.columns) == ["seed", "epoch", "loss", "prediction_error", "geometry_error"]
    assert frame.query("seed == 2 and epoch == 7")["loss"].item() == one.loss[7, 0].item()


def test_units_do_not_matter():
    x, y = regression_data(n=30, d=2, seed=1)
    plain = ll.train_ols_attention(x, y, epochs=400)
    scaled = ll.train_ols_attention(1e4 * x, 1e-3 * y, epochs=400)
    torch.testing.assert_close(plain.prediction_error, scaled.prediction_error)
    np.testing.assert_allclose(
        scaled.model(0).coefficients, 1e-7 * plain.model(0).coefficients, rtol=1e-8
    )


def test_bad_arguments_say_what_to_do():
    with pytest.raises(InvalidArgumentError, match="diverge; pass a smaller one"):
        ll.train_ols_attention(learning_rate=100.0, epochs=50)
    with pytest.raises(InvalidArgumentError, match="pass both or neither"):
        ll.train_ols_attention(torch.ones(3, 1))
    with pytest.raises(NotEnoughDataError, match="one for each input"):
        ll.train_ols_attention(torch.ones(2, 3), torch.ones(2))
    with pytest.raises(InvalidArgumentError, match="full column rank"):
        ll.train_ols_attention(torch.ones(5, 2), torch.ones(5))
    with pytest.raises(InvalidArgumentError, match="optimizer must be one of"):
        ll.train_ols_attention(optimizer="sgd")
    with pytest.raises(InvalidArgumentError, match="index must be at most 1"):
        ll.train_ols_attention(epochs=2, seeds=2).model(2)


def test_a_start_that_diverges_is_counted_and_left_out_of_the_summary():
    run = ll.train_ols_attention(seeds=8, epochs=300, learning_rate=0.3)
    lost = ~run.loss[-1].isfinite()
    assert 0 < run.diverged == int(lost.sum()) < 8
    assert f"{run.diverged} diverged" in repr(run)
    last = run.summary().query("quantity == 'loss' and epoch == 300").iloc[0]
    kept = run.loss[-1][~lost]
    assert last["low"] == kept.min() and last["high"] == kept.max()
    assert last["low"] <= last["median"] <= last["high"]


@pytest.mark.parametrize("d", [8, 16])
def test_the_in_context_form_converges_in_more_dimensions_too(d):
    run = ll.train_ols_attention(form="in-context", d=d, seeds=4)
    assert run.learning_rate == pytest.approx(0.05 * d)
    assert bool((run.epochs_to_converge <= 1000).all())
    assert float(run.geometry_error[-1].max()) < 1e-4


def test_training_works_where_gradients_are_switched_off():
    with torch.no_grad():
        run = ll.train_ols_attention(epochs=5, seeds=1)
    assert float(run.loss[5, 0]) < float(run.loss[0, 0])
    with torch.inference_mode():
        again = ll.train_ols_attention(run.x.clone(), run.y.clone(), epochs=5, seeds=1)
    torch.testing.assert_close(again.loss, run.loss)


@pytest.mark.parametrize("form", ["paper", "in-context"])
def test_geometry_error_is_the_formula_and_only_the_papers_form_has_a_free_scale(form):
    run = ll.train_ols_attention(form=form, d=3, epochs=4, seeds=2)
    for seed in range(2):
        product = (run.weights[0][seed] @ run.weights[1][seed].T @ run.x.T @ run.x).numpy()
        scale = np.trace(product) / (product**2).sum() if form == "paper" else 1.0
        want = np.linalg.norm(scale * product - np.eye(3)) / 3**0.5
        assert float(run.geometry_error[-1, seed]) == pytest.approx(want)


def test_the_rate_grows_with_the_inputs_of_the_in_context_form():
    for d, rate in ((1, 0.2), (4, 0.2), (8, 0.4)):
        run = ll.train_ols_attention(form="in-context", d=d, epochs=1, seeds=1)
        assert run.learning_rate == pytest.approx(rate)


@pytest.mark.parametrize("form", ["paper", "in-context"])
@pytest.mark.parametrize(("inputs", "labels"), [(1e-280, 1e140), (1e250, 1e-140), (1e-9, 1.0)])
def test_training_has_no_units_over_the_range_of_float64(form, inputs, labels):
    x, y = regression_data(n=30, d=2, outputs=4, seed=1)
    plain = ll.train_ols_attention(x, y, form=form, epochs=20, seeds=2)
    scaled = ll.train_ols_attention(inputs * x, labels * y, form=form, epochs=20, seeds=2)
    torch.testing.assert_close(scaled.prediction_error, plain.prediction_error)
    torch.testing.assert_close(scaled.geometry_error, plain.geometry_error)
    torch.testing.assert_close(scaled.loss / labels / labels, plain.loss)
    assert scaled.ols_loss / labels / labels == pytest.approx(plain.ols_loss)
    want = labels * plain.model(1).predict(x)
    torch.testing.assert_close(scaled.model(1).predict(inputs * x), want)


@pytest.mark.parametrize(
    ("inputs", "labels", "words"),
    [
        (1.0, 1e150, "y must have a root mean square .* the loss is its square"),
        (1.0, 1e-200, "y must have a root mean square .* the loss is its square"),
        (1e-300, 1.0, "x must have a root mean square .* weights are its inverse"),
        (torch.tensor([1.0, 1e-20]), 1.0, "columns of like size"),
        (torch.tensor([1e160, 1e-160], dtype=torch.float64), 1.0, "columns of like size"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_for_its_own_reason(inputs, labels, words):
    x, y = regression_data(n=30, d=2, outputs=2, seed=1)
    with pytest.raises(InvalidArgumentError, match=words):
        ll.train_ols_attention(inputs * x, labels * y, epochs=2)
    q = torch.linalg.svd(x).U
    for size in (1.0, 1e-30):
        with pytest.raises(InvalidArgumentError, match="prediction is zero everywhere"):
            ll.train_ols_attention(x, size * q[:, 2:3], epochs=2)


def test_one_seed_has_no_extremes():
    table = ll.train_ols_attention(epochs=3, seeds=1).summary()
    assert table["median"].notna().all() and table[["low", "high"]].isna().all(None)
    assert "the only seed" in str(ll.train_ols_attention(epochs=3, seeds=1).plot())
