"""The whole room on other people's architectures, on a trained Llama, and on bundled models."""

import pytest
import torch
from linearity_data import activations, numpy_r2, split, tokens

import lens_linear as ll
from lens_linear.linearity.measure.geometry import layer_geometry
from lens_linear.linearity.replace.compression import ffn_compression


def logits(model, ids):
    with torch.no_grad():
        return model(ids, return_type="logits")


def check_profile(model, ids):
    profile = ll.linearity_profile(model, ids)
    train, test = split(ids)
    last = profile.n_layers - 1
    for site in ("block", "ffn", "attn"):
        for layer in (0, last):
            want = numpy_r2(
                *activations(model, train, layer, site),
                *activations(model, test, layer, site),
                rounding=1e-6,  # the rows are float32: their norms leave a direction of rounding
            )
            assert float(profile.scores[site][layer]) == pytest.approx(want, abs=1e-6), (
                site,
                layer,
            )
    return profile


def check_replacement(model, ids):
    before = logits(model, ids)
    x, y = activations(model, ids, 1, "ffn")
    with ll.linearize(model, ids, layers=[1], site="ffn") as fitted:
        changed = logits(model, ids)
    after = logits(model, ids)
    assert torch.equal(before, after) and float((changed - before).abs().max()) > 0
    missed = (y - fitted.maps[0](x)).square().sum() / (y - y.flatten(0, 1).mean(0)).square().sum()
    assert fitted.maps[0].r_squared == pytest.approx(1 - float(missed), abs=1e-6)
    curve = ll.replacement_curve(model, ids, "linear", max_replaced=1)
    assert curve["loss"].notna().all()


def test_other_architectures(foreign):
    ids = tokens(40, 16, vocab=96)
    profile = check_profile(foreign, ids)
    check_replacement(foreign, ids)
    assert torch.allclose(
        ll.layer_map(foreign, ids).values.diagonal(1), profile.scores["block"], atol=1e-9
    )
    assert ffn_compression(foreign, ids, layers=[0])["times_fewer"].iloc[0] > 3
    assert layer_geometry(foreign, ids).anisotropy.shape == (4,)


def test_half_precision_of_another_architecture(foreign):
    ids = tokens(40, 16, vocab=96)
    full = ll.linearity_profile(foreign, ids)
    half = foreign.to(torch.bfloat16)
    try:
        scores = ll.linearity_profile(half, ids).scores
        for site in ("block", "ffn"):
            assert float((scores[site] - full.scores[site]).abs().max()) < 0.05
        with ll.linearize(half, ids, layers=[0]):
            assert logits(half, ids).dtype == torch.bfloat16
    finally:
        foreign.to(torch.float32)


def test_a_trained_llama(stories_model):
    # Its own samples need its tokenizer; random ids suffice for agreement with numpy.
    ids = torch.randint(3, 512, (40, 32), generator=torch.Generator().manual_seed(0))
    check_profile(stories_model, ids)
    check_replacement(stories_model, ids)


def test_bundled_attention_only(attn_2l):
    ids = torch.randint(1, 1000, (24, 64), generator=torch.Generator().manual_seed(0))
    frame = ll.linearity_profile(attn_2l, ids).to_dataframe()
    assert frame.ffn_r2.isna().all() and (frame.block_r2 < 1).all()


def test_bundled_model_with_ffns():
    names = [name for name in ll.available_models()["name"] if name.startswith("gpt-")]
    if not names:
        pytest.skip("no gpt-* model is bundled in this checkout")
    model = ll.load(names[0])
    ids = ll.evaluation_tokens(model, n_sequences=24)
    frame = check_profile(model, ids).to_dataframe()
    assert (frame.block_r2 > frame.block_r2_no_residual).all(), "the identity explains the rest"
