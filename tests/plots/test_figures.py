"""Every figure: legible at three sizes, a text alternative, one clear error for a wrong argument."""

import dataclasses
import html
import inspect
import re
import sys
import typing
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from sized import SIZES, results

import lens_linear as ll
from lens_linear import constructions, linearity, plots
from lens_linear.errors import InvalidArgumentError
from lens_linear.plots import style
from lens_linear.plots._kinds import Tabular, describe, log_axis, panels
from lens_linear.plots.circuits import _VERDICTS
from lens_linear.plots.pretraining import StudyLike
from lens_linear.tables import Result

sys.path.insert(0, str(Path(__file__).parents[1] / "robustness"))
import robust_figures

PAGE, PHONE = 700, 390
HELPERS = {"style", *style.__all__}  # not figures


def unescaped(text):
    return re.sub(r"&#?\w+;", "x", re.sub(r"<[^>]*>", "", text))


def legible(figure):
    """No width of its own, a bounded height, ticks that do not overlap, short legends, wrapped titles."""
    layout = figure.layout
    assert layout.width is None and 220 <= layout.height <= 1300
    for text, pixels in ((layout.title.text, 8.4), (layout.title.subtitle.text, 6.4)):
        for line in text.split("<br>"):
            assert len(unescaped(line)) * pixels < PHONE, line
    named = [t for t in figure.data if t.name and t.showlegend is not False]
    assert len(named) <= 15
    assert all(len(unescaped(trace.name)) <= 60 for trace in named), [t.name for t in named]
    panels = len(list(figure.select_xaxes()))
    across = min(panels, 3) if panels > 1 else 1
    for axis in figure.select_xaxes():
        if axis.ticktext and axis.tickangle == -90:
            assert len(axis.ticktext) * 11 <= 0.8 * (PHONE - 60) / across + 20, len(axis.ticktext)
        elif axis.ticktext and axis.tickangle == 0:
            shown = sum(len(unescaped(str(label))) + 1 for label in axis.ticktext)
            assert shown * 6.2 <= (PHONE - 60) / across + 20, axis.ticktext
    for axis in figure.select_yaxes():
        if axis.ticktext:
            share = (axis.domain[1] - axis.domain[0]) if axis.domain else 1.0
            room = (layout.height - layout.margin.t - 60) * share
            assert len(axis.ticktext) * 12 <= room, (len(axis.ticktext), room)
    for trace in figure.data:  # what is drawn lies inside a range that is set
        low_high = layout.yaxis.range
        if (
            trace.type == "scatter"
            and low_high
            and layout.yaxis.type != "log"
            and trace.mode == "lines"
        ):
            drawn = np.asarray([v for v in trace.y if v is not None], dtype=float)
            drawn = drawn[np.isfinite(drawn)]
            if len(drawn) and trace.yaxis in (None, "y"):
                assert min(low_high) <= drawn.min() and drawn.max() <= max(low_high), trace.name


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "{}x{}".format(*size))
def test_every_figure_that_grows_is_legible_at_every_size(size):
    drawn = results(*size)
    for name, arguments in drawn.items():
        figure = getattr(plots, name)(*arguments)
        legible(figure)
        alt = figure.layout.meta["alt"]
        assert alt == describe(figure) and figure.layout.title.text.split("<br>")[0] in alt
        assert len(figure.to_json()) < 2_500_000, name
    if size == SIZES[-1]:
        composed = plots.composition_map(*drawn["composition_map"])
        assert composed.data[0].z.shape == (47, 47)
        scores = drawn["composition_map"][0].z[0, 3, :, 9]  # writers of layer 3, readers of layer 9
        assert composed.data[0].z[3, 8] == pytest.approx(float(scores.max()), rel=1e-5)


@pytest.mark.parametrize("name", sorted(robust_figures.FIGURES))
def test_every_other_figure_is_legible_too(name):
    figure = robust_figures.draw(name)
    if isinstance(figure, go.Figure):
        legible(figure)
        assert len(figure.layout.meta["alt"]) > 40 and "<" not in figure.layout.title.text.replace(
            "<br>", ""
        )


def takes_names(name):
    hints = typing.get_type_hints(getattr(plots, name).__wrapped__)
    return "Mapping" in str(next(iter(hints.values())))


@pytest.mark.parametrize("name", sorted(filter(takes_names, robust_figures.FIGURES)))
def test_a_figure_of_twenty_named_results_stays_legible(name):
    made = robust_figures.FIGURES[name]()
    one = next(iter(made.values())) if isinstance(made, dict) else made
    figure = getattr(plots, name)({f"name {i}": one for i in range(20)})
    legible(figure)
    drawn = [t for t in figure.data if t.type == "scatter" and "lines" in t.mode]
    lines = [trace.line.color for trace in drawn]
    assert not lines or len(set(lines)) >= 20


def test_a_band_lets_what_lies_below_it_show():
    for ink in ("#0072B2", *style.shades(12)):
        assert style.faded(ink).endswith(",0.18)")
    many = {f"step {i}": robust_figures.profile() for i in range(12)}
    bands = [t for t in plots.profile_comparison(linearity.compare_profiles(many)).data if t.fill]
    assert bands and all(band.fillcolor.endswith(",0.18)") for band in bands)


def test_titles_of_panels_have_room_for_their_lines():
    def above(title):
        fig, _ = panels([title, "b", "c"])
        return style.styled(fig, title="t", panels=True).layout.margin.t

    assert above("block R²") == above("block R² without residual")
    assert above("intrinsic dimension (TwoNN)") == above("block R²") + 15


@pytest.mark.parametrize(
    "ends", [(2, 4), (3, 8.5), (1e-3, 4e-3), (1, 99), (5, 60), (2, 128), (1e-16, 1)]
)
def test_a_logarithmic_axis_has_two_to_nine_ticks_and_each_says_its_whole_number(ends):
    axis = log_axis(ends)
    if ends in ((1, 99), (2, 128), (1e-16, 1)):  # these hold two powers of ten
        powers = np.floor(np.log10(ends[1])) - np.ceil(np.log10(ends[0]))
        assert 2 <= powers // axis["dtick"] + 1 <= 9 and isinstance(axis["dtick"], int)
    else:
        assert [float(word) for word in axis["ticktext"]] == axis["tickvals"]
        assert 2 <= sum(ends[0] <= tick <= ends[1] for tick in axis["tickvals"]) <= 9


@pytest.mark.parametrize("name", sorted(robust_figures.FIGURES))
def test_no_tick_is_a_bare_digit_a_letter_for_a_power_or_half_of_a_thing_that_is_counted(name):
    figure = robust_figures.draw(name)
    if not isinstance(figure, go.Figure):
        return
    whole = {"direction", "layer", "layer boundary", "blocks replaced"}
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        if axis.type == "log":  # plotly's own choice and "D1", "D2" write 20 as a small 2
            assert axis.tickvals or isinstance(axis.dtick, (int, float)), axis.title.text
        if axis.title.text in whole or "products" in str(axis.title.text):
            assert axis.tickvals or (axis.dtick and axis.dtick % 1 == 0), axis.title.text
    template = figure.layout.template
    bars = [template.data.heatmap[0].colorbar]
    for numbers in (template.layout.xaxis, template.layout.yaxis, *bars):
        assert numbers.exponentformat == "power" and numbers.minexponent > 4
    assert "nan" not in figure.to_json().replace("NaN", "").split('"layout"')[0].lower().split()


@pytest.mark.parametrize("letters", [2, 9, 16])
def test_upright_labels_take_no_room_from_the_rows(letters):
    names = ["x" * letters, *map(str, range(11))]
    cells = style.matrix(np.eye(12), rows=range(12), columns=[names[0]] * 12)
    figure = style.styled(cells, title="t", height=style.matrix_height(12), legend="none")
    assert figure.layout.height - style.matrix_height(12) >= 7 * (letters - 5)


def test_kinds_of_composition_have_no_colour_of_a_verdict():
    composition, heads = results(12, 12)["circuit_graph"]
    drawn = plots.circuit_graph(composition, heads).data
    lines = {trace.name: trace.line.color for trace in drawn if trace.mode == "lines"}
    assert len(set(lines.values())) == len(lines) == 3
    assert not set(lines.values()) & {ink for _, _, ink in _VERDICTS.values()}
    none = plots.circuit_graph(composition, heads, min_z=1e9).layout.title.subtitle.text
    assert none.startswith("no edge") and "width" not in none
    assert "of 2,8" in plots.circuit_graph(composition, heads).layout.title.subtitle.text


@pytest.mark.parametrize("rest", [-30.0, 30.0])
def test_a_large_rest_does_not_dwarf_the_bars_that_have_names(rest):
    parts = pd.DataFrame({"component": [f"L{i}H0" for i in range(63)]})
    figure = plots.direct_logit_attribution(
        parts.assign(relative=[3.0, -2.0, 1.0, *[rest / 60] * 60]), k=3
    )
    low, high = figure.layout.xaxis.range
    assert low <= -2 and high >= 3 and max(-low, high) < 6
    assert figure.layout.yaxis.ticktext[-1] == f"the other 60: {rest:+.2f}"
    assert sum(figure.data[0].x) == pytest.approx(2 + rest)


def test_bars_of_exchanges_look_like_no_kind_of_head_and_like_no_other():
    heads = constructions.trained_heads(robust_figures.attention_only(), robust_figures.TOKENS)
    bars = [trace.marker for trace in plots.trained_heads(heads).data if trace.type == "bar"]
    assert len({(bar.color, bar.pattern.shape) for bar in bars}) == len(bars) == 6
    kinds = {style.colour(i) for i in range(4)}
    assert all(bar.pattern.shape for bar in bars if bar.color in kinds)


def test_ticks_of_layers_follow_their_reach_not_their_number():
    (table,) = results(48, 25)["ffn_compression"]
    some = [row for row in table.rows if row["rank"] == 8 and row["layer"] in (0, 20, 47)]
    figure = plots.ffn_compression(dataclasses.replace(table, rows=tuple(some)))
    assert figure.layout.xaxis.title.text == "layer" and 47 / figure.layout.xaxis.dtick <= 13


def test_rows_of_a_table_are_told_apart_with_as_few_words_as_will_do():
    heads = pd.DataFrame(
        {"head": ["L0H0", "L0H1"], "layer": [0, 0], "index": [0, 1], "score": [1.0, 2.0]}
    )
    assert plots.overview(heads).layout.yaxis.ticktext == ("L0H0", "L0H1")
    layers = pd.DataFrame({"layer": [0, 1], "n": [9, 9], "r2": [0.5, 0.75]})
    assert plots.overview(layers).layout.yaxis.ticktext == ("layer 0", "layer 1")


@pytest.mark.parametrize("name", sorted(robust_figures.FIGURES))
def test_the_notebook_view_has_a_sentence_with_numbers_and_few_columns(name):
    made = robust_figures.FIGURES[name]()
    made = made if type(made) is tuple else (made,)
    made = [each for one in made for each in (one.values() if isinstance(one, dict) else [one])]
    for result in made:
        if isinstance(result, Result):
            heads = re.findall(r"<th>[^<]", result._repr_html_().split("</thead>")[0])
            assert 0 < len(heads) <= 10, type(result)
            assert re.search(r"\d", repr(result)) and "\n" not in repr(result)


@pytest.mark.parametrize("name", [n for n in plots.__all__ if n not in HELPERS])
def test_a_wrong_argument_is_one_clear_error(name):
    function = getattr(plots, name)
    first = next(iter(inspect.signature(function).parameters))
    for wrong in (42, "profile", None, [1, 2], {}, {"a": 1}, np.zeros(3), pd.Series([1.0])):
        with pytest.raises(InvalidArgumentError) as found:
            function(wrong)
        message = str(found.value)
        assert message.startswith(f"{first} must ") and "got " in message and "; " in message, (
            message
        )


def test_every_result_that_names_a_figure_is_what_the_figure_takes():
    from lens_linear import circuits, constructions, dynamics, linearity, studies, tables

    for room in (circuits, constructions, dynamics, linearity, studies):
        assert [getattr(room, name) for name in room.__all__]
    kinds, known = [tables.Result], set()
    for kind in kinds:
        kinds += kind.__subclasses__()
        if kind.__module__.startswith("lens_linear."):
            function = getattr(plots, kind._figure).__wrapped__
            first, *others = inspect.signature(function).parameters.values()
            assert all(each.default is not each.empty for each in others), kind
            hint = typing.get_type_hints(function)[first.name]
            takes = [part for part in (hint, *typing.get_args(hint)) if isinstance(part, type)]
            fits = any(part in (*kind.__mro__, Tabular, StudyLike) for part in takes)
            assert fits, (kind, kind._figure)
            known.add(kind.__name__)
    wanted = {"GainProfile", "Surrogate", "BigramTable", "QKAttribution", "PathExpansion"}
    assert wanted <= known and len(known) >= 40, wanted - known


def test_wrong_knobs_are_clear_errors_too():
    gains = robust_figures.FIGURES["gain_profiles"]()
    for wrong in (1, "yes", None):
        with pytest.raises(
            InvalidArgumentError, match=r"bands must be True or False, got .*; bands: "
        ):
            plots.gain_profiles(gains, bands=wrong)
    with pytest.raises(
        InvalidArgumentError, match=r"profiles must be \{name: GainProfile or a Surrogate\}"
    ):
        plots.gain_profiles({})
    pairs = robust_figures.FIGURES["top_pairs"]()
    for wrong, words in ((0, "k must be at least 1"), (2.5, "k must be a whole number")):
        with pytest.raises(InvalidArgumentError, match=words):
            plots.top_pairs(pairs, k=wrong)
    with pytest.raises(
        InvalidArgumentError, match=r"quantity must be one of 'recall', 'overlap'.*overlap"
    ):
        plots.retrieval(robust_figures.FIGURES["retrieval"](), quantity="overlaps")
    with pytest.raises(InvalidArgumentError, match="columns component, relative, got x; component"):
        plots.direct_logit_attribution(pd.DataFrame({"x": [1]}))


def test_names_of_eighty_characters_leave_room():
    name = unescaped(style.legend_name("<" + 78 * "a" + ">"))
    assert name == "x" + 16 * "a" + "…" + 15 * "a" + "x"  # 34 characters, escaped


def test_results_of_components_layers_and_patches():
    parts = pd.DataFrame({"component": list("abcd"), "relative": [1.0, -3.0, 0.5, 0.25]})
    bars = plots.direct_logit_attribution(parts, k=2)
    assert list(bars.data[0].x) == [-3.0, 1.0, 0.75]  # the others in one bar: the sum stays
    assert list(bars.layout.yaxis.ticktext) == ["b", "a", "the other 2"]
    sites = pd.DataFrame({"layer": [0, 0, 1, 1], "head": "", "position": [0, 2, 0, 2]})
    cells = plots.patching(sites.assign(effect=[0.1, 0.2, 0.3, -0.4])).data[0]
    np.testing.assert_allclose(cells.z, [[0.1, 0.2], [0.3, -0.4]], rtol=1e-6)
    assert cells.zmax == -cells.zmin == pytest.approx(0.4)
    paths = pd.DataFrame({"sender": ["L0H0", "L0H1"], "receiver": "L1H1 (k)", "effect": [0.1, 0.9]})
    assert plots.patching(paths).layout.yaxis.ticktext[0] == "L0H1 → L1H1 (k)"
    lens = pd.DataFrame({"layer": [0, 1], "kl": [2.0, 0.0], "loss": [5.0, 3.0], "top1": [0.3, 1.0]})
    by_name = {line.name: line for line in plots.lens_profile(lens).data}
    assert list(by_name["KL to the output"].y) == [2.0, 0.0]
    assert by_name["same favourite"].yaxis == "y2"
    for highest, off in ((90.0, True), (6.0, False)):
        beside = lens.assign(raw_kl=[2.5, 0.1], logit_kl=[highest, 0.0])
        drawn = plots.lens_profile(beside)
        named = [line.name for line in drawn.data]
        banded = plots.lens_profile(beside.assign(kl_low=0.0, kl_high=3.0)).data
        assert {line.name for line in banded if line.showlegend} == set(named)
        assert named[3] == "KL of raw least squares" and named[4].startswith("KL of logit lens")
        assert ("off the axis" in named[4].replace("<br>", " ")) == off
        assert (drawn.layout.yaxis.range is not None) == off
        assert not off or 5.0 < drawn.layout.yaxis.range[1] < 7.0
    alone = plots.lens_profile(lens.assign(raw_kl=float("nan"), logit_kl=1.0))
    assert [line.name for line in alone.data][3:] == ["KL of logit lens"]


def test_a_name_without_spaces_does_not_run_out_of_the_title():
    figure = style.styled(
        go.Figure(), title=f"Linearity: {style.escape('a' * 50 + '<b>' + 'c' * 50)}"
    )
    lines = [html.unescape(line) for line in figure.layout.title.text.split("<br>")]
    assert max(map(len, lines)) <= 44
    assert "".join(lines) == f"Linearity:{'a' * 50}<b>{'c' * 50}"


def test_a_legend_of_many_long_names_makes_the_figure_higher():
    """Eight names take eight lines of about 30 pixels, measured in a browser; two short ones take none."""
    names = [f"{i}{79 * 'K'}" for i in range(8)]
    profile = robust_figures.FIGURES["linearity_profile"]()
    two = plots.profile_comparison(ll.compare({"a": profile, "b": profile})).layout.height
    eight = plots.profile_comparison(ll.compare(dict.fromkeys(names, profile))).layout.height
    assert eight - two >= 6 * 28
    lines = go.Figure([go.Scatter(y=[0, 1], name=style.legend_name(name)) for name in names])
    assert style.styled(lines, title="").layout.height == 480 + 6 * 29
    assert style.styled(lines, title="", legend="none").layout.height == 480
