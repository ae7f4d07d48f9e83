"""Read a master: a percent-format Python file with one lesson. The format stands in CONTRIBUTING.md."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

MASTERS = Path(__file__).resolve().parent.parent / "masters"
BEGIN, END = "# BEGIN SOLUTION", "# END SOLUTION"

_MARK = re.compile(r"# %%(?: \[([^\]]*)\])?[ ]*(.*)")
_KINDS = {
    "": "code",
    "markdown": "markdown",
    "exercise": "exercise",
    "solution": "solution",
    "check": "check",
    "training": "training",
    "solution-only": "solution-only",
    "instructor": "instructor",
}
_TEXT_KINDS = ("markdown", "exercise", "instructor")
_SCALE = {"difficulty": range(1, 6), "importance": range(1, 6), "minutes": range(1, 61)}


class MasterError(ValueError):
    """The master breaks a rule of the format; the message says where."""


@dataclass(frozen=True)
class Cell:
    """One cell of a master, before it becomes part of a notebook."""

    kind: str
    text: str
    line: int
    exercise: str | None = None
    title: str = ""
    scale: dict[str, int] = field(default_factory=dict)  # difficulty, importance, minutes

    @property
    def is_text(self) -> bool:
        """Whether it becomes a markdown cell."""
        return self.kind in _TEXT_KINDS


@dataclass(frozen=True)
class Master:
    """A lesson: its header and its cells."""

    path: Path
    number: int
    title: str
    minutes: int
    cells: tuple[Cell, ...]
    needs: str | None = None  # a model that does not come with the package

    @property
    def name(self) -> str:
        """File name of its notebooks, without the suffix."""
        return self.path.stem

    def lacks(self) -> str | None:
        """Why this lesson cannot run here, or None."""
        if self.needs is None:
            return None
        from lens_linear.models.open.obtain import obtained_folder

        if obtained_folder(self.needs) is not None:
            return None
        return f"{self.needs} is not on this machine; `lens-linear models --get {self.needs}` fetches it"

    @property
    def exercises(self) -> tuple[Cell, ...]:
        """The exercise headers, in order."""
        return tuple(cell for cell in self.cells if cell.kind == "exercise")


def masters(numbers: list[int] | None = None) -> list[Master]:
    """Read all masters, or those of the lessons named."""
    found = [read_master(path) for path in sorted(MASTERS.glob("lesson_*.py"))]
    if not numbers:
        return found
    missing = sorted(set(numbers) - {master.number for master in found})
    if missing:
        raise MasterError(f"there is no master of lesson {missing}; see {MASTERS.name}/")
    return [master for master in found if master.number in numbers]


def read_master(path: Path) -> Master:
    """Read one master and check it against the rules of the format."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header, start = _header(path, lines)
    cells: list[Cell] = []
    mark, body = None, []
    for number, line in enumerate(lines[start:], start=start + 1):
        if line.startswith("# %%"):
            if mark is not None:
                cells.append(_cell(path, *mark, body))
            mark, body = (number, line), []
        elif mark is not None:
            body.append(line)
        elif line.strip():
            raise MasterError(f"{path.name}:{number}: text before the first cell")
    if mark is not None:
        cells.append(_cell(path, *mark, body))
    master = Master(
        path,
        int(header["lesson"]),
        header["title"],
        int(header["minutes"]),
        tuple(cells),
        header.get("needs"),
    )
    _check_exercises(master)
    return master


def _header(path: Path, lines: list[str]) -> tuple[dict[str, str], int]:
    if not lines or lines[0] != "# ---" or "# ---" not in lines[1:]:
        raise MasterError(f"{path.name}: must begin with a header between two lines '# ---'")
    end = lines.index("# ---", 1)
    header = dict(line.removeprefix("# ").split(": ", 1) for line in lines[1:end])
    if set(header) - {"needs"} != {"lesson", "title", "minutes"}:
        raise MasterError(
            f"{path.name}: the header needs lesson, title, minutes (and may say needs); got {header}"
        )
    return header, end + 1


def _cell(path: Path, number: int, line: str, body: list[str]) -> Cell:
    match = _MARK.fullmatch(line)
    words = (match[1] or "").split() if match else ["?"]
    kind = _KINDS.get(words[0] if words else "")
    if match is None or kind is None:
        raise MasterError(f"{path.name}:{number}: unknown cell mark {line!r}")
    text = "\n".join(body).strip("\n")
    if kind in _TEXT_KINDS:
        for offset, row in enumerate(text.splitlines(), start=1):
            if row and not row.startswith("#"):
                raise MasterError(f"{path.name}:{number + offset}: text lines begin with '# '")
        text = "\n".join(row.removeprefix("#").removeprefix(" ") for row in text.splitlines())
        text = text.strip("\n")
    exercise = words[1] if kind in ("exercise", "solution", "check") and words[1:] else None
    scale = {}
    if kind == "exercise":
        scale = {key: int(value) for key, value in (word.split("=") for word in words[2:])}
        if set(scale) != set(_SCALE) or any(scale[key] not in _SCALE[key] for key in _SCALE):
            raise MasterError(
                f"{path.name}:{number}: an exercise needs difficulty=1..5 importance=1..5 minutes=1..60"
            )
    return Cell(kind, text, number, exercise, match[2].strip(), scale)


def _check_exercises(master: Master) -> None:
    """Each exercise has a header, then a solution with a region, then a check, in this order."""
    if len(master.exercises) < 4:
        raise MasterError(f"{master.path.name}: a lesson has at least 4 exercises")
    steps = [cell for cell in master.cells if cell.exercise]
    kinds = ["exercise", "solution", "check"]
    for index, cell in enumerate(steps):
        place = f"{master.path.name}:{cell.line}"
        name = f"{master.number}.{index // 3 + 1}"
        if cell.kind != kinds[index % 3] or cell.exercise != name:
            raise MasterError(
                f"{place}: expected [{kinds[index % 3]} {name}], got [{cell.kind} {cell.exercise}]"
            )
        if cell.kind == "exercise" and not cell.title:
            raise MasterError(f"{place}: exercise {name} needs a title after the bracket")
        if cell.kind == "solution" and BEGIN not in cell.text:
            raise MasterError(f"{place}: the solution of {name} has no '{BEGIN}'")
        if cell.kind == "check" and f'll.check("{name}", ' not in cell.text:
            raise MasterError(f'{place}: the check cell must call ll.check("{name}", ...)')
    if len(steps) % 3:
        raise MasterError(f"{master.path.name}: the last exercise lacks its solution or its check")


def without_marks(text: str) -> str:
    """The solution cell as the solution notebook shows it."""
    return "\n".join(line for line in text.splitlines() if line.strip() not in (BEGIN, END))


def stub(text: str, exercise: str) -> str:
    """The solution cell as a student gets it: every region becomes one line that raises."""
    lines, inside = [], False
    for line in text.splitlines():
        if line.strip() == BEGIN:
            if inside:
                raise MasterError(f"exercise {exercise}: '{BEGIN}' twice without '{END}'")
            inside = True
            indent = line[: len(line) - len(line.lstrip())]
            lines.append(f'{indent}raise NotImplementedError("exercise {exercise}")')
        elif line.strip() == END:
            if not inside:
                raise MasterError(f"exercise {exercise}: '{END}' without '{BEGIN}'")
            inside = False
        elif not inside:
            lines.append(line)
    if inside:
        raise MasterError(f"exercise {exercise}: '{BEGIN}' is never closed")
    return "\n".join(lines)


_ALLOWED = (
    re.compile(r"```.*?```", re.S),
    re.compile(r"`[^`]*`"),
    re.compile(r"\$\$.*?\$\$", re.S),
    re.compile(r"\$[^$\n]*\$"),
    re.compile(r"\]\([^)]*\)"),
    re.compile(r"arXiv[: ]\d+\.\d+", re.I),
    re.compile(r"[Ee]xercises? \d\.\d(?:(?:, | and | to )\d\.\d)*"),
    re.compile(r"TransformerLens \d\.\d"),
)
_MEASURED = re.compile(r"\d+\.\d+|\d+ ?%")


def measured_numbers(text: str) -> list[str]:
    """Decimals and percentages in prose: they belong in the output of a cell instead."""
    for pattern in _ALLOWED:
        text = pattern.sub(" ", text)
    return _MEASURED.findall(text)
