"""Facts of a checked model that few models have."""

from unittest.mock import patch

import pytest
import torch

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.checked import checked


def test_outputs_may_be_another_vocabulary():
    model, ids = ll.toy_model(n_layers=1, d_vocab=20), torch.arange(6)[None]
    assert checked(model).d_vocab_out == 20
    ll.stats.require_task(model, ll.Task(ids, labels=torch.tensor([7])))
    with patch.object(model.cfg, "d_vocab_out", 7):
        assert checked(model).d_vocab_out == 7 and checked(model).d_vocab == 20
        with pytest.raises(InvalidArgumentError, match="outputs 0 to 6"):
            ll.stats.require_task(model, ll.Task(ids, labels=torch.tensor([7])))


def test_a_model_says_what_it_is():
    model = checked(ll.toy_model(n_layers=2, n_heads=4, d_model=16, attn_only=False, norm="RMS"))
    assert (model.n_layers, model.n_heads, model.d_model, model.d_head) == (2, 4, 16, 4)
    assert (model.n_ffn, model.n_post_norm, model.norm, model.final_norm) == (2, 0, "rms", "rms")
    assert model.is_causal and model.bos is None and model.n_tokens == model.d_vocab
    assert model.dtype == torch.float32 and model.device == torch.device("cpu")
    assert checked(ll.load("attn-0l")).n_heads == 0
