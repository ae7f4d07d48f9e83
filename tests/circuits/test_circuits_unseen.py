"""What the softmax cannot see changes no score: W_U + u 1ᵀ is the same model."""

import copy

import numpy as np
import pytest
import torch
from circuit_zoo import ids, native

import lens_linear as ll
from lens_linear import circuits
from lens_linear.circuits.heads.head_circuit import head_circuit

TOKENS = torch.tensor([[3, 7, 3, 9, 11, 7, 2, 9]])


def shifted(model):
    """The same model with one number more in all logits: u · x, u as large as W_U's own columns."""
    other = copy.deepcopy(model)
    unembedding = other.original_model.head.weight  # [vocab, d_model]
    u = torch.randn(unembedding.shape[1], generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        unembedding.add_(3 * u)
    return other


def heads(model):
    return [head_circuit(model, layer, 1) for layer in range(2)]


SCORES = {
    "copying score": lambda m: [h.copying_score for h in heads(m)],
    "ov": lambda m: heads(m)[1].ov.AB,
    "copying accuracy": lambda m: heads(m)[1].copying_accuracy().ranks,
    "ov svd": lambda m: heads(m)[1].svd(3)["loading"],
    "top pairs": lambda m: heads(m)[0].top_pairs("ov", 20)["value"],
    "top pairs of qk": lambda m: heads(m)[0].top_pairs("qk", 20)["value"],
    "circuit map": lambda m: circuits.circuit_map(heads(m)[0], k=5, blocks=4).overview,
    "summed ov": lambda m: circuits.summed_ov(heads(m)).AB,
    "virtual head": lambda m: circuits.virtual_head(*heads(m)).copying_score,
    "composed qk": lambda m: circuits.composed_qk(*heads(m)).AB,
    "skip-trigrams": lambda m: circuits.skip_trigrams(heads(m)[0], 15)[
        ["source", "out", "effect", "ov_score", "probability_gain"]
    ],
    "all skip-trigrams": lambda m: circuits.all_skip_trigrams(heads(m), 15, by="effect")["effect"],
    "skip-trigram bugs": lambda m: circuits.skip_trigram_bugs(
        heads(m)[0], torch.tensor([[5, 1, 2], [5, 3, 4]])
    )["effect"],
    "bigrams": lambda m: ll.AttentionOnly(m).bigrams().logits,
    "bigrams, best": lambda m: ll.AttentionOnly(m).bigrams().to_dataframe(3),
    "bigrams, probabilities": lambda m: ll.AttentionOnly(m).bigrams().log_probs(),
    "paths, size": lambda m: ll.AttentionOnly(m).paths(TOKENS).to_dataframe()["size"],
    "paths to a logit": lambda m: ll.AttentionOnly(m).paths(TOKENS).token_table(4, 6)["relative"],
    "path ablations": lambda m: ll.AttentionOnly(m).paths(TOKENS).ablations()["effect"],
    "importance": lambda m: ll.AttentionOnly(m).importance(TOKENS)["effect"],
    "induction scores": lambda m: ll.induction_scores(m, rows_per_period=2)[
        ["copying", "target_logit", "prefix_matching"]
    ],
    "ablation": lambda m: circuits.ablation_scores(m, rows_per_period=1)["lost"],
    "in-context loss": lambda m: circuits.in_context_loss(m, rows_per_period=2)["loss"],
    "composition": lambda m: ll.composition_scores(m, n_random=5)["score"],
    "qk attribution": lambda m: ll.qk_attribution(m, TOKENS, 1, 0).scores,
}


@pytest.mark.parametrize("norm", [None, "LN"])
@pytest.mark.parametrize("name", SCORES)
def test_a_shift_of_all_logits_changes_nothing(name, norm):
    model = native(normalization_type=norm)
    one, other = (np.asarray(SCORES[name](m), dtype=float) for m in (model, shifted(model)))
    # The shift is rounded to float32 on its way in, in every one of the models' own logits.
    np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


def test_the_shift_is_large_and_the_model_the_same():
    model = native()
    other, tokens = shifted(model), ids(model)
    assert float((model(tokens) - other(tokens)).abs().max()) > 5
    one, two = (m(tokens).log_softmax(-1) for m in (model, other))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_copying_scores_of_a_bundled_model_are_the_centred_ones():
    view = ll.AttentionOnly(ll.load("attn-1l"))
    found = [head.copying_score for head in view.heads()]
    np.testing.assert_allclose(found, [0.463, -0.112, 0.080, -0.349], atol=2e-3)
    W_U, W_E = view.weights.W_U, view.weights.W_E
    W_U = W_U - W_U.mean(1, keepdim=True)
    at = view.weights.attention
    for head, score in enumerate(found):
        small = at.W_O[0, head] @ W_U @ W_E @ at.W_V[0, head]
        values = np.linalg.eigvals(small.numpy())
        assert score == pytest.approx(values.real.sum() / np.abs(values).sum(), abs=1e-9)
