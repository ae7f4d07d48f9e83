"""Results that no figure of the package takes show themselves too: sentence, few columns, hint, plot."""

import re

import plotly.graph_objects as go
import pytest
import torch

import lens_linear as ll
from lens_linear import dynamics, linalg, stats
from lens_linear.studies import published_beside_measured
from lens_linear.tables import Result

ROWS = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TOKENS = torch.randint(32, (12, 8), generator=torch.Generator().manual_seed(1))


def toy(**shape):
    return ll.toy_model(d_model=16, d_vocab=32, n_ctx=32, **shape)


def jointly():
    model = toy()
    both = [dynamics.random_directions(model, seed=seed) for seed in (0, 1)]
    return dynamics.steer_concepts(model, [TOKENS[0]], both, [0.5, -0.25])


def divergence():
    log_probs = torch.zeros(32, 32, dtype=torch.float64).log_softmax(-1)
    return stats.bigram_kl(log_probs, stats.bigram_counts(TOKENS, 32))


RESULTS = {
    "LinearFit": lambda: linalg.fit_linear(ROWS, ROWS[:, :2] ** 2),
    "OrthogonalProcrustes": lambda: linalg.orthogonal_procrustes(ROWS, ROWS.flip(1)),
    "Spectrum": lambda: linalg.spectrum(ROWS),
    "IntrinsicDimension": lambda: linalg.intrinsic_dimension(ROWS),
    "KrylovBasis": lambda: linalg.krylov_basis(lambda rows: rows @ ROWS[:4], ROWS[0], order=2),
    "BigramDivergence": divergence,
    "Agreement": lambda: dynamics.compare_gains(ROWS[:1], ROWS),
    "JointSteering": jointly,
    "PathExpansion": lambda: ll.AttentionOnly(toy(attn_only=True)).paths(TOKENS[:2]),
    "PublishedTable": lambda: published_beside_measured(
        {"gpt2": ll.linearity_profile(toy(attn_only=False), TOKENS.repeat(4, 1), fit="in-sample")}
    ),
}


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_the_last_line_of_a_cell(name):
    result = RESULTS[name]()
    assert type(result).__name__ == name and isinstance(result, Result)
    sentence, view = repr(result), result._repr_html_()
    assert re.search(r"\d", sentence) and "\n" not in sentence
    heads = re.findall(r"<th>[^<]", view.split("</thead>")[0])
    assert 0 < len(heads) <= 10 and ".plot()" in view
    for number in re.findall(r"<td>(-?\d+\.\d+)</td>", view):
        assert len(number.replace("-", "").replace(".", "").lstrip("0")) <= 7, number  # rounded
    assert isinstance(result.plot(), go.Figure)
