import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_linear.errors import CorruptedFileError, InvalidArgumentError, NotEnoughDataError
from lens_linear.text import (
    _rows,
    batches,
    default_stories,
    default_text,
    pack,
    read_documents,
    read_text,
)


def stories_or_skip():
    try:
        return default_stories()
    except CorruptedFileError:
        pytest.skip("text/data/stories.txt is not written yet")


class TestOwnStories:
    def test_they_are_many_and_varied(self):
        stories = stories_or_skip()
        assert len(stories) >= 10 and len(set(stories)) == len(stories)
        assert all(len(story) > 200 and "* * *" not in story for story in stories)

    def test_the_text_is_all_of_them(self):
        stories = stories_or_skip()
        text = default_text()
        assert len(text.encode()) >= 50_000
        assert all(story in text for story in stories)
        assert "\0" not in text and "\r" not in text and "�" not in text

    def test_a_broken_installation_says_so(self, monkeypatch, tmp_path):
        monkeypatch.setattr(_rows, "files", lambda _: tmp_path)
        with pytest.raises(CorruptedFileError, match=r"stories\.txt.*install"):
            default_text()

    def test_the_format(self, monkeypatch, tmp_path):
        (tmp_path / "data").mkdir()
        text = "One.\nStill one.\n\n* * *\n\nTwo.\n * * * \n* * *\nThree.\n"
        (tmp_path / "data" / "stories.txt").write_text(text)
        monkeypatch.setattr(_rows, "files", lambda _: tmp_path)
        assert default_stories() == ["One.\nStill one.", "Two.", "Three."]
        assert default_text() == "One.\nStill one.\n\nTwo.\n\nThree."


class TestFiles:
    rows = ({"text": 'a, "b"\nc', "n": "1"}, {"text": " ", "n": "2"}, {"text": "é", "n": "3"})

    def write(self, path):
        suffix = path.suffix
        if suffix == ".jsonl":
            path.write_text("\n".join(map(json.dumps, self.rows)) + "\n\n", encoding="utf-8")
        elif suffix == ".json":
            path.write_text(json.dumps(self.rows), encoding="utf-8")
        else:
            import csv

            with path.open("w", newline="", encoding="utf-8") as file:
                separator = "," if suffix == ".csv" else "\t"
                writer = csv.DictWriter(file, ["text", "n"], delimiter=separator)
                writer.writeheader()
                writer.writerows(self.rows)
        return path

    @pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
    def test_tables(self, tmp_path, suffix):
        path = self.write(tmp_path / f"rows{suffix}")
        assert read_documents(path) == ['a, "b"\nc', "é"]
        assert read_text(str(path)) == 'a, "b"\nc\n\né'
        assert read_documents(path, column="n") == ["1", "2", "3"]
        with pytest.raises(InvalidArgumentError, match="no column 'body'; it has 'text', 'n'"):
            read_text(path, column="body")

    @pytest.mark.parametrize("name", ["a.txt", "a.md", "A.TXT"])
    def test_plain_text(self, tmp_path, name):
        path = tmp_path / name
        path.write_bytes("\ufeffÉté\r\nnull\rNA\n".encode())
        assert read_text(path) == "Été\nnull\nNA\n"

    def test_csv_keeps_words_that_look_like_missing_values(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text("text\nNA\nnull\nnan\n007\n")
        assert read_documents(path) == ["NA", "null", "nan", "007"]

    def test_large_csv_fields_are_read(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text("text\n" + "x" * 200_000 + "\n")
        assert len(read_text(path)) == 200_000

    @pytest.mark.parametrize(
        "name, data, error, words",
        [
            ("a.txt", b"", NotEnoughDataError, "empty"),
            ("a.txt", b" \n\t\n", NotEnoughDataError, "empty"),
            ("a.txt", b"abc\0def", CorruptedFileError, "zero byte at 3"),
            ("a.txt", b"abc\xff", CorruptedFileError, "at byte 3"),
            ("a.txt", "é".encode("latin-1"), CorruptedFileError, "UTF-8"),
            ("a.parquet", b"PAR1\0", CorruptedFileError, "binary"),
            ("a.jsonl", b'{"text": "a"}\n{oops\n', CorruptedFileError, "line 2"),
            ("a.jsonl", b'["a"]\n', CorruptedFileError, "JSON object"),
            ("a.jsonl", b'{"text": 3}\n', InvalidArgumentError, "must hold text, got int"),
            ("a.jsonl", b'{"text": ""}\n', NotEnoughDataError, "every row is empty"),
            ("a.json", b'{"text": "a"}', CorruptedFileError, "list of objects"),
            ("a.json", b"[]", NotEnoughDataError, "has none"),
            ("a.json", b"[", CorruptedFileError, "not JSON"),
            ("a.csv", b"text\n", NotEnoughDataError, "has none"),
            ("a.csv", b'text,n\n"a,1\n', CorruptedFileError, "not a table"),
            ("a.csv", b"a,b\n1,2,3\n4,5,6,7\n", CorruptedFileError, "not a table"),
        ],
    )
    def test_each_bad_file_has_its_own_error(self, tmp_path, name, data, error, words):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(error, match=words):
            read_text(path)

    def test_missing_file_and_folder(self, tmp_path):
        for path in (tmp_path / "none.txt", tmp_path):
            with pytest.raises(InvalidArgumentError, match=r"file that exists|is a folder"):
                read_text(path)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 99), max_size=40), length=st.integers(1, 9))
def test_pack_loses_only_the_rest(ids, length):
    n = len(ids) // length
    if n:
        rows = pack(ids, length)
        assert rows.dtype == torch.int64 and rows.shape == (n, length)
        assert rows.flatten().tolist() == ids[: n * length]
    else:
        with pytest.raises(NotEnoughDataError, match=f"{len(ids)} tokens"):
            pack(ids, length)
    if ids:
        padded = pack(ids, length, drop_last=False, pad=99).flatten().tolist()
        assert padded[: len(ids)] == ids and set(padded[len(ids) :]) <= {99}
        assert len(padded) - len(ids) < length


def test_pack_takes_arrays_and_refuses_what_is_not_a_run_of_ids():
    expected = [[0, 1], [2, 3]]
    for ids in (range(5), np.arange(5), torch.arange(5), np.arange(5, dtype=np.uint16)):
        assert pack(ids, 2).tolist() == expected
    for ids, words in (
        ([[1, 2], [3]], "flat list"),
        ([[1, 2], [3, 4]], "flat list"),
        ([0.5, 1.0], "flat list"),
        ("abc", "flat list"),
        ([3, -1], "ids >= 0"),
        ([torch.zeros(0, dtype=torch.long), pd.DataFrame({"x": ["a"]})], "flat list"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            pack(ids, 1)
    with pytest.raises(InvalidArgumentError, match="pad must be given"):
        pack([1, 2, 3], 2, drop_last=False)


def test_batches_go_through_every_row_once():
    tokens = pack(range(44), 4)
    assert torch.equal(torch.cat(list(batches(tokens, 3))), tokens)
    assert [len(b) for b in batches(tokens, 3, drop_last=True)] == [3, 3, 3]
    shuffled = torch.cat(list(batches(tokens, 3, seed=1)))
    assert not torch.equal(shuffled, tokens)
    assert torch.equal(shuffled.sort(dim=0).values, tokens)
    assert torch.equal(shuffled, torch.cat(list(batches(tokens, 5, seed=1))))
    assert not torch.equal(shuffled, torch.cat(list(batches(tokens, 3, seed=2))))
