"""The cosine regulariser: closed forms, a slow loop, gradients, and its place in training."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_linear import CosineRegularizer
from lens_linear.errors import InvalidArgumentError, NonFiniteError
from lens_linear.models.native import ModelSpec
from lens_linear.training.loop import train
from lens_linear.training.recipes import Phase, Recipe
from lens_linear.training.regularizer import _require_kept


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_three_four_five():
    x, y = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]])
    assert float(CosineRegularizer(0.5)([x, y])) == pytest.approx(0.5 * (1 - 24 / 25))
    assert float(CosineRegularizer()([x, -x])) == pytest.approx(2)
    assert float(CosineRegularizer()([x, torch.tensor([[[-4.0, 3.0]]])])) == pytest.approx(1)


def test_equals_a_loop_over_tokens_and_layers():
    states = [normal(3, 5, 7, seed=s) for s in range(4)]
    total = 0.0
    for before, after in itertools.pairwise(states):
        for i in range(3):
            for j in range(5):
                u, v = before[i, j], after[i, j]
                total += (1 - float(u @ v / (u.norm() * v.norm()))) / 15
    assert float(CosineRegularizer(0.3)(states)) == pytest.approx(0.3 * total, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3), st.integers(0, 100))
def test_lengths_do_not_matter_and_the_range_is_zero_to_two_per_layer(scales, seed):
    states = [normal(4, 6, seed=seed + k) for k in range(3)]
    value = float(CosineRegularizer()(states))
    assert 0 <= value <= 4
    stretched = [scale * state for scale, state in zip(scales, states, strict=True)]
    assert float(CosineRegularizer()(stretched)) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_angles_of_half_precision_states_are_not_rounded_away(dtype):
    before = normal(64, 32).to(dtype)
    after = (before.double() + 0.05 * normal(64, 32, seed=1)).to(dtype)
    want = CosineRegularizer()([before.double(), after.double()])
    got = CosineRegularizer()([before, after])
    assert got.dtype == torch.float32 and 0.0005 < float(want) < 0.002
    assert float(got) == pytest.approx(float(want), rel=1e-3)


def test_gradient_turns_the_stream_together():
    x, y = normal(2, 8), normal(2, 8, seed=1).requires_grad_()
    CosineRegularizer(2.0)([x, y]).backward()
    closer = (y - 0.1 * y.grad).detach()
    assert float(CosineRegularizer()([x, closer])) < float(CosineRegularizer()([x, y.detach()]))
    assert float((y.grad * y.detach()).sum(-1).abs().max()) < 1e-12, "the length of y is not pulled"
    flipped = normal(2, 8, seed=1).requires_grad_()
    CosineRegularizer(-2.0)([x, flipped]).backward()
    assert torch.allclose(flipped.grad, -y.grad)


def test_in_training_it_turns_the_blocks_less():
    spec = ModelSpec(2, d_model=16, n_heads=2, d_vocab=32, n_ctx=16)
    phase = Phase(steps=40, rows=8, length=16, periods=(3, 6), learning_rate=3e-3, warmup=2)
    stream = torch.arange(500) % 32

    def turn(cosine):
        recipe = Recipe("t", spec, (phase,), cosine=cosine, precision="float32")
        module = train(recipe, stream, progress=False).module
        states = []
        for layer in module.layers:
            layer.register_forward_hook(lambda _m, args, out: states.extend([args[0], out[0]]))
        with torch.no_grad():
            module(stream[:16][None])
        return float(CosineRegularizer()(states[:2]) + CosineRegularizer()(states[2:4]))

    assert turn(1.0) < 0.6 * turn(0.0)


@pytest.mark.parametrize("weight", [math.nan, math.inf, "1", True])
def test_weight_must_be_a_finite_number(weight):
    with pytest.raises(InvalidArgumentError, match="weight must be"):
        CosineRegularizer(weight)


def test_states_must_be_two_or_more_of_one_shape():
    with pytest.raises(InvalidArgumentError, match="at least two"):
        CosineRegularizer()([normal(2, 3)])
    with pytest.raises(InvalidArgumentError, match="one shape"):
        CosineRegularizer()([normal(2, 3), normal(2, 4)])
    for empty in ((3, 0), (0, 3), (2, 0, 3)):  # the mean over no token would be NaN
        with pytest.raises(InvalidArgumentError, match=r"at least one token.*\(" + str(empty[0])):
            CosineRegularizer()([normal(*empty), normal(*empty)])


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_the_angle_has_no_units(size):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 6, 5, generator=generator)
    want = float((1 - torch.cosine_similarity(x.double(), y.double(), dim=-1)).mean())
    assert float(CosineRegularizer()([size * x, y])) == pytest.approx(want, rel=1e-5)
    assert float(CosineRegularizer()([size * x, -size * x])) == pytest.approx(2.0, rel=1e-5)


def test_a_small_turn_keeps_its_digits():
    x = torch.tensor([[1.0, 0.0]])
    y = torch.tensor([[1.0, 1e-5]])
    assert float(CosineRegularizer()([x, y])) == pytest.approx(0.5e-10, rel=1e-3)


def test_a_state_of_zeros_has_no_direction_and_no_gradient():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    y = torch.tensor([[1.0, 2.0], [4.0, 3.0]], requires_grad=True)
    penalty = CosineRegularizer()([x, y])
    assert penalty.item() == pytest.approx((1 + 0.04) / 2)
    penalty.backward()
    assert x.grad[0].tolist() == [0.0, 0.0] == y.grad[0].tolist()
    assert float(x.grad[1].norm()) > 0


@pytest.mark.parametrize(
    ("size", "dtype"), [(1e-40, torch.float32), (1e-40, torch.bfloat16), (1e-310, torch.float64)]
)
def test_states_below_the_normal_numbers_keep_their_angle(size, dtype):
    x = torch.tensor([[size, 0.0], [size, 0.0]], dtype=dtype, requires_grad=True)
    y = torch.tensor([[-1.0, 0.0], [0.0, 1.0]], dtype=dtype, requires_grad=True)
    penalty = CosineRegularizer()([x, y])
    assert penalty.item() == pytest.approx((2 + 1) / 2)
    penalty.backward()
    assert x.grad.abs().max() == 0 and torch.allclose(
        y.grad[1], torch.tensor([-0.5, 0.0], dtype=dtype)
    )


@pytest.mark.parametrize("tokens", [64, 1024, 4096, 16384])
def test_half_precision_gradients_are_right_or_refused(tokens):
    generator = torch.Generator().manual_seed(1)
    states = [torch.randn(2, tokens // 2, 64, generator=generator).half() for _ in range(3)]
    wide = [state.double().requires_grad_() for state in states]
    turns = [1 - torch.cosine_similarity(a, b, dim=-1).mean() for a, b in itertools.pairwise(wide)]
    sum(turns).backward()

    def error(scale):
        half = [state.clone().requires_grad_() for state in states]
        (scale * CosineRegularizer()(half)).backward()
        gaps = [
            (h.grad.double() / scale - w.grad).norm() / w.grad.norm() for h, w in zip(half, wide)
        ]
        return float(max(gaps))

    if tokens >= 16384:
        with pytest.raises(
            NonFiniteError, match="use bfloat16 or float32 states, or scale the loss"
        ):
            error(1.0)
    else:
        assert error(1.0) < 0.01
    assert error(1024.0) < 1e-3  # the advice: scale the loss


@pytest.mark.parametrize(("size", "share"), [(3e3, 0.5), (1e4, 0.1), (3e3, 1 / 128)])
def test_tokens_of_large_states_are_not_lost_behind_the_others(size, share):
    """Their gradient is small in the norm over all tokens, and all they have."""
    states = [normal(128, 8, seed=s) for s in range(2)]
    for state in states:
        state[: round(128 * share)] *= size
    wide = [state.half().double().requires_grad_() for state in states]
    CosineRegularizer()(wide).backward()
    half = [state.half().requires_grad_() for state in states]
    gaps = [(w.grad - w.grad.half().double()).norm() / w.grad.norm() for w in wide]
    assert max(gaps) < 0.01  # of all
    tokens = r"more than 5% of it for \d+ of 128 tokens"
    with pytest.raises(NonFiniteError, match=tokens):
        CosineRegularizer()(half).backward()
    half = [state.half().requires_grad_() for state in states]
    (4096 * CosineRegularizer()(half)).backward()  # the advice
    for h, w in zip(half, wide, strict=True):
        off = (h.grad.double() / 4096 - w.grad).norm(dim=-1)
        assert float((off / w.grad.norm(dim=-1)).max()) < 0.05


@pytest.mark.parametrize("share, gradient", [(1.0, 1.0), (0.5, 0.0)])
def test_the_smallest_normal_number_still_has_a_gradient(share, gradient):
    tiny = torch.finfo(torch.float32).tiny
    x = torch.tensor([[share * tiny, 0.0]], requires_grad=True)
    CosineRegularizer()([x, torch.tensor([[0.0, 1.0]])]).backward()
    assert (x.grad * tiny).tolist() == [[0.0, -gradient]]


def test_the_largest_half_precision_number_is_no_overflow():
    _require_kept(torch.tensor([[0.0, -65504.0]]), torch.ones(1))
    with pytest.raises(NonFiniteError, match="more than its 65504"):
        _require_kept(torch.tensor([[0.0, -65505.0]]), torch.ones(1))


def test_gradients_that_half_precision_cannot_hold_are_said():
    x = torch.tensor([[1e-3, 0.0]]).half().requires_grad_()
    y = torch.tensor([[0.0, 1.0]]).half()
    with pytest.raises(NonFiniteError, match=r"reaches 1e[+]06, more than its 65504"):
        (1000 * CosineRegularizer()([x, y])).backward()
    with pytest.raises(NonFiniteError, match="NaN or infinite; look at the loss"):
        (math.nan * CosineRegularizer()([x, y])).backward()


@pytest.mark.parametrize("width", [2, 64, 1024])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1024.0])
def test_opposed_half_precision_states_have_no_gradient(width, scale):
    """Its true value is 0; float32 leaves a few eps, which is no gradient that float16 could lose."""
    before = normal(5, width, seed=width).half()
    if width == 2:
        before[0] = torch.tensor([3.0, 4.0])
    states = [s.clone().requires_grad_() for s in (before, -2 * before, 4 * before)]
    penalty = CosineRegularizer()(states)
    assert penalty.item() == pytest.approx(4)
    (scale * penalty).backward()
    assert all(not bool(s.grad.any()) for s in states)


def test_a_token_near_its_opposite_keeps_its_gradient_or_is_refused():
    """A turn by π - 1e-3 has a gradient of 1e-3, not a residue; beside opposed tokens too."""
    before = torch.tensor([[1.0, 0.0], [3.0, 4.0]]).half()
    after = torch.tensor([[-1.0, 1e-3], [-3.0, -4.0]]).half()
    x = before.clone().requires_grad_()
    (1024 * CosineRegularizer()([x, after])).backward()
    wide = before.double().requires_grad_()
    CosineRegularizer()([wide, after.double()]).backward()
    torch.testing.assert_close(x.grad.double() / 1024, wide.grad, rtol=1e-2, atol=1e-9)
    assert float(wide.grad[0].norm()) > 4e-4
    x = (1e4 * before).requires_grad_()
    with pytest.raises(NonFiniteError, match="of it for 1 of 2 tokens"):
        CosineRegularizer()([x, after]).backward()
