"""Training learns, resumes exactly, survives a kill, and writes folders that load."""

import contextlib
import dataclasses
import itertools
import math
import time
from types import SimpleNamespace

import pytest
import torch

import lens_linear as ll
from lens_linear.errors import CorruptedFileError, InvalidArgumentError, NotEnoughDataError
from lens_linear.models.native import ModelSpec, native_module
from lens_linear.studies.baking import bake, bigram_floor, repeat_losses
from lens_linear.training.data import text_rows
from lens_linear.training.loop import _recipe, batch_at, learning_rate, train, validation_loss
from lens_linear.training.recipes import RECIPES, Phase, Recipe

SPEC = ModelSpec(1, d_model=16, n_heads=2, d_vocab=32, n_ctx=16, attn_only=True)
STREAM = torch.randint(1, 32, (2000,), generator=torch.Generator().manual_seed(0))


def recipe(steps=12, **changes):
    phase = Phase(steps=steps, rows=8, length=16, periods=(3, 6), repeats=0.5, warmup=2)
    values = {"precision": "float32", **changes}
    return Recipe("tiny", SPEC, (phase,), **values)


def weights(run):
    return torch.cat([p.flatten() for p in run.module.parameters()])


class Killed(BaseException):
    pass


def test_a_killed_run_ends_where_an_unbroken_one_does(tmp_path):
    whole = train(recipe(), STREAM, progress=False)
    path = tmp_path / "run.safetensors"
    started = time.monotonic()

    def kill(step, _loss):
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        train(recipe(), STREAM, checkpoint=path, save_every=3, progress=False, on_step=kill)
    resumed = train(recipe(), STREAM, checkpoint=path, save_every=3, progress=False)
    assert torch.equal(weights(whole), weights(resumed))
    assert [row[1] for row in whole.history] == [row[1] for row in resumed.history]
    assert not list(tmp_path.glob("*.tmp"))
    assert 0 < resumed.minutes * 60 < time.monotonic() - started


def test_another_recipes_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    train(recipe(4), STREAM, checkpoint=path, progress=False)
    with pytest.raises(CorruptedFileError, match="another recipe"):
        train(recipe(5), STREAM, checkpoint=path, progress=False)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CorruptedFileError, match="cannot be read"):
        train(recipe(4), STREAM, checkpoint=path, progress=False)


def test_a_run_never_goes_on_with_another_corpus(tmp_path):
    path = tmp_path / "run.safetensors"
    train(recipe(4), STREAM, checkpoint=path, progress=False)
    assert len(train(recipe(4), STREAM.int(), checkpoint=path, progress=False).history) == 4
    with pytest.raises(CorruptedFileError, match="another corpus"):
        train(recipe(4), STREAM.flip(0), checkpoint=path, progress=False)


def test_a_run_never_goes_on_with_another_mask_or_other_labels(tmp_path):
    rows = STREAM[: 4 * 16].view(4, 16)
    first, last = torch.arange(16) < 8, torch.arange(16) >= 8
    asked = [
        {"batches": lambda step: rows},
        {"batches": lambda step: rows, "loss_mask": first},
        {"batches": lambda step: rows, "loss_mask": last},
        {"batches": lambda step: (rows, rows)},
        {"batches": lambda step: (rows, rows.flip(1))},
    ]
    for number, own in enumerate(asked):
        path = tmp_path / f"{number}.safetensors"
        train(SPEC, steps=2, checkpoint=path, progress=False, **own)
        for other in asked:
            if other is own:
                train(SPEC, steps=2, checkpoint=path, progress=False, **other)
                continue
            with pytest.raises(CorruptedFileError, match="other labels or another loss_mask"):
                train(SPEC, steps=2, checkpoint=path, progress=False, **other)


def test_training_learns_a_cycle():
    """x → x + 1 is a bigram rule: the loss must fall far below the log(31) of a guess."""
    cycle = torch.arange(4000) % 31 + 1
    phase = Phase(steps=150, rows=16, length=16, learning_rate=1e-2, warmup=10)
    run = train(Recipe("cycle", SPEC, (phase,), precision="float32"), cycle, progress=False)
    assert run.history[0][1] > 3.0 and run.history[-1][1] < 0.3
    assert f"last training loss {run.history[-1][1]:.3f}" in repr(run)


def test_a_run_is_a_plain_loop():
    """AdamW of betas 0.9 and 0.95, decay on matrices alone, gradients of norm 1 at most, a rate a phase."""
    spec = dataclasses.replace(SPEC, attn_only=False)
    short = Phase(steps=2, rows=1, length=6, learning_rate=0.03, warmup=1)
    phases = (short, dataclasses.replace(short, steps=3, rows=64, length=16, learning_rate=0.06))
    made = Recipe("loop", spec, phases, weight_decay=0.5, precision="float32")
    run = train(made, STREAM, progress=False)
    module = native_module(spec, seed=0).train()
    matrices = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    rates = [learning_rate(phase, step) for phase in phases for step in range(phase.steps)]
    norms = []
    for step, rate in enumerate(rates):
        tokens = batch_at(made, STREAM, step)
        loss = torch.nn.functional.cross_entropy(
            module(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        module.zero_grad()
        loss.backward()
        norms.append(float(torch.cat([p.grad.flatten() for p in module.parameters()]).norm()))
        for p in module.parameters():
            p.grad /= max(1.0, norms[-1])
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        assert run.history[step] == (step, pytest.approx(loss.item(), rel=1e-4), rate)
    assert min(norms[1:-1]) < 1 and norms[0] > 1.6, norms


def test_batches_mix_text_and_repeats_of_many_periods():
    tokens = batch_at(recipe(), STREAM, 3)
    assert tokens.shape == (8, 16) and (tokens[:, 0] == 0).all()
    assert torch.equal(tokens, batch_at(recipe(), STREAM, 3))
    assert not torch.equal(tokens, batch_at(recipe(), STREAM, 4))
    periods = set()
    for step in range(12):
        for row in batch_at(recipe(), STREAM, step)[4:, 1:]:
            periods |= {p for p in range(3, 7) if torch.equal(row[p:], row[:-p])}
    assert periods == {3, 4, 5, 6}


def test_windows_of_text_begin_at_every_token_that_leaves_a_row():
    stream = torch.arange(1, 20)
    rows = text_rows(stream, 2000, 5, bos=0, generator=torch.Generator().manual_seed(0))
    assert set(map(tuple, rows.tolist())) == {(0, i, i + 1, i + 2, i + 3) for i in range(1, 17)}


@pytest.mark.parametrize("steps, written", [(10, [4, 8, 10]), (8, [4, 8]), (3, [3])])
def test_a_checkpoint_is_written_every_so_many_steps_and_at_the_end(
    steps, written, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        "lens_linear.training.loop.save_checkpoint",
        lambda path, recipe, module, optimizer, state, **_: seen.append(state.step),
    )
    told = []
    bar = contextlib.nullcontext(lambda count, word: told.append((count, word.split(",")[0])))
    monkeypatch.setattr("lens_linear.training.loop.worded_bar", lambda *_, **__: bar)
    train(recipe(steps), STREAM, progress=False, checkpoint=tmp_path / "run", save_every=4)
    assert seen == written
    assert told == [(step, f"step {step} of {steps}") for step in range(1, steps + 1)]


@pytest.mark.parametrize("written, minutes", [(False, 1.5), (True, 4.5)])
def test_minutes_are_those_of_the_clock(written, minutes, tmp_path, monkeypatch):
    clock = SimpleNamespace(monotonic=itertools.count(1000, 90).__next__)  # each look 90 s later
    monkeypatch.setattr("lens_linear.training.loop.time", clock)
    path = tmp_path / "run" if written else None  # two writes: after steps 2 and 3
    run = train(recipe(3), STREAM, progress=False, checkpoint=path, save_every=2)
    assert run.minutes == minutes


def test_a_phase_of_repeats_alone_reads_no_text():
    phase = Phase(steps=3, rows=5, length=16, periods=(4, 6), repeats=1.0)
    rows = batch_at(Recipe("tiny", SPEC, (phase,)), STREAM[:2], 1)
    assert rows.shape == (5, 16)
    for row in rows[:, 1:]:
        assert any(torch.equal(row[p:], row[:-p]) for p in (4, 5, 6))


@pytest.mark.parametrize("steps, warmup", [(3, 0), (23, 5), (199, 49), (1000, 50)])
def test_a_shape_alone_warms_up_over_a_quarter_of_its_steps_and_fifty_at_most(steps, warmup):
    (phase,) = _recipe(SPEC, steps, 0.2, None, None).phases
    assert (phase.steps, phase.warmup, phase.length) == (steps, warmup, 16)
    rates = [learning_rate(phase, step) for step in range(steps)]
    assert rates.index(max(rates)) == max(0, warmup - 1)


def test_learning_rate_schedule():
    phase = Phase(steps=110, learning_rate=2.0, warmup=10, final=0.1)
    assert learning_rate(phase, 0) == pytest.approx(0.2)
    assert learning_rate(phase, 9) == pytest.approx(2.0)
    assert learning_rate(phase, 60) == pytest.approx(2.0 * 0.55)
    assert learning_rate(phase, 110) == pytest.approx(0.2)


def test_the_cosine_term_turns_the_stream_less():
    spec = ModelSpec(2, d_model=16, n_heads=2, d_vocab=32, n_ctx=16)
    phase = Phase(steps=60, rows=8, length=16, learning_rate=3e-3, warmup=5)

    def angle(weight):
        run = train(
            Recipe("c", spec, (phase,), cosine=weight, precision="float32"), STREAM, progress=False
        )
        from lens_linear.models.capture import residual_stream
        from lens_linear.models.native import bridge_from_module

        stream = residual_stream(bridge_from_module(run.module, spec), STREAM[:160].view(10, 16))
        return float(torch.nn.functional.cosine_similarity(stream[:-1], stream[1:], dim=-1).mean())

    assert angle(2.0) > angle(0.0) + 0.05


def test_baked_folders_load_with_their_card(tmp_path):
    run = train(recipe(checkpoints=(5,)), STREAM, progress=False)
    folder = bake(run, tmp_path / "out", train=STREAM, valid=STREAM[:300], data="random tokens")
    model = ll.load(folder)
    tokens = batch_at(recipe(), STREAM, 0)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), run.module(tokens), atol=2e-2, rtol=2e-2)
    assert ll.load(folder, checkpoint=5).cfg.model_name == "tiny@5"


def test_bigram_floor_is_the_conditional_entropy_of_a_known_chain():
    generator = torch.Generator().manual_seed(0)
    flips = torch.rand(60_000, generator=generator) < 0.2
    chain = torch.cumsum(flips, 0) % 2
    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert bigram_floor(chain[:40_000], chain[40_000:], 2) == pytest.approx(entropy, abs=0.01)


def test_recipes_are_sound():
    two = Recipe(
        "two", SPEC, (Phase(steps=5, length=8), Phase(steps=7, length=8)), checkpoints=(0, 1, 9)
    )
    assert two.phase_at(4) == (two.phases[0], 4) and two.phase_at(5) == (two.phases[1], 0)
    with pytest.raises(InvalidArgumentError, match="below 12"):
        two.phase_at(12)
    small = two.scaled(0.4)
    assert [(phase.steps, phase.warmup) for phase in small.phases] == [(2, 20), (3, 20)]
    assert small.checkpoints == (0, 1, 4) and two.scaled(1e-9).steps == 2
    for name, one in RECIPES.items():
        assert one.name == name and Recipe.from_dict(one.to_dict()) == one
        assert one.tokens > 1e6
    with pytest.raises(InvalidArgumentError, match="unknown entry"):
        Recipe.from_dict({"name": "x"})
    with pytest.raises(InvalidArgumentError, match="cosine must be 0"):
        Recipe("x", dataclasses.replace(SPEC, n_layers=0), (Phase(steps=1, length=8),), cosine=0.3)
    with pytest.raises(InvalidArgumentError, match="n_ctx"):
        Recipe("x", SPEC, (Phase(steps=1, length=64),))
    with pytest.raises(InvalidArgumentError, match="shortest, longest"):
        Phase(steps=1, periods=(9, 4))
    with pytest.raises(NotEnoughDataError, match="stream"):
        train(recipe(), STREAM[:5], progress=False)
    mixed = Recipe("x", SPEC, (Phase(steps=1, length=6), Phase(steps=1, length=16)))
    with pytest.raises(NotEnoughDataError, match="one row of the longest phase"):
        train(mixed, STREAM[:10], progress=False)


def test_seeds_of_every_size_draw_their_own_batches():
    rows = [batch_at(recipe(seed=seed), STREAM, 1) for seed in (0, 10**9, 10**15, 10**30)]
    for i, one in enumerate(rows):
        assert not any(torch.equal(one, other) for other in rows[:i])


def test_bundled_attn_2l_copies_and_attn_1l_does_not():
    for name, copies in [("attn-2l", True), ("attn-1l", False)]:
        first, later = repeat_losses(ll.load(name).original_model, RECIPES[name])
        assert (later < 1.0) == copies and first > 6.0


def test_the_validation_loss_is_of_next_tokens_that_the_model_knows():
    model = ll.toy_model(d_vocab=20, n_ctx=9)
    rows = torch.randint(20, (5, 9), generator=torch.Generator().manual_seed(4))
    own = torch.nn.functional.cross_entropy(
        model(rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten()
    )
    found = validation_loss(model.original_model, rows.to(torch.uint16), batch=2)
    assert found == pytest.approx(float(own), abs=1e-5)
    wrong = (ll.Task(rows, labels=rows[:, 0], positions=-1), ll.Task(rows, positions=3), rows + 12)
    for asked in (*wrong, rows.repeat(1, 2)):
        with pytest.raises(InvalidArgumentError):
            validation_loss(model.original_model, asked)
