from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_linear._tl import FactoredMatrix
from lens_linear.circuits.heads import factored as search
from lens_linear.circuits.heads.circuit_window import map_of
from lens_linear.circuits.heads.factored import (
    copying_score,
    dense,
    diagonal_accuracy,
    eigenvalues,
    row_blocks,
    sum_of,
    top_pairs,
)
from lens_linear.errors import FigureTooLargeError, InvalidArgumentError, NonFiniteError


def factored(rows=23, columns=31, inner=5, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, inner, generator=g, dtype=dtype)
    return FactoredMatrix(a, torch.randn(inner, columns, generator=g, dtype=dtype))


@pytest.mark.parametrize("order", ["largest", "smallest", "absolute"])
@pytest.mark.parametrize("max_bytes", [1, 600, 2000, 10**6])
def test_top_pairs_are_those_of_the_dense_matrix_for_every_block_size(order, max_bytes):
    matrix = factored()
    full = (matrix.A @ matrix.B).numpy()
    key = {"largest": -full, "smallest": full, "absolute": -np.abs(full)}[order]
    best = np.argsort(key, axis=None, kind="stable")[:40]
    found = top_pairs(matrix, 40, order=order, max_bytes=max_bytes).to_dataframe()
    assert (found["row"] * 31 + found["column"]).tolist() == best.tolist()
    np.testing.assert_allclose(found["value"], full.flatten()[best], rtol=1e-12)


@pytest.mark.parametrize("max_bytes", [1, 300, 10**6])
def test_equal_entries_come_in_reading_order(max_bytes):
    ones = FactoredMatrix(torch.ones(7, 1), torch.ones(1, 6))
    found = top_pairs(ones, 10, max_bytes=max_bytes)
    assert list(zip(found.row_ids.tolist(), found.column_ids.tolist())) == [
        divmod(i, 6) for i in range(10)
    ]


def test_more_pairs_than_entries_gives_all_of_them():
    assert len(top_pairs(factored(3, 2), 100)) == 6


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 99), st.integers(1, 400)
)
def test_blocks_put_together_are_the_matrix(rows, columns, inner, seed, max_bytes):
    matrix = factored(rows, columns, inner, seed)
    parts = [block.clone() for _, block in row_blocks(matrix, max_bytes=max_bytes)]
    torch.testing.assert_close(torch.cat(parts), matrix.A @ matrix.B)


@pytest.mark.parametrize("columns", [1, 3, 40, 500])
def test_blocks_take_the_bytes_they_were_allowed(columns):
    matrix, most = factored(4000, columns, 2), 20_000
    held = {block.untyped_storage().nbytes() for _, block in row_blocks(matrix, max_bytes=most)}
    assert most / 2 < max(held) <= most


def test_dense_refuses_and_says_what_to_do(monkeypatch):
    assert dense(factored(), what="it").shape == (23, 31)
    monkeypatch.setattr("lens_linear.circuits.heads.factored.MAX_CELLS", 712)
    with pytest.raises(FigureTooLargeError, match=r"it would .* 23 x 31 = 713.*top_pairs"):
        dense(factored(), what="it")


@pytest.mark.parametrize("inner", [1, 3, 8, 20])
def test_copying_score_is_that_of_the_dense_eigenvalues(inner):
    matrix = factored(12, 12, inner, seed=inner)
    values = np.linalg.eigvals((matrix.A @ matrix.B).numpy())
    assert copying_score(matrix) == pytest.approx(
        values.real.sum() / np.abs(values).sum(), abs=1e-9
    )
    kept = np.sort(np.abs(values))[-min(inner, 12) :]
    found = np.sort(eigenvalues(matrix).abs().numpy())[-min(inner, 12) :]
    np.testing.assert_allclose(found, kept, rtol=1e-6)


def test_copying_score_in_closed_form():
    # Eigenvalues 3, 1 ± 2i: (3 + 1 + 1) / (3 + 2 sqrt 5).
    block = torch.tensor([[3.0, 0, 0], [0, 1, 2], [0, -2, 1]], dtype=torch.float64)
    assert copying_score(FactoredMatrix(block, torch.eye(3).double())) == pytest.approx(
        5 / (3 + 2 * 5**0.5)
    )
    zero = FactoredMatrix(torch.zeros(4, 2), torch.ones(2, 4))
    assert copying_score(zero) == 0.0
    with pytest.raises(InvalidArgumentError, match="square"):
        copying_score(factored())


def test_sum_of_heads_is_the_sum_of_their_matrices():
    parts = [factored(6, 7, 2, seed) for seed in range(3)]
    total = sum(part.A @ part.B for part in parts)
    summed = sum_of(parts)
    torch.testing.assert_close(summed.A @ summed.B, total)


@pytest.mark.parametrize("by", ["row", "column"])
@pytest.mark.parametrize("max_bytes", [1, 700, 10**6])
def test_diagonal_accuracy_is_that_of_a_loop(by, max_bytes):
    matrix = factored(40, 40, 6, seed=3)
    matrix = FactoredMatrix(matrix.A, matrix.A.T + 0.8 * matrix.B)  # a diagonal that often wins
    full = (matrix.A @ matrix.B).numpy()
    full = full if by == "row" else full.T
    ranks = [sum(full[i, j] >= full[i, i] for j in range(40) if j != i) for i in range(40)]
    found = diagonal_accuracy(matrix, by=by, max_bytes=max_bytes)
    assert found.ranks.tolist() == ranks
    shares = [np.mean(np.array(ranks) < k) for k in (1, 3, 5)]
    assert 0 < shares[0] < shares[1] < shares[2] < 1
    assert [found.top1, found.accuracy(3), found.top5] == shares
    assert found["chance"].tolist() == [1 / 40, 5 / 40]


def test_a_constant_matrix_has_no_diagonal():
    constant = FactoredMatrix(torch.ones(8, 1), torch.ones(1, 8))
    assert diagonal_accuracy(constant).top5 == 0.0


@pytest.mark.parametrize("max_bytes", [1, 1000, 10**6])
def test_overview_holds_each_blocks_entry_of_largest_size(max_bytes):
    matrix = factored(23, 31)
    full = (matrix.A @ matrix.B).numpy()
    found = map_of(matrix, name="m", k=4, blocks=6, max_bytes=max_bytes)
    assert found.block_shape == (4, 6) and found.overview.shape == (6, 6)
    for i in range(6):
        for j in range(6):
            block = full[4 * i : 4 * i + 4, 6 * j : 6 * j + 6].flatten()
            assert found.overview[i, j] == pytest.approx(block[np.abs(block).argmax()])
    best = np.argsort(-full.max(axis=1))[:4]
    assert found.rows.tolist() == best.tolist()
    np.testing.assert_allclose(found.window, full[np.ix_(best, found.columns.tolist())])


def test_names_of_a_window_may_come_from_anything_that_gives_texts():
    found = map_of(factored(3, 2), name="", labels=(iter("abc"), np.array(["x", "y"])), k=5)
    assert sorted(found.row_labels) == ["a", "b", "c"] and sorted(found.column_labels) == ["x", "y"]
    for wrong in ([False, np.array([])], [None, 7], [["a", "b"], None]):
        with pytest.raises(InvalidArgumentError, match="labels must"):
            map_of(factored(3, 2), name="", labels=wrong)


def test_a_large_circuit_is_searched_without_the_dense_matrix():
    # 20,000 × 20,000 would be 1.6 GB; blocks of 8 MB find planted pairs.
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(20_000, 4, generator=g), torch.randn(4, 20_000, generator=g)
    a[[17, 19_999]] *= 40
    found = top_pairs(FactoredMatrix(a, b), 50, max_bytes=8 * 2**20)
    direct = torch.cat([(a[17] @ b), (a[19_999] @ b)]).topk(50).values
    torch.testing.assert_close(found.entries, direct, rtol=1e-5, atol=1e-4)
    assert set(found.row_ids.tolist()) <= {17, 19_999}


@pytest.mark.parametrize("order", ["largest", "smallest", "absolute"])
def test_a_search_in_float32_ranks_as_float64_does(order, monkeypatch):
    g = torch.Generator().manual_seed(3)
    matrix = FactoredMatrix(
        torch.randn(300, 5, generator=g).double() * 30, torch.randn(5, 200, generator=g).double()
    )
    # Twenty entries that float32 cannot tell from the largest: only the recomputed ones can be ranked.
    matrix.A[:20] = 500 * torch.eye(5)[0] * (1 + 1e-11 * torch.arange(20)[:, None])
    exact = top_pairs(matrix, 30, order=order)
    ties = FactoredMatrix(torch.ones(300, 1).double(), torch.ones(1, 200).double())
    tied = top_pairs(ties, 7, order=order)
    monkeypatch.setattr(search, "LARGE", 100)
    monkeypatch.setattr(search, "MAX_EXTRA", 1000)
    found = top_pairs(matrix, 30, order=order, max_bytes=20_000)
    assert found.row_ids.tolist() == exact.row_ids.tolist()
    assert found.column_ids.tolist() == exact.column_ids.tolist()
    assert torch.equal(found.entries, exact.entries)
    dense = (matrix.A @ matrix.B).flatten()
    keys = {"largest": dense, "smallest": -dense, "absolute": dense.abs()}[order]
    torch.testing.assert_close(
        found.entries, dense[keys.argsort(descending=True)[:30]], rtol=1e-13, atol=0
    )
    assert (
        top_pairs(ties, 7, order=order).column_ids.tolist()
        == tied.column_ids.tolist()
        == list(range(7))
    )


@pytest.mark.parametrize("left, right", [(1e-21, 1e-21), (1e-45, 1.0), (1e33, 1e21), (1e60, 1e-9)])
@pytest.mark.parametrize("order", ["largest", "smallest", "absolute"])
def test_numbers_that_float32_does_not_hold_are_ranked(left, right, order, monkeypatch):
    """Weights of dead heads decay to 1e-20 and less: their products are 0 in float32, or infinite."""
    g = torch.Generator().manual_seed(5)
    a, b = torch.randn(90, 1, generator=g).double(), torch.randn(1, 70, generator=g).double()
    dense = (left * a) @ (right * b)
    keys = {"largest": dense, "smallest": -dense, "absolute": dense.abs()}[order]
    monkeypatch.setattr(search, "LARGE", 0)
    found = top_pairs(FactoredMatrix(left * a, right * b), 9, order=order)
    best = keys.flatten().argsort(descending=True, stable=True)[:9]
    assert (found.row_ids * 70 + found.column_ids).tolist() == best.tolist()


def test_factors_made_of_parameters_are_read():
    a, b = (factored(20, 20).A.requires_grad_() for _ in range(2))
    matrix, plain = FactoredMatrix(a, b.T), FactoredMatrix(a.detach(), b.detach().T)
    for question in (partial(top_pairs, k=4), diagonal_accuracy, partial(map_of, name="")):
        assert question(matrix).to_dataframe().equals(question(plain).to_dataframe())


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("side", ["A", "B"])
def test_factors_that_are_not_finite_are_refused(bad, side):
    matrix = factored(9, 9)
    getattr(matrix, side)[1, 1] = bad
    for question in (partial(top_pairs, k=40), diagonal_accuracy, partial(map_of, name="")):
        with pytest.raises(NonFiniteError, match=rf"matrix.{side} holds 1 NaN"):
            question(matrix)


def test_a_matrix_recomputed_whole_is_searched_once(monkeypatch):
    seen = []
    blocks = lambda matrix, **given: seen.append(matrix.A.dtype) or row_blocks(matrix, **given)  # noqa: E731
    monkeypatch.setattr(search, "row_blocks", blocks)
    monkeypatch.setattr(search, "LARGE", 0)
    found = top_pairs(FactoredMatrix(torch.ones(6, 1).double(), torch.ones(1, 9).double()), 5)
    assert found.column_ids.tolist() == list(range(5)) and seen == [torch.float32]
