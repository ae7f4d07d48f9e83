"""Draw the pictures of docs/gallery.md from the code in it, and renew what they say in words.

The site runs the same code itself; these PNGs are for readers on a code host. Needs `pip install -e ".[static]"` and
Chrome or Chromium. `python docs/make_gallery.py` draws all; `python docs/make_gallery.py steering` one room, `start` the picture of the first page.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

import gallery  # noqa: E402
from plotly.io import write_images  # noqa: E402

import lens_linear as ll  # noqa: E402
from lens_linear.plots.circuitsvis import NotebookView  # noqa: E402

WIDTH = 760
drawn: dict[Path, Any] = {}


def draw(name: str, figure: Any) -> str:
    """Keep one picture for later; the line of Markdown that shows it."""
    path = HERE / "images" / f"gallery-{name}.png"
    if isinstance(figure, NotebookView):
        screenshot(figure, path)
    else:
        drawn[path] = figure
    alt = gallery.words(figure).replace("[", "(").replace("]", ")")
    return f"![{alt}](images/{path.name})"


def screenshot(view: NotebookView, path: Path) -> None:
    """A picture of a view that is a page of its own."""
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    )
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(view.page(), encoding="utf-8")
        knobs = ["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=5000"]
        size = f"--window-size={WIDTH},{view.height}"
        out = [f"--user-data-dir={folder}/profile", f"--screenshot={path}", page.as_uri()]
        subprocess.run([browser, *knobs, size, *out], check=True, capture_output=True)


def draw_start() -> None:
    """The picture of README and of the first page: narrow, so that a phone shows its words in a legible size."""
    model = ll.load("gpt-mini")
    figure = ll.linearity_profile(model, ll.evaluation_tokens(model)).plot()
    height = figure.layout.height
    write_images([figure], [HERE / "images" / "linearity.png"], width=480, height=height, scale=2)


if __name__ == "__main__":
    source = HERE / "gallery.md"
    room = " ".join(sys.argv[1:])
    if not room or room == "start":
        draw_start()
    text = gallery.run(source.read_text("utf-8"), draw, only=room)
    heights = [figure.layout.height for figure in drawn.values()]
    write_images(
        list(drawn.values()), list(drawn), width=WIDTH, height=heights
    )  # one browser for all
    source.write_text(text, encoding="utf-8")
