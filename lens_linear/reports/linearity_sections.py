"""Sections of a report that speak of linearity. They only call, and put numbers into sentences."""

from __future__ import annotations

import pandas as pd

from lens_linear.linearity.measure.profile_result import LinearityProfile
from lens_linear.plots import linearity as figures
from lens_linear.reports.measured import Measured
from lens_linear.reports.page import Block, Figure, Section, Table
from lens_linear.studies.published import published_beside_measured

# Scores by the names of their columns, with what the prose calls them.
_SCORES = {
    "block": ("block_r2", "blocks score"),
    "block_no_residual": ("block_r2_no_residual", "what blocks add"),
    "ffn": ("ffn_r2", "FFNs"),
    "attn": ("attn_r2", "attention"),
}


def linearity_section(measured: Measured) -> Section:
    """How linear every layer is, with the first position and without it."""
    every, name = measured.linearity, measured.name
    table = every.to_dataframe()
    blocks: list[Block] = [
        Figure(
            figures.linearity_profile(every),
            "Held-out R² of the best affine map, by layer. 1 is exactly linear; the grey line is what an "
            "unrelated output would score. Bands: 95 % intervals over held-out sequences.",
        ),
        Table(
            table[[*_score_columns(every), "null_r2", "update_ratio"]],
            f"The same numbers; n = {every.n_tokens:,} held-out tokens.",
        ),
    ]
    published = published_beside_measured({name: every}).about(name)
    if len(published):
        blocks.append(
            Table(
                published,
                "What papers give for models of this name, beside what was measured here.",
            )
        )
    prose = [_residual_sentences(table, name), _ffn_sentences(table)]
    finding = (
        f"An affine map explains {_span(table['block_r2'])} of the stream after a block of {name}, and "
        f"{_span(table['block_r2_no_residual'])} of what the blocks add to it (held out, "
        f"n = {every.n_tokens:,} tokens)."
    )
    if every.first_position_layers():
        finding += (
            f" Without the first position blocks reach {_span(table['block_r2_without_first'])}."
        )
    prose.append(_first_sentences(every, table))
    return Section(
        f"How linear is {name}?",
        "\n\n".join(part for part in prose if part),
        blocks,
        finding=finding,
    )


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


def _score_columns(profile: LinearityProfile) -> list[str]:
    """Blocks with both readings; of the others the second one where it differs by more than the interval."""
    columns = []
    for score, (column, _) in _SCORES.items():
        columns.append(column)
        if score == "block" or profile.first_position_layers(score):
            columns.append(f"{column}_without_first")
    return columns


def _first_sentences(profile: LinearityProfile, table: pd.DataFrame) -> str:
    share = table["block_first_share"].max()
    said: list[str] = []
    for score, (column, words) in _SCORES.items():
        if score != "block" and not profile.first_position_layers(score):
            continue
        later = table[f"{column}_without_first"]
        change = later - table[column]
        layer = int(change.abs().fillna(0).to_numpy().argmax())
        most = f"{change.iloc[layer]:+z.3f} in layer {layer}"
        said.append(
            f"{words} {_span(later)} ({'the largest change is ' if not said else ''}{most})"
        )
    return (
        f"The first position of each sequence holds up to {share:.0%} of a layer's variance. Without it "
        f"{', '.join(said)}."
    )


def _span(values: pd.Series) -> str:
    return f"{values.min():.2f} to {values.max():.2f}"
