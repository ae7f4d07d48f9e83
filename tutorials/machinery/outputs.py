"""What a stored notebook may hold: PNGs beside figures, no heavy frames, no traces of a machine."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_output

from machinery.master import MasterError
from machinery.notebooks import TUTORIALS, checked_name, has_tag

PLOTLY = "application/vnd.plotly.v1+json"
MAX_HTML = 200_000  # a CircuitsVis frame carries its 1.3 MB bundle
MAX_BYTES = 2_000_000  # of a stored notebook
PNG_WIDTH = 760
FRAME_NOTE = "Interactive view: run this cell to see it."


def clean(notebook: NotebookNode) -> None:
    """Check and lighten the outputs of an executed notebook, in place."""
    for index, cell in enumerate(notebook.cells):
        if cell["cell_type"] != "code":
            continue
        kept = []
        for output in cell["outputs"]:
            if output["output_type"] == "stream" and output["name"] == "stderr":
                raise MasterError(
                    f"cell {index} wrote to stderr: {output['text'][:300]!r}; silence it "
                    "(progress=False) or fix what it warns about"
                )
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                raise MasterError(f"cell {index} shows a progress bar or another live widget")
            if "data" in output:
                _lighten(output["data"])
            _refuse_minus_zero(index, output)
            kept.append(output)
        cell["outputs"] = kept
        _refuse_paths(index, kept)


def _lighten(data: dict[str, Any]) -> None:
    page = data.get("text/html", "")
    if len(page) > MAX_HTML:
        if "srcdoc" not in page:
            raise MasterError(f"an HTML output of {len(page)} bytes is too large to be stored")
        data["text/html"] = f"<p><em>{FRAME_NOTE}</em></p>"
        data["text/plain"] = FRAME_NOTE
    if PLOTLY in data:
        data.pop("text/html", None)
        config = data[PLOTLY].get("config", {})
        data[PLOTLY]["config"] = {key: config[key] for key in config if key != "plotlyServerURL"}


def _refuse_minus_zero(index: int, output: Any) -> None:
    """A rounded table shows no minus before a zero: end it with ``.replace(-0.0, 0.0)``."""
    text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
    if found := re.search(r"(?<![\w.])-0\.?0*(?![\d.e])", text):
        raise MasterError(
            f"cell {index} shows {found[0]!r}; end its table with .replace(-0.0, 0.0)"
        )


def _refuse_paths(index: int, outputs: list[Any]) -> None:
    text = json.dumps([o for o in outputs if "image/png" not in o.get("data", {})])
    home = str(TUTORIALS.parent.parent)
    found = re.search(rf"(?:{re.escape(home)}|/tmp|/home|/root|/Users)/[\w./-]*", text)
    if found:
        raise MasterError(f"cell {index} shows a path of this machine: {found[0]}")


def figures(notebook: NotebookNode) -> list[dict[str, Any]]:
    """The data of every plotly output."""
    return [
        output["data"]
        for cell in notebook.cells
        if cell["cell_type"] == "code"
        for output in cell["outputs"]
        if PLOTLY in output.get("data", {})
    ]


def add_images(notebook: NotebookNode) -> int:
    """Put a static PNG beside every plotly figure; needs kaleido and Chrome or Chromium."""
    import kaleido
    import plotly.graph_objects as go

    wanted = figures(notebook)
    if not wanted:
        return 0
    kaleido.start_sync_server(silence_warnings=True)
    try:
        for data in wanted:
            content = {key: data[PLOTLY][key] for key in ("data", "layout")}
            figure = go.Figure(content)
            size = {
                "width": figure.layout.width or PNG_WIDTH,
                "height": figure.layout.height or 450,
            }
            options = {"format": "png", "scale": 1, **size}
            png = kaleido.calc_fig_sync(json.loads(figure.to_json()), opts=options)
            data["image/png"] = base64.b64encode(png).decode("ascii")
    finally:
        kaleido.stop_sync_server(silence_warnings=True)
    return len(wanted)


def copy_outputs(source: NotebookNode, target: NotebookNode) -> None:
    """Give the target's code cells the outputs of the same cells in the executed source."""
    done = {_key(cell, number): cell for number, cell in _numbered(source)}
    for number, cell in _numbered(target):
        twin = done.get(_key(cell, number))
        if twin is not None:
            cell["outputs"] = twin["outputs"]
            cell["execution_count"] = twin["execution_count"]


def _numbered(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    """Code cells with a count that separates equal sources."""
    seen: dict[str, int] = {}
    found = []
    for cell in notebook.cells:
        if cell["cell_type"] == "code":
            seen[cell["source"]] = seen.get(cell["source"], 0) + 1
            found.append((seen[cell["source"]], cell))
    return found


def _key(cell: NotebookNode, number: int) -> tuple[str, int]:
    return cell["source"], number


def check_stubs(notebook: NotebookNode) -> None:
    """Store what the checks say about the stubs in an exercise notebook, in place."""
    from lens_linear.teaching.checker import Checker

    checker = Checker()
    for cell in notebook.cells:
        if not has_tag(cell, "check"):
            continue
        exercise, name = checked_name(cell["source"])
        result = checker(exercise, define(notebook, exercise)[name])
        data = {"text/plain": repr(result), "text/html": result._repr_html_()}
        cell["outputs"] = [
            new_output("execute_result", data=data, execution_count=cell["execution_count"])
        ]


def define(notebook: NotebookNode, upto: str) -> dict[str, Any]:
    """Run the definitions of the exercise cells up to one exercise; nothing else of the notebook.

    Exercise cells hold definitions only, so this needs no model and no data.
    """
    import __future__

    import torch

    import lens_linear as ll

    flags = __future__.annotations.compiler_flag
    space: dict[str, Any] = {"torch": torch, "ll": ll, "__name__": "exercises"}
    for cell in notebook.cells:
        if has_tag(cell, "exercise-"):
            code = compile(cell["source"], f"<{cell['metadata']['tags'][0]}>", "exec", flags)
            exec(code, space)  # our own master's definitions
            if has_tag(cell, f"exercise-{upto}"):
                return space
    raise MasterError(f"the notebook has no exercise cell {upto}")
