"""Figures of circuits over tokens: QK and OV maps, and where the direct path misses bigrams.

Token text may hold anything; every label is escaped and made printable before it reaches a figure.
"""

from __future__ import annotations

import plotly.graph_objects as go

from lens_linear.checks import require_int
from lens_linear.circuits.heads.circuit_window import CircuitMap
from lens_linear.circuits.paths.bigrams import BigramComparison
from lens_linear.plots.style import MAX_CELLS, colour, escape, matrix, styled, tick_label


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


def bigram_comparison(comparison: BigramComparison, *, k: int = 30) -> go.Figure:
    """Bars: the tokens after which the direct path misses most, by their share of the mean KL.

    The x axis is the current token, the y axis its KL times how often it occurs, in nats; all tokens
    together give the mean in the subtitle. A direct path that predicts exactly the reference has bars of
    height 0.

    Args:
        comparison: what ``BigramTable.compare`` returned.
        k: tokens shown, at least 1.

    Returns:
        Figure with one bar a token, largest first.

    Raises:
        InvalidArgumentError: k is below 1.

    Example:
        >>> import torch
        >>> import lens_linear as ll
        >>> bigrams = ll.AttentionOnly(ll.toy_model(d_vocab=8)).bigrams()
        >>> figure = ll.plots.bigram_comparison(bigrams.compare(torch.full((8, 8), 1 / 8)), k=5)
        >>> figure.layout.yaxis.title.text, len(figure.data[0].x)
        ('share of the KL (nats)', 5)
    """
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
