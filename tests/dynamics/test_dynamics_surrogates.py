"""Surrogates against dense matrices: bases, mean systems, full order, truncation, agreement."""

import pytest
import torch

import lens_linear as ll
from lens_linear.dynamics import block_jacobians, random_directions
from lens_linear.dynamics.surrogates.bases import BASES, build_bases
from lens_linear.dynamics.surrogates.surrogate import identify, reduced_gains, truncated
from lens_linear.errors import InvalidArgumentError


@pytest.fixture(scope="module")
def setting(smooth, oracle):
    rows = oracle.rows_of(smooth, [5, 9, 3, 7, 4, 6], seed=3)
    return smooth, rows, random_directions(smooth).plain()


def dense_jacobians(model, rows):
    """Every block's Jacobian at every prompt, one column at a time by central differences."""
    from lens_linear.models.capture import run

    found = []
    for row in rows:
        per_layer = []
        for layer in range(model.cfg.n_layers):
            columns = []
            for unit in torch.eye(model.cfg.d_model, dtype=torch.float64) * 1e-5:
                ends = []
                for sign in (1, -1):

                    def push(x, unit=unit, sign=sign):
                        x = x.clone()
                        x[:, -1] += sign * unit
                        return x

                    spots = [(layer, "resid_post")]
                    edits = [((layer, "resid_pre"), push)]
                    out = run(model, row[None], record=spots, edits=edits, logits=False)
                    ends.append(out[spots[0]][0, -1])
                columns.append((ends[0] - ends[1]) / 2e-5)
            per_layer.append(torch.stack(columns, dim=1))
        found.append(torch.stack(per_layer))
    return torch.stack(found)


@pytest.fixture(scope="module")
def dense(setting):
    model, rows, _ = setting
    return dense_jacobians(model, rows)


@pytest.mark.parametrize("basis", BASES)
def test_full_order_with_each_prompts_jacobian_is_the_adjoint(setting, basis):
    model, rows, directions = setting
    exact = ll.gain_profile(model, rows, directions)
    full = ll.fit_surrogate(model, rows, directions, order=16, basis=basis)
    torch.testing.assert_close(full.gains, exact.gains, rtol=1e-8, atol=1e-10)
    assert full.agreement(exact).spearman == pytest.approx(1.0) and full.agreement(exact).paired


@pytest.mark.parametrize("basis", BASES)
def test_full_order_is_the_adjoint_on_a_third_party_model(stories_model, basis):
    rows = [torch.arange(30, 30 + n) for n in (6, 11, 9)]
    directions = random_directions(stories_model)
    exact = ll.gain_profile(stories_model, rows, directions).gains
    full = ll.fit_surrogate(stories_model, rows, directions, order=64, basis=basis).gains
    assert float((full - exact).norm() / exact.norm()) < 1e-4


@pytest.mark.parametrize("basis", [b for b in BASES if b != "balanced"])
def test_orthonormal_bases_begin_with_the_direction_and_hold_what_they_are_named_for(
    setting, dense, basis
):
    model, rows, directions = setting
    built = build_bases(
        block_jacobians(model, rows), directions, directions[-1], order=5, kind=basis
    )
    eye = torch.eye(5, dtype=torch.float64).expand(4, 5, 5)
    torch.testing.assert_close(built.right.mT @ built.right, eye)
    torch.testing.assert_close(built.right[:, :, 0], directions)
    assert built.left is built.right and built.order == 5
    mean, states = dense.mean(0), block_jacobians(model, rows).states()
    for layer in range(3):
        if basis == "krylov-stationary":
            once = mean[layer] @ directions[layer]
            inside = torch.stack([once, mean[layer] @ once])
        elif basis == "pca":
            apart = states[layer + 1] - states[layer + 1].mean(0)
            inside = torch.linalg.eigh(apart.T @ apart).eigenvectors[:, -4:].T
        else:
            continue
        right = built.right[layer + 1]
        torch.testing.assert_close(inside @ right @ right.T, inside, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 4, 9, 16])
def test_balanced_bases_are_dual_also_beyond_their_rank(setting, order):
    model, rows, directions = setting
    built = build_bases(
        block_jacobians(model, rows), directions, directions[-1], order=order, kind="balanced"
    )
    eye = torch.eye(order, dtype=torch.float64).expand(4, order, order)
    torch.testing.assert_close(built.left.mT @ built.right, eye, rtol=1e-7, atol=1e-7)
    hankel = built.to_dataframe()["hankel"].dropna()
    assert len(hankel) and (hankel >= 0).all()


def test_hankel_values_are_those_of_dense_matrices(setting, dense):
    """Of what every injection has become at a boundary, and what the readout sees there."""
    model, rows, directions = setting
    readout = directions[-1]
    built = build_bases(block_jacobians(model, rows), directions, readout, order=3, kind="balanced")
    for boundary in range(4):
        reach, see = [], []
        for jacobians in dense:
            for source in range(boundary + 1):
                state = directions[source]
                for matrix in jacobians[source:boundary]:
                    state = matrix @ state
                reach.append(state)
            costate = readout
            for matrix in jacobians[boundary:].flip(0):
                costate = matrix.T @ costate
            see.append(costate)
        values = torch.linalg.svdvals(torch.stack(see) @ torch.stack(reach).T) / len(rows)
        found = built.hankel[boundary]
        kept = min(3, int((values > 1e-6 * values[0]).sum()))
        torch.testing.assert_close(found[:kept], values[:kept], rtol=1e-4, atol=1e-7)


def test_mean_system_matches_dense_matrices(setting, dense):
    model, rows, directions = setting
    mean = dense.mean(0)
    for basis in BASES:
        found = ll.fit_surrogate(model, rows, directions, order=6, basis=basis, jacobian="mean")
        right, left = found.bases.right, found.bases.left
        A = torch.stack([left[k + 1].T @ mean[k] @ right[k] for k in range(3)])
        B = torch.stack([left[k + 1].T @ mean[k] @ directions[k] for k in range(3)])
        torch.testing.assert_close(found.A, A, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.B, B, rtol=1e-5, atol=1e-7)
        C = directions[-1] @ right[-1]
        slow = [C @ A[2] @ A[1] @ B[0], C @ A[2] @ B[1], C @ B[2]]
        torch.testing.assert_close(found.gains[0], torch.stack(slow), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.system_gains, found.gains[0])


def test_prompt_gains_match_dense_matrices(setting, dense):
    model, rows, directions = setting
    found = ll.fit_surrogate(model, rows, directions, order=4, basis="pca")
    right, left = found.bases.right, found.bases.left
    for prompt in range(len(rows)):
        A = [left[k + 1].T @ dense[prompt, k] @ right[k] for k in range(3)]
        B = [left[k + 1].T @ dense[prompt, k] @ directions[k] for k in range(3)]
        C = directions[-1] @ right[-1]
        slow = torch.stack([C @ A[2] @ A[1] @ B[0], C @ A[2] @ B[1], C @ B[2]])
        torch.testing.assert_close(found.gains[prompt], slow, rtol=1e-4, atol=1e-6)


def test_krylov_follows_the_mean_system_exactly_from_order_layers_plus_one(setting, dense):
    model, rows, directions = setting
    mean = dense.mean(0)
    exact = []
    for k in range(3):
        state = directions[k]
        for matrix in mean[k:]:
            state = matrix @ state
        exact.append(directions[-1] @ state)
    exact = torch.stack(exact)
    errors = {}
    for order in (1, 2, 4, 7):
        found = ll.fit_surrogate(model, rows, directions, order=order, jacobian="mean").gains[0]
        errors[order] = float((found - exact).norm() / exact.norm())
    assert errors[4] < 1e-4 and errors[7] < 1e-4 and errors[1] > 0.01


def test_balanced_order_one_is_exact_at_one_prompt(setting):
    model, rows, directions = setting
    exact = ll.gain_profile(model, rows[:1], directions).gains
    one = ll.fit_surrogate(model, rows[:1], directions, order=1, basis="balanced").gains
    torch.testing.assert_close(one, exact, rtol=1e-8, atol=1e-10)
    krylov = ll.fit_surrogate(model, rows[:1], directions, order=1).gains
    assert float((krylov - exact).norm() / exact.norm()) > 0.01


def test_balanced_needs_a_smaller_order_than_random(setting):
    model, rows, directions = setting
    exact = ll.gain_profile(model, rows, directions)
    errors = {
        basis: ll.fit_surrogate(model, rows, directions, order=3, basis=basis)
        .agreement(exact)
        .relative_error
        for basis in ("balanced", "random")
    }
    assert errors["balanced"] < errors["random"] / 2


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("jacobian", ["prompt", "mean", "state"])
def test_truncation_is_what_building_at_that_order_gives(setting, basis, jacobian):
    model, rows, directions = setting
    maps, readout = block_jacobians(model, rows), directions[-1]
    big = build_bases(maps, directions, readout, order=8, kind=basis)
    largest = identify(maps, big, directions, readout, jacobian=jacobian)
    (small,) = truncated(largest, maps, [3])
    fresh = ll.fit_surrogate(model, rows, directions, order=3, basis=basis, jacobian=jacobian)
    torch.testing.assert_close(small.gains, fresh.gains, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(small.A, fresh.A, rtol=1e-7, atol=1e-9)
    assert small.order == 3


def test_prediction_on_new_prompts(setting, oracle):
    model, rows, directions = setting
    new = oracle.rows_of(model, [8, 5, 6], seed=11)
    exact = ll.gain_profile(model, new, directions)
    full = ll.fit_surrogate(model, rows, directions, order=16, basis="pca")
    torch.testing.assert_close(full.predict(model, new).gains, exact.gains, rtol=1e-8, atol=1e-10)
    mean = ll.fit_surrogate(model, rows, directions, order=16, jacobian="mean")
    repeated = mean.predict(model, new)
    assert repeated.gains.shape == exact.gains.shape
    torch.testing.assert_close(repeated.gains[0], mean.gains[0])
    score = mean.agreement(exact)
    assert (
        not score.paired and score.relative_error > 1e-3
    )  # one profile cannot follow three prompts
    assert score.relative_error == pytest.approx(repeated.agreement(exact).relative_error)


def test_on_a_linear_model_of_one_length_all_readings_are_exact(linear, oracle):
    rows = oracle.rows_of(linear, [6, 6, 6])
    directions = random_directions(linear).plain()
    exact = ll.gain_profile(linear, rows, directions)
    for jacobian in ("prompt", "mean"):
        found = ll.fit_surrogate(linear, rows, directions, order=4, jacobian=jacobian)
        assert found.agreement(exact).relative_error < 1e-9


def test_reduced_gains_against_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    A, B, C = (torch.randn(*s, generator=generator) for s in ((5, 3, 3), (5, 3), (3,)))
    for k in range(5):
        state = B[k]
        for layer in range(k + 1, 5):
            state = A[layer] @ state
        torch.testing.assert_close(reduced_gains(A, B, C)[k], C @ state)


def test_sentences_frames_and_errors(setting):
    model, rows, directions = setting
    found = ll.fit_surrogate(model, rows, directions, order=99)
    assert found.order == 16 and "order 16 of 16, krylov basis" in repr(found)
    frame = found.to_dataframe()
    assert list(frame.columns)[:3] == ["gain_mean", "gain_sd", "system_gain"]
    assert frame["gain_mean"].tolist() == pytest.approx(found.mean.tolist())
    with pytest.raises(InvalidArgumentError, match="basis must be one of"):
        ll.fit_surrogate(model, rows, directions, basis="krylow")
    with pytest.raises(InvalidArgumentError, match="jacobian"):
        ll.fit_surrogate(model, rows, directions, jacobian="both")
    with pytest.raises(InvalidArgumentError, match="order"):
        ll.fit_surrogate(model, rows, directions, order=0)


def test_a_basis_of_ones_own_reaches_gains_tables_schedules_and_figures(smooth, oracle):
    rows = oracle.rows_of(smooth, [4, 6, 5, 7, 8, 6])
    directions = random_directions(smooth)
    seen = {}

    def eigen_basis(maps, directions, readout, order):
        """Leading eigenvectors of the states' second moment, direction first; not orthogonal."""
        seen["layers"] = maps.n_layers
        states = maps.states()
        second = states.mT @ states
        vectors = torch.linalg.eigh(second).eigenvectors.flip(-1)
        return torch.cat([directions[..., None], vectors], dim=-1)[..., :order]

    fitted = ll.fit_surrogate(smooth, rows, directions, order=5, basis=eigen_basis, jacobian="mean")
    assert (fitted.basis, fitted.order, seen["layers"]) == ("eigen_basis", 5, 3)
    # slow oracle: the mean Jacobians as matrices, reduced by hand with the pseudo-inverse
    maps = block_jacobians(smooth, rows)
    A = maps.mean_push(torch.eye(16).double().expand(3, 16, 16)).mT
    right = eigen_basis(maps, torch.as_tensor(directions), None, 5)
    left = torch.linalg.pinv(right)
    row = directions[-1].double() @ right[-1]
    want = []
    for layer in (2, 1, 0):
        want.append(row @ left[layer + 1] @ A[layer] @ directions[layer].double())
        row = row @ left[layer + 1] @ A[layer] @ right[layer]
    torch.testing.assert_close(fitted.gains[0], torch.stack(want[::-1]), atol=1e-9, rtol=1e-8)
    again = ll.fit_surrogate(smooth, rows, directions, order=5, basis=fitted.bases, jacobian="mean")
    torch.testing.assert_close(again.gains, fitted.gains)
    u = ll.min_energy(fitted, 0.5)
    torch.testing.assert_close(torch.as_tensor(u.predicted), torch.tensor(0.5).double())
    other = ll.fit_surrogate(smooth, rows, directions, order=5, jacobian="mean")
    assert not torch.allclose(other.gains, fitted.gains, atol=1e-3)


def test_bases_of_ones_own_that_do_not_fit_say_why(smooth, oracle):
    rows, directions = oracle.rows_of(smooth, [4, 6]), random_directions(smooth)

    def fit(basis):
        return ll.fit_surrogate(smooth, rows, directions, order=2, basis=basis)

    with pytest.raises(InvalidArgumentError, match=r"must have shape \[boundary, d_model, order\]"):
        fit(lambda maps, directions, readout, order: torch.randn(3, 16, order))
    with pytest.raises(InvalidArgumentError, match="leftᵀ right = 1 at every boundary"):
        fit(lambda maps, directions, readout, order: torch.ones(4, 16, order))
    with pytest.raises(InvalidArgumentError, match="basis must be one of"):
        fit("krilov")


def test_a_basis_of_ones_own_in_the_agreement_table():
    def own(maps, directions, readout, order):
        return torch.eye(directions.shape[1]).double().expand(len(directions), -1, -1)[..., :order]

    sizes = {"n_concept": 20, "n_operating": 8, "n_evaluation": 8}
    table = ll.dynamics.agreement_table("gpt-nano", **sizes, orders=(4, 96), bases=("random", own))
    frame = table.to_dataframe().set_index(["basis", "order", "jacobian"])
    assert frame.spearman["own", 96, "prompt"] == pytest.approx(1.0)  # any basis of the whole space
    assert set(table.reaching(0.9)["basis"]) == {"random", "own"}
    figure = ll.plots.agreement_by_order(table)
    assert any("own" in str(trace.name) for trace in figure.data)


@pytest.mark.parametrize("basis", BASES)
def test_weights_are_looked_at_as_often_in_a_deep_model_as_in_a_flat_one(basis, monkeypatch):
    from lens_linear.models.describe.weights_mark import WeightsMark
    from lens_linear.models.open.toy import toy_model

    looks, fits = [], WeightsMark.fits
    monkeypatch.setattr(WeightsMark, "fits", lambda *a: looks.append(a) or fits(*a))
    counts = []
    for n_layers in (2, 5):
        model = toy_model(n_layers=n_layers, d_model=16, attn_only=False)
        rows = torch.randint(64, (3, 6), generator=torch.Generator().manual_seed(0))
        maps = block_jacobians(model, rows)
        directions = random_directions(model).plain()
        looks.clear()
        build_bases(maps, directions, directions[-1], order=4, kind=basis)
        counts.append(len(looks))
    assert counts[0] == counts[1] <= 2


def test_a_basis_function_gets_the_bridge_itself():
    model, seen = ll.toy_model(n_layers=2, d_model=16, d_vocab=40, n_ctx=32, seed=0), []

    def basis(maps, directions, readout, order):
        seen.append(maps.model)
        return ll.linalg.complete_basis(directions[..., None], order=order)

    prompts = [[1, 5, 3, 9], [2, 7, 4, 4]]
    ll.fit_surrogate(model, prompts, random_directions(model), order=3, basis=basis)
    assert seen and all(found is model for found in seen)
