"""Each line of ``docs/results/asked.md`` says what its function makes of tokens; no function is missing.

Each public function that takes tokens either gives the number of the plain, unpadded tokens, or refuses in
a sentence. A function that scores answers follows a task's labels; any other gives the same with and without.
"""

import pytest
from asked import ASKED, NO_ROWS, PAGE, function_name, line, page, public

LINES = [text for text in PAGE.read_text(encoding="utf-8").splitlines() if text.count("|") == 5][2:]


@pytest.mark.parametrize("one", ASKED, ids=lambda one: one.name)
def test_the_page_says_what_the_function_does(one):
    assert line(one) in LINES


def test_every_public_function_that_takes_tokens_is_on_the_page():
    names, found = {function_name(one) for one in ASKED}, public()
    assert len(found) > 60 and not found.keys() - names - NO_ROWS.keys()
    assert NO_ROWS.keys() <= found.keys() and not NO_ROWS.keys() & names
    assert page(LINES) == PAGE.read_text(encoding="utf-8")
    assert len(LINES) == len(ASKED)
