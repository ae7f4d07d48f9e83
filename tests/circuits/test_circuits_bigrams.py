import itertools

import numpy as np
import pytest
import torch
from circuit_zoo import native

import lens_linear as ll
from lens_linear.errors import FigureTooLargeError, InvalidArgumentError
from lens_linear.models.native import ModelSpec, bridge_from_module
from lens_linear.models.open.toy import toy_model
from lens_linear.stats.ngrams import bigram_counts
from lens_linear.text.synthetic import SyntheticLanguage
from lens_linear.training.loop import train
from lens_linear.training.recipes import Phase, Recipe


@pytest.mark.parametrize("norm", ["none", "LN", "LNPre", "RMS"])
def test_the_table_is_the_whole_of_a_model_without_layers(norm):
    model = toy_model(n_layers=0, d_vocab=30, d_model=16, norm=norm, positions="none")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("pos."):
                parameter.add_(
                    0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
                )
    table = ll.AttentionOnly(model).bigrams()
    own = model(torch.arange(30)[None])[0].log_softmax(-1).double()
    torch.testing.assert_close(table.log_probs(), own, rtol=1e-4, atol=1e-5)
    top = table.top(7, 4)
    assert top["next"].tolist() == own[7].topk(4).indices.tolist()
    np.testing.assert_allclose(top["probability"], own[7].exp().topk(4).values.detach(), rtol=1e-4)
    if norm == "none":
        raw = (model.W_E @ (model.W_U - model.W_U.mean(1, keepdim=True))).double()
        torch.testing.assert_close(table.logits, raw, rtol=1e-5, atol=1e-5)


def test_the_frame_lists_the_best_of_every_token():
    table = ll.AttentionOnly(native(n_layers=1)).bigrams()
    frame = table.to_dataframe(3)
    assert len(frame) == 90 and frame["token"].tolist() == sorted(frame["token"])
    best = table.log_probs().topk(3).indices.flatten().tolist()
    assert frame["next"].tolist() == best
    logits = [float(table.logits[t, n]) for t, n in zip(frame["token"], frame["next"])]
    np.testing.assert_allclose(frame["logit"], logits)


def test_a_token_may_be_named_by_its_text(attn_2l):
    table = ll.AttentionOnly(attn_2l).bigrams()
    (the,) = attn_2l.tokenizer.encode(" the", add_special_tokens=False)
    assert table.top(" the", 5)["next"].tolist() == table.top(the, 5)["next"].tolist()
    with pytest.raises(InvalidArgumentError, match="' the'"):
        table.top("  the")
    with pytest.raises(InvalidArgumentError, match="must be an id"):
        ll.AttentionOnly(native(n_layers=1)).bigrams().top(" the")


def test_a_large_table_is_refused_but_can_be_asked():
    model = toy_model(n_layers=0, d_vocab=5000, d_model=8)
    table = ll.AttentionOnly(model).bigrams()
    with pytest.raises(FigureTooLargeError, match="5000 x 5000"):
        _ = table.logits
    with pytest.raises(FigureTooLargeError, match="but the limit is"):
        table.log_probs()
    assert len(table.top(4999, 5)) == 5


def test_divergence_is_that_of_a_loop():
    model = native(n_layers=1)
    table = ll.AttentionOnly(model).bigrams()
    q = table.log_probs().numpy()
    tokens = torch.randint(0, 30, (4, 50), generator=torch.Generator().manual_seed(0))
    counts = np.zeros((30, 30))
    for row in tokens.tolist():
        for a, b in itertools.pairwise(row):
            counts[a, b] += 1
    p = counts / counts.sum(1, keepdims=True)
    kl = np.array([sum(x * (np.log(x) - y) for x, y in zip(p[a], q[a]) if x) for a in range(30)])
    share = counts.sum(1) / counts.sum()
    found = table.compare(bigram_counts(tokens, 30))
    np.testing.assert_allclose(found.per_token, kl, rtol=1e-8)
    assert found.mean == pytest.approx((kl * share).sum())
    exact = table.compare(torch.tensor(p), weights=torch.tensor(share))
    assert exact.mean == pytest.approx(found.mean)
    assert table.compare(table.log_probs().exp()).mean == pytest.approx(0, abs=1e-12)
    frame = found.to_dataframe()
    assert (frame["kl"] * frame["weight"]).is_monotonic_decreasing
    with pytest.raises(InvalidArgumentError, match="rows sum to"):
        table.compare(torch.tensor(counts))
    other = ll.AttentionOnly(native(n_layers=1, d_vocab_out=17)).bigrams()
    with pytest.raises(InvalidArgumentError, match="predicts 17"):
        other.compare(bigram_counts(tokens, 30))


def test_a_trained_model_without_layers_holds_the_true_bigrams():
    language = SyntheticLanguage(24, n_skip_trigrams=0, n_names=0, n_mood_words=0, sharpness=1.5)
    spec = ModelSpec(0, 24, 1, 24, 64, attn_only=True, norm="none", positions="none")
    phase = Phase(steps=300, rows=64, length=64, learning_rate=3e-2, warmup=10)
    recipe = Recipe("zero", spec, (phase,), weight_decay=0.0, precision="float32")
    run = train(recipe, language.tokens(2000, 63, seed=1).flatten(), progress=False)
    model = bridge_from_module(run.module, spec)
    table = ll.AttentionOnly(model).bigrams()
    shares = language.stationary[:24]
    trained = table.compare(language.bigram_table, weights=shares).mean
    random = ll.AttentionOnly(toy_model(n_layers=0, d_vocab=24, d_model=24)).bigrams()
    untrained = random.compare(language.bigram_table, weights=shares).mean
    assert trained < 0.02 < 0.5 < untrained


@pytest.mark.parametrize("norm", ["none", "LNPre", "RMS"])
def test_equal_position_rows_leave_nothing_to_average(norm):
    """With one and the same row at every position the direct path is the model's own prediction."""
    model = toy_model(n_layers=0, d_vocab=30, d_model=16, n_ctx=8, norm=norm, positions="standard")
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.W_E.add_(torch.randn(model.W_E.shape, generator=draw))
        model.W_pos.copy_(torch.randn(16, generator=draw).expand_as(model.W_pos))
    tokens = torch.randint(30, (2, 8), generator=draw)
    own = model(tokens).log_softmax(-1).double()
    found = ll.AttentionOnly(model).bigrams().log_probs(tokens).reshape(own.shape)
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["LNPre", "RMS"])
def test_a_head_blind_to_content_attends_as_its_positions_say(norm):
    """Every token has one row, which queries and keys do not read: what is left is exact."""
    model = toy_model(n_layers=1, n_heads=4, d_model=32, n_ctx=9, norm=norm, positions="standard")
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        read = torch.cat([model.W_Q[0, 0].T, model.W_K[0, 0].T, torch.ones(1, 32)])
        row = torch.linalg.svd(read.double())[2][-1]
        model.W_E.copy_(3 * row.to(model.W_E).expand_as(model.W_E))
        model.W_pos.copy_(torch.randn(9, 32, generator=draw) + 0.3 * row.float())
        model.W_pos.mul_(2)
    _, cache = model.run_with_cache(torch.arange(9)[None])
    own = cache["blocks.0.attn.hook_pattern"][0, 0].double()
    assert own[8, :8].std() > 0.02
    found = ll.head(model, "L0H0").positional_qk().pattern
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)
