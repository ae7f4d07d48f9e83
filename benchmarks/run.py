"""One command, one table: what the package costs beside the obvious way, all taken in this run.

    python benchmarks/run.py                 # the whole table: about half an hour
    python benchmarks/run.py --quick         # small shapes, to see that it runs; no budgets
    python benchmarks/run.py --only dynamics # some cases

The whole table is printed and written to docs/results/benchmarks.json and docs/results/benchmarks.md; other
runs write only where --out says. How long the run took stands on the page. The exit status is 1 where a
budget is missed. Times are processor seconds, medians over repeats taken in turn; peak memory is that of
processes of their own. LENS_LINEAR_BENCHMARK_TESTS=1 times the test command too. benchmarks/gpu.py measures a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import cases
import torch
from meter import Row
from threadpoolctl import threadpool_limits

import lens_linear

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
HEAD = """# Benchmarks

Written by `python benchmarks/run.py` from one run; do not edit by hand. A ratio compares two
things measured in that run, so it carries over to other machines better than seconds do.

"""


def machine() -> dict[str, object]:
    """The machine in general words."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()} CPU",
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "lens_linear": lens_linear.__version__,
    }


def shown(row: Row) -> list[str]:
    """The cells of one line."""
    value = "not run" if row.value is None else f"{row.value:.3g} {row.unit}"
    sign = "≥" if row.least else "≤"
    budget = "–" if row.budget is None else f"{sign} {row.budget:.3g} {row.unit}"
    ok = {None: "–", True: "yes", False: "NO"}[row.ok]
    return [row.name, row.shape, row.measured, value, budget, ok]


TITLES = ["what", "shape", "measured", "ratio or size", "budget", "ok"]


def table(rows: list[Row]) -> str:
    """Plain text."""
    cells = [TITLES, *(shown(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(TITLES))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(found: dict, head: str = HEAD, notes: str = cases.NOTES) -> str:
    """The page in ``docs``, from what the JSON holds."""
    where = found["machine"]
    lines = [
        head
        + f"One run on {where['cores']} cores ({where['processor']}, {where['threads']} threads, GPU: "
        f"{where['gpu']}), torch {where['torch']}, Python {where['python']}, lens_linear "
        f"{where['lens_linear']}, {found['minutes']:.1f} minutes"
        + (", `--quick`: small shapes, no budget is claimed." if found["quick"] else ".")
        + "\n",
        "| " + " | ".join(TITLES) + " |",
        "|" + "---|" * len(TITLES),
    ]
    names = list(Row.__dataclass_fields__)
    for entry in found["rows"]:
        row = Row(**{name: entry[name] for name in names})
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in shown(row)) + " |")
    lines += ["", notes.strip(), ""]
    return "\n".join(lines)


def write(folder: Path, name: str, found: dict, head: str = HEAD, notes: str = cases.NOTES) -> None:
    """The numbers as JSON and the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(markdown(found, head, notes), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it runs")
    parser.add_argument("--only", metavar="WORD", help="cases whose name holds this word")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where to write the two files")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started, rows = time.monotonic(), []
    for name, case in cases.CASES.items():
        if options.only and options.only not in name:
            continue
        sys.stderr.write(f"{name} ...\n")
        at = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, threadpool_limits(options.threads):
            rows += case(options.quick, Path(folder))
        sys.stderr.write(f"  {time.monotonic() - at:.0f} s\n")
    found = {
        "machine": machine(),
        "quick": options.quick,
        "minutes": (time.monotonic() - started) / 60,
        "rows": [row.to_dict() for row in rows],
    }
    print(table(rows))
    out = options.out or (None if options.quick or options.only else RESULTS)
    if out is not None:
        write(out, "benchmarks", found)
    failed = [entry["name"] for entry in found["rows"] if entry["ok"] is False]
    return 1 if failed and not found["quick"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
