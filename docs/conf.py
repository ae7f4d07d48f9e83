"""Build the site offline: ``python -m sphinx -W -b html docs OUT``.

Pages that are made from something else (lessons from the notebooks, the API from the stubs) are written into ``docs/made``
before Sphinx reads its sources; that folder is not committed. The gallery is run as it is read.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))
sys.path.insert(0, str(HERE.parent))

import made_pages  # noqa: E402

import lens_linear  # noqa: E402

project = "lens_linear"
author = "The lens_linear authors"
copyright = "the lens_linear authors, MIT licence"
release = version = lens_linear.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "first_use",
    "gallery",
]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".rst": "restructuredtext"}

# Notebooks show what they stored; nothing is executed while the site is built.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
# Stored widgets and interactive figures have a PNG beside them, which is what the page shows.
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]

autosummary_generate = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"ignore-module-all": True}
napoleon_use_ivar = True
napoleon_google_docstring = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "lens_linear"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
mathjax_path = "mathjax/tex-chtml.js"
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def escape_stars(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Escape the star of a variadic shape in lines that napoleon made from annotations."""
    lines[:] = [re.sub(r"(?<![*\w\\])\*(batch|pair|token)", r"\\*\1", line) for line in lines]


def keep_colons(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Undo what napoleon makes of a property whose first line has a colon: what stands before it is no type."""
    taken = [i for i, line in enumerate(lines) if line.startswith(":type: ")]
    if what == "property" and taken:
        lines[0] = f"{lines.pop(taken[0]).removeprefix(':type: ')}: {lines[0]}"


def setup(app: object) -> None:
    """Write the made pages before sources are read."""
    app.connect("autodoc-process-docstring", keep_colons, priority=800)  # type: ignore[attr-defined]
    # Shapes such as "*batch d" are no emphasis; napoleon writes them as text.
    app.connect("autodoc-process-docstring", escape_stars, priority=900)  # type: ignore[attr-defined]
    app.connect("config-inited", lambda *_: made_pages.write_all(HERE))  # type: ignore[attr-defined]
