"""The whole suite under jaxtyping and beartype: ``pytest -m "not real" -p tests.shape_check``.

Every function of the package checks its annotations, shapes and dtypes included, while the tests run. What a
function returns must be what it says. An argument that is not what the annotation says is a fault only where
the function then works: a refusal of it is what the tests of bad input want. Faults are listed at the end,
one a function, and fail the run.
"""

import functools
import inspect
import threading

import beartype
import jaxtyping
import jaxtyping._decorator
import pytest
from beartype.roar import BeartypeDecorHintPep673Exception
from jaxtyping import TypeCheckError

_TOWER = beartype.BeartypeConf(is_pep484_tower=True)  # an int is a float
_strict = jaxtyping.jaxtyped
# Classes that put what was passed into the layout of their fields; what may be passed stands beside them
# or in the docstring. The context manager refuses only when it is entered.
_LAID_OUT = ("Task.__init__", "Concept.__init__", "Study.__init__", "replacement.linearize")
_found: dict[str, str] = {}
_held = threading.local()


def _collecting(fn=None, *, typechecker):
    if fn is None:
        return functools.partial(_collecting, typechecker=typechecker)
    if not inspect.isfunction(fn):
        return _strict(fn, typechecker=typechecker)
    name = f"{fn.__module__}.{fn.__qualname__}."

    @functools.wraps(fn)
    def kept(*args, **kwargs):
        _held.results[-1] = fn(*args, **kwargs)
        return _held.results[-1]

    kept.__signature__ = _signature(fn)
    checked = _strict(kept, typechecker=typechecker)

    @functools.wraps(fn)
    def call(*args, **kwargs):
        __tracebackhide__ = True
        _held.results = getattr(_held, "results", [])
        _held.results.append(None)
        try:
            return checked(*args, **kwargs)
        except TypeCheckError as error:
            said = str(error)
            if f"the return value of {name}" in said:
                _found.setdefault(f"returned by {name}", said)
                return _held.results[-1]
        finally:
            result = _held.results.pop()
        result = fn(*args, **kwargs)  # refused, or the annotation is wrong
        if not name.rstrip(".").endswith(_LAID_OUT):
            _found.setdefault(f"passed to {name}", said)
        return result

    return call


def _signature(fn):
    """The signature of a function, its annotations as objects; what its module cannot name is Any."""
    resolve = functools.partial(jaxtyping._decorator._destring_annotation, ns=fn.__globals__)
    signature = inspect.signature(fn)
    given = [p.replace(annotation=resolve(p.annotation)) for p in signature.parameters.values()]
    returned = resolve(signature.return_annotation)
    return signature.replace(parameters=given, return_annotation=returned)


def checker(fn):
    """The type checker of the import hook; ``Self`` outside a class is beyond it."""
    try:
        return beartype.beartype(conf=_TOWER)(fn)
    except BeartypeDecorHintPep673Exception:
        return fn


jaxtyping.jaxtyped = jaxtyping._decorator.jaxtyped = _collecting
jaxtyping.install_import_hook("lens_linear", "tests.shape_check.checker")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """What a process of pytest-xdist found."""
    _found.update(getattr(node, "workeroutput", {}).get("annotations", {}))


def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["annotations"] = _found
    else:
        session.exitstatus = exitstatus or bool(_found)


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section(f"annotations that do not hold: {len(_found)}")
    for said in _found.values():
        short = [line for line in said.splitlines() if line[:2] != "  " and "-----" not in line]
        terminalreporter.write_line(" | ".join(short)[:900])
