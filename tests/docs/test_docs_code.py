"""The code of the how-to pages and of the start page runs as it stands."""

import re
from pathlib import Path

import pytest

import lens_linear as ll

pytestmark = pytest.mark.whole

DOCS = Path(__file__).resolve().parents[2] / "docs"
# These run in test_howto_numbers.py, which holds their numbers against plain torch too.
NUMBERS = (
    "positional_qk score_by_writer path_patching ffn_over_training new_basis own_training".split()
)
PAGES = sorted([DOCS / "start.md", *(p for p in DOCS.glob("howto/*.md") if p.stem not in NUMBERS)])
BLOCK = re.compile(r"(<!-- needs [^>]*-->\n)?```python\n(.*?)```", re.DOTALL)


def blocks(page: Path) -> list[str]:
    """Runnable Python of a page; what needs a network, a file or the real model is left out."""
    return [code for needs, code in BLOCK.findall(page.read_text(encoding="utf-8")) if not needs]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what the pages speak of: a text and a model folder."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("desk")
    (folder / "book.txt").write_text(ll.text.default_text() * 3, encoding="utf-8")
    tokenizer = ll.load("gpt-nano").tokenizer
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), **shape, **heads)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "my-model")
    tokenizer.save_pretrained(folder / "my-model")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, desk, monkeypatch):
    monkeypatch.chdir(desk)
    names: dict[str, object] = {}
    for code in blocks(page):
        exec(compile(code, str(page), "exec"), names)


def test_pages_have_code():
    assert sum(len(blocks(page)) for page in PAGES) >= 12
