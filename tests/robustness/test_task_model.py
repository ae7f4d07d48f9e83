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


@pytest.fixture(scope="module")
def answers():
    """A model trained in seconds to answer at the last token alone."""
    model = ll.toy_model(n_layers=2, d_model=24, n_heads=2, d_vocab=CLASSES + 1, n_ctx=8, seed=0)
    rows, labels = question()
    task = ll.Task(rows, labels=labels)
    last = (task.lengths - 1)[:, None, None].expand(-1, 1, CLASSES + 1)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with torch.enable_grad():
        for _ in range(120):
            logits = model(task.tokens, return_type="logits").gather(1, last)[:, 0]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
            optimizer.step()
    return model.eval()


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
    view = ll.AttentionOnly(answers)
    for ask in (
        lambda: ll.replacement_curve(answers, ids, "remove"),
        lambda: view.paths(ids).loss,
        lambda: view.paths(ids[:2]).ablations(),
        lambda: view.paths(ids).importance(),
        lambda: view.importance(ids),
        lambda: ll.circuits.ablation_scores(answers, ids),
        lambda: ll.direct_logit_attribution(answers, ids),
        lambda: ll.patch(answers, ids[:4], ids[4:8]),
        lambda: ll.circuits.in_context_loss(answers, ids),
    ):
        with pytest.warns(UserWarning, match=r"worse than a uniform guess.*Task\(tokens, labels="):
            ask()


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
