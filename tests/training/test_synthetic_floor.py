"""A zero-layer model trained on the synthetic language ends at the known entropy, and never below it."""

import time

import torch

from lens_linear.models.native import ModelSpec
from lens_linear.studies.baking import validation_rows
from lens_linear.text.synthetic import SyntheticLanguage
from lens_linear.training.loop import train, validation_loss
from lens_linear.training.recipes import Phase, Recipe


def test_zero_layers_reach_the_bigram_entropy_in_under_a_minute():
    language = SyntheticLanguage(n_skip_trigrams=0, n_names=0, n_mood_words=0, seed=1)
    # 40 long rows are the chain itself but for 39 seams; token 0 is no word, so ids move up by one.
    text = language.tokens(40, 10_000, seed=2).flatten() + 1
    spec = ModelSpec(
        0, d_model=64, n_heads=1, d_vocab=language.n_vocab + 1, n_ctx=64, attn_only=True,
        norm="none", positions="none",
    )  # fmt: skip
    phase = Phase(steps=400, rows=64, length=64, learning_rate=2e-2, warmup=20, final=0.01)
    started = time.monotonic()
    recipe = Recipe("floor", spec, (phase,), weight_decay=0.0, precision="float32")
    run = train(recipe, text[:300_000], progress=False)
    seconds = time.monotonic() - started
    rows = validation_rows(text[300_000:], 64)[:, 1:]  # whole rows of words
    loss = validation_loss(run.module, rows)
    assert abs(loss - language.entropy_rate) < 0.02, (loss, language.entropy_rate)
    assert loss > language.entropy_rate - 0.015  # within sampling noise of the floor, not below
    assert seconds < 60
    # The learnt table is the planted one: mean divergence per token below 0.02 nats.
    with torch.no_grad():
        ids = torch.arange(1, language.n_vocab + 1)
        learnt = run.module(ids[:, None])[:, 0, 1:].double().log_softmax(-1)
    true = language.bigram_table.double()
    divergence = (true * (true.clamp_min(1e-30).log() - learnt)).sum(-1)
    assert float((divergence * language.stationary.double()).sum()) < 0.02
