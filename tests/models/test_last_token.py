"""One-token runs against whole prompts, and Jacobian products against central differences."""

import pytest
import torch

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError
from lens_linear.models.capture import residual_stream
from lens_linear.models.frozen.frozen_context import freeze_context
from lens_linear.models.open.toy import toy_model

LENGTHS = torch.tensor([9, 4, 1])


def tokens_for(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(min(90, model.cfg.d_vocab), (3, 9), generator=generator)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def shapes():
    yield toy_model(n_layers=2, norm="none", attn_only=True)
    yield toy_model(n_layers=2, norm="LN", attn_only=False, positions="rotary")
    yield toy_model(n_layers=2, norm="RMS", attn_only=False, gated=True, activation="silu")
    yield toy_model(n_layers=2, norm="LNPre", attn_only=False, positions="none")


def check_against_whole_prompts(model):
    tokens = tokens_for(model)
    short = freeze_context(model, tokens, LENGTHS)
    whole = freeze_context(model, tokens, LENGTHS, path="full")
    assert short.path == "cache" and whole.path == "full"
    n_layers, d_model = short.n_layers, short.states.shape[-1]
    amplitudes, directions = draw(2, 3, n_layers), draw(n_layers, d_model, seed=1)
    a, b = short.outputs(amplitudes, directions), whole.outputs(amplitudes, directions)
    assert float((a - b).norm() / b.norm()) < 1e-5
    still = short.outputs(0 * amplitudes, directions)[0]
    assert float((still - short.states[-1]).norm() / still.norm()) < 1e-5
    vectors = draw(n_layers, 2, 3, d_model, seed=2)
    for product in ("push", "pull"):
        a = getattr(short.jacobians(), product)(vectors)
        b = getattr(whole.jacobians(), product)(vectors)
        assert float((a - b).norm() / b.norm()) < 1e-4


def test_one_token_runs_equal_whole_prompts_on_other_architectures(foreign):
    check_against_whole_prompts(foreign)


@pytest.mark.parametrize("index", range(4))
def test_one_token_runs_equal_whole_prompts_on_native_shapes(index):
    check_against_whole_prompts(list(shapes())[index])


def test_one_token_runs_equal_whole_prompts_on_a_third_party_model(stories_model):
    check_against_whole_prompts(stories_model)


def test_whole_prompts_may_fill_the_context():
    model = toy_model(n_layers=2, n_ctx=9, attn_only=False)
    context = freeze_context(model, tokens_for(model), LENGTHS, path="full")
    still = context.outputs(torch.zeros(4, 3, 2), draw(2, 32))
    torch.testing.assert_close(still, context.states[-1].expand(4, -1, -1))


def test_states_are_the_residual_stream_of_the_last_real_token():
    model = toy_model(n_layers=3, norm="LN", attn_only=False)
    tokens = tokens_for(model)
    stream = residual_stream(model, tokens)
    context = freeze_context(model, tokens, LENGTHS)
    for prompt, length in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(context.states[:, prompt], stream[:, prompt, length - 1])


def test_what_stands_after_the_end_is_never_read():
    model = toy_model(n_layers=2, norm="LN", attn_only=False)
    tokens = tokens_for(model)
    other = tokens.clone()
    for prompt, length in enumerate(LENGTHS.tolist()):
        other[prompt, length:] = 7
    for path in ("cache", "full"):
        a = freeze_context(model, tokens, LENGTHS, path=path)
        b = freeze_context(model, other, LENGTHS, path=path)
        torch.testing.assert_close(a.states, b.states)
        torch.testing.assert_close(
            a.outputs(torch.ones(1, 3, 2), draw(2, 32)), b.outputs(torch.ones(1, 3, 2), draw(2, 32))
        )


@pytest.mark.parametrize("path", ["cache", "full"])
def test_products_are_the_blocks_jacobians(path):
    model = toy_model(n_layers=2, d_model=8, n_heads=2, norm="LN", attn_only=False).double()
    context = freeze_context(model, tokens_for(model), LENGTHS, path=path)
    maps = context.jacobians()
    tangents = draw(2, 3, 3, 8, dtype=torch.float64)
    found = maps.push(tangents)
    # Block 1 alone: with nothing after it, a step at layer 1 moves the output by A_1 t.
    step = 1e-5
    for direction in range(3):
        for prompt in range(3):
            vectors = torch.zeros(2, 8, dtype=torch.float64)
            vectors[1] = tangents[1, direction, prompt]
            amplitudes = torch.zeros(2, 3, 2, dtype=torch.float64)
            amplitudes[0, prompt, 1], amplitudes[1, prompt, 1] = step, -step
            ends = context.outputs(amplitudes, vectors)[:, prompt]
            torch.testing.assert_close(
                found[1, direction, prompt], (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-8
            )
    cotangents = draw(2, 3, 3, 8, seed=1, dtype=torch.float64)
    inner = (found * cotangents).sum(-1)
    torch.testing.assert_close(inner, (tangents * maps.pull(cotangents)).sum(-1))
    torch.testing.assert_close(maps.push(tangents[1:, :1], layers=[1]), found[1:, :1])


def test_gradients_reach_the_amplitudes():
    model = toy_model(n_layers=2, d_model=8, n_heads=2, norm="LN", attn_only=False).double()
    context = freeze_context(model, tokens_for(model), LENGTHS)
    directions = draw(2, 8, dtype=torch.float64)
    u = draw(1, 3, 2, seed=3, dtype=torch.float64)

    def total(amplitudes):
        return context.outputs(amplitudes, directions).sum()

    torch.autograd.gradcheck(total, u.requires_grad_(), eps=1e-6, atol=1e-6)


def bloom(folder):
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4)
        transformers.BloomForCausalLM(config).save_pretrained(folder)
    return ll.load(folder)


def test_position_biases_are_noticed_and_run_on_whole_prompts(tmp_path):
    model = bloom(tmp_path)
    tokens = tokens_for(model)
    context = freeze_context(model, tokens, LENGTHS)
    assert context.path == "full"
    found = context.outputs(torch.zeros(1, 3, 2), draw(2, 32))[0]
    torch.testing.assert_close(found, context.states[-1])
    with pytest.raises(UnsupportedModelError, match="attends in a way not rebuilt"):
        freeze_context(model, tokens, LENGTHS, path="cache")


def test_a_sliding_window_is_noticed(tmp_path):
    import transformers

    config = transformers.MistralConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        sliding_window=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.MistralForCausalLM(config).save_pretrained(tmp_path)
    model = ll.load(tmp_path)
    tokens = tokens_for(model)
    assert freeze_context(model, tokens, LENGTHS).path == "full"
    inside = torch.tensor([4, 3, 1])  # as long as the window holds all of it, nothing is different
    assert freeze_context(model, tokens[:, :4], inside).path == "cache"


@pytest.mark.parametrize("kind", ["Qwen3", "Olmo2"])
def test_norms_on_queries_and_keys_are_the_models_own(kind, tmp_path):
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = getattr(transformers, f"{kind}ForCausalLM")(config)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        network.save_pretrained(tmp_path)
    check_against_whole_prompts(ll.load(tmp_path))


def test_bad_lengths_and_models_are_refused():
    model = toy_model()
    with pytest.raises(InvalidArgumentError, match="lengths must lie between"):
        freeze_context(model, tokens_for(model), torch.tensor([9, 0, 3]))
    with pytest.raises(InvalidArgumentError, match="lengths must lie between"):
        freeze_context(model, tokens_for(model), torch.tensor([9, 3]))
    with pytest.raises(UnsupportedModelError, match="no blocks"):
        freeze_context(toy_model(n_layers=0), torch.zeros(1, 3).long(), torch.tensor([3]))
