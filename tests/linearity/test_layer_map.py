"""All pairs of layers against numpy, and its agreement with the profile."""

import numpy as np
import pytest
import torch
from linearity_data import activations, linear_blocks, numpy_r2, small, split, tokens

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError


@pytest.mark.parametrize("fit", ["held-out", "in-sample"])
def test_every_pair_equals_numpy(fit):
    model, ids = small(3), tokens()
    result = ll.layer_map(model, ids, fit=fit, skip=1)
    parts = split(ids) if fit == "held-out" else (ids,)
    states = []
    for part in parts:
        blocks = [activations(model, part, layer, "block", 1) for layer in range(3)]
        states.append([blocks[0][0], *(y for _, y in blocks)])
    for i in range(4):
        for j in range(4):
            if j > i:
                data = [state for part in states for state in (part[i], part[j])]
                assert float(result[i, j]) == pytest.approx(numpy_r2(*data), abs=1e-7)
            else:
                assert bool(result[i, j].isnan()) if j < i else float(result[i, j]) == 1.0


def test_neighbours_are_the_block_profile():
    model, ids = small(3), tokens()
    above = ll.layer_map(model, ids).values.diagonal(1)
    profile = ll.linearity_profile(model, ids, sites=["block"])
    assert torch.allclose(above, profile.scores["block"], atol=1e-12)


def test_acts_as_a_matrix():
    model, ids = small(2), tokens()
    result = ll.layer_map(model, ids, boundaries=[0, 2], batch_size=3)
    whole = ll.layer_map(model, ids)
    assert result.shape == (2, 2) and float(result[0, 1]) == pytest.approx(float(whole[0, 2]))
    assert np.asarray(whole).shape == (3, 3) and whole.values.shape == (3, 3) == whole.shape
    frame = whole.to_dataframe()
    assert frame.loc[0, 2] == float(whole[0, 2]) and frame.columns.name == "to"
    assert "between 3 layer boundaries" in repr(whole) and "n = 320 tokens" in repr(whole)


def test_exactly_affine_blocks_map_with_one():
    values = ll.layer_map(linear_blocks(3, linear=(0, 1)), tokens()).values
    assert float(values[0, 2]) == pytest.approx(1, abs=1e-9)
    assert float(values[0, 3]) < 0.999


def test_refusals():
    with pytest.raises(NotEnoughDataError):
        ll.layer_map(small(2), tokens(2))
    with pytest.raises(InvalidArgumentError, match="at least two"):
        ll.layer_map(small(2), tokens(), boundaries=[1])
    with pytest.raises(InvalidArgumentError, match="boundaries"):
        ll.layer_map(small(2), tokens(), boundaries=[0, 3])
