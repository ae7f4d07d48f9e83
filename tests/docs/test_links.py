"""Every written page is reached from README by links alone, as a code host shows them; no link is dead."""

import re
from pathlib import Path

import pytest

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


def test_the_columns_that_a_newcomer_is_told_of_are_those_of_the_profile():
    text = (ROOT / "docs" / "howto" / "own_model.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text, re.M)
    named = {name for row in rows for name in re.findall(r"`(.+?)`", row)}
    whole = {name for name in named if not name.startswith("…")}
    assert len(whole) >= 9 and whole <= set(COLUMNS)
    ends = [name[1:] for name in named - whole]
    left = [
        c for c in COLUMNS if c not in whole and not c.endswith((*ends, "_rank", "_first_share"))
    ]
    assert left == ["layer"]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda p: p.stem)
def test_no_link_is_dead(page):
    assert not [str(target) for target in targets(page) if not target.exists()]
