"""A function in a block's place equals the edit that overwrites it, and the block does not run."""

import threading

import pytest
import torch
from architectures import save_random

import lens_linear as ll
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.capture import run
from lens_linear.models.checked import checked
from lens_linear.models.stand_ins import BlockStandIns

NAMES = ["native", "gpt2", "neox", "gemma2", "llama", "opt", "bloom", "mpt", "granite"]


@pytest.mark.parametrize("name", NAMES)
def test_a_stand_in_equals_the_edit_and_the_block_does_not_run(name, tmp_path):
    if name == "native":
        model = ll.toy_model(n_layers=3, d_model=16, attn_only=False, seed=0)
    else:
        model = ll.load(save_random(name, tmp_path, scale=0.3))
    ids = torch.randint(1, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    last = model.cfg.n_layers - 1
    whole = run(model, ids, record=[(layer, "resid_post") for layer in range(last + 1)])
    turn = torch.randn(
        model.cfg.d_model, model.cfg.d_model, generator=torch.Generator().manual_seed(1)
    )
    seen = []

    def keep(x):
        seen.append(x)

    edits = [((0, "resid_pre"), keep), ((0, "resid_post"), lambda _: torch.tanh(seen[-1] @ turn))]
    expected = run(model, ids, edits=edits).logits
    assert not torch.allclose(expected, whole.logits, atol=1e-3)
    stand_ins = BlockStandIns(checked(model))
    ran = []
    handles = [
        block.register_forward_hook(lambda *_, at=at: ran.append(at))
        for at, part in enumerate(model.blocks)
        for block in [next(iter(part.original_component.children()))]
    ]
    with stand_ins.applied({0: lambda x: torch.tanh(x @ turn)}):
        torch.testing.assert_close(run(model, ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert 0 not in ran and last in ran
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(run(model, ids).logits, whole.logits, atol=0, rtol=0)
    further = stand_ins.advance(ids, whole[(last - 1, "resid_post")], last)
    torch.testing.assert_close(further, whole[(last, "resid_post")], atol=1e-6, rtol=1e-6)


def test_blocks_come_back_after_an_error():
    model, ids = ll.toy_model(n_layers=2, seed=0), torch.arange(6)[None]
    before = run(model, ids).logits

    def fail(_x):
        raise KeyError("mine")

    with (
        pytest.raises(UnsupportedModelError, match="mine"),
        BlockStandIns(checked(model)).applied({1: fail}),
    ):
        run(model, ids)
    assert torch.equal(run(model, ids).logits, before)


def test_another_thread_waits_until_the_blocks_are_back():
    model, ids = ll.toy_model(n_layers=2, seed=0), torch.arange(6)[None]
    before, found = run(model, ids).logits, []
    other = threading.Thread(target=lambda: found.append(run(model, ids).logits))
    with BlockStandIns(checked(model)).applied({0: torch.zeros_like}):
        other.start()
        other.join(0.5)
        assert found == [] and not torch.equal(run(model, ids).logits, before)
    other.join(60)
    assert torch.equal(found[0], before)
