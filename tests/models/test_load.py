"""Opening models: bundled ones without the network, folders, and one clear error for the rest."""

import json
import shutil

import pytest
import torch

import lens_linear as ll
from lens_linear.errors import (
    CorruptedFileError,
    InvalidArgumentError,
    NotEnoughDataError,
    OfflineError,
    UnknownModelError,
    UnsupportedModelError,
)
from lens_linear.models.bundled import BUNDLED, bundled_names
from lens_linear.models.capture import require_model_tokens
from lens_linear.models.tokenize import token_strings, tokenize, tokenize_prompts


def test_table_of_bundled_models():
    table = ll.available_models()
    assert {"attn-0l", "attn-1l", "attn-2l", "gpt-nano", "gpt-micro", "gpt-mini"} <= set(
        table["name"]
    )
    assert table["sha256"].str.fullmatch("[0-9a-f]{64}").all()
    size = sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file())
    assert size < 40e6


@pytest.mark.parametrize("name", bundled_names())
def test_every_bundled_model_opens_and_is_better_than_chance(name):
    model = ll.load(name)
    assert not model.training
    tokens = ll.evaluation_tokens(model, n_sequences=8)
    assert tokens.shape == (8, 128) and (tokens[:, 0] == 0).all()
    with torch.no_grad():
        loss = float(model(tokens, return_type="loss"))
    assert loss < 4.6  # a uniform guess is log(1024) = 6.93 nats


def test_checkpoints_of_gpt_micro_improve():
    tokens = ll.evaluation_tokens(ll.load("gpt-micro"), n_sequences=8)
    losses = []
    for step in (0, 100, 300, 1000):
        with torch.no_grad():
            losses.append(float(ll.load(f"gpt-micro@{step}")(tokens, return_type="loss")))
    assert losses == sorted(losses, reverse=True)
    with pytest.raises(InvalidArgumentError, match="one of"):
        ll.load("gpt-micro", checkpoint=7)


def test_zero_layers_is_exactly_a_bigram_table():
    model = ll.load("attn-0l")
    tokens = ll.evaluation_tokens(model, n_sequences=2)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), (model.W_E @ model.W_U)[tokens])


def test_unknown_names_get_the_nearest_without_the_network():
    with pytest.raises(UnknownModelError, match="attn-2l"):
        ll.load("attn-2L")
    with pytest.raises(UnknownModelError, match="gpt2"):
        ll.load("gpt2-smal")


@pytest.mark.parametrize("name", ["", None, 3])
def test_names_that_are_no_names(name):
    with pytest.raises(InvalidArgumentError, match="name must be"):
        ll.load(name)


def test_hub_models_without_network_say_what_to_do():
    with pytest.raises((OfflineError, UnknownModelError), match="bundled"):
        ll.load("somebody/some-model-that-is-not-cached")


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(UnknownModelError, match=r"config\.json"):
        ll.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="could not open"):
        ll.load(tmp_path)
    with pytest.raises(InvalidArgumentError, match="is a file"):
        ll.load(tmp_path / "config.json")


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(BUNDLED / "attn-1l", tmp_path / "m")
    shutil.copy(BUNDLED / "tokenizer.json", tmp_path / "m")
    return tmp_path / "m"


def test_a_folder_of_ours_opens_anywhere(copied):
    assert ll.load(copied).cfg.n_layers == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damaged_weights_are_noticed(copied, damage):
    path = copied / "model.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-1000] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    with pytest.raises(CorruptedFileError, match="checksum"):
        ll.load(copied)


def test_a_damaged_card_is_noticed(copied):
    (copied / "card.json").write_text('{"name": "x"')
    with pytest.raises(CorruptedFileError, match="card"):
        ll.load(copied)
    (copied / "card.json").write_text(json.dumps({"name": "x", "spec": {"layers": 3}}))
    with pytest.raises(CorruptedFileError, match="card"):
        ll.load(copied)


def test_half_precision_models_open():
    model = ll.load("attn-2l", dtype=torch.bfloat16)
    assert model(torch.arange(4)[None]).dtype == torch.bfloat16
    assert model.cfg.dtype == torch.bfloat16


def test_loading_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ll.load("attn-1l")
    assert torch.equal(torch.rand(3), expected)


def test_text_to_tokens_and_back(attn_2l):
    text = "Once upon a time there was a mill, and in it <b>lived</b> a cat.\n"
    rows = tokenize(attn_2l, text)
    assert rows.shape[0] == 1 and rows[0, 0] == 0
    assert "".join(token_strings(attn_2l, rows[0, 1:])) == text
    assert tokenize(attn_2l, text * 20, length=32).shape[1] == 32
    prompts = tokenize_prompts(attn_2l, ["A cat.", "The old mill stood."])
    assert [len(p) for p in prompts] == [len(p.tolist()) for p in prompts] and len(prompts) == 2


def test_errors_about_text(attn_2l):
    with pytest.raises(NotEnoughDataError, match="empty"):
        tokenize(attn_2l, "")
    with pytest.raises(InvalidArgumentError, match="context has room"):
        tokenize_prompts(attn_2l, ["word " * 500])
    assert len(tokenize_prompts(attn_2l, ["word " * 500], truncate=True)[0]) == 128
    with pytest.raises(UnsupportedModelError, match="no tokenizer"):
        tokenize(ll.toy_model(), "text")
    with pytest.raises(InvalidArgumentError, match="n_ctx"):
        require_model_tokens(attn_2l, torch.zeros(1, 129, dtype=torch.long))
    with pytest.raises(InvalidArgumentError, match="another model's tokenizer"):
        require_model_tokens(attn_2l, torch.full((1, 5), 1024))
    with pytest.raises(InvalidArgumentError, match="whole token ids"):
        require_model_tokens(attn_2l, torch.zeros(1, 5))
