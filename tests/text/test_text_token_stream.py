import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_linear.errors import (
    CorruptedFileError,
    InvalidArgumentError,
    NotEnoughDataError,
    OfflineError,
)
from lens_linear.text import TokenStream, batches, pack


@settings(max_examples=40, deadline=None)
@given(
    chunks=st.lists(st.lists(st.integers(0, 69_999), max_size=9), max_size=6),
    length=st.integers(1, 7),
    big=st.booleans(),
)
def test_equal_to_the_packed_tensor(tmp_path_factory, chunks, length, big):
    n_vocab = 70_000 if big else 60_000
    chunks = [[i % n_vocab for i in chunk] for chunk in chunks]
    ids = [i for chunk in chunks for i in chunk]
    path = tmp_path_factory.mktemp("stream") / "a.bin"
    if len(ids) < length:
        with pytest.raises(NotEnoughDataError, match="one row needs"):
            TokenStream.write(path, chunks, length=length, n_vocab=n_vocab)
        assert list(path.parent.iterdir()) == []
        return
    stream = TokenStream.write(path, chunks, length=length, n_vocab=n_vocab)
    rows = pack(ids, length)
    assert path.stat().st_size == 512 + len(ids) * (4 if big else 2)
    assert len(stream) == len(rows) and stream.shape == rows.shape and stream.ndim == 2
    assert torch.equal(stream[:], rows) and stream[:].dtype == torch.int64
    assert torch.equal(torch.stack(list(stream)), rows)


def test_every_index_that_a_tensor_takes(tmp_path):
    rows = pack(range(60), 5)
    stream = TokenStream.write(tmp_path / "a.bin", [rows.flatten()], length=5, n_vocab=60)
    for index in (
        0,
        -1,
        slice(2, 5),
        slice(None, None, 3),
        slice(50, 60),
        [1, 1, 0],
        torch.tensor([3, 2]),
        torch.tensor(4),
        torch.arange(12) % 2 == 0,
        (slice(0, 3), slice(1, None)),
        np.int64(3),
    ):
        tensor_index = torch.as_tensor(index) if isinstance(index, (list, np.int64)) else index
        assert torch.equal(stream[index], rows[tensor_index]), index
    for index in (12, -13):
        with pytest.raises(IndexError, match="12 rows"):
            stream[index]
    assert torch.equal(torch.cat(list(batches(stream, 4))), rows)
    assert torch.equal(
        torch.cat(list(batches(stream, 4, seed=3))), torch.cat(list(batches(rows, 4, seed=3)))
    )


def test_what_is_returned_is_a_copy(tmp_path):
    stream = TokenStream.write(tmp_path / "a.bin", [range(10)], length=5, n_vocab=10)
    stream[0].zero_()
    stream[:].zero_()
    assert stream[0].tolist() == [0, 1, 2, 3, 4]


def test_row_length_is_chosen_on_opening(tmp_path):
    path = tmp_path / "a.bin"
    TokenStream.write(path, [range(10)], length=5, n_vocab=10)
    stream = TokenStream(path, length=3)
    assert stream[:].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert stream.n_tokens == 10 and stream.n_vocab == 10
    assert "3 rows of 3 tokens" in repr(stream)
    with pytest.raises(NotEnoughDataError, match="at most the 10 tokens"):
        TokenStream(path, length=11)


def test_only_the_asked_rows_are_read(tmp_path):
    # A sparse file of 600 MB stands in for a corpus larger than memory.
    path = tmp_path / "a.bin"
    TokenStream.write(path, [range(4)], length=4, n_vocab=10)
    header = path.read_bytes()[:512].replace(b'"n_tokens": 4', b'"n_tokens": 300000000')
    with path.open("r+b") as file:
        file.write(header[:512].rstrip().ljust(511) + b"\n")
        file.truncate(512 + 2 * 300_000_000)
    stream = TokenStream(path, length=1000)
    assert stream.shape == (300_000, 1000)
    assert stream[0, :4].tolist() == [0, 1, 2, 3] and int(stream[-1].sum()) == 0


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    TokenStream.write(path, [range(10)], length=5, n_vocab=10)
    before = path.read_bytes()

    def stops(error):
        yield [1, 2, 3]
        raise error

    for error in (KeyboardInterrupt(), OfflineError("no network"), RuntimeError("boom")):
        with pytest.raises(type(error)):
            TokenStream.write(path, stops(error), length=5, n_vocab=10)
    with pytest.raises(InvalidArgumentError, match="below n_vocab = 10, got 10"):
        TokenStream.write(path, [[1], [10]], length=1, n_vocab=10)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.bin"
    for data in (b"", b"hello", b"\xff" * 600, b'{"format": "other"}'.ljust(600)):
        path.write_bytes(data)
        with pytest.raises(CorruptedFileError, match=r"TokenStream\.write"):
            TokenStream(path, length=2)
    TokenStream.write(path, [range(10)], length=5, n_vocab=10)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptedFileError, match="cut short"):
        TokenStream(path, length=2)
    with pytest.raises(InvalidArgumentError, match="folder"):
        TokenStream.write(tmp_path / "no" / "a.bin", [range(9)], length=2, n_vocab=10)
