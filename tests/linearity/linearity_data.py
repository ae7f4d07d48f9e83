"""Models with known linear parts, and slow obvious versions, for the tests of this room."""

import numpy as np
import torch

from lens_linear.models.capture import run
from lens_linear.models.open.toy import toy_model
from lens_linear.stats.split import RowView, halves


def tokens(n=40, length=16, vocab=64, seed=0):
    return torch.randint(vocab, (n, length), generator=torch.Generator().manual_seed(seed))


def small(n_layers=2, d_model=16, seed=0, **shape):
    values = {"attn_only": False, "norm": "LN", **shape}
    return toy_model(n_layers=n_layers, d_model=d_model, seed=seed, **values)


def linear_blocks(n_layers=2, linear=(0, 1), d_model=16):
    """Blocks without attention whose ReLUs never switch off, so the chosen ones are exactly affine."""
    model = toy_model(
        n_layers=n_layers, d_model=d_model, attn_only=False, norm="none", activation="relu"
    ).double()
    with torch.no_grad():
        for layer in range(n_layers):
            model.blocks[layer].attn.o.weight.zero_()
            if layer in linear:
                mlp = model.blocks[layer].mlp
                getattr(mlp, "in").bias.fill_(100.0)
                mlp.out.bias.copy_(-100.0 * mlp.out.weight.sum(1))  # a torch layer: [out, in]
    return model


def ill_conditioned_model(d_model=16, n_layers=2, vocab=200, condition=1e6):
    """A float64 model whose embedding has the given condition number and three outlier dimensions."""
    model = toy_model(
        n_layers=n_layers, d_model=d_model, d_vocab=vocab, attn_only=False, norm="none"
    ).double()
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(vocab, d_model, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator).double())
    sizes = torch.logspace(0, -float(np.log10(condition)), d_model, dtype=torch.float64)
    embedding = latent * sizes @ turn.T
    embedding[:, :3] *= 1000
    with torch.no_grad():
        model.embed.weight.copy_(embedding + 5)
        model.pos_embed.weight.zero_()
    return model


def activations(model, ids, layer, site, skip=0):
    """Input and output of a site for all sequences, [sequence, position, d], float64."""
    ends = {
        "block": ("resid_pre", "resid_post"),
        "ffn": ("ffn_in", "ffn_out"),
        "attn": ("attn_in", "attn_out"),
    }
    spots = [(layer, end) for end in ends[site]]
    seen = run(model, ids, record=spots)
    return tuple(seen[spot][:, skip:].double() for spot in spots)


def numpy_r2(x, y, x_test=None, y_test=None, rounding=None):
    """R² of float64 ``numpy.linalg.lstsq`` with an intercept, held out when test rows are given.

    ``rounding``: directions below it, relative to the longest, are left out.
    """
    x, y = (t.flatten(0, -2).numpy() for t in (x, y))
    mean_x, mean_y = x.mean(0), y.mean(0)
    weight = np.linalg.lstsq(x - mean_x, y - mean_y, rcond=rounding)[0]
    if x_test is not None:
        x, y = (t.flatten(0, -2).numpy() for t in (x_test, y_test))
    missed = y - mean_y - (x - mean_x) @ weight
    return 1 - (missed**2).sum() / ((y - mean_y) ** 2).sum()


def split(ids, seed=0):
    """Token rows of the two halves."""
    train, test = halves(RowView(ids), seed=seed)
    return ids[train.index], ids[test.index]
