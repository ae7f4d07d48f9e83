"""Draw the gallery: `python docs/make_gallery.py` draws every picture and writes docs/gallery.md.

Each entry is the code that a reader would type; the same text is run and printed beside its picture. Needs
`pip install -e ".[static]"` and Chrome or Chromium. `python docs/make_gallery.py dynamics` draws one room.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lens_linear as ll

HERE = Path(__file__).resolve().parent
WIDTH = 760

# room: (title, code run first, {file: (caption, code; its last line is the figure)})
ROOMS: dict[str, tuple[str, str, dict[str, tuple[str, str]]]] = {
    "circuits": (
        "Circuits",
        """
model = ll.load("attn-2l")
view = ll.AttentionOnly(model)
heads = ll.induction_scores(model)
composition = ll.composition_scores(model)
layer, head = heads.heads("induction")[0]
""",
        {
            "heads": ("What every head of attn-2l is, and how strongly.", "heads.plot()"),
            "composition": (
                "Composition of all pairs of heads, beside random rotations.",
                "composition.plot()",
            ),
            "graph": (
                "Heads as nodes, composition as edges.",
                "ll.plots.circuit_graph(composition, heads, min_z=5)",
            ),
            "ablation": (
                "What is lost without each head.",
                "ll.circuits.ablation_scores(model).plot()",
            ),
            "mechanism": (
                "The induction mechanism, cut step by step.",
                "ll.circuits.verify_induction(model).plot()",
            ),
            "attention": (
                "Attention of an induction head on a text that repeats itself: the stripe.",
                """
from lens_linear.models.tokenizer import tokenize_prompts
line = tokenize_prompts(model, ["Once upon a time there was a cat. Once upon a time there was a"])[0]
pattern = ll.circuits.attention_pattern(model, line, layer)
ll.plots.attention_pattern(pattern, head)
""",
            ),
            "ov-window": (
                "OV circuit of that head: the tokens of its largest entries. It copies.",
                'll.circuits.circuit_map(view.head(layer, head), "ov", k=20).plot()',
            ),
            "ov-overview": (
                "The same circuit as a whole: each cell is the largest entry of a block of tokens.",
                """
ll.plots.circuit_overview(ll.circuits.circuit_map(view.head(layer, head), "ov", k=20))
""",
            ),
            "skip-trigrams": (
                "Skip-trigrams of attn-1l by effect.",
                """
one = ll.AttentionOnly(ll.load("attn-1l"))
ll.plots.skip_trigram_table(one.all_skip_trigrams(k=12), k=12)
""",
            ),
            "paths": (
                "What paths of each order are worth.",
                "view.paths(ll.evaluation_tokens(model, n_sequences=4)).importance().plot()",
            ),
        },
    ),
    "linearity": (
        "Linearity",
        """
model = ll.load("gpt-nano")
rows = ll.evaluation_tokens(model)
""",
        {
            "profile": (
                "Linearity of gpt-nano by layer, held out, with its null.",
                "ll.linearity_profile(model, rows).plot()",
            ),
            "difference": (
                "What training changes: one checkpoint minus another, paired by sequence, with 95% bands.",
                """
profiles = {step: ll.linearity_profile(ll.load(f"gpt-micro@{step}"), rows) for step in (100, 1000)}
ll.compare({str(step): profile for step, profile in profiles.items()}).difference("1000", "100").plot()
""",
            ),
            "layer-map": (
                "The best affine map from any layer to any later one.",
                "ll.layer_map(model, rows).plot()",
            ),
            "replacement": (
                "Loss as blocks are removed, or run as affine maps.",
                """
strategies = ("remove", "linear", "linear+distill")
curves = {name: ll.replacement_curve(model, rows[:96], name) for name in strategies}
ll.plots.replacement_curves(curves)
""",
            ),
            "compression": (
                "One FFN as one affine layer: parameters saved, loss paid.",
                "ll.linearity.ffn_compression(model, rows[:96], ranks=(None, 32, 8)).plot()",
            ),
        },
    ),
    "dynamics": (
        "Depth dynamics and steering",
        """
model = ll.load("gpt-mini")
parts = ll.load_concept("mood").split(400, 60, 60, seed=0)
directions = ll.concept_directions(model, parts.concept)
exact = ll.gain_profile(model, parts.evaluation.texts, directions)
surrogate = ll.fit_surrogate(model, parts.operating.texts, directions, order=16, jacobian="mean")
contest = ll.evaluate_schedules(model, parts.evaluation.texts[:30], directions, surrogate)
u = ll.min_energy(surrogate, contest.target).plain()
""",
        {
            "separation": (
                "How well the directions of a concept separate texts, by layer.",
                "ll.plots.concept_separation(directions)",
            ),
            "gains": (
                "Gain of a push at each layer: exact, and predicted by a surrogate.",
                'll.plots.gain_profiles({"exact": exact, "surrogate of order 16": surrogate})',
            ),
            "agreement": (
                "Agreement of surrogates with exact gains, by order and basis.",
                """
bases = ("krylov", "balanced", "random")
ll.dynamics.agreement_table(model, parts, orders=(1, 4, 16, 64), bases=bases, jacobians=("prompt",)).plot()
""",
            ),
            "energies": (
                "Energy of schedules that reach the same shift on the full model.",
                "contest.plot()",
            ),
            "schedules": (
                "How the schedules spread a push over the layers.",
                "ll.plots.schedule_shapes(contest)",
            ),
            "steered-text": (
                "Text at multiples of the cheapest schedule.",
                """
prompts = ["The old man looked at the letter and felt", "Alice opened the door and was"]
ll.dynamics.steer_text(model, prompts, directions, u, n_tokens=10, scales=(-2, 0, 2)).plot()
""",
            ),
            "steering-cost": (
                "What steering costs on ordinary text.",
                """
text = ll.evaluation_tokens(model, n_sequences=12)
ll.dynamics.steering_cost(model, text, directions, u).plot()
""",
            ),
        },
    ),
    "constructions": (
        "Least squares and memory",
        "",
        {
            "hat-matrix": (
                "Attention scores that are least squares: the hat matrix.",
                """
x, y = ll.constructions.regression_data(n=12, d=4, outputs=1, noise=0.5, seed=0)
ll.OLSAttention.from_data(x, y).hat().plot()
""",
            ),
            "shift": (
                "What fixed weights pay when the covariance moves.",
                "ll.constructions.covariance_shift(conditions=(1, 4, 16, 64, 256), seeds=5).plot()",
            ),
            "dial": (
                "From linear attention to softmax: where regression ends and retrieval starts.",
                "ll.constructions.attention_dial().plot()",
            ),
            "head-dial": (
                "The same dial on heads of attn-2l, with the loss: three that retrieve, and L0H1.",
                """
import torch
half = torch.randint(1024, (8, 64), generator=torch.Generator().manual_seed(0))
heads = ["L0H0", "L0H1", "L1H1", "L1H3"]
model = ll.load("attn-2l")
rows = torch.cat([half, half], dim=1)
ll.constructions.head_dial(model, rows, heads=heads, losses=True).plot()
""",
            ),
            "capacity": (
                "Capacity against theory: linear, cubic, exponential.",
                """
sizes = {"quadratic": (32, 64, 128, 256, 512), "polynomial-3": (32, 48, 64, 96, 128)}
ll.memory_capacity(dims=sizes).plot()
""",
            ),
        },
    ),
}


def run(code: str, names: dict[str, Any]) -> Any:
    """Run lines of code in a space of names; the value of the last line."""
    *lines, last = code.strip().splitlines() or [""]
    exec("\n".join(lines), names)
    return eval(last, names) if last else None


def main(rooms: list[str]) -> None:
    """Write the images of some rooms; the page too, when all are drawn."""
    lines = [
        "# Gallery",
        "",
        "Every picture with the code that makes it (`import lens_linear as ll` first). In a notebook each answers to",
        "hovering; `figure.layout.meta[\"alt\"]` says it in words. Remade by `python docs/make_gallery.py`.",
    ]  # fmt: skip
    for name in rooms or ROOMS:
        title, first, entries = ROOMS[name]
        names: dict[str, Any] = {"ll": ll}
        run(first + "\nNone", names)
        lines += ["", f"## {title}"]
        if first:
            lines += ["", "```python", first.strip(), "```"]
        for file, (caption, code) in entries.items():
            figure = run(code, names)
            path = HERE / "images" / f"gallery-{file}.png"
            figure.write_image(path, width=WIDTH, height=figure.layout.height)
            alt = figure.layout.meta["alt"].replace("[", "(").replace("]", ")").replace("\n", " ")
            lines += ["", f"### {caption}", "", "```python", code.strip(), "```", ""]
            lines += [f"![{alt}](images/gallery-{file}.png)"]
    if not rooms:
        (HERE / "gallery.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
