"""Every figure of the package, of tiny models whose tokens, names and texts are all hostile."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from robust_calls import NATURAL, SHAPE, X, Y, ids

import lens_linear as ll
from lens_linear import circuits, constructions, dynamics, linearity, plots, studies
from lens_linear.studies.pretraining import MEASURES

# EVIL marks what came from outside; each would do something if it were not escaped.
HOSTILE = (
    "</script><script>document.title='EVIL'</script>",
    "<b>EVIL</b>",
    "<img src=x onerror=\"document.title='EVIL'\">",
    "<a href='javascript:alert(1)'>EVIL</a>",
    "<svg onload=\"document.title='EVIL'\">",
    "<br>EVIL",
    "</s>",
    "\n",
    "",
    "\u202eEVIL",
    "twice",
    "twice",
    "'\"EVIL&lt;b&gt;",
    "\u2028",
)
NAME = "<img src=x onerror=\"document.title='EVIL'\"><b>EVIL</b>"
LABELS = [HOSTILE[i % len(HOSTILE)] for i in range(SHAPE["d_vocab"])]
TOKENS = ids(8, 12)
PROBE: dict[str, Any] = {"periods": [4, 5], "rows_per_period": 2, "bos": None}


@functools.cache
def attention_only() -> Any:
    model = ll.toy_model(**SHAPE)
    model.cfg.model_name = NAME
    return model


@functools.cache
def gpt() -> Any:
    model = ll.toy_model(**SHAPE, attn_only=False, norm="LN")
    model.cfg.model_name = NAME
    return model


@functools.cache
def view() -> Any:
    return ll.AttentionOnly(attention_only(), labels=LABELS)


@functools.cache
def head() -> Any:
    return view().head(1, 0)


@functools.cache
def profile() -> Any:
    return ll.linearity_profile(gpt(), TOKENS)


@functools.cache
def directions() -> Any:
    return dynamics.random_directions(gpt())


@functools.cache
def gains() -> Any:
    return ll.gain_profile(gpt(), TOKENS, directions())


@functools.cache
def comparison() -> Any:
    shapes = {NAME: torch.ones(2, dtype=torch.float64)}
    return ll.evaluate_schedules(gpt(), TOKENS, directions(), target=0.1, schedules=shapes)


@functools.cache
def agreement() -> Any:
    concept = ll.load_concept("mood")
    table = dynamics.agreement_table(
        NATURAL(), concept, orders=(2, 3), bases=("random", "pca"), n_concept=20, n_operating=2,
        n_evaluation=2,
    )  # fmt: skip
    rows = tuple(dataclasses.replace(row, model=NAME, concept=NAME) for row in table.rows)
    return dataclasses.replace(table, rows=rows)


@functools.cache
def separation() -> Any:
    return ll.concept_directions(NATURAL(), ll.load_concept("mood", limit=40))


@functools.cache
def steered() -> Any:
    model = NATURAL()
    found = dynamics.steer_text(
        model, ["Once upon", "There"], dynamics.random_directions(model), torch.ones(1).double(),
        n_tokens=1, scales=(0.0, 1.0),
    )  # fmt: skip
    texts = tuple(HOSTILE[2 * i : 2 * i + 2] for i in range(2))
    return dataclasses.replace(found, prompts=HOSTILE[:2], texts=texts)


@functools.cache
def study() -> Any:
    variants = {NAME: {}, HOSTILE[0]: {}}
    spec = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_vocab": 20}
    recipe = {"spec": spec, "phases": [{"steps": 9}]}
    plan = studies.Study(NAME, NAME, (0, 1), recipe, NAME, variants, {})
    draw = torch.Generator().manual_seed(0)
    rows = tuple(
        {"variant": variant, "seed": seed, "step": step, "final": step == 9, "layer": layer}
        | {measure: float(torch.rand(1, generator=draw)) for measure in MEASURES}
        for variant in variants
        for seed in (0, 1)
        for step in (3, 9)
        for layer in (0, 1)
    )
    return studies.StudyResult(plan, rows, 100, 100, 0.1)


@functools.cache
def mechanism() -> Any:
    model = constructions.build_induction(vocab=24, n_ctx=48).model
    model.cfg.model_name = NAME
    return circuits.verify_induction(
        model, periods=[6, 8], rows_per_period=2, bos=None, n_controls=1
    )


@functools.cache
def memory() -> Any:
    return ll.memory_capacity(energies="quadratic", dims=[16, 24], queries=8, seeds=1)


@functools.cache
def shift() -> Any:
    return constructions.covariance_shift(
        conditions=(1, 2), layers=4, d=3, n=20, queries=4, base_rows=50, seeds=2
    )


def bugs() -> Any:
    wanted = torch.tensor([[5, 1, 2], [5, 3, 4], [6, 1, 2], [6, 3, 4]])
    return circuits.skip_trigram_bugs(head(), wanted)


FIGURES: dict[str, Callable[[], Any]] = {
    "ablation_map": lambda: circuits.ablation_scores(attention_only(), **PROBE),
    "adam_convergence": lambda: linearity.adam_baseline(gpt(), TOKENS, 1, steps=3),
    "agreement_by_order": agreement,
    "agreement_by_size": lambda: (agreement(), {"order": 2}),
    "attention_dial": lambda: constructions.attention_dial(
        betas=(0.01, 1.0, 100.0), orders=(), seeds=2
    ),
    "attention_heads": lambda: circuits.attention_pattern(
        attention_only(), TOKENS[0], 1, labels=LABELS
    ),
    "attention_pattern": lambda: circuits.attention_pattern(
        attention_only(), TOKENS[0], 1, labels=LABELS
    ),
    "bigram_comparison": lambda: view().bigrams().compare(torch.rand(20, 20).double().softmax(-1)),
    "bigram_table": lambda: (view().bigrams(), [0, 1, 2, 3]),
    "bilinear_gain": lambda: {NAME: ll.bilinear_probe(gpt(), TOKENS, 1, rank=[1, 2], iterations=2)},
    "bit_error": memory,
    "circuit_graph": lambda: (
        ll.composition_scores(attention_only(), n_random=3),
        ll.induction_scores(attention_only(), **PROBE),
    ),
    "circuit_overview": lambda: circuits.circuit_map(head(), k=8, blocks=5),
    "circuit_window": lambda: circuits.circuit_map(head(), k=8, blocks=5),
    "composition_map": lambda: ll.composition_scores(attention_only(), n_random=3),
    "concept_separation": lambda: {NAME: separation()},
    "covariance_shift": shift,
    "diagonal_accuracy": lambda: {
        NAME: head().copying_accuracy(),
        HOSTILE[0]: head().copying_accuracy(),
    },
    "direct_logit_attribution": lambda: pd.DataFrame(
        {"component": [NAME, HOSTILE[0]], "relative": [1.0, -0.5]}
    ),
    "ffn_compression": lambda: linearity.ffn_compression(gpt(), TOKENS, ranks=[2, None]),
    "gain_profiles": lambda: {NAME: gains()},
    "hat_matrix": lambda: ll.OLSAttention.from_data(X, Y).hat(),
    "head_dial": lambda: constructions.head_dial(attention_only(), TOKENS, betas=(0.1, 1.0)),
    "head_memory": lambda: constructions.trained_head_memory(
        attention_only(), ids(4, 16), layer=0, head=0, n_patterns=[4], draws=1
    ),
    "head_scores": lambda: ll.induction_scores(attention_only(), **PROBE),
    "in_context_loss": lambda: circuits.in_context_loss(attention_only(), **PROBE),
    "layer_geometry": lambda: linearity.layer_geometry(gpt(), TOKENS),
    "layer_map": lambda: ll.layer_map(gpt(), TOKENS),
    "lens_grid": lambda: pd.DataFrame(
        {"layer": [0, 0], "position": [0, 1], "token": HOSTILE[:2], "top": HOSTILE[2:4]}
    ).assign(probability=0.5),
    "lens_profile": lambda: pd.DataFrame(
        {"layer": [0, 1], "kl": [1.0, 0.0], "loss": [3.0, 2.0], "top1": [0.5, 1.0]}
    ),
    "linearity_profile": profile,
    "mechanism_table": mechanism,
    "memory_capacity": memory,
    "memory_swap": lambda: constructions.swap_memories((X, Y), (X + 1, Y * 2)),
    "ols_convergence": lambda: ll.train_ols_attention(X[:, :1], Y[:, :1], epochs=3, seeds=2),
    "patching": lambda: pd.DataFrame({"site": [NAME, HOSTILE[0]], "effect": [0.5, -0.1]}),
    "overview": lambda: pd.DataFrame({"name": [NAME, HOSTILE[0]], "effect": [0.5, -0.1]}),
    "path_ablations": lambda: view().paths(TOKENS).ablations(),
    "path_importance": lambda: view().paths(TOKENS).importance(),
    "path_logits": lambda: view().paths(TOKENS).token_table(3),
    "positional_qk": lambda: head().positional_qk(12),
    "profile_comparison": lambda: linearity.compare_profiles(
        {NAME: profile(), HOSTILE[0]: profile()}
    ),
    "profile_difference": lambda: linearity.compare_profiles(
        {NAME: profile(), HOSTILE[0]: profile()}
    ).difference(NAME, HOSTILE[0]),
    "qk_attribution": lambda: ll.qk_attribution(attention_only(), TOKENS, 1, 0, labels=LABELS),
    "replacement_curves": lambda: {NAME: ll.replacement_curve(gpt(), TOKENS)},
    "retrieval": lambda: constructions.retrieval_curve(
        energies="quadratic", d=16, n_patterns=(2, 4), noise=(0.1,), queries=4, seeds=1, steps=1
    ),
    "run_table": lambda: linearity.run_table(gpt(), TOKENS),
    "schedule_energies": comparison,
    "schedule_shapes": lambda: {NAME: ll.min_energy(gains(), 0.1)},
    "shift_cost": shift,
    "skip_trigram_bugs": bugs,
    "skip_trigram_table": lambda: view().skip_trigrams(1, 0, k=12),
    "steered_text": steered,
    "steering_cost": lambda: {
        NAME: dynamics.steering_cost(gpt(), TOKENS, directions(), torch.ones(2).double())
    },
    "step_size": lambda: dynamics.step_size_table(gpt(), TOKENS, directions(), steps=(0.1, 0.01)),
    "study_measures": study,
    "study_profiles": study,
    "svd_directions": lambda: head().svd(3, top=4),
    "trained_heads": lambda: constructions.trained_heads(
        attention_only(), TOKENS, exchanges=("linear",)
    ),
    "top_pairs": lambda: head().top_pairs("ov", 12),
}


def draw(name: str) -> Any:
    """The figure of that name, drawn from its hostile result."""
    result = FIGURES[name]()
    arguments = result if type(result) is tuple else (result,)
    knobs = arguments[-1] if len(arguments) > 1 and isinstance(arguments[-1], dict) else {}
    return getattr(plots, name)(*(arguments[:-1] if knobs else arguments), **knobs)
