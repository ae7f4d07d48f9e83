"""Jacobian products work where the caller has switched gradients off, as notebooks often do."""

import torch

from lens_linear.models.frozen.frozen_context import freeze_context
from lens_linear.models.open.toy import toy_model


def test_linearize_under_no_grad_equals_linearize_with_grad():
    model = toy_model(n_layers=2, seed=3)
    context = freeze_context(model, torch.arange(12).view(2, 6), torch.tensor([6, 4]))
    vectors = torch.randn(2, 1, 2, 32, generator=torch.Generator().manual_seed(0))
    want = context.jacobians().pull(vectors)
    with torch.no_grad():
        maps = context.jacobians()
        assert torch.equal(maps.pull(vectors), want)
        assert maps.push(vectors).shape == vectors.shape
    assert float(want.norm()) > 0
