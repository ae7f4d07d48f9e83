"""What the pages say: each number in a sentence is the number that was measured."""

import html
import re

import pytest
import torch

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError
from lens_linear.models.capture import run
from lens_linear.models.checked import checked
from lens_linear.models.tokenizer import token_strings
from lens_linear.plots.circuits import composition_map, head_scores
from lens_linear.reports import tour_page
from lens_linear.reports.build import report, report_steps
from lens_linear.reports.circuit_sections import (
    induction_section,
    path_section,
    skip_trigram_section,
)
from lens_linear.reports.depth_sections import ffn_section
from lens_linear.reports.linearity_sections import linearity_section
from lens_linear.reports.measured import Measured
from lens_linear.reports.page import Attention, Section
from lens_linear.token_labels import token_label


def measured(model, tokens, **known):
    """What a page measures of a model; some of it known."""
    found = Measured(checked(model), ll.Task(tokens))
    vars(found).update(known)
    return found


def test_the_caption_of_the_pattern_says_how_much_lies_on_the_stripe(attn_2l):
    section = induction_section(measured(attn_2l, ll.evaluation_tokens(attn_2l)))
    view = next(block for block in section.blocks if isinstance(block, Attention))
    assert view.head_names[0] in section.prose and "is an induction head" in view.caption
    said = float(re.search(r"second half (0\.\d\d)", view.caption).group(1))
    pattern, period = view.pattern[0], 10
    stripe = [pattern[q][q - period + 1] for q in range(1 + period, 1 + 2 * period)]
    assert said == pytest.approx(sum(stripe) / period, abs=0.006) and said > 0.5
    tokens = [str(token) for token in view.tokens[1:]]
    assert tokens[:period] == tokens[period:] and all(token.startswith("␣") for token in tokens)
    # The picture is the model's own pattern on the tokens that are shown.
    labels = [token_label(text) for text in token_strings(attn_2l, range(1024))]
    ids = torch.tensor([[labels.index(token) for token in view.tokens]])
    layer, head = re.fullmatch(r"L(\d)H(\d)", view.head_names[0]).groups()
    spot = (int(layer), "pattern")
    again = run(attn_2l, ids, record=[spot], logits=False)[spot][0, int(head)]
    torch.testing.assert_close(again, torch.as_tensor(pattern), atol=1e-5, rtol=0)


def test_a_model_without_induction_heads_is_not_said_to_have_one():
    toy = ll.toy_model(n_layers=1, seed=0)
    section = induction_section(measured(toy, torch.arange(8)[None]))
    assert "no head of toy passes" in section.prose
    assert not any(isinstance(block, Attention) for block in section.blocks)


def test_paths_add_up_from_a_uniform_guess_to_the_models_loss(attn_2l):
    tokens = ll.evaluation_tokens(attn_2l, n_sequences=4)
    prose = path_section(measured(attn_2l, tokens)).prose
    start = float(re.search(r"loss of (\d\.\d\d) nats", prose).group(1))
    gains = [float(gain) for gain in re.findall(r"order \d by (-?\d\.\d+)", prose)]
    with torch.no_grad():
        loss = float(attn_2l(tokens, return_type="loss"))
    assert len(gains) == 3 and start - sum(gains) == pytest.approx(loss, abs=0.01)
    assert f"What is left is {loss:.2f}" in prose


def test_skip_trigrams_count_their_copies():
    section = skip_trigram_section(measured(ll.load("attn-1l"), torch.arange(8)[None]))
    frame = section.blocks[0].frame
    words = {0: "none", 7: "seven"}
    copies = int((frame["source"] == frame["out"]).sum())
    same = int((frame["source"] == frame["destination"]).sum())
    assert f"raised: {words[copies]} of these rows" in section.prose
    assert f"one token in {words[same]}" in section.prose


def test_linearity_does_not_call_a_block_identity_that_overwrites_the_stream():
    model = ll.load("gpt-nano")
    tokens = ll.evaluation_tokens(model, n_sequences=12)
    prose = linearity_section(measured(model, tokens)).prose
    assert "identity" not in prose and "affine map explains" in prose


def with_outlier():
    """A model whose first position carries most of the variance of every layer."""
    model = ll.toy_model(n_layers=3, d_model=16, attn_only=False, norm="LN")
    with torch.no_grad():
        model.pos_embed.weight[0] += 2000 * torch.randn(
            16, generator=torch.Generator().manual_seed(3)
        )
    return model, torch.randint(64, (90, 16), generator=torch.Generator().manual_seed(4))


def test_every_score_that_the_first_position_moves_has_both_readings_on_the_page():
    found = measured(*with_outlier())
    profile, section = found.linearity, linearity_section(found)
    frame, later = section.blocks[1].frame, profile.to_dataframe()
    assert profile.first_position_layers("attn") and profile.first_position_layers("block")
    for score, column, words in (
        ("block", "block_r2", "blocks score"),
        ("block_no_residual", "block_r2_no_residual", "what blocks add"),
        ("ffn", "ffn_r2", "FFNs"),
        ("attn", "attn_r2", "attention"),
    ):
        said = bool(profile.first_position_layers(score))
        assert (f"{column}_without_first" in frame) == said
        values = later[f"{column}_without_first"]
        span = f"{words} {values.min():.2f} to {values.max():.2f}"
        assert (span in section.prose) == said
    low, high = (f(later.block_r2_without_first) for f in (min, max))
    assert f"Without the first position blocks reach {low:.2f} to {high:.2f}" in section.finding
    nano = ll.load("gpt-nano")
    plain = measured(nano, ll.evaluation_tokens(nano)[:24])
    if not plain.linearity.first_position_layers():
        assert "first position" not in linearity_section(plain).finding


def test_the_page_says_how_many_ffns_were_tried_beside_their_null():
    model, ids = with_outlier()
    for layers, said in (([0, 2], "Of 3 layers 2 were tried."), ([0, 1, 2], None)):
        table = ll.linearity.ffn_compression(model, ids, layers=layers)
        section = ffn_section(measured(model, ids, compression=table))
        assert "null_r2" in section.blocks[1].frame
        assert (said or "were tried") in section.prose if said else "tried" not in section.prose
        assert bool(table.first_position) == ("ffn_r2_without_first" in section.blocks[1].frame)
        assert bool(table.first_position) == ("The first position holds" in section.prose)


def test_a_page_about_a_local_folder_shows_its_name_and_not_its_path(stories_model, tmp_path):
    page = report(stories_model, tmp_path / "page.html", n_sequences=20).read_text("utf-8")
    assert "stories260K: a report" in page and "models/stories260K" not in page


@pytest.mark.parametrize(
    "model, titles",
    [
        (lambda: ll.load("attn-0l"), ["loss", "bigrams"]),
        (
            lambda: ll.load("attn-1l"),
            ["loss", "skip-trigrams", "induction heads", "paths", "linearity", "depth dynamics"],
        ),
        (
            lambda: ll.load("gpt-nano"),
            [
                "loss",
                "induction heads",
                "composition",
                "linearity",
                "ffn replacement",
                "depth dynamics",
            ],
        ),
    ],
)
def test_a_report_says_its_steps_and_how_many_they_are(model, titles, tmp_path):
    model, said = model(), []
    page = report(model, tmp_path / "page.html", n_sequences=12, on_step=said.append)
    assert ": failed" not in page.read_text("utf-8")
    assert said == [*titles, "explorer"] and report_steps(model) == len(said)
    explorer = tmp_path / "page-explorer.html"  # or why there is none: a toy has no tokenizer
    assert explorer.is_file() == (model.tokenizer is not None)
    assert ("page-explorer.html" in page.read_text("utf-8")) == explorer.is_file()
    assert ("no explorer beside this page" in page.read_text("utf-8")) != explorer.is_file()


@pytest.fixture
def dying(monkeypatch):
    """Every part of a page fails, each with its own name; nothing is computed."""

    def dies(name):
        def part(*_, **__):
            raise ZeroDivisionError(f"{name} by <nothing>")

        return part

    def kill(module, *names):
        for name in names:
            monkeypatch.setattr(f"lens_linear.reports.{module}.{name}", dies(name))

    return kill


_PARTS = ("skip_trigram_section", "induction_section", "composition_section", "path_section")
_MORE = ("linearity_section", "ffn_section", "dynamics_section", "bigram_section")


@pytest.mark.parametrize("name", ["attn-0l", "attn-1l", "gpt-nano"])
def test_parts_that_die_are_said_in_their_places(name, dying, tmp_path):
    dying("build", "overview", *_PARTS, *_MORE)
    dying("explorer_link", "explore")
    model, said = ll.load(name), []
    with pytest.warns(UserWarning, match="failed"):
        page = report(model, tmp_path / "page.html", n_sequences=12, on_step=said.append)
    text = page.read_text("utf-8")
    for title in ("The model", *(step.capitalize() for step in said[1:-1])):
        title = title.replace("Ffn", "FFN")
        assert f"<h2>{title}: failed</h2><p>ZeroDivisionError: " in text.replace("\n", "")
    assert text.count(" by &lt;nothing&gt;") == len(said)  # the explorer's reason is the last
    assert "How to go on" in text and "it failed: ZeroDivisionError: explore" in text


def test_a_figure_that_cannot_be_drawn_is_said_in_its_place(dying, monkeypatch, tmp_path):
    dying("build", *_PARTS, "ffn_section", "dynamics_section")
    dying("explorer_link", "explore")
    alone = Section("Linear?", "", [Attention([[[float("nan")]]], ["a"], ["L0H0"], "")])
    monkeypatch.setattr("lens_linear.reports.build.linearity_section", lambda *_, **__: alone)
    with pytest.warns(UserWarning, match="failed"):
        page = report(ll.load("gpt-nano"), tmp_path / "page.html", n_sequences=12)
    text = page.read_text("utf-8")
    assert "Linearity: not measured" in text and "pattern holds NaN" in text
    assert "its loss is" in text


def test_the_tour_outlives_its_parts(dying, tmp_path):
    dying("tour_page", *_PARTS, "bigram_section", "linearity_section")
    dying("explorer_link", "explore")
    said = []
    with pytest.warns(UserWarning, match="failed"):
        made = tour_page.tour(tmp_path / "tour.html", on_step=said.append)
    text = made.path.read_text("utf-8")
    assert len(said) == tour_page.STEPS and text.count(": failed</h2>") == 6
    assert "How to go on" in text and made.summary().count("ZeroDivisionError") == 6


def test_tokens_of_ones_own_are_what_is_measured(dying, tmp_path):
    dying("build", *_PARTS, *_MORE)
    dying("explorer_link", "explore")
    model = ll.load("gpt-nano")
    tokens = ll.evaluation_tokens(model, n_sequences=12)
    with pytest.warns(UserWarning, match="failed"):
        page = report(model, tmp_path / "page.html", tokens).read_text("utf-8")
    with torch.no_grad():
        loss = float(model(tokens, return_type="loss"))
    assert f"its loss is {loss:.3f} nats" in page
    with pytest.raises(InvalidArgumentError, match="100% of the text is token 65"):
        report(model, tmp_path / "page.html", "a" * 40_000)


@pytest.mark.parametrize("name", ["gpt-nano", "attn-1l"])
def test_the_loss_of_a_large_model_is_that_of_the_rows_that_test_its_maps(
    name, dying, monkeypatch, tmp_path
):
    dying("build", *_PARTS, *_MORE)
    dying("explorer_link", "explore")
    monkeypatch.setattr("lens_linear.reports.build.LARGE", 1)
    model = ll.load(name)
    with pytest.warns(UserWarning, match="failed"):
        page = report(model, tmp_path / "page.html", seed=3).read_text("utf-8")
    rows = ll.evaluation_tokens(model)
    rows = rows[: 16 * model.cfg.d_model // rows.shape[1]]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(3))
    if name == "gpt-nano":  # the second of two seeded halves
        rows = rows[order[(len(rows) + 1) // 2 :]]
    with torch.no_grad():
        loss = float(model(rows, return_type="loss"))
    assert f"({rows.numel():,} tokens in {len(rows)} rows) its loss is {loss:.3f} nats" in page


def test_maps_of_many_heads_can_be_read():
    model = ll.toy_model(n_layers=5, n_heads=8, seed=0)
    figure = composition_map(ll.composition_scores(model, n_random=5))
    assert list(figure.layout.xaxis.ticktext) == ["L1", "L2", "L3", "L4"]
    assert figure.data[0].z.shape == (4, 4)  # layer by layer; pair by pair on demand
    few = composition_map(ll.composition_scores(ll.toy_model(seed=0), n_random=5))
    assert list(few.layout.xaxis.ticktext) == ["L1H0", "L1H1", "L1H2", "L1H3"]
    heads = head_scores(ll.induction_scores(model, rows_per_period=2))
    assert heads.data[0].zmin == 0 and len(heads.layout.yaxis.ticktext) == 5


@pytest.mark.parametrize("name", ["gpt-nano", "attn-1l", "attn-2l"])
def test_the_code_that_a_page_ends_with_runs_for_models_of_every_kind(name):
    from lens_linear.reports import build

    (_, code), _ = build.GO_ON
    code = code.replace("ll.load(NAME)", f"ll.load({name!r})").replace(
        "(model)\n", "(model)[:12]\n", 1
    )
    code = code.replace(
        "ffn_compression(model, tokens)", "ffn_compression(model, tokens, layers=[0])"
    )
    exec(code.replace("40, 40, 40", "40, 3, 3"), {})


@pytest.mark.parametrize("mlps", [False, True])
def test_the_code_of_a_page_about_a_task_runs_without_text(mlps, tmp_path):
    model = ll.toy_model(n_layers=2, d_vocab=7, n_ctx=9, attn_only=not mlps, d_model=8, n_heads=2)
    ll.save_model(model, tmp_path / "small")
    rows = torch.randint(7, (60, 8), generator=torch.Generator().manual_seed(1))
    task = ll.Task(rows, labels=rows.sum(1) % 3, positions=-1)
    ll.report(model, tmp_path / "page.html", task)
    page = html.unescape((tmp_path / "page.html").read_text(encoding="utf-8"))
    code = next(
        part for part in re.findall("<pre[^>]*>(.*?)</pre>", page, re.S) if "ll.load(" in part
    )
    code = re.sub("<[^>]+>", "", code)
    assert "evaluation_tokens" not in code and "mood" not in code and "ll.linearity_profile" in code
    code = code.replace("ll.load(NAME)", f"ll.load({str(tmp_path / 'small')!r})")
    exec(code, {"TASK": task})


def test_the_table_of_heads_is_sorted_by_a_column_that_it_shows(monkeypatch):
    from lens_linear.reports import circuit_sections as sections

    frame = ll.induction_scores(ll.load("attn-2l"), rows_per_period=4).ranked()[
        sections._HEAD_COLUMNS
    ]
    named = frame["verdict"] != "none"
    assert named.is_monotonic_decreasing and named.any()
    assert frame["excess"][named].is_monotonic_decreasing


def test_a_large_model_is_measured_on_as_many_rows_as_its_maps_need(monkeypatch):
    from lens_linear.reports import build

    model = checked(ll.load("gpt-nano"))
    every = ll.evaluation_tokens(model)
    needed = -(-16 * model.cfg.d_model // 128)
    assert len(build._asked(model, None, None)) == len(every) > needed
    monkeypatch.setattr(build, "LARGE", 0)
    assert len(build._asked(model, None, None)) == needed
    assert len(build._asked(model, None, needed + 1)) == needed + 1
    assert torch.equal(build._asked(model, ll.text.default_text(), None).tokens, every)
