"""Fit a lens: moments of all layers in one pass, then the closed form, then Adam where it is asked for."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div

from lens_linear.checks import require_bool, require_float, require_int, require_seed
from lens_linear.errors import LensLinearWarning, NonFiniteError
from lens_linear.linalg import LinearFit, Moments, process
from lens_linear.linalg.memory import groups, usable_bytes
from lens_linear.linalg.scatter import Target
from lens_linear.linearity.lens.lens import FEW, Lens
from lens_linear.linearity.lens.readout import Readout
from lens_linear.models.capture import residual_stream, residual_streams, row_ranges
from lens_linear.models.checked import CheckedModel, ModelLike, checked
from lens_linear.models.describe.weights_mark import WeightsMark
from lens_linear.progress import sequence_bar
from lens_linear.stats.collect import require_rows_for_fit
from lens_linear.stats.split import RowView, as_rows

Pair = tuple[Moments, Moments]  # positions after the first, and the first

_HIDES = 1e-4  # a penalty, as a share of the variance, far above what float32 products lose (at most 1e-6)
_RATE = 1e-3  # Adam's; falls linearly to 0
_SHARED = 2048  # tokens that decide how much of the raw reading a layer takes
_BATCH = 512  # tokens a step of Adam: in gpt-mini 2 % less KL than 1,024 after one epoch, 2 % more than 256


def fit_lens(
    model: ModelLike,
    tokens: Any,
    *,
    polish: int = 0,
    ridge: float = 1e-3,
    seed: int = 0,
    raw: bool = True,
    batch_size: int | None = None,
    max_memory: int | None = None,
    progress: bool = False,
) -> Lens:
    """Affine maps that read off every layer what the model will say.

    ``(A_l, b_l) = argmin mean ‖n(x_l) A + b − n(x_L)‖² + λ ‖A‖²``, n(x) = x / rms(x) (centred first in
    LayerNorm models), x_l the stream entering layer l, x_L that after the last block; λ is ``ridge`` × the
    mean variance of n(x_l). All positions of all rows, all layers in one pass. The mean of the first
    position, often an outlier, counts as much as all other positions together: it costs the map one
    direction, and the reading there becomes as good as elsewhere.

    From ``ridge`` 1e-4 on, float32 streams are multiplied in float32, a sequence at a time, and summed
    in float64: the penalty hides what that loses. Under ``torchrun`` each process takes its share of the
    rows, and all get the same maps; polishing is done by each on all rows.

    The raw least-squares lens, from x_l to x_L without a penalty, is fitted in the same pass for comparison,
    and lends to the lens where it reads better, as in late layers it can. A layer reads
    ``u = d + s (r − d)``, d the direct reading, r the normalised raw one, and the share s
    in [0, 1] that brings u nearest to n(x_L) on some 2,000 of the tokens (``.raw_share``), the mean of the
    first position counted as in the maps.

    Args:
        model: a bridge.
        tokens: ids [sequence, position], or a Task; a warning below 20 rows an input.
        polish: epochs of Adam on the KL from the output to the readings, from the closed form.
        ridge: at least 0, a share of the variance; below 1e-4 all products are float64.
        seed: of the order of the rows when polishing.
        raw: False leaves the raw least-squares lens out: half of the work and of the memory, and no share.
        batch_size: sequences a forward pass; as many as memory allows by default.
        max_memory: bytes that statistics may add, half of what is free by default. Layers that do not fit
            together are fitted group after group, each in a pass of its own. Where the streams of all rows
            fit beside them, polishing does not run the model again.
        progress: show a bar with the time left.

    Returns:
        Lens: ``.score(tokens)`` on other text, ``.read(text)``, ``.translator()``.

    Raises:
        NotEnoughDataError: at most ``d_model + 1`` rows.
        UnsupportedModelError: no blocks.
        InsufficientMemoryError: one layer needs more than ``max_memory``.
        NonFiniteError: NaN or infinity in the stream, or in the logits when polishing.

    Source: Din et al. 2023, arXiv 2303.09435 (raw least squares); Belrose et al. 2023, arXiv 2303.08112
    (tuned on the KL); nostalgebraist 2020 (logit lens).

    Example:
        >>> from lens_linear.models.open.toy import toy_model
        >>> model = toy_model(n_layers=2)
        >>> tokens = torch.randint(64, (100, 16), generator=torch.Generator().manual_seed(0))
        >>> lens = fit_lens(model, tokens[:60])
        >>> scores = lens.score(tokens[60:])
        >>> bool(scores["kl"].iloc[0] < scores["logit_kl"].iloc[0]), bool(scores["kl"].iloc[-1] < 1e-6)
        (True, True)
    """
    model = checked(model)
    rows = as_rows(model.require_blocks(), tokens)
    polish = require_int("polish", polish, minimum=0)
    ridge = require_float("ridge", ridge, minimum=0.0)
    seed, raw = require_seed(seed), require_bool("raw", raw)
    width = model.d_model
    require_rows_for_fit(rows, width, halved=False)
    _warn_of_few(rows.n_tokens(), width)
    readout, n_layers = Readout.of(model), model.n_layers
    # A lens: statistics with and without the first position, maps.
    each = 8.0 * 6 * (1 + raw) * width**2
    maps, raws, r2 = list[LinearFit](), list[LinearFit](), list[float]()
    device = model.device
    cut = groups(n_layers, each, max_memory, device, what="one layer of this lens")
    # The streams of one pass over all rows are kept for the epochs of Adam, where they fit too.
    needed = each * n_layers + 4.0 * (n_layers + 1) * rows.n_tokens() * width
    alone = polish > 0 and len(cut) == process()[1] == 1
    keep = alone and needed <= usable_bytes(max_memory, device)
    kept: dict[int, Tensor] | None = {} if keep else None
    with sequence_bar(len(cut), "fitting", show=progress) as bar:
        for done, layers in enumerate(cut):
            tell = partial(_tell, bar, done)
            direct, plain = _collect(
                model, rows, readout, batch_size, layers, raw, ridge, kept, tell
            )
            for rest, first in direct:
                whole = rest + first
                maps.append(_solve(whole, first, ridge))
                r2.append(_r2(whole, maps[-1]))
            raws += [(rest + first).fit() for rest, first in plain]
    lens = Lens(
        weight=torch.stack([fit.weight for fit in maps]),
        bias=torch.stack([fit.bias for fit in maps]),
        raw_weight=torch.stack([fit.weight for fit in raws] or [maps[0].weight])[: len(raws)],
        raw_bias=torch.stack([fit.bias for fit in raws] or [maps[0].bias])[: len(raws)],
        r2=torch.tensor(r2, dtype=torch.float64),
        n=rows.n_tokens(),
        ridge=ridge,
        polish=polish,
        seed=seed,
        model_name=model.name,
        readout=readout,
        mark=WeightsMark(model),
        raw_share=torch.zeros(n_layers, dtype=torch.float64),
    )
    if raw:
        lens = dataclasses.replace(lens, raw_share=_shares(lens, rows, batch_size))
    return _polished(lens, rows, kept, progress=progress) if polish else lens


def _warn_of_few(n: int, width: int) -> None:
    if n < FEW * width:
        warnings.warn(
            f"tokens has {n:,} rows for {width} inputs, {n / width:.1f} an input; "
            f"a lens needs {FEW} ({FEW * width:,} tokens) to read other text as well as this",
            LensLinearWarning,
            stacklevel=3,
        )


def _tell(bar: Callable[[float], None], done: float, share: float) -> None:
    bar(done + share)


def _collect(
    model: CheckedModel,
    rows: RowView,
    readout: Readout,
    batch_size: int | None,
    layers: range,
    raw: bool,
    ridge: float,
    kept: dict[int, Tensor] | None,
    tell: Callable[[float], None],
) -> tuple[list[Pair], list[Pair]]:
    """Statistics of (n(x_l), n(x_L)) and of (x_l, x_L), by layer; those of the first position apart.

    Float32 products are of one sequence each, so that no batch and no share of the rows moves a number.
    """
    single = ridge >= _HIDES
    direct = [(Moments(single=single), Moments()) for _ in layers]
    plain = [(Moments(), Moments()) for _ in layers if raw]
    mine = rows.share(*process())
    for start, stop in row_ranges(mine, batch_size, model=model, logits=False):
        streams = residual_streams(model, mine[start:stop])
        if kept is not None:
            together = torch.stack(streams, dim=1)
            kept |= zip(mine.index[start:stop].tolist(), together, strict=True)
        # Positions are set apart first: a norm writes the rest without a gap, so it is not copied again.
        parts = _parts(streams[-1])
        last = [Target(readout.normalise(x)) for x in parts]
        raw_last = [Target(x) for x in parts]
        for count, (layer, pair) in enumerate(zip(layers, direct, strict=True), start=1):
            tell((start + (stop - start) * count / (len(layers) + 1)) / len(mine))
            for moments, x, y in zip(pair, _parts(streams[layer]), last, strict=True):
                moments.update(readout.normalise(x), y)
        for layer, pair in zip(layers, plain, strict=False):
            for moments, x, y in zip(pair, _parts(streams[layer]), raw_last, strict=True):
                moments.update(x, y)
        tell(stop / len(mine))
    for rest, first in [*direct, *plain]:
        rest.all_reduce_()
        first.all_reduce_()
    return direct, plain


def _parts(stream: Float[Tensor, "row position d"]) -> tuple[Tensor, Tensor]:
    """Positions after the first, and the first."""
    return stream[:, 1:], stream[:, 0]


def _solve(whole: Moments, first: Moments, ridge: float) -> LinearFit:
    # The scatter is a sum over rows, so the penalty of a row counts n times.
    penalty = ridge * float(whole.sxx.diagonal().mean())
    others = whole.n - first.n
    if others:
        whole = whole + Moments.of_equal_rows(first.mean_x, first.mean_y, others)
    return whole.fit(ridge=penalty)


def _r2(moments: Moments, fit: LinearFit) -> float:
    """In-sample, about the mean of these rows: the fit's own mean leans to the first position."""
    return moments.score(dataclasses.replace(fit, mean_y=moments.mean_y))


def _shares(lens: Lens, rows: RowView, batch_size: int | None) -> Float[Tensor, " layer"]:
    """``Σ (n(x_L) − d)·(r − d) / Σ |r − d|²`` by layer, in [0, 1], over rows spread through the text.

    As in the direct maps the mean of the first position counts as much as all other positions together.
    """
    few = rows.take(
        torch.linspace(0, len(rows) - 1, min(len(rows), -(-_SHARED // rows.length))).long()
    )
    sums = torch.zeros(2, len(lens.weight), dtype=torch.float64)
    firsts = torch.zeros(2, *lens.weight.shape[:2], dtype=torch.float64)
    for start, stop in row_ranges(few, batch_size, model=lens.readout.model, logits=False):
        streams = residual_streams(lens.readout.model, few[start:stop])
        last = lens.readout.normalise(streams[-1])
        for layer in range(len(lens.weight)):
            direct = lens.normed(streams[layer], layer, "direct")
            apart = lens.normed(streams[layer], layer, "raw") - direct
            for place, part in enumerate((last - direct, apart)):
                sums[place, layer] += float((part * apart)[:, 1:].sum(dtype=torch.float64))
                firsts[place, layer] += part[:, 0].sum(0, dtype=torch.float64).cpu()
    held = few.n_tokens(1) / len(few) ** 2
    sums += held * (firsts * firsts[1]).sum(-1)
    return (sums[0] / sums[1]).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)


def _polished(lens: Lens, rows: RowView, kept: dict[int, Tensor] | None, *, progress: bool) -> Lens:
    """Epochs of Adam on the KL, all layers in the same passes; the penalty ends with the closed form."""
    closed = lens.weight.float(), lens.bias.float()
    weight, bias = (value.clone().requires_grad_() for value in closed)
    generator = torch.Generator().manual_seed(lens.seed)
    size = max(1, _BATCH // rows.length)
    steps = lens.polish * sum(1 for _ in row_ranges(rows, size))
    adam = torch.optim.Adam([weight, bias], lr=_RATE)
    falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, total_iters=steps)
    with sequence_bar(lens.polish * len(rows), "polishing", show=progress) as bar:
        for epoch in range(lens.polish):
            order = torch.randperm(len(rows), generator=generator)
            for start in range(0, len(rows), size):
                done = epoch * len(rows) + start
                for streams in _streams(
                    lens.readout.model, rows.take(order[start : start + size]), kept
                ):
                    _step(lens, streams, weight, bias, partial(_tell, bar, done))
                    done += streams.shape[1]
                adam.step()
                adam.zero_grad()
                falling.step()
    return dataclasses.replace(lens, weight=weight.detach().double(), bias=bias.detach().double())


def _streams(
    model: CheckedModel, view: RowView, kept: dict[int, Tensor] | None
) -> Iterator[Float[Tensor, "boundary row position d_model"]]:
    """Residual streams of a few rows, those of one length together, so that no pad is read."""
    for a, b in row_ranges(view, len(view)):
        if kept is None:
            yield residual_stream(model, view[a:b])
        else:
            yield torch.stack([kept[i] for i in view.index[a:b].tolist()], dim=1)


def _step(
    lens: Lens,
    streams: Tensor,
    weight: Tensor,
    bias: Tensor,
    tell: Callable[[float], None],
) -> None:
    """Gradients of the mean KL over positions, one layer's logits at a time."""
    readout = lens.readout
    with torch.no_grad():
        target = readout.decode(readout.normalise(streams[-1])).log_softmax(-1).flatten(0, -2)
    for layer in range(len(weight)):
        stream = streams[layer].detach().flatten(0, -2)
        x, mixed = readout.normalise(stream), partial(lens.with_raw, stream, layer)
        with torch.enable_grad():
            direct = x @ weight[layer].to(x) + bias[layer].to(x)
            read = readout.decode(mixed(direct)).log_softmax(-1)
            loss = kl_div(read, target, reduction="batchmean", log_target=True)
        if not math.isfinite(loss.detach()):
            raise NonFiniteError(
                f"the KL of layer {layer} of {lens.model_name!r} is NaN or infinite in polishing; check the "
                "unembedding and the final norm, or load the model in a wider precision"
            )
        loss.backward(inputs=[weight, bias])
        tell(streams.shape[1] * (layer + 1) / len(weight))
