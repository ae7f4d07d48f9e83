"""Model folders are read without trust; Hub names meet the same checks as folders."""

import builtins
import importlib
import json
import os
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from architectures import as_hub_name, save_random
from safetensors.torch import load_file, save_file

import lens_linear as ll
from lens_linear.errors import (
    CorruptedFileError,
    InvalidArgumentError,
    LensLinearError,
    OfflineError,
    UnknownModelError,
    UnsupportedModelError,
)
from lens_linear.models.open import hub
from lens_linear.models.open.bundled import refuse_unknown_name
from lens_linear.models.open.hugging_face import never_asking
from lens_linear.models.open.untrusted import _stored, read_folder


@pytest.fixture
def folder(tmp_path):
    return Path(save_random("llama", tmp_path / "llama"))


@pytest.fixture(params=["folder", "Hub name"])
def opened(request, tmp_path, monkeypatch):
    """Open a folder as it is, or as what a Hub name stands for in the local cache."""

    def run(folder, **arguments):
        if request.param == "folder":
            return ll.load(folder, **arguments)
        name = as_hub_name(tmp_path / "hub", folder, "model", monkeypatch)
        try:
            return ll.load(name, **arguments)
        except LensLinearError as error:
            assert name in str(error) and str(tmp_path) not in str(error), error
            raise

    return run


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize(("base", "sound"), [(0.5, True), (0, False), (-2.0, False)])
def test_a_rotary_base_is_positive(folder, base, sound):
    edit(folder, rope_theta=base)
    if sound:
        assert read_folder(folder)["rope_theta"] == base
    else:
        with pytest.raises(CorruptedFileError, match="must be positive and finite"):
            read_folder(folder)


def test_a_sound_folder_opens_either_way(opened, folder):
    tokens = torch.arange(30)[None]
    model = opened(folder, n_ctx=32)
    assert model.cfg.n_ctx == 32 and model.cfg.model_name in ("llama", "someone/model")
    assert torch.equal(model(tokens), ll.load(folder)(tokens))


@pytest.mark.parametrize("layers", ["num_hidden_layers", "n_layer"])
@pytest.mark.parametrize("number", [10**6, 10**12])
def test_sizes_are_held_against_the_weights_before_anything_is_built(
    opened, folder, layers, number
):
    start = time.process_time()
    with pytest.raises(CorruptedFileError, match=rf"{layers} = {number:,}, but only \d+ tensors"):
        opened(edit(folder, **{layers: number}))
    assert time.process_time() - start < 2


@pytest.mark.parametrize("key", ["vocab_size", "intermediate_size", "hidden_size"])
def test_widths_too(opened, folder, key):
    with pytest.raises(CorruptedFileError, match="numbers are stored"):
        opened(edit(folder, **{key: 10**9}))


@pytest.mark.parametrize("place", [{"rms_norm_eps": float("nan")}, {"rope": {"a": [float("nan")]}}])
def test_nan_in_a_configuration_is_refused(opened, folder, place):
    with pytest.raises(CorruptedFileError, match=r"says nan for '(rms_norm_eps|rope\.a)'"):
        opened(edit(folder, **place))


@pytest.mark.parametrize(
    "key, value",
    [
        ("rms_norm_eps", float("inf")), ("rms_norm_eps", 1e9), ("layer_norm_epsilon", -1e-5),
        ("rms_norm_eps", 1), ("num_hidden_layers", 0), ("n_layer", -3), ("vocab_size", -7),
        ("max_position_embeddings", 0), ("n_positions", -1), ("hidden_size", 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("nested", [False, True])
def test_numbers_that_no_model_has_are_refused(opened, folder, key, value, nested):
    name = f"text.{key}" if nested else key
    with pytest.raises(CorruptedFileError, match=f"for '{name}', and it must be at least [01]"):
        opened(edit(folder, **({"text": {key: value}} if nested else {key: value})))


@pytest.mark.parametrize("where", ["config", "tokenizer", "tokenizer without a beginning"])
def test_a_folders_python_is_never_run_and_nothing_asks(
    opened, folder, where, monkeypatch, tmp_path
):
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("something asked"))
    if where == "config":
        edit(
            folder,
            model_type="own",
            auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
        )
    else:
        words = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.T", None]}}
        if where != "tokenizer":
            words |= {"bos_token": "<s>", "add_bos_token": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(words))
        (folder / "vocab.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="never run"):
        opened(folder)
    assert not (tmp_path / "ran").exists()


def test_an_architecture_of_transformers_opens_as_its_own_class(opened, folder, tmp_path):
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    model = opened(edit(folder, auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}))
    assert model.cfg.n_layers == 3 and not (tmp_path / "ran").exists()


def test_what_the_bridge_would_ignore_is_refused(opened, tmp_path):
    folder = edit(Path(save_random("gpt2", tmp_path / "gpt2", scale=0.5)), scale_attn_weights=False)
    with pytest.raises(UnsupportedModelError, match="other logits"):
        opened(folder)


def test_models_that_see_later_tokens_are_refused(opened, folder):
    with pytest.raises(UnsupportedModelError, match=r"other logits|causal"):
        opened(edit(folder, is_causal=False))


def test_a_missing_tensor_is_not_filled_up(opened, folder):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    weights.pop("model.layers.1.self_attn.k_proj.weight")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(CorruptedFileError, match=r"lack 1 tensors"):
        opened(folder)


def test_a_lora_folder_is_said_to_be_one(opened, folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2"}')
    with pytest.raises(UnsupportedModelError, match=r"adapter \(LoRA\) for 'gpt2'.*merge"):
        opened(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "[]", "\ud800", ""])
def test_a_configuration_that_is_no_json_object_is_refused(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CorruptedFileError, match=r"config.json.* cannot be read") as found:
        ll.load(folder)
    assert "sys.set_int_max_str_digits" not in str(
        found.value
    )  # which no folder's reader can follow


def test_a_sparse_configuration_is_not_read_whole(folder):
    os.truncate(folder / "config.json", 2 * 2**30)
    with pytest.raises(CorruptedFileError, match="more than any such file needs"):
        ll.load(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_weights_stored_as_codes_are_refused(folder, dtype):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if "down_proj" in name)
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"stored as codes.*down_proj"):
        ll.load(folder)


@pytest.mark.parametrize("added", [0.0, 1.0])
def test_files_that_hold_a_tensor_twice_must_agree(folder, added):
    tensors = load_file(folder / "model.safetensors")
    places = {name: f"{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for i in range(2):
        mine = {name: t + i * added for name, t in tensors.items()}
        save_file(mine, folder / f"{i}.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if added:
        with pytest.raises(CorruptedFileError, match="with other values"):
            ll.load(folder)
    else:
        assert ll.load(folder).cfg.n_layers


@pytest.mark.parametrize(
    "index", [{}, {"metadata": {}, "weight_map": {}}, {"metadata": {}, "weight_map": [1]}]
)
def test_an_index_that_names_no_files_is_refused(folder, index):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptedFileError, match="that names files"):
        ll.load(folder)


def test_weights_outside_the_folder_are_not_opened(folder):
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptedFileError, match="outside the folder"):
        ll.load(folder)


def test_a_name_in_the_index_that_no_system_takes_is_refused(folder):
    index = {"weight_map": {"a": "w" * 400}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptedFileError, match="lacks 1 of the 1 files"):
        ll.load(folder)


@pytest.mark.parametrize("name", ["vocab.json", "other.safetensors", "chat_template.jinja"])
def test_a_pipe_in_a_folder_is_not_waited_for(folder, name):
    os.mkfifo(folder / name)
    with pytest.raises(CorruptedFileError, match="no regular file"):
        ll.load(folder)


def test_tensors_and_numbers_are_counted_over_all_files(folder):
    (path,) = folder.glob("*.safetensors")
    held = load_file(path)
    assert _stored(folder) == (len(held), sum(value.numel() for value in held.values()))
    names = sorted(held)
    save_file({name: held[name] for name in names[:3]}, folder / "a.safetensors")
    save_file({name: held[name] for name in names[3:]}, path)
    assert _stored(folder) == (len(held), sum(value.numel() for value in held.values()))


class GatedRepoError(OSError):
    pass


class RevisionNotFoundError(OSError):
    pass


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (GatedRepoError("403"), UnknownModelError, "gated: its terms"),
        (RevisionNotFoundError("404"), UnknownModelError, "no revision 'main2'"),
        (
            OSError("401 Client Error. Invalid username or password."),
            UnknownModelError,
            "the token",
        ),
        (ConnectionError("no route"), OfflineError, "could not be reached"),
    ],
)
def test_what_the_hub_answers_is_said(monkeypatch, raised, kind, words):
    def answer(*_, **__):
        raise raised

    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    with pytest.raises(kind, match=words):
        ll.load("someone/model", revision="main2")


@pytest.mark.parametrize(
    "left, words", [("config.json", "no weights as"), ("adapter_config.json", "")]
)
def test_a_repository_without_safetensors_is_refused_unless_it_is_an_adapter(
    left, words, tmp_path, monkeypatch
):
    (tmp_path / left).write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UnsupportedModelError, match=words) as refused:
        ll.load("someone/model")
    assert bool(words) == ("no weights as" in str(refused.value))


def test_nobody_is_asked_whether_to_run_a_folders_code():
    from transformers import dynamic_module_utils

    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    with pytest.raises(KeyError), never_asking():
        assert dynamic_module_utils.TIME_OUT_REMOTE_CODE == 0 != seconds
        raise KeyError
    assert seconds == dynamic_module_utils.TIME_OUT_REMOTE_CODE


def test_names_that_transformer_lens_has_are_let_through():
    for name in ("pythia-70m", "GPT2-small", "owner/model"):
        refuse_unknown_name("model", name)
    with pytest.raises(UnknownModelError, match="no model is called 'no-such-model' here"):
        refuse_unknown_name("model", "no-such-model")


@pytest.fixture
def answering(tmp_path, monkeypatch):
    """Let the Hub's own client meet an answer of ours in place of the network."""
    made = importlib.import_module(type(huggingface_hub.get_session()).__module__.split(".")[0])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    known = huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY

    def answer(status, headers, body="{}"):
        def serve(request):
            return made.Response(status, headers=headers, text=body, request=request)

        huggingface_hub.set_client_factory(lambda: made.Client(transport=made.MockTransport(serve)))

    yield answer
    huggingface_hub.set_client_factory(known)


@pytest.mark.parametrize(
    ("status", "headers", "kind", "words"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, UnknownModelError, "is gated: its terms"),
        (401, {"X-Error-Code": "GatedRepo"}, UnknownModelError, "is gated: its terms"),
        (401, {"X-Error-Code": "RepoNotFound"}, UnknownModelError, "has no open model 'some/one'"),
        (404, {"X-Error-Code": "RepoNotFound"}, UnknownModelError, "has no open model 'some/one'"),
        (404, {"X-Error-Code": "RevisionNotFound"}, UnknownModelError, "has no revision 'dev'"),
        (401, {"X-Error-Message": "Invalid user token."}, UnknownModelError, "refused the token"),
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            UnknownModelError,
            "refused the token",
        ),
        (
            403,
            {"X-Error-Code": "GatedRepo", "X-Error-Message": "Your request has been rejected."},
            UnknownModelError,
            "not given this account access",
        ),
        (404, {"X-Error-Code": "EntryNotFound"}, UnsupportedModelError, "lacks a file"),
        (429, {}, OfflineError, "the Hub answered with HTTP status 429"),
        (503, {}, OfflineError, "the Hub answered with HTTP status 503"),
    ],
)
def test_each_answer_of_the_hub_is_told_from_the_others(answering, status, headers, kind, words):
    answering(status, headers)
    with pytest.raises(kind, match=words):
        ll.load("some/one", revision="dev")


def test_a_training_step_is_the_revision_that_holds_it(monkeypatch, folder):
    asked = []

    def answer(name, *, revision, **_):
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    model = ll.load("EleutherAI/pythia-70m", checkpoint=3000)
    assert asked == [("EleutherAI/pythia-70m", "step3000")]
    assert model.cfg.model_name == "EleutherAI/pythia-70m@step3000"
    with pytest.raises(InvalidArgumentError, match=r"published training step.*got 7"):
        ll.load("EleutherAI/pythia-70m", checkpoint=7)
    with pytest.raises(InvalidArgumentError, match="not both"):
        ll.load("EleutherAI/pythia-70m", checkpoint=3000, revision="main")


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "attn-2l", "revision": "main"},
        {"name": "attn-2l", "config": {}},
        {"name": "attn-2l", "n_ctx": 4096},
        {"name": "gpt2", "config": {}},
    ],
)
def test_arguments_that_mean_nothing_here_are_refused(arguments):
    with pytest.raises(InvalidArgumentError, match=r"revision|config|n_ctx"):
        ll.load(**arguments)


def test_a_longer_context_is_for_rotary_models(folder, tmp_path):
    assert ll.load(folder, n_ctx=100)(torch.zeros(1, 100, dtype=torch.long)).shape[1] == 100
    learnt, tokens = save_random("gpt2", tmp_path / "gpt2"), torch.arange(12)[None]
    with pytest.raises(
        InvalidArgumentError, match=r"n_ctx must be at most 64 .*positions end there"
    ):
        ll.load(learnt, n_ctx=100)
    short = ll.load(learnt, n_ctx=16)
    assert short.cfg.n_ctx == 16 and torch.equal(short(tokens), ll.load(learnt)(tokens))


def test_the_name_asked_for_is_not_advised():
    assert "gpt2" not in hub.nearest_names("gpt2").split(", ")


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_torchs_defaults_change_nothing(default):
    tokens = torch.arange(20)[None]
    expected, toy = ll.load("attn-2l")(tokens), ll.toy_model(seed=3)(tokens)
    torch.set_default_dtype(default)
    torch.set_default_device("meta")
    try:
        model, again = ll.load("attn-2l"), ll.toy_model(seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert model.W_E.dtype == torch.float32 and model.W_E.device.type == "cpu"
    assert torch.equal(model(tokens), expected) and torch.equal(again(tokens), toy)


def test_autocast_changes_nothing():
    model, tokens = ll.load("gpt-nano"), torch.arange(30)[None]
    expected = ll.models.forward_logits(model, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ll.models.forward_logits(model, tokens), expected)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_torchs_default_type_changes_no_analysis(default):
    model, tokens = ll.load("gpt-nano"), torch.arange(512).view(16, 32) * 7 % 1000

    def numbers():
        two = ll.load("attn-2l")
        paths = ll.AttentionOnly(two).paths(tokens[:2, :8])
        profile = ll.linearity_profile(model, tokens, progress=False)
        return [
            ll.induction_scores(two, rows_per_period=2).to_dataframe()["prefix_matching"].tolist(),
            profile.to_dataframe()["block_r2"].tolist(),
            [paths.max_error],
        ]

    expected = numbers()
    torch.set_default_dtype(default)
    try:
        found = numbers()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
