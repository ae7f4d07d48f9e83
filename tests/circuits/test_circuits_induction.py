import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from circuit_zoo import HF_KINDS, hugging_face, native
from transformers import AutoModelForCausalLM

import lens_linear as ll
from lens_linear import circuits
from lens_linear.circuits.induction.repeated_rows import (
    AttentionStats,
    RepeatedRows,
    draw_repeated,
    measure,
)
from lens_linear.circuits.induction.scores import InductionScores
from lens_linear.circuits.induction.verdicts import Thresholds
from lens_linear.constructions.induction_model import build_induction
from lens_linear.errors import (
    InvalidArgumentError,
    LensLinearWarning,
    NonFiniteError,
    UnsupportedModelError,
)
from lens_linear.models.capture import run
from lens_linear.models.checked import checked
from lens_linear.models.native import ModelSpec, bridge_from_module, native_module
from lens_linear.models.open.toy import toy_model
from lens_linear.training.loop import next_token_loss, train
from lens_linear.training.recipes import Phase, Recipe


def verdicts(model, **arguments):
    return [v for row in ll.induction_scores(model, **arguments).verdicts for v in row]


@functools.cache
def fixed_period_model():
    """One layer trained on repeats of period 16 only: it can learn an offset and nothing else."""
    spec = ModelSpec(1, 64, 4, 64, n_ctx=64, attn_only=True, norm="none")
    phase = Phase(
        steps=420, rows=64, length=33, learning_rate=3e-3, final=0.1, repeats=1.0, periods=(16, 16)
    )
    recipe = Recipe("fixed", spec, (phase,), weight_decay=0.0, precision="float32")
    trained = train(recipe, torch.zeros(100).long(), progress=False)
    return bridge_from_module(trained.module, spec)


def repeat_loss(model, period):
    block = torch.randint(1, 64, (64, period), generator=torch.Generator().manual_seed(9))
    rows = torch.cat([torch.zeros(64, 1).long(), block, block], dim=1)
    with torch.no_grad():
        return float(next_token_loss(model(rows)[:, period + 1 :], rows[:, period + 1 :]))


def test_a_fixed_period_model_is_called_positional_and_not_induction():
    model = fixed_period_model()
    assert repeat_loss(model, 16) < 1.5 < np.log(63) < repeat_loss(model, 11)
    for arguments in ({}, {"bos": 0}, {"periods": [16, 11]}, {"periods": [9, 13, 20]}, {"seed": 5}):
        found = ll.induction_scores(model, **arguments)
        assert set(found["verdict"]) == {"positional"}
        assert set(found["offset"]) == {15}
        assert found["offset_mass"].min() > 0.5
    # The usual score, at its own period, would call it induction.
    table = ll.induction_scores(model, periods=[16, 17]).period_table(0, 0).set_index("period")
    assert table.loc[16, "prefix_matching"] > 0.5
    assert table.loc[16, "positional_control"] > 0.5
    assert table.loc[17, "prefix_matching"] < 0.1


def test_the_bundled_two_layer_model_has_induction_heads(attn_2l):
    for seed in range(3):
        found = ll.induction_scores(attn_2l, seed=seed)
        assert found.heads("induction")[0] in ((1, 1), (1, 3))
        assert found.heads("previous-token") == [(0, 0)]
    best = found.to_dataframe().set_index("head").loc["L1H3"]
    assert best["prefix_matching"] > 0.7 and best["positional_control"] < 0.1
    assert best["copying"] > 0.9 and best["target_logit"] > 1
    assert "induction" in repr(found)


def test_every_number_of_the_hand_built_model():
    built = build_induction()
    found = ll.induction_scores(built.model, rows_per_period=6)
    table = found.to_dataframe().set_index("head")
    assert table["verdict"].tolist() == ["previous-token", "none", "none", "induction"]
    rows = draw_repeated(checked(built.model), periods=None, rows_per_period=6, bos=None, seed=0)
    first = built.previous_token_pattern(rows.tokens.shape[1])
    assert table.loc["L0H0", "prev_token"] == pytest.approx(
        float(first.diagonal(-1).mean()), abs=1e-5
    )
    second = built.induction_pattern(rows.tokens)
    prefix = {}
    for row, period in enumerate(rows.periods.tolist()):
        if period:
            own = [float(second[row, t, t - period + 1]) for t in range(period, 2 * period)]
            prefix.setdefault(period, []).append(np.mean(own))
    expected = np.mean([np.mean(v) for _, v in sorted(prefix.items())])
    assert table.loc["L1H1", "prefix_matching"] == pytest.approx(expected, abs=1e-5)
    assert table.loc["L1H1", "copying"] == pytest.approx(1.0)
    assert table.loc["L0H0", "copying"] == 0.0
    # Idle heads attend evenly: prefix and control are the same, and equal the mean of 1 / (t + 1).
    assert table.loc["L1H0", "prefix_matching"] == pytest.approx(
        table.loc["L1H0", "positional_control"]
    )


def test_statistics_are_those_of_a_slow_loop():
    model = native(d_vocab=40, n_ctx=20)
    rows = draw_repeated(checked(model), periods=[4, 6, 9], rows_per_period=3, bos=7, seed=2)
    assert rows.start == 1 and bool((rows.tokens[:, 0] == 7).all())
    assert not bool((rows.tokens[:, 1:] == 7).any())
    stats = measure(checked(model), rows, batch_size=4)
    out = run(model, rows.tokens, record=[(0, "pattern"), (1, "pattern")])
    pattern = torch.stack([out[(layer, "pattern")] for layer in range(2)], 1).double()
    body = pattern[..., 1:, 1:]  # [row, layer, head, query, key], counted after the first token
    tokens = rows.tokens[:, 1:]
    for i, p in enumerate((4, 6, 9)):
        for name, offset in (("prefix", p - 1), ("duplicate", p)):
            own, control = [], []
            for row in range(len(tokens)):
                queries = range(p, 2 * p)
                mass = torch.stack([body[row, :, :, t, t - offset] for t in queries]).mean(0)
                period = int(rows.periods[row])
                if period == p:
                    own.append(mass)
                    for t in queries:  # what the definition says the key is
                        key = tokens[row, t - offset]
                        assert key == (
                            tokens[row, t - p] if name == "duplicate" else tokens[row, t - p + 1]
                        )
                    continue
                # Only rows where that key is neither the same token nor the one after it, by the period.
                if not period or (offset % period and (offset + 1) % period):
                    control.append(mass)
            torch.testing.assert_close(getattr(stats, name)[i], torch.stack(own).mean(0))
            found = getattr(stats, f"{name}_control")[i]
            torch.testing.assert_close(found, torch.stack(control).mean(0))
    plain = body[rows.periods == 0]
    for offset in (2, 5):
        last = min(offset + 1 + max(offset + 1, 8), body.shape[-1])
        queries = range(offset + 1, last)
        mass = torch.stack([plain[..., t, t - offset] for t in queries]).mean((0, 1))
        torch.testing.assert_close(stats.by_offset[offset], mass)
        even = np.mean([1 / (t + 2) for t in queries])  # with the first token there are t + 2 keys
        assert float(stats.uniform[offset]) == pytest.approx(even)
    assert stats.n_rows == 15


def test_random_models_have_no_named_head():
    worst = 0.0
    for seed in range(5):
        for changes in (
            {},
            {"norm": "LN"},
            {"positions": "rotary"},
            {"norm": "RMS", "attn_only": False},
        ):
            found = ll.induction_scores(toy_model(seed=seed, **changes), rows_per_period=2)
            assert set(found["verdict"]) == {"none"}
            worst = max(worst, float(found.excess.max()))
    assert worst < 0.1, worst


@pytest.mark.parametrize("kind", HF_KINDS)
def test_random_full_models_have_no_named_head(kind, zoo_folder):
    model = hugging_face(kind, zoo_folder)
    assert set(verdicts(model, rows_per_period=2)) == {"none"}


def test_where_weights_cannot_be_read_patterns_and_composition_still_can(zoo_folder):
    model = hugging_face("bloom", zoo_folder)  # its embedding passes a norm
    found = ll.induction_scores(model, rows_per_period=2)
    assert found["copying"].isna().all() and found["prefix_matching"].notna().all()
    assert len(ll.composition_scores(model, n_random=2)) == 12
    with pytest.raises(UnsupportedModelError, match="embedding"):
        ll.circuits.head_circuit(model, 0, 0)


def hand_head(offset=None, *, same=False, copy=True):
    """One head with a hand-made QK: a fixed offset back, or to tokens that equal the query's."""
    vocab, n_ctx = 40, 40
    width = vocab + n_ctx
    spec = ModelSpec(1, 2 * width, 2, vocab, n_ctx, attn_only=True, norm="none")
    module = native_module(spec)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.tok_embed.weight[:, :vocab] = torch.eye(vocab)
        module.pos.weight[:, vocab:width] = torch.eye(n_ctx)
        module.head.weight[:, width : width + vocab] = torch.eye(vocab)
        attention = module.layers[0].attn
        size = 8.0 * width**0.25
        if offset is not None:
            attention.k.weight[:n_ctx, vocab:width] = size * torch.eye(n_ctx)
            attention.q.weight[: n_ctx - offset, vocab + offset : width] = size * torch.eye(
                n_ctx - offset
            )
        if same:
            attention.k.weight[:vocab, :vocab] = size * torch.eye(vocab)
            attention.q.weight[:vocab, :vocab] = size * torch.eye(vocab)
            # not to the query itself: its own position is pushed down
            attention.k.weight[vocab:width, vocab:width] = -size * torch.eye(n_ctx)
            attention.q.weight[vocab:width, vocab:width] = size * torch.eye(n_ctx)
        attention.v.weight[:vocab, :vocab] = torch.eye(vocab)
        attention.o.weight[width : width + vocab, :vocab] = torch.eye(vocab) if copy else 0.0
    return bridge_from_module(module, spec)


@pytest.mark.parametrize("offset", [2, 7, 10, 15, 28])  # 28: beyond every period
def test_a_fixed_offset_head_is_positional(offset):
    found = ll.induction_scores(hand_head(offset))
    assert found.verdicts[0] == ["positional", "none"]
    assert found["offset"][0] == offset


def test_a_previous_token_head_and_a_duplicate_token_head():
    assert ll.induction_scores(hand_head(1)).verdicts[0][0] == "previous-token"
    found = ll.induction_scores(hand_head(same=True))
    assert found.verdicts[0][0] == "duplicate-token"
    assert found["duplicate"][0] > 0.9 and found["prefix_matching"][0] < 0.1


@pytest.mark.parametrize(
    "near, previous, far, verdict",
    [
        (0.14, 0.48, 0.29, "previous-token"),  # a smooth rotary head: the peak is what counts
        (0.28, 0.45, 0.14, "previous-token"),
        (0.15, 0.33, 0.32, "none"),
        (0.00, 0.45, 0.48, "none"),  # it looks further back than one
        (0.45, 0.15, 0.11, "none"),
    ],
)
def test_a_previous_token_head_has_its_peak_there(near, previous, far, verdict):
    none = torch.zeros(3, 1, 1).double()
    stats = AttentionStats(
        (4, 6, 9),
        none,
        none,
        none,
        none,
        torch.zeros(5, 1, 1).double(),
        torch.zeros(5).double(),
        torch.tensor([near, previous, far]).double()[:, None, None],
        none[0],
        none[0],
        none,
        torch.zeros(5, 1, 1).double(),
        8,
    )
    found = InductionScores(stats, none[0], none[0], none[0], Thresholds(), None, 0)
    assert found.verdicts == [[verdict]]
    assert float(found.excess[2]) == pytest.approx(previous - (near + far) / 2)


def test_a_head_that_copies_nothing_is_no_induction_head():
    built = build_induction()
    with torch.no_grad():
        built.model.original_model.layers[1].attn.o.weight.zero_()
    found = ll.induction_scores(built.model)
    assert found["prefix_matching"][3] > 0.8 and found.verdicts[1][1] == "none"


def test_heads_of_stories260k_are_scored():
    from pathlib import Path

    folder = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("shared/models/stories260K is not there")
    found = ll.induction_scores(ll.load(folder))
    assert len(found) == 40 and found.bos == 1
    assert found.to_dataframe().drop(columns="verdict").notna().all().all()
    assert "previous-token" in set(found["verdict"])


@pytest.mark.parametrize("n_ctx, d_vocab", [(8, 30), (9, 8), (16, 12), (300, 700)])
def test_periods_fit_the_context_and_the_vocabulary(n_ctx, d_vocab):
    found = ll.induction_scores(toy_model(n_ctx=n_ctx, d_vocab=d_vocab), rows_per_period=1)
    assert len(found.stats.periods) >= 2 and 2 * max(found.stats.periods) <= min(n_ctx, d_vocab)


def test_other_output_vocabularies_leave_copying_empty():
    found = ll.induction_scores(native(d_vocab_out=17), rows_per_period=2)
    assert found["copying"].isna().all() and len(found) == 6


def test_bad_arguments_are_named():
    model = native()
    with pytest.raises(InvalidArgumentError, match="two different"):
        ll.induction_scores(model, periods=[8])
    with pytest.raises(InvalidArgumentError, match="at most 12 here"):
        ll.induction_scores(model, periods=[5, 13])
    with pytest.raises(InvalidArgumentError, match=r"thresholds\.induction"):
        ll.induction_scores(model, thresholds=Thresholds(induction=2.0))
    with pytest.raises(UnsupportedModelError, match="too few for two different repeat periods"):
        ll.induction_scores(native(n_ctx=6))
    with pytest.raises(UnsupportedModelError, match="no attention layers"):
        ll.induction_scores(toy_model(n_layers=0))


def test_a_verdict_needs_evidence_of_copying_and_says_its_reason(attn_2l):
    found = ll.induction_scores(attn_2l, rows_per_period=4)
    assert found.verdicts[1][3] == "induction" and "target logit +" in found.reasons[1][3]
    # The same head with other effects on the copied token: 0.1 logits count whatever the strongest head has.
    for target, error, verdict, words in (
        (0.004, 0.001, "none", "below the smallest effect that counts here, 0.100"),
        (0.09, 0.006, "undecided", "about the smallest effect"),
        (0.115, 0.006, "induction", "target logit +0.115"),
        (-0.5, 0.1, "none", "below the smallest"),
    ):
        target_logit, se = found.target_logit.clone(), found.target_logit_se.clone()
        target_logit[1, 3], se[1, 3] = target, error
        changed = replace(found, target_logit=target_logit, target_logit_se=se)
        assert changed.verdicts[1][3] == verdict
        assert words in changed.reasons[1][3]
    named = found.named()
    assert set(named["verdict"]) == {v for row in found.verdicts for v in row} - {"none"}
    assert named["excess"].is_monotonic_decreasing
    assert found.period_table("L1H3").equals(found.period_table(1, 3))


def test_the_error_of_the_target_logit_is_that_over_rows():
    model = native(d_vocab=40, n_ctx=30, n_layers=1)
    found = ll.induction_scores(model, rows_per_period=3, seed=2)
    shape = checked(model)
    rows = draw_repeated(shape, periods=None, rows_per_period=3, bos=None, seed=2).repeating()
    z = run(model, rows.tokens, record=[(0, "z")])[(0, "z")].double() - model.b_V[0].double()
    written = torch.einsum("bphe,hed->hbpd", z, model.W_O[0].double()) @ model.W_U.double()
    written = written - written.mean(-1, keepdim=True)
    sums, counts = torch.zeros(3, len(rows.tokens)).double(), torch.zeros(len(rows.tokens)).double()
    for row, period in enumerate(rows.periods.tolist()):
        for t in range(period, 2 * period - 1):
            sums[:, row] += written[:, row, t, rows.tokens[row, t + 1]]
            counts[row] += 1
    mean = sums.sum(1) / counts.sum()
    apart = sums - counts * mean[:, None]
    n = len(counts)
    expected = (apart.square().sum(1) * n / (n - 1)).sqrt() / counts.sum()
    torch.testing.assert_close(found.target_logit[0], mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.target_logit_se[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "olmo2"])
def test_the_target_logit_goes_through_the_norm_behind_the_attention(kind, tmp_path):
    model = hugging_face(kind, str(tmp_path))
    found = ll.induction_scores(model, periods=(4, 6), rows_per_period=2, bos=None, seed=3)
    rows = draw_repeated(
        checked(model), periods=(4, 6), rows_per_period=2, bos=None, seed=3
    ).repeating()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / kind, attn_implementation="eager")
    plain, seen = plain.double().eval(), {}
    block, last = plain.model.layers[1], plain.model.norm
    block.self_attn.o_proj.register_forward_pre_hook(lambda _, args: seen.update(z=args[0]))
    last.register_forward_pre_hook(lambda _, args: seen.update(stream=args[0]))
    norm = block.post_attention_layernorm

    def gain(norm, x):  # what a norm multiplies x by, once its own scale is held
        eps = getattr(norm, "eps", None) or norm.variance_epsilon
        return (norm.weight + (kind[:5] == "gemma")) * (
            x.square().mean(-1, keepdim=True) + eps
        ).rsqrt()

    with torch.no_grad():
        plain(rows.tokens)
        out, value = block.self_attn.o_proj, block.self_attn.v_proj.bias
        whole = out(seen["z"])
        if value is not None:
            seen["z"] = seen["z"] - value.reshape(2, 1, -1).expand(2, 2, -1).flatten()
        width = len(out.weight[0]) // 4
        for head in range(4):
            part = slice(head * width, (head + 1) * width)
            written = seen["z"][..., part] @ out.weight[:, part].T * gain(norm, whole)
            logits = plain.lm_head(written * gain(last, seen["stream"]))
            logits = logits - logits.mean(-1, keepdim=True)
            effects = [
                float(logits[row, t, rows.tokens[row, t + 1]])
                for row, period in enumerate(rows.periods.tolist())
                for t in range(period, 2 * period - 1)
            ]
            assert float(found.target_logit[1, head]) == pytest.approx(np.mean(effects), abs=1e-6)


def test_infinite_patterns_are_refused_with_their_layer():
    model = native(d_vocab=40, n_ctx=30)
    with torch.no_grad():
        model.original_model.layers[1].attn.q.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="layer 1"):
        ll.induction_scores(model, rows_per_period=1)


def test_standard_errors_are_those_of_rows_taken_one_by_one():
    """Attention is read with numpy at each relation, row by row; means and spreads are numpy's."""
    model = native(n_layers=2)
    periods = [0] * 6 + [4] * 5 + [6] * 5
    g = torch.Generator().manual_seed(3)
    tokens = torch.stack(
        [torch.randperm(30, generator=g)[: p or 16].repeat(16)[:16] for p in periods]
    )
    rows = RepeatedRows(tokens, torch.tensor(periods), 0)
    found = measure(checked(model), rows)
    _, cache = model.run_with_cache(tokens)
    pattern = np.stack([cache["pattern", i].double().numpy() for i in range(2)], 1)

    def at(row, offset, queries):
        return np.stack([pattern[row, :, :, q, q - offset] for q in queries]).mean(0)

    def variance(values):
        return np.var(values, axis=0, ddof=1) / len(values)

    kinds = np.array(periods)
    for which, back in enumerate((1, 0)):
        total = of_own = 0
        for p in (4, 6):
            offset = p - back
            own = [at(r, offset, range(p, 2 * p)) for r in np.flatnonzero(kinds == p)]
            free = [
                r
                for r, k in enumerate(kinds)
                if k != p and (k == 0 or (offset % k and (offset + 1) % k))
            ]
            of_own = of_own + variance(own)
            total = total + variance(own) + variance([at(r, offset, range(p, 2 * p)) for r in free])
        np.testing.assert_allclose(found.excess_se[which], np.sqrt(total) / 2, rtol=1e-6)
        if which == 0:
            np.testing.assert_allclose(found.prefix_se, np.sqrt(of_own) / 2, rtol=1e-6)
    alone = np.flatnonzero(kinds == 0)
    peak = [
        at(r, 1, range(1, 16)) - (at(r, 0, range(16)) + at(r, 2, range(2, 16))) / 2 for r in alone
    ]
    np.testing.assert_allclose(found.excess_se[2], np.sqrt(variance(peak)), rtol=1e-6)
    for offset in (2, 5):
        band = [
            at(r, offset, range(offset + 1, min(16, offset + 1 + max(offset + 1, 8))))
            for r in alone
        ]
        np.testing.assert_allclose(found.by_offset_se[offset], np.sqrt(variance(band)), rtol=1e-6)


def test_a_model_of_another_question_is_told_so_on_random_repeats(recwarn):
    """Far worse than a guess in both copies: the next token is not what it answers."""
    model = toy_model(n_layers=1, d_vocab=20, n_ctx=24)
    circuits.in_context_loss(model)
    assert not any("worse than a uniform guess" in str(w.message) for w in recwarn)
    with torch.no_grad():
        model.unembed.original_component.weight.mul_(300)
    with pytest.warns(LensLinearWarning, match="worse than a uniform guess.*lens_linear.Task"):
        circuits.in_context_loss(model)
