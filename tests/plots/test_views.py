"""Results that no figure of the package takes show themselves too: sentence, few columns, hint, plot."""

import importlib
import pkgutil
import re
import tempfile
from functools import cache

import plotly.graph_objects as go
import pytest
import torch

import lens_linear as ll
from lens_linear import dynamics, linalg, stats, teaching, text, training
from lens_linear.dynamics.gains.state_gains import fit_state_gains
from lens_linear.studies import DownstreamScores, published_beside_measured
from lens_linear.tables import Result
from lens_linear.teaching.grading import COLUMNS as GRADE_COLUMNS

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


def state_gains():
    states = torch.stack([ROWS, ROWS + 1])
    return fit_state_gains(states, ROWS[:, :2] * 3)


def linearization():
    model = toy(attn_only=False)
    with ll.linearize(model, TOKENS.repeat(4, 1), [1]) as found:
        return found


def surrogate():
    model = toy(attn_only=False)
    directions = dynamics.random_directions(model, seed=0)
    return ll.fit_surrogate(model, [TOKENS[0]], directions, order=3)


def copied():
    with tempfile.TemporaryDirectory() as folder:
        return teaching.copy_tutorials(folder)


def grades():
    row = dict(
        zip(GRADE_COLUMNS, ("ada", 2, "2.1", 1, 1, 0, "passed", "ada.ipynb", "0f"), strict=True)
    )
    return teaching.Grades((row, {**row, "exercise": "2.2", "points": 0}), (), ("bob",))


@cache
def lens():
    return ll.fit_lens(toy(attn_only=False), TOKENS.repeat(8, 1))


def text_lens():
    model = ll.load("gpt-nano")
    tokens = torch.randint(model.cfg.d_vocab, (40, 32), generator=torch.Generator().manual_seed(2))
    return ll.fit_lens(model, tokens)


def trained():
    spec = training.ModelSpec(n_layers=1, d_model=16, n_heads=2, d_vocab=32, n_ctx=8)
    return ll.train(spec, batches=lambda step: TOKENS, steps=4, progress=False)


def patched(function, **options):
    model = toy(attn_only=True)
    return function(model, TOKENS[:2], TOKENS[2:4], **options)


RESULTS = {
    "BalancedReduction": lambda: linalg.balanced_truncation(
        ROWS[:4].T @ ROWS[:4], ROWS.T @ ROWS, order=2
    ),
    "Bases": lambda: surrogate().bases,
    "BigramCounts": lambda: stats.bigram_counts(TOKENS, 32),
    "CopiedTutorials": copied,
    "DirectLogitAttribution": lambda: ll.direct_logit_attribution(toy(), TOKENS[:2]),
    "DownstreamScores": lambda: DownstreamScores(
        ({"task": "boolq", "metric": "acc", "value": 0.612345, "se": 0.1, "n": 9},),
        "toy",
        9,
    ),
    "EntropyFloors": lambda: text.SyntheticLanguage().floors(8),
    "Grades": grades,
    "Lens": lens,
    "LensReading": lambda: text_lens().read("Once upon a time", k=3),
    "LensScore": lambda: lens().score(TOKENS),
    "Linearization": linearization,
    "NextTokens": lambda: ll.AttentionOnly(toy(attn_only=True)).bigrams().top(3),
    "PatchEffects": lambda: patched(ll.patch),
    "PathPatchEffects": lambda: patched(ll.path_patch),
    "StateGains": state_gains,
    "Surrogate": surrogate,
    "TrainingRun": trained,
    "LinearFit": lambda: linalg.fit_linear(ROWS, ROWS[:, :2] ** 2),
    "OrthogonalProcrustes": lambda: linalg.orthogonal_procrustes(ROWS, ROWS.flip(1)),
    "Spectrum": lambda: linalg.spectrum(ROWS),
    "IntrinsicDimension": lambda: linalg.intrinsic_dimension(ROWS),
    "KrylovBasis": lambda: linalg.krylov_basis(lambda rows: rows @ ROWS[:4], ROWS[0], order=2),
    "BigramDivergence": divergence,
    "Agreement": lambda: dynamics.compare_gains(ROWS[:1], ROWS),
    "JointSteering": jointly,
    "PathExpansion": lambda: ll.AttentionOnly(toy(attn_only=True)).paths(TOKENS[:2]),
    "PathTable": lambda: ll.AttentionOnly(toy(attn_only=True)).paths(TOKENS[:2]).token_table(3, 5),
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


def test_tensors_with_notes_show_themselves_too():
    directions = dynamics.random_directions(toy())
    schedule = ll.min_energy(torch.tensor([1.0, 2.0]), 5.0)
    for made, number in (
        (directions, "3 layer boundaries of width 16, random, of no texts"),
        (schedule, "predicted shift 5"),
    ):
        view = made._repr_html_()
        assert number in repr(made) and "nan" not in repr(made) and ".plot()" in view
        assert isinstance(made.plot(), go.Figure)


def test_every_kind_of_result_is_shown_here_or_by_a_figure_of_its_own():
    for module in pkgutil.walk_packages(ll.__path__, "lens_linear."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    kinds, found = [Result], set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind._figure == "overview" and kind.__module__.startswith("lens_linear."):
            found.add(kind.__name__)
    assert found - {"Result"} <= set(RESULTS)
