"""Data with a known answer, and slow obvious versions, for the tests of this room."""

import numpy as np
import torch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def planted(r_squared, n=300, d_in=6, d_out=3, seed=0):
    """y = signal + noise orthogonal to [1, x], so the true R² is exactly ``r_squared``."""
    x, w, noise = (
        normal(n, d_in, seed=seed),
        normal(d_in, d_out, seed=seed + 1),
        normal(n, d_out, seed=seed + 2),
    )
    basis, _ = torch.linalg.qr(torch.cat([torch.ones(n, 1, dtype=x.dtype), x], dim=1))
    noise = noise - basis @ (basis.T @ noise)
    signal = (x - x.mean(0)) @ w
    return x, signal + noise * (signal.norm() / noise.norm()) * (1 / r_squared - 1) ** 0.5


def ill_conditioned(n=900, d=40, kind="all", condition=1e6, seed=0):
    """x with the given condition number, three columns then 1000 times the rest, shifted by 5.

    y depends on the bulk of x, on all directions alike, or on the smallest one only; plus noise.
    """
    latent = normal(n, d, seed=seed)
    turn, _ = torch.linalg.qr(normal(d, d, seed=seed + 1))
    sizes = torch.logspace(0, -float(np.log10(condition)), d, dtype=torch.float64)
    x = latent * sizes @ turn.T
    x[:, :3] *= 1000
    x = x + 5
    source = {"bulk": x, "all": latent, "smallest": latent[:, -1:]}[kind]
    y = source @ normal(source.shape[1], 5, seed=seed + 2)
    return x, y + 0.8 * y.std() * normal(n, 5, seed=seed + 3)


def numpy_fit(x, y):
    """Predictions and in-sample R² of float64 ``numpy.linalg.lstsq`` on centred rows."""
    xc, yc = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    weight, _, rank, _ = np.linalg.lstsq(xc, yc, rcond=None)
    fitted = xc @ weight
    r_squared = 1 - ((yc - fitted) ** 2).sum() / (yc**2).sum()
    return torch.from_numpy(fitted) + y.mean(0), r_squared, int(rank), torch.from_numpy(weight)
