import math

import numpy as np
import pytest
import torch

from lens_linear.constructions.memory.head_memory import attention_head_memory
from lens_linear.constructions.memory.trained_head import trained_head_memory
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError
from lens_linear.models.open.toy import toy_model


def gaussian(*shape, seed=0, size=1.0):
    g = torch.Generator().manual_seed(seed)
    return size * torch.randn(*shape, generator=g, dtype=torch.float64)


def test_measured_capacity_is_the_one_the_random_energy_model_predicts():
    result = attention_head_memory(gaussian(512, 32), draws=3)
    position = result.position().set_index("source")
    for source in ("head", "random keys"):  # Gaussian keys are their own control
        row = position.loc[source]
        assert row.capacity_exponential == pytest.approx(row.predicted_capacity, rel=0.25)
        assert row.capacity_quadratic < row["capacity_polynomial-3"] < row.capacity_exponential
    # signal: β E|k|² = √32 nats; spread: β sd(q·k) = √1.25 with query noise 0.5
    assert position.loc["head"].signal == pytest.approx(math.sqrt(32), rel=0.05)
    assert position.loc["head"].spread == pytest.approx(math.sqrt(1.25), rel=0.05)


@pytest.mark.parametrize("size", [0.5, 4.0])
def test_the_prediction_is_the_random_energy_model_of_each_querys_scores(size):
    keys, queries = gaussian(30, 6, seed=3), gaussian(9, 6, seed=4, size=size)
    found = attention_head_memory(keys, queries, beta=1.3, n_patterns=[30])
    logs, spreads, signals = [], [], []
    for scores in (1.3 * queries @ keys.T).numpy():
        best = scores.argmax()
        rest = np.delete(scores, best)
        signal, variance = scores[best] - rest.mean(), rest.var()
        freezes = signal < variance
        logs.append(signal**2 / (2 * variance) if freezes else signal - variance / 2)
        spreads.append(variance**0.5)
        signals.append(signal)
    row = found.position().iloc[0]
    assert row.predicted_capacity == pytest.approx(math.exp(np.median(logs)))
    assert row.spread == pytest.approx(np.mean(spreads)) and row.signal == pytest.approx(
        np.mean(signals)
    )


def test_capacity_is_exponential_in_beta():
    keys = gaussian(512, 32)
    beta = torch.tensor([0.08, 0.12, 0.16], dtype=torch.float64)
    runs = [attention_head_memory(keys, beta=float(b), max_queries=100) for b in beta]
    logs = [math.log(r.position().capacity_exponential[0]) for r in runs]
    signal, spread = (runs[-1].signal[0] / 0.16, runs[-1].spread[0] / 0.16)
    want = beta * signal - (beta * spread) ** 2 / 2
    np.testing.assert_allclose(logs, want, atol=0.35)
    linear = [r.position().capacity_quadratic[0] for r in runs]
    np.testing.assert_allclose(linear, linear[0], rtol=1e-9)  # a linear memory has no temperature


def test_shares_are_those_of_plain_softmax():
    keys, queries = gaussian(40, 8, seed=1), gaussian(12, 8, seed=2, size=3.0)
    result = attention_head_memory(keys, queries, energies="softmax", n_patterns=[40], beta=0.5)
    weights = torch.softmax(0.5 * queries @ keys.T, 1)
    best = weights.amax(1)
    assert float(result.weight[0, 0, 0, 0]) == pytest.approx(float(best.mean()))
    assert float(result.recall[0, 0, 0, 0]) == pytest.approx(float((best > 0.5).double().mean()))
    readout = weights @ keys - keys.mean(0)
    cosine = torch.cosine_similarity(readout, keys[weights.argmax(1)] - keys.mean(0), dim=1)
    assert float(result.similarity[0, 0, 0, 0]) == pytest.approx(float(cosine.mean()))
    entropy = -(weights * weights.log()).sum(1)
    assert float(result.effective_patterns[0]) == pytest.approx(float(entropy.exp().median()))
    # a common shift of all keys changes nothing
    moved = attention_head_memory(
        keys + 5.0, queries, energies="softmax", n_patterns=[40], beta=0.5, values=keys
    )
    torch.testing.assert_close(moved.weight[0], result.weight[0])


def test_linear_and_cubic_shares():
    keys, queries = gaussian(20, 8, seed=1), gaussian(6, 8, seed=2)
    result = attention_head_memory(
        keys, queries, energies=("linear", "polynomial-3"), n_patterns=[20]
    )
    scores = queries @ (keys - keys.mean(0)).T
    target = scores.argmax(1, keepdim=True)
    for e, power in enumerate((1, 2)):
        weights = scores.abs() ** power
        want = (weights / weights.sum(1, keepdim=True)).gather(1, target).mean()
        assert float(result.weight[0, e, 0, 0]) == pytest.approx(float(want))
        values = keys - keys.mean(0)
        readout = scores**power @ values  # a linear memory subtracts, a cubic one does not
        cosine = torch.cosine_similarity(readout, values[target[:, 0]], dim=1)
        assert float(result.similarity[0, e, 0, 0]) == pytest.approx(float(cosine.mean()))


def test_causal_mask_hides_later_keys():
    n = 16
    keys = gaussian(n, 8)
    queries = 5 * keys.roll(-1, 0)  # every query looks for the next key, which it cannot see
    open_ = attention_head_memory(keys, queries, n_patterns=[2, 8])
    masked = attention_head_memory(keys, queries, n_patterns=[2, 8, 16], causal=True)
    assert float(open_.recall[0, 0].min()) > 0.9
    assert float(masked.recall[0, 0, 1].mean()) < float(open_.recall[0, 0, 1].mean())
    assert not bool(masked.recall[:, :, :2].isnan().any())


def test_results_and_their_table():
    result = attention_head_memory(gaussian(3, 32, 8), gaussian(3, 32, 8, seed=5), causal=True)
    assert result.n_patterns == (2, 4, 8, 16)
    frame = result.to_dataframe()
    assert len(frame) == 2 * 3 * 4 * 6  # sources, energies, sizes, batch × draws
    assert "predicted capacity" in repr(result)
    again = attention_head_memory(gaussian(3, 32, 8), gaussian(3, 32, 8, seed=5), causal=True)
    torch.testing.assert_close(again.recall, result.recall)


def test_adapter_feeds_the_models_own_scores():
    model = toy_model(n_layers=2, seed=0)
    tokens = torch.randint(0, 32, (3, 24), generator=torch.Generator().manual_seed(1))
    result = trained_head_memory(model, tokens, layer=1, head=0, n_patterns=[2, 8])
    _, cache = model.run_with_cache(tokens)
    pattern = cache["blocks.1.attn.hook_pattern"][:, 0].double()
    rows = pattern[:, 1:]  # the first query sees one key only
    entropy = -(rows * rows.clamp_min(1e-300).log()).sum(-1)
    want = entropy.exp().median(dim=1).values.mean()
    assert float(result.effective_patterns[0]) == pytest.approx(float(want), rel=1e-4)
    assert result.beta == pytest.approx(model.cfg.d_head**-0.5)
    named = trained_head_memory(model, tokens, layer="L1H0", n_patterns=[2, 8])
    assert torch.equal(named.effective_patterns, result.effective_patterns)


def test_bad_shapes_say_what_to_do():
    keys = gaussian(8, 4)
    with pytest.raises(NotEnoughDataError, match="one to find among others"):
        attention_head_memory(keys[:1])
    with pytest.raises(InvalidArgumentError, match="queries must have the keys'"):
        attention_head_memory(keys, gaussian(8, 5))
    with pytest.raises(InvalidArgumentError, match="one row for each key"):
        attention_head_memory(keys, values=gaussian(7, 4))
    with pytest.raises(InvalidArgumentError, match="as many queries as keys"):
        attention_head_memory(keys, causal=True)
    with pytest.raises(InvalidArgumentError, match="n_patterns must be at most 8"):
        attention_head_memory(keys, n_patterns=[9])
    with pytest.raises(InvalidArgumentError, match="layer must be at most"):
        trained_head_memory(toy_model(seed=0), torch.zeros(1, 8).long(), layer=9, head=0)


def test_numbers_do_not_depend_on_what_else_was_asked():
    keys, queries = gaussian(2, 32, 8), gaussian(2, 32, 8, seed=5)
    alone = attention_head_memory(
        keys[:1], queries[:1], energies="softmax", n_patterns=[8], draws=1
    )
    more = attention_head_memory(keys, queries, n_patterns=[2, 8, 16], draws=3)
    torch.testing.assert_close(alone.recall[:, 0, 0, 0], more.recall[:, 0, 1, 0], rtol=0, atol=0)
    torch.testing.assert_close(alone.weight[:, 0, 0, 0], more.weight[:, 0, 1, 0], rtol=0, atol=0)
