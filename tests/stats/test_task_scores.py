"""Pads never reach a number: everything equals the same rows run one by one, without pads."""

import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError, NonFiniteError, UnsupportedModelError
from lens_linear.linearity import layer_geometry
from lens_linear.models.capture import run
from lens_linear.stats import (
    ModelScores,
    RowScores,
    answer_values,
    as_rows,
    halves,
    require_task,
    score_answers,
    score_model,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))


def uneven(n=40, low=2, high=12, n_vocab=60, seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(low, high + 1, (n,), generator=g).tolist()
    return [torch.randint(1, n_vocab, (size,), generator=g) for size in sizes]


def padded(rows, side, pad=0):
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        pads = [pad] * (width - len(row))
        zeros = [0] * len(pads)
        whole, ones = row.tolist(), [1] * len(row)
        ids.append(pads + whole if side == "left" else whole + pads)
        mask.append(zeros + ones if side == "left" else ones + zeros)
    return torch.tensor(ids), torch.tensor(mask)


@pytest.fixture(scope="module")
def model():
    return ll.toy_model(n_layers=3, d_model=16, attn_only=False, seed=1)


@pytest.mark.parametrize("name", ["native", "gpt2", "neox", "llama", "opt", "bloom"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_are_masked_in_attention(name, side, tmp_path):
    if name == "native":
        model = ll.toy_model(n_layers=2, d_model=16, attn_only=False)
    else:
        from architectures import save_random

        model = ll.load(save_random(name, tmp_path, scale=0.4))
    rows = uneven(3, 3, 9, n_vocab=50)
    ids, mask = padded(rows, side, pad=7)
    passed = run(model, ids, record=[(1, "resid_post")], attention_mask=mask)
    asked = run(model, ll.Task(ids, mask=mask), record=[(1, "resid_post")])
    for i, row in enumerate(rows):
        alone = run(model, row, record=[(1, "resid_post")])
        n, start = len(row), (ids.shape[1] - len(row)) * (side == "left")
        spot, here, near = (1, "resid_post"), slice(start, start + n), {"atol": 1e-4, "rtol": 1e-4}
        for found, places in ((passed, here), (asked, slice(n))):
            torch.testing.assert_close(found[spot][i, places], alone[spot][0], **near)
            torch.testing.assert_close(found.logits[i, places], alone.logits[0], **near)


@pytest.mark.parametrize("side", ["left", "right", "list"])
def test_statistics_see_real_tokens_only(model, side):
    rows = uneven()
    asked = rows if side == "list" else ll.Task(*padded(rows, side)[:1], mask=padded(rows, side)[1])
    xs, ys = [], []
    for row in rows:
        out = run(model, row, record=[(1, "resid_pre"), (1, "resid_post")])
        xs.append(out[(1, "resid_pre")][0].double())
        ys.append(out[(1, "resid_post")][0].double())
    x, y = torch.cat(xs).numpy(), torch.cat(ys).numpy()
    design = np.c_[x, np.ones(len(x))]
    rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    expected = 1 - (rest**2).sum() / ((y - y.mean(0)) ** 2).sum()
    profile = ll.linearity_profile(model, asked, fit="in-sample")
    assert float(profile["block_r2"][1]) == pytest.approx(expected, abs=1e-6)
    assert profile.n_tokens == len(x)
    assert layer_geometry(model, asked).norm[1] == pytest.approx(
        np.linalg.norm(x, axis=1).mean(), rel=1e-6
    )
    held = ll.linearity_profile(model, asked, batch_size=3)
    other = ll.linearity_profile(model, asked, batch_size=64)
    assert held["block_r2"].tolist() == pytest.approx(other["block_r2"].tolist(), abs=1e-9)


def test_views_of_uneven_rows_are_pieces_without_pads(model):
    rows = uneven()
    view = as_rows(model, rows)
    assert view.n_tokens() == sum(map(len, rows)) and view.n_tokens(1) == view.n_tokens() - len(
        rows
    )
    train, test = halves(view, seed=0)
    assert sorted(torch.cat([train.index, test.index]).tolist()) == list(range(len(rows)))
    for place, index in enumerate(test.index.tolist()):
        assert test[place : place + 1].tolist() == [rows[index].tolist()]
    with pytest.raises(InvalidArgumentError, match=r"longer than the 3 positions .* got one of 2"):
        as_rows(model, rows, skip=3)


def plain(model, row):
    return run(model, row).logits[0].double()


def test_next_token_loss_is_the_mean_over_real_tokens(model):
    rows = uneven()
    nats = [-plain(model, row)[:-1].log_softmax(-1).gather(1, row[1:, None])[:, 0] for row in rows]
    found = score_model(model, as_rows(model, rows), batch_size=5).loss
    assert found.mean == pytest.approx(float(torch.cat(nats).mean()), abs=1e-6)
    assert int(found.counts.sum()) == sum(len(row) - 1 for row in rows)
    order = as_rows(model, rows).index
    assert found.values.tolist() == pytest.approx([float(nats[i].mean()) for i in order], abs=1e-6)


def test_the_standard_error_is_that_of_a_ratio_of_sums(model):
    found = score_model(model, as_rows(model, uneven())).loss
    sums, counts = (found.values * found.counts).numpy(), found.counts.double().numpy()
    rest = sums - counts * sums.sum() / counts.sum()  # linearised, as survey statistics have it
    n = len(rest)
    assert found.standard_error == pytest.approx(
        math.sqrt(n / (n - 1) * (rest**2).sum()) / counts.sum(), rel=1e-9
    )


@pytest.mark.parametrize("side", ["left", "right", "list"])
def test_labels_at_one_position_and_each_metric(model, side):
    rows = uneven()
    labels = torch.arange(len(rows)) % 60
    wrong = (labels + 5) % 60
    last = torch.stack([plain(model, row)[-1] for row in rows])
    at = last.gather(1, labels[:, None])[:, 0]
    expected = {
        "loss": last.logsumexp(1) - at,
        "accuracy": (last.argmax(1) == labels).double(),
        "logit_difference": at - (last.sum(1) - at) / (last.shape[1] - 1),
    }
    ids, mask = (rows, None) if side == "list" else padded(rows, side)
    for metric, values in expected.items():
        task = ll.Task(ids, labels=labels, positions=-1, mask=mask, metric=metric)
        out = run(model, task)
        assert score_answers(task, out.logits).values.tolist() == pytest.approx(
            values.tolist(), abs=1e-5
        )
        assert score_model(model, as_rows(model, task)).metric.mean == pytest.approx(
            float(values.mean()), abs=1e-6
        )
    pairs = ll.Task(
        ids, labels=torch.stack([labels, wrong], 1), mask=mask, metric="logit_difference"
    )
    gap = at - last.gather(1, wrong[:, None])[:, 0]
    assert answer_values(pairs, run(model, pairs).logits).tolist() == pytest.approx(
        gap.tolist(), abs=1e-5
    )

    def top_gap(logits, labels):
        top = logits.topk(2).values
        return top[:, 0] - top[:, 1]

    own = ll.Task(ids, labels=labels, mask=mask, metric=top_gap)
    top = last.topk(2).values
    assert score_model(model, as_rows(model, own)).metric.mean == pytest.approx(
        float((top[:, 0] - top[:, 1]).mean()), abs=1e-6
    )


def test_what_the_model_cannot_answer_is_refused(model):
    with pytest.raises(InvalidArgumentError, match="outputs 0 to 63"):
        require_task(model, ll.Task([[1, 2], [3, 4]], labels=[64, 0]))
    with pytest.raises(InvalidArgumentError, match="each of the 64 outputs"):
        require_task(model, ll.Task([[1, 2]], labels=[1], names=["no", "yes"]))
    with pytest.raises(InvalidArgumentError, match="n_ctx"):
        require_task(model, [list(range(60)) * 40])
    with pytest.raises(NonFiniteError, match="logits"):
        answer_values(ll.Task([[1, 2]]), torch.full((1, 2, 64), torch.inf))
    with pytest.raises(UnsupportedModelError, match="answers go up to 2"):
        answer_values(ll.Task([[1, 2]]), torch.zeros(1, 2, 2))
    with pytest.raises(InvalidArgumentError, match="one finite number"):
        answer_values(ll.Task([[1, 2]], metric=lambda a, b: torch.ones(7)), torch.zeros(1, 2, 64))


def test_a_model_worse_than_a_uniform_guess_is_answered_with_a_warning_that_names_task(model):
    ids = torch.randint(64, (10, 8), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_model(model, as_rows(model, ids))  # about a uniform guess: an untrained model
    loud = ll.toy_model(n_layers=1, d_model=16, seed=0)
    with torch.no_grad():
        loud.unembed.weight.mul_(30)
    with pytest.warns(UserWarning, match=r"worse than a uniform guess over its 64 .*Task\(tokens"):
        score_model(loud, as_rows(loud, ids))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_model(loud, as_rows(loud, ll.Task(ids, labels=torch.zeros(10, dtype=torch.int64))))


def test_scores_read_as_sentences():
    scores = RowScores(torch.tensor([1.0, 3.0]).double(), torch.tensor([3, 1]))
    assert repr(scores) == "RowScores: mean 1.5 ± 0.75; 4 answers in 2 rows"
    said = repr(ModelScores(scores, RowScores(torch.tensor([0.5, 1.0]), scores.counts)))
    assert "loss 1.5 ± 0.75 nats, metric 0.625" in said and "4 answers in 2 rows" in said
