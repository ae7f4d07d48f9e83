"""NaN in a model's weights: every function that runs it names the layer where it stands first."""

import copy

import pytest
import torch
from robust_calls import CALLS
from transformer_lens.model_bridge import TransformerBridge

from lens_linear.errors import NonFiniteError

# They run nothing (shapes, texts, counts, what waits to be asked), or would write or take minutes.
RUN_NOTHING = {
    "n_parameters", "site_parameters", "weights_sha256", "tokenize", "tokenize_prompts",
    "token_strings", "vocabulary", "evaluation_tokens", "as_prompts", "as_rows", "random_directions",
    "read_rotary", "AttentionOnly", "AttentionOnly(gpt)", "block_jacobians", "Linearization.applied",
    "load_linearized", "save_linearized", "downstream_scores", "report", "explore",
}  # fmt: skip
NAMED = [
    call
    for call in CALLS
    if call.name not in RUN_NOTHING
    and any(isinstance(value, TransformerBridge) for value in call.arguments().values())
]


def broken(model):
    """A copy whose first block gives NaN; its second block reads it."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.blocks[0].attn.W_V[0] = torch.nan
    return model


@pytest.mark.parametrize("call", NAMED, ids=lambda call: call.name)
def test_the_layer_is_named(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = call.arguments()
    if call.name == "head_dial":  # queries and keys of the first block are whole
        arguments["heads"] = [(1, 0)]
    for name, value in arguments.items():
        if isinstance(value, TransformerBridge):
            arguments[name] = broken(value)
    with pytest.raises(NonFiniteError, match=r"layer 0\b|block 0\b|at layer 1\b"):
        call.function(**arguments)


def test_most_functions_of_a_model_are_tried():
    assert len(NAMED) >= 50
