"""One self-contained HTML page: what was found, the evidence, how to go on.

Each JavaScript bundle stands on the page once; nothing is loaded from outside; the template escapes every
string that comes from a model, a tokenizer or a user.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lens_linear.plots.circuitsvis import attention_view, bundle_script, safe_json
from lens_linear.reports.explorer_link import ExplorerLink

# Of plotly.js-cartesian-dist-min 4.1.1 (MIT), a third of the full bundle; figures with other traces take
# the full one, which the installed plotly holds.
_SMALL_BUNDLE = "plotly-cartesian.min.js"
_SMALL_TRACES = frozenset(
    "bar box contour heatmap histogram histogram2d histogram2dcontour image pie scatter violin".split()
)
_LONG = 14  # rows; a longer table shows its first rows and folds the rest
_SHOWN = 10
_FINDINGS = 5
_WORDS = {
    "block_r2": "block R²",
    "block_r2_without_first": "block R² without first position",
    "block_r2_no_residual": "block R² without residual",
    "block_r2_no_residual_without_first": "block R² without residual and first position",
    "ffn_r2": "FFN R²",
    "ffn_r2_without_first": "FFN R² without first position",
    "attn_r2": "attention R²",
    "attn_r2_without_first": "attention R² without first position",
    "null_r2": "R² of an unrelated output",
    "update_ratio": "size of the update / stream",
    "prefix_matching": "prefix matching",
    "positional_control": "same distance, other period",
    "excess": "above its control",
    "prev_token": "previous token",
    "duplicate": "same token earlier",
    "qk_score": "QK score",
    "ov_score": "OV score",
    "effect": "effect (logits)",
    "out": "raised token",
    "baseline_mean": "random mean",
    "baseline_sd": "random sd",
    "ratio": "times random",
    "above_random": "above the best random pair",
    "z": "sd above random",
    "times_fewer": "times fewer parameters",
    "share_saved": "share of the model saved",
    "loss_increase": "rise of the loss (nats)",
    "loss_increase_se": "its standard error",
}


@dataclass(frozen=True, eq=False)
class Figure:
    """A plotly figure with a caption that says what to see."""

    figure: go.Figure
    caption: str


@dataclass(frozen=True, eq=False)
class Table:
    """A table with a caption; text columns keep their spaces, long ones fold."""

    frame: pd.DataFrame
    caption: str
    digits: int = 3


@dataclass(frozen=True, eq=False)
class Attention:
    """A CircuitsVis attention view [head, query, key] over printable tokens."""

    pattern: Any
    tokens: Sequence[str]
    head_names: Sequence[str]
    caption: str


Block = Figure | Table | Attention


@dataclass(frozen=True, eq=False)
class Section:
    """A heading, sentences of prose, and what they speak of.

    Attributes:
        title: the heading.
        prose: paragraphs with an empty line between them.
        blocks: figures, tables and attention views.
        finding: one sentence for the head of the page, or none.
    """

    title: str
    prose: str
    blocks: Sequence[Block] = field(default=())
    finding: str = ""


def column_words(name: object) -> str:
    """A column's name in words, as a page shows it."""
    return _WORDS.get(str(name), str(name).replace("_", " "))


def render_page(
    title: str,
    lead: str,
    sections: Sequence[Section],
    *,
    settings: dict[str, Any],
    go_on: Sequence[tuple[str, str]] = (),
    explorer: ExplorerLink | None = None,
) -> str:
    """Return the whole page as text.

    Args:
        title: of the page.
        lead: one or two sentences below it.
        sections: in order; their findings stand first, at most five.
        settings: version, checksums, seeds: shown at the end and kept as JSON inside the page.
        explorer: the link to the explorer beside the page, shown under the lead.
        go_on: sentences on what to do next, each with the code for it (or "").
    """
    traces: set[str] = set()
    scripts: list[str] = []
    shown = [
        {
            "title": section.title,
            "paragraphs": [part for part in section.prose.split("\n\n") if part],
            "blocks": [
                _block(f"s{number}b{index}", block, traces, scripts) | {"caption": block.caption}
                for index, block in enumerate(section.blocks)
            ],
        }
        for number, section in enumerate(sections, start=1)
    ]
    found = [(number, s.finding) for number, s in enumerate(sections, start=1) if s.finding]
    return _template().render(
        title=title,
        lead=lead,
        found=found[:_FINDINGS],
        sections=shown,
        go_on=go_on,
        explorer=explorer,
        settings=json.dumps(settings, indent=1),
        settings_json=Markup(safe_json(settings)),
        bundles=Markup(_plotly(traces) + (bundle_script() if scripts else "")),
        drawing=Markup(f"<script>{_file('figures.js')}</script>" if traces else ""),
        scripts=Markup("".join(scripts)),
    )


@functools.cache
def _template() -> jinja2.Template:
    return jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
        _file("page.html.jinja")
    )


def _file(name: str) -> str:
    return (resources.files("lens_linear.reports") / name).read_text("utf-8")


def _plotly(traces: set[str]) -> str:
    """The smallest bundle that draws traces of these kinds, as one script; nothing without any."""
    if not traces:
        return ""
    source = _file(_SMALL_BUNDLE) if traces <= _SMALL_TRACES else get_plotlyjs()
    return "<script>" + source.replace("</script", "<\\/script") + "</script>"


def _block(name: str, block: Block, traces: set[str], scripts: list[str]) -> dict[str, object]:
    """What the template needs of a block; notes the kinds of its traces, and scripts for the page's end."""
    if isinstance(block, Figure):
        traces |= {trace.type for trace in block.figure.data}
        data = Markup(safe_json(json.loads(str(block.figure.to_json()))))
        layout: Any = block.figure.layout
        meta, height = layout.meta, layout.height
        alt = meta["alt"] if meta else block.caption
        return {"name": name, "figure": data, "alt": alt, "height": height or 450}
    if isinstance(block, Table):
        return {"table": _table(block)}
    view = attention_view(block.pattern, block.tokens, element_id=name, head_names=block.head_names)
    element, script = view.split("\n", 1)
    scripts.append(script)
    return {"attention": Markup(element)}


def _table(table: Table) -> dict[str, object]:
    frame = table.frame
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    records = [
        [_cell(value, table.digits) for value in row]
        for row in frame.itertuples(index=False, name=None)
    ]
    text = [not pd.api.types.is_numeric_dtype(frame[column]) for column in frame.columns]
    heads = list(zip(map(column_words, frame.columns), text, strict=True))
    folded = len(records) > _LONG
    return {"heads": heads, "records": records, "first": records[:_SHOWN], "folded": folded}


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:z.{digits}f}"  # z: no "-0.000"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, str):
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)
    return str(value)
