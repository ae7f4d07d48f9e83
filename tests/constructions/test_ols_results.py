"""The numbers on the page about the paper are those of the tables beside it."""

import re
from pathlib import Path

import pandas as pd
import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "papers" / "ols_attention.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="docs are not beside these tests")


def table(name):
    return pd.read_csv(DOCS / "results" / f"ols-{name}.csv")


def row(start):
    """Numbers in the cells of the row of the page that starts with these words."""
    (line,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {start}")]
    return [float(n) for n in re.findall(r"(?<![\w.-])\d+(?:\.\d+)?", line.split("|", 2)[2])]


@pytest.mark.parametrize(
    ("start", "method"), [("fixed L", "fixed weights"), ("one gradient step", "gradient step")]
)
def test_errors_under_covariance_shift(start, method):
    found = table("shift").query("method == @method").set_index("condition")
    columns = ["error", "error_low", "error_high"]
    want = [float(f"{found[c][k]:.2g}") for k in (1, 16, 64, 256) for c in columns]
    assert row(start) == want


def test_layers_and_flops_that_remove_it():
    cost = table("cost").query("method == 'Newton-Schulz from L'").set_index("condition")
    shifts = [1, 16, 64, 256]
    columns = ["layers", "layers_low", "layers_high"]
    want = [cost[c][k] for k in shifts for c in columns]
    assert row("Newton–Schulz layers needed for 1e-6")[-12:] == want
    assert row("their cost") == cost.ratio[shifts].round(1).tolist()


def test_the_dial():
    frame = table("dial").query("dial == 'temperature'").reset_index()
    at = [
        frame.setting.sub(beta).abs().idxmin()
        for beta in (0.001, 0.1, 0.316228, 1, 3.16228, 10, 100)
    ]
    for start, column, digits in (
        ("to least squares, no gain", "raw_error", 3),
        ("to least squares, with gain", "ols_error", 3),
        ("to kernel regression", "kernel_error", 3),
        ("rows that weigh in", "effective_rows", 1),
        ("capacity (stored rows", "capacity", 1),
    ):
        want = [float(f"{frame[column][i]:.{digits}f}") for i in at]
        assert row(start)[-7:] == want
    ends = table("regimes").set_index("regime")
    page = " ".join(PAGE.read_text().split())
    said = {
        "regression ends": "at β = {:.2f} ({:.2f} to {:.2f}",
        "retrieval starts": "at {:.2f} ({:.2f} to {:.2f}",
    }
    for regime, words in said.items():
        assert words.format(*ends.loc[regime][["beta", "beta_low", "beta_high"]]) in page
    orders = table("dial").query("dial == 'order'").set_index("setting").ols_error
    assert f"off by {orders[4]:.2f} at order 4, {orders[6]:.2f} at 6, {orders[8]:.2f} at 8" in page


@pytest.mark.parametrize("head", ["L0H0", "L0H1", "L1H1", "L1H3"])
def test_trained_heads(head):
    frame = table("trained-heads").query("tokens == 'random rows twice'").set_index("head")
    found = frame.loc[head]
    columns = ["regression_r2", "retrieval_r2"]
    columns += ["loss_other_values", "loss_turned_geometry", "loss_linear", "loss_retrieval"]
    (line,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {head} ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3] == found["kind"]
    assert [float(c) for c in cells[1:3] + cells[4:]] == [float(f"{found[c]:.2f}") for c in columns]
    assert (frame["kind"] == "retrieval").sum() == 7


def test_heads_of_the_real_model():
    frame = table("real-heads")
    page = " ".join(PAGE.read_text().split())
    kinds, sink = frame["kind"].value_counts(), frame["first_share"] >= 0.3
    assert f"{kinds['retrieval']} of the {len(frame)} heads come out as retrieval" in page
    there = (sink & (frame["kind"] == "retrieval")).sum()
    assert f"{sink.sum()} heads put at least" in page and f"{there} of them count" in page
    away = frame[~sink]["kind"].value_counts()
    left = f"{away['retrieval']} retrieve, {away['averaging']} average and {away['regression']} regress"
    assert f"Of the other {(~sink).sum()}, {left}" in page
    columns = [
        f"loss_{name}"
        for name in ("other_context", "other_values", "turned_geometry", "linear", "retrieval")
    ]
    for head, found in frame.dropna().set_index("head").iterrows():
        (line,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {head} ")]
        said = [float(cell) for cell in line.strip("|").split("|")[4:]]
        assert said == [float(f"{found[c]:.2f}") for c in columns]


@pytest.mark.parametrize(("name", "tokens"), [("head", "random rows twice"), ("real-head", None)])
def test_the_dial_on_trained_heads(name, tokens):
    dial, regimes = table(f"{name}-dial"), table(f"{name}-regimes")
    column, part = ("tokens", tokens) if tokens else ("skip", 0)
    dial, regimes = (frame[frame[column] == part] for frame in (dial, regimes))
    own, other = (
        regimes[regimes["geometry"] == g].set_index("head") for g in ("own", "least squares")
    )
    curves = dial[dial["geometry"] == "own"].set_index(["head", "beta"])
    lines = [line.strip("|").split("|") for line in PAGE.read_text().splitlines()]
    wide = 12 if tokens else 10
    said = {c[0].split()[-1]: c for c in lines if c[0].startswith(" dial of L") and len(c) == wide}
    assert set(said) == set(own.index)
    for head, cells in said.items():
        place, trained = own.loc[head], curves.loc[(head, 1.0)]
        want = [
            place["regression_ends"],
            place["retrieval_starts"],
            trained["ols_error"],
            place["ols_error"],
        ]
        want += [other.loc[head, "ols_error"], trained["kernel_error"]]
        assert [float(c) for c in cells[1:3] + cells[4:8]] == pytest.approx(want, abs=0.00501)
        assert cells[3].strip() == place["trained"]
        assert float(cells[8]) == pytest.approx(trained["effective_keys"], abs=0.0501)
        assert float(cells[9]) == pytest.approx(trained["capacity"], abs=0.501)
        if tokens:
            losses = [curves.loc[(head, beta), "loss"] for beta in (0.1, 10.0)]
            assert [float(c) for c in cells[10:]] == pytest.approx(losses, abs=0.00501)
    page = " ".join(PAGE.read_text().split())
    ends = own["regression_ends"]
    if tokens:
        assert (
            f"nearer than {own['ols_error'].min():.2f} to the least squares of its context" in page
        )
        assert f"that ends at {ends.min():.2f} to {ends.max():.2f} of the trained β" in page
        assert (own["trained"] == "retrieval").sum() == 5
        stories = table(f"{name}-regimes").query("tokens == 'stories' and geometry == 'own'")
        assert f"(stories: {stories['ols_error'].min():.2f})" in page
    else:
        far = other["spread"]
        assert f"lie {far.min():.0f} to {far.max():.0f} standard deviations" in page
        sharp = 1 / own[own["trained"] == "retrieval"]["retrieval_starts"]
        assert f"are {sharp.min():.1f} to {sharp.max():.1f} times as sharp" in page
        nearest, second = own["ols_error"].nsmallest(2)
        assert f"({nearest:.2f}), the other seven keep {second:.2f}" in page


def test_the_real_heads_without_the_sink():
    page = " ".join(PAGE.read_text().split())
    regimes = table("real-head-regimes").query("geometry == 'own'")
    dial = table("real-head-dial").query("geometry == 'own' and beta == 1")
    place, starts, least = (
        regimes.pivot(index="head", columns="skip", values=name)
        for name in ("trained", "retrieval_starts", "ols_error")
    )
    assert (place[0] == place[1]).all()
    moved = (starts[1] / starts[0] - 1).abs().max()
    assert f"start of retrieval moves by {100 * moved:.0f} % at most" in page
    nearest, second = least[1].nsmallest(2)
    assert f"{nearest:.2f} for L1H5 and {second:.2f} or more for the other seven" in page
    kernel = dial.pivot(index="head", columns="skip", values="kernel_error")
    for head in ("L16H0", "L16H2", "L19H4"):
        assert f"{head} ({kernel[0][head]:.2f} to {kernel[1][head]:.2f})" in page
    assert (kernel[1] - kernel[0]).drop(["L16H0", "L16H2", "L19H4"]).abs().max() < 0.08


def test_the_loss_along_the_dial_of_real_heads():
    said = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| loss of "):
            name, *cells = line.strip("| ").split("|")
            said[name.split()[-1]] = [cell.strip() for cell in cells]
    frame = table("real-head-losses").sort_values(["skip", "beta"])
    assert set(said) == set(frame["head"])
    for head, found in frame.groupby("head"):
        want = [f"{a:.2f} ± {b:.2f}" for a, b in zip(found.loss, found.loss_se, strict=True)]
        assert said[head] == want


@pytest.mark.parametrize(
    ("start", "energy"),
    [
        ("quadratic", "quadratic"),
        ("polynomial of degree 3", "polynomial-3"),
        ("polynomial of degree 4", "polynomial-4"),
        ("exponential", "exponential"),
    ],
)
def test_slopes_of_capacity(start, energy):
    found = table("slopes").set_index("energy").loc[energy]
    theory = sorted({float(f"{found.theory_low:.3f}"), float(f"{found.theory_high:.3f}")})
    said = row(start)
    assert said == [round(found.slope, 3), round(found.se, 3), round(found.expected, 3), *theory]


def test_sentences():
    page = " ".join(PAGE.read_text().split())
    starts = table("starts").set_index("optimizer")
    gd = starts.loc["gd"]
    assert f"{gd.converged} converge within the 1000 epochs, in {gd.median_epochs:.0f} at" in page
    assert starts.converged["adam"] == 2000
    assert f"the slowest in {starts.slowest_epochs['adam']:.0f}" in page
    paper = table("training").query("form == 'paper'")
    assert (paper.converged == paper.starts).all()
    assert f"at most {paper.slowest_epochs.max():.0f} epochs" in page
    heads = table("heads").groupby("source").predicted_capacity.agg(["min", "max"]).round()
    low, high = heads.loc["head"]
    assert f"predicted capacity {low:.0f} to {high:.0f} keys" in page
    capacity = table("capacity").set_index(["energy", "d"]).capacity["quadratic", 1024]
    assert f"holds {capacity / 1024:.3f} d patterns" in page
    worst = table("equality").groupby("kind").worst_error.max().sort_values()
    assert worst.iloc[7] < 2e-13 and worst.iloc[8] < 8e-12 and worst.iloc[9] < 3.2e-11
