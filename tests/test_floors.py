"""A file imports only from lower floors or from its own room; heavy imports stay where they belong."""

import ast
import re
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "lens_linear"
FLOORS = {
    "errors": 0,
    "extensions": 0,
    "checks": 0,
    "checksummed": 0,
    "files": 0,
    "progress": 0,
    "tables": 0,
    "token_labels": 0,
    "token_rows": 0,
    "_tl": 0,
    "_lazy": 0,
    "linalg": 1,
    "models": 2,
    "text": 2,
    "stats": 3,
    "training": 3,
    "circuits": 4,
    "linearity": 4,
    "dynamics": 4,
    "constructions": 4,
    "plots": 5,
    "reports": 6,
    "studies": 5,
    "explorer": 5,
    "teaching": 6,
    "cli": 7,
    "__main__": 8,
}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path):
    """Yield (module, line, inside_function) for every absolute import in the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "<relative>", node.lineno, id(node) in inside
            elif node.module == "lens_linear":
                for alias in node.names:
                    yield f"lens_linear.{alias.name}", node.lineno, id(node) in inside
            else:
                yield node.module, node.lineno, id(node) in inside
        elif name := by_name(node):
            yield name, node.lineno, id(node) in inside


def by_name(node: ast.AST) -> str | None:
    """The module of ``importlib.import_module("...")``; a result's own figure is the one way upwards."""
    called = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")
    first = node.args[0] if called and node.args else None
    name = first.value if isinstance(first, ast.Constant) else None
    return None if name == "lens_linear.plots" else name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    here = room(path)
    assert here in FLOORS, f"{path} stands in a room that has no floor"
    for module, line, _ in imports(path):
        assert module != "<relative>", f"{path}:{line}: use absolute imports"
        if module == "lens_linear" or not module.startswith("lens_linear."):
            continue
        there = module.split(".")[1]
        if there == "__version__":
            continue
        if FLOORS[here] == 0:
            assert there in ("errors", "checks", "files", "token_labels"), (
                f"{path}:{line}: floor 0 imports only errors"
            )
            continue
        assert there == here or FLOORS[there] < FLOORS[here], f"{path}:{line} imports {module}"


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def names_in_stubs() -> dict[str, str]:
    """Where the names that a room hands out stand: lens_linear.Moments in lens_linear.linalg.moments."""
    return {
        f"{dotted(stub)}.{alias.name}": ".".join(
            filter(None, (dotted(stub), node.module, alias.name))
        )
        for stub in PACKAGE.rglob("__init__.pyi")
        for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def circle_between(texts: dict[str, str]) -> list[str]:
    """Files that import each other in a circle, counting imports in functions and under TYPE_CHECKING."""
    stubs = names_in_stubs()

    def file_of(name: str) -> str:
        while name and name not in texts:
            there = stubs.get(name, name)
            name = there if there != name else name.rpartition(".")[0]
        return name

    graph: dict[str, set[str]] = {}
    for here, text in texts.items():
        names = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif name := by_name(node):
                names.add(name)
        graph[here] = set(map(file_of, names)) - {here, ""}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def package_texts() -> dict[str, str]:
    return {dotted(p): p.read_text(encoding="utf-8") for p in PACKAGE.rglob("*.py")}


def test_no_files_import_each_other_in_a_circle():
    assert not circle_between(package_texts())


@pytest.mark.parametrize(
    "line",
    [
        "from lens_linear.linalg.moments import Moments",
        "from lens_linear.linalg import Moments",
        "from lens_linear import Moments",
        "from lens_linear.linalg import moments",
        "import lens_linear.linalg.moments",
        'importlib.import_module("lens_linear.linalg.moments")',
    ],
)
@pytest.mark.parametrize("where", ["{}", "if TYPE_CHECKING:\n    {}", "def late():\n    {}"])
def test_the_test_finds_a_circle_however_it_is_written(line, where):
    two = ("lens_linear.linalg.least_squares", "lens_linear.linalg.moments")
    texts = {name: text for name, text in package_texts().items() if name in two}
    assert not circle_between(texts)
    texts[two[0]] += "\n" + where.format(line)
    assert set(circle_between(texts)) == set(two)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_outside_libraries_stay_in_their_rooms(path):
    here = room(path)
    for module, line, _ in imports(path):
        top = module.split(".")[0]
        if top in ("transformer_lens", "transformers"):
            assert here in ("models", "_tl"), f"{path}:{line} imports {top} outside models/"
        if top in ("plotly", "circuitsvis"):
            assert here in ("plots", "reports", "teaching"), f"{path}:{line} imports {top}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_names_stay_in_their_file(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lens_linear."):
            for name in (alias.name for alias in node.names):
                private = name.startswith("_") and not name.startswith("__")
                is_module = (
                    PACKAGE.parent / node.module.replace(".", "/") / f"{name}.py"
                ).is_file()
                assert not private or is_module, f"{path}:{node.lineno} imports {name}"


def test_no_file_is_too_long():
    long = {
        str(p): n for p in FILES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 600
    }
    assert not long


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the end, without the docstring."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function, clean=False) is not None
    docstring = (first.end_lineno - first.lineno + 1) if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


def functions(text: str):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_no_function_is_too_long():
    long = {
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}": n
        for path in FILES
        for node in functions(path.read_text(encoding="utf-8"))
        if (n := lines_of_code(node)) > 60
    }
    assert not long


def test_the_test_counts_code_and_not_docstrings():
    text = 'def one(x):\n    """Say.\n\n    More.\n    """\n    y = x\n    return y\n'
    assert [lines_of_code(node) for node in functions(text)] == [3]
    long = "def two():\n" + "    x = 1\n" * 60
    assert [lines_of_code(node) for node in functions(long)] == [61]


def test_the_test_catches_an_upward_import(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from lens_linear.plots import style\n")
    modules = [m for m, _, _ in imports(bad)]
    assert modules == ["lens_linear.plots"] and FLOORS["plots"] > FLOORS["linalg"]


# Imported where they are there: in notebooks, for the widget, for GGUF files, for downstream tasks.
OPTIONAL = {"IPython", "anywidget", "traitlets", "gguf", "lm_eval"}


def test_what_is_imported_is_installed_with_the_package():
    wanted = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"][
        "dependencies"
    ]
    named = {re.match(r"[\w-]+", one)[0].replace("-", "_").lower() for one in wanted}
    for direct in ("transformer-lens", "jinja2"):  # what comes with these is named by them
        named |= {
            re.match(r"[\w-]+", one)[0].replace("-", "_").lower()
            for one in metadata.requires(direct) or ()
            if "extra ==" not in one
        }
    used = {module.split(".")[0] for path in FILES for module, *_ in imports(path)}
    foreign = used - sys.stdlib_module_names - OPTIONAL - {"lens_linear"}
    assert {"torch", "numpy"} < foreign
    assert not {name for name in foreign if name.lower() not in named}
