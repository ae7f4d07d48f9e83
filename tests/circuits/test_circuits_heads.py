import numpy as np
import pytest
import torch
from circuit_zoo import HF_KINDS, hugging_face, ids, native

import lens_linear as ll
from lens_linear.circuits.heads import head_circuit as heads
from lens_linear.circuits.heads.head_circuit import head_circuit, summed_ov, summed_qk
from lens_linear.circuits.heads.virtual import composed_qk, virtual_head
from lens_linear.errors import InvalidArgumentError, UnsupportedModelError
from lens_linear.models.capture import run
from lens_linear.models.frozen.attention_scores import attention_scores


def bare(**changes):
    """No norm, no positions, no biases: attention scores are QK entries and nothing else."""
    model = native(**changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or name.startswith("pos."):
                parameter.zero_()
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_heads": 4, "n_key_value_heads": 2},
        {"positional_embedding_type": "rotary"},
        {
            "positional_embedding_type": "rotary",
            "rotary_dim": 4,
            "n_heads": 4,
            "n_key_value_heads": 1,
        },
    ],
)
def test_qk_entries_are_the_scores_of_the_model(changes):
    model = bare(n_layers=1, **changes)
    tokens = ids(model, batch=1, length=7)
    scores = attention_scores(model, tokens, 0)[0]
    for head in range(model.cfg.n_heads):
        circuit = head_circuit(model, 0, head)
        for query in range(7):
            for key in range(query + 1):
                matrix = circuit.qk(offset=query - key)
                row = matrix.A[tokens[0, query]] @ matrix.B[:, tokens[0, key]]
                assert float(row) == pytest.approx(float(scores[head, query, key]), abs=1e-4)
        torch.testing.assert_close(circuit.qk.AB, circuit.qk_at(0).AB)


def test_biases_are_added_when_asked_for():
    model = native(n_layers=1)
    with torch.no_grad():
        model.original_model.pos.weight.zero_()
    tokens = ids(model, batch=1, length=5)
    scores = attention_scores(model, tokens, 0)[0]
    matrix = head_circuit(model, 0, 1).qk_at(0, biases=True).AB
    expected = scores[1].tril()
    torch.testing.assert_close(
        matrix[tokens[0]][:, tokens[0]].tril(), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "changes", [{}, {"d_vocab_out": 17}, {"n_heads": 4, "n_key_value_heads": 2}]
)
def test_ov_rows_are_what_attending_adds_to_the_logits(changes):
    # At position 0 every head attends to the token itself, so its output is its OV row.
    model = bare(n_layers=1, **changes)
    tokens = torch.arange(6)[:, None]
    n_heads = model.cfg.n_heads
    total = model(tokens)[:, 0].double() - (model.W_E @ model.W_U)[:6].double()
    ov = sum(head_circuit(model, 0, head).ov.AB[:6] for head in range(n_heads))
    # Only differences of logits: what all of them have in common the softmax does not see.
    seen = total - total.mean(1, keepdim=True)
    torch.testing.assert_close(ov, seen, rtol=1e-4, atol=1e-4)
    summed = summed_ov([head_circuit(model, 0, head) for head in range(n_heads)])
    torch.testing.assert_close(summed.AB[:6], ov)


@pytest.mark.parametrize("norm", [None, "LN", "LNPre", "RMS"])
def test_copying_score_is_that_of_the_dense_matrix(norm):
    model = native(normalization_type=norm, n_layers=3)
    for layer in range(3):
        circuit = head_circuit(model, layer, layer)
        for matrix, found in (
            (circuit.ov, circuit.copying_score),
            (circuit.qk, circuit.qk_copying_score),
        ):
            values = np.linalg.eigvals(matrix.AB.numpy())
            assert found == pytest.approx(values.real.sum() / np.abs(values).sum(), abs=1e-7)


def test_heads_that_copy_only_together():
    # Each head copies half of the tokens and does nothing to the rest; their sum copies all.
    model = bare(n_layers=1, d_model=16, d_head=8, n_heads=2, d_vocab=16)
    module = model.original_model
    with torch.no_grad():
        module.tok_embed.weight.copy_(torch.eye(16))
        module.head.weight.copy_(torch.eye(16))
        attention = module.layers[0].attn
        attention.v.weight.copy_(torch.eye(16))
        attention.o.weight.copy_(torch.eye(16))
    heads = [head_circuit(model, 0, head) for head in range(2)]
    assert heads[0].copying_accuracy().top1 == pytest.approx(0.5)
    from lens_linear.circuits.heads.factored import diagonal_accuracy

    assert diagonal_accuracy(summed_ov(heads)).top1 == 1.0
    assert summed_qk(heads).shape == (16, 16)


def test_positional_qk_is_the_whole_score_where_content_says_nothing():
    model = native(n_layers=1, normalization_type="LNPre")
    with torch.no_grad():
        model.original_model.tok_embed.weight.zero_()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    found = head_circuit(model, 0, 2).positional_qk()
    pattern = run(model, torch.zeros(1, 24).long(), record=[(0, "pattern")])[(0, "pattern")]
    torch.testing.assert_close(found.pattern, pattern[0, 2].double(), rtol=1e-4, atol=1e-5)
    W = model.W_pos.double() - model.W_pos.double().mean(1, keepdim=True)
    expected = W @ model.W_Q[0, 2].double() @ model.W_K[0, 2].double().T @ W.T / 10**0.5
    torch.testing.assert_close(found.scores, expected, rtol=1e-5, atol=1e-6)
    mean = torch.stack([pattern[0, 2].double().diagonal(-k).mean() for k in range(24)])
    torch.testing.assert_close(found.offset_pattern(), mean, rtol=1e-4, atol=1e-5)
    frame = found.to_dataframe()
    assert len(frame) == 24 * 25 / 2 and (frame["key"] <= frame["query"]).all()
    for row in frame.sample(20, random_state=0).itertuples():
        assert row.attention == pytest.approx(float(pattern[0, 2, row.query, row.key]), abs=1e-5)
        assert row.score == pytest.approx(float(expected[row.query, row.key]), abs=1e-5)


def test_positional_qk_of_a_rotary_model_is_the_score_of_the_average_token():
    model = native(n_layers=1, positional_embedding_type="rotary")
    with torch.no_grad():
        table = model.original_model.tok_embed.weight
        table.copy_(table[:1].expand_as(table))  # every token is the average token
    found = head_circuit(model, 0, 1).positional_qk()
    scores = attention_scores(model, ids(model, 1, 24), 0)[0, 1]
    torch.testing.assert_close(found.scores.tril(), scores.tril(), rtol=1e-4, atol=1e-4)
    assert found.source == "mean content, rotated"


@pytest.mark.parametrize("kind", HF_KINDS)
def test_heads_of_full_models_can_be_read(kind, zoo_folder):
    model = hugging_face(kind, zoo_folder)
    circuit = head_circuit(model, 1, 1)
    assert circuit.qk.shape == circuit.ov.shape == (61, 61)
    values = np.linalg.eigvals(circuit.ov.AB.numpy())
    assert circuit.copying_score == pytest.approx(
        values.real.sum() / np.abs(values).sum(), abs=1e-7
    )
    assert len(circuit.svd(3).S) == 3
    assert circuit.positional_qk(8).pattern.sum(1).allclose(torch.ones(8).double())


def test_a_head_whose_queries_pass_another_norm_is_refused(zoo_folder):
    circuit = head_circuit(hugging_face("qwen3", zoo_folder), 0, 0)
    assert circuit.ov.shape == (61, 61)  # OV is not concerned
    with pytest.raises(UnsupportedModelError, match="do not give back its attention"):
        _ = circuit.qk


def test_the_model_is_not_changed_and_raw_weights_can_be_had():
    model = native(normalization_type="LN")
    before = {name: p.clone() for name, p in model.named_parameters()}
    view = ll.AttentionOnly(model, fold=False)
    head = view.head(1, 2)
    raw = (model.W_E @ model.W_V[1, 2] @ model.W_O[1, 2] @ model.W_U).double()
    raw = raw - raw.mean(1, keepdim=True)
    torch.testing.assert_close(head.ov.AB, raw, rtol=1e-4, atol=1e-4)
    assert (ll.AttentionOnly(model).head(1, 2).ov.AB - head.ov.AB).abs().max() > 1e-3
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_wrong_heads_are_named():
    model = native()
    with pytest.raises(InvalidArgumentError, match="head must be at most 2"):
        head_circuit(model, 0, 3)
    with pytest.raises(InvalidArgumentError, match="layer must be at most 1"):
        ll.AttentionOnly(model).head(2, 0)
    with pytest.raises(InvalidArgumentError, match="labels must name each of the 30"):
        head_circuit(model, 0, 0, labels=["a"])


def test_virtual_head_is_what_the_model_moves_twice():
    # One token, no norm: layer 1's head 0 reads layer 0's head 1, and nothing else is left on.
    model = bare()
    writer, reader = head_circuit(model, 0, 1), head_circuit(model, 1, 0)
    found = virtual_head(writer, reader)
    tokens = ids(model, 2, 6)
    out = run(model, tokens, record=[(0, "pattern"), (1, "pattern")])
    expected = out[(1, "pattern")][:, 0].double() @ out[(0, "pattern")][:, 1].double()
    torch.testing.assert_close(found.pattern(tokens), expected)
    paths = ll.AttentionOnly(model).paths(tokens)
    term = next(t for t in paths.terms if t.heads == ((0, 1), (1, 0)) and t.source == "token")
    moved = torch.einsum("bqk,bkv->bqv", expected, found.ov.AB[tokens])
    written = term.logits - term.logits.mean(-1, keepdim=True)
    torch.testing.assert_close(written, moved, rtol=1e-5, atol=1e-6)
    values = np.linalg.eigvals(found.ov.AB.numpy())
    assert found.copying_score == pytest.approx(values.real.sum() / np.abs(values).sum(), abs=1e-7)
    with pytest.raises(InvalidArgumentError, match="later layer"):
        virtual_head(reader, writer)


@pytest.mark.parametrize("kind", ["K", "Q"])
def test_composed_qk_in_dense_matrices(kind):
    model = bare()
    writer, reader = head_circuit(model, 0, 2), head_circuit(model, 1, 1)
    E = model.W_E.double()
    moved = E @ model.W_V[0, 2].double() @ model.W_O[0, 2].double()
    q, k = (E, moved) if kind == "K" else (moved, E)
    expected = q @ model.W_Q[1, 1].double() @ (k @ model.W_K[1, 1].double()).T / 10**0.5
    torch.testing.assert_close(composed_qk(writer, reader, kind).AB, expected, rtol=1e-5, atol=1e-6)


def test_wrong_scores_are_refused_where_attention_is_almost_even(monkeypatch):
    model = native(n_layers=1)
    with torch.no_grad():
        for name in ("q", "k"):
            for parameter in getattr(model.original_model.layers[0].attn, name).parameters():
                parameter.mul_(0.03)
    tokens = ids(model, 1, 10)
    pattern = run(model, tokens, record=[(0, "pattern")])[(0, "pattern")]
    scores = attention_scores(model, tokens, 0)
    mask = torch.ones(10, 10, dtype=torch.bool).triu(1)
    wrong = (scores / 2).masked_fill(mask, float("-inf")).softmax(-1)
    assert (wrong - pattern).abs().max() < 1e-3  # no fixed limit would tell them apart
    monkeypatch.setattr(
        "lens_linear.models.frozen.attention_scores.score_scale", lambda model, layer: 0.5 / 10**0.5
    )
    with pytest.raises(UnsupportedModelError, match="do not give back its attention"):
        attention_scores(model, tokens, 0)


def test_heads_of_a_view_check_a_layer_once(monkeypatch):
    calls = []
    own = heads.attention_scores
    monkeypatch.setattr(heads, "attention_scores", lambda *a: calls.append(a[2]) or own(*a))
    view = ll.AttentionOnly(native())
    for head in view.heads():
        _ = head.qk
    assert calls == [0, 1]


def test_a_view_follows_a_model_whose_weights_were_changed():
    model = native(normalization_type="LN")
    view = ll.AttentionOnly(model)
    before = view.head("L1H2")
    with torch.no_grad():
        model.original_model.layers[1].attn.v.weight.mul_(3.0)
    torch.testing.assert_close(view.head("L1H2").ov.AB, 3 * before.ov.AB, rtol=1e-5, atol=1e-6)
    assert view.weights is view.weights  # and is not read twice for nothing
    model.load_state_dict({k: v * 0.5 for k, v in model.state_dict().items()})
    direct = (model.W_E @ (model.W_U - model.W_U.mean(1, keepdim=True))).shape
    assert view.bigrams().logits.shape == direct
    fresh = ll.AttentionOnly(model).bigrams().logits
    torch.testing.assert_close(view.bigrams().logits, fresh)


def test_edits_that_leave_no_version_are_seen_too():
    model = native(normalization_type="LN", n_ctx=12)
    view, tokens = ll.AttentionOnly(model), torch.arange(8)[None]
    before = view.head("L1H2").ov.AB
    model.original_model.layers[1].attn.v.weight.data.mul_(3.0)
    torch.testing.assert_close(view.head("L1H2").ov.AB, 3 * before, rtol=1e-5, atol=1e-6)
    model.unembed.bias.data.add_(torch.randn(model.unembed.bias.shape))  # a buffer, no parameter
    assert view.paths(tokens).max_error < 1e-4
