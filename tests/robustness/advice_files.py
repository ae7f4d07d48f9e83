"""Advice on files: those that cannot be written, read or held, and what they should hold."""

import json
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from advice_models import STREAM, folder, recipe
from advice_parts import IDS, X, Y, known, mlp, raising, toy, under, without_package
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lens_linear as ll
from lens_linear import text
from lens_linear.checks import require_file
from lens_linear.checksummed import read_sealed, write_sealed
from lens_linear.files import hold, read_json, release, require_folder, write_text
from lens_linear.linalg import Moments
from lens_linear.linalg.memory import require_room
from lens_linear.models import ModelSpec
from lens_linear.stats.resume import Checkpoint, PassState
from lens_linear.text.concepts import load_concept
from lens_linear.text.corpora import default_stories

TABLE = [{"text": "A cat.", "label": 1, "n": 3}, {"text": "", "label": 0, "n": 4}]


def full(*_, **__):
    raise OSError(28, "No space left on device")


def sealed(change=None):
    path = Path("sealed")
    write_sealed(path, {"a": torch.ones(2)}, {})
    if change is not None:
        path.write_bytes(change(path.read_bytes()))
    return read_sealed(path, what="checkpoint")


def flipped(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def moments(change=None, **words):
    """Statistics from a file whose bytes, or whose words, were changed."""
    path = Path("moments")
    Moments().update(X, Y).save(path)
    if words:
        with safe_open(path, framework="pt") as file:
            words = {**file.metadata(), **words}
        save_file(load_file(path), path, metadata=words)
    if change is not None:
        path.write_bytes(change(path.read_bytes()))
    return Moments.load(path)


def held(name, other=None):
    """Hold a file while another thread does; without one, alone."""
    path, ready, done = Path(name), threading.Event(), threading.Event()

    def first():
        hold(path if other is None else Path(other), what="checkpoint")
        ready.set()
        done.wait()
        release(path if other is None else Path(other))

    thread = threading.Thread(target=first)
    thread.start()
    ready.wait()
    try:
        hold(path, what="checkpoint")
        release(path)
        return True
    finally:
        done.set()
        thread.join()


def locked_by_system(name="lock"):
    """Hold a file that another process holds."""
    from filelock import FileLock

    from lens_linear.files import _lock_file

    with FileLock(_lock_file(Path(name))):
        hold(Path(name), what="checkpoint")


def alone(name):
    hold(Path(name), what="checkpoint")
    release(Path(name))
    return True


def profiled(tokens=IDS, name="pass", **options):
    return ll.linearity_profile(mlp(), tokens.repeat(2, 1), checkpoint=name, **options)


def broken_off(**options):
    """A profile that is killed in the middle leaves its checkpoint."""

    def stop(*_):
        raise KeyboardInterrupt

    try:
        under({"linearity.measure.profile.Checkpoint.remove": stop}, lambda: profiled(**options))
    except KeyboardInterrupt:
        release(Path("pass").resolve())


def resumed(tokens, name="pass"):
    broken_off()
    return profiled(tokens, name)


def rows_of(name, **options):
    return text.huggingface_text(table(name), **options)


def table(name):
    frame, path = pd.DataFrame(TABLE), Path(name)
    frame.to_json(path, orient="records", lines=True)
    return path


def empty():
    path = Path("empty.jsonl")
    path.write_text('{"text": ""}\n')
    return path


def saved_splits(split):
    import datasets

    made = datasets.Dataset.from_list(TABLE)
    datasets.DatasetDict({"train": made}).save_to_disk("splits")
    return text.huggingface_text("splits", split=split)


def streamed(error=None):
    """Rows of a data set that breaks in its middle."""

    class Broken:
        __iter__ = raising(error)

    opened = [{"text": "A cat."}] if error is None else Broken()
    return under({"text.huggingface._open": lambda *_: opened}, lambda: text.huggingface_text("x"))


def stream(**header):
    """A file of tokens whose header says something else."""
    path = Path("stream.bin")
    text.TokenStream.write(path, [STREAM], n_vocab=24, length=16)
    raw = path.read_bytes()
    words = json.loads(raw[: raw.index(b"}") + 1])
    head = json.dumps({**words, **header}).encode()
    size = len(raw) - len(STREAM) * 2
    path.write_bytes(head.ljust(size - 1) + b"\n" + raw[size:])
    return text.TokenStream(path, length=16)


def trained(corpus=STREAM, name="training"):
    return ll.train(recipe(), corpus, checkpoint=name, progress=False)


def batched(changed=0, name="batched"):
    """A run on batches of one's own, of which the first may change once it has been looked at."""
    asked = []

    def batches(step):
        asked.append(step)
        return IDS + changed * (len(asked) > 1)

    spec = ModelSpec(1, d_model=16, n_heads=2, d_vocab=25, n_ctx=16)
    return ll.train(spec, batches=batches, steps=2, checkpoint=name, save_every=1, progress=False)


def half_trained(trained=trained):
    """A run that is broken off after its first checkpoint."""
    from lens_linear.training import loop

    step = loop.save_checkpoint

    def once(*args, **options):
        step(*args, **options)
        raise KeyboardInterrupt

    try:
        under({"training.loop.save_checkpoint": once}, trained)
    except KeyboardInterrupt:
        release(Path("training").resolve())
        release(Path("batched").resolve())


def missing_data(call):
    return under({"text._rows.files": lambda _package: Path("nowhere")}, call)


def counted(rows):
    """A checkpoint whose layers saw these rows, and others."""
    kept = Checkpoint("counted", "question")
    seen = {(0, "block"): Moments().update(X, X), (1, "block"): Moments().update(rows, rows)}
    kept.save(PassState(done=len(X), moments=seen))
    try:
        return kept.load()
    finally:
        release(Path("counted").resolve())


ROWS = [
    # writing
    (
        lambda: under({"files.tempfile.mkstemp": full}, lambda: write_text("a.txt", "a")),
        "choose another folder or free some space",
        lambda: write_text(require_folder("out", "other") / "a.txt", "a"),
    ),
    (
        lambda: under({"files.os.fsync": full}, lambda: write_text("a.txt", "a")),
        "nothing was left behind; choose another folder or free some space",
        lambda: write_text(require_folder("out", "other") / "a.txt", "a"),
    ),
    (
        lambda: under({"checks.Path.mkdir": full}, lambda: require_folder("out", "made")),
        "choose another place",
        lambda: require_folder("out", "other"),
    ),
    # holding
    (
        lambda: held("lock"),
        "wait for it, or name another file",
        lambda: held("lock", other="lock-2"),
    ),
    (
        locked_by_system,
        "wait for it, or name another file",
        lambda: (alone("lock"), alone("lock-2")),
    ),
    (
        lambda: under({"files._lock_file": lambda _: folder("place")}, lambda: alone("a")),
        "set TMPDIR to a folder that can be written to",
        lambda: under({"files._lock_file": lambda _: Path("lock").resolve()}, lambda: alone("a")),
    ),
    # reading
    (
        lambda: read_json(folder("j", a__json="[") / "a.json", advice="write it again"),
        "write it again",
        lambda: read_json(folder("j", a__json="{}") / "a.json", advice="") == {},
    ),
    (lambda: sealed(lambda data: data[:9]), "remove it to start again", lambda: sealed()),
    (lambda: sealed(flipped), "remove it to start again", lambda: sealed()),
    (lambda: moments(lambda data: data[:9]), "collect the statistics again", lambda: moments()),
    (lambda: moments(format="other"), "pass a file written by Moments.save", lambda: moments()),
    (
        lambda: moments(version="0"),
        "collect the statistics again",
        lambda: moments(),
    ),
    (lambda: moments(flipped), "collect the statistics again", lambda: moments()),
    # checkpoints
    (
        lambda: resumed(IDS.flip(0)),
        "remove it, or name another file",
        lambda: (
            Path("pass").unlink(missing_ok=True),
            profiled(IDS.flip(0)),
            resumed(IDS.flip(0), "pass-2"),
        ),
    ),
    (
        lambda: (half_trained(), trained(STREAM.flip(0))),
        "remove it to begin anew, or name another file",
        lambda: trained(STREAM.flip(0), "training-2"),
    ),
    (
        lambda: (half_trained(batched), batched(1)),
        "those of step 0 differ; remove it to begin anew, or name another file",
        lambda: batched(1, "training-3"),
    ),
    (
        lambda: require_file("--text", "\0"),
        "write the name of a file",
        lambda: require_file("--text", write_text("a.txt", "a")),
    ),
    (
        lambda: recipe().phase_at(2),
        "step must be below 2.*pass a smaller one",
        lambda: recipe().phase_at(1),
    ),
    # memory
    (
        lambda: require_room(1e30, "cpu", what="a table", advice="pass fewer rows"),
        "pass fewer rows",
        lambda: require_room(1.0, "cpu", what="a table", advice="pass fewer rows") is None,
    ),
    # texts and tables
    (
        lambda: ll.tokenize_prompts(known(), pd.DataFrame(TABLE)),
        r"pass e.g. texts\['text'\]",
        lambda: ll.tokenize_prompts(known(), pd.DataFrame(TABLE)["text"][:1]),
    ),
    (
        lambda: ll.tokenize_prompts(known(), 3),
        "pass text, not ids",
        lambda: ll.tokenize_prompts(known(), ["three"]),
    ),
    (
        lambda: under({"text._rows.MAX_TEXT": 4}, lambda: text.read_text(table("t.jsonl"))),
        "split it, or write its ids with TokenStream.write",
        lambda: (text.read_text(write_text("part.txt", "cat")), stream()),
    ),
    (
        lambda: text.read_documents(write_text("none.csv", "text\n")),
        "pass another",
        lambda: text.read_documents(table("rows.jsonl")),
    ),
    *(
        (lambda call=call: missing_data(call), "install lens-linear again", call)
        for call in (default_stories, lambda: load_concept("mood"))
    ),
    (
        lambda: rows_of("t.jsonl", column="empty"),
        "text",
        lambda: rows_of("t.jsonl", column="text"),
    ),
    (
        lambda: text.huggingface_text(empty()),
        "choose another column or split",
        lambda: text.huggingface_text(table("t.jsonl")),
    ),
    (
        lambda: rows_of("t.jsonl", column="n"),
        "it has 'text', 'label', 'n'",
        lambda: rows_of("t.jsonl"),
    ),
    (
        lambda: streamed(ConnectionError("no route")),
        "download it elsewhere and pass the path",
        lambda: rows_of("t.jsonl"),
    ),
    (lambda: streamed(ValueError("bad bytes")), "check the file", streamed),
    (
        lambda: rows_of("t.jsonl", split="test"),
        "name, split and config must name a dataset that exists",
        lambda: rows_of("t.jsonl", split="train"),
    ),
    (
        lambda: without_package("datasets", lambda: rows_of("t.jsonl")),
        "run: pip install datasets",
        lambda: rows_of("t.jsonl"),
    ),
    (lambda: saved_splits("test"), "split must be one of 'train'", lambda: saved_splits("train")),
    (lambda: stream(dtype="<f4"), "write it again", stream),
    # tokens and tasks
    (
        lambda: ll.Task(IDS, labels=[[object()]] * 12),
        r"e.g. labels=torch.tensor\(\[1, 0\]\)",
        lambda: ll.Task(IDS[:2], labels=torch.tensor([1, 0]), positions=-1),
    ),
    (
        lambda: ll.linearity_profile(mlp(), IDS[:, :0]),
        "pass more or longer text|pass at least one row",
        lambda: ll.layer_map(mlp(), IDS),
    ),
    (
        lambda: ll.linearity_profile(mlp(), torch.ones(0, 4)),
        "pass at least one row of token ids",
        lambda: ll.layer_map(mlp(), IDS),
    ),
    (
        lambda: ll.linearity_profile(mlp(), [1, None]),
        r"for text use lens_linear.tokenize\(model, text\)",
        lambda: ll.tokenize(known(), "a text"),
    ),
    (
        lambda: ll.stats.as_rows(toy(), ll.stats.RowView(IDS).take(slice(0, 0))),
        "pass more text, or shorter rows",
        lambda: ll.linearity_profile(mlp(), IDS.repeat(2, 1)),
    ),
    (
        lambda: text.token_labels(np.float64(1)),
        "pass a list of them",
        lambda: text.token_labels(["1"]),
    ),
    (
        lambda: require_file("path", "absent"),
        "check the path",
        lambda: require_file("path", table("f")),
    ),
    (
        lambda: counted(X[:30]),
        "remove it to start again",
        lambda: counted(X),
    ),
]
