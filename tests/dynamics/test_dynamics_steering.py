"""Schedules: closed forms, least norm, and energies on models whose answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lens_linear as ll
from lens_linear.dynamics import (
    joint_min_energy,
    random_directions,
    refined_min_energy,
    steer_concepts,
)
from lens_linear.dynamics.steering.min_energy import heuristic_schedules
from lens_linear.dynamics.steering.schedules import ScheduleComparison, _Search
from lens_linear.errors import InvalidArgumentError

gains = st.lists(st.floats(-5, 5).filter(lambda x: abs(x) > 0.01), min_size=2, max_size=8)


@settings(max_examples=40, deadline=None)
@given(h=gains, target=st.floats(-10, 10).filter(bool), seed=st.integers(0, 99))
def test_no_other_schedule_with_the_same_shift_is_smaller(h, target, seed):
    h = torch.tensor(h, dtype=torch.float64)
    u = ll.min_energy(h, target)
    assert float(h @ u) == pytest.approx(target)
    assert float(u.energy) == pytest.approx(target**2 / float(h @ h))
    noise = torch.tensor(np.random.default_rng(seed).normal(size=len(h)))
    noise = noise - (noise @ h) / (h @ h) * h  # any other solution differs by this
    assert float((u + noise).pow(2).sum()) >= float(u.energy) * (1 - 1e-12)


def test_min_energy_takes_profiles_rows_and_targets(smooth, oracle):
    profile = ll.gain_profile(smooth, oracle.rows_of(smooth, [4, 7]), random_directions(smooth))
    by_mean = ll.min_energy(profile, 2.0)
    torch.testing.assert_close(by_mean.plain(), ll.min_energy(profile.mean, 2.0).plain())
    rows = ll.min_energy(profile.gains, torch.tensor([1.0, -1.0]))
    assert rows.shape == (2, 3)
    torch.testing.assert_close(rows.predicted, torch.tensor([1.0, -1.0], dtype=torch.float64))
    frame = by_mean.to_dataframe()
    assert frame["energy_share"].sum() == pytest.approx(1.0)
    assert "predicted shift 2" in repr(by_mean) and "2 prompts × 3 layers" in repr(rows)
    with pytest.raises(InvalidArgumentError, match="must not all be 0"):
        ll.min_energy(torch.zeros(3), 1.0)
    with pytest.raises(InvalidArgumentError, match="target must be one number"):
        ll.min_energy(torch.ones(3), torch.ones(2))


def test_joint_least_norm_against_numpy():
    rng = np.random.default_rng(0)
    G, y = rng.normal(size=(3, 8)), rng.normal(size=3)
    u = joint_min_energy(torch.tensor(G), torch.tensor(y))
    np.testing.assert_allclose(u, np.linalg.lstsq(G, y, rcond=None)[0], atol=1e-10)
    root = rng.normal(size=(8, 8))
    M = root @ root.T + np.eye(8)
    weighted = joint_min_energy(torch.tensor(G), torch.tensor(y), gram=torch.tensor(M)).numpy()
    np.testing.assert_allclose(G @ weighted, y, atol=1e-10)
    chol = np.linalg.cholesky(M)
    expected = np.linalg.solve(chol.T, np.linalg.lstsq(G @ np.linalg.inv(chol.T), y, rcond=None)[0])
    np.testing.assert_allclose(weighted, expected, atol=1e-9)
    with pytest.raises(InvalidArgumentError, match="cannot all be met"):
        joint_min_energy(torch.tensor([[1.0, 2.0], [2.0, 4.0]]), [1.0, 1.0])


def test_heuristics_are_unit_vectors():
    for n_layers in (1, 2, 5, 12):
        for shape in heuristic_schedules(n_layers).values():
            assert float(shape.norm()) == pytest.approx(1.0) and len(shape) == n_layers
    assert heuristic_schedules(12)["last layer"].argmax() == 11


def test_energies_on_a_linear_model_have_their_closed_form(linear, oracle):
    rows = oracle.rows_of(linear, [5, 9, 3])
    directions = random_directions(linear)
    exact = ll.gain_profile(linear, rows, directions).gains
    shape = torch.tensor([1.0, -2.0, 0.5])
    found = ll.evaluate_schedules(
        linear, rows, directions, target=0.7, schedules={"mine": shape}, tolerance=1e-6
    )
    names = list(found.names)
    unit = (shape / shape.norm()).double()
    expected = 0.7**2 / (exact @ unit) ** 2
    torch.testing.assert_close(found.energy[names.index("mine")], expected, rtol=1e-5, atol=0)
    least = 0.7**2 / exact.pow(2).sum(-1)
    for name in ("exact minimum energy", "refined minimum energy"):
        torch.testing.assert_close(found.energy[names.index(name)], least, rtol=1e-5, atol=0)
    assert bool((found.energy >= least * (1 - 1e-5)).all())
    torch.testing.assert_close(
        found.achieved[0], torch.full((3,), 0.7, dtype=torch.float64), rtol=1e-5, atol=0
    )
    frame = found.to_dataframe()
    assert frame.loc[0, "schedule"] == "minimum energy" and frame.loc[0, "ratio_median"] == 1.0
    assert frame["reached"].min() == 1.0 and frame["worst_miss"].max() < 1e-5


def test_the_table_of_schedules_by_hand():
    nan = float("nan")
    achieved = torch.tensor([[2.0, 2.0, 2.02, 1.9], [2.0, 1.8, nan, nan]])
    energy = torch.tensor([[1.0, 2.0, 4.0, 8.0], [3.0, 3.0, nan, nan]])
    found = ScheduleComparison(
        names=("minimum energy", "mine"),
        shapes=torch.ones(2, 4, 1),
        amplitudes=energy.sqrt(),
        achieved=achieved,
        baseline=torch.zeros(4),
        target=2.0,
        energy=energy,
        tolerance=0.1,
        whole_gap=0.0,
    )
    first, mine = found.to_dataframe().to_dict("records")
    assert first["energy_median"] == 3.0 and first["worst_miss"] == pytest.approx(0.05)
    assert mine["worst_miss"] == pytest.approx(0.1) and mine["reached"] == 0.5
    ratios = [3.0, 1.5, np.inf, np.inf]
    assert mine["ratio_median"] == np.inf and mine["ratio_q25"] == 1.5 + 0.75 * (3.0 - 1.5)
    assert mine["min_energy_wins"] == 1.0 and found.ratios[1].tolist() == ratios


def test_a_target_that_cannot_be_reached_is_said(linear, oracle):
    rows, directions = oracle.rows_of(linear, [5]), random_directions(linear).plain()
    readout = torch.zeros(16, dtype=torch.float64)
    readout[0] = 1.0
    directions = directions.clone()
    directions[2] = 0  # adding nothing at the last layer moves nothing
    found = ll.evaluate_schedules(
        linear, rows, directions, target=1.0, readout=readout, max_factor=10.0
    )
    last = list(found.names).index("last layer")
    assert not bool(found.reached[last].any()) and bool(found.reached[0].all())
    assert found.to_dataframe().loc[last, "ratio_median"] == float("inf")


def test_the_refined_schedule_is_cheaper_on_a_nonlinear_model():
    model = ll.load("gpt-nano")
    texts = list(ll.load_concept("mood", limit=40).texts)
    directions = random_directions(model, seed=4)
    found = ll.evaluate_schedules(model, texts[:12], directions, target=2.0)
    names = list(found.names)
    refined = found.energy[names.index("refined minimum energy")]
    exact = found.energy[names.index("exact minimum energy")]
    assert bool((refined <= exact * 1.02).all()) and float((refined / exact).median()) < 0.95
    miss = (found.achieved - 2.0).abs()[found.reached] / 2.0
    assert float(miss.max()) < 2e-3  # checked on whole prompts, in float32


class _Known(_Search):
    """Amplitudes on a readout that is a known function of what is added at the layers."""

    def shift(self, amplitudes, wanted=None):
        return self.context(amplitudes[..., None] * self.shapes)


def _known(readout, shapes):
    return _Known(readout, None, None, torch.tensor(shapes, dtype=torch.float64), 1.0, 8)


def test_the_sign_that_needs_less_wins_whatever_the_slope_says():
    # One layer: f(u) = u/10 + u² − b u³, a prompt each b; with b = 1/2 the positive side never arrives.
    bend = torch.tensor([-0.5, 0.0, 0.02, 0.2, 0.5], dtype=torch.float64)
    search = _known(lambda u: (0.1 * u + u**2 - bend[:, None] * u**3).sum(-1), [[[1.0]] * 5] * 2)
    found, reached = search.run(torch.full((5, 1), 0.1, dtype=torch.float64), 3.0, 1e-6)
    for b, amplitude in zip(bend, found[0], strict=True):
        roots = np.roots([-float(b), 1.0, 0.1, -1.0])
        roots = roots[np.isreal(roots)].real
        assert float(amplitude) == pytest.approx(roots[np.abs(roots).argmin()], rel=1e-5)
    assert found[0].sign().tolist() == [1, 1, 1, -1, -1]
    torch.testing.assert_close(reached[0], torch.ones(5).double(), rtol=1e-6, atol=0)


def test_where_nothing_arrives_the_refinement_starts_from_the_linear_answer(monkeypatch):
    gains = torch.tensor([[3.0, -1.0, 2.0]], dtype=torch.float64)
    monkeypatch.setattr("lens_linear.dynamics.steering.schedules.refine", lambda *a, **_: a[3:5])
    # 0.95 of what a linear model would do: at most once its amplitude is not enough.
    search = _known(lambda u: 0.95 * (u * gains).sum(-1), [[[1.0, 0.0, 0.0]]] * 3)
    found, reached = search.run_with_refined(gains, 1.0, 1e-6, 1)
    assert bool(found[:2].isnan().all())
    torch.testing.assert_close(search.shapes[2], gains / gains.norm())
    assert float(found[2]) == pytest.approx(1 / (0.95 * float(gains.norm())), rel=1e-6)
    assert float(reached[2]) == pytest.approx(1, rel=1e-6)


def test_a_bracket_beyond_the_target_holds_nothing():
    search = _known(lambda u: u.sum(-1) ** 3, [[[1.0], [1.0], [1.0]]])
    low = torch.tensor([[0.8, 1.1, 0.2]], dtype=torch.float64)
    found, shift = search._inside(torch.ones_like(low), low, low * 1.5, 1e-6)
    assert found.isnan().tolist() == shift.isnan().tolist() == [[False, True, True]]
    assert float(found[0, 0]) == pytest.approx(1, rel=1e-6)


def test_refined_equals_linear_on_a_linear_model_and_satisfies_its_conditions(linear, oracle):
    rows, directions = oracle.rows_of(linear, [5, 9]), random_directions(linear)
    exact = ll.gain_profile(linear, rows, directions).gains
    start = torch.ones(3, dtype=torch.float64)
    found = refined_min_energy(linear, rows, directions, start, 0.4, steps=8)
    torch.testing.assert_close(found.plain(), ll.min_energy(exact, 0.4).plain())
    torch.testing.assert_close(found.gains, exact)


def test_several_concepts_at_once(smooth, oracle):
    rows = oracle.rows_of(smooth, [5, 8, 6])
    sets = [random_directions(smooth, seed=s) for s in (1, 2, 3)]
    found = steer_concepts(smooth, rows, sets, [0.3, 0.0, -0.2])
    torch.testing.assert_close(
        found.achieved, torch.tensor([0.3, 0.0, -0.2], dtype=torch.float64), rtol=0, atol=1e-3
    )
    first_order = torch.einsum("ycl,cl->y", found.gains, found.amplitudes)
    assert float((first_order - found.targets).abs().max()) < 0.2
    assert found.energy > 0 and "3 concepts" in repr(found)
    assert found.to_dataframe()["energy_share"].sum() == pytest.approx(1.0)
    alone = steer_concepts(smooth, rows, sets[:1], [0.3], corrections=0)
    profile = ll.gain_profile(smooth, rows, sets[0])
    torch.testing.assert_close(alone.amplitudes[0], ll.min_energy(profile, 0.3).plain())
    with pytest.raises(InvalidArgumentError, match="one entry for each"):
        steer_concepts(smooth, rows, sets, [1.0])


def test_bad_schedules_are_refused(linear, oracle):
    rows, directions = oracle.rows_of(linear, [5, 4]), random_directions(linear)
    with pytest.raises(InvalidArgumentError, match="target must not be 0"):
        ll.evaluate_schedules(linear, rows, directions, target=0.0)
    n_layers = linear.cfg.n_layers
    for gains in (torch.arange(n_layers + 2.0), torch.ones(2, n_layers - 1), torch.zeros(n_layers)):
        with pytest.raises(InvalidArgumentError, match="gains must"):
            ll.evaluate_schedules(linear, rows, directions, gains, target=1.0)
    with pytest.raises(InvalidArgumentError, match="one amplitude for each"):
        ll.evaluate_schedules(linear, rows, directions, schedules={"x": torch.ones(2)})
    with pytest.raises(InvalidArgumentError, match="all zeros"):
        ll.evaluate_schedules(linear, rows, directions, schedules={"x": torch.zeros(3)})


@pytest.mark.parametrize("shape", [(5,), (3, 3), (2, 2)])
def test_gains_of_other_layers_or_prompts_are_refused(linear, oracle, shape):
    rows, directions = oracle.rows_of(linear, [5, 4]), random_directions(linear)
    with pytest.raises(InvalidArgumentError, match="for 2 prompts and 3 layers"):
        refined_min_energy(linear, rows, directions, torch.ones(shape), 0.4)
