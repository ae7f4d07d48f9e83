"""Architectures that do something unusual: the right numbers, taken from transformers alone, or a reason."""

import functools

import numpy as np
import pytest
import torch
import transformers
from architectures import CONFIGS, UNUSUAL, as_hub_name, save_random
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

import lens_linear as ll
from lens_linear.circuits.heads.head_circuit import head_circuit
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.capture import run
from lens_linear.models.describe.weights import norm_scale, read_attention, read_weights
from lens_linear.models.frozen.attention_scores import attention_scores
from lens_linear.models.open.toy import toy_model

COMMON = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 48,
    "head_dim": 4,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
GPT2 = {"vocab_size": 61, "n_positions": 48, "n_embd": 16, "n_layer": 2, "n_head": 4}
OPT = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 24,
    "max_position_embeddings": 48,
    "word_embed_proj_dim": 16,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 2,
    "n_group": 1,
    "topk_group": 1,
}
SHAPES = {
    "gpt2 scaled by layer": ("GPT2", {**GPT2, "scale_attn_by_inverse_layer_idx": True}),
    "gpt2 unscaled": ("GPT2", {**GPT2, "scale_attn_weights": False}),
    "gpt-neo": (
        "GPTNeo",
        {
            "vocab_size": 61,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": 48,
        },
    ),
    "mistral": ("Mistral", {**COMMON, "sliding_window": 4}),
    "olmo clipped": ("Olmo", {**COMMON, "clip_qkv": 0.3}),
    "olmo2": ("Olmo2", COMMON),
    "cohere": ("Cohere", {**COMMON, "logit_scale": 0.3}),
    "granite": (
        "Granite",
        {
            **COMMON,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.7,
            "logits_scaling": 2.0,
        },
    ),
    "deepseek": ("DeepseekV3", {**COMMON, **LATENT}),
    "mamba": (
        "Mamba",
        {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    ),
    "gpt1": ("OpenAIGPT", GPT2),
    "opt, norms last": ("OPT", {**OPT, "do_layer_norm_before": False}),
    "opt, projected": (
        "OPT",
        {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 8},
    ),
    "codegen": ("CodeGen", {**GPT2, "rotary_dim": 4}),
}
TOKENS = torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(0))


def save(folder, name):
    kind, shape = SHAPES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**shape)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.25 * torch.randn_like(parameter))
    model.save_pretrained(folder)


@pytest.fixture(scope="module", params=["folder", "Hub name"])
def zoo(request, tmp_path_factory):
    """Each architecture from its folder, and by a Hub name whose snapshot lies in the local cache."""
    cache, patch = tmp_path_factory.mktemp("hub"), pytest.MonkeyPatch()

    @functools.cache
    def opened(name):
        folder = tmp_path_factory.mktemp("zoo")
        save(folder, name)
        plain = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager"
        ).eval()
        if request.param == "folder":
            return ll.load(folder), plain
        return ll.load(
            as_hub_name(cache, folder, name.replace(", ", "-").replace(" ", "-"), patch)
        ), plain

    yield opened
    patch.undo()


REFUSED = {"gpt2 unscaled", "opt, norms last", "codegen"}


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in REFUSED])
def test_logits_are_those_of_transformers(zoo, name):
    model, plain = zoo(name)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), plain(TOKENS).logits, atol=2e-5, rtol=1e-4)


OUTPUTS = ("o_proj", "out_proj", "c_proj")  # of attention: what reads the heads' mixed values
WITH_HEADS = [name for name in SHAPES if name not in REFUSED | {"mamba", "deepseek"}]
MEANS = {"mean": 0, "pooled": (0, 1)}
NO_DIRECT = {
    "olmo clipped": "clips",
    "gpt1": "never reached",
    "opt, projected": "a projection follows it",
}


@pytest.mark.parametrize("how", ["mean", "pooled", "zero"])
@pytest.mark.parametrize("name", WITH_HEADS)
def test_ablation_is_what_transformers_does_without_the_head(zoo, name, how):
    """Heads by a hook of torch on the model that transformers opens, by rows and by positions."""
    model, plain = zoo(name)
    task = ll.Task(TOKENS.flip(0).repeat(2, 1).roll(1, 1), labels=[5, 9, 13, 17], positions=-2)
    rows, right = task.tokens, torch.tensor([5, 9, 13, 17])
    readers = [
        part for place, part in plain.named_modules() if place.endswith(OUTPUTS) and "att" in place
    ]
    assert len(readers) == 2

    def loss(layer=None, head=None):
        def without(module, inputs):
            mixed = inputs[0].clone()
            part = mixed.unflatten(-1, (4, -1))[..., head, :]
            part.copy_(0 * part if how == "zero" else part.mean(MEANS[how], keepdim=True))
            return mixed, *inputs[1:]

        hook = None if layer is None else readers[layer].register_forward_pre_hook(without)
        with torch.no_grad():
            logits = plain(rows).logits[:, -2].double()
        if hook is not None:
            hook.remove()
        return float(torch.nn.functional.cross_entropy(logits, right))

    found = ll.circuits.ablation_scores(model, task, how=how).to_dataframe()
    expected = [
        loss(layer, head) - loss() for layer, head in zip(found.layer, found["index"], strict=True)
    ]
    assert max(map(abs, expected)) > 1e-3
    np.testing.assert_allclose(found.lost, expected, atol=3e-6)


@pytest.mark.parametrize("name", WITH_HEADS)
def test_direct_effects_sum_to_the_logits_of_transformers(zoo, name):
    model, plain = zoo(name)
    task = ll.Task(TOKENS, labels=[5, 9], positions=-1)
    if name in NO_DIRECT:
        with pytest.raises(UnsupportedModelError, match=NO_DIRECT[name]):
            ll.direct_logit_attribution(model, task)
        return
    found = ll.direct_logit_attribution(model, task)
    with torch.no_grad():
        logits = plain(TOKENS).logits[:, -1]
    assert found.max_error < 1e-5
    summed = float(found.to_dataframe()["logit"].sum())
    assert summed == pytest.approx(float(logits[[0, 1], [5, 9]].mean()), abs=1e-4)


def seen_plainly(plain, layers):
    """Inputs, outputs and logits by transformers alone; ``layers`` are its own modules."""
    seen, handles = {}, []
    for index, module in enumerate(layers):

        def keep(module, given, named, out, index=index):
            x = given[0] if given else named["hidden_states"]
            seen[index] = (x.double(), (out[0] if isinstance(out, tuple) else out).double())

        handles.append(module.register_forward_hook(keep, with_kwargs=True))
    with torch.no_grad():
        out = plain(TOKENS, output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen, out


@pytest.mark.parametrize("name", sorted({**CONFIGS, **UNUSUAL}))
def test_common_architectures_open_by_hub_name(name, tmp_path, monkeypatch):
    folder = save_random(name, tmp_path / "here")
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model = ll.load(as_hub_name(tmp_path / "hub", folder, name, monkeypatch))
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), plain(TOKENS).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2 scaled by layer", "gpt-neo", "mistral", "cohere"])
def test_scores_give_the_attention_of_transformers(zoo, name):
    model, plain = zoo(name)
    _, out = seen_plainly(plain, [])
    for layer, attention in enumerate(out.attentions):
        scores = attention_scores(model, TOKENS, layer)
        visible = torch.ones(12, 12).tril().bool()
        if name == "mistral" or (name == "gpt-neo" and layer == 1):
            visible &= ~torch.ones(12, 12).tril(-4).bool()  # four keys
        rebuilt = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        torch.testing.assert_close(rebuilt, attention.double(), atol=1e-5, rtol=1e-4)
    assert ll.qk_attribution(model, TOKENS, 1, 2).max_error < 1e-4


@pytest.mark.parametrize("name", ["cohere", "granite"])
def test_logits_come_from_the_folded_unembedding(zoo, name):
    model, plain = zoo(name)
    seen, out = seen_plainly(plain, plain.model.layers)
    weights, stream = read_weights(model), seen[1][1]
    scale = norm_scale(stream, weights.final_norm, weights.eps)
    torch.testing.assert_close(
        stream / scale @ weights.W_U + weights.b_U, out.logits.double(), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["granite", "olmo2"])
def test_heads_write_what_the_attention_adds(zoo, name):
    """Granite multiplies what is written; OLMo 2 reads the stream bare and normalises what is written."""
    model, plain = zoo(name)
    layer = plain.model.layers[1]
    inner = layer.post_attention_layernorm if name == "olmo2" else layer.self_attn
    seen, out = seen_plainly(plain, [layer, inner])
    weights, x = read_weights(model), seen[0][0]
    at = weights.attention
    values = torch.einsum("bpd,hde->bphe", x / norm_scale(x, weights.norm, weights.eps), at.W_V[1])
    z = torch.einsum("bhqk,bkhe->bqhe", out.attentions[1].double(), values + at.b_V[1])
    written = torch.einsum("bqhe,hed->bqd", z, at.W_O[1]) + at.b_O[1]
    if name == "olmo2":
        written = written / norm_scale(seen[1][0], "rms", weights.eps)
        expected = seen[1][1]
    else:
        expected = 0.3 * seen[1][1]
    torch.testing.assert_close(written, expected, atol=1e-5, rtol=1e-4)


def test_weights_that_are_not_what_attention_applies_are_refused(zoo):
    model, _ = zoo("olmo clipped")
    for call in (ll.composition_scores, lambda m: head_circuit(m, 0, 0)):
        with pytest.raises(UnsupportedModelError, match="clips, gates, quantises"):
            call(model)
    assert ll.induction_scores(model, rows_per_period=1)["target_logit"].isna().all()
    model, _ = zoo("olmo2")
    with pytest.raises(UnsupportedModelError, match="normalises queries and keys"):
        head_circuit(model, 0, 0).positional_qk(4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpt2 unscaled", "computes other logits"),
        ("opt, norms last", "cannot run it"),
        ("codegen", "cannot run it"),
    ],
)
def test_models_that_would_be_another_model_are_not_opened(tmp_path, name, reason):
    save(tmp_path, name)
    with pytest.raises(UnsupportedModelError, match=reason):
        ll.load(tmp_path)


def test_latent_attention_and_state_spaces_have_blocks_but_no_heads(zoo):
    directions = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    for name in ("deepseek", "mamba"):
        model, _ = zoo(name)
        exact = ll.gain_profile(model, TOKENS, directions).gains
        measured = ll.gain_profile(model, TOKENS, directions, "empirical", eps=1e-2).gains
        torch.testing.assert_close(exact, measured, atol=1e-2, rtol=2e-2)
        with pytest.raises(UnsupportedModelError, match="head analyses need ordinary attention"):
            ll.composition_scores(model)
    with pytest.raises(UnsupportedModelError, match="must have attention in every layer"):
        ll.induction_scores(zoo("mamba")[0])
    with pytest.raises(UnsupportedModelError, match="latent attention"):
        attention_scores(zoo("deepseek")[0], TOKENS, 0)


def test_what_is_never_reached_or_not_a_plain_row_is_refused(zoo):
    model, _ = zoo("gpt1")  # its blocks return lists, which no hook sees
    for call in (ll.linearity_profile, ll.layer_map, ll.replacement_curve):
        with pytest.raises(UnsupportedModelError, match="never reached"):
            call(model, TOKENS.repeat(12, 1))
    with pytest.raises(UnsupportedModelError, match="not a token row plus a position row"):
        head_circuit(zoo("opt, projected")[0], 0, 0)


def test_a_model_that_cannot_run_says_so_and_a_visitors_error_passes():
    model = toy_model()

    def broken(*_, **__):
        raise RuntimeError("no kernel")

    def clumsy(_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(model, TOKENS, edits=[((0, "resid_pre"), clumsy)])
    model.blocks[1].attn.original_component.forward = broken
    with pytest.raises(UnsupportedModelError, match=r"cannot run it \(RuntimeError: no kernel\)"):
        run(model, TOKENS)


def test_dropout_is_off_and_the_mode_comes_back(zoo):
    model, plain = zoo("gpt2 scaled by layer")
    expected, _ = seen_plainly(plain, plain.transformer.h)
    state = torch.get_rng_state()
    model.train()
    try:
        found = run(model, TOKENS, record=[(1, "resid_post")])[(1, "resid_post")]
        assert all(module.training for module in model.original_model.modules())
    finally:
        model.eval()
    torch.testing.assert_close(found.double(), expected[1][1], atol=1e-5, rtol=1e-4)
    assert torch.equal(torch.get_rng_state(), state)


def native_model(**changes):
    shape = {"d_model": 8, "n_heads": 2, "d_head": 4, "d_vocab": 61, "n_ctx": 48, "seed": 0}
    config = TransformerBridgeConfig(**shape, attn_only=True, **changes)
    return TransformerBridge.boot_native(config).eval()


def test_models_that_look_both_ways_have_no_causal_analyses():
    model = native_model(n_layers=2, attention_dir="bidirectional")
    directions = torch.eye(8)[:3]
    for call in (
        lambda: ll.gain_profile(model, TOKENS, directions),
        lambda: ll.induction_scores(model),
        lambda: ll.replacement_curve(model, TOKENS.repeat(8, 1), "remove"),
    ):
        with pytest.raises(UnsupportedModelError, match=r"must be causal|sees later tokens"):
            call()
    assert read_attention(model).W_Q.shape == (2, 2, 8, 4)


def test_depth_dynamics_without_blocks_and_losses_over_two_vocabularies_are_refused():
    empty = toy_model(n_layers=0)
    for method in ("adjoint", "empirical"):
        with pytest.raises(UnsupportedModelError, match="no blocks"):
            ll.gain_profile(empty, TOKENS, torch.ones(1, 32), method)
    model = native_model(n_layers=2, d_vocab_out=20)
    with pytest.raises(UnsupportedModelError, match="one vocabulary"):
        ll.replacement_curve(model, TOKENS.repeat(8, 1), "remove")
