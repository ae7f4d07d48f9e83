"""Advice of depth dynamics and of the constructions."""

import functools

import numpy as np
import torch
from advice_parts import IDS, X, Y, directions, gains, known, toy

import lens_linear as ll
from lens_linear import constructions, dynamics
from lens_linear.constructions import NewtonSchulzAttention
from lens_linear.constructions.memory.energies import parse_energy
from lens_linear.dynamics.gains.agreement import pearson, spearman
from lens_linear.dynamics.surrogates.surrogate import reduced_gains

MASK = torch.ones_like(IDS)
PROMPTS = IDS[:4]
STORY = ["Once upon a time there"]


@functools.cache
def own():
    return dynamics.random_directions(known())


@functools.cache
def layer(**options):
    return ll.OLSAttention.from_data(X, Y, **options)


@functools.cache
def surrogate():
    return ll.fit_surrogate(toy(), PROMPTS, directions(), order=3)


def fitted(**options):
    return ll.fit_surrogate(toy(), PROMPTS, directions(), order=3, **options)


def profile(prompts=PROMPTS, **options):
    return ll.gain_profile(toy(), prompts, directions(), **options)


def columns(_maps, _directions, *_):
    return torch.eye(16, 3).expand(3, 16, 3)


def schedules(**options):
    return ll.evaluate_schedules(
        toy(), PROMPTS, directions(), refine_steps=1, **{"target": 0.1, **options}
    )


def steered(schedule, **options):
    return dynamics.steer_text(known(), STORY, own(), schedule, **{"n_tokens": 1, **options})


def trained_ols(**options):
    return ll.train_ols_attention(**{"epochs": 3, "seeds": 2, "n": 20, **options})


def memory(keys, queries=None, **options):
    return constructions.attention_head_memory(
        keys, queries, **{"n_patterns": (2, 4), "max_queries": 8, **options}
    )


ROWS = [
    # prompts
    (
        lambda: profile(3),
        r"use torch.tensor\(ids\), lens_linear.tokenize\(model, text\)",
        lambda: profile(list(PROMPTS)),
    ),
    (
        lambda: profile([PROMPTS[0], "text"]),
        "pass ids for all",
        lambda: (
            profile([PROMPTS[0], PROMPTS[1]]),
            ll.gain_profile(known(), ["a text", "text"], own()),
        ),
    ),
    (lambda: profile([PROMPTS[0], 3]), "or a list of rows", lambda: profile([PROMPTS[0]])),
    (lambda: profile(PROMPTS[None]), "reshape it", lambda: profile(PROMPTS[None].reshape(4, 16))),
    (
        lambda: profile(attention_mask=MASK[:2]),
        "pass one 0 or 1 for each token",
        lambda: profile(attention_mask=MASK[:4]),
    ),
    (
        lambda: profile(attention_mask=torch.tensor([[1, 0] * 8] * 4)),
        "pad on one side",
        lambda: (
            profile(attention_mask=torch.tensor([[0] * 8 + [1] * 8] * 4)),
            profile(attention_mask=torch.tensor([[1] * 8 + [0] * 8] * 4)),
        ),
    ),
    (
        lambda: profile([PROMPTS[0], PROMPTS[1, :0]]),
        "leave empty rows out",
        lambda: profile([PROMPTS[0]]),
    ),
    # directions and gains
    (
        lambda: ll.gain_profile(toy(), PROMPTS, ["up", "down"]),
        r"take them from concept_directions\(model, concept\)",
        lambda: ll.gain_profile(known(), STORY, ll.concept_directions(known(), "mood")),
    ),
    (
        lambda: profile(readout=torch.ones(3)),
        "pass a direction of the residual stream",
        lambda: profile(readout=torch.ones(16)),
    ),
    (
        lambda: ll.concept_directions(known(), ll.load_concept("mood", limit=12)),
        "add texts",
        lambda: ll.concept_directions(known(), ll.load_concept("mood", limit=40)),
    ),
    (
        lambda: ll.concept_directions(
            known(), ll.Concept("c", tuple(f"word {i} ." for i in range(1)) * 20, (0, 1) * 10, "x")
        ),
        "check the labels",
        lambda: ll.concept_directions(known(), ll.load_concept("mood", limit=40)),
    ),
    (
        lambda: dynamics.compare_gains(torch.ones(2, 2), torch.ones(4, 2)),
        "compare profiles of one model on the same prompts",
        lambda: profile().agreement(profile(method="empirical")),
    ),
    (
        lambda: spearman(torch.tensor(1.0), torch.tensor(1.0)),
        r"pass \[..., layer\]",
        lambda: spearman(torch.arange(4.0), torch.arange(4.0) ** 2),
    ),
    (
        lambda: pearson(torch.ones(3), torch.ones(2)),
        "one shape",
        lambda: pearson(torch.arange(3.0), torch.arange(3.0)),
    ),
    # schedules
    (
        lambda: ll.min_energy(torch.zeros(3), 1.0),
        "check directions",
        lambda: ll.min_energy(gains(), 1.0),
    ),
    (
        lambda: ll.min_energy(torch.ones(2, 3), torch.ones(3)),
        "for several readouts at once use joint_min_energy",
        lambda: dynamics.joint_min_energy(torch.eye(2, 3), torch.ones(2)),
    ),
    (lambda: ll.min_energy("gains", 1.0), "must be|take", lambda: ll.min_energy(gains(), 1.0)),
    (
        lambda: ll.min_energy(torch.ones(2, 2, 2), 1.0),
        "reshape",
        lambda: ll.min_energy(torch.ones(4, 2), 1.0),
    ),
    (
        lambda: dynamics.joint_min_energy(torch.eye(2, 3), torch.ones(3)),
        "one entry for each of 2 readouts",
        lambda: dynamics.joint_min_energy(torch.eye(2, 3), torch.ones(2)),
    ),
    (
        lambda: dynamics.joint_min_energy(torch.eye(2, 3), torch.ones(2), gram=torch.eye(2)),
        r"pass V @ V.T of independent injected vectors",
        lambda: dynamics.joint_min_energy(torch.eye(2, 3), torch.ones(2), gram=X[:3] @ X[:3].T),
    ),
    (
        lambda: dynamics.joint_min_energy(torch.ones(2, 3), [1.0, 2.0]),
        "drop one, or give them targets that agree",
        lambda: (
            dynamics.joint_min_energy(torch.ones(1, 3), [1.0]),
            dynamics.joint_min_energy(torch.ones(2, 3), [1.0, 1.0]),
        ),
    ),
    (lambda: schedules(target=0.0), "must not be 0", lambda: schedules(target=0.1)),
    (
        lambda: ll.evaluate_schedules(toy(), PROMPTS[:1], directions(), refine_steps=1),
        "target must be given here",
        lambda: ll.evaluate_schedules(toy(), PROMPTS[:1], directions(), target=0.1, refine_steps=1),
    ),
    (
        lambda: schedules(schedules={"own": torch.ones(3)}),
        "one amplitude for each of 2 layers",
        lambda: schedules(schedules={"own": torch.ones(2)}),
    ),
    (
        lambda: schedules(schedules={"own": torch.zeros(2)}),
        "leave that schedule out",
        lambda: schedules(schedules={}),
    ),
    (
        lambda: schedules(schedules={"own": torch.ones(3, 2)}),
        "pass one row a prompt, or one for all",
        lambda: (
            schedules(schedules={"own": torch.ones(4, 2)}),
            schedules(schedules={"own": torch.ones(2)}),
        ),
    ),
    (
        lambda: dynamics.refined_min_energy(
            toy(), PROMPTS, directions(), torch.ones(3), 0.1, steps=1
        ),
        "take them from gain_profile with the same prompts",
        lambda: dynamics.refined_min_energy(toy(), PROMPTS, directions(), profile(), 0.1, steps=1),
    ),
    (
        lambda: dynamics.steer_concepts(toy(), PROMPTS, [directions()], [0.1, 0.2]),
        "one entry for each of 1 concepts",
        lambda: dynamics.steer_concepts(toy(), PROMPTS, [directions()], [0.1]),
    ),
    # steered text
    (
        lambda: steered(torch.ones(1, 1)),
        "take the mean over prompts",
        lambda: steered(torch.ones(1, 1).mean(0)),
    ),
    (
        lambda: steered(torch.ones(1), n_tokens=5000),
        "pass shorter prompts or a smaller n_tokens",
        lambda: steered(torch.ones(1), n_tokens=1),
    ),
    (
        lambda: steered(torch.ones(1), scales=()),
        r"pass e.g. \(0.0, 1.0\)",
        lambda: steered(torch.ones(1), scales=(0.0, 1.0)),
    ),
    # surrogates
    (
        lambda: fitted(basis=lambda *_: torch.eye(16, 3).expand(2, 16, 3)),
        "one matrix for each of the 3 layer boundaries",
        lambda: fitted(basis=columns),
    ),
    (
        lambda: fitted(basis=lambda *_: torch.ones(3, 16, 3)),
        "return independent columns alone, or their dual beside them",
        lambda: (fitted(basis=columns), fitted(basis=lambda *_: (columns(*_), columns(*_)))),
    ),
    (
        lambda: reduced_gains(torch.ones(2, 3, 3), torch.ones(2, 2), torch.ones(3)),
        "take them from one surrogate",
        lambda: reduced_gains(surrogate().A, surrogate().B, surrogate().C),
    ),
    (
        lambda: dynamics.agreement_table([known()], orders=[]),
        "must each name at least one",
        lambda: dynamics.agreement_table(
            [known()],
            "mood",
            orders=(2,),
            bases=("random",),
            jacobians=("mean",),
            n_concept=24,
            n_operating=4,
            n_evaluation=4,
        ),
    ),
    # least squares
    (
        lambda: constructions.build_induction(8, 16, sharpness=(1,)),
        "two scores, one a head",
        lambda: constructions.build_induction(8, 16, sharpness=(9.0, 9.0)),
    ),
    (
        lambda: constructions.build_induction(9, 16),
        "change n_ctx by 1",
        lambda: constructions.build_induction(9, 17),
    ),
    (
        lambda: NewtonSchulzAttention(4, layers=3, w_in=torch.eye(3)),
        "pass the L of an OLSAttention built on the same columns|one row for each",
        lambda: NewtonSchulzAttention(4, layers=3, w_in=layer().W_Q),
    ),
    (
        lambda: NewtonSchulzAttention(4, layers=3)(X),
        r"call with_context\(x, y\)",
        lambda: NewtonSchulzAttention(4, layers=3).with_context(X, Y)(X),
    ),
    (
        lambda: NewtonSchulzAttention(3, layers=3).with_context(X, Y),
        "must have 3 columns",
        lambda: NewtonSchulzAttention(4, layers=3).with_context(X, Y),
    ),
    (
        lambda: NewtonSchulzAttention(4, layers=3).with_context(X, Y)(X[:, :2]),
        "must have 4 columns",
        lambda: NewtonSchulzAttention(4, layers=3).with_context(X, Y)(X[:2]),
    ),
    (
        lambda: layer().hat(X[:3]).leverage,
        r"call hat\(\) without x_new",
        lambda: layer().hat().leverage,
    ),
    (
        lambda: layer().with_context(X[:, :2], Y),
        "build a new module with from_data",
        lambda: ll.OLSAttention.from_data(X[:, :2], Y),
    ),
    (
        lambda: (
            ll.OLSAttention.from_data(X[:, [0, 0]], Y) and trained_ols(x=X[:, [0, 0]], y=Y[:, 0])
        ),
        "drop the columns that others determine",
        lambda: trained_ols(x=X[:, :1], y=Y[:, 0]),
    ),
    (
        lambda: trained_ols(x=X),
        "pass both or neither",
        lambda: (trained_ols(x=X, y=Y[:, 0]), trained_ols()),
    ),
    (
        lambda: trained_ols(x=X, y=0 * Y[:, 0]),
        "nothing to learn",
        lambda: trained_ols(x=X, y=Y[:, 0]),
    ),
    (
        lambda: trained_ols(learning_rate=1e6, epochs=40),
        "pass a smaller one",
        lambda: trained_ols(learning_rate=1e-3, epochs=40),
    ),
    (
        lambda: constructions.ols_transformer(layer(intercept=True), X[:3]),
        "add a column of ones to x and build it with intercept=False",
        lambda: constructions.ols_transformer(
            ll.OLSAttention.from_data(torch.cat([X, torch.ones(40, 1)], 1), Y, intercept=False),
            torch.cat([X, torch.ones(40, 1)], 1)[:3],
        ),
    ),
    (
        lambda: constructions.ols_transformer(layer(form="paper"), X[:3], layers=2),
        "build the layer with form='in-context'",
        lambda: constructions.ols_transformer(layer(form="in-context"), X[:3], layers=2),
    ),
    (
        lambda: constructions.ols_transformer(layer(), X[:3, :2]),
        "must have 4 columns",
        lambda: constructions.ols_transformer(layer(), X[:3]),
    ),
    (
        lambda: constructions.swap_memories(X, (X, Y)),
        "pass two tensors",
        lambda: constructions.swap_memories((X, Y), (X + 1, Y)),
    ),
    (
        lambda: constructions.covariance_shift(conditions=(), seeds=2),
        r"pass \(1, 4\)",
        lambda: constructions.covariance_shift(
            conditions=(1, 4), seeds=2, layers=2, n=32, base_rows=64
        ),
    ),
    (
        lambda: ll.OLSAttention.from_data(np.ma.masked_less(X.numpy(), 0), Y),
        "drop those rows or fill them first",
        lambda: ll.OLSAttention.from_data(np.ma.masked_less(X.numpy(), 0).filled(0.0), Y),
    ),
    (
        lambda: ll.OLSAttention.from_data("x", Y),
        "pass a torch tensor, a numpy array or a data frame of numbers",
        lambda: ll.OLSAttention.from_data(X.numpy(), Y),
    ),
    (
        lambda: ll.OLSAttention.from_data(X[:0], Y[:0]),
        "pass more data",
        lambda: ll.OLSAttention.from_data(X, Y),
    ),
    (
        lambda: ll.OLSAttention.from_data(X, Y[None]),
        "pass one row of labels for each row of x",
        lambda: ll.OLSAttention.from_data(X, Y[None][0]),
    ),
    (
        lambda: ll.OLSAttention.from_data(X, Y).float().predict(X * 1e200),
        r"scale x_new down, or use a module in float64 \(module.double\(\)\)",
        lambda: ll.OLSAttention.from_data(X, Y).double().predict(X * 1e100),
    ),
    (
        lambda: constructions.spectral_root(X, noise=torch.ones(3)),
        r"see rounding\(x\)",
        lambda: constructions.spectral_root(X, noise=torch.ones(4).double() * 1e-9),
    ),
    # memories
    (
        lambda: ll.memory_capacity(dims=[]),
        r"pass \(64, 128\)",
        lambda: ll.memory_capacity(energies="quadratic", dims=(64, 128), seeds=1, queries=8),
    ),
    (
        lambda: ll.memory_capacity(energies="exponential", dims=[60], max_patterns=500),
        "pass a smaller d or more noise",
        lambda: (
            ll.memory_capacity(
                energies="exponential", dims=[4], max_patterns=5000, seeds=1, queries=8
            ),
            ll.memory_capacity(
                energies="exponential", dims=[20], noise=0.3, max_patterns=50000, seeds=1, queries=8
            ),
        ),
    ),
    (
        lambda: constructions.attention_dial(betas=(), orders=()),
        r"pass betas=\(1.0,\)",
        lambda: constructions.attention_dial(betas=(1.0,), orders=(), d=2, n=8, queries=2, seeds=2),
    ),
    (
        lambda: parse_energy("cubic"),
        "pass e.g. 'polynomial-3'",
        lambda: parse_energy("polynomial-3"),
    ),
    (
        lambda: constructions.hopfield_update(X[:3], X[:, :2]),
        r"pass \[q, d\] and \[k, d\]",
        lambda: constructions.hopfield_update(X[:3], X),
    ),
    (
        lambda: constructions.head_dial(toy(), IDS, betas=()),
        r"pass betas=\(1.0,\)",
        lambda: constructions.head_dial(
            toy(n_ctx=64), IDS.repeat(1, 3), heads=["L0H0"], betas=(1.0,)
        ),
    ),
    (
        lambda: constructions.head_dial(toy(), IDS[:, :3]),
        "pass longer rows",
        lambda: constructions.head_dial(
            toy(n_ctx=64), IDS.repeat(1, 3), heads=["L0H0"], betas=(1.0,)
        ),
    ),
    (
        lambda: memory(X, energies=()),
        "must each name at least one|pass",
        lambda: memory(X, energies=("quadratic",)),
    ),
    (lambda: memory(X, values=X[:3]), "one row for each key", lambda: memory(X, values=Y)),
    (
        lambda: memory(X, X[:, :2]),
        "for grouped-query heads pass the group's keys",
        lambda: memory(X, X),
    ),
    (
        lambda: memory(X, X[:5], causal=True),
        "pass queries, or causal=False",
        lambda: (memory(X, X, causal=True), memory(X, X[:5], causal=False)),
    ),
    (
        lambda: constructions.retrieval_curve(energies=()),
        "must each name at least one|pass 'quadratic'",
        lambda: constructions.retrieval_curve(
            energies="quadratic", d=10, n_patterns=(2,), noise=(0.0,), seeds=1
        ),
    ),
    (
        lambda: constructions.trained_heads(toy(), IDS[:, :3]),
        "pass longer rows",
        lambda: constructions.trained_heads(toy(), IDS, heads=["L0H0"], exchanges=()),
    ),
    (
        lambda: constructions.trained_heads(toy(), IDS, exchanges=("no",)),
        "must be one of 'other context'",
        lambda: constructions.trained_heads(
            toy(), IDS, heads=["L0H0"], exchanges=("other context",)
        ),
    ),
]
