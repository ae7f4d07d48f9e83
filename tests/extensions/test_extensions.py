"""A package of somebody else's, installed by pip: its parts work, and a broken one costs only itself."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lens_linear as ll
from lens_linear import extensions
from lens_linear.cli import main
from lens_linear.errors import InvalidArgumentError
from lens_linear.extensions import Extension, HeadScore
from tests.conftest import ROOT, absent

pytestmark = pytest.mark.whole

pytest.importorskip("hatchling")
OUTSIDE = Path(__file__).parent / "outside"
SHAPE = {"n_layers": 2, "d_model": 16, "n_heads": 4, "d_vocab": 40, "n_ctx": 32}
TOKENS = torch.randint(40, (12, 24), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A folder that holds the installed package alone."""
    folder = tmp_path_factory.mktemp("site")
    install = (
        "-m pip install -q --no-deps --no-build-isolation --no-index --disable-pip-version-check"
    )
    # A copy: building leaves nothing behind in the checkout.
    source = tmp_path_factory.mktemp("source")
    for file in OUTSIDE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    subprocess.run([sys.executable, *install.split(), "--target", folder, source], check=True)
    return folder


@pytest.fixture
def outside(target, monkeypatch):
    monkeypatch.syspath_prepend(target)
    return importlib.import_module("lens_head_sizes")


def declared(folder, name, code):
    """A package ``name`` 1.0 as an installer leaves it: a module and its dist-info."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lens_linear.extensions]\nmain = {name}:extension\n")


@pytest.fixture
def toy():
    return ll.toy_model(**SHAPE, attn_only=False, norm="LN")


def test_without_packages_nothing_is_added(toy):
    assert extensions.installed() == {} and extensions.problems() == []
    with pytest.raises(InvalidArgumentError, match="no installed package adds any"):
        ll.linearity_profile(toy, TOKENS, statistics=["participation"])
    with pytest.raises(InvalidArgumentError, match=r"'krylov'.*got 'states'"):
        ll.fit_surrogate(toy, TOKENS, torch.eye(16)[:3], basis="states")


def test_the_statistic_and_the_basis_by_name(outside, toy, capsys):
    assert list(extensions.installed()) == ["lens-head-sizes 0.3"]
    profile = ll.linearity_profile(toy, TOKENS, statistics=["participation"], fit="in-sample")
    rows = toy.run_with_cache(TOKENS)[1]["blocks.1.hook_resid_post"].double().flatten(0, 1)
    values = torch.linalg.eigvalsh(torch.cov(rows.T))
    assert profile["participation"][1] == pytest.approx(
        float(values.sum() ** 2 / (values**2).sum()), rel=1e-4
    )
    assert (profile["participation_low"] < profile["participation_high"]).all()
    with pytest.raises(InvalidArgumentError, match="one of 'participation', got 'particip'"):
        ll.linearity_profile(toy, TOKENS, statistics=["particip"])
    assert main(["linearity", "gpt-nano", "--statistic", "particip"]) == 2
    assert "--statistic must be one of 'participation', got 'particip'" in capsys.readouterr().err
    assert not main(["linearity", "gpt-nano", "--statistic", "participation", "--csv", "--quiet"])
    assert "participation_low" in capsys.readouterr().out
    directions = ll.dynamics.random_directions(toy)
    found = ll.fit_surrogate(toy, TOKENS, directions, order=16, basis="states")
    exact = ll.gain_profile(toy, TOKENS, directions).gains
    assert found.basis == "states" and torch.allclose(found.gains, exact, atol=1e-4)
    part = ll.fit_surrogate(toy, TOKENS, directions, order=3, basis="states")
    assert not torch.allclose(part.gains, exact, atol=1e-3)
    table = ll.dynamics.agreement_table(
        "gpt-nano", "mood", orders=(2, 4), bases=["states", "krylov"], jacobians=("mean",),
        n_concept=20, n_operating=4, n_evaluation=4,
    )  # fmt: skip
    assert set(table["basis"]) == {"states", "krylov"}
    assert (
        table.plot(jacobian="mean").data
        and len(ll.min_energy(part.profile, 0.2).to_dataframe()) == 2
    )


def test_the_score_and_the_section_on_their_pages(outside, tmp_path):
    model = ll.load("attn-1l")
    payload = ll.explore(model, ["Once upon a time"]).payload
    W_V, W_O = model.blocks[0].attn.W_V.double(), model.blocks[0].attn.W_O.double()
    assert payload["added_scores"]["ov_norm"]["words"] == "size of OV"
    shown = [row["ov_norm"] for row in payload["heads"]]
    np.testing.assert_allclose(shown, (W_V @ W_O).norm(dim=(1, 2)).detach(), rtol=1e-3)
    steps = []
    page = ll.report(
        model, tmp_path / "page.html", TOKENS.repeat(3, 1), on_step=steps.append
    ).read_text()
    assert re.search(r"<h2[^>]*>\s*How large the heads are", page)
    assert "L0H" in page and "36 rows were asked" in page and "lens-head-sizes 0.3" in page
    assert "How large the heads are" in steps and len(steps) == ll.reports.report_steps(model)


def test_the_score_is_chosen_on_the_map_in_a_browser(outside, tmp_path):
    chromium, frontend = shutil.which("chromium"), ROOT / "frontend"
    if not (chromium and shutil.which("node") and (frontend / "node_modules").is_dir()):
        absent("no chromium, node or frontend/node_modules: the map is not looked at in a browser")
    model = ll.load("attn-2l")
    page = ll.explore(model, ["Once upon a time"]).save(tmp_path / "page.html")
    job = tmp_path / "job.json"
    job.write_text(json.dumps([{"check": "score", "file": str(page), "words": "size of OV"}]))
    command = ["node", ROOT / "tests/explorer/page.mjs", frontend, chromium, job]
    (seen,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    attention = ll.models.read_weights(model).attention
    norms = torch.linalg.matrix_norm(attention.W_V @ attention.W_O).flatten()
    heads = [f"L{layer}H{head}" for layer in range(2) for head in range(4)]
    shown = [cell.partition(",")[0] for cell in seen["cells"]]
    assert shown == [
        f"{head}: {norm:.2f}" for head, norm in zip(heads, norms.tolist(), strict=True)
    ]
    assert (
        "score=ov_norm" in seen["address"] and seen["errors"] == [] and len(seen["requests"]) == 1
    )


BROKEN = """
from lens_linear.extensions import Extension, HeadScore
def fails(*_): raise ZeroDivisionError("oh")
extension = Extension(statistics={"broken": fails, "names": lambda m: "x"}, bases={"broken": fails},
    head_scores={"broken": HeadScore(fails, "a", "b"), "flat": HeadScore(lambda m: [1.0], "c", "d")},
    sections={"Broken": fails, "No section": lambda m, t: "text", "No block": lambda m, t: odd()})
def odd():
    from lens_linear.reports import Section
    return Section("x", "y", [object()])
"""


def test_a_broken_part_costs_only_itself(outside, toy, tmp_path, monkeypatch):
    declared(tmp_path, "a_broken_one", BROKEN)
    declared(tmp_path, "b_unloadable", "raise ImportError('no such thing')")
    declared(tmp_path, "c_no_extension", "extension = 3")
    declared(tmp_path, "d_exits", "raise SystemExit(1)")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(extensions.installed()) == ["a_broken_one 1.0", "lens-head-sizes 0.3"]
    assert [p.split()[2] for p in extensions.problems()] == [
        "b_unloadable",
        "c_no_extension",
        "d_exits",
    ]
    with pytest.warns(UserWarning, match="'broken' of the extension a_broken_one 1.0 failed .*oh"):
        profile = ll.linearity_profile(toy, TOKENS, statistics=["broken", "participation", "names"])
    assert profile["broken"].isna().all() and profile["names"].isna().all()
    assert profile["participation"].gt(1).all()
    with pytest.raises(
        InvalidArgumentError, match=r"a_broken_one 1\.0 failed \(ZeroDivisionError: oh"
    ):
        ll.fit_surrogate(toy, TOKENS, torch.eye(16)[:3], basis="broken")
    model = ll.load("attn-1l")
    payload = ll.explore(model, ["Once"]).payload
    assert list(payload["added_scores"]) == ["ov_norm"]
    notes = " ".join(payload["missing"]["map"])
    assert "'broken' of the extension a_broken_one 1.0" in notes and "b_unloadable 1.0" in notes
    assert "must have shape [layer, head] = (1, 4), got (1,)" in notes
    page = ll.report(model, tmp_path / "page.html", TOKENS.repeat(3, 1)).read_text()
    for title in ("Broken: failed", "No section: failed", "No block: failed"):
        assert title in page
    assert "could not be loaded (ImportError: no such thing)" in page
    assert "36 rows were asked" in page and "Linearity" in page


def test_names_are_ours_first_then_by_package(tmp_path, monkeypatch, toy):
    code = "from lens_linear.extensions import Extension\nextension = Extension(%s)"
    declared(tmp_path, "second", code % "statistics={'who': lambda m: 2.0}")
    declared(tmp_path, "first", code % "statistics={'who': lambda m: 1.0}, bases={'pca': len}")
    monkeypatch.syspath_prepend(tmp_path)
    extensions._say.cache_clear()
    with pytest.warns(
        UserWarning, match=r"'who' of the extension second 1.0 is left out: .*first 1.0"
    ):
        assert (ll.linearity_profile(toy, TOKENS, statistics=["who"])["who"] == 1.0).all()
    with pytest.warns(
        UserWarning, match="bases 'pca' of the extension first 1.0 .*lens_linear has"
    ):
        assert extensions.added("bases", ours=("pca",)) == {}
    monkeypatch.setenv("LENS_LINEAR_EXTENSIONS", "0")
    assert extensions.installed() == {}


def test_parts_are_checked_where_they_are_written():
    for wrong, words in (
        ({"statistics": {"a b": len}}, "names of letters, digits and _"),
        ({"statistics": {"a": 3}}, r"statistics\['a'\] must be a function"),
        ({"bases": [len]}, "bases must be a Mapping"),
        ({"head_scores": {"a": len}}, r"head_scores\['a'\] must be a HeadScore"),
        ({"sections": {"": len}}, "sections must have names"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            Extension(**wrong)
    with pytest.raises(InvalidArgumentError, match="unit must be a str"):
        HeadScore(len, "words", None)


def test_a_statistic_of_ones_own_that_fails_or_hides_a_column_is_said(toy):
    with pytest.raises(InvalidArgumentError, match=r"statistics\['bad'\] .*IndexError: list index"):
        ll.linearity_profile(toy, TOKENS, statistics={"bad": lambda m: [][m.n]})
    for names in (["block_r2"], ["layer"], ["a", "a_low"], ["ffn_r2_without_first_low"]):
        with pytest.raises(InvalidArgumentError, match="no column yet"):
            ll.linearity_profile(toy, TOKENS, statistics=dict.fromkeys(names, lambda m: 1.0))
