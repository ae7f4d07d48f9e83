"""Opening models: bundled ones without the network, folders, and one clear error for the rest."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from architectures import save_random
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge

import lens_linear as ll
from lens_linear.errors import (
    CorruptedFileError,
    InvalidArgumentError,
    NotEnoughDataError,
    OfflineError,
    UnknownModelError,
    UnsupportedModelError,
)
from lens_linear.models.capture import require_model_tokens
from lens_linear.models.checked import checked
from lens_linear.models.open.bundled import BUNDLED, bundled_names, training_table
from lens_linear.models.tokenizer import (
    encode_stream,
    token_strings,
    tokenize,
    tokenize_prompts,
)
from lens_linear.training.recipes import RECIPES


def test_table_of_bundled_models():
    table = ll.available_models()
    columns = "name layers d_model heads vocab parameters loss floor sha256 state"
    assert " ".join(table.columns) == columns
    table = table[table["state"] == "bundled"]
    assert table["layers"].is_monotonic_increasing and table["layers"].iloc[0] == 0
    for name, checksum in zip(table["name"], table["sha256"], strict=True):
        weights = (BUNDLED / name / "model.safetensors").read_bytes()
        assert hashlib.sha256(weights).hexdigest() == checksum
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


def test_the_training_table_is_what_the_recipes_say():
    table = training_table().set_index("name")
    assert set(table.index) == set(RECIPES)
    for name, recipe in RECIPES.items():
        row = table.loc[name]
        assert (row["steps"], row["tokens"]) == (recipe.steps, recipe.tokens)
        assert 1 < row["minutes"] < 90 and 2 < row["loss"] < 4.1
        assert row["checkpoints"] == ", ".join(map(str, recipe.checkpoints))


def test_the_loss_on_the_cards_is_the_loss_on_the_unseen_books(unseen_books):
    model, table = ll.load("attn-1l"), ll.available_models().set_index("name")
    stream = encode_stream(model.tokenizer.backend_tokenizer, unseen_books)
    body = stream.long()[: len(stream) // 127 * 127].view(-1, 127)
    rows = torch.cat([torch.zeros(len(body), 1, dtype=torch.long), body], dim=1)
    with torch.no_grad():
        losses = torch.stack([model(part, return_type="loss") for part in rows.split(61)])
    assert len(rows) == 16 * 61
    assert float(losses.mean()) == pytest.approx(table.loc["attn-1l", "loss"], abs=1e-4)


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
    with pytest.raises(UnknownModelError, match=r"nearest names: attn-2l"):
        ll.load("ATTN-2L")
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
    with pytest.raises(CorruptedFileError, match="no weights"):
        ll.load(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="could not open"):
        ll.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type":')
    with pytest.raises(CorruptedFileError, match=r"config\.json.*cannot be read"):
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


def _sentencepiece_like(texts):
    """A tokenizer that writes spaces as ▁ and whose decoder drops the first one, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = dict.fromkeys(["<unk>", "<s>", "▁", "▁▁", *texts])
    tokenizer = Tokenizer(
        models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    return tokenizer


def test_tokens_of_sentencepiece_keep_their_spaces(folder):
    from transformers import PreTrainedTokenizerFast

    tokenizer = _sentencepiece_like(["▁and", "and", "▁Tim", ","])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    model = ll.load(folder)
    assert model.tokenizer.decode([4]) == model.tokenizer.decode([5]) == "and"
    assert token_strings(model, range(2, 8)) == [" ", "  ", " and", "and", " Tim", ","]


def test_errors_about_text(attn_2l):
    with pytest.raises(NotEnoughDataError, match="empty"):
        tokenize(attn_2l, "")
    with pytest.raises(InvalidArgumentError, match="context has room"):
        tokenize_prompts(attn_2l, ["word " * 500])
    assert len(tokenize_prompts(attn_2l, ["word " * 500], truncate=True)[0]) == 128
    with pytest.raises(UnsupportedModelError, match="no tokenizer"):
        tokenize(ll.toy_model(), "text")
    with pytest.raises(InvalidArgumentError, match="n_ctx"):
        require_model_tokens(checked(attn_2l), torch.zeros(1, 129, dtype=torch.long))
    with pytest.raises(InvalidArgumentError, match="another model's tokenizer"):
        require_model_tokens(checked(attn_2l), torch.full((1, 5), 1024))
    with pytest.raises(InvalidArgumentError, match="whole token ids"):
        require_model_tokens(checked(attn_2l), torch.zeros(1, 5))


def _legacy_weights(model):
    """A toy model's weights under the names that the old attention-only repositories use."""
    weights = {"embed.W_E": model.W_E, "pos_embed.W_pos": model.W_pos, "unembed.W_U": model.W_U}
    weights["unembed.b_U"] = torch.zeros(model.cfg.d_vocab)
    for layer in range(model.cfg.n_layers):
        attention = model.blocks[layer].attn
        for kind in "QKVO":
            weights[f"blocks.{layer}.attn.W_{kind}"] = getattr(attention, f"W_{kind}")
            weights[f"blocks.{layer}.attn.b_{kind}"] = getattr(attention, f"b_{kind}")
    return {name: value.detach().clone() for name, value in weights.items()}


def test_old_attention_only_hub_names_go_through_the_legacy_loader(tmp_path, monkeypatch):
    toy = ll.toy_model(n_layers=2, d_model=32, n_heads=4, d_vocab=50, n_ctx=24, seed=3)
    shape = {"d_model": 32, "n_layers": 2, "d_mlp": 128, "d_head": 8, "n_heads": 4, "n_ctx": 24}
    shape |= {"d_vocab": 50, "act_fn": "gelu", "attn_only": True, "normalization": None}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    torch.save(_legacy_weights(toy), tmp_path / "model_final.pth")
    asked = []

    def download(repository, file, **_):
        asked.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.list_repo_files", lambda *_: ["config.json", "model_final.pth"]
    )
    state = torch.get_rng_state()
    model = ll.load("attn-only-2l")  # TransformerLens' alias of NeelNanda/Attn_Only_2L512W_C4_Code
    assert torch.equal(torch.get_rng_state(), state)
    repository = "NeelNanda/Attn_Only_2L512W_C4_Code"
    assert asked == [(repository, "config.json"), (repository, "model_final.pth")]
    assert not model.training
    tokens = torch.arange(20)[None] % 50
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), toy(tokens))
    halves = ll.load(repository, dtype=torch.bfloat16, device="cpu")
    assert halves.W_E.dtype == torch.bfloat16
    with pytest.raises(InvalidArgumentError, match="device_map"):
        ll.load(repository, device_map="auto")


@pytest.fixture
def folder(tmp_path):
    return Path(save_random("gpt2", tmp_path / "gpt2"))


def test_local_folders_open_as_stored_and_leave_the_global_generator_alone(folder):
    import transformers

    original = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    state = torch.get_rng_state()
    model = ll.load(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training and model.tokenizer is None
    tokens = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), original(tokens).logits)


def test_shards_are_one_model_and_a_lost_one_is_noticed(folder, tmp_path):
    import transformers

    original = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    original.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 2
    tokens = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(ll.load(tmp_path / "shards")(tokens), original(tokens).logits)
    shards[1].unlink()
    with pytest.raises(CorruptedFileError, match=f"lacks 1 of the {len(shards)} files"):
        ll.load(tmp_path / "shards")


def test_weights_that_would_be_filled_up_at_random_are_refused(folder):
    path = folder / "model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if ".h.1." not in name}
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(CorruptedFileError, match=r"lack 12 tensors.*h\.1\."):
        ll.load(folder)


def test_a_configuration_with_fewer_blocks_than_are_stored_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": config["n_layer"] - 1}))
    with pytest.raises(CorruptedFileError, match=r"tensors of blocks.*h\.2\.attn"):
        ll.load(folder)


def test_weights_of_another_shape_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_embd": 64}))
    with pytest.raises(CorruptedFileError, match="other shapes"):
        ll.load(folder)


def test_pickles_are_refused_and_never_run(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CorruptedFileError, match="no weights"):
        ll.load(folder)
    (folder / "pytorch_model.bin").write_bytes(f"cos\nmkdir\n(V{tmp_path}/ran\ntR.".encode())
    with pytest.raises(UnsupportedModelError, match="pickled"):
        ll.load(folder)
    assert not (tmp_path / "ran").exists()


def test_models_that_do_not_predict_the_next_token_are_refused(tmp_path):
    import transformers

    config = transformers.BertConfig(
        num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(UnsupportedModelError, match="BertForMaskedLM"):
        ll.load(tmp_path / "bert")


def test_a_path_means_the_folder_even_where_it_is_called_like_a_bundled_model(
    copied, tmp_path, monkeypatch
):
    copied.rename(tmp_path / "attn-2l")  # holds one layer
    monkeypatch.chdir(tmp_path)
    assert ll.load("attn-2l").cfg.n_layers == 2
    assert ll.load("./attn-2l").cfg.n_layers == 1
    assert ll.load(Path("attn-2l")).cfg.n_layers == 1
    assert ll.load(Path("attn-0l")).cfg.n_layers == 0  # no such folder: the bundled one


def test_a_folder_of_invisible_letters_names_its_model_in_codes(folder, tmp_path):
    odd = tmp_path / "a\u202eb\u3164"
    folder.rename(odd)
    assert ll.load(odd).cfg.model_name == "a⟨202E⟩b⟨3164⟩"


@pytest.mark.parametrize("name", ["pythia-160m", "pythia-70m", "gpt2"])
def test_a_folder_called_like_a_model_that_transformer_lens_knows(
    folder, tmp_path, monkeypatch, name
):
    from transformers import PreTrainedTokenizerFast

    tokenizer = _sentencepiece_like(["▁and", "and"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    tokens = torch.arange(6)[None]
    expected = ll.load(folder)(tokens)
    shutil.copytree(folder, tmp_path / "here" / name)
    monkeypatch.chdir(tmp_path / "here")
    for way in (f"./{name}", Path(name)):
        model = ll.load(way)
        assert model.cfg.model_name == name and torch.equal(model(tokens), expected)


@pytest.mark.parametrize(
    "name", ["./nowhere/here", "/nowhere", "~nobody-here/x", "a" * 300, "gpt-micro@x", "x\0y"]
)
def test_paths_that_lead_nowhere_never_ask_the_network(name, monkeypatch):
    monkeypatch.setattr(TransformerBridge, "boot_transformers", None)
    with pytest.raises(InvalidArgumentError):
        ll.load(name)


def test_device_maps_are_for_hugging_face_models():
    with pytest.raises(InvalidArgumentError, match="device_map"):
        ll.load("attn-1l", device_map="auto")


def test_a_toy_model_refuses_words_that_are_no_shape():
    with pytest.raises(InvalidArgumentError, match="got d_head; choose among"):
        ll.toy_model(d_head=8)
