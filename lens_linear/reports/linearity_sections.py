"""Sections of a report that speak of linearity. They only call, and put numbers into sentences."""

from __future__ import annotations

import pandas as pd

from lens_linear.linearity.measure.profile import LinearityProfile
from lens_linear.plots import linearity as figures
from lens_linear.reports.page import Block, Figure, Section, Table
from lens_linear.studies.published import published_beside_measured

_SHOWN = [
    "block_r2",
    "block_r2_no_residual",
    "ffn_r2",
    "attn_r2",
    "null_r2",
    "update_ratio",
]


def linearity_section(profiles: dict[int, LinearityProfile], *, name: str) -> Section:
    """How linear every layer is, with the first position and without it.

    Args:
        profiles: by the number of leading positions left out, 0 first.
        name: of the model.
    """
    every = profiles[0]
    table = every.to_dataframe()
    blocks: list[Block] = [
        Figure(
            figures.linearity_profile(every),
            "Held-out R² of the best affine map, by layer. 1 is exactly linear; the grey line is what an "
            "unrelated output would score. Bands: 95 % intervals over held-out sequences.",
        ),
        Table(table[_SHOWN], f"The same numbers; n = {every.n_tokens:,} held-out tokens."),
    ]
    published = published_beside_measured({name: every}).about(name)
    if len(published):
        blocks.append(
            Table(published, "What papers give for this model, beside what was measured here.")
        )
    prose = [_residual_sentences(table, name), _ffn_sentences(table)]
    later = {skip: profile for skip, profile in profiles.items() if skip}
    for skip, profile in later.items():
        prose.append(_skip_sentences(table, profile.to_dataframe(), skip))
    return Section(f"How linear is {name}?", "\n\n".join(part for part in prose if part), blocks)


def _residual_sentences(table: pd.DataFrame, name: str) -> str:
    with_residual, without = table["block_r2"], table["block_r2_no_residual"]
    return (
        f"An affine map from the residual stream before a block to the stream after it explains "
        f"{_span(with_residual)} of its variance in {name}. Part of that comes for nothing, because the "
        f"stream also goes around the block unchanged. Of what the blocks add to the stream, an affine map "
        f"explains {_span(without)}. A block adds a vector {_span(table['update_ratio'])} times as long as "
        f"the stream it reads; the largest is layer {int(table['update_ratio'].to_numpy().argmax())}."
    )


def _ffn_sentences(table: pd.DataFrame) -> str:
    ffn = table["ffn_r2"].dropna()
    if ffn.empty:
        return "The model has no FFNs."
    return (
        f"One affine map does the work of an FFN to a degree between {ffn.min():.2f} (layer "
        f"{ffn.idxmin()}) and {ffn.max():.2f} (layer {ffn.idxmax()}). All scores are held out: the map is "
        "fitted on half of the sequences and scored on the other half."
    )


def _skip_sentences(table: pd.DataFrame, later: pd.DataFrame, skip: int) -> str:
    change = later["block_r2"] - table["block_r2"]
    layer = int(change.abs().to_numpy().argmax())
    what = "the first position" if skip == 1 else f"the first {skip} positions"
    return (
        f"Without {what} of each sequence the with-residual scores are {_span(later['block_r2'])}; the "
        f"largest change is {change.iloc[layer]:+.3f} in layer {layer}. The first position can hold an "
        "outlier that carries much of the variance, so both are shown."
    )


def _span(values: pd.Series) -> str:
    return f"{values.min():.2f} to {values.max():.2f}"
