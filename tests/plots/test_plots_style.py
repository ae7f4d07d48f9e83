import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch

from lens_linear.errors import FigureTooLargeError, InvalidArgumentError
from lens_linear.plots import style

NASTY = [" the", "</script>", "<b>", "\n", "", " the"]


def test_equal_labels_stay_separate_rows_and_nothing_is_markup():
    figure = style.matrix(np.eye(6), rows=NASTY, columns=NASTY)
    assert np.asarray(figure.data[0].z).shape == (6, 6)
    ticks = list(figure.layout.yaxis.ticktext)
    assert ticks == ["␣the", "&lt;/script&gt;", "&lt;b&gt;", "↵", "∅", "␣the"]
    assert list(figure.layout.yaxis.tickvals) == list(range(6))
    assert figure.layout.yaxis.autorange == "reversed"  # row 0 on top
    assert figure.data[0].text[1][3] == "row &lt;/script&gt;<br>column ↵"
    page = figure.to_html(include_plotlyjs=False, full_html=False)
    assert page.count("</script>") == page.count("<script")  # only plotly's own tags


def test_diverging_colours_are_centred_at_zero():
    heatmap = style.matrix(torch.tensor([[1.0, 2.0], [3.0, 9.0]])).data[0]
    assert heatmap.zmid == 0
    assert style.matrix(np.ones((2, 2)), diverging=False).data[0].zmid is None


def test_too_many_cells_raise_and_say_what_to_do():
    with pytest.raises(FigureTooLargeError, match="max_cells"):
        style.matrix(np.zeros((201, 200)))
    assert style.matrix(np.zeros((201, 200)), max_cells=50_000).data
    style.check_cells(40_000)


def test_wrong_labels_raise():
    with pytest.raises(InvalidArgumentError, match="rows must name each of the 2"):
        style.matrix(np.zeros((2, 2)), rows=["a"])
    with pytest.raises(InvalidArgumentError, match="2 axes"):
        style.matrix(np.zeros(3))


def test_many_labels_are_thinned_but_not_lost():
    figure = style.matrix(np.zeros((150, 2)), rows=[f"t{i}" for i in range(150)])
    assert len(figure.layout.yaxis.tickvals) <= style.MAX_ROWS
    assert figure.data[0].text[149][0].startswith("row t149")


def test_style_is_put_on_the_figure_and_not_on_the_session():
    before = (pio.templates.default, pio.renderers.default)
    figure = style.styled(go.Figure(), title="T", x="layer", y="R²", subtitle="n = 3")
    assert figure.layout.xaxis.title.text == "layer"
    assert figure.layout.title.subtitle.text == "n = 3"
    assert figure.layout.template.layout.colorway[:2] == ("#0072B2", "#D55E00")
    assert (pio.templates.default, pio.renderers.default) == before


def test_colours():
    assert style.colour(8) == style.colour(0)
    assert len(set(style.OKABE_ITO)) == 8
    assert style.faded("#0072B2") == "rgba(0,114,178,0.18)"
