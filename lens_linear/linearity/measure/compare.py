"""Profiles side by side: training checkpoints, model sizes, with and without the first position.

>>> import torch
>>> from lens_linear.linearity.measure.profile import linearity_profile
>>> from lens_linear.models.open.toy import toy_model
>>> tokens = torch.randint(64, (20, 32), generator=torch.Generator().manual_seed(0))
>>> small = linearity_profile(toy_model(n_layers=2, d_model=16), tokens)
>>> large = linearity_profile(toy_model(n_layers=3, d_model=16), tokens)
>>> len(compare_profiles({"small": small, "large": large}))
5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lens_linear.checks import counted, require_choice
from lens_linear.errors import InvalidArgumentError
from lens_linear.linearity.measure.intervals import jackknife, percentiles, resampled
from lens_linear.linearity.measure.profile_result import SCORE_COLUMNS, LinearityProfile
from lens_linear.tables import Result
from lens_linear.token_labels import text_label


@dataclass(frozen=True, eq=False)
class ProfileComparison(Result):
    """Several profiles as one table; acts as it.

    Attributes:
        profiles: by name, in the order given.
    """

    _figure = "profile_comparison"
    _columns = (
        "name",
        "layer",
        "depth",
        "block_r2",
        "block_r2_without_first",
        "block_r2_no_residual",
        "ffn_r2",
        "attn_r2",
        "null_r2",
        "n_tokens",
    )

    profiles: Mapping[str, LinearityProfile]

    @property
    def statistics(self) -> list[str]:
        """Names of the statistics of one's own that any of the profiles has."""
        return list(dict.fromkeys(own for p in self.profiles.values() for own in p.statistics))

    def to_dataframe(self) -> pd.DataFrame:
        """One row per name and layer: name, layer, depth (0 first to 1 last), then the profile's columns."""
        frames = []
        for name, profile in self.profiles.items():
            frame = profile.to_dataframe().reset_index()
            depth = frame["layer"] / max(profile.n_layers - 1, 1)
            frame.insert(0, "name", name)
            frame.insert(2, "depth", depth)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def summary(self) -> pd.DataFrame:
        """One row per name: mean, minimum and maximum over layers of each score and statistic.

        Scores stand with the first position and without it (``…_without_first``), null_r2 beside them.
        """
        scores = [
            f"{name}{end}" for end in ("", "_without_first") for name in SCORE_COLUMNS.values()
        ]
        names = [*scores, "null_r2", "update_ratio", *self.statistics]
        grouped = self.to_dataframe().groupby("name", sort=False)[names].agg(["mean", "min", "max"])
        grouped.columns = pd.Index(["_".join(pair) for pair in grouped.columns.to_flat_index()])
        return grouped

    def difference(
        self, first: str, second: str, *, n_resamples: int = 1000, seed: int = 0
    ) -> ProfileDifference:
        """Score of ``first`` minus that of ``second``, layer by layer, paired by sequence.

        Both profiles must come from the same sequences: these are drawn with replacement, the same draw for
        both, so what makes a text hard for both drops out of the interval. Statistics of one's own that both
        have are paired by leaving the same tenth of the sequences out of both.

        Args:
            first: name of one profile.
            second: name of the other.
            n_resamples: bootstrap samples.
            seed: of the draws.

        Returns:
            ProfileDifference: one row a layer, each score and statistic with ``_low`` and ``_high``, the
            interval at the profiles' confidence; ``.plot()`` draws the bands.

        Raises:
            InvalidArgumentError: an unknown name, in-sample profiles, profiles of other sequences, or a
                statistic taken of another site.
        """
        one, other = (
            self.profiles[require_choice("name", n, self.profiles)] for n in (first, second)
        )
        for what in (
            "fit",
            "n_layers",
            "n_sequences",
            "n_tokens",
            "skip",
            "seed",
            "confidence",
            "tokens_sha256",
        ):
            here, there = getattr(one, what), getattr(other, what)
            if here != there:
                differ = f"{what} is {here!r} and {there!r}"
                if what == "tokens_sha256":
                    differ = "their token ids differ"
                raise InvalidArgumentError(
                    f"{first!r} and {second!r} must come from the same sequences to be paired, but {differ}; "
                    "profile both on the same tokens with the same settings"
                )
        if not one.sums:
            raise InvalidArgumentError(
                'in-sample profiles keep no sums by sequence; profile both with fit="held-out"'
            )
        columns: dict[str, Tensor] = {}
        for score, name in SCORE_COLUMNS.items():
            drawn = [
                resampled(profile.sums[score][0], profile.sums[score][1], n_resamples, seed)
                for profile in (one, other)
            ]
            ends = percentiles(drawn[0] - drawn[1], one.confidence)
            columns[name] = one.scores[score] - other.scores[score]
            columns[f"{name}_low"], columns[f"{name}_high"] = ends.unbind(1)
        for name, here in one.statistics.items():
            there = other.statistics.get(name)
            if there is None:
                continue
            if here.site != there.site:
                raise InvalidArgumentError(
                    f"statistic {name!r} was taken of the {here.site} in {first!r} and of the {there.site} "
                    f"in {second!r}; profile both with the same first of sites"
                )
            columns[name] = here.values - there.values
            ends = jackknife(columns[name], here.left_out - there.left_out, one.confidence)
            columns[f"{name}_low"], columns[f"{name}_high"] = ends.unbind(1)
        return ProfileDifference(
            first, second, columns, one.n_sequences, n_resamples, seed, one.confidence
        )

    def __repr__(self) -> str:
        parts = [
            f"{name} ({counted(profile.n_layers, 'layer')}, mean block R² {_block_readings(profile)}, null "
            f"about {float(profile.null_r2.mean()):.2g}{profile.few_rows})"
            for name, profile in self.profiles.items()
        ]
        n = sum(profile.n_tokens for profile in self.profiles.values())
        return f"ProfileComparison: {', '.join(parts)}; n = {counted(n, 'token', ',')} over all"


def _block_readings(profile: LinearityProfile) -> str:
    """Mean block R², and without the first position where any layer's differs by more than its interval."""
    mean = f"{float(profile.scores['block'].nanmean()):.3f}"
    if not profile.first_position_layers():
        return mean
    return f"{mean}, {float(profile.without_first.values['block'].nanmean()):.3f} without the first position"


@dataclass(frozen=True, eq=False)
class ProfileDifference(Result):
    """One profile minus another, paired by sequence; made by :meth:`ProfileComparison.difference`.

    Attributes:
        first: name of the one.
        second: name of the other, which is taken away.
        columns: by layer, each score and statistic of ``first`` minus that of ``second``, and its ``_low``
            and ``_high``.
        n_sequences: sequences that were drawn from.
        n_resamples: bootstrap samples.
        seed: of the draws.
        confidence: coverage of the intervals.
    """

    _figure = "profile_difference"
    _columns = (
        "block_r2",
        "block_r2_low",
        "block_r2_high",
        "ffn_r2",
        "ffn_r2_low",
        "ffn_r2_high",
        "attn_r2",
    )

    first: str
    second: str
    columns: Mapping[str, Float[Tensor, " layer"]]
    n_sequences: int
    n_resamples: int
    seed: int
    confidence: float

    @property
    def statistics(self) -> list[str]:
        """Names of the statistics of one's own that both profiles have."""
        known = [name.removesuffix("_low") for name in self.columns if name.endswith("_low")]
        return [name for name in known if name not in SCORE_COLUMNS.values()]

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer: block_r2, block_r2_no_residual, ffn_r2, attn_r2 and statistics of one's own.

        Each has its ``_low`` and ``_high``.
        """
        columns = {name: values.numpy() for name, values in self.columns.items()}
        return pd.DataFrame(columns).rename_axis("layer")

    def __repr__(self) -> str:
        clear = {
            name: int(
                ((self.columns[f"{name}_low"] > 0) | (self.columns[f"{name}_high"] < 0)).sum()
            )
            for name in (*SCORE_COLUMNS.values(), *self.statistics)
        }
        n_layers = len(self.columns["block_r2"])
        parts = ", ".join(f"{name} in {count}" for name, count in clear.items() if count)
        return (
            f"ProfileDifference: {self.first} minus {self.second}, {counted(n_layers, 'layer')}, n = "
            f"{counted(self.n_sequences, 'sequence')}, paired; away from 0 at {self.confidence:.0%}: "
            f"{parts or 'nothing'}"
        )


def compare_profiles(profiles: Mapping[str, LinearityProfile]) -> ProfileComparison:
    """Put profiles side by side, in the order of the mapping.

    Args:
        profiles: name to profile, for example of one model at several training steps.

    Returns:
        ProfileComparison: ``.summary()``, ``.difference(a, b)``, ``.profiles``; its table has one
        row a name and layer.

    Raises:
        InvalidArgumentError: nothing to compare, or something that is no profile.

    Source: Razzhigaev et al. 2024, arXiv 2405.12250 (linearity along pretraining).

    Example:
        >>> import torch
        >>> from lens_linear.linearity.measure.profile import linearity_profile
        >>> from lens_linear.models.open.toy import toy_model
        >>> tokens = torch.randint(64, (20, 32), generator=torch.Generator().manual_seed(0))
        >>> one = linearity_profile(toy_model(n_layers=3, d_model=16), tokens)
        >>> compare_profiles({"one": one, "again": one})["depth"].tolist()
        [0.0, 0.5, 1.0, 0.0, 0.5, 1.0]
    """
    if not isinstance(profiles, Mapping) or not profiles:
        raise InvalidArgumentError("profiles must hold at least one LinearityProfile by name")
    for name, profile in profiles.items():
        if not isinstance(name, str) or text_label(name.strip() or " ") != name.strip():
            raise InvalidArgumentError(
                f"profiles must be named by words that can be seen, got {name!r}; name it "
                f"{text_label(str(name))!r}"
            )
        if not isinstance(profile, LinearityProfile):
            raise InvalidArgumentError(
                f"profiles[{name!r}] must be a LinearityProfile, got {type(profile).__name__}; pass what "
                "linearity_profile returns"
            )
    return ProfileComparison(dict(profiles))


compare = compare_profiles  # its name at the top: ``ll.compare``
