import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from circuit_zoo import ids, native

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError, UnsupportedModelError
from lens_linear.models.capture import run
from lens_linear.models.open.toy import toy_model

SHAPES = [
    {},
    {"normalization_type": "LN"},
    {"normalization_type": "LNPre", "n_layers": 3, "n_heads": 2},
    {"normalization_type": "RMS", "positional_embedding_type": "rotary"},
    {"normalization_type": "RMSPre", "n_heads": 4, "n_key_value_heads": 2},
    {"normalization_type": "LN", "final_rms": True},
    {"d_vocab_out": 17, "n_layers": 1},
    {"normalization_type": "LN", "attn_scores_soft_cap": 3.0, "n_ctx": 9},
    {"normalization_type": "LN", "attention_dir": "bidirectional"},
]


@pytest.mark.parametrize("changes", SHAPES)
def test_paths_sum_to_the_logits(changes):
    model = native(**changes)
    tokens = ids(model)
    view = ll.AttentionOnly(model)
    single, double = view.paths(tokens), view.paths(tokens, dtype=torch.float64)
    assert (single.logits - model(tokens)).abs().max() < 1e-4
    assert single.max_error < 1e-4
    assert view.paths(tokens, dtype=torch.float32).max_error < 1e-4
    assert double.max_error < 1e-9
    assert torch.equal(model(tokens), view.model(tokens)) and view.model.W_E.dtype == torch.float32
    total = sum(term.logits for term in double.terms)
    assert (total - double.logits).abs().max() < 1e-9


def test_a_model_in_float64_is_exact_without_asking():
    model = native(normalization_type="RMS").to(torch.float64)
    assert ll.AttentionOnly(model).paths(ids(model)).max_error < 1e-9


def test_every_chain_of_heads_is_one_term():
    model = native(n_layers=3, n_heads=2)
    terms = ll.AttentionOnly(model).paths(ids(model)).terms
    chains = {
        tuple((layer, head) for layer, head in enumerate(choice) if head is not None)
        for choice in itertools.product([None, 0, 1], repeat=3)
    }
    for source in ("token", "position"):
        assert {t.heads for t in terms if t.source == source} == chains
    assert len({t.name for t in terms}) == len(terms)


def test_the_frame_says_how_large_each_path_is():
    paths = ll.AttentionOnly(native()).paths(ids(native()))
    frame = paths.to_dataframe()
    assert frame["path"].tolist() == [term.name for term in paths.terms]
    for row, term in list(zip(frame.itertuples(), paths.terms, strict=True))[::7]:
        logits = term.logits.numpy()
        spread = ((logits - logits.mean(-1, keepdims=True)) ** 2).mean() ** 0.5
        assert row.size == pytest.approx(spread) and row.order == len(term.heads)


def test_a_term_is_what_a_slow_loop_gives():
    model = native(normalization_type="LN", n_layers=2)
    tokens = ids(model, batch=1)
    spots = [(0, "pattern"), (1, "pattern"), (0, "resid_pre"), (1, "resid_pre"), (1, "resid_post")]
    out = run(model, tokens, record=spots)
    blocks, final = model.original_model.layers, model.original_model.ln_out

    def normed(x, at, norm):  # centre, divide by the scale the model had there, learnt weight
        scale = (out[at][0] - out[at][0].mean(1, keepdim=True)).pow(2).mean(1, keepdim=True)
        return (x - x.mean(1, keepdim=True)) / (scale + 1e-5).sqrt() * norm.weight

    x = model.W_E[tokens[0]]
    for layer, head in ((0, 2), (1, 1)):
        read = normed(x, (layer, "resid_pre"), blocks[layer].ln1)
        value = read @ model.W_V[layer, head]
        x = out[(layer, "pattern")][0, head] @ value @ model.W_O[layer, head]
    expected = normed(x, (1, "resid_post"), final) @ model.W_U
    terms = ll.AttentionOnly(model).paths(tokens).terms
    term = next(t for t in terms if t.heads == ((0, 2), (1, 1)) and t.source == "token")
    assert term.name == "token → L0H2 → L1H1" and term.order == 2
    torch.testing.assert_close(term.logits[0].float(), expected, rtol=1e-4, atol=1e-5)


def replaced_runs(model, tokens, patterns):
    """The paper's procedure on a model without norms: each run adds the head outputs of the last run."""
    x0 = model.W_E[tokens].double() + model.W_pos[: tokens.shape[1]].double()
    n_layers, heads = model.cfg.n_layers, range(model.cfg.n_heads)
    saved = [torch.zeros_like(x0) for _ in range(n_layers)]
    losses = []
    for _ in range(n_layers + 1):
        x, new = x0, []
        for layer in range(n_layers):
            out = 0
            for head in heads:
                value = x @ model.W_V[layer, head].double() + model.b_V[layer, head].double()
                moved = patterns[layer][:, head].double() @ value
                out = out + moved @ model.W_O[layer, head].double()
            new.append(out)
            x = x + saved[layer] + model.b_O[layer].double()
        saved = new
        logits = x @ model.W_U.double()
        losses.append(
            torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
            ).item()
        )
    return losses


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_importance_is_the_papers_procedure(n_layers):
    model = native(n_layers=n_layers)
    tokens = ids(model, batch=3, length=12)
    out = run(model, tokens, record=[(layer, "pattern") for layer in range(n_layers)])
    expected = replaced_runs(model, tokens, [out[(layer, "pattern")] for layer in range(n_layers)])
    view = ll.AttentionOnly(model)
    found = view.paths(tokens).importance()
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)
    assert sum(found.effects) == pytest.approx(math.log(30) - expected[-1], rel=1e-5)
    assert sum(found.n_paths) == len(view.paths(tokens).terms)
    by_order = view.importance(tokens)  # the same without listing the paths
    np.testing.assert_allclose(by_order.losses, found.losses, rtol=1e-9)
    assert by_order.n_paths == found.n_paths


@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_both_ways_to_importance_agree_with_norms(norm):
    model = native(n_layers=3, n_heads=2, normalization_type=norm)
    view, tokens = ll.AttentionOnly(model), ids(model)
    a, b = view.paths(tokens).importance(), view.importance(tokens)
    np.testing.assert_allclose(a.losses, b.losses, rtol=1e-9)
    logits = model(tokens)[:, :-1].flatten(0, 1)
    own = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
    assert a.losses[-1] == pytest.approx(float(own), abs=1e-4)


def test_deep_models_need_no_list_of_paths():
    model = toy_model(n_layers=8, n_heads=4, d_model=16)
    tokens = torch.arange(10)[None]
    view = ll.AttentionOnly(model)
    with pytest.raises(InvalidArgumentError, match=r"max_terms must be at least .*importance"):
        view.paths(tokens)
    found = view.importance(tokens)
    assert len(found.losses) == 9
    logits = model(tokens)[:, :-1].flatten(0, 1)
    own = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
    assert found.losses[-1] == pytest.approx(float(own.detach()), abs=1e-5)
    with pytest.raises(InvalidArgumentError, match="max_bytes"):
        ll.AttentionOnly(toy_model()).paths(tokens, max_bytes=1000)


def test_token_table_adds_up_to_the_logit():
    model = native(normalization_type="LN")
    tokens = ids(model)
    paths = ll.AttentionOnly(model).paths(tokens)
    logits = model(tokens)
    for position, token in ((3, 7), (-1, 0), (0, 29)):
        table = paths.token_table(position, token, batch=1)
        assert table["logit"].sum() == pytest.approx(float(logits[1, position, token]), abs=1e-4)
        centred = logits[1, position, token] - logits[1, position].mean()
        assert table["relative"].sum() == pytest.approx(float(centred), abs=1e-4)
        assert table["relative"].abs().is_monotonic_decreasing
    assert paths.token_table(2).token == int(tokens[0, 3])  # the token that really comes next
    assert paths.token_table(-1).token == int(logits[0, -1].argmax())
    with pytest.raises(InvalidArgumentError, match="position must be at most 8"):
        paths.token_table(9)


def test_ablating_a_path_is_the_loss_without_its_logits():
    model = native()
    tokens = ids(model)
    paths = ll.AttentionOnly(model).paths(tokens)
    found = paths.ablations().to_dataframe().set_index("path")["effect"]
    term = paths.terms[7]
    logits = model(tokens).double()

    def loss(values):
        return torch.nn.functional.cross_entropy(
            values[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )

    expected = loss(logits - term.logits) - loss(logits)
    assert found[term.name] == pytest.approx(float(expected), abs=1e-5)


def test_zero_layers_are_one_path_and_bigrams():
    model = toy_model(n_layers=0, norm="LN", positions="none")
    tokens = torch.arange(9)[None]
    paths = ll.AttentionOnly(model).paths(tokens)
    assert [t.name for t in paths.terms] == ["token"] and paths.max_error < 1e-5
    assert "0 layers" in repr(ll.AttentionOnly(model))


def test_models_that_are_no_sum_of_paths_are_refused():
    with pytest.raises(UnsupportedModelError, match="2 of its 2 blocks have an MLP"):
        ll.AttentionOnly(toy_model(attn_only=False))
    with pytest.raises(UnsupportedModelError, match="bounds its logits at 30"):
        ll.AttentionOnly(native(output_logits_soft_cap=30.0))
    view = ll.AttentionOnly(native())
    with pytest.raises(InvalidArgumentError, match="another model's tokenizer"):
        view.paths(torch.tensor([[5, 30]]))
    with pytest.raises(NotEnoughDataError, match="at least 2"):
        view.paths(torch.tensor([[5]])).importance()


def test_bundled_models_are_exact(attn_2l):
    text = "Once upon a time there was a little dog who lived in a wood, and the little dog"
    tokens = ll.tokenize(attn_2l, text)
    view = ll.AttentionOnly(attn_2l)
    assert view.paths(tokens).max_error < 1e-4
    assert view.paths(tokens, dtype=torch.float64).max_error < 1e-9
    table = view.paths(tokens).token_table(-2)
    assert table.token_text == attn_2l.tokenizer.decode([table.token])


def test_losses_importance_and_ablations_are_those_of_the_task():
    model = native(n_layers=2)
    rows = [[3, 5, 7, 9, 2], [4, 6, 1]]
    task = ll.Task(rows, labels=[11, 4], positions=-1)
    paths = ll.AttentionOnly(model).paths(task)
    logits = torch.stack([model(torch.tensor([row]))[0, -1].double() for row in rows])
    right = torch.tensor([11, 4])
    loss = torch.nn.functional.cross_entropy(logits, right)
    assert paths.loss == pytest.approx(float(loss), abs=1e-5) and paths.max_error < 1e-4
    found = ll.AttentionOnly(model).importance(task)
    assert found.losses[-1] == pytest.approx(float(loss), abs=1e-5) and found.n_tokens == 2
    assert found.uniform == pytest.approx(np.log(30)) and sum(found.effects) == pytest.approx(
        np.log(30) - float(loss), abs=1e-5
    )
    np.testing.assert_allclose(paths.importance().losses, found.losses, atol=1e-9)
    term = paths.terms[5]
    ends = torch.stack([term.logits[0, 4], term.logits[1, 2]])
    other = ll.Task(rows, labels=[11, 4], positions=-1, metric="logit_difference")
    scored = ll.AttentionOnly(model).paths(other)
    at = ends.gather(1, right[:, None])[:, 0]
    worth = (at - (ends.sum(1) - at) / 29).mean()  # linear in the logits
    effects = scored.ablations().to_dataframe().set_index("path")["effect"]
    assert effects[term.name] == pytest.approx(float(worth), abs=1e-6)
    total = sum(scored.importance().effects)
    at = logits.gather(1, right[:, None])[:, 0]
    assert total == pytest.approx(float((at - (logits.sum(1) - at) / 29).mean()), abs=1e-4)
    assert paths.token_table(4).token == 11 and paths.token_table(2, batch=1).token == 4


def test_an_expansion_keeps_no_model_and_can_be_pickled():
    paths = ll.AttentionOnly(toy_model(seed=0)).paths([[1, 5, 3, 9, 2, 7]])
    again = pickle.loads(pickle.dumps(paths))
    assert again.loss == paths.loss and again.importance().losses == paths.importance().losses
