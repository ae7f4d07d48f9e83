"""Where heads look: an interactive view for notebooks, and a plain figure.

The notebook view is CircuitsVis' own, in a frame of fixed height that holds everything it needs: no network
is asked, tokens are shown and never executed. The figure is plotly's, for pages and tests.
"""

from __future__ import annotations

import plotly.graph_objects as go

from lens_linear.checks import require_int
from lens_linear.circuits.attention.patterns import AttentionPattern
from lens_linear.circuits.heads.positional import PositionalQK
from lens_linear.plots.circuitsvis import NotebookView, attention_view
from lens_linear.plots.style import MAX_CELLS, escape, matrix, styled
from lens_linear.text.labels import token_labels


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


def attention_pattern(
    pattern: AttentionPattern, head: int = 0, *, max_cells: int = MAX_CELLS
) -> go.Figure:
    """One head's pattern as a figure: rows are queries, columns keys.

    Colours are shares of attention, 0 to 1; each row sums to 1 and later keys are 0. A head that looks
    nowhere in particular gives every key up to query q the share 1 / (q + 1).

    Args:
        pattern: what ``circuits.attention_pattern`` returned.
        head: which head.
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
        >>> figure = ll.plots.attention_pattern(pattern, 2)
        >>> figure.layout.title.text, figure.data[0].z.sum(1).round(3).tolist()
        ('Attention of L1H2', [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """
    head = require_int("head", head, minimum=0, maximum=len(pattern.pattern) - 1)
    labels = list(pattern.token_text)
    figure = matrix(
        pattern.pattern[head],
        rows=labels,
        columns=labels,
        value_name="attention",
        row_name="query",
        column_name="key",
        diverging=False,
        limits=(0.0, 1.0),
        max_cells=max_cells,
    )
    figure.update_xaxes(tickangle=-60)
    return styled(
        figure,
        title=f"Attention of L{pattern.layer}H{head}",
        subtitle=f"{len(labels)} tokens; rows sum to 1",
        x="key",
        y="query",
        height=max(420, 180 + 16 * len(labels)),
    )


def positional_qk(found: PositionalQK, *, max_cells: int = MAX_CELLS) -> go.Figure:
    """Where a head would look if positions alone decided: rows are queries, columns keys.

    Colours are shares of attention after a causal softmax, 0 to 1; rows sum to 1. Positions that do not
    matter give every key up to query q the share 1 / (q + 1). A previous-token head shows a bright line
    just below the diagonal.

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
    figure = matrix(
        found.pattern,
        value_name="attention",
        row_name="query position",
        column_name="key position",
        diverging=False,
        limits=(0.0, 1.0),
        max_cells=max_cells,
    )
    return styled(
        figure,
        title=f"Positional attention of {escape(found.name)}",
        subtitle=f"scores from {found.source}, causal softmax; {found.ldim} positions, rows sum to 1",
        x="key position",
        y="query position",
        height=620,
    )
