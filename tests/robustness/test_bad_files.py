"""Files cut short, bits flipped, disks full, folders closed: a clear error, and nothing half-written."""

import json
import os
import random
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from robust_calls import GPT, SHAPE, TOKENS, ids
from robust_counts import SHARED, count

import lens_linear as ll
from lens_linear.errors import CorruptedFileError, InvalidArgumentError, LensLinearError
from lens_linear.files import WriteError, write_text
from lens_linear.linearity import fit_linearization, load_linearized, save_linearized
from lens_linear.models.native import ModelSpec
from lens_linear.models.open.bundled import BUNDLED
from lens_linear.studies.baking import bake
from lens_linear.text import TokenStream
from lens_linear.training.loop import train
from lens_linear.training.recipes import Phase, Recipe

SPEC = ModelSpec(1, d_model=8, n_heads=2, d_vocab=20, n_ctx=8, attn_only=True)
RECIPE = Recipe(
    "tiny", SPEC, (Phase(steps=4, rows=2, length=8, periods=(2, 3)),), precision="float32"
)


def moments(folder):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator)
    path = ll.Moments().update(x, x).save(folder / "stats.safetensors")
    return path, lambda: ll.Moments.load(path)


def stream(folder):
    path = folder / "ids"
    TokenStream.write(path, [TOKENS.flatten()], length=12, n_vocab=20)
    return path, lambda: TokenStream(path, length=12)


def training(folder):
    path = folder / "run.safetensors"
    train(RECIPE, ids(100), checkpoint=path, save_every=2, progress=False)
    return path, lambda: train(RECIPE, ids(100), checkpoint=path, progress=False)


def profiling(folder):
    class Stop(Exception):
        pass

    path = folder / "pass.safetensors"
    seen = []

    class Rows:
        def __len__(self):
            return len(TOKENS)

        def __getitem__(self, rows):
            seen.append(rows)
            if len(seen) > 10:  # the first looks, the fingerprint, and some batches
                raise Stop
            return TOKENS[rows]

    with pytest.raises(Stop):
        ll.linearity_profile(GPT(), Rows(), batch_size=1, checkpoint=path, save_every=1)
    return path, lambda: ll.linearity_profile(GPT(), TOKENS, checkpoint=path)


def weights(folder):
    target = folder / "attn-1l"
    shutil.copytree(BUNDLED / "attn-1l", target)
    return target / "model.safetensors", lambda: ll.load(target)


def card(folder):
    target = folder / "attn-1l"
    shutil.copytree(BUNDLED / "attn-1l", target)
    return target / "card.json", lambda: ll.load(target)


def linearized(folder):
    target = save_linearized(folder / "maps", GPT(), fit_linearization(GPT(), TOKENS, [1]))
    return target / "maps.safetensors", lambda: load_linearized(target, model=GPT())


SEALED = [moments, training, profiling, weights, linearized]  # these carry a checksum of every byte


@pytest.mark.parametrize("make", [*SEALED, stream, card], ids=lambda f: f.__name__)
def test_a_file_cut_short_is_refused(make, tmp_path):
    path, read = make(tmp_path)
    data = path.read_bytes()
    sizes = {0, 1, 7, 8, 9, 100, len(data) // 3, len(data) // 2, len(data.rstrip()) - 1}
    for size in sorted(size for size in sizes if size < len(data)):
        path.write_bytes(data[:size])
        count("files cut short")
        with pytest.raises(CorruptedFileError) as caught:
            read()
        assert path.name in str(caught.value) or path.parent.name in str(caught.value)


@pytest.mark.parametrize("make", SEALED, ids=lambda f: f.__name__)
def test_a_flipped_bit_is_seen(make, tmp_path):
    path, read = make(tmp_path)
    data = path.read_bytes()
    draw = random.Random(make.__name__)
    header = 8 + int.from_bytes(data[:8], "little")
    places = [draw.randrange(header) for _ in range(20)]
    places += [draw.randrange(header, len(data)) for _ in range(20)]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        count("bits flipped")
        with pytest.raises(CorruptedFileError):
            read()
    path.write_bytes(data)
    read()


def test_a_flipped_bit_in_a_token_stream_is_refused_or_another_token(tmp_path):
    """Ids carry no checksum (a corpus is larger than memory); what cannot be an id is refused."""
    path, _ = stream(tmp_path)
    data = path.read_bytes()
    draw = random.Random(1)
    for _ in range(40):
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        count("bits flipped")
        try:
            ll.linearity_profile(GPT(), TokenStream(path, length=12))
        except LensLinearError:
            continue


@pytest.mark.parametrize("text", ["", "[]", "{", '{"spec": 3}', '{"spec": {}, "sha256": 1}', "\0"])
def test_a_card_that_is_none_is_refused(text, tmp_path):
    path, read = card(tmp_path)
    path.write_text(text)
    with pytest.raises(LensLinearError):
        read()


def test_foreign_weights_under_a_known_name_are_refused(tmp_path):
    path, read = weights(tmp_path)
    shutil.copy(BUNDLED / "attn-2l" / "model.safetensors", path)
    with pytest.raises(CorruptedFileError, match="checksum"):
        read()


def test_hugging_face_folders_that_are_damaged_are_refused(tmp_path):
    source = SHARED / "models" / "stories260K"
    if not source.is_dir():
        pytest.skip("the third-party model stories260K is not beside this checkout")
    for name, damage in {
        "config.json": lambda data: b"{",
        "model.safetensors": lambda data: data[: len(data) // 2],
        "tokenizer.json": lambda data: b"[]",
    }.items():
        folder = tmp_path / name
        shutil.copytree(source, folder)
        if not (folder / name).is_file():
            continue
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        count("files cut short")
        with pytest.raises(LensLinearError):
            ll.load(folder)


WRITES = {
    "text": lambda folder: write_text(folder / "page.html", "x" * 10**6),
    "moments": lambda folder: (
        ll.Moments()
        .update(torch.randn(200, 150), torch.randn(200, 150))
        .save(folder / "stats.safetensors")
    ),
    "stream": lambda folder: TokenStream.write(
        folder / "ids", [torch.arange(400_000) % 9], length=9, n_vocab=9
    ),
    "checkpoint": lambda folder: train(
        RECIPE, ids(100), checkpoint=folder / "run.safetensors", progress=False
    ),
    "linearized": lambda folder: save_linearized(
        folder, GPT(), fit_linearization(GPT(), TOKENS, [0, 1])
    ),
}


@pytest.fixture
def limited():
    """Files of this process may not grow beyond 600 bytes while the test lasts: a full disk."""
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("what", WRITES)
def test_a_full_disk_leaves_the_older_file(what, tmp_path, limited):
    if what == "linearized":
        GPT()
    WRITES[what](tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if what == "checkpoint":
        (tmp_path / "run.safetensors").unlink()
        before = {}
    limited(600)
    try:
        with pytest.raises(WriteError, match="cannot write"):
            WRITES[what](tmp_path)
    finally:
        limited(resource.RLIM_INFINITY)
    count("full disks")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_disk_that_fills_while_a_run_is_baked_leaves_no_model(tmp_path, monkeypatch):
    run = train(RECIPE, ids(100), progress=False)

    def full(*_args, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save", full)
    with pytest.raises(WriteError, match="No space left"):
        bake(run, tmp_path / "model", train=ids(100), valid=ids(60, seed=1), data="test")
    count("full disks")
    assert not list((tmp_path / "model").iterdir()), "a folder without a card is no model"
    monkeypatch.undo()
    bake(run, tmp_path / "model", train=ids(100), valid=ids(60, seed=1), data="test")
    assert ll.load(tmp_path / "model").cfg.n_layers == 1


def test_folders_that_may_not_be_written_to(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    target = closed if os.geteuid() else "/proc/self/ns"  # root may write anywhere but here
    count("folders closed")
    with pytest.raises(WriteError):
        write_text(f"{target}/page.html", "text")
    with pytest.raises(WriteError):
        save_linearized(f"{target}/maps", GPT(), fit_linearization(GPT(), TOKENS, [0]))
    with pytest.raises(WriteError):
        bake(
            train(RECIPE, ids(99), progress=False),
            f"{target}/m",
            train=ids(99),
            valid=ids(50),
            data="",
        )
    with pytest.raises(WriteError):
        ll.linearity_profile(GPT(), TOKENS, checkpoint=f"{target}/pass", save_every=1)


def test_a_report_is_not_begun_when_it_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lens_linear.reports.build.evaluation_tokens", None
    )  # would fail if reached
    for path in (tmp_path / "no" / "page.html", tmp_path):
        with pytest.raises(InvalidArgumentError, match="folder"):
            ll.report(ll.toy_model(**SHAPE), path)


def test_what_a_killed_writer_left_is_cleared(tmp_path):
    script = (
        "import os, sys\n"
        "from lens_linear.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n"
        "    path.write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    target = tmp_path / "page.html"
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
        assert done.returncode == -9
        count("processes killed")
    assert len(list(tmp_path.iterdir())) == 1, "each writer clears what the one before it left"
    alive = (
        tmp_path / f".page.html.{next(tmp_path.iterdir()).name.split('.')[3]}.{os.getpid()}.x.tmp"
    )
    alive.write_text("another writer is at work")
    write_text(target, "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, "page.html"]
    assert target.read_text() == "whole"


def test_recipes_and_studies_that_are_no_json(tmp_path):
    from lens_linear.studies import load_study

    path = tmp_path / "study.json"
    for text in ("", "[1]", "{}", json.dumps({"name": "x"}), "\0", '{"seeds": 3}'):
        path.write_text(text)
        with pytest.raises(LensLinearError):
            load_study(path)


def sparse(path, start=b""):
    """A file of 3 GB that takes a few bytes of the disk."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(3 * 2**30)
    return path


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    import tracemalloc

    tracemalloc.start()
    for name in ("text.txt", "rows.jsonl", "rows.csv", "rows.json"):
        for start in (b"", b"a" * 2**17):
            with pytest.raises(
                LensLinearError, match=r"zero byte at 0|at most 1,073,741,824 bytes"
            ):
                ll.text.read_documents(sparse(tmp_path / name, start))
    for read in (
        lambda path: ll.studies.load_study(path),
        lambda path: ll.linearity.load_linearized(path.parent, model=ll.toy_model()),
        lambda path: ll.studies.load_tables(path.parent, "linearized"),
    ):
        (tmp_path / "linearized.csv").write_text("a\n1\n")
        for name in ("linearized.json", "study.json"):
            sparse(tmp_path / name)
        with pytest.raises(LensLinearError):
            read(tmp_path / "study.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000  # each of the files has 3 GB


@pytest.mark.parametrize("line", ['{"text": ' + "9" * 5000 + "}", '{"text": ' + "[" * 100_000])
def test_rows_that_json_cannot_take(line, tmp_path):
    for name, text in (("rows.jsonl", line), ("rows.json", f"[{line}]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(CorruptedFileError, match="is not JSON"):
            ll.text.read_documents(tmp_path / name)


def test_a_checkpoint_whose_layers_saw_different_rows(tmp_path):
    """Sealed and intact, but of two runs."""
    from lens_linear.stats.resume import Checkpoint, PassState

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=draw)
    for rows, words in ((40, None), (33, "counts its layers differently")):
        state = PassState(done={"fit": 4})
        state.moments[(0, "block")] = ll.Moments().update(x, x)
        state.moments[(1, "ffn")] = ll.Moments().update(x[:rows], x[:rows])
        keeper = Checkpoint(tmp_path / "pass", "question")
        keeper.save(state)
        if words is None:
            assert keeper.load().moments[(1, "ffn")].n == 40
        else:
            with pytest.raises(CorruptedFileError, match=words):
                keeper.load()
        keeper.remove()
