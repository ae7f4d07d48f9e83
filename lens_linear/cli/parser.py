"""The parser, made from the registry, and the checks that need nothing heavy."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from lens_linear import __version__
from lens_linear.cli.registry import COMMANDS, Command


class _Help(argparse.HelpFormatter):
    """Keeps the lines of an example whole: they are there to be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("example: "):
            return text
        return super()._fill_text(text, width, indent)


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
    for command in COMMANDS:
        text = command.text
        one = commands.add_parser(
            command.name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=_Help,
            epilog="".join(f"example: {line}\n" for line in command.example.splitlines()),
        )
        groups: dict[str, argparse._MutuallyExclusiveGroup] = {}
        for option in command.all_options:
            if option.group is None:
                one.add_argument(*option.flags, **option.settings)
                continue
            if option.group not in groups:
                groups[option.group] = one.add_mutually_exclusive_group()
            groups[option.group].add_argument(*option.flags, **option.settings)
    return parser


def find_command(name: str) -> Command:
    """Return the registered command of a name."""
    return next(command for command in COMMANDS if command.name == name)


def check_options(options: argparse.Namespace) -> None:
    """Check every value that was given, before anything heavy is imported."""
    for option in find_command(options.command).all_options:
        value = getattr(options, option.dest, None)
        if option.check is not None and value is not None and value != []:
            name = option.flags[-1]
            option.check(name if name.startswith("-") else name.upper(), value)
