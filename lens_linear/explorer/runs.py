"""One text through the model, as the page shows it: attention, predictions, shares of a logit, lenses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear._tl import TransformerBridge
from lens_linear.explorer.lens import LinearLens, lens_logits
from lens_linear.explorer.packing import pack
from lens_linear.models.capture import run
from lens_linear.models.describe.shape import ModelShape
from lens_linear.models.describe.weights import ModelWeights, norm_scale
from lens_linear.models.hooks import Edit, Spot, has_spot

TOP = 10
TARGETS = 3  # predictions whose logit is taken apart, besides the token that really comes


def run_payload(
    model: TransformerBridge,
    shape: ModelShape,
    weights: ModelWeights | None,
    lens: LinearLens | None,
    text: str,
    ids: Int[Tensor, " position"],
    *,
    ablated: Sequence[str] = (),
    edits: Sequence[Edit] = (),
    patterns: bool = True,
    shares: bool = True,
) -> dict[str, Any]:
    """Run one text and pack what the four views show of it.

    Args:
        model: a bridge.
        shape: of the model.
        weights: folded; None leaves out the lenses and the shares of a logit.
        lens: the linear lens; None leaves it out.
        text: as it was given.
        ids: its tokens.
        ablated: names of the heads that ``edits`` take away.
        edits: what replaces them.
        patterns: keep attention, one byte a weight.
        shares: take the logits of the likeliest tokens and of the real one apart.
    """
    layers = range(shape.n_layers)
    spots: list[Spot] = [(layer, "resid_post") for layer in layers]
    spots.extend((layer, "resid_pre") for layer in layers[:1])
    for layer in layers:
        spots.extend([(layer, "z"), (layer, "attn_out"), (layer, "pattern")])
    spots.extend((b, "ffn_out") for b in layers if has_spot(model, (b, "ffn_out")))
    out = run(model, ids[None], record=spots, edits=edits)
    logits = torch.empty(0) if out.logits is None else _real(out.logits)[0]
    log_probabilities = logits.log_softmax(-1)
    top = log_probabilities.topk(min(TOP, logits.shape[1]))
    loss = torch.full((len(ids),), torch.nan)
    loss[1:] = -log_probabilities[:-1].gather(1, ids[1:, None])[:, 0].float()
    streams = None
    if shape.n_layers and weights is not None:
        streams = torch.stack(
            [_real(out[spot])[0] for spot in [(0, "resid_pre"), *spots[: len(layers)]]]
        )
    found: dict[str, Any] = {
        "text": text,
        "ids": ids.tolist(),
        "pattern": None,
        "top_ids": pack(top.indices, "int32"),
        "top_p": pack(top.values.exp(), "float32"),
        "loss": pack(loss, "float32"),
        "lens": {"logit": None, "linear": None},
        "shares": None,
        "ablated": list(ablated),
    }
    if patterns and shape.n_layers:
        found["pattern"] = pack(
            torch.stack([out[(layer, "pattern")][0].float() for layer in layers]), "uint8"
        )
    if streams is not None and weights is not None:
        found["lens"] = _lenses(weights, lens, streams, log_probabilities)
        if shares and not shape.n_post_norm:
            found["shares"] = _shares(out, shape, weights, streams, logits, ids)
    return found


def _real(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _lenses(
    weights: ModelWeights,
    lens: LinearLens | None,
    streams: Float[Tensor, "layer position d_model"],
    final: Float[Tensor, "position vocab"],
) -> dict[str, Any]:
    found: dict[str, Any] = {"logit": _lens_grid(weights, streams, final), "linear": None}
    if lens is not None:
        carried = torch.stack(
            [x @ w + b for x, w, b in zip(streams[:-1], lens.weight, lens.bias, strict=True)]
        )
        found["linear"] = _lens_grid(weights, torch.cat([carried, streams[-1:]]), final)
    return found


def _lens_grid(weights: ModelWeights, streams: Tensor, final: Tensor) -> dict[str, Any]:
    ids, chances, gaps = [], [], []
    for (
        stream
    ) in streams:  # one layer's logits at a time: a large vocabulary times 30 layers is a gigabyte
        read = lens_logits(weights, stream[None])[0].log_softmax(-1)
        best = read.max(-1)
        ids.append(best.indices)
        chances.append(best.values.exp())
        gaps.append((final.exp() * (final - read)).sum(-1))
    return {
        "ids": pack(torch.stack(ids), "int32"),
        "p": pack(torch.stack(chances), "float16"),
        "kl": pack(torch.stack(gaps), "float16"),
    }


def _shares(
    out: Any,
    shape: ModelShape,
    weights: ModelWeights,
    streams: Tensor,
    logits: Tensor,
    ids: Tensor,
) -> dict[str, Any]:
    """Split logits (less their mean over the vocabulary) over what wrote the last stream."""
    names, parts = ["embedding"], [streams[0]]
    for layer in range(shape.n_layers):
        z = _real(out[(layer, "z")])[0].reshape(len(ids), shape.n_heads, -1)
        at = weights.attention
        if at is None:
            break
        heads = torch.einsum("phd,hdm->hpm", z, at.W_O[layer])
        names += [f"L{layer}H{head}" for head in range(shape.n_heads)]
        parts += list(heads)
        names.append(f"attention bias {layer}")
        parts.append(_real(out[(layer, "attn_out")])[0] - heads.sum(0))
        if (layer, "ffn_out") in out.recorded:
            names.append(f"FFN {layer}")
            parts.append(_real(out[(layer, "ffn_out")])[0])
    targets = logits.topk(TARGETS).indices
    following = torch.cat([ids[1:], targets[-1:, 0]])
    targets = torch.cat([targets, following[:, None]], dim=1)
    scale = norm_scale(streams[-1], weights.final_norm, weights.eps)
    centred = weights.W_U - weights.W_U.mean(1, keepdim=True)
    directions = centred.T[targets] / scale[:, None]  # [position, target, d_model]
    values = torch.stack([torch.einsum("pm,ptm->pt", part, directions) for part in parts], dim=-1)
    bias = (weights.b_U - weights.b_U.mean())[targets]
    values, names = torch.cat([values, bias[..., None]], dim=-1), [*names, "output bias"]
    seen = (logits - logits.mean(-1, keepdim=True)).gather(1, targets)
    return {
        "components": names,
        "targets": pack(targets, "int32"),
        "values": pack(values, "float16"),
        "logits": pack(seen, "float32"),
        "max_error": float((values.sum(-1) - seen).abs().max()),
    }
