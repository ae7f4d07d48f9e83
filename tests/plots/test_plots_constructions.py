import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from lens_linear import constructions, plots
from lens_linear.errors import FigureTooLargeError, InvalidArgumentError
from lens_linear.plots.style import TEMPLATE


@pytest.fixture(scope="module")
def run():
    return constructions.train_ols_attention(seeds=3, epochs=150)


@pytest.fixture(scope="module")
def shift():
    return constructions.covariance_shift(conditions=(1, 16), layers=9, seeds=3)


@pytest.fixture(scope="module")
def capacity():
    dims = {"quadratic": (64, 128), "polynomial-3": (24, 32), "exponential": (10, 12)}
    return constructions.memory_capacity(energies=tuple(dims), dims=dims, seeds=3, queries=64)


@pytest.fixture(scope="module")
def curve():
    return constructions.retrieval_curve(d=32, n_patterns=(2, 8, 64), noise=(0.0, 0.2), seeds=2)


def by_name(figure, name):
    return next(t for t in figure.data if t.name and t.name.startswith(name))


def check(figure):
    """Every figure: the package's look, a title and a subtitle, named axes, JSON without NaN text."""
    assert isinstance(figure, go.Figure)
    assert figure.layout.template == TEMPLATE
    assert figure.layout.title.text and figure.layout.title.subtitle.text
    assert any(axis.title.text for axis in figure.select_xaxes())
    assert figure.layout.yaxis.title.text
    assert len(figure.to_json()) < 200_000


@pytest.mark.parametrize("quantity", ["prediction_error", "geometry_error", "loss"])
def test_convergence_curve_is_the_median_over_seeds(run, quantity):
    figure = plots.ols_convergence(run, quantity=quantity)
    check(figure)
    want = getattr(run, quantity).median(1).values
    np.testing.assert_allclose(by_name(figure, "median").y, want.clamp(min=1e-16))
    assert figure.layout.yaxis.type == "log"
    if quantity == "prediction_error":
        assert by_name(figure, "converged below").y[0] == pytest.approx(1e-3)
    with pytest.raises(InvalidArgumentError, match="quantity must be one of"):
        plots.ols_convergence(run, quantity="accuracy")


def test_convergence_figure_says_when_nothing_converged():
    figure = plots.ols_convergence(constructions.train_ols_attention(seeds=2, epochs=1))
    assert "0 of 2 seeds converged" in figure.layout.title.subtitle.text


def test_convergence_figure_of_labels_of_any_size_and_of_an_exact_fit():
    x = torch.randn(30, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tiny = constructions.train_ols_attention(x, 1e-9 * (2 * x + 0.1 * x**2), epochs=50, seeds=2)
    figure = plots.ols_convergence(tiny, quantity="loss")
    np.testing.assert_allclose(by_name(figure, "median").y, tiny.loss.median(1).values)
    exact = constructions.train_ols_attention(x, 0.5 * x, epochs=5, seeds=2, tolerance=0.0)
    for quantity in ("loss", "prediction_error"):
        check(plots.ols_convergence(exact, quantity=quantity))
    alone = plots.ols_convergence(exact, quantity="geometry_error")
    assert "zero by definition" in alone.layout.title.text


def test_hat_matrix_figure_is_the_matrix_row_zero_on_top():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    hat = constructions.OLSAttention.from_data(x, x[:, 0]).hat()
    figure = plots.hat_matrix(hat)
    check(figure)
    np.testing.assert_allclose(figure.data[0].z, hat.values, atol=1e-7)
    assert figure.layout.yaxis.autorange == "reversed" and figure.data[0].zmid == 0
    with pytest.raises(FigureTooLargeError, match="max_cells"):
        plots.hat_matrix(hat, max_cells=35)


def test_swap_figure_shows_both_tables():
    x = np.random.default_rng(0).normal(size=(20, 2))
    swap = constructions.swap_memories((x, x @ [1.0, 2.0]), (x, x @ [2.0, -1.0]))
    figure = plots.memory_swap(swap)
    check(figure)
    assert np.asarray(figure.data[0].text).tolist() == [["0", "0"], ["0", "0"]]
    assert figure.data[1].text[0][1] == f"{float(swap.to_weights_ols[0, 1]):.2g}"


def test_shift_figure_draws_the_depths_asked_for(shift):
    figure = plots.covariance_shift(shift, layers=(3, 9, 99))
    check(figure)
    assert len(figure.data) == 4  # fixed, one step, two depths; depth 99 was not measured
    fixed = by_name(figure, "fixed L")
    np.testing.assert_allclose(fixed.y, shift.errors[0].median(1).values)
    assert list(fixed.x) == [1, 16]
    ratio = shift.flops[shift.methods.index("Newton-Schulz from L") + 7] / shift.flops[0]
    assert f"9 layers ({ratio:.1f}×)" in figure.data[3].name


def test_cost_figure_follows_one_shift(shift):
    figure = plots.shift_cost(shift, condition=16)
    check(figure)
    deep = by_name(figure, "Newton-Schulz from L")
    assert list(deep.x) == list(range(2, 11))
    rows = [i for i, m in enumerate(shift.methods) if m == "Newton-Schulz from L"]
    want = shift.errors[rows, 1].median(1).values.clamp(min=1e-16)
    np.testing.assert_allclose(deep.y, want)
    with pytest.raises(InvalidArgumentError, match="condition must be one of"):
        plots.shift_cost(shift, condition=3)


def test_capacity_figure_has_points_error_bars_and_theory(capacity):
    figure = plots.memory_capacity(capacity)
    check(figure)
    table = capacity.capacity().set_index("energy")
    for name in ("quadratic", "polynomial-3", "exponential"):
        points = by_name(figure, name)
        np.testing.assert_allclose(points.y, table.loc[name, "capacity"])
        np.testing.assert_allclose(points.error_y.array, table.loc[name, "sd"])
    dashed = [t for t in figure.data if t.line.dash == "dash"]
    np.testing.assert_allclose(dashed[0].y, table.loc["quadratic", "expected"])
    assert figure.layout.yaxis.type == "log" and figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis2.type == "linear"  # exponential: straight against d itself
    alone = constructions.memory_capacity(energies="quadratic", dims=(64, 128), seeds=2, queries=32)
    check(plots.memory_capacity(alone))


def test_heads_stand_on_the_capacity_figure(capacity):
    keys = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    head = constructions.attention_head_memory(keys)
    position = head.position().set_index("source")
    figure = plots.memory_capacity(capacity, heads=[head, head])
    check(figure)
    stars = by_name(figure, "head, softmax")
    assert list(stars.x) == [16, 16]
    assert list(stars.y) == [position.loc["head", "predicted_capacity"]] * 2
    linear = by_name(figure, "head, linear attention")
    assert linear.y[0] == position.loc["head", "capacity_quadratic"]
    assert len(plots.memory_capacity(capacity, heads=head).data) == len(figure.data)
    softmax_only = constructions.attention_head_memory(keys, energies="exponential")
    check(plots.memory_capacity(capacity, heads=softmax_only))


def test_bit_error_figure_takes_the_largest_size(capacity):
    figure = plots.bit_error(capacity)
    check(figure)
    curve = next(c for c in capacity.curves if (c.energy, c.d) == ("quadratic", 128))
    line = by_name(figure, "quadratic, d = 128")
    np.testing.assert_allclose(line.y, curve.bit_error.mean(1))


def test_retrieval_figure_has_a_panel_an_energy_and_a_line_a_noise(curve):
    figure = plots.retrieval(curve)
    check(figure)
    assert len(figure.data) == 6
    np.testing.assert_allclose(figure.data[1].y, curve.recall[0, :, 1].mean(1))
    assert sum(bool(t.showlegend) for t in figure.data) == 2
    overlap = plots.retrieval(curve, quantity="overlap")
    np.testing.assert_allclose(overlap.data[0].y, curve.overlap[0, :, 0].mean(1))
    with pytest.raises(InvalidArgumentError, match="'recall', 'overlap'"):
        plots.retrieval(curve, quantity="loss")


def test_head_memory_figure():
    keys = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    result = constructions.attention_head_memory(keys)
    figure = plots.head_memory(result)
    check(figure)
    line = by_name(figure, "exponential, head")
    np.testing.assert_allclose(line.y, result.recall[0, 0].mean(-1))
    assert len(figure.data) == 8  # six lines and two predicted capacities


def test_names_are_all_there():
    for name in plots.__all__:
        assert callable(getattr(plots, name)) or name in ("style", "GREY", "OKABE_ITO")
    for name in constructions.__all__:
        assert getattr(constructions, name) is not None
    with pytest.raises(AttributeError, match="no 'nothing'"):
        _ = plots.nothing
    with pytest.raises(AttributeError, match="no 'nothing'"):
        _ = constructions.nothing
