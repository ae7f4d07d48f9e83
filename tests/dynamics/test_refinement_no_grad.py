"""The refined schedule does not depend on whether the caller has switched gradients off."""

import torch

from lens_linear.dynamics import random_directions, refined_min_energy
from lens_linear.models.toy import toy_model


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
