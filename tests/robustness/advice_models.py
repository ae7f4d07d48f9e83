"""Advice on model folders, native shapes, files and training."""

import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path

import torch
from advice_parts import (
    IDS,
    X,
    Y,
    batch,
    directions,
    known,
    toy,
    trained,
)  # fmt: skip

import lens_linear as ll
from lens_linear import (
    models,
)
from lens_linear.files import require_folder, write_text
from lens_linear.models import ModelSpec, capture
from lens_linear.training import Phase, Recipe, validation_loss

SPEC = ModelSpec(1, d_model=16, n_heads=2, d_vocab=24, n_ctx=16)
STREAM = IDS.repeat(8, 1).flatten()


def folder(name, **files):
    """A folder with these files; ``config`` is that of a tiny Llama with its weights."""
    place = Path(name)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for file, content in files.items():
        (place / file.replace("__", ".")).write_text(content)
    return place


@functools.cache
def tiny():
    """A Llama of Hugging Face's own making."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=24, max_position_embeddings=32, **sizes))


def llama(name="llama", **changes):
    """Its folder, with entries of its configuration changed."""
    tiny().save_pretrained(name, safe_serialization=True)
    config = Path(name, "config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return name


def without(name, *files):
    for file in files:
        Path(name, file).unlink()
    return name


def pickled(name="pickled"):
    torch.save(
        tiny().state_dict(), Path(without(llama(name), "model.safetensors"), "pytorch_model.bin")
    )
    return name


def kept(name="kept", change=None):
    """A model folder of our own, its card changed."""
    ll.save_model(toy(), name)
    card = Path(name, "card.json")
    if change is not None:
        card.write_text(change(card.read_text()))
    return name


def recipe(**changes):
    phase = Phase(steps=2, rows=2, length=16)
    return Recipe(
        **{"name": "advice", "spec": SPEC, "phases": (phase,), "precision": "float32", **changes}
    )


def run(**options):
    return ll.train(recipe(), STREAM, progress=False, **options)


def regularised(weight, dtype=torch.float16, *, scale=1.0):
    """The gradient of the penalty at states of one precision."""
    states = [row.to(dtype).requires_grad_() for row in torch.tensor([[[1e-3, 0.0]], [[0.0, 1.0]]])]
    (ll.CosineRegularizer(weight)(states) * scale).backward()
    return states[0].grad


ROWS = [
    # names of models
    (
        lambda: ll.load(""),
        r"see lens_linear.available_models\(\)",
        lambda: ll.load(ll.available_models()["name"][0]),
    ),
    (
        lambda: ll.load("attn-1l", dtype=torch.int8),
        "e.g. torch.bfloat16",
        lambda: ll.load("attn-1l", dtype=torch.bfloat16),
    ),
    (
        lambda: ll.load("attn-1l", device="gpu"),
        "such as 'cpu'",
        lambda: ll.load("attn-1l", device="cpu"),
    ),
    (
        lambda: ll.load("attn-1l", device_map="auto"),
        "pass device instead",
        lambda: ll.load("attn-1l", device="cpu"),
    ),
    (lambda: ll.load("attn-1l", revision="main"), "leave it out", lambda: ll.load("attn-1l")),
    (
        lambda: ll.load("attn-1l", n_ctx=10**6),
        "leave it out, or pass a smaller value",
        lambda: (ll.load("attn-1l"), ll.load("attn-1l", n_ctx=64)),
    ),
    (
        lambda: ll.load("attn-1l", config={}),
        "config does not go with .*; leave it out",
        lambda: ll.load("attn-1l"),
    ),
    (lambda: ll.load("attn-1l", checkpoint=3), "leave it out", lambda: ll.load("attn-1l")),
    (
        lambda: ll.load("gpt-micro", checkpoint=3),
        r"must be one of \[0, 100, 300, 1000\]",
        lambda: ll.load("gpt-micro", checkpoint=100),
    ),
    (
        lambda: ll.load("gpt-micro@last"),
        "write e.g. gpt-micro@300",
        lambda: (ll.load("gpt-micro@300"), ll.load("gpt-micro")),
    ),
    (
        lambda: ll.load("owner/model", revision="a", checkpoint=3),
        "not both",
        lambda: ll.load("gpt-micro", checkpoint=100),
    ),
    (lambda: ll.load("./absent"), "pass a bundled name: attn-0l", lambda: ll.load("attn-0l")),
    (lambda: ll.load("owner/absent"), "use a bundled model: .*attn-1l", lambda: ll.load("attn-1l")),
    # folders
    (lambda: ll.load(llama() + "/config.json"), "pass its folder", lambda: ll.load(llama())),
    (
        lambda: ll.load(folder("empty")),
        "pass the folder that does",
        lambda: (ll.load(llama()), ll.load(kept())),
    ),
    (
        lambda: ll.load(pickled()),
        r"with model.save_pretrained of transformers",
        lambda: ll.load(llama("pickled")),
    ),
    (
        lambda: ll.load(without(llama("bare"), "model.safetensors")),
        "copy the folder again",
        lambda: ll.load(llama("bare")),
    ),
    (
        lambda: ll.load(llama("nan", rms_norm_eps=float("nan"))),
        "mend it or copy",
        lambda: ll.load(llama("nan", rms_norm_eps=1e-6)),
    ),
    (
        lambda: ll.load(llama("deep", num_hidden_layers=7)),
        "copy the folder again",
        lambda: ll.load(llama("deep")),
    ),
    (
        lambda: ll.load(llama(), device="cpu", device_map="auto"),
        "pass device or device_map, not both",
        lambda: ll.load(llama(), device="cpu"),
    ),
    (
        lambda: ll.load(kept(change=lambda text: "{")),
        "train the model again",
        lambda: ll.load(kept()),
    ),
    (
        lambda: ll.load(kept(change=lambda text: text.replace('"sha256": "', '"sha256": "0'))),
        "do not match the checksum",
        lambda: ll.load(kept()),
    ),
    # native shapes
    (
        lambda: ModelSpec(1, d_model=10, n_heads=4, d_vocab=9),
        "choose e.g. d_model=128, n_heads=4",
        lambda: ModelSpec(1, d_model=128, n_heads=4, d_vocab=9),
    ),
    (
        lambda: ModelSpec.from_dict({"layers": 1}),
        "use some of",
        lambda: ModelSpec.from_dict(SPEC.to_dict()),
    ),
    (
        lambda: ModelSpec.from_dict({"n_layers": 1}),
        "give n_layers, d_model, n_heads and d_vocab",
        lambda: ModelSpec.from_dict({"n_layers": 1, "d_model": 8, "n_heads": 2, "d_vocab": 9}),
    ),
    (
        lambda: ll.toy_model(normalised=True),
        "choose among norm, activation, gated, d_mlp and positions",
        lambda: ll.toy_model(
            norm="LN", activation="relu", gated=True, d_mlp=9, positions="rotary", attn_only=False
        ),
    ),
    (
        lambda: models.checked(3),
        r"use lens_linear.load\(name_or_folder\)",
        lambda: models.checked(ll.load("attn-1l")),
    ),
    (
        lambda: models.site_parameters(toy(), 0, "ffn"),
        "use site='block'",
        lambda: models.site_parameters(toy(), 0, "block"),
    ),
    (
        lambda: capture.run(toy(), IDS, edits=[3]),
        r"\[\(\(0, 'attn_out'\), torch.zeros_like\)\]",
        lambda: capture.run(toy(), IDS, edits=[((0, "attn_out"), torch.zeros_like)]),
    ),
    (
        lambda: capture.run(toy(), IDS, record=[3]),
        r"must be a pair \(layer, what\)",
        lambda: capture.run(toy(), IDS, record=[(0, "z")]),
    ),
    (
        lambda: capture.run(toy(), IDS, record=[(0, "zed")]),
        "must be one of .*'z'",
        lambda: capture.run(toy(), IDS, record=[(0, "z")]),
    ),
    (
        lambda: ll.gain_profile(toy(n_layers=0), IDS, torch.ones(1, 16)),
        "use one with layers",
        lambda: ll.gain_profile(toy(), IDS, directions()),
    ),
    (
        lambda: ll.linearity_profile(broken(), IDS),
        "check the weights, or load the model in a wider precision",
        lambda: ll.linearity_profile(toy(), IDS),
    ),
    # files
    (
        lambda: write_text("no/such/folder/x", "a"),
        "make the folder first",
        lambda: (os.makedirs("no/such/folder", exist_ok=True), write_text("no/such/folder/x", "a")),
    ),
    (
        lambda: write_text("/dev/null", "a"),
        "choose another name",
        lambda: write_text("null.txt", "a"),
    ),
    (lambda: write_text(folder("a-folder"), "a"), "is a folder", lambda: write_text("a-file", "a")),
    (
        lambda: write_text(guarded(0o444), "a"),
        "choose another name, or allow writing it",
        lambda: (write_text("other.txt", "a"), write_text(guarded(0o644), "a")),
    ),
    (lambda: write_text(loop(), "a"), "choose another", lambda: write_text("other.txt", "a")),
    (
        lambda: require_folder("out", str(write_text("a-file", "a"))),
        "is a file",
        lambda: require_folder("out", "a-new-folder"),
    ),
    (lambda: ll.load("~nobody-here/x"), "write it without ~", lambda: ll.load("attn-1l")),
    (lambda: ll.load("\ud800"), "write it anew", lambda: ll.load("attn-1l")),
    # training
    (
        lambda: Phase(steps=2, periods=(9, 3)),
        r"e.g. \(8, 60\)",
        lambda: Phase(steps=2, periods=(8, 60)),
    ),
    (lambda: recipe(phases=()), "add a Phase", recipe),
    (
        lambda: recipe(phases=(Phase(steps=2, length=64),)),
        "shorten it",
        lambda: recipe(phases=(Phase(steps=2, length=16),)),
    ),
    (
        lambda: recipe(spec=dataclasses.replace(SPEC, n_layers=0), cosine=0.3),
        "leave it out",
        lambda: recipe(spec=dataclasses.replace(SPEC, n_layers=0)),
    ),
    (lambda: recipe(name="../up"), "choose e.g. 'my-model'", lambda: recipe(name="my-model")),
    (
        lambda: Recipe.from_dict({"name": "a"}),
        "needed: name, spec, phases",
        lambda: Recipe.from_dict(
            {"name": "a", "spec": SPEC.to_dict(), "phases": [{"steps": 2, "length": 16}]}
        ),
    ),
    (
        lambda: run(steps=3),
        "change it there, or pass its spec",
        lambda: (
            ll.train(recipe(phases=(Phase(steps=3, rows=2, length=16),)), STREAM, progress=False),
            ll.train(recipe().spec, STREAM, steps=3, progress=False),
        ),
    ),
    (
        lambda: trained(batches=3),
        "e.g. lambda step: rows",
        lambda: trained(batches=lambda step: IDS),
    ),
    (
        lambda: trained(batches=lambda step: (IDS, IDS[:3])),
        "one label a position",
        lambda: trained(batches=lambda step: (IDS, IDS)),
    ),
    (
        lambda: trained(batches=batch, loss_mask="all"),
        "pass a tensor of True and False, or a function",
        lambda: (
            trained(batches=batch, loss_mask=torch.ones(16).bool()),
            trained(batches=batch, loss_mask=lambda tokens: tokens > 0),
        ),
    ),
    (
        lambda: trained(batches=batch, loss_mask=torch.zeros(16).bool()),
        "leaves no prediction",
        lambda: trained(batches=batch, loss_mask=torch.ones(16).bool()),
    ),
    (
        lambda: validation_loss(toy().original_model, ll.Task(IDS, positions=-2)),
        "pass its tokens, or",
        lambda: validation_loss(toy().original_model, ll.Task(IDS, positions=-2).tokens),
    ),
    (
        lambda: ll.train(recipe(), IDS, progress=False),
        r"flatten it, or use encode_stream\(tokenizer, text\)",
        lambda: (
            run(),
            models.encode_stream(known().tokenizer, "a text")
            if hasattr(known().tokenizer, "encode_batch")
            else run(),
        ),
    ),
    (
        lambda: trained(batches=batch, learning_rate=1e30),
        "lower learning_rate",
        lambda: trained(batches=batch, learning_rate=1e-3),
    ),
    (
        lambda: ll.CosineRegularizer()([X]),
        "the stream before the first block and after each block",
        lambda: ll.CosineRegularizer()([X, X + 1]),
    ),
    (
        lambda: ll.CosineRegularizer()([X, Y]),
        "pass whole layers",
        lambda: ll.CosineRegularizer()([X, X]),
    ),
    (
        lambda: (
            run(checkpoint="run"),
            ll.train(recipe(seed=1), STREAM, checkpoint="run", progress=False),
        )[1],
        "remove it, or name another file|already|another recipe",
        lambda: ll.train(recipe(seed=1), STREAM, checkpoint="run-2", progress=False),
    ),
    (
        lambda: ll.CosineRegularizer()([X[:0], X[:0]]),
        "pass the stream of a batch that is not empty",
        lambda: ll.CosineRegularizer()([X, X + 1]),
    ),
    (
        lambda: regularised(1e6),
        "use bfloat16 or float32 states, or scale the loss by less",
        lambda: (
            regularised(1e6, torch.bfloat16),
            regularised(1e6, torch.float32),
            regularised(1.0),
        ),
    ),
    (
        lambda: regularised(1e-9),
        r"or scale the loss by more \(torch.amp.GradScaler\)",
        lambda: regularised(1e-9, scale=1e9),
    ),
]


@functools.cache
def broken():
    model = ll.toy_model(n_layers=2, d_model=16, n_heads=2, d_vocab=24, n_ctx=32)
    with torch.no_grad():
        model.blocks[1].attn.W_V[...] = torch.nan
    return model


def guarded(mode):
    Path("guarded.txt").write_text("old")
    os.chmod("guarded.txt", mode)
    return "guarded.txt"


def loop():
    if not os.path.lexists("loop"):
        os.symlink("loop", "loop")
    return "loop"
