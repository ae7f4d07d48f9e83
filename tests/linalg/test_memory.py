import pytest
import torch

from lens_linear.errors import InsufficientMemoryError
from lens_linear.linalg.memory import free_bytes, groups, size_text, usable_bytes


@pytest.mark.parametrize(
    "n, each, most", [(5, 100.0, 250), (7, 10.0, 30), (4, 0.0, 3), (6, 8.0, 48)]
)
def test_groups_are_as_few_as_memory_holds_and_equal(n, each, most):
    found = groups(n, each, most, "cpu", what="a layer")
    assert [i for group in found for i in group] == list(range(n))
    assert max(map(len, found)) * max(each, 1) <= most
    assert len(found) == -(-n // int(most // max(each, 1)))
    assert len({len(group) for group in found[:-1]} | {len(found[0])}) == 1
    with pytest.raises(InsufficientMemoryError, match="max_memory=101"):
        groups(n, 100.5, 100, "cpu", what="a layer")


def test_memory_that_is_free(monkeypatch):
    assert usable_bytes() <= free_bytes() // 2 * 1.2 and free_bytes() > 1 << 20
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 1000))
    assert free_bytes("cuda") == 600 and usable_bytes(device="cuda") == 300


@pytest.mark.parametrize(
    "size, text",
    [(1023, "1023 B"), (1024, "1.0 KiB"), (1.5 * 2**30, "1.5 GiB"), (2**41, "2.0 TiB")],
)
def test_bytes_in_words(size, text):
    assert size_text(size) == text
