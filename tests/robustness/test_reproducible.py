"""The same seed gives the same numbers: again, after other random draws, and with more threads.

Stated tolerance: bit for bit on one thread, in one process or another; 1e-6 between one thread and two, since
sums are then taken in another order. Two are looser: training (Adam divides by the root of small gradients,
so rounding grows from step to step) and amplitudes found by bisection (to a relative 1e-3).
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from robust_calls import ids

import lens_linear as ll
from lens_linear import constructions, linearity
from lens_linear.dynamics import random_directions
from lens_linear.models.native import ModelSpec
from lens_linear.training.recipes import Phase, Recipe

pytestmark = pytest.mark.whole

ACROSS_THREADS = {"train": 1e-2, "evaluate_schedules": 2e-3}
TOKENS = ids(40, 24, high=64)
SHAPE = {"n_layers": 2, "d_model": 32, "n_heads": 4}


def gpt():
    return ll.toy_model(**SHAPE, attn_only=False, norm="LN")


def recipe():
    spec = ModelSpec(1, d_model=16, n_heads=2, d_vocab=64, n_ctx=24, attn_only=True)
    phase = Phase(steps=8, rows=4, length=24, repeats=0.5, periods=(3, 6))
    return Recipe("tiny", spec, (phase,), precision="float32")


def trained():
    run = ll.train(recipe(), TOKENS.flatten(), progress=False)
    return torch.cat([value.flatten() for value in run.module.state_dict().values()])


ANALYSES = {
    "toy_model": lambda: torch.cat([p.detach().flatten() for p in gpt().parameters()]),
    "train": trained,
    "linearity_profile": lambda: ll.linearity_profile(gpt(), TOKENS),
    "layer_map": lambda: ll.layer_map(gpt(), TOKENS),
    "replacement_curve": lambda: ll.replacement_curve(gpt(), TOKENS, order="random"),
    "bilinear_probe": lambda: ll.bilinear_probe(gpt(), TOKENS, 1, rank=1, iterations=3),
    "adam_baseline": lambda: linearity.adam_baseline(gpt(), TOKENS, 1, steps=8),
    "layer_geometry": lambda: linearity.layer_geometry(gpt(), TOKENS, max_rows=200),
    "composition_scores": lambda: ll.composition_scores(ll.toy_model(**SHAPE), n_random=5),
    "induction_scores": lambda: ll.induction_scores(
        ll.toy_model(**SHAPE), periods=[4, 6], rows_per_period=2, bos=None
    ),
    "gain_profile": lambda: ll.gain_profile(gpt(), TOKENS[:4], random_directions(gpt())),
    "fit_surrogate": lambda: ll.fit_surrogate(
        gpt(), TOKENS[:4], random_directions(gpt()), order=4, basis="random"
    ),
    "evaluate_schedules": lambda: ll.evaluate_schedules(
        gpt(), TOKENS[:4], random_directions(gpt()), target=0.1
    ),
    "train_ols_attention": lambda: ll.train_ols_attention(epochs=5, seeds=2),
    "memory_capacity": lambda: ll.memory_capacity(
        energies="quadratic", dims=[24], queries=8, seeds=2
    ),
    "covariance_shift": lambda: constructions.covariance_shift(
        conditions=(1, 4), layers=3, d=3, n=20, queries=4, base_rows=50, seeds=2
    ),
}


def numbers(name: str) -> torch.Tensor:
    found = ANALYSES[name]()
    if isinstance(found, torch.Tensor):
        return found.double()
    table = found.to_dataframe().select_dtypes("number").to_numpy(dtype="float64")
    return torch.tensor(table).nan_to_num(nan=-7.0, posinf=1e9, neginf=-1e9)


@pytest.mark.parametrize("name", ANALYSES)
def test_the_same_numbers_again_whatever_was_drawn_before(name):
    first = numbers(name)
    torch.manual_seed(123)
    torch.rand(1000)
    state = torch.get_rng_state()
    assert torch.equal(numbers(name), first)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was touched"


@pytest.mark.parametrize("name", ANALYSES)
def test_two_threads_give_the_numbers_of_one(name):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = numbers(name)
        torch.set_num_threads(2)
        two = numbers(name)
    finally:
        torch.set_num_threads(before)
    scale = one.abs().clamp(min=1)
    assert float(((one - two) / scale).abs().max()) < ACROSS_THREADS.get(name, 1e-6)


def test_another_process_gives_the_same_numbers():
    script = (
        "import sys, json, torch; sys.path.insert(0, sys.argv[1]); torch.set_num_threads(1)\n"
        "import test_reproducible as t\n"
        "print(json.dumps({n: t.numbers(n).flatten().tolist() for n in sys.argv[2:]}))\n"
    )
    names = ["linearity_profile", "composition_scores", "fit_surrogate", "train"]
    here = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(
        [sys.executable, "-c", script, here, *names],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "17"},
    )  # fmt: skip
    for name, values in json.loads(done.stdout.splitlines()[-1]).items():
        assert torch.equal(torch.tensor(values, dtype=torch.float64), numbers(name).flatten()), name
