"""The lens against numpy's least squares, the model's own logits and a KL written out."""

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from linearity_data import small, tokens

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError, NonFiniteError, UnsupportedModelError
from lens_linear.linearity.lens import fit
from lens_linear.models.capture import residual_stream

pytestmark = pytest.mark.filterwarnings("ignore:tokens has .* rows for .* inputs")


def normed(x, norm="LN", eps=1e-5):
    x = x - x.mean(-1, keepdims=True) if norm == "LN" else x
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def streams(model, ids):
    return residual_stream(model, ids).double().flatten(1, 2).numpy()


def oracle(x, y, ridge, first=None):
    """Ridge by numpy lstsq, the penalty as rows beneath; λ is that of a row, so it counts n times.

    ``first`` marks first positions: their mean comes in as many more rows as there are others.
    """
    penalty = np.sqrt(ridge * len(x) * x.var(0).mean()) * np.eye(x.shape[1])
    if first is not None:
        x, y = (np.vstack([v, np.tile(v[first].mean(0), (int((~first).sum()), 1))]) for v in (x, y))
    xc, yc = x - x.mean(0), y - y.mean(0)
    a = np.linalg.lstsq(
        np.vstack([xc, penalty]), np.vstack([yc, np.zeros((x.shape[1], y.shape[1]))]), rcond=None
    )[0]
    return a, y.mean(0) - x.mean(0) @ a


@pytest.mark.parametrize("norm", ["LN", "RMS"])
@pytest.mark.parametrize("ridge", [1e-3, 0.3])
def test_maps_are_those_of_numpy(norm, ridge):
    model, ids = small(norm=norm), tokens(60)
    lens = ll.fit_lens(model, ids, ridge=ridge)
    states, eps = streams(model, ids), float(model.cfg.eps)
    for layer in range(2):
        x, y = normed(states[layer], norm, eps), normed(states[-1], norm, eps)
        a, b = oracle(x, y, ridge, np.arange(len(x)) % ids.shape[1] == 0)
        # LayerNorm's rows sum to zero: the direction that they lack is the only one left free.
        np.testing.assert_allclose(
            x @ lens.weight[layer].numpy() + lens.bias[layer].numpy(), x @ a + b, atol=1e-5
        )
        raw = oracle(states[layer], states[-1], 0.0)
        np.testing.assert_allclose(lens.raw_weight[layer], raw[0], atol=1e-5)
        np.testing.assert_allclose(lens.raw_bias[layer], raw[1], atol=1e-5)


def test_without_the_raw_lens_the_rest_is_the_same():
    model, ids = small(), tokens(60)
    both, alone = ll.fit_lens(model, ids), ll.fit_lens(model, ids, raw=False)
    assert torch.equal(both.weight, alone.weight) and len(alone.raw_weight) == 0
    assert both.raw_share.sum() > 0 and alone.raw_share.tolist() == [0, 0]
    both = dataclasses.replace(both, raw_share=alone.raw_share)
    scored, known = alone.score(tokens(8)), both.score(tokens(8))
    frame, whole = scored.to_dataframe(), known.to_dataframe()
    raw = ["raw_kl", "raw_kl_first"]
    pd.testing.assert_frame_equal(frame.drop(columns=raw), whole.drop(columns=raw))
    assert frame[raw].iloc[:-1].isna().all(None) and (whole["raw_kl"].iloc[:-1] > 0).all()
    assert "raw" not in repr(scored) and "raw" in repr(known)
    with pytest.raises(InvalidArgumentError, match="fit it with raw=True"):
        alone.normed(torch.zeros(1, model.cfg.d_model), 0, "raw")


@pytest.mark.parametrize(("norm", "rows"), [("LN", 60), ("RMS", 300)])
def test_the_share_of_the_raw_reading_is_that_of_least_squares(norm, rows):
    """Numpy on the rows that are looked at: all of few, some 2,048 tokens spread through many."""
    model, ids = small(norm=norm), tokens(rows)
    lens = ll.fit_lens(model, ids)
    looked = ids[np.linspace(0, rows - 1, min(rows, 128)).astype(int)]
    states, eps = residual_stream(model, looked).double().detach().numpy(), float(model.cfg.eps)
    last = normed(states[-1], norm, eps)
    for layer in range(2):
        x = states[layer]
        direct = normed(x, norm, eps) @ lens.weight[layer].numpy() + lens.bias[layer].numpy()
        raw = normed(x @ lens.raw_weight[layer].numpy() + lens.raw_bias[layer].numpy(), norm, eps)
        # The mean of the first position, as many times as there are others.
        apart, left = (
            np.vstack([v[:, 1:].reshape(-1, 16), np.tile(v[:, 0].mean(0), (len(v) * 15, 1))])
            for v in (raw - direct, last - direct)
        )
        found = np.linalg.lstsq(apart.reshape(-1, 1), left.ravel(), rcond=None)[0].item()
        assert 0.02 < found < 1
        assert float(lens.raw_share[layer]) == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize(("norm", "size"), [("LN", 0.1), ("LN", 1.0), ("RMS", 0.3)])
def test_the_raw_reading_does_not_spoil_the_first_position(norm, size):
    """Of one first token among 60 raw least squares takes little notice; a share of it may not either."""
    model, ids = small(norm=norm, n_layers=3), tokens(120, 60).clone()
    ids[:, 0] = 5
    with torch.no_grad():
        model.embed.weight[5] *= size
    lens = ll.fit_lens(model, ids[:100])
    score = lens.score(ids[100:]).to_dataframe().iloc[:-1]
    assert (score["kl_first"] < 0.1 * score["kl"]).all()
    assert score["raw_kl_first"].max() > score["raw_kl"].min()


def test_the_lens_is_far_below_raw_least_squares_early_and_not_above_it_late():
    model = ll.load("gpt-micro")
    ids = ll.evaluation_tokens(model, n_sequences=150)
    lens = ll.fit_lens(model, ids[:110])
    found = lens.score(ids[110:]).to_dataframe().iloc[:-1]
    ratio = (found["kl"] / found["raw_kl"]).to_numpy()
    assert (ratio < 1.01).all() and ratio[0] < 0.92
    direct = dataclasses.replace(lens, raw_share=torch.zeros_like(lens.raw_share))
    assert found["kl"].iloc[-1] < 0.995 * direct.score(ids[110:])["kl"].iloc[-2]
    assert lens.raw_share[0] < lens.raw_share[-1]


def test_one_first_token_is_read_as_well_as_the_rest():
    """Rows that begin alike have one first state; without its weight the KL there is the largest of all."""
    model = ll.load("gpt-nano")
    ids = ll.evaluation_tokens(model, n_sequences=80).clone()
    ids[:, 0] = 5
    lens = ll.fit_lens(model, ids[:50])
    score = lens.score(ids[50:]).to_dataframe().iloc[:-1]
    assert (score["kl_first"] < 0.1 * score["kl"]).all()


def test_scores_are_a_kl_written_out():
    model, ids = small(), tokens(60)
    with torch.no_grad():
        model.ln_final.weight.copy_(torch.linspace(0.5, 2, 16))
        model.ln_final.bias.copy_(torch.linspace(-3, 3, 16))
    lens = ll.fit_lens(model, ids[:40])
    held = ids[40:]
    score = lens.score(held).to_dataframe()
    out = model(held).detach().double().log_softmax(-1)
    stream, row = residual_stream(model, held)[1].double().detach(), score.loc[1]
    x = torch.tensor(normed(stream.numpy()))
    raw = torch.tensor(normed((stream @ lens.raw_weight[1] + lens.raw_bias[1]).numpy()))
    share = float(lens.raw_share[1])
    assert share > 0.05
    mixed = (1 - share) * (x @ lens.weight[1] + lens.bias[1]) + share * raw
    # The plain lens last: its scores are looked at below.
    for name, y in (("raw_", raw), ("logit_", x), ("", mixed)):
        z = y * model.ln_final.weight.double() + model.ln_final.bias
        read = (z @ model.W_U.double() + model.b_U).log_softmax(-1).detach()
        kl = (out.exp() * (out - read)).sum(-1)
        assert row[f"{name}kl"] == pytest.approx(float(kl[:, 1:].mean()), rel=1e-4)
        assert row[f"{name}kl_first"] == pytest.approx(float(kl[:, 0].mean()), rel=1e-4)
    assert row.top1 == pytest.approx(
        float((read.argmax(-1) == out.argmax(-1))[:, 1:].double().mean())
    )
    loss = -read[:, :-1].gather(-1, held[:, 1:, None]).mean()
    assert row.loss == pytest.approx(float(loss), rel=1e-5)
    assert row.kl_low < row.kl < row.kl_high and row.n == 20 * 15


@pytest.mark.parametrize("which", ["kl", "raw_kl", "logit_kl"])
def test_the_last_layer_is_the_model(foreign, which):
    ids = tokens(16, 12, vocab=int(foreign.cfg.d_vocab))
    lens = ll.fit_lens(foreign, ids)
    assert lens.score(ids)[which].iloc[-1] == pytest.approx(0, abs=1e-5)


def test_translator_gives_transformer_lens_the_same_reading():
    from transformer_lens.tools.analysis import logit_lens

    model, ids = small(), tokens(60)
    lens = ll.fit_lens(model, ids)
    seen = logit_lens(model, ids[:3], lens=lens.translator(), apply_ln=False, positions=None).values
    stream = residual_stream(model, ids[:3])
    for layer in range(3):
        ours = lens.readout.decode(lens.normed(stream[layer], layer))
        torch.testing.assert_close(seen[layer], ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen[-1], model(ids[:3]), atol=1e-4, rtol=1e-4)


def test_polish_lowers_the_kl_and_repeats():
    model = ll.load("gpt-nano")
    ids = ll.evaluation_tokens(model, n_sequences=60)
    plain, first, again = (ll.fit_lens(model, ids[:40], polish=n, seed=1) for n in (0, 1, 1))
    assert torch.equal(first.weight, again.weight)
    before, after = (lens.score(ids[40:])["kl"].iloc[:-1] for lens in (plain, first))
    assert (after < before).all()


@pytest.mark.parametrize(("norm", "raw"), [("LN", True), ("RMS", False)])
def test_a_model_in_float64_is_polished_as_in_float32(norm, raw):
    single, ids = small(norm=norm), tokens(60)
    double = copy.deepcopy(single).double()
    one, two = (ll.fit_lens(m, ids, polish=2, raw=raw) for m in (single, double))
    plain = ll.fit_lens(double, ids, raw=raw)
    torch.testing.assert_close(one.weight, two.weight, atol=1e-4, rtol=0)
    assert float((two.weight - plain.weight).abs().max()) > 1e-3
    before, after = (lens.score(ids)["kl"].iloc[0] for lens in (plain, two))
    assert after < before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["unembed", "ln_final"])
def test_a_readout_that_is_not_finite_is_not_polished_into_the_maps(part, value):
    model = small()
    with torch.no_grad():
        next(getattr(model, part).parameters()).view(-1)[5] = value
    with pytest.raises(NonFiniteError, match=r"KL of layer 0 .* wider precision"):
        ll.fit_lens(model, tokens(60), polish=1)


def test_layers_and_rows_that_a_lens_cannot_read_are_refused():
    lens = ll.fit_lens(small(), tokens(60))
    with pytest.raises(InvalidArgumentError, match="leave it out"):
        lens.score(tokens(8), layers=())
    with pytest.raises(InvalidArgumentError, match="got one of 1; pass longer rows"):
        lens.score(tokens(8)[:, :1])
    stream = torch.zeros(1, lens.weight.shape[-1])
    for layer in (-1, 3, 99):
        with pytest.raises(InvalidArgumentError, match="layer must be"):
            lens.translator()(stream, layer)
    with pytest.raises(InvalidArgumentError, match="reading must be"):
        lens.normed(stream, 0, "tuned")
    for bad in (stream[:, 1:], stream[0, 0], stream.long(), stream.numpy(), None):
        for reading in ("lens", "direct", "raw", "logit"):
            with pytest.raises(InvalidArgumentError, match="stream must"):
                lens.normed(bad, 1, reading)
    assert len(lens.score(tokens(8), layers=[1])) == 1


@pytest.mark.parametrize("reading", ["lens", "direct", "raw", "logit"])
def test_one_position_is_read_as_among_others(reading):
    lens = ll.fit_lens(small(), tokens(60))
    stream = torch.randn(3, 2, lens.weight.shape[-1], generator=torch.Generator().manual_seed(1))
    alone = torch.stack([lens.normed(x, 1, reading) for x in stream.flatten(0, 1)])
    torch.testing.assert_close(alone, lens.normed(stream, 1, reading).flatten(0, 1))


def test_streams_that_fit_are_kept_for_the_epochs_and_give_the_same_maps(monkeypatch):
    """Rows of unequal length too; where memory is short the model runs again for every epoch."""
    model, ids = small(), tokens(60)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[::3, 9:] = False
    task = ll.Task(ids, mask=mask)
    passes = []
    run = fit.residual_stream
    monkeypatch.setattr(fit, "residual_stream", lambda *a: passes.append(1) or run(*a))
    kept = ll.fit_lens(model, task, polish=2, seed=3)
    assert passes == []
    short = 2 * 8 * 12 * 16**2 + 1  # the statistics of both layers, and no streams
    again = ll.fit_lens(model, task, polish=2, seed=3, max_memory=short)
    assert len(passes) > 2
    torch.testing.assert_close(kept.weight, again.weight, atol=1e-6, rtol=1e-5)
    assert float((kept.weight - ll.fit_lens(model, task).weight).abs().max()) > 1e-3


def test_few_rows_warn():
    with pytest.warns(UserWarning, match="20"):
        ll.fit_lens(small(), tokens(10))


def test_a_task_hides_its_pads():
    model, ids = small(), tokens(60)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[::2, 9:] = False
    padded = torch.where(mask, ids, 63)
    one, two = (
        ll.fit_lens(model, ll.Task(torch.where(mask, ids, pad), mask=mask)) for pad in (63, 5)
    )
    assert one.n == int(mask.sum()) and padded.shape == ids.shape
    torch.testing.assert_close(one.weight, two.weight)


def test_reading_has_the_models_own_favourite_on_top():
    model = ll.load("gpt-nano")
    lens = ll.fit_lens(model, ll.evaluation_tokens(model, n_sequences=30))
    found = lens.read("The old mill", k=2).to_dataframe()
    ids = ll.tokenize_prompts(model, ["The old mill"])[0]
    best = model(ids[None])[0].softmax(-1).max(-1)
    last = found[found["layer"] == len(lens.weight)]
    np.testing.assert_allclose(last["probability"], best.values.detach(), atol=1e-5)
    assert (last["probability_2"] <= last["probability"]).all()
    assert lens.read("The old mill").plot().data[0].z.shape == (len(lens.weight) + 1, len(ids))


def test_a_model_that_sees_later_tokens_has_a_lens_but_no_next_token():
    model = ll.toy_model(n_layers=2, d_model=16, causal=False, seed=3)
    ids = torch.randint(64, (70, 10), generator=torch.Generator().manual_seed(2))
    lens = ll.fit_lens(model, ids[:50])
    states = streams(model, ids[:50])
    a, b = oracle(states[1], states[-1], 0.0)
    read = states[1] @ lens.raw_weight[1].numpy() + lens.raw_bias[1].numpy()
    np.testing.assert_allclose(read, states[1] @ a + b, atol=1e-6)
    with pytest.raises(UnsupportedModelError, match="say what it answers"):
        lens.score(ids[50:])
    found = lens.score(ll.Task(ids[50:], labels=ids[50:, :1], positions=[0])).to_dataframe()
    logits = model(ids[50:])[:, 0].log_softmax(-1)
    own = -logits.gather(1, ids[50:, :1]).mean()
    assert found["loss"].iloc[-1] == pytest.approx(float(own), abs=1e-5)
    assert found["kl"].iloc[-1] < 1e-6 < found["kl"].iloc[0]


def test_fitting_polishing_and_scoring_tell_how_far_they_are(monkeypatch, capsys):
    monkeypatch.setattr("lens_linear.progress._EVERY", 0.0)
    monkeypatch.setenv("TQDM_DISABLE", "0")
    model = ll.toy_model(n_layers=3, d_model=16)
    ids = torch.randint(64, (40, 12), generator=torch.Generator().manual_seed(2))
    silent = ll.fit_lens(model, ids, polish=1)
    silent.score(ids[:10])
    assert capsys.readouterr().err == ""
    lens = ll.fit_lens(model, ids, polish=1, progress=True, max_memory=40_000)
    # Groups of layers keep no streams: the epochs run the model again, in other batches.
    torch.testing.assert_close(lens.weight, silent.weight, atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(
        lens.score(ids[:10], progress=True)["kl"], silent.score(ids[:10])["kl"], atol=1e-6
    )
    said = capsys.readouterr().err.splitlines()
    for what in ("fitting", "polishing", "scoring"):
        shares = [int(line.split()[1].rstrip("%,")) for line in said if line.startswith(what)]
        assert shares[0] == 0 and shares[-1] == 100 and shares == sorted(shares)
        assert len(set(shares)) > 3 and all(line.endswith("left") for line in said)
