"""The agreement table: its rows equal single fits, published numbers are never filled in."""

from dataclasses import replace

import pytest

import lens_linear as ll
from lens_linear.dynamics import agreement_table
from lens_linear.dynamics.surrogates.agreement_table import PUBLISHED
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError


@pytest.fixture(scope="module")
def nano():
    return ll.load("gpt-nano")


@pytest.fixture(scope="module")
def split():
    return ll.load_concept("mood").split(40, 20, 24, seed=1)


@pytest.fixture(scope="module")
def table(nano, split):
    return agreement_table([nano], split, orders=(4, 32, 500), bases=("krylov", "balanced"))


def test_rows_equal_single_fits(nano, split, table):
    frame = table.to_dataframe()
    assert len(frame) == 2 * 2 * 3 and sorted(set(frame["order"])) == [4, 32, 96]
    directions = ll.concept_directions(nano, split.concept, truncate=True)
    exact = ll.gain_profile(nano, list(split.evaluation.texts), directions)
    for basis in ("krylov", "balanced"):
        mean = ll.fit_surrogate(
            nano,
            list(split.operating.texts),
            directions,
            order=4,
            basis=basis,
            jacobian="mean",
        ).agreement(exact)
        own = (
            ll.fit_surrogate(nano, list(split.operating.texts), directions, order=4, basis=basis)
            .predict(nano, list(split.evaluation.texts))
            .agreement(exact)
        )
        for jacobian, score in (("mean", mean), ("prompt", own)):
            chosen = (frame["basis"] == basis) & (frame["jacobian"] == jacobian)
            row = frame[chosen & (frame["order"] == 4)].iloc[0]
            assert row["spearman"] == pytest.approx(score.spearman, abs=1e-6)
            assert row["relative_error"] == pytest.approx(score.relative_error, rel=1e-4)


def test_full_order_reaches_and_the_mean_system_does_not_pass_its_ceiling(table):
    frame = table.to_dataframe()
    full = frame.query("order == 96 and jacobian == 'prompt'")
    assert (full["relative_error"] < 1e-4).all()
    reaching = table.reaching(0.999).set_index(["basis", "jacobian"])
    assert reaching.loc[("krylov", "prompt"), "order"] == 96
    assert reaching.loc[("krylov", "mean")].isna()["order"]


def test_published_numbers_stand_beside_and_are_never_filled_in(table):
    frame = table.published().set_index("model")
    assert frame.loc["gpt2", "published_spearman"] == PUBLISHED["gpt2"][0] == 0.77
    assert (frame.loc[list(PUBLISHED), "spearman"] == "not run").all()
    mine = frame.drop(index=list(PUBLISHED))
    assert len(mine) == 1 and (mine["published_spearman"] == "none").all()
    assert isinstance(mine["spearman"].iloc[0], float)
    assert "12 surrogates of 1 model " in repr(table)


@pytest.mark.parametrize(
    "name, shape, line",
    [
        ("openai-community/gpt2", (12, 768), "gpt2"),
        ("copies/gpt2-medium/", (24, 1024), "gpt2-medium"),
        ("gpt2", (2, 64), "gpt2 (2 × 64)"),
        ("copies/gpt2-large", (2, 64), "copies/gpt2-large"),
    ],
)
def test_only_the_papers_models_stand_beside_its_numbers(table, name, shape, line):
    row = next(r for r in table.rows if (r.basis, r.order, r.jacobian) == ("krylov", 32, "mean"))
    renamed = replace(row, model=name, n_layers=shape[0], d_model=shape[1])
    frame = replace(table, rows=(renamed,)).published().set_index("model")
    assert frame.loc[line, "spearman"] == row.agreement.spearman
    assert (frame["spearman"] != "not run").sum() == 1
    assert (frame.loc[line, "published_spearman"] == "none") == (line not in PUBLISHED)


def test_bad_requests(nano, split):
    with pytest.raises(InvalidArgumentError, match="bases"):
        agreement_table([nano], split, bases=("krylow",))
    with pytest.raises(InvalidArgumentError, match="at least one"):
        agreement_table([nano], split, orders=())
    with pytest.raises(NotEnoughDataError):
        agreement_table([nano], "mood", n_concept=5000)
