"""Pages of the site that are made: lessons from notebooks, the API from stubs."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

ROOMS = (
    "linalg models text stats training circuits linearity dynamics constructions plots studies reports explorer teaching"
).split()


def write_all(docs: Path) -> None:
    """Make every page below ``docs/made``, from nothing."""
    made = docs / "made"
    shutil.rmtree(made, ignore_errors=True)
    (made / "lessons").mkdir(parents=True)
    (made / "api").mkdir()
    lessons(docs, made)
    api(docs, made)


def lessons(docs: Path, made: Path) -> None:
    """Copy the exercise notebooks with their stored outputs, and list them."""
    names = []
    for path in sorted((docs.parent / "tutorials" / "exercises").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":  # badges are pictures from outside
                source = "".join(cell["source"])
                cell["source"] = re.sub(r"\[!\[[^\]]*\]\(https?:[^)]*\)\]\([^)]*\)\n*", "", source)
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if (
                    "image/png" in data
                ):  # one picture is enough; the interactive twin needs its library
                    data.pop("text/html", None)
                    data.pop("application/vnd.plotly.v1+json", None)
        (made / "lessons" / path.name).write_text(json.dumps(notebook), encoding="utf-8")
        names.append(path.stem)
    listing = "\n".join(names)
    (made / "lessons" / "index.md").write_text(
        "# Lessons\n\n"
        "Each page shows a notebook as students get it, with the outputs of a reference run. Copy all of them out of the\n"
        "package with `lens-linear tutorials my-course`, and work in Jupyter: answers are checked there.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{listing}\n```\n",
        encoding="utf-8",
    )


def exports(stub: Path) -> dict[str, str]:
    """Public name -> module (relative to the package of the stub) that defines it."""
    found = {}
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            found |= {alias.name: node.module for alias in node.names}
    return found


def first_sentence(module: Path) -> str:
    """First line of a module's docstring."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0] if text else ""


def api(docs: Path, made: Path) -> None:
    """One page a module that defines public names; one page a room that lists them."""
    package = docs.parent / "lens_linear"
    top = exports(package / "__init__.pyi")
    by_module: dict[str, list[str]] = defaultdict(list)
    rooms = {}
    for room in ROOMS:
        stub = package / room / "__init__.pyi"
        if stub.is_file():
            rooms[room] = {n: f"{room}.{m}" for n, m in exports(stub).items()}
    for names in (top, *rooms.values()):
        for name, module in names.items():
            if name not in by_module[module]:
                by_module[module].append(name)
    for module, names in sorted(by_module.items()):
        write_module(made, module, sorted(names))
    for room, names in rooms.items():
        write_room(package, made, room, names)
    rows = "\n".join(
        f"| {link(package, module, name, 'll.' + name)} | [`{module}`]({page_name(module)}.rst) |"
        for name, module in sorted(top.items(), key=lambda item: item[0].lower())
    )
    listed = {m for names in rooms.values() for m in names.values()}
    alone = [page_name(m) for m in sorted(by_module) if m not in listed]
    listing = "\n".join([f"room_{room}" for room in rooms] + alone)
    (made / "api" / "index.md").write_text(
        "# API\n\n"
        "`import lens_linear as ll`. These names stand at the top; each room below has more.\n\n"
        f"| name | defined in |\n|---|---|\n{rows}\n\n"
        f"```{{toctree}}\n:maxdepth: 2\n:caption: Rooms\n\n{listing}\n```\n",
        encoding="utf-8",
    )


def link(package: Path, module: str, name: str, shown: str) -> str:
    """A link to a function or class; a constant or an object has no anchor of its own and links to its module."""
    tree = ast.parse((package / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    defined = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    target = f"#lens_linear.{module}.{name}" if name in defined else f"{page_name(module)}.rst"
    return f"[`{shown}`]({target})"


def page_name(module: str) -> str:
    return "module_" + module.replace(".", "_")


def write_module(made: Path, module: str, names: list[str]) -> None:
    """The documentation of the public names that one module defines."""
    title = module
    members = ", ".join(names)
    (made / "api" / f"{page_name(module)}.rst").write_text(
        f"{title}\n{'=' * len(title)}\n\n"
        f".. automodule:: lens_linear.{module}\n   :members: {members}\n   :undoc-members:\n",
        encoding="utf-8",
    )


def write_room(package: Path, made: Path, room: str, names: dict[str, str]) -> None:
    """A room: its sentence, its names by module, and the pages of those modules."""
    text = ast.get_docstring(ast.parse((package / room / "__init__.py").read_text("utf-8"))) or ""
    head = re.split(r"\n\s*\n", text)[0]
    modules: dict[str, list[str]] = defaultdict(list)
    for name, module in names.items():
        modules[module].append(name)
    parts = []
    for module, members in sorted(modules.items()):
        links = ", ".join(link(package, module, n, n) for n in sorted(members))
        says = first_sentence(package / (module.replace(".", "/") + ".py"))
        parts.append(f"| [`{module}`]({page_name(module)}.rst) | {says} | {links} |")
    table = "\n".join(parts)
    listing = "\n".join(page_name(module) for module in sorted(modules))
    (made / "api" / f"room_{room}.md").write_text(
        f"# {room}\n\n{plain(head)}\n\n| module | what | names |\n|---|---|---|\n{table}\n\n"
        f"```{{toctree}}\n:hidden:\n\n{listing}\n```\n",
        encoding="utf-8",
    )


def plain(text: str) -> str:
    """Roles of reStructuredText as code spans."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")
