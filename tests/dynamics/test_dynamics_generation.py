"""What steering writes, against the model's own greedy continuation and losses by hand."""

import pytest
import torch

import lens_linear as ll
from lens_linear.dynamics import random_directions, steer_text, steering_cost
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.tokenizer import tokenize_prompts

PROMPTS = ["The old king", "Once upon a time there was a"]


@pytest.fixture(scope="module")
def nano():
    return ll.load("gpt-nano")


def greedy(model, row, n):
    with torch.no_grad():
        for _ in range(n):
            row = torch.cat([row, model(row[None])[0, -1].argmax()[None]])
    return row


def test_scale_zero_is_the_model_left_alone(nano):
    directions, schedule = random_directions(nano), torch.ones(4)
    found = steer_text(nano, PROMPTS, directions, schedule, n_tokens=5, scales=(0.0, 3.0))
    for i, row in enumerate(tokenize_prompts(nano, PROMPTS)):
        whole = greedy(nano, row, 5)
        assert found.tokens[0, i].tolist() == whole[-5:].tolist()
        with torch.no_grad():
            scores = nano(whole[None])[0].double().log_softmax(-1)
        loss = -scores[len(row) - 1 : -1].gather(1, whole[-5:, None]).mean()
        assert float(found.loss[0, i]) == pytest.approx(float(loss), rel=1e-4)
    assert found.tokens[0].tolist() != found.tokens[1].tolist()
    frame = found.to_dataframe()
    assert len(frame) == 4 and list(frame.columns)[:3] == ["prompt", "scale", "text"]
    assert "5 tokens at scales 0, 3, greedy" in repr(found)


def test_where_it_is_added_matters_and_prompt_only_moves_the_first_step(nano):
    directions, schedule = random_directions(nano, seed=2), torch.ones(4)
    kinds = {
        where: steer_text(
            nano, PROMPTS, directions, schedule, n_tokens=6, scales=(6.0,), where=where
        ).tokens[0]
        for where in ("generated", "prompt")
    }
    # The first new token sees the same injection; later ones do not.
    assert kinds["generated"][:, 0].tolist() == kinds["prompt"][:, 0].tolist()
    assert kinds["generated"].tolist() != kinds["prompt"].tolist()


def test_samples_follow_the_seed(nano):
    directions, schedule = random_directions(nano), torch.ones(4)

    def sample(seed):
        return steer_text(
            nano, PROMPTS, directions, schedule, n_tokens=8, temperature=1.0, seed=seed
        ).tokens

    assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))


def test_cost_of_scale_zero_is_the_plain_loss_and_grows(nano):
    tokens = ll.evaluation_tokens(nano)[:4, :32]
    found = steering_cost(
        nano, tokens, random_directions(nano), torch.ones(4), scales=(0.0, 1.0, 8.0)
    )
    with torch.no_grad():
        scores = nano(tokens)[:, :-1].double().log_softmax(-1)
    plain = -scores.gather(2, tokens[:, 1:, None]).mean()
    assert found.losses[0] == pytest.approx(float(plain), rel=1e-5)
    assert found.losses[2] > found.losses[1] > 0
    assert found["perplexity"][0] == pytest.approx(float(plain.exp()), rel=1e-4)


def test_no_room_and_wrong_schedules_are_refused(nano):
    directions = random_directions(nano)
    with pytest.raises(InvalidArgumentError, match="exceed the context"):
        steer_text(nano, PROMPTS, directions, torch.ones(4), n_tokens=nano.cfg.n_ctx)
    with pytest.raises(InvalidArgumentError, match="one amplitude for each of 4 layers"):
        steer_text(nano, PROMPTS, directions, torch.ones(2, 4), n_tokens=2)


def test_cost_follows_a_task_as_a_hand_written_loop_does(nano):
    directions, schedule = random_directions(nano), torch.ones(4)
    tokens, labels = ll.evaluation_tokens(nano)[:3, :12], torch.tensor([5, 9, 700])
    lengths, right = (12, 9, 12), []
    for row, n, label in zip(tokens, lengths, labels, strict=True):
        edited = row[None, :n]
        with nano.hooks(
            fwd_hooks=[
                (f"blocks.{at}.hook_in", lambda x, hook, v=directions[at]: x + 2 * v.to(x))
                for at in range(4)
            ]
        ):
            right.append(nano(edited)[0, -1].detach().double().log_softmax(-1)[label])
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    task = ll.Task(tokens, labels=labels, mask=mask, metric="accuracy")
    found = steering_cost(nano, task, directions, schedule, scales=(2.0,))
    assert found.losses[0] == pytest.approx(-float(sum(right)) / 3, rel=1e-5)
    assert found["accuracy"].tolist() == list(found.scores) and found.n_tokens == 33
