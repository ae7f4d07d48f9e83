"""Gains read off states, against planted maps, a leave-one-out loop and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

import lens_linear as ll
from lens_linear.dynamics import random_directions
from lens_linear.dynamics.gains.state_gains import fit_state_gains


def planted(n=60, noise=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(3, n, 5, generator=generator, dtype=torch.float64) + 2
    weights = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    rest = noise * torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return states, (states[2] - 2) @ weights + 1.5 + rest, weights


def test_a_planted_dependence_is_found_at_its_boundary():
    states, gains, weights = planted()
    found = fit_state_gains(states, gains)
    assert found.boundary == 2 and found.error < found.mean_error / 3
    torch.testing.assert_close(found.weights, weights, atol=0.2, rtol=0)
    new, answer, _ = planted(noise=0.0, seed=0)
    assert float((found.predict(new) - answer).norm() / answer.norm()) < 0.1
    assert "boundary 2" in repr(found) and len(found.to_dataframe()) == 4


def test_weights_and_leave_one_out_error_against_scikit_learn():
    states, gains, _ = planted(n=20)
    found = fit_state_gains(states, gains)
    x, y = states[2].numpy(), gains.numpy()
    centred = states[2] - states[2].mean(0)
    alpha = found.ridge * float(centred.pow(2).sum(-1).mean())
    ridge = Ridge(alpha=alpha).fit(x, y)
    torch.testing.assert_close(found.weights, torch.tensor(ridge.coef_.T))
    missed = []
    for out in range(20):
        kept = [i for i in range(20) if i != out]
        missed.append(y[out] - Ridge(alpha=alpha).fit(x[kept], y[kept]).predict(x[[out]])[0])
    error = float(np.linalg.norm(missed) / gains.norm())
    assert found.error == pytest.approx(error, rel=1e-9)


def test_where_states_say_nothing_the_mean_profile_is_left():
    states, _, _ = planted()
    gains = torch.randn(60, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    found = fit_state_gains(states, gains)
    assert found.error <= found.mean_error
    assert float((found.predict(states) - gains.mean(0)).norm() / gains.norm()) < 0.3
    alike = torch.cat([torch.ones_like(states[:1]), states])  # a boundary where all prompts are one
    assert fit_state_gains(alike, gains).error == found.error
    two = fit_state_gains(states[:, :2], gains[:2])
    torch.testing.assert_close(two.predict(states), gains[:2].mean(0).expand(60, 4))


def test_a_surrogate_that_reads_states_passes_the_ceiling_of_one_profile():
    model = ll.load("gpt-micro")
    split = ll.load_concept("mood").split(60, 60, 60, seed=0)
    directions = random_directions(model)
    operating, evaluation = list(split.operating.texts), list(split.evaluation.texts)
    exact = ll.gain_profile(model, evaluation, directions)
    scores = {}
    for jacobian in ("mean", "state"):
        found = ll.fit_surrogate(
            model, operating, directions, order=8, basis="balanced", jacobian=jacobian
        )
        scores[jacobian] = found.predict(model, evaluation).agreement(exact)
    assert scores["mean"].spearman <= scores["mean"].ceiling < scores["state"].spearman
    assert scores["state"].relative_error < scores["mean"].relative_error
    assert found.gains.shape == (60, 6) and found.state_gains is not None
