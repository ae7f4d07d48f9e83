"""Every tool on a model whose weights were set by hand: the numbers are known from formulas."""

import numpy as np
import pytest
import torch

import lens_linear as ll
from lens_linear.circuits.heads.factored import diagonal_accuracy
from lens_linear.circuits.heads.head_circuit import head_circuit
from lens_linear.circuits.heads.virtual import composed_qk, virtual_head
from lens_linear.constructions.induction_model import (
    INDUCTION_HEAD,
    PREVIOUS_TOKEN_HEAD,
    build_induction,
)
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.capture import run
from lens_linear.models.frozen.attention_scores import attention_scores

V, N = 8, 16
BETA, GAMMA, STRENGTH = 3.0, 5.0, 2.0


@pytest.fixture(scope="module")
def built():
    return build_induction(V, N, sharpness=(BETA, GAMMA), strength=STRENGTH)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, V, (3, N), generator=torch.Generator().manual_seed(0))


def slow(tokens):
    """Patterns and logits by plain loops over one row, from the formulas."""
    n = len(tokens)
    first = np.zeros((n, n))
    for t in range(n):
        for j in range(t + 1):
            first[t, j] = np.exp(BETA if j == t - 1 else 0.0)
        first[t] /= first[t].sum()
    scores, second = np.zeros((n, n)), np.zeros((n, n))
    for t in range(n):
        for j in range(t + 1):
            match = sum(first[j, i] for i in range(j + 1) if tokens[i] == tokens[t])
            scores[t, j] = GAMMA * match
            second[t, j] = np.exp(scores[t, j])
        second[t] /= second[t].sum()
    logits = np.zeros((n, V))
    for t in range(n):
        for j in range(t + 1):
            logits[t, tokens[j]] += STRENGTH * second[t, j]
    return first, scores, second, logits


def test_closed_forms_weights_and_loops_agree(built, tokens):
    out = run(built.model, tokens, record=[(0, "pattern"), (1, "pattern")])
    own_scores = attention_scores(built.model, tokens, 1)[:, 1]
    for row in range(3):
        first, scores, second, logits = slow(tokens[row].tolist())
        for found in (built.previous_token_pattern(N), out[(0, "pattern")][row, 0]):
            np.testing.assert_allclose(found, first, atol=1e-6)
        for found in (built.induction_scores(tokens)[row], own_scores[row]):
            np.testing.assert_allclose(found.tril(), scores, atol=1e-5)
        for found in (built.induction_pattern(tokens)[row], out[(1, "pattern")][row, 1]):
            np.testing.assert_allclose(found, second, atol=1e-6)
        for found in (built.logits(tokens)[row], out.logits[row].detach()):
            np.testing.assert_allclose(found, logits, atol=1e-5)
    even = 1 / torch.arange(1, N + 1.0)
    for layer, head in ((0, 1), (1, 0)):  # idle heads attend evenly
        torch.testing.assert_close(out[(layer, "pattern")][0, head, :, 0], even)


def test_head_circuits_are_the_matrices_that_were_set(built):
    induction, previous = (
        head_circuit(built.model, *at) for at in (INDUCTION_HEAD, PREVIOUS_TOKEN_HEAD)
    )
    eye = torch.eye(V).double()
    seen = STRENGTH * (eye - 1 / V)  # less the mean over outputs, which no softmax sees
    torch.testing.assert_close(induction.ov.AB, seen, atol=1e-6, rtol=0)
    assert induction.copying_score == pytest.approx(1.0)
    assert induction.copying_accuracy().top1 == 1.0
    assert induction.qk.AB.abs().max() == 0  # content meets nothing without the previous token
    assert previous.ov.AB.abs().max() == 0 and previous.copying_score == 0
    expected = BETA * torch.eye(N)[1:, :].double() @ torch.eye(N).double()
    positional = previous.positional_qk()
    torch.testing.assert_close(positional.scores[1:, : N - 1], expected[:, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        positional.pattern, built.previous_token_pattern(N), atol=1e-5, rtol=0
    )
    found = induction.svd(V)
    expected = torch.tensor(
        [STRENGTH] * (V - 1) + [0.0]
    ).double()  # nothing in the direction of ones
    torch.testing.assert_close(found.S, expected, atol=1e-6, rtol=0)
    assert found.near_equal == (range(V - 1),)  # all equal: no single direction means anything


def test_composition_is_k_and_only_k(built):
    frame = ll.composition_scores(built.model, n_random=50).to_dataframe()
    frame = frame.set_index(["kind", "writer", "reader"])["score"]
    assert frame["K", "L0H0", "L1H1"] == pytest.approx(V**-0.5, rel=1e-6)
    assert frame.drop(("K", "L0H0", "L1H1")).abs().max() < 1e-12
    writer, reader = (head_circuit(built.model, *at) for at in ((0, 0), (1, 1)))
    composed = composed_qk(writer, reader)
    torch.testing.assert_close(composed.AB, GAMMA * torch.eye(V).double(), atol=1e-5, rtol=0)
    assert diagonal_accuracy(composed).top1 == 1.0
    assert virtual_head(writer, reader).ov.AB.abs().max() == 0


def test_the_logits_are_one_path(built, tokens):
    paths = ll.AttentionOnly(built.model).paths(tokens, dtype=torch.float64)
    assert paths.max_error < 1e-9
    for term in paths.terms:
        if term.name == "token → L1H1":
            torch.testing.assert_close(term.logits, built.logits(tokens), atol=1e-6, rtol=0)
        else:
            assert term.logits.abs().max() < 1e-12
    effects = paths.importance()
    assert effects.effects[0] == pytest.approx(0, abs=1e-12)
    assert effects.effects[2] == pytest.approx(0, abs=1e-12)


def test_scores_come_from_token_and_previous_token_head(built, tokens):
    found = ll.qk_attribution(built.model, tokens, *INDUCTION_HEAD)
    names = list(found.components)
    at = names.index("token"), names.index("L0H0")
    expected = built.induction_scores(tokens)
    torch.testing.assert_close(found.scores[at], expected, atol=1e-5, rtol=0)
    rest = found.scores.clone()
    rest[at] = 0
    assert rest.abs().max() < 1e-12


@pytest.mark.parametrize("vocab, n_ctx", [(2, 4), (5, 15), (16, 20)])
def test_other_sizes(vocab, n_ctx):
    made = build_induction(vocab, n_ctx, sharpness=(-1.0, 2.0))
    tokens = torch.randint(0, vocab, (2, n_ctx), generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(made.model(tokens).detach(), made.logits(tokens), atol=1e-4)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InvalidArgumentError, match="must be even"):
        build_induction(5, 10)
    with pytest.raises(InvalidArgumentError, match="n_ctx must be at most 15"):
        build_induction(5, 17)
