import numpy as np
import pytest
import torch

from lens_linear._tl import FactoredMatrix
from lens_linear.circuits.heads.svd import svd_readout


def planted(values, rows=12, columns=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    n = len(values)
    u = torch.linalg.qr(torch.randn(rows, n, generator=g).double()).Q
    v = torch.linalg.qr(torch.randn(columns, n, generator=g).double()).Q
    mix = torch.randn(n, n, generator=g).double()  # the factors themselves show nothing
    return (
        FactoredMatrix(u * torch.tensor(values).double() @ mix, torch.linalg.solve(mix, v.T)),
        u,
        v,
    )


def test_planted_singular_values_and_directions_come_back():
    matrix, u, v = planted([5.0, 3.0, 2.0, 0.5])
    found = svd_readout(matrix, 3)
    np.testing.assert_allclose(found.S, [5, 3, 2], rtol=1e-10)
    np.testing.assert_allclose((found.U.T @ u).abs().diagonal(), 1, atol=1e-9)
    np.testing.assert_allclose(found.U.T @ u[:, :3], found.V.T @ v[:, :3], atol=1e-9)
    assert found.warning is None
    assert bool((found.U.gather(0, found.U.abs().argmax(0)[None]) > 0).all())


def test_near_equal_values_are_flagged_also_across_the_cut():
    matrix, _, _ = planted([5.0, 3.0, 2.95, 2.9, 1.0])
    found = svd_readout(matrix, 3)
    assert found.near_equal == (range(1, 3),)
    assert "1-2" in found.warning and "space" in found.warning
    alone = svd_readout(
        matrix, 2
    )  # direction 1 is cut off from its partners but still undetermined
    assert alone.near_equal == (range(1, 2),)
    assert alone.warning.startswith("direction 1 has a singular value within")
    assert set(found[found["near_equal"]]["direction"]) == {1, 2}
    assert svd_readout(matrix, 3, rtol=0.001).near_equal == ()


def test_the_table_lists_the_tokens_furthest_out():
    matrix, _, _ = planted([4.0, 1.0])
    found = svd_readout(matrix, 1, top=2, row_labels=[f"t{i}" for i in range(12)])
    frame = found.to_dataframe()
    plus = frame[(frame["sign"] == 1) & (frame["side"] == "row")]
    assert plus["token"].tolist() == np.argsort(-found.U[:, 0].numpy())[:2].tolist()
    assert plus["label"].tolist() == [f"t{i}" for i in plus["token"]]
    minus = frame[(frame["sign"] == -1) & (frame["side"] == "column")]
    assert minus["token"].tolist() == np.argsort(found.V[:, 0].numpy())[:2].tolist()


@pytest.mark.parametrize("shape", [(5, 9, 3), (3, 4, 8)])  # the second: more inner than outer
def test_agrees_with_a_dense_svd(shape):
    g = torch.Generator().manual_seed(1)
    rows, columns, inner = shape
    matrix = FactoredMatrix(
        torch.randn(rows, inner, generator=g).double(),
        torch.randn(inner, columns, generator=g).double(),
    )
    found = svd_readout(matrix, 50)
    expected = np.linalg.svd((matrix.A @ matrix.B).numpy(), compute_uv=False)
    np.testing.assert_allclose(found.S, expected[: min(shape)], rtol=1e-9)
    rebuilt = found.U * found.S @ found.V.T
    np.testing.assert_allclose(rebuilt, matrix.A @ matrix.B, atol=1e-9)
