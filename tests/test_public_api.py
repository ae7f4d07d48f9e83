"""Every public name exists, is documented with an example, annotated, and imports are light."""

import doctest
import importlib
import inspect
import subprocess
import sys
import time

import pytest

import lens_linear as ll

NAMES = sorted(ll._WHERE)


def test_names_of_the_design_are_there():
    wanted = (
        "load available_models AttentionOnly composition_scores induction_scores qk_attribution "
        "linearity_profile procrustes_similarity layer_map linearize replacement_curve bilinear_probe "
        "Moments CosineRegularizer concept_directions gain_profile fit_surrogate min_energy "
        "evaluate_schedules OLSAttention train_ols_attention memory_capacity report plots"
    ).split()
    assert set(wanted) <= set(dir(ll))


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_importable_documented_and_annotated(name):
    value = getattr(ll, name)
    text = inspect.getdoc(value) or ""
    assert len(text.splitlines()) > 3, f"{name} has no docstring worth the name"
    function = value.__init__ if inspect.isclass(value) else value
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.name != "self":
            assert parameter.annotation is not inspect.Parameter.empty, (name, parameter.name)
    if not inspect.isclass(value):
        assert signature.return_annotation is not inspect.Signature.empty, name
        assert ">>>" in text, f"{name} has no runnable example"


def _modules():
    import pkgutil

    import lens_linear

    return [
        m.name
        for m in pkgutil.walk_packages(lens_linear.__path__, "lens_linear.")
        if "__main__" not in m.name
    ]


@pytest.mark.parametrize("module", _modules())
def test_examples_in_docstrings_run(module):
    failed, _ = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert not failed


def test_import_is_light():
    heavy = "('torch', 'pandas', 'plotly', 'transformer_lens')"
    code = f"import sys, lens_linear; print([m for m in {heavy} if m in sys.modules])"
    times = []
    for _ in range(3):
        started = time.perf_counter()
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        times.append(time.perf_counter() - started)
        assert out.strip() == "[]"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    bare = time.perf_counter() - started
    assert min(times) - bare < 0.2


def test_unknown_names_say_so():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ll.nothing
