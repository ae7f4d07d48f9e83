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
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_linear._tl import HookPoint
from lens_linear.checks import counted, require_bool, require_choice
from lens_linear.constructions.least_squares.effect import (
    Allowance,
    Units,
    distance,
    effect,
    keys_of,
    reduced,
    same_scores,
    slopes_of,
    units_of,
    without_units,
)
from lens_linear.constructions.least_squares.hat import HOW, LEAST_SQUARES, HatMatrix
from lens_linear.constructions.least_squares.spectral import (
    RangedModule,
    SpectralRoot,
    as_design,
    as_outputs,
    centred,
    default_rtol,
    float_rows,
    minus,
    require_result,
    rounding,
    spectral_root,
    within_range,
)
from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg.precision import own_modes
from lens_linear.tables import cells

Form = Literal["in-context", "paper"]
Origin = Literal["data", "given", "trained", "edited"]
FORMS = ("in-context", "paper")
_MAX_SCORES = 50_000_000  # 400 MB


class _Standing(NamedTuple):
    solution: str  # as OLSAttention.solution
    distance: float  # of its slopes from least squares, relative
    answers: bool  # with the least squares of its context, up to rounding
    alike: bool  # it weighs the rows of the context as that does, whatever their labels
    spectrum: SpectralRoot | None  # of the context


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

    @own_modes()
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

    _fixed = ("form", "intercept")

    def _settings(self) -> dict[str, float]:
        built = self.spectrum
        return {
            "geometry_rows": self.geometry_rows,
            "form": FORMS.index(self.form),
            "intercept": self.intercept,
            "ridge": built.ridge if built else math.nan,
            "rtol": built.rtol if built else math.nan,
            "vector_output": self.vector_output,
        }

    def _adopt(self, settings: dict[str, float]) -> None:
        self.geometry_rows = int(settings["geometry_rows"])
        super()._adopt(settings)
        if self.spectrum is not None and not math.isnan(settings["ridge"]):
            ridge, rtol = settings["ridge"], settings["rtol"]
            self.spectrum = replace(self.spectrum, ridge=ridge, rtol=rtol)

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
        return self._origin() if self.spectrum is None else self._standing().solution

    def _origin(self) -> Origin:
        """Where the weights come from, as they stand now."""
        if self.origin != "trained":
            return self.origin
        pairs = zip(self.parameters(), self._trained, strict=True)
        same = all(torch.equal(now.detach(), then.to(now)) for now, then in pairs)
        return "trained" if same else "edited"

    def _standing(self) -> _Standing:
        """How the layer stands to the least squares of its present context."""
        origin: str = "other data" if self.spectrum else self._origin()
        held = (self.context_x, self.context_y, *(w.detach() for w in self.parameters()))
        if not all(bool(torch.isfinite(part).all()) for part in held):
            return _Standing(origin, math.nan, False, False, None)
        units = units_of(self)
        fit, allowed = self._own(units)
        rows = reduced(keys_of(self, units))
        want, got = effect(fit, units, rows), effect(self, units, rows)
        off = distance(got, want, rows, allowed)
        answers = off <= allowed.relative
        alike = same_scores(got, want, rows, allowed.relative)
        if self.spectrum is not None and fit.spectrum is not None and answers:
            origin = fit.spectrum.solution
        return _Standing(origin, off, answers, alike, fit.spectrum)

    def _own(self, units: Units) -> tuple[OLSAttention, Allowance]:
        """Least squares of the present context, and what rounding may move it by."""
        x, y = self.context_x.detach().cpu().double(), self.context_y.detach().cpu().double()
        exact = self.context_x.dtype == torch.float64
        # Columns that were collinear before they were moved to another dtype are so up to its rounding.
        noise = None if exact and not self.intercept else rounding(self.context_x.detach().cpu())
        built = self.spectrum
        # One that was chosen stays; the default is that of as many rows as there are now.
        chosen = built is not None and built.rtol != default_rtol(built.n, built.p)
        spectrum = spectral_root(
            centred(x)[0] if self.intercept else x,
            ridge=(built.ridge if built else 0.0) / self.share,
            rtol=built.rtol if built and chosen and exact else None,
            noise=noise,
        )
        own = OLSAttention._of(x, y, spectrum, form=self.form, intercept=self.intercept)
        # A dtype rounds weights and context by its eps of their size; over the smallest singular value,
        # that is of the slopes. Labels that x does not explain leave what rounding leaves of them.
        root = torch.linalg.matrix_norm(spectrum.root * units.inputs[:, None], 2)
        reach = float((x / units.inputs).norm() * root)
        eps, wide = torch.finfo(self.W_Q.dtype).eps, torch.finfo(torch.float64).eps
        labels = y / units.outputs
        left = (10 * wide * reach + 2 * eps * (self.form == "paper")) * labels.norm(dim=0)
        return own, Allowance(
            relative=min(0.1, max(1e-6, 10 * eps * reach)),
            slopes=left * root,
            fitted=left,
            constant=10 * eps * labels.abs().amax(0),
            spread=labels.std(0, correction=0),
        )

    @property
    def coefficients(self) -> Float[Tensor, "p m"]:
        """The slopes the forward pass amounts to: prediction = x* @ coefficients (+ constant).

        Raises:
            NonFiniteError: they leave the range of the module's dtype, or NaN stands in the module.
        """
        units = units_of(self)
        return without_units(slopes_of(self, units, keys_of(self, units)), units, self.W_Q.detach())

    def hat(self, x_new: Any = None) -> HatMatrix:
        """The matrix that multiplies the labels, at ``x_new`` or at the context's own rows (None).

        The hat matrix where the layer is the least squares of its context, which is checked for every
        query and label, not only for those at hand. Otherwise, in the in-context form, the smoother
        matrix of the weights as they are, which is not bound to a projection; ``solution`` says so.

        Raises:
            InvalidArgumentError: no matrix multiplies the labels (in the paper's form they stand in the
                weights), or it would hold more than 50 million entries (400 MB).
        """
        rows = self.context_x if x_new is None else self._as_queries(x_new)
        if len(rows) * len(self.context_x) > _MAX_SCORES:
            raise InvalidArgumentError(
                f"x_new must have at most {_MAX_SCORES // len(self.context_x)} rows for the hat "
                f"matrix over {len(self.context_x)} context rows, got {len(rows)}; pass some of "
                "the rows"
            )
        with torch.no_grad():
            _, cache = self.run_with_cache(rows, names_filter="hook_hat")
        standing = self._standing()
        solution, rank = standing.solution, _product_rank(self.W_Q, self.W_K)
        own = standing.answers and standing.alike
        if own and standing.spectrum is not None:
            rank = standing.spectrum.rank
        else:
            # Labels along a few directions can be met by weights of other rows.
            solution = "other data" if solution in LEAST_SQUARES else solution
            if self.form == "paper":
                raise InvalidArgumentError(
                    "hat() of the paper's form needs a layer that is the least squares of its context: "
                    f"labels stand in W_O and no matrix multiplies those of the context ({HOW[solution]}); "
                    "read hook_scores with run_with_cache, or build the layer with from_data(x, y)"
                )
        return HatMatrix(
            values=cache["hook_hat"] * self._label_factor(),
            on_training_rows=x_new is None,
            rank=rank,
            intercept=self.intercept,
            solution=solution,
            least_squares=own,
        )

    def _label_factor(self) -> float:
        """The factor that the in-context readout ``W_V W_O`` puts on all labels; it may not mix them."""
        if self.form == "paper":
            return 1.0
        read = self.W_V.detach().cpu().double() @ self.W_O.detach().cpu().double()
        factor = float(read.diagonal().mean())
        mixed = float((read - factor * torch.eye(len(read))).norm()) > 1e-6 * float(read.norm())
        added = self.b_O.detach().abs() > 1e-6 * self.context_y.abs().amax(0)
        if mixed or bool(added.any()):
            raise InvalidArgumentError(
                "hat() needs a layer that multiplies its labels by one matrix, but here "
                + ("W_V @ W_O mixes or weighs outputs" if mixed else "b_O is added to them")
                + "; make W_V @ W_O a multiple of the identity and b_O zero, or read hook_hat with "
                "run_with_cache"
            )
        return factor

    def to_dataframe(self) -> pd.DataFrame:
        """One row a slope: ``feature``, ``output``, ``coefficient``."""
        slopes = self.coefficients
        p, m = slopes.shape
        return cells({"feature": range(p), "output": range(m)}, {"coefficient": slopes})

    def __repr__(self) -> str:
        n, p, m = len(self.context_x), self.W_Q.shape[0], self.context_y.shape[1]
        text = f"OLSAttention ({self.form} form): n = {counted(n, 'context row')}, "
        text += f"p = {counted(p, 'input')}, m = {counted(m, 'output')}"
        solution, distance = self._standing()[:2]
        if self.spectrum is None:
            text += f"; {HOW[solution]}; beside this context's least squares {_how_far(distance)}"
        elif solution == "other data":
            text += (
                f"; weights made from {counted(self.geometry_rows, 'row')}, not (or no longer) the "
                f"least squares "
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
        # An intercept uses one row up.
        rows, p = len(self.context_x) - self.intercept, self.W_Q.shape[0]
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
