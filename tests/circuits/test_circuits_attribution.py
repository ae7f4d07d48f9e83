import numpy as np
import pytest
import torch
from circuit_zoo import HF_KINDS, hugging_face, ids, native
from transformer_lens.model_bridge import TransformerBridge

import lens_linear as ll
from lens_linear.circuits.attention.patterns import attention_pattern
from lens_linear.errors import FigureTooLargeError, InvalidArgumentError, UnsupportedModelError
from lens_linear.models.capture import run
from lens_linear.models.frozen.attention_scores import attention_scores
from lens_linear.models.frozen.frozen_attention import in_double

NATIVE = [
    {},
    {"normalization_type": "LN"},
    {"normalization_type": "RMS", "positional_embedding_type": "rotary"},
    {"normalization_type": "LNPre", "n_heads": 4, "n_key_value_heads": 2},
    {"attn_only": False, "d_mlp": 24, "normalization_type": "LN"},
    {"n_layers": 3, "attn_scores_soft_cap": 2.0},
]


@pytest.mark.parametrize("changes", NATIVE)
def test_pairs_of_components_sum_to_the_score(changes):
    model = native(**changes)
    tokens = ids(model, 2, 6)
    layer = model.cfg.n_layers - 1
    out = run(model, tokens, record=[(layer, "pattern")])[(layer, "pattern")]
    for head in range(model.cfg.n_heads):
        found = ll.qk_attribution(model, tokens, layer, head)
        assert found.max_error < 1e-4
        total = found.scores.sum((0, 1))
        torch.testing.assert_close(total, found.total)
        if found.softcap is not None:
            total = found.softcap * torch.tanh(total / found.softcap)
        mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
        pattern = total.masked_fill(mask, float("-inf")).softmax(-1)
        torch.testing.assert_close(pattern.float(), out[:, head], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("positions", ["standard", "rotary"])
def test_float64_models_with_rms_norms_are_exact_too(positions):
    # TransformerLens computes their norms in float32; what that leaves out is a component of its own.
    model = in_double(native(normalization_type="RMS", positional_embedding_type=positions))
    tokens = ids(model, 1, 7)
    found = ll.qk_attribution(model, tokens, 1, 2)
    assert found.components[-1] == "rounding of the norm"
    assert found.max_error < 1e-12
    small = found.scores[-1].abs().max() + found.scores[:, -1].abs().max()
    assert 1e-10 < float(small) < 1e-4
    assert "rounding of the norm" not in ll.qk_attribution(native(), tokens, 1, 2).components


@pytest.mark.parametrize("kind", HF_KINDS)
def test_full_models_are_attributed_exactly(kind, zoo_folder):
    model = hugging_face(kind, zoo_folder)
    found = ll.qk_attribution(model, ids(model, 1, 10), 1, 1)
    assert found.max_error < 1e-5 * max(1.0, float(found.model_scores.abs().max())) * 10
    assert "L0 MLP" in found.components and "L0H1" in found.components
    assert found.components[-1] == "bias"


def test_a_single_pair_by_hand():
    model = native(normalization_type="LN")
    tokens = ids(model, 1, 5)
    out = run(model, tokens, record=[(0, "z"), (1, "resid_pre")])
    norm = model.original_model.layers[1].ln1

    def read(x, weight, position):  # centre, divide by the stream's scale, learnt norm weight
        stream = out[(1, "resid_pre")][0, position]
        scale = ((stream - stream.mean()).pow(2).mean() + 1e-5).sqrt()
        return ((x - x.mean()) / scale * norm.weight) @ weight

    query = read(model.W_E[tokens[0, 4]], model.W_Q[1, 0], 4)
    written = out[(0, "z")][0, 2, 1] @ model.W_O[0, 1]
    key = read(written, model.W_K[1, 0], 2)
    found = ll.qk_attribution(model, tokens, 1, 0)
    names = list(found.components)
    value = found.map(4, 2)[names.index("token"), names.index("L0H1")]
    assert float(value) == pytest.approx(float(query @ key) / 10**0.5, abs=1e-4)


def test_maps_of_one_score_of_the_mean_and_of_the_contrast():
    model = native()
    tokens = ids(model, 2, 6)
    found = ll.qk_attribution(model, tokens, 1, 2)
    scores = found.scores
    torch.testing.assert_close(found.map(-1, 2, batch=1), scores[:, :, 1, 5, 2])
    mask = torch.ones(6, 6).tril().double()
    mean = (scores * mask).sum((2, 3, 4)) / (2 * mask.sum())
    torch.testing.assert_close(found.mean_map(), mean)
    others = scores[:, :, 0, 4, [0, 1, 3, 4]].mean(-1)
    torch.testing.assert_close(found.contrast(4, 2), scores[:, :, 0, 4, 2] - others)
    frame = found.to_dataframe(4, 2)
    assert frame["score"].sum() == pytest.approx(float(found.total[0, 4, 2]))
    assert frame["score"].abs().is_monotonic_decreasing


def test_induction_comes_from_the_previous_token_head(attn_2l):
    row = torch.arange(100, 112).repeat(2)
    tokens = torch.cat([torch.tensor([0]), row])[None]
    found = ll.qk_attribution(attn_2l, tokens, 1, 3)
    table = found.contrast(20, 9)  # query: token 107 again; key: the one after its first occurrence
    names = list(found.components)
    best = np.unravel_index(int(table.argmax()), table.shape)
    assert (names[best[0]], names[best[1]]) == ("token", "L0H0")
    scores = attention_scores(attn_2l, tokens, 1)[0, 3]
    assert float((found.total[0] - scores).abs().max()) < 1e-4


def test_what_cannot_be_attributed_is_refused(zoo_folder):
    model = hugging_face("qwen3", zoo_folder)  # norms on queries and keys
    with pytest.raises(UnsupportedModelError, match="scores of layer"):
        ll.qk_attribution(model, ids(model, 1, 12), 1, 0)


def test_a_sliding_window_changes_no_score_inside_it(zoo_folder):
    model = hugging_face("mistral", zoo_folder)  # sees 4 tokens
    tokens = ids(model, 1, 12)
    found = ll.qk_attribution(model, tokens, 1, 0)
    own = run(model, tokens, record=[(1, "pattern")])[(1, "pattern")][0, 0].double()
    window = torch.ones(12, 12).tril() - torch.ones(12, 12).tril(-4)
    rebuilt = found.total[0].masked_fill(window == 0, float("-inf")).softmax(-1)
    torch.testing.assert_close(rebuilt, own, atol=1e-5, rtol=1e-4)
    assert float((rebuilt - found.total[0].softmax(-1)).abs().max()) > 0.1


def test_too_many_numbers_are_refused_before_they_are_made(attn_2l):
    tokens = torch.zeros(60, 128).long()
    found = ll.qk_attribution(attn_2l, tokens, 1, 0)
    with pytest.raises(FigureTooLargeError, match=r"\.map\(query, key\)"):
        _ = found.scores
    assert found.map(3, 1).shape == (len(found.components),) * 2


def test_pattern_of_a_sequence_with_its_text():
    model = native()
    tokens = ids(model, 1, 5)[0]
    found = attention_pattern(model, tokens, 1, labels=[f"<{i}>" for i in range(30)])
    own = run(model, tokens[None], record=[(1, "pattern")])[(1, "pattern")][0]
    torch.testing.assert_close(found.pattern.float(), own)
    assert found.token_text == tuple(f"<{i}>" for i in tokens.tolist())
    assert len(found) == 3 * 15 and found["attention"].sum() == pytest.approx(15)
    with pytest.raises(InvalidArgumentError, match="one sequence"):
        attention_pattern(model, ids(model, 2, 5), 1)


def test_scores_by_writer_and_on_average_are_those_of_the_pairs():
    found = ll.qk_attribution(native(), ids(native(), 2, 5), "L1H2")
    assert found.name == "L1H2"
    table = found.map(4, 2, batch=1)
    for side, scores in (("key", table.sum(0)), ("query", table.sum(1))):
        frame = found.by_writer(side, query=4, key=2, batch=1).set_index("component")["score"]
        np.testing.assert_allclose(frame[list(found.components)], scores)
        assert frame.abs().is_monotonic_decreasing
    above = found.by_writer(query=4, key=2, contrast=True)
    assert above["score"].sum() == pytest.approx(float(found.contrast(4, 2).sum()))
    weights = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0)).tril()
    expected = sum(
        float(weights[b, q, k]) * found.contrast(q, k, batch=b)
        for b in range(2) for q in range(5) for k in range(q + 1)
    )  # fmt: skip
    torch.testing.assert_close(found.mean_contrast(weights), expected / weights.double().sum())
    for bad in (torch.zeros(2, 5, 5), -weights, weights[0], weights - weights.mean()):
        with pytest.raises(InvalidArgumentError, match="weights must be"):
            found.mean_map(bad)
    with pytest.raises(InvalidArgumentError, match="given together"):
        found.to_dataframe(3)


def test_models_that_look_both_ways_keep_their_later_keys():
    model = native(attention_dir="bidirectional")
    tokens = ids(model, 1, 5)
    found = ll.qk_attribution(model, tokens, 1, 0)
    pattern = run(model, tokens, record=[(1, "pattern")])[(1, "pattern")][0]
    rebuilt = found.total[0].softmax(-1).float()
    torch.testing.assert_close(rebuilt, pattern[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.mean_map(), found.scores.mean((2, 3, 4)))
    others = found.scores[:, :, 0, 1, [0, 2, 3, 4]].mean(-1)
    torch.testing.assert_close(found.contrast(1, 1), found.scores[:, :, 0, 1, 1] - others)
    frame = attention_pattern(model, tokens[0], 1).to_dataframe()
    assert len(frame) == 3 * 25 and frame["attention"].sum() == pytest.approx(15)
    positional = ll.head(model, "L1H0").positional_qk(5)
    assert len(positional.to_dataframe()) == 25 and float(positional.pattern[0, 4]) > 0


@pytest.mark.parametrize(
    ("kind", "layer", "window"),
    [("mistral", 1, 4), ("gpt_neo", 1, 16), ("gemma2 with windows", 0, 5)],
)
def test_keys_outside_a_window_are_no_keys(kind, layer, window, tmp_path):
    model = hugging_face(kind, str(tmp_path))
    tokens = ids(model, 2, 24)
    found = ll.qk_attribution(model, tokens, layer, 1)
    assert found.window == window
    query, low = 21, 22 - window
    with pytest.raises(InvalidArgumentError, match=f"at most 21 and at least {low}"):
        found.map(query, low - 1)
    table = found.contrast(query, 20, batch=1)
    scores = torch.einsum("aqd,bkd->abqk", found.queries[:, 1], found.keys[:, 1])[:, :, query]
    others = [k for k in range(low, query + 1) if k != 20]
    torch.testing.assert_close(table, scores[:, :, 20] - scores[:, :, others].mean(-1))
    weights = torch.zeros(2, 24, 24)
    weights[1, query, 20] = 2
    torch.testing.assert_close(found.mean_contrast(weights), table)
    weights[0, query, low - 1] = 1
    with pytest.raises(InvalidArgumentError, match=rf"tril\(\).triu\({1 - window}\)"):
        found.mean_map(weights)

    positional = ll.head(model, layer, 1).positional_qk(30)
    shares = positional.offset_pattern()
    assert float(shares[window:].abs().max()) == 0 < float(shares[:window].min())
    frame = positional.to_dataframe()
    assert int((frame["query"] - frame["key"]).max()) == window - 1
    assert np.allclose(frame.groupby("query")["attention"].sum(), 1)
    cap = positional.softcap
    assert (cap is None) == (kind[:5] != "gemma")
    if cap is not None:
        scales = positional.scales.numpy()
        raw = frame["score"] / scales[frame["query"]] / scales[frame["key"]]
        assert np.allclose(frame["scaled_score"], cap * np.tanh(raw / cap))
    assert ll.qk_attribution(model, tokens[:, :3], layer, 0).window is None
    if kind != "mistral":  # the other layer looks everywhere
        assert ll.head(model, 1 - layer, 0).positional_qk(30).window is None


def test_hook_points_are_not_listed_again_for_every_layer(monkeypatch):
    listed, plain = [], TransformerBridge.hook_dict.fget
    monkeypatch.setattr(
        TransformerBridge, "hook_dict", property(lambda self: listed.append(1) or plain(self))
    )
    counts = []
    for n_layers in (4, 8):
        model = ll.toy_model(n_layers=n_layers, d_model=8, n_heads=2, d_vocab=20, n_ctx=8)
        for _ in range(2):  # the first time all points are looked for
            listed.clear()
            ll.qk_attribution(model, [[1, 5, 3, 9, 2, 7]], n_layers - 1, 0)
        counts.append(len(listed))
    assert counts[1] < 2.5 * counts[0]
