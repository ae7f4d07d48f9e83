"""The ten labelled datasets of the depth-dynamics paper, as data: where they are and what to read.

Columns, configurations and label values follow each dataset's card on the Hugging Face Hub. The
class whose direction is sought is 1. Rows whose label maps to nothing (neutral MNLI pairs,
unlabelled rows) are left out.

Source: Nettasinghe & Joseph 2026 (arXiv 2603.12541) for the list of tasks; templates are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from string import Formatter
from types import MappingProxyType
from typing import Any

from lens_linear.text._rows import Row, require_column


@dataclass(frozen=True)
class Preset:
    """Where a labelled dataset is, how its rows become texts, and what its labels mean.

    Attributes:
        path: name on the Hugging Face Hub.
        config: configuration there, or None.
        split: the split that is read.
        template: the text of a row, ``{column}`` standing for a column.
        label: the label's column.
        classes: label value to class 0 or 1; values that are not in it are left out. Class names
            stand beside the numbers because exported copies often hold names.
        threshold: for a fractional label: class 1 from this value on, class 0 below.
        meaning: what class 0 and class 1 are.
    """

    path: str
    config: str | None
    split: str
    template: str
    label: str
    meaning: tuple[str, str]
    classes: Mapping[Any, int] | None = None
    threshold: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the template and the label need."""
        fields = [name for _, name, _, _ in Formatter().parse(self.template) if name]
        return (*fields, self.label)

    def read(self, row: Row) -> tuple[str, int] | None:
        """Text and class of a row, or None when it has no text or its label belongs to neither class."""
        for column in self.columns:
            require_column(f"dataset {self.path!r}", row, column)
        label = self._class(row[self.label])
        parts = {name: row[name] for name in self.columns[:-1]}
        if label is None or any(part is None for part in parts.values()):
            return None
        return self.template.format(**parts), label

    def _class(self, value: Any) -> int | None:
        if self.threshold is not None:
            return None if value in (None, "") else int(float(value) >= self.threshold)
        classes = self.classes or {}
        if isinstance(value, str):
            value = value.strip().lower()
            value = int(value) if value.lstrip("-").isdigit() else value
        return classes.get(value)


def _classes(negative: tuple[Any, ...], positive: tuple[Any, ...]) -> Mapping[Any, int]:
    return MappingProxyType({**dict.fromkeys(negative, 0), **dict.fromkeys(positive, 1)})


_SENTIMENT = ("negative", "positive")
_POLARITY = _classes((0, "negative", "neg"), (1, "positive", "pos"))

_labelled = partial(Preset, split="train", label="label")
_sentiment = partial(_labelled, classes=_POLARITY, meaning=_SENTIMENT)
_tweets = partial(_labelled, "cardiffnlp/tweet_eval", template="{text}")

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "amazon_polarity": _sentiment(
            "fancyzhx/amazon_polarity", "amazon_polarity", template="{content}"
        ),
        # The card names the classes "1" and "2" (stars); the stored values are 0 and 1.
        "yelp_polarity": _sentiment("fancyzhx/yelp_polarity", "plain_text", template="{text}"),
        # The test split has no labels (-1).
        "sst2": _sentiment("nyu-mll/glue", "sst2", template="{sentence}"),
        "imdb": _sentiment("stanfordnlp/imdb", "plain_text", template="{text}"),
        "boolq": Preset(
            "google/boolq",
            None,
            split="train",
            template="{passage}\nQuestion: {question}?\nAnswer:",
            label="answer",
            classes=_classes((False, "false", "no"), (True, "true", "yes")),
            meaning=("no", "yes"),
        ),
        "mnli": _labelled(
            "nyu-mll/glue",
            "mnli",
            template="Premise: {premise}\nHypothesis: {hypothesis}",
            # 0 entailment, 1 neutral, 2 contradiction: neutral is left out.
            classes=_classes((2, "contradiction"), (0, "entailment")),
            meaning=("contradiction", "entailment"),
        ),
        "civil_comments": Preset(
            "google/civil_comments",
            None,
            split="train",
            template="{text}",
            label="toxicity",  # fraction of annotators that called it toxic
            threshold=0.5,
            meaning=("not toxic", "toxic"),
        ),
        "tweet_irony": _tweets(
            config="irony",
            classes=_classes((0, "non_irony"), (1, "irony")),
            meaning=("not ironic", "ironic"),
        ),
        "tweet_hate": _tweets(
            config="hate",
            classes=_classes((0, "non-hate"), (1, "hate")),
            meaning=("no hate speech", "hate speech"),
        ),
        "tweet_offensive": _tweets(
            config="offensive",
            classes=_classes((0, "non-offensive"), (1, "offensive")),
            meaning=("not offensive", "offensive"),
        ),
    }
)
