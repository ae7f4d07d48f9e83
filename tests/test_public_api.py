"""Every public name exists, is documented with an example, annotated, and imports are light."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys

import pytest

import lens_linear as ll
from lens_linear._lazy import _MEANT

NAMES = sorted(name for name in ll.__all__ if not inspect.ismodule(getattr(ll, name)))


def test_names_of_the_design_are_there():
    wanted = (
        "load available_models AttentionOnly composition_scores induction_scores qk_attribution "
        "linearity_profile procrustes_similarity layer_map linearize replacement_curve bilinear_probe "
        "Moments CosineRegularizer concept_directions gain_profile fit_surrogate min_energy "
        "evaluate_schedules OLSAttention train_ols_attention memory_capacity report plots"
    ).split()
    assert set(wanted) <= set(dir(ll))


@pytest.mark.parametrize(
    ("place", "name", "answer"),
    [
        (
            ll,
            "visit_sites",
            "lens_linear has no 'visit_sites'; it is lens_linear.models.visit_sites",
        ),
        (ll, "activation_patching", "lens_linear.patch"),
        (ll, "krylov", "lens_linear.linalg.krylov_basis"),
        (ll.stats, "lineraity_profile", "did you mean lens_linear.linearity_profile"),
        (
            ll.models,
            "attention_pattern",
            "circuits.attention_pattern or lens_linear.plots.attention",
        ),
        (ll, "mean_ablation", "you may want lens_linear.circuits.ablation_scores"),
        (ll.plots, "OV", "you may want the methods of lens_linear.head("),
        (ll, "qwerty", "dir(lens_linear) lists"),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_where_it_is(place, name, answer):
    with pytest.raises(AttributeError, match=re.escape(answer)):
        getattr(place, name)


@pytest.mark.parametrize("meant", sorted(set(_MEANT.values())))
def test_what_is_advised_for_words_of_the_field_is_there(meant):
    for path in re.findall(r"lens_linear\.([\w.]+)", meant):
        value = ll
        for part in path.split("."):
            value = getattr(value, part)


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


ROOMS = ("circuits constructions dynamics linalg linearity plots studies teaching text").split()


def exported_functions():
    """(where, function) for the functions in ``__all__`` of the package and of its rooms."""
    seen = {}
    for room in (ll, *(getattr(ll, room) for room in ROOMS)):
        for name in getattr(room, "__all__", ()):
            value = getattr(room, name)
            if inspect.isfunction(value) and value.__module__.startswith("lens_linear."):
                seen[f"{value.__module__.removeprefix('lens_linear.')}.{name}"] = value
    return seen


FUNCTIONS = exported_functions()


def sections(function) -> dict[str, str]:
    """The parts of a docstring, by the word at the left margin that opens them."""
    found, here = {}, "head"
    for line in inspect.getdoc(function).splitlines():
        word, colon, rest = line.partition(":")
        if colon and word in ("Args", "Returns", "Yields", "Raises", "Source", "Example"):
            here, line = word, rest.strip()
        found[here] = found.get(here, "") + line + "\n"
    return found


def missing_sections(function) -> list[str]:
    """What the docstring of a function should hold and does not."""
    found = sections(function)
    signature = inspect.signature(function)
    listed = re.findall(r"^    ((?:[*]*\w+(?:, )?)+):", found.get("Args", ""), flags=re.MULTILINE)
    described = {name.lstrip("*") for names in listed for name in names.split(", ")}
    missing = [name for name in signature.parameters if name not in described]
    gives = signature.return_annotation not in ("None", None)
    if gives and not {"Returns", "Yields"} & set(found):
        missing.append("Returns")
    if ">>> " not in found.get("Example", ""):
        missing.append("Example")
    order = [part for part in found if part != "head"]
    wanted = ["Args", "Returns", "Yields", "Raises", "Source", "Example"]
    return missing + [f"order {order}"] * (order != [part for part in wanted if part in order])


def test_the_rooms_export_functions():
    assert len(FUNCTIONS) > 150 and "plots.circuits.head_scores" in FUNCTIONS


@pytest.mark.parametrize("where", sorted(FUNCTIONS))
def test_exported_functions_say_arguments_result_and_an_example(where):
    assert not missing_sections(FUNCTIONS[where])


def test_a_docstring_without_its_parts_is_noticed():
    def bare(x: int, y: int) -> int:
        """Add.

        Args:
            x: a number.
        """

    assert missing_sections(bare) == ["y", "Returns", "Example"]


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
    code = "import sys, time; started = time.process_time(); import lens_linear; "
    code += f"print(time.process_time() - started, [m for m in {heavy} if m in sys.modules])"
    times = []
    for _ in range(3):
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        seconds, found = out.split(maxsplit=1)
        times.append(float(seconds))
        assert found.strip() == "[]"
    assert min(times) < 0.2


@pytest.mark.parametrize("old, new", [("model_shape", "checked"), ("ModelShape", "CheckedModel")])
def test_a_name_of_an_older_version_works_and_says_its_new_one(old, new):
    with pytest.warns(DeprecationWarning, match=rf"{old} is lens_linear\.models\.{new} now"):
        found = getattr(ll.models, old)
    assert found is getattr(ll.models, new)
    assert old not in dir(ll.models)
