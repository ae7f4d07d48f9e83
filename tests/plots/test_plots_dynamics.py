"""Figures of depth dynamics hold the numbers of their results, and nothing else."""

import json

import plotly.graph_objects as go
import pytest
import torch

import lens_linear as ll
from lens_linear import plots
from lens_linear.dynamics import (
    agreement_table,
    random_directions,
    steer_text,
    steering_cost,
    step_size_table,
)
from lens_linear.dynamics.steering.generation import SteeredText
from lens_linear.errors import FigureTooLargeError, InvalidArgumentError
from lens_linear.models.open.toy import toy_model
from lens_linear.plots import style


@pytest.fixture(scope="module")
def model():
    return toy_model(n_layers=3, d_model=16, attn_only=False, norm="LN")


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(64, (n,), generator=generator) for n in (5, 8, 6, 4)]


@pytest.fixture(scope="module")
def nano():
    return ll.load("gpt-nano")


@pytest.fixture(scope="module")
def split():
    return ll.load_concept("mood").split(30, 12, 12, seed=2)


def traces(figure):
    return {trace.name: trace for trace in figure.data if trace.name}


def whole(figure):
    """A figure that serialises and has a title and a line below it."""
    assert isinstance(figure, go.Figure)
    json.loads(figure.to_json())
    assert figure.layout.title.text and figure.layout.title.subtitle.text
    return figure


def test_gain_profiles_hold_means_and_spread(model, rows):
    directions = random_directions(model)
    exact = ll.gain_profile(model, rows, directions)
    alone = whole(plots.gain_profiles(exact))
    frame = exact.to_dataframe()
    assert list(traces(alone)["gains"].y) == frame["mean"].tolist()
    (band,) = [trace for trace in alone.data if trace.fill]
    assert list(band.y) == [*frame["q95"], *frame["q05"].tolist()[::-1]]
    assert not [t for t in plots.gain_profiles(exact, bands=False).data if t.fill]
    surrogate = ll.fit_surrogate(model, rows, directions, order=2)
    both = traces(whole(plots.gain_profiles({"exact": exact, "<b>two</b>": surrogate})))
    shown = both["&lt;b&gt;two&lt;/b&gt;"]
    assert list(shown.y) == pytest.approx(surrogate.mean.tolist())
    assert list(both["exact"].error_y.array) == pytest.approx((frame.q95 - frame["mean"]).tolist())
    with pytest.raises(InvalidArgumentError, match="at least one"):
        plots.gain_profiles({})


def test_separation_of_directions(nano, split):
    found = ll.concept_directions(nano, split.concept)
    figure = traces(whole(plots.concept_separation(found)))
    assert list(figure["mood, mean-difference"].y) == found.auc.tolist()
    assert list(figure["chance"].y) == [0.5, 0.5]
    with pytest.raises(InvalidArgumentError, match="at least one"):
        plots.concept_separation({})


def test_agreement_figures(nano, split):
    readings = ("prompt", "mean", "state")
    table = agreement_table(
        [nano], split, orders=(2, 8), bases=("krylov", "balanced"), jacobians=readings
    )
    frame = table.to_dataframe()
    for jacobian in readings:
        part = frame[(frame["jacobian"] == jacobian) & (frame["basis"] == "balanced")]
        figure = traces(whole(plots.agreement_by_order(table, jacobian=jacobian)))
        assert list(figure["balanced"].y) == part.sort_values("order")["spearman"].tolist()
        assert figure["best single profile"].y[0] == part["ceiling"].iloc[0]
    errors = traces(plots.agreement_by_order(table, score="relative_error"))
    assert "best single profile" not in errors
    by_size = traces(whole(plots.agreement_by_size(table, order=8)))
    chosen = frame[(frame["order"] == 8) & (frame["jacobian"] == "prompt")]
    assert list(by_size["krylov"].y) == chosen[chosen["basis"] == "krylov"]["spearman"].tolist()
    with pytest.raises(InvalidArgumentError, match="order must be one of"):
        plots.agreement_by_size(table, order=5)
    with pytest.raises(InvalidArgumentError, match="score must be one of"):
        plots.agreement_by_order(table, score="r2")


def test_step_size_is_on_log_axes(model, rows):
    table = step_size_table(model, rows, random_directions(model), steps=(0.1, 0.01))
    figure = whole(plots.step_size(table))
    assert list(figure.data[0].x) == [0.01, 0.1]
    assert (
        list(figure.data[0].y) == table.to_dataframe().sort_values("eps")["relative_error"].tolist()
    )
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"


def test_energies_and_shapes_of_schedules(model, rows):
    directions = random_directions(model)
    found = ll.evaluate_schedules(model, rows, directions, target=0.1)
    figure = whole(plots.schedule_energies(found))
    frame = found.to_dataframe()
    finite = frame["ratio_median"].replace(float("inf"), float("nan"))
    assert list(figure.data[0].x) == pytest.approx(finite.tolist(), nan_ok=True)
    assert figure.layout.yaxis.ticktext[0].startswith("minimum energy")
    assert figure.layout.xaxis.type == "log"
    shapes = traces(whole(plots.schedule_shapes(found)))
    assert list(shapes["exact minimum energy"].y) == found.shapes[1].mean(0).tolist()
    assert "random layer" not in shapes and shapes["uniform"].line.color == style.GREY
    u = ll.min_energy(torch.tensor([1.0, 2.0]), 5.0)
    assert list(traces(plots.schedule_shapes({"u": u}))["u"].y) == [1.0, 2.0]


def test_steered_text_is_text_and_never_markup(nano):
    directions = random_directions(nano)
    found = steer_text(nano, ["The <b>cat</b>"], directions, torch.ones(4), n_tokens=3)
    table = whole(plots.steered_text(found)).data[0]
    assert table.cells.values[0][0] == "The &lt;b&gt;cat&lt;/b&gt;"
    assert [float(x) for x in table.cells.values[1]] == [0.0, 1.0, -1.0]
    assert isinstance(found, SteeredText)
    with pytest.raises(FigureTooLargeError):
        plots.steered_text(found, max_cells=5)


def test_cost_of_steering(nano):
    tokens = ll.evaluation_tokens(nano)[:2, :16]
    cost = steering_cost(nano, tokens, random_directions(nano), torch.ones(4), scales=(1, 0, -1))
    figure = whole(plots.steering_cost(cost))
    assert list(figure.data[0].x) == [-1, 0, 1]
    assert list(figure.data[0].y) == list(cost.losses[::-1])
