"""Advice that any room gives: numbers, lists, heads, tokens, tasks, and the main analyses."""

import math

import torch
from advice_parts import (
    IDS,
    MASK,
    PROBE,
    SHORT,
    X,
    Y,
    ablated,
    attribution,
    batch,
    cut,
    directions,
    gains,
    known,
    mlp,
    profile,
    split,
    toy,
    trained,
    view,
    wide,
    with_tokenizer,
)  # fmt: skip

import lens_linear as ll
from lens_linear import circuits, constructions, dynamics, linalg, linearity, plots, text
from lens_linear.linearity import load_linearized, save_linearized

ROWS = [
    # numbers, truth values, lists, paths
    (lambda: ll.toy_model(n_layers=2.5), "pass an int", lambda: ll.toy_model(n_layers=2)),
    (lambda: ll.toy_model(seed=-1), "pass a larger value", lambda: ll.toy_model(seed=1)),
    (lambda: view().head(9, 0), "pass a smaller value", lambda: view().head(1, 0)),
    (
        lambda: ll.linearity_profile(mlp(), IDS, ridge="big"),
        "pass a float",
        lambda: ll.linearity_profile(mlp(), IDS, ridge=1.0, fit="in-sample"),
    ),
    (
        lambda: ll.linearity_profile(mlp(), IDS, ridge=math.nan),
        "pass a finite number",
        lambda: ll.linearity_profile(mlp(), IDS, ridge=0.5, fit="in-sample"),
    ),
    (
        lambda: trained(batches=batch, progress="no"),
        "pass a bool",
        lambda: trained(batches=batch, progress=False),
    ),
    (lambda: text.token_labels("ab"), r"wrap it in \[\]", lambda: text.token_labels(["ab"])),
    (
        lambda: ll.linearize(mlp(), IDS, layers="x").__enter__(),
        r"pass e.g. \[0, 1\]",
        lambda: linearity.fit_linearization(mlp(), IDS, layers=[0, 1]),
    ),
    (
        lambda: linearity.fit_linearization(mlp(), IDS, layers=[0, 0]),
        "name each layer once",
        lambda: linearity.fit_linearization(mlp(), IDS, layers=[0]),
    ),
    (
        lambda: ll.report(toy(), 3, IDS),
        "pass a str or pathlib.Path",
        lambda: ll.report(toy(), "advice.html", IDS),
    ),
    (
        lambda: ll.report(toy(), "x" * 300 + ".html", IDS),
        "shorten it",
        lambda: ll.report(toy(), "x" * 30 + ".html", IDS),
    ),
    # heads
    (
        lambda: ll.head(toy(), "first"),
        "column 'head'",
        lambda: ll.head(toy(), ll.induction_scores(toy(), **PROBE)["head"][0]),
    ),
    (lambda: cut("L1H0", "L1H1"), "choose other senders", lambda: cut("L0H0", "L1H1")),
    (
        lambda: ablated(),
        r"pass tokens=.*or how='zero'",
        lambda: (ablated(tokens=IDS), ablated(how="zero")),
    ),
    (
        lambda: ablated(tokens=IDS[:1]),
        "pass more text of the same kind.*or how='pooled'",
        lambda: (ablated(tokens=IDS), ablated(tokens=IDS[:1], how="pooled")),
    ),
    (
        lambda: circuits.virtual_head(ll.head(toy(), "L1H0"), ll.head(toy(), "L0H0")),
        "swap them",
        lambda: circuits.virtual_head(ll.head(toy(), "L0H0"), ll.head(toy(), "L1H0")),
    ),
    (
        lambda: circuits.circuit_map("L1H0"),
        r"take it from lens_linear.head\(model, 'L1H3'\)",
        lambda: circuits.circuit_map(ll.head(toy(), "L1H0"), k=5, blocks=4),
    ),
    (
        lambda: circuits.skip_trigrams("L1H0"),
        r"take it from lens_linear.head\(model, 'L1H3'\)",
        lambda: circuits.skip_trigrams(ll.head(toy(), "L1H0"), k=3),
    ),
    (
        lambda: plots.attention_pattern(circuits.attention_pattern(toy(), IDS[0], 1), "L0H1"),
        r"call circuits.attention_pattern\(model, tokens, 0\)",
        lambda: plots.attention_pattern(circuits.attention_pattern(toy(), IDS[0], 0), "L0H1"),
    ),
    (
        lambda: circuits.attention_pattern(toy(), IDS, 1),
        r"pass tokens\[0\]",
        lambda: circuits.attention_pattern(toy(), IDS[0], 1),
    ),
    # induction
    (
        lambda: ll.induction_scores(toy(), periods=[8]),
        r"pass e.g. \[",
        lambda: ll.induction_scores(toy(n_ctx=64), periods=[4, 5, 7], bos=None),
    ),
    (
        lambda: ll.induction_scores(toy(), periods=[8, 20]),
        "pass shorter ones",
        lambda: ll.induction_scores(toy(), periods=[8, 12], bos=None),
    ),
    # attribution
    (
        lambda: attribution().to_dataframe(query=5),
        "pass both, or neither",
        lambda: (attribution().to_dataframe(query=5, key=2), attribution().to_dataframe()),
    ),
    (
        lambda: plots.qk_attribution(attribution(), 5),
        "pass both positions",
        lambda: (plots.qk_attribution(attribution(), 5, 2), plots.qk_attribution(attribution())),
    ),
    (
        lambda: attribution().mean_contrast(-torch.ones(2, 16, 16)),
        "pass e.g. 1 at the pairs of interest",
        lambda: attribution().mean_contrast(torch.ones(2, 16, 16).tril()),
    ),
    # paths and circuits
    (
        lambda: view().paths(IDS, max_terms=3),
        r"pass a larger max_terms, or use importance\(tokens\)",
        lambda: (view().paths(IDS, max_terms=99), view().importance(IDS)),
    ),
    (
        lambda: view().paths(IDS, max_bytes=100),
        "pass fewer tokens or a larger max_bytes",
        lambda: (view().paths(IDS[:1, :2], max_bytes=10**5), view().paths(IDS, max_bytes=10**8)),
    ),
    (lambda: view().importance(SHORT), "pass longer", lambda: view().importance(IDS)),
    (
        lambda: wide().logits,
        r"circuits.top_pairs\(matrix, k\).*matrix.A\[rows\] @ matrix.B.*matrix.AB",
        lambda: (
            circuits.top_pairs(wide().matrix, 3),
            wide().matrix.A[[1, 4]] @ wide().matrix.B,
            view().bigrams().matrix.AB,
        ),
    ),
    (
        lambda: ll.AttentionOnly(mlp()),
        r"load\('attn-2l'\).*composition_scores, induction_scores",
        lambda: (
            ll.AttentionOnly(ll.load("attn-2l")),
            ll.composition_scores(mlp(), n_random=3),
            ll.induction_scores(mlp(), **PROBE),
        ),
    ),
    (
        lambda: ll.AttentionOnly(toy(), labels=["a"]),
        "pass one a token",
        lambda: ll.AttentionOnly(toy(), labels=[str(i) for i in range(24)]),
    ),
    # tokens and tasks
    (
        lambda: ll.linearity_profile(mlp(), IDS.float()),
        r"call .long\(\)",
        lambda: ll.linearity_profile(mlp(), IDS.float().long(), fit="in-sample"),
    ),
    (
        lambda: ll.linearity_profile(mlp(), IDS.numpy().astype(float)),
        r"use .astype\('int64'\)",
        lambda: ll.linearity_profile(
            mlp(), IDS.numpy().astype(float).astype("int64"), fit="in-sample"
        ),
    ),
    (
        lambda: ll.linearity_profile(known(), "a text"),
        r"use .*lens_linear.tokenize\(model, text\)",
        lambda: ll.layer_map(known(), ll.tokenize(known(), text.default_text(), length=16)[:60]),
    ),
    (
        lambda: ll.tokenize(known(), ["a", "b"]),
        "use tokenize_prompts",
        lambda: ll.tokenize_prompts(known(), ["a", "b"]),
    ),
    (
        lambda: ll.tokenize_prompts(known(), "one text"),
        "use tokenize",
        lambda: ll.tokenize(known(), "one text"),
    ),
    (
        lambda: ll.tokenize_prompts(known(), ["a b " * 400]),
        "pass truncate=True",
        lambda: ll.tokenize_prompts(known(), ["a b " * 400], truncate=True),
    ),
    (
        lambda: ll.tokenize_prompts(known(), ["a", ""]),
        "leave empty texts out",
        lambda: ll.tokenize_prompts(known(), ["a"]),
    ),
    (
        lambda: ll.evaluation_tokens(known(), "a few words", n_sequences=4),
        "pass more text or a shorter length",
        lambda: (
            ll.evaluation_tokens(known(), "a few words " * 400, n_sequences=4),
            ll.evaluation_tokens(known(), "a few words in a row", n_sequences=2, length=2),
        ),
    ),
    (
        lambda: ll.tokenize(toy(), "a text"),
        "set model.tokenizer.*or pass token ids where they are taken",
        lambda: (ll.tokenize(with_tokenizer(), "a text"), ll.stats.score_model(toy(), IDS)),
    ),
    (
        lambda: ll.Task(ll.Task(IDS)),
        "use it as it is, or dataclasses.replace",
        lambda: circuits.in_context_loss(toy(), ll.Task(IDS)),
    ),
    (
        lambda: ll.Task(IDS, labels=torch.ones(12)),
        r"call .long\(\)",
        lambda: ll.Task(IDS, labels=torch.ones(12).long(), positions=-1),
    ),
    (
        lambda: ll.Task(IDS, positions=-1),
        "pass labels, or positions up to -2",
        lambda: (ll.Task(IDS, labels=IDS[:, 0], positions=-1), ll.Task(IDS, positions=-2)),
    ),
    (
        lambda: ll.stats.score_model(toy(), ll.Task(IDS, labels=IDS[:, 0] + 24, positions=-1)),
        "pass indices of its outputs",
        lambda: ll.stats.score_model(toy(), ll.Task(IDS, labels=IDS[:, 0], positions=-1)),
    ),
    (
        lambda: ll.stats.score_model(toy(), SHORT),
        "pass longer rows",
        lambda: ll.stats.score_model(toy(), IDS),
    ),
    (
        lambda: text.repeated_tokens(2, [8, 12], 10, 24),
        "pass length > 12 or shorter periods",
        lambda: (text.repeated_tokens(2, [8, 12], 13, 24), text.repeated_tokens(2, [3, 4], 10, 24)),
    ),
    (
        lambda: text.repeated_tokens(2, [8, 12], 30, 6, distinct=True),
        "pass distinct=False or shorter periods",
        lambda: (
            text.repeated_tokens(2, [8, 12], 30, 6, distinct=False),
            text.repeated_tokens(2, [4, 5], 30, 6, distinct=True),
        ),
    ),
    # linearity
    (
        lambda: ll.linearity_profile(mlp(), IDS[:2, :4]),
        "pass at least",
        lambda: ll.linearity_profile(mlp(), IDS),
    ),
    (
        lambda: ll.linearity_profile(mlp(), IDS, skip=16),
        "take a smaller skip",
        lambda: ll.linearity_profile(mlp(), IDS, skip=1),
    ),
    (
        lambda: ll.linearity_profile(toy(), IDS, sites=["ffn"]),
        "choose others",
        lambda: ll.linearity_profile(toy(), IDS, sites=["block"]),
    ),
    (
        lambda: ll.linearity_profile(mlp(), IDS, statistics={"block_r2": len}),
        "choose another name",
        lambda: ll.linearity_profile(mlp(), IDS, statistics={"rows": lambda m: m.n}),
    ),
    (
        lambda: ll.linearity_profile(mlp(), IDS, statistics={"a": 3}),
        r'e.g. \{"variance": lambda m',
        lambda: ll.linearity_profile(
            mlp(), IDS, statistics={"variance": lambda m: float(m.scatter_y.sum() / m.n)}
        ),
    ),
    (
        lambda: ll.compare({"a": profile("in-sample")}).difference("a", "a"),
        'profile both with fit="held-out"',
        lambda: ll.compare({"a": profile()}).difference("a", "a"),
    ),
    (
        lambda: ll.compare({"a": profile(), "b": profile(n=10)}).difference("a", "b"),
        "profile both on the same tokens",
        lambda: ll.compare({"a": profile(), "b": profile()}).difference("a", "b"),
    ),
    (
        lambda: ll.compare({"a\u202e": profile(), "b": profile()}),
        "name it 'a⟨202E⟩'",
        lambda: ll.compare({"a⟨202E⟩": profile(), "b": profile()}),
    ),
    (
        lambda: ll.compare({"a": 3}),
        "pass what linearity_profile returns",
        lambda: ll.compare({"a": profile()}),
    ),
    (lambda: linalg.fit_linear(X[:4], Y[:4]), "pass", lambda: linalg.fit_linear(X, Y)),
    (
        lambda: save_linearized("advice-linear", mlp(), None),
        "fit_linearization",
        lambda: load_linearized(
            save_linearized(
                "advice-linear",
                known(),
                linearity.fit_linearization(
                    known(),
                    ll.evaluation_tokens(known(), n_sequences=40, length=32),
                    layers=0,
                    site="block",
                ),
            )
        ),
    ),
    # depth
    (
        lambda: ll.gain_profile(toy(), IDS, directions()[:2]),
        "take them from concept_directions",
        lambda: ll.gain_profile(known(), split(), ll.concept_directions(known(), split())),
    ),
    (
        lambda: ll.gain_profile(toy(), [IDS[:2]], directions()),
        "join them with torch.cat, or flatten each",
        lambda: ll.gain_profile(toy(), [IDS[0], IDS[1, :4]], directions()),
    ),
    (
        lambda: ll.gain_profile(toy(), [], directions()),
        "pass at least one row of token ids",
        lambda: ll.gain_profile(toy(), IDS[:1], directions()),
    ),
    (
        lambda: ll.gain_profile(toy(), [torch.zeros(50).long()], directions()),
        "shorten it, or pass truncate=True",
        lambda: ll.gain_profile(toy(), [torch.zeros(50).long()], directions(), truncate=True),
    ),
    (
        lambda: ll.gain_profile(toy(), [IDS[0]], directions(), attention_mask=torch.ones(1, 3)),
        "pass one 0 or 1 for each token",
        lambda: ll.gain_profile(toy(), [IDS[0]], directions(), attention_mask=torch.ones(1, 16)),
    ),
    (
        lambda: ll.min_energy(gains(), torch.ones(3)),
        "target must be one number",
        lambda: ll.min_energy(gains(), 0.5),
    ),
    (
        lambda: ll.concept_directions(known(), 3),
        r"use lens_linear.load_concept\(name\)",
        lambda: ll.concept_directions(known(), ll.load_concept("mood")),
    ),
    (
        lambda: ll.load_concept("mood").split(9000, 10, 10),
        "ask for smaller parts",
        lambda: ll.load_concept("mood").split(90, 10, 10),
    ),
    (
        lambda: dynamics.step_size_table(toy(), IDS, directions(), steps=[]),
        r"pass e.g. \(0.1, 0.01\)",
        lambda: dynamics.step_size_table(toy(), IDS, directions(), steps=(0.1, 0.01)),
    ),
    # constructions
    (
        lambda: ll.OLSAttention.from_data(X[:, 0], Y),
        r"for one column pass \w+\[:, None\]",
        lambda: ll.OLSAttention.from_data(X[:, 0][:, None], Y),
    ),
    (
        lambda: ll.OLSAttention.from_data(X, Y[:3]),
        "check that x and y belong together",
        lambda: ll.OLSAttention.from_data(X, Y),
    ),
    (
        lambda: ll.OLSAttention.from_data(X, Y).predict(X[:, :2]),
        "pass the same features",
        lambda: ll.OLSAttention.from_data(X, Y).predict(X[:3]),
    ),
    (
        lambda: ll.OLSAttention.from_data(X.to(torch.complex64), Y),
        r"pass e.g. \w+.real",
        lambda: ll.OLSAttention.from_data(X.to(torch.complex64).real, Y),
    ),
    (
        lambda: ll.memory_capacity(energies=[], dims=[8]),
        "pass 'quadratic'",
        lambda: ll.memory_capacity(energies=["quadratic"], dims=[8], seeds=2),
    ),
    (
        lambda: constructions.hopfield_update(X[:3], X, beta=0.0),
        r"pass e.g. 1 / sqrt\(d\)",
        lambda: constructions.hopfield_update(X[:3], X, beta=1 / math.sqrt(4)),
    ),
    (
        lambda: constructions.head_dial(toy(), IDS, heads=[]),
        "pass heads=None",
        lambda: constructions.head_dial(toy(n_ctx=64), IDS.repeat(1, 3), heads=None, betas=(1.0,)),
    ),
    # training, names, figures
    (
        lambda: trained(),
        "pass a stream of tokens or batches=",
        lambda: (trained(batches=batch), trained(stream=IDS.repeat(8, 1).flatten())),
    ),
    (
        lambda: trained(batches=batch, loss_mask=MASK[:5]),
        r"must be \[position\] or",
        lambda: trained(batches=batch, loss_mask=MASK),
    ),
    (
        lambda: trained(batches=lambda: IDS),
        "write e.g. lambda step: rows",
        lambda: trained(batches=lambda step: IDS),
    ),
    (
        lambda: trained(batches=lambda step: IDS[:, :1]),
        "batches.* at least 2",
        lambda: trained(batches=lambda step: IDS[:, :2]),
    ),
    (
        lambda: trained(batches=batch, on_step=5),
        "a function of step and loss",
        lambda: trained(batches=batch, on_step=lambda step, loss: None),
    ),
    (
        lambda: trained(batches=batch, loss_mask=torch.full((16,), torch.nan)),
        "pass a tensor of True and False",
        lambda: trained(batches=batch, loss_mask=torch.ones(16)),
    ),
    (
        lambda: trained(batches=lambda step: (IDS, 0 * IDS - 100)),
        "pass labels of tokens there",
        lambda: trained(batches=lambda step: (IDS, IDS)),
    ),
    (
        lambda: trained(batches=batch).at(1),
        r"train with checkpoints=\[1\]",
        lambda: trained(batches=batch, checkpoints=[1]).at(1),
    ),
    (lambda: ll.load("attn-9l"), "attn-", lambda: ll.load("attn-1l")),
    (
        lambda: plots.bigram_table(view().bigrams(), k=0),
        "pass a larger value|at least 1",
        lambda: plots.bigram_table(view().bigrams(), k=1),
    ),
    (
        lambda: plots.attention_pattern(circuits.attention_pattern(toy(), IDS[0], 1), max_cells=5),
        "pass a larger max_cells",
        lambda: plots.attention_pattern(
            circuits.attention_pattern(toy(), IDS[0], 1), max_cells=500
        ),
    ),
    (
        lambda: plots.layer_map(profile()),
        "layer_map",
        lambda: plots.layer_map(ll.layer_map(mlp(), IDS)),
    ),
    (
        lambda: plots.head_scores(ll.induction_scores(toy(), **PROBE), column="index"),
        "must be one of 'prefix_matching'",
        lambda: plots.head_scores(ll.induction_scores(toy(), **PROBE), column="prefix_matching"),
    ),
]
