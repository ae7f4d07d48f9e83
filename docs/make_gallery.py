"""Draw the gallery: `python docs/make_gallery.py` computes every figure anew and writes docs/gallery.md."""

from __future__ import annotations

from pathlib import Path

import lens_linear as ll
from lens_linear.circuits import attention_pattern
from lens_linear.constructions import trained_head_memory
from lens_linear.models.tokenize import tokenize_prompts

HERE = Path(__file__).resolve().parent


def figures():
    """Yield (file name, caption, figure)."""
    model = ll.load("attn-2l")
    view = ll.AttentionOnly(model)
    heads, composition = ll.induction_scores(model), ll.composition_scores(model)
    yield "heads", "Prefix matching of every head of attn-2l.", ll.plots.head_scores(heads)
    yield (
        "composition",
        "Composition beside random rotations.",
        ll.plots.composition_map(composition),
    )
    yield (
        "graph",
        "Heads as nodes, composition as edges.",
        ll.plots.circuit_graph(composition, heads),
    )
    tokens = ll.evaluation_tokens(model, n_sequences=4)
    paths = view.paths(tokens)
    importance = paths.importance()
    yield "paths", "What paths of each order are worth.", ll.plots.path_importance(importance)
    line = tokenize_prompts(model, ["Once upon a time there was a cat. Once upon a time"])[0]
    pattern = attention_pattern(model, line, 1)
    yield "attention", "Attention of L1H3.", ll.plots.attention_pattern(pattern, 3)
    full = ll.load("gpt-nano")
    rows = ll.evaluation_tokens(full)
    yield (
        "profile",
        "Linearity of gpt-nano.",
        ll.plots.linearity_profile(ll.linearity_profile(full, rows)),
    )
    yield (
        "layer-map",
        "Affine maps between all layers.",
        ll.plots.layer_map(ll.layer_map(full, rows)),
    )
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
        ll.plots.memory_capacity(capacity, heads=memories),
    )


def main() -> None:
    """Write the images and the page."""
    lines = [
        "# Gallery",
        "",
        "Made by `python docs/make_gallery.py`; hover works in the live figures.",
        "",
    ]
    for name, caption, figure in figures():
        figure.write_image(HERE / "images" / f"gallery-{name}.png", width=900, scale=1.2)
        lines += [f"![{caption}](images/gallery-{name}.png)", "", caption, ""]
    (HERE / "gallery.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
