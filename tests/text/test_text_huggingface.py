import json
import os
import subprocess
import sys

import pytest

from lens_linear.errors import (
    CorruptedFileError,
    InvalidArgumentError,
    NotEnoughDataError,
    OfflineError,
)
from lens_linear.text import huggingface, huggingface_text, stream_huggingface_text

os.environ.setdefault("HF_HUB_OFFLINE", "1")
datasets = pytest.importorskip("datasets")

ROWS = [{"text": "a", "n": 1}, {"text": "  ", "n": 2}, {"text": "c\nd", "n": 3}]
TEXTS = ["a", "c\nd"]


def write_jsonl(path, rows=ROWS):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same rows in every form that a local dataset can have."""
    folder = tmp_path_factory.mktemp("sources")
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_list(ROWS)
    (folder / "repository" / "data").mkdir(parents=True)
    table.to_parquet(folder / "repository" / "data" / "train-00000-of-00001.parquet")
    table.save_to_disk(folder / "saved")
    datasets.DatasetDict({"train": table}).save_to_disk(folder / "saved_dict")
    table.to_parquet(folder / "rows.parquet")
    table.to_csv(folder / "rows.csv", index=False)
    table.to_csv(folder / "rows.tsv", index=False, sep="\t")
    (folder / "rows.json").write_text(json.dumps(ROWS))
    write_jsonl(folder / "rows.jsonl")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "repository",
        "saved",
        "saved_dict",
        "rows.parquet",
        "rows.csv",
        "rows.tsv",
        "rows.json",
        "rows.jsonl",
    ],
)
def test_local_forms_agree(sources, name):
    assert huggingface_text(sources / name, split="train") == TEXTS


def test_limit_and_streaming(sources, tmp_path):
    path = write_jsonl(tmp_path / "many.jsonl", [{"body": f"t{i}"} for i in range(50)])
    assert huggingface_text(path, column="body", limit=3) == ["t0", "t1", "t2"]
    texts = stream_huggingface_text(path, column="body")
    assert next(texts) == "t0" and sum(1 for _ in texts) == 49


def test_errors_name_what_is_wrong(sources, tmp_path):
    path = sources / "rows.jsonl"
    with pytest.raises(InvalidArgumentError, match="no column 'body'; it has 'text', 'n'"):
        huggingface_text(path, column="body")
    with pytest.raises(InvalidArgumentError, match="must hold text, got int"):
        huggingface_text(path, column="n")
    with pytest.raises(InvalidArgumentError, match="test"):
        huggingface_text(path, split="test")
    with pytest.raises(InvalidArgumentError, match="test"):
        huggingface_text(sources / "saved_dict", split="test")
    with pytest.raises(InvalidArgumentError, match="other"):
        huggingface_text(sources / "repository", config="other")
    with pytest.raises(InvalidArgumentError, match="must be a file ending in"):
        (tmp_path / "a.bin").write_text("x")
        huggingface_text(tmp_path / "a.bin")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgumentError, match="data files"):
        huggingface_text(tmp_path / "empty")
    with pytest.raises(NotEnoughDataError, match="is empty"):
        huggingface_text(write_jsonl(tmp_path / "blank.jsonl", [{"text": ""}]))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not parquet")
    with pytest.raises((CorruptedFileError, InvalidArgumentError)):
        huggingface_text(tmp_path / "broken.parquet")


def test_offline_is_one_clear_error():
    code = (
        "import lens_linear.text as t\n"
        "from lens_linear.errors import OfflineError\n"
        "for call in (lambda: t.huggingface_text('stanfordnlp/imdb', split='train'),\n"
        "             lambda: t.load_concept('imdb')):\n"
        "    try:\n"
        "        call()\n"
        "    except OfflineError as error:\n"
        "        print('OFFLINE', error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("OFFLINE dataset 'stanfordnlp/imdb'") == 2
    assert "pass the path" in run.stdout and "Traceback" not in run.stderr


def test_a_missing_library_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(OfflineError, match="pip install datasets"):
        huggingface_text("anything/at-all")


def test_a_connection_lost_on_the_way_is_an_offline_error(monkeypatch):
    def rows():
        yield {"text": "a"}
        raise ConnectionError("gone")

    monkeypatch.setattr(huggingface, "_open", lambda *_: rows())
    texts = stream_huggingface_text("some/name")
    assert next(texts) == "a"
    with pytest.raises(OfflineError, match="some/name"):
        next(texts)
