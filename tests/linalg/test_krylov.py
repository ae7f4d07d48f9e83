import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linalg_data import normal

from lens_linear.errors import InvalidArgumentError, NonFiniteError
from lens_linear.linalg import complete_basis, krylov_basis


def orthonormality(basis):
    eye = torch.eye(basis.shape[-1], dtype=basis.dtype)
    return float((basis.mT @ basis - eye).abs().max())


def dense_krylov_projector(matrix, start, order):
    """Projector on the span of the powers, from an exact-enough SVD of scaled columns."""
    columns, v = [], start
    for _ in range(order):
        columns.append(v / v.norm())
        v = matrix @ columns[-1]
    u, _, _ = torch.linalg.svd(torch.stack(columns, 1), full_matrices=False)
    return u @ u.T


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), d=st.integers(2, 12), order=st.integers(1, 5))
def test_spans_the_dense_krylov_space(seed, d, order):
    order = min(order, d)
    matrix, start = normal(d, d, seed=seed), normal(d, seed=seed + 1)
    result = krylov_basis(lambda v: v @ matrix.T, start, order=order)
    basis = result.basis
    assert orthonormality(basis) < 1e-12
    torch.testing.assert_close(basis[:, 0], start / start.norm(), rtol=0, atol=1e-15)
    torch.testing.assert_close(
        basis @ basis.T, dense_krylov_projector(matrix, start, order), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(result.projected, basis.T @ matrix @ basis, rtol=0, atol=1e-10)
    below = result.projected.tril(-2)
    assert float(below.abs().max()) < 1e-10 * float(matrix.norm())


def test_stays_orthonormal_where_plain_gram_schmidt_loses_it():
    d = 60
    matrix = torch.diag(torch.logspace(0, -8, d, dtype=torch.float64))
    basis = krylov_basis(lambda v: v @ matrix, torch.ones(d), order=40, rtol=1e-14).basis
    assert orthonormality(basis) < 1e-12


def test_an_invariant_space_is_a_breakdown_completed_at_random():
    # A maps span(e0, e1) into itself; started there, the third direction must be random.
    matrix = torch.zeros(6, 6, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    matrix[2:, 2:] = normal(4, 4)
    start = torch.tensor([1.0, 0, 0, 0, 0, 0])
    result = krylov_basis(lambda v: v @ matrix.T, start, order=4, seed=1)
    assert int(result.exact_order) == 2
    assert orthonormality(result.basis) < 1e-12
    assert float(result.basis[2:, :2].abs().max()) < 1e-12
    torch.testing.assert_close(
        torch.linalg.eigvals(result.projected[:2, :2]).real.sort().values,
        torch.linalg.eigvals(matrix[:2, :2]).real.sort().values,
    )
    assert "breakdown after 2 columns" in repr(result)
    again = krylov_basis(lambda v: v @ matrix.T, start, order=4, seed=1)
    other = krylov_basis(lambda v: v @ matrix.T, start, order=4, seed=2)
    assert torch.equal(result.basis, again.basis)
    assert not torch.allclose(result.basis, other.basis)


def test_the_zero_map_breaks_down_at_once():
    result = krylov_basis(torch.zeros_like, normal(5), order=5)
    assert int(result.exact_order) == 1 and orthonormality(result.basis) < 1e-12
    assert not result.projected.any()


def test_batched_starts_with_their_own_maps_equal_single_runs():
    matrices, starts = normal(3, 7, 7), normal(3, 7, seed=1)
    matrices[1] = torch.eye(7)  # breaks down in the middle of the batch
    calls = []

    def apply(v):
        calls.append(v.shape)
        return torch.einsum("bij,bj->bi", matrices, v).float()

    result = krylov_basis(apply, starts, order=4, rtol=1e-5)
    assert calls == [(3, 7)] * 4
    assert result.exact_order.tolist() == [4, 1, 4]
    for i in range(3):
        single = krylov_basis(
            lambda v, i=i: (v @ matrices[i].T).float(), starts[i], order=4, rtol=1e-5
        )
        torch.testing.assert_close(single.basis, result.basis[i], rtol=0, atol=1e-5)
    assert result.to_dataframe()["exact_order"].tolist() == [4, 1, 4]
    assert "3 bases of order 4 in 7" in repr(result)


def test_apply_may_change_its_argument_in_place():
    matrix = normal(5, 5)

    def spoil(v):
        out = v @ matrix.T
        v.zero_()
        return out

    result = krylov_basis(spoil, normal(5, seed=1), order=3)
    assert orthonormality(result.basis) < 1e-12


def test_complete_basis_keeps_order_and_replaces_dependent_columns():
    columns = normal(8, 3)
    columns[:, 2] = columns[:, 0] - 2 * columns[:, 1]
    basis = complete_basis(columns, order=5)
    assert orthonormality(basis) < 1e-12
    torch.testing.assert_close(basis[:, 0], columns[:, 0] / columns[:, 0].norm())
    inside = basis[:, :2] @ (basis[:, :2].T @ columns)
    torch.testing.assert_close(inside, columns)  # all three lie in the first two
    batched = complete_basis(torch.stack([columns, normal(8, 3, seed=5)]), order=5)
    torch.testing.assert_close(batched[0], basis)
    assert orthonormality(batched) < 1e-12
    assert orthonormality(complete_basis(columns, order=8)) < 1e-12
    q, r = torch.linalg.qr(normal(8, 3, seed=5))
    torch.testing.assert_close(batched[1][:, :3], q * r.diagonal().sign())


def test_bad_input_is_refused():
    with pytest.raises(InvalidArgumentError, match="must not be zero"):
        krylov_basis(lambda v: v, torch.zeros(3), order=1)
    with pytest.raises(InvalidArgumentError, match="order must be at most 3"):
        krylov_basis(lambda v: v, torch.ones(3), order=4)
    with pytest.raises(InvalidArgumentError, match="apply must return shape"):
        krylov_basis(lambda v: v[0], torch.ones(3), order=2)
    with pytest.raises(NonFiniteError, match=r"apply\(v\) holds"):
        krylov_basis(lambda v: v / 0, torch.ones(3), order=2)
    with pytest.raises(InvalidArgumentError, match=r"shape \[d\] or \[batch, d\]"):
        krylov_basis(lambda v: v, torch.ones(2, 2, 3), order=2)
    with pytest.raises(InvalidArgumentError, match="must not be zero"):
        complete_basis(torch.zeros(3, 1), order=2)
