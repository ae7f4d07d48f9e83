"""Folded weights give the model's own queries, keys, values and logits; the model stays as it was."""

import pytest
import torch

import lens_linear as ll
from lens_linear.errors import UnsupportedModelError
from lens_linear.models.capture import run
from lens_linear.models.checked import checked
from lens_linear.models.describe import weights_mark
from lens_linear.models.describe.weights import norm_scale, read_weights
from lens_linear.models.frozen.attention_scores import attention_scores
from lens_linear.models.frozen.frozen_attention import _require_rounding
from lens_linear.models.open.toy import toy_model

TOYS = {
    "no norm": {"norm": "none"},
    "LN": {"norm": "LN", "attn_only": False},
    "LNPre": {"norm": "LNPre"},
    "RMS rotary": {"norm": "RMS", "positions": "rotary", "attn_only": False},
    "width equals MLP": {"norm": "LN", "attn_only": False, "d_mlp": 32},
}


def perturbed(model):
    """Move every weight, so that norm weights and biases are not ones and zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.original_model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def check_against_the_model(model):
    tokens = torch.randint(0, 60, (3, 20), generator=torch.Generator().manual_seed(0))
    weights = read_weights(model)
    for layer in range(model.cfg.n_layers):
        spots = [(layer, what) for what in ("resid_pre", "q", "k", "v", "z")]
        seen = run(model, tokens, record=spots, logits=False)
        x = seen[(layer, "resid_pre")].double()
        scale = norm_scale(x, weights.norm, weights.eps)
        for letter in "qkv":
            matrix = getattr(weights.attention, f"W_{letter.upper()}")[layer]
            bias = getattr(weights.attention, f"b_{letter.upper()}")[layer]
            mine = torch.einsum("bpd,hde->bphe", x, matrix) / scale[..., None] + bias
            theirs = seen[(layer, letter)].double()
            theirs = theirs.repeat_interleave(mine.shape[2] // theirs.shape[2], dim=2)
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)
        attention_scores(model, tokens, layer)  # raises unless its softmax is the model's pattern
    last = model.cfg.n_layers - 1
    out = run(model, tokens, record=[(last, "resid_post")])
    x = out[(last, "resid_post")].double()
    logits = x @ weights.W_U / norm_scale(x, weights.norm, weights.eps) + weights.b_U
    cap = getattr(model.cfg, "output_logits_soft_cap", -1)
    if cap and cap > 0:
        logits = cap * torch.tanh(logits / cap)
    torch.testing.assert_close(logits, out.logits.double(), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TOYS)
def test_folded_weights_of_native_models(name):
    check_against_the_model(perturbed(toy_model(**TOYS[name])))


def test_folded_weights_of_other_architectures(foreign):
    check_against_the_model(foreign)


def test_folded_weights_of_a_real_llama(stories_model):
    check_against_the_model(stories_model)


def test_reading_changes_nothing():
    model = perturbed(toy_model(norm="LN", attn_only=False))
    before = {name: value.clone() for name, value in model.original_model.state_dict().items()}
    read_weights(model)
    for name, value in model.original_model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_raw_weights_differ_from_folded_ones():
    model = perturbed(toy_model(norm="LN"))
    raw, folded = read_weights(model, fold=False), read_weights(model)
    assert not torch.allclose(raw.attention.W_Q, folded.attention.W_Q)
    torch.testing.assert_close(raw.attention.W_Q.float(), model.W_Q.detach())


def test_position_biases_are_refused_not_misread(tmp_path):
    import transformers

    import lens_linear as ll

    config = transformers.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = ll.load(tmp_path)
    with pytest.raises(UnsupportedModelError, match="do not give back its attention pattern"):
        attention_scores(model, torch.arange(20)[None], 0)


def test_relative_rotation_matches_scores():
    from lens_linear.models.describe.rotary import read_rotary

    model = toy_model(positions="rotary", norm="none")
    tokens = torch.randint(0, 60, (1, 12), generator=torch.Generator().manual_seed(3))
    weights = read_weights(model)
    scores = attention_scores(model, tokens, 0)
    rotary = read_rotary(model, 0, 12)
    x = weights.W_E[tokens[0]]
    for query, key in [(5, 2), (11, 0), (7, 7)]:
        q = x[query] @ weights.attention.W_Q[0, 1] + weights.attention.b_Q[0, 1]
        k = x[key] @ weights.attention.W_K[0, 1] + weights.attention.b_K[0, 1]
        turned = rotary.relative(query - key, 8)
        mine = float(q @ turned @ k) * weights.attention.scale
        assert mine == pytest.approx(float(scores[0, 1, query, key]), abs=1e-5)


def test_what_the_softmax_can_see_has_no_mean_over_the_outputs():
    weights = read_weights(ll.load("attn-2l"))
    centred = weights.class_centred
    assert float(weights.W_U.mean(1).abs().max()) > 1e-3
    assert float(centred[:, : weights.n_outputs].mean(1).abs().max()) < 1e-12
    torch.testing.assert_close(centred, weights.class_directions(torch.arange(centred.shape[1])).T)


def test_one_wrong_entry_of_a_norm_is_enough_to_refuse():
    model = ll.load("attn-1l")
    gap, read = torch.zeros(1, 3, 4), torch.ones(1, 3, 4)
    _require_rounding(checked(model), [gap, gap], [read, read])
    wrong = gap.clone()
    wrong[0, 1, 2] = 0.5
    with pytest.raises(UnsupportedModelError, match=r"the final norm .* gap 0\.5\)"):
        _require_rounding(checked(model), [gap, wrong], [read, read])


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ((40, 8), 320),
        ((64, 64), 4096),
        ((4, 5, 1024), 4096),
        ((64, 320), 6827),
        ((6000, 8), 6858),
        ((6000, 9), 6750),
    ],
)
def test_a_look_at_weights_meets_every_row_and_column_and_reads_few(shape, read, monkeypatch):
    g, lengths, ramp = torch.Generator().manual_seed(0), [], weights_mark._ramp
    monkeypatch.setattr(weights_mark, "_ramp", lambda n: lengths.append(n) or ramp(n))
    value = torch.randn(shape, generator=g)
    before = weights_mark._digest(value)
    assert lengths == [read]
    for axis, n in enumerate(shape):
        for i in {0, n // 2, n - 1, *torch.randint(n, (9,), generator=g).tolist()}:
            changed = value.clone()
            changed.select(axis, i).add_(0.1)
            assert weights_mark._digest(changed) != before, (axis, i)
