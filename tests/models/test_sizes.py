"""Parameter counts against Hugging Face's own, and by hand."""

import pytest
import transformers
from architectures import CONFIGS, UNUSUAL, save_random

import lens_linear as ll
from lens_linear.errors import InsufficientMemoryError
from lens_linear.models.describe.parameter_counts import n_parameters, site_parameters
from lens_linear.models.native import ModelSpec, native_module


def fused_gate():
    return transformers.Phi3Config(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
    )


@pytest.mark.parametrize("name", [*sorted(CONFIGS), *sorted(UNUSUAL), "phi3"])
def test_counts_equal_those_of_the_plain_model(name, tmp_path, monkeypatch):
    monkeypatch.setitem(UNUSUAL, "phi3", fused_gate)
    folder = save_random(name, tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model = ll.load(folder)
    assert n_parameters(model) == plain.num_parameters()
    stack = max(
        (m for m in plain.modules() if type(m).__name__ == "ModuleList" and len(m) == 3), key=len
    )
    assert site_parameters(model, 1) == sum(p.numel() for p in stack[1].parameters())


@pytest.mark.parametrize(
    "name, ffn",
    [
        ("gpt2", 2 * 32 * 128 + 128 + 32),
        ("opt", 2 * 32 * 64 + 64 + 32),  # its two matrices lie in the block itself
        ("llama", 3 * 32 * 64),
    ],
)
def test_ffn_parameters_by_hand(name, ffn, tmp_path):
    assert site_parameters(ll.load(save_random(name, tmp_path)), 1, "ffn") == ffn


@pytest.mark.parametrize(
    "shape",
    [
        {"attn_only": True},
        {"d_mlp": 24},
        {"gated": True, "d_mlp": 20, "activation": "silu"},
        {"positions": "rotary", "n_ctx": 50},
        {"n_layers": 0},
    ],
)
def test_a_model_beyond_the_memory_is_refused_with_its_size(shape, monkeypatch):
    spec = ModelSpec(**{"n_layers": 3, "d_model": 16, "n_heads": 2, "d_vocab": 30, **shape})
    numbers = sum(p.numel() for p in native_module(spec).parameters() if p.ndim > 1)
    monkeypatch.setattr("lens_linear.linalg.memory.free_bytes", lambda device: 4 * numbers)
    native_module(spec)
    monkeypatch.setattr("lens_linear.linalg.memory.free_bytes", lambda device: 4 * numbers - 1)
    with pytest.raises(InsufficientMemoryError, match=f"a model of {numbers:,} parameters"):
        native_module(spec)
