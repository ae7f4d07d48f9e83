"""Right answers in odd forms pass, and the stored table is what the script finds."""

import pytest
import variants
from machinery.master import masters

pytestmark = pytest.mark.whole


@pytest.mark.parametrize("master", masters(), ids=lambda master: master.name)
def test_the_table_of_variants_is_current(master):
    found = list(variants.variants(master))
    assert not [v for v in found if v.expected is not None and v.passed != v.expected]
    stored = variants.TABLE.read_text(encoding="utf-8")
    assert variants.counts(found)[0] in stored
    for v in found:
        if v.kind == "mutant" and v.passed:
            assert v.exercise in variants.WHY and f"| {v.exercise} | `{v.what}" in stored


def test_a_mutant_is_one_slip():
    source = "def f(x, y):\n    return x.T @ y - 1"
    made = dict(variants.mutants(source, "f"))
    assert made["x.T → x"] == "def f(x, y):\n    return x @ y - 1"
    assert made["x.T @ y → y @ x.T"] == "def f(x, y):\n    return y @ x.T - 1"
    assert made["x.T @ y - 1 → x.T @ y + 1"].endswith("+ 1") and made["1 → 2"].endswith("- 2")
