"""Statistics in groups of layers: the same numbers, within the bytes that were allowed."""

import re
from functools import partial

import pandas as pd
import pytest
import torch
from bytes_held import most_bytes

import lens_linear as ll
from lens_linear.linearity.measure.profile_pass import layer_bytes

WIDTH = 96
TOKENS = torch.randint(64, (24, 32), generator=torch.Generator().manual_seed(0))


def gpt():
    return ll.toy_model(n_layers=5, d_model=WIDTH, n_heads=2, d_mlp=16, attn_only=False, norm="LN")


def one_layer(*, kept=True, own=False):
    return int(layer_bytes(WIDTH, 3, len(TOKENS) // 2, kept=kept, own=own))


@pytest.mark.parametrize("rows, held", [(4, 4), (29, 29), (500, 30)])  # more become tables of sums
def test_bytes_of_a_layer_by_hand(rows, held):
    table, firsts = 10 * 10, 2 * held * 10  # x and y of the first position
    reading = table + table + table  # xx, xy and the map
    count = partial(layer_bytes, 10, 2, rows)
    assert count(kept=True, own=False) == 8 * 2 * (2 * reading + firsts)
    assert count(kept=False, own=False) == 8 * 2 * (reading + firsts)
    # Statistics of one's own: of the rows scored, of those fitted, and without each of ten groups.
    assert count(kept=False, own={"a": 1}) == count(kept=True, own=False) + 8 * (2 + 10) * reading


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fit": "in-sample"},
        {"skip": 1},
        {"ridge": 1.0},
        {"statistics": {"rows": lambda m: m.n}},
    ],
    ids=["held-out", "in-sample", "skip", "ridge", "statistics"],
)
def test_groups_of_layers_give_the_numbers_of_one_pass(options, tmp_path):
    model, path = gpt(), tmp_path / "state"
    wanted = ll.linearity_profile(model, TOKENS, **options)
    few = 2 * one_layer(own="statistics" in options) + 1
    found = ll.linearity_profile(model, TOKENS, max_memory=few, checkpoint=path, **options)
    pd.testing.assert_frame_equal(found.to_dataframe(), wanted.to_dataframe(), rtol=1e-9)
    assert found.solvers == wanted.solvers and not list(tmp_path.iterdir())


def test_a_kill_between_groups_loses_no_group_that_is_done(tmp_path, monkeypatch):
    model, path, few = gpt(), tmp_path / "state", one_layer() + 1
    wanted = ll.linearity_profile(model, TOKENS).to_dataframe()
    seen = []
    model.add_hook("blocks.0.hook_in", lambda t, hook: seen.append(t))
    forward, calls = ll.linearity.measure.profile_pass.score_fits, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(ll.linearity.measure.profile_pass, "score_fits", killed)
    with pytest.raises(KeyboardInterrupt):
        ll.linearity_profile(model, TOKENS, max_memory=few, checkpoint=path)
    assert len(list(tmp_path.glob("state.*-of-5"))) == 3
    monkeypatch.undo()
    seen.clear()
    found = ll.linearity_profile(model, TOKENS, max_memory=few, checkpoint=path).to_dataframe()
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-9)
    assert 0 < len(seen) < 10  # 2 passes of 5 groups; two groups were done, and half of the third


def test_the_map_of_all_pairs_in_groups():
    model = gpt()
    for options in ({}, {"fit": "in-sample"}, {"skip": 1}):
        wanted = ll.layer_map(model, TOKENS, **options)
        each = 8 * WIDTH**2 * (4 * 6 + 2)
        found = ll.layer_map(model, TOKENS, max_memory=2 * each + 1, **options)
        torch.testing.assert_close(found.values, wanted.values, equal_nan=True)
        torch.testing.assert_close(found.without_first, wanted.without_first, equal_nan=True)
        assert (found.null_r2, found.n_fit) == (wanted.null_r2, wanted.n_fit)


def test_a_lens_in_groups():
    model = gpt()
    wanted = ll.fit_lens(model, TOKENS)
    found = ll.fit_lens(model, TOKENS, max_memory=2 * 8 * 12 * WIDTH**2 + 1)
    for name in ("weight", "bias", "raw_weight", "raw_bias", "r2"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name))


MAP = 8 * WIDTH**2
STREAM = 4 * WIDTH * TOKENS[:12].numel()  # of the half that is fitted on
REPLACED = {
    "replacement_curve": (ll.replacement_curve, {"max_replaced": 3}),
    "distilled": (ll.replacement_curve, {"max_replaced": 3, "strategy": "linear+distill"}),
    "fit_linearization": (ll.linearity.fit_linearization, {"layers": [0, 2, 3]}),
    "one after the other": (ll.linearity.fit_linearization, {"sequential": True}),
    "ffn_compression": (ll.linearity.ffn_compression, {"ranks": (None, 2)}),
}


@pytest.mark.parametrize("name", REPLACED)
def test_maps_in_groups(name):
    analysis, options = REPLACED[name]
    wanted = analysis(gpt(), TOKENS, **options)
    few = (2 * 15 + 12) * MAP if name == "ffn_compression" else (2 * 6 + 6 + 5) * MAP
    few += 3 * STREAM if name == "distilled" else 0
    found = analysis(gpt(), TOKENS, max_memory=few, **options)
    pd.testing.assert_frame_equal(found.to_dataframe(), wanted.to_dataframe(), rtol=1e-6)


@pytest.mark.parametrize("name", ["replacement_curve", "distilled", "ffn_compression"])
def test_maps_take_the_bytes_they_were_allowed(name):
    """Few texts, so that the forward pass is small beside the matrices; ill-conditioned rows stay rows."""
    analysis, options = REPLACED[name]
    tokens, least = TOKENS[:10], 17 * MAP
    if name == "ffn_compression":
        least, options = 27 * MAP, {"layers": [1, 3]}
    if name == "distilled":
        least, options = 17 * MAP + 3 * STREAM, {"strategy": "linear+distill", "max_replaced": 2}
    call = partial(analysis, gpt(), tokens, batch_size=1, max_memory=least, **options)
    assert 0.3 * least < most_bytes(call) < 1.15 * least


@pytest.mark.parametrize("order", [range(6, -1, -1), range(7)], ids=["down", "up"])
def test_maps_of_earlier_steps_are_let_go(order):
    """Downwards each step fits all maps but one anew: 21 in all, of which 7 are kept at a time."""
    model = ll.toy_model(n_layers=7, d_model=WIDTH, n_heads=2, d_mlp=16, attn_only=False, norm="LN")
    least = (6 + 6 + 7) * MAP + 3 * 4 * WIDTH * TOKENS[:5].numel()
    options = {"order": list(order), "batch_size": 1, "max_memory": least}
    call = partial(ll.replacement_curve, model, TOKENS[:10], "linear+distill", **options)
    assert 0.3 * least < most_bytes(call) < 1.15 * least


def test_half_of_what_is_free_is_taken_by_default(monkeypatch):
    model = gpt()
    wanted = ll.replacement_curve(model, TOKENS, strategy="linear", max_replaced=2)
    monkeypatch.setattr(
        "lens_linear.linalg.memory.free_bytes", lambda device: 2 * (2 * 6 + 6 + 5) * MAP
    )
    found = ll.replacement_curve(model, TOKENS, strategy="linear", max_replaced=2)
    pd.testing.assert_frame_equal(found.to_dataframe(), wanted.to_dataframe())
    monkeypatch.setattr("lens_linear.linalg.memory.free_bytes", lambda device: MAP)
    with pytest.raises(ll.errors.InsufficientMemoryError, match="half of the free memory"):
        ll.replacement_curve(model, TOKENS, strategy="linear", max_replaced=2)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "run again"])
def test_streams_of_the_original_are_kept_where_memory_holds_them(kept, monkeypatch):
    model = gpt()
    found = ll.linearity.replace.curve._Builder  # what keeps them
    seen, keep = [], found._original_streams
    monkeypatch.setattr(
        found,
        "_original_streams",
        lambda self, batches: seen.append(keep(self, batches)) or seen[-1],
    )
    most = 8 * STREAM + 17 * MAP - (0 if kept else 1)
    ll.replacement_curve(model, TOKENS, "linear+distill", max_replaced=2, max_memory=most)
    assert [len(streams_kept) for streams_kept in seen] == [int(kept)]


def test_the_curve_of_kept_streams_is_that_of_streams_run_again():
    model, options = gpt(), {"strategy": "linear+distill", "batch_size": 5, "order": [1, 4, 0]}
    wanted = ll.replacement_curve(model, TOKENS, **options)
    found = ll.replacement_curve(model, TOKENS, max_memory=17 * MAP + 3 * STREAM, **options)
    pd.testing.assert_frame_equal(found.to_dataframe(), wanted.to_dataframe(), rtol=1e-6)


ALL = [
    ll.linearity_profile, ll.layer_map, ll.fit_lens, ll.replacement_curve,
    ll.linearity.ffn_compression, ll.linearity.fit_linearization,
]  # fmt: skip


@pytest.mark.parametrize("analysis", ALL)
def test_too_little_memory_names_what_is_enough(analysis):
    with pytest.raises(ll.errors.InsufficientMemoryError, match="max_memory=") as refused:
        analysis(gpt(), TOKENS, max_memory=1000)
    enough = int(re.search(r"max_memory=(\d+)", str(refused.value))[1])
    analysis(gpt(), TOKENS, max_memory=enough)


@pytest.mark.parametrize("options", [{}, {"ridge": 1.0}], ids=["steps", "apart"])
def test_a_group_takes_the_bytes_it_was_allowed(options):
    """What seven layers at once take more than one by one: the rest is the pass itself."""
    model = ll.toy_model(n_layers=7, d_model=WIDTH, n_heads=2, d_mlp=16, attn_only=False)
    profile, each = partial(ll.linearity_profile, model, TOKENS, **options), one_layer(kept=False)
    base, more = (most_bytes(partial(profile, max_memory=n * each + 1)) for n in (1, 7))
    assert 0.5 * 6 * each < more - base <= 6 * each
