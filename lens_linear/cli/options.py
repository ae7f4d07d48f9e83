"""Options that several commands share, each in one place with its check.

A check is light: it runs before torch or TransformerLens are imported, so that a slip is answered at once.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from lens_linear.checks import require_file, require_float, require_int
from lens_linear.errors import InvalidArgumentError
from lens_linear.files import require_target

# A table of more rows is nothing to read; seeds are added to inside, and torch takes 64 bits.
_MOST_ROWS, _LARGEST_SEED = 1000, 2**62
BASIS_NAMES = ("krylov", "krylov-stationary", "balanced", "pca", "random")
DTYPES = ("float32", "float64", "float16", "bfloat16")
_DEVICE = re.compile(r"[a-z]+(:\d+)?")


@dataclass(frozen=True)
class Option:
    """One argument: how argparse adds it, and what its value must be.

    Attributes:
        flags: ``("--seed",)``, or a name without dashes for a positional argument.
        settings: what ``add_argument`` takes.
        check: called with the flag and the value where one was given; raises what is wrong.
        group: options of one group exclude each other.
    """

    flags: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    check: Callable[[str, Any], object] | None = None
    group: str | None = None

    @property
    def dest(self) -> str:
        """The attribute that argparse sets."""
        return str(self.settings.get("dest", self.flags[-1].lstrip("-").replace("-", "_")))


def option(
    *flags: str, check: Callable[[str, Any], object] | None = None, **settings: Any
) -> Option:
    """Short for an option without a group."""
    return Option(flags, settings, check)


def number(
    flag: str, default: int | None, text: str, *, minimum: int = 1, maximum: int | None = None,
    metavar: str = "N",
) -> Option:  # fmt: skip
    """A whole number in a range."""
    check = partial(require_int, minimum=minimum, maximum=maximum)
    return option(flag, type=int, default=default, metavar=metavar, help=text, check=check)


def decimal(flag: str, default: float, text: str, *, minimum: float, metavar: str) -> Option:
    """A number that is at least something."""
    check = partial(require_float, minimum=minimum)
    return option(flag, type=float, default=default, metavar=metavar, help=text, check=check)


def penalty(word: str) -> float | str:
    """A number, or "loo"."""
    return word if word == "loo" else float(word)


def _require_penalty(name: str, value: float | str) -> None:
    if value != "loo":
        require_float(name, value, minimum=0.0)


RIDGE = option(
    "--ridge",
    type=penalty,
    default=0.0,
    metavar="X",
    help="penalty of the fits, or 'loo' for the one of least leave-one-out error, for few rows "
    "(default 0)",
    check=_require_penalty,
)


def file(flag: str, text: str) -> Option:
    """A file that is there."""
    return option(flag, metavar="FILE", help=text, check=require_file)


def page(default: str) -> tuple[Option, ...]:
    """Where a page goes, and whether it is opened."""
    return (
        option("--out", metavar="FILE", help=f"the page (default {default})", check=require_target),
        option("--open", action="store_true", help="open the page in a browser when it is written"),
    )


# One of these is there wherever Linux has a driver: NVIDIA's, AMD's, that of Windows below, that of a Jetson.
_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/nvmap")


def device(flag: str, value: str) -> None:
    """Accept the name of a device that this machine may have; torch knows for sure when it is loaded."""
    if not _DEVICE.fullmatch(value):
        raise InvalidArgumentError(
            f"{flag} must be a device such as cpu, cuda, cuda:0 or mps, got {value!r}; leave it out for cpu"
        )
    kind, linux = value.split(":")[0], sys.platform == "linux"
    if (kind == "mps" and sys.platform != "darwin") or (
        kind == "cuda" and linux and not any(map(os.path.exists, _GPUS))
    ):
        raise InvalidArgumentError(
            f"{flag} must be a device of this machine, got {value!r} and there is no such one; leave it out "
            "for cpu"
        )


def _model(flag: str, value: str | list[str]) -> None:
    # Cards only: neither torch nor TransformerLens.
    from lens_linear.models.open.bundled import refuse_unknown_name

    for name in [value] if isinstance(value, str) else value:
        refuse_unknown_name(flag, name)


def _basis(flag: str, value: str) -> None:
    # A package that adds one is loaded later: it may import torch.
    if value not in BASIS_NAMES and not metadata.entry_points(group="lens_linear.extensions"):
        near = difflib.get_close_matches(value, BASIS_NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidArgumentError(
            f"{flag} must be one of {', '.join(BASIS_NAMES)}, got {value!r}{hint}"
        )


def _statistic(flag: str, values: list[str]) -> None:
    if not metadata.entry_points(group="lens_linear.extensions"):
        raise InvalidArgumentError(
            f"{flag} must name a statistic of an installed package, but none adds any; got {values[0]!r}; "
            "from Python, pass statistics={name: function}"
        )


def _concept(flag: str, value: str) -> None:
    from lens_linear.text.presets import PRESETS

    if value != "mood" and value not in PRESETS and not Path(value).expanduser().exists():
        raise InvalidArgumentError(
            f"{flag} must be 'mood', a file of labelled texts that exists, or one of {', '.join(PRESETS)}; "
            f"got {value!r}"
        )


EVERY_COMMAND = (
    Option(
        ("--json",),
        {"action": "store_true", "help": "print one JSON object instead of text"},
        group="form",
    ),
    option(
        "-q", "--quiet", action="store_true", help="no progress and no remarks on standard error"
    ),
)
TABLES = (
    Option(
        ("--csv",),
        {"action": "store_true", "help": "print a table as CSV, every column and digit"},
        group="form",
    ),
    option("--table", metavar="NAME", help="print only this table (a wrong NAME lists them)"),
)
PLACE = (
    option(
        "--device", metavar="NAME", help="where to run: cpu, cuda, mps (default cpu)", check=device
    ),
    option(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the weights; statistics are float64 in any case (default float32)",
    ),
)
_NAMES = "bundled name, local folder, .gguf file or Hub name"
MODEL = (option("model", metavar="MODEL", help=_NAMES, check=_model), *PLACE)
MORE_MODELS = option(
    "more",
    nargs="*",
    metavar="MODEL",
    check=_model,
    help="further models: then one table of agreement, orders 8, 16 and 32 and every basis, with the "
    "published numbers beside it",
)
TEXT = file("--text", "text to measure on (default: the package's own stories)")
SEQUENCES = number("--sequences", None, "use only the first N rows of tokens")
SEED = number(
    "--seed", 0, "of every random choice (default 0)", minimum=0, maximum=_LARGEST_SEED, metavar="S"
)
TOP = number("--top", 10, "rows a table (default 10)", maximum=_MOST_ROWS, metavar="K")
BASIS = option(
    "--basis",
    default="krylov",
    metavar="NAME",
    check=_basis,
    help=f"of the surrogate: {', '.join(BASIS_NAMES)}, or one that an installed "
    "package adds (default krylov)",
)
STATISTIC = option(
    "--statistic",
    action="append",
    metavar="NAME",
    check=_statistic,
    help="also measure a statistic that an installed package adds; may be repeated",
)
CONCEPT = option(
    "--concept",
    default="mood",
    metavar="NAME_OR_FILE",
    check=_concept,
    help="labelled texts: 'mood' (own sentences), a .jsonl/.csv file, or a preset (default mood)",
)
