"""Changes of the weights that change no probability change no score of a circuit.

Each changes the weights of a model whose norms centre, and leaves its probabilities as they are: constants
that a LayerNorm takes away, a vector that all keys share, one number more in all logits, another basis inside
a head, a norm's weight moved into what reads it.
"""

import copy

import numpy as np
import pytest
import torch
from circuit_zoo import ids, native
from test_circuits_unseen import SCORES, TOKENS

import lens_linear as ll
from lens_linear.models.checked import checked
from lens_linear.reports.measured import Measured


def _draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _tokens(part, width):
    part("tok_embed.weight").add_(2 * _draw(len(part("tok_embed.weight")), 1))


def _positions(part, width):
    part("pos.weight").add_(2 * _draw(len(part("pos.weight")), 1))


def _writers(part, width):
    for layer in range(2):
        out = part(f"layers.{layer}.attn.o.weight")  # [d_model, head x d_head]
        out.add_(_draw(1, out.shape[1], seed=layer) * out.std())
        part(f"layers.{layer}.attn.o.bias").add_(1.5)


def _readers(part, width):
    for layer in range(2):
        norm, shift = part(f"layers.{layer}.ln1.weight"), part(f"layers.{layer}.ln1.bias")
        for seed, name in enumerate("qkv"):
            weight = part(f"layers.{layer}.attn.{name}.weight")
            seen = weight.std() * _draw(len(weight), 1, seed=3 * layer + seed) / norm
            weight.add_(seen)
            part(f"layers.{layer}.attn.{name}.bias").sub_(seen @ shift)


def _keys(part, width):
    for layer in range(2):
        bias = part(f"layers.{layer}.attn.k.bias")
        bias.add_(_draw(len(bias), seed=layer))


def _inside_heads(part, width):
    for layer in range(2):
        q, k, v, o = (part(f"layers.{layer}.attn.{name}.weight") for name in "qkvo")
        bq, bk, bv = (part(f"layers.{layer}.attn.{name}.bias") for name in "qkv")
        for start in range(0, len(q), width):
            rows = slice(start, start + width)
            basis = torch.linalg.qr(_draw(width, width, seed=start))[0] * (1 + start / len(q))
            inverse = basis.inverse()
            q[rows], bq[rows] = basis @ q[rows], basis @ bq[rows]
            k[rows], bk[rows] = inverse.T @ k[rows], inverse.T @ bk[rows]
            v[rows], bv[rows] = basis @ v[rows], basis @ bv[rows]
            o[:, rows] = o[:, rows] @ inverse


def _norms(part, width):
    for layer in range(2):
        scale = 1 + _draw(len(part("ln_out.weight")), seed=layer).abs()
        part(f"layers.{layer}.ln1.weight").mul_(scale)
        part(f"layers.{layer}.ln1.bias").mul_(scale)
        for name in "qkv":
            part(f"layers.{layer}.attn.{name}.weight").div_(scale)


def _outputs(part, width):
    weight = part("head.weight")
    weight.add_(3 * weight.std() * _draw(1, weight.shape[1]))


CHANGES = {
    "one number more in all logits": _outputs,
    "a constant on every token's row": _tokens,
    "a constant on every position's row": _positions,
    "a constant on what heads write": _writers,
    "a constant on what heads read": _readers,
    "one vector on all keys": _keys,
    "another basis inside heads": _inside_heads,
    "weights of norms in their readers": _norms,
}


def changed(model, change):
    """The same function of tokens by other weights."""
    other = copy.deepcopy(model)
    named = {
        n.replace("._original_component", ""): p for n, p in other.original_model.named_parameters()
    }
    with torch.no_grad():
        CHANGES[change](named.__getitem__, model.cfg.d_head)
    return other


def direct_effects(model):
    task = ll.Task(TOKENS.repeat(2, 1), labels=torch.tensor([3, 5]), positions=-1)
    found = ll.direct_logit_attribution(model, task).to_dataframe().set_index("component")
    return found.sort_index()[["relative", "relative_se"]]


def patched(model):
    clean = ll.Task(TOKENS, labels=torch.tensor([3]), positions=-1)
    return ll.patch(model, clean, TOKENS.flip(1), what="head").to_dataframe()["effect"]


def by_writer(model):
    # Against the query's other keys, as the softmax compares them.
    score = ll.qk_attribution(model, TOKENS, 1, 0)
    found = score.by_writer("key", query=7, key=3, contrast=True).set_index("component")
    return found.sort_index()["score"]


NUMBERS = {
    **{
        name: score
        for name, score in SCORES.items()
        if name not in ("composition", "qk attribution")
    },
    "composition": lambda m: ll.composition_scores(m, n_random=5, fold=True)["ratio"],
    "direct effects": direct_effects,
    "patching": patched,
    "attention by writer": by_writer,
    "positions": lambda m: (
        ll.head(m, "L0H1").positional_qk().to_dataframe()[["scaled_score", "attention"]]
    ),
}
# What adds up to the model's own scores or logits moves with them (`qk_attribution(...).scores`, `logit`);
# composition without fold=True is of the weights as they are stored.


@pytest.fixture(scope="module")
def plain():
    return native(normalization_type="LN")


@pytest.fixture(scope="module")
def pairs(plain):
    return {change: changed(plain, change) for change in CHANGES}


@pytest.fixture(scope="module")
def known(plain):
    return {name: np.asarray(number(plain), dtype=float) for name, number in NUMBERS.items()}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_no_probability_changes_no_number(plain, pairs, known, change):
    other, tokens = pairs[change], ids(plain)
    assert any(
        float((a - b).abs().max()) > 0.3
        for a, b in zip(plain.parameters(), other.parameters(), strict=True)
    )
    one, two = (m(tokens).log_softmax(-1) for m in (plain, other))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    for name, number in NUMBERS.items():
        np.testing.assert_allclose(
            np.asarray(number(other), dtype=float), known[name], rtol=2e-3, atol=3e-4, err_msg=name
        )


def _values(part, width):
    for layer in range(2):
        bias = part(f"layers.{layer}.attn.v.bias")
        more = 4 * _draw(len(bias), seed=layer)
        bias.add_(more)
        part(f"layers.{layer}.attn.o.bias").sub_(part(f"layers.{layer}.attn.o.weight") @ more)


@pytest.mark.parametrize("norm", [None, "LN", "RMS"])
def test_what_all_values_share_is_no_evidence_of_induction(norm, monkeypatch):
    monkeypatch.setitem(CHANGES, "values", _values)
    plain = native(normalization_type=norm, d_vocab=40, n_ctx=30)
    other, tokens = changed(plain, "values"), ids(plain)
    torch.testing.assert_close(plain(tokens), other(tokens), rtol=1e-4, atol=1e-3)
    one, two = (ll.induction_scores(m, rows_per_period=2) for m in (plain, other))
    torch.testing.assert_close(one.target_logit, two.target_logit, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(one.target_logit_se, two.target_logit_se, rtol=2e-3, atol=1e-3)


# A constant on rows or on what is written is in the raw stream, whose R² it changes by definition.
UNSEEN_IN_THE_STREAM = [name for name in CHANGES if not name.endswith(("row", "heads write"))]


@pytest.mark.parametrize("change", UNSEEN_IN_THE_STREAM)
def test_what_a_page_measures_does_not_move(plain, pairs, change):
    rows = torch.randint(plain.cfg.d_vocab, (60, 12), generator=torch.Generator().manual_seed(2))
    one, two = (Measured(checked(m), ll.Task(rows)) for m in (plain, pairs[change]))
    for part in ("induction", "composition", "linearity"):
        before, after = (
            getattr(m, part).to_dataframe().select_dtypes("number") for m in (one, two)
        )
        np.testing.assert_allclose(after, before, rtol=2e-3, atol=3e-4, err_msg=part)
