"""The graph of a circuit: heads as nodes by layer, composition as edges."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from lens_linear.checks import require_choice, require_float
from lens_linear.circuits.heads.composition import KINDS, CompositionScores, Kind
from lens_linear.circuits.induction.scores import VERDICTS, InductionScores
from lens_linear.plots.style import GREY, colour, styled


def circuit_graph(
    composition: CompositionScores,
    heads: InductionScores | None = None,
    *,
    min_z: float = 4.0,
    kinds: tuple[Kind, ...] = KINDS,
    max_edges: int = 60,
) -> go.Figure:
    """Heads as nodes by layer, composition well above its baseline as edges.

    Layers rise from bottom to top, heads stand side by side; there are no units. An edge leads from the
    head that writes to the head that reads; its colour is the kind, its width z. Unrelated heads hardly
    ever pass the default ``min_z``: in random models 3 of 7,200 possible edges did.

    Args:
        composition: what ``ll.composition_scores`` returned.
        heads: verdicts of ``ll.induction_scores`` that colour the nodes; None leaves them grey.
        min_z: draw edges of at least this many standard deviations above the baseline.
        kinds: which kinds of composition, of "Q", "K" and "V".
        max_edges: the strongest edges drawn.

    Returns:
        Figure with one line an edge and one set of nodes a verdict.

    Raises:
        InvalidArgumentError: an unknown kind, or a ``min_z`` that is no number.

    Example:
        >>> import lens_linear as ll
        >>> built = ll.constructions.build_induction(16, 32)
        >>> figure = ll.plots.circuit_graph(ll.composition_scores(built.model, n_random=50))
        >>> [edge.hovertext.split("<br>")[0] for edge in figure.data if edge.mode == "lines"]
        ['K: L0H0 → L1H1']
    """
    require_float("min_z", min_z)
    for kind in kinds:
        require_choice("kinds", kind, KINDS)
    n_layers, n_heads = composition.scores.shape[1:3]
    frame = composition.to_dataframe()
    frame = frame[(frame["z"] >= min_z) & frame["kind"].isin(kinds)]
    frame = frame.sort_values("z", ascending=False, kind="stable").head(max_edges)
    figure = go.Figure()
    inks = {kind: colour(index) for index, kind in enumerate(KINDS)}
    strongest = max(float(frame["z"].max()) if len(frame) else 1.0, 1e-12)
    shown: set[str] = set()
    edges: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    for edge in edges:
        kind = edge["kind"]
        # Kinds of one pair of heads leave a little beside each other.
        shift = 0.05 * (KINDS.index(kind) - 1)
        x = [edge["writer_head"] + shift, edge["reader_head"] + shift]
        y = [edge["writer_layer"], edge["reader_layer"]]
        figure.add_trace(
            go.Scatter(
                x=[x[0], sum(x) / 2, x[1]],
                y=[y[0], sum(y) / 2, y[1]],
                mode="lines",
                line={"color": inks[kind], "width": 1 + 5 * edge["z"] / strongest},
                opacity=0.75,
                name=f"{kind}-composition",
                legendgroup=kind,
                showlegend=kind not in shown,
                hovertext=f"{kind}: {edge['writer']} → {edge['reader']}<br>score {edge['score']:.3f}, "
                f"z {edge['z']:.1f}",
                hoverinfo="text",
            )
        )
        shown.add(kind)
    _nodes(figure, n_layers, n_heads, heads)
    figure.update_yaxes(tickmode="array", tickvals=list(range(n_layers)), showgrid=False)
    figure.update_yaxes(
        ticktext=[f"layer {i}" for i in range(n_layers)], range=[-0.5, n_layers - 0.5]
    )
    figure.update_xaxes(visible=False, range=[-0.6, n_heads - 0.4])
    return styled(
        figure,
        title="Heads and what they read from each other",
        subtitle=f"{len(frame)} edges with z of at least {min_z:g}; width is z",
        height=240 + 130 * n_layers,
    )


def _nodes(figure: go.Figure, n_layers: int, n_heads: int, heads: InductionScores | None) -> None:
    every = [(i, j) for i in range(n_layers) for j in range(n_heads)]
    verdicts = {at: "head" if heads is None else heads.verdicts[at[0]][at[1]] for at in every}
    for name in dict.fromkeys(["head", *VERDICTS]):
        chosen = [at for at in every if verdicts[at] == name]
        if not chosen:
            continue
        ink = GREY if name in ("head", "none") else colour(3 + VERDICTS.index(name))  # type: ignore[arg-type]
        figure.add_trace(
            go.Scatter(
                x=[j for _, j in chosen],
                y=[i for i, _ in chosen],
                mode="markers+text",
                marker={"size": 46, "color": "white", "line": {"color": ink, "width": 4}},
                text=[f"{i}.{j}" for i, j in chosen],
                hovertext=[f"L{i}H{j}: {name}" for i, j in chosen],
                hoverinfo="text",
                name="no verdict" if name == "none" else name,
                showlegend=name != "head",
            )
        )
