"""Hostile names and tokens in every figure and page: text, never markup. No pickle, no network."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from robust_counts import count
from robust_figures import FIGURES, HOSTILE, LABELS, NAME, attention_only, draw, gpt

import lens_linear as ll
from lens_linear import plots
from lens_linear.plots.circuitsvis import NotebookView
from lens_linear.reports.page import Attention, Figure, Section, Table, render_page

pytestmark = pytest.mark.whole

PACKAGE = Path(ll.__file__).parent
# What plotly would act on: tags, placeholders of hover templates, mathematics between dollars.
LIVE = re.compile(r"<\s*/?\s*(script|img|svg|a|b|iframe|s)\b[^>]*>|%\{EVIL|\$EVIL", re.IGNORECASE)


def texts(node):
    """Every string of a figure, tick labels and hover texts included."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from texts(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from texts(value)


def test_every_figure_is_tried():
    assert set(FIGURES) == set(plots.__all__) - {"style", *plots.style.__all__}


@pytest.mark.parametrize("name", FIGURES)
def test_no_figure_holds_live_markup(name):
    figure = draw(name)
    count("figures drawn with hostile text")
    if isinstance(figure, NotebookView):
        html = figure._repr_html_()
        assert html.count("<") == 2 and "EVIL" in html
        return
    for text in texts(json.loads(figure.to_json())):
        assert not LIVE.search(text), (name, text)


SHOWS_TOKENS = (
    "attention_pattern",
    "bigram_table",
    "steered_text",
    "skip_trigram_table",
    "circuit_window",
    "svd_directions",
)


@pytest.mark.parametrize("name", SHOWS_TOKENS)
def test_hostile_text_is_still_there_to_read(name):
    shown = " ".join(texts(json.loads(draw(name).to_json())))
    assert "EVIL" in shown and "&lt;" in shown


def test_a_notebook_table_escapes_its_cells():
    for table in (ll.AttentionOnly(attention_only(), labels=LABELS).skip_trigrams(1, 0, k=20),):
        html = table._repr_html_()
        assert "EVIL" in html and not re.search(r"<(script|img|svg|b)\b", html)


def test_a_report_of_a_hostile_model_shows_its_name(tmp_path):
    model = ll.load("attn-1l")
    model.cfg.model_name = NAME.replace("/", "|")  # what stands before a slash is a folder
    path = ll.report(model, tmp_path / "page.html", n_sequences=40)
    page = path.read_text(encoding="utf-8")
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert "EVIL" in body and "<img" not in body and "<b>EVIL" not in body
    check_nothing_loads(page)


def check_nothing_loads(page: str) -> None:
    """No attribute that fetches from elsewhere, and no style that asks for one."""
    tags = "script|link|img|iframe|source|audio|video|object|embed"
    outside = rf"<({tags})\b[^>]*?(src|href|data)=[\"']?(https?:)?//"
    assert not re.search(outside, page, re.I)
    without_scripts = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", without_scripts)


def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    return None


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_a_real_browser_runs_nothing_of_all_figures_on_one_page(tmp_path):
    blocks, notebooks = [], []
    for name in FIGURES:
        figure = draw(name)
        (notebooks if isinstance(figure, NotebookView) else blocks).append(figure)
    page = render_page(
        HOSTILE[0], NAME, [Section(NAME, NAME, [Figure(figure, NAME) for figure in blocks])],
        settings={NAME: NAME},
    )  # fmt: skip
    check_nothing_loads(page)
    # Anything that were to run would change the title of the page that holds it.
    frames = "".join(view._repr_html_() for view in notebooks)
    path = tmp_path / "page.html"
    page = page.replace("</main>", frames + "</main>")
    # Figures are drawn as they come into view; a printer asks for all of them.
    ask = "<script>dispatchEvent(new Event('beforeprint'))</script>"
    path.write_text(page.replace("</body>", ask + "</body>"), encoding="utf-8")
    done = subprocess.run(
        [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
         "--virtual-time-budget=30000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    dom = done.stdout
    title = re.search(r"<title>(.*?)</title>", dom, re.S).group(1)
    assert title.startswith("&lt;/script&gt;"), "the title is still the text it was"
    drawn = dom.count('class="main-svg"')
    assert drawn >= len(blocks), (drawn, len(blocks))
    after = re.sub(r"<script.*?</script>", "", dom.split("</head>")[1], flags=re.S)
    tags = re.findall(r"<[a-z][^<>]*>", re.sub(r'="[^"]*"', "", after))
    bad = [tag for tag in tags if re.match(r"<(img|b|embed|object)\b|<\w+[^>]*\bon\w+", tag)]
    assert not bad, bad[:5]
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not errors, errors[:3]


# Grading runs students' code in a process of its own on purpose. What goes there is pickled by the judge,
# what comes back never is; the two talk over a pair of local sockets.
GRADING = {PACKAGE / "teaching" / "notebook_process.py", PACKAGE / "teaching" / "wire.py"}


def test_there_is_no_pickle_and_no_evaluation_in_the_package():
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    calls = {"eval", "exec", "compile", "__import__"}
    for path in set(PACKAGE.rglob("*.py")) - GRADING:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & forbidden, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in forbidden, path
            elif isinstance(node, ast.Call):
                target = node.func
                if isinstance(target, ast.Name):
                    assert target.id not in calls, (path, node.lineno)
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                    name = f"{target.value.id}.{target.attr}"
                    only_tensors = any(
                        word.arg == "weights_only" and ast.literal_eval(word.value) is True
                        for word in node.keywords
                    )
                    assert name not in ("torch.save", "np.load"), (path, node.lineno)
                    assert name != "torch.load" or only_tensors, (path, node.lineno)
                    if name == "yaml.load":
                        raise AssertionError(path)


def test_no_bundled_file_is_a_pickle():
    suffixes = {
        path.suffix for path in (PACKAGE / "models" / "bundled_models").rglob("*") if path.is_file()
    }
    assert suffixes == {".safetensors", ".json"}


def test_only_the_hub_and_datasets_may_reach_the_network():
    """Nothing in the package opens a connection itself; two files hand names to libraries that may."""
    for path in set(PACKAGE.rglob("*.py")) - GRADING:
        text = path.read_text(encoding="utf-8")
        for module in (
            "socket",
            "urllib.request",
            "requests",
            "http.client",
            "httpx",
            "aiohttp",
            "ftplib",
        ):
            assert not re.search(rf"^\s*(import|from) {re.escape(module)}\b", text, re.M), (
                path,
                module,
            )


def test_bundled_models_ask_for_nothing(monkeypatch):
    """The sockets of the whole suite are blocked (tests/conftest.py); loading must not even try."""
    import socket

    asked = []
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *a, **k: asked.append(a) or (_ for _ in ()).throw(OSError())
    )
    for name in ll.available_models().query("state == 'bundled'")["name"]:
        model = ll.load(name)
        ll.evaluation_tokens(model, n_sequences=2)
    assert not asked


def test_attention_views_and_tables_of_hostile_tokens():
    result = FIGURES["attention_pattern"]()
    frame = (
        ll.AttentionOnly(attention_only(), labels=LABELS).skip_trigrams(1, 0, k=20).to_dataframe()
    )
    attention = Attention(result.pattern, LABELS[: result.pattern.shape[-1]], [NAME, "b"], NAME)
    page = render_page(
        NAME, NAME, [Section(NAME, NAME, [attention, Table(frame, NAME)])],
        settings={"model": gpt().cfg.model_name},
    )  # fmt: skip
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert "EVIL" in body and not re.search(r"<(img|svg|b|a href=.java)\b", body)
    assert page.count("</script><script>document") == 0
