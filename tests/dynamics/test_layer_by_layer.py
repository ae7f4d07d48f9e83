"""Mean products of several batches, layer after layer: what one batch gives, each block run once."""

import pytest
import torch
import transformers

import lens_linear as ll
from lens_linear.dynamics import block_jacobians
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.stand_ins import BlockStandIns

LENGTHS = [7, 3, 9, 5, 9]
SMALL = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}


def prompts(n_vocab=60):
    g = torch.Generator().manual_seed(1)
    return [torch.randint(n_vocab, (n,), generator=g) for n in LENGTHS]


def saved(kind, config, folder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    return ll.load(folder)


MODELS = {
    "LN": lambda _: ll.toy_model(n_layers=3, d_model=16, attn_only=False, norm="LN"),
    "attention only": lambda _: ll.toy_model(n_layers=4, d_model=16, positions="rotary"),
    "grouped, rotary": lambda folder: saved(
        transformers.LlamaForCausalLM, transformers.LlamaConfig(**SMALL), folder
    ),
    "whole prompts, a window": lambda folder: saved(
        transformers.MistralForCausalLM,
        transformers.MistralConfig(**SMALL, sliding_window=4),
        folder,
    ),
    "whole prompts, ALiBi": lambda folder: saved(
        transformers.BloomForCausalLM,
        transformers.BloomConfig(vocab_size=60, hidden_size=24, n_layer=3, n_head=4),
        folder,
    ),
}


def passes(model, call):
    """How often the attention of each block ran during a call."""
    runs = [0] * model.cfg.n_layers
    handles = [
        block.attn.register_forward_hook(lambda *_, at=at: runs.__setitem__(at, runs[at] + 1))
        for at, block in enumerate(model.blocks)
    ]
    try:
        call()
        return runs
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", MODELS)
def test_products_layer_after_layer_are_those_of_one_batch(name, tmp_path):
    model = MODELS[name](tmp_path)
    whole = block_jacobians(model, prompts())
    parts = block_jacobians(model, prompts(), batch_size=2)
    assert (whole.n_batches, parts.n_batches) == (1, 3)
    g = torch.Generator().manual_seed(2)
    vectors = torch.randn(model.cfg.n_layers, 5, model.cfg.d_model, generator=g).double()
    want = whole.mean_push(vectors)
    found = [push(v) for push, v in zip(parts.mean_pushes(), vectors, strict=True)]
    torch.testing.assert_close(
        torch.stack(found), want, rtol=1e-4, atol=1e-5 * float(want.abs().max())
    )
    first = [push(v) for push, v in zip(whole.mean_pushes(), vectors, strict=True)]
    torch.testing.assert_close(torch.stack(first), want)


@pytest.mark.parametrize("name", ["LN", "grouped, rotary"])
def test_no_block_runs_for_a_later_one(name, tmp_path):
    """Three batches: a block runs on whole prompts, and on last tokens for the graph."""
    model = MODELS[name](tmp_path)
    maps = block_jacobians(model, prompts(), batch_size=2)
    vectors = torch.ones(1, model.cfg.d_model, dtype=torch.float64)
    seen = passes(model, lambda: [push(vectors) for push in maps.mean_pushes()])
    learnt = 2  # runs on two tokens, of which blocks return a stream
    rotation = int(name != "LN")
    assert max(seen) <= 2 * 3 + learnt + rotation and min(seen) >= 2 * 3


def test_streams_too_large_for_memory_or_blocks_that_cannot_run_alone(monkeypatch):
    model = MODELS["LN"](None)
    vectors = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0)).double()
    want = block_jacobians(model, prompts()).mean_push(vectors)
    many = block_jacobians(model, prompts() * 40, batch_size=1)  # 200 streams, one batch alive
    assert many._first_streams(list(many.prompts.batches(1))) == []
    few = block_jacobians(model, prompts(), batch_size=1)
    assert len(few._first_streams(list(few.prompts.batches(1)))) == 5

    def refused(self, model):
        raise UnsupportedModelError("these blocks return no stream")

    monkeypatch.setattr(BlockStandIns, "__init__", refused)
    for maps in (many, few):
        found = torch.stack([push(v) for push, v in zip(maps.mean_pushes(), vectors, strict=True)])
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
