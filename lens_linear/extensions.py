"""What other packages add: statistics, bases, scores of heads, sections of the report.

A package names one :class:`Extension` in its own ``pyproject.toml``; once installed, its parts are there by
name, and nothing of this package is edited::

    [project.entry-points."lens_linear.extensions"]
    my-package = "my_package:extension"

What each part is called with, and where it is used:

* a **statistic** ``function(moments) -> float`` of a layer's input and output, a
  :class:`~lens_linear.Moments` with ``keep_yy=True``: ``linearity_profile(…, statistics=["name"])``;
* a **basis** ``function(maps, directions, readout, order) -> columns`` or ``(right, left)``, see
  :func:`~lens_linear.fit_surrogate`: ``fit_surrogate(…, basis="name")``, ``agreement_table(bases=…)``;
* a **score** of heads, a :class:`HeadScore` ``function(model) -> [layer, head]``: offered by the map of every
  ``explore(model)``;
* a **section** ``function(model, task) -> lens_linear.reports.Section``: on every page of ``report(model)``.

A package that cannot be loaded, or a part that fails, costs only itself: a warning, or a sentence in its
place on the page, says whose it is. Where two packages use one name, or a name that is ours, the first in
alphabetical order of the packages (ours before all) keeps it. ``LENS_LINEAR_EXTENSIONS=0`` in the environment
leaves all of them out.

>>> Extension(statistics={"rows": lambda moments: float(moments.n)})
Extension: statistics rows
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import metadata
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import require_bool, require_callable, require_instance, shown
from lens_linear.errors import InvalidArgumentError, LensLinearWarning

__all__ = ["GROUP", "Added", "Extension", "HeadScore", "added", "installed", "problems"]

GROUP = "lens_linear.extensions"
Part = Literal["statistics", "bases", "head_scores", "sections"]


@dataclass(frozen=True, eq=False)
class HeadScore:
    """A score of every head, for the map of the explorer.

    Attributes:
        function: called with the model, returns [layer, head]; NaN where there is none.
        words: what it is called, for people.
        unit: unit, range and the value of no relation, as the legend says it.
        signed: True if 0 is in the middle.
    """

    function: Callable[[Any], Float[Tensor, "layer head"]]
    words: str
    unit: str
    signed: bool = False

    def __post_init__(self) -> None:
        require_callable("function", self.function, advice="pass one that takes the model")
        for name in ("words", "unit"):
            require_instance(name, getattr(self, name), str)
        require_bool("signed", self.signed)


@dataclass(frozen=True, eq=False, repr=False)
class Extension:
    """What one package adds, by name; see the head of :mod:`lens_linear.extensions`.

    Attributes:
        statistics: of layers, by the name of their column.
        bases: of surrogates.
        head_scores: for the explorer's map.
        sections: of the report, by title.

    Raises:
        InvalidArgumentError: a part that is no function, or a name that cannot be one.
    """

    statistics: Mapping[str, Callable[..., float]] = field(default_factory=dict)
    bases: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    head_scores: Mapping[str, HeadScore] = field(default_factory=dict)
    sections: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in PARTS:
            named = require_instance(part, getattr(self, part), Mapping, advice="map names to them")
            for name, value in named.items():
                # Titles are for people; the others are columns and arguments.
                if (
                    not isinstance(name, str)
                    or not name
                    or not (part == "sections" or name.isidentifier())
                ):
                    raise InvalidArgumentError(
                        f"{part} must have names of letters, digits and _, got {shown(name)}; choose e.g. "
                        "'my_score'"
                    )
                if part == "head_scores":
                    require_instance(f"head_scores[{name!r}]", value, HeadScore)
                else:
                    require_callable(f"{part}[{name!r}]", value, advice="pass a function")

    def __repr__(self) -> str:
        parts = [f"{part} {', '.join(named)}" for part in PARTS if (named := getattr(self, part))]
        return f"Extension: {'; '.join(parts) or 'adds nothing'}"


def __dir__() -> list[str]:
    return __all__


PARTS: tuple[Part, ...] = tuple(one.name for one in fields(Extension))  # type: ignore[misc]


@dataclass(frozen=True, eq=False)
class Added:
    """One part of an installed package.

    Attributes:
        package: name and version of what brought it.
        value: the function or :class:`HeadScore`.
    """

    package: str
    value: Any

    def failed(self, name: str, reason: Exception) -> str:
        """Say whose part failed, and why."""
        return (
            f"{name!r} of the extension {self.package} failed ({type(reason).__name__}: {reason}); "
            "tell its authors, or uninstall it"
        )


def installed() -> dict[str, Extension]:
    """Extensions that could be loaded, by name and version of their package.

    Returns:
        In alphabetical order; empty where none is installed.

    Example:
        >>> all(isinstance(one, Extension) for one in installed().values())
        True
    """
    return {name: one for name, one in _found().items() if isinstance(one, Extension)}


def problems() -> list[str]:
    """A sentence for every extension that could not be loaded.

    Returns:
        Empty where all is well.

    Example:
        >>> all(isinstance(one, str) for one in problems())
        True
    """
    return [one for one in _found().values() if isinstance(one, str)]


def added(part: Part, *, ours: Collection[str] = ()) -> dict[str, Added]:
    """All parts of one kind by name; warns of what is left out because its name is ``ours`` or taken."""
    found: dict[str, Added] = {}
    for reason in problems():
        _say(reason)
    for package, extension in installed().items():
        for name, value in getattr(extension, part).items():
            if name in ours or name in found:
                keeper = "lens_linear" if name in ours else f"the extension {found[name].package}"
                _say(
                    f"{part} {name!r} of the extension {package} is left out: {keeper} has that name"
                )
            else:
                found[name] = Added(package, value)
    return found


def _found() -> dict[str, Extension | str]:
    """What each package adds, or why it could not be had."""
    if os.environ.get("LENS_LINEAR_EXTENSIONS") == "0":
        return {}
    found: dict[str, Extension | str] = {}
    for entry in sorted(metadata.entry_points(group=GROUP), key=_order):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.name
        name = package if package not in found else f"{package} ({entry.name})"
        found[name] = _loaded(entry, package)
    return found


def _order(entry: metadata.EntryPoint) -> tuple[str, str]:
    return (entry.dist.name if entry.dist else "", entry.name)


@cache
def _loaded(entry: metadata.EntryPoint, package: str) -> Extension | str:
    """What an entry point holds, read once a process."""
    try:
        return require_instance(  # type: ignore[no-any-return]
            f"entry point {entry.name!r}",
            entry.load(),
            Extension,
            advice="make it a lens_linear.extensions.Extension",
        )
    except (Exception, SystemExit) as reason:  # whatever a package does when it is imported
        return (
            f"the extension {package} could not be loaded ({type(reason).__name__}: {reason}); it adds "
            "nothing; update or uninstall it"
        )


@cache
def _say(words: str) -> None:
    """Warn once a process."""
    warnings.warn(words, LensLinearWarning, stacklevel=3)
