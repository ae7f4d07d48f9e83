"""The gallery: ``gallery.md`` is run while the site is built, and every picture in it becomes the figure itself.

Below each heading ``##`` the Python blocks run in order in one space of names; an image line shows what the block
above it gave last. A block that fails ends the build. Readers of the Markdown on a code host see the PNG instead, which
``docs/make_gallery.py`` draws from the same blocks.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plotly.offline import get_plotlyjs

import lens_linear as ll
from lens_linear.plots.circuitsvis import NotebookView, safe_json

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE = "gallery"
IMAGE = re.compile(r"!\[.*\]\(images/gallery-([a-z0-9-]+)\.png\)")
PIECE = re.compile(
    r"^## [^\n]*$|^```python\n(.*?)^```$|^!\[[^\n]*\]\(images/gallery-[^\n]*\)$", re.M | re.S
)
LIBRARY = "_static/plotly.min.js"
DRAWING = "_static/figures.js"


class GalleryError(Exception):
    """A block of the gallery failed, or shows another figure than its picture."""


def run(text: str, show: Callable[[str, Any], str], *, only: str = "") -> str:
    """Run the page and return it with each image line replaced by ``show(name, figure)``.

    ``only`` keeps to the room whose heading it is a part of.
    """
    names: dict[str, Any] = {}
    room, figure = "", None

    def piece(match: re.Match[str]) -> str:
        nonlocal names, room, figure
        found = match.group(0)
        if found.startswith("## "):
            names, room = {"ll": ll}, found
        elif only.lower() not in room.lower():
            pass
        elif found.startswith("```"):
            line = text.count("\n", 0, match.start()) + 2
            figure = value_of(match.group(1), names, line)
        else:
            image = IMAGE.fullmatch(found)
            if image is None or figure is None:
                raise GalleryError(f"{PAGE}.md: no figure stands above {found[:80]}")
            found, figure = show(image.group(1), figure), None
        return found

    return PIECE.sub(piece, text)


def value_of(code: str, names: dict[str, Any], line: int) -> Any:
    """Run a block; the value of its last line where that is an expression, as in a notebook."""
    try:
        tree = ast.parse("\n" * (line - 1) + code)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{PAGE}.md", "exec"), names)
        if last is None:
            return None
        return eval(compile(ast.Expression(last.value), f"{PAGE}.md", "eval"), names)
    except Exception as error:
        raise GalleryError(
            f"{PAGE}.md: the block at line {line} failed: {type(error).__name__}: {error}"
        ) from error


def words(figure: Any) -> str:
    """What a figure says to those who do not see it, in one line."""
    if isinstance(figure, NotebookView):
        return "Attention head by head: one small map a head, and the tokens below, coloured by attention."
    return " ".join(figure.layout.meta["alt"].split())


def live(name: str, figure: Any) -> str:
    """HTML of one figure, on one line: an empty place and its data, which ``figures.js`` draws."""
    if isinstance(figure, NotebookView):
        framed = figure._repr_html_().replace("\n", "&#10;")  # a blank line would end the block of HTML
        return f"<figure>{framed}</figure>"
    if figure.layout.meta["figure"] != name.replace("-", "_"):
        drawn = figure.layout.meta["figure"]
        raise GalleryError(f"{PAGE}.md: the code above gallery-{name}.png draws plots.{drawn}")
    alt, height = html.escape(words(figure), quote=True), figure.layout.height
    place = f'<div id="figure-{name}" role="img" aria-label="{alt}" style="height:{height}px"></div>'
    data = safe_json(json.loads(figure.to_json()))
    return f'<figure>{place}<script type="application/json" data-figure="figure-{name}">{data}</script></figure>'


def make_live(app: Sphinx, docname: str, source: list[str]) -> None:
    """Run the gallery as it is read; it is read again when the package has changed."""
    if docname != PAGE or app.builder.format != "html":
        return
    for path in Path(ll.__file__).parent.rglob("*.py"):
        app.env.note_dependency(str(path))
    scripts = "".join(f'<script src="{name}" defer></script>' for name in (LIBRARY, DRAWING))
    source[0] = run(source[0], live) + f"\n{scripts}\n"


def copy_scripts(app: Sphinx, error: Exception | None) -> None:
    """Put the installed plotly and the report's drawing code beside the page."""
    if error is None and app.builder.format == "html":
        out = Path(app.outdir)
        (out / LIBRARY).write_text(get_plotlyjs(), encoding="utf-8")
        drawing = (resources.files("lens_linear.reports") / "figures.js").read_text("utf-8")
        (out / DRAWING).write_text(drawing, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the run."""
    app.connect("source-read", make_live)
    app.connect("build-finished", copy_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
