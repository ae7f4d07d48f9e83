import pytest
import torch
from linalg_data import normal

from lens_linear.errors import InvalidArgumentError
from lens_linear.linalg import default_rtol, gram, scatter_rtol, to_compute


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


def test_tolerances():
    assert default_rtol(1000, 10) == pytest.approx(2.220446e-13)
    assert scatter_rtol(768) == pytest.approx((2.220446e-16 * 192) ** 0.5)
