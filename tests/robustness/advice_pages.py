"""Advice on figures, pages, extensions, studies and lessons."""

import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
from advice_models import folder
from advice_parts import (
    IDS,
    X,
    agreement,
    known,
    mlp,
    profile,
    toy,
    under,
    with_tokenizer,
)  # fmt: skip

import lens_linear as ll
from lens_linear import (
    constructions,
    extensions,
    plots,
    studies,
    teaching,
)
from lens_linear.files import write_text
from lens_linear.plots import circuitsvis, style


def graded(out=None, **tables):
    """Grade one notebook that is of no lesson, with a class or a table of earlier grades."""
    place = folder("handed", a__ipynb=json.dumps({"cells": [], "nbformat": 4, "metadata": {}}))
    for name, content in tables.items():
        Path(name).write_bytes(content)
    roster = "roster" if "roster" in tables else None
    return teaching.grade(place, out=out, roster=roster, seconds=20)


def unmeasured():
    nan = {"mine": lambda m: float("nan")}
    return ll.linearity_profile(mlp(), IDS.repeat(2, 1), statistics=nan)


BUNDLE = "plots.circuitsvis.resources.files"


def other_bundle():
    folder("other-bundle", iife__js="var Other")
    place = Path("other-bundle", "dist", "cdn")
    place.mkdir(parents=True)
    Path("other-bundle", "iife.js").rename(place / "iife.js")
    return Path("other-bundle")


def bundle():
    return circuitsvis.bundle_script()


@functools.cache
def of_known(**options):
    tokens = ll.evaluation_tokens(known(), n_sequences=40, length=32)
    return ll.linearity_profile(known(), tokens, **options)


@functools.cache
def shift():
    return constructions.covariance_shift(conditions=(1, 4), seeds=2, layers=2, n=32, base_rows=64)


ROWS = [
    # figures
    (lambda: plots.linearity_profile(IDS), "must be", lambda: plots.linearity_profile(profile())),
    (
        lambda: plots.profile_comparison(ll.compare({"a": profile()}), scores=[]),
        r"e.g. \['ffn_r2'\]",
        lambda: plots.profile_comparison(ll.compare({"a": profile()}), scores=["ffn_r2"]),
    ),
    (
        lambda: plots.composition_map(ll.composition_scores(toy(n_layers=1), n_random=2)),
        "pass a deeper model's",
        lambda: plots.composition_map(ll.composition_scores(toy(), n_random=2)),
    ),
    (
        lambda: plots.agreement_by_size(agreement(), order=3, jacobian="mean"),
        "pass order=2",
        lambda: plots.agreement_by_size(agreement(), order=2, jacobian="mean"),
    ),
    (
        lambda: plots.agreement_by_size(agreement(), order=2),
        "pass jacobian='mean'",
        lambda: plots.agreement_by_size(agreement(), order=2, jacobian="mean"),
    ),
    (
        lambda: plots.shift_cost(shift(), condition=3.0),
        "pass a measured shift",
        lambda: plots.shift_cost(shift(), condition=4.0),
    ),
    (lambda: style.matrix(X[0]), "pass a matrix", lambda: style.matrix(X)),
    (
        lambda: style.matrix(X, limits=(1,)),
        r"e.g. \(-1, 1\)",
        lambda: style.matrix(X, limits=(-1, 1)),
    ),
    (
        lambda: style.matrix("x"),
        "pass a tensor or a numpy array",
        lambda: (style.matrix(X), style.matrix(X.numpy())),
    ),
    (
        lambda: style.matrix(X, rows=["a"]),
        "pass one label each",
        lambda: style.matrix(X, rows=[str(i) for i in range(40)]),
    ),
    (
        lambda: circuitsvis.attention_view(np.ones((1, 2, 3)), ["a", "b"], element_id="a"),
        r"must have shape \[head, 2, 2\]",
        lambda: circuitsvis.attention_view(np.ones((1, 2, 2)), ["a", "b"], element_id="a"),
    ),
    (
        lambda: circuitsvis.attention_view(np.full((1, 2, 2), np.nan), ["a", "b"], element_id="a"),
        "check the model's activations",
        lambda: circuitsvis.attention_view(np.ones((1, 2, 2)), ["a", "b"], element_id="a"),
    ),
    (
        lambda: circuitsvis.attention_view(np.ones((1, 2, 2)), ["a", "b"], element_id="a b"),
        "a plain word",
        lambda: circuitsvis.attention_view(np.ones((1, 2, 2)), ["a", "b"], element_id="a-b"),
    ),
    (
        lambda: circuitsvis.attention_view(
            np.ones((1, 2, 2)), ["a", "b"], element_id="a", head_names=[]
        ),
        "each of the 1 heads",
        lambda: circuitsvis.attention_view(
            np.ones((1, 2, 2)), ["a", "b"], element_id="a", head_names=["x"]
        ),
    ),
    # explorer, extensions, studies, lessons
    (
        lambda: ll.explore(with_tokenizer(), []),
        "pass at least one text, or leave prompts out",
        lambda: (ll.explore(with_tokenizer(), ["a"]), ll.explore(with_tokenizer())),
    ),
    (
        lambda: ll.explore(with_tokenizer(), ["a b"], max_bytes=100_000),
        r"pass max_bytes=\d+",
        lambda: ll.explore(with_tokenizer(), ["a b"], max_bytes=1_000_000),
    ),
    (
        lambda: extensions.Extension(statistics={"my score": len}),
        "choose e.g. 'my_score'",
        lambda: extensions.Extension(statistics={"my_score": len}),
    ),
    (
        lambda: studies.load_study("cos"),
        "must be one of .*'cosine'",
        lambda: studies.load_study("cosine"),
    ),
    (
        lambda: studies.published_beside_measured({"a": 3}),
        "must be a LinearityProfile",
        lambda: studies.published_beside_measured({"a": profile()}),
    ),
    (lambda: ll.check("9.99", 3), "nearest: ", lambda: teaching.Checker()("9.1", 3)),
    (
        lambda: teaching.copy_tutorials(write_text("a-file", "a")),
        "choose another path",
        lambda: teaching.copy_tutorials("lessons"),
    ),
    (
        lambda: teaching.grade(folder("course")),
        "check the path",
        lambda: graded(),
    ),
    (
        lambda: graded(roster=b"name\nann\n"),
        "must have a column 'student'.*add it to the first line",
        lambda: graded(roster=b"student\nann\n"),
    ),
    (
        lambda: graded(roster="student\nJosé\n".encode("latin-1")),
        "save it as CSV in UTF-8",
        lambda: graded(roster="student\nJosé\n".encode()),
    ),
    (
        lambda: graded("table", table=b"a,b\n1,2\n"),
        "choose another name",
        lambda: graded("another"),
    ),
    (
        lambda: graded("table", table=b"\xe9,b\n"),
        "save it as CSV in UTF-8",
        lambda: graded("another"),
    ),
    (
        lambda: teaching.grade(folder("handed", a__ipynb="{}"), roster="no-roster"),
        "check the path",
        lambda: graded(roster=b"student\nann\n"),
    ),
    (
        lambda: plots.patching(pd.DataFrame({"layer": [0]})),
        "pass what the analysis returned",
        lambda: plots.patching(ll.patch(toy(), IDS[:1], IDS[1:2])),
    ),
    (
        lambda: plots.profile_comparison(ll.compare({"a": unmeasured()}), scores=["mine"]),
        r"name columns that were measured \(sites=\)",
        lambda: plots.profile_comparison(ll.compare({"a": profile()}), scores=["ffn_r2"]),
    ),
    *(
        (
            lambda name=name, made=made: under(
                {BUNDLE: made}, circuitsvis.bundle_script.__wrapped__
            ),
            advice,
            bundle,
        )
        for name, made, advice in [
            ("absent", lambda _: Path("nowhere"), r"reinstall with pip install 'circuitsvis<2'"),
            ("other", lambda _: other_bundle(), r"install 'circuitsvis>=1.43,<2'"),
        ]
    ),
    # pages
    (
        lambda: ll.explore(known(), ["a text"], linearity=of_known(fit="in-sample")),
        r"pass what ll.linearity_profile\(model, tokens\) returns",
        lambda: ll.explore(known(), ["a text"], linearity=of_known()),
    ),
    (
        lambda: ll.explore(known(), ["a text"], linearity=profile()),
        r"pass what ll.linearity_profile\(model, tokens\) returns",
        lambda: ll.explore(known(), ["a text"], linearity=of_known()),
    ),
    (
        lambda: ll.report(known(), "page.html", " the" * 9000),
        "pass other text, or token ids",
        lambda: ll.stats.score_model(known(), ll.evaluation_tokens(known(), n_sequences=2)),
    ),
    (
        lambda: ll.report(toy(), "page.html", IDS, on_step=pd.DataFrame({"a": [1]})),
        "pass a function of one word",
        lambda: ll.report(toy(), "page.html", IDS, on_step=len),
    ),
]
