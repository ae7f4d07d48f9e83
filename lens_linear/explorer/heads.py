"""What the head view shows and the page cannot compute by itself: scores, spectra, directions, tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lens_linear.circuits.heads.composition import KINDS, CompositionScores, composition_scores
from lens_linear.circuits.heads.factored import eigenvalues
from lens_linear.circuits.heads.head_circuit import HeadCircuit, require_attention
from lens_linear.circuits.induction.ablation import ablation_scores
from lens_linear.circuits.induction.scores import InductionScores, induction_scores
from lens_linear.circuits.paths.skip_trigrams import skip_trigrams
from lens_linear.errors import UnsupportedModelError
from lens_linear.explorer.packing import pack
from lens_linear.extensions import HeadScore, added, problems
from lens_linear.models.checked import CheckedModel
from lens_linear.models.describe.rotary import read_rotary
from lens_linear.models.describe.verify_weights import sample_tokens
from lens_linear.models.describe.weights import ModelWeights
from lens_linear.models.frozen.attention_scores import attention_scores

_HALF, _WORD = 2 * 4 / 3, 4 * 4 / 3  # bytes of a float16 and an int32 in base64
DIRECTIONS = 4  # singular directions of a head's OV circuit
TABLE_K = 8  # ends of a QK or OV row that a table keeps
_COLUMNS = (
    "prefix_matching",
    "positional_control",
    "prefix_se",
    "prev_token",
    "duplicate",
    "duplicate_control",
    "prev_control",
    "first_token",
    "first_control",
    "copying",
    "target_logit",
    "target_logit_se",
)


def head_rows(
    model: CheckedModel,
    scores: InductionScores | None = None,
    *,
    ablate: bool,
    seed: int,
) -> tuple[list[dict[str, Any]], str]:
    """One row a head: scores (measured here unless given), the verdict, the loss of copying without it."""
    if not model.n_layers:
        return [], "The model has no layers, so it has no heads."
    scores = induction_scores(model, seed=seed) if scores is None else scores
    frame = scores.to_dataframe()
    stats = scores.stats
    frame["prev_control"] = stats.neighbours[[0, 2]].mean(0).flatten().numpy()
    # Offsets of half a row are drawn by queries of the second half, where attention to the first is taken.
    frame["first_control"] = float(stats.uniform[len(stats.uniform) // 2])
    note = repr(scores)
    if ablate:
        ablation = ablation_scores(model, seed=seed)
        frame["lost"] = ablation.to_dataframe()["lost"].to_numpy()
        note += ". " + repr(ablation)
    names = [name for name in (*_COLUMNS, "lost") if name in frame.columns]
    rows = []
    for row in frame.to_dict("records"):
        one: dict[str, Any] = {name: _number(row[name]) for name in names}
        one |= {"head": row["head"], "layer": int(row["layer"]), "index": int(row["index"])}
        one |= {"verdict": row["verdict"], "reason": row["reason"]}
        rows.append(one)
    return rows, note


def added_scores(
    model: CheckedModel, rows: list[dict[str, Any]], missing: list[str]
) -> dict[str, dict[str, Any]]:
    """Put scores of installed packages into the rows of heads; how each is to be shown, by its name."""
    shown: dict[str, dict[str, Any]] = {}
    missing.extend(problems())
    if not rows:
        return shown
    for name, part in added("head_scores", ours=rows[0]).items():
        score: HeadScore = part.value
        try:
            values = torch.as_tensor(score.function(model.bridge), dtype=torch.float64)
            if values.shape != (model.n_layers, model.n_heads):
                raise ValueError(
                    f"it must have shape [layer, head] = {(model.n_layers, model.n_heads)}, got "
                    f"{tuple(values.shape)}; return one number a head"
                )
        except Exception as reason:
            missing.append(part.failed(name, reason))
            continue
        for row in rows:
            row[name] = _number(values[row["layer"], row["index"]].item())
        words, unit = (_encodable(text) for text in (score.words, score.unit))
        shown[name] = {"words": words, "unit": unit, "signed": bool(score.signed)}
    return shown


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def clearest(rows: list[dict[str, Any]], n: int) -> list[tuple[int, int]]:
    """The n heads, (layer, head), with a verdict first, then by what passes its control most; in order."""

    def key(row: dict[str, Any]) -> tuple[bool, float]:
        pairs = [
            ("prefix_matching", "positional_control"),
            ("duplicate", "duplicate_control"),
            ("prev_token", "prev_control"),
        ]
        excess = max((row[a] or 0.0) - (row[b] or 0.0) for a, b in pairs)
        return row["verdict"] == "none", -excess

    return sorted((row["layer"], row["index"]) for row in sorted(rows, key=key)[:n])


def shown_composition(model: CheckedModel, *, seed: int) -> CompositionScores:
    """Scores of all pairs with norms folded in; as the weights are stored where no norm can be read."""
    try:
        return composition_scores(model, fold=True, seed=seed)
    except UnsupportedModelError:
        return composition_scores(model, seed=seed)


def composition(
    model: CheckedModel,
    known: CompositionScores | None = None,
    *,
    max_bytes: int,
    seed: int,
) -> tuple[dict[str, Any] | None, str]:
    """Composition scores [kind, writer layer, head, reader layer, head] with their random baseline.

    Where all pairs take more than ``max_bytes``, the strongest of every head alone, by their places in the
    whole, and a sentence that says so.
    """
    if model.n_layers < 2:
        return None, ""
    found = shown_composition(model, seed=seed) if known is None else known
    parts = {"scores": found.scores, "mean": found.baseline_mean}
    best = [_number(value) for value in found.best_random.tolist()]
    made: dict[str, Any] = {
        "kinds": list(KINDS), "n_random": found.n_random, "best_random": best, "places": None
    }  # fmt: skip
    if parts["scores"].numel() * 2 * _HALF <= max_bytes:
        return made | {name: pack(value, "float16") for name, value in parts.items()}, ""
    n_heads = model.n_layers * model.n_heads
    # Every head keeps `most` heads that it reads and `most` that read it, for each of three kinds.
    most = int(max_bytes / (2 * 3 * n_heads * (2 * _HALF + _WORD)))
    if most < 1:
        return None, (
            f"Composition of {n_heads} heads did not fit; circuits.composition_scores(model, fold=True) "
            "gives it."
        )
    places = _strongest(found.ratio, most)
    kept = {name: pack(value.flatten()[places], "float16") for name, value in parts.items()}
    return made | kept | {"places": pack(places, "int32")}, (
        f"Composition is kept for the {most} heads that each head reads most and the {most} that read it "
        f"most, each of Q, K and V: all pairs of {n_heads} heads did not fit. "
        "circuits.composition_scores(model, fold=True) gives all."
    )


def _strongest(ratio: torch.Tensor, most: int) -> torch.Tensor:
    """Flat places of the pairs of largest ratio of every writer and every reader, of each kind; sorted."""
    kinds, n_layers, n_heads = ratio.shape[:3]
    flat = n_layers * n_heads
    ratio = ratio.reshape(kinds, flat, flat)
    layer = torch.arange(flat, device=ratio.device) // n_heads
    ratio = ratio.masked_fill(~(layer[:, None] < layer[None, :]) | ~ratio.isfinite(), -math.inf)
    kept = torch.zeros_like(ratio, dtype=torch.bool)
    for axis in (1, 2):
        kept.scatter_(axis, ratio.topk(min(most, flat), axis).indices, True)
    return (kept & (ratio > -math.inf)).flatten().nonzero()[:, 0]


def head_detail(head: HeadCircuit) -> dict[str, Any]:
    """Eigenvalues of OV, its singular directions in tokens, and the strongest skip-trigrams."""
    values = eigenvalues(head.ov)
    order = values.abs().argsort(descending=True)
    svd = head.svd(DIRECTIONS)
    near = {index for run in svd.near_equal for index in run}
    found = skip_trigrams(head, 24, by="effect").to_dataframe()
    names = ["source", "destination", "out", "attention", "effect"]
    trigrams = [
        {name: _number(value) for name, value in row.items()}
        for row in found[names].to_dict("records")
    ]
    return {
        "eigenvalues": [[_short(v.real), _short(v.imag)] for v in values[order].tolist()],
        "directions": [
            {
                "value": _short(float(svd.S[i])),
                "near_equal": i in near,
                "read": [_ends(svd.U[:, i], +1), _ends(svd.U[:, i], -1)],
                "write": [_ends(svd.V[:, i], +1), _ends(svd.V[:, i], -1)],
            }
            for i in range(len(svd.S))
        ],
        "trigrams": trigrams,
    }


def table_bytes(n_heads: int) -> int:
    """Bytes that one token's rows of all heads take in the page."""
    return int(3 * n_heads * TABLE_K * (_HALF + _WORD))


def head_tables(
    model: CheckedModel,
    weights: ModelWeights,
    tokens: Sequence[int],
    scales: torch.Tensor,
) -> dict[str, Any]:
    """For heads of a model that the page cannot run: the ends of their QK and OV rows of some tokens.

    Values are divided by the typical norm scale of the tokens, as the page does for small models. In rotary
    models a QK row holds for one distance, here 1. Single precision, one layer at a time: the rows over a
    large vocabulary are never kept.
    """
    at = require_attention(weights)
    ids, typical = torch.tensor(list(tokens)), scales.float()
    rows = weights.token_rows.float()
    outputs = weights.W_U[:, : weights.n_outputs].float()
    mean = weights.class_mean.float()
    n_layers, n_heads = at.W_Q.shape[:2]
    group = n_heads // at.n_key_value_heads
    parts: dict[str, list[torch.Tensor]] = {}
    distance = 0
    sample = sample_tokens(model)[None]
    for layer in range(n_layers):
        attention_scores(model, sample, layer)  # refuses scores that are not these q·k
        rotary = read_rotary(model, layer, 2)
        w_q, w_k, w_v, w_o = (getattr(at, f"W_{part}")[layer].float() for part in "QKVO")
        queries = rows[ids] @ w_q * float(at.scale[layer]) / typical[ids, None]
        if rotary is not None:
            distance, queries = 1, queries @ rotary.relative(1, w_q.shape[-1]).float()
        # One product for all heads of a layer: a large vocabulary is read once.
        keys = rows @ w_k[::group].movedim(0, 1).flatten(1)
        keys.div_(typical[: len(rows), None])
        keys = keys.unflatten(1, (n_heads // group, -1))
        scores = torch.stack([one @ keys[:, i // group].T for i, one in enumerate(queries)])
        _keep(parts, "qk", scores.topk(TABLE_K))
        del keys, scores  # each as large as what follows
        written = rows[ids] @ w_v / typical[ids, None] @ w_o
        writes = (written @ outputs).sub_((written @ mean)[..., None])
        _keep(parts, "raised", writes.topk(TABLE_K))
        _keep(parts, "lowered", writes.topk(TABLE_K, largest=False))
    packed = {
        name: pack(torch.cat(value), "int32" if name.endswith("ids") else "float16")
        for name, value in parts.items()
    }
    return {**packed, "tokens": list(tokens), "distance": distance}


def _keep(parts: dict[str, list[torch.Tensor]], name: str, top: Any) -> None:
    parts.setdefault(name, []).append(top.values)
    parts.setdefault(f"{name}_ids", []).append(top.indices)


def _ends(direction: torch.Tensor, sign: int) -> list[int]:
    return (sign * direction).topk(min(6, len(direction))).indices.tolist()


def _short(value: float) -> float:
    return float(np.format_float_positional(value, precision=5, fractional=False))


def _number(value: Any) -> Any:
    if isinstance(value, (int, np.integer)):
        return int(value)
    return None if not math.isfinite(value) else _short(float(value))
