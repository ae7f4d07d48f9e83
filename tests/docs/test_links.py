"""Every written page is reached from README by links alone, as a code host shows them; no link is dead."""

import re
from pathlib import Path

import pytest
import torch

import lens_linear as ll
from lens_linear.linearity.measure.profile_result import COLUMNS

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if "made" not in p.relative_to(ROOT).parts)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s#]+)(?:#([^)\s]*))?\)")

if not (ROOT / "README.md").is_file():
    pytest.skip("only in a checkout", allow_module_level=True)


def targets(page):
    """Files that a page links to (those of the built site alone left out)."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    for link, _ in LINK.findall(text):
        if not re.match(r"[a-z]+:", link) and "made/" not in link:
            yield (page.parent / link).resolve()


def test_every_page_is_reached_from_the_readme_by_links():
    seen, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        seen.add(page)
        ahead += [p for p in targets(page) if p.suffix == ".md" and p.is_file() and p not in seen]
    assert not [str(page.relative_to(ROOT)) for page in PAGES if page not in seen]


def told_columns(section):
    """Names that one section of the page of columns explains, and the ends that stand for several."""
    text = (ROOT / "docs" / "howto" / "columns.md").read_text("utf-8")
    (part,) = [each for each in re.split(r"^## ", text, flags=re.M) if each.startswith(section)]
    heads = re.findall(r"^\| (`.*?) \|", part, re.M)
    named = {name for head in heads for name in re.findall(r"`(.+?)`", head)}
    return {name for name in named if name[0] != "…"}, tuple(
        name[1:] for name in named if name[0] == "…"
    )


def columns_of(section):
    """What the command prints, by the sections of the page."""
    model = ll.toy_model()
    if section == "`lens-linear circuits`: heads":
        return list(ll.induction_scores(model, rows_per_period=2).to_dataframe())
    if section == "`lens-linear circuits`: composition":
        return list(ll.composition_scores(model, n_random=2).to_dataframe())
    if section == "`lens-linear circuits`: skip-trigrams":
        return list(ll.AttentionOnly(ll.load("attn-1l")).skip_trigrams(0, 0, k=1).to_dataframe())
    if section == "`lens-linear linearity`: layers":
        return ["layer", *COLUMNS]
    tokens = [torch.arange(5), torch.arange(6)]
    directions = ll.dynamics.random_directions(model)
    surrogate = ll.fit_surrogate(model, tokens, directions, order=2)
    exact = ll.gain_profile(model, tokens, directions)
    quick = {"target": 0.05, "tolerance": 0.1, "refine_steps": 1}
    contest = ll.evaluate_schedules(model, tokens, directions, **quick)
    frames = [exact.to_dataframe().reset_index(), surrogate.agreement(exact).to_dataframe()]
    return [name for frame in (*frames, contest.to_dataframe()) for name in frame]


@pytest.mark.parametrize(
    "section",
    [
        *(
            f"`lens-linear circuits`: {table}"
            for table in ("heads", "composition", "skip-trigrams")
        ),
        "`lens-linear linearity`: layers",
        "`lens-linear dynamics`: gains",
    ],
)
def test_every_column_that_a_command_prints_is_explained_and_no_other(section):
    whole, ends = told_columns(section)
    there = set(columns_of(section))
    parts = {"layer", "index", "surrogate", "writer", "reader"}  # named in one line with others
    assert whole <= there | parts, whole - there
    assert not [
        name for name in there - whole - {"layer"}
        if not name.endswith(ends or ("\0",)) and name.rsplit("_", 1)[0] not in ("writer", "reader")
    ]  # fmt: skip


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda p: p.stem)
def test_no_link_is_dead(page):
    assert not [str(target) for target in targets(page) if not target.exists()]


def test_paper_has_no_skip_link_and_keeps_a_figure_with_the_code_above_it():
    """Furo's fixed link lay over the last lines of every sheet; its rules made whole pages unbreakable."""
    css = (Path(__file__).resolve().parents[2] / "docs" / "_static" / "site.css").read_text("utf-8")
    paper = css.split("@media print {")[1]
    assert ".skip-to-content { display: none; }" in paper
    assert (
        "figure { break-inside: avoid; break-after: auto;" in paper
        and "break-after: avoid" in paper
    )
