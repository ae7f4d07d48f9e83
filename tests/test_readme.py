"""The README's example runs and prints what the README shows; its blocks and table are there."""

import contextlib
import io
import re
from pathlib import Path

import lens_linear as ll

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_example_prints_what_is_shown():
    code, shown = re.search(
        r"## Ten lines\n+```python\n(.*?)```\n+```text\n(.*?)```", README, re.S
    ).groups()
    assert len(code.strip().splitlines()) <= 10
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    # The last digit of the path error may differ between processors.
    loose = [re.sub(r"within \S+", "within", text) for text in (out.getvalue(), shown)]
    assert loose[0].strip() == loose[1].strip()


def test_the_table_of_models_is_the_cards():
    for _, row in ll.available_models().query("state == 'bundled'").iterrows():
        assert f"| `{row['name']}` |" in README
        line = next(line for line in README.splitlines() if line.startswith(f"| `{row['name']}` |"))
        assert f"{row['loss']:.3f}" in line and f"{row['parameters']:,}" in line


def test_one_version_everywhere():
    root = Path(__file__).resolve().parent.parent
    for name, pattern in [
        ("pyproject.toml", r'^dynamic = \["version"\]$'),  # read from lens_linear/__init__.py
        ("CITATION.cff", rf"^version: {ll.__version__}$"),
        ("CHANGELOG.md", rf"^## {ll.__version__} \("),
    ]:
        assert re.search(pattern, (root / name).read_text(encoding="utf-8"), re.M), name


def test_the_blocks_a_newcomer_runs():
    for heading, last in [("Quickstart", "lens-linear tour"), ("Test", "pytest -n 2")]:
        block = re.search(rf"## {heading}\n+```bash\n(.*?)```", README, re.S).group(1)
        assert block.strip().splitlines()[-1] == last
