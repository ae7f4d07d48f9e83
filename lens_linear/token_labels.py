r"""Token strings as labels that can be read, told apart, and never executed.

``token_label`` makes the invisible visible, ``unique_labels`` keeps repeated tokens apart on an
axis, ``html_label`` makes a label safe inside HTML and inside plotly text.

>>> token_label(" the"), token_label("Ġthe"), token_label("\n"), token_label("")
('␣the', '␣the', '↵', '∅')
>>> unique_labels(["the", "cat", "the"])
['the', 'cat', 'the₂']
>>> html_label("</script>")
'&lt;/script&gt;'
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

from lens_linear.checks import require_instance, require_int, require_list
from lens_linear.errors import InvalidArgumentError

EMPTY = "∅"
SPACE = "␣"
# Ġ and Ċ are how byte-level BPE vocabularies spell a space and a newline, ▁ is SentencePiece's.
_VISIBLE = {
    " ": SPACE,
    "Ġ": SPACE,
    "▁": SPACE,
    "\n": "↵",
    "Ċ": "↵",
    "\t": "⇥",
}
# Letters without ink are told by Unicode's own names (HANGUL FILLER, BRAILLE PATTERN BLANK, VARIATION
# SELECTOR-16, COMBINING GRAPHEME JOINER, KHMER VOWEL INHERENT AQ); BLANK SYMBOL (␢) has ink.
_NO_INK = re.compile(r"\b(FILLER|SELECTOR|JOINER|BLANK|INHERENT|NULL NOTEHEAD)\b(?! SYMBOL)")
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def token_label(token: str, *, max_length: int | None = None) -> str:
    """One token as printable text on one line; never empty.

    Spaces (also ``Ġ`` and ``▁``) become ``␣``, newlines (also ``Ċ``) ``↵``, tabs ``⇥``, the empty
    string ``∅``. Anything else that would be invisible or move its neighbours (control characters,
    zero-width and right-to-left marks, lone surrogates, odd spaces, fillers and blanks, variation
    selectors, a combining mark with nothing to stand on) becomes its code point, ``⟨200B⟩``; the Unicode
    pictures of control characters are missing from many fonts. Markup such as ``<b>`` is left as it is
    here: :func:`html_label` makes it safe.

    Args:
        token: a vocabulary entry or a decoded token. A real ``Ġ``, ``Ċ`` or ``▁`` in a text is
            shown as a space or newline too; the two cannot be told apart from the string.
        max_length: longest label in characters; the middle of a longer one becomes ``…``.

    Returns:
        The label, at least one character.

    Raises:
        InvalidArgumentError: ``token`` is not a string, or ``max_length`` is below 3.

    Example:
        >>> token_label("Ġthe"), token_label(""), token_label("incomprehensible", max_length=7)
        ('␣the', '∅', 'inc…ble')
    """
    if not isinstance(token, str):
        raise InvalidArgumentError(
            f"token must be a string, got {token!r} ({type(token).__name__}); decode the id first"
        )
    return _shortened(_visible_text(token) or EMPTY, max_length)


def text_label(text: str, *, max_length: int | None = None) -> str:
    r""":func:`token_label` for text of several words: spaces between words stay, outer ones are marked.

    Args:
        text: any text.
        max_length: longest label in characters; the middle of a longer one becomes ``…``.

    Returns:
        The label, at least one character, on one line.

    Raises:
        InvalidArgumentError: ``text`` is not a string, or ``max_length`` is below 3.

    Example:
        >>> text_label(" the old\nman "), text_label("\u3164")
        ('␣the old↵man␣', '⟨3164⟩')
    """
    if not isinstance(text, str):
        return token_label(text)  # which says what it must be
    inner = " ".join(_visible_text(word) for word in text.strip(" ").split(" "))
    before, after = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    label = SPACE * before + inner + SPACE * after * bool(inner) or EMPTY
    return _shortened(label, max_length)


def token_labels(tokens: Sequence[str], *, max_length: int | None = None) -> list[str]:
    """:func:`token_label` of each token, in order; repeated tokens give repeated labels.

    Args:
        tokens: vocabulary entries or decoded tokens.
        max_length: longest label in characters.

    Returns:
        One label a token.

    Raises:
        InvalidArgumentError: ``tokens`` is one string, or holds something that is none.

    Example:
        >>> token_labels(["Ġa", "Ċ", "Ġa"])
        ['␣a', '↵', '␣a']
    """
    items = require_list("tokens", tokens, of="strings")
    return [token_label(token, max_length=max_length) for token in items]


def unique_labels(labels: Sequence[str]) -> list[str]:
    """The same labels, made different from each other: the k-th occurrence gets a subscript k.

    A plot axis merges equal categories, so ``the cat the`` would lose a column. The suffix is
    visible on purpose: an invisible one (zero-width characters) would look right and then fail in
    searches, copies and exported tables. The first occurrence stays as it is, and a suffix that is
    already taken by another label is skipped.

    Args:
        labels: any labels, e.g. from :func:`token_labels`.

    Returns:
        As many labels, all different, in the same order.

    Raises:
        InvalidArgumentError: ``labels`` is one string, or holds something that is none.

    Example:
        >>> unique_labels(["a", "a", "a₂"])
        ['a', 'a₃', 'a₂']
    """
    for label in (labels := require_list("labels", labels, of="strings")):
        require_instance("labels", label, str, advice="make each label a string")
    taken = set(labels)
    counts: dict[str, int] = {}
    result = []
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
        new = label
        if counts[label] > 1:
            new = _numbered(label, counts[label])
            while new in taken:
                counts[label] += 1
                new = _numbered(label, counts[label])
            taken.add(new)
        result.append(new)
    return result


def html_label(token: str, *, max_length: int | None = None) -> str:
    """:func:`token_label`, escaped so that HTML and plotly show it literally and run nothing.

    ``& < > " '`` become entities (the quotes numeric ones: plotly shows ``&quot;`` as it stands).
    So do ``$``, because plotly hands text between dollar signs to MathJax, and the brace of ``%{``,
    which is a placeholder in plotly's hover templates.

    Args:
        token: a vocabulary entry or a decoded token.
        max_length: longest label in characters before it is escaped; the middle of a longer one becomes
            ``…``.

    Returns:
        The escaped label.

    Raises:
        InvalidArgumentError: ``token`` is not a string, or ``max_length`` is below 3.

    Example:
        >>> html_label("<b>"), html_label("a & 'b'"), html_label("$x$")
        ('&lt;b&gt;', 'a␣&amp;␣&#x27;b&#x27;', '&#36;x&#36;')
    """
    escaped = html.escape(token_label(token, max_length=max_length), quote=True)
    return escaped.replace("&quot;", "&#34;").replace("$", "&#36;").replace("%{", "%&#123;")


def _visible_text(text: str) -> str:
    """Every character visible; a combining mark stays on a character that is shown as itself."""
    shown, based = [], False
    for character in text:
        lone = not based and unicodedata.category(character)[0] == "M"
        shown.append(_code(character) if lone else _visible(character))
        based = shown[-1] == character
    return "".join(shown)


def _code(character: str) -> str:
    return f"⟨{ord(character):04X}⟩"


def _visible(character: str) -> str:
    if character in _VISIBLE:
        return _VISIBLE[character]
    if character.isascii() and character.isprintable():
        return character
    # Controls, formats, surrogates, unassigned (C*), every separator (Z*), and letters without ink.
    kind = unicodedata.category(character)[0]
    if kind in "CZ" or (kind != "P" and _NO_INK.search(unicodedata.name(character, ""))):
        return _code(character)
    return character


def _shortened(label: str, max_length: int | None) -> str:
    if max_length is None or len(label) <= require_int("max_length", max_length, minimum=3):
        return label
    tail = (max_length - 1) // 2
    return label[: max_length - 1 - tail] + "…" + label[len(label) - tail :]


def _numbered(label: str, number: int) -> str:
    return label + str(number).translate(_SUBSCRIPTS)
