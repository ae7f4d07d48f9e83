"""The room as a whole: light to import, complete, documented, its examples true."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import lens_linear.text as room

MODULES = sorted(
    module.name for module in pkgutil.iter_modules(room.__path__, prefix="lens_linear.text.")
)


def test_import_is_light():
    code = "import sys, lens_linear.text; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["pandas", "datasets", "transformers", "transformer_lens", "plotly", "pyarrow"]
    run = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples():
    attempted = [doctest.testmod(importlib.import_module(name)).attempted for name in MODULES]
    assert sum(attempted) >= 30


@pytest.mark.parametrize("name", room.__all__)
def test_public_names_are_documented_and_annotated(name):
    value = getattr(room, name)
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        assert inspect.getdoc(value)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not p.empty for p in signature.parameters.values())
    elif inspect.isclass(value):
        assert inspect.getdoc(value)
