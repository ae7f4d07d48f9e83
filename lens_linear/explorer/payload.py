"""What a page holds: facts, scores, weights or runs, and a sentence for everything that did not fit."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens_linear import __version__
from lens_linear.circuits.heads.composition import CompositionScores
from lens_linear.circuits.heads.embedding_scales import token_scales
from lens_linear.circuits.heads.head_circuit import head_circuit
from lens_linear.circuits.induction.ablation import StandIns, stand_ins
from lens_linear.circuits.induction.scores import InductionScores
from lens_linear.errors import LensLinearError, UnsupportedModelError
from lens_linear.explorer.heads import (
    added_scores,
    clearest,
    composition,
    head_detail,
    head_rows,
    head_tables,
    table_bytes,
)
from lens_linear.explorer.live import live_arrays, live_facts, sentinel, why_not_live
from lens_linear.explorer.packing import Kind, pack, packed_bytes, unpack_ints
from lens_linear.explorer.runs import run_payload
from lens_linear.linalg.memory import give_back
from lens_linear.linearity.lens.fit import fit_lens
from lens_linear.linearity.lens.lens import FEW, Lens
from lens_linear.linearity.measure.intervals import held_out_null
from lens_linear.linearity.measure.profile import linearity_profile
from lens_linear.linearity.measure.profile_result import LinearityProfile
from lens_linear.models.capture import available_sites
from lens_linear.models.checked import CheckedModel
from lens_linear.models.describe.parameter_counts import n_parameters
from lens_linear.models.describe.weights import ModelWeights, read_weights
from lens_linear.models.describe.weights_mark import WeightsMark
from lens_linear.models.open.checksum import weights_sha256
from lens_linear.models.tokenizer import token_strings, tokenize_prompts
from lens_linear.stats.evaluation import evaluation_tokens
from lens_linear.stats.task_scores import require_task

SCHEMA = 1
LIVE_BYTES = 5_000_000  # of weights, before base64
NAME_BYTES = 24  # of a token's id and text in the page
PART = 4  # composition and the tables of heads may each take this part of the page
DETAILED = (
    64  # heads of a model that runs in the page with eigenvalues, directions and skip-trigrams
)
TABLED = 48  # tokens of the prompts whose QK and OV rows are kept of a large model
LARGE = 20_000_000  # parameters above which a pass over all stories takes minutes
#: What of a page may be left out, and the view that then says so.
PARTS = {"linearity": "map", "lens": "lens", "circuits": "head"}
_LINEARITY = ("block_r2", "block_r2_no_residual", "ffn_r2", "attn_r2")


@dataclass(frozen=True, eq=False)
class Known:
    """Results of this model that the caller has at hand; what is None is measured."""

    induction: InductionScores | None = None
    composition: CompositionScores | None = None
    linearity: LinearityProfile | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with what was read of it once, and what is asked about it."""

    model: CheckedModel
    weights: ModelWeights | None
    lens: Lens | None
    reference: Tensor | None  # rows whose mean stands in place of heads that are taken away
    prompts: tuple[str, ...]
    rows: tuple[Tensor, ...]
    known: Known
    parts: frozenset[str]
    mark: WeightsMark

    @cached_property
    def means(self) -> StandIns:
        """What stands in place of heads that are taken away; a pass over the reference, so only on demand."""
        if self.reference is None:
            return stand_ins(self.model, "zero", None)
        return stand_ins(self.model, "pooled", require_task(self.model, self.reference))


def read_subject(
    model: CheckedModel,
    prompts: Sequence[str],
    known: Known,
    parts: frozenset[str],
) -> Subject:
    """Read weights and prompts; a model whose embedding cannot be read keeps its scores."""
    weights = _weights(model)
    rows = tokenize_prompts(model, prompts, truncate=True) if prompts else []
    texts = tuple(prompts), tuple(rows)
    return Subject(model, weights, None, None, *texts, known, parts, WeightsMark(model))


def _weights(model: CheckedModel) -> ModelWeights | None:
    try:
        # Tables and shares of such a page are kept in half precision.
        dtype = torch.float32 if _large(model) else torch.float64
        return read_weights(model, fold=True, dtype=dtype)
    except UnsupportedModelError:
        return None


def build_payload(
    subject: Subject,
    *,
    precision: Kind,
    max_bytes: int,
    text: str | None,
    seed: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], Subject]:
    """Everything a page holds within ``max_bytes``, and the subject with its lens fitted."""
    model = subject.model
    missing: dict[str, list[str]] = {"map": [], "head": [], "text": [], "lens": []}
    why = why_not_live(model, subject.weights)
    live = why is None and _weight_bytes(subject.weights, precision) <= LIVE_BYTES
    room = max(0, max_bytes - live * _live_bytes(subject, precision)) // PART
    for part in PARTS.keys() - subject.parts:
        missing[PARTS[part]].append(f"Not asked for when this page was made: {part}.")
    facts = _facts(model, subject.weights) | live_facts(model)
    readable = subject.weights is not None
    if _large(model):  # half a gigabyte that nothing reads while the model is measured
        subject = replace(subject, weights=None)
    subject, measured, tokens = _measured(subject, readable, missing, room, text, seed, say)
    lens = subject.lens
    measured_on = "the package's own stories" if text is None else "the caller's text"
    payload: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "live" if live else "run",
        "version": __version__,
        "model": facts,
        "vocabulary": token_strings(model, range(model.d_vocab)) if live else {},
        **_tokenizer(model, live),
        **measured,
        **_circuits(subject, live, missing["head"], room, measured["heads"], say),
        "arrays": None,
        "linear_lens": None,
        "lens_note": _lens_note(lens),
        "sentinel": None,
        "tolerance": 1e-4 if precision == "float32" else 0.02,
        "prompts": list(subject.prompts),
        "first_ids": subject.rows[0].tolist() if subject.rows else [],
        "runs": [],
        "missing": missing,
        "made": {
            "seed": seed,
            "precision": precision,
            "text": measured_on,
        },
    }
    if live and subject.weights is not None:
        none = replace(subject, reference=None).means
        means = _attempt(lambda: subject.means, missing["text"], none)
        payload |= _live(subject, subject.weights, means, tokens, precision)
    else:
        because = f", because {why}" if why else ": its weights take more than 5 MB"
        missing["text"].append(
            f"This page shows the prompts below; it cannot run the model on other text{because}. In a "
            "notebook ll.explore(model) runs any text."
        )
        _add_runs(payload, subject, max_bytes, say)
    _name_tokens(payload, model)
    return payload, subject


def _measured(
    subject: Subject,
    readable: bool,
    missing: dict[str, list[str]],
    max_bytes: int,
    text: str | None,
    seed: int,
    say: Callable[[str], None],
) -> tuple[Subject, dict[str, Any], Tensor | None]:
    """The subject with its lens, what was scored of it, and the tokens that the maps were fitted on."""
    model = subject.model
    give_back()
    found = _scores(subject, missing, max_bytes, seed, say)
    tokens = _attempt(lambda: _measured_tokens(model, text), missing["map"], None)
    found["linearity"] = []
    if tokens is not None and "linearity" in subject.parts:
        say("linearity")
        known = subject.known.linearity
        found["linearity"] = _linearity(model, known, tokens, missing["map"], seed)
    subject = _with_references(subject, tokens, readable, missing, say)
    if readable and subject.weights is None:
        subject = replace(subject, weights=_weights(model))
    return subject, found, tokens


def _scores(
    subject: Subject,
    missing: dict[str, list[str]],
    max_bytes: int,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Scores of every head and composition of every pair, of the strongest pairs where all take too much."""
    model = subject.model
    n_heads = model.n_layers * model.n_heads
    say("heads")
    heads, scored = _attempt(
        lambda: head_rows(model, subject.known.induction, ablate=n_heads <= 64, seed=seed),
        missing["map"],
        ([], ""),
    )
    own = added_scores(model, heads, missing["map"])
    if heads and "lost" not in heads[0]:
        missing["map"].append(
            "The loss of copying without each head is left out: it takes one pass a head, and the model has "
            f"{n_heads} heads. circuits.ablation_scores(model) measures it."
        )
    pairs, note = _attempt(
        lambda: composition(model, subject.known.composition, max_bytes=max_bytes, seed=seed),
        missing["map"],
        (None, ""),
    )
    for view in ("map", "head") if note else ():
        missing[view].append(note)
    return {"heads": heads, "heads_note": scored, "added_scores": own, "composition": pairs}


def _with_references(
    subject: Subject,
    tokens: Tensor | None,
    readable: bool,
    missing: dict[str, list[str]],
    say: Callable[[str], None],
) -> Subject:
    """Fit the linear lens on the tokens, and remember those over which heads' means are taken."""
    model = subject.model
    if tokens is None or not subject.model.n_layers:
        return subject
    lens = None
    if readable and "lens" in subject.parts:
        say("lens")
        with warnings.catch_warnings():  # that the tokens are few for the width: the page says so
            warnings.simplefilter("ignore", UserWarning)
            lens = _attempt(lambda: fit_lens(model, tokens, raw=False), missing["lens"], None)
    return replace(subject, lens=lens, reference=tokens[: 8 if _large(model) else 32])


def _live(
    subject: Subject,
    weights: ModelWeights,
    means: StandIns,
    tokens: Tensor | None,
    precision: Kind,
) -> dict[str, Any]:
    """What a page needs to run the model, and logits to hold itself against."""
    model, lens = subject.model, subject.lens
    found: dict[str, Any] = {
        "arrays": live_arrays(model, weights, means, precision),
        "sentinel": sentinel(model, _sentinel_row(subject, tokens)),
    }
    if lens is not None:
        weight, bias = pack(lens.weight, precision), pack(lens.bias, "float32")
        found["linear_lens"] = {"weight": weight, "bias": bias, "n_tokens": lens.n}
    return found


def dumps(payload: dict[str, Any]) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(payload, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _measured_tokens(model: CheckedModel, text: str | None) -> Tensor:
    """As many rows of the text as maps of the model's width need; fewer for large models, as time allows."""
    rows = evaluation_tokens(model, text)
    each = 8 if _large(model) else 2 * FEW  # tokens an input, half of them scored
    return rows[: max(4, -(-each * model.d_model // rows.shape[1]))]


def _large(model: CheckedModel) -> bool:
    return n_parameters(model) >= LARGE


def _attempt(make: Callable[[], Any], missing: list[str], otherwise: Any) -> Any:
    """What ``make`` returns; where the model does not allow it, the reason goes to ``missing``."""
    try:
        return make()
    except LensLinearError as reason:
        missing.append(str(reason))
        return otherwise
    finally:
        give_back()


def _weight_bytes(weights: ModelWeights | None, precision: Kind) -> int:
    if weights is None:
        return 0
    at = weights.attention
    parts = [weights.W_E, weights.W_U, *([] if weights.W_pos is None else [weights.W_pos])]
    parts += [] if at is None else [at.W_Q, at.W_K, at.W_V, at.W_O]
    return sum(part.numel() for part in parts) * (4 if precision == "float32" else 2)


def _live_bytes(subject: Subject, precision: Kind) -> int:
    """What weights and the linear lens of a model that runs in the page take there, in base64."""
    lens = subject.model.n_layers * subject.model.d_model**2 * (4 if precision == "float32" else 2)
    return (_weight_bytes(subject.weights, precision) + lens) * 4 // 3


def _facts(model: CheckedModel, weights: ModelWeights | None) -> dict[str, Any]:
    names = ("n_layers", "n_heads", "n_key_value_heads", "d_model", "d_head", "d_vocab", "n_ctx")
    facts: dict[str, Any] = {
        name: getattr(model, name) for name in (*names, "positions", "n_ffn", "bos")
    }
    return facts | {
        "name": Path(model.name).name,
        "n_tokens": model.d_vocab_out if weights is None else weights.n_outputs,
        "norm": "none" if weights is None else weights.norm,
        "final_norm": "none" if weights is None else weights.final_norm,
        "eps": model.eps,
        "parameters": n_parameters(model),
        "sha256": weights_sha256(model),
    }


def _tokenizer(model: CheckedModel, live: bool) -> dict[str, Any]:
    """The tokenizer's own files, for pages that take any text."""
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if not live or backend is None:
        return {"tokenizer": None, "tokenizer_config": None}
    return {"tokenizer": json.loads(backend.to_str()), "tokenizer_config": {}}


def _linearity(
    model: CheckedModel,
    profile: LinearityProfile | None,
    tokens: Tensor,
    missing: list[str],
    seed: int,
) -> list[dict[str, Any]]:
    """R² of every layer with the first position and without it, from one pass."""
    if not model.n_layers:
        return []
    sites = available_sites(model, 0)
    measure = partial(linearity_profile, model, tokens, sites=sites, seed=seed)
    profile = _attempt(measure, missing, None) if profile is None else profile
    return [] if profile is None else [_linearity_part(profile, skip) for skip in (0, 1)]


def _linearity_part(profile: LinearityProfile, skip: int) -> dict[str, Any]:
    """One of the two readings; the first position is one row a sequence, and the halves are of one length."""
    frame = profile.to_dataframe()
    less = skip * profile.n_sequences
    n_fit = profile.n_fit - round(less * profile.n_fit / profile.n_tokens)
    rows = []
    for row in frame.to_dict("records"):
        one: dict[str, Any] = {}
        for name in _LINEARITY:
            for end in ("", "_low", "_high"):
                one[name + end] = row.get(f"{name}_without_first{end}" if skip else name + end)
        one["null_r2"] = held_out_null(n_fit, int(row["block_rank"]))
        one["first_share"] = row["block_first_share"]
        rows.append(
            {
                name: round(float(value), 6)
                for name, value in one.items()
                if value is not None and math.isfinite(value)
            }
        )
    return {"skip": skip, "n_tokens": profile.n_tokens - less, "n_fit": n_fit, "rows": rows}


def _circuits(
    subject: Subject,
    live: bool,
    missing: list[str],
    max_bytes: int,
    rows: list[dict[str, Any]],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Eigenvalues, directions and skip-trigrams of small models; tables over the prompts of large ones."""
    empty: dict[str, Any] = {
        "head_details": {},
        "head_tables": None,
        "scales": None,
        "mean_scale": 1.0,
    }
    weights, model = subject.weights, subject.model
    if weights is None or not model.n_layers:
        return empty
    scales = token_scales(weights)
    found: dict[str, Any] = {**empty, "mean_scale": float(scales.mean())}
    if live:
        found["scales"] = pack(scales, "float32")
    if "circuits" not in subject.parts:
        return found
    say("circuits")
    if live:
        verified: set[int] = set()
        all_heads = [(i, j) for i in range(model.n_layers) for j in range(model.n_heads)]
        chosen = all_heads if len(all_heads) <= DETAILED else clearest(rows, DETAILED)
        heads = [
            head_circuit(model, layer, head, weights=weights, verified=verified)
            for layer, head in chosen
        ]
        if len(chosen) < len(all_heads):
            missing.append(
                f"Eigenvalues, singular directions and skip-trigrams stand here for the {len(chosen)} of "
                f"{len(all_heads)} heads with the clearest verdicts: "
                "circuits.head_circuit(model, layer, head) gives the others."
            )
        found["head_details"] = _attempt(
            lambda: {head.name: head_detail(head) for head in heads}, missing, {}
        )
        return found
    named = list(dict.fromkeys(int(one) for row in subject.rows for one in row))
    room = max_bytes // table_bytes(model.n_layers * model.n_heads)
    asked = named[: min(TABLED, room)]
    if not asked:
        missing.append(
            f"QK and OV rows did not fit: one token takes {table_bytes(model.n_layers * model.n_heads):,} "
            "bytes; pass a larger max_bytes."
        )
        return found
    found["head_tables"] = _attempt(
        lambda: head_tables(model, weights, asked, scales), missing, None
    )
    missing.append(
        f"Where a head looks and what it writes stand here for {len(asked)} of the {len(named)} tokens of "
        "the prompts, embeddings only, MLPs left out. Eigenvalues, singular directions and skip-trigrams of "
        "a large model are left out: circuits.head_circuit(model, layer, head) gives them."
    )
    return found


def _add_runs(
    payload: dict[str, Any], subject: Subject, max_bytes: int, say: Callable[[str], None]
) -> None:
    """Add the prompts one by one while they fit; say which did not."""
    missing = payload["missing"]
    named = _tabled(payload["head_tables"])
    used = len(dumps(payload).encode()) + NAME_BYTES * len(named)
    for index, (text, ids) in enumerate(zip(subject.prompts, subject.rows, strict=True)):
        say(f"prompt {index + 1}")
        for patterns, shares in ((True, True), (True, False), (False, False)):
            made = run_payload(
                subject.model, subject.weights, subject.lens, text, ids,
                patterns=patterns, shares=shares,
            )  # fmt: skip
            size = packed_bytes(made) + NAME_BYTES * len(named_tokens([made])) + 4000
            if used + size <= max_bytes:
                break
        else:
            missing["text"].append(
                f"Prompt {index + 1} of {len(subject.prompts)} and those after it did not fit into "
                f"{max_bytes / 1e6:.1f} MB; pass fewer prompts or a larger max_bytes."
            )
            return
        if not shares:
            left = "shares of the logits" if patterns else "attention and shares of the logits"
            missing["text"].append(
                f"The {left} of prompt {index + 1} did not fit into {max_bytes / 1e6:.1f} MB."
            )
        used += size
        payload["runs"].append(made)


def _name_tokens(payload: dict[str, Any], model: CheckedModel) -> None:
    """Texts of the tokens that a page without a vocabulary names."""
    if payload["vocabulary"]:
        return
    used = named_tokens(payload["runs"]) | _tabled(payload["head_tables"])
    order = sorted(used)
    payload["vocabulary"] = dict(zip(map(str, order), token_strings(model, order), strict=True))


def _tabled(tables: dict[str, Any] | None) -> set[int]:
    """Ids of all tokens that the tables of heads name."""
    if tables is None:
        return set()
    names = ("qk_ids", "raised_ids", "lowered_ids")
    return set(tables["tokens"]) | _ids_in([tables[name] for name in names])


def named_tokens(runs: Sequence[dict[str, Any]]) -> set[int]:
    """Ids of all tokens that some runs name."""
    used: set[int] = set()
    for one in runs:
        used |= set(one["ids"])
        grids = [grid["ids"] for grid in one["lens"].values() if grid is not None]
        targets = [] if one["shares"] is None else [one["shares"]["targets"]]
        used |= _ids_in([one["top_ids"], *grids, *targets])
    return used


def _ids_in(packed: Sequence[dict[str, Any]]) -> set[int]:
    return {one for array in packed for one in unpack_ints(array)}


def _sentinel_row(subject: Subject, tokens: Tensor | None) -> Tensor:
    if tokens is not None:
        return tokens[0, : min(64, tokens.shape[1])]
    if subject.rows:
        return subject.rows[0]
    return torch.arange(min(16, subject.model.n_ctx, subject.model.d_vocab))


def _lens_note(lens: Lens | None) -> str:
    if lens is None:
        return ""
    each = lens.n / lens.weight.shape[-1]
    few = (
        f" That is {each:.0f} an input; {FEW} would read other text as well." if each < FEW else ""
    )
    return (
        "Linear lens (fit_lens with raw=False): one affine map a layer to the normalised last stream, "
        f"least squares on n = {lens.n:,} tokens, ridge {lens.ridge:g} of the mean variance.{few}"
    )
