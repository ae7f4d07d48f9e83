"""Labelled texts for concept directions, and their division into three disjoint parts.

A concept is a set of texts of two classes, 1 (has it) and 0 (has not). The direction is found on
one part, the surrogate is identified on a second, and every score is taken on a third; a text that
stood in two of them would leak. So duplicates are removed before the division.

>>> concept = Concept("toy", tuple("abcdefgh"), (0, 1) * 4, source="made here")
>>> parts = concept.split(2, 2, 4, seed=0)
>>> [len(part) for part in (parts.concept, parts.operating, parts.evaluation)]
[2, 2, 4]

Source: Nettasinghe & Joseph 2026 (arXiv 2603.12541): concept, operating and evaluation splits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import as_file
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from lens_linear.checks import (
    counted,
    require_choice,
    require_int,
    require_ints,
    require_list,
    require_path,
)
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError
from lens_linear.text._rows import TABLE_SUFFIXES, own_file, read_rows, require_column, require_text
from lens_linear.text._seeds import labelled_generator
from lens_linear.text.huggingface import huggingface_rows
from lens_linear.text.presets import PRESETS

BUNDLED = ("mood",)
_PRESET_LIMIT = 2000
_CLASSES: Mapping[str, int] = {
    **dict.fromkeys(("0", "false", "no", "negative", "neg"), 0),
    **dict.fromkeys(("1", "true", "yes", "positive", "pos"), 1),
}


class ConceptSplit(NamedTuple):
    """Three concepts that share no text: to find the direction, to identify, to score."""

    concept: Concept
    operating: Concept
    evaluation: Concept

    @property
    def texts(self) -> tuple[str, ...]:
        """Those of the evaluation part, on which scores are taken."""
        return self.evaluation.texts


@dataclass(frozen=True, eq=False)
class Concept:
    """Texts of two classes.

    Attributes:
        name: what the concept is called in tables and figures.
        texts: the texts; none is blank.
        labels: 1 or 0 for each text.
        source: where they come from.

    Raises:
        InvalidArgumentError: lengths differ, a text is blank, or a label is not 0 or 1.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    source: str

    def __post_init__(self) -> None:
        # Accept any sequence, keep tuples: a frozen concept must not change under its owner.
        object.__setattr__(self, "texts", tuple(require_list("texts", self.texts, of="texts")))
        labels = [
            int(v) if isinstance(v, bool) else v
            for v in require_list("labels", self.labels, of="0 and 1")
        ]
        object.__setattr__(self, "labels", tuple(require_ints("labels", labels)))
        if len(self.texts) != len(self.labels):
            raise InvalidArgumentError(
                f"labels must have one entry for each text, got {len(self.labels)} labels for "
                f"{len(self.texts)} texts"
            )
        for index, (text, label) in enumerate(zip(self.texts, self.labels)):
            if not isinstance(text, str) or not text.strip():
                raise InvalidArgumentError(
                    f"texts must be strings that are not blank, got {text!r} at {index}; drop it"
                )
            if label not in (0, 1):
                raise InvalidArgumentError(
                    f"labels must be 0 or 1, got {label!r} at {index}; map the classes first"
                )

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return (
            f"Concept {self.name!r}: {counted(len(self), 'text')}, {self.n_positive} positive and "
            f"{len(self) - self.n_positive} negative, from {self.source}"
        )

    @property
    def n_positive(self) -> int:
        """Texts of class 1."""
        return sum(self.labels)

    def to_dataframe(self) -> pd.DataFrame:
        """Columns text, label."""
        return pd.DataFrame({"text": list(self.texts), "label": list(self.labels)})

    def split(
        self, n_concept: int, n_operating: int, n_evaluation: int, *, seed: int = 0
    ) -> ConceptSplit:
        """Three disjoint, balanced parts, drawn at random.

        Each part is half positive (an odd part has one negative more). Texts that are equal up to
        case and white space count once; a text that occurs with both labels is left out.

        Args:
            n_concept: texts to find the direction with.
            n_operating: texts to identify the surrogate on.
            n_evaluation: texts to score on.
            seed: fixes the draw.

        Raises:
            NotEnoughDataError: too few distinct texts of a class; the message has the numbers.
        """
        sizes = [
            require_int(name, size, minimum=2)
            for name, size in (
                ("n_concept", n_concept),
                ("n_operating", n_operating),
                ("n_evaluation", n_evaluation),
            )
        ]
        generator = labelled_generator(seed, "concept split")
        pools = [self._shuffled(label, generator) for label in (0, 1)]
        needs = [sum(size - size // 2 for size in sizes), sum(size // 2 for size in sizes)]
        if len(pools[0]) < needs[0] or len(pools[1]) < needs[1]:
            raise NotEnoughDataError(
                f"concept {self.name!r} has {len(pools[1])} positive and {len(pools[0])} negative "
                f"distinct texts, but parts of {sizes[0]}, {sizes[1]} and {sizes[2]} need "
                f"{needs[1]} and {needs[0]}; ask for smaller parts or load more texts"
            )
        parts = []
        for part, size in zip(ConceptSplit._fields, sizes):
            taken = [pools[1].pop() for _ in range(size // 2)]
            taken += [pools[0].pop() for _ in range(size - size // 2)]
            order = torch.randperm(size, generator=generator).tolist()
            picked = [taken[i] for i in order]
            texts, labels = zip(*((self.texts[i], self.labels[i]) for i in picked), strict=True)
            source = f"{self.source}, {part} part"
            parts.append(replace(self, texts=texts, labels=labels, source=source))
        return ConceptSplit(*parts)

    def _shuffled(self, label: int, generator: torch.Generator) -> list[int]:
        """Indices of the distinct texts of a class, in random order."""
        first: dict[str, int] = {}
        ambiguous = set()
        for index, text in enumerate(self.texts):
            key = " ".join(text.split()).casefold()
            if self.labels[first.setdefault(key, index)] != self.labels[index]:
                ambiguous.add(key)
        indices = [
            index
            for key, index in first.items()
            if self.labels[index] == label and key not in ambiguous
        ]
        order = torch.randperm(len(indices), generator=generator).tolist()
        return [indices[i] for i in order]


def load_concept(
    source: str | Path,
    *,
    text: str = "text",
    label: str = "label",
    classes: Mapping[Any, int] | None = None,
    limit: int | None = None,
    path: str | Path | None = None,
) -> Concept:
    """Load labelled texts: the package's own, a file, or one of the paper's ten datasets.

    Args:
        source: ``"mood"`` (short sentences written for this package, positive is 1); the path of a
            .jsonl, .json, .csv or .tsv file; or a name in ``lens_linear.text.PRESETS``:
            amazon_polarity, yelp_polarity, sst2, imdb, boolq, mnli (entailment 1, contradiction 0,
            neutral left out), civil_comments (toxicity at least 0.5 is 1), tweet_irony, tweet_hate,
            tweet_offensive.
        text: the text column of a file (presets know theirs).
        label: the label column of a file.
        classes: label value to 0 or 1 for a file; other values are left out. By default 0, 1,
            true, false, yes, no, positive, negative, pos and neg are understood and anything else
            is an error.
        limit: texts in all, half of each class: reading stops as soon as both halves are full, so
            a large dataset on the Hub is not downloaded whole. None reads a file whole and
            2000 texts of a preset. The first texts of each class are taken, in the source's order.
        path: for a preset, a local copy: a file with the same columns, or a dataset folder (also that of
            a repository with several configurations: the preset's own is read).

    Returns:
        A :class:`Concept`; its ``source`` says what was read.

    Raises:
        InvalidArgumentError: no such source, column or label value.
        NotEnoughDataError: one class is missing.
        OfflineError: a preset cannot be fetched; the message says what to do.

    Source: Nettasinghe & Joseph 2026, arXiv 2603.12541 (the ten tasks); the templates are ours.

    Example:
        >>> concept = load_concept("mood", limit=20)
        >>> len(concept), concept.n_positive
        (20, 10)
        >>> load_concept("imdb", limit=200)  # doctest: +SKIP
        Concept 'imdb': 200 texts, 100 positive and 100 negative, from stanfordnlp/imdb ...
    """
    require_path("source", source)
    limit = None if limit is None else require_int("limit", limit, minimum=2)
    if path is not None and source not in PRESETS:
        require_choice("source (with path=)", source, PRESETS)
    if source in PRESETS:
        return _load_preset(str(source), path, _PRESET_LIMIT if limit is None else limit)
    if source in BUNDLED:
        return _load_bundled(str(source), limit)
    file = Path(source).expanduser()
    if not file.is_file():
        if file.suffix.lower() in TABLE_SUFFIXES or file.exists():
            raise InvalidArgumentError(
                f"source must be a concept's name or a labelled file that exists, got "
                f"{str(source)!r}; check the path"
            )
        require_choice("source", str(source), (*BUNDLED, *PRESETS))
    return _collect(file.stem, _file_pairs(file, text, label, classes), limit, file.name)


def _load_bundled(name: str, limit: int | None) -> Concept:
    with as_file(own_file(f"concepts/{name}.jsonl")) as path:
        pairs = _file_pairs(path, "text", "label", None)
    return _collect(name, pairs, limit, "sentences written for this package")


def _load_preset(name: str, path: str | Path | None, limit: int) -> Concept:
    preset = PRESETS[name]
    where = preset.path if path is None else path
    if path is not None and preset.config and (Path(path) / preset.config).is_dir():
        where = Path(path) / preset.config  # a copy of a repository with a folder a configuration
    rows = huggingface_rows(
        where,
        split=preset.split,
        config=preset.config if path is None else None,
    )
    pairs = (pair for row in rows if (pair := preset.read(row)) is not None)
    config = f" ({preset.config})" if preset.config else ""
    origin = f"{preset.path}{config}, {preset.meaning[1]} against {preset.meaning[0]}"
    return _collect(name, pairs, limit, origin)


def _collect(
    name: str, pairs: Iterable[tuple[str, int]], limit: int | None, source: str
) -> Concept:
    """Take pairs until both halves of ``limit`` are full; blank texts are left out."""
    room = None if limit is None else [limit - limit // 2, limit // 2]
    texts: list[str] = []
    labels: list[int] = []
    for text, label in pairs:
        if not text.strip():
            continue
        if room is not None:
            if room[label] == 0:
                continue
            room[label] -= 1
        texts.append(text)
        labels.append(label)
        if room == [0, 0]:
            break
    concept = Concept(name, tuple(texts), tuple(labels), source)
    if not 0 < concept.n_positive < len(concept):
        raise NotEnoughDataError(
            f"source must hold texts of both classes, but {name!r} has {concept.n_positive} "
            f"positive and {len(concept) - concept.n_positive} negative; check the label column "
            "and the classes"
        )
    return concept


def _file_pairs(
    path: Path, text: str, label: str, classes: Mapping[Any, int] | None
) -> Iterator[tuple[str, int]]:
    for number, row in enumerate(read_rows(path), start=1):
        where = f"row {number} of {path.name!r}"
        value = row[require_column(where, row, label)]
        content = require_text(where, row, text)
        found = _class_of(value, classes)
        if found is None and classes is None:
            raise InvalidArgumentError(
                f"column {label!r} must hold 0 or 1 (or true/false, yes/no, positive/negative), "
                f"got {value!r} in {where}; pass classes={{value: 0 or 1}}"
            )
        if found is not None:
            yield content, found


def _class_of(value: Any, classes: Mapping[Any, int] | None) -> int | None:
    if classes is None:
        if isinstance(value, float) and value in (0.0, 1.0):
            value = int(value)
        return _CLASSES.get(str(value).strip().lower())
    if value in classes:
        return classes[value]
    # csv files hold strings: {1: ...} and {"1": ...} mean the same there.
    return {str(key): found for key, found in classes.items()}.get(str(value).strip())
