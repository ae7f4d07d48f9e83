import numpy as np
import pytest
import torch
from circuit_zoo import hugging_face, native

import lens_linear as ll
from lens_linear.circuits.heads.composition import (
    KINDS,
    _gamma_square,
    _rotated_square,
    composition_scores,
)
from lens_linear.errors import InvalidArgumentError


def dense_score(model, kind, writer, reader):
    (i, h), (j, g) = writer, reader
    ov = model.W_V[i, h] @ model.W_O[i, h]
    read = {
        "Q": model.W_Q[j, g] @ model.W_K[j, g].T,
        "K": model.W_K[j, g] @ model.W_Q[j, g].T,
        "V": model.W_V[j, g] @ model.W_O[j, g],
    }[kind]
    ov, read = ov.double().numpy(), read.double().numpy()
    return np.linalg.norm(ov @ read) / np.linalg.norm(ov) / np.linalg.norm(read)


@pytest.mark.parametrize(
    "n_layers", [3, 4, 7]
)  # pairs of layers are multiplied in blocks of halves
def test_scores_are_those_of_dense_matrices(n_layers):
    model = native(n_layers=n_layers)
    frame = composition_scores(model, n_random=2).to_dataframe()
    pairs = n_layers * (n_layers - 1) // 2
    assert len(frame) == 3 * pairs * 9  # kinds × pairs of layers × pairs of heads
    for row in frame.groupby(["kind", "writer_layer", "reader_layer"]).head(1).itertuples():
        expected = dense_score(
            model,
            row.kind,
            (row.writer_layer, row.writer_head),
            (row.reader_layer, row.reader_head),
        )
        assert row.score == pytest.approx(expected, rel=1e-6)
        assert row.writer == f"L{row.writer_layer}H{row.writer_head}"


@pytest.mark.parametrize(
    "changes", [{}, {"normalization_type": "LN"}, {"n_heads": 4, "n_key_value_heads": 2}]
)
def test_scores_agree_with_the_bridge(changes):
    model = native(n_layers=3, **changes)
    found = composition_scores(model, n_random=2)
    for index, kind in enumerate(KINDS):
        own = model.all_composition_scores(kind).scores.double()
        torch.testing.assert_close(found.scores[index], own, rtol=1e-4, atol=1e-6)


def test_scores_agree_with_the_bridge_on_bundled_and_full_models(attn_2l, zoo_folder):
    for model in (attn_2l, hugging_face("gpt2", zoo_folder), hugging_face("qwen2", zoo_folder)):
        found = composition_scores(model, n_random=2)
        for index, kind in enumerate(KINDS):
            own = model.all_composition_scores(kind).scores.double().cpu()
            torch.testing.assert_close(found.scores[index], own, rtol=1e-4, atol=1e-6)


def test_the_rotated_baseline_is_that_of_explicit_rotations():
    model = native(n_layers=2)
    found = composition_scores(model, n_random=4000, seed=1)
    g = torch.Generator().manual_seed(7)
    ov = (model.W_V[0, 1] @ model.W_O[0, 1]).double()
    read = (model.W_Q[1, 2] @ model.W_K[1, 2].T).double()
    drawn = []
    for _ in range(4000):
        q, r = torch.linalg.qr(torch.randn(20, 20, generator=g, dtype=torch.float64))
        turned = ov @ (q * r.diagonal().sign()) @ read
        drawn.append(float(turned.norm() / ov.norm() / read.norm()))
    mean, sd = found.baseline_mean[0, 0, 1, 1, 2], found.baseline_sd[0, 0, 1, 1, 2]
    error = 6 * np.std(drawn) / 4000**0.5
    assert float(mean) == pytest.approx(np.mean(drawn), abs=2 * error)
    assert float(sd) == pytest.approx(np.std(drawn), rel=0.1)
    assert float(mean**2 + sd**2) == pytest.approx(1 / 20, rel=0.02)  # exactly 1 / d_model


def test_the_gaussian_baseline_is_that_of_random_matrices():
    found = composition_scores(native(), baseline="gaussian", n_random=400)
    g = torch.Generator().manual_seed(3)
    drawn = []
    for _ in range(400):
        v, o, q, k = (torch.randn(20, 10, generator=g).double() for _ in range(4))
        drawn.append(float((v @ o.T @ q @ k.T).norm() / (v @ o.T).norm() / (q @ k.T).norm()))
    assert float(found.baseline_mean[1, 0, 0, 1, 0]) == pytest.approx(np.mean(drawn), rel=0.03)
    assert float(found.baseline_sd[1, 0, 0, 1, 0]) == pytest.approx(np.std(drawn), rel=0.3)


def test_unrelated_heads_have_z_of_order_one_and_a_planted_pair_stands_out():
    model = native(n_layers=2, seed=5)
    z = composition_scores(model).z
    assert float(z.abs().max()) < 6
    with torch.no_grad():  # reader L1H2's keys read exactly what writer L0H1 writes
        written = model.original_model.layers[0].attn.o.weight[:, 10:20]
        model.original_model.layers[1].attn.k.weight[20:30] = written.T
    frame = composition_scores(model).to_dataframe()
    best = frame.sort_values("z").iloc[-1]
    assert (best["kind"], best["writer"], best["reader"]) == ("K", "L0H1", "L1H2")
    assert best["z"] > 3


def test_folding_changes_scores_of_learnt_norms_only():
    plain = native()
    a, b = (composition_scores(plain, fold=f, n_random=2).scores for f in (False, True))
    torch.testing.assert_close(a, b)
    normed = native(normalization_type="RMS")
    a, b = (composition_scores(normed, fold=f, n_random=2).scores for f in (False, True))
    assert (a - b).abs().max() > 1e-3


def test_one_layer_has_no_pairs_and_bad_arguments_are_named():
    assert len(composition_scores(native(n_layers=1), n_random=2)) == 0
    with pytest.raises(InvalidArgumentError, match="baseline must be one of"):
        composition_scores(native(), baseline="none")


def test_scores_are_a_table_and_seeded():
    model = native()
    one, two = (ll.composition_scores(model, n_random=20, seed=4) for _ in range(2))
    assert torch.equal(one.z, two.z)
    assert list(one.to_dataframe())[:7] == [
        "kind",
        "writer",
        "reader",
        "score",
        "baseline_mean",
        "baseline_sd",
        "z",
    ]
    assert len(one["score"]) == 27 and one["ratio"].is_monotonic_decreasing


def constant_written(model, amount):
    """The same model to every LayerNorm: each head also writes ``amount`` times its value along 1."""
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            own = block.attn.W_O
            size = amount * torch.linspace(-1, 1, own[..., 0].numel()).view(*own.shape[:2], 1)
            block.attn.W_O.add_(size * (layer + 1))
    return model


def test_folded_scores_do_not_see_what_a_layer_norm_takes_away():
    plain = native(n_layers=3, normalization_type="LN")
    moved = constant_written(native(n_layers=3, normalization_type="LN"), 2.0)
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(plain(tokens), moved(tokens), rtol=1e-3, atol=1e-3)
    found, other = (composition_scores(m, fold=True, n_random=50) for m in (plain, moved))
    torch.testing.assert_close(found.scores, other.scores, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.ratio, other.ratio, rtol=1e-5, atol=1e-7)
    raw, shifted = (composition_scores(m, n_random=2).scores for m in (plain, moved))
    assert float((raw - shifted).abs().max()) > 0.02


@pytest.mark.parametrize("decay", [1.0, 0.6, 0.3])
def test_the_best_random_pair_is_that_of_a_simulation(decay):
    """Every pair turned at random, the largest ratio kept, many times: its median is what is said."""
    model = native(n_layers=3, n_heads=4, d_head=5)
    with torch.no_grad():  # heads with few large directions have longer tails
        for layer in model.original_model.layers:
            for part in (layer.attn.q, layer.attn.v):
                part.weight.mul_(decay ** (torch.arange(20) % 5)[:, None])
    found = composition_scores(model, n_random=2000)
    heads = [(layer, head) for layer in range(3) for head in range(4)]
    g = torch.Generator().manual_seed(5)
    rounds, largest = 1000, torch.zeros(1000)
    for i, h in heads:
        ov = torch.linalg.svdvals((model.W_V[i, h] @ model.W_O[i, h]).double())[:5]
        for j, k in heads:
            if j <= i:
                continue
            read = torch.linalg.svdvals((model.W_Q[j, k] @ model.W_K[j, k].T).double())[:5]
            turn = torch.linalg.qr(torch.randn(rounds, 20, 5, generator=g).double()).Q[:, :5]
            score = (ov[:, None] * turn * read).square().sum((1, 2)).sqrt()
            ratio = score / ov.norm() / read.norm() / found.baseline_mean[0, i, h, j, k]
            largest = torch.maximum(largest, ratio)
    assert float(found.best_random[0]) == pytest.approx(float(largest.median()), rel=0.025)
    assert (
        float(largest.quantile(0.25)) < float(found.best_random[0]) < float(largest.quantile(0.75))
    )


def test_moments_of_the_squared_score_are_those_of_random_rotations():
    generator = torch.Generator().manual_seed(2)
    for width, rank in ((4, 2), (9, 3), (12, 12), (2, 1)):
        one, two = (torch.rand(rank, generator=generator).double() + 0.1 for _ in range(2))
        turns = torch.linalg.qr(torch.randn(200_000, width, width, generator=generator).double()).Q
        square = (one.square() @ turns[:, :rank, :rank].square() * two.square()).sum(-1)
        square = square / one.square().sum() / two.square().sum() * width
        mean = square.sqrt().mean() / width**0.5
        found = _rotated_square(
            one[None, None], two[None, None], width, mean[None, None, None, None]
        )
        spread = float(square.var())
        assert float(found.variance) == pytest.approx(spread, rel=0.02, abs=1e-12)
        if spread > 1e-6:
            third = float((square - square.mean()).pow(3).mean()) / spread**1.5
            assert float(found.skewness) == pytest.approx(third, rel=0.03, abs=0.03)


@pytest.mark.parametrize("shape", [20.0, 100.0])
def test_the_square_of_a_gamma_score_varies_as_its_fourth_moment_says(shape):
    found = _gamma_square(torch.tensor(3.0), torch.tensor(3.0 / shape**0.5))
    expected = (shape + 2) * (shape + 3) / (shape * (shape + 1)) - 1
    assert float(found.variance) == pytest.approx(expected, rel=0.05)
    assert float(found.root) == pytest.approx(shape / (shape + 1))
