"""What was read from a model follows an edit of its weights, or says that they have changed."""

import warnings

import pytest
import torch

import lens_linear as ll
from lens_linear.circuits import virtual_head
from lens_linear.dynamics import block_jacobians, random_directions
from lens_linear.errors import LensLinearWarning
from lens_linear.linearity import fit_linearization, load_linearized, save_linearized

TOKENS = torch.randint(64, (30, 12), generator=torch.Generator().manual_seed(0))
CHANGED = "the model's weights have changed since it was made"


def in_place(model):
    with torch.no_grad():
        model.blocks[0].attn.W_V.mul_(-2)


def by_data(model):
    model.blocks[0].attn.W_V.data.mul_(-2)


def by_loading(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["unembed.bias"] += 1
    state["embed.weight"] *= 3
    model.load_state_dict(state)


@pytest.fixture
def model():
    return ll.toy_model(n_layers=2, seed=1)


def views(model, folder):
    """Everything that keeps numbers of a model beside the model: its words, and a use of it."""
    head, lens = ll.head(model, 0, 1), ll.fit_lens(model, TOKENS)
    both = virtual_head(ll.head(model, 0, 0), ll.head(model, 1, 0))
    save_linearized(folder / "x", model, fit_linearization(model, TOKENS, [1]))
    linear = load_linearized(folder / "x", model=model)
    context = ll.models.freeze_context(model, TOKENS[:2], torch.tensor([12, 9]))
    return {
        "head": (head, lambda: (head.copying_score, head.ov, head.qk_at(0))),
        "virtual": (both, lambda: both.ov),
        "lens": (lens, lambda: lens.score(TOKENS[:4])),
        "lens for TransformerLens": (lens, lens.translator),
        "linearised": (linear, lambda: linear(TOKENS[:2])),
        "frozen context": (context, lambda: context.jacobians().outputs),
        "explorer": (
            explorer := ll.explore(ll.load("attn-1l"), prompts=["a b"]),
            lambda: explorer.run("a b"),
        ),
    }


@pytest.mark.filterwarnings("ignore:tokens has")
@pytest.mark.parametrize("edit", [in_place, by_data, by_loading])
def test_views_say_that_the_weights_have_changed(model, tmp_path, edit):
    found = views(model, tmp_path)
    explored = found["explorer"][0]._subject.model.bridge
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for view, use in found.values():
            use()
            assert CHANGED not in repr(view)
    edit(model)
    edit(explored)
    for name, (view, use) in found.items():
        assert repr(view).endswith(CHANGED), name
        with pytest.warns(LensLinearWarning, match="no longer has: they have changed"):
            use()


@pytest.mark.parametrize("edit", [in_place, by_data, by_loading])
def test_what_follows_gives_the_numbers_of_a_fresh_view(model, edit):
    view = ll.AttentionOnly(model)
    before = view.head(0, 1).copying_score, view.bigrams().logits
    edit(model)
    fresh = ll.AttentionOnly(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = view.head(0, 1).copying_score, view.bigrams().logits
        assert after[0] == fresh.head(0, 1).copying_score
        assert torch.equal(after[1], fresh.bigrams().logits)
        assert view.paths(TOKENS[:2]).max_error < 1e-5
    assert (after[0] != before[0]) or not torch.equal(after[1], before[1])


@pytest.mark.parametrize("edit", [in_place, by_data, by_loading])
def test_jacobians_follow(model, edit):
    directions = random_directions(model)
    made = block_jacobians(model, TOKENS[:3])
    before = made.gains(directions, directions[-1])
    edit(model)
    after = made.gains(directions, directions[-1])
    assert torch.equal(after, block_jacobians(model, TOKENS[:3]).gains(directions, directions[-1]))
    assert not torch.allclose(after, before, atol=1e-3)


def exchanged(value, one, other):
    value.data[[one, other]] = value.data[[other, one]].clone()


@pytest.mark.parametrize("row", [0, 1, 17, 63])
def test_one_row_written_through_data_is_seen_at_use(model, row):
    """torch counts no edits through ``.data``, and what is read at use is not every value."""
    state = model.original_model.state_dict(keep_vars=True)
    read = {w.data_ptr(): w for name, w in state.items() if w.ndim == 2 and ".1." not in name}
    assert len(read) == 7  # tokens, positions, outputs, and layer 0
    for weight in (w for w in read.values() if len(w) > row):
        for edit in (
            lambda w: w.data.view(-1, w.shape[-1])[row].zero_(),
            lambda w: exchanged(w, 0, 1),
        ):
            head, both = (
                ll.head(model, 0, 1),
                virtual_head(ll.head(model, 0, 1), ll.head(model, 1, 0)),
            )
            edit(weight)
            with pytest.warns(LensLinearWarning, match=r"^head L0H1 holds weights"):
                _ = head.copying_score
            with pytest.warns(LensLinearWarning, match="virtual head L0H1→L1H0 holds weights"):
                _ = both.ov
    head = ll.head(model, 0, 1)
    model.blocks[1].attn.W_V.data.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = head.copying_score  # no weight of layer 1 is in it


@pytest.mark.parametrize("row", [0, 1, 4001, 7998, 7999])
def test_a_row_of_a_large_table_too(row):
    model = ll.toy_model(n_layers=1, d_vocab=8000, d_model=32)
    head = ll.head(model, 0, 0)
    model.W_E.data[row] *= 1.5
    with pytest.warns(LensLinearWarning, match="they have changed"):
        _ = head.ov


def test_weights_that_came_back_are_no_change(model):
    head = ll.head(model, 0, 1)
    with torch.no_grad():
        kept = model.blocks[0].attn.W_V.clone()
        model.blocks[0].attn.W_V.mul_(3)
        model.blocks[0].attn.W_V.copy_(kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert head.ov.shape == (64, 64) and CHANGED not in repr(head)
