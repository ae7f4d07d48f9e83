"""Small models whose depth dynamics are known, and prompts for them."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))


def linear_model(seed=0, n_layers=3, d_model=16, n_heads=2):
    """No norms, no MLPs, queries of zero: attention is uniform, each block linear in the last token.

    Block l maps it to ``x (1 + W_OV / T)`` plus what the context adds, T the number of tokens.
    """
    from lens_linear.models.open.toy import toy_model

    model = toy_model(n_layers=n_layers, d_model=d_model, n_heads=n_heads, seed=seed).double()
    with torch.no_grad():
        for layer in range(n_layers):
            model.blocks[layer].attn.W_Q.zero_()
            for name in ("W_V", "W_O"):
                weight = getattr(model.blocks[layer].attn, name)
                weight.copy_(torch.randn(weight.shape, generator=_generator(layer)) * 0.5)
    return model


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def block_matrices(model, length):
    """Jacobians of a ``linear_model``'s blocks as matrices on columns, at a prompt of that length."""
    found = []
    for block in model.blocks:
        through = torch.einsum("hde,hef->df", block.attn.W_V, block.attn.W_O)
        found.append(torch.eye(through.shape[0], dtype=through.dtype) + through.detach().T / length)
    return torch.stack(found)


def rows_of(model, lengths, seed=0):
    generator = _generator(seed)
    return [torch.randint(model.cfg.d_vocab, (n,), generator=generator) for n in lengths]


@pytest.fixture(scope="session")
def linear():
    return linear_model()


@pytest.fixture(scope="session")
def smooth():
    """A full model (norms, GELU MLPs, rotary positions) in float64."""
    from lens_linear.models.open.toy import toy_model

    return toy_model(
        n_layers=3, d_model=16, n_heads=2, attn_only=False, norm="LN", positions="rotary", seed=1
    ).double()


@pytest.fixture(scope="session")
def oracle():
    """Namespace of the helpers above, for tests in other files."""
    from types import SimpleNamespace

    return SimpleNamespace(
        block_matrices=block_matrices, rows_of=rows_of, linear_model=linear_model
    )
