"""Patching, path patching and direct attribution against interventions written out in plain torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from circuit_zoo import hugging_face, ids, native

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError, LensLinearWarning, UnsupportedModelError
from lens_linear.models.capture import run

FULL = {"attn_only": False, "d_mlp": 24, "normalization_type": "LN"}
SHAPES = [
    {},
    FULL,
    {"n_heads": 4, "n_key_value_heads": 2, "normalization_type": "RMS", "n_layers": 3},
]


def prompts(model, length=6, rows=3):
    clean = ids(model, rows, length, seed=1)
    corrupted = clean.clone()
    corrupted[:, 2] = (corrupted[:, 2] + 5) % model.cfg.d_vocab
    return ll.Task(clean, labels=clean[:, 1], positions=-1), corrupted


def loss_of(model, tokens, labels, edits=()):
    logits = run(model, tokens, edits=edits).logits[:, -1]
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none").double()


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("into", ["clean", "corrupted"])
def test_a_patch_is_the_run_with_one_activation_of_the_other(changes, into):
    model = native(**changes)
    task, corrupted = prompts(model)
    runs = {"clean": task.tokens, "corrupted": corrupted}
    base = runs[into]
    source = runs["clean" if into == "corrupted" else "corrupted"]
    labels = task.labels[:, 0]
    before, goal = (loss_of(model, t, labels) for t in (base, source))
    kinds = {"head": "z", "residual": "resid_pre", "attn_out": "attn_out"}
    if not model.cfg.attn_only:
        kinds["ffn_out"] = "ffn_out"
    for what, name in kinds.items():
        for by_position in (False, True):
            # Batches of 2 rows for 3, so that copies and pieces of the rows are both used.
            found = ll.patch(
                model, task, corrupted, what=what, into=into, by_position=by_position, batch_size=7
            )
            frame = found.to_dataframe()
            assert found.base == pytest.approx(float(before.mean()), rel=1e-4)
            for _, row in frame.sample(min(4, len(frame)), random_state=0).iterrows():
                theirs = run(model, source, record=[(row["layer"], name)])[(row["layer"], name)]

                def edit(x, theirs=theirs, row=row, what=what):
                    x = x.clone()
                    at = slice(None) if row["position"] < 0 else row["position"]
                    if what == "head":
                        head = int(row["head"].split("H")[1])
                        x[:, at, head] = theirs[:, at, head]
                    else:
                        x[:, at] = theirs[:, at]
                    return x

                after = loss_of(model, base, labels, [((row["layer"], name), edit)])
                assert row["value"] == pytest.approx(float(after.mean()), rel=1e-4, abs=1e-5)
                share = float((after - before).mean() / (goal - before).mean())
                assert row["effect"] == pytest.approx(share, rel=1e-2, abs=1e-4)
                spread = float((after - before).std() / 3**0.5 / abs((goal - before).mean()))
                assert row["effect_se"] == pytest.approx(spread, rel=1e-2, abs=1e-4)


def test_all_of_the_stream_moves_all_of_the_answer():
    model = native(**FULL)
    task, corrupted = prompts(model)
    frame = ll.patch(model, task, corrupted, what="residual", by_position=False).to_dataframe()
    np.testing.assert_allclose(frame["effect"], 1, atol=1e-4)
    frame = ll.patch(model, task, corrupted, what="residual").to_dataframe()
    first = frame[frame["layer"] == 0].set_index("position")["effect"]
    assert first[2] == pytest.approx(1, abs=1e-4)  # only there do the prompts differ
    np.testing.assert_allclose(first.drop(2), 0, atol=1e-4)


@pytest.mark.parametrize("norm", [None, "LN"])
def test_paths_move_the_logits_exactly_from_one_run_to_the_other(norm):
    model = native(normalization_type=norm)
    task, corrupted = prompts(model)

    def read(logits, labels):
        return logits.gather(1, labels[:, None])[:, 0]  # linear in the logits, so effects add up

    found = ll.patch(model, task, corrupted, what="path", metric=read)
    frame = found.to_dataframe()
    assert frame["effect"].sum() == pytest.approx(1, abs=1e-3)
    view, labels = ll.AttentionOnly(model), task.labels[:, 0]
    terms = [{t.name: t.logits for t in view.paths(t).terms} for t in (corrupted, task.tokens)]
    base = model(corrupted)[:, -1].double()
    for name in ("token → L0H1", "token → L0H0 → L1H2", "token"):
        moved = base + (terms[1][name] - terms[0][name])[:, -1]
        value = frame.set_index("site").loc[name, "value"]
        assert value == pytest.approx(float(read(moved, labels).mean()), abs=1e-4)
    with pytest.raises(UnsupportedModelError, match="attention-only"):
        ll.patch(native(**FULL), task, corrupted, what="path")


def by_hand(model, base, delta, receivers, via, norm):
    """Edits that recompute single readers with the model's own norm and matrices on stream + delta."""
    edits = []
    for layer, head in receivers:
        stream = run(model, base, record=[(layer, "resid_pre")])[(layer, "resid_pre")]
        module = model.original_model.layers[layer]
        for side in via:
            weight = {"q": model.W_Q, "k": model.W_K, "v": model.W_V}[side]
            heads = weight.shape[1]
            slot = head if side == "q" else head // (model.cfg.n_heads // heads)
            own = run(model, base, record=[(layer, side)])[(layer, side)]
            if norm == "recomputed":
                reads = [
                    x if module.ln1 is None else module.ln1(x) for x in (stream, stream + delta)
                ]
                change = (reads[1] - reads[0]) @ weight[layer, slot]
            else:
                centred = stream - stream.mean(-1, keepdim=True)
                scale = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
                shift = (delta - delta.mean(-1, keepdim=True)) / scale * module.ln1.weight
                change = shift @ weight[layer, slot]

            def edit(x, own=own, slot=slot, change=change):
                x = x.clone()
                x[:, :, slot] = own[:, :, slot] + change
                return x

            edits.append(((layer, side), edit))
    return edits


@pytest.mark.parametrize(
    "changes, norm",
    [
        ({}, "recomputed"),
        ({**FULL, "n_layers": 3}, "recomputed"),
        ({"normalization_type": "LN"}, "frozen"),
        ({"n_heads": 4, "n_key_value_heads": 2, "normalization_type": "LN"}, "recomputed"),
    ],
)
def test_path_patching_changes_what_the_receivers_read_and_nothing_else(changes, norm):
    model = native(**changes)
    task, corrupted = prompts(model)
    labels, top = task.labels[:, 0], model.cfg.n_layers - 1
    receivers = [(top, 1), (1, 2)] if top > 1 else [(top, 2)]
    z = [run(model, t, record=[(0, "z")])[(0, "z")][:, :, 1] for t in (corrupted, task.tokens)]
    delta = (z[1] - z[0]) @ model.W_O[0, 1]
    for via in (["k"], ["q", "v"], ["q", "k", "v"]):
        found = ll.path_patch(
            model,
            task,
            corrupted,
            senders="L0H1",
            receivers=receivers,
            via=via,
            norm=norm,
            batch_size=2,
        )
        with torch.no_grad():
            edits = by_hand(model, corrupted, delta, receivers, via, norm)
        after = loss_of(model, corrupted, labels, edits).mean()
        assert float(found.values[0]) == pytest.approx(float(after), rel=1e-4, abs=1e-5)
        assert abs(found.values[0] - found.base) > 1e-4
    every = ll.path_patch(model, task, corrupted, receivers=receivers)
    assert [name for name in every["sender"] if name.startswith("L0")] == [
        f"L0H{h}" for h in range(model.cfg.n_heads)
    ]


def test_the_direct_path_to_the_logits_is_patched_before_the_final_norm():
    model = native(**FULL)
    task, corrupted = prompts(model)
    found = ll.path_patch(model, task, corrupted, senders=["L0H2"], into="clean")
    spots = [(0, "z"), (1, "resid_post")]
    clean, other = (run(model, t, record=spots) for t in (task.tokens, corrupted))
    delta = (other[(0, "z")] - clean[(0, "z")])[:, :, 2] @ model.W_O[0, 2]
    with torch.no_grad():
        stream = model.original_model.ln_out(clean[(1, "resid_post")] + delta)
        logits = (stream @ model.W_U + model.b_U)[:, -1]
    loss = torch.nn.functional.cross_entropy(logits, task.labels[:, 0])
    assert float(found.values[0]) == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("via", ["q", "k", "v"])
def test_a_cut_path_takes_one_writer_out_of_one_reader(via):
    model = native(**FULL)
    tokens, reference = ids(model, 2, 7), ids(model, 5, 8, seed=4)
    z = run(model, tokens, record=[(0, "z")])[(0, "z")][:, :, 1]
    mean = run(model, reference, record=[(0, "z")])[(0, "z")][:, :7, 1].mean(0)
    for given, kept in ((None, 0.0), (reference, mean)):
        with torch.no_grad():
            edits = by_hand(
                model, tokens, (kept - z) @ model.W_O[0, 1], [(1, 2)], [via], "recomputed"
            )
        expected = run(model, tokens, edits=edits).logits
        with ll.cut_path(model, "L0H1", "L1H2", via=via, tokens=given):
            found = model(tokens)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert float((found - model(tokens)).abs().max()) > 1e-3
    before = model(tokens)
    with ll.cut_path(model, (0, 1), "logits"):
        found = model(tokens)
    shift = z @ model.W_O[0, 1]
    stream = run(model, tokens, record=[(1, "resid_post")])[(1, "resid_post")]
    with torch.no_grad():
        logits = model.original_model.ln_out(stream - shift) @ model.W_U + model.b_U
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(tokens), before)


def test_the_circuit_of_a_trained_model_is_found(attn_2l):
    row = torch.tensor([[0, 100, 205, 310, 415, 520, 100, 205, 310]])
    other = row.clone()
    other[0, 4] = 777  # what followed the last time
    clean = ll.Task(row, labels=[415], metric="logit_difference")
    effects = ll.patch(attn_2l, clean, other)["effect"].abs().to_numpy()
    names = ll.patch(attn_2l, clean, other).names
    assert {names[i] for i in effects.argsort()[-2:]} <= {"L1H1", "L1H3", "L0H0"}
    moved = row.clone()
    moved[0, 3] = 600  # what stood before it
    found = ll.path_patch(attn_2l, clean, moved, receivers=["L1H1", "L1H3"], via="k")
    frame = found.to_dataframe().set_index("sender")["effect"]
    assert frame.idxmax() == "L0H0" and frame["L0H0"] > 0.5


def test_what_cannot_be_patched_is_said():
    model = native()
    task, corrupted = prompts(model)
    for call, words in (
        (lambda: ll.patch(model, task, corrupted[:, :5]), "must have the shape of clean"),
        (lambda: ll.patch(model, task, corrupted, what="heads"), "did you mean 'head'"),
        (
            lambda: ll.path_patch(model, task, corrupted, senders="L1H0", receivers="L1H1"),
            "layer below",
        ),
        (lambda: ll.path_patch(model, task, corrupted, receivers=[]), "such as 'L1H3'"),
        (lambda: ll.path_patch(model, task, corrupted, receivers="L9H1"), "at most 1"),
        (lambda: ll.cut_path(model, "L0H0", ["L1H0", "L1H1"]).__enter__(), "one head"),
        (lambda: ll.cut_path(model, "L0H0", "L1H0", via="o").__enter__(), "via must be one of"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            call()
    with pytest.raises(UnsupportedModelError, match="no 'ffn_out'"):
        ll.patch(model, task, corrupted, what="ffn_out")
    with pytest.warns(LensLinearWarning, match="nothing to give shares of"):
        same = ll.patch(model, task, task.tokens)
    with pytest.warns(LensLinearWarning, match="nothing to give shares of"):
        ll.path_patch(model, task, task.tokens, receivers="logits")
    assert same["effect"].isna().all() and float((same.values - same.base).abs().max()) < 1e-6


KINDS = ("gpt2", "neox", "gemma2", "opt", "qwen2", "llama", "phi")


def test_a_block_inside_a_block_is_refused_for_what_it_is():
    said = pytest.raises(UnsupportedModelError, match="leave the with block that edits it")
    model = ll.load("gpt-nano")
    with ll.cut_path(model, "L0H0", "L1H2", via="k"), said:
        ll.cut_path(model, "L0H1", "L1H2", via="k").__enter__()
    with ll.cut_path(model, "L0H1", "L1H2", via="k"):
        pass
    model = ll.toy_model(n_layers=2, seed=3)
    model.add_perma_hook("blocks.1.attn.q.hook_out", lambda value, hook: value / 2)
    with pytest.raises(UnsupportedModelError, match="reset_hooks"):
        _ = ll.head(model, "L1H0").qk
    model.reset_hooks(including_permanent=True)
    _ = ll.head(model, "L1H0").qk


@pytest.mark.parametrize("kind", KINDS)
def test_components_of_full_models_sum_to_their_logits(kind, zoo_folder):
    model = hugging_face(kind, zoo_folder)
    tokens = ids(model, 3, 10)
    found = ll.direct_logit_attribution(model, tokens, batch_size=2)
    logits = model(tokens)[:, :-1].gather(2, tokens[:, 1:, None]).flatten().double()
    torch.testing.assert_close(found.total, logits, rtol=1e-4, atol=1e-4)
    assert found.max_error < 1e-4 * max(1, float(logits.abs().max()))
    assert {"token", "L0H1", "L1 MLP", "b_U"} <= set(found.names)
    assert (found.softcap is not None) == (kind == "gemma2")


@pytest.mark.filterwarnings("ignore:the next-token loss")
def test_large_logits_may_miss_by_their_rounding():
    model = native(**FULL)
    with torch.no_grad():
        model.original_model.head.weight.mul_(3e4)
    found = ll.direct_logit_attribution(model, ids(model, 3, 10))
    assert 1e-3 < found.max_error < 1e-6 * float(found.model_logits.abs().max())


def test_a_component_by_hand_with_names_pairs_and_its_error():
    model = native(**FULL)
    tokens = ids(model, 4, 6)
    right, wrong = tokens[:, 0], (tokens[:, 0] + 3) % 30
    pairs = torch.stack([right, wrong], 1)[:, None]
    task = ll.Task(tokens, labels=pairs, positions=-1, metric="logit_difference")
    found = ll.direct_logit_attribution(model, task)
    out = run(model, tokens, record=[(0, "z"), (1, "ffn_out"), (1, "resid_post")])
    stream = out[(1, "resid_post")][:, -1]
    scale = ((stream - stream.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    gamma = model.original_model.ln_out.weight.detach()
    parts = {
        "L0H1": out[(0, "z")][:, -1, 1] @ model.W_O[0, 1],
        "L1 MLP": out[(1, "ffn_out")][:, -1],
    }
    frame = found.to_dataframe().set_index("component")
    for name, part in parts.items():
        read = (part - part.mean(-1, keepdim=True)) / scale * gamma
        logits = (read @ model.W_U).double().detach()
        logit = logits.gather(1, right[:, None])[:, 0]
        difference = logit - logits.gather(1, wrong[:, None])[:, 0]
        assert frame.loc[name, "logit"] == pytest.approx(float(logit.mean()), abs=1e-4)
        assert frame.loc[name, "relative"] == pytest.approx(float(difference.mean()), abs=1e-4)
        spread = float(difference.std() / 4**0.5)
        assert frame.loc[name, "relative_se"] == pytest.approx(spread, abs=1e-4)
        plain = ll.direct_logit_attribution(model, replace(task, labels=right[:, None]))
        above = logit - logits.mean(1)
        where = plain.names.index(name)
        torch.testing.assert_close(plain.relative[where], above, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(plain.logit[where], logit, rtol=1e-3, atol=1e-4)
    one = found.to_dataframe(2)
    assert one["logit"].sum() == pytest.approx(float(found.model_logits[2]), abs=1e-4)
    assert found.to_dataframe()["relative"].abs().is_monotonic_decreasing
    zero = ll.direct_logit_attribution(native(n_layers=1, normalization_type="RMS"), ids(native()))
    assert zero.max_error < 1e-4 and "b_U" in zero.names
