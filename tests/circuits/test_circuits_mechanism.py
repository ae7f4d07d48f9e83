from dataclasses import replace

import numpy as np
import pytest
import torch
from circuit_zoo import hugging_face, ids, native

import lens_linear as ll
from lens_linear.circuits.attention.components import HeadOutputs
from lens_linear.circuits.induction.ablation import ablate_heads, ablation_scores, mean_z
from lens_linear.circuits.induction.in_context import answer_losses, in_context_loss
from lens_linear.circuits.induction.interventions import Lab, induction_keys
from lens_linear.circuits.induction.mechanism import verify_induction
from lens_linear.circuits.induction.repeated_rows import draw_repeated
from lens_linear.circuits.induction.scores import InductionScores
from lens_linear.constructions.induction_model import build_induction
from lens_linear.errors import InvalidArgumentError, NotEnoughDataError, UnsupportedModelError
from lens_linear.models.capture import run
from lens_linear.models.checked import checked
from lens_linear.models.describe.weights import read_weights
from lens_linear.stats.task_scores import require_task
from lens_linear.text.task import Task


def lab_of(model, induction, **changes):
    rows = draw_repeated(
        checked(model), periods=None, rows_per_period=2, bos=None, seed=0, **changes
    ).repeating()
    return Lab(checked(model), rows, induction, batch_size=5)


def test_the_mechanism_of_the_bundled_model_is_confirmed(attn_2l):
    found = verify_induction(attn_2l, induction=[(1, 1), (1, 3)], rows_per_period=3, n_controls=4)
    assert found.confirmed and found.previous == ((0, 0),)
    table = found.to_dataframe().set_index("step")
    assert found.before.gain > 5
    for step in ("induction heads", "previous-token heads", "K-composition", "copying"):
        assert table.loc[step, "removed"] > 0.7
        assert table.loc[step, "control_removed"] < 0.25 and table.loc[step, "n_controls"] >= 3
    assert (
        table.loc["K-composition", "prefix_after"]
        < 0.2
        < 0.7
        < table.loc["K-composition", "prefix_before"]
    )
    for step in ("Q-path", "V-path", "other keys"):
        assert abs(table.loc[step, "removed"]) < 0.2


def test_wrong_heads_are_not_confirmed(attn_2l):
    found = verify_induction(
        attn_2l, induction=[(1, 1), (1, 3)], previous=[(0, 2)], rows_per_period=2, n_controls=2
    )
    assert not found.confirmed
    table = found.to_dataframe().set_index("step")
    assert table.loc["K-composition", "removed"] < 0.2  # and the control, L0H0 among it, loses more
    assert table.loc["K-composition", "control_worst"] > 0.5


def test_the_hand_built_mechanism_has_known_outcomes():
    built = build_induction()
    found = verify_induction(built.model, rows_per_period=2)
    table = found.to_dataframe().set_index("step")
    # Without the induction head every logit is 0: no gain. Idle heads write nothing: nothing is lost.
    assert table.loc["induction heads", "gain_after"] == pytest.approx(0, abs=1e-5)
    assert table.loc["copying", "gain_after"] == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(table["control_removed"].dropna(), 0, atol=1e-5)
    rows = draw_repeated(checked(built.model), periods=None, rows_per_period=2, bos=None, seed=0)
    rows = rows.repeating()
    losses = torch.nn.functional.cross_entropy(
        built.logits(rows.tokens)[:, :-1].flatten(0, 1),
        rows.tokens[:, 1:].flatten(),
        reduction="none",
    ).view(len(rows.tokens), -1)
    gains = []
    for row, period in enumerate(rows.periods.tolist()):
        first, second = losses[row, : period - 1], losses[row, period : 2 * period - 1]
        gains.append(float(first.mean() - second.mean()))
    assert found.before.gain == pytest.approx(np.mean(gains), abs=1e-4)
    row, query, key = induction_keys(rows)
    prefix = built.induction_pattern(rows.tokens)[row, query, key].mean()
    assert found.before.prefix == pytest.approx(float(prefix), abs=1e-5)


@pytest.mark.parametrize("vocab, n_ctx", [(8, 16), (16, 32), (30, 90)])
def test_the_hand_built_mechanism_is_confirmed_at_every_size(vocab, n_ctx):
    # It is sure of tokens it has seen, so its first copy costs far more than a guess, and without the
    # previous-token head half of the gain is left though nothing is remembered.
    built = build_induction(vocab, n_ctx)
    found = verify_induction(built.model, rows_per_period=2)
    assert found.confirmed and found.guess == pytest.approx(np.log(vocab))
    table = found.to_dataframe().set_index("step")
    assert table.loc["K-composition", "removed"] < 0.5 < 0.8 < table["forgotten"]["K-composition"]
    # Without the induction head's direct path every logit is 0: a guess exactly.
    assert table.loc["copying", "second_after"] == pytest.approx(np.log(vocab), abs=1e-5)
    assert table.loc["copying", "forgotten"] == pytest.approx(1.0, abs=1e-5)
    assert table.loc["Q-path", "forgotten"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalization_type": "LN"},
        {"normalization_type": "RMS", "positional_embedding_type": "rotary"},
        {"n_heads": 4, "n_key_value_heads": 2, "normalization_type": "LNPre"},
    ],
)
@pytest.mark.parametrize("side", ["q", "k", "v"])
def test_a_cut_path_is_the_reader_run_on_a_smaller_stream(changes, side):
    model = native(d_vocab=40, n_ctx=30, **changes)
    lab = lab_of(model, [(1, 1)])
    batch = lab.batches[0]
    edits = lab.path_cut([(0, 2)], side)(batch)
    edited = run(model, batch.rows.tokens, edits=edits, record=[(1, side), (1, "attn_in")])
    # The same by hand: the norm at its old scale, without what L0H2 says above its mean.
    clean = batch.clean
    written = HeadOutputs(checked(model), read_weights(model)).of(clean[(0, "z")], 0)[2]
    weights = read_weights(model)
    stream = clean[(1, "resid_pre")].double()
    centred = stream - stream.mean(-1, keepdim=True) if weights.norm == "layer" else stream
    scale = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    smaller = stream - (written - lab.mean_outputs[0, 2])
    matrix = {"q": weights.attention.W_Q, "k": weights.attention.W_K, "v": weights.attention.W_V}[
        side
    ]
    bias = {"q": weights.attention.b_Q, "k": weights.attention.b_K, "v": weights.attention.b_V}[
        side
    ]
    expected = smaller / scale @ matrix[1, 1] + bias[1, 1]
    group = model.cfg.n_heads // (
        getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
    )
    slot = 1 if side == "q" else 1 // group
    torch.testing.assert_close(
        edited[(1, side)][:, :, slot].double(), expected, rtol=1e-3, atol=1e-4
    )
    whole = run(model, batch.rows.tokens, record=[(1, side), (1, "attn_in")])
    others = [i for i in range(whole[(1, side)].shape[2]) if i != slot]
    assert torch.equal(edited[(1, side)][:, :, others], whole[(1, side)][:, :, others])
    assert torch.equal(edited[(1, "attn_in")], whole[(1, "attn_in")])


def test_values_are_replaced_where_it_is_said():
    model = native(d_vocab=40, n_ctx=30, n_heads=4, n_key_value_heads=2)
    lab = lab_of(model, [(1, 3)])
    batch = lab.batches[0]
    pattern = batch.clean[(1, "pattern")][:, 3].double()
    v = batch.clean[(1, "v")].double()[:, :, 1]  # heads 2 and 3 share key-value head 1
    mean = lab.mean_v[1, 1]
    row, query, key = induction_keys(batch.rows)
    for where in ("at", "elsewhere"):
        ((_, edit),) = lab.values_replaced(where)(batch)
        new = edit(batch.clean[(1, "z")])[:, :, 3].double()
        for r, q, k in list(zip(row.tolist(), query.tolist(), key.tolist()))[::7]:
            read = v[r].clone()
            if where == "at":
                read[k] = mean
            else:
                read[torch.arange(len(read)) != k] = mean
            torch.testing.assert_close(new[r, q], pattern[r, q] @ read, rtol=1e-4, atol=1e-5)


def test_cutting_every_heads_direct_path_leaves_the_direct_path_alone():
    model = native(d_vocab=40, n_ctx=30, n_layers=1)
    lab = lab_of(model, [(0, 0)])
    batch = lab.batches[0]
    logits = model(batch.rows.tokens).double() + lab.direct_path_cut([(0, h) for h in range(3)])(
        batch
    )
    length = batch.rows.tokens.shape[1]
    stream = model.W_E[batch.rows.tokens] + model.W_pos[:length] + model.b_O[0]
    torch.testing.assert_close(logits, (stream @ model.W_U).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "opt", "qwen2"])
def test_every_intervention_runs_on_full_models(kind, zoo_folder):
    model = hugging_face(kind, zoo_folder)
    lab = lab_of(model, [(1, 0), (1, 1)])
    whole = lab.outcome()
    for make in (
        lab.without([(0, 1)]),
        lab.path_cut([(0, 1)], "k"),
        lab.path_cut([(0, 1)], "q"),
        lab.values_replaced("at"),
    ):
        changed = lab.outcome(make)
        assert np.isfinite(changed.gain) and changed != whole
    # Nothing written, nothing changed: a path of no heads is the whole model.
    assert lab.outcome(lab.path_cut([], "k")).gain == pytest.approx(whole.gain)
    with pytest.raises(UnsupportedModelError, match="nothing to explain"):
        verify_induction(model, induction=[(1, 0)], rows_per_period=1)


def test_zero_ablation_is_the_model_with_its_output_weights_zeroed():
    model = native(normalization_type="LN")
    tokens = ids(model)
    with ablate_heads(model, [(0, 1), (1, 2)], how="zero"):
        found = model(tokens)
    whole = model(tokens)
    with torch.no_grad():
        for layer, head in ((0, 1), (1, 2)):
            model.original_model.layers[layer].attn.o.weight[:, 10 * head : 10 * head + 10] = 0
    torch.testing.assert_close(found, model(tokens))
    assert not torch.allclose(found, whole)


def test_mean_ablation_puts_the_mean_over_the_reference():
    model = native()
    tokens, reference = ids(model), ids(model, 5, 7, seed=3)
    z = run(model, reference, record=[(1, "z")])[(1, "z")]
    mean = z[:, :, 0].double().mean(0)  # at each position
    task = require_task(model, reference)
    torch.testing.assert_close(mean_z(checked(model), task, batch_size=2)[1, :, 0], mean)
    with ablate_heads(model, "L1H0", reference):
        got = run(model, tokens[:, :7], record=[(1, "z")])[(1, "z")]
    torch.testing.assert_close(got[:, :, 0].double(), mean.expand(2, 7, -1), rtol=1e-5, atol=1e-6)
    with ablate_heads(model, ["L1H0"], reference, how="pooled"):
        got = run(model, tokens, record=[(1, "z")])[(1, "z")]
    expected = mean.mean(0).expand(2, 9, -1)
    torch.testing.assert_close(got[:, :, 0].double(), expected, rtol=1e-5, atol=1e-6)
    with ablate_heads(model, [(1, 0)], reference, how="resample", seed=3):
        got = run(model, tokens[:, :7], record=[(1, "z")])[(1, "z")]
    for row in got[:, :, 0]:
        gaps = (z[:, :, 0] - row).abs().amax((1, 2))
        assert float(gaps.min()) < 1e-6  # one whole row of the reference
    assert float((got[:, :, 1] - mean.float()).abs().max()) > 1e-3  # and no other head


def test_means_count_real_tokens_only():
    model = native()
    rows = [[3, 5, 7, 9], [4, 6], [8, 2, 1]]
    z = [run(model, torch.tensor([row]), record=[(1, "z")])[(1, "z")][0].double() for row in rows]
    means = mean_z(checked(model), require_task(model, rows))[1]
    for position in range(4):
        there = torch.stack([each[position] for each in z if len(each) > position])
        torch.testing.assert_close(means[position], there.mean(0), rtol=1e-5, atol=1e-6)
    pooled = mean_z(checked(model), require_task(model, rows), pooled=True)[1, 0]
    torch.testing.assert_close(pooled, torch.cat(z).mean(0), rtol=1e-5, atol=1e-6)


def test_what_an_ablation_needs_is_said():
    model, reference = native(), ids(native(), 5, 7)
    for heads, options, words in (
        ([(0, 0), "L0H0"], {"how": "zero"}, "names a head twice: L0H0"),
        ("L0H7", {"how": "zero"}, "head must be at most 2"),
        ("L0H0", {}, "tokens must be given for how='mean'"),
        ("L0H0", {"tokens": reference[:1]}, "at least 2 rows"),
        ("L0H0", {"tokens": [[1, 2], [3]], "how": "resample"}, "rows of one length"),
        ("L0H0", {"tokens": reference, "how": "means"}, "did you mean 'mean'"),
    ):
        with (
            pytest.raises(InvalidArgumentError, match=words),
            ablate_heads(model, heads, **options),
        ):
            pass
    with (
        ablate_heads(model, "L0H0", reference),
        pytest.raises(InvalidArgumentError, match="got 7 positions for 9"),
    ):
        model(ids(model))


def test_ablation_on_a_task_is_what_the_metric_loses():
    model, tokens = native(), ids(native(), 6, 7)
    task = Task(tokens, labels=tokens[:, 2], positions=-1, metric="accuracy")
    for asked in (task, replace(task, metric="loss")):
        found = ablation_scores(model, asked)
        for layer, head in ((0, 1), (1, 2)):
            z = run(model, tokens, record=[(layer, "z")])[(layer, "z")]

            def edit(x, z=z, head=head):
                x = x.clone()
                x[:, :, head] = z[:, :, head].mean(0)
                return x

            logits = [
                run(model, tokens, edits=e).logits[:, -1] for e in ([], [((layer, "z"), edit)])
            ]
            if asked.metric == "accuracy":
                values = [(x.argmax(-1) == tokens[:, 2]).double() for x in logits]
                lost = values[0] - values[1]
            else:
                values = [
                    torch.nn.functional.cross_entropy(x, tokens[:, 2], reduction="none")
                    for x in logits
                ]
                lost = values[1] - values[0]
            assert float(found.lost[layer, head]) == pytest.approx(float(lost.mean()), abs=1e-5)
            spread = float(lost.std() / 6**0.5)
            assert float(found.lost_se[layer, head]) == pytest.approx(spread, abs=1e-5)


@pytest.mark.parametrize("seed, other", [(3, 4), (2**32 - 1, 0)])
def test_means_over_random_repeats_are_those_of_other_ones(seed, other):
    model, asked = native(), {"rows_per_period": 2, "periods": (4, 7)}
    more = draw_repeated(checked(model), periods=(4, 7), rows_per_period=16, bos=None, seed=other)
    found = ablation_scores(model, **asked, seed=seed)
    again = ablation_scores(model, **asked, seed=seed, reference=more.repeating().tokens)
    assert torch.equal(found.lost, again.lost)
    assert not torch.equal(found.lost, ablation_scores(model, **asked, seed=other).lost)


def test_ablation_scores_name_the_heads_of_the_circuit(attn_2l):
    found = ablation_scores(attn_2l, rows_per_period=2)
    order = found.to_dataframe().sort_values("lost", ascending=False)["head"].tolist()
    assert order[0] == "L0H0" and order[1] == "L1H3"
    assert found.before > 5 and "L0H0" in repr(found) and found.metric == "in-context gain"


def test_loss_along_text_and_along_copies(attn_2l):
    found = in_context_loss(attn_2l, rows_per_period=3)
    assert found.first > 6 > 2 > found.second and found.gain == found.first - found.second
    frame = found.to_dataframe().set_index("index")
    assert (
        frame.loc[0, "loss"] > 4 and frame.loc[3:, "loss"].max() < 3
    )  # the first token cannot be known
    tokens = torch.randint(1, 1024, (6, 20), generator=torch.Generator().manual_seed(0))
    text = in_context_loss(attn_2l, tokens, batch_size=4)
    own = (
        torch.nn.functional.cross_entropy(
            attn_2l(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        .view(6, 19)
        .detach()
    )
    np.testing.assert_allclose(text["loss"], own.double().mean(0), rtol=1e-4)
    np.testing.assert_allclose(text["se"], own.double().std(0) / 6**0.5, rtol=1e-3)
    assert text.first == pytest.approx(float(own[:, :9].mean()), rel=1e-4)
    torch.testing.assert_close(
        answer_losses(checked(attn_2l), ll.Task(tokens))[:, :-1],
        own.double(),
        rtol=1e-4,
        atol=1e-4,
    )


def test_models_without_induction_are_refused():
    for sizes in ({}, {"n_layers": 1, "n_heads": 1}):
        with pytest.raises(UnsupportedModelError, match="no induction head"):
            verify_induction(native(d_vocab=40, n_ctx=30, **sizes))


def test_heads_that_the_scores_miss_can_be_named(attn_2l, monkeypatch):
    """Advised only where the model gains from its context: then the call that is advised succeeds."""
    monkeypatch.setattr(InductionScores, "heads", lambda self, verdict: [])
    with pytest.raises(UnsupportedModelError, match=r"pass induction=\[\(layer, head\)\]"):
        verify_induction(attn_2l, rows_per_period=1, n_controls=1)
    assert (
        verify_induction(attn_2l, induction=[(1, 0)], rows_per_period=1, n_controls=1).before.gain
        > 0.1
    )


def test_one_vocabulary_is_needed():
    with pytest.raises(UnsupportedModelError, match="needs one vocabulary"):
        in_context_loss(native(d_vocab_out=17))
    assert ll.circuits.verify_induction is verify_induction


def test_in_context_loss_follows_a_task(attn_2l):
    tokens = torch.randint(0, 900, (3, 10), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(10) < torch.tensor([10, 7, 10])[:, None]
    labels = torch.tensor([[3, 8, 9], [5, 5, 1], [2, 4, 6]])
    places = [1, 3, 6]
    with torch.no_grad():
        scores = attn_2l(tokens).double().log_softmax(-1)[:, places]  # pads stand behind
    expected = -scores.gather(2, labels[..., None])[..., 0]
    found = in_context_loss(attn_2l, ll.Task(tokens, labels=labels, positions=places, mask=mask))
    assert found.points.tolist() == [2, 4, 7] and found.n.tolist() == [3, 3, 3]
    torch.testing.assert_close(found.loss, expected.mean(0), rtol=1e-5, atol=1e-5)
    assert found.first == pytest.approx(float(expected[:, 0].mean()), rel=1e-5)
    assert found.second == pytest.approx(float(expected[:, 1:].mean()), rel=1e-5)
    with pytest.raises(NotEnoughDataError, match="two answers"):
        in_context_loss(attn_2l, ll.Task(tokens, labels=labels[:, 0]))


@pytest.mark.parametrize("seed", range(4))
def test_a_row_never_stands_in_for_itself(seed):
    model = native(normalization_type="LN")
    tokens = ids(model, 2, 11, seed=seed)  # of two rows it is always the other one
    z = run(model, tokens, record=[(0, "z")])[(0, "z")].reshape(2, 11, 3, -1)

    def other(value):
        value = value.clone().reshape(2, 11, 3, -1)
        value[:, :, 1] = z.flip(0)[:, :, 1]
        return value.reshape(2, 11, -1)

    swapped = run(model, tokens, edits=[((0, "z"), other)]).logits
    with ablate_heads(model, "L0H1", tokens, how="resample", seed=seed):
        torch.testing.assert_close(model(tokens), swapped, rtol=1e-4, atol=1e-4)
    found = ablation_scores(model, tokens, how="resample", seed=seed, batch_size=1)
    loss = torch.nn.functional.cross_entropy(swapped[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert float(found.without[0, 1]) == pytest.approx(float(loss), abs=1e-4)
    with pytest.raises(InvalidArgumentError, match="at least 2 rows for how='resample'"):
        ablation_scores(model, tokens[:1], how="resample")
    ablation_scores(model, tokens[:1], how="resample", reference=tokens[1:])


@pytest.mark.parametrize("how", ["mean", "pooled", "zero", "resample"])
def test_a_model_without_layers_has_no_heads_to_ablate(how):
    with pytest.raises(UnsupportedModelError, match="no attention layers, so it has no heads"):
        ll.circuits.ablation_scores(ll.load("attn-0l"), how=how)
