"""The wheel brings the exercise notebooks and nothing that gives solutions away."""

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    builder = wheel.WheelBuilder(str(ROOT))
    path = next(iter(builder.build(directory=str(folder), versions=["standard"])))
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_every_exercise_notebook_is_in_the_wheel(names):
    stored = sorted(path.name for path in (ROOT / "tutorials" / "exercises").glob("*.ipynb"))
    inside = sorted(Path(name).name for name in names if name.endswith(".ipynb"))
    assert stored == inside and stored
    assert all(
        n.startswith("lens_linear/teaching/notebooks/") for n in names if n.endswith(".ipynb")
    )


def test_no_solution_is_in_the_wheel(names):
    for word in ("solutions", "instructor", "masters", "tutorials/", "INSTRUCTOR", "wrong_answers"):
        assert not [name for name in names if word in name]
