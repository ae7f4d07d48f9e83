"""Pages of models that cannot run by themselves: tables, runs, and what did not fit."""

import base64
import gc
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import lens_linear as ll
from lens_linear.circuits import head_circuit
from lens_linear.circuits.heads.embedding_scales import token_scales
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError, UnsupportedModelError
from lens_linear.explorer.heads import clearest, composition, head_rows, shown_composition
from lens_linear.explorer.packing import packed_bytes
from lens_linear.explorer.runs import run_payload
from lens_linear.models import checked
from lens_linear.models.describe.weights import ModelWeights, read_weights


def unpacked(packed):
    values = np.frombuffer(base64.b64decode(packed["data"]), packed["dtype"]).astype(float)
    return values.reshape(packed["shape"]) / (255 if packed["dtype"] == "uint8" else 1)


@pytest.fixture(scope="module")
def nano():
    model = ll.load("gpt-nano")
    return model, ll.explore(model, ["The old mill stood by the river.", "A cat and a dog."])


def test_tables_are_the_ends_of_the_circuits_rows(nano):
    model, explorer = nano
    tables = explorer.payload["head_tables"]
    head, row = head_circuit(model, 1, 2), 4
    token, scales = tables["tokens"][row], token_scales(head.weights)
    place = model.cfg.n_heads + 2
    qk = head.qk.A[token] @ head.qk.B / (scales[token] * scales)
    ov = head.ov.A[token] @ head.ov.B / scales[token]
    for name, wanted in (("qk", qk.topk(8)), ("raised", ov.topk(8)), ("lowered", (-ov).topk(8))):
        assert unpacked(tables[f"{name}_ids"])[place, row].tolist() == wanted.indices.tolist()
        sign = -1 if name == "lowered" else 1
        found = unpacked(tables[name])[place, row]
        np.testing.assert_allclose(found, sign * wanted.values.numpy(), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # float32: of large models
def test_logits_behind_normed_blocks_are_split_over_their_heads(dtype, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "models")
    from architectures import save_random

    save_random("gemma2", tmp_path, scale=0.1)
    model = ll.load(tmp_path)
    ids = torch.arange(3, 15)
    weights = read_weights(model, dtype=dtype)
    shares = run_payload(checked(model), weights, None, "", ids)["shares"]
    assert shares["max_error"] < 1e-2  # its logits are bounded, far above these
    split = dict(zip(shares["components"], unpacked(shares["values"]).transpose(2, 0, 1)))
    assert np.abs(split["L1H2"]).max() > 0.05
    for layer in range(3):  # no bias to write: the heads are all there is
        np.testing.assert_allclose(split[f"attention bias {layer}"], 0, atol=1e-3)


def test_a_run_is_what_the_model_gives(nano):
    model, explorer = nano
    run = explorer.payload["runs"][0]
    ids = torch.tensor(run["ids"])[None]
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids)
    log_p = logits[0].double().log_softmax(-1)
    np.testing.assert_allclose(
        unpacked(run["top_p"]), log_p.exp().topk(10).values.numpy(), atol=1e-5
    )
    losses = unpacked(run["loss"])
    wanted = -log_p[:-1].gather(1, ids[0, 1:, None])[:, 0]
    np.testing.assert_allclose(losses[1:], wanted.numpy(), atol=1e-4)
    pattern = torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"][0] for layer in range(4)])
    np.testing.assert_allclose(unpacked(run["pattern"]), pattern.numpy(), atol=1 / 255)
    assert run["shares"]["max_error"] < 1e-4
    values = unpacked(run["shares"]["values"]).sum(-1)
    np.testing.assert_allclose(values, unpacked(run["shares"]["logits"]), atol=0.05)
    last = unpacked(run["lens"]["linear"]["kl"])
    assert abs(last[-1]).max() < 1e-6 and last[0].mean() > last[-2].mean() > 0.01


def test_what_does_not_fit_is_said_where_it_is_missing(nano):
    model, explorer = nano
    whole = len(explorer.html())
    small = ll.explore(model, explorer.payload["prompts"], max_bytes=whole - 6_000)
    assert len(small.html()) <= whole - 6_000
    kept = len(small.payload["head_tables"]["tokens"])
    left_out = [note for view in ("head", "text") for note in small.payload["missing"][view]]
    assert any("did not fit" in note or f"for {kept} of the" in note for note in left_out)
    assert left_out != [n for v in ("head", "text") for n in explorer.payload["missing"][v]]
    with pytest.raises(InvalidArgumentError, match="pass max_bytes="):
        ll.explore(model, ["A cat."], max_bytes=50_000)


def test_scores_at_hand_are_shown_and_parts_not_asked_for_are_named(nano):
    model, explorer = nano
    other = ll.induction_scores(model, rows_per_period=2, seed=7)
    small = ll.explore(model, ["A cat."], induction=other, parts=())
    shown = [row["prefix_matching"] for row in small.payload["heads"]]
    want = other.to_dataframe()["prefix_matching"]
    np.testing.assert_allclose(shown, want, rtol=1e-4)
    measured = [row["prefix_matching"] for row in explorer.payload["heads"]]
    assert not np.allclose(shown, measured, rtol=1e-3)
    assert small.payload["linearity"] == [] and small.payload["runs"][0]["lens"]["linear"] is None
    assert small.payload["head_tables"] is None
    for view, part in {"map": "linearity", "lens": "lens", "head": "circuits"}.items():
        said = f"Not asked for when this page was made: {part}."
        assert said in small.payload["missing"][view]
        assert said not in explorer.payload["missing"][view]
    with pytest.raises(InvalidArgumentError, match="the model has"):
        ll.explore(model, induction=ll.induction_scores(ll.load("attn-2l")))
    with pytest.raises(InvalidArgumentError, match="did you mean 'lens'"):
        ll.explore(model, parts=["lenses"])


def test_a_page_without_its_circuits_still_divides_by_typical_scales():
    model = ll.load("attn-1l")
    whole, small = ll.explore(model, ["A cat."]), ll.explore(model, ["A cat."], parts=("lens",))
    assert (
        small.payload["head_details"] == {} and small.payload["scales"] == whole.payload["scales"]
    )
    assert small.payload["linear_lens"] is not None


def test_of_many_heads_the_strongest_pairs_are_kept_and_it_is_said():
    model = ll.toy_model(n_layers=4, n_heads=4, seed=0)
    whole, nothing = composition(checked(model), max_bytes=10**6, seed=0)
    assert nothing == "" and whole["places"] is None
    room = 2 * 3 * 16 * 11 * 2  # of every head 2 each way, of 3 kinds, 11 bytes a pair
    cut, said = composition(checked(model), max_bytes=room, seed=0)
    assert "for the 2 heads that each head reads most" in said and packed_bytes(cut) <= room
    places = unpacked(cut["places"]).astype(int)
    parts = {name: unpacked(whole[name]).reshape(3, 16, 16) for name in ("scores", "mean")}
    for name, value in parts.items():
        np.testing.assert_array_equal(unpacked(cut[name]), value.flatten()[places])
    # In the order of the library: ratio to random, and the best random pair beside it.
    found = ll.composition_scores(model, fold=True)
    assert whole["best_random"] == pytest.approx(found.best_random.tolist(), abs=1e-3)
    table = found.to_dataframe()
    for kind, letter in enumerate("QKV"):
        of_kind = table[table.kind == letter]
        for reader in range(4, 16):  # the earlier head that it reads most
            name = f"L{reader // 4}H{reader % 4}"
            writer = of_kind[of_kind.reader == name].writer.iloc[0]
            place = int(writer[1]) * 4 + int(writer[3])
            assert (kind * 16 + place) * 16 + reader in places
    assert composition(checked(model), max_bytes=100, seed=0)[0] is None


def test_of_many_heads_the_clearest_are_taken_apart():
    model = ll.load("attn-2l")
    rows, _ = head_rows(checked(model), ablate=False, seed=0)
    named = [(row["layer"], row["index"]) for row in rows if row["verdict"] != "none"]
    assert len(named) == 5 and clearest(rows, 5) == sorted(named)
    assert clearest(rows, 1)[0] in named and len(clearest(rows, 99)) == 8


def test_a_texts_run_without_a_head_is_the_ablated_model(nano):
    model, explorer = nano
    run = explorer.run("A cat and a dog.", ["L1H2"])
    before = explorer.run("A cat and a dog.")
    assert run["ablated"] == ["L1H2"] and run["top_p"] != before["top_p"]
    with pytest.raises(InvalidArgumentError, match="layer must be at most 3"):
        explorer.run("A cat.", ["L9H0"])
    with pytest.raises(NotEnoughDataError):
        ll.explore(model, [])


def test_composition_of_a_norm_that_cannot_be_read_is_of_the_weights_as_stored(monkeypatch):
    model = ll.toy_model(n_layers=2, norm="LN", seed=0)
    with torch.no_grad():
        for block in model.blocks:
            block.ln1.weight.copy_(torch.rand(len(block.ln1.weight)) + 0.1)
    folded, raw = (ll.composition_scores(model, fold=fold).ratio for fold in (True, False))
    assert not torch.allclose(folded, raw, atol=1e-2)
    assert torch.equal(shown_composition(checked(model), seed=0).ratio, folded)

    def refuse(*_, fold, **__):
        if fold:
            raise UnsupportedModelError("what stands there is not the norm")
        return read(*_, fold=fold, **__)

    read = importlib.import_module("lens_linear.circuits.heads.composition").read_attention
    monkeypatch.setattr("lens_linear.circuits.heads.composition.read_attention", refuse)
    assert torch.equal(shown_composition(checked(model), seed=0).ratio, raw)


def test_weights_of_a_large_model_are_let_go_while_it_is_measured(nano, monkeypatch):
    payload = importlib.import_module("lens_linear.explorer.payload")
    held = []

    def alive(*arguments, own=payload._scores):
        gc.collect()
        held.append(sum(isinstance(x, ModelWeights) for x in gc.get_objects()))
        return own(*arguments)

    gc.collect()
    before = sum(isinstance(x, ModelWeights) for x in gc.get_objects())
    monkeypatch.setattr(payload, "_scores", alive)
    small = ll.explore(nano[0], ["Once upon"], parts=[])
    monkeypatch.setattr(payload, "LARGE", 0)
    large = ll.explore(nano[0], ["Once upon"], parts=[])
    assert [found - before for found in held] == [
        1,
        1,
    ]  # the small page keeps its own, the large one none
    assert small._subject.weights is not None and large._subject.weights is not None
