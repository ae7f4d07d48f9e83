"""Every command with every kind of bad word: exit status 2 and one clear sentence, nothing written."""

import json
import random

import pytest
from robust_counts import count

from lens_linear.cli import main
from lens_linear.cli.parser import build_parser

NO = "no/such"
BAD = [
    "nosuch",
    "tour --seed x",
    "tour --seed -1",
    f"tour --out {NO}/page.html",
    "tour --out .",
    "models extra",
    "circuits",
    "circuits attn-9l",
    "circuits attn-2l --top 0",
    "circuits attn-2l --top x",
    "circuits attn-2l --top 99999999999999999999",
    "circuits attn-2l --seed 99999999999999999999",
    "circuits ~nobody-here/x",
    "circuits attn-2l --seed -1",
    "circuits gpt-micro@17",
    "circuits gpt-micro@x",
    "circuits attn-1l@300",
    f"circuits {NO}/",
    "circuits .",
    "circuits file.txt",
    "linearity attn-2l --fit magic",
    f"linearity attn-2l --text {NO}.txt",
    "linearity attn-2l --text binary.bin",
    "linearity attn-2l --text empty.txt",
    "linearity attn-2l --text short.txt",
    "linearity attn-2l --text .",
    "linearity attn-2l --sequences 0",
    "linearity attn-2l --sequences 2",
    "linearity attn-2l --sequences 99999999",
    "linearity attn-2l --skip -1",
    "linearity attn-2l --skip 128",
    "linearity attn-2l --seed -3",
    "linearity attn-0l",
    "dynamics attn-2l --concept nothing",
    f"dynamics attn-2l --concept {NO}.csv",
    "dynamics attn-2l --concept short.txt",
    "dynamics attn-2l --concept wrong.csv",
    "dynamics attn-2l --concept one-class.csv",
    "dynamics attn-2l --order 0",
    "dynamics attn-2l --basis magic",
    "dynamics attn-2l --prompts 0",
    "dynamics attn-2l --prompts 99999",
    "dynamics attn-2l --seed -1",
    f"report attn-1l --out {NO}/page.html",
    "report attn-1l --out .",
    "report attn-9l",
    "report attn-1l --text empty.txt",
    "report attn-1l --seed x",
    "train",
    "train attn-1l",
    "train nosuch --corpus short.txt",
    f"train attn-1l --corpus {NO}.txt",
    "train attn-1l --corpus empty.txt",
    "train attn-1l --corpus binary.bin",
    "train attn-1l --corpus short.txt",
    "train attn-1l --corpus book.txt --limit 0",
    "train attn-1l --corpus book.txt --scale 0",
    "train attn-1l --corpus book.txt --scale nan",
    f"train attn-1l --corpus book.txt --out {NO}/deep",
    "train attn-1l --corpus book.txt --out short.txt",
    f"train attn-1l --corpus book.txt --valid {NO}.txt",
    "train wrong.json --corpus book.txt",
    "train broken.json --corpus book.txt",
    "train list.json --corpus book.txt",
    "train small-vocabulary.json --corpus book.txt --out out",
    "train tiny.json --corpus book.txt --device nosuch --out out",
    "train tiny.json --corpus book.txt --out closed-tokenizer",
    "tutorials",
    "tutorials short.txt",
    "tutorials /proc/self/ns/course",
]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with the files that the commands above speak of, and the working directory."""
    spec = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_vocab": 280, "n_ctx": 16}
    tiny = {"name": "tiny", "spec": spec, "phases": [{"steps": 1, "rows": 2, "length": 16}]}
    (tmp_path / "binary.bin").write_bytes(bytes(range(256)))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("A few words.\n")
    (tmp_path / "file.txt").write_text("not a model\n")
    (tmp_path / "book.txt").write_text("The mill stood by the river, and the miller slept.\n" * 60)
    (tmp_path / "wrong.csv").write_text("a,b\n1,2\n")
    (tmp_path / "one-class.csv").write_text("text,label\n" + "some words,1\n" * 30)
    (tmp_path / "wrong.json").write_text(json.dumps({"name": "x"}))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "tiny.json").write_text(json.dumps(tiny))
    spec = {**spec, "d_vocab": 100}
    (tmp_path / "small-vocabulary.json").write_text(json.dumps({**tiny, "spec": spec}))
    (tmp_path / "closed-tokenizer").mkdir()
    (tmp_path / "closed-tokenizer" / "tokenizer.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(words, capsys) -> None:
    """Run a command line; it must end with status 2 and one sentence."""
    count("bad command lines")
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
    shown = capsys.readouterr()
    assert status == 2, (words, status, shown.err[-300:])
    assert not shown.out
    lines = [line for line in shown.err.replace("\r", "\n").splitlines() if line.strip()]
    last = lines[-1]
    assert last.startswith("lens-linear") and "Traceback" not in shown.err, shown.err
    assert 20 < len(last) < 700, last


@pytest.mark.parametrize("line", BAD)
def test_one_sentence_and_status_2(line, files, capsys):
    before = {path: path.stat().st_size for path in files.rglob("*")}
    refused(line.split(), capsys)
    after = {path: path.stat().st_size for path in files.rglob("*")}
    for path in set(after) - set(before):
        assert path.is_dir() or path.name == "tokenizer.json", f"{line!r} left {path.name}"


def test_random_words(files, capsys):
    """Words of the commands in any order, and words that are none."""
    draw = random.Random(0)
    words = [*"tour models circuits linearity dynamics report train tutorials".split()]
    other = [
        "--seed",
        "--json",
        "--out",
        "-1",
        "x",
        "attn-9l",
        "--fit",
        "--nosuch",
        "é",
        "\n",
        "--",
    ]
    for _ in range(60):
        line = [draw.choice(words), *(draw.choice(other) for _ in range(draw.randrange(4)))]
        try:
            build_parser().parse_args(line)
        except SystemExit as stop:
            capsys.readouterr()
            if stop.code == 2:
                refused(line, capsys)


def test_json_of_every_command_says_how_it_was_made(files, capsys):
    lines = {
        "models": ["models"],
        "circuits": ["circuits", "attn-1l", "--seed", "2"],
        "linearity": ["linearity", "attn-1l", "--sequences", "20"],
        "train": ["train", "tiny.json", "--corpus", "book.txt", "--out", "out"],
        "tutorials": ["tutorials", "course"],
    }
    for name, line in lines.items():
        assert main([*line, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["command"] == name and found["lens_linear"]
        assert {"models", "seed", "settings", "result"} <= set(found)
        for checksum in found["models"].values():
            assert len(checksum) == 64
