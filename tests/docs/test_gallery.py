"""The gallery: every figure has its entry; one that fails, or shows another figure, ends the build."""

import ast
import re
import sys
from pathlib import Path

import pytest

from lens_linear import plots

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS / "_ext"))
import gallery  # noqa: E402

HELPERS = {"style", *plots.style.__all__}  # not figures
TEXT = (DOCS / "gallery.md").read_text(encoding="utf-8")
TOY = """## Room

```python
model = ll.toy_model()
```

### A map.

```python
ll.composition_scores(model, n_random=3).plot()
```

![old words](images/gallery-composition-map.png)
"""


def test_every_figure_has_one_entry_a_picture_and_its_words():
    drawn = [line for line in TEXT.splitlines() if line.startswith("![")]
    names = [gallery.IMAGE.fullmatch(line)[1] for line in drawn]
    assert sorted(names) == sorted(n.replace("_", "-") for n in plots.__all__ if n not in HELPERS)
    assert all((DOCS / "images" / f"gallery-{name}.png").is_file() for name in names)
    assert all(len(line.split("](")[0]) > 30 for line in drawn)  # a text alternative
    assert TEXT.count("\n### ") == len(names)


def test_the_code_asks_for_public_names_only():
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] != "lens_linear", code


def test_a_block_is_run_and_its_picture_becomes_the_figure():
    page = gallery.run(TOY, gallery.live)
    assert "![" not in page and page.count("```python") == 2
    assert 'data-figure="figure-composition-map"' in page and '"heatmap"' in page
    assert 'aria-label="Composition of heads.' in page


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_random=3", "n_random=0", "line 10 failed: InvalidArgumentError: n_random"),
        ("composition-map", "head-scores", "draws plots.composition_map"),
        ("n_random=3).plot()", "n_random=3).plot();", "no figure stands above"),
        ("ll.toy_model()", "ll.toy_model(", "line 4 failed: SyntaxError"),
    ],
)
def test_a_fault_in_an_entry_ends_the_build(old, new, message):
    text = TOY.replace(old, new).replace(".plot();", "\nx = 1")
    with pytest.raises(gallery.GalleryError, match=re.escape(message)):
        gallery.run(text, gallery.live)


def test_words_before_a_colon_in_a_property_are_no_type():
    sys.path.insert(0, str(DOCS))
    import conf

    class Kind:
        pass

    for before, after in (("A share", "of the whole."), ("Words: more", "and more.")):
        lines = [after, "", f":type: {before}", "", "A second paragraph."]  # as napoleon leaves it
        conf.keep_colons(None, "property", "x", Kind, None, lines)
        assert lines[0] == f"{before}: {after}" and "A second paragraph." in lines
        assert not any(line.startswith(":type:") for line in lines)
    kept = ["A number.", "", ":type: int"]
    conf.keep_colons(None, "attribute", "x", Kind, None, kept)
    assert kept == ["A number.", "", ":type: int"]
