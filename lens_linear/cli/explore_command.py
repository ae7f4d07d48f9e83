"""``lens-linear explore``: one interactive page about a model."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from lens_linear.checks import require_file, require_float
from lens_linear.cli.output import emit, envelope, steps
from lens_linear.explorer.explorer import PROMPTS, explore
from lens_linear.files import require_target
from lens_linear.models.open.load import load
from lens_linear.text.corpora import read_text


def run_explore(options: argparse.Namespace) -> None:
    """Write the page, and open it in a browser if asked."""
    require_float("--max-mb", options.max_mb, minimum=0.1)
    name = Path(options.model).name
    out = require_target("--out", options.out or f"{name}-explorer.html")
    text = None if options.text is None else read_text(require_file("--text", options.text))
    model = load(options.model)
    with steps(4 + len(options.prompt or PROMPTS), "explore", hide=options.json) as begin:
        explorer = explore(
            model,
            options.prompt or None,
            max_bytes=int(options.max_mb * 1e6),
            text=text,
            seed=options.seed,
            on_step=begin,
        )
        path = explorer.save(out)
    if options.open:
        webbrowser.open(path.resolve().as_uri())
    size = path.stat().st_size
    result = {"path": str(path), "bytes": size, "left_out": explorer.payload["missing"]}
    settings = {"out": str(path), "max_mb": options.max_mb, "text": options.text or "own stories"}
    payload = envelope(
        "explore", result, models={name: model}, seed=options.seed, settings=settings
    )
    left_out = [note for part in explorer.payload["missing"].values() for note in part]
    lines = [repr(explorer), *(f"Not in the page: {note}" for note in left_out)]
    emit(options.json, payload, "\n".join([*lines, f"The page ({size / 1e6:.1f} MB): {path}"]))
