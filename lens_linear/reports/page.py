"""One self-contained HTML page: sections of prose, tables, plotly figures and attention views.

Each JavaScript bundle stands on the page once; nothing is loaded from outside; every string that comes
from a model, a tokenizer or a user is escaped here, in one place.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from lens_linear.plots.circuitsvis import attention_view, bundle_script, safe_json

_STYLE = """
body{margin:0;background:#fff;color:#1b1b1b;font:17px/1.55 Georgia,'Times New Roman',serif}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1.25rem 4rem}
h1,h2,h3,nav,table,figcaption,footer,.lead{font-family:'Open Sans','Segoe UI',Helvetica,Arial,sans-serif}
h1{font-size:2rem;line-height:1.2;margin:.5rem 0 .25rem}
h2{font-size:1.4rem;margin:2.75rem 0 .5rem;padding-top:1rem;border-top:1px solid #ccc}
.lead{color:#444;margin-top:0}
nav ol{columns:2;font-size:.95rem}
figure{margin:1.25rem 0}
figcaption{font-size:.9rem;color:#444}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;margin:.5rem 0}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right;white-space:pre}
th{border-bottom:2px solid #555}
td.text,th.text{text-align:left}
td.text{font-family:ui-monospace,Menlo,Consolas,monospace}
.circuitsvis{min-height:20rem;overflow-x:auto}
footer{margin-top:3rem;font-size:.85rem;color:#444}
pre{white-space:pre-wrap;font-size:.85rem;background:#f6f6f6;padding:.75rem}
"""


@dataclass(frozen=True, eq=False)
class Figure:
    """A plotly figure with a caption that says what to see."""

    figure: go.Figure
    caption: str


@dataclass(frozen=True, eq=False)
class Table:
    """A table with a caption; text columns keep their spaces."""

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
    """A heading, sentences of prose, and what they speak of."""

    title: str
    prose: str
    blocks: Sequence[Block] = field(default=())


def render_page(
    title: str, lead: str, sections: Sequence[Section], *, settings: dict[str, Any]
) -> str:
    """Return the whole page as text.

    Args:
        title: of the page.
        lead: one or two sentences below it.
        sections: in order.
        settings: version, checksums, seeds: shown at the end and kept as JSON inside the page.
    """
    numbered = list(enumerate(sections, start=1))
    contents = "".join(
        f'<li><a href="#s{number}">{html.escape(section.title)}</a></li>'
        for number, section in numbered
    )
    body = "".join(_section(number, section) for number, section in numbered)
    kinds = {type(block) for section in sections for block in section.blocks}
    scripts = ""
    if Figure in kinds:
        scripts += (
            f"<script>{get_plotlyjs().replace('</script', '<' + chr(92) + '/script')}</script>"
        )
    if Attention in kinds:
        scripts += bundle_script()
    shown = html.escape(json.dumps(settings, indent=1))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>{scripts}</head>\n<body><main>"
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>'
        f"<nav><ol>{contents}</ol></nav>\n{body}"
        f"<footer><h2>How this page was made</h2><pre>{shown}</pre>"
        f'<script type="application/json" id="settings">{safe_json(settings)}</script></footer>'
        "</main></body></html>\n"
    )


def _section(number: int, section: Section) -> str:
    prose = "".join(f"<p>{html.escape(part)}</p>" for part in section.prose.split("\n\n") if part)
    blocks = "".join(
        _block(f"s{number}b{index}", block) for index, block in enumerate(section.blocks)
    )
    return (
        f'<section id="s{number}"><h2>{html.escape(section.title)}</h2>{prose}{blocks}</section>\n'
    )


def _block(name: str, block: Block) -> str:
    if isinstance(block, Figure):
        inner = _figure(name, block.figure)
    elif isinstance(block, Table):
        inner = f'<div class="scroll">{_table(block)}</div>'
    else:
        inner = attention_view(
            block.pattern, block.tokens, element_id=name, head_names=block.head_names
        )
    return f"<figure>{inner}<figcaption>{html.escape(block.caption)}</figcaption></figure>\n"


def _figure(name: str, figure: go.Figure) -> str:
    content = json.loads(figure.to_json())
    config = {"displaylogo": False, "responsive": True}
    return (
        f'<div id="{name}"></div><script>(function(){{const f={safe_json(content)};'
        f'Plotly.newPlot("{name}",f.data,f.layout,{safe_json(config)});}})();</script>'
    )


def _table(table: Table) -> str:
    frame = table.frame
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    text = {column: not pd.api.types.is_numeric_dtype(frame[column]) for column in frame.columns}
    head = "".join(
        f"<th{_class(text[column])}>{html.escape(str(column))}</th>" for column in frame.columns
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{_class(text[column])}>{html.escape(_cell(value, table.digits))}</td>"
            for column, value in zip(frame.columns, row, strict=True)
        )
        + "</tr>"
        for row in frame.itertuples(index=False, name=None)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _class(is_text: bool) -> str:
    return ' class="text"' if is_text else ""


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.{digits}f}"
    if isinstance(value, str):
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)
    return str(value)
