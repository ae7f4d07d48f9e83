"""Advice of depth dynamics: prompts, directions, gains, schedules, surrogates."""

import functools

import torch
from advice_parts import IDS, X, agreement, directions, gains, known, raising, toy, under

import lens_linear as ll
from lens_linear import dynamics
from lens_linear.dynamics.gains.jacobian_products import require_finite_gains
from lens_linear.dynamics.surrogates.surrogate import reduced_gains
from lens_linear.extensions import Added

MASK = torch.ones_like(IDS)
PROMPTS = IDS[:4]
STORY = ["Once upon a time there"]


@functools.cache
def own():
    return dynamics.random_directions(known())


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


BASES = "dynamics.surrogates.bases.added"
FAILING = Added("mine 1.0", raising(RuntimeError("broken")))


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
        "leave it out",
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
        agreement,
    ),
    # values that are no numbers, and parts of other packages
    (
        lambda: profile([IDS[0], IDS[1, :0]]),
        "leave it out|leave empty rows out",
        lambda: profile([IDS[0]]),
    ),
    (
        lambda: ll.min_energy(gains(), "much"),
        "pass e.g. 0.5",
        lambda: ll.min_energy(gains(), 0.5),
    ),
    (
        lambda: under({BASES: lambda *_, **__: {"mine": FAILING}}, lambda: fitted(basis="mine")),
        "tell its authors, or uninstall it",
        lambda: fitted(basis="random"),
    ),
    (
        lambda: require_finite_gains(torch.tensor([[1.0, torch.nan]])),
        "look at the weights of that layer and those after it, or load the model in a wider precision",
        profile,
    ),
    (
        lambda: fitted(basis=lambda *_: None),
        "return e.g. torch.stack of one matrix a boundary",
        lambda: fitted(basis=columns),
    ),
    (
        lambda: ll.gain_profile(known(), "mood", own()),
        r"pass lens_linear.load_concept\('mood'\), or \['mood'\]",
        lambda: (
            ll.gain_profile(known(), ll.load_concept("mood", limit=4), own(), truncate=True),
            ll.gain_profile(known(), ["mood"], own()),
        ),
    ),
    (lambda: fitted(basis=len), "but 'len' failed.*mend it", lambda: fitted(basis=columns)),
]
