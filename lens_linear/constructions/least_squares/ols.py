"""Ordinary least squares as one linear-attention layer (Tan & Zhao 2026, arXiv 2604.13656).

Attention without softmax computes ``(Q Kᵀ) V``. Let ``XᵀX = V Λ Vᵀ`` and ``L = V Λ^{-1/2}``. With
``W_Q = W_K = L`` the score of a query row x* with a context row x is ``x* L Lᵀ xᵀ``, and all scores
together are the hat matrix ``X* (XᵀX)^{-1} Xᵀ``: what least squares multiplies the labels by. One
forward pass *is* the regression, with no iteration.

    in-context form   values = labels Y                        out = (X* L)(X L)ᵀ Y
    paper's form      W_V = L too, output map P = Lᵀ Xᵀ Y      out = (X* L)(X L)ᵀ (X L) P

Both give ``X* (XᵀX)^{-1} Xᵀ Y``. They differ in where the labels live: in the context (in-context
form) or in the weights (paper's form). See :mod:`lens_linear.constructions.least_squares.slow_fast`.

Limits: attention here has no softmax, no causal mask and no normalisation. The geometry L is fixed
when the module is built, so a context with another covariance gets a wrong answer until the layer
is rebuilt, or Newton-Schulz layers come before it (``newton_schulz.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_linear._tl import HookPoint
from lens_linear.checks import require_bool, require_choice
from lens_linear.constructions.least_squares.spectral import (
    RangedModule,
    SpectralRoot,
    as_design,
    as_outputs,
    centred,
    float_rows,
    minus,
    power_of_two,
    require_result,
    rounding,
    spectral_root,
    within_range,
)
from lens_linear.errors import InvalidArgumentError
from lens_linear.tables import Result

Form = Literal["in-context", "paper"]
Origin = Literal["data", "given", "trained", "edited"]
FORMS = ("in-context", "paper")
_MAX_SCORES = 50_000_000  # 400 MB


@dataclass(frozen=True, eq=False)
class HatMatrix(Result):
    """What the labels of the context are multiplied by: ``prediction = values @ Y``.

    On the context's own rows the diagonal is the *leverage*, and its sum the *effective degrees of
    freedom*. Least squares of those rows is a projection: leverage lies in [0, 1] and sums to the
    rank (plus 1 with an intercept). A ridge shrinks both: they sum to ``Σ λ / (λ + ridge)``. Weights
    made for another covariance bound neither; ``solution`` says which it is.
    """

    _figure = "hat_matrix"

    values: Float[Tensor, "q n"]
    on_training_rows: bool  # the queries are the context's own rows
    rank: int  # directions of x that the scores depend on, without the intercept
    intercept: bool
    solution: str  # as ``OLSAttention.solution`` says it

    @property
    def leverage(self) -> Float[Tensor, " n"]:
        """How far the prediction at each row follows its own label.

        Raises:
            InvalidArgumentError: the queries are other rows, which have no label in the context.
        """
        if not self.on_training_rows:
            raise InvalidArgumentError(
                "leverage belongs to the context's own rows, and this matrix was taken at others; "
                "call hat() without x_new"
            )
        return self.values.diagonal()

    @property
    def degrees_of_freedom(self) -> float:
        """Sum of the leverage: the rank (plus an intercept) for least squares, less with a ridge."""
        return float(self.leverage.sum())

    def __repr__(self) -> str:
        q, n = self.values.shape
        text = f"HatMatrix ({self.solution}): {q} queries × {n} context rows, rank {self.rank}"
        if not self.on_training_rows:
            return text
        low, high = float(self.leverage.min()), float(self.leverage.max())
        return (
            f"{text}; leverage {low:.3g} to {high:.3g}, {self.degrees_of_freedom:.4g} effective "
            "degrees of freedom"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a cell: ``query``, ``context``, ``weight`` (labels' unit per labels' unit)."""
        q, n = self.values.shape
        return pd.DataFrame(
            {
                "query": torch.arange(q).repeat_interleave(n).numpy(),
                "context": torch.arange(n).repeat(q).numpy(),
                "weight": self.values.reshape(-1).cpu().numpy(),
            }
        )


class OLSAttention(RangedModule):
    """A linear-attention layer whose forward pass is the ordinary-least-squares prediction.

    ``out = (X* W_Q)(X W_K)ᵀ V W_O`` with ``W_Q = W_K = L = V Λ^{-1/2}`` from ``XᵀX = V Λ Vᵀ``.
    Build it with :meth:`from_data`. Every step is a hook point, so ``run_with_cache`` and
    ``run_with_hooks`` work as on any TransformerLens model:

    ========================= ============ ====================================================
    hook                      shape        what
    ========================= ============ ====================================================
    hook_q, hook_k            [q,r] [n,r]  ``X* L`` and ``X L``; the columns of k are orthonormal
    hook_v                    [n,m]        labels (in-context) or ``X L`` (paper's form, [n,r])
    hook_scores               [q,n]        ``q kᵀ``, no softmax (times ``rows / n`` in a new context)
    hook_hat                  [q,n]        hat matrix: the scores, plus 1/n with an intercept
    hook_z                    [q,m]        ``hat @ v``
    hook_out                  [q,m]        the prediction
    ========================= ============ ====================================================

    The intercept is a second, uniform head: it reads the context's mean, which is taken from
    queries and keys before L is applied, and adds 1/n to every hat weight.

    ``L`` belongs to ``XᵀX`` of the ``geometry_rows`` rows that it was made from. What it stores is
    their covariance, and a context of n other rows has an ``XᵀX`` that is n / geometry_rows times as
    large: :meth:`with_context` therefore multiplies the scores by geometry_rows / n, and a context of
    any number of rows with that covariance gets its own regression. (A ridge grows with the rows.)

    The scores are queries × context. Where there would be more than 50 million of them and nothing
    is hooked to ``hook_scores`` or ``hook_hat``, the same product is taken in the other order, ``q
    (kᵀ v)``: the fast memory ``kᵀ v`` has a size that does not grow with the context.

    By hand: X = [[2, 1], [1, 2]], y = [4, 5].

    1. ``XᵀX = [[5, 4], [4, 5]]``: eigenvalues 9 and 1, eigenvectors (1, 1)/√2 and (1, -1)/√2.
    2. ``L = V Λ^{-1/2} = 1/√2 · [[1/3, 1], [1/3, -1]]``: first column divided by √9, second by √1.
    3. Keys ``X L = 1/√2 · [[1, 1], [1, -1]]``: orthonormal columns.
    4. Query x* = (1, 1): ``q = x* L = 1/√2 · (2/3, 0)``.
    5. Scores ``q · k``: 1/2 · 2/3 = 1/3 with the first row and 1/3 with the second.
    6. Prediction 1/3 · 4 + 1/3 · 5 = 3. Indeed the slopes are (1, 2), since 2·1 + 1·2 = 4 and
       1·1 + 2·2 = 5; and 1·1 + 1·2 = 3.

    >>> import torch
    >>> from lens_linear import OLSAttention
    >>> model = OLSAttention.from_data([[2.0, 1.0], [1.0, 2.0]], [4.0, 5.0])
    >>> prediction, cache = model.run_with_cache(torch.tensor([[1.0, 1.0]]))
    >>> round(prediction.item(), 12), [round(s, 12) for s in cache["hook_scores"][0].tolist()]
    (3.0, [0.333333333333, 0.333333333333])

    Source: Tan & Zhao 2026, arXiv 2604.13656 (the construction); von Oswald et al. 2023 (labels as
    values of linear attention).
    """

    context_x: Tensor
    context_y: Tensor
    _whole = ("context_x", "context_y", "W_Q", "W_K")

    @torch.inference_mode(False)  # what is made in inference mode can never be trained
    def __init__(
        self,
        *,
        w_q: Float[Tensor, "p r"],
        w_k: Float[Tensor, "p r"],
        w_v: Tensor,
        w_o: Tensor,
        context_x: Float[Tensor, "n p"],
        context_y: Float[Tensor, "n m"],
        form: Form = "in-context",
        intercept: bool = False,
        b_o: Float[Tensor, " m"] | None = None,
        spectrum: SpectralRoot | None = None,
        vector_output: bool = False,
        geometry_rows: int | None = None,
        origin: Origin = "given",
    ) -> None:
        """Take the weights as given; :meth:`from_data` computes them.

        ``geometry_rows`` are the rows whose ``XᵀX`` the weights belong to (None: the context's);
        ``origin`` says where the weights come from.
        """
        super().__init__()
        self.geometry_rows = len(context_x) if geometry_rows is None else geometry_rows
        self.origin: Origin = "data" if spectrum is not None else origin
        self.form: Form = form
        self.intercept = intercept
        self.spectrum = spectrum
        self.vector_output = vector_output
        self.W_Q = nn.Parameter(w_q.clone())
        self.W_K = nn.Parameter(w_k.clone())
        self.W_V = nn.Parameter(w_v.clone())
        self.W_O = nn.Parameter(w_o.clone())
        self.b_O = nn.Parameter(context_y.new_zeros(w_o.shape[1]) if b_o is None else b_o.clone())
        self.register_buffer("context_x", context_x.clone())
        self.register_buffer("context_y", context_y.clone())
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_scores, self.hook_hat = HookPoint(), HookPoint()
        self.hook_z, self.hook_out = HookPoint(), HookPoint()
        self._trained = [w.detach().clone() for w in self.parameters() if origin == "trained"]
        self.setup()  # type: ignore[no-untyped-call]

    @classmethod
    def from_data(
        cls,
        x: Any,
        y: Any,
        *,
        intercept: bool = False,
        ridge: float = 0.0,
        form: Form = "in-context",
        rtol: float | None = None,
    ) -> OLSAttention:
        """Weights and context from data: the layer that predicts what least squares predicts.

        Rank-deficient data (fewer rows than columns, collinear or constant columns) get the
        minimum-norm solution, as ``numpy.linalg.lstsq``; with ``ridge`` they get the ridge
        solution. Which one it is stands in ``solution``, in ``spectrum`` and in the ``repr``.
        (scikit-learn's LinearRegression drops directions below 1e-6 of the largest by default;
        ``rtol=1e-6`` does the same here.)

        Args:
            x: ``[n, p]`` inputs: tensor, numpy array, data frame or nested list. Everything is
                computed on the CPU in float64; ``.to()`` moves or rounds the finished module.
            y: ``[n]`` or ``[n, m]`` labels.
            intercept: add a constant, not penalised by the ridge. Off by default: the prediction
                then equals ``numpy.linalg.lstsq`` on the ``x`` given.
            ridge: added to the eigenvalues of ``XᵀX``: squared units of ``x``, summed over rows.
            form: ``"in-context"`` (labels are values) or ``"paper"`` (labels in the output map P).
            rtol: singular values below ``rtol`` times the largest count as zero; None takes numpy's
                ``eps * max(n, p)``.

        Returns:
            OLSAttention: ``predict(x_new)`` is one forward pass.

        Raises:
            InvalidArgumentError: shapes that do not fit, an unknown form, a negative ridge, an
                ``intercept`` that is no bool.
            NonFiniteError: NaN or infinity in ``x`` or ``y``.
            NotEnoughDataError: no rows or no columns.
        """
        x = as_design("x", x)
        y, vector = as_outputs("y", y, len(x))
        require_choice("form", form, FORMS)
        intercept = require_bool("intercept", intercept)
        design = centred(x)[0] if intercept else x
        noise = rounding(x) if intercept else None
        spectrum = spectral_root(design, ridge=ridge, rtol=rtol, noise=noise)
        return cls._of(x, y, spectrum, form=form, intercept=intercept, vector_output=vector)

    @classmethod
    def _of(
        cls,
        x: Float[Tensor, "n p"],
        y: Float[Tensor, "n m"],
        spectrum: SpectralRoot,
        *,
        form: Form,
        intercept: bool,
        vector_output: bool = False,
    ) -> OLSAttention:
        """The layer whose geometry is ``spectrum``, the root of these rows."""
        root = spectrum.root
        identity = torch.eye(y.shape[1], dtype=y.dtype)
        w_v, w_o, b_o = identity, identity, None
        if form == "paper":
            mean = y.mean(0) if intercept else torch.zeros_like(y[0])
            w_o = _onto((centred(x)[0] if intercept else x) @ root, y - mean)  # P = Lᵀ Xᵀ Y
            w_v, b_o = root, mean
        return cls(
            w_q=root,
            w_k=root,
            w_v=w_v,
            w_o=w_o,
            b_o=b_o,
            context_x=x,
            context_y=y,
            form=form,
            intercept=intercept,
            spectrum=spectrum,
            vector_output=vector_output,
        )

    def forward(self, x_new: Any) -> Float[Tensor, "q m"]:
        """Predict the rows of ``x_new`` ``[q, p]`` from the stored context; always ``[q, m]``."""
        queries, keys = self._centred_on_context(self._as_queries(x_new))
        q = self.hook_q(queries @ self.W_Q)
        k = self.hook_k(keys @ self.W_K)
        v = self.hook_v((keys if self.form == "paper" else self.context_y) @ self.W_V)
        if self._scores_wanted(len(q)):
            scores = self.hook_scores(q @ k.T * self.share)
            hat = self.hook_hat(scores + 1.0 / len(k) if self.intercept else scores)
            z = hat @ v
        else:
            z = q @ (k.T @ v) * self.share + (v.mean(0) if self.intercept else 0.0)
        return require_result(self.hook_out(self.hook_z(z) @ self.W_O + self.b_O))

    def predict(self, x_new: Any) -> Tensor:
        """The prediction for ``x_new`` ``[q, p]`` in one forward pass, without gradients.

        Returns:
            Tensor: ``[q]`` if the labels had one axis, else ``[q, m]``; float64, unless the module
            was moved to another dtype.

        Raises:
            InvalidArgumentError: the number of columns differs from the training data's.
        """
        with torch.no_grad():
            out = self.forward(x_new)
        return out[:, 0] if self.vector_output else out

    def with_context(self, x: Any, y: Any) -> OLSAttention:
        """The same weights over another context: slow memory kept, fast memory swapped.

        A context of the covariance that the weights hold is answered with its own least squares,
        whatever its number of rows; another covariance costs what :func:`covariance_shift
        <lens_linear.constructions.covariance_shift>` measures. The paper's form has its labels in
        the weights and answers with those.

        Args:
            x: ``[n', p]`` inputs of the new context; any number of rows.
            y: ``[n']`` or ``[n', m]`` labels; read only by the in-context form.
        """
        x = as_design("x", x)
        y, vector = as_outputs("y", y, len(x))
        if x.shape[1] != self.W_Q.shape[0] or y.shape[1] != self.context_y.shape[1]:
            raise InvalidArgumentError(
                f"the context must have {self.W_Q.shape[0]} inputs and {self.context_y.shape[1]} "
                f"outputs like the weights, got {x.shape[1]} and {y.shape[1]}; "
                "build a new module with from_data"
            )
        return OLSAttention(
            w_q=self.W_Q.detach(),
            w_k=self.W_K.detach(),
            w_v=self.W_V.detach(),
            w_o=self.W_O.detach(),
            b_o=self.b_O.detach(),
            context_x=within_range("x", x, self.W_Q, whole=True),
            context_y=within_range("y", y, self.W_Q, whole=True),
            form=self.form,
            intercept=self.intercept,
            spectrum=self.spectrum,
            vector_output=vector,
            geometry_rows=self.geometry_rows,
            origin=self._origin(),
        )

    @property
    def solution(self) -> str:
        """What the layer answers with *now*, weights and context as they stand.

        ``"unique"``, ``"minimum-norm"`` or ``"ridge"`` where it is that least squares on its present
        context, which is computed again and compared; ``"other data"`` where weights or context
        have changed since :meth:`from_data` so that it is not; ``"trained"``, ``"edited"`` for trained
        weights that were changed since; ``"given"`` for weights set by hand.
        """
        return self._origin() if self.spectrum is None else self._present()[0]

    def _origin(self) -> Origin:
        """Where the weights come from, as they stand now."""
        if self.origin != "trained":
            return self.origin
        pairs = zip(self.parameters(), self._trained, strict=True)
        same = all(torch.equal(now.detach(), then.to(now)) for now, then in pairs)
        return "trained" if same else "edited"

    def _present(self) -> tuple[str, float]:
        """The solution as it is now, and the distance of its predictions from least squares."""
        own = self._own()
        if own is None:
            return "other data" if self.spectrum else self._origin(), math.nan
        fit, tolerance, spread = own
        want, got = fit._slopes(torch.float64) * spread, self._slopes(torch.float64) * spread
        constant = fit.b_O.detach()
        moved = self.b_O.detach().cpu().double() - constant
        distance = _relative(
            torch.cat([got - want, moved[None]]), torch.cat([want, constant[None]])
        )
        if self.spectrum is None or fit.spectrum is None:
            return self._origin(), distance
        return fit.spectrum.solution if distance <= tolerance else "other data", distance

    def _own(self) -> tuple[OLSAttention, float, Float[Tensor, "p 1"]] | None:
        """Least squares of the present context, what rounding may move its slopes by, and the inputs' units.

        None where weights or context hold NaN or infinity.
        """
        held = (self.context_x, self.context_y, *(w.detach() for w in self.parameters()))
        if not all(bool(torch.isfinite(part).all()) for part in held):
            return None
        x, y = as_design("context_x", self.context_x), self.context_y.detach().cpu().double()
        exact = self.context_x.dtype == torch.float64
        # Columns that were collinear before they were moved to another dtype are so up to its rounding.
        noise = None if exact and not self.intercept else rounding(self.context_x.detach().cpu())
        built = self.spectrum
        spectrum = spectral_root(
            centred(x)[0] if self.intercept else x,
            ridge=(built.ridge if built else 0.0) / self.share,
            rtol=built.rtol if built and exact else None,
            noise=noise,
        )
        own = OLSAttention._of(x, y, spectrum, form=self.form, intercept=self.intercept)
        # In units of each input, so that no column counts for its scale. A dtype rounds weights and
        # context by its eps of their size; over the smallest singular value, that is of the slopes.
        spread = x.abs().amax(0).clamp(min=torch.finfo(x.dtype).tiny)[:, None]
        reach = (x / spread.T).norm() * torch.linalg.matrix_norm(spectrum.root * spread, 2)
        eps = torch.finfo(self.W_Q.dtype).eps
        return own, min(0.1, max(1e-6, 10 * eps * float(reach))), spread

    @property
    def coefficients(self) -> Float[Tensor, "p m"]:
        """The slopes the forward pass amounts to: prediction = x* @ coefficients (+ constant)."""
        return self._slopes(self.W_Q.dtype)

    def _slopes(self, dtype: torch.dtype) -> Float[Tensor, "p m"]:
        """:attr:`coefficients` multiplied out in a dtype: long sums in float32 add an error of their own."""
        w_q, w_k, w_v, w_o, x, y = (
            part.detach().to(dtype)
            for part in (self.W_Q, self.W_K, self.W_V, self.W_O, self.context_x, self.context_y)
        )
        keys = centred(x)[0] if self.intercept else x
        values = (keys if self.form == "paper" else y) @ w_v
        slopes: Tensor = w_q @ ((keys @ w_k).T @ values) @ w_o * self.share
        return slopes.cpu() if dtype != self.W_Q.dtype else slopes

    def hat(self, x_new: Any = None) -> HatMatrix:
        """The hat matrix of ``x_new``, or of the context's own rows when it is None.

        Raises:
            InvalidArgumentError: it would hold more than 50 million weights (400 MB).
        """
        rows = self.context_x if x_new is None else self._as_queries(x_new)
        if len(rows) * len(self.context_x) > _MAX_SCORES:
            raise InvalidArgumentError(
                f"x_new must have at most {_MAX_SCORES // len(self.context_x)} rows for the hat "
                f"matrix over {len(self.context_x)} context rows, got {len(rows)}; pass some of "
                "the rows"
            )
        values, solution = self._hat_values(rows), self.solution
        rank = _product_rank(self.W_Q, self.W_K)
        own = self._own() if solution in ("unique", "minimum-norm", "ridge") else None
        if own is not None and own[0].spectrum is not None:
            # Compared as a matrix: labels along a few directions can be met by weights of other rows.
            rank, want = own[0].spectrum.rank, own[0]._hat_values(rows.detach().cpu().double())
            if not _relative(values.cpu().double() - want, want) <= own[1]:
                solution = "other data"
        return HatMatrix(
            values=values,
            on_training_rows=x_new is None,
            rank=rank,
            intercept=self.intercept,
            solution=solution,
        )

    def _hat_values(self, rows: Float[Tensor, "q p"]) -> Float[Tensor, "q n"]:
        with torch.no_grad():
            _, cache = self.run_with_cache(rows, names_filter="hook_hat")
        values: Tensor = cache["hook_hat"]
        return values

    def to_dataframe(self) -> pd.DataFrame:
        """One row a slope: ``feature``, ``output``, ``coefficient``."""
        slopes = self.coefficients
        p, m = slopes.shape
        return pd.DataFrame(
            {
                "feature": torch.arange(p).repeat_interleave(m).numpy(),
                "output": torch.arange(m).repeat(p).numpy(),
                "coefficient": slopes.reshape(-1).cpu().numpy(),
            }
        )

    def __repr__(self) -> str:
        n, p, m = len(self.context_x), self.W_Q.shape[0], self.context_y.shape[1]
        text = f"OLSAttention ({self.form} form): n = {n} context rows, "
        text += f"p = {p} inputs, m = {m} outputs"
        solution, distance = self._present()
        if self.spectrum is None:
            how = {
                "given": "given by hand",
                "trained": "trained by gradient descent",
                "edited": "trained by gradient descent and edited since",
            }
            text += f"; weights {how[solution]}; beside this context's least squares {_how_far(distance)}"
        elif solution == "other data":
            text += (
                f"; weights made from {self.geometry_rows} rows, not (or no longer) the least squares "
                f"of this context: {_how_far(distance)}"
            )
        else:
            text += f", rank {self.spectrum.rank}; {self._least_squares(solution)}"
        return text + (", with intercept" if self.intercept else ", no intercept")

    def _least_squares(self, solution: str) -> str:
        """In words, which least squares of the context the layer is."""
        if solution == "unique":
            return "the unique least-squares solution"
        if solution == "ridge":
            ridge = self.spectrum.ridge if self.spectrum is not None else 0.0
            return (
                f"ridge solution with ridge = {ridge * len(self.context_x) / self.geometry_rows:g}"
            )
        rows, p = (
            len(self.context_x) - self.intercept,
            self.W_Q.shape[0],
        )  # an intercept uses one up
        why = f"{rows} free rows < p" if rows < p else "collinear or constant columns"
        return f"minimum-norm solution ({why}; pass ridge > 0 for another choice)"

    @property
    def share(self) -> float:
        """Rows that the geometry was made from, over rows of the context: a factor of the scores."""
        return self.geometry_rows / len(self.context_x)

    def _as_queries(self, x_new: Any) -> Float[Tensor, "q p"]:
        x = within_range("x_new", float_rows("x_new", x_new), self.W_Q)
        if x.shape[1] != self.W_Q.shape[0]:
            raise InvalidArgumentError(
                f"x_new must have {self.W_Q.shape[0]} columns like the training data, got shape "
                f"{tuple(x.shape)}; pass the same features in the same order"
            )
        return x

    def _scores_wanted(self, queries: int) -> bool:
        """Few enough to hold, or hooked."""
        hooks = (self.hook_scores, self.hook_hat)
        return queries * len(self.context_x) <= _MAX_SCORES or any(
            hook._forward_hooks or hook._forward_pre_hooks or hook._backward_hooks for hook in hooks
        )

    def _centred_on_context(self, x: Float[Tensor, "q p"]) -> tuple[Tensor, Tensor]:
        """Queries and keys, minus the context's mean when there is an intercept."""
        if not self.intercept:
            return x, self.context_x
        keys, centre = centred(self.context_x)
        # The same two subtractions for both, so that a query that is a key stands where it stands.
        return minus(x, centre), keys


def _relative(difference: Tensor, size: Tensor) -> float:
    """A difference in units of what it is measured against; 0 where both are zero."""
    unit = power_of_two(size)  # squares of 1e-200 or 1e200 leave the range
    off, whole = float((difference / unit).norm()), float((size / unit).norm())
    return off / whole if whole else (math.inf if off else 0.0)


def _how_far(distance: float) -> str:
    """Of the slopes from least squares on the context, in words."""
    if math.isnan(distance):
        return "they hold NaN or infinity, or the context does"
    return f"its slopes are off by {distance:.2g} of their size"


def _onto(keys: Float[Tensor, "n r"], y: Float[Tensor, "n m"]) -> Float[Tensor, "r m"]:
    """Slopes of y on the keys: ``Kᵀ Y`` where the keys are orthonormal.

    A ridge leaves ``KᵀK = Λ / (Λ + ridge)``, which P has to undo; solved with columns of unit
    length, because Λ may spread over many decades.
    """
    scale = keys.norm(dim=0)
    slopes: Tensor = torch.linalg.lstsq(keys / scale, y).solution / scale[:, None]
    return slopes


def _product_rank(w_q: Tensor, w_k: Tensor) -> int:
    """Rank of ``W_Q W_Kᵀ``, each brought to size one first: the product of extreme scales has no number."""
    if not w_q.numel():
        return 0
    tiny = torch.finfo(torch.float64).tiny
    both = (w_q.detach().double(), w_k.detach().double())
    q, k = (w / w.abs().amax().clamp(min=tiny) for w in both)
    return int(torch.linalg.matrix_rank(q @ k.T))
