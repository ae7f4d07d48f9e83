"""One good call of every public function: what the mutations start from."""

from __future__ import annotations

import functools
import inspect
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

import lens_linear as ll
from lens_linear import constructions, linalg, text


@dataclass(frozen=True)
class Call:
    """A public function with arguments that work; ``free`` names arguments that take anything."""

    name: str
    function: Callable[..., Any]
    good: Callable[[], dict[str, Any]]
    free: frozenset[str] = field(default_factory=frozenset)

    def arguments(self) -> dict[str, Any]:
        """The good arguments, defaults filled in."""
        found = dict(self.good())
        for name, parameter in inspect.signature(self.function).parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            if name not in found and parameter.default is not parameter.empty:
                found[name] = parameter.default
        return found


CALLS: list[Call] = []


def call(name: str, function: Callable[..., Any], /, *, free: str = "", **good: Any) -> None:
    """Add a call; values that are functions without arguments (``Lazy``) are made on demand."""

    def arguments() -> dict[str, Any]:
        return {key: value() if isinstance(value, Lazy) else value for key, value in good.items()}

    CALLS.append(Call(name, function, arguments, frozenset(free.split())))


def at(where: str) -> Any:
    """The object at ``room.file.name``."""
    module, name = where.rsplit(".", 1)
    return getattr(import_module(f"lens_linear.{module}"), name)


class Lazy:
    """A value that is made when it is first needed."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = functools.cache(make)

    def __call__(self) -> Any:
        return self._make()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(*shape: int, high: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


SHAPE: dict[str, Any] = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_vocab": 20, "n_ctx": 16}
ATTN = Lazy(lambda: ll.toy_model(**SHAPE))
GPT = Lazy(lambda: ll.toy_model(**SHAPE, attn_only=False, norm="LN"))
NATURAL = Lazy(lambda: ll.load("attn-1l"))
TOKENS = ids(8, 12)
X, Y = randn(60, 4), randn(60, 3, seed=1)


def _linalg() -> None:
    moments = Lazy(lambda: linalg.Moments(keep_yy=True).update(X, Y))
    fit = Lazy(lambda: linalg.fit_linear(X, Y))
    call("fit_linear", linalg.fit_linear, x=X, y=Y)
    call("reduced_rank", linalg.reduced_rank, moments=moments, rank=2)
    call("r_squared", linalg.r_squared, y=Y, prediction=Y * 0.9, mean=Y.mean(0))
    call("procrustes_similarity", ll.procrustes_similarity, x=X, y=Y)
    call("orthogonal_procrustes", linalg.orthogonal_procrustes, x=X, y=randn(60, 4, seed=2))
    call("spectrum", linalg.spectrum, x=X)
    call("anisotropy", linalg.anisotropy, x=X)
    call("intrinsic_dimension", linalg.intrinsic_dimension, x=X)
    call(
        "balanced_truncation",
        linalg.balanced_truncation,
        controllability_factor=randn(6, 3),
        observability_factor=randn(6, 4),
        order=2,
    )
    call(
        "krylov_basis",
        lambda start, order, rtol, seed: linalg.krylov_basis(
            lambda v: v * torch.arange(1.0, v.shape[-1] + 1),
            start,
            order=order,
            rtol=rtol,
            seed=seed,
        ),
        start=randn(2, 5),
        order=3,
        rtol=1e-10,
        seed=0,
    )
    call("complete_basis", linalg.complete_basis, columns=randn(5, 2), order=4)
    call("to_compute", linalg.to_compute, x=X.float(), free="device")
    call("compute_device", linalg.compute_device, device="cpu", free="device")
    call("text_label", text.text_label, text="Once upon")
    call(
        "ols_transformer",
        constructions.ols_transformer,
        layer=Lazy(lambda: ll.OLSAttention.from_data(X, Y)),
        x_new=X,
    )
    call(
        "attention_dial",
        constructions.attention_dial,
        betas=(1.0,),
        orders=(2,),
        d=2,
        n=8,
        queries=2,
        seeds=2,
    )
    call(
        "trained_heads",
        constructions.trained_heads,
        model=ATTN,
        tokens=TOKENS,
        heads=[(0, 0)],
        exchanges=(),
    )
    call(
        "head_dial",
        constructions.head_dial,
        model=ATTN,
        tokens=TOKENS,
        heads=[(0, 0)],
        betas=(1.0,),
        queries=2,
    )
    call("Moments", ll.Moments, d_in=3, d_out=2, free="device")
    call("Moments.update", lambda x, y: ll.Moments().update(x, y), x=X, y=Y)
    call("Moments.merge", lambda other: moments().copy().merge(other), other=moments)
    call("Moments.fit", lambda ridge: moments().fit(ridge), ridge=0.1)
    call("Moments.score", lambda fit: moments().score(fit), fit=fit)
    call("Moments.load", lambda path: ll.Moments.load(path), path="absent")
    call("Moments.save", lambda path: moments().save(path), path="no/such/folder/file")
    call("LinearFit.predict", lambda x: fit().predict(x), x=X)
    call("LinearFit.truncate", lambda rank: fit().truncate(rank), rank=2)


def _text() -> None:
    language = Lazy(lambda: text.SyntheticLanguage())
    concept = Lazy(lambda: text.load_concept("mood", limit=60))
    call("SyntheticLanguage", text.SyntheticLanguage)
    call(
        "SyntheticLanguage.tokens",
        lambda n_sequences, length, seed: language().tokens(n_sequences, length, seed=seed),
        n_sequences=2,
        length=8,
        seed=0,
    )
    call(
        "SyntheticLanguage.mood_sentences",
        lambda n, length, n_mood, words, seed: language().mood_sentences(
            n, length=length, n_mood=n_mood, words=words, seed=seed
        ),
        n=4,
        length=12,
        n_mood=2,
        words="all",
        seed=0,
    )
    call("SyntheticLanguage.decode", lambda tokens: language().decode(tokens), tokens=ids(2, 4))
    call("SyntheticLanguage.encode", lambda text: language().encode(text), text="a")
    call(
        "repeated_tokens", text.repeated_tokens, n_sequences=4, periods=[3, 4], length=10, vocab=20
    )
    call("random_tokens", text.random_tokens, n_sequences=4, length=5, vocab=20)
    call("pack", text.pack, ids=ids(30), length=5)
    call(
        "batches",
        lambda tokens, size, seed: list(text.batches(tokens, size, seed=seed)),
        tokens=TOKENS,
        size=3,
        seed=0,
    )
    call("token_label", text.token_label, token=" the")
    call("token_labels", text.token_labels, tokens=[" the", "a"])
    call("unique_labels", text.unique_labels, labels=["a", "a"])
    call("html_label", text.html_label, token="<b>")
    call("load_concept", text.load_concept, source="mood", limit=10)
    call(
        "Concept",
        text.Concept,
        name="c",
        texts=["a", "b"],
        labels=[0, 1],
        source="here",
        free="name source",
    )
    call(
        "Concept.split",
        lambda n_concept, n_operating, n_evaluation, seed: concept().split(
            n_concept, n_operating, n_evaluation, seed=seed
        ),
        n_concept=4,
        n_operating=4,
        n_evaluation=4,
        seed=0,
    )
    call("read_text", text.read_text, path="absent.txt")
    call("read_documents", text.read_documents, path="absent.jsonl")
    call("huggingface_text", text.huggingface_text, name="no/such/folder")
    call(
        "stream_huggingface_text",
        lambda name: list(text.stream_huggingface_text(name)),
        name="no/such",
    )
    stream = Lazy(lambda: _stream())
    call("TokenStream", text.TokenStream, path="absent", length=4)
    call(
        "TokenStream.write",
        text.TokenStream.write,
        path="no/such/file",
        chunks=[[1, 2]],
        length=2,
        n_vocab=9,
    )
    call("TokenStream.getitem", lambda index: stream()[index], index=0)


def _stream() -> Any:
    folder = tempfile.mkdtemp()
    return text.TokenStream.write(f"{folder}/ids", [TOKENS.flatten()], length=12, n_vocab=20)


def _models() -> None:
    from lens_linear.models import capture
    from lens_linear.models import native as spec
    from lens_linear.models import tokenizer as tokenize
    from lens_linear.models.describe import parameter_counts as sizes
    from lens_linear.models.describe import rotary, weights
    from lens_linear.models.frozen import attention_scores as scores
    from lens_linear.models.frozen import frozen_attention, frozen_context
    from lens_linear.models.open.checksum import weights_sha256

    call("load", ll.load, name="no-such-model", free="device dtype device_map")
    call("load bundled", ll.load, name="attn-1l", free="name device dtype device_map")
    call("toy_model", ll.toy_model, **SHAPE)
    call("ModelSpec", spec.ModelSpec, n_layers=1, d_model=8, n_heads=2, d_vocab=9)
    call(
        "ModelSpec.from_dict",
        spec.ModelSpec.from_dict,
        values={"n_layers": 1, "d_model": 8, "n_heads": 2, "d_vocab": 9},
    )
    call("tokenize", ll.tokenize, model=NATURAL, text="Once upon a time")
    call("tokenize_prompts", ll.tokenize_prompts, model=NATURAL, texts=["Once", "upon a time"])
    call("token_strings", tokenize.token_strings, model=NATURAL, ids=[1, 2])
    call("vocabulary", tokenize.vocabulary, model=ATTN)
    call("train_tokenizer", tokenize.train_tokenizer, text="some text", n_vocab=300)
    call("evaluation_tokens", ll.evaluation_tokens, model=NATURAL, n_sequences=2, length=16)
    call("run", capture.run, model=GPT, tokens=TOKENS, record=[(0, "resid_post")], edits=())
    call(
        "visit_sites",
        lambda model, tokens, sites, layers, batch_size: _visited(
            model, tokens, sites=sites, layers=layers, batch_size=batch_size
        ),
        model=GPT,
        tokens=TOKENS,
        sites=("block", "ffn"),
        layers=[0],
        batch_size=4,
    )
    call("residual_stream", capture.residual_stream, model=GPT, tokens=TOKENS)
    call(
        "attention_scores",
        scores.attention_scores,
        model=ATTN,
        tokens=TOKENS,
        layer=1,
        free="dtype",
    )
    call(
        "freeze_attention",
        frozen_attention.freeze_attention,
        model=ATTN,
        tokens=TOKENS,
        free="dtype",
    )
    call(
        "freeze_context",
        lambda tokens: frozen_context.freeze_context(GPT(), tokens, torch.full((8,), 9)),
        tokens=TOKENS,
    )
    call("read_weights", weights.read_weights, model=ATTN, free="fold dtype")
    call("read_rotary", rotary.read_rotary, model=ATTN, layer=0, n_positions=4, free="dtype")
    call("n_parameters", sizes.n_parameters, model=ATTN)
    call("site_parameters", sizes.site_parameters, model=GPT, layer=0, site="ffn")
    call("weights_sha256", weights_sha256, model=ATTN)


def _visited(model: Any, tokens: Any, **more: Any) -> list[Any]:
    from lens_linear.models.capture import visit_sites

    seen: list[Any] = []
    visit_sites(model, tokens, lambda *at: seen.append([x.clone() for x in at[2:]]), **more)
    return seen


def _passes() -> None:
    """Passes over rows; what depends on their order (that of ``as_rows``) is left out."""
    from lens_linear.stats import collect, residuals, resume
    from lens_linear.training.loop import validation_loss

    def scored(rows: Any) -> Any:
        model = ATTN()
        fits = {
            key: moments.fit(ridge=1.0)
            for key, moments in collect.collect_moments(model, TOKENS, sites=("block",)).items()
        }
        ones = {key: torch.ones(model.cfg.d_model) for key in fits}
        reading = residuals.Reading(0, fits, {key: one * 0 for key, one in ones.items()}, ones, {})
        found = collect.score_fits(model, rows, [reading])[0]
        return {f"{layer}": float(one.residual.sum()) for (layer, _), one in found.items()}

    call(
        "collect_moments of text",
        lambda rows: {
            str(key): moments.fit(ridge=1.0)
            for key, moments in collect.collect_moments(ATTN(), rows, sites=("block",)).items()
        },
        rows=TOKENS,
    )
    call("score_fits of text", scored, rows=TOKENS)
    call(
        "gather_rows of text",
        lambda rows: collect.gather_rows(ATTN(), rows, layer=0, site="block"),
        rows=TOKENS,
    )
    call(
        "fingerprint of text",
        lambda rows: int(resume.fingerprint(ATTN(), rows)[:12], 16),
        rows=TOKENS,
    )
    call(
        "validation_loss of text",
        lambda rows: validation_loss(ATTN().original_model, rows),
        rows=TOKENS,
    )


def _stats() -> None:
    from lens_linear.stats import ngrams, require_task, score_model, split

    counts = Lazy(lambda: ngrams.bigram_counts(TOKENS, 20))

    @functools.wraps(split.as_rows)
    def rows_of(**arguments: Any) -> Any:
        rows = split.as_rows(**arguments)
        return [(rows[i : i + 1], rows.take([i]).n_tokens()) for i in range(len(rows))]

    call("as_rows", rows_of, model=ATTN, tokens=TOKENS, skip=0)
    call("require_task", lambda tokens: _read(require_task(ATTN(), tokens)), tokens=TOKENS)
    call("score_model of text", lambda tokens: score_model(ATTN(), tokens), tokens=TOKENS)
    _passes()
    call("bigram_counts", ngrams.bigram_counts, tokens=TOKENS, n_vocab=20)
    call("BigramCounts.rows", lambda tokens: counts().rows(tokens), tokens=ids(4))
    call("bigram_entropy", ngrams.bigram_entropy, tokens=TOKENS, n_vocab=20)
    call("bigram_kl", ngrams.bigram_kl, log_probs=randn(20, 20).log_softmax(-1), counts=counts)


def _read(task: ll.Task) -> tuple[torch.Tensor, ...]:
    return task.tokens, task.targets


def _training() -> None:
    from lens_linear.models.native import ModelSpec
    from lens_linear.training import loop, recipes

    spec = ModelSpec(1, d_model=8, n_heads=2, d_vocab=20, n_ctx=8, attn_only=True)
    phase = recipes.Phase(steps=2, rows=2, length=8, periods=(2, 3))
    recipe = recipes.Recipe("tiny", spec, (phase,), precision="float32")
    call("Phase", recipes.Phase, steps=2, rows=2, length=8)
    call("Recipe", recipes.Recipe, name="tiny", spec=spec, phases=(phase,), free="name note")
    call("Recipe.from_dict", recipes.Recipe.from_dict, values=recipe.to_dict())
    call("Recipe.scaled", lambda factor: recipe.scaled(factor), factor=0.5)
    call("train", ll.train, recipe=recipe, stream=ids(100), progress=False, free="device on_step")
    call("CosineRegularizer", ll.CosineRegularizer, weight=0.3)
    call(
        "CosineRegularizer()",
        lambda states: ll.CosineRegularizer()(states),
        states=[randn(2, 3), randn(2, 3, seed=1)],
    )
    call("learning_rate", loop.learning_rate, phase=phase, step=1)


def _linearity() -> None:
    from lens_linear.linearity.measure import adam, compare, geometry
    from lens_linear.linearity.replace import compression, runs, saved
    from lens_linear.linearity.replace import replacement as replace
    from lens_linear.studies import pretraining as study
    from lens_linear.studies import published

    common = {"model": GPT, "tokens": TOKENS}
    found = Lazy(lambda: ll.linearity_profile(GPT(), TOKENS))
    fitted = Lazy(lambda: replace.fit_linearization(GPT(), TOKENS, [1]))
    call("linearity_profile", ll.linearity_profile, **common)
    call("LinearityProfile.ranking", lambda score: found().ranking(score), score="block")
    call("layer_map", ll.layer_map, **common)
    call("linearize", _entered(ll.linearize), **common)
    call("fit_linearization", replace.fit_linearization, **common, layers=[1])
    call("linearize runs", replace.fit_linearization, **common, runs=[(0, 1)])
    call("linearize rank", replace.fit_linearization, **common, layers=[0], site="ffn", rank=2)
    call("Linearization.applied", lambda model: _entered(fitted().applied)(model=model), model=GPT)
    call("replacement_curve", ll.replacement_curve, **common)
    call("bilinear_probe", ll.bilinear_probe, **common, layer=1, rank=[1, 2], iterations=2)
    halves = {"x": randn(40, 4), "y": randn(40, 3), "x_test": randn(30, 4), "y_test": randn(30, 3)}
    call("bilinear_on_rows", ll.linearity.bilinear_on_rows, **halves, rank=[1, 2], iterations=2)
    call("adam_on_rows", ll.linearity.adam_on_rows, **halves, steps=3)
    call("adam_baseline", adam.adam_baseline, **common, layer=1, steps=3)
    call("ffn_compression", compression.ffn_compression, **common, ranks=[2, None])
    call("fit_lens", ll.fit_lens, **common)
    lens = Lazy(lambda: ll.fit_lens(GPT(), TOKENS))
    call("Lens.score", lambda tokens: lens().score(tokens), tokens=TOKENS)
    call("layer_geometry", geometry.layer_geometry, **common)
    call("run_table", runs.run_table, **common, lengths=[1, 2])
    call("compare", ll.compare, profiles=Lazy(lambda: {"a": found()}))
    call("compare_profiles", compare.compare_profiles, profiles=Lazy(lambda: {"a": found()}))
    call(
        "published_beside_measured",
        published.published_beside_measured,
        measured=Lazy(lambda: {"a": found()}),
    )
    call(
        "save_linearized",
        saved.save_linearized,
        folder="no/such/folder/x",
        model=GPT,
        linearization=fitted,
    )
    linear = Lazy(lambda: _linearized(GPT(), fitted()))
    call("LinearizedModel.__call__", lambda tokens: linear()(tokens), tokens=TOKENS)
    call("load_linearized", saved.load_linearized, folder="absent", model=GPT)
    call("load_tables", ll.studies.load_tables, folder="absent", name="cosine")
    call("save_tables", ll.studies.save_tables, result="none", folder="tables", text="none")
    call("downstream_scores", ll.studies.downstream_scores, model=ATTN, tasks=[])
    call("load_study", study.load_study, name="absent")
    call(
        "run_study",
        study.run_study,
        study="absent",
        stream=ids(100),
        validation=ids(100),
        free="device",
    )


def _linearized(model: Any, fitted: Any) -> Any:
    folder = f"{tempfile.mkdtemp()}/x"
    return ll.linearity.load_linearized(
        ll.linearity.save_linearized(folder, model, fitted), model=model
    )


def _method(made: Lazy, name: str) -> Callable[..., Any]:
    return lambda tokens: getattr(made(), name)(tokens)


def _entered(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inside(**arguments: Any) -> Any:
        with function(**arguments) as found:
            # What is in place while the block lasts is seen in the logits.
            return found, ll.models.run(arguments["model"], TOKENS).logits

    return inside


def _circuits() -> None:

    view = Lazy(lambda: ll.AttentionOnly(ATTN()))
    head = Lazy(lambda: view().head(1, 0))
    other = Lazy(lambda: view().head(0, 1))
    table = Lazy(lambda: view().bigrams())
    call("AttentionOnly", ll.AttentionOnly, model=ATTN)
    call("AttentionOnly(gpt)", ll.AttentionOnly, model=GPT)
    call("AttentionOnly.head", lambda layer, head: view().head(layer, head), layer=1, head=0)
    call("AttentionOnly.skip_trigrams", lambda **a: view().skip_trigrams(**a), layer=0, head=0, k=5)
    call(
        "AttentionOnly.paths",
        lambda tokens, max_terms: view().paths(tokens, max_terms=max_terms),
        tokens=TOKENS,
        max_terms=1000,
    )
    call("AttentionOnly.importance", lambda tokens: view().importance(tokens), tokens=TOKENS)
    call(
        "PathExpansion.token_table",
        lambda position, token, batch: (
            view().paths(TOKENS).token_table(position, token, batch=batch)
        ),
        position=3,
        token=1,
        batch=0,
    )
    call(
        "PathExpansion.term_logits", lambda index: view().paths(TOKENS).term_logits(index), index=0
    )
    call("BigramTable.top", lambda token, k: table().top(token, k), token=3, k=4)
    call("BigramTable.log_probs", lambda tokens: table().log_probs(tokens), tokens=ids(4))
    call("BigramTable.to_dataframe", lambda k: table().to_dataframe(k), k=3)
    call(
        "BigramTable.compare",
        lambda reference, weights: table().compare(reference, weights=weights),
        reference=randn(20, 20).softmax(-1),
        weights=None,
    )
    call("head_circuit", ll.circuits.head_circuit, model=ATTN, layer=0, head=1)
    call(
        "HeadCircuit.top_pairs", lambda circuit, k: head().top_pairs(circuit, k), circuit="ov", k=5
    )
    call(
        "HeadCircuit.svd",
        lambda k, circuit, top: head().svd(k, circuit=circuit, top=top),
        k=3,
        circuit="ov",
        top=2,
    )
    call("HeadCircuit.positional_qk", lambda n: head().positional_qk(n), n=4)
    call("HeadCircuit.qk_at", lambda offset: head().qk_at(offset), offset=0)
    call("HeadCircuit.copying_accuracy", lambda ks: head().copying_accuracy(ks=ks), ks=(1, 2))
    call("composition_scores", ll.composition_scores, model=ATTN, n_random=3)
    call("top_pairs", ll.circuits.top_pairs, matrix=Lazy(lambda: head().ov), k=5)
    call(
        "dense",
        at("circuits.heads.factored.dense"),
        matrix=Lazy(lambda: head().ov),
        what="it",
        free="what",
    )
    call("copying_score", ll.circuits.copying_score, matrix=Lazy(lambda: head().ov))
    call(
        "diagonal_accuracy",
        ll.circuits.diagonal_accuracy,
        matrix=Lazy(lambda: head().ov),
    )
    call(
        "svd_readout",
        ll.circuits.svd_readout,
        matrix=Lazy(lambda: head().ov),
        k=3,
        free="name",
    )
    call("skip_trigrams", ll.circuits.skip_trigrams, head=other, k=4)
    call(
        "all_skip_trigrams",
        ll.circuits.all_skip_trigrams,
        heads=Lazy(lambda: [other()]),
        k=4,
    )
    call(
        "skip_trigram_bugs",
        ll.circuits.skip_trigram_bugs,
        heads=other,
        wanted=Lazy(lambda: view().skip_trigrams(0, 1, 40)),
    )
    call("virtual_head", ll.circuits.virtual_head, writer=other, reader=head)
    call("composed_qk", ll.circuits.composed_qk, writer=other, reader=head)
    call(
        "VirtualHead.pattern",
        lambda tokens: ll.circuits.virtual_head(other(), head()).pattern(tokens),
        tokens=TOKENS,
    )


def _more_circuits() -> None:
    view = Lazy(lambda: ll.AttentionOnly(ATTN()))
    heads = Lazy(lambda: [view().head(0, 0), view().head(0, 1)])
    probe = {"periods": [4, 5], "rows_per_period": 2, "bos": None}
    call(
        "ablate_heads",
        _entered(ll.circuits.ablate_heads),
        model=ATTN,
        heads=[(0, 1)],
        tokens=TOKENS,
    )
    call("ablation_scores", ll.circuits.ablation_scores, model=ATTN, **probe)
    call("head", ll.head, model=ATTN, layer=1, head=0)
    call("direct_logit_attribution", ll.direct_logit_attribution, model=ATTN, task=TOKENS)
    pair = {"model": ATTN, "clean": TOKENS, "corrupted": TOKENS}
    call("patch", ll.patch, what="residual", **pair)
    call("path_patch", ll.path_patch, receivers=[(1, 1)], via="k", **pair)
    call("cut_path", _entered(ll.cut_path), model=ATTN, sender=(0, 1), receiver=(1, 1), via=["k"])
    call("attention_pattern", ll.circuits.attention_pattern, model=ATTN, tokens=TOKENS[0], layer=1)
    call("circuit_map", ll.circuits.circuit_map, head=Lazy(lambda: heads()[0]), k=5, blocks=4)
    call("map_of", ll.circuits.map_of, matrix=Lazy(lambda: heads()[0].ov), name="ov", k=5, blocks=4)
    call("in_context_loss", ll.circuits.in_context_loss, model=ATTN, **probe)
    call("ablation_scores of text", ll.circuits.ablation_scores, model=ATTN, tokens=TOKENS)
    call(
        "cut_path of text",
        _entered(ll.cut_path),
        model=ATTN,
        sender=(0, 1),
        receiver=(1, 1),
        via=["k"],
        tokens=TOKENS,
    )
    call(
        "attention_pattern of rows",
        ll.circuits.attention_pattern,
        model=ATTN,
        tokens=TOKENS[:1],
        layer=1,
    )
    call("PathExpansion.loss", lambda tokens: view().paths(tokens).loss, tokens=TOKENS)
    call("AttentionOnly.frozen", lambda tokens: view().frozen(tokens), tokens=TOKENS)
    call(
        "patch of pairs",
        lambda clean: ll.patch(ATTN(), clean, _other(clean), what="residual"),
        clean=TOKENS,
    )
    call(
        "path_patch of pairs",
        lambda clean: ll.path_patch(ATTN(), clean, _other(clean), receivers="L1H1", via="k"),
        clean=TOKENS,
    )
    call(
        "skip_trigram_bugs of text",
        lambda tokens: ll.circuits.skip_trigram_bugs(
            heads()[1], torch.tensor([[5, 1, 2], [5, 3, 4]]), tokens=tokens
        ),
        tokens=TOKENS,
    )
    call("in_context_loss of text", ll.circuits.in_context_loss, model=ATTN, tokens=TOKENS)
    call(
        "verify_induction",
        ll.circuits.verify_induction,
        model=ATTN,
        induction=[(1, 0)],
        previous=[(0, 0)],
        n_controls=2,
        **probe,
    )
    call("sum_of", ll.circuits.sum_of, matrices=Lazy(lambda: [head.ov for head in heads()]))
    call("summed_ov", ll.circuits.summed_ov, heads=heads)
    call("summed_qk", ll.circuits.summed_qk, heads=heads)


def _other(clean: Any) -> Any:
    """Rows of the same lengths with other tokens."""
    rows = clean if isinstance(clean, ll.Task) else ll.Task(clean)
    return ll.Task((rows.tokens + 1) % 20, mask=rows.mask)


def _reports() -> None:
    from lens_linear.teaching.tutorials import copy_tutorials

    call("report", ll.report, model=ATTN, path="no/such/folder/page.html")
    bare = Lazy(lambda: ll.toy_model(n_layers=0, d_vocab=20, n_ctx=16))
    call(
        "report of text",
        lambda task: _loss_said(ll.report(bare(), f"{tempfile.mkdtemp()}/page.html", task)),
        task=TOKENS,
    )
    call("explore", ll.explore, model=ATTN, prompts=["a b"], max_bytes=10**6, seed=0, text=None)
    call("copy_tutorials", copy_tutorials, directory="/proc/self/ns/course")


def _loss_said(page: Any) -> float:
    """The loss that a report names."""
    return float(re.findall(r"its loss is ([0-9.]+) nats", page.read_text())[0])


def _optional_circuits() -> None:
    if find_spec("lens_linear.circuits.induction.scores"):
        call(
            "induction_scores",
            ll.induction_scores,
            model=ATTN,
            periods=[3, 4],
            rows_per_period=2,
            bos=None,
        )
    if find_spec("lens_linear.circuits.attention.attribution"):
        call("qk_attribution", ll.qk_attribution, model=ATTN, tokens=TOKENS, layer=1, head=0)


def _dynamics() -> None:
    from lens_linear.dynamics.gains import agreement, directions, jacobian_products
    from lens_linear.dynamics.steering import min_energy as steering
    from lens_linear.dynamics.surrogates import surrogate as surrogates

    made = Lazy(lambda: directions.random_directions(GPT()))
    common = {"model": GPT, "prompts": TOKENS}
    gains = Lazy(lambda: ll.gain_profile(GPT(), TOKENS, made()))
    surrogate = Lazy(lambda: ll.fit_surrogate(GPT(), TOKENS, made(), order=3))
    concept = Lazy(lambda: text.load_concept("mood", limit=40))
    call("concept_directions", ll.concept_directions, model=NATURAL, concept=concept)
    call("random_directions", directions.random_directions, model=GPT)
    call("last_states", directions.last_states, **common)
    call("gain_profile", ll.gain_profile, **common, directions=made)
    call("gain_profile empirical", ll.gain_profile, **common, directions=made, method="empirical")
    call("GainProfile.agreement", lambda exact: gains().agreement(exact), exact=gains)
    call("block_jacobians", jacobian_products.block_jacobians, **common)
    call("fit_surrogate", ll.fit_surrogate, **common, directions=made, order=3)
    call(
        "fit_surrogate balanced",
        ll.fit_surrogate,
        **common,
        directions=made,
        order=3,
        basis="balanced",
    )
    call("Surrogate.agreement", lambda profile: surrogate().agreement(profile), profile=gains)
    call("Surrogate.predict", lambda **a: surrogate().predict(**a), **common)
    call("reduced_gains", surrogates.reduced_gains, A=randn(3, 2, 2), B=randn(3, 2), C=randn(2))
    call("min_energy", ll.min_energy, gains=randn(3), target=1.0)
    call("joint_min_energy", steering.joint_min_energy, gains=randn(2, 4), targets=[1.0, 0.0])
    call(
        "evaluate_schedules",
        ll.evaluate_schedules,
        **common,
        directions=made,
        gains=gains,
        target=0.2,
    )
    schedule = Lazy(lambda: ll.min_energy(gains(), 0.2))
    more = ll.dynamics
    call("as_prompts", more.as_prompts, **common)
    call(
        "refined_min_energy",
        more.refined_min_energy,
        **common,
        directions=made,
        gains=gains,
        target=0.2,
        steps=2,
    )
    natural = Lazy(lambda: directions.random_directions(NATURAL()))
    call(
        "steer_text",
        more.steer_text,
        model=NATURAL,
        prompts=["Once upon"],
        directions=natural,
        schedule=torch.ones(1, dtype=torch.float64),
        n_tokens=1,
        scales=(0.0, 1.0),
    )
    call(
        "steer_text of rows",
        more.steer_text,
        model=NATURAL,
        prompts=TOKENS,
        directions=natural,
        schedule=torch.ones(1, dtype=torch.float64),
        n_tokens=1,
        scales=(0.0, 1.0),
    )
    call(
        "steering_cost",
        more.steering_cost,
        model=GPT,
        tokens=TOKENS,
        directions=made,
        schedule=schedule,
        scales=(0.0, 1.0),
    )
    call("step_size_table", more.step_size_table, **common, directions=made, steps=(0.1, 0.01))
    call(
        "steer_concepts",
        more.steer_concepts,
        **common,
        directions=Lazy(lambda: [made(), directions.random_directions(GPT(), seed=1)]),
        targets=[0.1, 0.0],
        corrections=1,
    )
    call(
        "agreement_table",
        more.agreement_table,
        models=NATURAL,
        concept=Lazy(lambda: text.load_concept("mood")),
        orders=(2,),
        bases=("random",),
        jacobians=("mean",),
        n_concept=20,
        n_operating=2,
        n_evaluation=2,
        free="on_model",
    )
    call("compare_gains", agreement.compare_gains, predicted=randn(4, 3), exact=randn(4, 3, seed=1))


def _constructions() -> None:
    from lens_linear import constructions as made

    layer = Lazy(lambda: ll.OLSAttention.from_data(X, Y))
    call("OLSAttention.from_data", ll.OLSAttention.from_data, x=X, y=Y)
    call("OLSAttention.predict", lambda x_new: layer().predict(x_new), x_new=X)
    call("OLSAttention.with_context", lambda x, y: layer().with_context(x, y), x=X, y=Y)
    call("OLSAttention.hat", lambda x_new: layer().hat(x_new), x_new=X)
    call("train_ols_attention", ll.train_ols_attention, x=X[:, :1], y=Y[:, :1], epochs=2, seeds=1)
    call("regression_data", made.regression_data)
    call("swap_memories", made.swap_memories, first=(X, Y), second=(X + 1, Y))
    call(
        "covariance_shift",
        made.covariance_shift,
        conditions=(1, 2),
        layers=2,
        d=3,
        n=20,
        queries=4,
        base_rows=50,
        seeds=1,
    )
    call("gradient_step_attention", made.gradient_step_attention, x=X, y=Y, learning_rate=0.1)
    call("NewtonSchulzAttention", made.NewtonSchulzAttention, inputs=4, layers=2)
    call(
        "NewtonSchulzAttention.with_context",
        lambda x, y: made.NewtonSchulzAttention(4, layers=2).with_context(x, y),
        x=X,
        y=Y,
    )
    call(
        "hopfield_energy",
        made.hopfield_energy,
        state=randn(3, 8).sign(),
        patterns=randn(5, 8).sign(),
    )
    call(
        "hopfield_update",
        made.hopfield_update,
        state=randn(3, 8).sign(),
        patterns=randn(5, 8).sign(),
    )
    call(
        "memory_capacity",
        ll.memory_capacity,
        energies="quadratic",
        dims=[16],
        queries=8,
        seeds=1,
        max_patterns=20,
    )
    call(
        "retrieval_curve",
        made.retrieval_curve,
        energies="quadratic",
        d=16,
        n_patterns=(2, 4),
        noise=(0.1,),
        queries=4,
        seeds=1,
        steps=1,
    )
    call(
        "attention_head_memory",
        made.attention_head_memory,
        keys=randn(20, 8),
        n_patterns=[4],
        draws=1,
    )
    call(
        "trained_head_memory",
        made.trained_head_memory,
        model=ATTN,
        tokens=ids(4, 16),
        layer=0,
        head=0,
        n_patterns=[4],
        draws=1,
    )
    hand = Lazy(lambda: made.build_induction(vocab=20, n_ctx=16))
    for name in ("logits", "induction_scores", "induction_pattern"):
        call(
            f"InductionConstruction.{name}",
            _method(hand, name),
            tokens=TOKENS,
        )
    call("build_induction", made.build_induction, vocab=8, n_ctx=16)
    call("spectral_root", made.spectral_root, x=X)


def _plots() -> None:
    from lens_linear.plots import circuitsvis, style

    call("style.matrix", style.matrix, values=randn(3, 4))
    call("style.check_cells", style.check_cells, n_cells=3)
    call("style.colour", style.colour, index=3)
    call(
        "attention_view",
        circuitsvis.attention_view,
        pattern=randn(2, 3, 3),
        tokens=["a", "b", "c"],
        element_id="x",
    )
    call("NotebookView", circuitsvis.NotebookView, view="x", free="view")


for _room in (
    _linalg,
    _text,
    _models,
    _stats,
    _training,
    _linearity,
    _circuits,
    _more_circuits,
    _reports,
    _optional_circuits,
    _dynamics,
    _constructions,
    _plots,
):
    _room()
