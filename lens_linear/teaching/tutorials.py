"""Copy the exercise notebooks out of the installed package. Solutions are not in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lens_linear.checks import counted, require_bool, require_path
from lens_linear.errors import CorruptedFileError, InvalidArgumentError
from lens_linear.files import write_with
from lens_linear.tables import Result

_INSTALLED = Path(__file__).resolve().parent / "notebooks"
_CHECKOUT = Path(__file__).resolve().parent.parent.parent / "tutorials" / "exercises"


@dataclass(frozen=True, eq=False)
class CopiedTutorials(Result):
    """What was copied where.

    Attributes:
        directory: the folder.
        written: names of the notebooks that were written.
        unchanged: names that were there already, byte for byte.
        kept: names of notebooks that you have changed; they were left alone.
    """

    directory: Path
    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    kept: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"CopiedTutorials: {counted(len(self.written), 'notebook')} written to {str(self.directory)!r}, "
            f"{len(self.unchanged)} already there, {len(self.kept)} changed by you and kept"
        )

    @property
    def how_to_start(self) -> str:
        """The next steps, for a terminal."""
        names = sorted((*self.written, *self.unchanged, *self.kept))
        lines = [repr(self) + "."]
        if self.kept:
            lines.append(
                f"Kept as they are: {', '.join(self.kept)}. `--force` writes fresh copies over them."
            )
        lines += [
            "Start with:",
            f"    jupyter lab {_quoted(self.directory / names[0])}",
            'JupyterLab comes with: pip install "lens-linear[notebooks]". VS Code opens the same files.',
        ]
        return "\n".join(lines)

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row a notebook: notebook, state ("written", "unchanged", "kept")."""
        states = {"written": self.written, "unchanged": self.unchanged, "kept": self.kept}
        rows = [(name, state) for state, names in states.items() for name in names]
        return pd.DataFrame(sorted(rows), columns=["notebook", "state"])


def exercise_notebooks() -> list[Path]:
    """Return the exercise notebooks of this installation (or of the checkout it runs from).

    Raises:
        CorruptedFileError: the installation lacks them.
    """
    for folder in (_INSTALLED, _CHECKOUT):
        found = sorted(folder.glob("lesson_*.ipynb"))
        if found:
            return found
    raise CorruptedFileError(
        "the tutorial notebooks are missing from this installation (a copy of the package's folder has "
        "none); install lens-linear with pip from a wheel, or use a whole checkout"
    )


def copy_tutorials(directory: str | Path, *, force: bool = False) -> CopiedTutorials:
    """Copy the exercise notebooks to a folder; a notebook you have changed is never overwritten.

    Args:
        directory: where to; made if it does not exist.
        force: overwrite changed notebooks too. Your work in them is lost.

    Returns:
        CopiedTutorials: what was written and what was kept; ``.how_to_start`` says what to do next.

    Raises:
        InvalidArgumentError: ``directory`` is a file, or cannot be made.
        CorruptedFileError: the installation lacks the notebooks.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = copy_tutorials(folder)
        ...     again = copy_tutorials(folder)
        >>> len(first.written) == len(again.unchanged) > 0
        True
    """
    force = require_bool("force", force)
    target = require_path("directory", directory)
    sources = exercise_notebooks()
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgumentError(
            f"directory must be a folder or a place for one, got {str(target)!r} "
            f"({error.strerror}); choose another path"
        ) from error
    states: dict[str, list[str]] = {"written": [], "unchanged": [], "kept": []}
    for source in sources:
        state = _copy(source, target / source.name, force=force)
        states[state].append(source.name)
    return CopiedTutorials(target, *(tuple(states[key]) for key in states))


def _copy(source: Path, target: Path, *, force: bool) -> str:
    content = source.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return "unchanged"
    if target.exists() and not force:
        return "kept"
    write_with(target, lambda temporary: temporary.write_bytes(content))
    return "written"


def _quoted(path: Path) -> str:
    text = str(path)
    return f'"{text}"' if " " in text else text
