"""How many small faults in the numerical rooms do the tests find? One table, one command.

    python benchmarks/mutation.py linalg circuits --mutants 100 --seed 0 --out docs/results/mutation.csv

A mutant is one change of one expression: ``+`` for ``−``, ``*`` for ``/``, ``<`` for ``<=``, a number moved, a statement left out,
``min`` for ``max``, a sign dropped. Text, annotations, guards and messages are left alone. One run of the room's tests under coverage
(``pip install coverage``) tells which tests reach which line. Each mutant then runs, in a fresh fork of a process that has imported
the libraries, the tests that reach its line, the quickest first, then the rest of their files (fixtures are shared there), as many as
took ``--seconds`` in that one run. It counts as killed when a test fails, or when all use several times the processor time they took.
Mutants that change nothing that can be observed, lines that no test reaches, and mutants that only a slower test would catch stay
among the survivors: the score is a lower bound.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import importlib.abc
import importlib.util
import io
import json
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PACKAGE = TOP / "lens_linear"
# Room -> the tests that should catch its faults, the quickest first.
ROOMS = {
    "linalg": ["tests/linalg"],
    "stats": ["tests/stats"],
    "text": ["tests/text"],
    "models": ["tests/models"],
    "circuits": ["tests/circuits"],
    "linearity": ["tests/linearity"],
    "dynamics": ["tests/dynamics"],
    "constructions": ["tests/constructions"],
    "training": ["tests/training"],
}
OPTIONS = ["-q", "-n0", "--no-header", "-W", "ignore", "-m", "not real"]
BINARY = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: None,
}
COMPARE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
NAMES = {"min": "max", "max": "min", "amax": "amin", "amin": "amax", "argmax": "argmin", "sum": "mean", "mean": "sum",
         "triu": "tril", "tril": "triu", "log_softmax": "softmax", "real": "imag"}  # fmt: skip


def sites(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Every node inside a function that can be changed, with the kind of change."""
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for statement in function.body:
                yield from _inside(statement)


def _inside(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    quiet = (
        ast.Raise,
        ast.JoinedStr,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
        ast.Import,
        ast.ImportFrom,
    )
    if isinstance(node, quiet) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ):
        return
    if isinstance(node, ast.Call) and getattr(node.func, "id", "").startswith("require_"):
        return
    if isinstance(node, ast.BinOp) and BINARY.get(type(node.op)):
        yield node, "arithmetic"
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARE:
        yield node, "comparison"
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield node, "number"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node, "sign"
    elif isinstance(node, ast.AugAssign):
        yield node, "statement"
    elif (isinstance(node, ast.Attribute) and node.attr in NAMES) or (
        isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in ("min", "max")
    ):
        yield node, "function"
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                yield from _inside(child)


def change(node: ast.AST, kind: str) -> None:
    """Apply the change in place."""
    if isinstance(node, ast.BinOp):
        node.op = BINARY[type(node.op)]()  # type: ignore[misc]
    elif isinstance(node, ast.Compare):
        node.ops[0] = COMPARE[type(node.ops[0])]()
    elif isinstance(node, ast.Constant):
        node.value = (
            node.value + 1 if isinstance(node.value, int) else node.value * 1.5 + (node.value == 0)
        )
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd()
    elif isinstance(node, ast.AugAssign):
        node.value = ast.Constant(1 if isinstance(node.op, (ast.Mult, ast.Div)) else 0)
    elif isinstance(node, ast.Attribute):
        node.attr = NAMES[node.attr]
    elif isinstance(node, ast.Name):
        node.id = NAMES[node.id]


def mutants(room: str, count: int, seed: int) -> list[tuple[Path, int]]:
    """``count`` sites of a room, drawn by the seed: (file, number of the site in it)."""
    every = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        every += [(path, i) for i, _ in enumerate(sites(ast.parse(path.read_text("utf-8"))))]
    random.Random(seed).shuffle(every)
    return every[:count]


def mutate(path: Path, number: int) -> tuple[str, str, str]:
    """The mutated source, and where and what."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    node, kind = list(sites(tree))[number]
    before = ast.unparse(node)
    change(node, kind)
    where = f"{path.relative_to(PACKAGE)}:{node.lineno}"  # type: ignore[attr-defined]
    return (
        ast.unparse(ast.fix_missing_locations(tree)),
        where,
        f"{kind}: {before} -> {ast.unparse(node)}",
    )


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module another source."""

    def __init__(self, name: str, source: str, path: Path) -> None:
        self.name, self.source, self.path = name, source, path

    def find_spec(self, name: str, path: object, target: object = None) -> object:
        """Only for the one module."""
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)  # type: ignore[arg-type]

    def create_module(self, spec: object) -> None:
        """The usual one."""

    def exec_module(self, module: object) -> None:
        """Run the mutated source."""
        exec(compile(self.source, str(self.path), "exec"), vars(module))


class Reached:
    """A pytest plugin: which lines of the package each test runs, and how long it takes."""

    def __init__(self) -> None:
        import coverage

        self.coverage = coverage.Coverage(source=[str(PACKAGE)], data_file=None)
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logstart(self, nodeid: str, location: object) -> None:
        """Lines go to this test from here on."""
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: object) -> None:
        """Add what a phase took."""
        name, took = report.nodeid, report.duration  # type: ignore[attr-defined]
        self.seconds[name] = self.seconds.get(name, 0.0) + took

    def tests(self) -> dict[str, dict[int, list[str]]]:
        """Tests by file and line, the quickest first."""
        data = self.coverage.get_data()
        found: dict[str, dict[int, list[str]]] = {}
        for file in data.measured_files():
            found[file] = {
                # A line that runs as the package is imported concerns every test.
                line: sorted(
                    [t for t in names if t] or self.seconds, key=lambda t: self.seconds.get(t, 0.0)
                )
                for line, names in data.contexts_by_lineno(file).items()
            }
        return found


def reach(tests: list[str]) -> tuple[dict[str, dict[int, list[str]]], dict[str, float]]:
    """Run a room's tests once, in a fork: which tests reach which line, and the seconds of each."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            import pytest

            plugin = Reached()
            plugin.coverage.start()
            with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
                pytest.main([*OPTIONS, *tests], plugins=[plugin])
            plugin.coverage.stop()
            with os.fdopen(write, "w") as pipe:
                json.dump([plugin.tests(), plugin.seconds], pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found, seconds = json.load(pipe)
    os.waitpid(child, 0)
    return {file: {int(k): v for k, v in lines.items()} for file, lines in found.items()}, seconds


def chosen(near: list[str], seconds: dict[str, float], most: float) -> tuple[list[str], float]:
    """The tests a mutant runs and what they took: those near it, then those of the same files, up to ``most`` seconds."""
    files = {test.split("::")[0] for test in near}
    rest = sorted((t for t in seconds if t.split("::")[0] in files), key=seconds.__getitem__)
    tests: list[str] = []
    took = 0.0
    for test in dict.fromkeys([*near, *rest]):
        if not tests or took + seconds[test] <= most:
            tests.append(test)
            took += seconds[test]
    return tests, took


def survives(path: Path, source: str, tests: list[str], limit: float) -> bool:
    """Do all tests pass with this source?"""
    if not tests:
        return True
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException), contextlib.redirect_stdout(io.StringIO()):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
            name = ".".join(path.relative_to(TOP).with_suffix("").parts)
            sys.meta_path.insert(0, Replaced(name, source, path))
            import pytest

            code = int(pytest.main(["-x", *OPTIONS, *tests]))
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def main() -> None:
    """Run the rooms named and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="*", default=list(ROOMS))
    parser.add_argument("--mutants", type=int, default=60, help="how many a room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="of tests that a mutant runs")
    parser.add_argument("--out", type=Path, default=None, help="CSV with one row a mutant")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for heavy in ("torch", "numpy", "pandas", "scipy", "scipy.stats", "pytest", "hypothesis", "plotly", "transformer_lens",
                  "transformers", "sklearn.linear_model", "safetensors.torch"):  # fmt: skip
        with contextlib.suppress(ImportError):
            importlib.import_module(heavy)
    rows: list[dict[str, object]] = []
    for room in options.rooms:
        reached, seconds_of = reach(ROOMS[room])
        for path, number in mutants(room, options.mutants, options.seed):
            source, where, what = mutate(path, number)
            started = time.perf_counter()
            near = reached.get(str(path), {}).get(int(where.rsplit(":", 1)[1]), [])
            tests, took = chosen(near, seconds_of, options.seconds)
            alive = survives(path, source, tests, 30 + 5 * took)
            seconds = round(time.perf_counter() - started, 1)
            rows.append({"room": room, "where": where, "what": what, "killed": not alive, "tests": len(near), "seconds": seconds})  # fmt: skip
            print(f"{'SURVIVED' if alive else 'killed  '} {where} {what} ({len(near)} tests, {seconds} s)", flush=True)  # fmt: skip
            if options.out:
                write(options.out, rows)
        mine = [row for row in rows if row["room"] == room]
        killed = sum(bool(row["killed"]) for row in mine)
        print(f"== {room}: {killed} of {len(mine)} killed ({killed / max(len(mine), 1):.0%})", flush=True)  # fmt: skip


def write(target: Path, rows: list[dict[str, object]]) -> None:
    """One row a mutant."""
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
