"""Batches are cut by memory, lack of memory is called that, and progress moves inside a batch."""

import pytest
import torch

import lens_linear as ll
from lens_linear.errors import InsufficientMemoryError
from lens_linear.linalg import memory
from lens_linear.models import batch_memory
from lens_linear.models.batch_memory import sequence_bytes, sequences_a_pass
from lens_linear.models.capture import run, visit_sites
from lens_linear.models.checked import checked
from lens_linear.stats import as_rows, score_model


@pytest.fixture(scope="module")
def model():
    return ll.toy_model(n_layers=3, n_heads=4, d_model=32, attn_only=False, d_vocab=64, n_ctx=512)


def only(monkeypatch, n_bytes):
    monkeypatch.setattr(memory, "free_bytes", lambda device="cpu": n_bytes)
    monkeypatch.setattr(batch_memory, "free_bytes", lambda device="cpu": n_bytes)


def test_a_batch_holds_what_half_of_the_free_memory_holds(model, monkeypatch):
    attention, ffn, stream = 3 * 4 * 500**2 * 4, 3 * 500 * 128 * 4, 8 * 500 * 32 * 4
    assert (
        sequence_bytes(checked(model), 500) == attention + ffn + stream
    )  # above the 500 · 64 · 8 of the logits
    only(monkeypatch, 2 * 5 * (attention + ffn + stream))
    assert sequences_a_pass(checked(model), 500) == 5
    assert (
        sequences_a_pass(checked(model), 16) == 256
    )  # short rows: no more than a pass makes use of
    assert sequences_a_pass(checked(model), 500, 7) == 7  # the caller's own number
    monkeypatch.setattr(
        model.cfg, "d_vocab", 2**17
    )  # a large vocabulary: a quarter of a gigabyte of logits
    only(monkeypatch, 2**40)
    assert (
        sequences_a_pass(checked(model), 128) == 2
        and sequences_a_pass(checked(model), 128, logits=False) == 32
    )
    monkeypatch.undo()
    only(monkeypatch, attention)
    with pytest.raises(
        InsufficientMemoryError, match=r"500 tokens needs about 12\.7 MiB .*length=256"
    ):
        sequences_a_pass(checked(model), 500)


def test_bytes_are_those_of_the_widest_weights_and_the_logits_if_they_are_most(model, monkeypatch):
    wide = ll.toy_model(n_layers=1, n_heads=2, d_model=8, attn_only=True, n_ctx=40)
    wide.original_model.layers[0].attn.bfloat16()
    block = 4 * (3 * 2 * 40**2 + 3 * 40 * 32 + 8 * 40 * 8)
    assert sequence_bytes(checked(wide), 40, logits=False) == block
    monkeypatch.setattr(model.cfg, "d_vocab", 50_000)
    assert sequence_bytes(checked(model), 500) == 500 * 50_000 * (4 + 4)


def test_a_batch_of_a_wide_model_stays_in_the_caches(monkeypatch):
    wide = ll.toy_model(n_layers=1, n_heads=12, d_model=768, attn_only=False, n_ctx=512)
    only(monkeypatch, 2**40)
    block = 3 * 12 * 256**2 * 4 + 3 * 256 * 4 * 768 * 4 + 8 * 256 * 768 * 4
    assert sequences_a_pass(checked(wide), 256) == 2**27 // block == 5


def test_the_default_batch_follows_the_memory(model, monkeypatch):
    ids = torch.randint(64, (6, 300), generator=torch.Generator().manual_seed(0))
    whole = score_model(model, as_rows(model, ids)).loss
    only(monkeypatch, 2 * 2 * sequence_bytes(checked(model), 300, logits=False))
    sizes = []
    visit_sites(
        model, ids, lambda layer, site, x, y: sizes.append(len(x)), sites=("block",), layers=[0]
    )
    assert sizes == [2, 2, 2]
    assert score_model(model, as_rows(model, ids)).loss.values.tolist() == pytest.approx(
        whole.values.tolist(), abs=1e-6
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_a_lack_of_memory_is_called_that_with_the_argument_that_helps(model, error):
    def fail(_):
        raise error

    with pytest.raises(InsufficientMemoryError, match=r"shape \(2, 5\); pass a smaller batch_size"):
        run(model, torch.arange(10).reshape(2, 5), edits=[((1, "resid_pre"), fail)])


def test_progress_moves_inside_a_batch(model):
    ids = torch.randint(64, (6, 10), generator=torch.Generator().manual_seed(0))
    seen = []
    visit_sites(
        model, ids, lambda *_: None, sites=("block",), batch_size=4, on_progress=seen.append
    )
    expected = [4 * k / 3 for k in range(3)] + [4 + 2 * k / 3 for k in range(3)]
    assert seen == pytest.approx(expected)
    share = []
    score_model(model, as_rows(model, ids), batch_size=3, on_progress=share.append)
    assert share == pytest.approx([k / 6 for k in range(6)])
