"""Tables of tokens: pairs of a circuit, bigrams, skip-trigrams, and ends of singular directions.

Token text may hold anything; every label is escaped and made printable before it reaches a figure.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_linear.checks import require_int
from lens_linear.circuits.heads.factored import TopPairs
from lens_linear.circuits.heads.svd import CircuitSVD
from lens_linear.circuits.paths.bigrams import BigramTable, NextTokens
from lens_linear.circuits.paths.skip_trigrams import SkipTrigrams
from lens_linear.circuits.paths.trigram_bugs import SkipTrigramBugs
from lens_linear.plots.style import colour, escape, styled, tick_label

_ROW = 32  # pixels; a cell with an escaped token takes 31
_HEADER = {"fill_color": "#DCE6F0", "align": "left", "font": {"size": 13}, "height": 28}
_CELLS = {"fill_color": "white", "align": "left", "font": {"size": 13}, "height": _ROW}


def _height(rows: int) -> int:
    """Height of a figure that shows a whole table, with room for a few cells of two lines."""
    return 240 + _ROW * rows


def top_pairs(pairs: TopPairs, *, k: int = 20) -> go.Figure:
    """A table: the entries of a circuit that stand out, with the tokens of their row and column.

    One line a pair, best first: the two tokens and the entry (scores of a QK circuit, logits of an OV
    circuit, norm scales left out). Every circuit has a largest entry, so the list alone proves no
    structure.

    Args:
        pairs: what ``HeadCircuit.top_pairs`` or ``circuits.top_pairs`` returned.
        k: lines shown, at least 1.

    Returns:
        Figure with one table.

    Raises:
        InvalidArgumentError: k is below 1.

    Example:
        >>> import lens_linear as ll
        >>> pairs = ll.AttentionOnly(ll.toy_model()).head(0, 1).top_pairs("qk", 10)
        >>> table = ll.plots.top_pairs(pairs, k=3).data[0]
        >>> list(table.header.values), len(table.cells.values[0])
        (['query', 'key', 'entry'], 3)
    """
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
    """A table: the k next tokens the direct path favours after each of some tokens.

    One line a token; columns are the first to the k-th guess with its probability (with the bias). A model
    without a trained direct path gives about one over the vocabulary's size everywhere.

    Args:
        table: what ``AttentionOnly.bigrams`` returned.
        tokens: ids of the current tokens.
        k: guesses shown, at least 1.

    Returns:
        Figure with one table.

    Raises:
        InvalidArgumentError: k is below 1, or a token is not in the vocabulary.

    Example:
        >>> import lens_linear as ll
        >>> bigrams = ll.AttentionOnly(ll.toy_model()).bigrams()
        >>> table = ll.plots.bigram_table(bigrams, [3, 5], k=2).data[0]
        >>> list(table.header.values), list(table.cells.values[0])
        (['after', '1.', '2.'], ['#3', '#5'])
    """
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


def skip_trigram_table(table: SkipTrigrams, *, k: int = 20) -> go.Figure:
    """A table of skip-trigrams: source … destination → out, with their scores.

    One line a triple: the QK score and the OV score of the strongest head, its estimated attention, the
    estimated effect on the logit of ``out`` (0 raises it no more than the average token) and on its
    probability. These are estimates from the weights; no text was run.

    Args:
        table: what ``AttentionOnly.skip_trigrams`` or ``circuits.skip_trigrams`` returned.
        k: lines shown, at least 1.

    Returns:
        Figure with one table.

    Raises:
        InvalidArgumentError: k is below 1.

    Example:
        >>> import lens_linear as ll
        >>> found = ll.AttentionOnly(ll.toy_model()).skip_trigrams(0, 0, 5)
        >>> list(ll.plots.skip_trigram_table(found).data[0].header.values)[:3]
        ['source …', 'destination →', 'out']
    """
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
    """A table of crossed skip-trigrams: what the heads also raise because QK and OV are separate.

    One line a crossed triple: the wrong output, the right one, whom the wrong one belongs to, and both
    effects in logits. A head without this fault has effects near or below 0 in the first column of numbers.
    With a corpus the last columns say how often the triple occurs, and how often it would by chance.

    Args:
        table: what ``circuits.skip_trigram_bugs`` returned.
        k: lines shown, at least 1.

    Returns:
        Figure with one table.

    Raises:
        InvalidArgumentError: k is below 1.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> head = ll.circuits.head_circuit(ll.toy_model(n_layers=1), 0, 0)
        >>> found = ll.circuits.skip_trigram_bugs(head, torch.tensor([[5, 1, 2], [5, 3, 4]]))
        >>> sorted(ll.plots.skip_trigram_bugs(found).data[0].cells.values[2])
        ['#2', '#4']
    """
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

    Above: bars over directions, in units of the circuit (scores or logits, norm scales left out); a circuit
    without structure falls off slowly. Below: the tokens furthest out on either end. Directions whose
    singular values nearly equal a neighbour's are marked ≈: only the space they span together is
    determined.

    Args:
        found: what ``HeadCircuit.svd`` or ``circuits.svd_readout`` returned.
        directions: directions listed in the table, at least 1; at most those that were computed.

    Returns:
        Figure with bars and a table.

    Raises:
        InvalidArgumentError: directions is below 1.

    Example:
        >>> import lens_linear as ll
        >>> found = ll.AttentionOnly(ll.toy_model()).head(0, 0).svd(2)
        >>> figure = ll.plots.svd_directions(found)
        >>> figure.layout.title.text, [part.type for part in figure.data]
        ('Singular directions of L0H0 OV', ['bar', 'table'])
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
