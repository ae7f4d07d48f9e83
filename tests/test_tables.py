"""A result has its fields, a table, one column at a time, a figure, a sentence and a view for notebooks."""

import copy
import html
import importlib
import inspect
import pickle
import pkgutil
import re
from dataclasses import dataclass

import pandas as pd
import pytest
import torch

import lens_linear
from lens_linear import plots
from lens_linear.tables import Result, rounded


@dataclass(frozen=True, eq=False)
class Example(Result):
    n: int

    _columns = ("y", "t")

    def __repr__(self):
        return f"Example <of> {self.n} rows"

    def to_dataframe(self):
        return pd.DataFrame(
            {"x": range(self.n), "y": [i * 1.23456 for i in range(self.n)], "t": "<b>"}
        )


def test_what_would_be_invisible_is_written_out_in_a_notebook():
    model = lens_linear.load("attn-1l")
    odd = ["\u202eevil", "\ud800", " the", "", "a\u200bb", "\u3164"]
    labels = [*odd, *(f"t{i}" for i in range(model.cfg.d_vocab - len(odd)))]
    bigrams = lens_linear.AttentionOnly(model, labels=labels).bigrams()._repr_html_()

    class Named(Result):
        def __repr__(self):
            return "Named of a\u202eb with ␣the"

        def to_dataframe(self):
            return pd.DataFrame({"token_label": odd[:1] + odd[2:], "reason": ["two words"] * 5})

    shown = Named()._repr_html_()
    for text in (
        "⟨202E⟩evil",
        "␣the",
        "a⟨200B⟩b",
        "⟨3164⟩",
        "of a⟨202E⟩b with ␣the",
        "two words",
    ):
        assert text in shown
    assert not set("\u202e\ud800\u200b\u3164") & set(shown)
    assert not set("\u202e\ud800\u200b\u3164") & set(bigrams)


def test_names_of_a_frame_and_of_a_figure_are_answered_with_ours():
    model = lens_linear.load("attn-1l")
    result = lens_linear.induction_scores(model, periods=[4, 5], rows_per_period=2)
    for name, ours in (
        ("df", ".to_dataframe()"),
        ("to_csv", ".to_dataframe().to_csv"),
        ("show", ".plot()"),
    ):
        said = re.escape(f"InductionScores has no {name!r}; you may want {ours}")
        with pytest.raises(AttributeError, match=said):
            getattr(result, name)
    with pytest.raises(AttributeError, match=r"has no 'nonsense'$"):
        _ = result.nonsense
    for twin in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert twin.stats.n_rows == result.stats.n_rows


def test_columns_are_asked_by_name():
    result = Example(4)
    assert result["x"].tolist() == [0, 1, 2, 3] and len(result) == 4 and bool(Example(0))
    assert result[result["x"] > 1]["x"].tolist() == [2, 3]
    assert list(result[["y", "x"]].columns) == ["y", "x"]
    with pytest.raises(KeyError, match=r"Example has no column 'z'; it has \['x', 'y', 't'\]"):
        _ = result["z"]
    with pytest.raises(TypeError):
        iter(result)


def test_a_result_is_no_frame():
    assert not hasattr(Example(2), "loc") and not hasattr(Example(2), "sort_values")
    public = {name for name in dir(Example(2)) if not name.startswith("_")}
    assert public == {"n", "to_dataframe", "plot"}
    assert copy.deepcopy(Example(2)).n == pickle.loads(pickle.dumps(Example(2))).n == 2


def test_the_frame_is_a_copy():
    result = Example(3)
    result.to_dataframe().loc[0, "y"] = 99
    assert result["y"].tolist()[0] == 0


def test_the_view_is_a_sentence_and_the_columns_that_matter():
    view = Example(30)._repr_html_()
    assert view.startswith("<p>Example &lt;of&gt; 30 rows</p>")
    assert "&lt;b&gt;" in view and "<b>" not in view
    assert "1 more column in" in view and "first 20 of 30 rows" in view and "<th>x</th>" not in view
    assert "1.235" in view and "1.23456" not in view


def test_ids_stand_in_for_labels_that_are_not_there():
    class Unlabelled(Example):
        _columns = ("x_label", "y", "gone")

    view = Unlabelled(2)._repr_html_()
    assert "<th>x</th>" in view and "<th>y</th>" in view and "<th>t</th>" not in view


def test_a_view_claims_no_digits_that_were_not_measured():
    class Mixed(Example):
        _columns = ("x", "y", "t", "u")

        def to_dataframe(self):
            return pd.DataFrame(
                {
                    "x": [14.78, 0.07571],
                    "y": [1234567.0, 2.5],
                    "t": [float("nan"), 3e-7],
                    "u": ["a", None],
                }
            )

    cells = re.findall(r"<td>(.*?)</td>", Mixed(2)._repr_html_())
    assert cells[:3] == ["14.78", "1,235,000", "–"] and cells[4:7] == ["0.07571", "2.5", "3e-07"]


def test_rounding_keeps_four_digits_and_everything_else():
    frame = rounded(
        pd.DataFrame({"a": [123456.7, 1.2345678e-9], "b": [10**9, 3], "c": ["x", None]})
    )
    assert frame["a"].tolist() == [123500.0, 1.235e-9] and frame["b"].tolist() == [10**9, 3]


def test_without_a_figure_of_its_own_the_table_is_drawn():
    figure = Example(3).plot()
    assert list(figure.data[0].x) == pytest.approx([0, 1.23456, 2.46912])
    assert figure.data[0].name == "y"  # "x" only counts the rows


def result_classes():
    for module in pkgutil.walk_packages(lens_linear.__path__, "lens_linear."):
        if not module.name.endswith("__main__"):
            for _, value in inspect.getmembers(
                importlib.import_module(module.name), inspect.isclass
            ):
                shared = value.__subclasses__()  # fields that two results have in common
                if issubclass(value, Result) and value.__module__ == module.name and not shared:
                    yield value


@pytest.mark.parametrize("kind", sorted(set(result_classes()), key=lambda c: c.__name__))
def test_every_result_names_a_figure_that_exists_and_says_a_sentence(kind):
    if kind is Result:
        return
    assert callable(getattr(plots, kind._figure))
    assert kind.__repr__ is not object.__repr__ and kind.to_dataframe is not Result.to_dataframe


def test_tensors_matrices_and_fits_with_notes_show_and_draw_themselves():
    model = lens_linear.toy_model()
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    shown = {
        "Where the concept can be read": lens_linear.concept_directions(
            lens_linear.load("gpt-nano"), lens_linear.load_concept("mood", limit=40)
        ),
        "Schedules over layers": lens_linear.min_energy(torch.tensor([1.0, 2.0]), 5.0),
        "Positional attention of L1H2": lens_linear.head(model, "L1H2").positional_qk(6),
        "LinearFit": lens_linear.linalg.fit_linear(x, x.cumsum(1)),
    }
    for title, result in shown.items():
        assert result.plot().layout.title.text == title
        page = result._repr_html_()
        assert page.startswith(f"<p>{html.escape(repr(result))}</p>") and ".plot()" in page
        assert f"<th>{result.to_dataframe().columns[0]}</th>" in page
