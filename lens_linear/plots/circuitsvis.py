"""CircuitsVis views that work with the network off, several on one page, whatever the tokens hold.

CircuitsVis' own HTML asks the network, repeats its 1.3 MB bundle for every view, and does not escape
tokens. Here the bundle is emitted once, every view has a closed element of its own, and the properties
are JSON in which no ``<`` is left, so a token such as ``</script>`` is shown and never executed.
"""

from __future__ import annotations

import functools
import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from lens_linear.checks import require_int, require_list
from lens_linear.errors import InvalidArgumentError, NonFiniteError, OfflineError
from lens_linear.plots.style import MAX_CELLS, as_array, check_cells

_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

# What CircuitsVis leaves out: a name for each picture, and letters that stand out from any colour of a head.
_NAMES = """
new MutationObserver(() => {
  const set = (on, name, value) => on[name] === value || (on[name] = value);
  for (const picture of document.querySelectorAll(".circuitsvis canvas")) {
    const near = picture.closest("div:has(h4)");
    set(picture, "role", "img");
    set(picture, "ariaLabel", "Attention of " + (near ? near.querySelector("h4").textContent : "a head"));
  }
  const linear = (value) => (value /= 255) > 0.04045 ? ((value + 0.055) / 1.055) ** 2.4 : value / 12.92;
  for (const name of document.querySelectorAll(".circuitsvis h4")) {
    const solid = getComputedStyle(name).backgroundColor.match(/^rgb\\((.*)\\)$/);
    if (!solid) continue;
    const [red, green, blue] = solid[1].split(",").map(linear);
    set(name.style, "color", 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "black" : "white");
  }
}).observe(document, { childList: true, subtree: true });
"""

# A frame is as high as what it shows, where the page around allows.
_FITS = """<script>
addEventListener("load", () => {
  const fit = () => {
    const parts = [...document.querySelectorAll(".circuitsvis *")].filter((part) => !part.childElementCount);
    const needed = scrollY + Math.max(0, ...parts.map((part) => part.getBoundingClientRect().bottom)) + 20;
    try {
      frameElement.style.height = needed + "px";
    } catch {}
  };
  new ResizeObserver(fit).observe(document.body);
  new MutationObserver(fit).observe(document.body, { childList: true, subtree: true, attributes: true });
});
</script>"""


@functools.cache
def bundle_script() -> str:
    """Return CircuitsVis' JavaScript as one classic ``<script>``, to be put on a page once.

    Views of this file show nothing on a page without it. The installed package holds it; no network is
    asked.

    Returns:
        HTML of about 1.3 MB, with no closing tag but its own.

    Raises:
        OfflineError: the installed circuitsvis does not hold its bundle (broken installation), or another
            bundle than the views know.

    Example:
        >>> script = bundle_script()
        >>> script.startswith("<script>"), script.count("</script")
        (True, 1)
    """
    try:
        source = (resources.files("circuitsvis") / "dist" / "cdn" / "iife.js").read_text("utf-8")
    except (OSError, ModuleNotFoundError) as error:
        raise OfflineError(
            f"circuitsvis lacks its JavaScript ({error}); reinstall with pip install 'circuitsvis<2'"
        ) from error
    if "var CircuitsVis" not in source:
        raise OfflineError(
            "circuitsvis has another bundle than 1.43's; install 'circuitsvis>=1.43,<2'"
        )
    lines = [line for line in source.splitlines() if not line.startswith("//# sourceMappingURL")]
    return (
        "<script>\n" + "\n".join(lines).replace("</script", "<\\/script") + f"\n{_NAMES}</script>"
    )


def safe_json(value: Any) -> str:
    """Return JSON in ASCII that cannot end a script; NaN and infinite numbers raise ValueError.

    Example:
        >>> import json
        >>> text = safe_json(["</script>"])
        >>> "<" in text, json.loads(text)
        (False, ['</script>'])
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def attention_view(
    pattern: Any,
    tokens: Sequence[str],
    *,
    element_id: str,
    head_names: Sequence[str] | None = None,
    max_cells: int = 10 * MAX_CELLS,
) -> str:
    """Return HTML of CircuitsVis' attention view of several heads (the bundle must be on the page).

    Rows are queries, columns keys, colours shares of attention; a head that looks nowhere in particular
    spreads evenly over all tokens so far.

    Args:
        pattern: [head, query, key], dimensionless, rows sum to 1.
        tokens: printable tokens, one a position.
        element_id: unique on the page: a letter, then letters, digits, ``_`` or ``-``.
        head_names: one a head; numbers by default.
        max_cells: refuse more cells than this.

    Returns:
        HTML: one closed element and the script that fills it.

    Raises:
        InvalidArgumentError: shapes, tokens and names disagree, or ``element_id`` is not a plain word.
        NonFiniteError: the pattern holds NaN or infinite entries.
        FigureTooLargeError: too many cells.

    Example:
        >>> view = attention_view([[[1.0, 0.0], [0.5, 0.5]]], ["a", "</script>"], element_id="heads")
        >>> "AttentionHeads" in view, view.count("</script>")  # its own end, not the token's
        (True, 1)
    """
    if not isinstance(element_id, str) or not _ID.fullmatch(element_id):
        raise InvalidArgumentError(f"element_id must be a plain word, got {element_id!r}")
    values = as_array("pattern", pattern).astype(np.float64)
    tokens = require_list("tokens", tokens, of="strings")
    if values.ndim != 3 or values.shape[1:] != (len(tokens), len(tokens)):
        raise InvalidArgumentError(
            f"pattern must have shape [head, {len(tokens)}, {len(tokens)}] for {len(tokens)} tokens, "
            f"got {values.shape}"
        )
    check_cells(values.size, max_cells=max_cells)
    if not np.isfinite(values).all():
        raise NonFiniteError("pattern holds NaN or infinite entries; check the model's activations")
    names = [f"head {i}" for i in range(len(values))]
    if head_names is not None:
        names = [str(name) for name in require_list("head_names", head_names, of="strings")]
        if len(names) != len(values):
            raise InvalidArgumentError(
                f"head_names must name each of the {len(values)} heads, got {len(names)} names"
            )
    properties = {
        "attention": np.round(values, 3).tolist(),
        "tokens": [str(token) for token in tokens],
        "attentionHeadNames": names,
    }
    return (
        f'<div id="{element_id}" class="circuitsvis"></div>\n<script>CircuitsVis.render("{element_id}", '
        f"CircuitsVis.AttentionHeads, {safe_json(properties)});</script>"
    )


class NotebookView:
    """A view for notebooks: a frame with everything inside, no network asked.

    Args:
        view: HTML of one or several views of this file.
        height: of the frame, pixels, at least 50, until what it shows is drawn, which it fits then.

    Raises:
        InvalidArgumentError: a height below 50.

    Example:
        >>> view = NotebookView(attention_view([[[1.0]]], ["a"], element_id="one"), height=100)
        >>> view, view.page().count("<body>")
        (NotebookView: 100 pixels high; shown as HTML in a notebook, 1)
    """

    def __init__(self, view: str, *, height: int = 480) -> None:
        self.view = view
        self.height = require_int("height", height, minimum=50)

    def __repr__(self) -> str:
        return f"NotebookView: {self.height} pixels high; shown as HTML in a notebook"

    def page(self) -> str:
        """Return the whole page that the frame shows."""
        return (
            '<!doctype html><html><head><meta charset="utf-8"></head><body>'
            f"{bundle_script()}{self.view}{_FITS}</body></html>"
        )

    def _repr_html_(self) -> str:
        return (
            '<iframe title="Attention, head by head" style="width:100%;border:0;background:white" '
            f'height="{self.height}" srcdoc="{html.escape(self.page(), quote=True)}"></iframe>'
        )
