"""Linear-attention layers that compute the inverse covariance in context.

:class:`~lens_linear.constructions.least_squares.ols.OLSAttention` reads the geometry ``L`` from its
weights, so it is right for one covariance only. Stack the layer

    h ← 3/2 h - 1/2 (h Kᵀ) K        for every token h: queries and keys alike

before it: a residual connection and one linear attention with ``W_Q = W_K = W_V = I``, where K
holds the context's tokens. This is the Newton-Schulz iteration: each singular value s of K becomes
``s (3 - s²) / 2``, whose fixed point is 1, so K tends to a matrix with orthonormal columns and
``KᵀK``, the fast memory, to the identity. Queries go through the same maps, so the final readout
``q Kᵀ Y`` tends to ``x* (XᵀX)^{-1} Xᵀ Y``, whatever the context's covariance. No weight depends on
the context; one scalar does: tokens are first divided by ``‖KᵀK‖_F^{1/2}``, as a norm layer would,
to bring every singular value into (0, 1]. (Before that by their largest entry, a power of two: the
squares of inputs of 1e20 overflow in float32.)

A small singular value grows by 3/2 a layer until it is near 1, then converges quadratically: about
``log(1/s) / log 1.5`` layers and a handful more. Starting from the slow memory L instead of I makes
s depend on how far the covariance has *shifted*, not on its condition number.

>>> import torch
>>> x, y = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([4.0, 5.0])
>>> deep = NewtonSchulzAttention(2, layers=8).with_context(x, y)
>>> round(deep.predict(torch.tensor([[1.0, 1.0]])).item(), 9)
3.0

Source: Schulz 1933 (the iteration); Fu et al. 2024, arXiv 2310.17086 and Giannou et al. 2024,
arXiv 2403.03183 (Newton steps in transformers; their constructions differ from this one).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_linear._tl import HookPoint
from lens_linear.checks import counted, require_float, require_int
from lens_linear.constructions.least_squares.ols import OLSAttention
from lens_linear.constructions.least_squares.spectral import (
    RangedModule,
    as_design,
    as_outputs,
    float_rows,
    power_of_two,
    require_result,
    within_range,
)
from lens_linear.errors import InvalidArgumentError, NonFiniteError
from lens_linear.linalg.precision import own_modes


class NewtonSchulzLayer(nn.Module):
    """``h ← 3/2 h - 1/2 (h Kᵀ) K`` for queries and keys; ``KᵀK`` passes through ``hook_memory``.

    The attention is computed as ``h (KᵀK)``: the same product, without the tokens × tokens scores.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hook_memory, self.hook_q, self.hook_k = HookPoint(), HookPoint(), HookPoint()

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """One step for both streams."""
        memory = self.hook_memory(k.T @ k)
        return self.hook_q(1.5 * q - 0.5 * q @ memory), self.hook_k(1.5 * k - 0.5 * k @ memory)


class NewtonSchulzAttention(RangedModule):
    """Least squares for any context: Newton-Schulz layers, then one linear-attention readout.

    Weights: ``W_in`` ``[p, r]``, applied to every token once. The identity by default; pass the L
    of an :class:`OLSAttention` to start from a slow memory. Hook points: ``layers.i.hook_memory``
    ``[r, r]``, ``layers.i.hook_q``, ``layers.i.hook_k``, then ``hook_scores`` and ``hook_out``.
    Directions in which the context does not vary stay at zero: with enough layers the answer is the
    minimum-norm solution in the coordinates after ``W_in``; with few, small directions are damped,
    as by a ridge.

    Args:
        inputs: number of columns p of x.
        layers: Newton-Schulz layers; 0 is one linear attention with a normalised step.
        w_in: ``[p, r]`` input weights; None is the identity.
    """

    context_x: Tensor
    context_y: Tensor
    _whole = ("context_x", "context_y", "W_in")
    _fixed = ("number of layers",)

    @own_modes()
    def __init__(self, inputs: int, *, layers: int, w_in: Any = None) -> None:
        super().__init__()
        inputs = require_int("inputs", inputs, minimum=1)
        layers = require_int("layers", layers, minimum=0)
        weight = torch.eye(inputs, dtype=torch.float64)
        if w_in is not None:
            weight = as_design("w_in", w_in)
        if len(weight) != inputs:
            raise InvalidArgumentError(
                f"w_in must have one row for each of the {inputs} inputs, got {tuple(weight.shape)}"
                "; pass the L of an OLSAttention built on the same columns"
            )
        self.W_in = nn.Parameter(weight.clone())
        self.layers = nn.ModuleList(NewtonSchulzLayer() for _ in range(layers))
        self.hook_scores, self.hook_out = HookPoint(), HookPoint()
        self.register_buffer("context_x", weight.new_zeros(0, inputs))
        self.register_buffer("context_y", weight.new_zeros(0, 0))
        self.vector_output = False
        self.setup()  # type: ignore[no-untyped-call]

    def _settings(self) -> dict[str, float]:
        return {"number of layers": len(self.layers), "vector_output": self.vector_output}

    @own_modes()
    def with_context(self, x: Any, y: Any) -> NewtonSchulzAttention:
        """The same weights over a context ``x`` ``[n, p]``, ``y`` ``[n]`` or ``[n, m]``."""
        x = as_design("x", x)
        y, vector = as_outputs("y", y, len(x))
        if x.shape[1] != len(self.W_in):
            raise InvalidArgumentError(
                f"x must have {len(self.W_in)} columns like W_in, got shape {tuple(x.shape)}"
            )
        new = NewtonSchulzAttention(
            len(self.W_in), layers=len(self.layers), w_in=self.W_in.detach()
        )
        new.to(device=self.W_in.device, dtype=self.W_in.dtype)
        new.context_x = within_range("x", x, self.W_in, whole=True).clone()
        new.context_y = within_range("y", y, self.W_in, whole=True).clone()
        new.vector_output = vector
        return new

    def forward(self, x_new: Any) -> Float[Tensor, "q m"]:
        """Predict the rows of ``x_new`` ``[q, p]``; always ``[q, m]``."""
        if not len(self.context_x):
            raise InvalidArgumentError("this module has no context yet; call with_context(x, y)")
        queries = within_range("x_new", float_rows("x_new", x_new), self.W_in)
        if queries.shape[1] != len(self.W_in):
            raise InvalidArgumentError(
                f"x_new must have {len(self.W_in)} columns, got shape {tuple(queries.shape)}"
            )
        # Sums of squares of a long context leave half precision: float32 at least, rounded at the end.
        wide = torch.promote_types(self.W_in.dtype, torch.float32)
        queries, keys, weight = queries.to(wide), self.context_x.to(wide), self.W_in.to(wide)
        weight, inputs = _matched(keys, weight)
        q, k = (queries / inputs) @ weight, (keys / inputs) @ weight
        size = power_of_two(k)  # W_in may be the L of very small or large inputs
        q, k = q / size, k / size
        size = torch.linalg.matrix_norm(k.T @ k).sqrt()
        size = torch.where(size > 0, size, torch.ones_like(size))  # a context of zeros
        q, k = q / size, k / size
        for layer in self.layers:
            q, k = layer(q, k)
        values = self.context_y.to(wide)
        unit = power_of_two(values)
        out = self.hook_scores(q @ k.T) @ (values / unit) * unit
        return require_result(self.hook_out(out.to(self.W_in.dtype)))

    def flops(self, n: int, queries: int, outputs: int = 1) -> int:
        """Multiplications and additions of one forward pass over n context rows.

        ``2 (n + q) p r`` for W_in, ``2 n r²`` for the normalising KᵀK, ``2 r² (2 n + q)`` a layer,
        ``2 r m (n + q)`` for the readout taken as ``q (Kᵀ Y)``.
        """
        p, r = self.W_in.shape
        layer = 2 * r * r * (2 * n + queries)
        start = 2 * p * r * (n + queries) + 2 * n * r * r
        return start + layer * len(self.layers) + 2 * r * outputs * (n + queries)

    def __repr__(self) -> str:
        p, r = self.W_in.shape
        return (
            f"NewtonSchulzAttention: {counted(len(self.layers), 'layer')}, p = {counted(p, 'input')}, "
            f"width {r}, "
            f"context of n = {counted(len(self.context_x), 'row')}"
        )


def _matched(
    keys: Float[Tensor, "n p"], weight: Float[Tensor, "p r"]
) -> tuple[Float[Tensor, "p r"], Float[Tensor, " p"]]:
    """``X W`` up to one factor as ``(X / inputs) @ weight``, both near size one.

    W_in may undo the scales of the columns of x one by one, over the whole range of the dtype: neither
    factor may be divided by a number that serves all columns.
    """
    inputs, rows = power_of_two(keys, dim=0), power_of_two(weight, dim=1)
    power = torch.frexp(inputs).exponent + torch.frexp(rows).exponent
    used = keys.ne(0).any(0) & weight.detach().ne(0).any(1)
    power = power - (power[used].max() if bool(used.any()) else 0)
    half = power // 2  # 2^power alone may have no number
    one = torch.ones_like(rows)
    scaled = weight / rows[:, None]
    for part in (half, power - half):
        scaled = scaled * torch.ldexp(one, part)[:, None]
    limit = torch.finfo(weight.dtype)
    reached = scaled.detach()[used].abs().sum(0) * limit.eps < limit.tiny
    if bool((reached & weight.detach()[used].ne(0).any(0)).any()):
        raise NonFiniteError(
            f"the columns of x @ W_in differ in size by more than {weight.dtype} can hold; pass a w_in that "
            "brings them to one size (W_Q of an OLSAttention), or use module.double()"
        )
    return scaled, inputs


def gradient_step_attention(x: Any, y: Any, *, learning_rate: float) -> OLSAttention:
    """One gradient-descent step as linear attention: ``ŷ = (η/n) x* Xᵀ Y``.

    The step from zero slopes on ``‖Y - Xβ‖² / 2n``. It is the in-context layer with ``L = √(η/n)
    I``: the least-squares construction is the same step, preconditioned by ``n (XᵀX)^{-1}``, at η =
    1.

    Args:
        x: ``[n, p]`` context.
        y: ``[n]`` or ``[n, m]`` labels.
        learning_rate: η, at least 0; inverse squared units of x.

    Returns:
        OLSAttention with that geometry; ``.predict(rows)`` gives ŷ in units of y, 0 for η = 0. Over
        another context (``with_context``) the step is divided by that context's number of rows.

    Raises:
        InvalidArgumentError: shapes that do not fit, or a negative ``learning_rate``.

    Source: von Oswald et al. 2023, *Transformers learn in-context by gradient descent*,
    Proposition 1.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([2.0, 4.0])
        >>> layer = gradient_step_attention(x, y, learning_rate=1.0)
        >>> round(layer.predict(torch.tensor([[1.0, 1.0]])).item(), 6)  # (2 + 4) / n
        3.0
    """
    x = as_design("x", x)
    y, vector = as_outputs("y", y, len(x))
    rate = require_float("learning_rate", learning_rate, minimum=0.0)
    weight = (rate / len(x)) ** 0.5 * torch.eye(x.shape[1], dtype=x.dtype)
    identity = torch.eye(y.shape[1], dtype=y.dtype)
    return OLSAttention(
        w_q=weight,
        w_k=weight,
        w_v=identity,
        w_o=identity,
        context_x=x,
        context_y=y,
        vector_output=vector,
    )
