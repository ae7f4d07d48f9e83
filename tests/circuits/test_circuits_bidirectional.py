"""Models whose tokens see later ones: tables keep later keys, next tokens are no question."""

import pytest
import torch
from circuit_zoo import ids, native

import lens_linear as ll
from lens_linear import circuits
from lens_linear.circuits.heads.virtual import virtual_head
from lens_linear.errors import UnsupportedModelError
from lens_linear.stats import as_rows, score_model


@pytest.fixture(scope="module")
def both_ways():
    return native(attention_dir="bidirectional", n_ctx=12)


@pytest.fixture(scope="module")
def asked(both_ways):
    tokens = ids(both_ways, batch=6, length=10)
    return ll.Task(tokens, labels=tokens.roll(3, 1))


def _loss_of(paths):
    assert paths.loss > 0
    return paths


NEXT_TOKEN = {
    "importance": lambda m, t: ll.AttentionOnly(m).importance(t),
    "ablations": circuits.ablation_scores,
    "paths' loss": lambda m, t: _loss_of(ll.AttentionOnly(m).paths(t)),
    "paths' importance": lambda m, t: ll.AttentionOnly(m).paths(t).importance(),
    "paths' ablations": lambda m, t: ll.AttentionOnly(m).paths(t).ablations(),
    "attribution": circuits.direct_logit_attribution,
    "patch": lambda m, t: ll.patch(
        m, t if isinstance(t, ll.Task) else t[:6], ids(m, 6, 10, seed=1)
    ),
    "in-context loss": circuits.in_context_loss,
    "curve": lambda m, t: ll.replacement_curve(m, t, "remove"),
    "linear curve": lambda m, t: ll.replacement_curve(m, t, "linear"),
}


@pytest.mark.parametrize("name", NEXT_TOKEN)
def test_next_tokens_are_refused_and_labels_answered(both_ways, asked, name):
    with pytest.raises(UnsupportedModelError, match=r"sees later tokens.*Task\(tokens, labels="):
        NEXT_TOKEN[name](both_ways, asked.tokens)
    assert len(NEXT_TOKEN[name](both_ways, asked).to_dataframe()) > 1


def test_random_repeats_are_no_question_either(both_ways):
    for function in (circuits.ablation_scores, circuits.in_context_loss):
        with pytest.raises(UnsupportedModelError, match="sees later tokens"):
            function(both_ways)
    for function in (ll.induction_scores, circuits.verify_induction):
        with pytest.raises(UnsupportedModelError, match="tokens see later ones"):
            function(both_ways)


def test_losses_and_ablations_are_those_of_the_labels(both_ways, asked):
    def loss(**edits):
        with both_ways.hooks(fwd_hooks=list(edits.items())):
            logits = both_ways(asked.tokens).detach()
        return float(torch.nn.functional.cross_entropy(logits.mT, asked.labels))

    rows = as_rows(both_ways, asked)
    assert score_model(both_ways, rows).loss.mean == pytest.approx(loss(), rel=1e-5)
    found = ll.AttentionOnly(both_ways).importance(asked)
    assert found.losses[-1] == pytest.approx(loss(), rel=1e-5)

    def without(z, hook):
        z = z.clone()
        z[:, :, 1] = 0
        return z

    scores = circuits.ablation_scores(both_ways, asked, how="zero").to_dataframe().set_index("head")
    lost = loss(**{"blocks.1.attn.hook_z": without}) - loss()
    assert scores.loc["L1H1", "lost"] == pytest.approx(lost, rel=1e-3)


def test_no_table_drops_later_keys(both_ways, asked):
    tokens = asked.tokens[:2]
    view = ll.AttentionOnly(both_ways)
    _, cache = both_ways.run_with_cache(tokens)
    first, second = (cache[f"blocks.{layer}.attn.hook_pattern"].double() for layer in (0, 1))
    moved = virtual_head(view.head(0, 1), view.head(1, 2)).pattern(tokens)
    torch.testing.assert_close(moved, second[:, 2] @ first[:, 1], rtol=1e-4, atol=1e-5)
    assert float(moved.triu(1).sum()) > 1
    pattern = circuits.attention_pattern(both_ways, tokens[0], layer=1)
    torch.testing.assert_close(
        pattern.pattern.double().flatten(0, -3), second[0], rtol=1e-4, atol=1e-5
    )
    sums = view.head(1, 0).positional_qk(8).pattern
    torch.testing.assert_close(sums.sum(-1), torch.ones_like(sums[..., 0]))
    assert float(sums[0, 1:].min()) > 0
    assert view.paths(tokens).max_error < 1e-4
    assert view.paths(tokens, dtype=torch.float64).max_error < 1e-11
