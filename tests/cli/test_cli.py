"""The command line: examples, JSON with its provenance, one sentence and status 2 for bad arguments."""

import contextlib
import importlib
import io
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import lens_linear as ll
from lens_linear.cli import main
from lens_linear.cli.options import BASIS_NAMES
from lens_linear.cli.output import emit
from lens_linear.cli.parser import build_parser
from lens_linear.cli.registry import COMMANDS, RECIPE_NAMES, STUDY_NAMES
from lens_linear.cli.tables import circuits
from lens_linear.dynamics.surrogates.bases import BASES
from lens_linear.errors import LensLinearError
from lens_linear.models.open.bundled import training_table
from lens_linear.studies.pretraining import STUDIES
from lens_linear.training.recipes import RECIPES

pytestmark = pytest.mark.whole


def run(capsys, *arguments):
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_is_quick_and_light():
    """Seconds of the processor, which other work on the machine does not lengthen much."""
    times = []
    for _ in range(3):
        started = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "lens_linear", "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime)
    assert min(times) < 0.4 and "example: lens-linear tour" in done.stdout


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"lens-linear {command}" in out.split("example: ")[1]
    assert "--json" in out and "--quiet" in out


def test_the_parser_knows_the_recipes():
    assert set(RECIPE_NAMES) == set(RECIPES) and STUDY_NAMES == STUDIES
    assert set(BASIS_NAMES) == set(BASES)


@pytest.mark.parametrize(
    "arguments",
    [["nosuch"], ["circuits"], ["linearity", "attn-2l", "--fit", "magic"], ["train", "attn-1l"]],
)
def test_bad_words_are_one_sentence_and_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["circuits", "attn-9l"],
        ["circuits", "attn-2l", "--top", "0"],
        ["linearity", "attn-2l", "--text", "no/such/file.txt"],
        ["linearity", "attn-2l", "--sequences", "2"],
        ["report", "attn-2l", "--out", "no/such/folder/page.html", "--sequences", "40"],
        ["train", "no-recipe", "--corpus", "x"],
        ["dynamics", "attn-2l", "--concept", "nothing-of-that-name"],
    ],
)
def test_bad_input_is_one_sentence_and_status_2(arguments, capsys):
    status, out, err = run(capsys, *arguments)
    assert status == 2 and not out
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"lens-linear {arguments[0]}: ") and "Traceback" not in err


def test_several_models_make_one_table_beside_the_published_numbers(capsys):
    words = ["dynamics", "gpt-nano", "gpt-micro", "--prompts", "20", "--json"]
    status, out, _ = run(capsys, *words)
    payload = json.loads(out)
    result, checksums = payload["result"], payload["models"]
    assert set(checksums) == {"gpt-nano", "gpt-micro"} and len(set(checksums.values())) == 2
    assert status == 0 and len(result["agreement"]) == 2 * 4 * 3 * 3
    assert {row["order"] for row in result["agreement"]} == {8, 16, 32}
    lines = {row["model"]: row for row in result["published"]}
    assert lines["gpt2-large"]["published_spearman"] == 0.995
    assert lines["gpt2-large"]["spearman"] == "not run"
    assert -1 <= lines["gpt-micro"]["spearman"] <= 1


def test_models_as_json(capsys):
    status, out, _ = run(capsys, "models", "--json")
    payload = json.loads(out)
    assert status == 0 and payload["command"] == "models"
    rows = {row["name"]: row for row in payload["result"]}
    assert {"attn-2l", "gpt-mini"} <= set(rows)
    assert (
        rows["attn-2l"]["steps"] == 6700 and rows["gpt-micro"]["checkpoints"] == "0, 100, 300, 1000"
    )
    assert len(rows["gpt-nano"]["sha256"]) == 64


def test_models_says_what_every_recipe_costs_and_reaches(capsys):
    status, out, _ = run(capsys, "models")
    assert status == 0
    training = out.split("How the bundled ones were trained")[1]
    for row in training_table().to_dict("records"):
        line = next(line for line in training.splitlines() if line.split()[:1] == [row["name"]])
        for value in (row["steps"], row["tokens"], f"{row['minutes']:.1f}", f"{row['loss']:.3f}"):
            assert str(value) in line.split()


def test_circuits_as_json_says_how_it_was_made(capsys):
    status, out, _ = run(capsys, "circuits", "attn-1l", "--json", "--seed", "3")
    payload = json.loads(out)
    assert status == 0 and payload["seed"] == 3
    assert len(payload["models"]["attn-1l"]) == 64
    assert {row["verdict"] for row in payload["result"]["heads"]} == {"none"}


def test_linearity_and_report_of_a_foreign_model(stories_folder, tmp_path, capsys):
    folder = stories_folder
    status, out, _ = run(capsys, "linearity", folder, "--json", "--sequences", "40")
    rows = json.loads(out)["result"]
    assert status == 0 and [row["layer"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(row["block_r2_no_residual"] < row["block_r2"] <= 1 for row in rows)
    page = tmp_path / "page.html"
    status, out, _ = run(capsys, "report", folder, "--out", page, "--sequences", "30")
    assert status == 0 and page.stat().st_size > 1e6


def test_a_model_that_papers_name_gets_their_numbers_beside_its_own(
    stories_folder, tmp_path, capsys, monkeypatch
):
    few = ("--sequences", "40")
    folder = tmp_path / "llama-160m"  # another model under a published name
    shutil.copytree(stories_folder, folder, copy_function=shutil.copyfile)
    for columns in (80, 100, 240):
        monkeypatch.setenv("COLUMNS", str(columns))
        status, text, _ = run(capsys, "linearity", folder, *few)
        published = text.partition("Published beside measured:")[2]
        assert status == 0 and max(map(len, published.splitlines())) <= columns
        assert "2606.19379" in published and "more columns" not in published
        assert re.search(r"about 0.99 +llama-160m: .*mean", published.replace("\n", " "))
    status, text, _ = run(capsys, "linearity", stories_folder, *few)
    assert status == 0 and "Published" not in text


def test_training_from_a_file_writes_a_model_folder(tmp_path, capsys, monkeypatch):
    corpus = tmp_path / "book.txt"
    corpus.write_text("The old mill stood by the river. A miller lived in it with his cat.\n" * 200)
    recipe = tmp_path / "tiny.json"
    spec = {
        "n_layers": 1,
        "d_model": 16,
        "n_heads": 2,
        "d_vocab": 280,
        "n_ctx": 16,
        "attn_only": True,
    }
    phases = [{"steps": 5, "rows": 4, "length": 16}]
    recipe.write_text(json.dumps({"name": "tiny", "spec": spec, "phases": phases}))
    out = tmp_path / "tiny"
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.setattr("lens_linear.progress._EVERY", 0.0)
    status, text, said = run(capsys, "train", recipe, "--corpus", corpus, "--out", out)
    assert status == 0 and "validation loss" in text
    assert "\r" not in said  # plain lines where there is no terminal
    assert re.search(r"^tiny: 40%, \S+ passed, \S+ left: step 2 of 5, loss \d\.\d{3}$", said, re.M)
    assert ll.load(out).cfg.n_layers == 1
    assert sorted(p.name for p in out.iterdir()) == [
        "card.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_a_study_file_gives_its_tables_and_does_not_train_twice(tmp_path, capsys):
    corpus = tmp_path / "book.txt"
    corpus.write_text("The old mill stood by the river. A miller lived in it with his cat.\n" * 400)
    spec = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_vocab": 280, "n_ctx": 16}
    study = {
        "name": "tiny",
        "question": "Does the activation matter?",
        "seeds": [0, 1],
        "recipe": {"spec": spec, "phases": [{"steps": 40, "rows": 4, "length": 16}]},
        "baseline": "gelu",
        "variants": {"gelu": {}, "relu": {"spec": {"activation": "relu"}}},
        "validation": {"rows": 12, "length": 16},
    }
    recipe = tmp_path / "tiny.json"
    recipe.write_text(json.dumps(study))
    out = tmp_path / "tables"
    call = ("train", recipe, "--corpus", corpus, "--out", out, "--scale", "0.1")
    status, text, _ = run(capsys, *call)
    assert status == 0 and "Against 'gelu'" in text and "relu: blocks" in text
    frame = pd.read_csv(out / "tiny.csv")
    assert list(frame.variant) == ["gelu", "gelu", "relu", "relu"] and set(frame.step) == {4}
    finished = {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    status, text, _ = run(capsys, *call, "--json")
    assert status == 0 and len(finished) == 4
    assert finished == {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    (row,) = [r for r in json.loads(text)["result"]["differences"] if r["measure"] == "ffn_r2"]
    means = frame.groupby("variant").ffn_r2.mean()
    assert row["difference"] == pytest.approx(means["relu"] - means["gelu"], abs=2e-6)


def test_training_into_the_current_folder_loads_what_was_trained(tmp_path, capsys, monkeypatch):
    """The folder is called like a bundled model: the hint and the checksum must be of the new one."""
    from lens_linear.models.open.checksum import weights_sha256

    monkeypatch.chdir(tmp_path)
    rows = [{"story": f"The miller, and mill {i}, by the river."} for i in range(60)]
    (tmp_path / "book.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_vocab": 270, "n_ctx": 8}
    phases = [{"steps": 2, "rows": 2, "length": 8}]
    (tmp_path / "r.json").write_text(
        json.dumps({"name": "attn-1l", "spec": spec, "phases": phases})
    )
    words = "train r.json --corpus book.jsonl --column story --limit 50 --json".split()
    status, out, _ = run(capsys, *words)
    payload = json.loads(out)
    assert status == 0 and payload["settings"]["corpus"].startswith("book.jsonl")
    trained = ll.load("./attn-1l")
    assert trained.cfg.d_model == 8
    assert payload["models"] == {"attn-1l": weights_sha256(trained)}
    assert payload["settings"]["load"] == "./attn-1l"


def test_the_tour_writes_a_page_and_a_summary(tmp_path, capsys):
    page = tmp_path / "tour.html"
    started = time.monotonic()
    status, out, _ = run(capsys, "tour", "--out", page)
    assert status == 0
    assert time.monotonic() - started < 90
    for words in (
        "Zero layers",
        "skip-trigram",
        "composition",
        "Induction heads",
        "How linear is gpt-mini?",
    ):
        assert words in out
    text = page.read_text(encoding="utf-8")
    assert (
        text.count("var CircuitsVis") == 1 and text.count("plotly.js (cartesian - minified) v") == 1
    )


def test_alone_it_shows_help(capsys):
    status, out, _ = run(capsys)
    assert status == 0 and "lens-linear tour" in out and "grade" in out


def test_tables_fit_the_terminal_and_csv_has_every_digit(capsys, monkeypatch):
    """The same answer at three widths, as CSV and as JSON."""
    frame = ll.induction_scores(ll.load("attn-2l"), seed=1).to_dataframe()
    words = ["circuits", "attn-2l", "--top", "2", "--seed", "1", "--quiet"]
    options = build_parser().parse_args(words)
    answer = circuits(options)
    for width in (80, 100, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        assert emit(options, answer) == 0
        out, err = capsys.readouterr()
        assert not err
        assert max(map(len, out.splitlines())) <= width
        assert out.count("induction") >= 4 and "␣" in out  # verdicts, spaces of tokens
    _, out, err = run(capsys, "circuits", "attn-2l", "--top", 2, "--seed", 1, "--csv")
    read = pd.read_csv(io.StringIO(out))
    pd.testing.assert_frame_equal(read, frame, check_dtype=False, rtol=1e-12)
    assert "skip_trigrams L0H3" in err
    out = run(capsys, "circuits", "attn-2l", "--top", 2, "--table", "heads")[1]
    heads = [line.split()[0] for line in out.splitlines() if re.match(r"L\dH\d ", line)]
    order = frame.assign(none=frame.verdict == "none").sort_values(
        ["none", "excess"], ascending=[True, False]
    )
    assert heads == order["head"].tolist()[:7] and "1 more row with --csv --table heads" in out
    assert "-0.000" not in out
    words = ("circuits", "attn-2l", "--top", 2, "--csv", "--table", "composition")
    out = run(capsys, *words)[1]
    found = pd.read_csv(io.StringIO(out))
    ratio = ll.composition_scores(ll.load("attn-2l"), fold=True).ratio.nan_to_num(0).flatten()
    assert (found.score / found.baseline_mean).tolist() == pytest.approx(ratio.topk(2)[0].tolist())
    with pytest.raises(LensLinearError, match="'composition'"):
        emit(build_parser().parse_args([*map(str, words[:-1]), "nothing"]), answer)


def test_it_says_what_it_opens_before_the_libraries_load(monkeypatch, capsys):
    """They take seconds alone, and a person waits."""

    def stops(name):
        if name == "lens_linear.cli.tables":
            raise KeyboardInterrupt
        return load(name)

    load = importlib.import_module
    monkeypatch.setattr("lens_linear.cli.importlib.import_module", stops)
    assert run(capsys, "circuits", "attn-2l")[2].startswith("opening attn-2l ...\n")
    assert "opening" not in run(capsys, "circuits", "attn-2l", "--quiet")[2]


def test_the_ridge_that_few_rows_advise_is_an_option(capsys):
    words = ("linearity", "gpt-nano", "--sequences", 4, "--json", "--quiet")
    plain, ridged = (json.loads(run(capsys, *words, *more)[1]) for more in ((), ("--ridge", "loo")))
    own = ll.linearity_profile(
        ll.load("gpt-nano"), ll.evaluation_tokens(ll.load("gpt-nano"), n_sequences=4), ridge="loo"
    )
    assert ridged["settings"]["ridge"] == "loo" and plain["settings"]["ridge"] == 0.0
    found = [row["ffn_r2"] for row in ridged["result"]]
    assert found == pytest.approx(own["ffn_r2"].tolist(), abs=1e-6)
    for wrong in ("cv", "-1", "nan"):
        with contextlib.suppress(SystemExit):
            assert run(capsys, *words, "--ridge", wrong)[0] == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said


def test_quiet_means_the_bars_of_libraries_too(tmp_path):
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "own")
    line = [sys.executable, "-m", "lens_linear", "circuits", str(tmp_path / "own"), "--quiet"]
    asked = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    done = subprocess.run(line, capture_output=True, text=True, env=asked, check=True)
    assert done.stderr == ""


def test_dynamics_prints_the_gain_of_every_layer(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    words = ("dynamics", "gpt-nano", "--prompts", 20, "--order", 8)
    status, out, _ = run(capsys, *words, "--csv")
    model = ll.load("gpt-nano")
    split = ll.load_concept("mood").split(20, 20, 20, seed=0)
    directions = ll.concept_directions(model, split.concept)
    exact = ll.gain_profile(model, list(split.evaluation.texts), directions)
    found = pd.read_csv(io.StringIO(out))
    assert status == 0 and list(found.layer) == [0, 1, 2, 3]
    assert found["mean"].to_numpy() == pytest.approx(exact.mean.numpy(), rel=1e-9)
    status, out, _ = run(capsys, *words, "--table", "gains")
    shown = [line.split()[:2] for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert shown[:4] == [[str(i), f"{float(g):.3f}"] for i, g in enumerate(exact.mean)]


@pytest.mark.parametrize(
    "words",
    [
        "circuits attn-9l",
        "linearity no/such/folder",
        "linearity attn-2l --text nothing.txt",
        "circuits attn-2l --top 0",
        "report attn-2l --out no/such/page.html",
        "circuits attn-2l --device ??",
        f"circuits attn-2l --device {'cuda' if sys.platform == 'darwin' else 'mps'}",
        "dynamics gpt-nano --concept nothing",
        "dynamics gpt-nano attn-9l",
        "dynamics gpt-nano --basis krilov",
        "linearity gpt-nano --seed -1",
        "grade . --jobs 0",
    ],
)
def test_a_slip_is_answered_before_anything_heavy_is_imported(words):
    code = (
        "import sys; from lens_linear.cli import main; status = main(sys.argv[1:]); "
        "print(status, [name for name in ('torch', 'transformer_lens', 'plotly') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "2 []" and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words", ["report attn-2l", "dynamics gpt-nano", "train attn-0l --corpus ."]
)
def test_a_card_that_is_not_there_is_refused_before_a_model_is_opened(words, monkeypatch, capsys):
    from lens_linear.cli import options

    monkeypatch.setattr(options.sys, "platform", "linux")
    monkeypatch.setattr(options, "_GPUS", ("/dev/no-card",))
    for name in ("cuda", "cuda:1", "mps"):
        assert main([*words.split(), "--device", name]) == 2
        said = capsys.readouterr().err
        assert f"got {name!r}" in said and "opening" not in said
    monkeypatch.setattr(options, "_GPUS", (__file__,))
    options.device("--device", "cuda")  # there is a driver: torch says the rest


def test_a_model_in_another_precision(capsys):
    """float16 weights: other numbers than float32, nearly the same."""
    found = {}
    for dtype in ("float32", "float16"):
        words = ("linearity", "gpt-nano", "--sequences", 60, "--dtype", dtype, "--csv", "--quiet")
        status, out, err = run(capsys, *words)
        assert status == 0 and not err
        found[dtype] = pd.read_csv(io.StringIO(out))["block_r2"]
    gap = (found["float32"] - found["float16"]).abs().max()
    assert 0 < gap < 0.01


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["lens-linear", "exp"], {"explore"}),
        (["lens-linear", "circuits", "attn-2"], {"attn-2l"}),
        (["lens-linear", "dynamics", "x", "--basis", "bal"], {"balanced"}),
        (["lens-linear", "linearity", "x", "--se"], {"--seed", "--sequences"}),
    ],
)
def test_bash_completes(typed, offered, capsys):
    """The script, asked as bash asks it."""
    status, script, _ = run(capsys, "completion", "bash")
    ask = f"COMP_WORDS=({' '.join(typed)}); COMP_CWORD={len(typed) - 1}; _lens_linear; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, check=True)
    assert status == 0 and set(done.stdout.split()) == offered


def test_the_other_shells_know_every_command_and_option(capsys):
    _, zsh, _ = run(capsys, "completion", "zsh")
    _, fish, _ = run(capsys, "completion", "fish")
    for command in COMMANDS:
        for option in command.all_options:
            flag = option.flags[-1]
            if flag.startswith("--"):
                assert f"{command.name}' -l {flag[2:]}" in fish
                assert f"{flag} " in zsh


def test_open_opens_the_page_that_was_written(tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("lens_linear.cli.output.webbrowser.open", opened.append)
    page = tmp_path / "page.html"
    words = ("explore", "attn-1l", "--prompt", "A cat", "--out", page, "--quiet")
    assert run(capsys, *words) == (0, f"{page}\n", "") and not opened
    run(capsys, *words, "--open")
    assert opened == [page.resolve().as_uri()]


def test_examples_of_the_help_are_lines_to_copy(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    commands = build_parser()._subparsers._group_actions[0].choices
    shown = {name: one.format_help().splitlines() for name, one in commands.items()}
    for command in COMMANDS:
        for line in command.example.splitlines():
            assert f"example: {line}" in shown[command.name]
            if "$(" not in line:
                build_parser().parse_args(shlex.split(line)[1:])
