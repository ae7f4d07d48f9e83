"""What a least-squares layer may say of itself, and what its state carries."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch

import lens_linear as ll
from lens_linear.constructions import NewtonSchulzAttention
from lens_linear.errors import InvalidArgumentError, NonFiniteError


def data(seed=0, n=30, p=3, m=2):
    r = np.random.default_rng(seed)
    x = r.normal(size=(n, p))
    return x, x @ r.normal(size=(p, m)) + r.normal(size=(n, m)), r.normal(size=(5, p))


@pytest.mark.parametrize("d", [1, 4])
def test_no_hat_of_the_papers_form_unless_it_is_least_squares(d):
    trained = ll.train_ols_attention(d=d, epochs=300, seeds=1).model()
    with pytest.raises(InvalidArgumentError, match="weights trained by gradient descent"):
        trained.hat()
    x, y, new = data()
    paper = ll.OLSAttention.from_data(x, y, form="paper")
    for rows in (None, new, np.zeros((1, 3))):
        with pytest.raises(InvalidArgumentError, match=r"not .or no longer. of one set"):
            paper.with_context(x, y + x[:, :2]).hat(rows)
    with torch.no_grad():  # the same predictions, by other scores
        paper.W_Q.mul_(3)
        paper.W_V.div_(3)
    assert paper.solution == "unique"
    with pytest.raises(InvalidArgumentError, match="read hook_scores"):
        paper.hat()


@pytest.mark.parametrize("intercept", [False, True])
def test_every_hat_multiplies_the_labels_to_the_prediction(intercept):
    x, y, new = data()
    base = ll.OLSAttention.from_data(x, y, intercept=intercept)
    trained = ll.train_ols_attention(x, y, form="in-context", epochs=30, seeds=1).model()
    other = base.with_context(x[:9] * [1, 3, 0.2], y[:9])
    edited = copy.deepcopy(base)
    with torch.no_grad():
        edited.W_O.mul_(-2)
    for layer in (base, trained, other, edited):
        hat = layer.hat(new)
        np.testing.assert_allclose(hat.values @ layer.context_y, layer.predict(new), atol=1e-12)
        assert hat.least_squares == ("no least squares" not in repr(hat)) == (layer is base)
    assert other.hat(np.zeros((1, 3))).solution == "other data"  # also where both say nothing
    for name, change in (("W_V", torch.tensor([[1.0, 2.0], [0.0, 1.0]])), ("b_O", torch.ones(2))):
        mixed = copy.deepcopy(base)
        with torch.no_grad():
            getattr(mixed, name).copy_(change)
        with pytest.raises(InvalidArgumentError, match="multiplies its labels by one matrix"):
            mixed.hat()


def test_a_trained_layer_that_reached_the_construction_has_its_hat():
    run = ll.train_ols_attention(form="in-context", d=3, epochs=600, seeds=1)
    hat = run.model().hat()
    assert hat.least_squares and "(least squares: weights trained by gradient descent)" in repr(hat)
    x = run.x.numpy()
    np.testing.assert_allclose(hat.values, x @ np.linalg.pinv(x), atol=1e-6)


def test_no_output_and_no_direction_hides_behind_a_larger_one():
    x, y, _ = data()
    y = y * [1e9, 1.0]
    paper = ll.OLSAttention.from_data(x, y, form="paper")
    assert paper.solution == "unique" == paper.with_context(x, y).solution
    assert paper.with_context(x, y + [0.0, 1.0] * x[:, :1]).solution == "other data"
    far = ll.OLSAttention.from_data(x, 1e8 + y[:, 1:], form="paper", intercept=True)
    assert far.solution == "unique"
    assert far.with_context(x, 1e8 + y[:, 1:] + x[:, :1]).solution == "other data"
    thin = np.column_stack(
        [x[:, 0], x[:, 0] + 1e-7 * x[:, 1]]
    )  # slopes of 1e7 along the thin direction
    layer = ll.OLSAttention.from_data(thin, y[:, 1])
    assert layer.solution == "unique"
    with torch.no_grad():
        layer.W_Q[:, 0] *= 1.5  # the other direction
    assert layer.solution == "other data" == layer.hat().solution


def test_labels_that_x_does_not_explain_are_no_other_data():
    x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) + 0.1
    y = np.linalg.svd(x)[0][:, 3] * 7  # orthogonal to both columns
    for form in ("in-context", "paper"):
        layer = ll.OLSAttention.from_data(x, y, form=form)
        assert layer.solution == "unique" == layer.with_context(x, y).solution
        assert "unique" in repr(layer)


@pytest.mark.parametrize("form", ["in-context", "paper"])
@pytest.mark.parametrize(("inputs", "labels"), [(1e-200, 1e200), (1e200, 1e-200), (1e-300, 1e9)])
def test_slopes_without_a_number_are_refused_and_predictions_stand(form, inputs, labels):
    x, y, new = data()
    layer = ll.OLSAttention.from_data(inputs * x, labels * y, form=form)
    assert layer.solution == "unique" == layer.hat().solution and "off by" not in repr(layer)
    want = labels * (new @ np.linalg.lstsq(x, y, rcond=None)[0])
    np.testing.assert_allclose(layer.predict(inputs * new), want, rtol=1e-9)
    for read in (lambda: layer.coefficients, layer.to_dataframe):
        with pytest.raises(NonFiniteError, match="slopes leave the range"):
            read()
    single = ll.OLSAttention.from_data(1e-25 * x, 1e25 * y, form=form).float()
    assert single.solution == "unique"
    with pytest.raises(NonFiniteError, match=r"range of torch\.float32"):
        single.coefficients  # noqa: B018
    mixed = ll.OLSAttention.from_data(1e200 * x * [1e3, 1.0, 1e-4], y * [1e-90, 1e90], form=form)
    want = np.linalg.lstsq(x, y, rcond=None)[0] / np.array([[1e203], [1e200], [1e196]])
    np.testing.assert_allclose(mixed.coefficients, want * [1e-90, 1e90], rtol=1e-9)


@pytest.mark.parametrize("form", ["in-context", "paper"])
def test_a_state_carries_the_rows_of_its_geometry(form):
    x, y, new = data(n=40)
    saved = ll.OLSAttention.from_data(np.tile(x, (5, 1)), np.tile(y, (5, 1)), form=form, ridge=5.0)
    saved = saved.with_context(x, y)
    other = ll.OLSAttention.from_data(x[::-1] + 1, y, form=form)
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other.predict(new), saved.predict(new), rtol=0, atol=0)
    assert other.solution == saved.solution == "ridge" and "ridge = 1," in repr(other)
    for same in (copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        torch.testing.assert_close(same.predict(new), saved.predict(new), rtol=0, atol=0)
        assert repr(same) == repr(saved)


@pytest.mark.parametrize("rows", [1, 7, 90])
def test_a_state_brings_its_context_whatever_the_rows(rows):
    x, y, new = data(n=90)
    layer, deep = ll.OLSAttention.from_data(x, y[:, 0]), NewtonSchulzAttention(3, layers=4)
    for saved, other in (
        (layer.with_context(x[:rows], y[:rows, 0]), ll.OLSAttention.from_data(x[:50], y[:50, :1])),
        (
            deep.with_context(x[:rows], y[:rows]),
            NewtonSchulzAttention(3, layers=4),
        ),
    ):
        other.load_state_dict(saved.state_dict())
        torch.testing.assert_close(other.predict(new), saved.predict(new), rtol=0, atol=0)
    state = layer.state_dict() | {"context_y": torch.zeros(3, 1)}
    with pytest.raises(RuntimeError, match="size mismatch for context_y"):
        layer.load_state_dict(state)


def test_a_state_of_another_computation_is_refused_before_it_is_copied():
    x, y, new = data(p=1, m=1)
    state = ll.OLSAttention.from_data(x, y).state_dict()
    for knobs, word in (({"form": "paper"}, "form"), ({"intercept": True}, "intercept")):
        layer = ll.OLSAttention.from_data(2 * x, y, **knobs)
        before = layer.predict(new)
        with pytest.raises(InvalidArgumentError, match=f"another {word}"):
            layer.load_state_dict(state)
        torch.testing.assert_close(layer.predict(new), before, rtol=0, atol=0)
    old = {name: held for name, held in state.items() if name != "_extra_state"}
    for broken in (old, old | {"_extra_state": torch.zeros(2)}):
        with pytest.raises(InvalidArgumentError, match="must hold _extra_state with geometry_rows"):
            ll.OLSAttention.from_data(2 * x, y).load_state_dict(broken, strict=False)
    deep = NewtonSchulzAttention(1, layers=9).with_context(x, y)
    with pytest.raises(InvalidArgumentError, match="another number of layers"):
        NewtonSchulzAttention(1, layers=2).with_context(x, y).load_state_dict(deep.state_dict())
    tiny = ll.OLSAttention.from_data(1e-60 * x, y)
    single = ll.OLSAttention.from_data(x, y).float()
    with pytest.raises(NonFiniteError, match="use a module in float64"):
        single.load_state_dict(tiny.state_dict())


def test_a_collinear_context_stays_so_however_often_it_is_repeated():
    """More rows leave larger null singular values: the default that was right for few is not for many."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        n, p, k = (int(rng.integers(*ends)) for ends in ((2, 9), (2, 5), (2, 150)))
        x = rng.standard_normal((n, p)) + rng.standard_normal(p)
        x[:, -1] = rng.choice([2.0, 3.0, -1.0, 0.3]) * x[:, 0]
        y, many = rng.standard_normal((n, 1)), rng.standard_normal((n * k, 1))
        layer = ll.OLSAttention.from_data(x, y, intercept=True)
        again = layer.with_context(np.tile(x, (k, 1)), many)
        assert again.solution == layer.solution and "unique" not in repr(again)


def test_a_tolerance_that_was_chosen_stays_with_another_context():
    x = np.random.default_rng(1).standard_normal((40, 3)) * [1, 1, 1e-4]
    twice = np.tile(x, (2, 1))
    for rtol, solution in ((1e-3, "minimum-norm"), (None, "unique")):
        layer = ll.OLSAttention.from_data(x, x[:, :1], rtol=rtol)
        assert layer.solution == layer.with_context(twice, twice[:, :1]).solution == solution
