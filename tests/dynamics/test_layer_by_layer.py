"""Mean products of several batches, layer after layer: what one batch gives, each block run once."""

import pytest
import torch
import transformers

import lens_linear as ll
from lens_linear.dynamics import block_jacobians, random_directions
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.checked import checked
from lens_linear.models.hooks import edited
from lens_linear.models.stand_ins import lone_blocks

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
    learnt = 3  # on two tokens, and on one row whole and alone: whether blocks can run alone
    rotation = int(name != "LN")
    assert max(seen) <= 2 * 3 + learnt + rotation and min(seen) >= 2 * 3


def test_streams_too_large_for_memory_are_not_carried():
    model = MODELS["LN"](None)
    many = block_jacobians(model, prompts() * 40, batch_size=1)  # 200 streams, one batch alive
    few = block_jacobians(model, prompts(), batch_size=1)
    row = torch.tensor([0])
    assert many._lone_blocks(row) is None and few._lone_blocks(row) is not None
    vectors = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0)).double()
    found = [push(v) for push, v in zip(many.mean_pushes(), vectors, strict=True)]
    want = block_jacobians(model, prompts()).mean_push(vectors)
    torch.testing.assert_close(torch.stack(found), want, rtol=1e-5, atol=1e-6)


def test_blocks_that_read_more_than_the_stream_are_not_run_alone():
    """The last block adds what the first one wrote, as one that shares keys and values would."""
    model = MODELS["LN"](None)
    tokens, seen = prompts()[0][None], []
    first, last = (model.blocks[at].original_component for at in (0, 2))
    assert lone_blocks(checked(model), tokens) is not None
    handles = [
        first.register_forward_hook(lambda _m, given, out: seen.append(out[0] - given[0])),
        last.register_forward_hook(lambda _m, _given, out: (out[0] + 3 * seen[-1], *out[1:])),
    ]
    try:
        assert lone_blocks(checked(model), tokens) is None
        rows = torch.randint(60, (20, 16), generator=torch.Generator().manual_seed(3))
        with pytest.raises(UnsupportedModelError, match="beside the residual stream"):
            ll.replacement_curve(model, rows, "linear+distill")
        assert len(ll.replacement_curve(model, rows, "linear").steps) == 4
    finally:
        for handle in handles:
            handle.remove()
    with edited(model, [((1, "resid_pre"), lambda x: 2 * x)]):
        assert lone_blocks(checked(model), tokens) is None
    with edited(model, [((1, "resid_pre"), lambda x: None)]):  # looks, and changes nothing
        assert lone_blocks(checked(model), tokens) is not None


def test_streams_beyond_the_largest_half_number_are_compared():
    """float16 ends at 65,504: the norm of such a stream is infinite in it, and so is any difference."""
    model = ll.toy_model(n_layers=3, d_model=64, attn_only=False, norm="LN")
    with torch.no_grad():
        model.embed.weight.mul_(20_000 / model.embed.weight.abs().max())
    model, tokens = model.to(torch.float16), torch.arange(40)[None]
    assert lone_blocks(checked(model), tokens) is not None
    with edited(model, [((1, "resid_pre"), lambda x: 2 * x)]):
        assert lone_blocks(checked(model), tokens) is None


@pytest.mark.parametrize("batch_size", [None, 2])
def test_products_are_there_in_inference_mode(batch_size):
    model = MODELS["LN"](None)
    vectors = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(4)).double()
    maps = block_jacobians(model, prompts(), batch_size=batch_size)
    want = maps.mean_push(vectors), maps.mean_pull(vectors)
    with torch.inference_mode():
        maps = block_jacobians(model, prompts(), batch_size=batch_size)
        each = [push(v) for push, v in zip(maps.mean_pushes(), vectors.clone(), strict=True)]
        found = maps.mean_push(vectors.clone()), maps.mean_pull(vectors.clone())
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(torch.stack(each), want[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [5, 8, 16])
def test_principal_columns_beyond_the_states_do_not_depend_on_batches(order):
    """Five states span four directions around their mean; what a computer says beyond is rounding."""
    model = MODELS["LN"](None)
    directions = random_directions(model)
    whole, parts = (
        ll.fit_surrogate(model, prompts(), directions, order=order, basis="pca", batch_size=size)
        for size in (None, 2)
    )
    torch.testing.assert_close(parts.gains, whole.gains, rtol=1e-3, atol=1e-5)
