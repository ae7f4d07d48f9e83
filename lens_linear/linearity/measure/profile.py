"""How linear is each block, FFN and attention layer of a model: one pass, held out, with its null.

For every layer the best affine map from what goes in to what comes out is fitted in closed form, and its
fraction of explained variance is reported. ``block`` maps the residual stream before a block to the
stream after it, so it contains the identity: a block that adds little scores near 1 whatever it computes.
``block_r2_no_residual`` scores the same map on what the block *adds*. ``ffn`` and ``attn`` map what the
sublayer reads (after its norm) to what it writes.

Sources: Razzhigaev et al. 2024, arXiv 2405.12250 (blocks); Whipp 2026, arXiv 2606.19379 (FFNs).

>>> import torch
>>> from lens_linear.models.open.toy import toy_model
>>> model = toy_model(n_layers=2, d_model=16, attn_only=False)
>>> tokens = torch.randint(64, (40, 16), generator=torch.Generator().manual_seed(0))
>>> linearity_profile(model, tokens).to_dataframe().index.tolist()
[0, 1]

Limits. A high score does not say that the block may be removed (see ``replacement_curve``), and a low one
does not say that what is missed matters. The first position often holds an outlier that carries most of
the variance: ``without_first`` is the same profile without it, from the same pass.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from lens_linear.checks import require_choice, require_float, require_list, require_seed, shown
from lens_linear.errors import InvalidArgumentError, LensLinearWarning, UnsupportedModelError
from lens_linear.extensions import Added, added
from lens_linear.linalg import Moments
from lens_linear.linalg.least_squares import Ridge, require_ridge
from lens_linear.linalg.memory import groups
from lens_linear.linearity.measure.pooled_scores import joined, nulls, ranks, solvers
from lens_linear.linearity.measure.profile_pass import (
    ProfilePart,
    ProfilePass,
    Statistic,
    filled,
    found_scores,
    layer_bytes,
    own_by_layer,
)
from lens_linear.linearity.measure.profile_result import (
    COLUMNS,
    Fit,
    LinearityProfile,
)
from lens_linear.models.capture import SITES, Site
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.stats.collect import (
    common_sites,
    require_rows_for_fit,
)
from lens_linear.stats.resume import Checkpoint, fingerprint, tokens_sha256
from lens_linear.stats.split import RowView, as_rows, halves
from lens_linear.text.task import Task
from lens_linear.token_rows import TokenRows


def linearity_profile(
    model: ModelLike,
    tokens: Int[Tensor, "sequence position"] | TokenRows | Task,
    *,
    fit: Fit = "held-out",
    skip: int = 0,
    sites: Sequence[Site] = SITES,
    ridge: Ridge = 0.0,
    statistics: Mapping[str, Statistic] | Sequence[str] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    save_every: int = 256,
    max_memory: int | None = None,
) -> LinearityProfile:
    """Measure how linear every block, FFN and attention layer is, in one streaming pass.

    ``R² = 1 − Σ‖y − x A − b‖² / Σ‖y − ȳ‖²``, pooled over columns, (A, b) the least-squares map, ȳ the mean
    of y on the rows the map was fitted on.

    Dimensionless, at most 1. Held out, an output independent of the input scores about
    ``−d / (n − d − 2)``, n the rows fitted on, a little below 0; in sample ``rank / (n − 1)``, above 0.
    Both are in ``null_r2``. The in-sample block score is the paper's generalised Procrustes similarity.

    The first position often holds most of the variance, so the same pass also gives every score without it
    (``without_first``) and its share (``first_share``).

    Held out, sequences are split into two random halves (never inside one); maps are fitted on one from
    streamed float64 statistics and scored on the other from residuals taken row by row.

    Under ``torch.distributed`` every process makes this call with the same arguments, works on its share
    of the sequences, and gets the numbers of all.

    Args:
        model: a bridge, in any precision; statistics are float64.
        tokens: ids [sequence, position], or a disk-backed stream of rows. Every sequence counts alike:
            there is no padding.
        fit: "held-out" or "in-sample".
        skip: leading positions left out of every sequence.
        sites: some of "block", "ffn", "attn"; sites the model lacks give NaN columns.
        ridge: penalty λ of ``‖Yc − Xc A‖² + λ ‖A‖²``, 0 for plain least squares, "loo" for the one of
            least leave-one-out error, chosen for every map (for fewer than three rows an input).
        statistics: one's own by name: each function takes the ``Moments`` (``keep_yy=True``) of a layer's
            input x and output y at the first of ``sites``, and gives a number. It is taken on the rows
            scored, with an interval from leaving out a tenth of the sequences at a time, and on the rows
            fitted; its column carries its name. A list names statistics of installed packages
            (:mod:`lens_linear.extensions`); one of these that fails gives NaN and a warning.
        seed: of the halves and of the resampling.
        confidence: coverage of the bootstrap intervals (held-out only).
        batch_size: sequences a forward pass; as many as memory allows by default;
            the result does not depend on it.
        progress: show a bar with the time left.
        checkpoint: file that keeps the statistics on the way; if the process is killed, the same call
            goes on from it. Removed at the end.
        save_every: sequences between two writes of it.
        max_memory: bytes that statistics and maps may add, half of what is free by default. Layers that do
            not fit together are measured group after group, each in passes of its own (and with a
            checkpoint of its own); the numbers stay the same.

    Returns:
        LinearityProfile; ``.to_dataframe()`` has one row per layer.

    Raises:
        NotEnoughDataError: ``n <= d + 1`` rows to fit on; the message says how many sequences are needed.
        NonFiniteError: NaN or infinite activations, naming the layer.
        InvalidArgumentError: bad argument, or tokens that do not fit the model.
        CorruptedFileError: the checkpoint is damaged or belongs to another question.
        InsufficientMemoryError: one layer needs more than ``max_memory``.

    Source: arXiv 2405.12250, section 3; arXiv 2606.19379 (R²_lin).

    Example:
        >>> import torch
        >>> from lens_linear.models.open.toy import toy_model
        >>> tokens = torch.randint(64, (20, 32), generator=torch.Generator().manual_seed(0))
        >>> profile = linearity_profile(toy_model(n_layers=1), tokens)  # attention only
        >>> bool(profile.to_dataframe().ffn_r2.isna().all())
        True
    """
    model = checked(model)
    held_out = _held_out(fit, ridge, confidence)
    seed, own = require_seed(seed), _own_statistics(statistics)
    rows = as_rows(model, tokens, skip=skip)
    sites, kept = _usable(model, sites), not held_out or checkpoint is not None
    require_rows_for_fit(rows, model.d_model, skip=skip, halved=held_out)
    train, test = halves(rows, seed=seed) if held_out else (rows, rows)
    knobs = {"fit": fit, "skip": skip, "sites": sites, "ridge": ridge, "seed": seed}
    each = layer_bytes(model.d_model, len(sites), len(train), kept=kept, own=own)
    cut = groups(model.n_layers, each, max_memory, model.device, what="one layer of this profile")
    parts: list[ProfilePart] = []
    for path, layers in zip(_paths(checkpoint, len(cut)), cut, strict=True):
        keeper = _keeper(path, save_every, model, rows, {**knobs, "own": sorted(own)})
        run = ProfilePass(model, sites, layers, skip, batch_size, progress, keeper, own)
        parts.append(run.part(train, test, ridge=ridge, held_out=held_out))
    found = found_scores(model.n_layers, parts, confidence, seed)
    fits = {key: fit for part in parts for key, fit in part.fits.items()}
    profile = LinearityProfile(
        model_name=model.name,
        fit=fit,
        scores=found[0].values,
        intervals=found[0].intervals,
        without_first=found[-1],
        first_share=filled([part.first_share for part in parts]),
        sums=found[0].sums,
        ranks=ranks(model.n_layers, fits),
        solvers=solvers(model.n_layers, fits),
        null_r2=nulls(model.n_layers, sites[0], fits, held_out=held_out),
        update_ratio=joined([part.update_ratio for part in parts]),
        statistics=own_by_layer(parts, sites[0], confidence),
        n_tokens=test.n_tokens(skip),
        n_fit=train.n_tokens(skip),
        n_sequences=len(test),
        tokens_sha256=tokens_sha256(test),
        d_model=model.d_model,
        skip=skip,
        ridge=ridge,
        seed=seed,
        confidence=confidence,
    )
    for part in parts:
        part.keeper.remove()
    return profile


def _held_out(fit: Any, ridge: Any, confidence: Any) -> bool:
    """Accept all three, and say whether maps are scored on other rows than they are fitted on."""
    require_ridge(ridge)
    require_float("confidence", confidence, minimum=0.0, maximum=1.0)
    return require_choice("fit", fit, ("held-out", "in-sample")) == "held-out"


def _paths(checkpoint: str | Path | None, n: int) -> list[str | Path | None]:
    """The file of each group of layers: the one that was named, when there is one group."""
    if checkpoint is None or n == 1:
        return [checkpoint] * n
    return [f"{checkpoint}.{k}-of-{n}" for k in range(1, n + 1)]


def _keeper(
    path: str | Path | None,
    every: int,
    model: CheckedModel,
    rows: RowView,
    knobs: dict[str, Any],
) -> Checkpoint:
    return Checkpoint(path, "" if path is None else fingerprint(model, rows, **knobs), every=every)


def _own_statistics(statistics: Any) -> dict[str, Statistic]:
    """Functions by the name of their column, each with its failures made into words."""
    if statistics is None:
        return {}
    if not isinstance(statistics, Mapping):
        asked, installed = require_list("statistics", statistics, of="names"), added("statistics")
        if asked and not installed:
            raise InvalidArgumentError(
                "statistics must be functions by name, as no installed package adds any, got "
                f'{shown(statistics)}; e.g. {{"variance": lambda m: float(m.scatter_y.sum() / m.n)}}'
            )
        names = [require_choice("statistics", name, installed) for name in asked]
        return _columns_apart({name: _guarded(name, installed[name]) for name in names})
    if not all(
        isinstance(name, str) and name.isidentifier() and callable(function)
        for name, function in statistics.items()
    ):
        raise InvalidArgumentError(
            "statistics must map names (letters, digits, _) to functions of Moments, got "
            f'{shown(statistics)}; e.g. {{"variance": lambda m: float(m.scatter_y.sum() / m.n)}}'
        )
    return _columns_apart(
        {name: _explained(name, function) for name, function in statistics.items()}
    )


def _columns_apart(own: dict[str, Statistic]) -> dict[str, Statistic]:
    """Refuse names whose columns would stand in the place of others."""
    taken = set(COLUMNS)
    for name in own:
        columns = {name, f"{name}_low", f"{name}_high", f"{name}_fit"}
        if columns & taken:
            raise InvalidArgumentError(
                f"statistics must have names that are no column yet, got {name!r}: the table has "
                f"{min(columns & taken)!r}; choose another name"
            )
        taken |= columns
    return own


def _explained(name: str, function: Statistic) -> Statistic:
    """The caller's function; what goes wrong inside is said with the statistic's name."""

    def statistic(moments: Moments) -> float:
        try:
            return float(function(moments))
        except Exception as reason:
            raise InvalidArgumentError(
                f"statistics[{name!r}] must give a number for Moments, but failed ({type(reason).__name__}: "
                f"{reason}); mend it: with checkpoint= the pass itself is kept"
            ) from reason

    return statistic


def _guarded(name: str, part: Added) -> Statistic:
    """An installed package's function: where it fails, NaN and a warning."""

    def statistic(moments: Moments) -> float:
        try:
            return float(part.value(moments))
        except Exception as reason:
            warnings.warn(part.failed(name, reason), LensLinearWarning, stacklevel=2)
            return math.nan

    return statistic


def _usable(model: CheckedModel, sites: Sequence[Site]) -> tuple[Site, ...]:
    if isinstance(sites, str) or not require_list("sites", sites, of="sites"):
        raise InvalidArgumentError(f"sites must be a list such as ['block', 'ffn'], got {sites!r}")
    for site in sites:
        require_choice("sites", site, SITES)
    usable = common_sites(model, tuple(site for site in SITES if site in sites))
    if not usable or model.n_layers == 0:
        raise UnsupportedModelError(
            f"model {model.name!r} has none of the sites {tuple(sites)} in every layer; "
            "choose others, or a model with layers"
        )
    return usable
