"""Draw the gallery: `python docs/make_gallery.py` computes every figure and writes docs/gallery.md.

Needs `pip install -e ".[static]"` and Chrome or Chromium. `python docs/make_gallery.py dynamics` draws
one room alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import plotly.graph_objects as go

import lens_linear as ll
from lens_linear.circuits import attention_pattern, circuit_map
from lens_linear.circuits.induction.ablation import ablation_scores
from lens_linear.circuits.induction.mechanism import verify_induction
from lens_linear.constructions import trained_head_memory
from lens_linear.dynamics import agreement_table, steer_text, steering_cost
from lens_linear.linearity import ffn_compression
from lens_linear.models.tokenizer import tokenize_prompts

HERE = Path(__file__).resolve().parent
Figures = Iterator[tuple[str, str, go.Figure]]


def circuits() -> Figures:
    """Yield (file name, caption, figure) of attention-only models."""
    model = ll.load("attn-2l")
    view, plots = ll.AttentionOnly(model), ll.plots
    heads, composition = ll.induction_scores(model), ll.composition_scores(model)
    yield (
        "heads",
        "Every head of attn-2l: prefix matching above its control, with verdicts.",
        plots.head_scores(heads, subtract_control=True),
    )
    yield (
        "composition",
        "Composition of all pairs of heads, beside random rotations.",
        plots.composition_map(composition),
    )
    yield (
        "graph",
        "Heads as nodes, composition as edges.",
        plots.circuit_graph(composition, heads, min_z=5),
    )
    yield "ablation", "What is lost without each head.", plots.ablation_map(ablation_scores(model))
    yield (
        "mechanism",
        "The induction mechanism, cut step by step.",
        plots.mechanism_table(verify_induction(model)),
    )
    layer, head = heads.heads("induction")[0]
    line = tokenize_prompts(model, ["Once upon a time there was a cat. Once upon a time"])[0]
    pattern = attention_pattern(model, line, layer)
    yield (
        "attention",
        f"Attention of L{layer}H{head}, an induction head, on a text that repeats itself.",
        (plots.attention_pattern(pattern, head)),
    )
    ov = circuit_map(view.head(layer, head), "ov", k=24)
    yield (
        "ov-window",
        f"OV circuit of L{layer}H{head}: the tokens of its largest entries. It copies.",
        (plots.circuit_window(ov)),
    )
    yield (
        "ov-overview",
        "The same circuit as a whole: each cell is the largest entry of a block of tokens.",
        (plots.circuit_overview(ov)),
    )
    one = ll.AttentionOnly(ll.load("attn-1l"))
    qk = circuit_map(one.head(0, 1), "qk", k=24)
    yield (
        "qk-window",
        "QK circuit of a head of attn-1l: which token looks for which.",
        plots.circuit_window(qk),
    )
    yield "qk-overview", "The same QK circuit as a whole.", plots.circuit_overview(qk)
    yield (
        "skip-trigrams",
        "Skip-trigrams of attn-1l by effect.",
        plots.skip_trigram_table(one.all_skip_trigrams(k=12)),
    )
    importance = view.paths(ll.evaluation_tokens(model, n_sequences=4)).importance()
    yield "paths", "What paths of each order are worth.", plots.path_importance(importance)


def linearity() -> Figures:
    """Yield the figures of a GPT with FFNs."""
    model, plots = ll.load("gpt-nano"), ll.plots
    rows = ll.evaluation_tokens(model)
    yield (
        "profile",
        "Linearity of gpt-nano by layer, held out, with its null.",
        plots.linearity_profile(ll.linearity_profile(model, rows)),
    )
    yield (
        "layer-map",
        "The best affine map from any layer to any later one.",
        plots.layer_map(ll.layer_map(model, rows)),
    )
    curves = {
        name: ll.replacement_curve(model, rows[:96], name)
        for name in ("remove", "linear", "linear+distill")
    }
    yield (
        "replacement",
        "Loss as blocks are removed, or run as affine maps.",
        plots.replacement_curves(curves),
    )
    yield (
        "compression",
        "One FFN as one affine layer: parameters saved, loss paid.",
        plots.ffn_compression(ffn_compression(model, rows[:96], ranks=(None, 32, 8))),
    )


def dynamics() -> Figures:
    """Yield the figures of depth dynamics and steering on gpt-mini."""
    model, plots = ll.load("gpt-mini"), ll.plots
    parts = ll.load_concept("mood").split(400, 60, 60, seed=0)
    directions = ll.concept_directions(model, parts.concept)
    yield (
        "separation",
        "How well the directions of a concept separate texts, by layer.",
        plots.concept_separation(directions),
    )
    profile = ll.gain_profile(model, parts.evaluation.texts, directions)
    surrogate = ll.fit_surrogate(
        model, parts.operating.texts, directions, order=16, jacobian="mean"
    )
    yield (
        "gains",
        "Gain of a push at each layer: exact, and predicted by a surrogate.",
        plots.gain_profiles({"exact": profile, "surrogate of order 16": surrogate}),
    )
    table = agreement_table(
        model,
        parts,
        orders=(1, 4, 16, 64),
        bases=("krylov", "balanced", "random"),
        jacobians=("prompt",),
    )
    yield (
        "agreement",
        "Agreement of surrogates with exact gains, by order and basis.",
        plots.agreement_by_order(table),
    )
    contest = ll.evaluate_schedules(model, parts.evaluation.texts[:30], directions, surrogate)
    yield (
        "energies",
        "Energy of schedules that reach the same shift on the full model.",
        plots.schedule_energies(contest),
    )
    yield (
        "schedules",
        "How the schedules spread a push over the layers.",
        plots.schedule_shapes(contest),
    )
    u = ll.min_energy(surrogate, contest.target).plain()
    prompts = ["The old man looked at the letter and felt", "Alice opened the door and was"]
    written = steer_text(model, prompts, directions, u, n_tokens=10, scales=(-2, 0, 2))
    yield "steered-text", "Text at multiples of the cheapest schedule.", plots.steered_text(written)
    cost = steering_cost(model, ll.evaluation_tokens(model, n_sequences=12), directions, u)
    yield "steering-cost", "What steering costs on ordinary text.", plots.steering_cost(cost)


def constructions() -> Figures:
    """Yield the figures of least squares and memory in attention."""
    plots = ll.plots
    x, y = ll.constructions.regression_data(n=12, d=4, outputs=1, noise=0.5, seed=0)
    yield (
        "hat-matrix",
        "Attention scores that are least squares: the hat matrix.",
        plots.hat_matrix(ll.OLSAttention.from_data(x, y).hat()),
    )
    yield (
        "shift",
        "What fixed weights pay when the covariance moves.",
        plots.covariance_shift(
            ll.constructions.covariance_shift(conditions=(1, 4, 16, 64, 256), seeds=5)
        ),
    )
    model = ll.load("attn-2l")
    sizes = {"quadratic": (32, 64, 128, 256, 512), "polynomial-3": (32, 48, 64, 96, 128)}
    capacity = ll.memory_capacity(dims=sizes)  # from the width of a head's keys on
    memories = [
        trained_head_memory(model, ll.evaluation_tokens(model)[:16], layer=layer, head=head)
        for layer in range(model.cfg.n_layers)
        for head in range(model.cfg.n_heads)
    ]
    yield (
        "capacity",
        "Capacity against theory, with the heads of attn-2l on the same picture.",
        plots.memory_capacity(capacity, heads=memories),
    )


ROOMS = {
    "circuits": ("Circuits", circuits),
    "linearity": ("Linearity", linearity),
    "dynamics": ("Depth dynamics and steering", dynamics),
    "constructions": ("Least squares and memory", constructions),
}


def main(rooms: list[str]) -> None:
    """Write the images of some rooms; the page too, when all are drawn."""
    lines = [
        "# Gallery",
        "",
        "Made by `python docs/make_gallery.py`. In a notebook every figure answers to hovering.",
    ]
    for name in rooms or ROOMS:
        title, figures = ROOMS[name]
        lines += ["", f"## {title}"]
        for file, caption, figure in figures():
            figure.write_image(HERE / "images" / f"gallery-{file}.png", width=900)
            lines += ["", caption, "", f"![{caption}](images/gallery-{file}.png)"]
    if not rooms:
        (HERE / "gallery.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
