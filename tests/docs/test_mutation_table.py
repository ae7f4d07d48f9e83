"""The table of mutants on the page is what its file says."""

import re
from pathlib import Path

import pandas as pd

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_table_counts_the_rows_of_its_file():
    text = (DOCS / "mutation.md").read_text(encoding="utf-8")
    rows = pd.read_csv(DOCS / "results" / "mutation.csv", keep_default_na=False)
    assert set(rows.when_drawn) <= {"killed", "survived"}
    assert set(rows.now) <= {"killed", "equivalent", "survives"}
    changed = rows[rows.when_drawn != rows.now]
    assert (changed.when_drawn == "survived").all() and (changed.why != "").all()
    rooms = rows.groupby(rows.draw.str.split().str[0])
    for name, mine in [*rooms, ("**all**", rows)]:
        n, drawn = len(mine), int((mine.when_drawn == "killed").sum())
        now = [int((mine.now == what).sum()) for what in ("killed", "equivalent", "survives")]
        share = [f"{count} ({count / n:.0%})" for count in (drawn, now[0])]
        cells = [name, mine.draw.nunique(), n, *share, *now[1:]]
        assert f"| {' | '.join(map(str, cells))} |" in text, cells
    assert len(re.findall(r"^\| \w+ \| \d", text, re.MULTILINE)) == len(rooms)
