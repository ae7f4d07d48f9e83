"""One text through the model, as the page shows it: attention, predictions, shares of a logit, lenses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_linear.circuits.attention.components import HeadOutputs
from lens_linear.errors import UnsupportedModelError
from lens_linear.explorer.packing import pack
from lens_linear.linearity.lens.lens import Lens
from lens_linear.linearity.lens.readout import Readout
from lens_linear.models.capture import run
from lens_linear.models.checked import CheckedModel
from lens_linear.models.describe.weights import ModelWeights, norm_scale
from lens_linear.models.spots import Edit, Spot

TOP = 10
_TOLERATED = (
    0.02  # gap of a sum of components, as a share of the logit; half-precision models round
)
TARGETS = 3  # predictions whose logit is taken apart, besides the token that really comes


def run_payload(
    model: CheckedModel,
    weights: ModelWeights | None,
    lens: Lens | None,
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
        weights: folded; None leaves out the lenses and the shares of a logit.
        lens: the linear lens; None leaves it out.
        text: as it was given.
        ids: its tokens.
        ablated: names of the heads that ``edits`` take away.
        edits: what replaces them.
        patterns: keep attention, one byte a weight.
        shares: take the logits of the likeliest tokens and of the real one apart.
    """
    layers = range(model.n_layers)
    spots: list[Spot] = [(layer, "resid_post") for layer in layers]
    spots.extend((layer, "resid_pre") for layer in layers[:1])
    for layer in layers:
        spots.extend([(layer, "z"), (layer, "attn_out"), (layer, "pattern")])
    spots.extend((b, "ffn_out") for b in layers if model.has((b, "ffn_out")))
    out = run(model, ids[None], record=spots, edits=edits)
    logits = _real(out.logits)[0]
    log_probabilities = logits.log_softmax(-1)
    n_known = logits.shape[1] if weights is None else weights.n_outputs
    top = log_probabilities[:, :n_known].topk(min(TOP, n_known))
    loss = torch.full((len(ids),), torch.nan)
    loss[1:] = -log_probabilities[:-1].gather(1, ids[1:, None])[:, 0].float()
    streams = None
    if model.n_layers and weights is not None:
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
        "shares_note": "",
        "ablated": list(ablated),
    }
    if patterns and model.n_layers:
        found["pattern"] = pack(
            torch.stack([out[(layer, "pattern")][0].float() for layer in layers]), "uint8"
        )
    if streams is not None and weights is not None:
        found["lens"] = _lenses(Readout.of(model), lens, streams, log_probabilities, n_known)
        if shares:
            found["shares"], found["shares_note"] = _shares(
                model, out, weights, streams, logits, ids
            )
    return found


def _real(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _lenses(
    readout: Readout,
    lens: Lens | None,
    streams: Float[Tensor, "layer position d_model"],
    final: Float[Tensor, "position vocab"],
    n_known: int,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "logit": _lens_grid(readout, map(readout.normalise, streams), final, n_known)
    }
    found["linear"] = None
    if lens is not None:
        carried = (lens.normed(stream, layer) for layer, stream in enumerate(streams))
        found["linear"] = _lens_grid(readout, carried, final, n_known)
    return found


def _lens_grid(
    readout: Readout,
    normed: Iterable[Float[Tensor, "position d_model"]],
    final: Tensor,
    n_known: int,
) -> dict[str, Any]:
    ids, chances, gaps = [], [], []
    # One layer's logits at a time: a large vocabulary times 30 layers is a gigabyte.
    for one in normed:
        read = _real(readout.decode(one.to(readout.gain.device))).log_softmax(-1)
        best = read[:, :n_known].max(-1)
        ids.append(best.indices)
        chances.append(best.values.exp())
        gaps.append((final.exp() * (final - read)).sum(-1))
    return {
        "ids": pack(torch.stack(ids), "int32"),
        "p": pack(torch.stack(chances), "float16"),
        "kl": pack(torch.stack(gaps), "float16"),
    }


def _shares(
    model: CheckedModel,
    out: Any,
    weights: ModelWeights,
    streams: Tensor,
    logits: Tensor,
    ids: Tensor,
) -> tuple[dict[str, Any] | None, str]:
    """Split logits (less their mean over the tokens) over what wrote the last stream; or say why not."""
    try:
        outputs = HeadOutputs(model, weights)
    except UnsupportedModelError as error:
        return None, str(error)
    names, parts = ["embedding"], [streams[0]]
    for layer in range(model.n_layers):
        if weights.attention is None:
            break
        heads = _real(outputs.of(out[(layer, "z")], layer)[:, 0])
        names += [f"L{layer}H{head}" for head in range(model.n_heads)]
        parts += list(heads)
        names.append(f"attention bias {layer}")
        parts.append(_real(out[(layer, "attn_out")])[0] - heads.sum(0))
        if (layer, "ffn_out") in out.recorded:
            names.append(f"FFN {layer}")
            parts.append(_real(out[(layer, "ffn_out")])[0])
    known = logits[:, : weights.n_outputs]
    targets = known.topk(TARGETS).indices
    following = torch.cat([ids[1:], targets[-1:, 0]])
    targets = torch.cat([targets, following[:, None]], dim=1)
    scale = norm_scale(streams[-1], weights.final_norm, weights.eps)
    # [position, target, d_model]
    directions = weights.class_directions(targets).to(scale.dtype) / scale[:, None]
    values = torch.stack([torch.einsum("pm,ptm->pt", part, directions) for part in parts], dim=-1)
    bias = (weights.b_U - weights.b_U[: weights.n_outputs].mean())[targets]
    values, names = torch.cat([values, bias[..., None]], dim=-1), [*names, "output bias"]
    seen = (logits - known.mean(-1, keepdim=True)).gather(1, targets)
    gap = (values.sum(-1) - seen).abs()
    if not bool((gap <= _TOLERATED * seen.abs().clamp_min(1)).all()):
        return None, (
            f"The components add up to another logit (by up to {float(gap.max()):.2g}): this model changes "
            "its stream or its logits in a way that is no sum, such as a bound on the logits."
        )
    found = {
        "components": names,
        "targets": pack(targets, "int32"),
        "values": pack(values, "float16"),
        "logits": pack(seen, "float32"),
        "max_error": float(gap.max()),
    }
    return found, ""
