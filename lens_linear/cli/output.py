"""What a command gives back, and how it is printed: text that fits the terminal, CSV, or one JSON object."""

from __future__ import annotations

import argparse
import json
import math
import sys
import textwrap
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lens_linear import __version__
from lens_linear.cli.terminal import show
from lens_linear.cli.text_table import fitted, terminal_width
from lens_linear.errors import InvalidArgumentError
from lens_linear.progress import step_bar
from lens_linear.tables import Result

if TYPE_CHECKING:
    from lens_linear.models.checked import ModelLike


@dataclass(frozen=True, eq=False)
class Table:
    """A table of an answer.

    Attributes:
        name: what ``--table`` calls it.
        frame: all columns.
        columns: those that matter, first; all when empty.
        says: a sentence above it.
        printed: the rows that text shows; all when None.
    """

    name: str
    frame: pd.DataFrame
    columns: Sequence[str] = ()
    says: str = ""
    printed: pd.DataFrame | None = None

    @property
    def text(self) -> str:
        """The table as lines, and how many rows they leave out."""
        rows = self.frame if self.printed is None else self.printed
        lines = fitted(rows, self.columns)
        if not (left_out := len(self.frame) - len(rows)):
            return lines
        return f"{lines}\n\n{left_out:,} more row{'s' * (left_out != 1)} with --csv --table {self.name}"


def result_table(name: str, result: Result, frame: pd.DataFrame | None = None) -> Table:
    """The table of a result, its sentence above, the columns that matter first."""
    shown = result.to_dataframe() if frame is None else frame
    return Table(name, shown, result._that_matter(), repr(result))


@dataclass(frozen=True, eq=False)
class Answer:
    """What a command found.

    Attributes:
        parts: sentences and tables, in order.
        result: of ``--json``; all tables by name when None.
        models: opened models by name, or their checksums.
        seed: of its random choices, where no option says it.
        settings: what made it, beside the device and the type of the weights.
        page: a page that was written, which ``--open`` opens.
        verbatim: text that is printed as it is, in place of the parts.
        status: of the process.
    """

    parts: Sequence[str | Table]
    result: Any = None
    models: Mapping[str, ModelLike | str] = field(default_factory=dict)
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    page: Path | None = None
    verbatim: str = ""
    status: int = 0

    @property
    def tables(self) -> dict[str, Table]:
        """The tables by name."""
        return {part.name: part for part in self.parts if isinstance(part, Table)}


def emit(options: argparse.Namespace, answer: Answer) -> int:
    """Write the answer to standard output as it was asked for; returns the status."""
    chosen = _chosen(options, answer)
    if options.json:
        text = json.dumps(_envelope(options, answer), indent=1, allow_nan=False)
    elif getattr(options, "csv", False):
        text = _csv(options, answer, chosen)
    elif chosen is not None:
        text = chosen.text
    elif options.quiet and answer.page is not None:
        text = str(answer.page)
    elif answer.verbatim:
        text = answer.verbatim
    else:
        text = "\n\n".join(_part(part) for part in answer.parts)
    show(text.rstrip() + "\n")
    if getattr(options, "open", False) and answer.page is not None:
        webbrowser.open(answer.page.resolve().as_uri())
    return answer.status


def remark(options: argparse.Namespace, text: str) -> None:
    """Sentences on standard error, at once, as wide as the terminal, unless ``--quiet``."""
    if not options.quiet:
        sys.stderr.write(wrapped(text) + "\n")
        sys.stderr.flush()


def steps(
    options: argparse.Namespace, count: int, heavy: Mapping[str, float] | None = None
) -> AbstractContextManager[Callable[[str], None]]:
    """The step bar of a command of ``count`` steps; see :func:`lens_linear.progress.step_bar`."""
    total = count + sum(weight - 1 for weight in (heavy or {}).values())
    return step_bar(total, options.command, show=not options.quiet, heavy=heavy)


def _part(part: str | Table) -> str:
    if isinstance(part, str):
        return wrapped(part)
    return f"{wrapped(part.says)}\n\n{part.text}" if part.says else part.text


def wrapped(text: str) -> str:
    """Lines of prose, broken at the width of the terminal; a path or another long word stays whole."""
    width = terminal_width()
    lines = (
        textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
        for line in text.splitlines()
    )
    return "\n".join(line for part in lines for line in part)


def _chosen(options: argparse.Namespace, answer: Answer) -> Table | None:
    name, tables = getattr(options, "table", None), answer.tables
    if name is None:
        return None
    if name not in tables:
        raise InvalidArgumentError(
            f"--table must be one of {', '.join(map(repr, tables)) or '(there is none)'}, got {name!r}"
        )
    return tables[name]


def _csv(options: argparse.Namespace, answer: Answer, chosen: Table | None) -> str:
    if chosen is None:
        if not answer.tables:
            raise InvalidArgumentError(
                "--csv prints a table, and this answer has none; leave it out"
            )
        chosen, *others = answer.tables.values()
        if others:
            names = ", ".join(one.name for one in others)
            remark(options, f"table {chosen.name!r}; others: {names} (choose with --table NAME)")
    return str(chosen.frame.to_csv(index=chosen.frame.index.name is not None, lineterminator="\n"))


def _envelope(options: argparse.Namespace, answer: Answer) -> dict[str, Any]:
    """The JSON object of a command: version, checksums, seed, settings, result."""
    result = answer.result
    if result is None:
        result = {name: table.frame for name, table in answer.tables.items()}
    where = {name: vars(options)[name] for name in ("device", "dtype") if name in options}
    return {
        "lens_linear": __version__,
        "command": options.command,
        "models": {name: _checksum(model) for name, model in answer.models.items()},
        "seed": getattr(options, "seed", answer.seed),
        "settings": plain(answer.settings) | where,
        "result": plain(result),
    }


def _checksum(model: ModelLike | str) -> str:
    if isinstance(model, str):
        return model
    # torch, which commands about cards do not need
    from lens_linear.models.open.checksum import weights_sha256

    return weights_sha256(model)


def plain(value: Any) -> Any:
    """Turn frames, arrays and tensors into JSON values; what is not finite becomes null."""
    if isinstance(value, pd.DataFrame):
        frame = value.reset_index() if value.index.name is not None else value
        return [{str(k): plain(v) for k, v in row.items()} for row in frame.to_dict("records")]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
