import dataclasses
import html
import re

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

import lens_linear as ll
from lens_linear import plots
from lens_linear.circuits.attention.patterns import attention_pattern
from lens_linear.circuits.heads.circuit_window import circuit_map
from lens_linear.circuits.induction.ablation import ablation_scores
from lens_linear.circuits.induction.in_context import in_context_loss
from lens_linear.circuits.induction.mechanism import verify_induction
from lens_linear.circuits.paths.trigram_bugs import skip_trigram_bugs
from lens_linear.constructions.induction_model import build_induction
from lens_linear.errors import FigureTooLargeError, InvalidArgumentError
from lens_linear.models.open.toy import toy_model

HOSTILE = ["</script>", "<b>x</b>", "</s>", "\n", "", " the", " the", "&amp;", "%{x}", "\u202e"]


def safe(figure):
    """The page runs no token: as many closing as opening script tags, and only plotly's own."""
    assert isinstance(figure, go.Figure)
    page = figure.to_html(include_plotlyjs=False, full_html=False)
    assert page.count("</script>") == page.count("<script")
    assert "<b>x</b>" not in page and "\\u003cb\\u003ex\\u003c/b" not in page
    assert figure.layout.title.text and figure.layout.template.layout.colorway
    return figure


@pytest.fixture(scope="module")
def labels():
    return [HOSTILE[i] if i < len(HOSTILE) else f"t{i}" for i in range(32)]


@pytest.fixture(scope="module")
def view(labels):
    return ll.AttentionOnly(toy_model(d_vocab=32, n_ctx=32, norm="LN"), labels=labels)


@pytest.fixture(scope="module")
def built():
    return build_induction(16, 32)


def test_composition_map_has_a_panel_a_kind(view):
    found = ll.composition_scores(view.model, n_random=20)
    for value in ("z", "score", "excess"):
        figure = safe(plots.composition_map(found, value=value))
        assert len(figure.data) == 3
        z = np.asarray(figure.data[1].z, dtype=float)
        assert z.shape == (4, 4)
        own = {"z": found.z, "score": found.scores, "excess": found.scores - found.baseline_mean}[
            value
        ]
        np.testing.assert_allclose(z, own[1, 0, :, 1], rtol=1e-5)
    assert "K: L0H2 → L1H1" in figure.data[1].text[2][1]
    with pytest.raises(InvalidArgumentError, match="value must be one of"):
        plots.composition_map(found, value="zz")


def test_composition_of_three_layers_leaves_impossible_pairs_blank():
    found = ll.composition_scores(toy_model(n_layers=3, n_heads=2), n_random=5)
    z = plots.composition_map(found).data[0].z
    layers = plots.composition_map(found, pairs=False)
    best = found.z[
        1, 0, :, 2
    ].max()  # K-composition of the strongest pair of heads of layers 0 and 2
    assert layers.data[1].z[0, 1] == pytest.approx(float(best)) and np.isnan(layers.data[1].z[1, 0])
    assert f"z {float(best):.1f}" in layers.data[1].text[0, 1]
    with pytest.raises(InvalidArgumentError, match="at least 2 layers"):
        plots.composition_map(ll.composition_scores(toy_model(n_layers=1), n_random=2))
    assert np.isnan(z).tolist() == [[False] * 4] * 2 + [[True, True, False, False]] * 2


def test_head_scores_show_values_and_verdicts(built):
    found = ll.induction_scores(built.model, rows_per_period=2)
    kinds = {
        trace.name: trace
        for trace in safe(plots.head_scores(found)).data
        if trace.type == "heatmap"
    }
    assert kinds["induction"].z[1, 1] == pytest.approx(found["prefix_matching"][3])
    assert kinds["previous-token"].z[0, 0] == pytest.approx(found["prev_token"][0])
    assert np.isfinite(kinds["none"].z).tolist() == [[False, True], [True, False]]
    figure = safe(plots.head_scores(found, column="prefix_matching"))
    grid = np.asarray(figure.data[0].z, dtype=float)
    np.testing.assert_allclose(grid.flatten(), found["prefix_matching"], rtol=1e-5)
    assert [(a.x, a.y, a.text) for a in figure.layout.annotations] == [
        (0, 0, "prev"),
        (1, 1, "ind"),
    ]
    difference = plots.head_scores(found, column="prefix_matching", subtract_control=True)
    np.testing.assert_allclose(
        np.asarray(difference.data[0].z, dtype=float).flatten(),
        found["prefix_matching"] - found["positional_control"],
        rtol=1e-4,
        atol=1e-6,
    )
    with pytest.raises(InvalidArgumentError, match="column must be one of"):
        plots.head_scores(found, column="index")


def test_circuit_graph_draws_the_circuit(built):
    composition = ll.composition_scores(built.model, n_random=50)
    heads = ll.induction_scores(built.model, rows_per_period=2)
    figure = safe(plots.circuit_graph(composition, heads))
    edges = [trace for trace in figure.data if trace.mode == "lines"]
    assert [edge.hovertext.split("<br>")[0] for edge in edges] == ["K: L0H0 → L1H1"]
    nodes = {t: trace.name for trace in figure.data if trace.mode != "lines" for t in trace.text}
    assert nodes["L0H0"] == "previous-token" and nodes["L1H1"] == "induction"
    empty = plots.circuit_graph(composition, min_z=1e9)
    assert not [trace for trace in empty.data if trace.mode == "lines"]
    # z is (score - mean) / sd: with the score as its mean the strongest edge has a z of 0, then below 0
    for shift, widths in [(0.0, {1.0}), (composition.baseline_sd, {1.0, 5.0})]:
        level = dataclasses.replace(composition, baseline_mean=composition.scores + shift)
        figure = plots.circuit_graph(level, min_z=-2)
        drawn = [trace.line.width for trace in figure.data if trace.mode == "lines"]
        assert set(np.round(drawn, 9)) == widths


def test_maps_of_a_circuit(view):
    found = circuit_map(view.head(0, 1), "qk", k=20, blocks=8)
    window = safe(plots.circuit_window(found))
    np.testing.assert_allclose(np.asarray(window.data[0].z), found.window, rtol=1e-5)
    assert len(window.layout.yaxis.tickvals) == 20  # equal labels stay separate rows
    overview = safe(plots.circuit_overview(found))
    assert np.asarray(overview.data[0].z).shape == (8, 8)
    with pytest.raises(FigureTooLargeError, match="max_cells"):
        plots.circuit_window(found, max_cells=399)


def test_tables_of_tokens(view):
    bigrams = safe(plots.bigram_table(view.bigrams(), list(range(10)), k=3))
    first = bigrams.data[0].cells["values"][0]
    assert first[0] == "&lt;/script&gt;" and first[4] == "∅" and len(first) == 10
    trigrams = view.skip_trigrams(0, 0, 30)
    table = safe(plots.skip_trigram_table(trigrams, k=12))
    assert len(table.data[0].cells["values"][0]) == 12
    assert table.data[0].cells["values"][3][0] == f"{trigrams['effect'][0]:.2f}"
    wanted = torch.tensor([[0, 1, 2], [0, 3, 4]])
    tokens = torch.randint(0, 32, (4, 20), generator=torch.Generator().manual_seed(0))
    bugs = safe(plots.skip_trigram_bugs(skip_trigram_bugs(view.heads()[:4], wanted, tokens=tokens)))
    assert "in the corpus" in bugs.data[0].header["values"]
    probabilities = view.bigrams().log_probs().exp().roll(1, 0)
    comparison = view.bigrams().compare(probabilities / probabilities.sum(1, keepdim=True))
    bars = safe(plots.bigram_comparison(comparison, k=10))
    assert len(bars.data[0].x) == 10


def test_pairs_of_tokens_and_the_share_that_copies(view):
    head = view.head(0, 1)
    pairs = head.top_pairs("qk", 12)
    table = safe(plots.top_pairs(pairs, k=7)).data[0]
    assert list(table.header["values"]) == ["query", "key", "entry"]
    shown = [f"{v:.3f}" for v in head.qk.AB.flatten().topk(7).values.tolist()]
    assert list(table.cells["values"][2]) == shown
    found = {"L0H1": head.copying_accuracy(), "<b>x</b>": head.matching_accuracy(ks=(5, 9))}
    bars = safe(plots.diagonal_accuracy(found)).data
    assert [bar.name for bar in bars] == ["top 1", "top 5", "top 9"]
    assert bars[0].x == (found["L0H1"].top1, None)
    assert bars[1].x == (found["L0H1"].top5, found["<b>x</b>"].top5)


def test_positional_attention(view):
    found = view.head(1, 2).positional_qk(10)
    figure = safe(plots.positional_qk(found))
    np.testing.assert_allclose(np.tril(figure.data[0].z), found.pattern, rtol=1e-5)
    assert np.isnan(figure.data[0].z[0, 1])  # nothing above the diagonal
    assert "L1H2" in figure.layout.title.text
    with pytest.raises(FigureTooLargeError, match="max_cells"):
        plots.positional_qk(found, max_cells=99)


def test_singular_directions_with_their_warning(built, view):
    equal = ll.circuits.head_circuit(built.model, 1, 1).svd(4)
    figure = safe(plots.svd_directions(equal))
    assert "only the space they span" in figure.layout.title.subtitle.text
    assert figure.data[1].cells["values"][0][0] == "0 ≈"
    assert list(figure.data[1].header["values"])[2:] == ["source tokens", "output tokens"]
    query = plots.svd_directions(view.head(0, 0).svd(1, circuit="qk"))
    assert list(query.data[1].header["values"])[2:] == ["query tokens", "key tokens"]
    assert (
        "no near-equal" in plots.svd_directions(view.head(0, 0).svd(1)).layout.title.subtitle.text
    )


def test_paths(view):
    tokens = torch.arange(10)[None]
    paths = view.paths(tokens)
    importance = safe(plots.path_importance(paths.importance()))
    np.testing.assert_allclose(importance.data[0].x, paths.importance().effects)
    assert plots.path_importance(paths).data[0].x == importance.data[0].x
    table = paths.token_table(3, 1)
    bars = safe(plots.path_logits(table, k=5))
    assert len(bars.data[0].x) == 6 and "the other" in bars.layout.yaxis.ticktext[-1]
    assert sum(bars.data[0].x) == pytest.approx(table["relative"].sum())
    (low, high), ends = bars.layout.xaxis.range, (min(bars.data[0].x), max(bars.data[0].x))
    assert low <= ends[0] - 0.09 * (high - low) or ends[0] >= 0  # the numbers beside the bars
    assert high >= ends[1] + 0.09 * (high - low) or ends[1] <= 0
    assert "&lt;b&gt;" in bars.layout.title.text
    ablations = safe(plots.path_ablations(paths.ablations(), k=7))
    assert len(ablations.data[0].x) == 7


def test_score_attribution(view):
    found = ll.qk_attribution(view.model, torch.arange(8), 1, 2, labels=view.labels)
    one = safe(plots.qk_attribution(found, -1, 1))
    np.testing.assert_allclose(np.asarray(one.data[0].z), found.map(7, 1), rtol=1e-5, atol=1e-7)
    assert "query 7" in one.layout.title.subtitle.text
    assert "&lt;b&gt;x&lt;/b&gt;" in one.layout.title.subtitle.text
    contrast = safe(plots.qk_attribution(found, 7, 1, contrast=True))
    np.testing.assert_allclose(
        np.asarray(contrast.data[0].z), found.contrast(7, 1), rtol=1e-4, atol=1e-6
    )
    few = np.asarray(
        plots.qk_attribution(found, 7, 1, k=3).data[0].z
    )  # the rest is summed, not lost
    np.testing.assert_allclose(few.sum(), found.total[0, 7, 1], rtol=1e-4)
    assert few.shape == (4, 4)
    with pytest.raises(InvalidArgumentError, match="query and key must be given together"):
        plots.qk_attribution(found, 7)
    mean = safe(plots.qk_attribution(found))
    np.testing.assert_allclose(np.asarray(mean.data[0].z), found.mean_map(), rtol=1e-4, atol=1e-6)


def test_mechanism_losses_and_ablations(built):
    found = verify_induction(built.model, rows_per_period=1)
    figure = safe(plots.mechanism_table(found))
    np.testing.assert_allclose(figure.data[0].x, found.to_dataframe()["removed"])
    curve = in_context_loss(built.model, rows_per_period=1)
    line = safe(plots.in_context_loss(curve)).data[1]
    np.testing.assert_allclose(line.y, curve["loss"])
    text = in_context_loss(built.model, torch.randint(0, 16, (3, 20)))
    assert "token index" in safe(plots.in_context_loss(text)).layout.xaxis.title.text
    lost = ablation_scores(built.model, rows_per_period=1)
    grid = np.asarray(safe(plots.ablation_map(lost)).data[0].z, dtype=float)
    np.testing.assert_allclose(grid, lost.lost, rtol=1e-5, atol=1e-6)


def test_attention_in_a_notebook_runs_no_token_and_asks_no_network(view):
    pattern = attention_pattern(view.model, torch.arange(10), 1, labels=view.labels)
    shown = plots.attention_heads(pattern, height=333)
    frame = shown._repr_html_()
    assert 'height="333"' in frame and frame.startswith("<iframe") and frame.count("<iframe") == 1
    page = html.unescape(re.search(r'srcdoc="(.*)"></iframe>', frame, re.S).group(1))
    body = page.split("var CircuitsVis")[-1]
    assert (
        "<b>x</b>" not in body and body.count("</script>") == 3
    )  # the bundle's end, the view's end, and of what fits the frame
    assert "AttentionHeads" in body and "L1H3" in body
    assert "https://unpkg" not in page.split("<script>")[0]
    figure = safe(plots.attention_pattern(pattern, 2, first_token=True))
    np.testing.assert_allclose(np.tril(figure.data[0].z), pattern.pattern[2], rtol=1e-5)
    masked = plots.attention_pattern(pattern, 2, first_token=False)
    share = float(pattern.pattern[2, 1:, 0].mean())
    assert (
        np.isnan(masked.data[0].z[:, 0]).all()
        and f"{share:.0%}" in masked.layout.title.subtitle.text
    )
    assert masked.data[0].zmax == pytest.approx(float(pattern.pattern[2, :, 1:].max()))
    assert len(figure.layout.xaxis.tickvals) == 10  # equal tokens keep their columns
    with pytest.raises(InvalidArgumentError, match="head must be at most 3"):
        plots.attention_pattern(pattern, 4)
    assert plots.attention_pattern(pattern, "L1H2").data[0].z.shape == figure.data[0].z.shape
    assert plots.attention_pattern(pattern, "L1H2").layout.title.text == "Attention of L1H2"
    with pytest.raises(InvalidArgumentError, match=r"of layer 1.*got 'L0H2'.*tokens, 0\)"):
        plots.attention_pattern(pattern, "L0H2")
