"""Figures of circuits over tokens: QK and OV maps, bigram and skip-trigram tables, singular directions.

Token text may hold anything; every label is escaped and made printable before it reaches a figure.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_linear._checks import require_int
from lens_linear.circuits.bigrams import BigramComparison, BigramTable, NextTokens
from lens_linear.circuits.bugs import SkipTrigramBugs
from lens_linear.circuits.factored import TopPairs
from lens_linear.circuits.maps import CircuitMap
from lens_linear.circuits.mechanism import InductionMechanism
from lens_linear.circuits.svd import CircuitSVD
from lens_linear.circuits.trigrams import SkipTrigrams
from lens_linear.plots.style import MAX_CELLS, colour, escape, matrix, styled, tick_label

_ROW = 32  # pixels; a cell with an escaped token takes 31
_HEADER = {"fill_color": "#DCE6F0", "align": "left", "font": {"size": 13}, "height": 28}
_CELLS = {"fill_color": "white", "align": "left", "font": {"size": 13}, "height": _ROW}


def _height(rows: int) -> int:
    """Height of a figure that shows a whole table, with room for a few cells of two lines."""
    return 240 + _ROW * rows


def circuit_window(circuit: CircuitMap, *, max_cells: int = MAX_CELLS) -> go.Figure:
    """The rows and columns of a QK or OV circuit with the largest entries, token by token."""
    figure = matrix(
        circuit.window,
        rows=list(circuit.row_labels),
        columns=list(circuit.column_labels),
        value_name="score" if circuit.column_name == "key" else "logit",
        row_name=circuit.row_name,
        column_name=circuit.column_name,
        max_cells=max_cells,
    )
    rows, columns = circuit.matrix_shape
    return styled(
        figure,
        title=f"{escape(circuit.name)}: strongest tokens",
        subtitle=f"{len(circuit.rows)} × {len(circuit.columns)} of {rows} × {columns} tokens, by their "
        "largest entry; norm scales left out",
        x=f"{circuit.column_name} token",
        y=f"{circuit.row_name} token",
        height=180 + 13 * len(circuit.rows),
    )


def circuit_overview(circuit: CircuitMap, *, max_cells: int = MAX_CELLS) -> go.Figure:
    """The whole circuit in blocks: each block's entry of largest size, with its sign."""
    rows, columns = circuit.block_shape
    figure = matrix(
        circuit.overview,
        value_name="largest entry",
        row_name=f"{circuit.row_name} block",
        column_name=f"{circuit.column_name} block",
        max_cells=max_cells,
    )
    return styled(
        figure,
        title=f"{escape(circuit.name)}: overview",
        subtitle=f"{circuit.matrix_shape[0]} × {circuit.matrix_shape[1]} tokens in blocks of {rows} × "
        f"{columns}; the entry of largest size in each",
        x=f"{circuit.column_name} tokens (block)",
        y=f"{circuit.row_name} tokens (block)",
        height=620,
    )


def top_pairs(pairs: TopPairs, *, k: int = 20) -> go.Figure:
    """A table: the entries of a circuit that stand out, with the tokens of their row and column."""
    frame = pairs.to_dataframe().head(require_int("k", k, minimum=1))
    rows, columns = pairs.matrix_shape
    shown = [[_token(frame, name, i) for i in range(len(frame))] for name in ("row", "column")]
    values = [f"{value:.3f}" for value in frame["value"]]
    figure = go.Figure(
        go.Table(
            header={"values": [*pairs.sides, "entry"], **_HEADER},
            cells={"values": [*shown, values], **_CELLS},
        )
    )
    return styled(
        figure,
        title=f"{escape(pairs.name)}: pairs of tokens",
        subtitle=f"the {len(frame)} {pairs.order} of {rows} × {columns} entries; norm scales left out",
        height=_height(len(frame)),
    )


def bigram_table(table: BigramTable, tokens: Sequence[int], *, k: int = 8) -> go.Figure:
    """A table: the k next tokens the direct path favours after each of some tokens."""
    k = require_int("k", k, minimum=1)
    rows = [table.top(int(token), k) for token in tokens]
    labels = table.labels
    first = [tick_label(f"#{t}" if labels is None else labels[t]) for t in map(int, tokens)]
    columns = [[_next_cell(row, rank) for row in rows] for rank in range(k)]
    figure = go.Figure(
        go.Table(
            header={"values": ["after", *(f"{rank + 1}." for rank in range(k))], **_HEADER},
            cells={"values": [first, *columns], **_CELLS},
        )
    )
    return styled(
        figure,
        title="Bigrams of the direct path",
        subtitle="next tokens by probability (with the bias), W_E W_U alone",
        height=_height(len(rows)),
    )


def _next_cell(row: NextTokens, rank: int) -> str:
    if rank >= len(row.ids):
        return ""
    token = int(row.ids[rank])
    text = f"#{token}" if row.labels is None else row.labels[token]
    share, text = float(row.probabilities[rank]), tick_label(text, max_length=8)
    return f"{text} {share:.0%}" if share >= 0.095 else f"{text} {share:.1%}"


def bigram_comparison(comparison: BigramComparison, *, k: int = 30) -> go.Figure:
    """Bars: the tokens after which the direct path misses most, by their share of the mean KL."""
    frame = comparison.to_dataframe().head(require_int("k", k, minimum=1))
    texts = frame["label"] if "label" in frame else [f"#{token}" for token in frame["token"]]
    labels = [tick_label(text) for text in texts]
    figure = go.Figure(
        go.Bar(
            x=list(range(len(frame))),
            y=frame["kl"] * frame["weight"],
            marker_color=colour(0),
            text=labels,
            textposition="none",
            customdata=frame[["kl", "weight"]],
            hovertemplate="after %{text}<br>KL %{customdata[0]:.3f} nats<br>share of tokens "
            "%{customdata[1]:.3%}<extra></extra>",
        )
    )
    figure.update_xaxes(tickmode="array", tickvals=list(range(len(frame))), ticktext=labels)
    return styled(
        figure,
        title="Where the direct path misses bigrams",
        subtitle=f"KL({comparison.reference} || direct path) = {comparison.mean:.3f} nats a token in all",
        x="current token",
        y="share of the KL (nats)",
        legend="none",
    )


def skip_trigram_table(table: SkipTrigrams, *, k: int = 20) -> go.Figure:
    """A table of skip-trigrams: source … destination → out, with their scores."""
    frame = table.to_dataframe().head(require_int("k", k, minimum=1))
    shown = [
        [_token(frame, name, i) for i in range(len(frame))]
        for name in ("source", "destination", "out")
    ]
    numbers = [
        [f"{value:.2f}" for value in frame[name]]
        for name in ("qk_score", "ov_score", "attention", "effect", "probability_gain")
    ]
    figure = go.Figure(
        go.Table(
            header={
                "values": [
                    "source …",
                    "destination →",
                    "out",
                    "QK",
                    "OV",
                    "attention",
                    "effect (logits)",
                    "Δ probability",
                    "head",
                ],
                **_HEADER,
            },
            cells={"values": [*shown, *numbers, list(frame["head"])], **_CELLS},
        )
    )
    return styled(
        figure,
        title="Skip-trigrams",
        subtitle=f"{escape(', '.join(table.heads))}; effect: estimated rise of the logit above the average "
        f"token's, the source among {table.context} keys",
        height=_height(len(frame)),
    )


def skip_trigram_bugs(table: SkipTrigramBugs, *, k: int = 20) -> go.Figure:
    """A table of crossed skip-trigrams: what the heads also raise because QK and OV are separate."""
    frame = table.to_dataframe().head(require_int("k", k, minimum=1))
    names = ("source", "destination", "out", "wanted_out", "other_destination")
    columns = [[_token(frame, name, i) for i in range(len(frame))] for name in names]
    heads = ["source …", "destination →", "wrong out", "right out", "out belongs to"]
    for name, title in (("effect", "effect (logits)"), ("wanted_effect", "right ones (logits)")):
        columns.append([f"{value:.2f}" for value in frame[name]])
        heads.append(title)
    if "count" in frame:
        columns.append([f"{value:.0f}" for value in frame["count"]])
        columns.append([f"{value:.1f}" for value in frame["expected"]])
        heads += ["in the corpus", "expected"]
    figure = go.Figure(
        go.Table(header={"values": heads, **_HEADER}, cells={"values": columns, **_CELLS})
    )
    return styled(
        figure,
        title="Skip-trigram bugs",
        subtitle=f"{escape(', '.join(table.heads))}; crossed from two right skip-trigrams of one source",
        height=_height(len(frame)),
    )


def _token(frame: pd.DataFrame, name: str, row: int) -> str:
    label = f"{name}_label"
    value = frame[label].iloc[row] if label in frame else f"#{frame[name].iloc[row]}"
    return tick_label(value)


def svd_directions(found: CircuitSVD, *, directions: int = 6) -> go.Figure:
    """Singular values of a circuit, and the tokens at both ends of its first directions.

    Directions whose singular values nearly equal a neighbour's are marked ≈: only the space they span
    together is determined.
    """
    n = min(require_int("directions", directions, minimum=1), len(found.S))
    figure = make_subplots(
        rows=2,
        cols=1,
        specs=[[{"type": "xy"}], [{"type": "table"}]],
        row_heights=[0.35, 0.65],
        vertical_spacing=0.1,
    )
    close = {i for run in found.near_equal for i in run}
    values = found.spectrum.values.tolist()
    figure.add_trace(
        go.Bar(
            x=list(range(len(values))),
            y=values,
            marker_color=[colour(1) if i in close else colour(0) for i in range(len(values))],
            hovertemplate="direction %{x}<br>singular value %{y:.4g}<extra></extra>",
            showlegend=False,
        ),
        row=1,
        col=1,
    )
    frame = found.to_dataframe()
    text = "label" if "label" in frame else "token"
    rows: list[list[str]] = [[], [], [], []]
    sides = [f"{escape(side)} tokens" for side in found.sides]
    for direction in range(n):
        for sign in (1, -1):
            chosen = frame[(frame["direction"] == direction) & (frame["sign"] == sign)]
            mark = " ≈" if direction in close else ""
            rows[0].append(f"{direction}{mark}")
            rows[1].append("+" if sign > 0 else "-")
            for column, side in ((2, "row"), (3, "column")):
                tokens = chosen[chosen["side"] == side][text]
                rows[column].append("  ".join(tick_label(t, max_length=12) for t in tokens))
    figure.add_trace(
        go.Table(
            columnwidth=[0.9, 0.6, 5, 5],
            header={"values": ["direction", "end", *sides], **_HEADER},
            cells={"values": rows, **_CELLS},
        ),
        row=2,
        col=1,
    )
    figure.update_yaxes(title_text="singular value", row=1, col=1)
    figure.update_xaxes(title_text="direction", row=1, col=1)
    note = found.warning or "no near-equal singular values among them"
    return styled(
        figure,
        title=f"Singular directions of {escape(found.name)}",
        subtitle=note,
        height=430 + 2 * 45 * n,
    )


def mechanism_table(mechanism: InductionMechanism) -> go.Figure:
    """Bars: the share of the in-context gain each intervention takes away, beside its control."""
    frame = mechanism.to_dataframe()
    labels = [f"{step} ({expected})" for step, expected in zip(frame["step"], frame["expected"])]
    figure = go.Figure()
    figure.add_trace(
        go.Bar(
            y=labels,
            x=frame["removed"],
            orientation="h",
            marker_color=[colour(1) if e == "lost" else colour(0) for e in frame["expected"]],
            name="named heads",
            text=[f"{round(value, 2) + 0.0:.0%}" for value in frame["removed"]],  # no "-0%"
            textposition="outside",
            cliponaxis=False,
            customdata=frame[["intervention", "heads", "gain_before", "gain_after"]],
            hovertemplate="%{customdata[1]}: %{customdata[0]}<br>gain %{customdata[2]:.2f} → "
            "%{customdata[3]:.2f} nats<extra></extra>",
        )
    )
    figure.add_trace(
        go.Bar(
            y=labels,
            x=frame["control_removed"],
            orientation="h",
            marker_color="#BBBBBB",
            name="as many other heads",
            customdata=frame[["n_controls", "control_size", "control_worst"]],
            hovertemplate="%{customdata[0]} sets of %{customdata[1]} other heads<br>mean %{x:.0%}, worst "
            "%{customdata[2]:.0%}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    ends = [0.0, *frame["removed"], *frame["control_removed"].dropna()]
    room = 0.1 * (max(ends) - min(ends))  # for the numbers beside the bars
    figure.update_xaxes(tickformat=".0%", range=[min(ends) - room, max(ends) + room])
    return styled(
        figure,
        title="The induction mechanism, step by step",
        subtitle=f"in-context gain of the whole model {mechanism.before.gain:.2f} nats a token, "
        f"{mechanism.n_rows} rows; in brackets what the story expects",
        x="share of the in-context gain taken away",
        legend="bottom",
        height=180 + 46 * len(frame),
    )
