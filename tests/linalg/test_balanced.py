import numpy as np
import pytest
import scipy.linalg
import torch
from linalg_data import normal

from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg import balanced_truncation


def test_hankel_values_of_a_system_with_a_closed_form():
    # x' = A x + B u, y = C x with A = diag(a), B = C = 1: one state has the Gramian 1 / (1 - a²),
    # uncoupled by block-diagonal inputs and outputs, so these are the Hankel values themselves.
    a = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    gramian = 1 / (1 - a**2)
    powers = torch.stack([a**k for k in range(300)], 1)
    factor = torch.block_diag(*powers.unbind(0)[0:3]).reshape(3, -1)
    result = balanced_truncation(factor, factor, order=2)
    torch.testing.assert_close(result.hankel[:3], gramian)
    torch.testing.assert_close(result.left.T @ result.right, torch.eye(2, dtype=torch.float64))
    assert result.error_bound == pytest.approx(2 / (1 - 0.01))
    assert f"order 2 of 3, keeps {gramian[:2].sum() / gramian.sum():.2%}" in repr(result)


def stable_system(d=8):
    matrix = normal(d, d)
    matrix = 0.95 * matrix / torch.linalg.eigvals(matrix).abs().max()
    return matrix, normal(d, 2, seed=1), normal(3, d, seed=2)


def gramian_factor(matrix, inputs):
    gramian = scipy.linalg.solve_discrete_lyapunov(matrix.numpy(), (inputs @ inputs.T).numpy())
    return torch.from_numpy(np.linalg.cholesky(gramian))


def test_balanced_coordinates_make_both_gramians_equal_and_diagonal():
    a, b, c = stable_system()
    result = balanced_truncation(gramian_factor(a, b), gramian_factor(a.T, c.T), order=8)
    assert result.order == 8
    reduced, inputs, outputs = result.left.T @ a @ result.right, result.left.T @ b, c @ result.right
    reach = scipy.linalg.solve_discrete_lyapunov(reduced.numpy(), (inputs @ inputs.T).numpy())
    see = scipy.linalg.solve_discrete_lyapunov(reduced.T.numpy(), (outputs.T @ outputs).numpy())
    np.testing.assert_allclose(reach, np.diag(result.hankel.numpy()), atol=1e-8)
    np.testing.assert_allclose(see, np.diag(result.hankel.numpy()), atol=1e-8)


@pytest.mark.parametrize("order", [2, 4, 6])
def test_reduced_responses_keep_the_error_bound(order):
    a, b, c = stable_system()
    result = balanced_truncation(gramian_factor(a, b), gramian_factor(a.T, c.T), order=order)
    small = (result.left.T @ a @ result.right, result.left.T @ b, c @ result.right)
    worst = 0.0
    for angle in np.linspace(0, np.pi, 100):
        z = np.exp(1j * angle)
        gains = []
        for matrix, inputs, outputs in ((a, b, c), small):
            inner = np.linalg.solve(z * np.eye(len(matrix)) - matrix.numpy(), inputs.numpy())
            gains.append(outputs.numpy() @ inner)
        worst = max(worst, np.linalg.norm(gains[0] - gains[1], 2))
    assert 0.01 * result.error_bound < worst <= result.error_bound * (1 + 1e-9)


def test_a_state_that_is_reached_but_never_seen_is_dropped():
    reach = torch.diag(torch.tensor([100.0, 1.0, 1.0], dtype=torch.float64))
    see = torch.diag(torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64))
    result = balanced_truncation(reach, see, order=3)
    assert result.order == 2 and result.hankel.tolist() == [2.0, 1.0, 0.0]
    assert result.right[0].abs().max() == 0
    assert result.to_dataframe()["kept"].tolist() == [True, True, False]


def test_bad_input_is_refused():
    with pytest.raises(InvalidArgumentError, match="no state"):
        balanced_truncation(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]]), order=1)
    with pytest.raises(InvalidArgumentError, match="as many rows"):
        balanced_truncation(torch.ones(3, 2), torch.ones(4, 2), order=1)
    with pytest.raises(InvalidArgumentError, match="order must be at least 1"):
        balanced_truncation(torch.ones(3, 2), torch.ones(3, 2), order=0)
