"""Advice on models that are not what an analysis needs: odd attention, norms, embeddings, encoders."""

from types import SimpleNamespace
from unittest.mock import patch

import torch
from advice_parts import IDS, PROBE, SHAPE, attribution, directions, mlp, native, toy, under, view
from transformer_lens import TransformerBridge

import lens_linear as ll
from lens_linear import circuits, constructions, models
from lens_linear.circuits.attention.components import HeadOutputs
from lens_linear.models import hooks
from lens_linear.models.describe import weights
from lens_linear.models.stand_ins import BlockStandIns

GETTER = "models.describe.weights._getter"


def bent(point, call, change=lambda x: 2 * x.tanh(), model=None):
    """Make a call on a model in which something else happens at a hook point than its weights say."""
    model = toy(norm="LN") if model is None else model
    model.add_hook(point, lambda tensor, hook: change(tensor))
    try:
        return call(model)
    finally:
        model.reset_hooks()


def profiled(model):
    return ll.linearity_profile(model, IDS.repeat(2, 1))


def lacking(matrix, call=models.read_weights):
    """Make a call on a model that does not show one of its matrices."""
    get = weights._getter

    def getter(model, dtype):
        return lambda name: None if name == matrix else get(model, dtype)(name)

    return under({GETTER: getter}, lambda: call(toy()))


def configured(call, model=None, **changes):
    """Make a call on a model whose configuration says something else."""
    model = toy() if model is None else model
    with patch.multiple(model.cfg, create=True, **changes):
        return call(model)


def unseen(what, call):
    """Make a call on a model that shows nothing at a spot."""
    has = models.CheckedModel.has

    def shows(model, spot):
        return spot[1] != what and has(model, spot)

    return under({"models.checked.CheckedModel.has": shows}, lambda: call(toy()))


def strict(limits, call):
    """Make a call where no gap is small enough."""
    return under({limits: {torch.float32: -1.0}}, call)


MECHANISM = "circuits.induction.mechanism.MIN_GAIN"
SHAPES = {"models.checked.CheckedModel.n_post_norm": 2}


def parted():
    return HeadOutputs(models.checked(toy(norm="LN")), models.read_weights(toy(norm="LN")))


def unplaced(call):
    """Make a call on a head whose layer turns nothing and whose model adds no positions."""
    rotary = "circuits.heads.head_circuit.read_rotary"
    with patch(f"lens_linear.{rotary}", lambda *_, **__: None):
        return call(ll.head(toy(positions="rotary"), "L0H0"))


def silent(_self, _layer):
    return lambda *_: None


def cached():
    return context(path="cache")


def hooked_nowhere():
    with hooks.hooked(models.checked(toy()), [("nowhere", print)]):
        return True


ACTIVATIONS = "linearity_profile and the other analyses of activations still work"
PATCH = "use lens_linear.patch, which runs the model itself"


def patched(model):
    return ll.patch(model, IDS[:1], IDS[1:2])


def dla(model):
    return ll.direct_logit_attribution(model, IDS[:2])


def qk(model):
    return ll.qk_attribution(model, IDS[:2], "L1H0")


def scores(model):
    return models.attention_scores(model, IDS, 0)


def pattern(model):
    return circuits.attention_pattern(model, IDS[0], 0)


def flat(x):
    return x.softmax(-1).tril() + 0.0 * x


def ragged(call):
    """Make a call where a pattern has other heads than queries and keys."""
    run = models.run

    def latent(*args, **options):
        found = run(*args, **options)
        found.recorded[(0, "pattern")] = found.recorded[(0, "pattern")].repeat(1, 2, 1, 1)
        return found

    return under({"models.frozen.attention_scores.run": latent}, call)


def encoder():
    model = TransformerBridge.__new__(TransformerBridge)
    torch.nn.Module.__init__(model)
    model.__dict__["cfg"] = SimpleNamespace(model_name="encoder")
    return model


def turning(call, n_ctx=32):
    """Make a call on a model whose rotation changes with the length of a text."""
    words = {"rope_type": "dynamic", "original_max_position_embeddings": 8}
    model = toy(positions="rotary")
    config = SimpleNamespace(rope_parameters=words)
    with patch.object(model.original_model, "config", config, create=True):
        return configured(call, model, n_ctx=n_ctx)


def failing(error):
    def change(_tensor):
        raise error

    return lambda: bent("blocks.1.hook_in", lambda m: models.run(m, IDS), change)


def context(lengths=(16,) * 12, model=None, **options):
    return models.freeze_context(model or toy(), IDS, torch.tensor(lengths), **options)


def broken(name="tok_embed"):
    model = ll.toy_model(**SHAPE)
    getattr(model.original_model, name).weight.data[IDS[0, -1]] = torch.nan
    return model


def unreadable():
    return models.read_weights(broken())


def captured():
    """What one head reads, as its softmax sees it."""
    run = models.run(toy(), IDS, record=[(0, "q"), (0, "k")])
    return constructions.attention_head_memory(
        run[(0, "k")][0, :, 0], run[(0, "q")][0, :, 0], n_patterns=(2, 4), max_queries=8
    )


def dial(model):
    return constructions.head_dial(model, IDS.repeat(1, 3)[:, :32], heads=["L0H0"], betas=(1.0,))


def without_room(call):
    return under({"models.batch_memory.free_bytes": lambda _device: 20_000}, call)


ROWS = [
    # weights that do not say what the model does
    *(
        (
            lambda point=point: bent(point, models.read_weights),
            ACTIVATIONS,
            lambda point=point: bent(point, profiled),
        )
        for point in ("blocks.0.attn.hook_q", "blocks.0.hook_in", "unembed.hook_out")
    ),
    (
        lambda: bent("blocks.0.ln1.hook_out", models.read_weights),
        "composition_scores reads them as they are stored",
        lambda: bent("blocks.0.ln1.hook_out", ll.composition_scores),
    ),
    *(
        (
            lambda matrix=matrix: lacking(matrix),
            ACTIVATIONS,
            lambda matrix=matrix: lacking(matrix, profiled),
        )
        for matrix in ("W_E", "W_U", "W_Q")
    ),
    (lambda: unseen("z", models.read_weights), ACTIVATIONS, lambda: unseen("z", profiled)),
    (
        lambda: unseen("pattern", lambda model: ll.induction_scores(model, **PROBE)),
        ACTIVATIONS,
        lambda: unseen("pattern", profiled),
    ),
    (
        lambda: configured(models.read_weights, normalization_type="odd"),
        ACTIVATIONS,
        lambda: configured(profiled, normalization_type="odd"),
    ),
    (
        hooked_nowhere,
        ACTIVATIONS,
        lambda: profiled(toy()),
    ),
    (
        lambda: under({"models.capture._is_finite": lambda *_, **__: True}, unreadable),
        "check the file it came from, or load the model in a wider precision",
        lambda: models.read_weights(toy()),
    ),
    (
        lambda: models.read_attention(toy(n_layers=0)),
        r"use AttentionOnly\(model\).bigrams\(\)",
        lambda: ll.AttentionOnly(toy(n_layers=0)).bigrams(),
    ),
    (
        lambda: ll.induction_scores(toy(n_ctx=4)),
        "look at its patterns with attention_pattern",
        lambda: circuits.attention_pattern(toy(n_ctx=4), IDS[0, :4], 0),
    ),
    # scores and parts that do not add up
    (
        lambda: strict("circuits.attention.attribution._LIMITS", lambda: qk(toy())),
        "look at its pattern with circuits.attention_pattern",
        lambda: pattern(toy()),
    ),
    (
        lambda: strict("circuits.attention.components._LIMITS", lambda: dla(toy())),
        PATCH,
        lambda: patched(toy()),
    ),
    (
        lambda: strict("circuits.patching.direct._LIMITS", lambda: dla(toy())),
        PATCH,
        lambda: patched(toy()),
    ),
    (
        lambda: strict("models.frozen.frozen_attention._LIMITS", lambda: view().paths(IDS)),
        PATCH,
        lambda: patched(toy()),
    ),
    (
        lambda: under(SHAPES, parted),
        PATCH,
        lambda: patched(toy()),
    ),
    (
        lambda: bent("blocks.0.attn.hook_pattern", scores, flat),
        r"\(its OV circuits can\)",
        lambda: bent("blocks.0.attn.hook_pattern", lambda m: ll.head(m, "L0H0").ov, flat),
    ),
    (
        lambda: ragged(lambda: scores(toy())),
        "its patterns and outputs can be read",
        lambda: pattern(toy()),
    ),
    (
        lambda: unplaced(lambda head: head.positional_qk()),
        "use .qk",
        lambda: unplaced(lambda head: head.qk),
    ),
    (
        lambda: configured(
            lambda m: models.read_rotary(m, 0, 4), positional_embedding_type="rotary"
        ),
        r"\(OV circuits can\)",
        lambda: ll.head(toy(), "L0H0").ov,
    ),
    (
        lambda: turning(lambda m: ll.head(m, "L0H0").qk_at(3)),
        "load it with n_ctx=8, or use qk_attribution on tokens",
        lambda: (turning(lambda m: ll.head(m, "L0H0"), n_ctx=8), turning(qk)),
    ),
    (
        lambda: under(SHAPES, lambda: ll.AttentionOnly(toy())),
        "use head or composition_scores",
        lambda: (ll.head(toy(), "L0H0"), ll.composition_scores(toy(), n_random=2)),
    ),
    (
        lambda: ll.AttentionOnly(native(output_logits_soft_cap=30.0)),
        "use a model without output_logits_soft_cap",
        lambda: ll.AttentionOnly(native()),
    ),
    # models that are no decoders, or lack a place
    (
        lambda: models.checked(encoder()),
        "use a causal decoder",
        lambda: models.checked(toy()),
    ),
    (
        lambda: ll.gain_profile(native(attention_dir="bidirectional"), IDS, directions()),
        "use a decoder",
        lambda: ll.gain_profile(toy(), IDS, directions()),
    ),
    (
        lambda: models.run(toy(), IDS, record=[(0, "ffn_in")]),
        r"name another spot, e.g. \(0, 'resid_pre'\)",
        lambda: models.run(toy(), IDS, record=[(0, "resid_pre")]),
    ),
    (
        lambda: under(
            {"models.stand_ins.BlockStandIns._learn": silent},
            lambda: BlockStandIns(models.checked(mlp())),
        ),
        "use lens_linear.linearize, which runs them all",
        lambda: ll.linearize(mlp(), IDS, layers=[0]).__enter__(),
    ),
    # memory and passes that fail
    (
        lambda: without_room(lambda: profiled(toy())),
        r"pass shorter sequences, e.g. lens_linear.tokenize\(model, text, length=256\)",
        lambda: without_room(lambda: ll.linearity_profile(toy(), IDS.repeat(8, 1)[:, :4])),
    ),
    (
        failing(torch.OutOfMemoryError("no memory")),
        "pass a smaller batch_size, or shorter sequences",
        lambda: ll.linearity_profile(toy(), IDS, batch_size=2),
    ),
    (
        failing(RuntimeError("shapes")),
        "use another model",
        lambda: models.run(toy(), IDS),
    ),
    (
        lambda: models.run(broken("head"), IDS),
        "check the unembedding and the final norm",
        lambda: models.run(toy(), IDS),
    ),
    (
        lambda: models.visit_sites(toy(), IDS, lambda *_: None, sites=["ffn"]),
        r"choose among \('block', 'attn'\)",
        lambda: models.visit_sites(toy(), IDS, lambda *_: None, sites=["block", "attn"]) or True,
    ),
    # contexts that are held still
    (lambda: context((0,) * 12), "between 1 and 16, one for each of 12", context),
    (
        lambda: under({"models.frozen.frozen_context._TOLERANCE": {torch.float32: -1.0}}, cached),
        "leave path out to run whole prompts",
        lambda: under({"models.frozen.frozen_context._TOLERANCE": {torch.float32: -1.0}}, context),
    ),
    (
        lambda: context(model=broken()),
        "look at that layer's weights, or load the model in a wider precision",
        context,
    ),
    (
        lambda: configured(dial, attn_scores_soft_cap=5.0),
        "capture queries and keys and call attention_head_memory",
        captured,
    ),
    # questions that a model is not asked
    (
        lambda: circuits.verify_induction(native(d_vocab_out=9), induction=["L1H0"], **PROBE),
        r"pass lens_linear.Task\(tokens, labels=...\)",
        lambda: circuits.in_context_loss(native(d_vocab_out=9), ll.Task(IDS, labels=IDS % 9)),
    ),
    (
        lambda: ll.stats.score_model(native(d_vocab_out=9), IDS),
        r"pass lens_linear.Task\(tokens, labels=...\)",
        lambda: ll.stats.score_model(native(d_vocab_out=9), ll.Task(IDS, labels=IDS % 9)),
    ),
    (
        lambda: ll.stats.score_model(native(attention_dir="bidirectional"), IDS),
        r"lens_linear.Task\(tokens, labels=..., positions=...\)",
        lambda: ll.stats.score_model(
            native(attention_dir="bidirectional"), ll.Task(IDS, labels=IDS[:, 0], positions=-1)
        ),
    ),
    (
        lambda: under({MECHANISM: -99.0}, lambda: circuits.verify_induction(toy(), **PROBE)),
        r"pass induction=\[\(layer, head\)\]",
        lambda: under(
            {MECHANISM: -99.0},
            lambda: circuits.verify_induction(toy(), induction=[(1, 0)], n_controls=1, **PROBE),
        ),
    ),
    (
        lambda: circuits.skip_trigram_bugs([], torch.tensor([[5, 1, 2], [5, 3, 4]])),
        r"pass head_circuit\(...\)",
        lambda: circuits.skip_trigram_bugs(
            [circuits.head_circuit(toy(), 1, 0)], torch.tensor([[5, 1, 2], [5, 3, 4]])
        ),
    ),
    (
        lambda: under(
            {"circuits.attention.attribution.MAX_CELLS": 9}, lambda: attribution().scores
        ),
        r"use .map\(query, key\), .mean_map\(\) or fewer tokens",
        lambda: (attribution().map(5, 2), attribution().mean_map(), qk(toy()).scores),
    ),
    (
        lambda: models.run(toy(positions="rotary"), IDS, record=[(0, "rot_q")]),
        "use another site, or another model",
        lambda: models.run(toy(positions="rotary"), IDS, record=[(0, "q")]),
    ),
]
