import pytest
import torch
from linalg_data import normal

from lens_linear.checks import require_float_tensor
from lens_linear.errors import InvalidArgumentError, NonFiniteError
from lens_linear.linalg import (
    Moments,
    gram,
    krylov_basis,
    row_error,
    to_compute,
)
from lens_linear.linalg.precision import _block, add_gram, mirror_


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_to_compute_keeps_the_values_of_every_float_type(dtype):
    x = torch.tensor([1.5, -0.25, 3.0], dtype=dtype, requires_grad=True)
    out = to_compute(x)
    assert out.dtype == torch.float64 and not out.requires_grad
    assert out.tolist() == [1.5, -0.25, 3.0]


def test_to_compute_refuses_whole_numbers():
    with pytest.raises(InvalidArgumentError, match=r"dtype torch.int64; call .float\(\)"):
        to_compute(torch.arange(3))


@pytest.mark.parametrize("d", [1, 5, 31, 33, 64, 100, 300])
@pytest.mark.parametrize("block", [None, 7, 32, 1000])
def test_gram_is_the_plain_product_and_symmetric(d, block):
    x = normal(50, d)
    out = gram(x, block=block)
    torch.testing.assert_close(out, x.T @ x, rtol=1e-12, atol=1e-12)
    assert torch.equal(out, out.T)


def test_rows_are_trusted_as_far_as_their_dtype_goes():
    found = [row_error(t) for t in (torch.bfloat16, torch.float16, torch.float32, torch.float64)]
    assert found == pytest.approx([2**-7, 2**-10, 2**-19, 2**-42], rel=1e-12)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (None, "torch tensor"),
        (torch.ones(3), "2 axes"),
        (torch.ones(3, 2).long(), "real floating numbers"),
        (torch.eye(3).to_sparse(), r"got sparse; call .to_dense\(\)"),
        (torch.ones(3, 2, device="meta"), "without data on the meta device"),
    ],
)
def test_gram_refuses_what_is_no_dense_floating_matrix(x, words):
    with pytest.raises(InvalidArgumentError, match=words):
        gram(x)


@pytest.mark.parametrize("block", [0, -1, 1.5])
def test_gram_refuses_blocks_below_one_column(block):
    with pytest.raises(InvalidArgumentError, match="block must be"):
        gram(torch.ones(3, 2), block=block)


def test_eight_bit_floats_are_checked_for_infinities_like_the_others():
    x = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    with pytest.raises(NonFiniteError, match="x holds 1 NaN"):
        require_float_tensor("x", x)
    torch.testing.assert_close(require_float_tensor("x", x[:1]), x[:1])


def test_moments_and_krylov_refuse_devices_and_maps_that_are_none():
    with pytest.raises(InvalidArgumentError, match="device must be a device of this machine"):
        Moments(2, 2, device="nowhere")
    with pytest.raises(InvalidArgumentError, match="apply must be a function"):
        krylov_basis(torch.eye(2), torch.ones(1, 2), order=1)


@pytest.mark.parametrize("d", [1, 33, 64, 129, 257, 770])
def test_gram_adds_up_blocks_to_the_whole_product(d):
    x = torch.randn(40, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64) + 0.3
    whole = torch.einsum("ni,nj->ij", x, x)
    assert 32 <= _block(d) <= 192
    torch.testing.assert_close(gram(x), whole, rtol=1e-12, atol=1e-12)
    assert torch.equal(gram(x), gram(x).T)
    total = torch.eye(d, dtype=torch.float64) + 7 * torch.ones(d, d).tril(-1)  # 7: means nothing
    add_gram(total, x.float())
    mirror_(total)
    alone = torch.full((d, d), 7.0, dtype=torch.float64)
    add_gram(alone, x.float(), first=True)
    torch.testing.assert_close(mirror_(alone), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, whole + torch.eye(d), rtol=1e-5, atol=1e-5)
    assert torch.equal(total, total.T)


@pytest.mark.parametrize("d", [3, 32, 90])
def test_gram_takes_rows_with_a_gradient(d):
    x = normal(7, d, seed=d).requires_grad_()
    assert not gram(x).requires_grad and torch.equal(gram(x), gram(x.detach()))
