"""Capture sees what the model computes, leaves no hook behind, and keeps nothing."""

import pytest
import torch
from architectures import UNUSUAL, save_random

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError, NonFiniteError, UnsupportedModelError
from lens_linear.models.capture import available_sites, residual_stream, run, visit_sites
from lens_linear.models.open.toy import toy_model

TOKENS = torch.randint(0, 60, (5, 12), generator=torch.Generator().manual_seed(0))


def hook_count(model):
    return sum(len(point.fwd_hooks) for point in model.hook_dict.values())


def test_sites_add_up_to_the_block(foreign):
    """Sequential blocks: out = in + attention + FFN, with post-norms included in what is written."""
    seen = {}

    def keep(layer, site, x, y):
        seen[layer, site] = (x.clone(), y.clone())

    visit_sites(foreign, TOKENS, keep)
    for layer in range(foreign.cfg.n_layers):
        x, y = seen[layer, "block"]
        total = x + seen[layer, "attn"][1] + seen[layer, "ffn"][1]
        torch.testing.assert_close(total, y, atol=1e-5, rtol=1e-4)
    stream = residual_stream(foreign, TOKENS)
    for layer in range(foreign.cfg.n_layers):
        torch.testing.assert_close(stream[layer + 1], seen[layer, "block"][1])


@pytest.mark.parametrize("name", sorted(UNUSUAL))
def test_sublayers_that_return_more_than_they_write_are_read_where_they_write(name, tmp_path):
    """BLOOM and MPT return stream + update, Granite scales the update afterwards."""
    model = ll.load(save_random(name, tmp_path))
    spots = [(1, what) for what in ("resid_pre", "attn_out", "ffn_out", "resid_post")]
    before, attention, ffn, after = (run(model, TOKENS, record=spots)[spot] for spot in spots)
    torch.testing.assert_close(before + attention + ffn, after, atol=1e-5, rtol=1e-4)
    gone = [((1, what), torch.zeros_like) for what in ("attn_out", "ffn_out")]
    left = run(model, TOKENS, record=[(1, "resid_post")], edits=gone)[(1, "resid_post")]
    torch.testing.assert_close(left, before)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 50])
def test_every_batch_size_sees_the_same(batch_size):
    model = toy_model(attn_only=False, norm="LN")
    parts, done = [], []
    visit_sites(
        model,
        TOKENS,
        lambda layer, site, x, y: parts.append(y) if (layer, site) == (1, "ffn") else None,
        sites=("ffn",),
        batch_size=batch_size,
        on_batch=done.append,
    )
    torch.testing.assert_close(
        torch.cat(parts), run(model, TOKENS, record=[(1, "ffn_out")])[(1, "ffn_out")]
    )
    assert done[-1] == 5


def test_hooks_are_gone_after_an_error_and_the_callers_stay():
    model = toy_model(attn_only=False)
    model.hook_dict["blocks.0.hook_in"].add_hook(lambda tensor, hook: None)
    before = hook_count(model)

    def fail(*_):
        raise KeyError("the visitor's own")

    with pytest.raises(KeyError):
        visit_sites(model, TOKENS, fail)
    assert hook_count(model) == before >= 1


@pytest.mark.parametrize(
    "what", ["resid_pre", "resid_post", "attn_out", "ffn_out", "z", "q", "k", "v"]
)
def test_edits_change_what_the_model_computes(foreign, what):
    plain = run(foreign, TOKENS).logits
    other = run(foreign, TOKENS, edits=[((1, what), lambda t: 0.5 * t)]).logits
    assert (plain - other).abs().max() > 1e-4
    torch.testing.assert_close(run(foreign, TOKENS).logits, plain)


def test_an_edit_by_hand_equals_a_changed_weight():
    model = toy_model()
    halved = run(model, TOKENS, edits=[((0, "attn_out"), lambda t: 0.5 * t)]).logits
    attention = model.blocks[0].attn.original_component
    with torch.no_grad():
        attention.o.weight.mul_(0.5)
        attention.o.bias.mul_(0.5)
    torch.testing.assert_close(run(model, TOKENS).logits, halved)


@pytest.mark.parametrize("layer", range(3))
def test_logits_that_are_not_finite_name_the_layer_where_it_began(layer):
    model = toy_model(n_layers=3, attn_only=False)
    with torch.no_grad():
        model.original_model.layers[layer].mlp.fc_out.weight[3, 5] = float("inf")
    with pytest.raises(NonFiniteError, match=f"the resid_post of layer {layer} has NaN"):
        run(model, TOKENS)
    with torch.no_grad():
        model.original_model.tok_embed.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="the resid_pre of layer 0 has NaN"):
        run(model, TOKENS)


def test_nan_names_the_layer():
    model = toy_model(attn_only=False)
    with torch.no_grad():
        model.blocks[1].attn.original_component.o.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="layer 1"):
        visit_sites(model, TOKENS, lambda *_: None)


def test_what_is_not_there_is_refused():
    model = toy_model()
    assert available_sites(model, 0) == ("block", "attn")
    with pytest.raises(UnsupportedModelError, match="no 'ffn' site"):
        visit_sites(model, TOKENS, lambda *_: None, sites=("ffn",))
    with pytest.raises(InvalidArgumentError, match="must be a TransformerBridge"):
        run(torch.nn.Linear(2, 2), TOKENS)


def test_gradients_flow_when_asked():
    model = toy_model()
    out = run(model, TOKENS, record=[(1, "resid_pre")], grad=True)
    out.logits.sum().backward()
    assert model.blocks[0].attn.original_component.o.weight.grad is not None
