"""A public call looks at its model once; what it calls is handed the checked one."""

import warnings

import pytest
from robust_calls import CALLS
from transformer_lens.model_bridge import TransformerBridge

import lens_linear as ll
from lens_linear.models.checked import CheckedModel, checked

# What calls the library several times itself: with a model linearised, heads ablated or a path cut it is run.
TWICE = ("linearize", "ablate_heads", "cut_path", "cut_path of text", "Linearization.applied")
REFUSED = (
    "load_linearized", "downstream_scores", "AttentionOnly(gpt)", "verify_induction", "report", "explore"
)  # fmt: skip
WITH_MODEL = [
    call
    for call in CALLS
    if call.name not in REFUSED
    and any(isinstance(value, TransformerBridge) for value in call.arguments().values())
]


@pytest.fixture
def made(monkeypatch):
    """The checked models that were made, one after the other."""
    found, plain = [], CheckedModel.__init__

    def init(self, bridge):
        found.append(bridge)
        plain(self, bridge)

    monkeypatch.setattr(CheckedModel, "__init__", init)
    return found


def test_many_calls_take_a_model():
    assert len(WITH_MODEL) > 65


@pytest.mark.parametrize("call", WITH_MODEL, ids=lambda call: call.name)
@pytest.mark.filterwarnings("ignore")
def test_a_public_call_checks_its_model_once(call, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one of them saves
    arguments = call.arguments()
    call.function(**arguments)
    made.clear()  # of what is made at the first call and kept
    call.function(**arguments)
    assert len(made) == 1 + (call.name in TWICE)


@pytest.mark.whole
def test_a_page_checks_its_model_once(made, tmp_path):
    model = ll.load("attn-1l")
    for page in (
        lambda: ll.report(model, tmp_path / "page.html", n_sequences=8),
        lambda: ll.explore(model, prompts=["Once upon a time"], induction=None),
    ):
        made.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            page()
        assert made == [model]


def test_what_was_checked_is_taken_where_a_bridge_is():
    model = ll.toy_model(n_layers=2, seed=0)
    again = checked(model)
    ids = [[1, 5, 3, 9, 2, 7]]
    assert checked(again) is again and again.bridge is model
    assert ll.models.run(again, ids).logits.equal(ll.models.run(model, ids).logits)
    ours, theirs = (ll.composition_scores(m, n_random=4).ratio for m in (again, model))
    assert ours.equal(theirs)
