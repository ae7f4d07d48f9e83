import html
import re
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_linear.errors import InvalidArgumentError
from lens_linear.text import html_label, token_label, token_labels, unique_labels

HOSTILE = [
    "</script>",
    "<script>alert(1)</script>",
    "<b>",
    "</s>",
    "<|endoftext|>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='x",
    "&amp;",
    "&lt;b&gt;",
    "a & b",
    "$\\frac{1}{2}$",
    "%{x}",
    "<br>",
    "<a href='javascript:alert(1)'>x</a>",
    "",
    " ",
    "\n",
    "\u2028",
    "\u202eabc",
    "\x00\x1b[31m",
    "\ud800",
]
ANY_TEXT = st.text(alphabet=st.characters(), max_size=12)  # surrogates and controls included


@pytest.mark.parametrize(
    "token, label",
    [
        (" the", "␣the"),
        ("Ġthe", "␣the"),
        ("▁the", "␣the"),
        ("\n", "↵"),
        ("Ċ", "↵"),
        ("\t", "⇥"),
        ("\r\n", "⟨000D⟩↵"),
        ("", "∅"),
        ("\x00", "⟨0000⟩"),
        ("\x1b", "⟨001B⟩"),
        ("\x7f", "⟨007F⟩"),
        ("\x85", "⟨0085⟩"),
        ("\u200b", "⟨200B⟩"),
        ("\u202e", "⟨202E⟩"),
        ("\u00a0x", "⟨00A0⟩x"),
        ("\ufeff", "⟨FEFF⟩"),
        ("\ud83d", "⟨D83D⟩"),
        ("č", "č"),
        ("déjà", "déjà"),
        ("日本", "日本"),
        ("<b>", "<b>"),
        ("e\u0301", "e\u0301"),
        ("\u0301", "⟨0301⟩"),
        (" \u0301x", "␣⟨0301⟩x"),
        ("\u0301\u0327", "⟨0301⟩⟨0327⟩"),
        ("\u200b\u093e", "⟨200B⟩⟨093E⟩"),
        ("\u20dd", "⟨20DD⟩"),
    ],
)
def test_known_labels(token, label):
    assert token_label(token) == label


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT)
def test_every_label_can_be_seen(token):
    label = token_label(token)
    assert label
    assert not any(c.isspace() for c in label)
    assert all(unicodedata.category(c)[0] != "C" for c in label)
    label.encode("utf-8")


class Sniffer(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.attributes = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(attrs)

    def handle_data(self, data):
        self.text += data


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT | st.sampled_from(HOSTILE))
def test_html_shows_the_label_and_nothing_else(token):
    sniffer = Sniffer()
    escaped = html_label(token)
    sniffer.feed(f"<p title=\"{escaped}\" class='{escaped}'>{escaped}</p>")
    sniffer.close()
    assert sniffer.tags == ["p"]
    assert sniffer.attributes == [[("title", token_label(token)), ("class", token_label(token))]]
    assert sniffer.text == token_label(token)
    assert not set(escaped) & set("<>\"'$") and "%{" not in escaped
    assert html.unescape(escaped) == token_label(token)
    # Plotly knows only a few named entities; seen in a rendered figure: it shows "&quot;" as it is.
    assert set(re.findall(r"&([a-z]+);", escaped)) <= {"amp", "lt", "gt"}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "a₂", "a₃", "b₁", "", "a₂₂"]), max_size=12))
def test_unique_labels_are_unique(labels):
    unique = unique_labels(labels)
    assert len(unique) == len(labels) == len(set(unique))
    assert all(new.startswith(old) for old, new in zip(labels, unique))
    firsts = {label: labels.index(label) for label in labels}
    assert all(unique[index] == label for label, index in firsts.items())


def test_long_labels_keep_both_ends():
    assert token_label("abcdefghij", max_length=5) == "ab…ij"
    assert token_label("abcde", max_length=5) == "abcde"
    assert len(token_label("x" * 100, max_length=8)) == 8
    assert html_label("<" * 9, max_length=3) == "&lt;…&lt;"


def test_lists_and_errors():
    assert token_labels([" a", " a"]) == ["␣a", "␣a"]
    for function in (token_labels, unique_labels):
        with pytest.raises(InvalidArgumentError, match="wrap it"):
            function("abc")
    with pytest.raises(InvalidArgumentError, match="decode the id"):
        token_label(17)


def test_every_letter_that_unicode_calls_ignorable_is_shown_as_its_code():
    regex = pytest.importorskip("regex", reason="the oracle is regex's Unicode tables")
    ignorable = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{C}\p{Zl}\p{Zp}]")
    shown = {"\n": "↵", "\t": "⇥"}
    for code in range(0x110000):
        character = chr(code)
        if ignorable.match(character):
            assert token_label(character) == shown.get(character, f"⟨{code:04X}⟩")
    assert token_label("\u2800") == "⟨2800⟩" and token_label("␢é中") == "␢é中"
