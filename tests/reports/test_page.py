"""One page: bundles once, nothing loads from outside, hostile tokens are shown and never run."""

import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from lens_linear.errors import FigureTooLargeError, InvalidArgumentError
from lens_linear.plots.circuitsvis import NotebookView, attention_view, bundle_script, safe_json
from lens_linear.plots.style import styled, tick_label
from lens_linear.reports.page import Attention, Figure, Section, Table, render_page

ATTACK = "document.title='HACKED'"
HOSTILE = [
    f"</script><script>{ATTACK}</script>",
    "<b>bold</b>",
    "</s>",
    "\n",
    "",
    "twice",
    "twice",
    f'<img src=x onerror="{ATTACK}">',
]


def pattern(heads=2, n=8):
    values = np.tril(np.ones((heads, n, n)))
    return values / values.sum(-1, keepdims=True)


def hostile_page():
    bars = go.Figure(
        go.Bar(x=list(range(8)), y=list(range(8)), text=[tick_label(t) for t in HOSTILE])
    )
    bars.update_xaxes(tickvals=list(range(8)), ticktext=[tick_label(t) for t in HOSTILE])
    blocks = [
        Figure(styled(bars, title="bars", x="x", y="y"), HOSTILE[0]),
        Figure(styled(go.Figure(go.Scatter(y=[1, 3, 2])), title="line", x="x", y="y"), "line"),
        Table(pd.DataFrame({"token": HOSTILE, "value": np.arange(8) / 3}), HOSTILE[7]),
        Attention(pattern(), HOSTILE, [HOSTILE[0], "b"], "first"),
        Attention(pattern(), HOSTILE, ["a", "b"], "second"),
    ]
    return render_page(
        HOSTILE[0],
        HOSTILE[7],
        [Section(HOSTILE[1], HOSTILE[0], blocks)],
        settings={"x": HOSTILE[0]},
    )


def test_each_bundle_is_there_once_and_every_view_has_its_element():
    page = hostile_page()
    assert page.count("var CircuitsVis") == 1
    assert page.count("plotly.js v") == 1
    assert page.count("CircuitsVis.render(") == 2 and page.count("Plotly.newPlot(") == 2
    ids = re.findall(r'<div id="(\w+)"', page)
    assert len(ids) == len(set(ids)) == 4
    assert not re.search(r'<(script|link|img|iframe)[^>]+(src|href)="https?:', page)


def test_pages_without_views_carry_no_bundle():
    page = render_page("t", "l", [Section("s", "p")], settings={})
    assert len(page) < 10_000 and "CircuitsVis" not in page


def test_settings_can_be_read_back():
    page = hostile_page()
    found = re.search(r'id="settings">(.*?)</script>', page, re.S).group(1)
    assert json.loads(found) == {"x": HOSTILE[0]}


def test_json_holds_no_markup():
    text = safe_json({"a": "</script>\u2028&"})
    assert (
        "<" not in text and "\u2028" not in text and json.loads(text) == {"a": "</script>\u2028&"}
    )


def test_views_refuse_what_does_not_fit():
    with pytest.raises(InvalidArgumentError, match="shape"):
        attention_view(pattern(n=3), ["a"], element_id="x")
    with pytest.raises(InvalidArgumentError, match="plain word"):
        attention_view(pattern(), HOSTILE, element_id="x y")
    with pytest.raises(FigureTooLargeError):
        attention_view(pattern(), HOSTILE, element_id="x", max_cells=10)


def test_the_notebook_view_is_one_closed_frame_of_fixed_height():
    html = NotebookView(
        attention_view(pattern(), HOSTILE, element_id="x"), height=300
    )._repr_html_()
    assert html.startswith("<iframe") and html.endswith("</iframe>") and 'height="300"' in html
    assert html.count("<") == 2  # everything inside is escaped
    assert bundle_script().count("sourceMappingURL") == 0


def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    return None


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_a_real_browser_shows_hostile_tokens_and_runs_nothing(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(hostile_page(), encoding="utf-8")
    done = subprocess.run(
        [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=20000",
         "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    dom = done.stdout
    title = re.search(r"<title>(.*?)</title>", dom, re.S).group(1)
    assert "HACKED" in title and title.startswith("&lt;/script&gt;")  # the text, not the effect
    assert dom.count('class="main-svg"') >= 2  # both figures were drawn
    assert dom.split("</head>")[1].count("Head Selector") == 2  # both attention views were drawn
    assert "&lt;b&gt;bold&lt;/b&gt;" in dom
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not errors, errors
