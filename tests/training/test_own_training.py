"""Training on batches of one's own, and a model of one's own that opens everywhere."""

import subprocess
import sys

import pytest
import tokenizers
import torch

import lens_linear as ll
from lens_linear.errors import (
    CorruptedFileError,
    InvalidArgumentError,
    UnsupportedModelError,
    WriteError,
)
from lens_linear.models import ModelSpec, native_module
from lens_linear.training.loop import next_token_loss

SPEC = ModelSpec(2, d_model=32, n_heads=4, d_vocab=12, n_ctx=7, attn_only=True, norm="none")
LAST = torch.tensor([False] * 6 + [True])


def largest(step):
    """Six digits and a mark; at the mark the answer is the largest digit."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 10, (64, 7), generator=generator)
    tokens[:, -1] = 11
    labels = torch.zeros_like(tokens)
    labels[:, -1] = tokens[:, :-1].max(1).values
    return tokens, labels


def test_the_loss_counts_what_the_mask_says():
    g = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(3, 5, 9, generator=g), torch.randint(9, (3, 5), generator=g)
    logp, mask = logits.log_softmax(-1), torch.rand(3, 5, generator=g) > 0.4
    picked = [-logp[r, p, tokens[r, p + 1]] for r in range(3) for p in range(4) if mask[r, p]]
    torch.testing.assert_close(
        next_token_loss(logits, tokens, mask=mask), torch.stack(picked).mean()
    )
    labels = tokens.flip(0)
    picked = [-logp[r, p, labels[r, p]] for r in range(3) for p in (0, 4)]
    own = next_token_loss(
        logits, tokens, labels=labels, mask=torch.tensor([True, False, False, False, True])
    )
    torch.testing.assert_close(own, torch.stack(picked).mean())


def test_a_task_of_ones_own_is_learnt_saved_and_opened(tmp_path):
    run = ll.train(
        SPEC, batches=largest, loss_mask=LAST, steps=600, learning_rate=1e-2, progress=False
    )
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({**{str(n): n for n in range(10)}, "?": 10, "=": 11}, "?")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = ll.save_model(run.model, tmp_path / "largest", tokenizer=words, note="largest of six")
    model = ll.load(folder)
    assert model.cfg.model_name == "largest"
    tokens, labels = largest(10**6)
    assert torch.equal(model(tokens), run.model(tokens))  # not rounded
    right = (model(tokens)[:, -1].argmax(-1) == labels[:, -1]).double().mean()
    assert right > 0.9  # a guess of always 9 is right in 47 %
    rows = ll.tokenize(model, "3 1 4 1 5 2 =")
    assert rows.tolist() == [[3, 1, 4, 1, 5, 2, 11]]  # this vocabulary has no beginning of a text
    assert ll.models.token_strings(model, rows[0])[-1] == "="
    assert ll.AttentionOnly(model).paths(tokens[:2]).max_error < 1e-3
    assert ll.save_model(model, folder) == folder and torch.equal(
        ll.load(folder)(tokens), model(tokens)
    )


def test_a_shape_alone_trains_on_text_and_starts_again_where_it_was(tmp_path):
    stream, path = torch.arange(400) % 12, tmp_path / "run.safetensors"
    whole = ll.train(SPEC, stream, steps=6, seed=3, progress=False)
    ll.train(SPEC, stream, steps=6, seed=3, progress=False, checkpoint=path, save_every=4)
    more = []
    again = ll.train(
        SPEC,
        stream,
        steps=6,
        seed=3,
        progress=False,
        checkpoint=path,
        on_step=lambda *at: more.append(at),
    )
    assert again.history == whole.history and not more and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "neither"),
        ({"stream": torch.arange(90) % 12, "batches": largest}, "both"),
        ({"batches": 3}, "function of the step"),
        ({"batches": lambda step: torch.full((2, 7), 12)}, "vocabulary"),
        ({"batches": lambda step: torch.zeros(2, 8).long()}, "n_ctx"),
        ({"batches": lambda step: (torch.zeros(2, 7).long(), torch.zeros(2, 6).long())}, "labels"),
        ({"batches": largest, "loss_mask": torch.ones(6)}, "loss_mask must be"),
        ({"batches": lambda step: largest(step)[0], "loss_mask": LAST}, "leaves no prediction"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_a_step(arguments, words):
    with pytest.raises(InvalidArgumentError, match=words):
        ll.train(SPEC, steps=2, progress=False, **arguments)


def test_only_models_of_a_known_shape_are_saved(tmp_path, stories_model):
    with pytest.raises(UnsupportedModelError, match="save_pretrained"):
        ll.save_model(stories_model, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "shape",
    [
        {"norm": "RMS", "gated": True, "activation": "silu", "d_mlp": 24, "positions": "rotary"},
        {"norm": "LN", "activation": "gelu", "attn_only": False},
        {"norm": "LNPre", "n_layers": 0},
    ],
)
def test_every_shape_comes_back_as_it_was(tmp_path, shape):
    words = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_vocab": 20, "n_ctx": 10} | shape
    spec = ModelSpec(**words)
    model = ll.models.bridge_from_module(native_module(spec, seed=4), spec)
    again = ll.load(ll.save_model(model, tmp_path / "m"))
    tokens = torch.arange(10)[None]
    assert torch.equal(model(tokens), again(tokens))


def test_small_models_run_in_one_thread_and_the_number_comes_back(monkeypatch):
    from lens_linear.models import threads

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_AT_IMPORT", 2)
    try:
        for chosen, width, expected in [(2, 256, 1), (2, 257, 2), (3, 64, 3)]:
            torch.set_num_threads(chosen)  # 3 is not what it was at import: the caller's own choice
            with threads.few_threads(width):
                assert torch.get_num_threads() == expected
            assert torch.get_num_threads() == chosen
        with threads.few_threads(64, 4):
            assert torch.get_num_threads() == 4
        torch.set_num_threads(2)
        seen = []
        ll.train(
            SPEC,
            batches=largest,
            steps=1,
            progress=False,
            on_step=lambda *_: seen.append(torch.get_num_threads()),
        )
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_labels_ask_for_nothing_where_they_are_minus_a_hundred_as_in_a_task():
    def marked(step):
        tokens, labels = largest(step)
        return tokens, labels.masked_fill(~LAST, -100)

    arguments = {"steps": 5, "learning_rate": 1e-2, "progress": False}
    one = ll.train(SPEC, batches=marked, **arguments)
    two = ll.train(SPEC, batches=largest, loss_mask=LAST, **arguments)
    assert one.history == two.history
    with pytest.raises(InvalidArgumentError, match="ask for nothing that counts"):
        ll.train(SPEC, batches=marked, loss_mask=~LAST, **arguments)
    with pytest.raises(InvalidArgumentError, match="ask for nothing that counts"):
        ll.train(SPEC, batches=lambda _: (torch.zeros(2, 7).long(), torch.full((2, 7), -100)))


@pytest.mark.parametrize("changed", [0, 2])
def test_a_run_goes_on_with_the_same_batches_only(tmp_path, changed):
    rows = torch.randint(1, 9, (6, 4, 12), generator=torch.Generator().manual_seed(0))
    spec = ll.training.ModelSpec(1, d_model=16, n_heads=2, d_vocab=9, n_ctx=12)
    path = tmp_path / "run"

    class Killed(Exception):
        pass

    def kill(step, loss):
        if step == 3:
            raise Killed

    own = {"steps": 6, "checkpoint": path, "save_every": 1, "progress": False}
    with pytest.raises(Killed):
        ll.train(spec, batches=lambda step: rows[step], on_step=kill, **own)
    other = rows.clone()
    other[changed] += 1
    with pytest.raises(CorruptedFileError, match=r"other batches|another corpus"):
        ll.train(spec, batches=lambda step: other[step] % 9, **own)
    assert len(ll.train(spec, batches=lambda step: rows[step], **own).history) == 6


def test_a_save_that_fails_leaves_the_older_model_whole(tmp_path):
    old, new = ll.load("attn-1l"), ll.toy_model(n_layers=1, d_model=16, d_vocab=30)
    tokens = torch.arange(20)[None]
    place = ll.save_model(old, tmp_path / "kept")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    for name in before:
        (place / name).chmod(0o444)
        with pytest.raises(WriteError, match="read-only"):
            ll.save_model(new, place)
        (place / name).chmod(0o644)
        assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    full = f"""
import resource, lens_linear as ll
model = ll.toy_model(n_layers=1, d_model=16, d_vocab=30)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    ll.save_model(model, {str(place)!r})
except ll.errors.WriteError as error:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", full], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "refused"
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert torch.equal(ll.load(place)(tokens), old(tokens))
    ll.save_model(new, place)
    assert ll.load(place).cfg.d_vocab == 30
    with pytest.raises(InvalidArgumentError, match="must be"):
        ll.save_model(new, tmp_path / "two\nlines")
    assert not (tmp_path / "two\nlines").exists()


def test_a_folder_of_another_kind_is_not_written_over(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidArgumentError, match="another kind of model"):
        ll.save_model(ll.toy_model(n_layers=1), tmp_path)
