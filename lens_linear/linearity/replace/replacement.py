"""Run a model with some blocks, runs of blocks, or FFNs replaced by their best affine map.

>>> import torch
>>> from lens_linear.models.open.toy import toy_model
>>> model = toy_model(n_layers=2, d_model=16)
>>> tokens = torch.randint(64, (20, 16), generator=torch.Generator().manual_seed(0))
>>> with linearize(model, tokens, layers=[1]) as fitted:
...     logits = model(tokens)
>>> fitted.layers
(1,)

The weights of the model are not touched, and the hooks go at the end, also after an error. To keep the
maps, take ``fitted`` and :func:`lens_linear.linearity.replace.saved.save_linearized`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from lens_linear.checks import (
    require_bool,
    require_choice,
    require_int,
    require_layers,
    require_list,
)
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError
from lens_linear.linalg import Moments
from lens_linear.linalg.least_squares import Ridge, require_ridge
from lens_linear.linalg.memory import groups
from lens_linear.linearity.measure.intervals import few_rows
from lens_linear.linearity.replace.affine_map import (
    AffineMap,
    Linearization,
    MapSite,
    fitted_map,
    require_disjoint,
)
from lens_linear.models.capture import available_sites, batched, run
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.describe.parameter_counts import n_parameters, site_parameters
from lens_linear.models.spots import Edit, Spot
from lens_linear.stats.collect import collect_moments, require_rows_for_fit
from lens_linear.stats.split import RowView, as_rows
from lens_linear.text.task import Task
from lens_linear.token_rows import TokenRows

Run = tuple[int, int]


@contextmanager
def linearize(
    model: ModelLike,
    tokens: Int[Tensor, "sequence position"] | TokenRows | Task,
    layers: int | Sequence[int] | None = None,
    *,
    site: MapSite = "block",
    rank: int | None = None,
    runs: Sequence[Run] | Int[Tensor, "run ends"] = (),
    sequential: bool = False,
    ridge: Ridge = 0.0,
    skip: int = 0,
    batch_size: int | None = None,
    max_memory: int | None = None,
) -> Iterator[Linearization]:
    """While the block lasts, chosen blocks or FFNs of ``model`` run as their best affine map.

    Each map is the least-squares fit of the layer's output on its input over ``tokens``. With ``rank`` an
    FFN's map is the best of that rank (reduced-rank regression); a block's is the identity, which costs
    nothing, plus the best map of that rank to what the block adds. Inside the block the model is used as
    ever: its logits, hooks and caches are those of the linearised model.

    Args:
        model: a bridge; its weights do not change.
        tokens: what the maps are fitted on. Judge the result on other tokens.
        layers: layers replaced one by one; all when None and no runs are given.
        site: "block", or "ffn" for the FFN alone (reads after its norm).
        rank: rank of each map; full when None.
        runs: pairs (first, last) of blocks that one map replaces together.
        sequential: fit each map on what reaches it *after* the earlier ones are in place (towards the
            original output), instead of on the original activations.
        ridge: penalty of the fits, or "loo" for the one of least leave-one-out error.
        skip: leading positions left out of the fit (they are still replaced).
        batch_size: sequences a forward pass; as many as memory allows by default.
        max_memory: bytes that statistics and maps may add, half of what is free by default. Layers that do
            not fit together are fitted group after group, each in a pass of its own.

    Yields:
        Linearization: the maps, parameter counts, ``.to_dataframe()``.

    Raises:
        NotEnoughDataError: ``n <= d + 1`` rows.
        InsufficientMemoryError: one map needs more than ``max_memory``.
        InvalidArgumentError: a layer named twice, or no layer.
        UnsupportedModelError: a layer has no FFN.

    Source: Razzhigaev et al. 2024, arXiv 2405.12250, section 4; Whipp 2026, arXiv 2606.19379 (FFN);
        Shopkhoev et al. 2025, arXiv 2505.02819 (runs of blocks).

    Example:
        >>> import torch
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2, d_model=16, attn_only=False)
        >>> tokens = torch.randint(64, (60, 16), generator=torch.Generator().manual_seed(0))
        >>> plain = model(tokens[:2])
        >>> with linearize(model, tokens, layers=[1]):
        ...     changed = model(tokens[:2])
        >>> bool((plain - changed).abs().max() > 0), bool(torch.equal(model(tokens[:2]), plain))
        (True, True)
    """
    model = checked(model)
    fitted = fit_linearization(
        model,
        tokens,
        layers,
        site=site,
        rank=rank,
        runs=runs,
        sequential=sequential,
        ridge=ridge,
        skip=skip,
        batch_size=batch_size,
        max_memory=max_memory,
    )
    with fitted.applied(model):
        yield fitted


def fit_linearization(
    model: ModelLike,
    tokens: Int[Tensor, "sequence position"] | TokenRows | Task,
    layers: int | Sequence[int] | None = None,
    *,
    site: MapSite = "block",
    rank: int | None = None,
    runs: Sequence[Run] | Int[Tensor, "run ends"] = (),
    sequential: bool = False,
    ridge: Ridge = 0.0,
    skip: int = 0,
    batch_size: int | None = None,
    max_memory: int | None = None,
) -> Linearization:
    """Fit the maps of :func:`linearize` without applying them.

    ``y ≈ x @ weight + bias`` by least squares; the in-sample R² of a map is between 0 and 1.

    Args:
        model: a bridge; its weights do not change.
        tokens: what the maps are fitted on. Judge the result on other tokens.
        layers: layers replaced one by one; all when None and no runs are given.
        site: "block", or "ffn" for the FFN alone (reads after its norm).
        rank: rank of each map; full when None.
        runs: pairs (first, last) of blocks that one map replaces together.
        sequential: fit each map on what reaches it *after* the earlier ones are in place.
        ridge: penalty of the fits, or "loo" for the one of least leave-one-out error.
        skip: leading positions left out of the fit.
        batch_size: sequences a forward pass; as many as memory allows by default.
        max_memory: bytes that statistics and maps may add, half of what is free by default. Layers that do
            not fit together are fitted group after group, each in a pass of its own.

    Returns:
        Linearization: ``.maps``, ``.applied(model)``, parameter counts; save it by ``save_linearized``.

    Raises:
        NotEnoughDataError: ``n <= d + 1`` rows.
        InsufficientMemoryError: one map needs more than ``max_memory``.
        InvalidArgumentError: a layer named twice, or no layer.
        UnsupportedModelError: a layer has no FFN.

    Source: Razzhigaev et al. 2024, arXiv 2405.12250, section 4; Whipp 2026, arXiv 2606.19379 (FFN);
        Shopkhoev et al. 2025, arXiv 2505.02819 (runs of blocks).

    Example:
        >>> import torch
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2, d_model=16, attn_only=False)
        >>> tokens = torch.randint(64, (40, 16), generator=torch.Generator().manual_seed(0))
        >>> fitted = fit_linearization(model, tokens, [1], site="ffn", rank=2)
        >>> fitted.layers, fitted.maps[0].n_parameters  # 2 · (16 + 16) + 16
        ((1,), 80)
    """
    model = checked(model)
    rows = as_rows(model, tokens, skip=skip)
    require_choice("site", site, ("block", "ffn"))
    require_ridge(ridge)
    if rank is not None:
        require_int("rank", rank, minimum=1, maximum=model.d_model)
    spans = _spans(model, layers, runs, site)
    require_rows_for_fit(rows, model.d_model, skip=skip, halved=False)
    apart = require_bool("sequential", sequential) or any(first < last for first, last in spans)
    cut = map_groups(model, len(spans), max_memory)
    maps: list[AffineMap] = []
    if apart:
        for first, last in spans:
            earlier = [edit for m in maps for edit in m.edits()] if sequential else []
            moments = span_moments(
                model, rows, first, last, site, edits=earlier, skip=skip, batch_size=batch_size
            )
            single = fitted_map(moments, site, first, rank=rank, ridge=ridge)
            maps.append(replace(single, last=last))
    for part in [] if apart else cut:
        chosen = [spans[i][0] for i in part]
        statistics = collect_moments(
            model, rows, sites=(site,), layers=chosen, skip=skip, batch_size=batch_size
        )
        for layer in chosen:
            moments = statistics.pop((layer, site))
            maps.append(fitted_map(moments, site, layer, rank=rank, ridge=ridge))
    low = "" if rank is None else f", rank {rank}"
    how = "one after the other, each on the replaced model" if sequential else "closed form"
    method = f"fitted {how}{low} on {len(rows)} sequences, skip {skip}"
    if ridge:
        method += f", ridge {ridge}"
    few = few_rows(rows.n_tokens(skip), model.d_model, ridge=ridge, so="the loss is above")
    return assemble(model, maps, method + few)


def map_groups(
    model: CheckedModel, n: int, max_memory: int | None, *, carried: int = 0
) -> list[range]:
    """Groups of maps whose statistics memory holds at once, beside all maps and ``carried`` bytes."""
    square = 8.0 * model.d_model**2
    # x and y as up to three rows a column, and one of these twice while rows are added.
    each, beside = 6 * square, (6 + n) * square + carried
    return groups(n, each, max_memory, model.device, what="one map", beside=beside)


def assemble(model: CheckedModel, maps: Sequence[AffineMap], method: str) -> Linearization:
    """Put maps together with the parameter counts of the model they belong to."""
    ordered = require_disjoint(maps)
    replaced = sum(site_parameters(model, layer, m.site) for m in ordered for layer in m.layers)
    return Linearization(
        maps=ordered,
        model_name=model.name,
        method=method,
        parameters_before=n_parameters(model),
        parameters_replaced=replaced,
    )


def span_moments(
    model: CheckedModel,
    rows: RowView,
    first: int,
    last: int,
    site: MapSite,
    *,
    edits: Sequence[Edit] = (),
    skip: int = 0,
    batch_size: int | None = None,
) -> Moments:
    """Statistics of (input of ``first`` in the edited model, output of ``last`` in the original one).

    Without edits one forward pass serves both ends.
    """
    enter: Spot = (first, "resid_pre") if site == "block" else (first, "ffn_in")
    leave: Spot = (last, "resid_post") if site == "block" else (last, "ffn_out")
    moments = Moments()
    for _, tokens in batched(rows, batch_size, model=model):
        if edits:
            x = run(model, tokens.long(), record=[enter], edits=edits, logits=False)[enter]
            y = run(model, tokens.long(), record=[leave], logits=False)[leave]
        else:
            both = run(model, tokens.long(), record=[enter, leave], logits=False)
            x, y = both[enter], both[leave]
        moments.update(x[:, skip:], y[:, skip:].to(x.device))
    return moments


def _spans(
    model: CheckedModel,
    layers: int | Sequence[int] | None,
    runs: Sequence[Run] | Int[Tensor, "run ends"],
    site: MapSite,
) -> list[Run]:
    n_layers = model.n_layers
    asked = require_list("runs", runs, of="pairs (first, last)")
    if layers is None:
        chosen = [] if asked else list(range(n_layers))
    else:
        chosen = require_layers("layers", layers, n_layers)
    spans = [(layer, layer) for layer in chosen]
    for span in asked:
        span = require_list("runs", span, of="two layers")
        if site != "block" or len(span) != 2:
            raise InvalidArgumentError(
                f"runs must be pairs (first, last) of blocks with first <= last, got {span!r} with "
                f"site={site!r}; e.g. runs=[(2, 4)], site='block'"
            )
        first, last = (require_int("runs", end, minimum=0, maximum=n_layers - 1) for end in span)
        if first > last:
            raise InvalidArgumentError(
                f"runs must be pairs (first, last) with first <= last, got {span!r}; swap them"
            )
        spans.append((first, last))
    if not spans:
        raise InvalidArgumentError("layers names no layer; pass e.g. layers=[0]")
    taken = [layer for first, last in spans for layer in range(first, last + 1)]
    if len(set(taken)) != len(taken):
        raise InvalidArgumentError(
            f"layers and runs name a layer twice: {sorted(taken)}; name each layer once"
        )
    for layer in taken:
        if site not in available_sites(model, layer):
            raise UnsupportedModelError(
                f"layer {layer} of {model.name!r} has no {site!r} to replace"
            )
    return sorted(spans)
