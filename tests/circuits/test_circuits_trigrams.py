import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from circuit_zoo import native

import lens_linear as ll
from lens_linear.circuits.heads.head_circuit import head_circuit
from lens_linear.circuits.paths.skip_trigrams import all_skip_trigrams, skip_trigrams
from lens_linear.circuits.paths.trigram_bugs import skip_trigram_bugs
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.native import ModelSpec, bridge_from_module
from lens_linear.text.synthetic import SyntheticLanguage
from lens_linear.training.loop import train
from lens_linear.training.recipes import Phase, Recipe


def brute_force(heads, context):
    """Effect and probability gain of every triple, from dense matrices without norms."""
    weights = heads[0].weights
    direct = (weights.W_E @ weights.W_U).numpy() + weights.b_U.numpy()
    if weights.W_pos is not None:
        direct = direct + (weights.W_pos.mean(0) @ weights.W_U).numpy()
    effect, added, average = 0, 0, 0
    for head in heads:
        qk, ov = head.qk.AB.numpy(), head.ov.AB.numpy()
        rivals = np.log(np.exp(qk).mean(1, keepdims=True)) + np.log(context - 1)
        attention = 1 / (1 + np.exp(rivals - qk))  # [destination, source]
        centred = ov - ov.mean(1, keepdims=True) - ov.mean(0) + ov.mean()
        each = attention[:, :, None] * centred[None]  # [destination, source, out]
        effect, added, average = effect + each, added + each, average + ov.mean(0)
    before = direct + average

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    gain = softmax(before[:, None] + added) - softmax(before)[:, None]
    return effect.transpose(1, 0, 2), gain.transpose(1, 0, 2)  # [source, destination, out]


@pytest.mark.parametrize("by, k", [("effect", 25), ("probability", 2600)])  # the pool holds as many
@pytest.mark.parametrize("changes", [{}, {"d_vocab_out": 17}])
def test_the_table_is_that_of_all_triples(by, k, changes, monkeypatch):
    monkeypatch.setattr("lens_linear.circuits.paths.skip_trigrams.MAX_BYTES", 1000)  # in blocks
    model = native(n_layers=1, d_vocab=14, **changes)
    head = head_circuit(model, 0, 1)
    effect, gain = brute_force([head], context=8)
    ranked = effect if by == "effect" else gain
    best = np.argsort(-ranked, axis=None)[:k]
    expected = np.stack(np.unravel_index(best, ranked.shape), axis=1)
    found = skip_trigrams(head, k, by=by, context=8)
    assert found.triples.tolist() == expected.tolist()
    frame = found.to_dataframe()
    at = tuple(expected.T)
    np.testing.assert_allclose(frame["effect"], effect[at], rtol=1e-8)
    np.testing.assert_allclose(frame["probability_gain"], gain[at], rtol=1e-7, atol=1e-12)
    source, destination, out = at
    np.testing.assert_allclose(frame["qk_score"], head.qk.AB.numpy()[destination, source])
    np.testing.assert_allclose(frame["ov_score"], head.ov.AB.numpy()[source, out])


@pytest.mark.parametrize("k", [10, 2600])
def test_heads_are_summed(k):
    model = native(n_layers=1, d_vocab=14)
    heads = [head_circuit(model, 0, head) for head in range(3)]
    effect, gain = brute_force(heads, context=16)
    found = all_skip_trigrams(heads, k, context=16)
    best = np.argsort(-gain, axis=None)[:k]
    assert found.triples.tolist() == np.stack(np.unravel_index(best, gain.shape), 1).tolist()
    np.testing.assert_allclose(found["effect"], effect[tuple(found.triples.T.numpy())], rtol=1e-8)
    assert set(found["head"]) <= {"L0H0", "L0H1", "L0H2"}


def test_sources_and_pairs_can_be_limited():
    model = native(n_layers=1)
    view = ll.AttentionOnly(model, labels=[f"t{i}" for i in range(30)])
    few = view.skip_trigrams(0, 0, 20, sources=[3, 9])
    assert set(few["source"]) <= {3, 9} and len(few) == 20
    single = view.skip_trigrams(0, 0, 40, per_pair=1)
    assert not single.to_dataframe()[["source", "destination"]].duplicated().any()
    assert few["source_label"].tolist() == [f"t{i}" for i in few["source"]]
    with pytest.raises(InvalidArgumentError, match="sources"):
        view.skip_trigrams(0, 0, sources=[30])


def test_planted_skip_trigrams_are_found_again():
    language = SyntheticLanguage(
        36, n_names=0, n_mood_words=0, n_skip_trigrams=6, sharpness=1.0, strength=0.9
    )
    text = language.tokens(6000, 47, seed=1).flatten() + 1  # 0 begins a sequence
    spec = ModelSpec(1, 40, 4, 37, 48, attn_only=True, norm="none", positions="none")
    phase = Phase(steps=260, rows=64, length=48, learning_rate=2e-2, warmup=30, final=0.05)
    recipe = Recipe("skip", spec, (phase,), weight_decay=0.0, precision="float32")
    run = train(recipe, text, progress=False)
    view = ll.AttentionOnly(bridge_from_module(run.module, spec))
    planted = {tuple(triple) for triple in (language.skip_trigram_ids + 1).tolist()}
    found = view.all_skip_trigrams(12)
    hits = [tuple(triple) in planted for triple in found.triples.tolist()]
    # Precision and recall of the first six rows, and a clear gap to the seventh.
    assert sum(hits[:6]) / 6 >= 5 / 6
    assert found["probability_gain"][5] > 3 * found["probability_gain"][6]
    untrained = ll.AttentionOnly(native(n_layers=1, d_vocab=37)).all_skip_trigrams(12)
    assert not planted & {tuple(triple) for triple in untrained.triples.tolist()}


def test_bugs_are_the_crossings_and_cannot_be_avoided_by_one_head():
    # A head that must say "0 … 1 → 3" and "0 … 2 → 4": source 0 raises 3 and 4, destinations 1 and 2 look
    # at it. The crossed triples come out exactly as strong.
    model = native(n_layers=1, d_model=8, d_head=8, n_heads=1, d_vocab=8, noise=0.0)
    module = model.original_model
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.tok_embed.weight.copy_(torch.eye(8))
        module.head.weight.copy_(torch.eye(8))
        attention = module.layers[0].attn
        attention.q.weight[0, [1, 2]] = 5.0
        attention.k.weight[0, 0] = 5.0
        attention.v.weight[0, 0] = 1.0
        attention.o.weight[[3, 4], 0] = 4.0
    head = head_circuit(model, 0, 0)
    rows = torch.tensor([[0, 1, 3, 0, 2, 4], [5, 1, 6, 5, 2, 6], [6, 2, 4, 0, 1, 3]] * 4)
    wanted = pd.DataFrame({"source": [0, 0], "destination": [1, 2], "out": [3, 4]})
    found = skip_trigram_bugs(head, wanted, tokens=rows)
    frame = found.to_dataframe().sort_values("destination")
    assert frame[["source", "destination", "out"]].values.tolist() == [[0, 1, 4], [0, 2, 3]]
    np.testing.assert_allclose(frame["effect"], frame["wanted_effect"])
    score = 25 / 8**0.5
    attention = 1 / (1 + 31 * (np.exp(score) + 7) / 8 / np.exp(score))
    np.testing.assert_allclose(
        frame["effect"], attention * 4 * (1 - 2 / 8) * (1 - 1 / 8), rtol=1e-5
    )
    assert frame["count"].tolist() == [0, 0]  # never in the corpus
    strongest = skip_trigrams(head, k=40)  # a result stands where its table does
    again = skip_trigram_bugs(head, strongest.to_dataframe())
    assert skip_trigram_bugs(head, strongest).crossed.tolist() == again.crossed.tolist()
    assert frame["wanted_out"].tolist() == [3, 4]
    with pytest.raises(InvalidArgumentError, match="no two share a source"):
        skip_trigram_bugs(head, torch.tensor([[0, 1, 3], [1, 2, 4]]))


def test_triples_are_counted_as_a_loop_counts_them():
    head = head_circuit(native(n_layers=1, d_vocab=6), 0, 0)
    rows = torch.randint(0, 6, (20, 12), generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([[0, 1, 2], [0, 3, 4], [5, 1, 0], [5, 2, 2]])
    found = skip_trigram_bugs(head, wanted, tokens=rows, window=4)
    for (source, destination, out), count, expected in zip(
        found.crossed.tolist(), found.count.tolist(), found.expected.tolist()
    ):
        seen = armed = total = base = 0
        for row, t in itertools.product(rows.tolist(), range(11)):
            if row[t] != destination:
                continue
            hit = row[t + 1] == out
            total, base = total + 1, base + hit
            if source in row[max(0, t - 4) : t]:
                armed, seen = armed + 1, seen + hit
        assert count == seen
        assert expected == pytest.approx(armed * base / total)
