"""``lens-linear completion``: scripts for bash, zsh and fish, made from the registry."""

from __future__ import annotations

import argparse

from lens_linear.cli.options import BASIS_NAMES
from lens_linear.cli.output import Answer
from lens_linear.cli.registry import COMMANDS, RECIPE_NAMES, STUDY_NAMES, Command
from lens_linear.models.open.bundled import bundled_names
from lens_linear.models.open.obtain import OBTAINABLE

_BASH = """\
_lens_linear() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"
  else
    case "${{COMP_WORDS[1]}}:$before" in
{values}
      *) case "${{COMP_WORDS[1]}}" in
{words}
      esac ;;
    esac
  fi
  COMPREPLY=( $(compgen -W "$words" -- "$word") )
  case "$word" in -*) ;; *) if [ "$COMP_CWORD" -gt 1 ]; then
    while IFS= read -r file; do COMPREPLY+=("$file"); done < <(compgen -f -- "$word")
  fi ;; esac
}}
complete -o filenames -F _lens_linear lens-linear
"""


def completion(options: argparse.Namespace) -> Answer:
    """The script of one shell."""
    script = _fish() if options.shell == "fish" else _bash()
    if options.shell == "zsh":
        script = "autoload -U +X bashcompinit && bashcompinit\n" + script
    return Answer([], {"shell": options.shell, "script": script}, verbatim=script)


def _words(command: Command) -> list[str]:
    """What may stand where a positional argument does."""
    names = {option.dest for option in command.options}
    if "model" in names:
        return [*bundled_names(), *OBTAINABLE]
    if "recipe" in names:
        return [*RECIPE_NAMES, *STUDY_NAMES]
    return [str(word) for o in command.options if not o.flags[0].startswith("-")
            for word in o.settings.get("choices", ())]  # fmt: skip


def _flags(command: Command) -> list[str]:
    flags = [f for option in command.all_options for f in option.flags if f.startswith("--")]
    return [*flags, "--help"]


def _choices(command: Command) -> dict[str, list[str]]:
    """Flags whose value is one of a few words."""
    found = {
        option.flags[-1]: [str(word) for word in option.settings["choices"]]
        for option in command.options
        if "choices" in option.settings and option.flags[0].startswith("-")
    }
    if command.name == "dynamics":
        found["--basis"] = list(BASIS_NAMES)
    if command.name == "models":
        found["--get"] = list(OBTAINABLE)
    return found


def _bash() -> str:
    values = [
        f'      {command.name}:{flag}) words="{" ".join(choices)}" ;;'
        for command in COMMANDS
        for flag, choices in _choices(command).items()
    ]
    words = [
        f'        {command.name}) words="{" ".join([*_words(command), *_flags(command)])}" ;;'
        for command in COMMANDS
    ]
    names = " ".join(["--help", "--version", *(command.name for command in COMMANDS)])
    return _BASH.format(commands=names, values="\n".join(values), words="\n".join(words))


def _fish() -> str:
    lines = ["complete -c lens-linear -n __fish_use_subcommand -l version -l help"]
    for command in COMMANDS:
        said = f"-f -a {command.name} -d {_quoted(command.text)}"
        lines.append(f"complete -c lens-linear -n __fish_use_subcommand {said}")
        seen = f"complete -c lens-linear -n '__fish_seen_subcommand_from {command.name}'"
        if words := _words(command):
            lines.append(f"{seen} -a {_quoted(' '.join(words))}")
        choices = _choices(command)
        for option in command.all_options:
            flag = option.flags[-1]
            if flag.startswith("--"):
                takes = "" if option.settings.get("action") == "store_true" else " -r"
                if flag in choices:
                    takes = f" -x -a {_quoted(' '.join(choices[flag]))}"
                lines.append(f"{seen} -l {flag[2:]} -d {_quoted(option.settings['help'])}{takes}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
