"""Link a glossary term where a page uses it first.

Terms stand in ``glossary.md``. On every other written page the first plain-text use becomes a link; code, headings,
links and made pages are left as they are.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.std import StandardDomain
from sphinx.util.nodes import make_refnode

_SKIP = (nodes.literal, nodes.literal_block, nodes.reference, nodes.title, nodes.math, nodes.math_block,
         nodes.raw, addnodes.pending_xref, addnodes.desc, nodes.rubric)  # fmt: skip
_LEFT_OUT = ("glossary", "made/", "search", "genindex")


def link_first_uses(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace the first use of each term by a link to the glossary."""
    if docname.startswith(_LEFT_OUT):
        return
    std = app.env.get_domain("std")
    terms = (
        dict(std._terms) if isinstance(std, StandardDomain) else {}
    )  # lower-case term -> (page, anchor)
    names = sorted(terms, key=len, reverse=True)
    if not names:
        return
    pattern = re.compile(
        r"(?<![\w/-])(" + "|".join(map(re.escape, names)) + r")s?(?![\w/-])", re.IGNORECASE
    )
    used: set[str] = set()
    for text in list(doctree.findall(nodes.Text)):
        if _inside(text, _SKIP):
            continue
        _link(app, docname, text, pattern, terms, used)
    app.env.metadata.setdefault(docname, {})["glossary_links"] = str(len(used))


def _inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    parent: Any = node.parent
    while parent is not None:
        if isinstance(parent, kinds):
            return True
        parent = parent.parent
    return False


def _link(app: Sphinx, here: str, text: nodes.Text, pattern: re.Pattern[str],
          terms: dict[str, tuple[str, str]], used: set[str]) -> None:  # fmt: skip
    string, parts, end = str(text), [], 0
    for match in pattern.finditer(string):
        term = match.group(1).lower()
        if term in used:
            continue
        used.add(term)
        page, anchor = terms[term]
        parts.append(nodes.Text(string[end : match.start()]))
        builder: Any = app.builder
        shown = nodes.inline("", match.group(0), classes=["term"])
        parts.append(make_refnode(builder, here, page, anchor, shown))
        end = match.end()
    if parts:
        parts.append(nodes.Text(string[end:]))
        text.parent.replace(text, parts)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.connect("doctree-resolved", link_first_uses)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
