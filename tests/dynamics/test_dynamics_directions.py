"""Directions against slow loops, scikit-learn, and planted labels."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import lens_linear as ll
from lens_linear.dynamics import last_states, random_directions
from lens_linear.dynamics.gains.directions import _directions, _held_out, _logistic, _whiten
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError
from lens_linear.models.capture import residual_stream
from lens_linear.models.tokenizer import tokenize_prompts

GOOD = [f"The {x} was good" for x in "cat dog boy girl bird fish king queen tree horse cow".split()]
BAD = [f"The {x} was bad" for x in "cat dog boy girl bird fish king queen tree horse cow".split()]


@pytest.fixture(scope="module")
def nano():
    return ll.load("gpt-nano")


@pytest.fixture(scope="module")
def concept():
    return ll.Concept("good", GOOD + BAD, [1] * len(GOOD) + [0] * len(BAD), source="this test")


def clouds(n=400, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix
    labels = torch.arange(n) % 2 == 0
    x[labels] += torch.randn(d, generator=generator, dtype=torch.float64)
    return x, labels


def test_mean_difference_against_a_slow_loop(nano, concept):
    found = ll.concept_directions(nano, concept)
    sums = {0: 0.0, 1: 0.0}
    for text, label in zip(concept.texts, concept.labels, strict=True):
        row = tokenize_prompts(nano, [text])[0]
        sums[label] = sums[label] + residual_stream(nano, row[None])[:, 0, -1].double()
    expected = sums[1] / len(GOOD) - sums[0] / len(BAD)
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found.plain(), expected, rtol=1e-4, atol=1e-5)
    # The last token is "good" or "bad": every text is on its side from the embedding on.
    assert found.auc.tolist() == [1.0] * len(found)


def test_it_is_a_tensor_of_unit_rows_with_notes(nano, concept):
    d = ll.concept_directions(nano, concept)
    assert isinstance(d, torch.Tensor) and d.shape == (nano.cfg.n_layers + 1, nano.cfg.d_model)
    torch.testing.assert_close(d.norm(dim=-1), torch.ones(len(d), dtype=torch.float64))
    assert type(d @ d[0]) is torch.Tensor and np.asarray(d).shape == d.shape
    assert d.concept == "good" and "held-out AUC 1.000" in repr(d)
    assert list(d.to_dataframe().columns)[:2] == ["auc", "d_prime"]
    import copy

    assert copy.deepcopy(d).method == "mean-difference"
    with pytest.raises(AttributeError, match="no attribute 'sepration'"):
        d.sepration  # noqa: B018


def test_labels_at_random_separate_nothing_on_held_out_texts(nano):
    concept = ll.load_concept("mood", limit=160)
    mixed = torch.randperm(160, generator=torch.Generator().manual_seed(0)) % 2
    shuffled = ll.Concept("none", concept.texts, mixed.tolist(), source="labels drawn")
    for method in ("mean-difference", "logistic", "whitened"):
        found = ll.concept_directions(nano, shuffled, method=method)
        assert (found.auc - 0.5).abs().max() < 0.18  # four standard deviations at 160 texts


def test_whitened_is_the_linear_discriminant():
    x, labels = clouds()
    ours = _whiten(x, labels, x[labels].mean(0) - x[~labels].mean(0), 0.0)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), labels.numpy()).coef_[0]
    cosine = torch.nn.functional.cosine_similarity(ours, torch.tensor(theirs), dim=0)
    assert float(cosine) > 1 - 1e-6
    plain = x[labels].mean(0) - x[~labels].mean(0)
    assert float(torch.nn.functional.cosine_similarity(ours, plain, dim=0)) < 0.95


def test_logistic_is_scikit_learns():
    x, labels = clouds(seed=3)
    ours = _logistic(x, labels, 0.1)
    scale = x.std(0, correction=0)
    z = ((x - x.mean(0)) / scale).numpy()
    model = LogisticRegression(C=1 / (0.1 * (x.shape[1] + 1)), tol=1e-10, max_iter=1000)
    theirs = torch.tensor(model.fit(z, labels.numpy()).coef_[0]) / scale
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_held_out_auc_against_scikit_learn():
    x, labels = clouds(n=200, seed=5)
    x[labels] -= 0.7 * (x[labels].mean(0) - x[~labels].mean(0))
    auc, d_prime = _held_out(x[None], labels, "mean-difference", 0.1, 0)
    in_sample, _ = _directions(x[None], labels, "mean-difference", 0.1)
    score = roc_auc_score(labels.numpy(), (x @ in_sample[0]).numpy())
    assert 0.5 < float(auc) < score and float(d_prime) > 0


def test_a_boundary_whose_classes_agree_is_filled_and_said(nano):
    texts = [f"The {x} sat." for x in "cat dog boy girl bird fish king queen tree horse".split()]
    rotary = ll.Concept("same end", texts * 2, [1] * 10 + [0] * 10, source="this test")
    with pytest.raises(InvalidArgumentError, match="same mean state at every layer"):
        ll.concept_directions(nano, rotary)
    states = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(0)).double()
    states[0] = 2.5
    labels = torch.arange(40) % 2 == 0
    rows, filled = _directions(states, labels, "mean-difference", 0.1)
    assert filled == (0,) and torch.equal(rows[0], rows[1])


def test_last_states_and_controls(nano):
    states = last_states(nano, ["The cat", "A much longer line of text"])
    assert states.shape == (nano.cfg.n_layers + 1, 2, nano.cfg.d_model)
    a, b = random_directions(nano, seed=1), random_directions(nano, seed=1)
    assert torch.equal(a, b) and not torch.equal(a, random_directions(nano, seed=2))
    assert bool(a.auc.isnan().all())


def test_what_is_no_concept_is_refused(nano, concept):
    with pytest.raises(InvalidArgumentError, match="concept must be a Concept or a name"):
        ll.concept_directions(nano, GOOD)
    with pytest.raises(NotEnoughDataError, match="at least 10"):
        small = ll.Concept("small", GOOD[:3] + BAD[:3], [1, 1, 1, 0, 0, 0], source="this test")
        ll.concept_directions(nano, small)
    with pytest.raises(InvalidArgumentError, match="method must be one of"):
        ll.concept_directions(nano, concept, method="probe")


def test_d_prime_is_the_distance_of_the_classes_in_standard_deviations():
    draw = torch.Generator().manual_seed(5)
    labels = torch.arange(8000) % 2 == 0
    x = torch.randn(1, 8000, 1, dtype=torch.float64, generator=draw)
    x[0, labels] = 1.5 * x[0, labels] + 3  # sds 1.5 and 1: pooled sqrt((2.25 + 1) / 2)
    _, d_prime = _held_out(x, labels, "mean-difference", 0.1, 0)
    assert float(d_prime) == pytest.approx(3 / 1.625**0.5, rel=0.03)
