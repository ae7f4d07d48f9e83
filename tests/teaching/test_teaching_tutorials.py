"""Notebooks are copied out, and work in them is never lost."""

import pytest

from lens_linear.errors import CorruptedFileError, InvalidArgumentError
from lens_linear.teaching import tutorials
from lens_linear.teaching.tutorials import copy_tutorials, exercise_notebooks


def test_copies_all_and_says_how_to_start(tmp_path):
    done = copy_tutorials(tmp_path / "new" / "folder")
    assert len(done.written) == len(exercise_notebooks()) > 0
    assert not done.unchanged and not done.kept
    assert "jupyter lab" in done.how_to_start and done.written[0] in done.how_to_start
    assert f"{len(done.written)} notebooks written" in repr(done)
    for source in exercise_notebooks():
        assert (done.directory / source.name).read_bytes() == source.read_bytes()


def test_changed_notebooks_are_kept_unless_forced(tmp_path):
    first = copy_tutorials(tmp_path)
    mine = tmp_path / first.written[0]
    mine.write_text("my work")
    again = copy_tutorials(str(tmp_path))
    assert again.kept == (mine.name,) and not again.written
    assert mine.read_text() == "my work" and mine.name in again.how_to_start
    assert set(again.to_dataframe()["state"]) <= {"kept", "unchanged"}
    forced = copy_tutorials(tmp_path, force=True)
    assert forced.written == (mine.name,) and mine.read_text() != "my work"


def test_a_path_with_a_space_is_quoted(tmp_path):
    assert '"' in copy_tutorials(tmp_path / "my course").how_to_start.split("jupyter lab")[1]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidArgumentError, match="directory must be a folder"):
        copy_tutorials(tmp_path / "file")
    with pytest.raises(InvalidArgumentError):
        copy_tutorials("")


def test_a_broken_installation_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tutorials, "_INSTALLED", tmp_path)
    monkeypatch.setattr(tutorials, "_CHECKOUT", tmp_path)
    with pytest.raises(CorruptedFileError, match="with pip from a wheel"):
        copy_tutorials(tmp_path / "x")
