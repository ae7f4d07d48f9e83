"""An attention-only model that answers a question at one position, taken apart from load to replacement."""

import math
import warnings

import pytest
import torch

import lens_linear as ll
from lens_linear.linearity import fit_linearization, load_linearized, save_linearized
from lens_linear.models.capture import run
from lens_linear.stats import as_rows, score_model

N, CLASSES = 240, 10


def question(n=N, seed=0):
    """Rows of 4 to 7 tokens that end in a question mark: which token stood first?"""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        size = int(torch.randint(3, 7, (1,), generator=g))
        rows.append([*torch.randint(CLASSES, (size,), generator=g).tolist(), CLASSES])
    return rows, [row[0] for row in rows]


def batch(step):
    """Padded rows, and the right answer wherever the question mark stands."""
    rows, labels = question(n=128, seed=1000 + step)
    task = ll.Task(rows, labels=labels)
    return task.tokens, task.targets.clamp(min=0)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """A model trained in seconds to answer at the last token alone, saved and opened again."""
    spec = ll.models.ModelSpec(
        2, d_model=24, n_heads=2, d_vocab=CLASSES + 1, n_ctx=8, attn_only=True, norm="none"
    )
    trained = ll.train(
        spec,
        batches=batch,
        loss_mask=lambda tokens: tokens == CLASSES,
        steps=200,
        learning_rate=1e-2,
        progress=False,
    )
    return ll.load(ll.save_model(trained.model, tmp_path_factory.mktemp("made") / "first"))


@pytest.fixture(scope="module")
def unseen():
    rows, labels = question(seed=1)
    return ll.Task(rows, labels=labels, names=[*map(str, range(CLASSES)), "?"])


def by_hand(model, task):
    """Mean nats of the right answers, each row run alone without pads."""
    nats = []
    for row in range(len(task)):
        n = int(task.lengths[row])
        logits = run(model, task.tokens[row, :n]).logits[0, -1].double()
        nats.append(float(logits.logsumexp(0) - logits[task.targets[row, n - 1]]))
    return sum(nats) / len(nats)


def test_the_loss_is_that_of_the_answers(answers, unseen):
    found = score_model(answers, as_rows(answers, unseen)).loss.mean
    assert found == pytest.approx(by_hand(answers, unseen), abs=1e-5)
    assert found < 0.2 < math.log(CLASSES)
    right = ll.Task(unseen.tokens, labels=unseen.labels, positions=unseen.positions, mask=unseen.mask,
                    metric="accuracy")  # fmt: skip
    assert score_model(answers, as_rows(answers, right)).metric.mean > 0.95


def test_without_a_task_it_is_said_that_the_next_token_is_not_what_it_answers(answers):
    ids = torch.randint(CLASSES, (40, 6), generator=torch.Generator().manual_seed(2))
    view, lens = ll.AttentionOnly(answers), ll.fit_lens(answers, ids.repeat(5, 1))
    for ask in (
        lambda: ll.replacement_curve(answers, ids, "remove"),
        lambda: view.paths(ids).loss,
        lambda: view.paths(ids[:2]).ablations(),
        lambda: view.paths(ids).importance(),
        lambda: view.importance(ids),
        lambda: ll.circuits.ablation_scores(answers, ids),
        lambda: ll.direct_logit_attribution(answers, ids),
        lambda: ll.patch(answers, ids[:4], ids[4:8]),
        lambda: ll.path_patch(answers, ids[:4], ids[4:8], senders=[(0, 0)], receivers="L1H0"),
        lambda: ll.circuits.in_context_loss(answers, ids),
        lambda: lens.score(ids),
        lambda: ll.dynamics.steering_cost(answers, ids, torch.eye(24)[:3], torch.ones(2)),
    ):
        with pytest.warns(UserWarning, match=r"worse than a uniform guess.*Task\(tokens, labels="):
            ask()


def test_a_lens_reads_the_answers_of_a_task(answers, unseen):
    """The last row of the scores is the model itself: its loss is that of the rows run alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ll.fit_lens(answers, unseen).score(unseen)
    assert found["loss"].tolist()[-1] == pytest.approx(by_hand(answers, unseen), abs=1e-5)


def test_removing_blocks_costs_what_the_answers_lose(answers, unseen):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        removed = ll.replacement_curve(answers, unseen, "remove")
        linear = ll.replacement_curve(answers, unseen, "linear", order=[1, 0])
    loss = removed["loss"].tolist()
    assert loss[0] < 0.2 and loss[-1] > math.log(CLASSES) - 0.3  # no block, no answer
    assert removed["loss"].tolist()[0] == pytest.approx(linear["loss"].tolist()[0], abs=1e-6)
    assert (removed["loss_increase"].to_numpy()[1:] > 0).all()


def test_profile_and_linearized_folder(answers, unseen, tmp_path):
    profile = ll.linearity_profile(answers, unseen, fit="in-sample")
    x, y = [], []
    for row in range(len(unseen)):
        out = run(
            answers,
            unseen.tokens[row, : int(unseen.lengths[row])],
            record=[(1, "resid_pre"), (1, "resid_post")],
        )
        x.append(out[(1, "resid_pre")][0])
        y.append(out[(1, "resid_post")][0])
    x, y = torch.cat(x).double(), torch.cat(y).double()
    design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    rest = y - design @ torch.linalg.lstsq(design, y).solution
    expected = 1 - rest.square().sum() / (y - y.mean(0)).square().sum()
    assert float(profile["block_r2"][1]) == pytest.approx(float(expected), abs=1e-6)
    fitted = fit_linearization(answers, unseen, [0])
    again = load_linearized(
        save_linearized(tmp_path / "any name at all", answers, fitted), model=answers
    )
    with fitted.applied(answers):
        inside = by_hand(answers, unseen)
    with again.active() as model:
        assert by_hand(model, unseen) == pytest.approx(inside, abs=1e-4)


def test_heads_and_paths_are_those_of_the_answers(answers, unseen):
    """Zeroing a head, row by row without pads; the orders of paths end at the model's own loss."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ll.circuits.ablation_scores(answers, unseen, how="zero")
        view = ll.AttentionOnly(answers)
        orders = view.importance(unseen)
        paths = view.paths(unseen)

    def silenced(z, hook):
        z = z.clone()
        z[:, :, 0] = 0
        return z

    whole = by_hand(answers, unseen)
    with answers.hooks(fwd_hooks=[("blocks.0.attn.hook_z", silenced)]):
        without = by_hand(answers, unseen)
    table = found.to_dataframe().set_index("head")
    assert table.loc["L0H0", "lost"] == pytest.approx(without - whole, abs=1e-5)
    assert without - whole > 0.1  # the head is needed
    assert orders.losses[-1] == pytest.approx(whole, abs=1e-5)
    assert orders.losses[0] > 1.5 and orders.uniform == pytest.approx(math.log(CLASSES + 1))
    assert paths.loss == pytest.approx(whole, abs=1e-5) and paths.max_error < 1e-4


def test_attributions_of_the_answers_sum_to_their_logits(answers, unseen):
    found = ll.circuits.direct_logit_attribution(answers, unseen)
    assert found.max_error < 1e-4
    right = []
    for row in range(len(unseen)):
        n = int(unseen.lengths[row])
        logits = run(answers, unseen.tokens[row, :n]).logits[0, -1].double()
        right.append(logits[int(unseen.labels[row, 0])] - logits.mean())
    assert float(found["relative"].sum()) == pytest.approx(float(sum(right)) / len(right), abs=1e-4)


@pytest.mark.parametrize("how", ["mean", "pooled"])
def test_mean_ablation_is_that_of_each_position_by_itself(answers, unseen, how):
    found = ll.circuits.ablation_scores(answers, unseen, how=how)
    z, real = [], unseen.mask
    for row in range(len(unseen)):
        n = int(unseen.lengths[row])
        own = run(answers, unseen.tokens[row, :n], record=[(1, "z")])[(1, "z")][0].double()
        z.append(torch.nn.functional.pad(own.view(n, 2, -1), (0, 0, 0, 0, 0, real.shape[1] - n)))
    total, count = torch.stack(z).sum(0), real.sum(0)[:, None, None]
    means = total / count if how == "mean" else (total.sum(0) / count.sum()).expand_as(total)

    def replaced(out, hook):
        out = out.clone()
        out.view(*out.shape[:2], 2, -1)[:, :, 1] = means[: out.shape[1], 1].to(out)
        return out

    with answers.hooks(fwd_hooks=[("blocks.1.attn.hook_z", replaced)]):
        expected = by_hand(answers, unseen)
    assert float(found.without[1, 1]) == pytest.approx(expected, abs=1e-5)


def test_the_page_speaks_of_the_task(answers, unseen, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        path = ll.report(answers, tmp_path / "page.html", unseen)
    text = path.read_text()
    loss = f"{by_hand(answers, unseen):.3f}"
    assert loss in text and "next token" not in text.lower().replace("next tokens", "")
