"""Downstream scores: log-likelihoods against a loop, and lm-eval on a local task."""

import json
import sys

import pytest
import torch
from linearity_data import small, tokens

import lens_linear as ll
from lens_linear.errors import InvalidArgumentError, OfflineError
from lens_linear.models.checked import checked
from lens_linear.studies.downstream import downstream_scores, log_likelihoods


def test_log_likelihoods_equal_a_loop_over_tokens():
    model = small(2)
    pairs = [([3], [5, 6, 7]), ([1, 2, 3, 4], [9]), (list(range(60)), [1, 2, 3, 4, 5, 6])]
    got = log_likelihoods(checked(model), pairs, batch_size=2)
    for (value, greedy), (context, target) in zip(got, pairs, strict=True):
        ids, total, best = list(context), 0.0, True
        kept = (context + target)[:-1][-64:]
        context = kept[: len(kept) - len(target) + 1]
        ids = list(context)
        for token in target:
            with torch.no_grad():
                last = model(torch.tensor([ids]), return_type="logits")[0, -1].log_softmax(-1)
            total += float(last[token])
            best &= int(last.argmax()) == token
            ids.append(token)
        assert value == pytest.approx(total, abs=1e-4) and greedy is best
    with pytest.raises(InvalidArgumentError, match="each context needs a token"):
        log_likelihoods(checked(model), [([], [1])])
    with pytest.raises(InvalidArgumentError, match="n_ctx = 64"):
        log_likelihoods(checked(model), [([1], list(range(65)))])


def test_without_the_harness_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(OfflineError, match=r"transformer-lens\[evals\]"):
        downstream_scores(small(1), ["boolq"])


def local_tasks(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        ("Once upon a", [" time", " qqq"], 0),
        ("She did not", [" zzx", " know"], 1),
        ("He went to the", [" door", " xqj"], 0),
    ]
    lines = [json.dumps({"q": q, "choices": c, "label": right}) for q, c, right in rows]
    path.write_text("\n".join(lines) + "\n")
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}}
    choice = {
        **data,
        "task": "local_choice",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_target": "label",
        "doc_to_choice": "choices",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    rolling = {
        **data,
        "task": "local_bits",
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{q}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    return choice, rolling, rows


def test_a_local_task_through_lm_eval(tmp_path, attn_2l, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-eval (the evals extra of TransformerLens) is absent")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    choice, rolling, rows = local_tasks(tmp_path)
    frame = downstream_scores(attn_2l, [choice, rolling]).to_dataframe().set_index("metric")
    assert frame.value["acc"] == 1.0 and frame.n["acc"] == 3
    total, words = 0.0, 0
    for text, _, _ in rows:
        ids = attn_2l.tokenizer(text, add_special_tokens=False)["input_ids"]
        total += log_likelihoods(checked(attn_2l), [([0], ids)])[0][0]
        words += len(text.split())
    want = torch.tensor(-total / words).exp()
    assert frame.value["word_perplexity"] == pytest.approx(float(want), rel=1e-3)
    with ll.linearize(attn_2l, tokens(20, 32, vocab=1000)):
        worse = downstream_scores(attn_2l, [rolling]).to_dataframe().set_index("metric")
    assert worse.value["word_perplexity"] > frame.value["word_perplexity"]
