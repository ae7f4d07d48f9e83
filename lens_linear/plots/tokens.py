"""Figures over tokens: attention, circuits token by token, tables of tokens, what layers would say.

Token text may hold anything; every label is escaped and made printable before it reaches a figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lens_linear.checks import counted, require_head, require_int
from lens_linear.circuits.attention.patterns import AttentionPattern
from lens_linear.circuits.heads.circuit_window import CircuitMap
from lens_linear.circuits.heads.factored import TopPairs
from lens_linear.circuits.heads.positional import PositionalQK
from lens_linear.circuits.heads.svd import CircuitSVD
from lens_linear.circuits.paths.bigrams import BigramComparison, BigramTable, NextTokens
from lens_linear.circuits.paths.skip_trigrams import SkipTrigrams
from lens_linear.circuits.paths.trigram_bugs import SkipTrigramBugs
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots._kinds import (
    bars,
    bars_height,
    chosen,
    figure,
    layer_axis,
    table,
    table_figure,
)
from lens_linear.plots.circuitsvis import NotebookView, attention_view
from lens_linear.plots.style import (
    MAX_CELLS,
    as_array,
    colour,
    escape,
    matrix,
    matrix_height,
    styled,
    tick_label,
)
from lens_linear.token_labels import token_labels

_SINK = 0.3  # a first token that draws more than this share of the attention hides the rest


@figure
def attention_heads(pattern: AttentionPattern, *, height: int = 700) -> NotebookView:
    """All heads of a layer in CircuitsVis' view, for a notebook: hover a head, click to keep it.

    Rows are queries, columns keys, colours shares of attention from 0 to 1. A head that looks nowhere in
    particular spreads evenly over all tokens so far.

    Args:
        pattern: what ``circuits.attention_pattern`` returned.
        height: of the frame, pixels, at least 50.

    Returns:
        NotebookView that a notebook shows; ``.page()`` is its HTML. No network is asked.

    Raises:
        FigureTooLargeError: more than 400,000 cells; pass fewer tokens.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> pattern = ll.circuits.attention_pattern(ll.toy_model(), torch.arange(6), 1)
        >>> ll.plots.attention_heads(pattern, height=400)
        NotebookView: 400 pixels high; shown as HTML in a notebook
    """
    names = [f"L{pattern.layer}H{head}" for head in range(len(pattern.pattern))]
    view = attention_view(
        pattern.pattern.numpy(),
        token_labels(pattern.token_text),
        element_id=f"attention-layer-{pattern.layer}",
        head_names=names,
    )
    return NotebookView(view, height=height)


def _head(pattern: AttentionPattern, head: int | str) -> int:
    """Index of a head of the pattern's layer."""
    n_heads = len(pattern.pattern)
    if not isinstance(head, str):
        return require_int("head", head, minimum=0, maximum=n_heads - 1)
    layer, which = require_head("head", head, n_layers=10**9, n_heads=n_heads)
    if layer != pattern.layer:
        raise InvalidArgumentError(
            f"head must be one of layer {pattern.layer}, which the pattern is of, got {head!r}; call "
            f"circuits.attention_pattern(model, tokens, {layer}) for its layer"
        )
    return which


@figure
def attention_pattern(
    pattern: AttentionPattern,
    head: int | str = 0,
    *,
    first_token: bool | None = None,
    max_cells: int = MAX_CELLS,
) -> go.Figure:
    """One head's pattern as a figure: rows are queries, columns keys.

    Colours are shares of attention, from 0 to the largest that is drawn; each row of the pattern sums to 1.
    Keys after the query are left empty. Many heads rest on the first token where they have nothing to do:
    where it draws more than 0.3 of the attention its column is left out, and the subtitle says its share.
    A head that looks nowhere in particular gives every key up to query q the share 1 / (q + 1).

    Args:
        pattern: what ``circuits.attention_pattern`` returned.
        head: which head: its index, or its name such as ``"L1H3"``.
        first_token: True draws the first token's column, False leaves it out; None decides by its share.
        max_cells: refuse more cells than this.

    Returns:
        Figure with one heatmap; equal tokens stay separate rows and columns.

    Raises:
        InvalidArgumentError: no such head.
        FigureTooLargeError: more than ``max_cells`` cells.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> pattern = ll.circuits.attention_pattern(ll.toy_model(), torch.arange(6), 1)
        >>> figure = ll.plots.attention_pattern(pattern, 2, first_token=True)
        >>> figure.layout.title.text, bool(abs(figure.data[0].z[3, :4].sum() - 1) < 1e-6)
        ('Attention of L1H2', True)
    """
    head = _head(pattern, head)
    labels = list(pattern.token_text)
    share = float(pattern.pattern[head][1:, 0].mean()) if len(labels) > 1 else 0.0
    shown = share <= _SINK if first_token is None else first_token
    note = "" if shown else f"; the first token's column ({share:.0%} of the attention) is left out"
    return styled(
        _causal(pattern.pattern[head], labels, ("query", "key"), shown, max_cells),
        title=f"Attention of L{pattern.layer}H{head}",
        subtitle=f"{counted(len(labels), 'token')}; rows sum to 1{note}",
        x="key",
        y="query",
        height=_square(len(labels)),
    )


def _causal(
    values: Any, labels: list[str] | None, names: tuple[str, str], first: bool, max_cells: int
) -> go.Figure:
    """A query × key map: nothing above the diagonal, square cells, colours up to the largest drawn."""
    grid = as_array("pattern", values).astype(float)
    grid[np.triu_indices(len(grid), 1, grid.shape[1])] = np.nan
    if not first:
        grid[:, 0] = np.nan
    top = float(np.nanmax(grid)) if np.isfinite(grid).any() else 1.0
    return matrix(
        grid, rows=labels, columns=labels, value_name="attention", row_name=names[0],
        column_name=names[1], diverging=False, limits=(0.0, max(top, 1e-6)), max_cells=max_cells, square=True,
    )  # fmt: skip


def _square(n: int) -> int:
    """Pixels of a figure of n × n square cells."""
    return 190 + min(560, max(220, 18 * n))


@figure
def positional_qk(found: PositionalQK, *, max_cells: int = MAX_CELLS) -> go.Figure:
    """Where a head would look if positions alone decided: rows are queries, columns keys.

    Colours are shares of attention after a causal softmax, from 0 to the largest; rows sum to 1, later keys
    are left empty. Positions that do not matter give every key up to query q the share 1 / (q + 1). A
    previous-token head shows a bright line just below the diagonal.

    Args:
        found: what ``HeadCircuit.positional_qk`` returned; give it ``n_positions`` for long contexts.
        max_cells: refuse more cells than this.

    Returns:
        Figure with one heatmap.

    Raises:
        FigureTooLargeError: more than ``max_cells`` cells.

    Example:
        >>> import lens_linear as ll
        >>> found = ll.AttentionOnly(ll.toy_model()).head(1, 2).positional_qk(10)
        >>> figure = ll.plots.positional_qk(found)
        >>> figure.layout.title.text, figure.data[0].z.shape
        ('Positional attention of L1H2', (10, 10))
    """
    return styled(
        _causal(found.pattern, None, ("query position", "key position"), True, max_cells),
        title=f"Positional attention of {escape(found.name)}",
        subtitle=f"scores from {found.source}, causal softmax; {counted(found.ldim, 'position')}, rows "
        f"sum to 1",
        x="key position",
        y="query position",
        height=_square(found.ldim),
    )


@figure
def circuit_window(circuit: CircuitMap, *, max_cells: int = MAX_CELLS) -> go.Figure:
    """The rows and columns of a QK or OV circuit with the largest entries, token by token.

    Rows are the tokens that ask (QK) or are attended to (OV), columns the keys or the outputs. Entries are
    scores or logits up to the norms' scales, centred at 0. The window is chosen by size, so it looks strong
    for any head: hold it against the window of another head.

    Args:
        circuit: what ``circuits.circuit_map`` or ``circuits.map_of`` returned.
        max_cells: largest number of cells drawn.

    Returns:
        Figure with one heatmap; equal tokens stay separate rows.

    Raises:
        FigureTooLargeError: more than ``max_cells`` cells.

    Example:
        >>> import lens_linear as ll
        >>> head = ll.AttentionOnly(ll.toy_model()).head(0, 1)
        >>> figure = ll.plots.circuit_window(ll.circuits.circuit_map(head, "qk", k=10, blocks=8))
        >>> figure.layout.xaxis.title.text, figure.data[0].z.shape
        ('key token', (10, 10))
    """
    fig = matrix(
        circuit.window, rows=list(circuit.row_labels), columns=list(circuit.column_labels),
        value_name="score" if circuit.column_name == "key" else "logit", row_name=circuit.row_name,
        column_name=circuit.column_name, max_cells=max_cells,
    )  # fmt: skip
    rows, columns = circuit.matrix_shape
    return styled(
        fig, title=f"{escape(circuit.name)}: strongest tokens", x=f"{circuit.column_name} token",
        subtitle=f"{len(circuit.rows)} × {len(circuit.columns)} of {rows} × {columns} tokens, by their "
        "largest entry; norm scales left out", y=f"{circuit.row_name} token",
        height=matrix_height(len(circuit.rows), least=16),
    )  # fmt: skip


@figure
def circuit_overview(circuit: CircuitMap, *, max_cells: int = MAX_CELLS) -> go.Figure:
    """The whole circuit in blocks: each block's entry of largest size, with its sign.

    Rows and columns are blocks of neighbouring token ids, values as in :func:`circuit_window`. A head
    without structure gives blocks of about the same strength and random signs; copying shows as a diagonal.

    Args:
        circuit: what ``circuits.circuit_map`` or ``circuits.map_of`` returned.
        max_cells: largest number of blocks drawn.

    Returns:
        Figure with one heatmap; the subtitle gives the size of a block.

    Raises:
        FigureTooLargeError: more than ``max_cells`` blocks.

    Example:
        >>> import lens_linear as ll
        >>> head = ll.AttentionOnly(ll.toy_model()).head(0, 1)
        >>> figure = ll.plots.circuit_overview(ll.circuits.circuit_map(head, "qk", k=10, blocks=8))
        >>> figure.layout.title.text, figure.data[0].z.shape
        ('L0H1 QK: overview', (8, 8))
    """
    rows, columns = circuit.block_shape
    fig = matrix(
        circuit.overview, value_name="largest entry", row_name=f"{circuit.row_name} block",
        column_name=f"{circuit.column_name} block", max_cells=max_cells, square=True,
    )  # fmt: skip
    return styled(
        fig, title=f"{escape(circuit.name)}: overview", x=f"{circuit.column_name} tokens (block)",
        subtitle=f"{circuit.matrix_shape[0]} × {circuit.matrix_shape[1]} tokens in blocks of {rows} × "
        f"{columns}; the entry of largest size in each", y=f"{circuit.row_name} tokens (block)",
        height=_square(len(circuit.overview)),
    )  # fmt: skip


@figure
def bigram_comparison(comparison: BigramComparison, *, k: int = 20) -> go.Figure:
    """Bars: the tokens after which the direct path misses most, by their share of the mean KL.

    The y axis names the current token, the x axis is its KL times how often it occurs, in nats; all tokens
    together give the mean in the subtitle. A direct path that predicts exactly the reference has bars of
    length 0.

    Args:
        comparison: what ``BigramTable.compare`` returned.
        k: tokens shown, at least 1.

    Returns:
        Figure with one bar a token, largest first.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> bigrams = ll.AttentionOnly(ll.toy_model(d_vocab=8)).bigrams()
        >>> figure = ll.plots.bigram_comparison(bigrams.compare(torch.full((8, 8), 1 / 8)), k=5)
        >>> figure.layout.xaxis.title.text, len(figure.data[0].x)
        ('share of the KL (nats)', 5)
    """
    frame = comparison.to_dataframe().head(chosen("k", k))
    fig = bars(
        _texts(frame, "label", "token"), frame["kl"] * frame["weight"], custom=frame[["kl", "weight"]],
        hover="KL %{customdata[0]:.3f} nats<br>share of tokens %{customdata[1]:.3%}", length=16,
    )  # fmt: skip
    return styled(
        fig, title="Where the direct path misses bigrams", x="share of the KL (nats)",
        subtitle=f"KL({escape(comparison.reference)} || direct path) = {comparison.mean:.3f} nats a token "
        "in all", y="current token", legend="none", height=bars_height(len(frame)),
    )  # fmt: skip


def _texts(frame: pd.DataFrame, label: str, number: str) -> list[str]:
    """The text of tokens, or their numbers where there is no text."""
    return list(frame[label]) if label in frame else [f"#{token}" for token in frame[number]]


def _tokens(frame: pd.DataFrame, name: str) -> list[str]:
    return [tick_label(text) for text in _texts(frame, f"{name}_label", name)]


def _numbers(values: Iterable[float], form: str = ".2f") -> list[str]:
    return [f"{value:{form}}" for value in values]


@figure
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

    Example:
        >>> import lens_linear as ll
        >>> pairs = ll.AttentionOnly(ll.toy_model()).head(0, 1).top_pairs("qk", 10)
        >>> table = ll.plots.top_pairs(pairs, k=3).data[0]
        >>> list(table.header.values), len(table.cells.values[0])
        (['query', 'key', 'entry'], 3)
    """
    frame = pairs.to_dataframe().head(chosen("k", k))
    rows, columns = pairs.matrix_shape
    sides = {side: _tokens(frame, name) for side, name in zip(pairs.sides, ("row", "column"))}
    return table_figure(
        {**sides, "entry": _numbers(frame["value"], ".3f")},
        title=f"{escape(pairs.name)}: pairs of tokens",
        subtitle=f"the {len(frame)} {pairs.order} of {rows} × {columns} entries; norm scales left out",
    )


@figure
def bigram_table(
    table: BigramTable, tokens: Sequence[int] | None = None, *, k: int = 6
) -> go.Figure:
    """A table: the k next tokens the direct path favours after each of some tokens.

    One line a token; columns are the first to the k-th guess with its probability (with the bias). A model
    without a trained direct path gives about one over the vocabulary's size everywhere.

    Args:
        table: what ``AttentionOnly.bigrams`` returned.
        tokens: ids of the current tokens; None takes twelve, evenly spread over the vocabulary.
        k: guesses shown, at least 1.

    Returns:
        Figure with one table.

    Example:
        >>> import lens_linear as ll
        >>> bigrams = ll.AttentionOnly(ll.toy_model()).bigrams()
        >>> table = ll.plots.bigram_table(bigrams, [3, 5], k=2).data[0]
        >>> list(table.header.values), list(table.cells.values[0])
        (['after', '1.', '2.'], ['#3', '#5'])
    """
    k = chosen("k", k)
    vocab = table.n_tokens or table.matrix.shape[-2]
    if tokens is None:
        tokens = sorted({round(i * (vocab - 1) / 11) for i in range(12)})
    k = min(k, table.matrix.shape[-1])
    rows = [table.top(int(token), k) for token in tokens]
    first = [
        tick_label(f"#{t}" if table.labels is None else table.labels[t]) for t in map(int, tokens)
    ]
    guesses = {f"{rank + 1}.": [_next_cell(row, rank) for row in rows] for rank in range(k)}
    return table_figure(
        {"after": first, **guesses}, title="Bigrams of the direct path",
        subtitle=f"next tokens by probability (with the bias), W_E W_U alone; {counted(vocab, 'token')}",
    )  # fmt: skip


def _next_cell(row: NextTokens, rank: int) -> str:
    if rank >= len(row.ids):
        return ""
    token = int(row.ids[rank])
    text = f"#{token}" if row.labels is None else row.labels[token]
    share, text = float(row.probabilities[rank]), tick_label(text, max_length=8)
    return f"{text} {share:.0%}" if share >= 0.095 else f"{text} {share:.1%}"


@figure
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

    Example:
        >>> import lens_linear as ll
        >>> found = ll.AttentionOnly(ll.toy_model()).skip_trigrams(0, 0, 5)
        >>> list(ll.plots.skip_trigram_table(found).data[0].header.values)[:3]
        ['source …', 'destination →', 'out']
    """
    frame = table.to_dataframe().head(chosen("k", k))
    columns = {
        "source …": _tokens(frame, "source"),
        "destination →": _tokens(frame, "destination"),
        "out": _tokens(frame, "out"),
        "effect (logits)": _numbers(frame["effect"]),
        "Δ probability": _numbers(frame["probability_gain"]),
        "QK": _numbers(frame["qk_score"]),
        "OV": _numbers(frame["ov_score"]),
        "attention": _numbers(frame["attention"]),
        "head": list(frame["head"]),
    }
    return table_figure(
        columns, title="Skip-trigrams", widths=[1.3, 1.3, 1.3, 1, 1.1, 0.8, 0.8, 1, 0.8],
        subtitle=f"{escape(', '.join(table.heads))}; effect: estimated rise of the logit above the average "
        f"token's, the source among {counted(table.context, 'key')}",
    )  # fmt: skip


@figure
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

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> head = ll.circuits.head_circuit(ll.toy_model(n_layers=1), 0, 0)
        >>> found = ll.circuits.skip_trigram_bugs(head, torch.tensor([[5, 1, 2], [5, 3, 4]]))
        >>> sorted(ll.plots.skip_trigram_bugs(found).data[0].cells.values[2])
        ['#2', '#4']
    """
    frame = table.to_dataframe().head(chosen("k", k))
    names = ("source", "destination", "out", "wanted_out", "other_destination")
    heads = ("source …", "destination →", "wrong out", "right out", "out belongs to")
    columns = {head: _tokens(frame, name) for head, name in zip(heads, names, strict=True)}
    columns["effect (logits)"] = _numbers(frame["effect"])
    columns["right ones (logits)"] = _numbers(frame["wanted_effect"])
    if "count" in frame:
        columns["in the corpus"] = _numbers(frame["count"], ".0f")
        columns["expected"] = _numbers(frame["expected"], ".1f")
    return table_figure(
        columns, title="Skip-trigram bugs",
        subtitle=f"{escape(', '.join(table.heads))}; crossed from two right skip-trigrams of one source",
    )  # fmt: skip


@figure
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

    Example:
        >>> import lens_linear as ll
        >>> found = ll.AttentionOnly(ll.toy_model()).head(0, 0).svd(2)
        >>> figure = ll.plots.svd_directions(found)
        >>> figure.layout.title.text, [part.type for part in figure.data]
        ('Singular directions of L0H0 OV', ['bar', 'table'])
    """
    n = min(chosen("directions", directions), len(found.S))
    specs = [[{"type": "xy"}], [{"type": "table"}]]
    fig = go.Figure().set_subplots(
        2, 1, specs=specs, row_heights=[0.35, 0.65], vertical_spacing=0.12
    )
    close = {i for run in found.near_equal for i in run}
    values = found.spectrum.values.tolist()
    fig.add_bar(
        x=list(range(len(values))), y=values, showlegend=False, row=1, col=1,
        marker_color=[colour(1) if i in close else colour(0) for i in range(len(values))],
        hovertemplate="direction %{x}<br>singular value %{y:.4g}<extra></extra>",
    )  # fmt: skip
    frame = found.to_dataframe()
    text = "label" if "label" in frame else "token"
    sides = [f"{escape(side)} tokens" for side in found.sides]
    rows: dict[str, list[str]] = {"direction": [], "end": [], sides[0]: [], sides[1]: []}
    for direction in range(n):
        for sign in (1, -1):
            part = frame[(frame["direction"] == direction) & (frame["sign"] == sign)]
            rows["direction"].append(f"{direction}{' ≈' if direction in close else ''}")
            rows["end"].append("+" if sign > 0 else "-")
            for title, side in zip(sides, ("row", "column"), strict=True):
                tokens = part[part["side"] == side][text]
                rows[title].append("  ".join(tick_label(t, max_length=12) for t in tokens))
    fig.add_trace(table(rows, widths=[0.9, 0.6, 5, 5]), row=2, col=1)
    fig.update_yaxes(title_text="singular value", row=1, col=1)
    layer_axis(fig, len(values)).update_xaxes(title_text="direction")
    return styled(
        fig, title=f"Singular directions of {escape(found.name)}", legend="none", height=430 + 90 * n,
        subtitle=f"{found.warning or 'no near-equal singular values among them'}; vermilion: near-equal"
        if close else "no near-equal singular values among them",
    )  # fmt: skip
