"""Writers replace only what is theirs, and two runs never share a file or a model."""

import os
import stat
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
import torch

import lens_linear as ll
from lens_linear.errors import CorruptedFileError, InvalidArgumentError
from lens_linear.files import WriteError, held, hold, release, write_text
from lens_linear.models.checked import checked
from lens_linear.models.open.checksum import model_fingerprint
from lens_linear.stats.resume import Checkpoint, PassState
from lens_linear.training.loop import train
from lens_linear.training.recipes import Phase, Recipe

posix = pytest.mark.skipif(os.name != "posix", reason="modes, links and pipes of POSIX")


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o604])
def test_a_files_mode_stays(tmp_path, mode):
    path = write_text(tmp_path / "a.txt", "old")
    path.chmod(mode)
    write_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_text() == "new"


@posix
def test_a_new_file_gets_what_the_mask_leaves(tmp_path):
    old = os.umask(0o027)
    try:
        path = write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@posix
@pytest.mark.parametrize("mode", [0o444, 0o400, 0o555])
def test_a_read_only_file_is_left_alone(tmp_path, mode):
    path = write_text(tmp_path / "a.txt", "old")
    path.chmod(mode)
    with pytest.raises(WriteError, match="read-only"):
        write_text(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@posix
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("exists", [True, False])
def test_links_are_followed(tmp_path, steps, exists):
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "real.txt"
    if exists:
        target.write_text("old")
    path = target
    for step in range(steps):
        link = tmp_path / f"link{step}"
        link.symlink_to(path)
        path = link
    write_text(path, "new")
    assert path.is_symlink() and target.read_text() == "new" and not target.is_symlink()


@posix
def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "device").symlink_to("/dev/null")
    for name in ("pipe", "loop", "device"):
        before = os.lstat(tmp_path / name)
        with pytest.raises(InvalidArgumentError, match=r"regular file|leads nowhere"):
            write_text(tmp_path / name, "x")
        assert os.path.samestat(before, os.lstat(tmp_path / name))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("length", [200, 255])
def test_a_long_name_that_the_system_takes_is_written(tmp_path, length):
    path = tmp_path / ("n" * length)
    assert write_text(path, "x").read_text() == "x" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["n" * 256, "é" * 150, "\ud83d", "a" * 300 + "/b"])
def test_a_name_that_it_does_not_take_is_refused_in_a_sentence(tmp_path, name):
    for call in (lambda: write_text(tmp_path / name, "x"), lambda: ll.load(str(tmp_path / name))):
        with pytest.raises(InvalidArgumentError, match=r"255 bytes|half a character"):
            call()


def test_half_a_character_is_written_out(tmp_path):
    assert write_text(tmp_path / "a", "a\ud83db").read_text() == "a\\ud83db"


HOLDER = """
import sys, time
from pathlib import Path
from lens_linear.files import hold
hold(Path(sys.argv[1]), what="checkpoint")
print("held", flush=True)
time.sleep(60)
"""


@posix
def test_another_process_waits_its_turn_and_a_killed_one_lets_go(tmp_path):
    path = tmp_path / "profile.safetensors"
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(WriteError, match="in use by another run"):
            hold(path, what="checkpoint")
        model, tokens = ll.toy_model(d_model=8, d_vocab=20), torch.arange(160).view(8, 20) % 20
        with pytest.raises(WriteError, match=r"checkpoint .* in use by another run"):
            ll.linearity_profile(model, tokens, checkpoint=path)
        with pytest.raises(WriteError, match="in use"):
            train(RECIPE, torch.arange(300) % 20, checkpoint=path, progress=False)
    finally:
        other.kill()
        other.wait()
    hold(path, what="checkpoint")
    release(path)
    assert list(tmp_path.iterdir()) == []


def test_a_system_without_flock_locks_too(tmp_path):
    """As on Windows: neither ``fcntl`` nor a user's number; a killed process lets go there too."""
    bare = "import os, sys; sys.modules['fcntl'] = None; del os.getuid\n"
    asks = HOLDER.replace("time.sleep(60)", "")
    path = str(tmp_path / "profile.safetensors")
    other = subprocess.Popen([sys.executable, "-c", bare + HOLDER, path], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        second = subprocess.run([sys.executable, "-c", bare + asks, path], capture_output=True)
        assert (
            b"WriteError: checkpoint" in second.stderr and b"in use by another run" in second.stderr
        )
    finally:
        other.kill()
        other.wait()
    third = subprocess.run([sys.executable, "-c", bare + asks, path], capture_output=True)
    assert third.stdout == b"held\n", third.stderr
    assert list(tmp_path.iterdir()) == []


@posix
def test_a_thread_may_take_up_its_own_broken_run_and_another_may_not(tmp_path):
    path, seen = tmp_path / "a", []

    def other():
        try:
            hold(path, what="checkpoint")
        except WriteError as error:
            seen.append(error)

    with held(path, what="checkpoint"):
        hold(path, what="checkpoint")
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(seen) == 1
    other()
    release(path)
    assert len(seen) == 1


RECIPE = Recipe(
    "tiny",
    ll.models.ModelSpec(1, d_model=16, n_heads=2, d_vocab=20, n_ctx=16),
    (Phase(steps=4, rows=2, length=8),),
)


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "..", "", "a\\b", "a" * 101, "x\n", 3])
def test_a_recipes_name_stays_in_its_folder(name):
    with pytest.raises(InvalidArgumentError, match="it names a folder"):
        Recipe.from_dict(RECIPE.to_dict() | {"name": name})


def of_model(model):
    return model_fingerprint(checked(model))


def shuffled(model, change):
    """The same model with one thing changed that keeps every sum of every tensor."""
    other = ll.toy_model(n_layers=2, d_vocab=30, seed=5)
    with torch.no_grad():
        if change == "rows reversed":
            other.embed.weight.copy_(model.embed.weight.flip(0))
        elif change == "two numbers exchanged":
            row = other.unembed.weight
            row.data[0, 0], row.data[1, 1] = row.data[1, 1].clone(), row.data[0, 0].clone()
        elif change == "eps":
            other.cfg.eps = 0.3
        elif change == "a hook":
            other.add_perma_hook("blocks.1.hook_out", lambda x, hook: x / 2)
    return other


@pytest.mark.parametrize("change", ["rows reversed", "two numbers exchanged", "eps", "a hook"])
def test_a_checkpoint_of_another_model_is_refused_though_its_sums_agree(tmp_path, change):
    model = ll.toy_model(n_layers=2, d_vocab=30, seed=5)
    assert of_model(model) == of_model(shuffled(model, "nothing"))
    other = shuffled(model, change)
    assert of_model(model) != of_model(other)
    path = tmp_path / "pass.safetensors"
    keeper = Checkpoint(path, of_model(model))
    keeper.load()
    keeper.save(PassState(done={"fit": 3}))
    with pytest.raises(CorruptedFileError, match="another model, text or setting"):
        Checkpoint(path, of_model(other)).load()
    assert Checkpoint(path, of_model(model)).load().done == {"fit": 3}
    keeper.remove()


def test_threads_on_one_model_give_what_one_after_the_other_gives():
    model = ll.toy_model(n_layers=3, d_model=16, d_vocab=40, seed=1, attn_only=False)
    model.train()
    texts = [
        torch.randint(40, (24, 12), generator=torch.Generator().manual_seed(k)) for k in range(4)
    ]

    def analyse(tokens):
        return (
            ll.linearity_profile(model, tokens, progress=False).to_dataframe()["block_r2"].tolist()
        )

    expected = [analyse(tokens) for tokens in texts]
    found, errors = {}, []

    def work(index):
        try:
            for _ in range(3):
                found.setdefault(index, []).append(analyse(texts[index]))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert not errors
    assert all(found[k] == [expected[k]] * 3 for k in range(4))
    assert model.training and all(not p.fwd_hooks for p in model.hook_dict.values())


def test_what_another_thread_runs_by_itself_passes_by_our_hooks():
    model, tokens = ll.toy_model(n_layers=2, seed=2), torch.arange(10)[None]
    texts = torch.randint(30, (24, 12), generator=torch.Generator().manual_seed(0))
    expected = model(tokens)
    profile = ll.linearity_profile(model, texts, progress=False).to_dataframe()
    seen, ended = [], threading.Event()

    def other():
        while not ended.is_set():
            seen.append(model(tokens))

    thread = threading.Thread(target=other)
    thread.start()
    try:
        for _ in range(3):
            again = ll.linearity_profile(model, texts, progress=False).to_dataframe()
            with ll.cut_path(model, "L0H0", "L1H1"):
                before = len(seen)
                while len(seen) < before + 2:
                    time.sleep(0.001)
            pd.testing.assert_frame_equal(again, profile)
    finally:
        ended.set()
        thread.join()
    # One pass in some thousands is rounded another way; a path that is cut moves logits by 1e-3 and more.
    assert all(torch.allclose(one, expected, rtol=0, atol=1e-6) for one in seen)
    with ll.cut_path(model, "L0H0", "L1H1"):
        assert not torch.allclose(model(tokens), expected, rtol=0, atol=1e-3)


def test_another_thread_waits_for_the_end_of_an_edited_block():
    model, tokens, seen = ll.toy_model(seed=2), torch.arange(10)[None], []
    expected = ll.models.forward_logits(model, tokens)
    entered = threading.Event()

    def other():
        entered.wait()
        seen.append(ll.models.forward_logits(model, tokens))

    thread = threading.Thread(target=other)
    thread.start()
    with ll.models.edited(model, [((0, "attn_out"), torch.zeros_like)]):
        entered.set()
        time.sleep(0.1)
        assert not seen and not torch.equal(ll.models.forward_logits(model, tokens), expected)
    thread.join()
    assert torch.equal(seen[0], expected)
