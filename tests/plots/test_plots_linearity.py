"""Figures of linearity hold the numbers of their results, and nothing else."""

import dataclasses
import json
import re

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError
from lens_linear.linearity.measure.adam import adam_on_rows
from lens_linear.linearity.measure.bilinear import bilinear_on_rows
from lens_linear.linearity.measure.compare import compare_profiles
from lens_linear.linearity.measure.geometry import layer_geometry
from lens_linear.linearity.replace.compression import ffn_compression
from lens_linear.linearity.replace.runs import run_table
from lens_linear.models.open.toy import toy_model
from lens_linear.plots import linearity
from lens_linear.studies.pretraining import MEASURES, Study, StudyResult


@pytest.fixture(scope="module")
def model():
    return toy_model(n_layers=3, d_model=16, attn_only=False, norm="LN")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(64, (40, 16), generator=torch.Generator().manual_seed(0))


def traces(figure):
    return {trace.name: trace for trace in figure.data if trace.name}


def whole(figure):
    """A figure that serialises, has a title, axis titles and a line saying n."""
    assert isinstance(figure, go.Figure)
    json.loads(figure.to_json())
    assert figure.layout.title.text and re.search(r"n = \d", figure.layout.title.subtitle.text)
    return figure


def test_scores_below_the_axis_are_counted_and_the_lowest_named(model, ids):
    profile = ll.linearity_profile(model, ids)
    spoken = linearity.linearity_profile(profile).layout.title.subtitle.text
    values = dict(profile.scores)
    values["ffn"] = torch.tensor([0.5, -3.456, 0.4])
    later = dict(profile.without_first.values)
    later["block"] = torch.tensor([-7.25, 0.9, -1.5])
    cut = dataclasses.replace(
        profile,
        scores=values,
        without_first=dataclasses.replace(profile.without_first, values=later),
    )
    figure = linearity.linearity_profile(cut)
    text = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert "below the axis" not in spoken and figure.layout.yaxis.range[0] > -1.2
    assert (
        "3 scores below the axis, lowest: block without the first position, layer 0: -7.25" in text
    )
    text = linearity.linearity_profile(cut, scores=["ffn_r2"]).layout.title.subtitle.text
    assert "1 score below the axis, lowest: FFN, layer 1: -3.46" in text.replace("<br>", " ")


def test_profile_lines_bands_and_null(model, ids):
    profile = ll.linearity_profile(model, ids)
    figure = whole(linearity.linearity_profile(profile))
    lines = traces(figure)
    assert list(lines) == [
        "block",
        "block, without residual",
        "FFN",
        "attention",
        "thin: without the first position",
        "independent noise",
    ]
    thin = [trace for trace in figure.data if trace.name and trace.name.startswith("thin")]
    assert list(thin[2].y) == profile.without_first.values["ffn"].tolist()
    assert [bool(trace.showlegend) for trace in thin] == [True, False, False, False]
    assert list(lines["FFN"].y) == profile.scores["ffn"].tolist()
    assert list(lines["independent noise"].y) == profile.null_r2.tolist()
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(bands) == 4 and all(band.mode == "lines" for band in bands)
    low, high = profile.intervals["block"].unbind(1)
    assert list(bands[0].y) == [*high.tolist(), *reversed(low.tolist())]
    assert not [t for t in linearity.linearity_profile(profile, bands=False).data if t.fill]
    inside = ll.linearity_profile(model, ids, fit="in-sample")
    assert not [t for t in linearity.linearity_profile(inside).data if t.fill]
    only = linearity.linearity_profile(ll.linearity_profile(toy_model(n_layers=1), ids))
    assert "FFN" not in traces(only)


def test_own_statistics_have_panels_with_bands(model, ids):
    own = {"spread": lambda m: float(m.scatter_y.sum() / m.n), "rows": lambda m: m.n}
    profile = ll.linearity_profile(model, ids, statistics=own, sites=("ffn",))
    figure = whole(profile.plot())
    assert [panel.text for panel in figure.layout.annotations] == [
        "R²", "spread (FFN)", "rows (FFN)"
    ]  # fmt: skip
    line = traces(figure)["spread"]
    assert line.xaxis == "x2" and list(line.y) == profile["spread"].tolist()
    low, high = profile["spread_low"].tolist(), profile["spread_high"].tolist()
    assert [list(t.y) for t in figure.data if t.fill and t.xaxis == "x2"] == [[*high, *low[::-1]]]
    assert figure.layout.yaxis.range[1] < 1.1 and figure.layout.yaxis2.range is None
    alone = whole(profile.plot(scores=["spread"], bands=False))
    assert [trace.name for trace in alone.data] == ["spread"]
    assert alone.layout.yaxis.title.text == "spread (FFN)"
    both = compare_profiles({"one": profile, "again": profile})
    assert [p.text for p in whole(both.plot()).layout.annotations] == ["FFN R²", "spread", "rows"]
    apart = traces(whole(both.difference("one", "again").plot(scores=["spread"])))
    assert list(apart["one minus again"].y) == [0.0] * 3
    with pytest.raises(InvalidArgumentError, match="scores must be one of"):
        profile.plot(scores=["erank"])


def test_model_names_are_text_and_never_markup(ids):
    model = toy_model(n_layers=1)
    model.cfg.model_name = "<b>x</b></script>"
    figure = linearity.linearity_profile(ll.linearity_profile(model, ids))
    assert "<b>" not in figure.layout.title.text and "&lt;b&gt;" in figure.layout.title.text


def test_layer_map_cells(model, ids):
    result = ll.layer_map(model, ids)
    figure = whole(linearity.layer_map(result))
    cells = np.asarray(figure.data[0].z, dtype=float)
    want = result.values.clamp(min=0).numpy()
    assert np.allclose(np.nan_to_num(cells, nan=-9), np.nan_to_num(want, nan=-9), atol=1e-6)
    assert figure.layout.xaxis.ticktext[0] == "embedding"
    assert figure.layout.yaxis.autorange == "reversed"


def test_comparison_has_a_line_per_profile_and_panel(model, ids):
    profiles = {
        "all": ll.linearity_profile(model, ids),
        "later": ll.linearity_profile(model, ids, skip=4),
    }
    figure = whole(linearity.profile_comparison(compare_profiles(profiles), ordered=True))
    lines = [trace for trace in figure.data if trace.fill is None]  # the others are bands
    assert len(lines) == 6 and len(figure.data) == 12
    assert list(lines[1].y) == profiles["all"].scores["block_no_residual"].tolist()
    assert sum(bool(trace.showlegend) for trace in figure.data) == 2
    with pytest.raises(InvalidArgumentError, match="scores must be one of"):
        linearity.profile_comparison(compare_profiles(profiles), scores=("r2",))


def test_geometry_panels(model, ids):
    geometry = layer_geometry(model, ids)
    figure = whole(linearity.layer_geometry(geometry))
    assert list(figure.data[0].y) == geometry.to_dataframe().anisotropy.tolist()


def test_curves_and_runs_and_compression(model, ids):
    curves = {s: ll.replacement_curve(model, ids, s) for s in ("remove", "linear")}
    figure = whole(linearity.replacement_curves(curves))
    lines = traces(figure)
    assert list(lines["linear"].y) == curves["linear"]["loss"].tolist()
    assert list(lines["whole model"].y) == [float(curves["linear"]["loss"].iloc[0])] * 2
    assert lines["remove"].customdata[0] == "none"
    single = whole(linearity.replacement_curves(curves["linear"], perplexity=True))
    assert single.layout.yaxis.type == "log"
    assert list(traces(single)["linear"].y) == curves["linear"]["perplexity"].tolist()
    with pytest.raises(InvalidArgumentError, match="at least one"):
        linearity.replacement_curves({})
    table = run_table(model, ids)
    cells = np.asarray(whole(linearity.run_table(table)).data[0].z, dtype=float)
    frame = table.to_dataframe()
    row = frame[(frame["first"] == 0) & (frame["last"] == 2) & (frame.method == "linear")].iloc[0]
    assert cells[0, 2] == pytest.approx(row.loss_increase, abs=1e-6) and np.isnan(cells[2, 0])
    compressed = ffn_compression(model, ids, ranks=(None, 2))
    figure = whole(linearity.ffn_compression(compressed))
    part = compressed.to_dataframe().query("layer == 1").sort_values("map_parameters")
    assert list(traces(figure)["layer 1"].y) == part.loss_increase.tolist()
    whole_rank = ffn_compression(model, ids, ranks=(None,))
    figure = whole(linearity.ffn_compression(whole_rank))  # of one size each: side by side
    line, frame = traces(figure)["one FFN replaced"], whole_rank.to_dataframe()
    assert list(line.x) == frame.layer.tolist() and list(line.y) == frame.loss_increase.tolist()
    assert np.asarray(line.customdata)[:, 1].tolist() == frame.ffn_r2.tolist()


def test_probe_figures():
    g = torch.Generator().manual_seed(0)
    x, x_new = torch.randn(2, 300, 6, generator=g, dtype=torch.float64)
    weight = torch.randn(6, 3, generator=g).double()
    y, y_new = x @ weight + x[:, :1] * x[:, 1:4], x_new @ weight + x_new[:, :1] * x_new[:, 1:4]
    probe = bilinear_on_rows(x, y, x_new, y_new, rank=(1, 2), sequence=torch.arange(300) // 10)
    figure = whole(linearity.bilinear_gain({"<i>here</i>": probe}))
    shown = traces(figure)
    assert list(shown["&lt;i&gt;here&lt;/i&gt;, held out"].y) == probe.gains.tolist()
    baseline = adam_on_rows(x, y, x_new, y_new, steps=20)
    figure = whole(ll.plots.adam_convergence(baseline))
    assert list(traces(figure)["Adam, raw inputs"].y) == baseline.r2[1:].tolist()
    assert figure.data[-1].y[0] == baseline.closed_form


def test_study_figures():
    spec = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_vocab": 50, "n_ctx": 16}
    phases = [{"steps": 3, "rows": 4, "length": 16}]
    variants = {"plain": {}, "<b>other</b>": {"cosine": 1.0}}
    study = Study("s", "why <b>?", (0, 1), {"spec": spec, "phases": phases}, "plain", variants, {})
    rows = [
        {
            "variant": variant,
            "seed": seed,
            "step": step,
            "final": step == 3,
            "layer": layer,
            **{m: 0.1 * k + 0.2 * layer + seed for k, m in enumerate(MEASURES)},
        }
        for variant in variants
        for seed in (0, 1)
        for step in (1, 3)
        for layer in (0, 1)
    ]
    result = StudyResult(study, tuple(rows), 100, 100, 1.0)
    figure = whole(ll.plots.study_measures(result))
    assert list(figure.data[0].y) == pytest.approx([0.1, 1.1, 0.1, 1.1])
    assert figure.data[1].y[0] == pytest.approx(0.6), "the mean over seeds"
    assert "<b>" not in figure.layout.title.text
    assert "<b>" not in figure.layout.xaxis.ticktext[1]
    figure = whole(ll.plots.study_profiles(result))
    assert len(figure.data) == 8 and sum(bool(t.showlegend) for t in figure.data) == 2


@pytest.mark.parametrize("figure", [ll.plots.replacement_curves, ll.plots.bilinear_gain])
def test_a_list_where_names_are_needed_is_refused_in_a_sentence(figure):
    with pytest.raises(InvalidArgumentError, match=r"\{name: "):
        figure([1, 2])


def test_a_column_without_a_number_is_refused():
    model = ll.toy_model(n_layers=2, d_model=16, attn_only=False, norm="LN")
    tokens = torch.randint(model.cfg.d_vocab, (16, 24), generator=torch.Generator().manual_seed(0))
    own = {"lost": lambda moments: float("nan")}
    profile = ll.linearity_profile(model, tokens, sites=("ffn",), statistics=own)
    both = ll.compare({"a": profile, "b": profile})
    assert profile.plot(scores=["ffn_r2", "lost"]).data
    for draw in (profile.plot, both.plot, both.difference("a", "b").plot):
        for empty in (["block_r2"], ["lost"]):
            with pytest.raises(InvalidArgumentError, match=f"finite value.*{empty[0]} has none"):
                draw(scores=empty)
