"""Feed the checks right answers in odd forms, planted wrong answers and mutants of the solutions; write a table.

    python tutorials/variants.py           all lessons: writes tutorials/VARIANTS.md
    python tutorials/variants.py 6         one lesson: prints its rows

A mutant is the solution with one small change (an operator, a constant, a transpose, a call left out). One that
passes is either as right as the solution or shows a hole in the check; the table lists each, so that a person
can say which.
"""

from __future__ import annotations
import __future__

import ast
import copy
import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machinery.master import Master, masters
from machinery.notebooks import checked_name, has_tag, make_notebook
from machinery.outputs import define
from torch import Tensor
from transformer_lens import FactoredMatrix

from lens_linear.teaching.checker import Checker

HERE = Path(__file__).resolve().parent
PLANTED = HERE.parent / "tests" / "tutorials" / "wrong_answers"
TABLE = HERE / "VARIANTS.md"
SECONDS = 20
_FLAGS = __future__.annotations.compiler_flag


@dataclass(frozen=True)
class Variant:
    """One answer that was tried: what it is, whether it ought to pass (None: a mutant), what the check said."""

    exercise: str
    kind: str
    what: str
    expected: bool | None
    passed: bool
    message: str


class _TooLong(Exception):
    """A mutant never ended."""


def judge(exercise: str, kind: str, what: str, expected: bool | None, answer: Any) -> Variant:
    """Ask the check about one answer; one that never ends did not pass."""

    def stop(*_: Any) -> None:
        raise _TooLong(f"more than {SECONDS} seconds")

    signal.signal(
        signal.SIGVTALRM, stop
    )  # seconds of the processor: a busy machine changes no verdict
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        result = Checker()(exercise, answer)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return Variant(exercise, kind, what, expected, result.passed, result.message)


# Right answers in other forms.


def _tensors(change: Callable[[Tensor], Any], *, numbers: bool = False) -> Callable[[Any], Any]:
    def form(value: Any) -> Any:
        if numbers and isinstance(value, float):
            value = torch.tensor(value)
        if isinstance(value, Tensor):
            return change(value)
        pair = isinstance(value, (tuple, list)) and len(value) == 2
        return type(value)(form(part) for part in value) if pair else value

    return form


def _table(value: Tensor) -> bool:
    return value.ndim == 2 and value.is_floating_point()


FORMS = {
    "an array": _tensors(lambda t: t.detach().numpy()),
    "a list": _tensors(lambda t: t.detach().tolist()),
    "a list of rows": _tensors(lambda t: list(t) if t.ndim else t),
    "float64": _tensors(lambda t: t.double()),
    "float16": _tensors(lambda t: t.half(), numbers=True),
    "bfloat16": _tensors(lambda t: t.bfloat16(), numbers=True),
    "a FactoredMatrix": _tensors(
        lambda t: FactoredMatrix(t, torch.eye(t.shape[1], dtype=t.dtype)) if _table(t) else t
    ),
    "a number as a tensor": lambda v: torch.tensor(v) if isinstance(v, float) else v,
    "a number of NumPy": lambda v: np.float64(v) if isinstance(v, float) else v,
    "a number in a list": lambda v: [v] if isinstance(v, float) else v,
}


HALVES = ("float16", "bfloat16")
#: A loss that has to be differentiated cannot come as anything but a tensor.
NEEDS_TENSOR = ("1.5",)
#: Moments and figures do not say which numbers they were made from, so they are judged as from float32.
NO_FORMAT = ("8.2", "8.4")
#: Token ids are whole numbers: as floats they are refused.
IDS = ("8.6",)


def in_forms(exercise: str, solution: Callable[..., Any]) -> Iterator[Variant]:
    """The solution, judged in each form that differs from its own."""
    tried = [(name, form, None) for name, form in FORMS.items()]
    tried += [
        (f"{half}, from inputs rounded to it", FORMS[half], getattr(torch, half)) for half in HALVES
    ]
    for name, form, given in tried:
        differs: list[bool] = []

        def answer(
            *arguments: Any,
            form: Callable[[Any], Any] = form,
            given: torch.dtype | None = given,
            differs: list[bool] = differs,
        ) -> Any:
            mine = solution(*(_rounded(argument, given) for argument in arguments))
            made = form(mine)
            differs.append(_kind(made) != _kind(mine))
            return made

        expected = None if exercise in NEEDS_TENSOR else given is None or exercise not in NO_FORMAT
        if exercise in IDS and "float" in name:
            expected = False
        found = judge(exercise, "form", name, expected, answer)
        if any(differs) or not expected:
            yield found


def _rounded(argument: Any, half: torch.dtype | None) -> Any:
    """The numbers of a tensor, or of a list of them, as half precision holds them."""
    if isinstance(argument, list):
        return [_rounded(part, half) for part in argument]
    if half is None or not isinstance(argument, Tensor) or not argument.is_floating_point():
        return argument
    return argument.to(half).to(argument.dtype)


def _then(form: Callable[[Any], Any], function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: form(function(*arguments))


def _kind(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value), [_kind(part) for part in value]
    return type(value), getattr(value, "dtype", None)


# Mutants.

_OTHER = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.GtE: (ast.Gt,),
    ast.LtE: (ast.Lt,),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
}
_TURNS = (ast.Sub, ast.Div, ast.MatMult)
_NAMES = {
    "mean": "sum",
    "sum": "mean",
    "min": "max",
    "max": "min",
    "argmax": "argmin",
    "amax": "amin",
    "square": "abs",
    "abs": "square",
    "triu": "tril",
    "tril": "triu",
    "sigmoid": "tanh",
    "softmax": "log_softmax",
    "log_softmax": "softmax",
    "exp": "expm1",
    "log": "log1p",
    "any": "all",
    "all": "any",
}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that could stand in the place of this one with one slip."""
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.MatMult):
            yield ast.BinOp(_turned(node.left), node.op, node.right)
            yield ast.BinOp(node.left, node.op, _turned(node.right))
        for other in _OTHER.get(type(node.op), ()):
            yield ast.BinOp(node.left, other(), node.right)
        if isinstance(node.op, _TURNS):
            yield ast.BinOp(node.right, node.op, node.left)
        yield node.left
        yield node.right
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in _OTHER.get(type(node.ops[0]), ()):
            yield ast.Compare(node.left, [other()], node.comparators)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield ast.Constant(node.value + 1)
        yield ast.Constant(node.value - 1)
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Attribute) and node.attr in ("T", "mT", "real"):
        yield node.value
    elif isinstance(node, ast.Attribute) and node.attr in _NAMES:
        yield ast.Attribute(node.value, _NAMES[node.attr], node.ctx)
    elif isinstance(node, ast.Tuple) and len(node.elts) > 1 and _numbers(node.elts):
        yield from node.elts
    elif isinstance(node, (ast.Assign, ast.AugAssign)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield ast.Pass()
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.UnaryOp(ast.USub(), node.value))
    elif isinstance(node, ast.Slice):
        for part in ("lower", "upper", "step"):
            if getattr(node, part) is not None:
                yield ast.Slice(**{**ast_fields(node), part: None})
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and not _is_module(node.func.value):
            yield node.func.value  # the call is left out
        elif node.args:
            yield node.args[0]
        if _called(node) == "range":  # one turn less, at either end
            yield ast.Call(node.func, [*node.args[:-1], _less(node.args[-1])], [])
        if _called(node) in ("std", "var"):
            yield ast.Call(node.func, node.args, [ast.keyword("correction", ast.Constant(0))])
        if len(node.args) > 1:
            first, second, *rest = node.args
            yield ast.Call(node.func, [second, first, *rest], node.keywords)
        for index in range(len(node.keywords)):
            kept = node.keywords[:index] + node.keywords[index + 1 :]
            yield ast.Call(node.func, node.args, kept)


def _turned(node: ast.expr) -> ast.expr:
    return ast.Attribute(node, "T", ast.Load())


def _less(node: ast.expr) -> ast.expr:
    return ast.BinOp(node, ast.Sub(), ast.Constant(1))


def _numbers(nodes: list[ast.expr]) -> bool:
    return all(isinstance(node, ast.Constant) and type(node.value) is int for node in nodes)


def _called(node: ast.Call) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def ast_fields(node: ast.AST) -> dict[str, Any]:
    """Fields of a node by name."""
    return dict(ast.iter_fields(node))


def _is_module(node: ast.AST) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in ("torch", "ll", "go", "np")


def mutants(source: str, name: str) -> Iterator[tuple[str, str]]:
    """What was changed, and the changed source, for every single slip in one function.

    A slip changes one expression or leaves out one statement.
    """
    tree = ast.parse(source)
    seen = {ast.unparse(tree)}
    for path, node in _walk(tree, name):
        for new in changes(node):
            other = copy.deepcopy(tree)
            place = other
            for field, index in path[:-1]:
                place = getattr(place, field) if index is None else getattr(place, field)[index]
            field, index = path[-1]
            if index is None:
                setattr(place, field, new)
            else:
                getattr(place, field)[index] = new
            text = ast.unparse(ast.fix_missing_locations(other))
            if text not in seen:
                seen.add(text)
                yield f"{ast.unparse(node)} → {ast.unparse(new)}", text


def _walk(tree: ast.Module, name: str) -> Iterator[tuple[list[Any], ast.AST]]:
    """Every expression in the body of one function, with the way to it; no docstrings, no annotations."""

    def down(node: ast.AST, path: list[Any]) -> Iterator[tuple[list[Any], ast.AST]]:
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "args") and not isinstance(node, ast.Call):
                continue
            for index, part in enumerate(value) if isinstance(value, list) else ((None, value),):
                if isinstance(part, ast.AST):
                    way = [*path, (field, index)]
                    yield way, part
                    yield from down(part, way)

    for index, node in enumerate(tree.body):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            yield from down(node, [("body", index)])


# The whole table.


def variants(master: Master) -> Iterator[Variant]:
    """Every variant of a lesson, judged."""
    notebook = make_notebook(master, "solutions")
    cells = {c["metadata"]["tags"][0]: c["source"] for c in notebook.cells if has_tag(c, "exerc")}
    for cell in (c for c in notebook.cells if has_tag(c, "check")):
        exercise, name = checked_name(cell["source"])
        space = define(notebook, exercise)
        yield judge(exercise, "solution", "the solution", True, space[name])
        yield from in_forms(exercise, space[name])
        source = cells[f"exercise-{exercise}"]
        for what, text in mutants(source, name):
            fresh = dict(space)
            exec(compile(text, f"<mutant of {exercise}>", "exec", _FLAGS), fresh)
            yield judge(exercise, "mutant", what, None, fresh[name])
    for exercise, function, _ in planted(master.number):
        what = function.__name__.replace("_", " ")
        yield judge(exercise, "planted", what, False, function)
        for half in HALVES:
            answer = _then(FORMS[half], function)
            yield judge(exercise, "planted", f"{what}, {half}", False, answer)


def planted(lesson: int) -> list[tuple[str, Callable[..., Any], str]]:
    """The planted wrong answers of a lesson, which the tests hold too."""
    spec = importlib.util.spec_from_file_location("planted", PLANTED / f"lesson_{lesson}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WRONG


KINDS = ("solution", "form", "planted", "mutant")
#: Why the mutants that pass are as right as the solution, read one by one.
WHY = {
    "1.2": "a row of any equal counts is uniform; its mean is zero where its sum is; counts divide as well when they are whole numbers",
    "1.3": "the number as a tensor",
    "1.4": "a table's last axis is axis 1; the number as a tensor",
    "1.6": "columns beyond the rank asked for are cut anyway",
    "2.1": "a table's last axis is axis 1",
    "2.5": "a vector has one axis; a vector has no transpose",
    "2.6": "complex eigenvalues come in pairs: their sum is real; the number as a tensor",
    "2.7": "any large number will do",
    "3.1": "the number as a tensor",
    "3.2": "periods are averaged in any order, and none is 1; axis 2 is axis -2 of four",
    "3.3": "the number as a tensor",
    "3.7": "the last axis of a table is axis 1",
    "3.8": "axis 0 is the default; the number as a tensor",
    "3.9": "a vector has no transpose",
    "3.10": "an axis of length one",
    "4.1": "the sign of a centred column does not matter; the number as a tensor",
    "4.2": "the score of an update and of its negative are equal",
    "4.3": "the least of two numbers in either order",
    "4.4": "centred x does not see a constant in y; a squared difference; the number as a tensor",
    "4.5": "a squared difference; a ratio of means over as many numbers is that of sums",
    "4.6": "the number as a tensor",
    "4.7": "the cosine of two vectors in either order; the number as a tensor",
    "5.1": "the sign of a centred column does not matter; the number as a tensor",
    "5.2": "centred x does not see a constant in y; a vector has no transpose",
    "5.4": "the sign of the output does not matter; columns beyond the rank are cut anyway",
    "6.2": "the number as a tensor",
    "6.3": "the number as a tensor",
    "6.4": "a dot product in either order; a list, which is remarked on; a vector has no transpose",
    "6.5": "a basis may point either way",
    "6.6": "a dot product in either order; a list, which is remarked on; a vector has no transpose",
    "7.2": "only L Lᵀ matters, and no sign of L",
    "7.6": "KᵀK is symmetric",
    "7.7": "a table's last axis is axis 1",
    "8.1": "a mask of the whole shape is the mask of its last two axes; both of these are as long",
    "8.3": "a squared difference; the number as a tensor; a covariance is symmetric; a vector has no transpose",
    "8.4": "layers are numbered from 0 by default; a place for the legend is not asked for",
    "8.5": "the number as a tensor",
    "9.2": "the number as a tensor",
    "9.3": "a mask for every row is the mask of one row",
    "9.4": "a square does not see the sign; all squares are summed in the end; the number as a tensor; a ratio of means over as many numbers is that of sums",
}


def counts(found: list[Variant]) -> list[str]:
    """One row of the table for each lesson: passed / tried, by kind."""
    rows = []
    for lesson in sorted({v.exercise[0] for v in found}):
        cells = []
        for kind in KINDS:
            own = [v for v in found if v.exercise[0] == lesson and v.kind == kind]
            cells.append(f"{sum(v.passed for v in own)} / {len(own)}")
        rows.append(f"| {lesson} | {' | '.join(cells)} |")
    return rows


def table(found: list[Variant]) -> str:
    """The page of all lessons."""
    lines = [
        "# What the checks say about right and wrong answers",
        "",
        f"{len(found)} answers, tried by `python tutorials/variants.py`, which writes this page. Each cell: passed / tried.",
        "",
        "| lesson | solution | the same in another form | planted wrong answers | mutants of the solution |",
        "|---|---|---|---|---|",
        *counts(found),
        "",
        "A form is the solution's own result as an array, a list, a list of tensors, a `FactoredMatrix`, in float64 or in half",
        "precision, also computed from inputs that were rounded to it. The number format of an answer is that of what comes back:",
        "in float16 or bfloat16 it is right within four roundings of a right answer to the question, or to the question with its",
        f"inputs rounded. So three kinds fail, as they should: a loss that cannot be differentiated ({', '.join(NEEDS_TENSOR)}), token ids",
        f"that are floats ({', '.join(IDS)}), and results in which no",
        f"format can be seen (`Moments` and figures: {', '.join(NO_FORMAT)}; a plain number too) made from rounded inputs: these are judged",
        "as float32. A planted wrong answer is tried in half precision too, whose tolerance is wider.",
        "",
        "A mutant is the solution with one slip: an operator, constant, axis or keyword changed, swapped or left out; an operand,",
        "call, slice bound or statement left out; a transpose put in or left out; a mean for a sum, a maximum for a minimum; the",
        "sign of the result; one turn of a loop less; n for n - 1 in a spread.",
        "",
        "## Mutants that pass",
        "",
        "Read one by one; a mutant without a reason is a hole in its check.",
        "",
        "| exercise | change | why it is right |",
        "|---|---|---|",
    ]
    for v in found:
        if v.kind == "mutant" and v.passed:
            what = v.what.replace("|", "\\|")
            lines.append(f"| {v.exercise} | `{what}` | {WHY.get(v.exercise, '**?**')} |")
    return "\n".join([*lines, ""])


def main(arguments: list[str]) -> int:
    """Run; 1 when a right form fails or a planted wrong answer passes."""
    torch.set_num_threads(1)
    found = [v for master in masters([int(a) for a in arguments]) for v in variants(master)]
    if arguments:
        print(*found, sep="\n")
    else:
        TABLE.write_text(table(found), encoding="utf-8")
    bad = [v for v in found if v.expected is not None and v.passed != v.expected]
    for variant in bad:
        print("not as expected:", variant, file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
