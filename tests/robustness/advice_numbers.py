"""Advice of the rooms of numbers: least squares, moments, spectra, profiles, replacement."""

import dataclasses
import functools
from pathlib import Path

import torch
from advice_parts import IDS, SHAPE, X, Y, known, mlp, profile, raising, toy, under

import lens_linear as ll
from lens_linear import constructions, linalg, linearity, stats
from lens_linear.errors import UnknownModelError
from lens_linear.linalg import Moments
from lens_linear.linearity import load_linearized, save_linearized
from lens_linear.linearity.replace.replacement import assemble
from lens_linear.models.checked import checked
from lens_linear.models.hooks import edited

SQUARE = torch.randn(40, 4, generator=torch.Generator().manual_seed(1)).double()


def distilled_with_a_hook(strategy):
    """A hook of the caller doubles the stream between two blocks."""
    with edited(mlp(), [((1, "resid_pre"), lambda x: 2 * x)]):
        return ll.replacement_curve(mlp(), IDS, strategy)


def hooks_taken_away():
    mlp().reset_hooks(including_permanent=True)
    return ll.replacement_curve(mlp(), IDS, "linear+distill")


def moments(**options):
    return Moments(**options).update(X, Y)


def rotated(rows):
    return rows * torch.arange(1.0, rows.shape[-1] + 1)


def linear():
    return linearity.fit_linearization(known(), WORDS, layers=0)


WORDS = torch.randint(1, 500, (160, 24), generator=torch.Generator().manual_seed(2))


def saved():
    return save_linearized("advice-saved", known(), linear())


def still():
    """A model whose stream is the same at every position of a constant text."""
    return ll.toy_model(**SHAPE, positions="none").double()


def loud(dtype):
    """A model whose logits are beyond 65,504, where float16 ends."""
    model = ll.toy_model(**SHAPE, norm="LN")
    with torch.no_grad():
        model.unembed.weight.mul_(60_000 / model.unembed.weight.abs().max())
    return model.to(dtype)


def scored_on_the_mean():
    """Score rows that are all the mean of the training rows."""
    fit = moments().fit()
    return Moments().update(X, fit.mean_y.expand(len(X), -1)).score(fit)


def several(other):
    """Sum over two processes, of which the other one holds these statistics."""
    mine = moments()
    names = {
        "linalg.moments.process": lambda: (0, 2),
        "linalg.moments.gather_ints": lambda row: [row, other],
    }
    return under(names, mine.all_reduce_)


@functools.cache
def lens(**options):
    return ll.fit_lens(known(), WORDS, **options)


@functools.cache
def of_site(first):
    return ll.linearity_profile(mlp(), IDS, sites=[first], statistics={"rows": lambda m: m.n})


def damaged(folder):
    place = Path(folder, "maps.safetensors")
    place.write_bytes(place.read_bytes()[:-1])
    return load_linearized(folder)


def with_logits(change):
    edits = [((1, "resid_post"), change)]
    return stats.score_model(toy(), IDS, edits=edits)


LOST = UnknownModelError("no such model")


ROWS = [
    # tensors
    (
        lambda: linalg.fit_linear(X.tolist(), Y),
        r"use torch.as_tensor\(x\)",
        lambda: linalg.fit_linear(torch.as_tensor(X.tolist()), Y),
    ),
    (
        lambda: linalg.fit_linear((10 * X).long(), Y),
        r"call .float\(\)",
        lambda: linalg.fit_linear((10 * X).long().float(), Y),
    ),
    (
        lambda: linalg.fit_linear(torch.quantize_per_tensor(X.float(), 0.1, 0, torch.qint8), Y),
        r"call .dequantize\(\)",
        lambda: linalg.fit_linear(
            torch.quantize_per_tensor(X.float(), 0.1, 0, torch.qint8).dequantize(), Y
        ),
    ),
    (
        lambda: linalg.fit_linear(X.to_sparse(), Y),
        r"call .to_dense\(\)",
        lambda: linalg.fit_linear(X.to_sparse().to_dense(), Y),
    ),
    (
        lambda: linalg.fit_linear(X[:, 0], Y),
        r"use x\[:, None\]",
        lambda: linalg.fit_linear(X[:, 0][:, None], Y),
    ),
    (
        lambda: linalg.fit_linear(X[:, :0], Y),
        "at least one column",
        lambda: linalg.fit_linear(X[:, :1], Y),
    ),
    (
        lambda: linalg.fit_linear(X, Y[1:]),
        "row i of y must belong to row i of x",
        lambda: linalg.fit_linear(X[1:], Y[1:]),
    ),
    (
        lambda: linalg.fit_linear(X, torch.ones_like(Y)),
        "check that y is the activation you meant",
        lambda: linalg.fit_linear(X, Y),
    ),
    (
        lambda: linalg.fit_linear(X * 1e200, Y),
        "rescale it",
        lambda: linalg.fit_linear(X * 1e200 / 1e200, Y),
    ),
    (
        lambda: linalg.fit_linear(X, Y).predict(X[:, :2]),
        "pass activations of the same site",
        lambda: linalg.fit_linear(X, Y).predict(X[:3]),
    ),
    (
        lambda: linalg.reduced_rank(X, 2),
        r"fill them with .update\(x, y\)",
        lambda: linalg.reduced_rank(Moments().update(X, Y), 2),
    ),
    (
        lambda: linalg.r_squared(Y, Y[:, 0]),
        "reshape them",
        lambda: linalg.r_squared(Y, Y[:, :1].expand(-1, 2)),
    ),
    (
        lambda: linalg.r_squared(Y, Y, mean=X.mean(0)),
        "pass e.g. fit.mean_y",
        lambda: linalg.r_squared(Y, Y, mean=linalg.fit_linear(X, Y).mean_y),
    ),
    (
        lambda: linalg.r_squared(Y[:1], Y[:1]),
        "check y, or pass more rows",
        lambda: linalg.r_squared(Y, Y),
    ),
    # moments
    (
        lambda: moments().merge(X),
        "pass statistics to merge",
        lambda: moments().merge(Moments().update(X, Y)),
    ),
    (
        lambda: moments(keep_yy=True).merge(moments()),
        "build both with the same value",
        lambda: moments(keep_yy=True).merge(moments(keep_yy=True)),
    ),
    (
        lambda: moments().update(X[:, :2], Y),
        "one Moments object per site",
        lambda: Moments().update(X[:, :2], Y),
    ),
    (
        lambda: Moments(4, 2).fit(),
        r"call update\(x, y\) first",
        lambda: Moments(4, 2).update(X, Y).fit(),
    ),
    (
        lambda: moments().syy,
        "build Moments so, or use scatter_y",
        lambda: (moments(keep_yy=True).syy, moments().scatter_y),
    ),
    (
        lambda: moments().without_input(),
        "as many columns in y as in x",
        lambda: Moments().update(X, SQUARE).without_input(),
    ),
    (
        lambda: Moments.load("nothing-here"),
        "check the path",
        lambda: Moments.load(moments().save("advice-moments") or "advice-moments"),
    ),
    # spectra, bases, rotations
    (
        lambda: linalg.orthogonal_procrustes(X, Y),
        "use fit_linear for maps between widths",
        lambda: linalg.fit_linear(X, Y),
    ),
    (
        lambda: linalg.orthogonal_procrustes(X, torch.ones_like(X)),
        "check the data",
        lambda: linalg.orthogonal_procrustes(X, SQUARE),
    ),
    (
        lambda: linalg.orthogonal_procrustes(X, SQUARE).predict(Y),
        "pass activations of the same site",
        lambda: linalg.orthogonal_procrustes(X, SQUARE).predict(X[:2]),
    ),
    (
        lambda: linalg.spectrum(X[0]),
        "for a single column",
        lambda: linalg.spectrum(X[:1].reshape(-1, 1)),
    ),
    (
        lambda: linalg.spectrum(torch.zeros_like(X)),
        "check the data",
        lambda: linalg.spectrum(X),
    ),
    (
        lambda: linalg.anisotropy(torch.ones_like(X)),
        "rows are all equal; check the data",
        lambda: linalg.anisotropy(X),
    ),
    (
        lambda: (
            linalg.krylov_basis(rotated, X, order=2)
            and linalg.krylov_basis(rotated, X[0, 0], order=2)
        ),
        "reshape it",
        lambda: linalg.krylov_basis(rotated, X[0], order=2),
    ),
    (
        lambda: linalg.krylov_basis(rotated, torch.zeros(4).double(), order=2),
        "pass a direction",
        lambda: linalg.krylov_basis(rotated, torch.ones(4).double(), order=2),
    ),
    (
        lambda: linalg.krylov_basis(lambda rows: rows[:, :2], X, order=2),
        "map rows to rows",
        lambda: linalg.krylov_basis(rotated, X, order=2),
    ),
    (
        lambda: linalg.complete_basis(X[0]),
        "reshape",
        lambda: linalg.complete_basis(X[0][:, None]),
    ),
    (
        lambda: linalg.balanced_truncation(X[:6], Y[:5], order=1),
        r"both are \[d, responses\]",
        lambda: linalg.balanced_truncation(X[:6], Y[:6], order=1),
    ),
    (
        lambda: linalg.balanced_truncation(torch.eye(4)[:, :2], torch.eye(4)[:, 2:], order=1),
        "check that they belong to one system",
        lambda: linalg.balanced_truncation(torch.eye(4)[:, :2], torch.eye(4)[:, :2], order=1),
    ),
    # a profile and what stands beside it
    (
        lambda: ll.linearity_profile(mlp(), IDS, sites="block"),
        r"such as \['block', 'ffn'\]",
        lambda: ll.linearity_profile(mlp(), IDS, sites=["block", "ffn"]),
    ),
    (
        lambda: ll.linearity_profile(mlp(), IDS, statistics={"bad": lambda m: m.absent}),
        "mend it: with checkpoint= the pass itself is kept",
        lambda: ll.linearity_profile(
            mlp(), IDS, statistics={"good": lambda m: m.n}, checkpoint="advice-pass"
        ),
    ),
    (
        lambda: ll.linearity_profile(mlp(), IDS, max_memory=1000),
        r"pass max_memory=\d+",
        lambda: ll.linearity_profile(mlp(), IDS, max_memory=10**6),
    ),
    (
        lambda: ll.compare({}),
        "at least one LinearityProfile",
        lambda: ll.compare({"a": profile()}),
    ),
    (
        lambda: ll.layer_map(mlp(), IDS, boundaries=[1]),
        r"e.g. \[0, 1\]",
        lambda: ll.layer_map(mlp(), IDS, boundaries=[0, 1]),
    ),
    (
        lambda: ll.bilinear_probe(mlp(), IDS, 0, rank=[]),
        r"e.g. \(1, 4\)",
        lambda: ll.bilinear_probe(mlp(), IDS, 0, rank=(1, 4), iterations=2),
    ),
    (
        lambda: linearity.bilinear_on_rows(X, Y, X, Y, rank=1, sequence=torch.ones(3)),
        "pass None for no intervals",
        lambda: linearity.bilinear_on_rows(X, Y, X, Y, rank=1, iterations=2, sequence=None),
    ),
    (
        lambda: linearity.bilinear_on_rows(torch.ones_like(X), Y, X, Y, rank=1),
        "pass other rows",
        lambda: linearity.bilinear_on_rows(X, Y, X, Y, rank=1, iterations=2),
    ),
    (
        lambda: linearity.bilinear_on_rows(X, Y, X, Y[1:], rank=1),
        "row i of y_test must belong to row i of x_test",
        lambda: linearity.bilinear_on_rows(X, Y, X[1:], Y[1:], rank=1, iterations=2),
    ),
    (
        lambda: linearity.adam_on_rows(X, Y, X[:, :2], Y),
        "pass rows of the same kind",
        lambda: linearity.adam_on_rows(X, Y, X[:9], Y[:9], steps=2),
    ),
    (
        lambda: stats.gather_rows(toy(), stats.as_rows(toy(), IDS), layer=0, site="ffn"),
        "must be one of 'block', 'attn'",
        lambda: stats.gather_rows(toy(), stats.as_rows(toy(), IDS), layer=0, site="block"),
    ),
    # lens
    (
        lambda: ll.fit_lens(toy(), IDS).score(IDS, layers=[]),
        "leave it out for all",
        lambda: ll.fit_lens(toy(), IDS).score(IDS),
    ),
    (
        lambda: ll.fit_lens(loud(torch.float16), IDS, polish=1),
        "load the model in a wider precision",
        lambda: ll.fit_lens(loud(torch.float32), IDS, polish=1),
    ),
    (
        lambda: lens().normed(torch.zeros(2, 3), 0),
        "take it from the model that the lens was fitted on",
        lambda: lens().normed(torch.zeros(2, known().cfg.d_model), 0),
    ),
    # replacement
    (
        lambda: linearity.ffn_compression(mlp(), IDS, layers=[]),
        "leave them out",
        lambda: linearity.ffn_compression(mlp(), IDS),
    ),
    (
        lambda: ll.replacement_curve(mlp(), IDS, order=[0, 0]),
        "each layer at most once",
        lambda: ll.replacement_curve(mlp(), IDS, order=[1, 0]),
    ),
    (
        lambda: distilled_with_a_hook("linear+distill"),
        r'use strategy="linear", or call model.reset_hooks\(including_permanent=True\) first',
        lambda: (distilled_with_a_hook("linear"), hooks_taken_away()),
    ),
    (
        lambda: linearity.fit_linearization(mlp(), IDS, runs=[(0, 1)], site="ffn"),
        r"e.g. runs=\[\(2, 4\)\], site='block'",
        lambda: linearity.fit_linearization(
            toy(n_layers=5, attn_only=False), IDS, runs=[(2, 4)], site="block"
        ),
    ),
    (
        lambda: linearity.fit_linearization(mlp(), IDS, runs=[(1, 0)]),
        "swap them",
        lambda: linearity.fit_linearization(mlp(), IDS, runs=[(0, 1)]),
    ),
    (
        lambda: linearity.fit_linearization(mlp(), IDS, layers=[]),
        r"pass e.g. layers=\[0\]",
        lambda: linearity.fit_linearization(mlp(), IDS, layers=[0]),
    ),
    (
        lambda: linearity.fit_linearization(mlp(), IDS, layers=[0], runs=[(0, 1)]),
        "name each layer once",
        lambda: linearity.fit_linearization(mlp(), IDS, runs=[(0, 1)]),
    ),
    (
        lambda: linearity.fit_linearization(toy(), IDS, layers=[0], site="ffn"),
        "has no .ffn. to replace",
        lambda: linearity.fit_linearization(toy(), IDS, layers=[0], site="block"),
    ),
    (
        lambda: linearity.run_table(mlp(), IDS, lengths=[]),
        r"pass e.g. lengths=\[2\]",
        lambda: linearity.run_table(mlp(), IDS, lengths=[2]),
    ),
    (
        lambda: save_linearized("advice-none", known(), dataclasses.replace(linear(), maps=())),
        "fit at least one layer",
        saved,
    ),
    (
        lambda: load_linearized(saved(), model=ll.load("attn-2l")),
        "pass that model",
        lambda: load_linearized(saved(), model=known()),
    ),
    (
        lambda: ll.fit_lens(mlp(), IDS).read(""),
        "pass a sentence|has no tokenizer",
        lambda: ll.fit_lens(known(), WORDS).read("once upon a time"),
    ),
    (
        lambda: ll.fit_lens(known(), WORDS).read(""),
        "pass a sentence",
        lambda: ll.fit_lens(known(), WORDS).read("once upon a time"),
    ),
    # counts
    (
        lambda: stats.bigram_kl(3, stats.bigram_counts(IDS, 24)),
        r"use logits.log_softmax\(-1\)",
        lambda: stats.bigram_kl(torch.ones(24, 24).log_softmax(-1), stats.bigram_counts(IDS, 24)),
    ),
    (
        lambda: stats.bigram_kl(torch.ones(24, 24), stats.bigram_counts(IDS, 24)),
        r"apply log_softmax\(-1\)",
        lambda: stats.bigram_kl(torch.ones(24, 24).log_softmax(-1), stats.bigram_counts(IDS, 24)),
    ),
    (
        lambda: stats.bigram_kl(torch.ones(9, 9).log_softmax(-1), stats.bigram_counts(IDS, 24)),
        "counted with another vocabulary",
        lambda: stats.bigram_kl(torch.ones(24, 24).log_softmax(-1), stats.bigram_counts(IDS, 24)),
    ),
    (
        lambda: stats.bigram_entropy(IDS),
        "pass the vocabulary size",
        lambda: stats.bigram_entropy(IDS, 24),
    ),
    (
        lambda: stats.bigram_counts(IDS, 24).rows([]),
        r"pass e.g. torch.tensor\(\[3\]\)",
        lambda: stats.bigram_counts(IDS, 24).rows(torch.tensor([3])),
    ),
    (
        lambda: ll.stats.bigram_counts(IDS, 9000).dense(),
        r"\.rows\(tokens\)",
        lambda: ll.stats.bigram_counts(IDS, 9000).rows(IDS[0]),
    ),
    # statistics of several processes, and what a fit or a map is asked
    (
        scored_on_the_mean,
        "pass rows that vary",
        lambda: moments().score(moments().fit()),
    ),
    (
        lambda: several((40, 4, 3, 0)),
        "build them alike",
        lambda: moments().all_reduce_(),
    ),
    (
        lambda: linalg.spectrum(0 * X, center=False),
        "check the data",
        lambda: linalg.spectrum(X, center=False),
    ),
    (
        lambda: stats.bigram_kl(lambda ids: 1 / 0, stats.bigram_counts(IDS, 24)),
        "mend it",
        lambda: stats.bigram_kl(
            lambda ids: torch.ones(len(ids), 24).log_softmax(-1), stats.bigram_counts(IDS, 24)
        ),
    ),
    (
        lambda: stats.bigram_counts(IDS, 24).rows(torch.tensor([], dtype=torch.int64)),
        r"pass e.g. torch.tensor\(\[3\]\)",
        lambda: stats.bigram_counts(IDS, 24).rows(torch.tensor([3])),
    ),
    (
        lambda: lens(raw=False).normed(X[:, :1].float().expand(-1, 128), 0, "raw"),
        "fit it with raw=True",
        lambda: lens(raw=True).normed(X[:, :1].float().expand(-1, 128), 0, "raw"),
    ),
    (
        lambda: ll.compare({"a": of_site("block"), "b": of_site("ffn")}).difference("a", "b"),
        "profile both with the same first of sites",
        lambda: ll.compare({"a": of_site("ffn"), "b": of_site("ffn")}).difference("a", "b"),
    ),
    (
        lambda: ll.layer_map(still(), torch.ones(60, 16).long()),
        "pass different tokens",
        lambda: ll.layer_map(mlp(), IDS),
    ),
    (
        lambda: ll.linearity_profile(mlp(), IDS, statistics=["rows"]),
        r'e.g. \{"variance": lambda m',
        lambda: ll.linearity_profile(
            mlp(), IDS, statistics={"variance": lambda m: float(m.scatter_y.sum() / m.n)}
        ),
    ),
    (
        lambda: linearity.fit_linearization(mlp(), IDS, runs=[(0, 1), (1, 1)]),
        "name each layer once",
        lambda: linearity.fit_linearization(mlp(), IDS, runs=[(0, 1)]),
    ),
    (
        lambda: ll.replacement_curve(toy(n_layers=0), IDS),
        r"use one with layers, such as load\('attn-2l'\)",
        lambda: ll.replacement_curve(ll.load("attn-2l"), WORDS, strategy="remove"),
    ),
    (
        lambda: under(
            {"linearity.replace.saved.load": raising(LOST)}, lambda: load_linearized(saved())
        ),
        r"pass it: load_linearized\(folder, model=...\)",
        lambda: load_linearized(saved(), model=known()),
    ),
    (lambda: damaged(saved()), "save it again", lambda: load_linearized(saved())),
    (
        lambda: with_logits(lambda x: x + torch.nan),
        "replace fewer layers",
        lambda: with_logits(lambda x: x),
    ),
    (
        lambda: linalg.fit_linear(X / 0, Y),
        "check the data or the model that produced it",
        lambda: linalg.fit_linear(X, Y),
    ),
    (
        lambda: constructions.hopfield_update(X[0], X),
        "must have 2 axes.*reshape it first",
        lambda: constructions.hopfield_update(X[0].reshape(1, 4), X),
    ),
    (
        lambda: stats.bigram_counts(IDS[:, :1], 24),
        "pass more or longer text",
        lambda: stats.bigram_counts(IDS, 24),
    ),
    (
        lambda: assemble(checked(known()), [*linear().maps, *linear().maps], "twice"),
        "name each layer once",
        lambda: assemble(checked(known()), linear().maps, "once"),
    ),
]
