"""Sentences count in the singular where there is one: "1 row", not "1 rows"."""

import ast
import re
from pathlib import Path

import pytest

import lens_linear
from lens_linear.checks import counted

NOUNS = (
    "answer|block|column|component|concept|curve|direction|draw|exercise|head|key|layer|map|model|note|"
    "notebook|pair|path|pattern|point|position|prompt|row|run|schedule|section|seed|sender|sentence|"
    "sequence|setting|step|surrogate|task|text|token|update|variant"
)
NUMBERED = re.compile(rf"^ (random |affine |held-out |context )?({NOUNS}|quer)(s|ies)\b(?! ×)")
# Names of strings: words, or several numbers.
WORDS = {
    "pairs",
    "sites",
    "sizes",
    "self.baseline",
    "scores.baseline",
    "tuple(self.overview.shape)",
}


@pytest.mark.parametrize(
    ("n", "noun", "words"),
    [(1, "row", "1 row"), (0, "row", "0 rows"), (2, "query", "2 queries"), (3, "key", "3 keys"),
     (1, "query", "1 query"), (4, "patch", "4 patches"), (2, "affine map", "2 affine maps"),
     (2, "epoch", "2 epochs"), (1, "epoch", "1 epoch"), (5, "training epoch", "5 training epochs")],
)  # fmt: skip
def test_a_number_and_what_it_counts(n, noun, words):
    assert counted(n, noun) == words
    assert counted(12_000, noun, ",").startswith("12,000 ")


def sentences(tree):
    """Texts with values in what a result says of itself, and below a title."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__repr__":
            yield from (part for part in ast.walk(node) if isinstance(part, ast.JoinedStr))
        if isinstance(node, ast.keyword) and node.arg == "subtitle":
            yield from (part for part in ast.walk(node) if isinstance(part, ast.JoinedStr))


def test_no_sentence_of_a_result_or_a_figure_counts_one_as_many():
    found = []
    for path in Path(lens_linear.__file__).parent.rglob("*.py"):
        for text in sentences(ast.parse(path.read_text("utf-8"))):
            for before, value, after in zip([None, *text.values], text.values, text.values[1:]):
                if not isinstance(value, ast.FormattedValue) or not isinstance(after, ast.Constant):
                    continue
                product = isinstance(before, ast.Constant) and before.value.endswith(("× ", " to "))
                said = ast.unparse(value.value)
                spec = "" if value.format_spec is None else ast.unparse(value.format_spec)[2:-1]
                several = ".join(" in said or " to " in said or value.conversion > 0
                number = spec in ("", ",") and not (product or several or said in WORDS)
                if number and NUMBERED.match(after.value):
                    found.append(f"{path.name}:{value.lineno}: {said}{after.value[:20]}")
    assert not found, "\n".join(found)
