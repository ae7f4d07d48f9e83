import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from torch.nn.functional import scaled_dot_product_attention

import lens_linear as ll
from lens_linear._tl import derive_generator
from lens_linear.constructions.memory.binary_patterns import (
    draw_signs,
    expected_capacity,
    field,
    flip,
    own_field,
    wrong_bits,
)
from lens_linear.constructions.memory.capacity import _isotonic, crossing, theory_slopes
from lens_linear.constructions.memory.energies import hopfield_energy, hopfield_update, parse_energy
from lens_linear.constructions.memory.retrieval import retrieval_curve, settle
from lens_linear.errors import InvalidArgumentError

NAMES = ("quadratic", "polynomial-3", "polynomial-4", "exponential")


def states(seed, q=3, k=5, d=7):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(q, d, generator=g, dtype=torch.float64),
        torch.randn(k, d, generator=g, dtype=torch.float64),
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 3.0))
def test_one_softmax_update_is_one_attention_readout(seed, beta):
    s, xi = states(seed)
    want = scaled_dot_product_attention(s[None], xi[None], xi[None], scale=beta)[0]
    torch.testing.assert_close(hopfield_update(s, xi, beta=beta), want)


def test_quadratic_update_is_linear_attention():
    s, xi = states(0)
    torch.testing.assert_close(hopfield_update(s, xi, energy="linear"), (s @ xi.T) @ xi)


@pytest.mark.parametrize("name", NAMES)
def test_update_is_the_negative_gradient_of_the_energy(name):
    s, xi = states(1)
    s.requires_grad_()
    energy = hopfield_energy(s, xi, energy=name, beta=0.6)
    (grad,) = torch.autograd.grad(energy.sum(), s)
    torch.testing.assert_close(hopfield_update(s, xi, energy=name, beta=0.6), -grad)
    # and the energy is minus the sum of F over the overlaps (its logarithm for the exponential)
    degree, overlaps = parse_energy(name).degree, s @ xi.T
    if degree is None:
        total = (0.6 * overlaps).exp().sum(1).log() / 0.6
    else:
        total = (overlaps**degree / degree).sum(1)
    torch.testing.assert_close(energy, -total)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 5.0))
def test_softmax_update_never_raises_the_energy(seed, beta):
    s, xi = states(seed)
    new = hopfield_update(s, xi, beta=beta)

    def energy(x):
        return hopfield_energy(x, xi, beta=beta) + x.square().sum(1) / 2

    assert bool((energy(new) <= energy(s) + 1e-12).all())


def test_energy_names():
    assert parse_energy("linear") == parse_energy("polynomial-2") == parse_energy("quadratic")
    assert parse_energy("polynomial").degree == 3
    assert parse_energy("softmax").degree is None
    for bad in ("polynomial-1", "cubic", "polynomial-99", None):
        with pytest.raises(InvalidArgumentError, match="energy must be"):
            parse_energy(bad)
    mixed = hopfield_update(states(0)[0].float(), states(0)[1])
    torch.testing.assert_close(mixed, hopfield_update(*states(0)), rtol=1e-5, atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="beta must be above 0"):
        hopfield_update(*states(0), beta=0.0)
    with pytest.raises(InvalidArgumentError, match="same last axis"):
        hopfield_update(torch.ones(2, 3), torch.ones(2, 4))


@pytest.mark.parametrize("name", NAMES)
def test_field_is_the_sum_of_energy_differences(name):
    """Against the definition: energy of the state with bit i flipped, minus its own."""
    g = torch.Generator().manual_seed(0)
    d, k = 8, 6
    patterns, state = draw_signs(g, k, d), draw_signs(g, 4, d)
    kind = parse_energy(name)

    def f(o):
        if kind.degree is None:
            return math.exp(o - d)
        return (o / d) ** kind.degree

    want = torch.zeros(4, d, dtype=torch.float64)
    for q in range(4):
        for i in range(d):
            flipped = state[q].clone()
            flipped[i] *= -1
            for xi in patterns:
                want[q, i] += f(float(xi @ state[q])) - f(float(xi @ flipped))
    torch.testing.assert_close(field(kind, patterns, state, beta=1.0), want)
    own = own_field(kind, patterns[:4], state, beta=1.0)
    each = torch.cat(
        [field(kind, patterns[q : q + 1], state[q : q + 1], beta=1.0) for q in range(4)]
    )
    torch.testing.assert_close(own, each)


def test_wrong_bits_counts_flips_and_half_a_tie():
    state = torch.tensor([[1.0, -1.0, 1.0, 1.0]], dtype=torch.float64)
    target = torch.tensor([[1.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
    total = torch.tensor([[2.0, -1.0, 3.0, 0.0]], dtype=torch.float64)
    # kept and right, flipped and right, kept and wrong, tie
    assert wrong_bits(total, state, target).tolist() == [[0.0, 0.0, 1.0, 0.5]]


def test_flip_flips_exactly_the_fraction_asked_for():
    g = torch.Generator().manual_seed(0)
    patterns = draw_signs(g, 50, 20)
    changed = flip(patterns, 0.25, g) != patterns
    assert changed.sum(1).tolist() == [5] * 50
    assert changed.sum(0).min() >= 2 and changed.sum(0).max() <= 25


def test_expected_capacity_closed_forms():
    quadratic, exponential = parse_energy("quadratic"), parse_energy("exponential")
    got = expected_capacity(quadratic, 500, noise=0.0, max_bit_error=0.0036, beta=1.0)
    assert got == pytest.approx(1 + 499 * 0.13846, rel=1e-3)  # 1/z² with P(N > z) = 0.0036
    got = expected_capacity(exponential, 12, noise=0.0, max_bit_error=0.01, beta=1.0)
    assert got == pytest.approx(1 + 0.02 * 2**12)  # ties with the patterns one bit away
    cubic = expected_capacity(
        parse_energy("polynomial-3"), 2000, noise=0.0, max_bit_error=0.0036, beta=1.0
    )
    assert cubic == pytest.approx(2000**2 * 0.13846 / 3, rel=5e-3)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_the_exponential_memory_grows_with_the_information_of_a_noisy_bit(noise):
    entropy = float(torch.distributions.Bernoulli(torch.tensor(noise).double()).entropy())
    low, high = theory_slopes(parse_energy("exponential"), noise)
    assert (low, high) == (pytest.approx(high / 2), pytest.approx(math.log(2) - entropy))


def test_theory_slopes():
    assert theory_slopes(parse_energy("polynomial-4"), 0.1) == (3.0, 3.0)
    low, high = theory_slopes(parse_energy("exponential"), 0.0)
    assert (low, high) == (pytest.approx(math.log(2) / 2), pytest.approx(math.log(2)))


@pytest.fixture(scope="module")
def capacity():
    return ll.memory_capacity(
        dims={
            "quadratic": (128, 256, 512),
            "polynomial-3": (48, 64, 96),
            "polynomial-4": (32, 40, 48),
            "exponential": (10, 12, 14),
        },
        queries=128,
        seeds=6,
    )


def test_the_classical_memory_holds_014_d(capacity):
    frame = capacity.capacity().set_index(["energy", "d"])
    for d in (128, 256, 512):
        assert frame.capacity["quadratic", d] / d == pytest.approx(0.14, abs=0.012)


def test_capacities_are_those_expected_at_this_size(capacity):
    frame = capacity.capacity()
    assert (frame.seeds == 6).all()
    error = 4 * frame.sd / frame.seeds**0.5 + 0.06 * frame.expected  # sampling, Gaussian theory
    assert ((frame.capacity - frame.expected).abs() < error).all()


def test_slopes_grow_from_linear_to_exponential(capacity):
    slopes = capacity.slopes().set_index("energy")
    for name, power in (("quadratic", 1), ("polynomial-3", 2), ("polynomial-4", 3)):
        row = slopes.loc[name]
        assert row.theory_low == row.theory_high == power
        assert abs(row.slope - row.expected) < 4 * row.se + 0.05
        assert abs(row.slope - power) < 0.35
    row = slopes.loc["exponential"]
    assert row.theory_low < row.slope < row.theory_high + 4 * row.se
    assert "quadratic 0.9" in repr(capacity) or "quadratic 1.0" in repr(capacity)


def test_curves_rise_and_cross_at_the_capacity(capacity):
    frame = capacity.to_dataframe()
    assert set(frame.columns) >= {"energy", "d", "n_patterns", "seed", "bit_error", "recall"}
    for curve in capacity.curves:
        octaves = [math.log2(count / curve.expected) for count in curve.n_patterns]
        assert octaves[-1] == pytest.approx(1.75, abs=0.04)  # below, counts are rounded more
        assert np.diff(octaves)[-6:] == pytest.approx(0.25, abs=0.1)
        mean = curve.bit_error.mean(1)
        assert float(mean[0]) < 0.0036 < float(mean[-1])
        whole = curve.recall.mean(
            1
        )  # patterns without a wrong bit; errors that cluster spare more of them
        assert 0.9 < float(whole[0]) <= 1
        assert ((1 - mean) ** curve.d - 0.1 < whole).all() and (whole <= 1 - mean).all()
        below = [k for k, e in zip(curve.n_patterns, mean.tolist(), strict=True) if e < 0.0036]
        assert below[-1] / 1.3 < float(curve.capacity.mean()) < below[-1] * 1.5


def test_capacity_of_noisy_queries_is_lower_by_the_square_of_the_signal():
    # The signal of the quadratic memory falls by 1 - 2ρ, so the capacity by its square.
    clean = ll.memory_capacity(energies="quadratic", dims=[400], seeds=6)
    noisy = ll.memory_capacity(energies="linear", dims=[400], seeds=6, noise=0.2)
    ratio = noisy.capacity().capacity[0] / clean.capacity().capacity[0]
    assert ratio == pytest.approx(0.36, abs=0.05)


def test_default_sizes_leave_room_for_noise_and_stay_below_max_patterns():
    noisy = ll.memory_capacity(energies="exponential", noise=0.2, seeds=3, queries=128)
    assert (noisy.capacity().seeds == 3).all()
    (row,) = noisy.slopes().to_dict("records")
    assert abs(row["slope"] - row["expected"]) < 4 * row["se"] + 0.03
    assert row["theory_low"] < row["slope"] < 1.1 * row["theory_high"]
    steep = ll.memory_capacity(
        energies="polynomial-20", seeds=1, queries=4, max_patterns=2000, max_bit_error=0.01
    )
    assert max(max(curve.n_patterns) for curve in steep.curves) <= 2000


@pytest.mark.parametrize(
    ("d", "noise", "beta"), [(40, 0.0, 0.1), (40, 0.1, 0.1), (24, 0.0, 0.2), (30, 0.2, 0.5)]
)
def test_expected_capacity_of_the_exponential_memory_at_other_temperatures(d, noise, beta):
    """At small β many patterns add up; at large β one competitor is enough."""
    result = ll.memory_capacity(energies="softmax", dims=[d], noise=noise, beta=beta, seeds=6)
    (row,) = result.capacity().to_dict("records")
    assert row["seeds"] == 6
    assert row["capacity"] == pytest.approx(row["expected"], rel=0.2)


def testcrossing_is_interpolated_in_the_logarithm():
    assert crossing((10, 100), torch.tensor([0.0, 0.2]), 0.1) == pytest.approx(math.sqrt(1000))
    assert math.isnan(crossing((10, 100), torch.tensor([0.0, 0.05]), 0.1))
    assert math.isnan(crossing((10, 100), torch.tensor([0.3, 0.5]), 0.1))
    assert _isotonic([1.0, 3.0, 2.0, 4.0]) == [1.0, 2.5, 2.5, 4.0]
    assert _isotonic([3.0, 2.0, 1.0]) == [2.0, 2.0, 2.0]
    noisy = np.random.default_rng(0).normal(size=40) + np.linspace(0, 2, 40)
    want = IsotonicRegression().fit_transform(range(40), noisy)
    np.testing.assert_allclose(_isotonic(noisy.tolist()), want)


def test_memory_capacity_is_reproducible_and_refuses_the_impossible():
    a = ll.memory_capacity(energies="quadratic", dims=[64], seeds=2, queries=32)
    b = ll.memory_capacity(energies="quadratic", dims=[64], seeds=2, queries=32)
    torch.testing.assert_close(a.curves[0].bit_error, b.curves[0].bit_error)
    assert a.capacity().sd[0] == pytest.approx(float(a.curves[0].capacity.std()))
    assert math.isnan(a.slopes().expected[0])  # one size has no slope
    two = ll.memory_capacity(energies="quadratic", dims=[64, 96], seeds=2, queries=32)
    small, large = (curve.expected for curve in two.curves)
    assert two.slopes().expected[0] == pytest.approx(math.log(large / small) / math.log(96 / 64))
    with pytest.raises(InvalidArgumentError, match="smaller d or more noise"):
        ll.memory_capacity(energies="exponential", dims=[64])
    with pytest.raises(InvalidArgumentError, match="at least one size"):
        ll.memory_capacity(energies="quadratic", dims=[])
    with pytest.raises(InvalidArgumentError, match="noise must be at most"):
        ll.memory_capacity(noise=0.5)
    with pytest.raises(InvalidArgumentError, match="at least one"):
        ll.memory_capacity(energies=())


def test_settle_recovers_a_noisy_pattern_and_stops_at_a_fixed_point():
    g = torch.Generator().manual_seed(0)
    patterns = draw_signs(g, 5, 60)
    start = flip(patterns, 0.2, g)
    for name in NAMES:
        kind = parse_energy(name)
        final = settle(kind, patterns, start, steps=10, beta=1.0)
        torch.testing.assert_close(final, patterns)
        torch.testing.assert_close(settle(kind, patterns, final, steps=1, beta=1.0), final)


def test_retrieval_curve_shows_the_three_regimes():
    curve = retrieval_curve(d=64, n_patterns=(4, 32, 512), noise=(0.0, 0.2), seeds=3)
    recall = curve.to_dataframe().groupby(["energy", "n_patterns", "noise"])["recall"].mean()
    assert recall["quadratic", 4, 0.2] > 0.9 > 0.3 > recall["quadratic", 32, 0.2]
    assert recall["polynomial-3", 32, 0.2] > 0.9 > 0.3 > recall["polynomial-3", 512, 0.2]
    assert recall["exponential", 512, 0.2] > 0.9 and recall.max() == 1
    assert "d = 64 bits" in repr(curve)
    # one cell again, by hand
    patterns = draw_signs(derive_generator(0, "retrieval patterns"), 512, 64)[:32]
    start = flip(patterns, 0.2, derive_generator(0, "flips", 32, 0.2))
    final = settle(parse_energy("quadratic"), patterns, start, steps=5, beta=1.0)
    want = float((final * patterns[:32]).mean())
    cell = curve.overlap[curve.energies.index("quadratic"), 1, 1, 0]
    assert float(cell) == pytest.approx(want)
    with pytest.raises(InvalidArgumentError, match="at least one value"):
        retrieval_curve(noise=())


def test_a_cell_does_not_depend_on_which_others_were_asked():
    """At a load where the memory fails in part, so that no two cells agree by chance."""
    alone = retrieval_curve(energies="quadratic", d=32, n_patterns=(8,), noise=(0.2,), seeds=2)
    more = retrieval_curve(d=32, n_patterns=(2, 8, 64), noise=(0.0, 0.1, 0.2), seeds=3)
    want = more.overlap[more.energies.index("quadratic"), 1, 2]
    assert want.max() < 1 and len(want.unique()) == 3
    torch.testing.assert_close(alone.overlap[0, 0, 0], want[:2], rtol=0, atol=0)
    later = retrieval_curve(
        d=32, n_patterns=(8, 9), noise=(0.2,), seeds=1, seed=2
    )  # the third seed
    torch.testing.assert_close(later.overlap[0, 0, 0], want[2:], rtol=0, atol=0)
