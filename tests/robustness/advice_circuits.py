"""Advice of the circuits: heads, patterns, paths, skip-trigrams, patching, induction."""

import torch
from advice_parts import (
    IDS,
    PROBE,
    ablated,
    attribution,
    cut,
    known,
    mlp,
    native,
    toy,
    view,
    wide,
)
from transformer_lens import FactoredMatrix

import lens_linear as ll
from lens_linear import circuits
from lens_linear.stats import bigram_counts

HEAD = "L1H0"
CROSSED = torch.tensor([[5, 1, 2], [5, 3, 4]])
RAGGED = [IDS[0].tolist(), IDS[1, :9].tolist()]


def head(name=HEAD):
    return ll.head(toy(), name)


def bare():
    return toy(n_layers=0)


def matrix(rows, columns):
    return FactoredMatrix(torch.randn(rows, 2), torch.randn(2, columns))


ROWS = [
    (
        lambda: (attribution().map(2, 5), None),
        "pass a key of at most 2",
        lambda: attribution().map(2, 2),
    ),
    (
        lambda: attribution().mean_map(torch.ones(2, 16, 16)),
        r"pass weights.tril\(\)",
        lambda: attribution().mean_map(torch.ones(2, 16, 16).tril()),
    ),
    (
        lambda: ll.path_patch(toy(), IDS[:1], IDS[1:2], receivers=["L1H0"], via=[]),
        "leave it out for all",
        lambda: ll.path_patch(toy(), IDS[:1], IDS[1:2], receivers=["L1H0"]),
    ),
    # heads
    (
        lambda: ll.head(toy(), 1),
        r"write e.g. 'L1H0', or 1, 0",
        lambda: (ll.head(toy(), "L1H0"), ll.head(toy(), 1, 0)),
    ),
    (
        lambda: ll.head(bare(), 0, 0),
        r"use .bigrams\(\)|at most -1",
        lambda: ll.AttentionOnly(bare()).bigrams(),
    ),
    (
        lambda: ablated_heads(["L0H0", "L0H0"]),
        "name each once",
        lambda: ablated_heads(["L0H0", "L0H1"]),
    ),
    (
        lambda: ll.head(toy(), HEAD, labels=["a"]),
        "pass one a token",
        lambda: ll.head(toy(), HEAD, labels=[str(i) for i in range(24)]),
    ),
    (
        lambda: circuits.copying_score(matrix(6, 5)),
        "must be square",
        lambda: circuits.copying_score(matrix(6, 6)),
    ),
    (
        lambda: circuits.diagonal_accuracy(matrix(6, 5)),
        "must be square",
        lambda: circuits.diagonal_accuracy(matrix(6, 6)),
    ),
    (lambda: circuits.sum_of([]), "pass heads", lambda: circuits.sum_of([head().ov])),
    (lambda: circuits.summed_ov([]), "at least one", lambda: circuits.summed_ov([head()])),
    (
        lambda: circuits.map_of(head().ov, name="ov", axes="ab"),
        "one for rows and one for columns",
        lambda: circuits.map_of(head().ov, name="ov", axes=("a", "b"), blocks=4),
    ),
    (
        lambda: circuits.map_of(head().ov, name="ov", labels=(["a"], None)),
        "each of the 24 rows",
        lambda: circuits.map_of(
            head().ov, name="ov", labels=(list("abcdefghijklmnopqrstuvwx"), None), blocks=4
        ),
    ),
    (
        lambda: circuits.virtual_head(head("L0H0"), ll.head(mlp(), HEAD)),
        "heads of the same model",
        lambda: circuits.virtual_head(head("L0H0"), head()),
    ),
    (
        lambda: wide().matrix and circuits.top_pairs(wide().matrix, 0),
        "pass a larger value",
        lambda: circuits.top_pairs(wide().matrix, 1),
    ),
    # attention and its parts
    (
        lambda: attribution().mean_contrast(torch.ones(3)),
        r"weights must be a tensor \[2, 16, 16\]",
        lambda: attribution().mean_contrast(torch.ones(2, 16, 16).tril()),
    ),
    (
        lambda: ll.qk_attribution(toy(), IDS[:, :1].repeat(1, 40), HEAD),
        r"cut the sequences, e.g. tokens\[:, :32\]",
        lambda: ll.qk_attribution(toy(), IDS[:, :1].repeat(1, 40)[:, :32], HEAD),
    ),
    # labels and texts of tokens
    (
        lambda: view().bigrams().top("a"),
        "must be an id here",
        lambda: (
            view().bigrams().top(3),
            ll.AttentionOnly(toy(), labels=[str(i) for i in range(24)]).bigrams().top("3"),
        ),
    ),
    (
        lambda: ll.AttentionOnly(known()).bigrams().top("  the"),
        "nearest: .*' the'",
        lambda: ll.AttentionOnly(known()).bigrams().top(" the"),
    ),
    # bigrams
    (
        lambda: view().bigrams().compare(torch.ones(24, 24)),
        "divide counts by their row sums",
        lambda: (
            view().bigrams().compare(torch.ones(24, 24) / torch.ones(24, 24).sum(1, keepdim=True))
        ),
    ),
    (
        lambda: view().bigrams().compare(torch.ones(24, 24) / 24, weights=torch.zeros(24)),
        "at least 0 that do not sum to 0",
        lambda: view().bigrams().compare(torch.ones(24, 24) / 24, weights=torch.ones(24)),
    ),
    (
        lambda: ll.AttentionOnly(native(d_vocab_out=9)).bigrams().compare(bigram_counts(IDS, 24)),
        "bigrams of one vocabulary",
        lambda: view().bigrams().compare(bigram_counts(IDS, 24)),
    ),
    # skip-trigrams
    (
        lambda: circuits.all_skip_trigrams([], 3),
        "at least one head",
        lambda: circuits.all_skip_trigrams([head()], 3),
    ),
    (
        lambda: circuits.skip_trigrams(head(), 3, sources=[]),
        "leave it out",
        lambda: circuits.skip_trigrams(head(), 3),
    ),
    (
        lambda: circuits.skip_trigram_bugs(head(), CROSSED[:1]),
        "pass more triples",
        lambda: circuits.skip_trigram_bugs(head(), CROSSED),
    ),
    (
        lambda: circuits.skip_trigram_bugs(head(), CROSSED.float()),
        r"integer triples \[n, 3\]",
        lambda: circuits.skip_trigram_bugs(head(), CROSSED.float().long()),
    ),
    (
        lambda: circuits.skip_trigram_bugs(head(), "bugs"),
        "pass what skip_trigrams returned",
        lambda: circuits.skip_trigram_bugs(
            head(), circuits.skip_trigrams(head(), 30, by="probability")
        ),
    ),
    # standing in for heads
    (
        lambda: ablated(tokens=IDS[:, :8]),
        "pass longer reference tokens, or how='pooled'",
        lambda: (ablated(tokens=IDS), ablated(tokens=IDS[:, :8], how="pooled")),
    ),
    (
        lambda: ablated(tokens=RAGGED, how="resample"),
        "cut them, or use how='mean'",
        lambda: (
            ablated(tokens=[row[:9] for row in RAGGED] and IDS, how="resample"),
            ablated(tokens=[*RAGGED, IDS[2].tolist()], how="mean"),
        ),
    ),
    (
        lambda: circuits.ablation_scores(toy(), IDS[:1], how="resample"),
        "pass more rows, or a reference",
        lambda: (
            circuits.ablation_scores(toy(), IDS[:2], how="resample"),
            circuits.ablation_scores(toy(), IDS[:1], how="resample", reference=IDS[1:3]),
        ),
    ),
    # patching
    (
        lambda: ll.patch(toy(), IDS[:2], IDS[:2, :8]),
        "make both prompts equally long",
        lambda: ll.patch(toy(), IDS[:2, :8], IDS[2:4, :8]),
    ),
    (
        lambda: ll.patch(toy(), IDS[:1], IDS[1:2], what="ffn_out"),
        "patch another place, e.g. 'residual'",
        lambda: ll.patch(toy(), IDS[:1], IDS[1:2], what="residual"),
    ),
    (
        lambda: ll.patch(toy(), RAGGED, RAGGED, what="path"),
        "cut them",
        lambda: ll.patch(toy(), IDS[:1, :9], IDS[1:2, :9], what="path"),
    ),
    (
        lambda: cut("L0H0", ["L1H0", "L1H1"]),
        "open one block a receiver",
        lambda: (cut("L0H0", "L1H0"), cut("L0H0", "L1H1")),
    ),
    (
        lambda: ll.path_patch(toy(), IDS[:1], IDS[1:2], receivers=[]),
        "be 'logits'",
        lambda: (
            ll.path_patch(toy(), IDS[:1], IDS[1:2], receivers="logits"),
            ll.path_patch(toy(), IDS[:1], IDS[1:2], receivers=["L1H0"]),
        ),
    ),
    # losses in context
    (
        lambda: circuits.in_context_loss(native(d_vocab_out=9), IDS),
        r"pass lens_linear.Task\(tokens, labels=...\)",
        lambda: circuits.in_context_loss(native(d_vocab_out=9), ll.Task(IDS, labels=IDS % 9)),
    ),
    (
        lambda: circuits.in_context_loss(toy(), ll.Task(IDS, labels=IDS[:, 0], positions=-1)),
        "pass labels or positions at several places",
        lambda: circuits.in_context_loss(toy(), ll.Task(IDS, positions=[2, 5, 8, 11])),
    ),
    # induction
    (
        lambda: circuits.verify_induction(known(), induction=[], **PROBE),
        "leave it out",
        lambda: circuits.verify_induction(ll.load("attn-2l"), rows_per_period=1, n_controls=1),
    ),
    (
        lambda: circuits.verify_induction(toy(), induction=["L1H0"], **PROBE),
        r"use a model that does, such as load\('attn-2l'\)",
        lambda: circuits.verify_induction(ll.load("attn-2l"), rows_per_period=1, n_controls=1),
    ),
    (
        lambda: view().paths(IDS[:, :1]).loss,
        "pass longer sequences",
        lambda: view().paths(IDS[:2, :4]).loss,
    ),
]


def ablated_heads(names):
    with circuits.ablate_heads(toy(), names, how="zero") as model:
        return model(IDS)
