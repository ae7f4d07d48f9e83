"""State dicts of HookedTransformer against a forward pass written out in plain torch."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import lens_linear as ll
from lens_linear.errors import CorruptedFileError, InvalidArgumentError, UnsupportedModelError

CONFIG = {
    "n_layers": 2,
    "d_model": 24,
    "n_ctx": 16,
    "d_head": 5,  # heads that do not fill the width
    "n_heads": 3,
    "d_mlp": 40,
    "d_vocab": 30,
    "d_vocab_out": 7,
    "act_fn": "relu",
    "attn_only": False,
    "normalization_type": "LN",
    "positional_embedding_type": "standard",
    "eps": 1e-5,
    "attention_dir": "causal",
    "seed": 3,
}


def weights():
    """Named and laid out as HookedTransformer does: [head, d_model, d_head], with its buffers."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g) * 0.3

    state = {"embed.W_E": draw(30, 24), "pos_embed.W_pos": draw(16, 24)}
    for layer in range(2):
        p = f"blocks.{layer}."
        for letter in "QKV":
            state[f"{p}attn.W_{letter}"], state[f"{p}attn.b_{letter}"] = draw(3, 24, 5), draw(3, 5)
        state[p + "attn.W_O"], state[p + "attn.b_O"] = draw(3, 5, 24), draw(24)
        state[p + "attn.mask"] = torch.ones(16, 16).tril().bool()
        state[p + "attn.IGNORE"] = torch.tensor(float("-inf"))
        state[p + "mlp.W_in"], state[p + "mlp.b_in"] = draw(24, 40), draw(40)
        state[p + "mlp.W_out"], state[p + "mlp.b_out"] = draw(40, 24), draw(24)
        for norm in ("ln1", "ln2"):
            state[f"{p}{norm}.w"], state[f"{p}{norm}.b"] = 1 + draw(24), draw(24)
    state["ln_final.w"], state["ln_final.b"] = 1 + draw(24), draw(24)
    state["unembed.W_U"], state["unembed.b_U"] = draw(24, 7), draw(7)
    return state


def by_hand(state, tokens, causal=True):
    n = len(tokens)

    def norm(x, name):
        return torch.nn.functional.layer_norm(
            x, (24,), state[name + ".w"], state[name + ".b"], 1e-5
        )

    x = state["embed.W_E"][tokens] + state["pos_embed.W_pos"][:n]
    for layer in range(2):
        p = f"blocks.{layer}."
        reads = norm(x, p + "ln1")
        for head in range(3):
            q, k, v = (
                reads @ state[f"{p}attn.W_{c}"][head] + state[f"{p}attn.b_{c}"][head] for c in "QKV"
            )
            scores = q @ k.T / math.sqrt(5)
            if causal:
                scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
            x = x + scores.softmax(-1) @ v @ state[p + "attn.W_O"][head]
        x = x + state[p + "attn.b_O"]
        hidden = (norm(x, p + "ln2") @ state[p + "mlp.W_in"] + state[p + "mlp.b_in"]).relu()
        x = x + hidden @ state[p + "mlp.W_out"] + state[p + "mlp.b_out"]
    return norm(x, "ln_final") @ state["unembed.W_U"] + state["unembed.b_U"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_logits_are_those_of_the_formula(tmp_path, suffix, direction):
    state, path = weights(), tmp_path / f"palindromes{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG | {"attention_dir": direction}))
    model = ll.load(path, config=config)
    assert model.cfg.model_name == "palindromes" and not model.training
    tokens = torch.tensor([3, 29, 0, 7, 7, 11])
    expected = by_hand(state, tokens, causal=direction == "causal")
    torch.testing.assert_close(model(tokens[None])[0], expected, atol=2e-5, rtol=1e-4)
    with pytest.raises(InvalidArgumentError, match=r"config goes with|is a file"):
        ll.load(path)


def test_words_left_out_have_the_defaults_of_hooked_transformer(tmp_path):
    """LN, n_heads from the widths, and -1 where the old class worked it out."""
    state = weights()
    state["unembed.W_U"], state["unembed.b_U"] = torch.ones(24, 30).tril(), torch.zeros(30)
    left = {
        k: v for k, v in CONFIG.items() if k not in ("normalization_type", "eps", "attention_dir")
    }
    torch.save(state, tmp_path / "weights.pt")
    model = ll.load(tmp_path / "weights.pt", config=left | {"d_vocab_out": -1})
    tokens = torch.tensor([3, 29, 0, 7])
    torch.testing.assert_close(model(tokens[None])[0], by_hand(state, tokens), atol=2e-5, rtol=1e-4)


def test_pickles_are_read_as_tensors_and_nothing_else(tmp_path):
    path = tmp_path / "evil.pt"
    path.write_bytes(f"cos\nmkdir\n(V{tmp_path}/ran\ntR.".encode())
    with pytest.raises(CorruptedFileError, match=r"read safely"):
        ll.load(path, config=CONFIG)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"n_heads": 5}, CorruptedFileError, "do not fit"),
        ({"d_head": 8}, CorruptedFileError, "do not fit"),
        ({"n_layers": 10**7}, CorruptedFileError, "n_layers is 10000000, the weights have 2"),
        ({"n_layers": 1}, CorruptedFileError, "n_layers is 1, the weights have 2"),
        ({"d_mlp": 10**11}, CorruptedFileError, "d_mlp is 100000000000, the weights have 40"),
        ({"d_head": 0, "n_heads": None}, InvalidArgumentError, "is not one of a HookedTransformer"),
        ({"eps": "small"}, InvalidArgumentError, "eps in config must be a number"),
        ({"attention_dir": 3}, InvalidArgumentError, "attention_dir in config must be one of"),
        ({"d_vocab": None}, InvalidArgumentError, "lacks d_vocab"),
        ({"use_attn_scale": False}, UnsupportedModelError, "use_attn_scale=False"),
        ({"attn_scale": 3.0}, UnsupportedModelError, "says attn_scale=3.0"),
        ({"attn_scale": "5"}, UnsupportedModelError, "says attn_scale='5'"),
        ({"attn_scale": 10**400}, UnsupportedModelError, "says attn_scale="),
        ({"use_local_attn": True}, UnsupportedModelError, "use_local_attn=True"),
        ({"positional_embedding_type": "rotary"}, UnsupportedModelError, "=.rotary"),
    ],
)
def test_a_configuration_of_another_model_is_refused(tmp_path, change, kind, words):
    torch.save(weights(), tmp_path / "weights.pt")
    with pytest.raises(kind, match=words):
        ll.load(tmp_path / "weights.pt", config=CONFIG | change)


@pytest.mark.parametrize("scale", [-1, -1.0, math.sqrt(5), None])
def test_the_root_of_the_head_s_width_is_no_other_scale(tmp_path, scale):
    torch.save(weights(), tmp_path / "weights.pt")
    tokens = torch.tensor([3, 29, 7, 7, 0, 12])
    found = ll.load(tmp_path / "weights.pt", config=CONFIG | {"attn_scale": scale})(tokens[None])[0]
    torch.testing.assert_close(found, by_hand(weights(), tokens))


def test_a_config_beside_the_weights_is_found(tmp_path):
    state, path = weights(), tmp_path / "sums.pt"
    torch.save(state, path)
    with pytest.raises(InvalidArgumentError, match="or config= with a state dict"):
        ll.load(path)
    (tmp_path / "sums.json").write_text(json.dumps(CONFIG))
    tokens = torch.tensor([5, 0, 29])
    for name in (path, str(path)):
        found = ll.load(name)
        torch.testing.assert_close(
            found(tokens[None])[0], by_hand(state, tokens), atol=2e-5, rtol=1e-4
        )
    with pytest.raises(UnsupportedModelError, match="as it is, with its config"):
        ll.save_model(found, tmp_path / "kept")


@pytest.mark.parametrize(("size", "held"), [(1e-30, 12), (3e-42, 12), (1e-20, 7)])
def test_norm_weights_driven_to_nothing_leave_the_scores_right(tmp_path, size, held):
    """Weight decay does so; the answer is a float64 least-squares fit on what the FFN reads, rescaled."""
    state, path = weights(), tmp_path / "decayed.pt"
    for layer in range(2):
        state[f"blocks.{layer}.ln2.w"][held:] = size
        state[f"blocks.{layer}.ln2.b"][held:] = size
    torch.save(state, path)
    model = ll.load(path, config=CONFIG)
    tokens = torch.randint(30, (60, 16), generator=torch.Generator().manual_seed(1))
    found = ll.linearity_profile(model, tokens, fit="in-sample", sites=["ffn"])
    _, cache = model.run_with_cache(tokens)
    for layer in range(2):
        x = cache[f"blocks.{layer}.ln2.hook_out"].flatten(0, 1).double()
        y = cache[f"blocks.{layer}.hook_mlp_out"].flatten(0, 1).double()
        x, y = x - x.mean(0), y - y.mean(0)
        x = x[:, x.std(0) > 1e-38]  # smaller ones no float32 map can read
        x = x / x.std(0)
        rest = y - x @ torch.linalg.lstsq(x, y, driver="gelsd", rcond=1e-6).solution
        right = 1 - float(rest.square().sum() / y.square().sum())
        assert 0.1 < right < 0.999
        assert found["ffn_r2"][layer] == pytest.approx(right, abs=2e-4)
