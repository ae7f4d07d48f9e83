"""Published numbers beside measured ones. What was not run here says so; nothing is filled in.

>>> table = published_beside_measured({})
>>> set(table["measured"])
{'not run'}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from lens_linear.checks import counted, require_instance
from lens_linear.errors import InvalidArgumentError
from lens_linear.linearity.measure.compare import ProfileComparison
from lens_linear.linearity.measure.profile_result import LinearityProfile
from lens_linear.linearity.replace.compression import CompressionTable
from lens_linear.studies.pretraining import StudyResult
from lens_linear.tables import Result

NOT_RUN = "not run"
RAZZHIGAEV = "Razzhigaev et al. 2024, arXiv 2405.12250"
WHIPP = "Whipp 2026, arXiv 2606.19379"


@dataclass(frozen=True)
class Published:
    """One published number or claim.

    Attributes:
        model: model or family it is about, in lower case; of a family, how the names of its models begin.
        quantity: what was measured.
        value: as published, in words or digits.
        source: paper.
        conditions: under which; differences to ours belong here.
        family: whether every model of that family is meant, not the one model of that name.
    """

    model: str
    quantity: str
    value: str
    source: str
    conditions: str = ""
    family: bool = False

    def concerns(self, name: str) -> bool:
        """Say whether a model of this name (owner and folder do not count) is meant."""
        short = name.rstrip("/").split("/")[-1].lower()
        if self.model == "any" or short == self.model:
            return True
        # "opt" is not the beginning of "optimus": the family's name ends where its letters end.
        rest = short.removeprefix(self.model)
        return self.family and rest != short and not rest[0].isalpha()


_BLOCK = "block R² with residual"
_BARE = "block R² without residual"
_FFN = "FFN R², lowest to highest layer"
_EARLY = "perplexity, early FFN as one linear layer"
_PRETRAINING = "block R² during pretraining"
_COSINE = "cosine regulariser in pretraining"
_IN_SAMPLE = "in-sample Procrustes score; ours held out unless asked"

PUBLISHED: tuple[Published, ...] = (
    *(
        Published(family, quantity, value, RAZZHIGAEV, _IN_SAMPLE, family=True)
        for family in ("gpt2", "llama", "opt", "bloom")
        for quantity, value in ((_BLOCK, "about 0.99"), (_BARE, "clearly lower"))
    ),
    Published("any", _PRETRAINING, "falls", RAZZHIGAEV),
    Published("any", "block R² during fine-tuning", "rises", RAZZHIGAEV),
    Published(
        "any",
        _COSINE,
        "less linear, better scores",
        RAZZHIGAEV,
        "TinyStories and SuperGLUE scores",
    ),
    *(
        Published(model, _FFN, "below 0.3 to above 0.99 over the three models", WHIPP, "held out")
        for model in ("gpt2", "pythia-160m", "llama-160m")
    ),
    Published("gpt2", _EARLY, "+0.77 at 8 times fewer parameters", WHIPP, "WikiText-2"),
)


@dataclass(frozen=True, eq=False)
class PublishedTable(Result):
    """Published beside measured; acts as its table.

    Attributes:
        rows: one mapping per published number, then one per measured model that no paper names.
    """

    rows: tuple[dict[str, str], ...]

    def to_dataframe(self) -> pd.DataFrame:
        """Columns: model, quantity, published, measured, conditions, source."""
        names = ("model", "quantity", "published", "measured", "conditions", "source")
        return pd.DataFrame(list(self.rows), columns=list(names))

    def about(self, name: str) -> pd.DataFrame:
        """The rows of :meth:`to_dataframe` that a paper gives for this model, "not run" included."""
        named = {
            (entry.model, entry.quantity)
            for entry in PUBLISHED
            if entry.model != "any" and entry.concerns(name)
        }
        frame = self.to_dataframe()
        kept = [pair in named for pair in zip(frame["model"], frame["quantity"], strict=True)]
        return frame[kept].reset_index(drop=True)

    def __repr__(self) -> str:
        run = sum(row["measured"] != NOT_RUN for row in self.rows)
        return f"PublishedTable: {counted(len(self.rows), 'row')}, {run} measured here, the rest not run"


def published_beside_measured(
    measured: Mapping[str, LinearityProfile | CompressionTable | ProfileComparison | StudyResult],
) -> PublishedTable:
    """Put what was measured beside what was published about the same model.

    A measured model belongs to a published row when its name (without owner and folder) is the row's
    model, or begins with the row's family; rows about "any" model take all. Rows without a match read
    "not run". Measured models that no row names come after, with "none" published.

    Args:
        measured: model name to profile, compression table, profiles of checkpoints in training order
            (``compare_profiles``) or study; may be empty.

    Returns:
        PublishedTable.

    Raises:
        InvalidArgumentError: a value is none of these.

    Source: each row's own, in the column ``source``.

    Example:
        >>> table = published_beside_measured({})
        >>> sorted(set(table["measured"])), "gpt2" in set(table["model"])
        (['not run'], True)
    """
    require_instance("measured", measured, Mapping, advice="pass {model name: result}, or {}")
    kinds = (LinearityProfile, CompressionTable, ProfileComparison, StudyResult)
    for name, result in measured.items():
        if not isinstance(result, kinds):
            raise InvalidArgumentError(
                f"measured[{name!r}] must be a LinearityProfile, a CompressionTable, a ProfileComparison "
                f"or a StudyResult, got {type(result).__name__}"
            )
    rows = []
    used: set[tuple[str, str]] = set()
    for entry in PUBLISHED:
        found = []
        for name, result in measured.items():
            if not entry.concerns(name):
                continue
            text = _measure(entry.quantity, result)
            if text is not None:
                found.append(f"{name}: {text}")
                used.add((name, entry.quantity))
        rows.append(_row(entry, "; ".join(found) or NOT_RUN))
    for name, result in measured.items():
        for quantity in _MEASURES:
            text = _measure(quantity, result)
            if text is not None and (name, quantity) not in used:
                rows.append(_row(Published(name, quantity, "none", "", ""), text))
    return PublishedTable(tuple(rows))


def _row(entry: Published, measured: str) -> dict[str, str]:
    return {
        "model": entry.model,
        "quantity": entry.quantity,
        "published": entry.value,
        "measured": measured,
        "conditions": entry.conditions,
        "source": entry.source,
    }


def _span(score: str) -> Callable[[object], str | None]:
    def text(result: object) -> str | None:
        if not isinstance(result, LinearityProfile):
            return None
        values = result.scores[score]
        values = values[~values.isnan()]
        if not len(values):
            return None
        low, high, mean = (float(v) for v in (values.min(), values.max(), values.mean()))
        return f"mean {mean:.3f}, {low:.3f} to {high:.3f} ({result.fit}, n = {result.n_tokens:,})"

    return text


def _early(result: object) -> str | None:
    if not isinstance(result, CompressionTable):
        return None
    first = [row for row in result.rows if row["layer"] == 0]
    if not first:
        return None
    row = max(first, key=lambda r: float(r["map_parameters"]))
    return (
        f"{row['perplexity_increase']:+.2f} at {row['times_fewer']:.1f} times fewer parameters, layer 0 "
        f"(n = {result.n_tokens:,})"
    )


def _pretraining(result: object) -> str | None:
    if not isinstance(result, ProfileComparison) or len(result.profiles) < 2:
        return None
    means = {name: float(p.scores["block"].nanmean()) for name, p in result.profiles.items()}
    return "mean over layers " + ", ".join(f"{value:.3f} ({name})" for name, value in means.items())


def _cosine(result: object) -> str | None:
    if not isinstance(result, StudyResult) or not any(
        "cosine" in change for change in result.study.variants.values()
    ):
        return None
    return result.verdict().replace("\n", "; ")


_MEASURES: dict[str, Callable[[object], str | None]] = {
    _BLOCK: _span("block"),
    _BARE: _span("block_no_residual"),
    _FFN: _span("ffn"),
    _EARLY: _early,
    _PRETRAINING: _pretraining,
    _COSINE: _cosine,
}


def _measure(quantity: str, result: object) -> str | None:
    return _MEASURES[quantity](result) if quantity in _MEASURES else None
