"""Vocabularies padded beyond the tokenizer: what no token stands for is in no score and no list."""

import pytest
import torch
from circuit_zoo import native
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import lens_linear as ll
from lens_linear import circuits
from lens_linear.circuits.heads.virtual import composed_qk, virtual_head
from lens_linear.circuits.induction.repeated_rows import draw_repeated
from lens_linear.models.checked import checked

PADDED, REAL = 30, 24


def tokenizer(words):
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.fixture(scope="module", params=[{}, {"normalization_type": "LN"}], ids=["plain", "norm"])
def both(request):
    """A model with six rows too many, wild ones, and the same model without them."""
    padded = native(d_vocab=PADDED, **request.param)
    cut = native(d_vocab=REAL, **request.param)
    with torch.no_grad():
        padded.embed.W_E[REAL:] *= 50
        padded.unembed.W_U[:, REAL:] *= 50
        state = padded.state_dict()
        own = cut.state_dict()
        for name, value in own.items():
            other = state[name]
            if value.shape != other.shape:
                axis = [a == b for a, b in zip(value.shape, other.shape, strict=True)].index(False)
                other = other.narrow(axis, 0, REAL)
            value.copy_(other)
    words = {f"w{i}": i for i in range(REAL)}
    padded.tokenizer = cut.tokenizer = tokenizer(words)
    return padded, cut


def test_the_pair_is_the_same_model(both):
    padded, cut = both
    tokens = torch.arange(9)[None]
    torch.testing.assert_close(padded(tokens)[..., :REAL], cut(tokens))


FOUND = {
    "copying": lambda view: view.head(1, 0).copying_score,
    "QK copying": lambda view: view.head(1, 0).qk_copying_score,
    "own logit": lambda view: view.head(1, 0).copying_accuracy()["accuracy"],
    "top OV": lambda view: view.head(0, 1).top_pairs("ov", 40).to_dataframe(),
    "top QK": lambda view: view.head(0, 1).top_pairs("qk", 40).to_dataframe(),
    "SVD": lambda view: view.head(0, 1).svd(3).to_dataframe(),
    "skip-trigrams": lambda view: view.skip_trigrams(0, 1, 30).to_dataframe(),
    "by effect": lambda view: view.all_skip_trigrams(30, by="effect").to_dataframe(),
    "window": lambda view: circuits.circuit_map(view.head(0, 1), k=6).to_dataframe(),
    "virtual": lambda view: virtual_head(view.head(0, 1), view.head(1, 2)).copying_score,
    "composed QK": lambda view: composed_qk(view.head(0, 1), view.head(1, 2)).AB,
    "positional QK": lambda view: view.head(0, 1).positional_qk(8).scores,
    "bigrams after one": lambda view: view.bigrams().top(3, 12)[["next", "logit", "next_label"]],
    "bigrams": lambda view: view.bigrams().to_dataframe(40)[["token", "next", "logit"]],
}


@pytest.mark.parametrize("name", FOUND)
def test_rows_that_no_token_has_change_nothing(both, name):
    found, expected = (FOUND[name](ll.AttentionOnly(model)) for model in both)
    if hasattr(found, "columns"):
        numbers = found.select_dtypes("number").columns
        torch.testing.assert_close(
            torch.tensor(found[numbers].to_numpy(float)),
            torch.tensor(expected[numbers].to_numpy(float)),
            rtol=1e-6,
            atol=1e-9,
        )
        rest = found.columns.difference(numbers)
        assert found[rest].equals(expected[rest])
    else:
        torch.testing.assert_close(
            torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-6, atol=1e-9
        )


def test_the_direct_path_keeps_the_models_own_softmax(both):
    """Padded outputs take probability in the model too; they are in no list."""
    table = ll.AttentionOnly(both[0]).bigrams()
    assert table.log_probs().shape == (PADDED, PADDED)
    assert float(table.log_probs().exp().sum(1)[0]) == pytest.approx(1)
    assert "6 rows that no token has" in repr(table)
    assert set(table.to_dataframe(40)["token"]) == set(range(REAL))


def test_it_is_said_how_many_are_left_out(both):
    view = ll.AttentionOnly(both[0])
    assert "6 rows that no token has left out" in repr(view)
    assert "6 rows that no token has left out" in repr(view.head(0, 0))
    assert "left out" not in repr(ll.AttentionOnly(both[1]).head(0, 0))


def test_random_rows_hold_tokens_only(both):
    rows = draw_repeated(checked(both[0]), periods=[3, 4], rows_per_period=30, bos=None, seed=0)
    assert rows.tokens.max() == REAL - 1


def test_ids_with_holes_count_up_to_the_last_one():
    model = native(d_vocab=PADDED)
    model.tokenizer = tokenizer({"w0": 0, "w1": 1, "late": 20})
    assert checked(model).n_tokens == 21
    assert ll.AttentionOnly(model).head(0, 0).ov.shape == (21, 21)
    assert ll.AttentionOnly(model).labels[20] == "late"
