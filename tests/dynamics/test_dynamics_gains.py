"""Gains against closed forms, central differences on every architecture, and every way to pass prompts."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from architectures import CONFIGS, save_random
from hypothesis import given, settings
from hypothesis import strategies as st

import lens_linear as ll
from lens_linear.dynamics import as_prompts, random_directions, step_size_table
from lens_linear.dynamics.gains.gain_profile import GainProfile
from lens_linear.errors import (
    InvalidArgumentError,
    LensLinearError,
    NonFiniteError,
    NotEnoughDataError,
)
from lens_linear.models.checked import checked
from lens_linear.models.open.toy import toy_model


def closed_form(oracle, model, rows, directions, readout):
    gains = []
    for row in rows:
        matrices = oracle.block_matrices(model, len(row))
        line = []
        for k in range(len(matrices)):
            state = directions[k].plain() if hasattr(directions[k], "plain") else directions[k]
            for matrix in matrices[k:]:
                state = matrix @ state
            line.append(readout @ state)
        gains.append(torch.stack(line))
    return torch.stack(gains)


@pytest.mark.parametrize("method", ["adjoint", "empirical"])
def test_gains_of_a_linear_model_have_their_closed_form(linear, oracle, method):
    rows = oracle.rows_of(linear, [5, 9, 2, 1])
    directions = random_directions(linear).plain()
    profile = ll.gain_profile(linear, rows, directions, method=method, eps=0.5)
    expected = closed_form(oracle, linear, rows, directions, directions[-1])
    torch.testing.assert_close(profile.gains, expected, rtol=1e-9, atol=1e-12)
    assert float((expected - expected[:1]).abs().max()) > 0.05  # the lengths do matter


def test_a_readout_of_ones_own(linear, oracle):
    rows, directions = oracle.rows_of(linear, [4, 7]), random_directions(linear).plain()
    readout = torch.arange(16.0, dtype=torch.float64)
    profile = ll.gain_profile(linear, rows, directions, readout=readout)
    expected = closed_form(oracle, linear, rows, directions, readout)
    torch.testing.assert_close(profile.gains, expected)


def smallest_error(model, rows, directions, steps):
    """Relative error of central differences against the adjoint at the best of several small steps.

    Too large a step meets curvature (and the corners of ReLU), too small a one meets rounding: some
    implementations take norms and softmax in float32 whatever the model's precision.
    """
    exact = ll.gain_profile(model, rows, directions).gains
    found = (
        ll.gain_profile(model, rows, directions, method="empirical", eps=eps).gains for eps in steps
    )
    return min(float((gains - exact).norm() / exact.norm()) for gains in found)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_adjoint_equals_central_differences_on_other_architectures(name, tmp_path):
    model = ll.load(save_random(name, tmp_path), dtype=torch.float64)
    rows = [torch.arange(3, 3 + n) for n in (4, 9)]
    directions = random_directions(model)
    assert smallest_error(model, rows, directions, (1e-2, 2e-3, 4e-4)) < 1e-3


@pytest.mark.parametrize("name", ["gpt-nano", "gpt-micro", "attn-2l"])
def test_adjoint_equals_central_differences_on_bundled_models(name):
    model = ll.load(name, dtype=torch.float64)
    rows = [torch.arange(40, 40 + n) for n in (5, 12)]
    directions = random_directions(model)
    assert smallest_error(model, rows, directions, (1e-3,)) < 1e-3


def test_adjoint_equals_central_differences_on_a_third_party_model(stories_model):
    rows = [torch.arange(40, 40 + n) for n in (5, 12)]
    directions = random_directions(stories_model)
    assert smallest_error(stories_model, rows, directions, (3e-2, 1e-2)) < 1e-3


def test_the_error_of_central_differences_falls_with_eps_squared(smooth, oracle):
    rows = oracle.rows_of(smooth, [6, 3])
    table = step_size_table(smooth, rows, random_directions(smooth), steps=(0.02, 0.01, 0.005))
    errors = table["relative_error"].to_numpy()
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)
    assert "least relative error" in repr(table) and list(table["eps"]) == [0.02, 0.01, 0.005]


def padded(rows, side, fill=0):
    width = max(map(len, rows))
    tokens, mask = torch.full((len(rows), width), fill), torch.zeros(len(rows), width).long()
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, span], mask[i, span] = row, 1
    return tokens, mask


@pytest.mark.parametrize("method", ["adjoint", "empirical"])
def test_left_padding_right_padding_and_no_padding_agree(method):
    model = toy_model(n_layers=2, attn_only=False, norm="LN", positions="standard").double()
    rows = [torch.tensor([1, 5, 9, 2, 7]), torch.tensor([3, 3]), torch.tensor([8, 1, 4])]
    directions = random_directions(model)
    alone = ll.gain_profile(model, rows, directions, method=method).gains
    for side, fill in (("left", 0), ("right", 0), ("right", 11)):
        tokens, mask = padded(rows, side, fill)
        found = ll.gain_profile(
            model, tokens, directions, method=method, attention_mask=mask.bool()
        )
        torch.testing.assert_close(found.gains, alone, rtol=1e-9, atol=1e-12)
    one = ll.gain_profile(model, rows[1], directions, method=method).gains
    torch.testing.assert_close(one[0], alone[1], rtol=1e-9, atol=1e-12)


def test_batches_do_not_matter_and_rows_keep_their_order(smooth, oracle):
    rows, directions = oracle.rows_of(smooth, [9, 2, 7, 3, 5]), random_directions(smooth)
    for method in ("adjoint", "empirical"):
        all_at_once = ll.gain_profile(smooth, rows, directions, method=method).gains
        for size in (1, 2, 7):
            pieces = ll.gain_profile(smooth, rows, directions, method=method, batch_size=size)
            torch.testing.assert_close(pieces.gains, all_at_once, rtol=1e-8, atol=1e-10)


@settings(max_examples=10, deadline=None)
@given(a=st.floats(-3, 3), b=st.floats(-3, 3), seed=st.integers(0, 5))
def test_gains_are_linear_in_the_injected_direction(smooth, a, b, seed):
    rows = [torch.tensor([1, 2, 3])]
    u, v = random_directions(smooth, seed=seed).plain(), random_directions(smooth, seed=9).plain()
    readout = u[-1].clone()

    def gains(directions):
        return ll.gain_profile(smooth, rows, directions, readout=readout).gains

    torch.testing.assert_close(
        gains(a * u + b * v), a * gains(u) + b * gains(v), rtol=1e-7, atol=1e-9
    )


def test_profile_is_a_frame_and_a_sentence(smooth, oracle):
    profile = ll.gain_profile(smooth, oracle.rows_of(smooth, [4, 6, 8]), random_directions(smooth))
    frame = profile.to_dataframe()
    assert frame.index.name == "layer" and len(frame) == 3
    assert frame["mean"].tolist() == pytest.approx(profile.gains.mean(0).tolist())
    assert frame["median"].tolist() == pytest.approx(profile.gains.median(0).values.tolist())
    assert "3 prompts of 4 to 8 tokens" in repr(profile) and isinstance(profile, GainProfile)


def test_texts_are_tokenised_and_too_long_ones_refused():
    model = ll.load("gpt-nano")
    directions = random_directions(model)
    texts = ["The cat sat.", "A dog ran away quickly."]
    by_text = ll.gain_profile(model, texts, directions)
    rows = list(as_prompts(model, texts).tokens)
    lengths = as_prompts(model, texts).lengths
    by_id = ll.gain_profile(
        model, [row[:n] for row, n in zip(rows, lengths, strict=True)], directions
    )
    torch.testing.assert_close(by_text.gains, by_id.gains)
    assert by_text.key == by_id.key
    long = "word " * 500
    with pytest.raises(InvalidArgumentError, match="truncate=True"):
        ll.gain_profile(model, [long], directions)
    cut = ll.gain_profile(model, [long], directions, truncate=True)
    assert int(cut.lengths[0]) == model.cfg.n_ctx


def test_bad_arguments_get_one_clear_error(smooth):
    directions = random_directions(smooth)
    good = [torch.tensor([1, 2, 3])]
    with pytest.raises(InvalidArgumentError, match="method must be one of"):
        ll.gain_profile(smooth, good, directions, method="adjoin")
    with pytest.raises(InvalidArgumentError, match="layers \\+ 1"):
        ll.gain_profile(smooth, good, directions.plain()[:-1])
    with pytest.raises(InvalidArgumentError, match="eps"):
        ll.gain_profile(smooth, good, directions, method="empirical", eps=0.0)
    with pytest.raises(NotEnoughDataError, match="prompts is empty"):
        ll.gain_profile(smooth, [], directions)
    with pytest.raises(InvalidArgumentError, match="vocabulary"):
        ll.gain_profile(smooth, [torch.tensor([999])], directions)
    with pytest.raises(InvalidArgumentError, match="unbroken run"):
        ll.gain_profile(
            smooth,
            torch.tensor([[1, 2, 3]]),
            directions,
            attention_mask=torch.tensor([[1, 0, 1]]),
        )
    with pytest.raises(InvalidArgumentError, match="n_ctx"):
        ll.gain_profile(smooth, [torch.zeros(99, dtype=torch.long)], directions)
    with pytest.raises(NonFiniteError, match="directions"):
        ll.gain_profile(smooth, good, directions.plain() * float("nan"))


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("method", ["adjoint", "empirical"])
def test_the_layer_that_is_not_finite_is_named(layer, value, method):
    model = toy_model(n_layers=4)
    with torch.no_grad():
        model.blocks[layer].attn.W_O.fill_(value)
    words = (
        f"after layer {layer} of 'toy' holds NaN or infinity at the last token of 2 of 2 prompts"
    )
    with pytest.raises(NonFiniteError, match=words):
        ll.gain_profile(model, [torch.arange(4), torch.arange(6)], random_directions(model), method)
    with pytest.raises(NonFiniteError, match=words):
        ll.fit_surrogate(
            model, [torch.arange(4), torch.arange(6)], random_directions(model), order=2
        )
    with torch.no_grad():
        model.embed.W_E[3] = value
    with pytest.raises(NonFiniteError, match="the embedding, before layer 0"):
        ll.gain_profile(model, [torch.arange(4)], random_directions(model))


def test_gains_without_end_name_their_layer():
    """Finite states whose derivative overflows on its way back."""
    from lens_linear.dynamics.gains.jacobian_products import require_finite_gains

    gains = torch.ones(3, 5)
    gains[1, :3] = float("inf")
    with pytest.raises(
        NonFiniteError, match="gain of layer 2 is NaN or infinite at 1 of 3 prompts"
    ):
        require_finite_gains(gains)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_results_do_not_depend_on_the_batches(smooth, oracle, batch_size):
    rows, directions = oracle.rows_of(smooth, [4, 9, 6, 5, 7]), random_directions(smooth)
    whole = ll.gain_profile(smooth, rows, directions).gains
    pieces = ll.gain_profile(smooth, rows, directions, batch_size=batch_size).gains
    torch.testing.assert_close(pieces, whole, atol=1e-12, rtol=1e-10)
    for basis in ("krylov", "balanced", "pca"):
        fits = [
            ll.fit_surrogate(smooth, rows, directions, order=4, basis=basis, batch_size=size)
            for size in (batch_size, 64)
        ]
        torch.testing.assert_close(fits[0].gains, fits[1].gains, atol=1e-9, rtol=1e-8)
        torch.testing.assert_close(fits[0].system_gains, fits[1].system_gains, atol=1e-9, rtol=1e-8)


def test_one_batch_is_alive(smooth, oracle):
    """Keys, values and graphs of a batch are gone when the next one is recorded."""
    import gc
    import weakref

    from lens_linear.dynamics import block_jacobians

    maps = block_jacobians(smooth, oracle.rows_of(smooth, [5, 6, 7, 8]), batch_size=1)
    seen, most = [], 0
    for batch in maps.batches():
        seen.append(weakref.ref(batch.context))
        del batch
        gc.collect()
        most = max(most, sum(ref() is not None for ref in seen))
    assert most == 1 and len(seen) == 4


def test_texts_of_any_kind_are_prompts_and_what_is_none_is_said():
    model = ll.load("gpt-nano")
    split = ll.load_concept("mood").split(6, 4, 3, seed=0)
    texts = list(split.evaluation.texts)
    data = pytest.importorskip("datasets").Dataset.from_dict({"text": texts})
    plain = as_prompts(model, texts)
    rows = ll.tokenize_prompts(model, texts)
    kinds = (tuple(texts), pd.Series(texts, index=[7, 1, 4]), np.array(texts), data["text"], split)
    for kind in (*kinds, split.evaluation, data.data.column("text"), (text for text in texts)):
        found = rows if hasattr(kind, "__next__") else ll.tokenize_prompts(model, kind)
        assert all(map(torch.equal, found, rows)), type(kind)
        assert as_prompts(model, kind).key == plain.key, type(kind)
    longest = max(map(len, rows))
    padded = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows])
    ids = {"input_ids": padded.numpy(), "attention_mask": mask.long().numpy()}
    for kind in (rows, [row.tolist() for row in rows], [row[None] for row in rows], ids):
        assert as_prompts(model, kind).key == plain.key, type(kind)
    assert as_prompts(model, padded.numpy(), attention_mask=mask).key == plain.key
    one = as_prompts(model, texts[0])
    assert one.key == as_prompts(model, rows[:1]).key != plain.key
    with pytest.raises(InvalidArgumentError, match="wrap it in"):
        ll.tokenize_prompts(model, texts[0])
    wrong = {
        "one column of texts, got a Dataset with 'text'": data,
        "one column of texts, got a DataFrame": data.to_pandas(),
        r"got nan \(float\) at 1": [texts[0], math.nan],
        r"got b'x' \(bytes\) at 1": [texts[0], b"x"],
        "is empty": [],
    }
    for words, value in wrong.items():
        for call in (as_prompts, ll.tokenize_prompts):
            with pytest.raises(LensLinearError, match=words):
                call(model, value)
    with pytest.raises(InvalidArgumentError, match=r"a concept, got .*pass text, not ids"):
        ll.tokenize_prompts(model, rows)
    with pytest.raises(InvalidArgumentError, match=r"prompts must be token ids.*got int"):
        as_prompts(model, 3)
    for value in (texts, np.array(texts), split):
        with pytest.raises(
            InvalidArgumentError, match=r"tokenize_prompts\(|lens_linear.tokenize\("
        ):
            ll.linearity_profile(model, value)


def test_concepts_splits_and_tasks_are_prompts():
    model = ll.load("gpt-nano")
    split = ll.load_concept("mood").split(20, 6, 5, seed=0)
    directions = random_directions(model)
    by_split = ll.gain_profile(model, split, directions)
    by_text = ll.gain_profile(model, list(split.evaluation.texts), directions)
    assert by_split.key == by_text.key == ll.gain_profile(model, split.evaluation, directions).key
    fitted = ll.fit_surrogate(model, split, directions, order=2)
    assert len(fitted.lengths) == 6  # its operating part
    assert fitted.key == ll.fit_surrogate(model, split.operating, directions, order=2).key
    task = ll.Task([[5, 6, 7, 0], [8, 9, 10, 11]], mask=[[1, 1, 1, 0], [1, 1, 1, 1]])
    rows = [torch.tensor([5, 6, 7]), torch.tensor([8, 9, 10, 11])]
    by_task = ll.gain_profile(model, task, directions)
    assert by_task.key == ll.gain_profile(model, rows, directions).key
    assert len(ll.evaluate_schedules(model, split, directions, target=0.1).baseline) == 5


def test_a_batch_of_prompts_is_bounded_by_memory(monkeypatch):
    from lens_linear.dynamics.gains.prompts import as_prompts
    from lens_linear.linalg import memory
    from lens_linear.models import batch_memory

    model = ll.toy_model(n_layers=4)
    prompts = as_prompts(model, [torch.arange(9)] * 100)
    assert prompts.a_pass(checked(model), 7) == 7 and prompts.a_pass(checked(model), None) == 64
    block = batch_memory.sequence_bytes(checked(model), 9, logits=False)
    for n, whole in ((3, 34), (1, 100)):  # half of what is free, shared by four recorded blocks
        for place in (memory, batch_memory):
            monkeypatch.setattr(place, "free_bytes", lambda *_, n=n: 2 * n * 4 * block)
        maps = ll.dynamics.block_jacobians(model, prompts)
        assert maps.batch_size == n and maps.n_batches == whole
