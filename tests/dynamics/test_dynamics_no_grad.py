"""Answers do not depend on whether the caller has switched gradients off, in either way."""

import torch

import lens_linear as ll
from lens_linear.dynamics import (
    block_jacobians,
    random_directions,
    refined_min_energy,
    steer_concepts,
    step_size_table,
)
from lens_linear.models.open.toy import toy_model


def test_refined_schedule_under_no_grad_equals_the_one_with_grad():
    model = toy_model(n_layers=3, norm="LN", attn_only=False, seed=1)
    prompts = [torch.arange(5), torch.arange(9)]
    directions = random_directions(model)
    start = torch.tensor([0.5, 0.2, 1.0])
    want = refined_min_energy(model, prompts, directions, start, 0.3, steps=3)
    with torch.no_grad():
        got = refined_min_energy(model, prompts, directions, start, 0.3, steps=3)
    assert torch.equal(got.plain(), want.plain())
    assert not torch.allclose(want.plain(), start.expand(2, 3).double())


def answers(model):
    """Every function of the room that takes derivatives, from the model to steering."""
    prompts = [torch.arange(5), torch.arange(9), torch.arange(3, 9)]
    directions = random_directions(model)
    profile = ll.gain_profile(model, prompts, directions)
    surrogate = ll.fit_surrogate(model, prompts, directions, order=4, basis="balanced")
    return [
        profile.gains,
        surrogate.predict(model, prompts[:1]).gains,
        ll.evaluate_schedules(model, prompts, directions, surrogate, target=0.3).energy,
        refined_min_energy(model, prompts, directions, profile, 0.3, steps=2).plain(),
        steer_concepts(model, prompts, [directions], [0.3]).amplitudes,
        block_jacobians(model, prompts).mean_pull(directions.plain()[1:, None]),
        step_size_table(model, prompts, directions, steps=(0.1,)).adjoint.gains,
    ]


def test_inference_mode_changes_nothing_even_around_loading():
    want = answers(ll.load("gpt-nano"))
    with torch.inference_mode():
        got = answers(ll.load("gpt-nano"))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert float(want[0].abs().max()) > 0.01
