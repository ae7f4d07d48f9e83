"""One page: bundles once, nothing loads from outside, hostile tokens are shown and never run."""

import html
import itertools
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from plotly.colors import hex_to_rgb, unlabel_rgb

from lens_linear.errors import FigureTooLargeError, InvalidArgumentError
from lens_linear.plots._kinds import table_figure
from lens_linear.plots.circuitsvis import NotebookView, attention_view, bundle_script, safe_json
from lens_linear.plots.style import matrix, styled, tick_label
from lens_linear.reports.page import Attention, Figure, Section, Table, render_page

pytestmark = pytest.mark.whole

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
    assert page.count("plotly.js (cartesian - minified) v") == 1 and "plotly.js v" not in page
    assert page.count("CircuitsVis.render(") == 2
    ids = re.findall(r'<div id="(\w+)"', page)
    assert len(ids) == len(set(ids)) == 4
    assert not re.search(r'<(script|link|img|iframe)[^>]+(src|href)="https?:', page)


def test_pages_without_views_carry_no_bundle():
    page = render_page("t", "l", [Section("s", "p")], settings={})
    assert len(page) < 10_000 and "CircuitsVis" not in page


def test_a_trace_that_the_small_bundle_lacks_brings_the_full_one():
    cloud = Figure(go.Figure(go.Scatter3d(x=[1], y=[1], z=[1])), "cloud")
    page = render_page("t", "l", [Section("s", "p", [cloud])], settings={})
    assert page.count("plotly.js v") == 1 and "cartesian - minified" not in page


def test_findings_stand_first_at_most_five_and_long_tables_fold():
    long = Table(pd.DataFrame({"block_r2": np.linspace(0, 1, 30)}), "all layers")
    sections = [Section(f"s{i}", "p", [long], finding=f"finding {i}") for i in range(7)]
    page = render_page("t", "l", sections, settings={}, go_on=[("next", "x < y")])
    found = page.split("What was found")[1].split("</section>")[0]
    assert re.findall(r"finding (\d)", found) == ["0", "1", "2", "3", "4"]
    assert page.index("What was found") < page.index('id="s1"') < page.index('id="next"')
    assert page.count("<summary>All 30 rows") == 7 and "block R²" in page and "x &lt; y" in page
    short = Table(pd.DataFrame({"a": [1]}), "one")
    assert "<details>" not in render_page("t", "l", [Section("s", "p", [short])], settings={})


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
    frame = NotebookView(
        attention_view(pattern(), HOSTILE, element_id="x"), height=300
    )._repr_html_()
    assert frame.startswith("<iframe") and frame.endswith("</iframe>") and 'height="300"' in frame
    assert frame.count("<") == 2  # everything inside is escaped
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
    shown = re.sub(r"<script.*?</script>", "", dom.split("</head>")[1], flags=re.S)
    assert shown.count("Head Selector") == 2  # both attention views were drawn
    assert "&lt;b&gt;bold&lt;/b&gt;" in dom
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not errors, errors


def told(tmp_path, figures, script, scheme="light", width=960):
    """What a script says of the figures as a browser draws them on a page of that width."""
    blocks = [Figure(styled(figure, title="t"), "t") for figure in figures]
    page = render_page("t", "l", [Section("s", "p", blocks)], settings={})
    page = page.replace("60rem", f"{width}px")
    places = "[...document.querySelectorAll('.js-plotly-plot')]"
    drawn = f"{places}.filter((one) => one.querySelector('.main-svg')).length >= {len(figures)}"
    return answer(tmp_path, page, drawn, script, scheme)


def answer(tmp_path, page, ready, script, scheme="light"):
    """What a script says on a page three seconds after what must be ready is."""
    asking = f"""<script>(function wait() {{
      if (!({ready})) requestAnimationFrame(wait);
      else setTimeout(() => document.title = JSON.stringify({script}), 3000);
    }})()</script></body>"""
    path = tmp_path / f"{scheme}.html"
    path.write_text(page.replace("</body>", asking), encoding="utf-8")
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        f"--user-data-dir={tmp_path / scheme}", "--virtual-time-budget=20000", "--dump-dom",
        f"--blink-settings=preferredColorScheme={('dark', 'light').index(scheme)}", path.as_uri(),
    ]  # fmt: skip
    for _ in range(5):  # on a busy machine the page's own time may run out before it is drawn
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        title = html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.S).group(1))
        if title != "t":
            return json.loads(title)
    raise AssertionError(f"the page was not ready: {done.stderr[-2000:]}")


NAMES = """[...document.querySelectorAll(".textpoint text")].map((one) => {
  const { left, right, top, bottom } = one.getBoundingClientRect();
  return [one.textContent, left, right, top, bottom];
}).filter(([name]) => name)"""


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_names_at_points_do_not_lie_on_each_other(tmp_path):
    names = [f"L{i}H{j}" for i in range(4) for j in range(12)]
    points = {
        "x": [j for _ in range(4) for j in range(12)],
        "y": [i for i in range(4) for _ in range(12)],
    }
    graph = go.Figure(
        go.Scatter(**points, text=names, mode="markers+text", textposition="top center")
    )
    shown = told(tmp_path, [graph], NAMES, width=390)
    apart = 3  # pixels
    clashes = [
        (one, two) for (one, l, r, t, b), (two, left, right, top, bottom) in itertools.combinations(shown, 2)
        if l < right + apart and left < r + apart and t < bottom and top < b
    ]  # fmt: skip
    assert not clashes and {name for name, *_ in shown} >= {"L0H0", "L3H0"} and len(shown) >= 20
    wide = told(tmp_path, [graph], NAMES, width=960)
    assert len(wide) == len(names)  # where there is room, nothing goes


BOXES = """(() => {
  const box = (part) => {
    const { left, right, top, bottom } = part.getBoundingClientRect();
    return { left, right, top, bottom, width: right - left };
  };
  const shown = document.getElementById(document.querySelector("[data-figure]").dataset.figure);
  const one = (where) => [...shown.querySelectorAll(where)].map(box);
  return {
    plot: one(".nsewdrag"), legend: one(".legend"), ytitle: one(".ytitle"), title: one(".gtitle-subtitle"),
    scrolls: getComputedStyle(shown).overflowX, place: box(shown), around: box(shown.parentNode),
    cells: [...shown.querySelectorAll(".column-cell")].map((cell) =>
      [".cell-rect", ".cell-text"].map((part) => box(cell.querySelector(part)).width)),
  };
})()"""


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_a_long_legend_takes_its_room_from_the_page_and_a_long_name_stays_beside_its_axis(tmp_path):
    lines = [go.Scatter(x=[0, 1], y=[0, i], name=f"{i}, a name of some length") for i in range(6)]
    figure = go.Figure(lines).update_yaxes(
        title="R² of the best affine map (share of variance explained)"
    )
    styled(figure, title="t", subtitle="a subtitle", height=420)
    heights = []
    for width in (390, 960):
        found = told(tmp_path, [figure], BOXES, width=width)
        [plot], [legend], [name], [title] = (
            found[part] for part in ("plot", "legend", "ytitle", "title")
        )
        heights.append(plot["bottom"] - plot["top"])
        assert plot["bottom"] < legend["top"]
        assert name["top"] >= title["bottom"] - 1 and name["bottom"] <= legend["top"], width
    assert heights[0] > 0.75 * heights[1]


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_words_of_a_table_are_whole_on_a_narrow_page(tmp_path):
    heads = ("source …", "destination →", "out", "effect (logits)", "Δ probability", "attention")
    wide = table_figure({head: ["somewhere", "there"] for head in heads}, title="t", subtitle="s")
    small = table_figure({"a": ["one two three", "b"], "what": ["c", "d"]}, title="t", subtitle="s")
    for figure, scrolls in ((wide, "auto"), (small, "visible")):
        found = told(tmp_path, [figure], BOXES, width=390)
        assert found["scrolls"] == scrolls and found["cells"]
        assert all(text <= cell for cell, text in found["cells"]), found["cells"]
        assert found["place"]["right"] <= found["around"]["right"] + 1


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(
    ("n_heads", "width", "asked"), [(4, 900, 300), (12, 390, 300), (2, 390, 1500)]
)
def test_a_frame_of_attention_fits_what_it_shows(tmp_path, n_heads, width, asked):
    view = attention_view(pattern(n_heads), list("abcdefgh"), element_id="heads")
    frame = NotebookView(view, height=asked)._repr_html_()
    script = """(() => {
      const frame = document.querySelector("iframe");
      const parts = [...frame.contentDocument.querySelectorAll("canvas")];
      return [frame.clientHeight, Math.max(...parts.map((part) => part.getBoundingClientRect().bottom))];
    })()"""
    page = f"<!doctype html><title>t</title><body style='width:{width}px'>{frame}</body>"
    ready = "document.querySelector('iframe').contentDocument?.querySelector('canvas')"
    height, needed = answer(tmp_path, page, ready, script)
    assert 300 < needed <= height < needed + 60


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_whiskers_of_bars_are_seen_on_a_dark_page(tmp_path):
    bars = go.Figure(go.Bar(x=[1, 2], y=[0, 1], orientation="h", error_x={"array": [0.1, 0.2]}))
    script = """[...document.querySelectorAll(".errorbar path")].map((one) => getComputedStyle(one).stroke)"""
    strokes = told(tmp_path, [bars], script, "dark")
    assert len(strokes) == 2 and all(min(unlabel_rgb(stroke)) > 150 for stroke in strokes), strokes


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_buttons_of_figures_are_not_printed(tmp_path):
    bars = go.Figure(go.Bar(x=[1, 2], y=[0, 1]))
    count = "document.querySelectorAll('.modebar').length"
    later = f"setTimeout(() => document.title = {count}, 3000)"
    assert told(tmp_path, [bars], count) == 1
    assert told(tmp_path, [bars], f"(dispatchEvent(new Event('beforeprint')), {later})") == 0


def sheets(tmp_path, sections, width):
    """Pages of paper that a report takes when it is printed from a window of that width."""
    path, paper = tmp_path / "print.html", tmp_path / "print.pdf"
    path.write_text(render_page("t", "l", sections, settings={}), encoding="utf-8")
    subprocess.run(
        [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         f"--user-data-dir={tmp_path / 'print'}", "--virtual-time-budget=5000", "--no-pdf-header-footer",
         f"--window-size={width},1000", f"--print-to-pdf={paper}", path.as_uri()],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    return len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes()))


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_no_printed_page_is_left_empty_before_a_table_or_an_attention_view(tmp_path):
    table = Table(pd.DataFrame({"a": np.arange(12) / 7, "b": np.arange(12) / 3}), "caption " * 90)
    assert sheets(tmp_path, [Section("s", "p", [table] * 4)], 800) == 3  # four of 0.6 pages
    names = [f"L1H{i}" for i in range(4)]
    view = Attention(pattern(4, 20), ["word"] * 20, names, "caption")
    assert sheets(tmp_path, [Section("s", "p", [view])], 700) == 1
    assert sheets(tmp_path, [Section("s", "p", [view])], 1400) <= 2  # the settings may take one


def hex_or_rgb(shade):
    return shade if shade.startswith("rgb") else f"rgb{hex_to_rgb(shade)}"


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_on_a_dark_page_what_is_near_zero_is_near_the_ground(tmp_path):
    figures = [
        matrix([[-1.0, 1.0]]),
        matrix([[0.0, 1.0]], diverging=False),
        go.Figure(go.Heatmap(z=[[0, 1]], colorscale=[[0, "#FFFFFF"], [1, "#0072B2"]])),
    ]
    scales = (
        '[...document.querySelectorAll(".js-plotly-plot")].map((one) => one.data[0].colorscale)'
    )
    light, dark = (
        [
            np.array([unlabel_rgb(hex_or_rgb(shade)) for _, shade in scale])
            for scale in told(tmp_path, figures, scales, scheme)
        ]
        for scheme in ("light", "dark")
    )
    signed, unsigned, verdict = ([scale.mean(1) for scale in scales] for scales in zip(light, dark))
    middle = len(signed[0]) // 2
    assert signed[0].argmax() == middle and signed[0][middle] > 240
    assert np.all(np.diff(signed[1][: middle + 1]) < 0) and np.all(np.diff(signed[1][middle:]) > 0)
    assert signed[1][middle] < 40 and min(signed[1][0], signed[1][-1]) > 150
    hues = [dark[0][0], dark[0][-1]]
    assert hues[0].argmax() == 0 and hues[1].argmax() == 2  # red stays red, blue stays blue
    np.testing.assert_array_equal(*unsigned)  # viridis begins dark as it is
    assert verdict[0][0] == 255 and verdict[1][0] < 40 and verdict[0][1] == verdict[1][1]


def test_a_rounded_zero_has_no_minus():
    frame = pd.DataFrame({"rise": [-0.0001, -0.25, 0.0004]})
    page = render_page("t", "l", [Section("s", "p", [Table(frame, "c")])], settings={})
    assert "-0.000" not in page and ">0.000<" in page and "-0.250" in page
