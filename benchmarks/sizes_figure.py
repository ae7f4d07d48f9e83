"""Does agreement of small surrogates rise with the size of the model? One figure from ``real-sizes.csv``.

    python benchmarks/sizes_figure.py docs/results/real-sizes.csv docs/images/real-sizes.png

Needs ``pip install -e ".[static]"`` and Chrome or Chromium.
"""

from __future__ import annotations

import sys

import pandas as pd
import plotly.graph_objects as go

from lens_linear.plots._kinds import add_level, add_line
from lens_linear.plots.style import styled

READINGS = {"prompt": "own Jacobians", "mean": "mean Jacobian"}


def sizes_figure(frame: pd.DataFrame) -> go.Figure:
    """Spearman at order 32 against parameters, a line a basis and reading, under the ceiling of one profile."""
    frame = frame.sort_values("parameters")
    models, fig = frame.drop_duplicates("model"), go.Figure()
    for index, ((basis, reading), line) in enumerate(frame.groupby(["basis", "jacobian"])):
        add_line(
            fig, line["parameters"], line["spearman"], f"{basis}, {READINGS[reading]}", index=index,
            dash="dot" if basis == "krylov" else None, custom=line["model"], hover="%{customdata}: %{y:.3f}",
        )  # fmt: skip
    parameters = models["parameters"].tolist()
    add_level(fig, models["ceiling"], "ceiling of one profile", x=parameters, dash="dash")
    names = [
        f"{model}<br>{n / 1e6:.2g}M" if n < 1e8 else f"{model}<br>{n / 1e6:.0f}M"
        for model, n in zip(models["model"], parameters, strict=True)
    ]
    fig.update_xaxes(type="log", tickvals=parameters, ticktext=names)
    fig.update_yaxes(range=[0, 1.03])
    return styled(
        fig, title="Order-32 surrogates by size of the model", x="model and parameters (log scale)",
        y="Spearman ρ of predicted and full gains", height=520,
        subtitle=f"mean over {frame['n_prompts'].iloc[0]} evaluation prompts of mood; null 0",
    )  # fmt: skip


if __name__ == "__main__":
    source, target = sys.argv[1:]
    drawn = sizes_figure(pd.read_csv(source))
    drawn.write_image(target, width=900, height=drawn.layout.height)
