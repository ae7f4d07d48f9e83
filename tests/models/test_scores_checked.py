"""Scores are checked on real tokens, on more than one key, and at the lengths in use."""

import pytest
import torch
import transformers
from architectures import CONFIGS, save_random

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError
from lens_linear.models import attention_scores, read_rotary, run
from lens_linear.models.checked import checked
from lens_linear.models.describe.rotary import require_fixed_rotation
from lens_linear.models.describe.verify_weights import sample_tokens

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
LONG = {
    "original_max_position_embeddings": 32,
    "rope_scaling": {
        "type": "longrope",
        "long_factor": [4.0, 3.0, 2.0, 1.5],
        "short_factor": [1.0, 1.0, 1.0, 1.0],
    },
}
MODELS = {
    "qwen3": lambda: transformers.Qwen3Config(
        **SHAPE, num_key_value_heads=2, head_dim=8, max_position_embeddings=64
    ),
    "longrope": lambda: transformers.Phi3Config(
        **SHAPE, num_key_value_heads=4, max_position_embeddings=128, pad_token_id=0, **LONG
    ),
    "olmo": lambda: transformers.OlmoConfig(**SHAPE, max_position_embeddings=64, clip_qkv=0.5),
}


def open_random(name, tmp_path, monkeypatch, **arguments):
    monkeypatch.setitem(CONFIGS, name, MODELS[name])
    return ll.load(save_random(name, tmp_path / name, scale=0.5), **arguments)


@pytest.mark.parametrize("length", [1, 2, 5, 20])
def test_norms_on_queries_and_keys_are_noticed_however_short_the_text(
    length, tmp_path, monkeypatch
):
    model = open_random("qwen3", tmp_path, monkeypatch)
    with pytest.raises(UnsupportedModelError, match="do not give back its attention"):
        attention_scores(model, torch.arange(length)[None], 1)
    with pytest.raises(UnsupportedModelError, match="do not give back its attention"):
        ll.qk_attribution(model, torch.arange(length)[None], 1, 0)


def test_values_that_are_clipped_are_noticed(tmp_path, monkeypatch):
    model = open_random("olmo", tmp_path, monkeypatch)
    with pytest.raises(UnsupportedModelError, match="clips, gates"):
        ll.models.read_attention(model)


def test_a_bound_that_no_sample_reaches_is_said(tmp_path, monkeypatch):
    far = transformers.OlmoConfig(**SHAPE, max_position_embeddings=64, clip_qkv=50.0)
    monkeypatch.setitem(MODELS, "olmo", lambda: far)
    model = open_random("olmo", tmp_path, monkeypatch)
    with pytest.warns(UserWarning, match="clips queries, keys and values at 50. None of 32"):
        found = ll.models.read_attention(model)
    tokens = sample_tokens(checked(model))[None]
    seen = run(model, tokens, record=[(1, "attn_in"), (1, "v")], logits=False)
    largest = float(run(model, tokens, record=[(1, "v")], logits=False)[(1, "v")].abs().max())
    assert largest < 50
    with pytest.warns(UserWarning) as told:
        ll.models.read_attention(model)
    spots = [(layer, what) for layer in range(2) for what in ("q", "k", "v")]
    every = run(model, tokens, record=spots, logits=False)
    largest = max(float(every[spot].abs().max()) for spot in spots)
    assert f"largest entry {largest:.3g}" in str(told[0].message)
    values = torch.einsum("pd,hde->phe", seen[(1, "attn_in")][0].double(), found.W_V[1])
    torch.testing.assert_close(
        values.flatten(1), seen[(1, "v")][0].double().flatten(1), atol=1e-4, rtol=1e-4
    )


def test_a_rotation_that_depends_on_the_length_gives_no_circuit_at_an_offset(tmp_path, monkeypatch):
    model = open_random("longrope", tmp_path, monkeypatch)
    with pytest.raises(UnsupportedModelError, match=r"more than 32 tokens.*n_ctx=32"):
        require_fixed_rotation(checked(model))
    short = ll.load(tmp_path / "longrope", n_ctx=32)  # what the message advises
    tokens = sample_tokens(checked(short))[None]
    torch.testing.assert_close(short(tokens), model(tokens))  # the same model
    with pytest.raises(InvalidArgumentError, match="n_ctx must be at most"):
        ll.load(tmp_path / "longrope", n_ctx=4096)  # whose scale would be another
    seen = run(short, tokens, record=[(1, "q"), (1, "k")], logits=False)
    turn = read_rotary(short, 1, 11).relative(10, 8)
    q, k = seen[(1, "q")][0, 10].double(), seen[(1, "k")][0, 0].double()
    expected = attention_scores(short, tokens, 1)[0, :, 10, 0]
    found = torch.einsum("he,ef,hf->h", q, turn, k) / 8**0.5
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_sample_tokens_are_of_the_whole_vocabulary_and_of_the_tokenizers_part_of_it():
    model = ll.toy_model(n_layers=1, d_vocab=5000, n_ctx=40)
    ids = sample_tokens(checked(model))
    assert len(set(ids.tolist())) == 32 and int(ids.max()) == 4999 and int(ids.min()) == 0
    assert ids.tolist() != sorted(ids.tolist())
    model.tokenizer = ll.load("attn-2l").tokenizer
    assert int(sample_tokens(checked(model)).max()) == 1023
